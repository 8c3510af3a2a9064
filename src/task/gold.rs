//! The gold answer to an event: extractive and regular, so it is faithful by construction and a
//! small model can learn it.

use super::event::Event;
use super::salient;
use super::schema::{Action, Causality, Encoding, Entity, GIST_LIMIT, StructuredConcepts, Topic};

/// Gists end at the last word within this many characters: below [`super::schema::GIST_LIMIT`],
/// because a model counts tokens and only roughly characters.
pub const GIST_TARGET: usize = 50;
/// Gists that would be shorter than this may extend to [`super::schema::GIST_LIMIT`].
const GIST_LEAST: usize = 20;
/// Summaries end at the last sentence or word within this many characters.
pub const SUMMARY_TARGET: usize = 160;
/// A summary may end with a sentence from here on; shorter ones continue to the last word that
/// fits.
const SUMMARY_LEAST: usize = 60;
/// Events below this many characters are minimal: routine, whatever they say. The metric's limit
/// is 50; the margin allows for a model that counts roughly.
const MINIMAL: usize = 64;
/// Number of search words in addition to the type.
const CONCEPTS: usize = 3;
/// Maximum number of entities.
const ENTITIES: usize = 4;
/// Maximum words of an action's object.
const OBJECT_WORDS: usize = 4;
/// Maximum characters of a reason.
const REASON: usize = 100;

/// Verbs that are the action if they are the first word.
#[rustfmt::skip]
const VERBS: &[&str] = &[
    "add", "added", "adds", "allow", "avoid", "build", "bump", "change", "changed", "check", "clean", "convert",
    "create", "decided", "delete", "deploy", "disable", "document", "drop", "enable", "expose", "extend",
    "extract", "fix", "fixed", "fixes", "handle", "implement", "implemented", "improve", "improved", "increase",
    "init", "install", "introduce", "limit", "make", "merge", "merged", "migrate", "migrated", "move", "moved",
    "optimize", "optimized", "reduce", "refactor", "release", "remove", "removed", "rename", "replace",
    "replaced", "revert", "run", "set", "simplify", "skip", "support", "switch", "update", "updated", "use",
    "detect", "resolve", "store", "rewrite", "reset", "capture", "restore",
];

/// What words say about an event: `(words, significance, emotional_tone, outcome)`.
type Cue = (&'static str, &'static str, &'static str, &'static str);

/// The first word of the content that is in this table decides; [`NO_CUE`] if there is none.
#[rustfmt::skip]
const CUES: [Cue; 6] = [
    ("outage corrupted vulnerability breach emergency fatal critical", "critical", "concerning", "failure"),
    ("error errors fail fails failed failing failure failures panic panicked crash crashed crashes broken exception segfault \
      rejected denied aborted", "important", "frustrating", "failure"),
    ("fix fixed fixes works working pass passes passed merged resolved solved done succeeded faster completed accepted",
      "notable", "satisfying", "success"),
    ("released launched won breakthrough milestone", "important", "exciting", "success"),
    ("todo wip investigating pending trying started waiting planned", "routine", "neutral", "ongoing"),
    ("warning warnings deprecated leak leaks slow slower regression stale", "notable", "concerning", "unknown"),
];

/// The values for an event without a cue.
const NO_CUE: (&str, &str, &str) = ("routine", "neutral", "unknown");

/// Words that open a reason.
const REASONS: [&str; 4] = ["because", "due to", "caused by", "thanks to"];

