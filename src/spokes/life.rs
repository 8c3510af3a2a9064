//! The life of a dropped file, as states and the one function that moves between them.
//!
//! `Seen -> Settled -> Inspected -> Probed -> Gated -> Serving`, or on the way `Inert` or `Quarantined`; `Retired` is what
//! has served. What fails for a reason of our own, such as a full disk, is `Waiting` and tried again: it is held against no
//! file. One life is that of one content under one name: a file that is written again after it came to rest begins
//! a new life, and the old one goes on until the new one serves.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::reason_code::Code;

/// Why something is the way it is: for programs, for people, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// What programs go by.
    pub code: Code,
    /// What was found and what was expected.
    pub message: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Reason {
    /// Without advice.
    pub fn new(code: impl Into<Code>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), hint: None }
    }

    /// The same with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Where a life is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// A file has appeared or is still being written.
    Seen,
    /// It has come to rest: it is copied and inspected.
    Settled,
    /// The copy is well-formed and fits the post: a child process tries it.
    Inspected,
    /// It runs and changes something: the gate judges it, if there is one.
    Probed,
    /// It may serve: it is loaded.
    Gated,
    /// New requests for its name get it.
    Serving,
    /// It runs and changes nothing; it isn't loaded.
    Inert,
    /// This process or its machine is in trouble, which says nothing of the content: it is tried again.
    Waiting(Reason),
    /// It will not be loaded.
    Quarantined(Reason),
    /// It could serve and doesn't any more.
    Retired(Reason),
}

/// The names of states, without what they carry.
pub const STATES: [&str; 10] = [
    "seen",
    "settled",
    "inspected",
    "probed",
    "gated",
    "serving",
    "inert",
    "waiting",
    "quarantined",
    "retired",
];

impl State {
    /// Its name on the wire, one of [`STATES`].
    pub fn name(&self) -> &'static str {
        match self {
            Self::Seen => "seen",
            Self::Settled => "settled",
            Self::Inspected => "inspected",
            Self::Probed => "probed",
            Self::Gated => "gated",
            Self::Serving => "serving",
            Self::Inert => "inert",
            Self::Waiting(_) => "waiting",
            Self::Quarantined(_) => "quarantined",
            Self::Retired(_) => "retired",
        }
    }

    /// Why, where there is a why.
    pub fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Waiting(reason) | Self::Quarantined(reason) | Self::Retired(reason) => Some(reason),
            _ => None,
        }
    }

    /// Whether something is under way that will change it.
    pub fn is_moving(&self) -> bool {
        matches!(self, Self::Seen | Self::Settled | Self::Inspected | Self::Probed | Self::Gated)
    }

    /// Whether it is still open what will become of it: something is under way, or waits to be tried again.
    pub fn is_open(&self) -> bool {
        self.is_moving() || matches!(self, Self::Waiting(_))
    }
}

/// What happens to a life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trigger {
    /// The file has been still for long enough.
    Rested,
    /// The file was written to before the life was decided.
    Changed,
    /// The copy passed inspection.
    Fits,
    /// The probe's answers are finite and differ from those of the post.
    Differs,
    /// The probe's answers are those of the post.
    Same,
    /// The gate lets it through, or there is none.
    Passes,
    /// The engine has it.
    Loaded,
    /// The copy is what serves under this name already.
    Known,
    /// Something is wrong with it.
    Refused(Reason),
    /// Something is wrong with us.
    Postponed(Reason),
    /// It is time to try again.
    Due,
    /// It is not to serve (any more): replaced, deleted, rolled back, disabled.
    Withdrawn(Reason),
    /// Somebody wants it (again).
    Wanted,
    /// Somebody wants it, and it is not known to be good here.
    Reconsidered,
}

/// What is to be done after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Watch until the file rests.
    Await,
    /// Copy it by its hash and inspect the copy.
    Inspect,
    /// Try it in a child process.
    Probe,
    /// Let the gate judge it.
    Judge,
    /// Load it into the engine.
    Load,
    /// Give its name to it.
    Serve,
    /// Keep it with its reason where it can be looked at.
    Quarantine,
    /// Take its name from it.
    Withdraw,
}

