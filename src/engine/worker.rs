//! The engine's thread: owns the model and its contexts, executes commands between batches, and
//! sends the heartbeat.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Instant;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;
use tokio::sync::watch;

use super::backend::backend;
use super::batching::{Entry, Lanes, room};
use super::cache_memory::available;
use super::command::{Client, Command, Request};
use super::computing::{ComputingReport, choose};
use super::embedding::{Embedder, Embedding};
use super::ffi::reading_weights;
use super::grammar_compiler::Index;
use super::handle::LlamaOptions;
use super::heartbeat::{BEAT, Heartbeat};
use super::kernels::Kernels;
use super::sequence::Sequence;
use super::spokes::{SpokeUse, Spokes};
use super::vocabulary::{Vocabulary, head, token_ids, tokenize};
use super::{
    AnswerEvent, Embeddings, EngineError, EngineState, Health, ModelInfo, Prompt, Query, Reply, Usage,
};
use crate::allocator;
use crate::config::ModelSettings;
use crate::gguf::{GgmlType, Gguf, check_model};

/// A request that waits for a lane.
struct Waiting<'a> {
    request: Request,
    spokes: SpokeUse<'a>,
}

/// Body of the engine's thread.
pub fn run(
    settings: &ModelSettings,
    options: &LlamaOptions,
    commands: &Receiver<Command>,
    health: &watch::Sender<Health>,
    index: &Arc<Index>,
) {
    let set_state = |state| health.send_modify(|health| health.state = state);
    let _waiting = Waited(index);
    match serve(settings, options, commands, health, index) {
        Ok(()) => {
            set_state(EngineState::Stopped);
            refuse_rest(commands, &EngineError::Stopped);
        }
        Err(reason) => {
            tracing::error!(path = %settings.path.display(), reason, "the engine failed");
            set_state(EngineState::Failed(reason.clone()));
            refuse_rest(commands, &EngineError::Model(reason));
        }
    }
}

/// Releases the threads that wait for the vocabulary, however the engine's thread ends.
struct Waited<'a>(&'a Index);

impl Drop for Waited<'_> {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

/// Refuses the commands that were sent before the state became final. No command is sent after that
/// (see `CommandSender::offer`).
fn refuse_rest(commands: &Receiver<Command>, error: &EngineError) {
    while let Ok(command) = commands.try_recv() {
        command.refuse(error);
    }
}

/// Loads the model and serves requests until told to stop. Returns an error if the model can't be
/// served.
fn serve(
    settings: &ModelSettings,
    options: &LlamaOptions,
    commands: &Receiver<Command>,
    health: &watch::Sender<Health>,
    index: &Arc<Index>,
) -> Result<(), String> {
    let began = Instant::now();
    // The self-test runs in a process of its own while this thread loads the weights.
    let choosing = choose(settings, options.self_test.clone());
    if !options.checked {
        check(&settings.path)?;
    }
    let model = load_checked(&settings.path, !options.own_memory)?;
    let read_ms = began.elapsed().as_millis();
    let vocabulary = Arc::new(Vocabulary::of(&model));
    let vocabulary_ms = began.elapsed().as_millis() - read_ms;
    let context = room(&model, settings)?;
    let mut info = ModelInfo { end_tokens: vocabulary.end_tokens(), ..describe(&model, settings, context)? };
    let kernels;
    (kernels, info.computing) = choosing.chosen()?;
    let lanes = Lanes::new(&model, settings, context, kernels)?;
    allocator::give_back();
    tracing::info!(
        name = info.name,
        context,
        lanes = settings.lanes,
        ms = began.elapsed().as_millis(),
        read_ms,
        vocabulary_ms,
        "model loaded"
    );
    health.send_modify(|health| health.state = EngineState::Ready(Arc::new(info)));
    index.tell(&vocabulary);
    if options.prepare_constraints {
        index.prepare();
    }
    let mut worker = Worker {
        settings,
        options,
        model: &model,
        context,
        kernels,
        vocabulary,
        index: Arc::clone(index),
        lanes,
        embedder: None,
        embeddings: VecDeque::new(),
        spokes: Spokes::new(&model),
        waiting: VecDeque::new(),
        read: None,
        stop_at: None,
        heartbeat: Heartbeat::new(health),
    };
    worker.serve(commands);
    Ok(())
}

