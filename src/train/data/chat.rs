//! Turns rows into tokens, with the markers of a post trained by this program or with a model's
//! own chat template.

use std::time::{Duration, SystemTime};

use serde_json::Map;

use super::dialogue;
use super::row::{Row, in_text};
use crate::model::TextSide;
use crate::text::tokenizer::{END, Message, Tokenizer, TokenizerError};
use crate::text::{ChatTemplate, Dialogue, Prompt, Turn};

/// One row as tokens. The model reads `ids[..n - 1]` and learns `ids[answer..]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Prompt, answer, end marker.
    pub ids: Vec<u32>,
    /// Index of the first token to learn; at least 1.
    pub answer: usize,
}

impl Sample {
    /// Tokens that the model reads.
    pub fn inputs(&self) -> usize {
        self.ids.len() - 1
    }

    /// Whether every token is learnt, so that a part of the row is as good a row.
    pub fn is_text(&self) -> bool {
        self.answer == 1
    }

    /// The row itself, or a text cut into parts of at most this many inputs. What ends a part
    /// begins the next: every token is learnt once.
    pub fn parts(self, inputs: usize) -> Vec<Self> {
        if !self.is_text() || self.inputs() <= inputs {
            return vec![self];
        }
        let part = |from: usize| {
            let to = (from + inputs + 1).min(self.ids.len());
            Self { ids: self.ids[from..to].to_vec(), answer: 1 }
        };
        (0..self.inputs()).step_by(inputs).map(part).collect()
    }
}

/// A tokenizer with its format of conversations.
pub struct Chat {
    tokenizer: Tokenizer,
    /// The same tokenizer for the template's own text, in which control tokens are recognised.
    markup: tokenizers::Tokenizer,
    /// `None` means the markers of a post (see [`Tokenizer::encode_chat`]).
    template: Option<ChatTemplate>,
    /// Ends an answer in a conversation.
    end: u32,
    /// Ends other texts.
    end_of_text: u32,
}

impl Chat {
    /// The format of a post trained by this program.
    pub fn of_post(tokenizer: Tokenizer) -> Self {
        Self { markup: tokenizer.inner().clone(), tokenizer, template: None, end: END, end_of_text: END }
    }

