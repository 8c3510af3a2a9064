//! LoRA adapters. The safe binding can neither load them while contexts live nor free them.

use std::ffi::CString;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_sys_2 as sys;

use super::context::pointer;

/// Why an adapter was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// The path can't be passed to C.
    #[error("{}: a path with a zero byte can't be given to llama.cpp", path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// llama.cpp refuses the file. It logs why.
    #[error("{}: llama.cpp refuses it; its log (target llama-cpp-2) says why", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
    },
}

/// A LoRA adapter of a model. Freed when dropped. Contexts hold references to the adapters that
/// they use (`Context::set_adapters`).
#[derive(Debug)]
pub struct Adapter<'a> {
    raw: NonNull<sys::llama_adapter_lora>,
    model: PhantomData<&'a LlamaModel>,
}

impl<'a> Adapter<'a> {
    /// Loads a LoRA file. It must have passed [`crate::adapter::inspect`] for this model: some
    /// faults make llama.cpp abort the process, others it ignores.
    ///
    /// # Errors
    /// llama.cpp refuses the file.
    pub fn load(model: &'a LlamaModel, path: &Path) -> Result<Self, AdapterError> {
        let file = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| AdapterError::Path { path: path.to_owned() })?;
        // SAFETY: the model lives, and the string lives until the call returns; C++ exceptions are
        // caught inside and become null. llama.cpp changes the model only by registering the
        // adapter, on the one thread that uses the model.
        let raw = unsafe { sys::llama_adapter_lora_init(pointer(model), file.as_ptr()) };
        let raw = NonNull::new(raw).ok_or_else(|| AdapterError::Refused { path: path.to_owned() })?;
        Ok(Self { raw, model: PhantomData })
    }

    pub(super) fn raw(&self) -> *mut sys::llama_adapter_lora {
        self.raw.as_ptr()
    }
}

impl Drop for Adapter<'_> {
    fn drop(&mut self) {
        // SAFETY: the model outlives the adapter ('a), and no context uses the adapter, because
        // contexts hold references to what they use.
        unsafe { sys::llama_adapter_lora_free(self.raw.as_ptr()) };
    }
}