/// Checks a model file with our own reader.
fn check(path: &Path) -> Result<(), String> {
    let file = Gguf::open(path).map_err(|e| e.to_string())?;
    check_model(&file).map_err(|e| e.to_string())
}

/// Maps a model file after our own reader has checked it.
pub fn load(path: &Path) -> Result<LlamaModel, String> {
    check(path)?;
    load_checked(path, true)
}

/// Loads a file whose content has been checked: maps it, or reads it into memory.
pub fn load_checked(path: &Path, mapped: bool) -> Result<LlamaModel, String> {
    if path.to_str().is_none() {
        return Err(format!("{}: a path that isn't UTF-8 can't be given to llama.cpp", path.display()));
    }
    let params = LlamaModelParams::default().with_use_mmap(mapped);
    let backend = backend();
    let read = || LlamaModel::load_from_file(backend, path, &params);
    let model = if mapped { read() } else { reading_weights(read) };
    model.map_err(|e| format!("{}: llama.cpp can't load it ({e}); its log says why", path.display()))
}

/// Whether the model runs faster with its weights in private memory, of which there is plenty.
/// Private memory can use huge pages (`ffi/buffers.rs`), a file mapping can't, and TLB misses on
/// small pages are an eighth of the time that our kernels take to read the weights. This is known
/// of our kernels only, so what they compute must make up a good part of the file.
pub fn own_memory_pays(file: &Gguf) -> bool {
    let all = |q8: bool| file.tensors().iter().filter(move |t| !q8 || t.kind == GgmlType::Q8_0);
    let bytes = |q8: bool| all(q8).map(|tensor| tensor.bytes).sum::<u64>();
    let fits = || available().is_some_and(|available| bytes(false) <= available / 2);
    Kernels::best().product.is_some() && bytes(true) >= bytes(false) / 4 && fits()
}

fn describe(model: &LlamaModel, settings: &ModelSettings, n_ctx: u32) -> Result<ModelInfo, String> {
    let text = |key: &str| model.meta_val_str(key).ok().filter(|text| !text.is_empty());
    let vocab = model.vocab();
    let marker = |id: LlamaToken| match id.0 {
        0.. => String::from_utf8_lossy(&vocab.token_to_piece(id, true, None)).into_owned(),
        _ => String::new(),
    };
    let stem = || settings.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(ModelInfo {
        name: text("general.name").unwrap_or_else(stem),
        architecture: text("general.architecture").unwrap_or_default(),
        parameters: model.n_params(),
        bytes: fs_err::metadata(&settings.path).map_err(|e| e.to_string())?.len(),
        n_embd: model.n_embd().unsigned_abs(),
        n_ctx,
        n_ctx_train: model.n_ctx_train(),
        n_vocab: model.n_vocab().unsigned_abs(),
        chat_template: text("tokenizer.chat_template"),
        bos_token: marker(vocab.bos()),
        eos_token: marker(vocab.eos()),
        computing: ComputingReport::default(),
        end_tokens: Vec::new(),
    })
}

/// A prompt and its tokens.
struct Read {
    prompt: Prompt,
    ids: Vec<u32>,
    head: Option<usize>,
}

struct Worker<'a> {
    settings: &'a ModelSettings,
    options: &'a LlamaOptions,
    model: &'a LlamaModel,
    context: u32,
    kernels: Kernels,
    vocabulary: Arc<Vocabulary>,
    index: Arc<Index>,
    lanes: Lanes<'a>,
    embedder: Option<Embedder<'a>>,
    /// Texts to embed, next one first.
    embeddings: VecDeque<Embedding>,
    spokes: Spokes<'a>,
    waiting: VecDeque<Waiting<'a>>,
    /// The prompt that was tokenised last.
    read: Option<Read>,
    /// When the requests that are still running are failed. Set by the stop command.
    stop_at: Option<Instant>,
    heartbeat: Heartbeat<'a>,
}

