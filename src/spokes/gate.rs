//! The gate: a spoke that works and changes the answers must also be good enough. It answers the
//! probe set of its task. Below the threshold, the old generation keeps serving.

use std::fmt::{self, Debug};
use std::pin::Pin;
use std::sync::Arc;

use super::leases::Lease;
use super::life::Reason;
use super::reason_code::Code;
use crate::config::GateSettings;
use crate::eval::report::{Judged, Summary};
use crate::eval::rows::{self, Pair};
use crate::task::Event;

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
    gate: &GateSettings,
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
    hold(gate, &summary)
}

/// Compares the means over all rows with the bounds of the gate.
fn hold(gate: &GateSettings, means: &Summary) -> Result<(), Reason> {
    let mut missed = Vec::new();
    for (name, found, least) in
        [("EPR", means.epr, gate.epr), ("NP", means.np, gate.np), ("SC", means.sc, gate.sc)]
    {
        missed.extend(Missed::below(name, found, least));
    }
    missed.extend(Missed::above("FR", means.fr, gate.fr));
    if missed.is_empty() {
        return Ok(());
    }
    let list = missed.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    Err(Reason::new(Code::Gate, format!("it does not pass its gate: {list}"))
        .hint("the previous generation keeps serving; spokes.gate has the bounds"))
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
    use std::path::PathBuf;
    use std::time::Duration;

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

    /// A gate without bounds.
    fn open(limit: Duration) -> GateSettings {
        GateSettings { probes: PathBuf::new(), epr: None, np: None, sc: None, fr: None, limit }
    }

    async fn verdict(script: &'static str, gate: GateSettings) -> Result<(), Reason> {
        let folder = tempfile::tempdir().unwrap();
        let probes = folder.path().join("probes.jsonl");
        let rows = "{\"id\": 1, \"raw_input\": \"Ana Lu saw 12 rows\"}\n{\"id\": 2, \"raw_input\": \"Bo Xi saw 7\"}\n";
        crate::atomic_file::write(&probes, rows.as_bytes()).unwrap();
        let slot = slot("candidate", Kind::Lora);
        slot.loaded(1);
        let held = async { Ok(vec![slot.lease().unwrap()]) };
        judge(&GateSettings { probes, ..gate }, &Scripted(script), held).await
    }

    #[tokio::test]
    async fn what_reaches_its_bounds_passes_and_what_does_not_is_told_both_numbers() {
        let long = Duration::from_secs(30);
        let gate = GateSettings { epr: Some(0.9), np: Some(0.9), fr: Some(0.1), ..open(long) };
        assert_eq!(verdict("{\"content\": \"COPY\"}", gate.clone()).await, Ok(()));
        let why = verdict("{\"content\": \"Zoe Q saw 99\"}", gate).await.unwrap_err();
        assert_eq!(why.code, "gate");
        assert!(why.message.contains("EPR is 0.000, expected at least 0.9"), "{why}");
        assert!(why.message.contains("FR is 1.000, expected at most 0.1"), "{why}");
        let strict = GateSettings { sc: Some(1.0), ..open(long) };
        assert_eq!(verdict("{\"content\": \"COPY\"}", strict).await.unwrap_err().code, "gate");
    }

    #[tokio::test]
    async fn a_gate_that_can_not_be_asked_is_closed() {
        let gate = |limit| GateSettings { epr: Some(0.1), ..open(limit) };
        let long = Duration::from_secs(30);
        assert_eq!(verdict("", gate(long)).await.unwrap_err().code, "engine_failed");
        assert_eq!(verdict("{}", gate(Duration::ZERO)).await.unwrap_err().code, "gate_too_slow");
    }
}
