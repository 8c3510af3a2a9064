//! The spokes of the engine's thread: loads them, lends them to requests, and frees them after the
//! last request.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use llama_cpp_2::model::LlamaModel;
use tokio::sync::oneshot;

use super::ffi::Adapter;
use super::kernels::felix;
use super::prefix_cache::{NO_SPOKE, Origin};
use super::{EngineError, LoadSpoke, LoadedSpoke, ScaledSpoke};
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

/// A spoke to load, read as far as another thread than the engine's can read it.
pub struct PreparedSpoke {
    generation: Generation,
    /// Name for logs.
    name: String,
    weights: PreparedWeights,
}

enum PreparedWeights {
    /// The path of a LoRA. llama.cpp reads it, on the engine's thread.
    Lora(PathBuf),
    Felix(felix::Weights),
}

impl PreparedSpoke {
    /// A LoRA.
    pub fn lora(spoke: LoadSpoke) -> Self {
        let LoadSpoke { generation, name, path, .. } = spoke;
        Self { generation, name, weights: PreparedWeights::Lora(path) }
    }

    /// A Felix spoke for the model file `post`. Reads its weights.
    ///
    /// # Errors
    /// [`EngineError::Spoke`]: the file is no Felix spoke, or it can't be read.
    pub fn felix(spoke: LoadSpoke, post: &Path) -> Result<Self, EngineError> {
        // Inspection has checked its size, by limits that are not known here.
        let all = Limits {
            max_bytes: u64::MAX,
            max_resident_bytes: u64::MAX,
            max_rank: u64::MAX,
            max_tensors: u64::MAX,
            max_header_bytes: u64::MAX,
        };
        let LoadSpoke { generation, name, path, .. } = spoke;
        let eps = || Ok(Post::rms_eps_of(&Gguf::open(post)?)?);
        let folded = read_folded(&path, &all, eps, felix::Layer::new);
        let weights = folded.map_err(|refusal| EngineError::Spoke(refusal.to_string()))?;
        Ok(Self { generation, name, weights: PreparedWeights::Felix(weights.into()) })
    }
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

    /// Loads a spoke. If it is already loaded, it stays, and a pending unload is cancelled.
    ///
    /// # Errors
    /// [`EngineError::Spoke`]: llama.cpp can't load it.
    pub fn load(&mut self, spoke: PreparedSpoke) -> Result<LoadedSpoke, EngineError> {
        let generation = spoke.generation;
        let loaded = match self.loaded.get(&generation) {
            Some(loaded) => LoadedSpoke { resident_bytes: loaded.bytes },
            None => self.add(spoke)?,
        };
        self.stay(generation);
        Ok(loaded)
    }

    fn add(&mut self, spoke: PreparedSpoke) -> Result<LoadedSpoke, EngineError> {
        let PreparedSpoke { generation, name, weights } = spoke;
        let refused = |e: &dyn std::fmt::Display| EngineError::Spoke(e.to_string());
        let (weights, kind, bytes) = match weights {
            PreparedWeights::Lora(path) => {
                let bytes = fs_err::metadata(&path).map_err(|e| refused(&e))?.len();
                let adapter = Adapter::load(self.model, &path).map_err(|e| refused(&e))?;
                (Weights::Lora(Rc::new(adapter)), Kind::Lora, bytes)
            }
            PreparedWeights::Felix(weights) => {
                let bytes = weights.bytes();
                (Weights::Felix(Rc::new(weights)), Kind::Felix, bytes)
            }
        };
        tracing::info!(name, generation = generation.short(), %kind, bytes, "spoke loaded");
        self.loaded.insert(generation, Rc::new(Spoke { weights, bytes }));
        Ok(LoadedSpoke { resident_bytes: bytes })
    }

    /// Frees a spoke once no request uses it ([`Spokes::idle`]); [`Spokes::free`] answers then. If
    /// it isn't loaded, answers at once.
    pub fn unload(&mut self, generation: Generation, answer: Answer) {
        if self.loaded.contains_key(&generation) {
            self.leaving.entry(generation).or_default().push(answer);
        } else {
            let _ = answer.send(Ok(LoadedSpoke { resident_bytes: 0 }));
        }
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
