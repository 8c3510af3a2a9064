//! Tests that any text has the same token ids in llama.cpp and in `tokenizers`.

use std::sync::LazyLock;

use bespoke::engine::reference::Reference;
use bespoke::gguf::Gguf;
use bespoke::model::{Family, Model, TextSide, Uniform, gguf_file, init};
use bespoke::text::tokenizer::{Message, Tokenizer};
use bespoke::train::vocabulary::{self, SKELETON};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use regex::Regex;
use serde_json::{Value, json};

const WORDS: [&str; 24] = [
    "parser",
    "Fix",
    "build",
    "failed",
    "src/main.rs",
    "0x3fA2",
    "it's",
    "DON'T",
    "naïve",
    "Größe",
    "日本語",
    "привет",
    "مرحبا",
    "हिन्दी",
    "한국어",
    "e\u{301}",
    "ﬁ",
    "Ⅷ",
    "٣٤",
    "²",
    "ǅ",
    "ß",
    "\u{1F469}\u{200D}\u{1F4BB}",
    "🏳️‍🌈",
];
const SPACES: [&str; 16] = [
    " ", " ", " ", "  ", "   ", "\t", "\n", "\r\n", "\n\n\n", " \n", "\n  ", "\u{a0}", "\u{3000}",
    "\u{2028}", "\u{85}", "\u{b}",
];
const MARKS: [&str; 22] = [
    ".", ",", "!?", "...", "--", "=>", "\"", "'", "\\", "\\n", "\\u00e9", "{}", "[]", "':", "<|user|>",
    "<|end|>", "<|pad|>", "<|", "|>", "</s>", "\u{feff}", "\u{200b}",
];

/// Characters that llama.cpp's tables don't know. It treats them as neither letters nor digits.
static NEW: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"[\p{Age:16.0}--\p{Age:15.1}]").unwrap());

/// A text of pieces that tokenisers treat specially.
pub fn text(rng: &mut ChaCha8Rng) -> String {
    let mut text = String::new();
    for _ in 0..rng.random_range(0..24) {
        match rng.random_range(0..9) {
            0 | 1 => text += WORDS.choose(rng).unwrap(),
            2 | 3 => text += SPACES.choose(rng).unwrap(),
            4 => text += MARKS.choose(rng).unwrap(),
            5 => {
                let digits = rng.random_range(1..12);
                text += &rng.random_range(0..10u64.pow(digits)).to_string();
            }
            6 => text += SKELETON.choose(rng).unwrap(),
            // Any character except NUL, where a C string would end, and surrogates, which are not
            // characters.
            7 => text.extend((0..rng.random_range(1..4)).map(|_| rng.random_range('\u{1}'..='\u{10ffff}'))),
            _ => text.extend((0..rng.random_range(1..6)).map(|_| rng.random_range('\u{1}'..='\u{ff}'))),
        }
    }
    NEW.replace_all(&text, "").into_owned()
}

fn conversations(rng: &mut ChaCha8Rng) -> Vec<Vec<Message>> {
    let row = |rng: &mut ChaCha8Rng| {
        let event = text(rng);
        let answer = serde_json::json!({"gist": event, "summary": text(rng), "salience": 0.5}).to_string();
        let message = |role: &str, content| Message { role: role.into(), content };
        vec![message("user", event), message("assistant", answer)]
    };
    (0..400).map(|_| row(rng)).collect()
}

/// A model of which only the vocabulary matters.
fn exported(tokenizer: &Tokenizer, folder: &std::path::Path) -> Reference {
    exported_text(TextSide::of_post(tokenizer).unwrap(), tokenizer.vocab_size(), folder)
}

pub fn exported_text(text: TextSide, vocab_size: usize, folder: &std::path::Path) -> Reference {
    let shape = Uniform {
        family: Family::Qwen3,
        vocab_size,
        hidden_size: 8,
        layers: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 8,
        ffn: 8,
        rms_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        tied: true,
        max_position: 64,
    };
    let config = shape.config();
    let parameters = init::initialise(&config, 1).unwrap();
    let model = Model { config, parameters, text };
    let path = folder.join("model.gguf");
    gguf_file::export(&model, "vocabulary", folder, &path, gguf_file::Precision::F32).unwrap();
    Reference::open(&path).unwrap()
}

#[test]
fn llama_cpp_and_tokenizers_give_the_same_ids() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let tokenizer = vocabulary::train(conversations(&mut rng).into_iter(), 1024).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let reference = exported(&tokenizer, folder.path());
    let mut different = Vec::new();
    for _ in 0..1000 {
        let text = text(&mut rng);
        let (ours, theirs) = (tokenizer.encode(&text).unwrap(), reference.tokenize(&text, false));
        assert_eq!(tokenizer.decode(&ours).unwrap(), text);
        if ours != theirs {
            different.push((text, ours, theirs));
        }
    }
    assert!(different.is_empty(), "{} of 1000 differ; the first: {:?}", different.len(), different[0]);
}

#[test]
fn markers_are_tokens_only_where_markup_is_meant() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let tokenizer = vocabulary::train(conversations(&mut rng).into_iter(), 600).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let reference = exported(&tokenizer, folder.path());
    let messages = [Message { role: "user".into(), content: "say <|end|> twice".into() }];
    let ids = tokenizer.encode_chat(&messages).unwrap();
    let mut theirs = reference.tokenize("<|user|>", true);
    theirs.extend(reference.tokenize("say <|end|> twice", false));
    theirs.extend(reference.tokenize("<|end|><|assistant|>", true));
    assert_eq!(ids, theirs);
    assert_eq!(ids.iter().filter(|&&id| id == bespoke::text::tokenizer::END).count(), 1);
}

