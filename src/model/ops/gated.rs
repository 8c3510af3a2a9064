//! Gated products (Shazeer 2020): `f(gate) * up` in one pass, recomputing in the backward pass
//! what the gradient needs.

use std::marker::PhantomData;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::lanes::{fma, sigmoid, vectorised};
use super::{composite, floats, with_floats};

/// Values that one rayon task works on.
const TASK: usize = 1 << 15;

/// A nonlinearity of one value, combined with the product so that the compiler sees one loop.
trait Gate: Send + Sync + 'static {
    const NAME: &'static str;
    /// `f(gate) up`.
    fn product(gate: f32, up: f32) -> f32;
    /// Gradients of gate and up, given the gradient of the product.
    fn gradients(gate: f32, up: f32, grad: f32) -> (f32, f32);
}

/// `f(x) = x sigmoid(x)`.
struct Silu;

impl Gate for Silu {
    const NAME: &'static str = "swiglu";

    #[inline(always)]
    fn product(gate: f32, up: f32) -> f32 {
        gate * sigmoid(gate) * up
    }

    #[inline(always)]
    fn gradients(gate: f32, up: f32, grad: f32) -> (f32, f32) {
        let s = sigmoid(gate);
        // d silu / d gate = s (1 + gate (1 - s))
        (grad * up * s * (1.0 + gate * (1.0 - s)), grad * gate * s)
    }
}

/// `f(x) = x/2 (1 + tanh(u))` with `u = sqrt(2/pi) (x + 0.044715 x^3)` (the approximation of
/// Hendrycks & Gimpel 2016).
struct GeluTanh;

impl GeluTanh {
    const CUBIC: f32 = 0.044_715;

    /// `(1 + tanh(u)) / 2`, which is `sigmoid(2 u)`.
    #[inline(always)]
    fn share(x: f32) -> f32 {
        const TWICE_ROOT: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::SQRT_2;
        sigmoid(TWICE_ROOT * x * fma(Self::CUBIC * x, x, 1.0))
    }
}

impl Gate for GeluTanh {
    const NAME: &'static str = "geglu";

    #[inline(always)]
    fn product(gate: f32, up: f32) -> f32 {
        gate * Self::share(gate) * up
    }

    #[inline(always)]
    fn gradients(gate: f32, up: f32, grad: f32) -> (f32, f32) {
        const TWICE_ROOT: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::SQRT_2;
        let s = Self::share(gate);
        let inner = TWICE_ROOT * fma(3.0 * Self::CUBIC * gate, gate, 1.0);
        (grad * up * s * (1.0 + gate * (1.0 - s) * inner), grad * gate * s)
    }
}

/// `f(x) = sigmoid(x)`.
struct Sigmoid;

impl Gate for Sigmoid {
    const NAME: &'static str = "sigmoid-gate";

    #[inline(always)]
    fn product(gate: f32, up: f32) -> f32 {
        sigmoid(gate) * up
    }

    #[inline(always)]
    fn gradients(gate: f32, up: f32, grad: f32) -> (f32, f32) {
        let s = sigmoid(gate);
        (grad * up * s * (1.0 - s), grad * s)
    }
}

impl CustomOp1 for Silu {
    fn name(&self) -> &'static str {
        "silu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = floats(x, layout, "silu")?;
        let mut y = vec![0.0; x.len()];
        y.par_chunks_mut(TASK).zip(x.par_chunks(TASK)).for_each(|(y, x)| {
            vectorised(|| {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = Self::product(x, 1.0);
                }
            });
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let dx = with_floats([x, &grad], "silu", |[x, grad]| {
            let mut dx = vec![0.0; x.len()];
            dx.par_chunks_mut(TASK).zip(x.par_chunks(TASK).zip(grad.par_chunks(TASK))).for_each(
                |(dx, (x, grad))| {
                    vectorised(|| {
                        for ((dx, &x), &grad) in dx.iter_mut().zip(x).zip(grad) {
                            *dx = Self::gradients(x, 1.0, grad).0;
                        }
                    });
                },
            );
            Ok(dx)
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

struct Gated<G>(PhantomData<G>);

fn gated<G: Gate>(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.contiguous()?.apply_op2(&up.contiguous()?, Gated::<G>(PhantomData))
}

/// `gate * sigmoid(gate) * up`, elementwise; both have the same shape.
///
/// # Errors
/// Operands of different types, devices or shapes.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if composite::is_needed(gate) { composite::swiglu(gate, up) } else { gated::<Silu>(gate, up) }
}

/// `x sigmoid(x)`, elementwise.
///
/// # Errors
/// Out of memory.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    if composite::is_needed(x) { composite::silu(x) } else { x.contiguous()?.apply_op1(Silu) }
}

/// `gelu(gate) * up` with the tanh approximation of GELU, elementwise; both have the same shape.
///
/// # Errors
/// As [`swiglu`].
pub fn geglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if composite::is_needed(gate) { composite::geglu(gate, up) } else { gated::<GeluTanh>(gate, up) }
}

/// `sigmoid(gate) * up`, elementwise; both have the same shape.
///
/// # Errors
/// As [`swiglu`].
pub fn sigmoid_gate(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if composite::is_needed(gate) { composite::sigmoid_gate(gate, up) } else { gated::<Sigmoid>(gate, up) }
}

impl<G: Gate> CustomOp2 for Gated<G> {
    fn name(&self) -> &'static str {
        G::NAME
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if gate_layout.shape() != up_layout.shape() {
            candle_core::bail!("{}: gate {:?}, up {:?}", G::NAME, gate_layout.shape(), up_layout.shape());
        }
        let (gate, up) = (floats(gate, gate_layout, G::NAME)?, floats(up, up_layout, G::NAME)?);
        let mut y = vec![0.0; gate.len()];
        y.par_chunks_mut(TASK).zip(gate.par_chunks(TASK).zip(up.par_chunks(TASK))).for_each(
            |(y, (gate, up))| {
                vectorised(|| {
                    for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
                        *y = G::product(gate, up);
                    }
                });
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
        let (d_gate, d_up) = with_floats([gate, up, &grad], G::NAME, |[gate, up, grad]| {
            let (mut d_gate, mut d_up) = (vec![0.0; gate.len()], vec![0.0; gate.len()]);
            let outputs = d_gate.par_chunks_mut(TASK).zip(d_up.par_chunks_mut(TASK));
            let inputs = gate.par_chunks(TASK).zip(up.par_chunks(TASK)).zip(grad.par_chunks(TASK));
            outputs.zip(inputs).for_each(|((d_gate, d_up), ((gate, up), grad))| {
                let inputs = gate.iter().zip(up).zip(grad);
                vectorised(|| {
                    for ((d_gate, d_up), ((&gate, &up), &grad)) in d_gate.iter_mut().zip(d_up).zip(inputs) {
                        (*d_gate, *d_up) = G::gradients(gate, up, grad);
                    }
                });
            });
            Ok((d_gate, d_up))
        })?;
        let tensor = |values| Tensor::from_vec(values, gate.shape(), gate.device());
        Ok((Some(tensor(d_gate)?), Some(tensor(d_up)?)))
    }
}
