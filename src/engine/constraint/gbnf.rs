//! Translates llama.cpp's grammar notation (GBNF, `grammars/README.md` there) for llguidance.
//!
//! llguidance splits a text into lexemes, each as long as possible; GBNF knows only characters. A
//! rule that leads to no recursion therefore becomes a single lexeme. If no rule is recursive, the
//! grammar is one regular expression and means exactly what it means in llama.cpp.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Maximum length of a grammar in bytes.
const MAX_BYTES: usize = 64 * 1024;
/// Maximum number of rules. llguidance compiles the rules that a rule leads to by recursion (see
/// [`super::size`]).
const MAX_RULES: usize = 2_048;
/// Maximum nesting of parentheses.
const MAX_DEPTH: usize = 64;
/// Maximum number of repetitions, as in llama.cpp.
const MAX_REPEAT: u32 = 2_000;

/// Alternatives, each a sequence.
type Choice = Vec<Vec<Item>>;

/// A part of a sequence with its minimum and maximum number of repetitions.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    what: What,
    least: u32,
    most: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Text(String),
    Class { negated: bool, ranges: Vec<(char, char)> },
    Any,
    Rule(String),
    Group(Choice),
}

/// Translates the grammar to llguidance's dialect of Lark.
///
/// # Errors
/// What is wrong, with the line.
pub fn to_lark(text: &str) -> Result<String, String> {
    if text.len() > MAX_BYTES {
        return Err(format!("the grammar has {} bytes; at most {MAX_BYTES} are allowed", text.len()));
    }
    let rules = Parser { text, at: 0 }.rules()?;
    if !rules.contains_key("root") {
        return Err("the grammar has no rule `root`".to_owned());
    }
    if rules.len() > MAX_RULES {
        return Err(format!("the grammar has {} rules; at most {MAX_RULES} are allowed", rules.len()));
    }
    let mut uses: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, choice) in &rules {
        let used = uses.entry(name).or_default();
        references(choice, used);
        if let Some(missing) = used.iter().find(|used| !rules.contains_key(**used)) {
            return Err(format!("rule `{name}` uses `{missing}`, which is not defined"));
        }
    }
    let lexemes = lexemes(&uses);
    let names: BTreeMap<&str, String> = rules
        .keys()
        .enumerate()
        .map(|(index, name)| {
            (
                name.as_str(),
                if lexemes.contains(name.as_str()) { format!("T{index}") } else { format!("r{index}") },
            )
        })
        .collect();
    let mut lark = format!("start: {}\n", names["root"]);
    for (name, choice) in &rules {
        let _ = writeln!(lark, "{}: {}", names[name.as_str()], write_choice(choice, &names));
    }
    Ok(lark)
}

fn references<'a>(choice: &'a Choice, into: &mut BTreeSet<&'a str>) {
    for item in choice.iter().flatten() {
        match &item.what {
            What::Rule(name) => drop(into.insert(name)),
            What::Group(inner) => references(inner, into),
            What::Text(_) | What::Class { .. } | What::Any => {}
        }
    }
}

/// Rules that can become lexemes, because they lead to no recursive rule: first those that use no
/// rule, then, repeatedly, those that use only rules found before. Only rules may use recursive
/// rules; lexemes can't.
fn lexemes<'a>(uses: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeSet<&'a str> {
    let mut left: BTreeMap<&str, usize> = uses.iter().map(|(name, used)| (*name, used.len())).collect();
    let mut users: BTreeMap<&str, Vec<&'a str>> = BTreeMap::new();
    for (name, used) in uses {
        for used in used {
            users.entry(used).or_default().push(name);
        }
    }
    let mut open: Vec<&'a str> =
        uses.iter().filter(|(_, used)| used.is_empty()).map(|(name, _)| *name).collect();
    let mut found = BTreeSet::new();
    while let Some(name) = open.pop() {
        found.insert(name);
        for &user in users.get(name).into_iter().flatten() {
            let left = left.get_mut(user).expect("every rule is counted");
            *left -= 1;
            if *left == 0 {
                open.push(user);
            }
        }
    }
    found
}

fn write_choice(choice: &Choice, names: &BTreeMap<&str, String>) -> String {
    let sequence = |items: &Vec<Item>| {
        let items: Vec<_> = items.iter().map(|item| write_item(item, names)).collect();
        if items.is_empty() { "\"\"".to_owned() } else { items.join(" ") }
    };
    choice.iter().map(sequence).collect::<Vec<_>>().join(" | ")
}

