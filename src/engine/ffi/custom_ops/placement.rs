//! Which backend computes a node, and whether its memory can be read here.

use llama_cpp_sys_2 as sys;

/// Tells which nodes the CPU backend computes.
#[derive(Debug)]
pub struct Placement {
    /// The type of buffer where the CPU backend puts results; `None` if another backend uses
    /// buffers of the same type.
    results: Option<sys::ggml_backend_buffer_type_t>,
}

impl Placement {
    /// For the devices of this process.
    pub fn new() -> Self {
        // SAFETY: the devices are llama.cpp's own, and live as long as the process.
        unsafe {
            let own = sys::ggml_backend_cpu_buffer_type();
            let mut devices = (0..sys::ggml_backend_dev_count()).map(|at| sys::ggml_backend_dev_get(at));
            // A BLAS library is such a backend.
            let is_shared = devices.any(|device| {
                sys::ggml_backend_dev_type(device) != sys::GGML_BACKEND_DEVICE_TYPE_CPU
                    && sys::ggml_backend_dev_buffer_type(device) == own
            });
            Self { results: (!is_shared).then_some(own) }
        }
    }

    /// As if another backend used buffers of the same type.
    #[cfg(test)]
    pub fn shared() -> Self {
        Self { results: None }
    }

    /// Whether the CPU backend computes a node. llama.cpp's scheduler puts the result of a node
    /// into a buffer whose type belongs to the backend that computes it. It is not enough that the
    /// buffer is in host memory: a GPU's pinned buffers are too, and only the CPU backend supports
    /// `GGML_OP_CUSTOM`.
    pub fn computes(&self, node: &sys::ggml_tensor) -> bool {
        let buffer = buffer(node);
        // SAFETY: a buffer that is not null lives.
        !buffer.is_null() && self.results == Some(unsafe { sys::ggml_backend_buffer_get_type(buffer) })
    }
}

/// The buffer of a tensor's data.
fn buffer(tensor: &sys::ggml_tensor) -> sys::ggml_backend_buffer_t {
    // SAFETY: the source of a view lives as long as the view.
    match unsafe { tensor.view_src.as_ref() } {
        Some(source) if tensor.buffer.is_null() => source.buffer,
        _ => tensor.buffer,
    }
}

/// Whether a tensor's data can be read here.
pub fn is_host(tensor: &sys::ggml_tensor) -> bool {
    let buffer = buffer(tensor);
    // SAFETY: a buffer that is not null lives.
    !tensor.data.is_null() && !buffer.is_null() && unsafe { sys::ggml_backend_buffer_is_host(buffer) }
}
