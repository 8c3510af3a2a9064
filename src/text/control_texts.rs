//! Texts that llama.cpp treats as control tokens in every vocabulary that has them, whatever the
//! model's files say: ends of generation, and the markers of fill-in-the-middle (the tables of
//! `llama-vocab.cpp`).
//!
//! Inside user text, llama.cpp tokenises the spelling of a control token letter by letter.
//! Training has to do the same, or the model would learn from tokens that the daemon never sends.

/// The texts themselves.
const CONTROL: [&str; 57] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    // Fill-in-the-middle: prefix, suffix, middle; padding; the parts of a repository.
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
    "<|middle|>",
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// All of them.
pub fn all() -> impl Iterator<Item = &'static str> {
    CONTROL.into_iter()
}

/// Whether llama.cpp takes this token for a control token.
pub fn contains(token: &str) -> bool {
    CONTROL.contains(&token)
}
