//! Chooses the sequence for a request and the prefix that it reuses, as a pure function of what the
//! sequences hold.
//!
//! A sequence keeps the keys and values of its last request. The common head of many prompts is
//! computed once: it is used in place, copied from a sequence that has it, or waited for if another
//! sequence is computing it.

use std::cmp::Reverse;

/// A prefix that another sequence is about to have is worth waiting for if it is longer than the
/// one at hand by at least this many tokens.
const WORTH_WAITING: usize = 16;

/// What a sequence holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held<'a> {
    /// Index of the sequence.
    pub sequence: usize,
    /// The spokes that its keys and values were computed with.
    pub origin: Origin,
    /// Tokens whose keys and values it holds.
    pub tokens: &'a [u32],
    /// The prompt that is being decoded in it; `None` if the sequence is idle.
    pub planned: Option<&'a [u32]>,
    /// When its last request ended. A smaller number is longer ago.
    pub last_used: u64,
    /// Whether it keeps the head of prompts for requests that begin with it.
    pub kept: bool,
}

/// Identifies what keys and values depend on besides the tokens: the generation and scale of each
/// spoke in use. Nothing is shared between different origins.
pub type Origin = u64;

/// The post without spokes.
pub const NO_SPOKE: Origin = 0;

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// An idle sequence for the request.
    pub target: usize,
    /// Number of prompt tokens that `source` holds and the request reuses.
    pub known: usize,
    /// The sequence that holds them, possibly the target itself.
    pub source: usize,
    /// A sequence that will soon hold a longer prefix, and the prefix's length.
    pub follow: Option<(usize, usize)>,
    /// Length of a prefix that other prompts share, where a recurrent state must be kept to be
    /// reusable.
    pub mark: Option<usize>,
}

/// Length of the common prefix.
pub fn shared(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// How keys and values can be reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handing {
    /// Whether a prefix of a sequence can be used without the rest. Not in recurrent models, where
    /// a sequence can only be continued as a whole.
    pub partial: bool,
    /// Number of tokens that are computed as fast as a sequence is copied. Shorter prefixes are not
    /// worth a copy.
    pub least: usize,
}

