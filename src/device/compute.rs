//! The device that is computed on, and the type.

use candle_core::{DType, Device};

use serde::{Deserialize, Serialize};

/// Which device to compute on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// The first NVIDIA GPU, if this program is built for one and finds it; else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first NVIDIA GPU.
    Cuda,
}

/// Which type to compute in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bf16 on a GPU, f32 on the CPU.
    #[default]
    Auto,
    /// f32.
    F32,
    /// bf16; on the CPU slower than f32.
    Bf16,
}

/// There is no GPU to compute on, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoGpu(String);

/// A device and the type of activations on it.
#[derive(Debug, Clone)]
pub struct ComputeDevice {
    /// The CPU or a GPU.
    pub device: Device,
    /// f32 or bf16.
    pub dtype: DType,
    /// Why the CPU is used although a GPU was looked for.
    missed: Option<String>,
}

impl ComputeDevice {
    /// The device and type of a choice.
    ///
    /// # Errors
    /// `cuda` in a program that is not built for it, or on a machine without a GPU.
    pub fn new(device: DeviceChoice, precision: Precision) -> Result<Self, NoGpu> {
        let (device, missed) = match device {
            DeviceChoice::Cpu => (Device::Cpu, None),
            DeviceChoice::Cuda => (gpu()?, None),
            DeviceChoice::Auto => match gpu() {
                Ok(device) => (device, None),
                Err(NoGpu(why)) => (Device::Cpu, Some(why)),
            },
        };
        let dtype = match (precision, device.is_cpu()) {
            (Precision::F32, _) | (Precision::Auto, true) => DType::F32,
            (Precision::Bf16, _) | (Precision::Auto, false) => DType::BF16,
        };
        // If bf16 is precise enough, products in f32 (attention scores) may use the tensor cores
        // too, with 10 bits of mantissa instead of 23.
        candle_core::cuda::set_gemm_reduced_precision_f32(dtype == DType::BF16);
        Ok(Self { device, dtype, missed })
    }

    /// The device and the type, for people: what decides the bits of a result.
    pub fn name(&self) -> String {
        let device = if self.device.is_cpu() { "the CPU" } else { "the GPU" };
        format!("{device} in {}", self.dtype.as_str())
    }

    /// Threads that compute at a time. A GPU computes parts one at a time, because each would fill
    /// its memory.
    pub fn threads(&self, on_cpu: usize) -> usize {
        if self.device.is_cpu() { on_cpu } else { 1 }
    }
}

impl std::fmt::Display for ComputeDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "computes on {}", self.name())?;
        match &self.missed {
            Some(why) => write!(f, " ({why})"),
            None => Ok(()),
        }
    }
}

/// The first GPU.
fn gpu() -> Result<Device, NoGpu> {
    if !candle_core::utils::cuda_is_available() {
        return Err(NoGpu("this program is built for the CPU alone".into()));
    }
    Device::new_cuda(0).map_err(|error| {
        // The lines after the first are a backtrace.
        let error = error.to_string();
        NoGpu(format!("no GPU answers: {}", error.lines().next().unwrap_or_default()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_computes_in_f32_unless_told_otherwise() {
        let compute = |precision| ComputeDevice::new(DeviceChoice::Cpu, precision).unwrap();
        assert_eq!(compute(Precision::Auto).dtype, DType::F32);
        assert_eq!(compute(Precision::Bf16).to_string(), "computes on the CPU in bf16");
        assert_eq!(compute(Precision::F32).threads(3), 3);
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_gpu_that_this_program_is_not_built_for_is_an_error_or_passed_over() {
        let error = ComputeDevice::new(DeviceChoice::Cuda, Precision::Auto).unwrap_err();
        assert!(error.to_string().contains("built for the CPU alone"), "{error}");
        let compute = ComputeDevice::new(DeviceChoice::Auto, Precision::Auto).unwrap();
        assert!(compute.device.is_cpu() && compute.to_string().contains("built for the CPU alone"));
    }
}
