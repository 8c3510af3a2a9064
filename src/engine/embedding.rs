//! Embeddings: a second context of the served model, with mean pooling.

use std::num::NonZeroU32;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{LlamaContextParams, LlamaPoolingType};
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;

use super::backend::backend;
use super::llama::LlamaSettings;
use super::vocabulary::tokenize;
use super::{Embeddings, EngineError, Prompt};

/// The context; a text must fit it as a whole, because pooling sees one batch.
pub struct Embedder<'a> {
    context: LlamaContext<'a>,
    limit: u32,
}

impl<'a> Embedder<'a> {
    /// Makes the context, for texts of at most `limit` tokens.
    ///
    /// # Errors
    /// llama.cpp can't, most likely for want of memory.
    pub fn new(model: &'a LlamaModel, settings: &LlamaSettings, limit: u32) -> Result<Self, EngineError> {
        let threads = settings.threads.clamp(1, 1024) as i32;
        let params = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(limit))
            .with_n_batch(limit)
            .with_n_ubatch(limit)
            .with_n_threads(threads)
            .with_n_threads_batch(threads)
            .with_no_perf(true)
            .with_embeddings(true)
            .with_pooling_type(LlamaPoolingType::Mean);
        let context = model.new_context(backend(), params).map_err(|e| {
            EngineError::Internal(format!("no context for embeddings of {limit} tokens: {e}"))
        })?;
        Ok(Self { context, limit })
    }

    /// Vectors of length 1, one per text.
    ///
    /// # Errors
    /// An empty text, or one that is longer than the context, by its index.
    pub fn embed(&mut self, model: &LlamaModel, inputs: &[Prompt]) -> Result<Embeddings, EngineError> {
        // All are judged before any is computed.
        let mut texts = Vec::with_capacity(inputs.len());
        for (index, input) in inputs.iter().enumerate() {
            let ids = tokenize(model, input)?;
            let tokens = ids.len() as u32;
            if tokens > self.limit {
                return Err(EngineError::InputTooLong { index: index as u32, tokens, context: self.limit });
            }
            texts.push(ids);
        }
        let prompt_tokens = texts.iter().map(|ids| ids.len() as u32).sum();
        let vectors = texts.iter().map(|ids| self.one(ids)).collect::<Result<_, _>>()?;
        Ok(Embeddings { vectors, prompt_tokens })
    }

    fn one(&mut self, ids: &[u32]) -> Result<Vec<f32>, EngineError> {
        let wrong = |e: &dyn std::fmt::Display| EngineError::Internal(format!("llama.cpp can't embed: {e}"));
        self.context.clear_kv_cache();
        let mut batch = LlamaBatch::new(ids.len(), 1);
        for (position, &id) in (0..).zip(ids) {
            batch.add(LlamaToken(id.cast_signed()), position, &[0], true).map_err(|e| wrong(&e))?;
        }
        self.context.decode(&mut batch).map_err(|e| wrong(&e))?;
        let pooled = self.context.embeddings_seq_ith(0).map_err(|e| wrong(&e))?;
        let norm = pooled.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        if !norm.is_normal() {
            return Err(wrong(&format!("the mean has length {norm}")));
        }
        Ok(pooled.iter().map(|&x| (f64::from(x) / norm) as f32).collect())
    }
}