/// The encoding of an event. A pure function: the same event always has the same encoding.
///
/// - `content`: [`condense`]d event.
/// - `gist`: its first line without a leading `commit: ` or list or heading mark, up to
///   [`GIST_TARGET`] characters.
/// - `summary`: its beginning on one line, up to [`SUMMARY_TARGET`] characters.
/// - `narrative`: "A SOURCE TYPE: " and the gist.
/// - `concepts`: the type and the first salient terms ([`salient::terms`]); `entities`: these terms
///   with their kind.
/// - `actions`: one; the verb is the gist's first word (a scope such as `ui:` before it is skipped)
///   if it is one of [`VERBS`], else `note`; the object is what follows.
/// - `causality`: the first clause that opens with one of [`REASONS`], on one line.
/// - `significance`, `emotional_tone`, `outcome`: by the first cue word of [`CUES`]; `salience` by
///   the significance.
pub fn encode(event: &Event) -> Encoding {
    let content = condense(&event.content);
    let gist = gist(&content);
    let summary = summary(&content);
    let narrative =
        cut(&format!("{} {} {}: {gist}", article(&event.source), event.source, event.kind), 200).to_owned();
    let terms = salient::terms(&content, ENTITIES);
    let concepts = std::iter::once(event.kind.clone())
        .chain(terms.iter().take(CONCEPTS).map(|term| term.concept().to_owned()))
        .collect();
    let entities = terms
        .iter()
        .map(|term| Entity { name: term.text.to_owned(), kind: term.kind.to_owned(), context: String::new() })
        .collect();
    let topic = Topic { label: event.kind.clone(), path: format!("{}/{}", event.source, event.kind) };
    let (mut significance, emotional_tone, outcome) = cue(&content);
    let minimal = event.content.chars().count() < MINIMAL;
    if minimal {
        significance = "routine";
    }
    let salience = match significance {
        "critical" => 0.9,
        "important" => 0.7,
        "notable" => 0.5,
        _ if minimal => 0.2,
        _ => 0.3,
    };
    let action = action(&gist);
    let causality = reason(&content)
        .map(|description| Causality { relation: "cause".to_owned(), description })
        .into_iter()
        .collect();
    Encoding {
        gist,
        summary,
        content,
        narrative,
        concepts,
        structured_concepts: StructuredConcepts {
            topics: vec![topic],
            entities,
            actions: vec![action],
            causality,
        },
        significance: significance.to_owned(),
        emotional_tone: emotional_tone.to_owned(),
        outcome: outcome.to_owned(),
        salience,
    }
}

/// Drops noise without facts and keeps everything else: control characters and runs of blanks
/// become one space; blanks at both ends of a line, empty lines, and lines of rules or table
/// borders (three or more of `- = _ * ~ # | : +` and nothing else) are removed, and so is the bar
/// of a diffstat line (`path | 177 +++--` becomes `path | 177`).
pub fn condense(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    for line in text.lines() {
        let start = kept.len();
        if start > 0 {
            kept.push('\n');
        }
        let from = kept.len();
        for word in line.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty())
        {
            if kept.len() > from {
                kept.push(' ');
            }
            kept.push_str(word);
        }
        let written = &kept[from..];
        if written.is_empty() || is_rule(written) {
            kept.truncate(start);
        } else {
            let end = from + without_bar(written).len();
            kept.truncate(end);
        }
    }
    kept
}

/// Whether a line is a rule or border.
fn is_rule(line: &str) -> bool {
    line.chars().count() >= 3 && line.chars().all(|c| "-=_*~#|:+ ".contains(c))
}

/// A diffstat line without its bar; other lines unchanged.
fn without_bar(line: &str) -> &str {
    let bare = line.trim_end_matches(['+', '-']);
    let drawn = bare.len() < line.len() && bare.ends_with(' ') && bare.contains('|');
    let counted = bare.trim_end();
    if drawn && counted.ends_with(|c: char| c.is_ascii_digit()) { counted } else { line }
}

/// The first line of a condensed text, cut at a word.
fn gist(content: &str) -> String {
    let line = content.lines().next().unwrap_or_default();
    let line = line.strip_prefix("commit: ").unwrap_or(line);
    let heading = line.trim_start_matches('#');
    let line = heading.strip_prefix(' ').unwrap_or(line);
    let line = line.strip_prefix("* ").or_else(|| line.strip_prefix("- ")).unwrap_or(line);
    let gist = cut(line, GIST_TARGET);
    // For a long path after one short word, the path is better than the word alone.
    if gist.chars().count() < GIST_LEAST { cut(line, GIST_LIMIT).to_owned() } else { gist.to_owned() }
}

