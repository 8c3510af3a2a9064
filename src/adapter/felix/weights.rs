//! Weights of a Felix spoke in memory: as trained, and folded for serving.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use half::f16;

use super::layout::{LayerTensors, Layout, Matrix};
use crate::adapter::container::Container;
use crate::adapter::{Defect, LayerNorms, Refusal};
use crate::model::felix::{Felix, FelixLayer};

/// Largest f16 number. The engine computes with f16.
pub(in crate::adapter) const MAX_F16: f32 = 65_504.0;

/// A Felix spoke as it was trained, in f32.
///
/// `h' = h + sigmoid(b) / S * sum_s W_up[s] silu(W_down[s] n)` with `n = h / sqrt(mean(h^2) + eps)
/// * norm`. SiLU is elementwise, so S bottlenecks of rank r equal one of rank S r.
#[derive(Debug, Clone, PartialEq)]
pub struct Trained {
    /// Number S of bottlenecks.
    pub spokes: u32,
    /// Rank r of each.
    pub rank: u32,
    /// Width d of the residual stream.
    pub hidden: usize,
    /// Epsilon of the norm.
    pub eps: f32,
    /// Layers by block.
    pub layers: BTreeMap<u32, TrainedLayer>,
}

/// One layer.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainedLayer {
    /// b; the gate is sigmoid(b).
    pub gate_bias: f32,
    /// Weights of the norm, `[d]`; ones if there are none.
    pub norm: Option<Vec<f32>>,
    /// All W_down, stacked as rows: `[S r, d]`, row-major.
    pub w_down: Vec<f32>,
    /// All W_up, side by side: `[d, S r]`, row-major.
    pub w_up: Vec<f32>,
}

impl TrainedLayer {
    /// sigmoid(b) / S, the factor of everything that the layer adds.
    pub fn gain(&self, spokes: u32) -> f32 {
        1.0 / (1.0 + (-self.gate_bias).exp()) / spokes as f32
    }

    /// Folds the layer for serving.
    ///
    /// Numbers beyond f16 become infinite. The inspection refuses files with such numbers.
    pub fn fold(&self, spokes: u32, rank: u32) -> FoldedLayer {
        let rows = spokes as usize * rank as usize;
        let gain = self.gain(spokes);
        let mut w_up = Vec::with_capacity(self.w_up.len());
        for row in 0..rows {
            w_up.extend(self.w_up.chunks_exact(rows).map(|column| f16::from_f32(column[row] * gain)));
        }
        FoldedLayer {
            norm: self.norm.clone(),
            w_down: self.w_down.iter().map(|&w| f16::from_f32(w)).collect(),
            w_up,
        }
    }
}

/// A Felix spoke for serving: `h + W_up silu(W_down n)`, with sigmoid(b) / S inside W_up.
#[derive(Debug, Clone, PartialEq)]
pub struct Folded<L = FoldedLayer> {
    /// Rows R = S r of both matrices of a layer.
    pub rows: usize,
    /// Width d of the residual stream.
    pub hidden: usize,
    /// Epsilon of the norm.
    pub eps: f32,
    /// Layers by block, folded or in a form derived from that.
    pub layers: BTreeMap<u32, L>,
}

/// One layer. Both matrices are row-major with rows of length d, so that a kernel reads each row
/// once from start to end.
#[derive(Debug, Clone, PartialEq)]
pub struct FoldedLayer {
    /// Weights of the norm, `[d]`; ones if there are none.
    pub norm: Option<Vec<f32>>,
    /// `[R, d]`: the product of row k with n is the k-th activation.
    pub w_down: Vec<f16>,
    /// `[R, d]`, W_up transposed: row k times the k-th activation is added to h.
    pub w_up: Vec<f16>,
}

impl Trained {
    /// Folds the spoke for serving.
    pub fn fold(&self) -> Folded {
        let rows = self.spokes as usize * self.rank as usize;
        let fold = |(&at, layer): (&u32, &TrainedLayer)| (at, layer.fold(self.spokes, self.rank));
        let layers = self.layers.iter().map(fold).collect();
        Folded { rows, hidden: self.hidden, eps: self.eps, layers }
    }

    /// The spoke as taps of the Candle decoder.
    ///
    /// # Errors
    /// Matrices whose lengths don't match the shape.
    pub fn taps(&self) -> candle_core::Result<Felix> {
        let (spokes, hidden) = (self.spokes as usize, self.hidden);
        let rows = spokes * self.rank as usize;
        let tensor = |values: &[f32], shape: &[usize]| Tensor::from_slice(values, shape, &Device::Cpu);
        let layer = |(&at, layer): (&u32, &TrainedLayer)| {
            let taps = FelixLayer {
                gate_bias: tensor(&[layer.gate_bias], &[1])?,
                w_down: tensor(&layer.w_down, &[rows, hidden])?,
                w_up: tensor(&layer.w_up, &[hidden, rows])?,
                norm: layer.norm.as_ref().map(|norm| tensor(norm, &[hidden])).transpose()?,
            };
            Ok((at as usize, taps))
        };
        let layers = self.layers.iter().map(layer).collect::<candle_core::Result<_>>()?;
        Felix::new(layers, spokes, hidden, self.eps.into())
    }
}

