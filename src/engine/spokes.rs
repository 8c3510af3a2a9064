//! The spokes of the engine's thread: loads them, lends them to requests, and frees them after the
//! last request.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::rc::Rc;

use llama_cpp_2::model::LlamaModel;
use tokio::sync::oneshot;

use super::ffi::Adapter;
use super::kernels::felix;
use super::prefix_cache::{NO_SPOKE, Origin};
use super::{EngineError, LoadSpoke, LoadedSpoke, ScaledSpoke, SpokeChange};
use crate::adapter::{Generation, Kind, Limits, Post, read_folded};
use crate::gguf::Gguf;

/// Receives the result of a change.
pub type Answer = oneshot::Sender<Result<LoadedSpoke, EngineError>>;

/// A loaded spoke. Requests hold a reference while they run.
#[derive(Debug)]
struct Spoke<'a> {
    weights: Weights<'a>,
    bytes: u64,
}

#[derive(Debug)]
enum Weights<'a> {
    Lora(Rc<Adapter<'a>>),
    Felix(Rc<felix::Weights>),
}

/// The spokes that a request runs with.
#[derive(Debug, Clone, Default)]
pub struct SpokeUse<'a> {
    /// Identifies all spokes, for sharing keys and values.
    pub origin: Origin,
    /// Identifies the LoRAs alone. Requests with equal values can be computed in one batch.
    pub loras: Origin,
    spokes: Vec<(Rc<Spoke<'a>>, f32)>,
}

impl<'a> SpokeUse<'a> {
    /// The LoRAs, in the form that a context takes.
    pub fn adapters(&self) -> Vec<(Rc<Adapter<'a>>, f32)> {
        let lora = |(spoke, scale): &(Rc<Spoke<'a>>, f32)| match &spoke.weights {
            Weights::Lora(adapter) => Some((Rc::clone(adapter), *scale)),
            Weights::Felix(_) => None,
        };
        self.spokes.iter().filter_map(lora).collect()
    }

    /// The Felix spoke, if there is one.
    pub fn felix(&self) -> Option<(Rc<felix::Weights>, f32)> {
        self.spokes.iter().find_map(|(spoke, scale)| match &spoke.weights {
            Weights::Lora(_) => None,
            Weights::Felix(weights) => Some((Rc::clone(weights), *scale)),
        })
    }
}

/// Reads the weights of a Felix spoke. Independent of the engine's thread.
///
/// # Errors
/// [`EngineError::Spoke`]: the file is no Felix spoke, or it can't be read.
pub fn read_felix(path: &Path, post: &Path) -> Result<felix::Weights, EngineError> {
    // Inspection has checked its size, by limits that are not known here.
    let all = Limits {
        max_bytes: u64::MAX,
        max_resident_bytes: u64::MAX,
        max_rank: u64::MAX,
        max_tensors: u64::MAX,
        max_header_bytes: u64::MAX,
    };
    let eps = || Ok(Post::rms_eps_of(&Gguf::open(post)?)?);
    let folded = read_folded(path, &all, eps, felix::Layer::new);
    folded.map(Into::into).map_err(|refusal| EngineError::Spoke(refusal.to_string()))
}

/// All spokes of the engine's thread.
pub struct Spokes<'a> {
    model: &'a LlamaModel,
    loaded: HashMap<Generation, Rc<Spoke<'a>>>,
    /// Spokes to free once no request uses them, with the pending answers.
    leaving: HashMap<Generation, Vec<Answer>>,
    /// A number for each set of spokes and scales that was used. It depends on content, so keys and
    /// values stay valid when a spoke is freed and loaded again.
    origins: HashMap<Vec<(Generation, u32)>, Origin>,
    last_origin: Origin,
}

/// Maximum number of sets that are remembered, because clients can make up scales. When it is
/// exceeded, all sets get new numbers and cached prompts are computed anew.
const MOST_ORIGINS: usize = 1 << 12;

impl<'a> Spokes<'a> {
    /// Creates an empty collection.
    pub fn new(model: &'a LlamaModel) -> Self {
        let (loaded, leaving, origins) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { model, loaded, leaving, origins, last_origin: NO_SPOKE }
    }

