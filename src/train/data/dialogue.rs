//! Conversations with tools, calls and thinking, split into what is read and what is learnt.

use crate::text::tokenizer::TokenizerError;
use crate::text::{ChatTemplate, Dialogue, Prompt, Segment, TemplateError};

/// The prompt before the last message of a conversation, and that message as the template writes
/// it.
///
/// # Errors
/// A conversation that the template refuses, or whose last message it doesn't show unchanged.
pub(super) fn prompt_and_answer(
    template: &ChatTemplate,
    row: &Dialogue,
) -> Result<(Prompt, Prompt), TokenizerError> {
    let wrong = |error: TemplateError| TokenizerError::Text(error.to_string());
    let in_text = template.in_text(&row.turns, &row.tools);
    let (turns, tools) = match &in_text {
        Some(turns) => (turns.as_slice(), &[][..]),
        None => (row.turns.as_slice(), row.tools.as_slice()),
    };
    let Some((last, before)) = turns.split_last() else {
        return Err(TokenizerError::Text("a conversation without messages".into()));
    };
    let mut parameters = row.parameters.clone();
    if last.reasoning.is_some() {
        // If thinking is learnt, the prompt asks for it.
        parameters.entry("enable_thinking").or_insert_with(|| true.into());
    }
    let prompt = template.render(before, tools, &parameters).map_err(wrong)?;
    if last.calls.is_empty() && last.reasoning.is_none() {
        return Ok((prompt, vec![Segment::plain(last.content.clone())]));
    }
    let whole = template.render_whole(turns, tools, &parameters).map_err(wrong)?;
    let at = row.turns.len() - 1;
    let Some(answer) = rest_after(&prompt, whole) else {
        return Err(TokenizerError::Text(format!(
            "messages[{at}]: the chat template writes what comes before it in another way when it is there, so that it \
             can't be told what is learnt"
        )));
    };
    let shown: String = answer.iter().map(|segment| segment.text.as_str()).collect();
    let parts = [("content", Some(&last.content)), ("reasoning_content", last.reasoning.as_ref())];
    let names = last.calls.iter().map(|call| ("tool_calls", Some(&call.name)));
    for (field, part) in parts.into_iter().chain(names) {
        if part.is_some_and(|part| !shown.contains(part.trim())) {
            return Err(unlearnable(at, field));
        }
    }
    Ok((prompt, answer))
}

/// Checks that there is nothing to learn but texts, because a post's markers support nothing else.
///
/// # Errors
/// Thinking in the last message.
pub(super) fn check_learnable(row: &Dialogue) -> Result<(), TokenizerError> {
    match row.turns.last() {
        Some(last) if last.reasoning.is_some() => Err(unlearnable(row.turns.len() - 1, "reasoning_content")),
        _ => Ok(()),
    }
}

fn unlearnable(at: usize, field: &str) -> TokenizerError {
    TokenizerError::Text(format!(
        "messages[{at}].{field} isn't shown by the model's chat template: it can't be learnt (hint: leave it out of the \
         row, or name a model whose template shows it)"
    ))
}

/// The part of a rendering that follows another one.
fn rest_after(beginning: &Prompt, whole: Prompt) -> Option<Prompt> {
    let text = |prompt: &Prompt| prompt.iter().map(|segment| segment.text.as_str()).collect::<String>();
    let mut skip = text(beginning).len();
    if !text(&whole).starts_with(&text(beginning)) {
        return None;
    }
    let mut rest = Prompt::new();
    for mut segment in whole {
        let skipped = skip.min(segment.text.len());
        skip -= skipped;
        segment.text.drain(..skipped);
        if !segment.text.is_empty() {
            rest.push(segment);
        }
    }
    Some(rest)
}