    /// The format of a model, read from its files; conversations are rendered as the daemon
    /// renders them.
    ///
    /// # Errors
    /// A tokenizer that can't be read, an invalid template, no end token.
    pub fn of_model(text: &TextSide) -> Result<Self, TokenizerError> {
        let wrong = |message: String| TokenizerError::Text(message);
        let inner = tokenizers::Tokenizer::from_bytes(text.tokenizer.to_string().as_bytes());
        let tokenizer = Tokenizer::new(inner.map_err(|e| wrong(e.to_string()))?);
        if tokenizer.foreign_marker().is_none() {
            return Ok(Self::of_post(tokenizer));
        }
        let mut markup = tokenizer.inner().clone();
        markup.set_encode_special_tokens(false);
        let named = |id: Option<u32>| id.and_then(|id| markup.id_to_token(id)).unwrap_or_default();
        let Some(&end_of_text) = text.ids.eos.first() else {
            return Err(wrong("the model names no end token (eos_token_id)".into()));
        };
        let (bos, eos) = (named(text.ids.bos), named(Some(end_of_text)));
        let template = text.chat_template.as_ref().map(|source| ChatTemplate::new(source, &bos, &eos));
        let template = template.transpose().map_err(|e| wrong(e.to_string()))?;
        // What the daemon does for a model without a template.
        let known = markup.token_to_id("<|im_start|>").is_some();
        let usual = || if known { ChatTemplate::chat_ml() } else { ChatTemplate::plain_text() };
        let template = template.unwrap_or_else(usual).with_clock(day);
        let end = turn_end(&template, &markup)?.unwrap_or(end_of_text);
        Ok(Self { tokenizer, markup, template: Some(template), end, end_of_text })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Whether this is the format of a post trained by this program.
    pub fn is_post(&self) -> bool {
        self.template.is_none()
    }

    /// Everything that determines the tokens of a row, for hashes.
    ///
    /// # Errors
    /// The tokenizer can't be written as JSON.
    pub fn identity(&self) -> Result<String, TokenizerError> {
        // The number is the version of template rendering.
        let template =
            self.template.as_ref().map_or_else(|| "markers".into(), |it| format!("2 {}", it.source()));
        Ok(format!("{}\n{template}\n{} {}", self.tokenizer.to_json()?, self.end, self.end_of_text))
    }

    /// A row as tokens.
    ///
    /// # Errors
    /// A role or a conversation that the format doesn't support.
    pub fn sample(&self, row: &Row) -> Result<Sample, TokenizerError> {
        let (mut ids, learnt) = match row {
            Row::Chat(messages) => {
                let Some((answer, prompt)) = messages.split_last() else {
                    return Err(TokenizerError::Text("a conversation without messages".into()));
                };
                // The answers of a post are split at the boundaries of JSON values, as they were
                // when it was trained.
                let learnt = match self.template {
                    None => self.tokenizer.encode_answer(&answer.content)?,
                    Some(_) => self.tokenizer.encode(&answer.content)?,
                };
                (self.prompt(prompt)?, learnt)
            }
            Row::Dialogue(dialogue) => return self.dialogue(dialogue),
            Row::Completion { prompt, completion } => {
                (self.beginning(prompt)?, self.tokenizer.encode(completion)?)
            }
            Row::Text(text) => (vec![], self.beginning(text)?),
        };
        // Nothing predicts the very first token.
        let answer = ids.len().max(1);
        ids.extend(learnt);
        ids.push(if matches!(row, Row::Chat(_)) { self.end } else { self.end_of_text });
        Ok(Sample { ids, answer })
    }

    /// Ids of a conversation up to the start of the assistant's answer.
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
        self.ids(&prompt.map_err(|e| TokenizerError::Text(e.to_string()))?)
    }

    /// A conversation with more than text.
    fn dialogue(&self, row: &Dialogue) -> Result<Sample, TokenizerError> {
        let Some(template) = &self.template else {
            dialogue::check_learnable(row)?;
            return self.sample(&Row::Chat(in_text(row)));
        };
        let (prompt, learnt) = dialogue::prompt_and_answer(template, row)?;
        let mut ids = self.ids(&prompt)?;
        let answer = ids.len().max(1);
        let mut learnt = self.ids(&learnt)?;
        // The model doesn't generate what a template writes after the end of a turn.
        let end = learnt.iter().rposition(|&id| id == self.end);
        learnt.truncate(end.unwrap_or(learnt.len()));
        ids.extend(learnt);
        ids.push(self.end);
        Ok(Sample { ids, answer })
    }

    fn ids(&self, prompt: &Prompt) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        for segment in prompt {
            if segment.markup {
                let encoding = self.markup.encode_fast(segment.text.as_str(), false);
                ids.extend(encoding.map_err(|e| TokenizerError::Text(e.to_string()))?.get_ids());
            } else {
                ids.extend(self.tokenizer.encode(&segment.text)?);
            }
        }
        Ok(ids)
    }

    /// Ids of a text at the start of a sequence, with what the tokenizer puts before it.
    fn beginning(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.tokenizer.encode(text)?;
        let empty = self.markup.encode_fast("", true);
        let before = empty.map_err(|e| TokenizerError::Text(e.to_string()))?;
        // What the tokenizer puts around an empty text may include an end token.
        let before: Vec<u32> =
            before.get_ids().iter().copied().filter(|&id| id != self.end_of_text).collect();
        ids.splice(0..0, before);
        Ok(ids)
    }
}

/// The date of all training conversations, for templates that print one, so that rows are the same
/// whenever they are read.
fn day() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_721_995_200)
}