    /// Executes a change. The answer to an unload that has to wait is sent by [`Spokes::free`].
    /// `felix` holds the weights if a Felix spoke is loaded.
    pub fn change(&mut self, change: SpokeChange, felix: Option<felix::Weights>, answer: Answer) {
        match change {
            SpokeChange::Load(spoke) => {
                let loaded = self.load(&spoke, felix);
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

    fn load(&mut self, spoke: &LoadSpoke, felix: Option<felix::Weights>) -> Result<LoadedSpoke, EngineError> {
        if let Some(loaded) = self.loaded.get(&spoke.generation) {
            return Ok(LoadedSpoke { resident_bytes: loaded.bytes });
        }
        let refused = |e: &dyn std::fmt::Display| EngineError::Spoke(e.to_string());
        let (weights, bytes) = match (spoke.kind, felix) {
            (Kind::Lora, _) => {
                let bytes = fs_err::metadata(&spoke.path).map_err(|e| refused(&e))?.len();
                let adapter = Adapter::load(self.model, &spoke.path).map_err(|e| refused(&e))?;
                (Weights::Lora(Rc::new(adapter)), bytes)
            }
            (Kind::Felix, Some(weights)) => {
                let bytes = weights.bytes();
                (Weights::Felix(Rc::new(weights)), bytes)
            }
            (Kind::Felix, None) => return Err(refused(&"its weights were not read")),
        };
        let generation = spoke.generation.short();
        tracing::info!(name = spoke.name, generation, kind = %spoke.kind, bytes, "spoke loaded");
        self.loaded.insert(spoke.generation, Rc::new(Spoke { weights, bytes }));
        Ok(LoadedSpoke { resident_bytes: bytes })
    }

    /// Cancels a pending unload, because the spoke was loaded again.
    fn stay(&mut self, generation: Generation) {
        for answer in self.leaving.remove(&generation).unwrap_or_default() {
            let _ = answer.send(Ok(LoadedSpoke { resident_bytes: 0 }));
        }
    }

    /// Acquires a set of spokes, all of which must be loaded.
    ///
    /// # Errors
    /// [`EngineError::SpokeNotLoaded`]; more than one Felix spoke.
    pub fn begin(&mut self, set: &[ScaledSpoke]) -> Result<SpokeUse<'a>, EngineError> {
        let one = |spoke: &ScaledSpoke| {
            let missing = EngineError::SpokeNotLoaded { generation: spoke.generation };
            let loaded = self.loaded.get(&spoke.generation).ok_or(missing)?;
            Ok((Rc::clone(loaded), spoke.scale))
        };
        let spokes = set.iter().map(one).collect::<Result<Vec<_>, EngineError>>()?;
        let is_lora: Vec<bool> =
            spokes.iter().map(|(spoke, _)| matches!(spoke.weights, Weights::Lora(_))).collect();
        let felix = is_lora.iter().filter(|&&lora| !lora).count();
        if felix > 1 {
            return Err(EngineError::Spoke(format!("a request can use only one Felix spoke, not {felix}")));
        }
        let loras = set.iter().zip(is_lora).filter(|(_, lora)| *lora).map(|(spoke, _)| spoke);
        let (origin, loras) = (self.origin(set.iter()), self.origin(loras));
        Ok(SpokeUse { origin, loras, spokes })
    }

    /// The number of a set.
    fn origin<'s>(&mut self, set: impl Iterator<Item = &'s ScaledSpoke>) -> Origin {
        let key: Vec<_> = set.map(|spoke| (spoke.generation, spoke.scale.to_bits())).collect();
        if key.is_empty() {
            return NO_SPOKE;
        }
        if let Some(&origin) = self.origins.get(&key) {
            return origin;
        }
        if self.origins.len() >= MOST_ORIGINS {
            self.origins.clear();
        }
        self.last_origin += 1;
        self.origins.insert(key, self.last_origin);
        self.last_origin
    }

    /// Spokes that are to be freed and have no request left. The context must stop using them
    /// before they are passed to [`Spokes::free`].
    pub fn idle(&self) -> HashSet<Generation> {
        let idle = |generation: &&Generation| {
            self.loaded.get(*generation).is_some_and(|spoke| Rc::strong_count(spoke) == 1)
        };
        self.leaving.keys().filter(idle).copied().collect()
    }

    /// Frees spokes and answers the pending unloads.
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
