//! Splits a template's source into its own text and the code around it, so that the text can be
//! written in ink.
//!
//! The neighbours of a string tell whether it is shown or compared: `'<|user|>' + content` is
//! shown, `role == 'user'` is compared, `'</think>'` in `content.split('</think>')` is an argument.
//! A wrong guess does no harm: the rendering in ink must read like the plain one, and a place where
//! it doesn't stays without ink (see [`super::marked`]).

use std::collections::BTreeSet;

use super::scan::{Tag, TagKind, Token, TokenKind, scan};
use super::sentinel;

/// The filter that writes a role in ink.
pub(super) const OWN: &str = "bespoke_own";

/// A template's source, split into pieces.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pieces: Vec<Piece>,
    /// Number of places that can be written in ink or not.
    pub(super) places: usize,
    /// Words among its texts: values that a variable for a role can have.
    pub(super) words: BTreeSet<String>,
    /// Filters and tests used in any case, with their lines. Those within a condition may be
    /// missed, as in Jinja.
    pub(super) uses: Vec<(Use, String, usize)>,
    /// Number of conditions that are open around the current tag.
    conditions: usize,
}

/// How a name is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Use {
    Filter,
    Test,
}

#[derive(Debug, Clone)]
enum Piece {
    /// Text between tags, with whitespace trimmed as the tags say.
    Data(String),
    Code(String),
    /// A string literal that is shown.
    Text {
        place: usize,
        written: String,
        text: String,
    },
    /// A place where a role is shown.
    Own {
        place: usize,
    },
}

impl Source {
    /// Splits a source; `None` if it is not a valid one.
    pub(super) fn new(source: &str) -> Option<Self> {
        let mut taken =
            Self { pieces: Vec::new(), places: 0, words: BTreeSet::new(), uses: Vec::new(), conditions: 0 };
        let source = source.strip_suffix('\n').unwrap_or(source);
        let source = source.strip_suffix('\r').unwrap_or(source);
        let mut at = 0;
        let mut left = Edge::Open;
        for tag in scan(source)? {
            taken.data(source, at..tag.start, left, Edge::before(&tag));
            if let TagKind::Raw(body) = &tag.kind {
                let body = &source[body.clone()];
                let trimmed = Edge::after_raw(tag.raw_start).trim_left(body);
                let trimmed = match tag.raw_end {
                    Some('-') => trimmed.trim_end(),
                    Some(_) => trimmed,
                    None => lstrip(trimmed),
                };
                taken.pieces.push(Piece::Data(trimmed.to_owned()));
            }
            taken.tag(source, &tag);
            left = Edge::after(&tag);
            at = tag.end;
        }
        taken.data(source, at..source.len(), left, Edge::Open);
        Some(taken)
    }