fn write_item(item: &Item, names: &BTreeMap<&str, String>) -> String {
    let character = |c: char| format!("\\x{{{:x}}}", u32::from(c));
    let what = match &item.what {
        What::Text(text) if text.is_empty() => "\"\"".to_owned(),
        What::Text(text) => format!("/{}/", text.chars().map(character).collect::<String>()),
        What::Class { negated, ranges } => {
            let ranges: Vec<String> =
                ranges.iter().map(|&(from, to)| format!("{}-{}", character(from), character(to))).collect();
            format!("/[{}{}]/", if *negated { "^" } else { "" }, ranges.concat())
        }
        What::Any => "/(?s:.)/".to_owned(),
        What::Rule(name) => names[name.as_str()].clone(),
        What::Group(choice) => format!("({})", write_choice(choice, names)),
    };
    match (item.least, item.most) {
        (1, Some(1)) => what,
        (0, None) => format!("{what}*"),
        (1, None) => format!("{what}+"),
        (0, Some(1)) => format!("{what}?"),
        (least, Some(most)) => format!("{what}{{{least},{most}}}"),
        (least, None) => format!("{what}{{{least},}}"),
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn rules(mut self) -> Result<BTreeMap<String, Choice>, String> {
        let mut rules: BTreeMap<String, Choice> = BTreeMap::new();
        self.space(true);
        while self.at < self.text.len() {
            let name = self.name()?;
            self.space(false);
            if !self.take("::=") {
                return Err(self.wrong(&format!("expected ::= after `{name}`")));
            }
            self.space(true);
            let choice = self.choice(0)?;
            if rules.insert(name.clone(), choice).is_some() {
                return Err(self.wrong(&format!("rule `{name}` is defined twice")));
            }
            self.space(true);
        }
        Ok(rules)
    }

    /// Parses alternatives, separated by bars. Inside parentheses line ends are whitespace; at the
    /// top level they end the rule.
    fn choice(&mut self, depth: usize) -> Result<Choice, String> {
        if depth > MAX_DEPTH {
            return Err(self.wrong(&format!("it nests deeper than {MAX_DEPTH} levels")));
        }
        let mut choice = vec![Vec::new()];
        loop {
            self.space(depth > 0);
            if self.take("|") {
                self.space(true);
                choice.push(Vec::new());
                continue;
            }
            let Some(what) = self.what(depth)? else { break };
            let (least, most) = self.repeat()?;
            let sequence = choice.last_mut().expect("there is always one");
            sequence.push(Item { what, least, most });
        }
        Ok(choice)
    }

    fn what(&mut self, depth: usize) -> Result<Option<What>, String> {
        let Some(next) = self.peek() else { return Ok(None) };
        Ok(Some(match next {
            '"' => {
                self.at += 1;
                let mut text = String::new();
                while !self.take("\"") {
                    text.push(self.character()?);
                }
                What::Text(text)
            }
            '[' => {
                self.at += 1;
                let negated = self.take("^");
                let mut ranges = Vec::new();
                while !self.take("]") {
                    let from = self.character()?;
                    let range = self.peek() == Some('-') && !self.text[self.at + 1..].starts_with(']');
                    let to = if range {
                        self.at += 1;
                        self.character()?
                    } else {
                        from
                    };
                    if to < from {
                        return Err(self.wrong(&format!("the range {from:?}-{to:?} is empty")));
                    }
                    ranges.push((from, to));
                }
                if ranges.is_empty() {
                    return Err(self.wrong("an empty class matches nothing"));
                }
                What::Class { negated, ranges }
            }
            '.' => {
                self.at += 1;
                What::Any
            }
            '(' => {
                self.at += 1;
                let choice = self.choice(depth + 1)?;
                if !self.take(")") {
                    return Err(self.wrong("expected )"));
                }
                What::Group(choice)
            }
            c if is_name(c) => What::Rule(self.name()?),
            _ => return Ok(None),
        }))
    }

    fn repeat(&mut self) -> Result<(u32, Option<u32>), String> {
        if self.take("*") {
            return Ok((0, None));
        }
        if self.take("+") {
            return Ok((1, None));
        }
        if self.take("?") {
            return Ok((0, Some(1)));
        }
        if !self.take("{") {
            return Ok((1, Some(1)));
        }
        self.space(false);
        let least = self.number()?;
        self.space(false);
        let most = if self.take(",") {
            self.space(false);
            if self.peek() == Some('}') { None } else { Some(self.number()?) }
        } else {
            Some(least)
        };
        self.space(false);
        if !self.take("}") {
            return Err(self.wrong("expected }"));
        }
        if most.is_some_and(|most| most < least) || most.unwrap_or(least) > MAX_REPEAT {
            return Err(self
                .wrong(&format!("expected a repetition of at most {MAX_REPEAT}, the smaller number first")));
        }
        Ok((least, most))
    }

    fn number(&mut self) -> Result<u32, String> {
        let rest = &self.text[self.at..];
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number = rest[..digits].parse().map_err(|_| self.wrong("expected a number"))?;
        self.at += digits;
        Ok(number)
    }

    fn name(&mut self) -> Result<String, String> {
        let rest = &self.text[self.at..];
        let length = rest.len() - rest.trim_start_matches(is_name).len();
        if length == 0 {
            return Err(self.wrong("expected the name of a rule"));
        }
        self.at += length;
        Ok(rest[..length].to_owned())
    }

    /// One character of a text or class, with escapes resolved.
    fn character(&mut self) -> Result<char, String> {
        let c = self.next().ok_or_else(|| self.wrong("the text or class is not terminated"))?;
        if c != '\\' {
            return Ok(c);
        }
        let digits = match self.next().ok_or_else(|| self.wrong("the escape is not terminated"))? {
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            c @ ('\\' | '"' | '[' | ']' | '-' | '^') => return Ok(c),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            other => return Err(self.wrong(&format!("unknown escape \\{other}"))),
        };
        let code = self.text.get(self.at..self.at + digits).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let found =
            code.and_then(char::from_u32).ok_or_else(|| self.wrong("the escape is not a valid character"))?;
        self.at += digits;
        Ok(found)
    }

    /// Skips whitespace and comments, and with `lines` also line ends.
    fn space(&mut self, lines: bool) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => self.at += 1,
                '\n' | '\r' if lines => self.at += 1,
                '#' => self.at += self.text[self.at..].find('\n').unwrap_or(self.text.len() - self.at),
                _ => break,
            }
        }
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn take(&mut self, text: &str) -> bool {
        let found = self.text[self.at..].starts_with(text);
        if found {
            self.at += text.len();
        }
        found
    }

    fn wrong(&self, message: &str) -> String {
        let before = &self.text[..self.at.min(self.text.len())];
        format!("line {}: {message}", before.matches('\n').count() + 1)
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_without_recursion_are_lexemes() {
        let lark = to_lark("root ::= \"a\" b? # why\nb ::= [0-9x]{2,3} | [^\\n] .").unwrap();
        assert_eq!(
            lark,
            "start: T1\nT0: /[\\x{30}-\\x{39}\\x{78}-\\x{78}]/{2,3} | /[^\\x{a}-\\x{a}]/ /(?s:.)/\nT1: /\\x{61}/ T0?\n"
        );
        let lark = to_lark("root ::= item\nitem ::= \"(\" item* \")\" | word\nword ::= [a-z]+").unwrap();
        assert!(lark.starts_with("start: r1\nr0: /\\x{28}/ r0* /\\x{29}/ | T2\nr1: r0\nT2: "), "{lark}");
        // Two rules that lead to each other, one that leads to them, and one that only they lead
        // to.
        let lark = to_lark("root ::= a\na ::= b c\nb ::= a | \"x\"\nc ::= \"y\"").unwrap();
        assert!(lark.starts_with("start: r3\nr0: r1 T2\nr1: r0 | /\\x{78}/\nT2: "), "{lark}");
    }

    #[test]
    fn mistakes_have_their_line() {
        for (text, message) in [
            ("", "no rule `root`"),
            ("root ::= a", "rule `root` uses `a`, which is not defined"),
            ("root = 1", "line 1: expected ::= after `root`"),
            ("root ::= \"a\"\nroot ::= \"b\"", "line 2: rule `root` is defined twice"),
            ("root ::= \"a", "line 1: the text or class is not terminated"),
            ("root ::= [z-a]", "line 1: the range 'z'-'a' is empty"),
            ("root ::= (\"a\"\n", "line 2: expected )"),
            ("root ::= \"a\"{3,2}", "at most 2000, the smaller number first"),
            ("root ::= \"a\"{9999}", "at most 2000"),
            ("root ::= \"\\q\"", "unknown escape \\q"),
            ("root ::= \"\\uD800\"", "the escape is not a valid character"),
            ("root ::= )", "line 1: expected the name of a rule"),
        ] {
            let error = to_lark(text).unwrap_err();
            assert!(error.contains(message), "{text:?}: {error}");
        }
        assert!(to_lark(&format!("root ::= {}", "(".repeat(500))).unwrap_err().contains("deeper"));
        let many = (0..3_000).map(|index| format!("r{index} ::= \"a\"\n")).collect::<Vec<_>>().concat();
        let error = to_lark(&format!("root ::= r0\n{many}")).unwrap_err();
        assert_eq!(error, "the grammar has 3001 rules; at most 2048 are allowed");
    }
}
