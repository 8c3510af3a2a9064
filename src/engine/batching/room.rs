//! Determines how many sequences a model is served with, and their length.

use bytesize::ByteSize;
use llama_cpp_2::model::LlamaModel;

use super::super::cache_memory::{STEP, Wish, available, grant};
use super::super::ffi::{Batch, Context, ContextSettings, DecodeError};
use super::super::kernels::Kernels;
use crate::config::{MAX_SEQUENCES, ModelSettings};

/// Minimum number of prompt heads that are kept for models whose state can't be truncated.
const HEADS: u32 = 4;

/// Whether a prefix of a sequence can be used without the rest.
pub(super) fn is_partial(model: &LlamaModel) -> bool {
    !(model.is_recurrent() || model.is_hybrid())
}

/// Number of sequences that a model is served with.
///
/// # Errors
/// More sequences than llama.cpp supports.
pub(super) fn sequences(model: &LlamaModel, settings: &ModelSettings) -> Result<u32, String> {
    let lanes = settings.lanes;
    // A state that can't be truncated is kept at the ends of heads, in sequences in addition to the
    // lanes that continue from there.
    let least = if is_partial(model) { 0 } else { HEADS.min(MAX_SEQUENCES.saturating_sub(lanes)) };
    let sequences = lanes.saturating_add(settings.cached_sequences.max(least));
    if sequences > MAX_SEQUENCES {
        return Err(format!(
            "{lanes} lanes and {} cached sequences: llama.cpp has at most {MAX_SEQUENCES} together",
            settings.cached_sequences
        ));
    }
    Ok(sequences)
}

/// Tokens per sequence: what was asked for, or as much of the model's trained context as memory
/// allows.
///
/// # Errors
/// More was asked for than memory is allowed; llama.cpp can't create even the smallest context.
pub fn room(model: &LlamaModel, settings: &ModelSettings) -> Result<u32, String> {
    let wish = Wish {
        trained: model.n_ctx_train(),
        requested: settings.context,
        // The additional sequence is for embeddings, whose context is created with the first
        // request for them.
        sequences: sequences(model, settings)? + 1,
        place_bytes: place_bytes(model)?,
        limit: settings.cache_memory.map(|size| size.as_u64()),
        available: available(),
    };
    let granted = grant(&wish)?;
    let size = |bytes: u64| ByteSize(bytes).display().iec().to_string();
    let (context, sequences, trained) = (granted.tokens, wish.sequences, wish.trained);
    let (token, most) = (size(wish.place_bytes), size(granted.most));
    let limit = granted.limit.map_or_else(|| "none".to_owned(), size);
    if granted.is_cut(&wish) {
        tracing::warn!(
            context,
            trained,
            sequences,
            token,
            most,
            limit,
            "a lane's context is shorter than the model's, so that the keys and values of all keep within the limit: \
             model.cache_memory raises it, fewer model.lanes leave each more"
        );
    } else if granted.is_bold() {
        tracing::warn!(
            context,
            sequences,
            token,
            most,
            limit,
            "with the model.context that was asked for, keys and values may take more than half of the memory that is there"
        );
    } else {
        tracing::info!(
            context,
            sequences,
            token,
            most,
            limit,
            "KV cache memory is allocated as tokens arrive"
        );
    }
    Ok(context)
}

/// Bytes of keys and values per token, measured with a small context before the real one is
/// created.
fn place_bytes(model: &LlamaModel) -> Result<u64, String> {
    let settings = ContextSettings {
        tokens: STEP,
        batch: 1,
        outputs: 1,
        sequences: 1,
        threads: 1,
        kernels: Kernels::best(),
        exact_cache: false,
        embeddings: false,
    };
    Ok(Context::new(model, settings).map_err(|e| e.to_string())?.place_bytes())
}

/// Computes a first batch, which reads mapped weights from their file and plans a graph, so that no
/// request has to wait for that. Returns the bytes of keys and values per token.
///
/// # Errors
/// llama.cpp can't compute.
pub(super) fn warm_up(context: &mut Context<'_>) -> Result<u64, DecodeError> {
    let threads = context.threads();
    // One thread is enough for one token. Several threads would spin for seconds waiting for each
    // other while other programs keep the processors busy.
    context.compute_with(1);
    let compute = |context: &mut Context<'_>, position| {
        let mut batch = Batch::default();
        batch.push(0, position, 0, true);
        context.decode(&batch)?;
        Ok::<u64, DecodeError>(context.bytes(0))
    };
    let first = compute(context, 0)?;
    // A buffer that llama.cpp made in its own way doesn't report its size per token. In that case,
    // measure by how much the second token makes the sequence grow.
    let bytes = match context.place_bytes() {
        0 => compute(context, 1)?.saturating_sub(first),
        known => known,
    };
    context.forget(0, 0);
    context.compute_with(threads);
    Ok(bytes)
}
