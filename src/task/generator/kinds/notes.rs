//! What people write to each other and to themselves: decisions, meetings, chat, corrections,
//! insights, remarks.

use super::extend;
use crate::task::generator::draw::{Draw, capitalised};

/// A choice and its reasons.
pub fn decision(draw: &mut Draw, target: usize) -> String {
    let says = [
        "{=Decided|Decision|We decided|Agreed}: {~use|drop} {tool} {=for|as} {np} {=instead of|over|next to} {tool}.",
        "{=Chose|Picked|Went with} {id} {=over|instead of} {id} {=because|since} {np} {=is|stays} {adj}.",
        "{person} {~approved|rejected} {np} {=on|by} {date} {=at|for} {num}.",
        "{=Reason|Why|Trade-off}: {tool} {ver} {=needs|takes|costs} {num} and {tool} {num}.",
        "{=Keep|Store|Put} {np} in {path}{=, not in| and never in| instead of} {path}.",
        "Default of {var} {=is|becomes|stays} {num} {=until|unless|because} {np} {verb}s.",
        "{=Rejected|Alternative|Considered}: {verb} {np} {=with|through} {id}, {~too slow|fast enough} at {num}.",
        "{=We will|Plan:|Next:} {verb} {np} {=before|after|with} {ver}, {=owner|owned by} {first}.",
        "{=Revisit|Review} {=in|on} {date} {=if|when} {nouns} {=exceed|reach} {int}.",
        "No {np} {=without|before} {=a review by|consent of} {handle}.",
    ];
    let mut text = String::new();
    let separator = draw.pick(&[" ", " ", "\n", "\n- "]);
    extend(draw, &mut text, &says, separator, target);
    text
}

/// Minutes.
pub fn meeting(draw: &mut Draw, target: usize) -> String {
    let head = draw.pick(&[
        "{=Meeting|Standup|Sync|Retro|Call} {date}, {=with|present:} {first}, {first} and {person}\n",
        "{Noun} review with {person} ({city}), {time}\n",
        "# {Noun} {noun} {date}\n{=Attendees|Present}: {person}, {person}\n",
        "Notes from {first} {=at|in} {city}: ",
    ]);
    let mut text = draw.fill(head);
    let says = [
        "{first} {=will|to|promised to} {verb} {np} by {date}",
        "{first}: {np} {=is|was} {~done|late}, {small} {nouns} {=left|open|remain}",
        "{=Budget|Cost|Estimate} {=raised|cut|set} to {num} {=for|in} {city}",
        "{person} {~agrees|disagrees} with {first} {=on|about} {np}",
        "{=Action|TODO|AI}: {verb} {id} ({handle}, {issue})",
        "{tool} {=demo|rollout|migration} {=moved to|on} {date} at {time}",
        "{=Question|Open}: who {verb}s {np} {=after|during} {np}?",
        "Customer in {city} {=wants|needs|has} {int} {nouns} {=before|per} {noun}",
        "{=Agreed|Decided} to {verb} {np}; {noun} {=stays|becomes} {adj}",
    ];
    let mark = draw.pick(&["- ", "* ", "", "1) "]);
    while text.len() < target || text.ends_with('\n') {
        let said = draw.pick(&says);
        text.push_str(mark);
        text.push_str(&draw.fill(said));
        text.push_str(if mark.is_empty() { ". " } else { "\n" });
        if text.len() >= target {
            break;
        }
    }
    text.trim_end().to_owned()
}

/// Messages of a conversation, or one of them.
pub fn chat(draw: &mut Draw, target: usize) -> String {
    let says = [
        "{=hey|hi|hello|ok|so|hm|btw|fyi} {first}, {=did|can|could} you {verb} {np} {=on|before} {host}?",
        "{=yes|no|sure|nope|maybe}, {id} {~works|is broken} {=for me|again|since} {date} 🎉",
        "\"{np}\" {=means|is} {np} {=for|to} {first}, right?",
        "{=can't|cannot|don't} {verb} {file}, {=it says|I get} \"{err}\"",
        "try `{fn} {flag} {num}` {=first|instead|and tell me}",
        "I {past} {path} {=but|and} {np} {=is|was} still {adj} :(",
        "{first} {=is|was} {~right|wrong} about {np}, {=thanks|sorry} {handle}!",
        "see {url} {=pls|please|for details}",
        "{=what|which|where} {=is|was} the {noun} of {id} {=in|on} {city}? {int} or {int}?",
        "{=lunch|call|train|flight} at {time} {=in|to} {city}, {~with|without} {first}",
        "👍 {past} it, {=took|needed} {ms}",
        "my {adj} {noun} {=costs|weighs|has} {num}, {first} {=says|thinks} {num}...",
    ];
    let mut text = String::new();
    while text.is_empty() || text.len() < target {
        if target > 150 {
            let who = draw.pick(&["[{time}] {first}: ", "{first}: ", "<{first}> "]);
            text.push_str(&draw.fill(who));
        }
        let said = draw.pick(&says);
        text.push_str(&draw.fill(said));
        text.push(if target > 150 { '\n' } else { ' ' });
    }
    text.trim_end().to_owned()
}