/// The beginning of a condensed text on one line, cut at a sentence or else at a word.
fn summary(content: &str) -> String {
    let flat = content.replace('\n', " ");
    let kept = cut(&flat, SUMMARY_TARGET);
    if kept.len() < flat.len() {
        let sentence = kept.rmatch_indices(['.', '!', '?']).map(|(at, _)| at + 1).find(|&at| {
            let ends = kept[at..].starts_with(' ') || at == kept.len();
            ends && kept[..at].chars().count() >= SUMMARY_LEAST
        });
        if let Some(end) = sentence {
            return kept[..end].to_owned();
        }
    }
    kept.to_owned()
}

/// The longest prefix of `text` that ends with a word and has at most `most` characters; a longer
/// first word is cut.
fn cut(text: &str, most: usize) -> &str {
    let Some((end, _)) = text.char_indices().nth(most) else { return text };
    if text[end..].starts_with(' ') {
        return text[..end].trim_end();
    }
    match text[..end].rfind(' ') {
        Some(space) => text[..space].trim_end(),
        None => &text[..end],
    }
}

/// The article before the name of a source.
fn article(source: &str) -> &'static str {
    match source {
        "mcp" => "An",
        _ if source.starts_with(['a', 'e', 'i', 'o', 'u']) => "An",
        _ => "A",
    }
}

/// The values of the first cue word.
fn cue(content: &str) -> (&'static str, &'static str, &'static str) {
    content
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| word.len() >= 3 && word.len() <= 13)
        .find_map(|word| {
            let word = word.to_ascii_lowercase();
            CUES.iter().find(|(words, ..)| words.split(' ').any(|cue| cue == word))
        })
        .map_or(NO_CUE, |&(_, significance, tone, outcome)| (significance, tone, outcome))
}

/// The action that a gist names.
fn action(gist: &str) -> Action {
    let mut words = gist.split(' ').peekable();
    let known = |word: &str| {
        let stem: String =
            word.chars().take_while(char::is_ascii_alphabetic).collect::<String>().to_ascii_lowercase();
        VERBS.contains(&stem.as_str()).then_some(stem)
    };
    if words.peek().is_some_and(|word| word.ends_with(':') && known(word).is_none()) {
        words.next();
    }
    let verb = words.peek().and_then(|word| known(word));
    if verb.is_some() {
        words.next();
    }
    let object = words.take(OBJECT_WORDS).collect::<Vec<_>>().join(" ");
    Action { verb: verb.unwrap_or_else(|| "note".to_owned()), object, details: String::new() }
}

/// The first clause that gives a reason, from its opening word to the end of the sentence, on one
/// line. A line that begins in lower case continues the sentence of the line before.
fn reason(content: &str) -> Option<String> {
    let start = REASONS.iter().filter_map(|opening| opens(content, opening)).min()?;
    let clause = &content[start..];
    let breaks = clause.match_indices('\n').map(|(at, _)| at);
    let mut ends = breaks.filter(|at| !clause[at + 1..].starts_with(char::is_lowercase));
    let end = ends.next().unwrap_or(clause.len());
    let end = clause[..end]
        .match_indices('.')
        .map(|(at, _)| at)
        .find(|at| clause[at + 1..].starts_with([' ', '\n']))
        .unwrap_or(end);
    let flat = clause[..end].replace('\n', " ");
    Some(cut(flat.trim_end_matches('.'), REASON).to_owned())
}

