//! The life cycle of a dropped file: its states, and the one function that makes transitions.
//!
//! `Seen -> Settled -> Inspected -> Probed -> Gated -> Serving`, with `Inert` or `Quarantined` as
//! other ends; `Retired` has served before. A failure of our own, such as a full disk, leads to
//! `Waiting` and a retry; it is never held against the file. A life belongs to one generation under
//! one name. A file that is written again after it came to rest starts a new life, and the old one
//! continues until the new one serves.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::reason_code::Code;

/// The reason for a state: a code for programs, a message for people, and a hint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Code for programs.
    pub code: Code,
    /// What was found and what was expected.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Reason {
    /// A reason without a hint.
    pub fn new(code: impl Into<Code>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), hint: None }
    }

    /// Adds a hint.
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

/// State of a life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// A file has appeared or is still being written.
    Seen,
    /// It has come to rest, and is copied and inspected.
    Settled,
    /// The copy is well-formed and fits the post. A child process probes it.
    Inspected,
    /// It works and changes the answers. The gate judges it, if there is one.
    Probed,
    /// It may serve, and is being loaded.
    Gated,
    /// New requests for its name get it.
    Serving,
    /// It works but changes nothing, and isn't loaded.
    Inert,
    /// This process or its machine is in trouble, which says nothing about the content. It will be
    /// tried again.
    Waiting(Reason),
    /// It will not be loaded.
    Quarantined(Reason),
    /// It could serve but no longer does.
    Retired(Reason),
}

/// Names of the states, without their data.
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
    /// The state's name in the API, one of [`STATES`].
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

    /// The reason, if the state has one.
    pub fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Waiting(reason) | Self::Quarantined(reason) | Self::Retired(reason) => Some(reason),
            _ => None,
        }
    }

    /// Whether work is under way that will change the state.
    pub fn is_moving(&self) -> bool {
        matches!(self, Self::Seen | Self::Settled | Self::Inspected | Self::Probed | Self::Gated)
    }

    /// Whether the outcome is still open: work is under way, or a retry is due later.
    pub fn is_open(&self) -> bool {
        self.is_moving() || matches!(self, Self::Waiting(_))
    }
}

/// An event in a life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trigger {
    /// The file has been unchanged for the settle time.
    Rested,
    /// The file was written to before a verdict.
    Changed,
    /// The copy passed inspection.
    Fits,
    /// The probe's answers are finite and differ from those of the post.
    Differs,
    /// The probe's answers are those of the post.
    Same,
    /// The gate accepts it, or there is none.
    Passes,
    /// The engine has loaded it.
    Loaded,
    /// The copy is the generation that already serves under this name.
    Known,
    /// The content is at fault.
    Refused(Reason),
    /// This process or its machine is at fault.
    Postponed(Reason),
    /// It is time for a retry.
    Due,
    /// It must not serve (any more): replaced, deleted, rolled back, disabled.
    Withdrawn(Reason),
    /// A client or operator wants it (again).
    Wanted,
    /// A client or operator wants it, and it has not been examined with this post and program.
    Reconsidered,
}

/// Work that follows a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Wait until the file rests.
    Await,
    /// Copy it under its hash and inspect the copy.
    Inspect,
    /// Probe it in a child process.
    Probe,
    /// Let the gate judge it.
    Judge,
    /// Load it into the engine.
    Load,
    /// Give it its name.
    Serve,
    /// Keep it with its reason, so that people can look at it.
    Quarantine,
    /// Take its name away.
    Withdraw,
}

impl Effect {
    /// Whether it belongs to this state. The effects of an earlier state are obsolete.
    pub fn follows_from(self, state: &State) -> bool {
        match self {
            Self::Await => *state == State::Seen,
            Self::Inspect => *state == State::Settled,
            Self::Probe => *state == State::Inspected,
            Self::Judge => *state == State::Probed,
            Self::Load => *state == State::Gated,
            Self::Serve => *state == State::Serving,
            Self::Quarantine => matches!(state, State::Quarantined(_)),
            Self::Withdraw => matches!(state, State::Retired(_)),
        }
    }
}

/// An event that can't happen in a state: a bug of the code that sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} can't happen to a spoke that is {state}")]
pub struct Impossible {
    /// The state of the life.
    pub state: &'static str,
    /// The event.
    pub event: Trigger,
}

/// The next state, and the work that it requires.
///
/// # Errors
/// [`Impossible`]; the state stays unchanged.
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

        // Until there is a verdict on the content, the file may still change.
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

        // What has served is known to be good; what is inert does no harm. Refused spokes are
        // inspected again, and so are those that were disabled before a verdict.
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

    /// Every pair of a state and an event with its outcome. Pairs not listed here are impossible.
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

    fn follows(effect: Option<Effect>, state: &State) -> bool {
        effect.is_some_and(|effect| effect.follows_from(state))
    }

    #[test]
    fn every_pair_of_state_and_event_is_in_the_table_or_impossible() {
        for state in states() {
            for (name, event) in events() {
                let expected = TABLE.iter().find(|row| row.0 == state.name() && row.1 == name);
                let found = step(&state, event);
                match (expected, found) {
                    (Some((.., next, effect)), Ok(found)) => {
                        assert_eq!((found.0.name(), found.1), (*next, *effect), "{} {name}", state.name());
                        let of: Vec<_> =
                            states().into_iter().filter(|state| follows(*effect, state)).collect();
                        assert!(effect.is_none() || of == [found.0], "{effect:?} belongs to {next} alone");
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
        // Only a gated life is loaded, and only three ways lead there: through the gate, or from
        // what has served or is inert.
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
        // "Known" means the generation that already serves.
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
