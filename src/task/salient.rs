//! Finds the words of a text that name its subject by their shape, so that it works for words
//! never seen before.

/// A salient term of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term<'a> {
    /// The characters of the text, surrounding punctuation removed.
    pub text: &'a str,
    /// `url`, `person`, `file`, `version`, `number`, `identifier` or `name`.
    pub kind: &'static str,
}

impl<'a> Term<'a> {
    /// The term as a search word: the file name of a path, otherwise itself.
    pub fn concept(&self) -> &'a str {
        if self.kind == "file" { self.text.rsplit('/').next().unwrap_or(self.text) } else { self.text }
    }
}

/// Longer terms are left out of lists, because they are useless for search.
const LONGEST: usize = 48;

/// The first `most` distinct salient terms of a text, in order of first appearance.
///
/// Each whitespace-separated word is classified by the first rule that matches: `://` inside: url;
/// `@` inside or in front: person; a `/` between letters, or a known file extension: file; digits
/// with a dot between them, perhaps after `v`: version (two parts need the `v`); a number with a
/// unit: number; a letter and one of `_`, `::`, a digit, or an inner capital: identifier; a
/// capitalised word that does not begin a line or sentence: name.
pub fn terms(text: &str, most: usize) -> Vec<Term<'_>> {
    let mut found: Vec<Term<'_>> = Vec::new();
    for line in text.lines() {
        let mut begins = true;
        for word in line.split_whitespace() {
            if found.len() == most {
                return found;
            }
            let bare = strip(word);
            if let Some(kind) = kind_of(bare, begins)
                && bare.len() <= LONGEST
                && !found.iter().any(|term| term.text == bare)
            {
                found.push(Term { text: bare, kind });
            }
            let marker = !word.contains(char::is_alphanumeric);
            begins = (begins && marker) || word.ends_with(['.', '!', '?', ':', '|']);
        }
    }
    found
}

/// The word without punctuation around it, and without what follows an opening bracket, quote or
/// `=` inside it.
fn strip(word: &str) -> &str {
    let inner =
        word.trim_matches(|c: char| !c.is_alphanumeric() && !matches!(c, '/' | '@' | '_' | '~' | '%'));
    let end = inner.find(['(', '[', '{', '<', '=', '"', '`', ',', ';', '|', '\\']).unwrap_or(inner.len());
    inner[..end].trim_end_matches(|c: char| !c.is_alphanumeric() && !matches!(c, '_' | '%'))
}

/// File extensions that make a word without a slash a file.
const ENDINGS: [&str; 31] = [
    "rs", "go", "py", "js", "ts", "tsx", "svelte", "html", "css", "yaml", "yml", "json", "jsonl", "toml",
    "lock", "md", "sh", "sql", "gguf", "db", "txt", "log", "patch", "cu", "cuh", "cpp", "c", "h", "java",
    "rb", "csv",
];

/// Units that follow a number without a space.
const UNITS: [&str; 20] = [
    "ms", "s", "us", "ns", "h", "m", "%", "KB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "Hz", "MHz", "GHz",
    "k", "x", "px",
];

/// The kind of a stripped word, if it is salient. `begins` says that it opens a line or a
/// sentence.
fn kind_of(word: &str, begins: bool) -> Option<&'static str> {
    let mut characters = word.chars();
    let first = characters.next()?;
    if word.contains("://") {
        return Some("url");
    }
    if word.contains('@') && word.len() > 3 {
        return Some("person");
    }
    if is_file(word) {
        return Some("file");
    }
    if is_version(word) {
        return Some("version");
    }
    let number = word.trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | ','));
    if first.is_ascii_digit() && UNITS.contains(&number) {
        return Some("number");
    }
    let letter = word.contains(char::is_alphabetic);
    if letter
        && word.len() > 2
        && (word.contains('_') || word.contains("::") || word.contains(|c: char| c.is_ascii_digit()))
    {
        return Some("identifier");
    }
    let inner_capital = characters.any(char::is_uppercase) && word.contains(char::is_lowercase);
    if inner_capital && word.len() > 2 && word.chars().all(char::is_alphanumeric) {
        return Some("identifier");
    }
    let plain = word.chars().all(char::is_alphabetic);
    (!begins && plain && first.is_uppercase() && word.chars().count() > 2).then_some("name")
}

fn is_file(word: &str) -> bool {
    let ending = word.rsplit_once('.');
    let known = ending.is_some_and(|(stem, ending)| !stem.is_empty() && ENDINGS.contains(&ending));
    let slash = word.split('/').filter(|part| part.contains(char::is_alphabetic)).count() > 1;
    known || slash || (word.starts_with(['/', '~']) && word.len() > 3)
}

/// `v1.2`, `v1.2.3`, `1.2.3`, with any suffix after `-` or `+`.
fn is_version(word: &str) -> bool {
    let (marked, rest) = word.strip_prefix('v').map_or((false, word), |rest| (true, rest));
    let core = rest.split(['-', '+']).next().unwrap_or(rest);
    let parts: Vec<&str> = core.split('.').collect();
    parts.len() >= if marked { 2 } else { 3 }
        && parts.iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(text: &str) -> Vec<(&str, &str)> {
        terms(text, 9).into_iter().map(|term| (term.text, term.kind)).collect()
    }

    #[test]
    fn shapes_name_the_kind() {
        assert_eq!(
            seen(
                "Moved `copy_to` and FooBar::new() from src/lib.rs (v1.2) for Anna, @kim, 40ms at https://a.b/c."
            ),
            [
                ("copy_to", "identifier"),
                ("FooBar::new", "identifier"),
                ("src/lib.rs", "file"),
                ("v1.2", "version"),
                ("Anna", "name"),
                ("@kim", "person"),
                ("40ms", "number"),
                ("https://a.b/c", "url"),
            ]
        );
    }

    #[test]
    fn what_opens_a_sentence_is_no_name() {
        assert_eq!(seen("Hello there. Again\n- Over here: Now Paris"), [("Paris", "name")]);
        assert_eq!(seen("12 and #34 then 3.5"), []);
    }

    #[test]
    fn a_term_counts_once_and_the_first_come_first() {
        let text = "use q8_0 then Q4_K then q8_0 then i32";
        let firsts: Vec<&str> = terms(text, 3).into_iter().map(|term| term.text).collect();
        assert_eq!(firsts, ["q8_0", "Q4_K", "i32"]);
        assert_eq!(terms("see src/a/deep/file.go", 1)[0].concept(), "file.go");
    }
}
