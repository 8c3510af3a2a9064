//! Spokes of a fake engine: which are loaded, which are in use, and when they are freed.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::adapter::Generation;
use crate::engine::{EngineError, LoadSpoke, LoadedSpoke, ScaledSpoke};

/// The loaded spokes.
#[derive(Debug, Default)]
pub(super) struct Spokes {
    loaded: Mutex<BTreeMap<Generation, Held>>,
    /// Notified when a use ends.
    freed: Condvar,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    bytes: u64,
    uses: u32,
    /// Whether the spoke is to be freed. A load cancels that.
    leaving: bool,
}

/// The spokes of a request. They stay loaded while this lives.
#[derive(Debug)]
pub(super) struct Use {
    spokes: Arc<Spokes>,
    set: Vec<ScaledSpoke>,
}

impl Spokes {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Generation, Held>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn loaded(&self) -> Vec<Generation> {
        self.lock().keys().copied().collect()
    }

    pub(super) fn load(&self, spoke: &LoadSpoke) -> Result<LoadedSpoke, EngineError> {
        let metadata =
            fs_err::metadata(&spoke.path).map_err(|error| EngineError::Spoke(error.to_string()))?;
        let held = Held { bytes: metadata.len(), uses: 0, leaving: false };
        let mut loaded = self.lock();
        let held = loaded.entry(spoke.generation).or_insert(held);
        held.leaving = false;
        Ok(LoadedSpoke { resident_bytes: held.bytes })
    }

    /// Marks a spoke to be freed.
    pub(super) fn mark(&self, generation: Generation) {
        if let Some(held) = self.lock().get_mut(&generation) {
            held.leaving = true;
        }
    }

    /// Waits until the spoke is unused and frees it. Returns 0 bytes if it was not loaded, or was
    /// loaded again meanwhile.
    pub(super) fn freed(&self, generation: Generation) -> LoadedSpoke {
        let mut loaded = self.lock();
        loop {
            match loaded.get(&generation) {
                Some(held) if held.leaving && held.uses > 0 => {
                    loaded = self.freed.wait(loaded).unwrap_or_else(PoisonError::into_inner);
                }
                Some(&Held { bytes, leaving: true, .. }) => {
                    loaded.remove(&generation);
                    return LoadedSpoke { resident_bytes: bytes };
                }
                _ => return LoadedSpoke { resident_bytes: 0 },
            }
        }
    }

    /// Acquires a set of spokes, all of which must be loaded.
    pub(super) fn begin(self: &Arc<Self>, set: &[ScaledSpoke]) -> Result<Use, EngineError> {
        let mut loaded = self.lock();
        if let Some(missing) = set.iter().find(|spoke| !loaded.contains_key(&spoke.generation)) {
            return Err(EngineError::SpokeNotLoaded { generation: missing.generation });
        }
        for spoke in set {
            loaded.entry(spoke.generation).and_modify(|held| held.uses += 1);
        }
        Ok(Use { spokes: Arc::clone(self), set: set.to_vec() })
    }
}

impl Use {
    /// The spokes, as an answer names them.
    pub(super) fn told(&self) -> String {
        if self.set.is_empty() {
            return "post".to_owned();
        }
        let spoke = |spoke: &ScaledSpoke| format!("{}*{}", spoke.generation.short(), spoke.scale);
        self.set.iter().map(spoke).collect::<Vec<_>>().join(" ")
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut loaded = self.spokes.lock();
        for spoke in &self.set {
            let held = loaded.get_mut(&spoke.generation).expect("what is used stays loaded");
            held.uses -= 1;
        }
        self.spokes.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::Kind;
    use crate::engine::{AnswerEvent, Engine, FakeEngine, Generate, Script, Segment, SpokeChange};
    use std::time::Duration;

    #[test]
    fn a_spoke_is_freed_behind_the_last_request_that_runs_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        crate::atomic_file::write(&path, b"abc").unwrap();
        let generation = Generation::of_reader(&b"abc"[..]).unwrap();
        let engine = FakeEngine::new(Script::Spokes(Duration::from_millis(100)));
        let load = || {
            let spoke = LoadSpoke { generation, kind: Kind::Lora, path: path.clone(), name: "a".to_owned() };
            engine.spoke(SpokeChange::Load(spoke)).unwrap().blocking_recv().unwrap()
        };
        let request = || Generate {
            spokes: vec![ScaledSpoke { generation, scale: 0.5 }],
            ..Generate::new("t", vec![Segment::plain("x")])
        };
        let all = |mut events: tokio::sync::mpsc::UnboundedReceiver<AnswerEvent>| {
            std::iter::from_fn(move || events.blocking_recv()).collect::<Vec<_>>()
        };
        let refused = all(engine.generate(request()).unwrap());
        assert_eq!(refused, [AnswerEvent::Failed(EngineError::SpokeNotLoaded { generation })]);

        assert_eq!(load(), Ok(LoadedSpoke { resident_bytes: 3 }));
        let running = engine.generate(request()).unwrap();
        let freed = engine.spoke(SpokeChange::Unload(generation)).unwrap();
        assert_eq!(engine.loaded(), [generation], "it is in use");
        let told = all(running);
        assert!(told.contains(&AnswerEvent::Text(format!("{}*0.5", generation.short()))), "{told:?}");
        assert_eq!(freed.blocking_recv().unwrap(), Ok(LoadedSpoke { resident_bytes: 3 }));
        assert_eq!(engine.loaded(), []);

        load().unwrap();
        let running = engine.generate(request()).unwrap();
        let freed = engine.spoke(SpokeChange::Unload(generation)).unwrap();
        load().unwrap();
        assert_eq!(freed.blocking_recv().unwrap(), Ok(LoadedSpoke { resident_bytes: 0 }));
        all(running);
        assert_eq!(engine.loaded(), [generation], "a load takes an unload back");
    }
}
