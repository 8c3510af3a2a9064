//! llama.cpp's quantiser.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use crate::engine::backend::backend;
use crate::gguf::{Gguf, GgufError, check_model};

/// Why a file was not quantised.
#[derive(Debug, thiserror::Error)]
pub enum QuantiseError {
    /// Our reader refuses the input, so llama.cpp was not called.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The path can't be passed to C.
    #[error("{}: a path with a zero byte can't be given to llama.cpp", path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// llama.cpp fails. It logs why.
    #[error("{}: llama.cpp's quantiser failed with code {code}; its log (target llama-cpp-2) says why", path.display())]
    Failed {
        /// The input.
        path: PathBuf,
        /// What the quantiser returned.
        code: u32,
    },
}

/// How the matrices of a model are stored, as a number of llama.cpp's `LLAMA_FTYPE_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantType(pub u32);

/// Quantises the matrices of `input` and writes the result to `output`. The file is created or
/// overwritten, not atomically, so pass a temporary path.
///
/// # Errors
/// Our reader refuses the input as a model; llama.cpp's quantiser fails.
pub fn quantise(input: &Path, output: &Path, kind: QuantType) -> Result<(), QuantiseError> {
    check_model(&Gguf::open(input)?)?;
    let c_path = |path: &Path| {
        CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| QuantiseError::Path { path: path.to_owned() })
    };
    let (from, to) = (c_path(input)?, c_path(output)?);
    backend();
    // SAFETY: returns a plain struct by value.
    let mut params = unsafe { llama_cpp_sys_2::llama_model_quantize_default_params() };
    params.ftype = kind.0;
    // SAFETY: both strings and the parameters live until the call returns, and none is kept. C++
    // exceptions are caught inside and become the return value.
    let code =
        unsafe { llama_cpp_sys_2::llama_model_quantize(from.as_ptr(), to.as_ptr(), &raw const params) };
    if code == 0 { Ok(()) } else { Err(QuantiseError::Failed { path: input.to_owned(), code }) }
}
