//! Strings: lengths in characters (code points, as JSON Schema counts them), patterns and formats.

use llguidance::derivre::{JsonQuoteOptions, RegexAst};
use llguidance::regex_to_lark;

use super::digits::regex;
use super::formats;
use super::lexeme::{LONGEST, Lexeme, compiled};

/// Maximum bytes to end a string: the rest of an incomplete character or escape, and the quotation
/// mark.
const STRING: usize = 8;
/// Allowed escapes. Of the control characters, only line feed, carriage return and tab can be
/// written, so that each text has one notation and names can be compared by their notation.
const ESCAPES: &str = "nrt\\\"";

/// What a schema says about a string.
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

    /// Requires a match of this pattern.
    ///
    /// # Errors
    /// The pattern can't be compiled.
    pub fn like(&mut self, pattern: &str) -> Result<(), String> {
        compiled(&search(pattern))?;
        self.parts.push(Part::Pattern(pattern.to_owned()));
        Ok(())
    }

    /// Requires this format.
    ///
    /// # Errors
    /// The format is unknown.
    pub fn of_format(&mut self, format: &str) -> Result<(), String> {
        let expressions = formats::expressions(format).ok_or_else(|| {
            format!("the format {format:?} can't be enforced; expected one of {}", formats::KNOWN.join(", "))
        })?;
        self.parts.extend(expressions.into_iter().map(Part::Format));
        Ok(())
    }

    /// Whether this text satisfies the schema.
    pub fn holds(&self, text: &str) -> bool {
        let characters = text.chars().count();
        let matches =
            |part: &Part| compiled(&part.ast()).ok().flatten().is_some_and(|mut regex| regex.is_match(text));
        characters >= self.least
            && self.most.is_none_or(|most| characters <= most)
            && self.parts.iter().all(matches)
    }

    /// The lexeme of these strings; `None` if there are none.
    ///
    /// # Errors
    /// It can't be decided whether there are any.
    pub fn lexeme(&self) -> Result<Option<Lexeme>, String> {
        if self.most.is_some_and(|most| most < self.least) {
            return Ok(None);
        }
        if self.least > LONGEST {
            return Ok(Some(Lexeme::endless(self.least.saturating_add(2))));
        }
        // A limit that no answer reaches is no limit.
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

/// An expression for texts that contain a match of a pattern.
pub fn search(pattern: &str) -> RegexAst {
    RegexAst::SearchRegex(regex_to_lark(pattern, "dw"))
}

/// An expression for the texts as JSON strings.
pub fn quoted(ast: RegexAst) -> RegexAst {
    RegexAst::JsonQuote(
        Box::new(ast),
        JsonQuoteOptions { allowed_escapes: ESCAPES.to_owned(), raw_mode: false },
    )
}
