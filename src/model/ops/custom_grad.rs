//! Operations with a custom gradient. Their result has been computed from detached operands by
//! tensor operations on any device; in the backward pass a closure computes the gradients, by
//! tensor operations too.

use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor,
};

/// Gradients of N operands, `None` for operands that need none.
pub(in crate::model) type Operands<const N: usize> = [Option<Tensor>; N];

struct CustomGrad<F> {
    name: &'static str,
    result: Mutex<Option<Tensor>>,
    backward: F,
}

impl<F> CustomGrad<F> {
    fn new(name: &'static str, result: Tensor, backward: F) -> Self {
        Self { name, result: Mutex::new(Some(result)), backward }
    }

    fn take(&self) -> Result<Tensor> {
        match self.result.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(result) => Ok(result),
            None => candle_core::bail!("{}: one operation ran forward twice", self.name),
        }
    }

    fn on_cpu(&self) -> Result<(CpuStorage, Shape)> {
        let result = self.take()?;
        match &*result.storage_and_layout().0 {
            Storage::Cpu(storage) => dense(storage, result.layout()),
            _ => self.elsewhere(&result),
        }
    }

    fn on_gpu(&self) -> Result<(CudaStorage, Shape)> {
        let result = self.take()?;
        match &*result.storage_and_layout().0 {
            Storage::Cuda(storage) => dense(storage, result.layout()),
            _ => self.elsewhere(&result),
        }
    }

    fn elsewhere<T>(&self, result: &Tensor) -> Result<T> {
        let device = result.device().location();
        candle_core::bail!("{}: the result is on {device:?}, the operands are not", self.name)
    }
}

/// Copies the values of a layout to a storage of their own. The cast to the same type changes no
/// bit.
fn dense<S: BackendStorage>(storage: &S, layout: &Layout) -> Result<(S, Shape)> {
    Ok((storage.to_dtype(layout, storage.dtype())?, layout.shape().clone()))
}

/// `result` as an operation on `x`, whose gradient `backward` computes from its own.
pub(in crate::model) fn custom_grad1(
    name: &'static str,
    x: &Tensor,
    result: Tensor,
    backward: impl Fn(&Tensor) -> Result<Operands<1>> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !x.track_op() {
        return Ok(result);
    }
    x.apply_op1(CustomGrad::new(name, result, backward))
}

/// As [`custom_grad1`], of two operands.
pub(in crate::model) fn custom_grad2(
    name: &'static str,
    a: &Tensor,
    b: &Tensor,
    result: Tensor,
    backward: impl Fn(&Tensor) -> Result<Operands<2>> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !a.track_op() && !b.track_op() {
        return Ok(result);
    }
    a.apply_op2(b, CustomGrad::new(name, result, backward))
}

/// As [`custom_grad1`], of three operands.
pub(in crate::model) fn custom_grad3(
    name: &'static str,
    [a, b, c]: [&Tensor; 3],
    result: Tensor,
    backward: impl Fn(&Tensor) -> Result<Operands<3>> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !a.track_op() && !b.track_op() && !c.track_op() {
        return Ok(result);
    }
    a.apply_op3(b, c, CustomGrad::new(name, result, backward))
}

impl<F: Fn(&Tensor) -> Result<Operands<1>>> CustomOp1 for CustomGrad<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_gpu()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [a] = (self.backward)(grad)?;
        Ok(a)
    }
}

impl<F: Fn(&Tensor) -> Result<Operands<2>>> CustomOp2 for CustomGrad<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_gpu()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = (self.backward)(grad)?;
        Ok((a, b))
    }
}

impl<F: Fn(&Tensor) -> Result<Operands<3>>> CustomOp3 for CustomGrad<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_gpu()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = (self.backward)(grad)?;
        Ok((a, b, c))
    }
}
