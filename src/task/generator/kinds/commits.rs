//! Version control: titles, messages with bullets, diffstats, pull requests.

use super::extend;
use crate::task::generator::draw::{Draw, capitalised};

/// Changes, as the body of a title or a bullet.
const DEEDS: &[&str] = &[
    "{=add|Add|introduce|support|Support} {id} {=to|for|in} {np}",
    "{=fix|Fix|fixed|fixes} {np} {=in|when|for} {id}",
    "{=fix|Fix} {adj} {noun} {=when|if|while} {np} {=is|was} {adj}",
    "{=remove|Remove|drop|removed} {=unused|the|old|dead} {id} {=from|and} {np}",
    "{=bump|Bump|update|upgrade} {tool} {=from|to} {ver} {=to|and|instead of} {ver}",
    "{=update|bump|Update} {tool} {=to|version to} {ver}",
    "{=rename|Rename|renamed} {id} {=to|into} {id}",
    "{=move|Move|moved} {id} {=from|out of|into} {path}",
    "{=refactor|Refactor|simplify|clean up} {np} {=handling|logic|code|setup}",
    "{=use|Use|switch to} {id} {=instead of|rather than|over|as} {id}",
    "{=improve|Improve|optimized|speed up} {np} {=by|on} {num}",
    "{verb} {np} {=before|after|until|without|with} {np}",
    "{Verb} {np} {=and|or|then} {verb} {id}",
    "{Verb} {id} {=in|via|with|through} {tool}",
    "{past} {np} {=for|in|of} {tool}",
    "{=make|Make|let} {id} {adj} {=on|under|for} {tool}",
    "{=enable|disable|Enable|Disable} {flag} {=by default|for|in} {np}",
    "{=set|Set|raise|lower} {var} {=to|from} {num}",
    "{=revert|Revert} \"{verb} {np} {=for|in} {id}\"",
    "{=document|Document|docs for} {id} {=and|in} {path}",
    "{=handle|Handle|avoid|ignore} {err} {=in|from} {id}",
    "{=test|tests|Test} {=for|that} {np} {=with|in} {file}",
    "{=lint|clippy|fmt|cleanup|typo|format|Fix CI|Address review comments|small fixes|more tests}",
    "{w} {w} {=for|of|in|to|with} {w} {w}",
    "{=more|better|small|further|initial|proper} {w} {noun} {=for|in|of} {w} {w}",
    "{=apply|add|fix|update|remove} {w} {noun}",
    "{=add|make|don't|no need to|ensure} {w} {w} {=so that|when|if|and} {w} {w} {w}",
    "{=allow|Allow|require|skip} `{id}` {=to|and} {verb} `{str}`",
    "{adj} {nouns} {=now|no longer|always} {verb} {np}",
];

/// Sentences that explain a change.
const REASONS: &[&str] = &[
    "The {np} {=was|is} {adj} {=because|when|whenever|if} {id} {past} {np}.",
    "{Noun} {nouns} {=would|could|did} {verb} the {np} {=without|before|after} `{fn}`.",
    "This {=lets|makes|helps} {tool} {verb} {np} {=without|with|before} {np}.",
    "Before, {id} {=took|needed|used} {num}; now {num}.",
    "{=Only|Now|Previously,} {path} {=is|was} {past} {=by|in|with} {np}.",
    "See {url} {=for|and} {np}.",
    "{=Swap|Move|Go} to {id}, which {past} {np} first.",
    "It {=fails|failed|breaks|works} {=due to|because of|with} {adj} {nouns} {=in|on} {tool} {ver}.",
    "{Noun} {=behaves|stays|works} the same {=as|with} {np}; {noun} {=is|are} {adj}.",
    "{=The new|Each|That} {noun} {=accepts|returns|keeps|needs} {np} {=instead of|and not} {np}, {=and|but|so} {noun} {=is|stays} {adj}.",
    "{=When|If} `{id}` is {~enabled|disabled}, {np} {=must|may|should} {verb}.",
    "{=Use case|Note|Example}: {verb} {np} {=like|as|with} {id}, {id} {=or|and} {id}.",
    "{=The|This|A|Each} {noun} {w} {w} {=the|a|any|no} {adj} {noun} {=and|so|which|that} {w} {w} {w}.",
    "{=It|This|That} {=also|now|still} {verb}s {=the|all} {nouns} {w} {w} {=to|of|in|for|on} {w} {w}.",
    "{=Instead of|Without|After|By} {verb}ing {w} {noun}, {w} {=the|its|their} {noun} {w} {=by|from|with} {w} {w}.",
    "{=There is|There was|We have|I added} {=a|no|one more} {adj} {noun} {=that|which|where} {w} {w} {w}.",
    "{tool} {=pushes|reads|builds} {adj} {nouns} {=per|for each|in one} {noun}, {=leaving|so} the {noun} {adj}.",
];

