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
use crate::model::{BatchLayout, DecoderConfig, Parameters, Point, Recompute, Taps};

/// Name of the file of [`Measurement`]s.
pub const METRICS: &str = "metrics.jsonl";
/// Queries of a document whose attention is measured.
const QUERIES: usize = 512;

/// One step's measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// After so many steps, before the next.
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
    /// Variance of the residual stream behind the block.
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
        let mut layers = vec![LayerMetrics::default(); config.layers];
        for (layer, metrics) in layers.iter_mut().enumerate() {
            let prefix = format!("model.layers.{layer}.");
            let mut heads = vec![0.0; config.heads];
            let mut attends = false;
            for ((name, _), gradient) in trained.iter().zip(&outcome.gradients) {
                let Some(part) = name.strip_prefix(&prefix) else { continue };
                metrics.gradient += squares(gradient)?;
                // Each head's rows of the one matrix, columns of the other.
                let by_head = match part {
                    "self_attn.q_proj.weight" => Some(0),
                    "self_attn.o_proj.weight" => Some(1),
                    _ => None,
                };
                if let Some(dim) = by_head {
                    attends = true;
                    let width = gradient.dim(dim)? / config.heads;
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
            student.decoder.forward(&inputs.ids, &inputs.layout, &mut taps)?;
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

    fn tap(&mut self, point: Point, layer: usize, tensor: Tensor) -> Result<Tensor> {
        let tensor = self.inner.tap(point, layer, tensor)?;
        match point {
            Point::BlockOutput => self.layers[layer].variance = variance(&tensor, 1)?[0],
            Point::AttentionContext => {
                self.layers[layer].variance_by_head = variance(&tensor, tensor.dim(2)?)?;
            }
            _ => {}
        }
        Ok(tensor)
    }

    fn attend(
        &mut self,
        layer: usize,
        query: &Tensor,
        key: &Tensor,
        scoring: Scoring,
        layout: &BatchLayout,
    ) -> Result<()> {
        self.layers[layer].entropy_by_head = entropies(query, key, scoring, layout)?;
        self.inner.attend(layer, query, key, scoring, layout)
    }
}

/// Variance of all values of each of `groups` equal parts of the last dimensions.
fn variance(tensor: &Tensor, groups: usize) -> Result<Vec<f64>> {
    let width = tensor.elem_count() / tensor.dim(0)? / tensor.dim(1)? / groups;
    with_floats([&on_host(&tensor.contiguous()?)?], "metrics", |[values]| {
        let count = (values.len() / groups) as f64;
        Ok((0..groups)
            .map(|group| {
                let of_group = || {
                    let parts = values.chunks_exact(width).skip(group).step_by(groups);
                    parts.flatten().map(|&value| f64::from(value))
                };
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
        let document = |start, len| crate::model::Document { row: 0, start, len };
        let layout = BatchLayout::packed(1, 5, vec![document(0, 3), document(3, 2)]).unwrap();
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

    #[test]
    fn variances_are_told_apart_by_head() {
        // [1, 2, 2 heads, 2]: head 0 holds 1, 3, 1, 3, head 1 zeros.
        let values = vec![1.0f32, 3.0, 0.0, 0.0, 1.0, 3.0, 0.0, 0.0];
        let tensor = Tensor::from_vec(values, (1, 2, 2, 2), &Device::Cpu).unwrap();
        assert_eq!(variance(&tensor, 2).unwrap(), [1.0, 0.0]);
        let all = variance(&tensor.reshape((1, 2, 4)).unwrap(), 1).unwrap();
        assert!((all[0] - (2.0 * 9.0 + 2.0 * 1.0) / 8.0 + 1.0).abs() < 1e-12, "{all:?}");
    }
}
