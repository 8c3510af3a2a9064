//! Felix spokes in the forward pass: a gated bottleneck after decoder blocks, as taps that
//! gradients pass through.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor};

use super::ops::{gated_update, linear, rms_norm, silu};
use super::taps::{Context, NoTaps, Point, Recompute, Taps};

/// The tensors of one layer, f32. Those of a [`candle_core::Var`] collect gradients.
#[derive(Debug, Clone)]
pub struct FelixLayer {
    /// b, one number in any shape; the gate is sigmoid(b).
    pub gate_bias: Tensor,
    /// All W_down, stacked by rows: `[S r, D]`.
    pub w_down: Tensor,
    /// All W_up, stacked by columns: `[D, S r]`.
    pub w_up: Tensor,
    /// Weights of the norm, `[D]`; `None` means ones.
    pub norm: Option<Tensor>,
}

/// A Felix spoke as taps: `h + sigmoid(b) / S * W_up silu(W_down norm(h))` after each of its
/// blocks.
///
/// SiLU is elementwise, so S bottlenecks of rank r are computed as one of rank S r.
#[derive(Debug, Clone)]
pub struct Felix {
    layers: BTreeMap<usize, FelixLayer>,
    spokes: usize,
    eps: f64,
    ones: Tensor,
}

impl Felix {
    /// A spoke of `spokes` bottlenecks for a decoder of width `hidden`, whose norm has this
    /// epsilon.
    ///
    /// # Errors
    /// Tensors whose shapes don't fit each other or the width.
    pub fn new(layers: BTreeMap<usize, FelixLayer>, spokes: usize, hidden: usize, eps: f64) -> Result<Self> {
        for (at, layer) in &layers {
            let rows = layer.w_down.dim(0)?;
            let wanted = [(&layer.w_down, vec![rows, hidden]), (&layer.w_up, vec![hidden, rows])];
            let norm = layer.norm.iter().map(|norm| (norm, vec![hidden]));
            for (tensor, expected) in wanted.into_iter().chain(norm) {
                if tensor.dims() != expected {
                    candle_core::bail!("felix layer {at}: shape {:?}, expected {expected:?}", tensor.shape());
                }
            }
            if spokes == 0 || rows % spokes != 0 || layer.gate_bias.elem_count() != 1 {
                let gates = layer.gate_bias.elem_count();
                candle_core::bail!("felix layer {at}: {rows} rows for {spokes} bottlenecks, {gates} gates");
            }
        }
        let device = layers.values().next().map_or(&Device::Cpu, |layer| layer.w_down.device());
        let ones = Tensor::ones(hidden, DType::F32, device)?;
        Ok(Self { layers, spokes, eps, ones })
    }

    /// What the layer makes of the residual stream `[..., D]`.
    fn apply(&self, layer: &FelixLayer, h: &Tensor) -> Result<Tensor> {
        let n = rms_norm(h, layer.norm.as_ref().unwrap_or(&self.ones), self.eps)?;
        let update = linear(&silu(&linear(&n, &layer.w_down)?)?, &layer.w_up)?;
        gated_update(h, &update, &layer.gate_bias, 1.0 / self.spokes as f64)
    }
}

impl Taps for Felix {
    fn tap(&mut self, point: Point, at: Context, tensor: Tensor) -> Result<Tensor> {
        match self.layers.get(&at.layer).filter(|_| point == Point::BlockOutput) {
            Some(spoke) => self.apply(spoke, &tensor),
            None => Ok(tensor),
        }
    }

    /// The spoke acts after the block, so nothing of it is repeated within.
    fn recompute(&self, layer: usize) -> Option<Recompute> {
        NoTaps.recompute(layer)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::model::BatchLayout;

    /// Fixed, spread-out values in -1..1.
    fn values(shape: &[usize], salt: usize) -> Var {
        let count: usize = shape.iter().product();
        let value = |i: usize| (((i * 7919 + salt * 104_729) % 1009) as f32 / 1009.0).mul_add(2.0, -1.0);
        Var::from_vec((0..count).map(value).collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
    }

    fn spoke(variables: &[Var; 4]) -> Felix {
        let [gate_bias, w_down, w_up, norm] = variables.clone().map(|var| var.as_tensor().clone());
        let layer = FelixLayer { gate_bias, w_down, w_up, norm: Some(norm) };
        Felix::new([(1, layer)].into(), 2, 6, 1e-5).unwrap()
    }

    fn loss(felix: &mut Felix, h: &Var) -> Tensor {
        let layout = BatchLayout::whole(2, 3);
        let at = Context { layer: 1, pass: (&layout).into() };
        let out = felix.tap(Point::BlockOutput, at, h.as_tensor().clone()).unwrap();
        (out * values(&[2, 3, 6], 77).as_tensor()).unwrap().sum_all().unwrap()
    }

    #[test]
    fn gradients_are_those_of_small_steps() {
        let variables = [values(&[1], 1), values(&[4, 6], 2), values(&[6, 4], 3), values(&[6], 4)];
        let h = values(&[2, 3, 6], 5);
        let gradients = loss(&mut spoke(&variables), &h).backward().unwrap();
        for (at, var) in variables.iter().chain([&h]).enumerate() {
            let gradient = gradients.get(var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let start = var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for element in [0, start.len() - 1] {
                let step = |size: f32| {
                    let mut moved = start.clone();
                    moved[element] += size;
                    var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap()).unwrap();
                    loss(&mut spoke(&variables), &h).to_scalar::<f32>().unwrap()
                };
                let expected = (step(1e-2) - step(-1e-2)) / 2e-2;
                step(0.0);
                let found = gradient[element];
                assert!(
                    (found - expected).abs() < 2e-2 * expected.abs().max(0.1),
                    "{at}: {found} for {expected}"
                );
            }
        }
    }

    #[test]
    fn a_spoke_without_an_up_matrix_changes_nothing() {
        let up = Var::zeros((6, 4), DType::F32, &Device::Cpu).unwrap();
        let variables = [values(&[1], 1), values(&[4, 6], 2), up, values(&[6], 4)];
        let h = values(&[2, 3, 6], 5);
        let mut felix = spoke(&variables);
        for (point, layer) in [(Point::BlockOutput, 1), (Point::BlockOutput, 0), (Point::Residual, 1)] {
            let layout = BatchLayout::whole(2, 3);
            let at = Context { layer, pass: (&layout).into() };
            let out = felix.tap(point, at, h.as_tensor().clone()).unwrap();
            let [out, h] = [&out, h.as_tensor()].map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            assert_eq!(out, h);
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let variables = [values(&[1], 1), values(&[4, 5], 2), values(&[6, 4], 3), values(&[6], 4)];
        let [gate_bias, w_down, w_up, _] = variables.map(|var| var.as_tensor().clone());
        let layer = FelixLayer { gate_bias, w_down, w_up, norm: None };
        let error = Felix::new([(0, layer)].into(), 2, 6, 1e-5).unwrap_err().to_string();
        assert!(error.contains("[4, 5]") && error.contains("[4, 6]"), "{error}");
    }
}
