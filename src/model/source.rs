//! What a model is read from: a folder, a file, or memory.

use super::file_error::FileError;
use super::hugging_face::{Model, TextSide};
use super::safetensors_file::f32_values;
use super::{DecoderConfig, ParameterSpec};

/// A model whose weights are read one parameter at a time, so that a large one needs no memory of
/// its size.
pub trait ModelSource {
    /// Shape and constants.
    fn config(&self) -> &DecoderConfig;
    /// Tokenizer and what belongs to it.
    fn text(&self) -> &TextSide;
    /// The values of a parameter as f32, row-major, in the order of Hugging Face's files.
    ///
    /// # Errors
    /// The parameter is missing or can't be read.
    fn values(&self, parameter: &ParameterSpec) -> Result<Vec<f32>, FileError>;
}

impl ModelSource for Model {
    fn config(&self) -> &DecoderConfig {
        &self.config
    }
    fn text(&self) -> &TextSide {
        &self.text
    }
    fn values(&self, parameter: &ParameterSpec) -> Result<Vec<f32>, FileError> {
        let (var, expected) = (self.parameters.of(parameter.role)?, parameter.shape());
        if var.dims() != expected {
            let (name, found) = (&parameter.name, var.dims());
            let message = format!("parameter {name} has shape {found:?}, expected {expected:?}");
            return Err(candle_core::Error::Msg(message).into());
        }
        Ok(f32_values(var)?)
    }
}