/// A belief that turns out to be wrong.
pub fn correction(draw: &mut Draw, target: usize) -> String {
    let says = [
        "{=Correction|Update|Erratum|Wrong before}: {id} {=is|was|has} {num}, not {num}.",
        "{=Actually|No}, {person} {=is|was} {=from|in|at} {city}, not {city}.",
        "{path} {=is|was} {~right|wrong}; {=the right one is|it should be|use} {path}.",
        "I {=said|wrote|noted} {ver} {=but|where} {tool} {=needs|ships|uses} {ver}.",
        "The {np} {~does|does not} {verb} {id}, {=unlike|contrary to} what {first} {=said|wrote} on {date}.",
        "{var} {=defaults to|must be} {num} {=instead of|rather than} {num}.",
        "Please {=ignore|replace|forget} \"{np} {num}\"; {=it is|read} \"{np} {num}\".",
    ];
    let mut text = String::new();
    extend(draw, &mut text, &says, " ", target);
    text
}

/// Lessons on one topic or several.
pub fn insight(draw: &mut Draw, target: usize) -> String {
    let says = [
        "{=Learned|Found|Noticed|TIL}: {id} {=only|never|always} {verb}s {np} {=when|if|while} {noun} {=is|was} {adj}.",
        "{tool} {ver} can't {verb} {np} {=with|on|in} {tool}.",
        "{=It turns out|Apparently|As measured}, {np} {=takes|uses|needs} {num} {=for|of} {np}.",
        "{Noun} {nouns} {=depend on|come from|go to} {path} {=and|or} {id}, {=due to|because of} {adj} {nouns}.",
        "Setting {var}={str} {~doubles|halves} {np} to {num}.",
        "{=First|Second|Third|Also|Separately}, {np} {=of|in|for} {first} {=has|had} {int} {nouns}.",
        "{=Never|Always|Better} {verb} {np} {=before|after|without} {np}, {=it|that} {=costs|saves} {num}.",
        "The {noun} `{id}` {=in|of} {file} {=shadows|duplicates|needs} `{id}`.",
        "{=Pattern|Lesson|Rule of thumb}: {adj} {nouns} {verb} {adj} {nouns}.",
        "{person} {=wrote|explained|showed} that {np} {=is|was} {adj} {=under|above|at} {num}.",
        "{=Compare|See} {url} and {path}.",
    ];
    let mut text = String::new();
    let separator = draw.pick(&[" ", " ", "\n", "\n\n"]);
    extend(draw, &mut text, &says, separator, target);
    text
}

/// A minimal remark.
pub fn minimal(draw: &mut Draw, _target: usize) -> String {
    let says = draw.pick(&[
        "{w} {w}",
        "{w}",
        "{np}",
        "{=ok|OK|yes|no|done|thanks|it works now|still broken|never mind|same error again|wip|lgtm}",
        "{verb} {np}",
        "{=it|this|that} {~works|fails} {=now|again|here|on my machine}",
        "{first} {~left|arrived}",
        "{str}",
        "{noun}: {num}",
        "call {first}",
        "{=todo|TODO}: {verb} {noun}",
        "{file}",
        "{=deploy|release} {~done|failed}",
        "{num}",
        "{=v|version }{int}",
        "{Verb} {noun}",
        "{id} {~passes|fails}",
        "{=got|need|see} {str}",
        "{=hi|hello|bye} {first}",
        "{w} {w} {w}",
        "{=fixed|fix} {id}",
        "{city}, {time}",
        "{=back|lunch|meeting} at {time}",
        "{np}?",
        "{issue}",
        "{w}...",
    ]);
    let text = draw.fill(says);
    let text = if draw.chance(0.3) { capitalised(&text) } else { text };
    if draw.chance(0.2) { text + draw.pick(&[".", "!", "!!", " :)", "?"]) } else { text }
}
