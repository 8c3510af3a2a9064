//! The forward pass with the weights of one block in memory at a time: what checks a model that
//! memory has no room for.

use candle_core::{DType, Device, Tensor};

use super::block::{Block, RotaryTables, Weights};
use super::decoder::{embed, output};
use super::file_error::FileError;
use super::layout::BatchLayout;
use super::source::read_parameters;
use super::{ModelSource, NoTaps, Role};

/// Logits after each token of a text, row-major `[ids, vocabulary]`, on the CPU.
///
/// # Errors
/// Parameters that can't be read; ids outside the vocabulary.
pub fn logits_by_block(source: &impl ModelSource, ids: &[u32]) -> Result<Vec<f32>, FileError> {
    let config = source.config();
    let layout = BatchLayout::whole(1, ids.len());
    let input = Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu)?;
    let embedding = read_parameters(source, |role| role == Role::Embedding)?;
    let mut x = embed(config, embedding.of(Role::Embedding)?, &input, DType::F32)?;
    drop(embedding);
    let mut tables = RotaryTables::new(config.max_position);
    for (layer, spec) in config.blocks.iter().enumerate() {
        let parameters = read_parameters(source, |role| role.layer() == Some(layer))?;
        let weights = Weights::new(&parameters, true).of_block(layer);
        x = Block::new(config, spec, weights, &mut tables)?.forward(
            x,
            (&layout).into(),
            &mut NoTaps,
            false,
        )?;
    }
    let last = if config.tied { Role::Embedding } else { Role::Head };
    let parameters = read_parameters(source, |role| role == Role::FinalNorm || role == last)?;
    let norm = Weights::new(&parameters, true).norm(Role::FinalNorm, config.features.norm, config.rms_eps)?;
    Ok(output(config, &norm.forward(&x)?, parameters.of(last)?)?.flatten_all()?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::{Decoder, hugging_face};

    #[test]
    fn block_by_block_is_the_whole_bit_for_bit() {
        for name in ["llama_gqa", "llama_tied", "llama3_rope", "qwen3_tied"] {
            let folder = Path::new("tests/fixtures/hf").join(name);
            let ids: Vec<u32> = (0..9).collect();
            let model = hugging_face::load(&folder).unwrap();
            let decoder = Decoder::new(model.config.clone(), &model.parameters).unwrap();
            let input = Tensor::from_slice(&ids[..], (1, ids.len()), &Device::Cpu).unwrap();
            let hidden = decoder.forward(&input, &BatchLayout::whole(1, ids.len()), &mut NoTaps).unwrap();
            let whole: Vec<f32> = decoder.logits(&hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            for found in [
                logits_by_block(&model, &ids).unwrap(),
                logits_by_block(&hugging_face::Folder::open(&folder).unwrap(), &ids).unwrap(),
            ] {
                let bits = |logits: &[f32]| logits.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&found), bits(&whole), "{name}");
            }
        }
    }
}
