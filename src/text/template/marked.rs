//! Renders a template in ink, and finds the places that can be written in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use minijinja::Environment;
use serde_json::Value;

use super::Special;
use super::environment::{environment, render};
use super::sentinel::{self, Guard};
use super::source::{OWN, Source};

/// Roles that a message can have. A template's own words may replace them.
const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];

/// A template with ink.
#[derive(Debug)]
pub(super) struct Inked {
    source: Option<Source>,
    now: ArcSwapOption<Version>,
    warned: AtomicBool,
}

/// The template with ink at some of its places.
#[derive(Debug)]
struct Version {
    with: Vec<bool>,
    environment: Environment<'static>,
}

/// State shared by all attempts at one rendering.
struct Attempt<'a> {
    source: &'a Source,
    /// The text that the rendering must read as.
    text: &'a str,
    variables: &'a Value,
    special: Special,
    guard: &'a Guard,
    now: SystemTime,
}

impl Inked {
    pub(super) fn new(source: Option<Source>) -> Self {
        let version = source.as_ref().and_then(|source| version(source, vec![true; source.places]));
        let now = ArcSwapOption::from(version.map(Arc::new));
        Self { source, now, warned: AtomicBool::new(false) }
    }

    /// Renders the template with its own text in ink, such that it reads exactly as `text`. `None`
    /// if that is impossible.
    ///
    /// If ink changes what the template does at some place, for example where a variable is both
    /// shown and compared, that place stays without ink in later renderings.
    pub(super) fn render(
        &self,
        text: &str,
        variables: &Value,
        special: &Special,
        guard: &Guard,
        now: SystemTime,
    ) -> Option<String> {
        let source = self.source.as_ref()?;
        let special = Special {
            bos_token: sentinel::write(&special.bos_token),
            eos_token: sentinel::write(&special.eos_token),
        };
        let attempt = Attempt { source, text, variables, special, guard, now };
        let current = self.now.load_full();
        if let Some(rendered) = current.as_ref().and_then(|version| attempt.render(version)) {
            return Some(rendered);
        }
        let allowed = current.map_or_else(|| vec![true; source.places], |version| version.with.clone());
        let mut with = vec![false; source.places];
        let mut best = attempt.try_with(&with);
        if best.is_some() {
            attempt.add(&mut with, 0, source.places, &allowed, &mut best);
        }
        if let Some((version, rendered)) = best {
            self.now.store(Some(Arc::new(version)));
            Some(rendered)
        } else {
            if !self.warned.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "the chat template inspects its own output: for such conversations its control tokens are sent \
                     as plain text"
                );
            }
            None
        }
    }
}

impl Attempt<'_> {
    fn render(&self, version: &Version) -> Option<String> {
        let rendered =
            render(&version.environment, self.variables, &self.special, self.guard, self.now).ok()?;
        (sentinel::read(&rendered) == self.text).then_some(rendered)
    }

    fn try_with(&self, with: &[bool]) -> Option<(Version, String)> {
        let version = version(self.source, with.to_vec())?;
        let rendered = self.render(&version)?;
        Some((version, rendered))
    }

    /// Adds as many of the places from `from` to `to` as possible.
    fn add(
        &self,
        with: &mut Vec<bool>,
        from: usize,
        to: usize,
        allowed: &[bool],
        best: &mut Option<(Version, String)>,
    ) {
        if !allowed[from..to].contains(&true) {
            return;
        }
        with[from..to].copy_from_slice(&allowed[from..to]);
        if let Some(better) = self.try_with(with) {
            *best = Some(better);
            return;
        }
        with[from..to].fill(false);
        if to - from > 1 {
            let middle = from.midpoint(to);
            self.add(with, from, middle, allowed, best);
            self.add(with, middle, to, allowed, best);
        }
    }
}

fn version(source: &Source, with: Vec<bool>) -> Option<Version> {
    let mut environment = environment(&source.written(&with)).ok()?;
    let words = source.words.clone();
    // A role is one of ours, or a word of the template that replaces it. A client can't have made
    // it up.
    environment.add_filter(OWN, move |value: minijinja::Value| match value.as_str() {
        Some(role) if ROLES.contains(&role) || words.contains(role) => sentinel::write(role).into(),
        _ => value,
    });
    Some(Version { with, environment })
}