/// Lines that end a message.
const TRAILERS: &[&str] = &[
    "Fixes {issue}",
    "Fix {issue}",
    "Closes {issue}, {issue}",
    "fixes: {issue}, {issue}",
    "Refs {issue}",
    "See {issue}.",
    "Co-authored-by: {person} <{mail}>",
    "Signed-off-by: {person} <{mail}>",
    "Reviewed-by: {handle}",
    "---------",
    "Change-Id: I{hash}",
    "(cherry picked from commit {hash})",
];

/// A title, sometimes with a scope and a number.
pub(super) fn title(draw: &mut Draw) -> String {
    let scope = match draw.count(0, 9) {
        0..=2 => draw.fill("{scope}: "),
        3 => draw.fill("{scope}({noun}): "),
        4 => draw.fill("{noun}/{noun}: "),
        5 => draw.fill("[{tool}] "),
        _ => String::new(),
    };
    let deed = draw.pick(DEEDS);
    let deed = draw.fill(deed);
    let deed = if scope.is_empty() && draw.chance(0.6) { capitalised(&deed) } else { deed };
    let end = match draw.count(0, 9) {
        0..=3 => draw.fill(" ({issue})"),
        4 => ".".to_owned(),
        _ => String::new(),
    };
    scope + &deed + &end
}

/// Bullets until `target`, with the blank lines, line breaks or indentation that people leave.
fn bullets(draw: &mut Draw, text: &mut String, target: usize) {
    let mark = draw.pick(&["* ", "* ", "- ", "* ", "- ", "* ", "+ ", "1. ", "  - ", "• "]);
    let gap = draw.pick(&["\n", "\n\n", "\n"]);
    loop {
        let deed = draw.pick(DEEDS);
        let mut bullet = draw.fill(deed);
        if draw.chance(0.25) {
            let more = draw.pick(REASONS);
            bullet = format!("{bullet}. {}", draw.fill(more));
        }
        text.push_str(mark);
        text.push_str(&wrapped(draw, &bullet));
        if text.len() >= target {
            return;
        }
        text.push_str(gap);
    }
}

/// The text, in half of the cases wrapped at about 72 columns.
fn wrapped(draw: &mut Draw, text: &str) -> String {
    if !draw.chance(0.5) {
        return text.to_owned();
    }
    let mut column = 0;
    let mut lines = String::with_capacity(text.len());
    for word in text.split(' ') {
        if column > 0 {
            column += 1;
            lines.push(if column + word.len() > 72 { '\n' } else { ' ' });
            if lines.ends_with('\n') {
                column = 0;
            }
        }
        column += word.len();
        lines.push_str(word);
    }
    lines
}

