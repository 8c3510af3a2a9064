//! A model's vocabulary as the engine needs it: the bytes of each token, the tokens that end an
//! answer, and a trie over all tokens.

use std::sync::Arc;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token_type::LlamaTokenAttr;
use toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use super::{EngineError, Prompt, Segment};

/// What a token means to the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// Text, possibly part of a character.
    Text,
    /// Ends an answer.
    End,
    /// A marker without text. Never part of an answer.
    Control,
}

/// All tokens by id. There may be hundreds of thousands, so their bytes share one buffer.
#[derive(Debug)]
pub struct Vocabulary {
    tokens: Vec<Token>,
    /// Bytes of all text tokens and names of the others, concatenated.
    names: Vec<u8>,
    /// End of each token's bytes in `names`.
    ends: Vec<u32>,
    end: u32,
    /// Length of the longest token in bytes; `None` if a text may contain bytes that no token
    /// stands for.
    longest: Option<u64>,
}

impl Vocabulary {
    /// Reads the vocabulary of a loaded model.
    pub fn of(model: &LlamaModel) -> Self {
        let vocab = model.vocab();
        let mut piece = Vec::with_capacity(256);
        let token = |id| {
            let attributes = vocab.attr(id);
            let hidden = attributes.contains(LlamaTokenAttr::Control)
                || attributes.contains(LlamaTokenAttr::Unknown)
                || attributes.contains(LlamaTokenAttr::Unused);
            piece.clear();
            vocab.token_to_piece_into(id, &mut piece, true, None);
            let token = if vocab.is_eog(id) {
                Token::End
            } else if hidden || piece.is_empty() {
                Token::Control
            } else {
                Token::Text
            };
            (token, piece.clone())
        };
        let end =
            [vocab.eot(), vocab.eos()].into_iter().find(|id| id.0 >= 0).map_or(0, |id| id.0.cast_unsigned());
        Self::from_parts(vocab.tokens().map(token), end)
    }

    fn from_parts(all: impl Iterator<Item = (Token, Vec<u8>)>, end: u32) -> Self {
        let (mut tokens, mut names, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        let (mut single, mut longest) = ([false; 256], 0);
        for (token, name) in all {
            if let (Token::Text, [byte]) = (token, &name[..]) {
                single[usize::from(*byte)] = true;
            }
            longest = longest.max(name.len() as u64);
            tokens.push(token);
            names.extend(name);
            ends.push(u32::try_from(names.len()).expect("a vocabulary has less than 4 GiB of text"));
        }
        names.shrink_to_fit();
        // The other bytes occur in no UTF-8 text.
        let spells_all =
            (0..=0xF4).filter(|byte| !matches!(byte, 0xC0 | 0xC1)).all(|byte: usize| single[byte]);
        Self { tokens, names, ends, end, longest: spells_all.then_some(longest) }
    }

    /// A lower bound on the tokens of a prompt, derived from its length in bytes. Whitespace isn't
    /// counted, because some tokens absorb all whitespace next to them. If the length says nothing,
    /// only explicit ids count.
    pub fn least_tokens(&self, prompt: &Prompt) -> u64 {
        let ids: u64 = prompt.iter().map(|segment| segment.ids.len() as u64).sum();
        let Some(longest) = self.longest else { return ids };
        let dark =
            |segment: &Segment| segment.text.bytes().filter(|byte| !byte.is_ascii_whitespace()).count();
        ids + prompt.iter().map(|segment| dark(segment) as u64).sum::<u64>().div_ceil(longest.max(1))
    }

    /// The kind of a token. Ids out of range are control tokens.
    pub fn token(&self, id: u32) -> &Token {
        self.tokens.get(id as usize).unwrap_or(&Token::Control)
    }

    /// The text of a token in bytes; empty for tokens that are not text.
    pub fn bytes(&self, id: u32) -> &[u8] {
        match self.token(id) {
            Token::Text => self.name(id),
            Token::End | Token::Control => &[],
        }
    }

    /// The bytes of a token; for one that is not text, its name.
    pub fn name(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.names[start as usize..end as usize]
    }

    /// The bytes of these tokens. For tokens that are not text, their names.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn pieces(&self, ids: &[u32]) -> Result<Vec<Vec<u8>>, EngineError> {
        let vocabulary = self.tokens.len() as u32;
        let piece = |&id: &u32| {
            let known = (id < vocabulary).then(|| self.name(id).to_vec());
            known.ok_or(EngineError::NoSuchToken { id, vocabulary })
        };
        ids.iter().map(piece).collect()
    }

