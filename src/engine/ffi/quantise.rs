//! llama.cpp's quantiser.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use crate::engine::backend::backend;
use crate::gguf::{Gguf, GgufError, check_model};

/// Why a file was not quantised.
#[derive(Debug, thiserror::Error)]
pub enum QuantiseError {
    /// The input breaks a rule; llama.cpp has not seen it.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A path that can't be given to C.
    #[error("{}: a path with a zero byte can't be given to llama.cpp", path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// llama.cpp says no, for a reason that it logs.
    #[error("{}: llama.cpp's quantiser failed with code {code}; its log (target llama-cpp-2) says why", path.display())]
    Failed {
        /// The input.
        path: PathBuf,
        /// What it returned.
        code: u32,
    },
}

/// A way to store the matrices of a model: llama.cpp's `LLAMA_FTYPE_*` of this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantType(pub u32);

/// Writes `input` with its matrices quantised to `output` (made or overwritten, not atomically: give a temporary path).
///
/// # Errors
/// An input that our reader does not pass as a model; a failure of llama.cpp's quantiser.
pub fn quantise(input: &Path, output: &Path, kind: QuantType) -> Result<(), QuantiseError> {
    check_model(&Gguf::open(input)?)?;
    let c_path = |path: &Path| {
        CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| QuantiseError::Path { path: path.to_owned() })
    };
    let (from, to) = (c_path(input)?, c_path(output)?);
    backend();
    // SAFETY: returns a plain struct by value and touches no memory of ours.
    let mut params = unsafe { llama_cpp_sys_2::llama_model_quantize_default_params() };
    params.ftype = kind.0;
    // SAFETY: both strings and the parameters live until the call returns and none is kept; C++ exceptions are caught
    // inside and become the return value.
    let code =
        unsafe { llama_cpp_sys_2::llama_model_quantize(from.as_ptr(), to.as_ptr(), &raw const params) };
    if code == 0 { Ok(()) } else { Err(QuantiseError::Failed { path: input.to_owned(), code }) }
}
