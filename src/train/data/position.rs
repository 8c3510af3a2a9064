//! Where a run is in its data: how far each domain is read, which one is next, and which rows wait
//! for a place.
//!
//! A checkpoint keeps the position. Together with the seed, the weights and the stages it decides
//! every row that is drawn from here on.

use serde::{Deserialize, Serialize};

use crate::train::checkpoint::Exact;

/// A position in the data of a run; the default is its beginning.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// How far each domain is read, in the order of their names.
    domains: Vec<Progress>,
    /// Rows that were drawn, but that no packed row has had room for yet.
    pub(in crate::train) waiting: Vec<Piece>,
}

/// How far a domain is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Progress {
    /// Passes over all rows before this one.
    pub(super) epoch: u64,
    /// Pieces that this pass has drawn.
    pub(super) drawn: u64,
    /// Rows that the domain is behind its share. Over all domains these add up to 0.
    behind: Exact,
}

/// A row of a domain, or the part of a long text that one packed row holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    /// Which domain, in the order of names.
    pub domain: usize,
    /// Which row of it.
    pub row: u64,
    /// The first token of the row that belongs to the piece.
    pub from: usize,
}

impl Position {
    /// Whether nothing has been drawn yet.
    pub fn is_beginning(&self) -> bool {
        *self == Self::default()
    }

    /// The domain that is furthest behind its share, the first of several.
    pub(super) fn next_domain(&mut self, count: usize) -> (usize, &mut Progress) {
        self.domains.resize(count, Progress::default());
        let mut next = 0;
        for (at, progress) in self.domains.iter().enumerate() {
            if progress.behind.0 > self.domains[next].behind.0 {
                next = at;
            }
        }
        (next, &mut self.domains[next])
    }

    /// Counts a row that was drawn from a domain. Each domain is owed its share of them.
    pub(in crate::train) fn count(&mut self, domain: usize, weights: &[f64]) {
        let total: f64 = weights.iter().sum();
        for (progress, weight) in self.domains.iter_mut().zip(weights) {
            progress.behind.0 += weight / total;
        }
        self.domains[domain].behind.0 -= 1.0;
    }
}