    /// Whether an answer may contain this token or end with it.
    pub fn speakable(&self, id: u32) -> bool {
        *self.token(id) != Token::Control
    }

    /// All tokens that end an answer.
    pub fn end_tokens(&self) -> Vec<u32> {
        (0..self.tokens.len() as u32).filter(|&id| *self.token(id) == Token::End).collect()
    }

    /// The trie over all tokens, with greedy (longest token first) tokenisation.
    pub fn token_env(&self) -> TokEnv {
        let word = |id: u32| match self.token(id) {
            Token::Text => self.name(id).to_vec(),
            // The marker byte keeps special tokens out of reach of any text.
            Token::End | Token::Control => [&[TokTrie::SPECIAL_TOKEN_MARKER], self.name(id)].concat(),
        };
        let words: Vec<Vec<u8>> = (0..self.tokens.len() as u32).map(word).collect();
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, self.end), &words);
        let mut ends = vec![self.end];
        ends.extend(self.end_tokens().into_iter().filter(|&id| id != self.end));
        Arc::new(Greedy { trie: trie.with_eos_tokens(&ends) })
    }
}

/// Tokenises greedily, longest token first. Declared canonical, so that forced bytes become tokens
/// without running the model.
struct Greedy {
    trie: TokTrie,
}

impl TokenizerEnv for Greedy {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.greedy_tokenize(bytes)
    }
}

/// The fewest tokens that spell `bytes`; `None` if no sequence does.
pub fn fewest_tokens(trie: &TokTrie, bytes: &[u8]) -> Option<Vec<TokenId>> {
    // best[n]: number of tokens in the shortest spelling of the first n bytes, its last token, and
    // where that begins.
    let mut best: Vec<Option<(usize, TokenId, usize)>> = vec![None; bytes.len() + 1];
    best[0] = Some((0, 0, 0));
    for from in 0..bytes.len() {
        let Some((count, _, _)) = best[from] else { continue };
        let mut node = trie.root();
        for to in from..bytes.len() {
            let Some(child) = trie.child_at_byte(node, bytes[to]) else { break };
            node = child;
            if let Some(token) = node.token_id()
                && best[to + 1].is_none_or(|(other, _, _)| count + 1 < other)
            {
                best[to + 1] = Some((count + 1, token, from));
            }
        }
    }
    let mut tokens = Vec::new();
    let mut at = bytes.len();
    while at > 0 {
        let (_, token, from) = best[at]?;
        tokens.push(token);
        at = from;
    }
    tokens.reverse();
    Some(tokens)
}

/// Token ids of a prompt. Control tokens are recognised only in markup. If the model wants a
/// beginning-of-sequence token and the prompt has none, it is added.
///
/// # Errors
/// The prompt has no tokens, or a token id outside the vocabulary.
pub fn tokenize(model: &LlamaModel, prompt: &[Segment]) -> Result<Vec<u32>, EngineError> {
    let mut ids = token_ids(model, prompt)?;
    if ids.is_empty() {
        return Err(EngineError::EmptyPrompt);
    }
    let vocab = model.vocab();
    let bos = vocab.bos().0;
    if vocab.should_add_bos() && bos >= 0 && ids[0] != bos.cast_unsigned() {
        ids.insert(0, bos.cast_unsigned());
    }
    Ok(ids)
}

/// Minimum tokens of a head that is worth keeping.
const SHORTEST_HEAD: usize = 16;

/// Number of tokens before the last segment of plain text: the prefix that other prompts probably
/// share. `None` if it is too short to keep.
pub fn head(model: &LlamaModel, prompt: &Prompt) -> Option<usize> {
    let last = prompt.iter().rposition(|segment| !segment.markup)?;
    let tokens = tokenize(model, &prompt[..last]).ok()?.len();
    (tokens >= SHORTEST_HEAD).then_some(tokens)
}