/// A commit message: a title, and a body if there is room.
pub fn commit(draw: &mut Draw, target: usize) -> String {
    let mut text = title(draw);
    if text.len() + 40 > target {
        return text;
    }
    text.push_str(draw.pick(&["\n\n", "\n\n", "\n"]));
    let style = draw.count(0, 2);
    if style < 2 {
        let mut body = String::new();
        let room = if style == 0 { target - text.len() } else { (target - text.len()) / 3 };
        extend(draw, &mut body, REASONS, " ", room);
        text.push_str(&wrapped(draw, &body));
        text.push_str("\n\n");
    }
    if style > 0 {
        bullets(draw, &mut text, target);
    }
    for _ in 0..draw.count(0, 2) {
        let trailer = draw.pick(TRAILERS);
        text.push_str("\n\n");
        text.push_str(&draw.fill(trailer));
    }
    text
}

/// A title and the changes per file, in the format of `git show --stat`.
pub fn diffstat(draw: &mut Draw, target: usize) -> String {
    let prefix = draw.pick(&["commit: ", "commit: ", "", "commit "]);
    let prefix = if prefix == "commit " { draw.fill("commit {hash}\n") } else { prefix.to_owned() };
    let mut text = prefix + &title(draw) + "\n";
    let files = (target.saturating_sub(text.len() + 50) / 55).clamp(1, 24);
    let rows: Vec<(String, u64)> = (0..files)
        .map(|_| {
            let path = if draw.chance(0.15) { draw.fill("{file}") } else { draw.path() };
            let most = draw.any(&["9", "60", "600"]).parse().unwrap_or(9);
            (path, draw.roll(1, most))
        })
        .collect();
    let width = rows.iter().map(|(path, _)| path.len()).max().unwrap_or(0);
    let digits = rows.iter().map(|(_, lines)| lines.to_string().len()).max().unwrap_or(1);
    let (mut added, mut removed) = (0, 0);
    for (path, lines) in &rows {
        if draw.chance(0.04) {
            text.push_str(&draw.fill(&format!(" {path:width$} | Bin 0 -> {{int}} bytes\n")));
            continue;
        }
        let plus = if draw.chance(0.3) { *lines } else { draw.roll(0, *lines) };
        added += plus;
        removed += lines - plus;
        let drawn = |count: u64| (count * 60 / lines.max(&60)).max(u64::from(count > 0)) as usize;
        let bar = "+".repeat(drawn(plus)) + &"-".repeat(drawn(lines - plus));
        let line = format!("{path:width$} | {lines:>digits$} {bar}\n");
        text.push_str(&line);
    }
    let s = |count: u64| if count == 1 { "" } else { "s" };
    let added_part = if added > 0 { format!(", {added} insertion{}(+)", s(added)) } else { String::new() };
    let removed_part =
        if removed > 0 { format!(", {removed} deletion{}(-)", s(removed)) } else { String::new() };
    text + &format!("{files} file{} changed{added_part}{removed_part}", s(files as u64))
}

/// The text of a pull request or release: headings, prose, lists, code.
pub fn pull_request(draw: &mut Draw, target: usize) -> String {
    let mut text = match draw.count(0, 4) {
        0 => "# ".to_owned() + &title(draw) + "\n\n",
        1 => draw.fill("## {=Summary|What|Motivation|Description}\n\n"),
        2 => draw.fill("## What's changed in {ver}\n"),
        3 => title(draw) + "\n\n",
        _ => String::new(),
    };
    while text.len() < target {
        match draw.count(0, 9) {
            0..=3 => {
                let mut body = String::new();
                let length = draw.count(80, 320).min(target);
                extend(draw, &mut body, REASONS, " ", length);
                text.push_str(&wrapped(draw, &body));
            }
            4..=7 => {
                let until = (text.len() + draw.count(60, 400)).min(target.max(text.len() + 30));
                bullets(draw, &mut text, until);
            }
            8 => text.push_str(&draw.fill("## {=Testing|Changes|Notes|How to test|Key differences}")),
            _ => text.push_str(&draw.fill("```{=rust|sh|python|}\n{=$ |let x = |}{id}({id}, {num})\n```")),
        }
        text.push_str("\n\n");
    }
    if draw.chance(0.4) {
        let trailer = draw.pick(TRAILERS);
        text.push_str(&draw.fill(trailer));
    }
    text.trim_end().to_owned()
}
