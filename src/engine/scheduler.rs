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
}

/// A share of the next batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// The lane.
    pub lane: usize,
    /// How many of its pending tokens.
    pub tokens: usize,
}

/// Limits of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Tokens of a batch.
    pub batch: usize,
    /// Tokens of prompts in a batch in which another lane decodes: bounds how long that lane waits.
    pub prefill_beside: usize,
}

/// Divides the next batch: first all lanes that decode, oldest first, then prompts, oldest first, with what is left.
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
        slices.push(Slice { lane: work.lane, tokens });
    }
    slices
}

/// A lane that no request uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free<'a> {
    /// The lane.
    pub lane: usize,
    /// Tokens whose keys and values it holds.
    pub cached: &'a [u32],
    /// When its last request ended; smaller is longer ago.
    pub last_used: u64,
}

/// The free lane that shares the longest prefix with a prompt, and that prefix's length; of equals, the one that loses
/// least, then the one unused for longest.
pub fn best_lane(free: &[Free<'_>], prompt: &[u32]) -> Option<(usize, usize)> {
    let shared = |cached: &[u32]| cached.iter().zip(prompt).take_while(|(a, b)| a == b).count();
    free.iter()
        .map(|lane| (shared(lane.cached), lane))
        .max_by_key(|(shared, lane)| {
            let lost = lane.cached.len() - shared;
            (*shared, std::cmp::Reverse(lost), std::cmp::Reverse(lane.last_used))
        })
        .map(|(shared, lane)| (lane.lane, shared))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: Capacity = Capacity { batch: 10, prefill_beside: 4 };

    fn table(work: &[(usize, u64, usize, bool)]) -> Vec<(usize, usize)> {
        let work: Vec<_> =
            work.iter().map(|&(lane, age, pending, prefill)| Work { lane, age, pending, prefill }).collect();
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
    fn the_longest_shared_prefix_wins_then_the_smallest_loss_then_age() {
        let free = |lane, cached, last_used| Free { lane, cached, last_used };
        let prompt = [1, 2, 3, 4];
        assert_eq!(best_lane(&[], &prompt), None);
        assert_eq!(best_lane(&[free(0, &[1, 2], 5), free(1, &[1, 2, 3, 9], 4)], &prompt), Some((1, 3)));
        assert_eq!(best_lane(&[free(0, &[9, 9], 1), free(1, &[], 9)], &prompt), Some((1, 0)));
        assert_eq!(best_lane(&[free(0, &[8], 5), free(1, &[9], 4)], &prompt), Some((1, 0)));
    }
}
