//! What computes: a device and its type, the threads that share the work, and the memory that it
//! takes.

mod compute;
mod memory;
mod workers;

pub use compute::{ComputeDevice, DeviceChoice, NoGpu, Precision};
pub use memory::watched;
pub use workers::{Workers, thread_count};
