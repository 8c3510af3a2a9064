//! The trial in the probe process: runs the same few texts with and without the spoke, and compares
//! them token by token.

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::{Finding, Verdict};
use crate::adapter::refusal::is_out_of_reach;
use crate::engine::{
    AnswerEvent, Engine, EngineError, Generate, LoadSpoke, ScaledSpoke, Segment, SpokeChange, SpokeSet,
    TokenReport,
};
use crate::spokes::life::Reason;
use crate::spokes::reason_code::Code;

/// The prompt: an event and the beginning of an answer, the task that small models here are made
/// for. One text and a few tokens suffice, because the post may be large and runs on cores that
/// serve requests.
const TEXTS: [&str; 1] =
    ["SOURCE: terminal\nTYPE: error\nCONTENT:\n3 tests failed in src/cache.rs\n\n{\"gist\":\""];
/// Tokens per answer.
const TOKENS: u32 = 4;
/// Most likely tokens that are compared at each position.
const TOP: u32 = 5;
/// Log probabilities closer than this count as equal. The order of a sum may differ; a spoke's
/// effect is larger.
const CLOSE: f32 = 1e-4;

/// Why there is no finding. Nothing is known about the spoke then.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The engine fails even without the spoke.
    #[error("the post alone can't be run: {0}")]
    Post(EngineError),
    /// The engine is gone.
    #[error("the engine gave no answer")]
    Gone,
}

/// Progress of a trial. Until the post has answered alone, no failure is the spoke's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The post is loaded and answers.
    Post,
    /// The spoke is loaded and answers.
    Spoke,
}

/// Loads the spoke and compares the answers. Blocks the thread. The engine must be the probe's own.
///
/// # Errors
/// [`TrialError`].
pub fn trial(engine: &dyn Engine, spoke: LoadSpoke) -> Result<Finding, TrialError> {
    trial_in_stages(engine, spoke, |_| {})
}

/// The same; `tell` is called at the start of each stage.
///
/// # Errors
/// [`TrialError`].
pub fn trial_in_stages(
    engine: &dyn Engine,
    spoke: LoadSpoke,
    mut tell: impl FnMut(Stage),
) -> Result<Finding, TrialError> {
    tell(Stage::Post);
    let mut without = Vec::new();
    for text in TEXTS {
        without.push(ask(engine, text, SpokeSet::new())?.map_err(TrialError::Post)?);
    }
    tell(Stage::Spoke);
    let set = vec![ScaledSpoke { generation: spoke.generation, scale: 1.0 }];
    let path = spoke.path.clone();
    let loaded = match engine.spoke(SpokeChange::Load(spoke)) {
        Ok(reply) => wait(reply)?,
        Err(error) => Err(error),
    };
    let loaded = match loaded {
        Ok(loaded) => loaded,
        // The engine doesn't report whether the file or the system is at fault.
        Err(error) if is_out_of_reach(&path, 0) => return Ok(Finding::undecided(error.to_string())),
        Err(error) => return Ok(Finding::refused(error.into())),
    };
    let mut with = Vec::new();
    for text in TEXTS {
        match ask(engine, text, set.clone())? {
            Ok(tokens) => with.push(tokens),
            Err(EngineError::NotFinite) => {
                return Ok(Finding { finite: false, ..Finding::refused(not_finite()) });
            }
            Err(error) => return Ok(Finding::refused(error.into())),
        }
    }
    Ok(compare(&without, &with, loaded.resident_bytes))
}

impl From<EngineError> for Reason {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::NotFinite => not_finite(),
            EngineError::SpokesUnsupported => Self::new(Code::NotSupported, error.to_string()),
            EngineError::Spoke(_) => Self::new(Code::NotLoaded, error.to_string()),
            _ => Self::new(Code::EngineFailed, format!("the engine fails with it: {error}")),
        }
    }
}

fn compare(without: &[Vec<TokenReport>], with: &[Vec<TokenReport>], resident_bytes: u64) -> Finding {
    let tokens: u32 = with.iter().map(|tokens| tokens.len() as u32).sum();
    let finite = with.iter().flatten().all(is_finite);
    let differs = without.iter().zip(with).any(|(without, with)| {
        without.len() != with.len() || without.iter().zip(with).any(|(a, b)| differ(a, b))
    });
    let (verdict, why) = match (finite, differs) {
        (false, _) => (Verdict::Refused, Some(not_finite())),
        (true, true) => (Verdict::Differs, None),
        (true, false) => (Verdict::Same, None),
    };
    Finding { verdict, finite, differs, tokens, resident_bytes, why }
}

fn not_finite() -> Reason {
    Reason::new(Code::NotFinite, "the post computes infinities or NaN with it")
        .hint("it was trained to the point of overflow, or for another post")
}

