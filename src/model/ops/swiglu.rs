//! The SwiGLU product (Shazeer 2020): `silu(gate) * up`, with the sigmoid computed again in the backward pass.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::lanes::sigmoid;
use super::{floats, with_floats};

/// Values that one rayon task works on.
const TASK: usize = 1 << 15;

struct SwiGlu;

/// `gate * sigmoid(gate) * up`, element by element; both `[..., F]`.
///
/// # Errors
/// Operands that are not f32 in CPU memory or differ in shape.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.contiguous()?.apply_op2(&up.contiguous()?, SwiGlu)
}

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if gate_layout.shape() != up_layout.shape() {
            candle_core::bail!("swiglu: gate {:?}, up {:?}", gate_layout.shape(), up_layout.shape());
        }
        let (gate, up) = (floats(gate, gate_layout, self.name())?, floats(up, up_layout, self.name())?);
        let mut y = vec![0.0; gate.len()];
        y.par_chunks_mut(TASK).zip(gate.par_chunks(TASK).zip(up.par_chunks(TASK))).for_each(
            |(y, (gate, up))| {
                for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
                    *y = gate * sigmoid(gate) * up;
                }
            },
        );
        Ok((CpuStorage::F32(y), gate_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (d_gate, d_up) = with_floats([gate, up, &grad], self.name(), |[gate, up, grad]| {
            let (mut d_gate, mut d_up) = (vec![0.0; gate.len()], vec![0.0; gate.len()]);
            let outputs = d_gate.par_chunks_mut(TASK).zip(d_up.par_chunks_mut(TASK));
            let inputs = gate.par_chunks(TASK).zip(up.par_chunks(TASK)).zip(grad.par_chunks(TASK));
            outputs.zip(inputs).for_each(|((d_gate, d_up), ((gate, up), grad))| {
                let inputs = gate.iter().zip(up).zip(grad);
                for ((d_gate, d_up), ((&gate, &up), &grad)) in d_gate.iter_mut().zip(d_up).zip(inputs) {
                    let s = sigmoid(gate);
                    *d_up = grad * gate * s;
                    // d silu / d gate = s (1 + gate (1 - s))
                    *d_gate = grad * up * s * (1.0 + gate * (1.0 - s));
                }
            });
            Ok((d_gate, d_up))
        })?;
        let tensor = |values| Tensor::from_vec(values, gate.shape(), gate.device());
        Ok((Some(tensor(d_gate)?), Some(tensor(d_up)?)))
    }
}
