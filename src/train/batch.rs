//! Packing: several conversations side by side in rows of a fixed length, a pure function of the step.

use candle_core::{Device, Tensor};

use super::TrainError;
use super::recipe::{LongRows, Stage};
use super::source::{Sample, Source};
use crate::model::tokenizer::{PAD, Tokenizer};
use crate::model::{BatchLayout, Document};

/// Indices that one packed row may draw from.
const DRAWS: u64 = 1 << 12;
/// Packed rows that one step may have.
const ROWS: u64 = 1 << 12;
/// A row is full when this many conversations in a row did not fit.
const MISSES: usize = 4;
/// ... or when this few tokens are left.
const CRUMBS: usize = 24;

/// One row of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedRow {
    /// What the model reads, padded to the row's length.
    pub ids: Vec<u32>,
    /// Start and length of each conversation.
    pub documents: Vec<(usize, usize)>,
    /// Positions that predict a token of an answer, and that token.
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
    /// Tokens of answers.
    pub fn targets(&self) -> usize {
        self.rows.iter().map(|row| row.targets.len()).sum()
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
    /// Indices into the flattened batch of the tokens that predict an answer, `[targets]`.
    pub predicting: Tensor,
    /// What they should predict.
    pub targets: Vec<u32>,
}

impl Inputs {
    /// Tensors of rows of one length.
    ///
    /// # Errors
    /// Documents that overlap (a defect of the packing).
    pub fn new(rows: &[PackedRow]) -> Result<Self, TrainError> {
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
            ids: Tensor::from_vec(ids, (rows.len(), seq), &Device::Cpu)?,
            layout: BatchLayout::packed(rows.len(), seq, documents)?,
            predicting: Tensor::from_vec(predicting, count, &Device::Cpu)?,
            targets,
        })
    }
}

/// Makes the batch of a step from rows that no other step draws.
///
/// # Errors
/// A source that fails; a row longer than `seq_len` where the recipe forbids it, or nothing but such rows.
pub fn batch(
    source: &dyn Source,
    tokenizer: &Tokenizer,
    stage: Stage,
    step: u64,
    long_rows: LongRows,
) -> Result<Batch, TrainError> {
    let mut too_long = 0;
    let rows = (0..stage.batch as u64)
        .map(|slot| {
            let first = (step * ROWS + slot) * DRAWS;
            let mut row = PackedRow::new(stage.seq_len);
            let mut misses = 0;
            for index in first..first + DRAWS {
                let room = stage.seq_len - row.ids.len();
                if misses == MISSES && !row.ids.is_empty() || room < CRUMBS && !row.ids.is_empty() {
                    break;
                }
                let sample = Sample::new(tokenizer, &source.conversation(index, stage.max_event_chars)?)?;
                if sample.inputs() > stage.seq_len {
                    let (len, most) = (sample.inputs(), stage.seq_len);
                    let message = format!("{len} tokens; seq_len is {most}");
                    if long_rows == LongRows::Error || row.ids.is_empty() && index - first == 255 {
                        return Err(TrainError::Row { place: format!("training row {index}"), message });
                    }
                    too_long += 1;
                }
                if sample.inputs() <= room {
                    row.push(&sample);
                    misses = 0;
                } else {
                    misses += 1;
                }
            }
            row.ids.resize(stage.seq_len, PAD);
            Ok(row)
        })
        .collect::<Result<_, TrainError>>()?;
    Ok(Batch { rows, too_long })
}

/// Packs held-out conversations 0..count in order; each stays in one row. Gives the rows and how many were too long.
///
/// # Errors
/// A source that fails.
pub fn eval_rows(
    source: &dyn Source,
    tokenizer: &Tokenizer,
    stage: Stage,
    count: usize,
) -> Result<Batch, TrainError> {
    let count = source.rows().map_or(count, |rows| count.min(rows as usize));
    let (mut rows, mut too_long) = (vec![PackedRow::new(stage.seq_len)], 0);
    for index in 0..count as u64 {
        let sample = Sample::new(tokenizer, &source.conversation(index, stage.max_event_chars)?)?;
        if sample.inputs() > stage.seq_len {
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
