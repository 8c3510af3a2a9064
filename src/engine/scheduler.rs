//! Who is decoded next: a pure function of what the lanes have to decode. Chunked prefill beside decoding, oldest first.

/// What a lane has to decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// The lane.
    pub lane: usize,
    /// Order of arrival; smaller is older.
    pub age: u64,
    /// Tokens that are not decoded yet.
    pub pending: usize,
    /// Whether these belong to the prompt.
    pub prefill: bool,
    /// Tokens that are guessed to follow; of use only behind all that is pending.
    pub drafted: usize,
}

/// A share of the next batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// The lane.
    pub lane: usize,
    /// How many of its pending tokens.
    pub tokens: usize,
    /// How many of its drafted tokens behind them.
    pub drafted: usize,
}

/// Limits of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Tokens of a batch.
    pub batch: usize,
    /// Tokens of prompts in a batch in which another lane decodes: bounds how long that lane waits.
    pub prefill_beside: usize,
}

/// Divides the next batch: first all lanes that decode, oldest first, then prompts, oldest first, with what is left; then
/// drafts, shortest first, so that none takes the place of several.
pub fn plan(work: &[Work], capacity: Capacity) -> Vec<Slice> {
    let mut order: Vec<_> = work.iter().filter(|work| work.pending > 0).collect();
    order.sort_by_key(|work| (work.prefill, work.age));
    let decoding = order.iter().any(|work| !work.prefill);
    let mut left = capacity.batch;
    let mut left_for_prompts = if decoding { capacity.prefill_beside } else { capacity.batch };
    let mut slices = Vec::new();
    for work in order {
        let tokens = work.pending.min(left).min(if work.prefill { left_for_prompts } else { left });
        if tokens == 0 {
            continue;
        }
        left -= tokens;
        if work.prefill {
            left_for_prompts -= tokens;
        }
        slices.push(Slice { lane: work.lane, tokens, drafted: 0 });
    }
    let mut drafts: Vec<_> = work.iter().filter(|work| work.drafted > 0).collect();
    drafts.sort_by_key(|work| (work.drafted, work.age));
    for work in drafts {
        let slice = slices.iter_mut().find(|slice| slice.lane == work.lane && slice.tokens == work.pending);
        if let Some(slice) = slice {
            slice.drafted = work.drafted.min(left);
            left -= slice.drafted;
        }
    }
    slices
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: Capacity = Capacity { batch: 10, prefill_beside: 4 };

    fn table(work: &[(usize, u64, usize, bool)]) -> Vec<(usize, usize)> {
        let work: Vec<_> = work
            .iter()
            .map(|&(lane, age, pending, prefill)| Work { lane, age, pending, prefill, drafted: 0 })
            .collect();
        plan(&work, CAPACITY).into_iter().map(|slice| (slice.lane, slice.tokens)).collect()
    }

    #[test]
    fn batches_are_divided_by_kind_and_age() {
        for (case, work, expected) in [
            ("nothing", vec![], vec![]),
            ("done lanes have no share", vec![(0, 1, 0, false)], vec![]),
            ("a lone prompt fills the batch", vec![(0, 1, 25, true)], vec![(0, 10)]),
            ("prompts: oldest first", vec![(0, 2, 25, true), (1, 1, 7, true)], vec![(1, 7), (0, 3)]),
            ("decoding first", vec![(0, 1, 25, true), (1, 2, 1, false)], vec![(1, 1), (0, 4)]),
            (
                "prompts share what is left beside decoding",
                vec![(0, 1, 3, true), (1, 2, 1, false), (2, 3, 9, true)],
                vec![(1, 1), (0, 3), (2, 1)],
            ),
            ("forced tokens go in one piece", vec![(0, 1, 6, false), (1, 2, 1, false)], vec![(0, 6), (1, 1)]),
            (
                "the batch is a limit for decoding too",
                vec![(0, 2, 8, false), (1, 1, 8, false)],
                vec![(1, 8), (0, 2)],
            ),
        ] {
            assert_eq!(table(&work), expected, "{case}");
        }
    }

    #[test]
    fn drafts_take_what_is_left_behind_whole_lanes() {
        let work = |lane, pending, drafted| Work { lane, age: lane as u64, pending, prefill: false, drafted };
        let drafted = |work: &[Work]| -> Vec<_> {
            plan(work, CAPACITY).iter().map(|slice| (slice.lane, slice.tokens, slice.drafted)).collect()
        };
        assert_eq!(drafted(&[work(0, 1, 4), work(1, 2, 0)]), [(0, 1, 4), (1, 2, 0)]);
        assert_eq!(drafted(&[work(0, 1, 9), work(1, 1, 3)]), [(0, 1, 5), (1, 1, 3)], "the shorter one first");
        assert_eq!(drafted(&[work(0, 12, 3)]), [(0, 10, 0)], "not behind a part");
    }
}
