//! Measurements of gradients, activations and attention, per layer and head, every few steps.
//!
//! `metrics.jsonl` has a line per measurement, `metrics/*.svg` a heat map per quantity: parts from
//! top to bottom, steps from left to right.

use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use super::TrainError;
use super::batch::{Batch, Inputs};
use super::gradient::Outcome;
use super::heatmap;
use super::log::{read_lines, reopened};
use super::objective::{StepContext, Student};
use crate::atomic_file;
use crate::model::ops::{Scoring, on_host, with_floats};
use crate::model::spec::Part;
use crate::model::{
    BatchLayout, Context, DecoderConfig, Parameters, Point, Projection, Recompute, Role, Taps,
};

/// Name of the file of [`Measurement`]s.
pub const METRICS: &str = "metrics.jsonl";
/// Queries of a document whose attention is measured.
const QUERIES: usize = 512;

/// One step's measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// The step that is about to move the model: its gradients, and the activations of the weights
    /// that it begins with.
    pub step: u64,
    /// From the first block to the last.
    pub layers: Vec<LayerMetrics>,
}

/// The measurements of a block.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerMetrics {
    /// Euclidean norm of the gradient of all that is trained in the block, before clipping.
    pub gradient: f64,
    /// The same for each query head's part of the query and output projections; empty for adapters
    /// and DeltaNets.
    pub gradient_by_head: Vec<f64>,
    /// Variance of the residual stream after the block.
    pub variance: f64,
    /// Variance of each head's context.
    pub variance_by_head: Vec<f64>,
    /// Mean entropy of each query head's attention, in nats; empty for DeltaNets.
    pub entropy_by_head: Vec<f64>,
}

/// Writes measurements.
pub struct Metrics {
    every: u64,
    path: PathBuf,
    file: Option<std::fs::File>,
}

impl Metrics {
    /// Opens `metrics.jsonl` in `out`, cut to the measurements up to step `from`.
    ///
    /// # Errors
    /// A file that can't be read or written.
    pub fn open(out: &Path, every: u64, from: u64) -> std::result::Result<Self, TrainError> {
        let path = out.join(METRICS);
        if every == 0 {
            return Ok(Self { every, path, file: None });
        }
        let ((path, file), _) = reopened::<Measurement>(path, from)?;
        Ok(Self { every, path, file: Some(file) })
    }

    /// Whether a step is measured.
    pub fn is_due(&self, step: u64) -> bool {
        self.every > 0 && step.is_multiple_of(self.every)
    }

    /// Measures the gradients of a step, and activations and attention on the first row of its
    /// batch.
    ///
    /// # Errors
    /// Tensor errors.
    pub fn measure(
        &self,
        context: StepContext,
        student: &Student,
        config: &DecoderConfig,
        trained: &Parameters,
        outcome: &Outcome,
        batch: &Batch,
    ) -> std::result::Result<Measurement, TrainError> {
        let mut layers = vec![LayerMetrics::default(); config.layers()];
        for (layer, metrics) in layers.iter_mut().enumerate() {
            let count = config.blocks[layer].attention().map_or(0, |attention| attention.heads);
            let mut heads = vec![0.0; count];
            let mut attends = false;
            for (entry, gradient) in trained.entries().iter().zip(&outcome.gradients) {
                if entry.layer() != Some(layer) {
                    continue;
                }
                metrics.gradient += squares(gradient)?;
                // Each head's rows of the one matrix, columns of the other.
                let by_head = match entry.role.and_then(Role::part) {
                    Some(Part::Weight(Projection::Query)) => Some(0),
                    Some(Part::Weight(Projection::Output)) => Some(1),
                    _ => None,
                };
                if let Some(dim) = by_head {
                    attends = true;
                    let width = gradient.dim(dim)? / count;
                    for (head, sum) in heads.iter_mut().enumerate() {
                        *sum += squares(&gradient.narrow(dim, head * width, width)?.contiguous()?)?;
                    }
                }
            }
            metrics.gradient = metrics.gradient.sqrt();
            if attends {
                metrics.gradient_by_head = heads.into_iter().map(f64::sqrt).collect();
            }
        }
        let mut taps = Measuring { inner: student.taps(context), layers };
        if let Some(row) = batch.rows.first() {
            let inputs = Inputs::new(std::slice::from_ref(row), student.decoder.device())?;
            student.decoder.forward(&inputs.ids, context.pass(&inputs.layout), &mut taps)?;
        }
        Ok(Measurement { step: context.step, layers: taps.layers })
    }