/// The position of `opening` in a text, as whole words followed by something.
fn opens(text: &str, opening: &str) -> Option<usize> {
    text.match_indices(opening).map(|(at, _)| at).find(|&at| {
        let before = at == 0 || text[..at].ends_with([' ', '(', '\n']);
        before && text[at + opening.len()..].starts_with([' ', '\n'])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn condensing_drops_noise_and_no_fact() {
        let raw = "commit: x\r\n\n\n  src/a.rs   | 177 ++++---\n----------\n | a |\tb |\n|---|---|\nx = -1 --- y  \n2 files +++\n";
        assert_eq!(condense(raw), "commit: x\nsrc/a.rs | 177\n| a | b |\nx = -1 --- y\n2 files +++");
        assert_eq!(condense("--\n++"), "--\n++");
        assert_eq!(condense(" \n\n"), "");
    }

    #[test]
    fn a_commit_is_encoded_by_the_rules() {
        let text = "commit: ui: fix crash in HeaderBar (#741)\n\nIt failed because the store_key was empty. See docs/ui.md.";
        let memory = encode(&Event::new("mcp", "change", text));
        assert_eq!(memory.gist, "ui: fix crash in HeaderBar (#741)");
        assert_eq!(
            memory.summary,
            "commit: ui: fix crash in HeaderBar (#741) It failed because the store_key was empty. See docs/ui.md."
        );
        assert_eq!(memory.narrative, "An mcp change: ui: fix crash in HeaderBar (#741)");
        assert_eq!(memory.concepts, ["change", "HeaderBar", "store_key", "ui.md"]);
        let concepts = &memory.structured_concepts;
        assert_eq!(concepts.topics[0].path, "mcp/change");
        assert_eq!(concepts.entities[2].name, "docs/ui.md");
        assert_eq!(
            (&*concepts.actions[0].verb, &*concepts.actions[0].object),
            ("fix", "crash in HeaderBar (#741)")
        );
        assert_eq!(concepts.causality[0].description, "because the store_key was empty");
        assert_eq!((&*memory.significance, &*memory.outcome, memory.salience), ("notable", "success", 0.5));
    }

    #[test]
    fn a_reason_runs_over_wrapped_lines_and_ends_with_its_sentence() {
        let cause = |text: &str| reason(&condense(text)).unwrap_or_default();
        assert_eq!(cause("It broke because the\nlock was held. Then"), "because the lock was held");
        assert_eq!(cause("- slow due to v1.2 of x\n- Next"), "due to v1.2 of x");
        assert_eq!(cause("becausenot this"), "");
    }

    #[test]
    fn cuts_keep_whole_words_and_sentences() {
        assert_eq!(cut("one two three", 7), "one two");
        assert_eq!(cut("one two three", 9), "one two");
        assert_eq!(cut("éééééé", 3), "ééé");
        let path = "Edited a/very/long/path/to/some/file/deep/inside.toml now";
        assert_eq!(gist(path), "Edited a/very/long/path/to/some/file/deep/inside.toml now");
        assert_eq!(
            gist("Edited the settings of all the daemons in the house today"),
            "Edited the settings of all the daemons in the"
        );
        let long =
            format!("{} The end is here now. And then it goes on for some more time", "word ".repeat(25));
        assert!(summary(&condense(&long)).ends_with("The end is here now."));
    }

    #[test]
    fn a_minimal_event_stays_minimal() {
        let memory = encode(&Event::new("terminal", "note", "it failed"));
        assert!(memory.salience < 0.4 && memory.significance == "routine" && memory.outcome == "failure");
        assert_eq!(memory.structured_concepts.actions[0].verb, "note");
        assert_eq!(memory.structured_concepts.actions[0].object, "it failed");
    }

    proptest! {
        #[test]
        fn any_text_gets_a_valid_encoding(text in "\\PC{0,300}|[a-z \\n\\t|+-]{0,300}", kind in "[a-z]{1,9}") {
            let memory = encode(&Event::new("git", kind, text.clone()));
            prop_assert!(memory.gist.chars().count() <= 60);
            prop_assert!(memory.summary.chars().count() <= 400);
            prop_assert!(memory.narrative.chars().count() <= 200);
            prop_assert!(memory.content.chars().count() <= text.chars().count());
            prop_assert_eq!(condense(&memory.content), memory.content.clone(), "condensing twice changes nothing");
            let letters = |s: &str| s.chars().filter(|c| c.is_alphanumeric()).collect::<String>();
            prop_assert_eq!(letters(&memory.content), letters(&text));
        }
    }
}
