//! Embeddings: a second context of the served model, which reads texts in small parts between the batches of the lanes and
//! takes the mean of what the model makes of their tokens.

use std::time::Instant;

use llama_cpp_2::model::LlamaModel;
use tokio::sync::oneshot;

use super::drafting::Cost;
use super::ffi::{Batch, Context, ContextSettings, DecodeError};
use super::handle::{LlamaSettings, Ticket};
use super::kernels::Kernels;
use super::scheduler::SHARE;
use super::thread_tuner::ThreadTuner;
use super::vocabulary::{Vocabulary, tokenize};
use super::{Embeddings, EngineError, Prompt};

/// Tokens that are read at a time. Always as many, so that a text has the same vector in any company; and few, because lanes
/// wait for them, and because llama.cpp keeps logits of each.
const PART: usize = SHARE;
/// Bytes of texts that are tokenised at a time.
const BYTES: usize = 64 << 10;
/// Tokens of the texts of one request.
const MOST: u64 = 300_000;

/// Texts that are being embedded.
pub struct Embedding {
    inputs: Vec<Prompt>,
    /// Token ids of those that have been judged: all are before any is computed.
    texts: Vec<Vec<u32>>,
    vectors: Vec<Vec<f32>>,
    /// Of the text behind the last vector: tokens that were read, and the sum of what the model made of them.
    read: usize,
    sum: Vec<f64>,
    reply: oneshot::Sender<Result<Embeddings, EngineError>>,
    _ticket: Ticket,
}

impl Embedding {
    /// Begins.
    pub fn new(
        inputs: Vec<Prompt>,
        reply: oneshot::Sender<Result<Embeddings, EngineError>>,
        ticket: Ticket,
    ) -> Self {
        let (texts, vectors, sum) = (Vec::new(), Vec::new(), Vec::new());
        Self { inputs, texts, vectors, read: 0, sum, reply, _ticket: ticket }
    }

    /// Whether nobody waits for it any more.
    pub fn cancelled(&self) -> bool {
        self.reply.is_closed()
    }

    /// Whether it is between two texts: another one may use the context.
    pub fn pauses(&self) -> bool {
        self.read == 0
    }

    /// Tells how it went.
    pub fn end(self, result: Result<Embeddings, EngineError>) {
        let _ = self.reply.send(result);
    }

    /// Tokenises some of the texts; the number of bytes in a text says that it is too long before anything is done with it.
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

/// The context; a text must fit it as a whole.
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
    /// llama.cpp can't, most likely for want of memory.
    pub fn new(
        model: &'a LlamaModel,
        settings: &LlamaSettings,
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

    /// Goes on with texts for a short while; gives vectors of length 1, one per text, when all are there.
    ///
    /// # Errors
    /// An empty text, one that is longer than the context, by its index; more texts than are taken at once.
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

    /// Reads the next part of a text.
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

    /// Computes the batch, with as many threads as get a processor.
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

/// A vector of length 1 in the direction of another: that of a sum is that of the mean.
fn unit(vector: &[f64]) -> Result<Vec<f32>, f64> {
    let norm = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    if !norm.is_normal() {
        return Err(norm);
    }
    Ok(vector.iter().map(|x| (x / norm) as f32).collect())
}
