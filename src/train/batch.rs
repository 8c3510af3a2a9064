//! Packing: several conversations side by side in rows of a fixed length, a pure function of the step.

use candle_core::{Device, Tensor};

use super::TrainError;
use super::data::{Domain, Mixture, Sample};
use super::recipe::{LongRows, Stage};
use crate::model::tokenizer::PAD;
use crate::model::{BatchLayout, Document};

/// Draws of a step, per packed row that it may have.
const DRAWS: u64 = 1 << 12;
/// Packed rows that one step may have.
pub(super) const ROWS: u64 = 1 << 12;
/// A row is full when this many conversations that didn't fit wait for the next one.
const MISSES: usize = 4;
/// After this many consecutive draws that no row has room for, the data counts as having no
/// shorter rows.
const ALL_LONG: usize = 256;
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
    /// Conversations left out because they are longer than a row.
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

/// Makes the batch of a step from draws that no other step makes: a pure function of the mixture's seed, the weights of its
/// domains, and the step.
///
/// # Errors
/// A source that fails; a row longer than `seq_len` where the recipe forbids it, or nothing but such rows.
pub fn batch(
    mixture: &Mixture,
    weights: &[f64],
    stage: Stage,
    step: u64,
    long_rows: LongRows,
) -> Result<Batch, TrainError> {
    let (mut too_long, mut skipped) = (0, 0);
    let mut draws = step * ROWS * DRAWS..(step + 1) * ROWS * DRAWS;
    // Drawn and not yet packed: the first that the next row takes. Thrown away, long rows would be read less often than
    // their domain's weight says.
    let mut carried: Vec<Sample> = vec![];
    let mut rows = Vec::with_capacity(stage.batch);
    for slot in 1..=stage.batch {
        let mut row = PackedRow::new(stage.seq_len);
        let room = |row: &PackedRow| stage.seq_len - row.ids.len();
        carried.retain(|sample| {
            let fits = sample.inputs() <= room(&row);
            if fits {
                row.push(sample);
            }
            !fits
        });
        // Nothing comes behind the last row that could take what it has no room for: it looks for no shorter one.
        let most = if slot == stage.batch { 1 } else { MISSES };
        while carried.len() < most && (room(&row) >= CRUMBS || row.ids.is_empty()) {
            let Some(index) = draws.next() else { break };
            let drawn = mixture.draw(index, weights, stage.max_event_chars)?;
            let inputs = drawn.sample.inputs();
            if inputs > stage.seq_len {
                skipped += 1;
                let domain = &mixture.domains()[drawn.domain];
                if long_rows == LongRows::Error {
                    return Err(longer(domain, drawn.index, inputs, stage.seq_len));
                }
                if skipped == ALL_LONG {
                    let message = format!(
                        "{inputs} tokens, and so are {ALL_LONG} rows in a row longer than seq_len, {}: raise train.seq_len, or \
                         give shorter rows",
                        stage.seq_len
                    );
                    return Err(TrainError::Row { place: domain.place(drawn.index), message });
                }
                too_long += 1;
                continue;
            }
            skipped = 0;
            if inputs <= room(&row) {
                row.push(&drawn.sample);
            } else {
                carried.push(drawn.sample);
            }
        }
        row.ids.resize(stage.seq_len, PAD);
        rows.push(row);
    }
    Ok(Batch { rows, too_long })
}

/// Checks before the first step that every row of a file fits in the longest packed rows.
///
/// # Errors
/// The first row that doesn't.
pub fn check_lengths(domain: &Domain, seq_len: usize) -> Result<(), TrainError> {
    let first = domain.lengths().enumerate().find(|(_, inputs)| *inputs > seq_len);
    first.map_or(Ok(()), |(index, inputs)| Err(longer(domain, index as u64, inputs, seq_len)))
}

/// A row that no packed row has room for.
fn longer(domain: &Domain, index: u64, inputs: usize, seq_len: usize) -> TrainError {
    let message = format!(
        "{inputs} tokens; seq_len is {seq_len}: raise train.seq_len, shorten the row, or set data.long_rows = \"skip\""
    );
    TrainError::Row { place: domain.place(index), message }
}

/// Packs held-out rows 0..count of a domain in order; each stays in one packed row.
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
        let sample = domain.sample(index, stage.max_event_chars)?;
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
    for row in &mut rows {
        row.ids.resize(stage.seq_len, PAD);
    }
    Ok(Batch { rows, too_long })
}
