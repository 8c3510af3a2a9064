//! Spokes that the engine's thread holds: loaded, used by requests, and freed behind the last of them.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use llama_cpp_2::model::LlamaModel;
use tokio::sync::oneshot;

use super::cache::{NO_SPOKE, Origin};
use super::ffi::Adapter;
use super::{EngineError, LoadSpoke, LoadedSpoke, ScaledSpoke, SpokeChange};
use crate::spoke::{Generation, Kind};

/// Where the answer to a change goes.
pub type Answer = oneshot::Sender<Result<LoadedSpoke, EngineError>>;

/// A loaded spoke; requests hold it as long as they run.
#[derive(Debug)]
struct Spoke<'a> {
    adapter: Rc<Adapter<'a>>,
    bytes: u64,
}

/// What a request runs with.
#[derive(Debug, Clone, Default)]
pub struct SpokeUse<'a> {
    /// What its keys and values are computed with.
    pub origin: Origin,
    spokes: Vec<(Rc<Spoke<'a>>, f32)>,
}

impl<'a> SpokeUse<'a> {
    /// The adapters, as a context takes them.
    pub fn adapters(&self) -> Vec<(Rc<Adapter<'a>>, f32)> {
        self.spokes.iter().map(|(spoke, scale)| (Rc::clone(&spoke.adapter), *scale)).collect()
    }
}

/// All spokes of the thread.
pub struct Spokes<'a> {
    model: &'a LlamaModel,
    loaded: HashMap<Generation, Rc<Spoke<'a>>>,
    /// To be freed when nobody runs with them any more.
    leaving: HashMap<Generation, Vec<Answer>>,
    /// Each set that was ever used has a number of its own: its content and scales decide, so keys and values stay right
    /// when a spoke is freed and loaded again.
    origins: HashMap<Vec<(Generation, u32)>, Origin>,
}

impl<'a> Spokes<'a> {
    /// None yet.
    pub fn new(model: &'a LlamaModel) -> Self {
        Self { model, loaded: HashMap::new(), leaving: HashMap::new(), origins: HashMap::new() }
    }

    /// Follows a change; an answer that has to wait is given by [`Spokes::free`].
    pub fn change(&mut self, change: SpokeChange, answer: Answer) {
        match change {
            SpokeChange::Load(spoke) => {
                let loaded = self.load(&spoke);
                if loaded.is_ok() {
                    self.stay(spoke.generation);
                }
                let _ = answer.send(loaded);
            }
            SpokeChange::Unload(generation) if self.loaded.contains_key(&generation) => {
                self.leaving.entry(generation).or_default().push(answer);
            }
            SpokeChange::Unload(_) => drop(answer.send(Ok(LoadedSpoke { resident_bytes: 0 }))),
        }
    }

    fn load(&mut self, spoke: &LoadSpoke) -> Result<LoadedSpoke, EngineError> {
        if let Some(loaded) = self.loaded.get(&spoke.generation) {
            return Ok(LoadedSpoke { resident_bytes: loaded.bytes });
        }
        if spoke.kind != Kind::Lora {
            return Err(EngineError::Spoke(format!(
                "{} is a {} spoke; this version runs LoRA spokes",
                spoke.name, spoke.kind
            )));
        }
        let refused = |e: &dyn std::fmt::Display| EngineError::Spoke(e.to_string());
        let bytes = fs_err::metadata(&spoke.path).map_err(|e| refused(&e))?.len();
        let adapter = Adapter::load(self.model, &spoke.path).map_err(|e| refused(&e))?;
        tracing::info!(name = spoke.name, generation = spoke.generation.short(), bytes, "spoke loaded");
        self.loaded.insert(spoke.generation, Rc::new(Spoke { adapter: Rc::new(adapter), bytes }));
        Ok(LoadedSpoke { resident_bytes: bytes })
    }

    /// A load takes back an unload that still waits.
    fn stay(&mut self, generation: Generation) {
        for answer in self.leaving.remove(&generation).unwrap_or_default() {
            let _ = answer.send(Ok(LoadedSpoke { resident_bytes: 0 }));
        }
    }

    /// Uses a set of spokes; all of them must be there.
    ///
    /// # Errors
    /// [`EngineError::SpokeNotLoaded`].
    pub fn begin(&mut self, set: &[ScaledSpoke]) -> Result<SpokeUse<'a>, EngineError> {
        if set.is_empty() {
            return Ok(SpokeUse { origin: NO_SPOKE, spokes: Vec::new() });
        }
        let one = |spoke: &ScaledSpoke| {
            let missing = EngineError::SpokeNotLoaded { generation: spoke.generation };
            let loaded = self.loaded.get(&spoke.generation).ok_or(missing)?;
            Ok((Rc::clone(loaded), spoke.scale))
        };
        let spokes = set.iter().map(one).collect::<Result<_, EngineError>>()?;
        let key = set.iter().map(|spoke| (spoke.generation, spoke.scale.to_bits())).collect();
        let next = self.origins.len() as Origin + NO_SPOKE + 1;
        let origin = *self.origins.entry(key).or_insert(next);
        Ok(SpokeUse { origin, spokes })
    }

    /// Spokes that are to be freed and that no request runs with; the context must not use them any more when they are
    /// given to [`Spokes::free`].
    pub fn idle(&self) -> HashSet<Generation> {
        let idle = |generation: &&Generation| {
            self.loaded.get(*generation).is_some_and(|spoke| Rc::strong_count(spoke) == 1)
        };
        self.leaving.keys().filter(idle).copied().collect()
    }

    /// Frees spokes.
    pub fn free(&mut self, generations: HashSet<Generation>) {
        for generation in generations {
            let Some(spoke) = self.loaded.remove(&generation) else { continue };
            let resident_bytes = spoke.bytes;
            drop(spoke);
            tracing::info!(generation = generation.short(), bytes = resident_bytes, "spoke freed");
            for answer in self.leaving.remove(&generation).unwrap_or_default() {
                let _ = answer.send(Ok(LoadedSpoke { resident_bytes }));
            }
        }
    }
}
