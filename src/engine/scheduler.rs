//! Plans what is decoded next, as a pure function of the lanes' work and the cost of batches.
//!
//! Each lane is a separate stream in llama.cpp's KV cache, so that attention reads only the lane's
//! own keys. llama.cpp computes a batch in one pass only if its lanes are neighbours and have the
//! same number of tokens. It splits any other batch into several passes, each of which reads all
//! weights. This module therefore makes batches rectangular: neighbouring lanes, each with the same
//! number of tokens. A lane that has fewer is filled up with draft tokens, and then with padding
//! that is removed right after the batch.

/// A lane with more certain tokens than this is reading a prompt and gets calls of its own.
pub const LONG: usize = 16;
/// Maximum tokens of a call.
pub const BATCH: usize = 512;
/// Maximum seconds that a prompt's share of a step takes while other lanes decode. Bounds how long
/// they wait.
const BESIDE: f64 = 0.1;
/// Maximum seconds of a prompt's share when no other lane decodes. Bounds how late a cancellation
/// is noticed.
const ALONE: f64 = 0.4;
/// Minimum tokens of a prompt's share, however slow the machine is.
pub const SHARE: usize = 32;

/// Estimates the cost of calls.
pub trait Price {
    /// Seconds that a batch of this many tokens takes.
    fn batch(&self, tokens: usize) -> f64;
    /// Number of prompt tokens that take this many seconds, or 0 before anything was measured on
    /// this machine.
    fn prompt_tokens(&self, seconds: f64) -> usize;
}

/// The work of a lane.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// Index of the lane.
    pub lane: usize,
    /// Order of arrival; a smaller number is older.
    pub age: u64,
    /// Number of tokens that are certain but not decoded yet, at least 1.
    pub pending: usize,
    /// For each draft token after the certain ones, the probability that it and all before it are
    /// right.
    pub guesses: Vec<f64>,
    /// Maximum number of tokens that the lane can take now, padding included.
    pub room: usize,
}

/// A lane's share of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// Index of the lane.
    pub lane: usize,
    /// Number of certain tokens.
    pub certain: usize,
    /// Number of draft tokens after the certain ones.
    pub guessed: usize,
    /// Number of padding tokens after these, which only make the batch rectangular.
    pub padding: usize,
}

/// Plans the calls of the next step: one for each group of neighbouring lanes that decode, then one
/// for the oldest prompt. `others_decode` says that requests outside this step wait for the next
/// token of their answers.
pub fn plan(work: &[Work], others_decode: bool, cost: &impl Price) -> Vec<Vec<Slice>> {
    let mut decoding: Vec<&Work> = work.iter().filter(|work| work.pending <= LONG).collect();
    decoding.sort_by_key(|work| work.lane);
    let mut calls: Vec<Vec<Slice>> = decoding
        .chunk_by(|a, b| a.lane + 1 == b.lane)
        .flat_map(|group| group.chunks(BATCH))
        .map(|group| rectangle(group, cost))
        .collect();
    if let Some(prompt) = work.iter().filter(|work| work.pending > LONG).min_by_key(|work| work.age) {
        let seconds = if decoding.is_empty() && !others_decode { ALONE } else { BESIDE };
        let certain = prompt.pending.min(cost.prompt_tokens(seconds).clamp(SHARE, BATCH));
        calls.push(vec![Slice { lane: prompt.lane, certain, guessed: 0, padding: 0 }]);
    }
    calls
}

