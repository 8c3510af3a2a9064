//! Does the work of constraints that would block the engine's thread: indexing the vocabulary,
//! which takes seconds for a large one, and compiling new constraints.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Instant;

use super::command::{Client, Command, Request};
use super::command_sender::CommandSender;
use super::constraint::{CompiledConstraint, Grammars, STACK};
use super::vocabulary::Vocabulary;
use super::{Constraint, EngineError, Generate};
use crate::allocator;

/// The compiled grammars of an engine. Created on first use, once the vocabulary is known.
#[derive(Debug, Default)]
pub struct Index {
    /// `None` if the model can't be loaded.
    vocabulary: OnceLock<Option<Arc<Vocabulary>>>,
    grammars: OnceLock<Result<Arc<Grammars>, EngineError>>,
}

impl Index {
    /// Sets the vocabulary.
    pub fn tell(&self, vocabulary: &Arc<Vocabulary>) {
        let _ = self.vocabulary.set(Some(Arc::clone(vocabulary)));
    }

    /// If no vocabulary is set, marks that there will be none.
    pub fn give_up(&self) {
        let _ = self.vocabulary.set(None);
    }

    /// The grammars, if they are created.
    pub fn get(&self) -> Option<&Arc<Grammars>> {
        self.grammars.get()?.as_ref().ok()
    }

    /// The grammars. The first caller creates them and others wait. Callers also wait until the
    /// vocabulary is known.
    ///
    /// # Errors
    /// llguidance can't work with the vocabulary; there is no vocabulary.
    pub fn grammars(&self) -> Result<&Arc<Grammars>, EngineError> {
        let make = || {
            let Some(vocabulary) = self.vocabulary.wait() else { return Err(EngineError::Stopped) };
            let began = Instant::now();
            let broken = |_| Err(EngineError::Internal("indexing the vocabulary failed".to_owned()));
            let made = catch_unwind(AssertUnwindSafe(|| Grammars::new(&vocabulary.token_env())));
            let made = made.unwrap_or_else(broken).map(Arc::new);
            // Indexing takes several times as much memory as its result.
            allocator::give_back();
            match &made {
                Ok(_) => tracing::debug!(ms = began.elapsed().as_millis(), "constraints can be compiled"),
                Err(error) => tracing::error!(%error, "no constraint can be compiled"),
            }
            made
        };
        self.grammars.get_or_init(make).as_ref().map_err(Clone::clone)
    }

    /// Creates the grammars now, on a separate thread.
    pub fn prepare(self: &Arc<Self>) {
        let index = Arc::clone(self);
        let named = thread::Builder::new().name("vocabulary".to_owned());
        if let Err(error) = named.spawn(move || drop(index.grammars().cloned())) {
            tracing::warn!(%error, "the first constraint will take longer");
        }
    }
}

/// Sends requests to the engine's thread once their constraints are compiled. New constraints are
/// compiled on a thread of its own.
#[derive(Debug)]
pub struct GrammarCompiler {
    sender: CommandSender,
    index: Arc<Index>,
    jobs: mpsc::Sender<Job>,
    /// Set when the engine stops: when the requests that are still waiting are refused.
    deadline: Arc<OnceLock<Instant>>,
}

/// Work for the compiling thread.
enum Job {
    /// Compile the constraint of this request and send the request on.
    Compile(Box<Uncompiled>),
    /// Send the stop command. Everything that was accepted before has been sent by then.
    Stop,
}

/// A request whose constraint has to be compiled.
struct Uncompiled {
    generate: Generate,
    constraint: Constraint,
    client: Client,
}

impl GrammarCompiler {
    /// Starts the thread.
    ///
    /// # Panics
    /// The system can't start a thread.
    pub fn start(sender: CommandSender, index: Arc<Index>) -> Self {
        let (jobs, received) = mpsc::channel();
        let deadline = Arc::<OnceLock<Instant>>::default();
        let thread =
            Compiling { sender: sender.clone(), index: Arc::clone(&index), deadline: Arc::clone(&deadline) };
        let named = thread::Builder::new().name("grammars".to_owned()).stack_size(STACK);
        named.spawn(move || thread.run(received)).expect("the system starts a thread");
        Self { sender, index, jobs, deadline }
    }

    /// Sends a request. Its client is told if its constraint can't be compiled.
    ///
    /// # Errors
    /// The engine has failed or stopped.
    pub fn send(&self, mut generate: Generate, client: Client) -> Result<(), EngineError> {
        self.sender.check()?;
        if self.deadline.get().is_some() {
            return Err(EngineError::Stopped);
        }
        let Some(constraint) = generate.constraint.take() else {
            return self.sender.send(command(generate, None, client));
        };
        match self.index.get().and_then(|grammars| grammars.known(&constraint)) {
            Some(Ok(compiled)) => self.sender.send(command(generate, Some(compiled), client)),
            Some(Err(error)) => {
                client.refuse(error);
                Ok(())
            }
            None => {
                let job = Box::new(Uncompiled { generate, constraint, client });
                self.jobs.send(Job::Compile(job)).map_err(|_| EngineError::Stopped)
            }
        }
    }

    /// Sends the stop command after everything that was accepted before. What isn't compiled by the
    /// deadline is refused.
    pub fn stop(&self, deadline: Instant) {
        let deadline = *self.deadline.get_or_init(|| deadline);
        if self.jobs.send(Job::Stop).is_err() {
            self.sender.deliver(Command::Stop { deadline });
        }
    }
}

/// The compiling thread.
struct Compiling {
    sender: CommandSender,
    index: Arc<Index>,
    deadline: Arc<OnceLock<Instant>>,
}