    /// The source with its own text in ink at the places that `with` selects.
    pub(super) fn written(&self, with: &[bool]) -> String {
        let mut source = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Data(text) => source.push_str(&sentinel::write(text)),
                Piece::Code(code) => source.push_str(code),
                Piece::Text { place, text, .. } if with[*place] => {
                    // No character in ink needs an escape.
                    source.push('\'');
                    source.push_str(&sentinel::write(text));
                    source.push('\'');
                }
                Piece::Text { written, .. } => source.push_str(written),
                Piece::Own { place } if with[*place] => {
                    source.push('|');
                    source.push_str(OWN);
                }
                Piece::Own { .. } => {}
            }
        }
        source
    }

    fn data(&mut self, source: &str, range: std::ops::Range<usize>, left: Edge, right: Edge) {
        let text = left.trim_left(&source[range.clone()]);
        let text = match right {
            Edge::All => text.trim_end(),
            Edge::Line if begins_line(&source[..range.end]) => lstrip(text),
            _ => text,
        };
        if !text.is_empty() {
            self.pieces.push(Piece::Data(text.to_owned()));
        }
    }

    fn tag(&mut self, source: &str, tag: &Tag<'_>) {
        let (open, close) = match tag.kind {
            TagKind::Variable => ("{{", "}}"),
            TagKind::Block => ("{%", "%}"),
            TagKind::Comment | TagKind::Raw(_) => return,
        };
        let statement = (tag.kind == TagKind::Block).then(|| tag.tokens.first().map_or("", |t| t.text));
        let mut code = format!("{open} ");
        match statement {
            Some("if") => self.conditions += 1,
            Some("endif") => self.conditions = self.conditions.saturating_sub(1),
            _ => {}
        }
        let mut at = tag.tokens.first().map_or(0, |token| token.start);
        for (index, token) in tag.tokens.iter().enumerate() {
            code.push_str(&source[at..token.start]);
            at = token.end();
            self.name(source, &tag.tokens, index);
            let string = (token.kind == TokenKind::Text).then(|| unescaped(token.text)).flatten();
            match string {
                Some(text) => {
                    if !text.is_empty() && text.chars().all(|c| c.is_ascii_alphabetic() || c == '_') {
                        self.words.insert(text.clone());
                    }
                    if is_shown(&tag.tokens, index, statement) {
                        self.pieces.push(Piece::Code(std::mem::take(&mut code)));
                        let written = token.text.to_owned();
                        self.pieces.push(Piece::Text { place: self.places, written, text });
                        self.places += 1;
                    } else {
                        code.push_str(token.text);
                    }
                }
                None => code.push_str(token.text),
            }
            if shows_role(&tag.tokens, index, statement) {
                self.pieces.push(Piece::Code(std::mem::take(&mut code)));
                self.pieces.push(Piece::Own { place: self.places });
                self.places += 1;
            }
        }
        code.push(' ');
        code.push_str(close);
        self.pieces.push(Piece::Code(code));
    }

    /// Records a filter or a test.
    fn name(&mut self, source: &str, tokens: &[Token<'_>], index: usize) {
        let before = |back: usize| index.checked_sub(back).map(|at| tokens[at].text);
        let used = match (before(1), before(2)) {
            (Some("|"), _) | (Some("filter"), None) => Use::Filter,
            (Some("is"), _) | (Some("not"), Some("is")) => Use::Test,
            _ => return,
        };
        let token = &tokens[index];
        let always = self.conditions == 0 && !tokens.iter().any(|token| token.text == "if");
        if always && token.kind == TokenKind::Name && token.text != "not" {
            let line = source[..token.start].matches('\n').count() + 1;
            self.uses.push((used, token.text.to_owned(), line));
        }
    }
}

/// How whitespace of a text is trimmed next to a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edge {
    /// Not at all.
    Open,
    /// All of it (`-`).
    All,
    /// A line break after a block, the indentation before one (`trim_blocks`, `lstrip_blocks`).
    Line,
}

impl Edge {
    fn before(tag: &Tag<'_>) -> Self {
        match (tag.left, &tag.kind) {
            (Some('-'), _) => Self::All,
            (None, TagKind::Block | TagKind::Comment | TagKind::Raw(_)) => Self::Line,
            _ => Self::Open,
        }
    }

    fn after(tag: &Tag<'_>) -> Self {
        match (tag.right, &tag.kind) {
            (Some('-'), _) => Self::All,
            (None, TagKind::Block | TagKind::Comment | TagKind::Raw(_)) => Self::Line,
            _ => Self::Open,
        }
    }

    fn after_raw(mark: Option<char>) -> Self {
        match mark {
            Some('-') => Self::All,
            Some(_) => Self::Open,
            None => Self::Line,
        }
    }

    fn trim_left(self, text: &str) -> &str {
        match self {
            Self::Open => text,
            Self::All => text.trim_start(),
            Self::Line => {
                let text = text.strip_prefix('\r').unwrap_or(text);
                text.strip_prefix('\n').unwrap_or(text)
            }
        }
    }
}

/// Whether a tag after this text is the first thing in its line.
fn begins_line(before: &str) -> bool {
    let is_break = |c: char| c == '\r' || c == '\n';
    before.chars().rev().find(|&c| is_break(c) || !c.is_whitespace()).is_none_or(is_break)
}

fn lstrip(text: &str) -> &str {
    let trimmed = text.trim_end_matches(|c: char| c.is_whitespace() && c != '\r' && c != '\n');
    if trimmed.is_empty() || trimmed.ends_with('\n') { trimmed } else { text }
}

