//! The gate: a spoke that works and changes the answers must also be good enough. It answers the
//! probe set of its task. Below the threshold, the old generation keeps serving.

use std::fmt::{self, Debug};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::leases::Lease;
use super::life::Reason;
use super::reason_code::Code;
use crate::eval::report::{Judged, Summary};
use crate::eval::rows::{self, Pair};
use crate::task::Event;

/// Requirements for a spoke.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// Rows in the format of `bespoke eval run`.
    pub probes: PathBuf,
    /// Means over all rows.
    pub bounds: Bounds,
    /// Longest time for all answers together.
    pub limit: Duration,
}

/// Bounds of means; an absent bound is not checked.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Bounds {
    /// Entity preservation, at least.
    pub epr: Option<f64>,
    /// Number preservation, at least.
    pub np: Option<f64>,
    /// Schema compliance, at least.
    pub sc: Option<f64>,
    /// Fabrication, at most.
    pub fr: Option<f64>,
}

/// The answer to one event, or why there is none.
pub type Answer = Pin<Box<dyn Future<Output = Result<String, Reason>> + Send>>;

/// Builds and runs requests for the gate; implemented by the API.
pub trait Questioner: Debug + Send + Sync {
    /// Requests the encoding of an event with this spoke alone.
    fn encode(&self, event: &Event, spoke: Arc<Lease>) -> Answer;
}

/// Asks all questions one after the other, because requests of clients have priority. `held` loads
/// the spoke; the time that it waits for memory counts towards the limit.
///
/// # Errors
/// The reason why the spoke doesn't pass.
pub async fn judge(
    gate: &Gate,
    questioner: &dyn Questioner,
    held: impl Future<Output = Result<Vec<Lease>, Reason>>,
) -> Result<(), Reason> {
    let probes = rows::read_probes(&gate.probes).map_err(|error| {
        Reason::new(Code::GateUnreadable, error.to_string()).hint("spokes.gate names the file")
    })?;
    let all = async {
        let no_lease = || Reason::new(Code::GateFailed, "there is no lease");
        let spoke = Arc::new(held.await?.pop().ok_or_else(no_lease)?);
        let mut judged = Vec::with_capacity(probes.len());
        for probe in &probes {
            let output = questioner.encode(&probe.event, Arc::clone(&spoke)).await?;
            let (id, event) = (probe.id.clone(), probe.event.clone());
            judged.push(Judged::from(Pair { id, event, output, prompt: None }));
        }
        Ok::<_, Reason>(Summary::new(&judged))
    };
    let limit = humantime::format_duration(gate.limit);
    let summary = tokio::time::timeout(gate.limit, all).await.map_err(|_| {
        Reason::new(Code::GateTooSlow, format!("the gate's questions took longer than {limit}"))
    })??;
    gate.bounds.hold(&summary)
}

impl Bounds {
    fn hold(&self, means: &Summary) -> Result<(), Reason> {
        let mut missed = Vec::new();
        for (name, found, least) in
            [("EPR", means.epr, self.epr), ("NP", means.np, self.np), ("SC", means.sc, self.sc)]
        {
            missed.extend(Missed::below(name, found, least));
        }
        missed.extend(Missed::above("FR", means.fr, self.fr));
        if missed.is_empty() {
            return Ok(());
        }
        let list = missed.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        Err(Reason::new(Code::Gate, format!("it does not pass its gate: {list}"))
            .hint("the previous generation keeps serving; spokes.gate has the bounds"))
    }
}

/// A bound that is violated.
struct Missed {
    name: &'static str,
    found: f64,
    bound: &'static str,
    expected: f64,
}

impl Missed {
    fn below(name: &'static str, found: f64, least: Option<f64>) -> Option<Self> {
        // NaN violates every bound.
        let expected = least.filter(|least| found < *least || found.is_nan())?;
        Some(Self { name, found, bound: "at least", expected })
    }
    fn above(name: &'static str, found: f64, most: Option<f64>) -> Option<Self> {
        let expected = most.filter(|most| found > *most || found.is_nan())?;
        Some(Self { name, found, bound: "at most", expected })
    }
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, found, bound, expected } = self;
        write!(f, "{name} is {found:.3}, expected {bound} {expected}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::Kind;
    use crate::spokes::leases::tests::slot;

    #[derive(Debug)]
    struct Scripted(&'static str);

    impl Questioner for Scripted {
        fn encode(&self, event: &Event, spoke: Arc<Lease>) -> Answer {
            assert_eq!(spoke.slot().name, "candidate");
            let text = self.0.replace("COPY", &event.content);
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                if text.is_empty() { Err(Reason::new("engine_failed", "no")) } else { Ok(text) }
            })
        }
    }

    async fn verdict(script: &'static str, bounds: Bounds, limit: Duration) -> Result<(), Reason> {
        let folder = tempfile::tempdir().unwrap();
        let probes = folder.path().join("probes.jsonl");
        let rows = "{\"id\": 1, \"raw_input\": \"Ana Lu saw 12 rows\"}\n{\"id\": 2, \"raw_input\": \"Bo Xi saw 7\"}\n";
        crate::atomic_file::write(&probes, rows.as_bytes()).unwrap();
        let slot = slot("candidate", Kind::Lora);
        slot.loaded(1);
        let held = async { Ok(vec![slot.lease().unwrap()]) };
        judge(&Gate { probes, bounds, limit }, &Scripted(script), held).await
    }

    #[tokio::test]
    async fn what_reaches_its_bounds_passes_and_what_does_not_is_told_both_numbers() {
        let long = Duration::from_secs(30);
        let bounds = Bounds { epr: Some(0.9), np: Some(0.9), fr: Some(0.1), sc: None };
        assert_eq!(verdict("{\"content\": \"COPY\"}", bounds, long).await, Ok(()));
        let why = verdict("{\"content\": \"Zoe Q saw 99\"}", bounds, long).await.unwrap_err();
        assert_eq!(why.code, "gate");
        assert!(why.message.contains("EPR is 0.000, expected at least 0.9"), "{why}");
        assert!(why.message.contains("FR is 1.000, expected at most 0.1"), "{why}");
        let strict = Bounds { sc: Some(1.0), ..Bounds::default() };
        assert_eq!(verdict("{\"content\": \"COPY\"}", strict, long).await.unwrap_err().code, "gate");
    }

    #[tokio::test]
    async fn a_gate_that_can_not_be_asked_is_closed() {
        let bounds = Bounds { epr: Some(0.1), ..Bounds::default() };
        assert_eq!(verdict("", bounds, Duration::from_secs(30)).await.unwrap_err().code, "engine_failed");
        assert_eq!(verdict("{}", bounds, Duration::ZERO).await.unwrap_err().code, "gate_too_slow");
    }
}
