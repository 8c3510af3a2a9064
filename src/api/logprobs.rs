//! Likelihoods of an answer's tokens, in the three forms that clients read.
//!
//! They are the model's own likelihoods: temperature 1, nothing masked or penalised. A token that a
//! constraint forced has 0, the logarithm of 1. A token's text is decoded lossily; its bytes are
//! exact.

use serde_json::{Map, Value, json};

use crate::engine::{TokenLikelihood, TokenReport};

/// Stands for minus infinity, which JSON lacks. OpenAI's number for "never".
const NEVER: f32 = -9999.0;

/// OpenAI's chat form: `logprobs.content`.
pub(super) fn chat(tokens: &[TokenReport], top: u32) -> Value {
    let entry = |token: &TokenLikelihood| json!({"token": text(token), "logprob": logprob(token), "bytes": token.bytes});
    tokens
        .iter()
        .map(|report| {
            let mut content = entry(&report.token);
            content["logprob"] = own(report).into();
            content["top_logprobs"] = report.top.iter().take(top as usize).map(entry).collect();
            content
        })
        .collect()
}

/// llama-server's form: `completion_probabilities`.
pub(super) fn llama_server(tokens: &[TokenReport], top: u32) -> Value {
    let entry = |token: &TokenLikelihood| json!({"id": token.id, "token": text(token), "bytes": token.bytes, "logprob": logprob(token)});
    tokens
        .iter()
        .map(|report| {
            let mut probability = entry(&report.token);
            probability["logprob"] = own(report).into();
            probability["top_logprobs"] = report.top.iter().take(top as usize).map(entry).collect();
            probability
        })
        .collect()
}

/// The same for the likelihoods that the sampler drew from: probabilities instead of logarithms,
/// without zeros.
pub(super) fn llama_server_sampled(tokens: &[TokenReport], top: u32) -> Value {
    let entry = |token: &TokenLikelihood, probability: f32| json!({"id": token.id, "token": text(token), "bytes": token.bytes, "prob": probability});
    tokens
        .iter()
        .map(|report| {
            let likely = report.top.iter().map(|token| (token, token.logprob.exp()));
            let likely = likely.filter(|(_, probability)| *probability > 0.0).take(top as usize);
            let mut probability = entry(&report.token, own(report).exp());
            probability["top_probs"] = likely.map(|(token, probability)| entry(token, probability)).collect();
            probability
        })
        .collect()
}

/// OpenAI's older form for text completions, which identifies a token by its text and offset.
#[derive(Debug, Clone, Default)]
pub(super) struct Legacy {
    /// Number of characters so far.
    offset: usize,
}

impl Legacy {
    /// Adds tokens of the answer; offsets continue from the last ones.
    pub(super) fn more(&mut self, tokens: &[TokenReport], top: u32) -> Value {
        let mut offsets = Vec::with_capacity(tokens.len());
        for report in tokens {
            offsets.push(self.offset);
            // The first byte of a character counts for it. The other bytes begin with the bits 10.
            self.offset += report.token.bytes.iter().filter(|&&byte| byte & 0xC0 != 0x80).count();
        }
        let tops = |report: &TokenReport| {
            let mut tops: Map<String, Value> = report
                .top
                .iter()
                .take(top as usize)
                .map(|token| (text(token), logprob(token).into()))
                .collect();
            // The chosen token is always included.
            tops.insert(text(&report.token), own(report).into());
            Value::Object(tops)
        };
        json!({
            "tokens": tokens.iter().map(|report| text(&report.token)).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(own).collect::<Vec<_>>(),
            "top_logprobs": if top == 0 { Value::Null } else { tokens.iter().map(tops).collect() },
            "text_offset": offsets,
        })
    }
}

fn text(token: &TokenLikelihood) -> String {
    String::from_utf8_lossy(&token.bytes).into_owned()
}

fn logprob(token: &TokenLikelihood) -> f32 {
    // NaN is mapped, too.
    if token.logprob > NEVER { token.logprob.min(0.0) } else { NEVER }
}

fn own(report: &TokenReport) -> f32 {
    if report.forced { 0.0 } else { logprob(&report.token) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(bytes: &[u8], logprob: f32, forced: bool) -> TokenReport {
        let token = |bytes: &[u8], logprob| TokenLikelihood { id: 7, bytes: bytes.to_vec(), logprob };
        let top = vec![token(bytes, logprob), token(b"other", -2.0)];
        TokenReport { token: token(bytes, logprob), forced, top }
    }

    #[test]
    fn parts_of_characters_have_exact_bytes_and_places() {
        let euro = "€".as_bytes();
        let tokens = [
            report(b"a", -0.5, false),
            report(&euro[..1], -1.0, false),
            report(&euro[1..], -1.5, true),
            report(b"b", f32::NEG_INFINITY, false),
        ];
        let chat = chat(&tokens, 1);
        assert_eq!(chat[1]["bytes"], json!([226]));
        assert_eq!(chat[1]["token"], "\u{fffd}");
        assert_eq!((&chat[2]["logprob"], &chat[3]["logprob"]), (&json!(0.0), &json!(-9999.0)));
        assert_eq!(chat[0]["top_logprobs"], json!([{"token": "a", "logprob": -0.5, "bytes": [97]}]));
        assert_eq!(llama_server(&tokens, 2)[0]["top_logprobs"][1]["id"], 7);
        let sampled = llama_server_sampled(&tokens[2..3], 1);
        assert_eq!((&sampled[0]["prob"], &sampled[0]["top_probs"][0]["id"]), (&json!(1.0), &json!(7)));
        let never = llama_server_sampled(&tokens[3..], 9);
        assert_eq!(never[0]["top_probs"].as_array().unwrap().len(), 1, "the other one; zero is not told");
        let mut legacy = Legacy::default();
        let first = legacy.more(&tokens[..2], 0);
        assert_eq!((&first["text_offset"], &first["top_logprobs"]), (&json!([0, 1]), &Value::Null));
        let second = legacy.more(&tokens[2..], 1);
        assert_eq!(second["text_offset"], json!([2, 2]));
        assert_eq!(second["token_logprobs"], json!([0.0, -9999.0]));
        assert_eq!(second["tokens"][1], "b");
    }

    #[test]
    fn the_token_that_was_taken_is_among_the_likeliest() {
        let mut unlikely = report(b"x", -7.0, false);
        unlikely.top.remove(0);
        let json = Legacy::default().more(&[unlikely], 1);
        assert_eq!(json["top_logprobs"], json!([{"other": -2.0, "x": -7.0}]));
    }
}
