//! How rows become tokens: by the markers of a post that was made here, or by a model's own chat template.

use serde_json::Map;

use super::row::Row;
use crate::api::{ChatTemplate, Turn};
use crate::model::TextSide;
use crate::model::tokenizer::{END, MARKERS, Message, Tokenizer, TokenizerError};

/// One row as tokens. The model reads `ids[..n - 1]` and learns `ids[answer..]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Prompt, answer, end marker.
    pub ids: Vec<u32>,
    /// Index of the first token that is learnt; at least 1.
    pub answer: usize,
}

impl Sample {
    /// Tokens that the model reads.
    pub fn inputs(&self) -> usize {
        self.ids.len() - 1
    }
}

/// A tokenizer and the form of a conversation.
pub struct Chat {
    tokenizer: Tokenizer,
    /// The same, but for the template's own text, in which control tokens count.
    markup: tokenizers::Tokenizer,
    /// None: a post's markers (see [`Tokenizer::encode_chat`]).
    template: Option<ChatTemplate>,
    /// Closes an answer.
    end: u32,
}

impl Chat {
    /// The form of a post that was made here.
    pub fn of_post(tokenizer: Tokenizer) -> Self {
        Self { markup: tokenizer.inner().clone(), tokenizer, template: None, end: END }
    }

    /// The form of a model from its files; conversations are rendered as the daemon renders them.
    ///
    /// # Errors
    /// A tokenizer that can't be read, a template that is none, no end token.
    pub fn of_model(text: &TextSide) -> Result<Self, TokenizerError> {
        let wrong = |message: String| TokenizerError::Text(message);
        let inner = tokenizers::Tokenizer::from_bytes(text.tokenizer.to_string().as_bytes());
        let tokenizer = Tokenizer::new(inner.map_err(|e| wrong(e.to_string()))?);
        if is_post(&tokenizer) {
            return Ok(Self::of_post(tokenizer));
        }
        let mut markup = tokenizer.inner().clone();
        markup.set_encode_special_tokens(false);
        let named = |id: Option<u32>| id.and_then(|id| markup.id_to_token(id)).unwrap_or_default();
        let Some(&end) = text.ids.eos.first() else {
            return Err(wrong("the model names no end token (eos_token_id)".into()));
        };
        let (bos, eos) = (named(text.ids.bos), named(Some(end)));
        let template = text.chat_template.as_ref().map(|source| ChatTemplate::new(source, &bos, &eos));
        let template = template.transpose().map_err(|e| wrong(e.to_string()))?;
        // As the daemon does for a model without a template.
        let known = markup.token_to_id("<|im_start|>").is_some();
        let usual = || if known { ChatTemplate::chat_ml() } else { ChatTemplate::plain_text() };
        let template = Some(template.unwrap_or_else(usual));
        Ok(Self { tokenizer, markup, template, end })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Whether this is the form of a post that was made here.
    pub fn is_post(&self) -> bool {
        self.template.is_none()
    }

    /// Everything that decides how a row becomes tokens, for hashes.
    ///
    /// # Errors
    /// The tokenizer can't be written as JSON.
    pub fn identity(&self) -> Result<String, TokenizerError> {
        let template = self.template.as_ref().map_or("markers", |template| template.source());
        Ok(format!("{}\n{template}\n{}", self.tokenizer.to_json()?, self.end))
    }

    /// A row as tokens.
    ///
    /// # Errors
    /// A role or a conversation that the form does not know.
    pub fn sample(&self, row: &Row) -> Result<Sample, TokenizerError> {
        let (mut ids, learnt) = match row {
            Row::Chat(messages) => {
                let Some((answer, prompt)) = messages.split_last() else {
                    return Err(TokenizerError::Text("a conversation without messages".into()));
                };
                // A post's answers are cut at the borders of JSON values; so it has learnt to write them.
                let learnt = match self.template {
                    None => self.tokenizer.encode_answer(&answer.content)?,
                    Some(_) => self.tokenizer.encode(&answer.content)?,
                };
                (self.prompt(prompt)?, learnt)
            }
            Row::Completion { prompt, completion } => {
                (self.beginning(prompt)?, self.tokenizer.encode(completion)?)
            }
            Row::Text(text) => (vec![], self.beginning(text)?),
        };
        // The first token of all is predicted by nothing.
        let answer = ids.len().max(1);
        ids.extend(learnt);
        ids.push(self.end);
        Ok(Sample { ids, answer })
    }

    /// Ids of a conversation up to where the assistant's answer begins.
    ///
    /// # Errors
    /// As [`Chat::sample`].
    pub fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>, TokenizerError> {
        let Some(template) = &self.template else { return self.tokenizer.encode_chat(messages) };
        let turns: Vec<Turn> = messages
            .iter()
            .map(|message| Ok(Turn::new(role(&message.role)?, message.content.clone())))
            .collect::<Result<_, TokenizerError>>()?;
        let prompt = template.render(&turns, &[], &Map::new());
        let mut ids = Vec::new();
        for segment in prompt.map_err(|e| TokenizerError::Text(e.to_string()))? {
            if segment.markup {
                let encoding = self.markup.encode_fast(segment.text.as_str(), false);
                ids.extend(encoding.map_err(|e| TokenizerError::Text(e.to_string()))?.get_ids());
            } else {
                ids.extend(self.tokenizer.encode(&segment.text)?);
            }
        }
        Ok(ids)
    }

    /// Ids of a text that begins a sequence, with what the tokenizer puts before one.
    fn beginning(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.tokenizer.encode(text)?;
        let empty = self.markup.encode_fast("", true);
        let before = empty.map_err(|e| TokenizerError::Text(e.to_string()))?;
        // What stands around an empty text may include an end.
        let before: Vec<u32> = before.get_ids().iter().copied().filter(|&id| id != self.end).collect();
        ids.splice(0..0, before);
        Ok(ids)
    }
}

/// Whether a tokenizer has the markers of a post that was made here.
fn is_post(tokenizer: &Tokenizer) -> bool {
    let id = |marker: &str| tokenizer.inner().token_to_id(marker);
    MARKERS.iter().enumerate().all(|(at, marker)| id(marker) == Some(at as u32))
}

fn role(name: &str) -> Result<&'static str, TokenizerError> {
    ["system", "user", "assistant", "tool"]
        .into_iter()
        .find(|role| *role == name)
        .ok_or_else(|| TokenizerError::Role(name.to_owned()))
}