/// The control token that a template puts after an answer; the end of a turn is often another
/// token than the end of a text.
fn turn_end(template: &ChatTemplate, markup: &tokenizers::Tokenizer) -> Result<Option<u32>, TokenizerError> {
    let turns = [Turn::new("user", "question"), Turn::new("assistant", "answer")];
    // A template that requires other turns refuses these, and will refuse its conversations with a
    // reason.
    let Ok(prompt) = template.render(&turns, &[], &Map::new()) else { return Ok(None) };
    let marker = prompt.iter().skip_while(|segment| segment.markup || segment.text != "answer").nth(1);
    let Some(segment) = marker.filter(|segment| segment.markup) else { return Ok(None) };
    let encoding = markup.encode_fast(segment.text.as_str(), false);
    let encoding = encoding.map_err(|e| TokenizerError::Text(e.to_string()))?;
    let first = encoding.get_ids().first().copied();
    Ok(first.filter(|id| markup.get_added_tokens_decoder().contains_key(id)))
}

fn role(name: &str) -> Result<&'static str, TokenizerError> {
    ["system", "user", "assistant", "tool"]
        .into_iter()
        .find(|role| *role == name)
        .ok_or_else(|| TokenizerError::Role(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::hugging_face_config::TokenIds;

    /// The text side of a family's small test tokenizer.
    fn text(family: &str) -> TextSide {
        let folder = std::path::Path::new("tests/fixtures/families/tokenizers").join(family);
        let json = |name: &str| -> serde_json::Value {
            serde_json::from_slice(&fs_err::read(folder.join(name)).unwrap()).unwrap()
        };
        let (tokenizer, config) = (json("tokenizer.json"), json("tokenizer_config.json"));
        let id = |key: &str| {
            let added = tokenizer["added_tokens"].as_array().unwrap();
            let token = added.iter().find(|token| token["content"] == config[key])?;
            token["id"].as_u64().map(|id| id as u32)
        };
        let ids = TokenIds {
            bos: id("bos_token"),
            eos: id("eos_token").into_iter().collect(),
            pad: None,
            unk: None,
        };
        let chat_template = config["chat_template"].as_str().map(str::to_owned);
        TextSide { tokenizer, chat_template, named_templates: vec![], ids }
    }

    #[test]
    fn an_answer_ends_with_what_ends_a_turn_and_peoples_text_is_never_markup() {
        for (family, end) in [
            ("llama3", "<|eot_id|>"),
            ("qwen2", "<|im_end|>"),
            ("qwen35", "<|im_end|>"),
            ("gemma2", "<end_of_turn>"),
        ] {
            let chat = Chat::of_model(&text(family)).unwrap();
            let message = |role: &str, content: String| Message { role: role.into(), content };
            let asked = format!("is {end} a word?");
            let row =
                Row::Chat(vec![message("user", asked.clone()), message("assistant", "yes it is".into())]);
            let sample = chat.sample(&row).unwrap();
            let id = chat.tokenizer().inner().token_to_id(end).unwrap();
            // One ends the question, one the answer; the one inside the question is text.
            assert_eq!(sample.ids.iter().filter(|&&found| found == id).count(), 2, "{family}");
            assert_eq!(sample.ids.last(), Some(&id), "{family}");
            let learnt = &sample.ids[sample.answer..];
            assert_eq!(learnt[..learnt.len() - 1], chat.tokenizer().encode("yes it is").unwrap(), "{family}");
            let read = chat.tokenizer().decode(&sample.ids[..sample.answer]).unwrap();
            assert!(read.contains(&asked) && !chat.is_post(), "{family}: {read}");
        }
    }

    #[test]
    fn a_text_begins_as_its_tokenizer_begins_one_and_all_of_it_is_learnt() {
        for (family, begins) in [("llama3", true), ("gemma2", true), ("qwen2", false)] {
            let side = text(family);
            let chat = Chat::of_model(&side).unwrap();
            let sample = chat.sample(&Row::Text("one two".into())).unwrap();
            assert_eq!(sample.ids.first() == side.ids.bos.as_ref(), begins, "{family}");
            assert_eq!((sample.answer, sample.ids.last()), (1, side.ids.eos.first()), "{family}");
            let pair = Row::Completion { prompt: "one".into(), completion: " two".into() };
            let sample = chat.sample(&pair).unwrap();
            let completion = chat.tokenizer().encode(" two").unwrap();
            assert_eq!(sample.ids[sample.answer..sample.ids.len() - 1], completion, "{family}");
            assert_eq!(sample.ids.last(), side.ids.eos.first(), "{family}: a completion is no turn");
        }
    }

    const TOOLS: &str = "{% for t in tools %}<tools>{{ t | tojson }}</tools>{% endfor %}{% for m in messages %}\
        <|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}\
        {{ m.content }}{% for c in m.tool_calls %}<call>{{ c.function | tojson }}</call>{% endfor %}<|im_end|>\n\
        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    const CALL: &str = r#"{"tools": [{"type": "function", "function": {"name": "look"}}], "messages": [
        {"role": "user", "content": "go <|im_end|>", "name": "me"}, {"role": "assistant", "content": null, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{\"q\": \"<|im_end|>\"}"}}]}]}"#;
    const THOUGHT: &str = r#"{"messages": [{"role": "user", "content": "go"},
        {"role": "assistant", "content": "yes", "reasoning_content": "hm"}]}"#;

    /// The prompt and what is learnt, as texts.
    fn halves(chat: &Chat, row: &str) -> Result<(String, String), String> {
        let sample = chat.sample(&Row::parse(row).unwrap()).map_err(|error| error.to_string())?;
        let text = |ids: &[u32]| chat.tokenizer().decode(ids).unwrap();
        Ok((text(&sample.ids[..sample.answer]), text(&sample.ids[sample.answer..])))
    }

    #[test]
    fn calls_and_thinking_are_learnt_as_the_template_writes_them() {
        let chat = Chat::of_model(&TextSide { chat_template: Some(TOOLS.into()), ..text("qwen2") }).unwrap();
        let (read, learnt) = halves(&chat, CALL).unwrap();
        assert!(
            read.starts_with("<tools>{\"type\": \"function\"") && read.contains("\"parameters\": {"),
            "{read}"
        );
        assert!(read.ends_with("go <|im_end|><|im_end|>\n<|im_start|>assistant\n"), "{read}");
        assert_eq!(
            learnt,
            "<call>{\"name\": \"look\", \"arguments\": {\"q\": \"<|im_end|>\"}}</call><|im_end|>"
        );
        let sample = chat.sample(&Row::parse(CALL).unwrap()).unwrap();
        let end = chat.tokenizer().inner().token_to_id("<|im_end|>").unwrap();
        assert_eq!(sample.ids.iter().filter(|&&id| id == end).count(), 2, "those that were brought are text");
        let (read, learnt) = halves(&chat, THOUGHT).unwrap();
        assert!(read.ends_with("<|im_start|>assistant\n"), "{read}");
        assert_eq!(learnt, "<think>hm</think>yes<|im_end|>");
    }

    #[test]
    fn a_form_that_knows_no_tools_is_told_of_them_and_what_it_can_not_show_is_refused() {
        let chat_ml = Chat::of_model(&TextSide { chat_template: None, ..text("qwen2") }).unwrap();
        let post = Chat::of_post(crate::train::tests::tokenizer());
        for (chat, end) in [(chat_ml, "<|im_end|>"), (post, "<|end|>")] {
            let (read, learnt) = halves(&chat, CALL).unwrap();
            assert!(read.contains("# Tools") && read.contains("\"name\": \"look\""), "{read}");
            let call =
                "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"q\": \"<|im_end|>\"}}\n</tool_call>";
            assert_eq!(learnt, format!("{call}{end}"));
            let error = halves(&chat, THOUGHT).unwrap_err();
            assert!(error.contains("messages[1].reasoning_content isn't shown"), "{error}");
        }
    }

    #[test]
    fn a_template_that_names_the_day_gives_the_same_row_on_any_day() {
        let source = format!("{{{{ strftime_now('%d %b %Y') }}}}{TOOLS}");
        let chat = Chat::of_model(&TextSide { chat_template: Some(source), ..text("qwen2") }).unwrap();
        assert!(halves(&chat, THOUGHT).unwrap().0.starts_with("26 Jul 2024"));
    }
}