/// Gives each lane the same number of tokens: the number that yields the most tokens per second.
fn rectangle(group: &[&Work], cost: &impl Price) -> Vec<Slice> {
    let lanes = group.len();
    let won = |work: &Work, width: usize| {
        let certain = work.pending.min(width);
        certain as f64 + work.guesses.iter().take(width - certain).sum::<f64>()
    };
    let rate = |width: usize| {
        let tokens: f64 = group.iter().map(|work| won(work, width)).sum();
        tokens / cost.batch(lanes * width).max(1e-12)
    };
    let widest = group.iter().map(|work| work.pending + work.guesses.len()).max().unwrap_or(1);
    let room = group.iter().map(|work| work.room).min().unwrap_or(1);
    let limit = widest.min(room).min(BATCH / lanes).max(1);
    // On a tie, the smaller width wins.
    let width = (1..=limit)
        .map(|width| (width, rate(width)))
        .fold((1, 0.0), |best, next| if next.1 > best.1 * (1.0 + 1e-9) { next } else { best })
        .0;
    let slice = |work: &&Work| {
        let certain = work.pending.min(width);
        let guessed = work.guesses.len().min(width - certain);
        Slice { lane: work.lane, certain, guessed, padding: width - certain - guessed }
    };
    group.iter().map(slice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Line {
        call: f64,
    }

    impl Price for Line {
        fn batch(&self, tokens: usize) -> f64 {
            self.call + 1e-3 * tokens as f64
        }
        fn prompt_tokens(&self, seconds: f64) -> usize {
            (seconds * 1e3) as usize
        }
    }

    /// A call has a fixed cost of ten tokens.
    const MEMORY_BOUND: Line = Line { call: 10e-3 };
    const COMPUTE_BOUND: Line = Line { call: 1e-6 };

    fn work(lane: usize, pending: usize, guesses: &[f64]) -> Work {
        Work { lane, age: 1_000 - lane as u64, pending, guesses: guesses.to_vec(), room: 1_000 }
    }

    fn table(work: &[Work], line: &Line) -> Vec<Vec<(usize, usize, usize, usize)>> {
        let slice = |slice: &Slice| (slice.lane, slice.certain, slice.guessed, slice.padding);
        plan(work, false, line).iter().map(|call| call.iter().map(slice).collect()).collect()
    }

    #[test]
    fn calls_are_rectangles_of_neighbours_and_a_share_of_the_oldest_prompt() {
        for (case, lanes, expected) in [
            ("nothing", vec![], vec![]),
            ("one lane", vec![work(0, 1, &[])], vec![vec![(0, 1, 0, 0)]]),
            ("what is certain goes at once", vec![work(0, 6, &[])], vec![vec![(0, 6, 0, 0)]]),
            ("a likely guess pays", vec![work(0, 1, &[0.9, 0.8])], vec![vec![(0, 1, 2, 0)]]),
            ("an unlikely one doesn't", vec![work(0, 1, &[0.05])], vec![vec![(0, 1, 0, 0)]]),
            (
                "neighbours go together, others apart",
                vec![work(3, 1, &[]), work(0, 1, &[]), work(1, 1, &[])],
                vec![vec![(0, 1, 0, 0), (1, 1, 0, 0)], vec![(3, 1, 0, 0)]],
            ),
            (
                "a lane without guesses is padded",
                vec![work(0, 1, &[0.9]), work(1, 1, &[]), work(2, 2, &[])],
                vec![vec![(0, 1, 1, 0), (1, 1, 0, 1), (2, 2, 0, 0)]],
            ),
            (
                "prompts: the oldest, a share that does not hold up the others for long",
                vec![work(0, 1, &[]), work(1, 600, &[]), work(2, 700, &[])],
                vec![vec![(0, 1, 0, 0)], vec![(2, 100, 0, 0)]],
            ),
            ("alone it may take longer", vec![work(1, 600, &[])], vec![vec![(1, 400, 0, 0)]]),
            ("the end of a prompt is no prompt", vec![work(1, 16, &[])], vec![vec![(1, 16, 0, 0)]]),
        ] {
            assert_eq!(table(&lanes, &MEMORY_BOUND), expected, "{case}");
        }
    }

    #[test]
    fn a_prompt_takes_a_small_share_while_anybody_waits_for_a_token_and_before_its_price_is_known() {
        let tokens = |others_decode| plan(&[work(0, 600, &[])], others_decode, &MEMORY_BOUND)[0][0].certain;
        assert_eq!((tokens(false), tokens(true)), (400, 100));
        let first = plan(&[work(0, 600, &[])], false, &crate::engine::drafting::Cost::default());
        assert_eq!(first[0][0].certain, SHARE);
    }

    #[test]
    fn guesses_that_cost_what_they_bring_are_left_out() {
        assert_eq!(table(&[work(0, 1, &[0.9])], &COMPUTE_BOUND), [[(0, 1, 0, 0)]]);
        assert_eq!(
            table(&[work(0, 1, &[]), work(1, 9, &[])], &COMPUTE_BOUND),
            [[(0, 1, 0, 0), (1, 1, 0, 0)]],
            "padding has to pay too"
        );
    }

    #[test]
    fn no_stream_is_filled_beyond_its_end_or_padded_where_that_stays() {
        let full = Work { room: 2, ..work(0, 1, &[]) };
        assert_eq!(table(&[full, work(1, 9, &[])], &MEMORY_BOUND), [[(0, 1, 0, 1), (1, 2, 0, 0)]]);
        let rigid = |lane, pending| Work { room: pending, ..work(lane, pending, &[]) };
        assert_eq!(table(&[rigid(0, 6)], &MEMORY_BOUND), [[(0, 6, 0, 0)]], "what is certain is no padding");
        assert_eq!(table(&[rigid(0, 6), rigid(1, 2)], &MEMORY_BOUND), [[(0, 2, 0, 0), (1, 2, 0, 0)]]);
    }

    #[test]
    fn many_lanes_keep_within_the_batch() {
        let lanes: Vec<Work> = (0..256).map(|lane| work(lane, 1, &[0.99; 8])).collect();
        let tokens: usize = plan(&lanes, false, &MEMORY_BOUND)[0]
            .iter()
            .map(|slice| slice.certain + slice.guessed + slice.padding)
            .sum();
        assert!(tokens <= BATCH, "{tokens}");
    }
}
