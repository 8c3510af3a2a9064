//! Packing: several conversations side by side in rows of a fixed length, a pure function of the
//! position in the data.

use candle_core::{Device, Tensor};

use super::TrainError;
use super::data::{Domain, Mixture, Piece, Position, Sample};
use super::recipe::{LongRows, Stage};
use crate::model::{BatchLayout, Document};
use crate::text::tokenizer::PAD;

/// Packed rows that one step may have.
pub(super) const ROWS: u64 = 1 << 12;
/// A row is full when this many conversations that didn't fit wait for the next one.
const MISSES: usize = 4;
/// After this many consecutive draws that no row has room for, the data counts as having no
/// shorter rows.
const ALL_LONG: u64 = 256;
/// A row is also full when only this many tokens are left.
const CRUMBS: usize = 24;

/// One row of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedRow {
    /// The tokens that the model reads, padded to the length of the row.
    pub ids: Vec<u32>,
    /// Start and length of each conversation.
    pub documents: Vec<(usize, usize)>,
    /// Positions that predict a token of an answer, with that token.
    pub targets: Vec<(u32, u32)>,
}

impl PackedRow {
    fn new(seq_len: usize) -> Self {
        Self { ids: Vec::with_capacity(seq_len), documents: vec![], targets: vec![] }
    }

    fn push(&mut self, sample: &Sample) {
        let start = self.ids.len();
        self.documents.push((start, sample.inputs()));
        self.ids.extend(&sample.ids[..sample.inputs()]);
        let target = |at: usize| ((start + at - 1) as u32, sample.ids[at]);
        self.targets.extend((sample.answer..sample.ids.len()).map(target));
    }

    /// Tokens that are not padding.
    pub fn tokens(&self) -> usize {
        self.documents.iter().map(|(_, len)| len).sum()
    }
}

/// The rows of one step.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Rows of the same length.
    pub rows: Vec<PackedRow>,
    /// Rows of data left out because they are longer than a packed row.
    pub too_long: usize,
}

impl Batch {
    /// A batch of one row that is as long as its sample.
    pub fn of_sample(sample: &Sample) -> Self {
        let mut row = PackedRow::new(sample.inputs());
        row.push(sample);
        Self { rows: vec![row], too_long: 0 }
    }

    /// Tokens of answers.
    pub fn targets(&self) -> usize {
        self.rows.iter().map(|row| row.targets.len()).sum()
    }

    /// Conversations.
    pub fn documents(&self) -> usize {
        self.rows.iter().map(|row| row.documents.len()).sum()
    }

    /// Tokens that are not padding.
    pub fn tokens(&self) -> usize {
        self.rows.iter().map(PackedRow::tokens).sum()
    }
}

/// Rows as tensors.
pub struct Inputs {
    /// `[batch, seq]`
    pub ids: Tensor,
    /// Documents and positions.
    pub layout: BatchLayout,
    /// Indices (into the flattened batch) of the tokens that predict an answer, `[targets]`.
    pub predicting: Tensor,
    /// The tokens to predict.
    pub targets: Vec<u32>,
}

impl Inputs {
    /// Tensors of rows of one length, on a device.
    ///
    /// # Errors
    /// Documents that overlap (a bug in the packing).
    pub fn new(rows: &[PackedRow], device: &Device) -> Result<Self, TrainError> {
        let seq = rows.first().map_or(0, |row| row.ids.len());
        let ids: Vec<u32> = rows.iter().flat_map(|row| row.ids.iter().copied()).collect();
        let (mut documents, mut predicting, mut targets) = (vec![], vec![], vec![]);
        for (at, row) in rows.iter().enumerate() {
            documents.extend(row.documents.iter().map(|&(start, len)| Document { row: at, start, len }));
            predicting.extend(row.targets.iter().map(|(position, _)| (at * seq) as u32 + position));
            targets.extend(row.targets.iter().map(|(_, target)| target));
        }
        let count = predicting.len();
        Ok(Self {
            ids: Tensor::from_vec(ids, (rows.len(), seq), device)?,
            layout: BatchLayout::packed(rows.len(), seq, documents)?,
            predicting: Tensor::from_vec(predicting, count, device)?,
            targets,
        })
    }
}

