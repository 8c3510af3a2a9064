//! In-place updates, which an optimiser makes to every value in a step. In CPU memory they need no
//! temporaries; elsewhere they are tensor operations whose result is copied over the old values.

use candle_core::{CpuStorage, DType, InplaceOp1, InplaceOp2, InplaceOp3, Layout, Result, Tensor};

/// `y = factor * y`.
pub(super) fn scale(y: &Tensor, factor: f64) -> Result<()> {
    if is_elsewhere(y) {
        return replace(y, &(y.detach() * factor)?);
    }
    y.inplace_op1(&Scale(factor as f32))
}

/// `y = keep * y + add * x`.
pub(super) fn blend(y: &Tensor, keep: f64, add: f64, x: &Tensor) -> Result<()> {
    if is_elsewhere(y) {
        return replace(y, &blended(y, keep, add, x)?);
    }
    y.inplace_op2(x, &Elementwise2(move |y: &mut f32, x| *y = keep as f32 * *y + add as f32 * x))
}

/// `y = keep * y + add * x^2`.
pub(super) fn blend_square(y: &Tensor, keep: f64, add: f64, x: &Tensor) -> Result<()> {
    if is_elsewhere(y) {
        return replace(y, &blended(y, keep, add, &x.sqr()?)?);
    }
    y.inplace_op2(x, &Elementwise2(move |y: &mut f32, x| *y = keep as f32 * *y + add as f32 * x * x))
}

/// `y = 0` where the mask is 0; elsewhere, where it is 1, `y` stays.
pub(super) fn keep(y: &Tensor, mask: &Tensor) -> Result<()> {
    if is_elsewhere(y) {
        return replace(y, &(y.detach() * mask)?);
    }
    y.inplace_op2(mask, &Elementwise2(|y: &mut f32, mask| *y = if mask == 0.0 { 0.0 } else { *y }))
}

/// `y = f(y, a, b)`, elementwise.
pub(super) fn update(y: &Tensor, a: &Tensor, b: &Tensor, f: impl Fn(f32, f32, f32) -> f32) -> Result<()> {
    y.inplace_op3(a, b, &Elementwise3(f))
}

/// Whether a tensor is not f32 in CPU memory, so its values can't be changed in place.
pub(super) fn is_elsewhere(y: &Tensor) -> bool {
    !y.device().is_cpu() || y.dtype() != DType::F32
}

/// `keep * y + add * x`.
pub(super) fn blended(y: &Tensor, keep: f64, add: f64, x: &Tensor) -> Result<Tensor> {
    // Detached, because Candle would record operations on a variable.
    (y.detach() * keep)? + (x.detach() * add)?
}

/// Overwrites the values of `y`, which has at least one dimension, for everything that shares its
/// memory.
pub(super) fn replace(y: &Tensor, values: &Tensor) -> Result<()> {
    y.slice_set(&values.detach().contiguous()?, 0, 0)
}

struct Scale(f32);
struct Elementwise2<F>(F);
struct Elementwise3<F>(F);

/// The part of a storage that a contiguous layout covers.
fn range(layout: &Layout) -> Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(from..to),
        None => candle_core::bail!("in-place update of a tensor that is not contiguous: {layout:?}"),
    }
}

fn floats_mut(storage: &mut CpuStorage) -> Result<&mut [f32]> {
    match storage {
        CpuStorage::F32(values) => Ok(values),
        other => {
            candle_core::bail!("in-place update of {:?} values, expected F32", other.as_slice::<f32>().err())
        }
    }
}

fn same_length(lengths: &[usize]) -> Result<()> {
    if lengths.windows(2).any(|pair| pair[0] != pair[1]) {
        candle_core::bail!("in-place update of tensors with {lengths:?} values");
    }
    Ok(())
}

impl InplaceOp1 for Scale {
    fn name(&self) -> &'static str {
        "in-place-1"
    }

    fn cpu_fwd(&self, y: &mut CpuStorage, yl: &Layout) -> Result<()> {
        floats_mut(y)?[range(yl)?].iter_mut().for_each(|y| *y *= self.0);
        Ok(())
    }
}

impl<F: Fn(&mut f32, f32)> InplaceOp2 for Elementwise2<F> {
    fn name(&self) -> &'static str {
        "in-place-2"
    }

    fn cpu_fwd(&self, y: &mut CpuStorage, yl: &Layout, x: &CpuStorage, xl: &Layout) -> Result<()> {
        let y = &mut floats_mut(y)?[range(yl)?];
        let x = &x.as_slice::<f32>()?[range(xl)?];
        same_length(&[y.len(), x.len()])?;
        y.iter_mut().zip(x).for_each(|(y, &x)| (self.0)(y, x));
        Ok(())
    }
}

impl<F: Fn(f32, f32, f32) -> f32> InplaceOp3 for Elementwise3<F> {
    fn name(&self) -> &'static str {
        "in-place-3"
    }

    fn cpu_fwd(
        &self,
        y: &mut CpuStorage,
        yl: &Layout,
        a: &CpuStorage,
        al: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<()> {
        let y = &mut floats_mut(y)?[range(yl)?];
        let (a, b) = (&a.as_slice::<f32>()?[range(al)?], &b.as_slice::<f32>()?[range(bl)?]);
        same_length(&[y.len(), a.len(), b.len()])?;
        y.iter_mut().zip(a).zip(b).for_each(|((y, &a), &b)| *y = (self.0)(*y, a, b));
        Ok(())
    }
}
