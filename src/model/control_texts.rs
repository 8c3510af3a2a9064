//! Texts that llama.cpp takes for control tokens wherever a vocabulary has them, whatever the model's files say of them: ends of
//! generation, and the marks of code that is filled in (the tables of `llama-vocab.cpp`).
//!
//! In a text that a person wrote, llama.cpp reads a control token letter by letter. Training has to do the same: a token that an
//! event has only there would be one that the daemon never gives the model.

/// The texts.
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
    // What is filled in: before, behind, between; padding; the parts of a repository.
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