    /// Appends a measurement.
    ///
    /// # Errors
    /// The disk.
    pub fn write(&mut self, measured: &Measurement) -> std::result::Result<(), TrainError> {
        self.file.as_mut().map_or(Ok(()), |file| {
            file.write_all(line(measured).as_bytes()).map_err(TrainError::file(&self.path))
        })
    }

    /// Syncs all lines to disk.
    ///
    /// # Errors
    /// The disk.
    pub fn sync(&self) -> std::result::Result<(), TrainError> {
        self.file.as_ref().map_or(Ok(()), |file| file.sync_all().map_err(TrainError::file(&self.path)))
    }

    /// Draws the heat maps, if anything was measured.
    ///
    /// # Errors
    /// The disk.
    pub fn draw(&self, out: &Path) -> std::result::Result<(), TrainError> {
        let measured: Vec<Measurement> = if self.every == 0 { vec![] } else { read_lines(&self.path)? };
        if measured.is_empty() {
            return Ok(());
        }
        for (name, drawn) in heatmap::maps(&measured) {
            let path = out.join("metrics").join(format!("{name}.svg"));
            atomic_file::write(&path, drawn.as_bytes()).map_err(TrainError::file(path))?;
        }
        Ok(())
    }
}

fn line(measurement: &Measurement) -> String {
    serde_json::to_string(measurement).expect("finite numbers have a JSON form") + "\n"
}

/// Sum of squares.
fn squares(tensor: &Tensor) -> Result<f64> {
    let sum = |values: &[f32]| values.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    with_floats([&on_host(tensor)?], "metrics", |[values]| Ok(sum(values)))
}

/// Taps that measure, after other taps.
struct Measuring {
    inner: Box<dyn Taps>,
    layers: Vec<LayerMetrics>,
}

impl Taps for Measuring {
    fn before(&mut self) -> Option<&mut dyn Taps> {
        Some(&mut *self.inner)
    }

    // No backward pass goes through the measurement, so a recomputed block need not keep anything.
    fn recompute(&self, layer: usize) -> Option<Recompute> {
        self.inner.recompute(layer)
    }

    fn tap(&mut self, point: Point, at: Context, tensor: Tensor) -> Result<Tensor> {
        let tensor = self.inner.tap(point, at, tensor)?;
        match point {
            Point::BlockOutput => self.layers[at.layer].variance = variance(&tensor, 1, at.layout())?[0],
            Point::AttentionContext => {
                self.layers[at.layer].variance_by_head = variance(&tensor, tensor.dim(2)?, at.layout())?;
            }
            _ => {}
        }
        Ok(tensor)
    }

    fn attend(&mut self, at: Context, query: &Tensor, key: &Tensor, scoring: Scoring) -> Result<()> {
        self.layers[at.layer].entropy_by_head = entropies(query, key, scoring, at.layout())?;
        self.inner.attend(at, query, key, scoring)
    }
}

/// Variance of all values that documents have in each of `groups` equal parts of the last
/// dimensions of `[batch, seq, ...]`.
fn variance(tensor: &Tensor, groups: usize, layout: &BatchLayout) -> Result<Vec<f64>> {
    let (batch, seq) = (tensor.dim(0)?, tensor.dim(1)?);
    let token = tensor.elem_count() / (batch * seq).max(1);
    let width = token / groups;
    with_floats([&on_host(&tensor.contiguous()?)?], "metrics", |[values]| {
        let tokens = || {
            let documents = layout.documents().iter();
            documents.flat_map(|document| {
                let first = document.row * seq + document.start;
                values[first * token..][..document.len * token].chunks_exact(token)
            })
        };
        let count = (tokens().count() * width).max(1) as f64;
        Ok((0..groups)
            .map(|group| {
                let of_group =
                    || tokens().flat_map(|token| &token[group * width..][..width]).map(|&v| f64::from(v));
                let mean = of_group().sum::<f64>() / count;
                of_group().map(|value| (value - mean).powi(2)).sum::<f64>() / count
            })
            .collect())
    })
}

