//! What a model is read from: a folder, a file, or memory.

use candle_core::{Device, Var};

use super::file_error::FileError;
use super::hugging_face::{Model, TextSide};
use super::safetensors_file::f32_values;
use super::{DecoderConfig, ParameterSpec, Parameters, Role};

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

/// Reads the wanted parameters of a model into memory, in their order.
///
/// # Errors
/// A parameter that can't be read.
pub(super) fn read_parameters(
    source: &impl ModelSource,
    wanted: impl Fn(Role) -> bool,
) -> Result<Parameters, FileError> {
    let mut parameters = Parameters::default();
    for parameter in source.config().parameters().into_iter().filter(|parameter| wanted(parameter.role)) {
        let values = Var::from_vec(source.values(&parameter)?, parameter.shape(), &Device::Cpu)?;
        parameters.insert(parameter.name, parameter.role, values)?;
    }
    Ok(parameters)
}

impl ModelSource for Model {
    fn config(&self) -> &DecoderConfig {
        &self.config
    }
    fn text(&self) -> &TextSide {
        &self.text
    }
    fn values(&self, parameter: &ParameterSpec) -> Result<Vec<f32>, FileError> {
        Ok(f32_values(self.parameters.fitting(parameter)?)?)
    }
}