impl Compiling {
    fn run(&self, jobs: mpsc::Receiver<Job>) {
        for job in jobs {
            match job {
                Job::Compile(job) => self.prepare(*job),
                Job::Stop => {
                    let deadline = self.deadline.get().copied().unwrap_or_else(Instant::now);
                    self.sender.deliver(Command::Stop { deadline });
                }
            }
        }
    }

    /// Compiles the constraint of a request, unless its client has stopped listening.
    fn prepare(&self, job: Uncompiled) {
        let Uncompiled { generate, constraint, client } = job;
        if client.is_gone() {
            return;
        }
        if self.deadline.get().is_some_and(|deadline| Instant::now() >= *deadline) {
            return client.refuse(EngineError::Stopped);
        }
        match self.compile(&constraint) {
            Ok(compiled) => self.sender.deliver(command(generate, Some(compiled), client)),
            Err(error) => client.refuse(error),
        }
    }

    fn compile(&self, constraint: &Constraint) -> Result<Box<CompiledConstraint>, EngineError> {
        let grammars = self.index.grammars()?;
        let broken = |_| Err(EngineError::Schema("compiling it failed".to_owned()));
        catch_unwind(AssertUnwindSafe(|| grammars.compile(constraint))).unwrap_or_else(broken)
    }
}

fn command(generate: Generate, constraint: Option<Box<CompiledConstraint>>, client: Client) -> Command {
    Command::Generate(Box::new(Request { generate, constraint, client }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use tokio::sync::mpsc::UnboundedReceiver;
    use tokio::sync::watch;
    use toktrie::ApproximateTokEnv;

    use super::*;
    use crate::engine::admission::Admission;
    use crate::engine::{AnswerEvent, EngineState, Health, Totals};

    /// The engine's thread, of which only the commands are seen.
    struct Engine {
        sender: CommandSender,
        commands: mpsc::Receiver<Command>,
        index: Arc<Index>,
        admission: Admission,
    }

    impl Engine {
        fn new() -> Self {
            let (commands, received) = mpsc::channel();
            let state = EngineState::Loading;
            let totals = Totals::default();
            let (_, health) = watch::channel(Health { state, beat: 0, running: 0, waiting: 0, totals });
            let grammars = Grammars::new(&ApproximateTokEnv::single_byte_env()).map(Arc::new);
            let index = Index { vocabulary: OnceLock::new(), grammars: OnceLock::from(grammars) };
            let admission = Admission::new(9, 0, 0);
            let sender = CommandSender { commands, health };
            Self { sender, commands: received, index: Arc::new(index), admission }
        }

        fn compiler(&self) -> GrammarCompiler {
            GrammarCompiler::start(self.sender.clone(), Arc::clone(&self.index))
        }

        fn client(&self) -> (Client, UnboundedReceiver<AnswerEvent>) {
            let (events, received) = tokio::sync::mpsc::unbounded_channel();
            let ticket = self.admission.ticket(0, true).unwrap();
            let (queued, span) = (Instant::now(), tracing::Span::none());
            (Client { events, ticket, queued, span }, received)
        }

        fn next(&self) -> Command {
            self.commands.recv_timeout(Duration::from_secs(20)).expect("a command comes")
        }
    }

    fn request(schema: Option<serde_json::Value>) -> Generate {
        let constraint = schema.map(Constraint::JsonSchema);
        Generate { constraint, ..Generate::new("r", Vec::new()) }
    }

    #[test]
    fn a_request_reaches_the_engine_with_its_constraint_compiled() {
        let engine = Engine::new();
        let compiler = engine.compiler();
        // Compiled first, and known the second time.
        for schema in [Some(json!({"type": "boolean"})), Some(json!({"type": "boolean"})), None] {
            let (client, _events) = engine.client();
            let constrained = schema.is_some();
            compiler.send(request(schema), client).unwrap();
            let Command::Generate(sent) = engine.next() else { panic!("not a request") };
            assert_eq!((sent.constraint.is_some(), sent.generate.constraint), (constrained, None));
        }
    }

    #[test]
    fn a_constraint_that_is_refused_is_told_to_the_client_alone() {
        let engine = Engine::new();
        let compiler = engine.compiler();
        for _ in 0..2 {
            let (client, mut events) = engine.client();
            compiler.send(request(Some(json!({"type": "nonsense"}))), client).unwrap();
            let told = events.blocking_recv();
            assert!(matches!(told, Some(AnswerEvent::Failed(EngineError::Schema(_)))), "{told:?}");
            assert_eq!(events.blocking_recv(), None);
        }
        assert!(engine.commands.try_recv().is_err());
    }

    #[test]
    fn what_is_accepted_before_a_stop_is_compiled_until_the_deadline() {
        let engine = Engine::new();
        let compiler = engine.compiler();
        let deadline = Instant::now() + Duration::from_secs(60);
        let (client, _events) = engine.client();
        compiler.send(request(Some(json!({"type": "null"}))), client).unwrap();
        compiler.stop(deadline);
        let (late, _events) = engine.client();
        assert_eq!(compiler.send(request(None), late), Err(EngineError::Stopped));
        assert!(matches!(engine.next(), Command::Generate(_)));
        assert!(matches!(engine.next(), Command::Stop { deadline: at } if at == deadline));

        let deadline = Arc::new(OnceLock::from(Instant::now()));
        let index = Arc::clone(&engine.index);
        let compiling = Compiling { sender: engine.sender.clone(), index, deadline };
        let (client, mut events) = engine.client();
        let (generate, constraint) = (request(None), Constraint::JsonObject);
        compiling.prepare(Uncompiled { generate, constraint, client });
        assert_eq!(events.blocking_recv(), Some(AnswerEvent::Failed(EngineError::Stopped)));
        assert!(engine.commands.try_recv().is_err());
    }
}