/// Token ids of a prompt's segments, without special tokens added.
///
/// # Errors
/// A token id outside the vocabulary.
pub fn token_ids(model: &LlamaModel, prompt: &[Segment]) -> Result<Vec<u32>, EngineError> {
    let vocab = model.vocab();
    let vocabulary = model.n_vocab().unsigned_abs();
    let mut ids: Vec<u32> = Vec::new();
    // Join neighbouring segments of the same kind: splitting a text would change its tokens.
    for run in prompt.chunk_by(|a, b| a.markup == b.markup && a.ids.is_empty()) {
        let text: String = run.iter().map(|segment: &Segment| segment.text.as_str()).collect();
        if !text.is_empty() {
            let found = vocab.tokenize(text.as_bytes(), false, run[0].markup);
            ids.extend(found.into_iter().map(|id| id.0.cast_unsigned()));
        }
        for &id in run.iter().flat_map(|segment| &segment.ids) {
            if id >= vocabulary {
                return Err(EngineError::NoSuchToken { id, vocabulary });
            }
            ids.push(id);
        }
    }
    Ok(ids)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// All bytes, then the given texts, then an end token and a control token.
    pub(crate) fn vocabulary(texts: &[&str]) -> Vocabulary {
        let mut tokens: Vec<_> = (0..=255u8).map(|byte| (Token::Text, vec![byte])).collect();
        tokens.extend(texts.iter().map(|text| (Token::Text, text.as_bytes().to_vec())));
        let end = tokens.len() as u32;
        let marker = |token, id| (token, format!("<|{id}|>").into_bytes());
        tokens.extend([marker(Token::End, end), marker(Token::Control, end + 1)]);
        Vocabulary::from_parts(tokens.into_iter(), end)
    }

    #[test]
    fn the_fewest_tokens_beat_the_longest_first() {
        let env = vocabulary(&["ab", "bcd"]).token_env();
        assert_eq!(env.tok_trie().greedy_tokenize(b"abcd"), [256, 99, 100]);
        assert_eq!(fewest_tokens(env.tok_trie(), b"abcd").unwrap(), [97, 257]);
        assert_eq!(fewest_tokens(env.tok_trie(), b"").unwrap(), [0u32; 0]);
    }

    #[test]
    fn a_prompt_has_at_least_as_many_tokens_as_the_longest_leave() {
        // The longest is the name of a control token.
        let vocabulary = vocabulary(&["ab", "the end"]);
        let least = |prompt: &[Segment]| vocabulary.least_tokens(&prompt.to_vec());
        assert_eq!(least(&[]), 0);
        assert_eq!(least(&[Segment::plain("x".repeat(70)), Segment::ids(vec![1, 2])]), 12);
        assert_eq!(least(&[Segment::plain(" \n".repeat(70)), Segment::markup("x")]), 1);
        // If some bytes have no token, the length says nothing.
        let letters = (b'a'..=b'z').map(|byte| (Token::Text, vec![byte]));
        let poor = Vocabulary::from_parts(letters, 0);
        assert_eq!(poor.least_tokens(&vec![Segment::plain("é".repeat(900))]), 0);
    }

    #[test]
    fn each_token_has_its_own_bytes() {
        let vocabulary = vocabulary(&["the", "", "é"]);
        assert_eq!([256, 257, 258].map(|id| vocabulary.bytes(id)), [&b"the"[..], b"", "é".as_bytes()]);
        assert_eq!((vocabulary.bytes(0), vocabulary.name(259)), (&[0u8][..], &b"<|259|>"[..]));
        assert_eq!((vocabulary.bytes(259), vocabulary.name(9_999)), (&[][..], &[][..]));
    }

    #[test]
    fn markers_have_no_text_and_are_out_of_reach() {
        let vocabulary = vocabulary(&[]);
        assert!(vocabulary.bytes(256).is_empty() && vocabulary.bytes(257).is_empty());
        assert!(vocabulary.speakable(256) && !vocabulary.speakable(257) && !vocabulary.speakable(9_999));
        let env = vocabulary.token_env();
        assert_eq!(env.tok_trie().eos_tokens(), [256]);
        assert!(env.tokenize("<|256|>").iter().all(|&id| id < 256));
    }
}
