//! Failures: compiler output, stack traces, logs, incidents.

use super::extend;
use crate::task::generator::draw::Draw;

/// A build, test run or linker that fails (or, for the twin, succeeds).
pub fn build(draw: &mut Draw, target: usize) -> String {
    let head = draw.pick(&[
        "$ {=cargo|make|npm run|go|ninja|mvn} {=build|test|check} {flag}\n",
        "Build of {id} {~failed|passed} on {host} after {ms}\n",
        "{tool} {ver}: {~build failed|build passed} for {id}\n",
        "CI run {int} for {hash} {~failed|completed} in job {fn}\n",
        "",
    ]);
    let mut text = draw.fill(head);
    let lines = [
        "error[E{int}]: {np} `{id}` {=does not|cannot|must} {verb} `{id}`",
        "  --> {path}:{int}:{small}",
        "{path}:{int}:{small}: {=error|warning}: {adj} {noun} '{id}' {=in|before} {np}",
        "{path}({small},{small}): error {err}: {Noun} '{id}' has no {noun} '{str}'.",
        "FAILED {path}::{fn} - {type}: expected {num}, found {num}",
        "   |\n{small} |     let {fn} = {fn}({str});\n   |         ^^^^^ {adj} {noun}",
        "undefined reference to `{id}' in {file}",
        "note: {np} {=required by|defined in|comes from} {path}",
        "help: {verb} the {noun} `{id}` {=or|and} {verb} {flag}",
        "test {id} ... {~FAILED|ok} ({ms})",
        "test result: {int} passed; {small} failed; {small} ignored in {ms}",
        "npm ERR! {err} {np} {=at|in} {tool}@{ver}",
        "make: *** [{path}:{int}: {fn}] Error {small}",
        "warning: {=unused|deprecated} {noun} `{id}` since {ver}",
    ];
    extend(draw, &mut text, &lines, "\n", target);
    text
}

/// An exception with its stack.
pub fn trace(draw: &mut Draw, target: usize) -> String {
    let styles: [(&str, &[&str]); 4] = [
        (
            "Traceback (most recent call last):\n",
            &[
                "  File \"{path}\", line {int}, in {fn}\n    {fn} = {id}({fn}, {num})",
                "  File \"/usr/lib/{fn}/{file}\", line {int}, in {fn}\n    raise {type}('{np}')",
            ],
        ),
        (
            "thread '{fn}' panicked at {path}:{int}:{small}:\n{np} {=must|should|did} not {verb}: {type} {str}\n",
            &["  {small}: {id}\n             at {path}:{int}:{small}", "  {small}: {fn}::{fn}::{type}"],
        ),
        (
            "Exception in thread \"{fn}-{small}\" {err}: {np} {=is|was} {adj}\n",
            &["\tat {fn}.{type}.{fn}({type}.java:{int})", "Caused by: {err}: {adj} {noun} {num}"],
        ),
        (
            "goroutine {int} [{=running|chan receive|select}]:\npanic: {np}: {str}\n",
            &[
                "{fn}.{type}(0x{hash}, 0x{hash})\n\t{path}:{int} +0x{hash}",
                "{fn}/{fn}.{fn}(...)\n\t{path}:{int}",
            ],
        ),
    ];
    let (head, frames) = styles[draw.count(0, styles.len() - 1)];
    let mut text = draw.fill(head);
    while text.len() < target || text.ends_with(":\n") {
        let frame = draw.pick(frames);
        text.push_str(&draw.fill(frame));
        text.push('\n');
    }
    if head.starts_with("Trace") {
        text.push_str(&draw.fill("{type}Error: {np} {=is|was|has} {adj} {str}: '{id}'"));
    }
    text.trim_end().to_owned()
}

/// Lines of a log, in one of several formats.
pub fn log(draw: &mut Draw, target: usize) -> String {
    let form = draw.pick(&[
        "{date}T{time}Z {LEVEL} {id}: ",
        "[{time}] {LEVEL} {fn} ",
        "{host} {fn}[{int}]: ",
        "{time} | {LEVEL} | ",
        "level={LEVEL} ts={time} module={fn} ",
        "{LEVEL}  [{type}] ",
    ]);
    let says = [
        "{np} {past} in {ms}",
        "connection {=from|to} {ip}:{port} {~refused|accepted} by {host}",
        "{=GET|POST|PUT|DELETE} /{fn}/{int} {=200|404|500|503} {ms}",
        "{past} {int} {nouns} {=of|for|from} {host} ({pct})",
        "retry {small} of {small} {=after|in} {ms}: {err}",
        "{id}={num} {fn}={num} {fn}=\"{np}\"",
        "cannot {verb} {path}: {adj} {noun} ({err})",
        "{tool} {ver} {=started|stopped|reloaded} with {fn}={str}",
        "memory {=usage|limit|peak} {size}, {noun} {pct}",
        "{=user|session|request} {str} {~denied|granted} {noun} {id}",
    ];
    let mut text = String::new();
    while text.is_empty() || text.len() < target {
        let level = draw.any(&["INFO", "WARN", "ERROR", "DEBUG", "info", "error"]);
        let line = draw.fill(&form.replace("{LEVEL}", level));
        let said = draw.pick(&says);
        text.push_str(&line);
        text.push_str(&draw.fill(said));
        text.push('\n');
    }
    text.trim_end().to_owned()
}

/// Prose about something that broke and its outcome.
pub fn incident(draw: &mut Draw, target: usize) -> String {
    let says = [
        "{=Outage|Incident|Problem|Bug}: {host} {~stopped answering|recovered} at {time} {=because|after} {id} {past} {np}.",
        "{first} {past} the {noun} {=in|of|behind} {id} and {=found|saw|measured} {num} {nouns}.",
        "{=Root cause|Cause|Reason}: {np} in {path} {past} {id} {=twice|too early|without a lock|under load}.",
        "Race condition: thread {small} {past} {id} {=while|before} thread {small} {past} {id}.",
        "{tool} {ver} {~crashed|works} {=with|on} {err} {=when|after|if} {np} {=reaches|exceeds} {num}.",
        "Error rate {~rose|fell} from {pct} to {pct} {=on|in} {city} between {time} and {time}.",
        "{=Fix|Workaround|Mitigation}: {verb} {var} to {num} {=and|then} restart {fn}.",
        "{int} {nouns} {=were|got} {~lost|restored}; {person} {=will|should} {verb} {np} {=until|by} {date}.",
        "Still {=investigating|waiting for|missing}: {np} of {id} ({issue}).",
        "{adj} {nouns} in {fn} {~leak|no longer leak} {size} {=per|every} {noun}.",
        "Rolled {~back|forward} {id} to {ver} {=at|on} {host}.",
    ];
    let mut text = String::new();
    let separator = draw.pick(&[" ", " ", "\n", "\n- "]);
    extend(draw, &mut text, &says, separator, target);
    text
}