/// Chooses the sequence for a prompt; `None` if no sequence is idle.
///
/// The last token of the prompt is never reused, because its logits are needed for the answer.
pub fn place(held: &[Held<'_>], prompt: &[u32], origin: Origin, handing: Handing) -> Option<Placement> {
    let Handing { partial, least } = handing;
    let usable = prompt.len().saturating_sub(1);
    let known = |held: &Held<'_>| {
        let length = shared(held.tokens, prompt).min(usable);
        let whole = length == held.tokens.len();
        let same = held.origin == origin;
        if same && (partial || (whole && held.planned.is_none())) { length } else { 0 }
    };
    // On a tie, prefer an idle sequence, which can be used in place, then the one with the fewest
    // tokens to lose.
    let source = held
        .iter()
        .map(|held| (known(held), held))
        .max_by_key(|(known, held)| (*known, held.planned.is_none(), Reverse(held.tokens.len())));
    let (known, source) = source?;
    // Neighbouring lanes are decoded together, so prefer a target that leaves few gaps.
    let busy = |sequence: usize| held.iter().any(|held| held.sequence == sequence && held.planned.is_some());
    let gaps = |sequence: usize| {
        let beside = |other: Option<usize>| usize::from(other.is_some_and(busy));
        2 - beside(sequence.checked_sub(1)) - beside(Some(sequence + 1))
    };
    // A kept head is given up only if nothing else is idle.
    let only_heads = held.iter().all(|held| held.kept || held.planned.is_some());
    let idle = || held.iter().filter(|held| held.planned.is_none() && held.kept == only_heads);
    let fewest = idle().map(|held| gaps(held.sequence)).min()?;
    let oldest = idle()
        .filter(|held| gaps(held.sequence) == fewest)
        .min_by_key(|held| (!held.tokens.is_empty(), held.last_used))?;
    // Use the source in place if that loses little; otherwise copy, so that what the source holds
    // remains available. A recurrent state is continued in place, because no part of it can be
    // reused; only kept heads are copied.
    let cheap = if partial {
        gaps(source.sequence) == fewest && 3 * known >= source.tokens.len()
    } else {
        !source.kept
    };
    let in_place = source.planned.is_none() && known > 0 && cheap;
    let target = if in_place { source.sequence } else { oldest.sequence };
    let known = if target == source.sequence || known >= least { known } else { 0 };
    let worth = known + WORTH_WAITING.max(least);
    let same = || held.iter().filter(|held| held.origin == origin);
    let planned = |held: &Held<'_>| held.planned.map(|planned| shared(planned, prompt).min(usable));
    let follow = same()
        .filter_map(|held| Some((held, planned(held)?)))
        // A recurrent state that has gone beyond the prefix is of no use.
        .filter(|&(held, length)| partial || held.tokens.len() <= length)
        .map(|(held, length)| (held.sequence, length))
        .max_by_key(|&(_, length)| length)
        .filter(|&(_, length)| length >= worth);
    let common = |held: &Held<'_>| planned(held).unwrap_or_else(|| shared(held.tokens, prompt).min(usable));
    let mark = if partial { None } else { same().map(common).max().filter(|&length| length >= worth) };
    Some(Placement { target, known, source: source.sequence, follow, mark })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: Handing = Handing { partial: true, least: 0 };
    const WHOLE: Handing = Handing { partial: false, least: 0 };

    fn idle(sequence: usize, tokens: &[u32], last_used: u64) -> Held<'_> {
        Held { sequence, origin: 0, tokens, planned: None, last_used, kept: false }
    }

    fn running<'a>(sequence: usize, tokens: &'a [u32], planned: &'a [u32]) -> Held<'a> {
        Held { planned: Some(planned), ..idle(sequence, tokens, 0) }
    }

    fn at(target: usize, known: usize, source: usize) -> Placement {
        Placement { target, known, source, follow: None, mark: None }
    }

    #[test]
    fn prompts_go_where_most_is_known_and_least_is_lost() {
        let prompt: Vec<u32> = (0..40).collect();
        let head = &prompt[..20];
        let other = [9; 30];
        let long: Vec<u32> = head.iter().copied().chain([7; 100]).collect();
        for (case, held, expected) in [
            ("nothing is idle", vec![running(0, &[], &other)], None),
            ("an empty one", vec![idle(0, &other, 5), idle(1, &[], 9)], Some(at(1, 0, 1))),
            ("the longest unused", vec![idle(0, &other, 5), idle(1, &other, 4)], Some(at(1, 0, 1))),
            ("in place", vec![idle(0, head, 5), idle(1, &[], 0)], Some(at(0, 20, 0))),
            ("copied, if much were lost", vec![idle(0, &long, 5), idle(1, &other, 4)], Some(at(1, 20, 0))),
            (
                "copied from a running one",
                vec![running(0, head, head), idle(1, &other, 4)],
                Some(at(1, 20, 0)),
            ),
            ("all known but the last", vec![idle(0, &prompt, 1)], Some(at(0, 39, 0))),
            (
                "waits for one that computes it",
                vec![running(0, &prompt[..4], &long), idle(1, &[], 4)],
                Some(Placement { follow: Some((0, 20)), ..at(1, 4, 0) }),
            ),
            (
                "beside those that run",
                vec![running(0, &other, &other), idle(1, &other, 9), idle(2, &other, 1), idle(3, &[], 1)],
                Some(at(1, 0, 3)),
            ),
            (
                "does not wait for little",
                vec![running(0, &prompt[..5], head), idle(1, &[], 4)],
                Some(at(1, 5, 0)),
            ),
        ] {
            assert_eq!(place(&held, &prompt, 0, ANY), expected, "{case}");
        }
    }

    #[test]
    fn little_is_computed_rather_than_copied() {
        let prompt: Vec<u32> = (0..40).collect();
        let held = [running(0, &prompt[..20], &prompt[..20]), idle(1, &[], 4)];
        let known = |least| place(&held, &prompt, 0, Handing { least, ..ANY }).unwrap().known;
        assert_eq!((known(20), known(21)), (20, 0));
    }

    #[test]
    fn other_origins_share_nothing() {
        let prompt: Vec<u32> = (0..40).collect();
        let held = [Held { origin: 8, ..idle(0, &prompt, 1) }, idle(1, &[], 1)];
        assert_eq!(place(&held, &prompt, 0, ANY).unwrap().known, 0);
        assert_eq!(place(&held, &prompt, 8, ANY).unwrap(), at(0, 39, 0));
        let held = [Held { origin: 8, ..running(0, &[], &prompt) }, idle(1, &[], 1)];
        assert_eq!(place(&held, &prompt, 0, ANY).unwrap().follow, None);
    }

    #[test]
    fn a_recurrent_state_is_continued_or_copied_as_a_whole_or_not_at_all() {
        let prompt: Vec<u32> = (0..40).collect();
        let beyond: Vec<u32> = prompt[..20].iter().copied().chain([7]).collect();
        let head = |sequence, length| Held { kept: true, ..idle(sequence, &prompt[..length], 3) };
        for (case, held, expected) in [
            (
                "gone beyond: marked for the next one",
                vec![idle(0, &beyond, 1), idle(1, &[], 1)],
                Placement { mark: Some(20), ..at(1, 0, 1) },
            ),
            ("a conversation goes on", vec![idle(0, &prompt[..20], 1), idle(1, &[], 1)], at(0, 20, 0)),
            ("a head stays", vec![idle(0, &beyond, 1), head(1, 20)], at(0, 20, 1)),
            ("a head stays, though it is the oldest", vec![head(0, 3), idle(1, &[9; 30], 9)], at(1, 3, 0)),
            ("unless nothing else is idle", vec![running(0, &[9], &[9; 40]), head(1, 20)], at(1, 20, 1)),
            (
                "waits for one that comes to the end of what both begin with",
                vec![running(0, &prompt[..12], &beyond), idle(1, &[], 1)],
                Placement { follow: Some((0, 20)), mark: Some(20), ..at(1, 0, 1) },
            ),
            (
                "but not for one that has passed it",
                vec![running(0, &beyond, &beyond), idle(1, &[], 1)],
                Placement { mark: Some(20), ..at(1, 0, 1) },
            ),
        ] {
            let found = place(&held, &prompt, 0, WHOLE);
            // If nothing is known, the source doesn't matter: normalise it to the target.
            let found = found.map(|found| Placement {
                source: if found.known == 0 { found.target } else { found.source },
                ..found
            });
            assert_eq!(found, Some(expected), "{case}");
        }
    }
}