/// Mean entropy of each query head's attention over the first queries of every document: -sum p ln
/// p.
fn entropies(query: &Tensor, key: &Tensor, scoring: Scoring, layout: &BatchLayout) -> Result<Vec<f64>> {
    let (_, seq, heads, width) = query.dims4()?;
    let kv_heads = key.dim(2)?;
    let here = |x: &Tensor| on_host(&x.contiguous()?);
    with_floats([&here(query)?, &here(key)?], "metrics", |[q, k]| {
        let mut sums = vec![0.0; heads];
        let mut queries = 0;
        for document in layout.documents().iter() {
            let first = document.row * seq + document.start;
            for at in 0..document.len.min(QUERIES) {
                queries += 1;
                let from = scoring.window.map_or(0, |window| (at + 1).saturating_sub(window));
                for (head, sum) in sums.iter_mut().enumerate() {
                    let q = &q[((first + at) * heads + head) * width..][..width];
                    let kv = head * kv_heads / heads;
                    let scores = (from..=at).map(|key| {
                        let k = &k[((first + key) * kv_heads + kv) * width..][..width];
                        let product: f32 = q.iter().zip(k).map(|(a, b)| a * b).sum();
                        let score = f64::from(product * scoring.scale);
                        scoring.cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                    });
                    *sum += entropy(&scores.collect::<Vec<_>>());
                }
            }
        }
        Ok(sums.into_iter().map(|sum| sum / f64::from(queries.max(1))).collect())
    })
}

