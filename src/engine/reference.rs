//! Runs llama.cpp as the reference for a model file: token ids and logits of a text, without
//! batching, caches or sampling.

use std::num::NonZeroU32;
use std::path::Path;

use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams};
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::model::{LlamaLoraAdapter, LlamaModel};
use llama_cpp_2::token::LlamaToken;

use super::backend::backend;
use crate::gguf::{Gguf, GgufError, check_model};

/// A loaded model.
#[derive(Debug)]
pub struct Reference {
    model: LlamaModel,
}

/// Why llama.cpp gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// The file breaks a rule. It was not passed to llama.cpp.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// llama.cpp refuses the file, for a reason that it logs.
    #[error("{}: llama.cpp can't load it: {message}", path.display())]
    Load {
        /// Path of the file.
        path: std::path::PathBuf,
        /// Message of the binding.
        message: String,
    },
    /// llama.cpp can't compute.
    #[error("llama.cpp: {0}")]
    Compute(String),
}

impl Reference {
    /// Loads a model file after our own reader has checked it.
    ///
    /// # Errors
    /// The file breaks a rule, or llama.cpp refuses it.
    pub fn open(path: &Path) -> Result<Self, ReferenceError> {
        check_model(&Gguf::open(path)?)?;
        let model = LlamaModel::load_from_file(backend(), path, &LlamaModelParams::default())
            .map_err(|e| ReferenceError::Load { path: path.to_owned(), message: e.to_string() })?;
        Ok(Self { model })
    }

    /// Token ids of a text, without special tokens added. With `markup`, names of control tokens in
    /// the text become those tokens.
    pub fn tokenize(&self, text: &str, markup: bool) -> Vec<u32> {
        let ids = self.model.vocab().tokenize(text.as_bytes(), false, markup);
        ids.into_iter().map(|id| id.0.cast_unsigned()).collect()
    }

    /// Logits after each token, row-major `[ids, vocabulary]`. Uses an f32 KV cache, so that only
    /// arithmetic can differ.
    ///
    /// # Errors
    /// There are no ids, an id is outside the vocabulary, or memory is short.
    pub fn logits(&self, ids: &[u32]) -> Result<Vec<f32>, ReferenceError> {
        self.compute(ids, None)
    }

    /// Like [`Reference::logits`], but with a LoRA file that has passed inspection. The adapter
    /// stays in memory until the process ends.
    ///
    /// # Errors
    /// As for [`Reference::logits`]; llama.cpp refuses the file.
    pub fn logits_with(&mut self, lora: &Path, ids: &[u32]) -> Result<Vec<f32>, ReferenceError> {
        let wrong = |message: &dyn ToString| ReferenceError::Load {
            path: lora.to_owned(),
            message: message.to_string(),
        };
        let mut adapter = self.model.lora_adapter_init(lora).map_err(|e| wrong(&e))?;
        self.compute(ids, Some(&mut adapter))
    }

    fn compute(&self, ids: &[u32], lora: Option<&mut LlamaLoraAdapter>) -> Result<Vec<f32>, ReferenceError> {
        let wrong = |message: &dyn ToString| ReferenceError::Compute(message.to_string());
        let length = NonZeroU32::new(ids.len() as u32).ok_or_else(|| wrong(&"no tokens"))?;
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as i32);
        let params = LlamaContextParams::default()
            .with_n_ctx(Some(length))
            .with_n_batch(length.get())
            .with_n_ubatch(length.get())
            .with_type_k(KvCacheType::F32)
            .with_type_v(KvCacheType::F32)
            .with_flash_attention_policy(llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED)
            .with_n_threads(threads)
            .with_n_threads_batch(threads);
        let mut context = self.model.new_context(backend(), params).map_err(|e| wrong(&e))?;
        if let Some(adapter) = lora {
            context.lora_adapter_set(adapter, 1.0).map_err(|e| wrong(&e))?;
        }
        let mut batch = LlamaBatch::new(ids.len(), 1);
        for (position, &id) in ids.iter().enumerate() {
            let token = LlamaToken(id.cast_signed());
            batch.add(token, position as i32, &[0], true).map_err(|e| wrong(&e))?;
        }
        context.decode(&mut batch).map_err(|e| wrong(&e))?;
        let rows = 0..ids.len() as i32;
        Ok(rows.flat_map(|row| context.get_logits_ith(row).iter().copied()).collect())
    }
}