fn is_finite(report: &TokenReport) -> bool {
    report.token.logprob.is_finite() && report.top.iter().all(|token| token.logprob.is_finite())
}

fn differ(a: &TokenReport, b: &TokenReport) -> bool {
    let pairs = || std::iter::once((&a.token, &b.token)).chain(a.top.iter().zip(&b.top));
    a.top.len() != b.top.len() || pairs().any(|(a, b)| a.id != b.id || (a.logprob - b.logprob).abs() > CLOSE)
}

/// Tokens of the answer, or why there is none.
fn ask(
    engine: &dyn Engine,
    text: &str,
    spokes: SpokeSet,
) -> Result<Result<Vec<TokenReport>, EngineError>, TrialError> {
    let request = Generate {
        spokes,
        max_tokens: Some(TOKENS),
        ignore_end: true,
        report: Some(TOP),
        cache: false,
        draft: false,
        ..Generate::new("probe", vec![Segment::plain(text)])
    };
    let mut events: mpsc::UnboundedReceiver<AnswerEvent> = match engine.generate(request) {
        Ok(events) => events,
        Err(error) => return Ok(Err(error)),
    };
    let mut tokens = Vec::new();
    loop {
        match events.blocking_recv().ok_or(TrialError::Gone)? {
            AnswerEvent::Tokens(more) => tokens.extend(more),
            AnswerEvent::Started { .. }
            | AnswerEvent::Read(_)
            | AnswerEvent::Text(_)
            | AnswerEvent::Closed(_) => {}
            AnswerEvent::Finished { .. } => return Ok(Ok(tokens)),
            AnswerEvent::Failed(error) => return Ok(Err(error)),
        }
    }
}

fn wait<T>(reply: oneshot::Receiver<T>) -> Result<T, TrialError> {
    reply.blocking_recv().map_err(|_| TrialError::Gone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::{Generation, Kind};
    use crate::engine::{FakeEngine, Script, TokenLikelihood};
    use std::time::Duration;

    fn spoke(path: &std::path::Path) -> LoadSpoke {
        let generation = Generation::of_reader(&b"x"[..]).unwrap();
        LoadSpoke { generation, kind: Kind::Lora, path: path.to_owned(), name: "a".to_owned() }
    }

    #[test]
    fn what_changes_answers_differs_and_what_does_not_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        crate::atomic_file::write(&path, b"x").unwrap();
        let verdict = |script| trial(&FakeEngine::new(script), spoke(&path)).unwrap().verdict;
        assert_eq!(verdict(Script::Spokes(Duration::ZERO)), Verdict::Differs);
        assert_eq!(verdict(Script::Echo), Verdict::Same);
    }

    #[test]
    fn what_can_not_be_loaded_is_refused_and_a_broken_post_is_nobody_elses_fault() {
        let engine = FakeEngine::new(Script::Echo);
        let mut stages = Vec::new();
        let finding =
            trial_in_stages(&engine, spoke("/nowhere".as_ref()), |stage| stages.push(stage)).unwrap();
        assert_eq!(stages, [Stage::Post, Stage::Spoke]);
        assert_eq!((finding.verdict, finding.why.unwrap().code.as_ref()), (Verdict::Refused, "not_loaded"));
        assert_eq!(Reason::from(EngineError::NotFinite).code, "not_finite");
        engine.set_script(Script::Fail(EngineError::Internal("no memory".to_owned())));
        let mut stages = Vec::new();
        let failed = trial_in_stages(&engine, spoke("/nowhere".as_ref()), |stage| stages.push(stage));
        assert!(matches!(failed, Err(TrialError::Post(_))) && stages == [Stage::Post]);
    }

    #[test]
    fn numbers_are_compared_closely_and_must_be_finite() {
        let report = |logprob: f32, top: f32| {
            let likelihood = |logprob| TokenLikelihood { id: 1, bytes: vec![], logprob };
            TokenReport { token: likelihood(logprob), forced: false, top: vec![likelihood(top)] }
        };
        let verdict = |a: TokenReport, b: TokenReport| {
            let finding = compare(&[vec![a]], &[vec![b]], 0);
            (finding.verdict, finding.finite, finding.differs)
        };
        assert_eq!(verdict(report(-1.0, -1.0), report(-1.0 + 5e-5, -1.0)), (Verdict::Same, true, false));
        assert_eq!(verdict(report(-1.0, -1.0), report(-1.0, -1.001)), (Verdict::Differs, true, true));
        assert_eq!(verdict(report(-1.0, -1.0), report(-1.0, f32::NAN)).0, Verdict::Refused);
        assert!(!verdict(report(-1.0, -1.0), report(f32::NEG_INFINITY, -1.0)).1);
        assert_eq!(compare(&[vec![report(-1.0, -1.0)]], &[vec![]], 0).verdict, Verdict::Differs);
    }
}
