//! Finds the tags of a Jinja source and their tokens, as minijinja does.

use std::borrow::Cow;
use std::ops::Range;

/// A tag and its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tag<'a> {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) kind: TagKind,
    /// Whitespace control (`-` or `+`) at the start and the end of the tag.
    pub(super) left: Option<char>,
    pub(super) right: Option<char>,
    /// The same for the inner tags around a raw text.
    pub(super) raw_start: Option<char>,
    pub(super) raw_end: Option<char>,
    pub(super) tokens: Vec<Token<'a>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TagKind {
    Variable,
    Block,
    Comment,
    /// From `{% raw %}` to `{% endraw %}`, with the range of the text.
    Raw(Range<usize>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) kind: TokenKind,
    pub(super) text: &'a str,
    pub(super) start: usize,
}

impl Token<'_> {
    pub(super) fn end(&self) -> usize {
        self.start + self.text.len()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// A string with its quotes.
    Text,
    Name,
    Number,
    Sign,
}

/// All tags in order; `None` if one is not closed.
pub(super) fn scan(source: &str) -> Option<Vec<Tag<'_>>> {
    let mut tags = Vec::new();
    let mut at = 0;
    while let Some(start) = source[at..].find('{').map(|found| at + found) {
        let kind = match source.as_bytes().get(start + 1) {
            Some(b'{') => TagKind::Variable,
            Some(b'%') => TagKind::Block,
            Some(b'#') => TagKind::Comment,
            _ => {
                at = start + 1;
                continue;
            }
        };
        let tag = tag(source, start, kind)?;
        at = tag.end;
        tags.push(tag);
    }
    Some(tags)
}

fn tag(source: &str, start: usize, kind: TagKind) -> Option<Tag<'_>> {
    let mark = |at: usize| source[at..].chars().next().filter(|c| matches!(c, '-' | '+'));
    let left = mark(start + 2);
    let inside = start + 2 + usize::from(left.is_some());
    let mut tag =
        Tag { start, end: 0, kind, left, right: None, raw_start: None, raw_end: None, tokens: Vec::new() };
    if tag.kind == TagKind::Comment {
        let close = inside + source[inside..].find("#}")?;
        tag.right = source[..close].chars().next_back().filter(|c| matches!(c, '-' | '+'));
        tag.end = close + 2;
        return Some(tag);
    }
    let close = if tag.kind == TagKind::Variable { "}}" } else { "%}" };
    tag.read(source, inside, close)?;
    if tag.kind == TagKind::Block && tag.is("raw") {
        let body = tag.end;
        let mut at = body;
        loop {
            let found = at + source[at..].find("{%")?;
            let left = mark(found + 2);
            let name = source[found + 2 + usize::from(left.is_some())..].trim_start();
            if let Some(rest) = name.strip_prefix("endraw") {
                let rest = rest.trim_start();
                let right = rest.chars().next().filter(|c| matches!(c, '-' | '+'));
                let rest = &rest[usize::from(right.is_some())..];
                if rest.starts_with("%}") {
                    tag.kind = TagKind::Raw(body..found);
                    (tag.raw_start, tag.raw_end, tag.right) = (tag.right, left, right);
                    tag.end = source.len() - rest.len() + 2;
                    return Some(tag);
                }
            }
            at = found + 2;
        }
    }
    Some(tag)
}

impl<'a> Tag<'a> {
    /// Whether the tag consists of this word alone.
    fn is(&self, word: &str) -> bool {
        matches!(self.tokens.as_slice(), [only] if only.text == word)
    }

    /// Reads tokens up to the end of the tag.
    fn read(&mut self, source: &'a str, inside: usize, close: &str) -> Option<()> {
        let mut depth = 0i32;
        let mut at = inside;
        loop {
            let rest = &source[at..];
            let first = rest.chars().next()?;
            if first.is_whitespace() {
                at += first.len_utf8();
                continue;
            }
            if depth == 0 {
                let unmarked = rest.strip_prefix(['-', '+']).filter(|rest| rest.starts_with(close));
                if unmarked.is_some() || rest.starts_with(close) {
                    self.right = unmarked.map(|_| first);
                    self.end = at + usize::from(unmarked.is_some()) + close.len();
                    return Some(());
                }
            }
            let (kind, length) = match first {
                '\'' | '"' => (TokenKind::Text, string(rest, first)?),
                c if c.is_alphabetic() || c == '_' => {
                    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
                    (TokenKind::Name, end.unwrap_or(rest.len()))
                }
                c if c.is_ascii_digit() => {
                    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                    (TokenKind::Number, end.unwrap_or(rest.len()))
                }
                c => {
                    depth += match c {
                        '(' | '[' | '{' => 1,
                        ')' | ']' | '}' => -1,
                        _ => 0,
                    };
                    let two = ["==", "!=", "<=", ">=", "//", "**"].iter().any(|sign| rest.starts_with(sign));
                    (TokenKind::Sign, if two { 2 } else { c.len_utf8() })
                }
            };
            self.tokens.push(Token { kind, text: &rest[..length], start: at });
            at += length;
        }
    }
}

/// Length of the string literal at the start.
fn string(rest: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    rest.char_indices().skip(1).find_map(|(at, c)| {
        let ends = !escaped && c == quote;
        escaped = !escaped && c == '\\';
        ends.then_some(at + 1)
    })
}

/// The source with its `{% generation %}` blocks turned into blocks that only hold their text.
/// Elsewhere these blocks mark the model's words for training; `transformers` skips them in the
/// same way.
pub(super) fn without_generation(source: &str) -> Cow<'_, str> {
    let Some(tags) = scan(source) else { return source.into() };
    let mut read = String::new();
    let mut at = 0;
    for tag in tags.iter().filter(|tag| tag.kind == TagKind::Block) {
        let instead = if tag.is("generation") {
            "with"
        } else if tag.is("endgeneration") {
            "endwith"
        } else {
            continue;
        };
        let word = tag.tokens[0];
        read.push_str(&source[at..word.start]);
        read.push_str(instead);
        at = word.end();
    }
    if at == 0 { source.into() } else { (read + &source[at..]).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_end_where_they_end() {
        let source = "{{ {'}}': '%}'}['}}'] -}} { {%- raw %}{{ {% x %}{% endraw +%}{#- }} #}{{ 'a\\'}}' }}";
        let tags = scan(source).unwrap();
        let texts: Vec<&str> = tags.iter().map(|tag| &source[tag.start..tag.end]).collect();
        let expected =
            ["{{ {'}}': '%}'}['}}'] -}}", "{%- raw %}{{ {% x %}{% endraw +%}", "{#- }} #}", "{{ 'a\\'}}' }}"];
        assert_eq!(texts, expected);
        assert_eq!((tags[0].right, tags[1].left, tags[1].right), (Some('-'), Some('-'), Some('+')));
        assert_eq!(scan("{{ 'a }}"), None);
        assert_eq!(scan("{% if x"), None);
    }

    #[test]
    fn blocks_of_generation_keep_their_text_and_their_dashes() {
        let source = "{% generation %}a{%- endgeneration -%}{{ 'generation' }}{% if generation %}";
        let expected = "{% with %}a{%- endwith -%}{{ 'generation' }}{% if generation %}";
        assert_eq!(without_generation(source), expected);
        assert!(matches!(without_generation("no tag"), Cow::Borrowed(_)));
    }
}
