//! The decay of a DeltaNet: the logarithm of the factor by which a token scales the state before
//! it.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

use super::{composite, floats, with_floats};

struct Decay;

/// `-exp(rate) softplus(time + bias)`, never above 0, for time `[..., H]`, rate and bias `[H]`
/// (Mamba 2's parametrisation).
///
/// # Errors
/// Operands of different types or devices, or with different H.
pub fn decay(time: &Tensor, rate: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if composite::is_needed(time) {
        return composite::decay(time, rate, bias);
    }
    time.contiguous()?.apply_op3(rate, bias, Decay)
}

/// `ln(1 + exp(x))`.
fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

impl CustomOp3 for Decay {
    fn name(&self) -> &'static str {
        "decay"
    }

    fn cpu_fwd(
        &self,
        time: &CpuStorage,
        time_layout: &Layout,
        rate: &CpuStorage,
        rate_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let time = floats(time, time_layout, self.name())?;
        let (rate, bias) = (floats(rate, rate_layout, self.name())?, floats(bias, bias_layout, self.name())?);
        if time_layout.dims().last() != Some(&rate.len()) || rate.len() != bias.len() {
            let shape = time_layout.shape();
            candle_core::bail!("decay: time {shape:?}, rate of {}, bias of {}", rate.len(), bias.len());
        }
        let token = |time: &[f32]| -> Vec<f32> {
            let heads = time.iter().zip(rate).zip(bias);
            heads.map(|((time, rate), bias)| -rate.exp() * softplus(time + bias)).collect()
        };
        let y = time.chunks_exact(rate.len()).flat_map(token).collect();
        Ok((CpuStorage::F32(y), time_layout.shape().clone()))
    }

    fn bwd(
        &self,
        time: &Tensor,
        rate: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (d_time, d_rate, d_bias) =
            with_floats([time, rate, bias, y, &grad], self.name(), |[time, rate, bias, y, grad]| {
                let heads = rate.len();
                let mut d_time = vec![0.0; time.len()];
                let (mut d_rate, mut d_bias) = (vec![0.0; heads], vec![0.0; heads]);
                for (at, d_time) in d_time.iter_mut().enumerate() {
                    let head = at % heads;
                    let slope = 1.0 / (1.0 + (-(time[at] + bias[head])).exp());
                    *d_time = -grad[at] * rate[head].exp() * slope;
                    d_bias[head] += *d_time;
                    d_rate[head] += grad[at] * y[at];
                }
                Ok((d_time, d_rate, d_bias))
            })?;
        let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        Ok((Some(tensor(d_time, time)?), Some(tensor(d_rate, rate)?), Some(tensor(d_bias, bias)?)))
    }
}
