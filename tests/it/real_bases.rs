//! Tests with published models and tokenizers, which `tests/real/fetch.sh` puts into the folder
//! that `BESPOKE_REAL` names: `make test-real`. `REAL=all` adds Gemma 3, whose tests are in a
//! separate module, so that tests that aren't wanted can be skipped by name and don't count as
//! passed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use assert_cmd::Command;
use bespoke::cli::export::{candle_logits, relative_difference};
use bespoke::engine::reference::Reference;
use bespoke::gguf::Gguf;
use bespoke::model::hugging_face_config::TokenIds;
use bespoke::model::{TextSide, gguf_file, gguf_tokenizer, hugging_face};
use bespoke::text::tokenizer::Tokenizer;
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::families::normal_form;
use crate::program::Program;
use crate::tokenizer::{exported_text, text};

const SMOLLM2: &str = "smollm2.gguf";
const GEMMA3: &str = "gemma3.gguf";

/// Path of a fetched file.
fn real(name: &str) -> PathBuf {
    let folder = std::env::var_os("BESPOKE_REAL")
        .expect("BESPOKE_REAL names no folder; `make test-real` fetches the files and names it");
    let path = Path::new(&folder).join(name);
    assert!(path.exists(), "{} is not there; tests/real/fetch.sh fetches it", path.display());
    path
}

