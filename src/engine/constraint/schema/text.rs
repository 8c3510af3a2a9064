//! Strings: lengths in characters (code points, as JSON Schema counts them), patterns and formats.

use llguidance::derivre::{JsonQuoteOptions, RegexAst};
use llguidance::regex_to_lark;

use super::digits::regex;
use super::formats;
use super::lexeme::{LONGEST, Lexeme, compiled};

/// The end of a broken character or escape, and the quotation mark.
const STRING: usize = 8;
/// No escapes of control characters but line end, carriage return and tab: each text is written in
/// one way, so that a name can be told from others by how it is written.
const ESCAPES: &str = "nrt\\\"";

/// What a schema says of a string.
#[derive(Debug, Clone, Default)]
pub struct Texts {
    least: usize,
    most: Option<usize>,
    parts: Vec<Part>,
}

#[derive(Debug, Clone)]
enum Part {
    Pattern(String),
    Format(&'static str),
}

impl Texts {
    pub fn at_least(&mut self, characters: usize) {
        self.least = self.least.max(characters);
    }

    pub fn at_most(&mut self, characters: usize) {
        self.most = Some(self.most.map_or(characters, |most| most.min(characters)));
    }

    /// That hold a match of this pattern.
    ///
    /// # Errors
    /// It can't be compiled.
    pub fn like(&mut self, pattern: &str) -> Result<(), String> {
        compiled(&search(pattern))?;
        self.parts.push(Part::Pattern(pattern.to_owned()));
        Ok(())
    }

    /// Of this format.
    ///
    /// # Errors
    /// Nothing is known of it.
    pub fn of_format(&mut self, format: &str) -> Result<(), String> {
        let expressions = formats::expressions(format).ok_or_else(|| {
            format!("the format {format:?} can't be held to; expected one of {}", formats::KNOWN.join(", "))
        })?;
        self.parts.extend(expressions.into_iter().map(Part::Format));
        Ok(())
    }

    /// Whether this text is one of them.
    pub fn holds(&self, text: &str) -> bool {
        let characters = text.chars().count();
        let matches =
            |part: &Part| compiled(&part.ast()).ok().flatten().is_some_and(|mut regex| regex.is_match(text));
        characters >= self.least
            && self.most.is_none_or(|most| characters <= most)
            && self.parts.iter().all(matches)
    }

    /// How they are written; `None` if there is none.
    ///
    /// # Errors
    /// That can't be told.
    pub fn lexeme(&self) -> Result<Option<Lexeme>, String> {
        if self.most.is_some_and(|most| most < self.least) {
            return Ok(None);
        }
        if self.least > LONGEST {
            return Ok(Some(Lexeme::endless(self.least.saturating_add(2))));
        }
        // What no answer is long enough for is no limit.
        let most = self.most.filter(|&most| most < 1_000_000_000);
        let limited = self.least > 0 || most.is_some();
        let mut parts: Vec<RegexAst> = self.parts.iter().map(Part::ast).collect();
        if limited {
            let most = most.map_or(String::new(), |most| most.to_string());
            parts.push(regex(format!("(?s:.{{{},{most}}})", self.least)));
        }
        if parts.is_empty() {
            parts.push(regex("(?s:.*)"));
        }
        let ast = quoted(if parts.len() == 1 { parts.swap_remove(0) } else { RegexAst::And(parts) });
        let closing = (self.parts.is_empty() && self.least == 0).then_some(STRING);
        if self.parts.is_empty() {
            return Ok(Some(Lexeme::known(ast, closing, format!("\"{}\"", "x".repeat(self.least)))));
        }
        Lexeme::checked(ast, closing)
    }
}

impl Part {
    fn ast(&self) -> RegexAst {
        match self {
            Self::Pattern(pattern) => search(pattern),
            Self::Format(expression) => regex(*expression),
        }
    }
}

/// What holds a match of a pattern.
pub fn search(pattern: &str) -> RegexAst {
    RegexAst::SearchRegex(regex_to_lark(pattern, "dw"))
}

/// The texts as JSON strings.
pub fn quoted(ast: RegexAst) -> RegexAst {
    RegexAst::JsonQuote(
        Box::new(ast),
        JsonQuoteOptions { allowed_escapes: ESCAPES.to_owned(), raw_mode: false },
    )
}
