//! Computes embeddings in a second context of the served model. Texts are decoded in small parts
//! between the batches of the lanes; an embedding is the mean over the text's tokens.

use std::time::Instant;

use llama_cpp_2::model::LlamaModel;
use tokio::sync::oneshot;

use super::admission::Ticket;
use super::drafting::Cost;
use super::ffi::{Batch, Context, ContextSettings, DecodeError};
use super::kernels::Kernels;
use super::scheduler::SHARE;
use super::thread_tuner::ThreadTuner;
use super::vocabulary::{Vocabulary, tokenize};
use super::{Embeddings, EngineError, Prompt};
use crate::config::ModelSettings;

/// Tokens per part. Constant, so that a text's vector doesn't depend on other texts; small, because
/// lanes wait meanwhile and llama.cpp keeps logits of each token.
const PART: usize = SHARE;
/// Bytes of text that are tokenised at a time.
const BYTES: usize = 64 << 10;
/// Maximum tokens of one request's texts.
const MOST: u64 = 300_000;

/// An embedding request in progress.
pub struct Embedding {
    inputs: Vec<Prompt>,
    /// Token ids of the texts that have been checked. All texts are checked before any is computed.
    texts: Vec<Vec<u32>>,
    vectors: Vec<Vec<f32>>,
    /// Progress of the text after the last finished vector: number of tokens read, and the sum of
    /// their outputs.
    read: usize,
    sum: Vec<f64>,
    reply: oneshot::Sender<Result<Embeddings, EngineError>>,
    _ticket: Ticket,
}

impl Embedding {
    /// Begins a request.
    pub fn new(
        inputs: Vec<Prompt>,
        reply: oneshot::Sender<Result<Embeddings, EngineError>>,
        ticket: Ticket,
    ) -> Self {
        let (texts, vectors, sum) = (Vec::new(), Vec::new(), Vec::new());
        Self { inputs, texts, vectors, read: 0, sum, reply, _ticket: ticket }
    }

    /// Whether the client has stopped waiting for the result.
    pub fn cancelled(&self) -> bool {
        self.reply.is_closed()
    }

    /// Whether the request is between two texts, so that another request may use the context.
    pub fn pauses(&self) -> bool {
        self.read == 0
    }

    /// Sends the result.
    pub fn end(self, result: Result<Embeddings, EngineError>) {
        let _ = self.reply.send(result);
    }

    /// Tokenises some of the texts. A text whose byte length already shows that it is too long is
    /// refused without being tokenised.
    fn judge(
        &mut self,
        model: &LlamaModel,
        vocabulary: &Vocabulary,
        context: u32,
    ) -> Result<(), EngineError> {
        let mut bytes = 0;
        while bytes < BYTES
            && let Some(input) = self.inputs.get(self.texts.len())
        {
            let index = self.texts.len() as u32;
            let least = vocabulary.least_tokens(input);
            if least > u64::from(context) {
                let tokens = u32::try_from(least).unwrap_or(u32::MAX);
                return Err(EngineError::InputTooLong { index, tokens, context });
            }
            let ids = tokenize(model, input)?;
            let tokens = ids.len() as u32;
            if tokens > context {
                return Err(EngineError::InputTooLong { index, tokens, context });
            }
            bytes += input.iter().map(|segment| segment.text.len()).sum::<usize>().max(1);
            self.texts.push(ids);
            if self.tokens() > MOST {
                return Err(EngineError::TooMuchInput { limit: MOST });
            }
        }
        Ok(())
    }

    fn tokens(&self) -> u64 {
        self.texts.iter().map(|ids| ids.len() as u64).sum()
    }

    fn found(&mut self) -> Embeddings {
        Embeddings { vectors: std::mem::take(&mut self.vectors), prompt_tokens: self.tokens() as u32 }
    }
}

/// The context for embeddings. A text must fit into it as a whole.
pub struct Embedder<'a> {
    context: Context<'a>,
    batch: Batch,
    tuner: ThreadTuner,
    cost: Cost,
    limit: u32,
}

impl<'a> Embedder<'a> {
    /// Makes the context, for texts of at most `limit` tokens.
    ///
    /// # Errors
    /// llama.cpp can't create it, most likely because memory is short.
    pub fn new(
        model: &'a LlamaModel,
        settings: &ModelSettings,
        limit: u32,
        kernels: Kernels,
    ) -> Result<Self, EngineError> {
        let settings = ContextSettings {
            tokens: limit,
            batch: PART as u32,
            outputs: PART as u32,
            sequences: 1,
            threads: settings.threads,
            kernels,
            exact_cache: false,
            embeddings: true,
        };
        let context = Context::new(model, settings).map_err(|e| {
            EngineError::Internal(format!("no context for embeddings of {limit} tokens: {e}"))
        })?;
        let tuner = ThreadTuner::new(context.threads(), Instant::now());
        Ok(Self { context, batch: Batch::default(), tuner, cost: Cost::default(), limit })
    }

    /// Works on the texts for a short while. Returns the unit vectors, one per text, once all are
    /// computed.
    ///
    /// # Errors
    /// A text that is empty or longer than the context (with its index); more tokens than one
    /// request may have.
    pub fn step(
        &mut self,
        model: &LlamaModel,
        vocabulary: &Vocabulary,
        work: &mut Embedding,
    ) -> Result<Option<Embeddings>, EngineError> {
        if work.texts.len() < work.inputs.len() {
            work.judge(model, vocabulary, self.limit)?;
        } else {
            self.read(work)?;
        }
        Ok((work.vectors.len() == work.inputs.len()).then(|| work.found()))
    }

    /// Reads the next part of the current text.
    fn read(&mut self, work: &mut Embedding) -> Result<(), EngineError> {
        let wrong = |e: &dyn std::fmt::Display| EngineError::Internal(format!("llama.cpp can't embed: {e}"));
        let Embedding { texts, vectors, read, sum, .. } = work;
        let Some(ids) = texts.get(vectors.len()) else { return Ok(()) };
        if *read == 0 {
            self.context.forget(0, 0);
            sum.clear();
        }
        let part = &ids[*read..ids.len().min(*read + PART)];
        self.batch.clear();
        for (position, &id) in (*read as u32..).zip(part) {
            self.batch.push(id, position, 0, true);
        }
        self.compute().map_err(|e| wrong(&e))?;
        for index in 0..part.len() {
            let row = self.context.embedding(index);
            sum.resize(row.len(), 0.0);
            sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        *read += part.len();
        if *read == ids.len() {
            *read = 0;
            vectors.push(unit(sum).map_err(|length| wrong(&format!("the mean has length {length}")))?);
        }
        Ok(())
    }

    /// Computes the batch with as many threads as the tuner chooses.
    fn compute(&mut self) -> Result<(), DecodeError> {
        let tokens = self.batch.len();
        let price = self.cost.prompt_token() * tokens as f64;
        self.tuner.lead(&mut self.context, price);
        let began = Instant::now();
        self.context.decode(&self.batch)?;
        let seconds = began.elapsed().as_secs_f64();
        if !self.tuner.is_trying() {
            self.cost.learn_prompt(tokens, seconds);
        }
        self.tuner.worked(price, seconds, Instant::now());
        Ok(())
    }
}

/// Normalises a vector to length 1. The sum of the outputs has the same direction as their mean.
fn unit(vector: &[f64]) -> Result<Vec<f32>, f64> {
    let norm = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    if !norm.is_normal() {
        return Err(norm);
    }
    Ok(vector.iter().map(|x| (x / norm) as f32).collect())
}