/// Whether a string here is shown, rather than compared, looked up or passed to a function.
fn is_shown(tokens: &[Token<'_>], index: usize, statement: Option<&str>) -> bool {
    let before = index.checked_sub(1).map(|at| tokens[at].text);
    let after = tokens.get(index + 1).map(|token| token.text);
    let compares = |text: Option<&str>| {
        matches!(text, Some("==" | "!=" | "<" | ">" | "<=" | ">=" | "in" | "not" | "is" | ":"))
    };
    if compares(before) || compares(after) || before == Some("[") || after == Some("]") {
        return false;
    }
    match before {
        None => statement.is_none(),
        Some("+" | "~" | "else") => true,
        Some("if" | "elif" | "and" | "or") => false,
        // Also in `namespace(text='...')`.
        Some("=") => statement == Some("set"),
        _ => matches!(after, Some("+" | "~" | "if")),
    }
}

/// Whether the expression that ends with this token shows a role: `message.role`,
/// `message['role']`, `role`.
fn shows_role(tokens: &[Token<'_>], index: usize, statement: Option<&str>) -> bool {
    let token = &tokens[index];
    let before = index.checked_sub(1).map(|at| tokens[at].text);
    let named = match token.kind {
        TokenKind::Name => !matches!(before, Some("|" | "is")) && token.text.to_lowercase().contains("role"),
        TokenKind::Sign => {
            token.text == "]"
                && matches!(before, Some("'role'" | "\"role\""))
                && index.checked_sub(2).is_some_and(|at| tokens[at].text == "[")
        }
        _ => false,
    };
    let next = tokens.get(index + 1).map(|token| token.text);
    named
        && match next {
            Some("+" | "~") => true,
            Some("|") | None => statement.is_none(),
            _ => false,
        }
}

/// The value of a string literal.
fn unescaped(literal: &str) -> Option<String> {
    let body = literal.get(1..literal.len().checked_sub(1)?)?;
    let mut text = String::new();
    let mut rest = body.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        match rest.next()? {
            c @ ('"' | '\\' | '/' | '\'') => text.push(c),
            'b' => text.push('\u{8}'),
            'f' => text.push('\u{C}'),
            'n' => text.push('\n'),
            'r' => text.push('\r'),
            't' => text.push('\t'),
            'x' => text
                .push(char::from(u8::from_str_radix(&rest.by_ref().take(2).collect::<String>(), 16).ok()?)),
            // Halves of surrogate pairs are no characters; such a literal stays unchanged.
            'u' => {
                let code = u32::from_str_radix(&rest.by_ref().take(4).collect::<String>(), 16).ok()?;
                text.push(char::from_u32(code)?);
            }
            '0'..='7' => return None,
            other => text.extend(['\\', other]),
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The source with its inked text between «».
    fn taken(source: &str) -> String {
        let taken = Source::new(source).unwrap();
        let mut shown = String::new();
        let mut within = false;
        for c in taken.written(&vec![true; taken.places]).chars() {
            let ink = sentinel::has_ink(c.encode_utf8(&mut [0; 4]));
            if ink != within {
                shown.push(if ink { '«' } else { '»' });
                within = ink;
            }
            shown.push(sentinel::bare(c));
        }
        if within { shown + "»" } else { shown }
    }

    #[test]
    fn what_is_shown_is_in_ink_and_what_is_compared_is_not() {
        for (source, expected) in [
            ("a{{ 'b' + x['c'] }}", "«a»{{ '«b»' + x['c'] }}"),
            ("{% if x == 'a' %}b{% endif %}", "{% if x == 'a' %}«b»{% endif %}"),
            ("{% set a = 'x' if b in 'c' else 'd' %}", "{% set a = '«x»' if b in 'c' else '«d»' %}"),
            ("{{ x.split('</t>')[-1] ~ \"\\n\" }}", "{{ x.split('</t>')[-1] ~ '«\n»' }}"),
            ("{% set n = namespace(a='b') %}", "{% set n = namespace(a='«b»') %}"),
            ("{{ {'a': 'b'} }}{{ f('x', y='z') }}", "{{ {'a': 'b'} }}{{ f('x', y='z') }}"),
            ("{{ '<' ~ m.role ~ m['role'] }}", "{{ '«<»' ~ m.role|bespoke_own ~ m['role']|bespoke_own }}"),
            ("{% if m.role != 'a' %}", "{% if m.role != 'a' %}"),
        ] {
            assert_eq!(taken(source), expected, "{source}");
        }
    }

    #[test]
    fn white_space_goes_as_tags_say() {
        for (source, expected) in [
            ("a \n {%- if x -%} \n b {% endif %}\nc\n", "«a»{% if x %}«b »{% endif %}«c»"),
            ("  {% if x %}\n  b\n  {% endif %}\n", "{% if x %}«  b\n»{% endif %}"),
            ("a {# c #}\nb", "«a b»"),
            ("{{ x }}\nb {{- y }}", "{{ x }}«\nb»{{ y }}"),
            ("a{% raw %}\n{{ x }} {% endraw %}b", "«a{{ x }} b»"),
            ("{% if x +%}\nb{%+ endif %}", "{% if x %}«\nb»{% endif %}"),
        ] {
            assert_eq!(taken(source), expected, "{source:?}");
        }
    }
}