/// Entropy of the softmax of scores: ln Z - sum p s.
fn entropy(scores: &[f64]) -> f64 {
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let raised: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
    let z: f64 = raised.iter().sum();
    let mean: f64 = raised.iter().zip(scores).map(|(r, s)| r / z * (s - top)).sum();
    z.ln() - mean
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Workers;
    use crate::model::Family;
    use crate::text::tokenizer::PAD;
    use crate::train::batch::PackedRow;
    use crate::train::gradient::accumulate;
    use crate::train::tests::{model, packed};
    use candle_core::Device;

    #[test]
    fn blocks_that_are_computed_again_are_measured_as_those_that_are_kept() {
        let measured = |recompute: bool| {
            let (decoder, parameters) = model(Family::Qwen3, true, 320);
            let decoder = decoder.recomputing(recompute);
            let batch = Batch { rows: packed(1), too_long: 0 };
            let workers = Workers::new(1).unwrap();
            let outcome =
                accumulate(&workers, &decoder, StepContext::default(), Some(&parameters), &batch.rows, 96)
                    .unwrap();
            let folder = tempfile::tempdir().unwrap();
            let metrics = Metrics::open(folder.path(), 1, 0).unwrap();
            let student = Student { decoder: &decoder, adapter: None, effect: None };
            metrics
                .measure(
                    StepContext { step: 1, ..StepContext::default() },
                    &student,
                    decoder.config(),
                    &parameters,
                    &outcome,
                    &batch,
                )
                .unwrap()
        };
        let kept = measured(false);
        assert_eq!(measured(true), kept);
        let seen =
            |layer: &LayerMetrics| layer.variance > 0.0 && layer.entropy_by_head.iter().all(|e| *e > 0.0);
        assert!(kept.layers.iter().all(seen), "{kept:?}");
    }

    #[test]
    fn entropies_are_those_of_the_probabilities() {
        assert!((entropy(&[3.0; 8]) - 8f64.ln()).abs() < 1e-12);
        assert!(entropy(&[0.0, -1e6]).abs() < 1e-12);
        let p = [0.7f64, 0.2, 0.1];
        let expected: f64 = -p.iter().map(|p| p * p.ln()).sum::<f64>();
        assert!((entropy(&p.map(f64::ln)) - expected).abs() < 1e-12);
    }

    #[test]
    fn attention_is_measured_per_head_inside_documents_and_windows() {
        // Two documents of 3 and 2 tokens; the queries of head 0 are zero (uniform attention),
        // those of head 1 point along its own key.
        let q: Vec<f32> = (0..5).flat_map(|_| [0.0, 0.0, 40.0, 0.0]).collect();
        let k: Vec<f32> = [[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]].concat();
        let q = Tensor::from_vec(q, (1, 5, 2, 2), &Device::Cpu).unwrap();
        let k = Tensor::from_vec(k, (1, 5, 1, 2), &Device::Cpu).unwrap();
        let layout = layout(5, &[(0, 3), (3, 2)]);
        let all = Scoring { scale: 1.0, cap: None, window: None };
        let found = entropies(&q, &k, all, &layout).unwrap();
        // Queries see 1, 2, 3 and 1, 2 keys.
        let uniform = (2.0 * 2f64.ln() + 3f64.ln()) / 5.0;
        assert!((found[0] - uniform).abs() < 1e-6 && found[1].abs() < 1e-6, "{found:?}");
        let found = entropies(&q, &k, Scoring { window: Some(2), ..all }, &layout).unwrap();
        // The third query sees only the last two keys, which are equal.
        assert!((found[0] - 3.0 * 2f64.ln() / 5.0).abs() < 1e-6, "{found:?}");
        assert!((found[1] - 2f64.ln() / 5.0).abs() < 1e-6, "{found:?}");
    }

    /// Documents of one row.
    fn layout(seq: usize, documents: &[(usize, usize)]) -> BatchLayout {
        let document = |&(start, len): &(usize, usize)| crate::model::Document { row: 0, start, len };
        BatchLayout::packed(1, seq, documents.iter().map(document).collect()).unwrap()
    }

    #[test]
    fn variances_are_told_apart_by_head() {
        // [1, 2, 2 heads, 2]: head 0 holds 1, 3, 1, 3, head 1 zeros.
        let values = vec![1.0f32, 3.0, 0.0, 0.0, 1.0, 3.0, 0.0, 0.0];
        let tensor = Tensor::from_vec(values, (1, 2, 2, 2), &Device::Cpu).unwrap();
        let whole = layout(2, &[(0, 2)]);
        assert_eq!(variance(&tensor, 2, &whole).unwrap(), [1.0, 0.0]);
        let all = variance(&tensor.reshape((1, 2, 4)).unwrap(), 1, &whole).unwrap();
        assert!((all[0] - (2.0 * 9.0 + 2.0 * 1.0) / 8.0 + 1.0).abs() < 1e-12, "{all:?}");
    }

    #[test]
    fn variances_are_those_of_documents_whatever_pads_them() {
        // [1, 4, 1 head, 1]: documents hold 1 and 3, padding stands between and after them.
        let tensor = Tensor::from_vec(vec![1.0f32, 90.0, 3.0, -7.0], (1, 4, 1, 1), &Device::Cpu).unwrap();
        assert_eq!(variance(&tensor, 1, &layout(4, &[(0, 1), (2, 1)])).unwrap(), [1.0]);
    }

    #[test]
    fn padding_changes_nothing_that_is_measured() {
        let (decoder, parameters) = model(Family::Qwen3, true, 320);
        let workers = Workers::new(1).unwrap();
        let measured = |row: PackedRow| {
            let batch = Batch { rows: vec![row], too_long: 0 };
            let context = StepContext { step: 1, trains: true, ..StepContext::default() };
            let outcome =
                accumulate(&workers, &decoder, context, Some(&parameters), &batch.rows, 96).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let metrics = Metrics::open(folder.path(), 1, 0).unwrap();
            let student = Student { decoder: &decoder, adapter: None, effect: None };
            metrics.measure(context, &student, decoder.config(), &parameters, &outcome, &batch).unwrap()
        };
        let row = packed(1).remove(0);
        let bare = PackedRow { ids: row.ids[..row.tokens()].to_vec(), ..row.clone() };
        let padded = PackedRow { ids: [&bare.ids[..], &[PAD; 64]].concat(), ..row };
        for (bare, padded) in measured(bare).layers.iter().zip(&measured(padded).layers) {
            let of = |layer: &LayerMetrics| {
                let LayerMetrics { gradient, gradient_by_head, variance, variance_by_head, entropy_by_head } =
                    layer.clone();
                [vec![gradient, variance], gradient_by_head, variance_by_head, entropy_by_head].concat()
            };
            for (bare, padded) in of(bare).iter().zip(&of(padded)) {
                assert!((bare - padded).abs() < 1e-5 * bare.abs(), "{bare} without padding, {padded} with");
            }
        }
    }
}
