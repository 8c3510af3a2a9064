//! The one llama.cpp backend of the process, with its log sent to `tracing`.

use std::sync::OnceLock;

use llama_cpp_2::LogOptions;
use llama_cpp_2::llama_backend::LlamaBackend;

use super::ffi;

/// The backend, started on first use and never stopped.
pub fn backend() -> &'static LlamaBackend {
    static BACKEND: OnceLock<LlamaBackend> = OnceLock::new();
    BACKEND.get_or_init(|| {
        llama_cpp_2::send_logs_to_tracing(LogOptions::default());
        let backend = LlamaBackend::init().expect("this is the only place that starts the backend");
        if !ffi::take_part() {
            tracing::warn!(
                "this llama.cpp allocates buffers differently: each context takes all its memory at once"
            );
        }
        backend
    })
}