/// Norms of the weights by layer, with one part of a tensor in memory at a time.
///
/// # Errors
/// A number that is not finite, or beyond f16.
pub(in crate::adapter) fn weigh(container: &Container, layout: &Layout) -> Result<Vec<LayerNorms>, Refusal> {
    let mut norms = Vec::new();
    for (&at, layer) in &layout.layers {
        if let Some(norm) = &layer.norm {
            container.square_sum(norm, f32::MAX)?;
        }
        let gate = gate(container, layer)?;
        let square = |matrix: &Matrix| -> Result<f64, Refusal> {
            matrix.tensors().iter().map(|tensor| container.square_sum(tensor, MAX_F16)).sum()
        };
        let gain = 1.0 / (1.0 + f64::from(-gate).exp()) / f64::from(layout.shape.spokes);
        let (down, up) = (square(&layer.down)?.sqrt(), square(&layer.up)?.sqrt() * gain);
        norms.push(LayerNorms { layer: Some(at), down, up });
    }
    Ok(norms)
}

fn gate(container: &Container, layer: &LayerTensors) -> Result<f32, Refusal> {
    let found = container.values(&layer.gate)?[0];
    if found.is_finite() {
        return Ok(found);
    }
    let tensor = layer.gate.name.clone();
    Err(container.refuse(Defect::NotFinite { tensor, at: 0, found }))
}

/// Reads the weights that a layout describes.
///
/// # Errors
/// A gate that is not finite; the file can't be read.
pub(in crate::adapter) fn read(container: &Container, layout: &Layout, eps: f32) -> Result<Trained, Refusal> {
    let one = |(&at, layer)| Ok::<_, Refusal>((at, read_layer(container, layout, layer)?));
    let layers = layout.layers.iter().map(one).collect::<Result<_, _>>()?;
    let (spokes, rank, hidden) = (layout.shape.spokes, layout.shape.rank, layout.hidden as usize);
    Ok(Trained { spokes, rank, hidden, eps, layers })
}

/// Reads one layer.
///
/// # Errors
/// As [`read`].
pub(in crate::adapter) fn read_layer(
    container: &Container,
    layout: &Layout,
    layer: &LayerTensors,
) -> Result<TrainedLayer, Refusal> {
    let w_down = {
        // Stacked rows are contiguous in memory.
        let parts = layer.down.tensors().iter().map(|part| container.values(part));
        parts.collect::<Result<Vec<_>, _>>()?.concat()
    };
    let w_up = match &layer.up {
        Matrix::Fused(one) => container.values(one)?,
        Matrix::Parts(parts) => {
            let parts = parts.iter().map(|part| container.values(part)).collect::<Result<Vec<_>, _>>()?;
            beside(&parts, layout.shape.rank as usize)
        }
    };
    let norm = layer.norm.as_ref().map(|norm| container.values(norm)).transpose()?;
    Ok(TrainedLayer { gate_bias: gate(container, layer)?, norm, w_down, w_up })
}

/// Puts matrices `[d, r]` side by side: `[d, S r]`.
fn beside(parts: &[Vec<f32>], rank: usize) -> Vec<f32> {
    let rows = parts.first().map_or(0, |part| part.len() / rank);
    let mut out = Vec::with_capacity(rows * rank * parts.len());
    for row in 0..rows {
        for part in parts {
            out.extend_from_slice(&part[row * rank..][..rank]);
        }
    }
    out
}

/// The inverse of [`beside`].
pub(in crate::adapter) fn apart(matrix: &[f32], spokes: usize, rank: usize) -> Vec<Vec<f32>> {
    let rows = matrix.chunks_exact(spokes * rank);
    let part = |s: usize| rows.clone().flat_map(|row| &row[s * rank..][..rank]).copied().collect();
    (0..spokes).map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained() -> Trained {
        // d = 3, S = 2, r = 2.
        let layer = TrainedLayer {
            gate_bias: 0.0,
            norm: None,
            w_down: (0..12).map(|v| v as f32).collect(),
            w_up: (0..12).map(|v| v as f32).collect(),
        };
        Trained { spokes: 2, rank: 2, hidden: 3, eps: 1e-5, layers: [(5, layer)].into() }
    }

    #[test]
    fn folding_transposes_the_second_matrix_and_takes_the_gate_in() {
        let folded = trained().fold();
        assert_eq!((folded.rows, folded.hidden), (4, 3));
        let layer = &folded.layers[&5];
        // Gate 0.5 and two bottlenecks give a quarter. W_up is [3, 4]: its first column is 0, 4, 8.
        let rows: Vec<Vec<f32>> =
            layer.w_up.chunks(3).map(|row| row.iter().map(|v| v.to_f32()).collect()).collect();
        assert_eq!(rows[0], [0.0, 1.0, 2.0]);
        assert_eq!(rows[3], [0.75, 1.75, 2.75]);
        assert_eq!(layer.w_down[4], f16::from_f32(4.0));
    }

    #[test]
    fn matrices_are_put_side_by_side_and_apart() {
        let parts = vec![vec![1.0, 2.0, 5.0, 6.0], vec![3.0, 4.0, 7.0, 8.0]];
        let fused = beside(&parts, 2);
        assert_eq!(fused, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(apart(&fused, 2, 2), parts);
    }
}
