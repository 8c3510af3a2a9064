//! What is decoded next: a pure function of what the lanes have to decode and of what batches cost.
//!
//! Each lane is a stream of its own in llama.cpp's cache, so that attention reads a lane's own keys only. A batch is then
//! computed in one pass only if its lanes are neighbours and have equally many tokens; any other batch is cut into several
//! passes, each of which reads all weights. So batches are made rectangular here: neighbours, each with the same number of
//! tokens, filled up with guesses and, where a lane has none, with padding that is forgotten at once.

/// Lanes with more certain tokens than this are prompts: they get calls of their own.
pub const LONG: usize = 16;
/// Tokens of one call, at most.
pub const BATCH: usize = 512;
/// Seconds that a prompt's share of a step may take beside lanes that decode: bounds how long these wait.
const BESIDE: f64 = 0.1;
/// Seconds of a prompt's share when nobody else decodes: bounds how late a cancellation is noticed.
const ALONE: f64 = 0.4;
/// Smallest share of a prompt, however slow the machine is.
pub const SHARE: usize = 32;

/// What calls cost.
pub trait Price {
    /// Seconds of a batch of this many tokens.
    fn batch(&self, tokens: usize) -> f64;
    /// Tokens of a prompt that take so many seconds; none as long as nothing is known of this machine.
    fn prompt_tokens(&self, seconds: f64) -> usize;
}

/// What a lane has to decode.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// The lane.
    pub lane: usize,
    /// Order of arrival; smaller is older.
    pub age: u64,
    /// Tokens that are certain and not decoded yet, at least 1.
    pub pending: usize,
    /// The probability that all guesses up to this one are right, for each guess behind the certain tokens.
    pub guesses: Vec<f64>,
    /// Most tokens that it can take now, padding included.
    pub room: usize,
}

/// A lane's share of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// The lane.
    pub lane: usize,
    /// Certain tokens.
    pub certain: usize,
    /// Guesses behind them.
    pub guessed: usize,
    /// Tokens behind these that only make the batch rectangular.
    pub padding: usize,
}

/// The calls of the next step: one for each group of neighbours that decode, then one for the oldest prompt. With
/// `others_decode`, requests that have no part in this step wait for the next token of their answers.
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

/// Equally many tokens for each lane: the number with which most tokens are won per second.
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
    // Of equals the smaller.
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

    /// A call costs as much as ten tokens.
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
