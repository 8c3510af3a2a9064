//! Which tokens of a packed batch belong together: documents attend only to themselves and count
//! their positions from 0.

use std::sync::Arc;

use candle_core::Result;

/// Consecutive tokens in one row of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Document {
    /// Its row in the batch.
    pub row: usize,
    /// Its first token in the row.
    pub start: usize,
    /// Tokens.
    pub len: usize,
}

/// The documents of a `[batch, seq]` matrix of token ids. Tokens outside every document are
/// padding: their attention context is zero, and nothing attends to them.
#[derive(Debug, Clone)]
pub struct BatchLayout {
    batch: usize,
    seq: usize,
    documents: Arc<[Document]>,
    positions: Arc<[u32]>,
}

impl BatchLayout {
    /// Each row is one document.
    pub fn whole(batch: usize, seq: usize) -> Self {
        let documents = (0..batch).map(|row| Document { row, start: 0, len: seq }).collect();
        let positions = (0..batch).flat_map(|_| 0..seq as u32).collect();
        Self { batch, seq, documents, positions }
    }

    /// Rows packed with several documents.
    ///
    /// # Errors
    /// A document that is empty, exceeds its row, or overlaps another.
    pub fn packed(batch: usize, seq: usize, documents: Vec<Document>) -> Result<Self> {
        let mut positions = vec![0; batch * seq];
        let mut taken = vec![false; batch * seq];
        for document in &documents {
            let Document { row, start, len } = *document;
            if len == 0 || row >= batch || start + len > seq {
                candle_core::bail!("{document:?} does not fit a batch of {batch} rows of {seq} tokens");
            }
            for at in 0..len {
                let token = row * seq + start + at;
                if std::mem::replace(&mut taken[token], true) {
                    candle_core::bail!("{document:?} shares token {} of its row with another", start + at);
                }
                positions[token] = at as u32;
            }
        }
        Ok(Self { batch, seq, documents: documents.into(), positions: positions.into() })
    }

    /// Rows.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Tokens in a row.
    pub fn seq(&self) -> usize {
        self.seq
    }

    /// The documents.
    pub fn documents(&self) -> &Arc<[Document]> {
        &self.documents
    }

    /// Position of every token in its document, `[batch * seq]`; 0 for padding.
    pub fn positions(&self) -> &Arc<[u32]> {
        &self.positions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_begin_anew_and_overlaps_are_refused() {
        let document = |start, len| Document { row: 0, start, len };
        let layout = BatchLayout::packed(1, 6, vec![document(0, 2), document(2, 3)]).unwrap();
        assert_eq!(layout.positions()[..], [0, 1, 0, 1, 2, 0]);
        for wrong in [document(1, 1), document(5, 2), document(5, 0)] {
            assert!(BatchLayout::packed(1, 6, vec![document(0, 2), wrong]).is_err(), "{wrong:?}");
        }
    }
}