/// An event that can't happen in a state: a defect of whoever sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} can't happen to a spoke that is {state}")]
pub struct Impossible {
    /// Where the life is.
    pub state: &'static str,
    /// What was said to have happened.
    pub event: Trigger,
}

/// The next state, and what is to be done on the way into it.
///
/// # Errors
/// [`Impossible`]; then nothing has changed.
#[allow(
    clippy::match_same_arms,
    reason = "a table is read line by line; that two lines end alike means nothing"
)]
pub fn step(state: &State, event: Trigger) -> Result<(State, Option<Effect>), Impossible> {
    use State as S;
    use Trigger as E;
    Ok(match (state, event) {
        (S::Seen, E::Rested) => (S::Settled, Some(Effect::Inspect)),
        (S::Settled, E::Fits) => (S::Inspected, Some(Effect::Probe)),
        (S::Inspected, E::Differs) => (S::Probed, Some(Effect::Judge)),
        (S::Inspected, E::Same) => (S::Inert, None),
        (S::Probed, E::Passes) => (S::Gated, Some(Effect::Load)),
        (S::Gated, E::Loaded) => (S::Serving, Some(Effect::Serve)),
        (S::Settled, E::Known) => (S::Serving, None),

        // Until it is decided whether a content is good, the file may become another one.
        (S::Seen | S::Settled | S::Inspected | S::Probed | S::Gated, E::Changed) => {
            (S::Seen, Some(Effect::Await))
        }

        (S::Seen | S::Settled | S::Inspected | S::Probed | S::Gated | S::Serving, E::Refused(reason)) => {
            (S::Quarantined(reason), Some(Effect::Quarantine))
        }

        (S::Settled | S::Inspected | S::Probed | S::Gated, E::Postponed(reason)) => {
            (S::Waiting(reason), None)
        }
        (S::Waiting(_), E::Due | E::Wanted) => (S::Settled, Some(Effect::Inspect)),

        (S::Serving, E::Withdrawn(reason)) => (S::Retired(reason), Some(Effect::Withdraw)),
        (
            S::Seen
            | S::Settled
            | S::Inspected
            | S::Probed
            | S::Gated
            | S::Inert
            | S::Waiting(_)
            | S::Quarantined(_)
            | S::Retired(_),
            E::Withdrawn(reason),
        ) => (S::Retired(reason), None),

        // What has served is known to be good; what is inert does no harm; what was refused is looked at again, and so is
        // what somebody switched off before anything was known of it.
        (S::Retired(_) | S::Inert, E::Wanted) => (S::Gated, Some(Effect::Load)),
        (S::Quarantined(_), E::Wanted) => (S::Settled, Some(Effect::Inspect)),
        (S::Retired(_) | S::Inert, E::Reconsidered) => (S::Settled, Some(Effect::Inspect)),

        (state, event) => return Err(Impossible { state: state.name(), event }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason() -> Reason {
        Reason::new("r", "R")
    }

    fn states() -> [State; 10] {
        [
            State::Seen,
            State::Settled,
            State::Inspected,
            State::Probed,
            State::Gated,
            State::Serving,
            State::Inert,
            State::Waiting(reason()),
            State::Quarantined(reason()),
            State::Retired(reason()),
        ]
    }

    fn events() -> [(&'static str, Trigger); 14] {
        [
            ("rested", Trigger::Rested),
            ("changed", Trigger::Changed),
            ("fits", Trigger::Fits),
            ("differs", Trigger::Differs),
            ("same", Trigger::Same),
            ("passes", Trigger::Passes),
            ("loaded", Trigger::Loaded),
            ("known", Trigger::Known),
            ("refused", Trigger::Refused(reason())),
            ("postponed", Trigger::Postponed(reason())),
            ("due", Trigger::Due),
            ("withdrawn", Trigger::Withdrawn(reason())),
            ("wanted", Trigger::Wanted),
            ("reconsidered", Trigger::Reconsidered),
        ]
    }

    /// Every pair of a state and an event, and what comes of it; pairs that are not here are impossible.
    const TABLE: &[(&str, &str, &str, Option<Effect>)] = &[
        ("seen", "rested", "settled", Some(Effect::Inspect)),
        ("seen", "changed", "seen", Some(Effect::Await)),
        ("seen", "refused", "quarantined", Some(Effect::Quarantine)),
        ("seen", "withdrawn", "retired", None),
        ("settled", "fits", "inspected", Some(Effect::Probe)),
        ("settled", "known", "serving", None),
        ("settled", "changed", "seen", Some(Effect::Await)),
        ("settled", "refused", "quarantined", Some(Effect::Quarantine)),
        ("settled", "postponed", "waiting", None),
        ("settled", "withdrawn", "retired", None),
        ("inspected", "differs", "probed", Some(Effect::Judge)),
        ("inspected", "same", "inert", None),
        ("inspected", "changed", "seen", Some(Effect::Await)),
        ("inspected", "refused", "quarantined", Some(Effect::Quarantine)),
        ("inspected", "postponed", "waiting", None),
        ("inspected", "withdrawn", "retired", None),
        ("probed", "passes", "gated", Some(Effect::Load)),
        ("probed", "changed", "seen", Some(Effect::Await)),
        ("probed", "refused", "quarantined", Some(Effect::Quarantine)),
        ("probed", "postponed", "waiting", None),
        ("probed", "withdrawn", "retired", None),
        ("gated", "loaded", "serving", Some(Effect::Serve)),
        ("gated", "changed", "seen", Some(Effect::Await)),
        ("gated", "refused", "quarantined", Some(Effect::Quarantine)),
        ("gated", "postponed", "waiting", None),
        ("gated", "withdrawn", "retired", None),
        ("serving", "refused", "quarantined", Some(Effect::Quarantine)),
        ("serving", "withdrawn", "retired", Some(Effect::Withdraw)),
        ("inert", "withdrawn", "retired", None),
        ("inert", "wanted", "gated", Some(Effect::Load)),
        ("inert", "reconsidered", "settled", Some(Effect::Inspect)),
        ("waiting", "withdrawn", "retired", None),
        ("waiting", "wanted", "settled", Some(Effect::Inspect)),
        ("waiting", "due", "settled", Some(Effect::Inspect)),
        ("quarantined", "withdrawn", "retired", None),
        ("quarantined", "wanted", "settled", Some(Effect::Inspect)),
        ("retired", "withdrawn", "retired", None),
        ("retired", "wanted", "gated", Some(Effect::Load)),
        ("retired", "reconsidered", "settled", Some(Effect::Inspect)),
    ];

    #[test]
    fn every_pair_of_state_and_event_is_in_the_table_or_impossible() {
        for state in states() {
            for (name, event) in events() {
                let expected = TABLE.iter().find(|row| row.0 == state.name() && row.1 == name);
                let found = step(&state, event);
                match (expected, found) {
                    (Some((.., next, effect)), Ok(found)) => {
                        assert_eq!((found.0.name(), found.1), (*next, *effect), "{} {name}", state.name());
                    }
                    (None, Err(impossible)) => assert_eq!(impossible.state, state.name()),
                    (expected, found) => panic!("{} {name}: {expected:?}, {found:?}", state.name()),
                }
            }
        }
        let rows = states().len() * events().len();
        assert!(TABLE.len() < rows, "some pairs are impossible");
    }

    #[test]
    fn nothing_reaches_the_engine_without_inspection_probe_and_gate() {
        // Only what is gated is loaded, and only three ways lead there: through the gate, or from what has served or is inert.
        let into = |to: &str| -> Vec<&str> {
            let mut from: Vec<&str> =
                TABLE.iter().filter(|row| row.2 == to && row.0 != to).map(|row| row.0).collect();
            from.sort_unstable();
            from.dedup();
            from
        };
        assert_eq!(into("gated"), ["inert", "probed", "retired"]);
        assert_eq!(into("probed"), ["inspected"]);
        assert_eq!(into("inert"), ["inspected"]);
        assert_eq!(into("inspected"), ["settled"]);
        // "Known" is the content that serves already.
        assert_eq!(into("serving"), ["gated", "settled"]);
    }

    #[test]
    fn reasons_travel_with_the_state_and_names_are_those_of_the_wire() {
        let (state, _) = step(&State::Seen, Trigger::Refused(reason())).unwrap();
        assert_eq!(state.reason(), Some(&reason()));
        assert_eq!(states().map(|state| state.name()), STATES);
        let json = serde_json::to_value(&state).unwrap();
        assert_eq!(serde_json::from_value::<State>(json).unwrap(), state);
    }
}