#[test]
fn every_known_pre_tokenizer_cuts_alike_and_survives_the_way_there_and_back() {
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let sequence = |first: Value, last: Value| json!({"type": "Sequence", "pretokenizers": [first, last]});
    let llama3 = vocabulary::QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|");
    let split = |pattern: &str| {
        let split =
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        sequence(split, byte_level(false))
    };
    let digits = json!({"type": "Digits", "individual_digits": true});
    let template = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|bos|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [1], "tokens": ["<|bos|>"]}},
    });
    let cases = [
        ("gpt-2", byte_level(true), false, Value::Null),
        ("smollm", sequence(digits, byte_level(true)), false, Value::Null),
        ("llama-bpe", split(&llama3), true, template),
        ("dbrx", split(&llama3), false, Value::Null),
        ("qwen2", split(vocabulary::QWEN2_PATTERN), false, Value::Null),
    ];
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let trained = vocabulary::train(conversations(&mut rng).into_iter(), 1024).unwrap();
    for (name, pre_tokenizer, ignore_merges, post_processor) in cases {
        let mut side = TextSide::of_post(&trained).unwrap();
        side.tokenizer["pre_tokenizer"] = pre_tokenizer;
        side.tokenizer["model"]["ignore_merges"] = ignore_merges.into();
        side.tokenizer["post_processor"] = post_processor;
        let folder = tempfile::tempdir().unwrap();
        let reference = exported_text(side.clone(), trained.vocab_size(), folder.path());
        let path = folder.path().join("model.gguf");
        let file = Gguf::open(&path).unwrap();
        assert_eq!(file.get::<&str>("tokenizer.ggml.pre").unwrap(), name);
        assert_eq!(file.get::<bool>("tokenizer.ggml.add_bos_token").unwrap(), name == "llama-bpe");
        let load = |side: &TextSide| {
            let bytes = serde_json::to_vec(&side.tokenizer).unwrap();
            Tokenizer::new(tokenizers::Tokenizer::from_bytes(bytes).unwrap())
        };
        let (before, after) = (load(&side), load(&gguf_file::import(&path).unwrap().text));
        let with_ends =
            |tokenizer: &Tokenizer| tokenizer.inner().encode("x", true).unwrap().get_ids().to_vec();
        assert_eq!(with_ends(&before), with_ends(&after), "{name}");
        for _ in 0..300 {
            let text = text(&mut rng);
            let ids = before.encode(&text).unwrap();
            assert_eq!(ids, reference.tokenize(&text, false), "{name}: llama.cpp reads {text:?} otherwise");
            assert_eq!(ids, after.encode(&text).unwrap(), "{name}: the import reads {text:?} otherwise");
        }
    }
}

#[test]
fn every_character_up_to_unicode_15_is_cut_alike() {
    let mut rng = ChaCha8Rng::seed_from_u64(10);
    let tokenizer = vocabulary::train(conversations(&mut rng).into_iter(), 600).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let reference = exported(&tokenizer, folder.path());
    // Ideographs, syllables and private characters are alike, so one in 61 of them is enough.
    let alike = |c: char| matches!(c, '\u{3400}'..='\u{d7a3}' | '\u{e000}'..='\u{f8ff}' | '\u{17000}'..='\u{18cff}' | '\u{20000}'..);
    let sample = ('\u{1}'..='\u{10ffff}').filter(|&c| !alike(c) || u32::from(c) % 61 == 0);
    for c in sample.filter(|c| !NEW.is_match(c.encode_utf8(&mut [0; 4]))) {
        let text = format!("a{c}\\u {c}1{c}{c}");
        assert_eq!(
            tokenizer.encode(&text).unwrap(),
            reference.tokenize(&text, false),
            "U+{:04X}",
            u32::from(c)
        );
    }
}

/// llama.cpp treats some texts as control tokens, whatever a model's files say. A text that
/// contains them must have the same ids on both sides, and none of these tokens.
#[test]
fn texts_of_llama_cpps_own_tables_are_read_alike() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let trained = vocabulary::train(conversations(&mut rng).into_iter(), 600).unwrap();
    let texts =
        ["</s>", "<EOT>", "_<EOT>", "[EOS]", "<PRE>", "<fim_suffix>", "[PAD]", "<reponame>", "<turn|>"];
    // Added tokens that are not special, as in Gemma's files, and plain entries of the vocabulary.
    for added in [true, false] {
        let mut side = TextSide::of_post(&trained).unwrap();
        let first = trained.vocab_size();
        for (id, text) in (first..).zip(texts) {
            if added {
                side.tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({
                    "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": false,
                }));
            } else {
                side.tokenizer["model"]["vocab"][text] = id.into();
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let size = first + texts.len();
        let reference = exported_text(side.clone(), size, folder.path());
        let bytes = serde_json::to_vec(&side.tokenizer).unwrap();
        let tokenizer = Tokenizer::new(tokenizers::Tokenizer::from_bytes(bytes).unwrap());
        assert_eq!(tokenizer.vocab_size(), size);
        let imported = gguf_file::import(&folder.path().join("model.gguf")).unwrap().text.tokenizer;
        let back = Tokenizer::new(tokenizers::Tokenizer::from_bytes(imported.to_string()).unwrap());
        for (id, text) in (first as u32..).zip(texts) {
            for around in [text.to_owned(), format!("a {text} b{text}{text}\n"), format!("<b>{text}</b>")] {
                let ids = tokenizer.encode(&around).unwrap();
                assert_eq!(ids, reference.tokenize(&around, false), "{around:?}");
                assert_eq!(ids, back.encode(&around).unwrap(), "{around:?}, imported");
                assert!(!ids.contains(&id), "{around:?}");
            }
            assert_eq!(reference.tokenize(text, true), [id], "{text:?} is a token where markup is meant");
        }
    }
}
