//! Where a run is: how it begins, what it refuses to go on from, and what an evaluation changes.

use std::collections::BTreeMap;
use std::path::Path;

use crate::digest::Digest;
use crate::train::TrainError;
use crate::train::checkpoint::{self, Exact, State};
use crate::train::data::{Domain, Position, next_weights};
use crate::train::evaluate::Evaluation;
use crate::train::observer::Note;
use crate::train::prepare::Prepared;
use crate::train::recipe::Recipe;

impl State {
    /// The state before the first step.
    pub(super) fn beginning(recipe: &Recipe, prepared: &Prepared, teacher: Option<Digest>) -> Self {
        Self {
            step: 0,
            seed: recipe.train.seed,
            tokens: 0,
            weights: recipe.domain_weights().into_iter().map(Exact).collect(),
            best: None,
            waiting: 0,
            mark: None,
            stopped: false,
            base: prepared.identity.base,
            tokens_of: prepared.identity.tokens_of,
            read: Some(read(prepared, teacher)),
            data: Position::default(),
            place: Some(prepared.compute.name()),
        }
    }

    /// Refuses a state with another base, tokenizer, data or teacher than now.
    pub(super) fn check(&self, now: &Self, path: &Path) -> Result<(), TrainError> {
        let of = |state: &Self| {
            let mut all: BTreeMap<String, Digest> = state.read.clone().unwrap_or_default();
            all.extend(state.base.map(|base| ("base".to_owned(), base)));
            all.insert("tokenizer".to_owned(), state.tokens_of);
            all
        };
        let (saved, now) = (of(self), of(now));
        // Other differences follow from these.
        let first = ["base", "tokenizer"].map(str::to_owned);
        for what in first.into_iter().chain(saved.keys().chain(now.keys()).cloned()) {
            if saved.get(&what) != now.get(&what) {
                let [saved, now] =
                    [&saved, &now].map(|all| all.get(&what).map_or("none".to_owned(), Digest::to_string));
                return Err(TrainError::Foreign { path: path.to_owned(), what, saved, now });
            }
        }
        Ok(())
    }

    /// What a person should know of a run that goes on from this state, at a place and with changes
    /// of the recipe.
    pub(super) fn notes(&self, place: &str, changed: &[checkpoint::Change]) -> Vec<Note> {
        let from = self.step + 1;
        let mut notes: Vec<Note> = changed.iter().map(|&change| Note::Changed { change, from }).collect();
        let moved = self.place.as_deref().filter(|saved| *saved != place);
        notes.extend(moved.map(|saved| Note::Moved { place: saved.to_owned(), from }));
        if moved.is_some() || changed.iter().any(|(key, ..)| *key == checkpoint::MICRO_TOKENS) {
            notes.push(Note::RoundedOtherwise);
        }
        if self.step > 0 && self.data.is_beginning() {
            notes.push(Note::DataFromBeginning);
        }
        notes
    }

    /// Records a held-out loss: whether it is the best so far, and whether it is time to stop.
    pub(super) fn judge(&mut self, loss: f64, recipe: &Recipe) {
        if self.best.is_none_or(|(best, _)| loss < best.0) {
            self.best = Some((Exact(loss), self.step));
        }
        let Some(stop) = recipe.train.stop else { return };
        if self.mark.is_none_or(|mark| loss < mark.0 - stop.least) {
            self.mark = Some(Exact(loss));
            self.waiting = 0;
        } else {
            self.waiting += 1;
            self.stopped = self.waiting >= stop.patience;
        }
    }

    /// Updates the weights of domains by their losses, if the recipe says so and it is time.
    pub(super) fn weigh(&mut self, each: &[Evaluation], recipe: &Recipe) {
        let Some(loading) = &recipe.data.loading else { return };
        if !self.step.is_multiple_of(recipe.train.eval_every * loading.every) {
            return;
        }
        let losses: Vec<f64> = each.iter().map(|eval| eval.loss).collect();
        let references: Vec<f64> =
            recipe.data.domains.values().map(|domain| domain.reference_loss.unwrap_or(f64::NAN)).collect();
        let next = next_weights(&self.weights(), &losses, &references, loading);
        self.weights = next.into_iter().map(Exact).collect();
    }

    pub(super) fn weights(&self) -> Vec<f64> {
        self.weights.iter().map(|weight| weight.0).collect()
    }
}

/// Hashes of what a run reads, by key of the recipe. Generated data is determined by the recipe
/// alone.
fn read(prepared: &Prepared, teacher: Option<Digest>) -> BTreeMap<String, Digest> {
    let of = |part: &'static str| {
        move |domain: &Domain| Some((format!("data.domains.{}.{part}", domain.name), domain.digest()?))
    };
    let mut all: BTreeMap<String, Digest> = prepared.train.domains().iter().filter_map(of("train")).collect();
    all.extend(prepared.eval.iter().filter_map(of("eval")));
    all.extend(teacher.map(|digest| ("distil teacher".to_owned(), digest)));
    all
}