/// Makes the next batch, and gives the position after it: a pure function of the mixture's seed,
/// the weights of its domains, the stage and the position.
///
/// A domain's weight is its share of the tokens. So that shares hold however long its rows are, a
/// row that was drawn is always read: where no packed row has room for it, it waits for those of
/// the next batch.
///
/// # Errors
/// A source that fails; a row longer than `seq_len` where the recipe forbids it, or nothing but such rows.
pub fn batch(
    mixture: &Mixture,
    weights: &[f64],
    stage: Stage,
    position: &Position,
    long_rows: LongRows,
) -> Result<(Batch, Position), TrainError> {
    let Stage { seq_len, max_event_chars, .. } = stage;
    let mut position = position.clone();
    let (mut too_long, mut skipped) = (0, 0);
    let mut read = |piece: Piece| -> Result<Option<Sample>, TrainError> {
        let sample = mixture.sample(piece, seq_len, max_event_chars)?;
        let inputs = sample.inputs();
        if inputs <= seq_len {
            skipped = 0;
            return Ok(Some(sample));
        }
        let domain = &mixture.domains()[piece.domain];
        if long_rows == LongRows::Error {
            return Err(longer(domain, piece.row, inputs, seq_len));
        }
        too_long += 1;
        skipped += 1;
        // Of a file, as many draws as make a whole pass, wherever the first of them was in one.
        let most = domain.rows().map_or(ALL_LONG, |rows| ALL_LONG.max(2 * rows));
        if skipped == most {
            let message = format!(
                "{inputs} tokens, and so are {most} rows in a row longer than seq_len, {seq_len}: raise train.seq_len, or \
                 give shorter rows"
            );
            return Err(TrainError::Row { place: domain.place(piece.row), message });
        }
        Ok(None)
    };
    let mut waiting: Vec<(Piece, Sample)> = vec![];
    for piece in std::mem::take(&mut position.waiting) {
        // A row that fitted may be too long for the stage that begins here.
        waiting.extend(read(piece)?.map(|sample| (piece, sample)));
    }
    let mut rows = Vec::with_capacity(stage.batch);
    for _ in 0..stage.batch {
        let mut row = PackedRow::new(seq_len);
        let room = |row: &PackedRow| seq_len - row.ids.len();
        waiting.retain(|(_, sample)| {
            let fits = sample.inputs() <= room(&row);
            if fits {
                row.push(sample);
            }
            !fits
        });
        while waiting.len() < MISSES && (room(&row) >= CRUMBS || row.ids.is_empty()) {
            let piece = mixture.draw(&mut position, seq_len);
            let Some(sample) = read(piece)? else { continue };
            position.count(piece.domain, weights);
            if sample.inputs() <= room(&row) {
                row.push(&sample);
            } else {
                waiting.push((piece, sample));
            }
        }
        row.ids.resize(seq_len, PAD);
        rows.push(row);
    }
    position.waiting = waiting.into_iter().map(|(piece, _)| piece).collect();
    Ok((Batch { rows, too_long }, position))
}

/// Checks before the first step that every row of a file fits in the longest packed rows.
///
/// # Errors
/// The first row that doesn't.
pub fn check_lengths(domain: &Domain, seq_len: usize) -> Result<(), TrainError> {
    let first = domain.too_long(seq_len).next();
    first.map_or(Ok(()), |(index, inputs)| Err(longer(domain, index, inputs, seq_len)))
}

/// A row that no packed row has room for.
fn longer(domain: &Domain, index: u64, inputs: usize, seq_len: usize) -> TrainError {
    let message = format!(
        "{inputs} tokens; seq_len is {seq_len}: raise train.seq_len, shorten the row, or set data.long_rows = \"skip\""
    );
    TrainError::Row { place: domain.place(index), message }
}

/// Packs held-out rows 0..count of a domain in order; each stays in one packed row, but for texts
/// that are longer.
///
/// # Errors
/// A source that fails; a row longer than `seq_len` where the recipe forbids it.
pub fn eval_rows(
    domain: &Domain,
    stage: Stage,
    count: usize,
    long_rows: LongRows,
) -> Result<Batch, TrainError> {
    let count = domain.rows().map_or(count, |rows| count.min(rows as usize));
    let (mut rows, mut too_long) = (vec![PackedRow::new(stage.seq_len)], 0);
    for index in 0..count as u64 {
        for sample in domain.sample(index, stage.max_event_chars)?.parts(stage.seq_len) {
            if sample.inputs() > stage.seq_len {
                if long_rows == LongRows::Error {
                    return Err(longer(domain, index, sample.inputs(), stage.seq_len));
                }
                too_long += 1;
                continue;
            }
            if rows.last().is_none_or(|row| row.ids.len() + sample.inputs() > stage.seq_len) {
                rows.push(PackedRow::new(stage.seq_len));
            }
            rows.last_mut().expect("a row was pushed").push(&sample);
        }
    }
    for row in &mut rows {
        row.ids.resize(stage.seq_len, PAD);
    }
    Ok(Batch { rows, too_long })
}
