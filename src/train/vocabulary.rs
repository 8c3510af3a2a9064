//! The vocabulary of a post made from scratch: byte-level BPE with chat markers and the skeleton
//! of an encoding as single tokens.

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    SplitDelimiterBehavior, TokenizerBuilder,
};

use crate::text::tokenizer::{MARKERS, Message, Tokenizer, TokenizerError, answer_pieces};

/// The pre-tokenizer that llama.cpp knows as `qwen2`: words with one leading punctuation mark,
/// single digits, punctuation runs, line ends, spaces. Single digits let a small model copy numbers
/// that it has never seen.
pub const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The text between the values of an encoding. Each piece ends where the schema leaves a choice,
/// so the text that a constraint forces is tokenised into exactly these pieces. No proper suffix of
/// one is a proper prefix of another: llama.cpp matches the longest token first, `tokenizers` the
/// leftmost, and only then do both always agree.
pub const SKELETON: [&str; 27] = [
    r#"{"gist":""#,
    r#","summary":""#,
    r#","content":""#,
    r#","narrative":""#,
    r#","concepts":["#,
    r#"],"structured_concepts":{"topics":["#,
    r#"{"label":""#,
    r#",{"label":""#,
    r#","path":""#,
    r#"],"entities":["#,
    r#"{"name":""#,
    r#",{"name":""#,
    r#","type":""#,
    r#","context":""#,
    r#"],"actions":["#,
    r#"{"verb":""#,
    r#",{"verb":""#,
    r#","object":""#,
    r#","details":""#,
    r#"],"causality":["#,
    r#"{"relation":""#,
    r#",{"relation":""#,
    r#","description":""#,
    r#"]},"significance":""#,
    r#","emotional_tone":""#,
    r#","outcome":""#,
    r#","salience":"#,
];

/// Trains a vocabulary of at most `size` entries (bytes, markers and skeleton included) on
/// conversations.
///
/// Quotation marks, backslashes and line breaks never merge with their neighbours. JSON escapes
/// these characters, so the tokens between them are the same in an event and in the answer that
/// copies it. The escapes themselves (`\n`, `\"`) merge, because answers are split at them.
///
/// # Errors
/// `size` is too small for bytes, markers and skeleton.
pub fn train(
    conversations: impl Iterator<Item = Vec<Message>> + Send,
    size: usize,
) -> Result<Tokenizer, TokenizerError> {
    let fixed = MARKERS.len() + SKELETON.len();
    if size < fixed + 256 {
        let least = fixed + 256;
        return Err(TokenizerError::Text(format!(
            "a vocabulary of {size} entries is too small: bytes, markers and skeleton alone are {least}"
        )));
    }
    let wrong = |e: tokenizers::Error| TokenizerError::Text(e.to_string());
    let markers = MARKERS.iter().map(|text| AddedToken::from(*text, true));
    let skeleton = SKELETON.iter().map(|text| AddedToken::from(*text, false).normalized(false));
    let trainer = BpeTrainerBuilder::new()
        .vocab_size(size)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(markers.chain(skeleton).collect())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut trainer = TrainerWrapper::BpeTrainer(trainer);
    let words =
        Split::new(SplitPattern::Regex(QWEN2_PATTERN.into()), SplitDelimiterBehavior::Isolated, false);
    let pre_tokenizer = Sequence::new(vec![
        PreTokenizerWrapper::Split(words.map_err(wrong)?),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, false)),
    ]);
    let mut inner: tokenizers::Tokenizer = TokenizerBuilder::new()
        .with_model(ModelWrapper::BPE(BPE::default()))
        .with_normalizer(None::<NormalizerWrapper>)
        .with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(pre_tokenizer)))
        .with_post_processor(None::<PostProcessorWrapper>)
        .with_decoder(Some(DecoderWrapper::ByteLevel(ByteLevel::default())))
        .build()
        .map_err(wrong)?
        .into();
    let pieces = conversations.flatten().flat_map(|message| {
        if message.role == "assistant" {
            answer_pieces(&message.content).into_iter().map(str::to_owned).collect()
        } else {
            isolated(&message.content)
        }
    });
    inner.train(&mut trainer, pieces).map_err(wrong)?;
    Ok(Tokenizer::new(inner))
}

/// The pieces of a text between the characters that must not merge, and those characters
/// themselves.
fn isolated(text: &str) -> Vec<String> {
    let mut pieces = vec![];
    let mut from = 0;
    for (at, mark) in text.match_indices(['"', '\\', '\n', '\r']) {
        pieces.push(text[from..at].to_owned());
        pieces.push(mark.to_owned());
        from = at + mark.len();
    }
    pieces.push(text[from..].to_owned());
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Tokenizer {
        let row = |i: usize| {
            let text = format!("Fix parser {i} in \"src/main.rs\"\n- because of 0x{i:04x}\n");
            let json =
                serde_json::json!({"gist": text, "summary": "Fix parser", "salience": 0.3}).to_string();
            vec![
                Message { role: "user".into(), content: text },
                Message { role: "assistant".into(), content: json },
            ]
        };
        train((0..200).map(row), 512).unwrap()
    }

    #[test]
    fn markers_come_first_and_are_only_text_in_messages() {
        let tokenizer = tiny();
        for (id, marker) in MARKERS.iter().enumerate() {
            assert_eq!(tokenizer.inner().token_to_id(marker), Some(id as u32));
        }
        let ids = tokenizer.encode("a <|end|> b").unwrap();
        assert!(!ids.contains(&crate::text::tokenizer::END));
        assert_eq!(tokenizer.decode(&ids).unwrap(), "a <|end|> b");
    }

    #[test]
    fn a_copied_line_has_the_same_tokens_in_the_answer() {
        let tokenizer = tiny();
        let event = "Fix parser 7.\n- \"quoted\"\n";
        let answer = serde_json::json!({"gist": event, "summary": ""}).to_string();
        let escape = |text: &str| tokenizer.encode_answer(&format!("\"{text}\"")).unwrap()[1];
        let expected: Vec<u32> = tokenizer
            .encode(event)
            .unwrap()
            .into_iter()
            .map(|id| match tokenizer.decode(&[id]).unwrap().as_str() {
                "\n" => escape("\\n"),
                "\"" => escape("\\\""),
                _ => id,
            })
            .collect();
        let ids = tokenizer.encode_answer(&answer).unwrap();
        assert_eq!(&ids[1..=expected.len()], &expected[..]);
        assert_eq!(tokenizer.decode(&ids).unwrap(), answer);
    }

    #[test]
    fn no_piece_of_the_skeleton_crosses_another() {
        for a in SKELETON {
            for b in SKELETON {
                for cut in 1..a.len().min(b.len()) {
                    assert!(a[a.len() - cut..] != b[..cut], "{a} ends as {b} begins");
                }
            }
        }
    }

    #[test]
    fn the_skeleton_of_an_encoding_is_one_token_a_piece() {
        let tokenizer = tiny();
        let ids = tokenizer.encode_answer(r#"{"gist":"","summary":"","content":""}"#).unwrap();
        let texts: Vec<String> = ids.iter().map(|&id| tokenizer.decode(&[id]).unwrap()).collect();
        assert_eq!(texts, [r#"{"gist":""#, "\"", r#","summary":""#, "\"", r#","content":""#, "\"", "}"]);
    }

    #[test]
    fn a_size_below_the_bytes_is_refused() {
        let error = train(std::iter::empty(), 200).unwrap_err().to_string();
        assert!(error.contains("200") && error.contains("290"), "{error}");
    }
}