impl<'a> Worker<'a> {
    fn serve(&mut self, commands: &Receiver<Command>) {
        loop {
            let idle = self.lanes.running() == 0 && self.waiting.is_empty() && self.embeddings.is_empty();
            if idle && self.stop_at.is_some() {
                return;
            }
            if idle {
                match commands.recv_timeout(BEAT) {
                    Ok(command) => self.take(command),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            loop {
                match commands.try_recv() {
                    Ok(command) => self.take(command),
                    Err(TryRecvError::Empty) => break,
                    // All handles of the engine are dropped, so the answers have no reader.
                    Err(TryRecvError::Disconnected) => return self.fail_all(),
                }
            }
            if self.stop_at.is_some_and(|at| Instant::now() >= at) {
                return self.fail_all();
            }
            self.waiting.retain(|waiting| !waiting.request.client.is_gone());
            self.lanes.drop_cancelled();
            self.admit();
            // A batch may take half a second.
            self.beat();
            self.lanes.step(&self.vocabulary, self.index.get().map(AsRef::as_ref), &self.heartbeat);
            self.embed();
            self.free_spokes();
            self.beat();
        }
    }

    fn take(&mut self, command: Command) {
        if self.stop_at.is_some() {
            return command.refuse(&EngineError::Stopped);
        }
        match command {
            // Acquire the spokes now rather than at admission, so that an unload command that
            // follows waits for this request.
            Command::Generate(request) => match self.spokes.begin(&request.generate.spokes) {
                Ok(spokes) => self.waiting.push_back(Waiting { request: *request, spokes }),
                Err(error) => request.client.refuse(error),
            },
            Command::LoadSpoke { spoke, reply } => drop(reply.send(self.spokes.load(spoke))),
            Command::UnloadSpoke { generation, reply } => self.spokes.unload(generation, reply),
            Command::Query { query, reply } => drop(reply.send(self.query(&query))),
            Command::Embed { inputs, reply, ticket } => {
                self.embeddings.push_back(Embedding::new(inputs, reply, ticket));
            }
            Command::Stop { deadline } => self.stop_at = Some(deadline),
        }
    }

    fn query(&self, query: &Query) -> Result<Reply, EngineError> {
        Ok(match query {
            Query::Tokenize { prompt, whole: true } => Reply::Tokens(tokenize(self.model, prompt)?),
            Query::Tokenize { prompt, whole: false } => Reply::Tokens(token_ids(self.model, prompt)?),
            Query::TokenizeAll(prompts) => {
                let ids = prompts.iter().map(|prompt| token_ids(self.model, prompt));
                Reply::AllTokens(ids.collect::<Result<_, _>>()?)
            }
            Query::Pieces(ids) => Reply::Pieces(self.vocabulary.pieces(ids)?),
            Query::Lanes => Reply::Lanes(self.lanes.states()),
        })
    }

    /// Embeds a part of a text, about as much work as a batch, once per step of the lanes.
    fn embed(&mut self) {
        self.embeddings.retain(|work| !work.cancelled());
        let Some(mut work) = self.embeddings.pop_front() else { return };
        match self.embed_part(&mut work) {
            Ok(None) if work.pauses() => self.embeddings.push_back(work),
            Ok(None) => self.embeddings.push_front(work),
            Ok(Some(found)) => work.end(Ok(found)),
            Err(error) => work.end(Err(error)),
        }
    }

    fn embed_part(&mut self, work: &mut Embedding) -> Result<Option<Embeddings>, EngineError> {
        if self.embedder.is_none() {
            self.embedder = Some(Embedder::new(self.model, self.settings, self.context, self.kernels)?);
        }
        let embedder = self.embedder.as_mut().expect("it was made above");
        embedder.step(self.model, &self.vocabulary, work)
    }

    /// Moves waiting requests into free lanes, oldest first.
    fn admit(&mut self) {
        while self.lanes.has_free()
            && let Some(mut waiting) = self.waiting.pop_front()
        {
            waiting.request.client.ticket.admitted();
            // Publish the load before the first event is sent: a client that sees the event may
            // query it.
            self.heartbeat.beat(
                self.lanes.running() as u32 + 1,
                self.waiting.len() as u32,
                self.lanes.totals(),
            );
            let Client { events, span, .. } = &waiting.request.client;
            let (events, span) = (events.clone(), span.clone());
            let _entered = span.enter();
            if let Err(error) = self.admit_one(waiting) {
                tracing::debug!(%error, "the engine refuses it");
                let _ = events.send(AnswerEvent::Failed(error));
            }
        }
    }

    fn admit_one(&mut self, waiting: Waiting<'a>) -> Result<(), EngineError> {
        let Waiting { request: Request { generate, constraint, client }, spokes } = waiting;
        let Client { events, ticket, queued, span } = client;
        let (prompt, head) = self.read(&generate.prompt)?;
        let tokens = prompt.len() as u32;
        if tokens >= self.context {
            return Err(EngineError::PromptTooLong { tokens, context: self.context });
        }
        let room = self.context - tokens;
        let budget = generate.max_tokens.map_or(room, |given| given.min(room)) as usize;
        let session = match constraint {
            Some(constraint) => Some(self.index.grammars()?.begin(*constraint)),
            None => None,
        };
        let placement = self.lanes.placement(&prompt, spokes.origin, generate.cache);
        let queued_ms = queued.elapsed().as_secs_f64() * 1e3;
        let cached_tokens = placement.known as u32;
        let usage = Usage { prompt_tokens: tokens, cached_tokens, queued_ms, ..Usage::default() };
        let sequence = Sequence::new(&generate, &prompt, events, session, budget, usage)?;
        let sequence = if self.options.force { sequence } else { sequence.without_force() };
        tracing::debug!(
            answer = generate.id,
            prompt = tokens,
            cached = cached_tokens,
            queued_ms,
            "request admitted to a lane"
        );
        let drafts = generate.draft && self.settings.draft;
        let entry = Entry { prompt, head, sequence, spokes, drafts, ticket, span };
        self.lanes.start(placement, entry, &self.vocabulary);
        Ok(())
    }

    /// Tokenises a prompt. Several answers to the same prompt are admitted one after another, so
    /// the last result is cached.
    fn read(&mut self, prompt: &Prompt) -> Result<(Vec<u32>, Option<usize>), EngineError> {
        if let Some(read) = self.read.as_ref().filter(|read| read.prompt == *prompt) {
            return Ok((read.ids.clone(), read.head));
        }
        let least = self.vocabulary.least_tokens(prompt);
        if least >= u64::from(self.context) {
            let bytes = prompt.iter().map(|segment| segment.text.len() as u64).sum();
            return Err(EngineError::PromptTooLarge { bytes, least, context: self.context });
        }
        let ids = tokenize(self.model, prompt)?;
        let head = self.lanes.keeps_heads().then(|| head(self.model, prompt)).flatten();
        self.read = Some(Read { prompt: prompt.clone(), ids: ids.clone(), head });
        Ok((ids, head))
    }

    /// Frees spokes that are marked for unloading and have no request left.
    fn free_spokes(&mut self) {
        let idle = self.spokes.idle();
        if !idle.is_empty() {
            self.lanes.detach();
            self.spokes.free(idle);
        }
    }

    fn fail_all(&mut self) {
        for waiting in self.waiting.drain(..) {
            waiting.request.client.refuse(EngineError::Stopped);
        }
        self.embeddings.drain(..).for_each(|work| work.end(Err(EngineError::Stopped)));
        self.lanes.fail_all(&EngineError::Stopped);
    }

    fn beat(&self) {
        let (running, waiting) = (self.lanes.running() as u32, self.waiting.len() as u32);
        self.heartbeat.beat(running, waiting, self.lanes.totals());
    }
}
