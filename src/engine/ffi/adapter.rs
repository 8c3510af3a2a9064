//! LoRA adapters: loaded while contexts live, and freed, neither of which the safe binding can do.

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
    /// A path that can't be given to C.
    #[error("{}: a path with a zero byte can't be given to llama.cpp", path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// llama.cpp says no, for a reason that it logs.
    #[error("{}: llama.cpp refuses it; its log (target llama-cpp-2) says why", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
    },
}

/// A LoRA adapter of a model. Dropping it frees it: contexts keep those that they use (`Context::set_adapters`).
#[derive(Debug)]
pub struct Adapter<'a> {
    raw: NonNull<sys::llama_adapter_lora>,
    model: PhantomData<&'a LlamaModel>,
}

impl<'a> Adapter<'a> {
    /// Loads a LoRA file. It must have passed [`crate::adapter::inspect`] against this model: llama.cpp ends the process over
    /// some faults and computes with others.
    ///
    /// # Errors
    /// llama.cpp refuses the file.
    pub fn load(model: &'a LlamaModel, path: &Path) -> Result<Self, AdapterError> {
        let file = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| AdapterError::Path { path: path.to_owned() })?;
        // SAFETY: the model lives, the string until the call returns; C++ exceptions are caught inside and become null.
        // llama.cpp changes the model only by noting the adapter, on the one thread that uses the model.
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
        // SAFETY: the model outlives the adapter ('a), and no context uses it: each holds what it uses.
        unsafe { sys::llama_adapter_lora_free(self.raw.as_ptr()) };
    }
}