fn ask(url: &str, path: &str, body: &Value) -> Value {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().new_agent();
    // The daemon listens before the model is loaded.
    let end = Instant::now() + Duration::from_secs(120);
    while agent.get(format!("{url}/health")).call().unwrap().status() != 200 {
        assert!(Instant::now() < end, "{path}: the model is not ready after two minutes");
        std::thread::sleep(Duration::from_millis(200));
    }
    let request = agent.post(format!("{url}{path}")).header("content-type", "application/json");
    let mut answer = request.send(body.to_string()).unwrap();
    let text = answer.body_mut().read_to_string().unwrap();
    assert_eq!(answer.status(), 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// Serves a fetched model and asks it for the capital of France.
fn assert_knows_paris(name: &str) {
    let program = Program::serve(&["--model", real(name).to_str().unwrap()], &[]);
    let url = program.url();
    let chat = json!({
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0, "max_tokens": 24,
    });
    let answer = ask(&url, "/v1/chat/completions", &chat);
    let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(content.contains("Paris"), "{content}");
}

#[test]
#[ignore = "needs published models: make test-real"]
fn smollm2_is_served() {
    assert_knows_paris(SMOLLM2);
}

/// An import has the values that the file's weights stand for, and Candle and llama.cpp compute the
/// same with it.
#[test]
#[ignore = "needs published models: make test-real"]
fn smollm2_is_imported_as_it_is() {
    let (source, out) = (real(SMOLLM2), tempfile::tempdir().unwrap());
    let (folder, exported) = (out.path().join("folder"), out.path().join("full.gguf"));
    Command::cargo_bin("bespoke").unwrap().arg("import").arg(&source).arg(&folder).assert().success();
    let model = hugging_face::load(&folder).unwrap();
    assert_eq!(model.config.parameter_count(), 134_515_008);

    // The command itself compares ids and logits before it keeps the file.
    Command::cargo_bin("bespoke").unwrap().arg("export").arg(&folder).arg(&exported).assert().success();
    let prompt =
        "The quick brown fox jumps over the lazy dog. It was 7:45 when the parser failed in src/main.rs, and";
    let ids = Tokenizer::from_file(&folder.join("tokenizer.json")).unwrap().encode(prompt).unwrap();
    let reference = Reference::open(&exported).unwrap();
    let theirs = reference.logits(&ids).unwrap();
    let (difference, _) = relative_difference(&theirs, &candle_logits(&model, &ids).unwrap()).unwrap();
    println!("Candle and llama.cpp on the imported weights: {difference:.1e}");
    assert!(difference <= 1e-3, "{difference:e}");

    // Weights are dequantised once, and never change after that.
    let (before, after) = (Gguf::open(&source).unwrap(), Gguf::open(&exported).unwrap());
    assert_eq!(before.tensors().len(), after.tensors().len());
    for tensor in before.tensors() {
        let (a, b) = (before.tensor_f32(&tensor.name).unwrap(), after.tensor_f32(&tensor.name).unwrap());
        assert!(a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()), "{}", tensor.name);
    }
    let original = Reference::open(&source).unwrap();
    assert_eq!(original.tokenize(prompt, false), ids);
    let (max, rms) = relative_difference(&original.logits(&ids).unwrap(), &theirs).unwrap();
    println!("llama.cpp on the file and on the export of its import: max {max:.1e}, RMS {rms:.1e}");
    // The weights are identical (checked above). But with quantised weights, llama.cpp rounds
    // activations to 8 bits before it multiplies: 4.2e-2 of the largest logit here.
    assert!(max <= 8e-2, "{max:e}, RMS {rms:e}");
}

/// Awkward texts, with pieces that this tokenizer treats specially.
fn texts(pieces: &[&str]) -> impl Iterator<Item = String> {
    let mut rng = ChaCha8Rng::seed_from_u64(17);
    std::iter::repeat_with(move || {
        let parts = [text(&mut rng), (*pieces.choose(&mut rng).unwrap()).to_owned(), text(&mut rng)];
        parts.concat()
    })
}

/// The tokenizer as its file describes it, except that control tokens in a text are text.
fn oracle(json: &Value) -> tokenizers::Tokenizer {
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap();
    tokenizer.set_encode_special_tokens(true);
    tokenizer
}

/// Checks that `tokenizers`, training and llama.cpp read the same ids.
fn assert_same_ids(name: &str, json: &Value, reference: &Reference, pieces: &[&str]) {
    let (oracle, ours) = (oracle(json), Tokenizer::new(oracle(json)));
    // Tokens that are ordinary by their file but control tokens by their form or llama.cpp's table
    // are text for training and llama.cpp.
    let special = |tokenizer: &tokenizers::Tokenizer| {
        let added = tokenizer.get_added_tokens_decoder().into_values();
        added.filter(|token| token.special).map(|token| token.content).collect::<Vec<_>>()
    };
    let known = special(&oracle);
    let promoted: Vec<_> =
        special(ours.inner()).into_iter().filter(|content| !known.contains(content)).collect();
    let mut compared = 0;
    for text in texts(pieces).take(20_000) {
        if compared == 300 {
            break;
        }
        let normal = normal_form(&ours, &text);
        // SmolLM2's vocabulary has no token for some control characters. Both sides drop them;
        // `tokenizers` then merges the neighbours.
        if oracle.decode(ours.encode(&text).unwrap().as_slice(), false).unwrap() != normal {
            continue;
        }
        let ids = reference.tokenize(&normal, false);
        assert_eq!(ours.encode(&text).unwrap(), ids, "{name}: llama.cpp reads {text:?} otherwise");
        if !promoted.iter().any(|content| text.contains(content.as_str())) {
            assert_eq!(oracle.encode_fast(text.as_str(), false).unwrap().get_ids(), ids, "{name}: {text:?}");
            compared += 1;
        }
    }
    assert_eq!(compared, 300, "{name}: too few texts have none of {promoted:?}");
}

/// A published `tokenizer.json` as the text side of a model.
fn side(name: &str, bos: Option<&str>, eos: &str) -> (TextSide, usize) {
    let bytes = std::fs::read(real(&format!("tokenizers/{name}/tokenizer.json"))).unwrap();
    let tokenizer: Value = serde_json::from_slice(&bytes).unwrap();
    let inner = oracle(&tokenizer);
    let id = |token: &str| inner.token_to_id(token).unwrap();
    let ids = TokenIds { bos: bos.map(id), eos: vec![id(eos)], pad: None, unk: None };
    let size = inner.get_vocab(true).into_values().max().unwrap() as usize + 1;
    (TextSide { tokenizer, chat_template: None, named_templates: vec![], ids }, size)
}

#[test]
#[ignore = "needs published models: make test-real"]
fn published_tokenizers_have_the_same_ids_everywhere() {
    let cases: [(&str, Option<&str>, &str, &[&str]); 3] = [
        ("llama3_1", Some("<|begin_of_text|>"), "<|eot_id|>", &["<|eot_id|>", "1234567", "'Re", "</s>"]),
        ("qwen3", None, "<|im_end|>", &["<|im_end|>", "<think>", "<|fim_prefix|>", "</s>", "हिन्दी"]),
        (
            "gemma3",
            Some("<bos>"),
            "<eos>",
            &["<end_of_turn>", "<unused0>", "</s>", "\n\n\n\n", "    ", "<b>"],
        ),
    ];
    for (name, bos, eos, pieces) in cases {
        let (side, size) = side(name, bos, eos);
        let folder = tempfile::tempdir().unwrap();
        let reference = exported_text(side.clone(), size, folder.path());
        assert_same_ids(name, &side.tokenizer, &reference, pieces);
        // And the import of it.
        let back = gguf_file::import(&folder.path().join("model.gguf")).unwrap().text;
        assert_same_ids(&format!("{name}, imported"), &back.tokenizer, &reference, pieces);
    }
}

#[test]
#[ignore = "needs published models: make test-real"]
fn tokenizers_in_model_files_have_the_same_ids_everywhere() {
    let pieces = ["<|im_end|>", "<file_sep>", "12345", "</s>", "don't"];
    let text = gguf_tokenizer::read(&Gguf::open(&real(SMOLLM2)).unwrap()).unwrap();
    let reference = Reference::open(&real(SMOLLM2)).unwrap();
    assert_same_ids("SmolLM2", &text.tokenizer, &reference, &pieces);
}

mod gemma3 {
    use super::*;

    #[test]
    #[ignore = "needs a published model: make test-real REAL=all"]
    fn is_served() {
        // Asked as it was tuned to be: after "The capital of France is" it goes on with "the capital
        // of the country of France", in llama-server too.
        assert_knows_paris(GEMMA3);
    }

    #[test]
    #[ignore = "needs a published model: make test-real REAL=all"]
    fn has_the_same_ids_everywhere() {
        let pieces = ["<end_of_turn>", "<unused0>", "</s>", "\n\n\n\n", "    ", "<b>"];
        let text = gguf_tokenizer::read(&Gguf::open(&real(GEMMA3)).unwrap()).unwrap();
        let reference = Reference::open(&real(GEMMA3)).unwrap();
        assert_same_ids("Gemma 3, as read from its file", &text.tokenizer, &reference, &pieces);
        // Its own file, from another source.
        let (side, _) = side("gemma3", Some("<bos>"), "<eos>");
        assert_same_ids("Gemma 3", &side.tokenizer, &reference, &pieces);
    }
}
