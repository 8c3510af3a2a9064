//! What a person sees of a training run: a line for each step and what else happens, and on a terminal a bar below them.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::ProgressBar;

use crate::train::log::{DomainNumbers, LOG, Speed, Step};
use crate::train::observer::{Evaluated, Event, Observer, Started};

/// Prints what happens to standard error.
#[derive(Default)]
pub struct Progress {
    bar: Option<ProgressBar>,
    /// Steps of the whole run.
    steps: u64,
}

impl Observer for Progress {
    fn event(&mut self, event: &Event) {
        match *event {
            Event::VocabularyBegun { entries, rows } => {
                self.say(&format!("training a vocabulary of {entries} entries on {rows} rows"));
            }
            Event::TokensRemade { path } => self.say(&format!("{}: damaged; rebuilt", path.display())),
            Event::Started(started) => self.start(started),
            Event::Step { numbers, speed } => self.step(numbers, speed),
            Event::Evaluated(evaluated) => self.evaluated(evaluated),
            Event::StoppedEarly { evaluations, .. } => {
                self.say(&format!("stopped: held-out loss has not fallen for {evaluations} evaluations"));
            }
            Event::BestTaken { step, loss } => {
                self.say(&format!("the result is that of step {step}, held-out loss {loss:.4}"));
            }
            Event::Measured(_) | Event::CheckpointWritten { .. } | Event::Ended(_) => {}
        }
    }
}

impl Progress {
    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    fn start(&mut self, started: &Started) {
        let &Started { step, steps, logged, trained, whole, vocabulary, held_out, too_long, .. } = started;
        self.steps = steps;
        self.bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(steps);
            bar.set_position(step);
            bar
        });
        let out = started.out.display();
        self.say(&started.compute.to_string());
        if started.found_none {
            self.say(&format!("{out} has no checkpoint yet: starting from the beginning"));
        }
        if logged < step {
            self.say(&format!(
                "warning: {out}/{LOG} has {logged} of the {step} steps so far: it was damaged"
            ));
        }
        let share = 100.0 * trained as f64 / whole as f64;
        self.say(&format!(
            "{trained} parameters are trained ({share:.2} % of {whole}), vocabulary {vocabulary}, {held_out} held-out \
             answers ({too_long} too long), from step {step}"
        ));
        if let Some(check) = started.base_check {
            self.say(check);
        }
        for note in started.notes {
            self.say(&note.to_string());
        }
    }

    fn step(&self, step: &Step, speed: &Speed) {
        let eta = speed.seconds / step.step as f64 * self.steps.saturating_sub(step.step) as f64;
        let terms = step.terms.map_or_else(String::new, |terms| {
            format!(
                " (ce {:.4}, kl {:.4}, hidden {:.4})",
                terms.cross_entropy, terms.divergence, terms.hidden
            )
        });
        let step_term = step.step_term.map_or_else(String::new, |term| format!(" (of the step {term:.4})"));
        self.say(&format!(
            "step {}/{} | loss {:.4}{terms}{step_term} | acc {:5.1} % | lr {:.3} | norm {:.3} | {:.0} tok/s | {:.2}M tokens | eta {}",
            step.step,
            self.steps,
            step.loss,
            step.accuracy * 100.0,
            step.lr,
            step.grad_norm,
            speed.tokens_per_s,
            step.tokens as f64 / 1e6,
            humantime::format_duration(Duration::from_secs(eta as u64)),
        ));
        if let Some(bar) = &self.bar {
            bar.set_position(step.step);
        }
    }

    fn evaluated(&self, evaluated: &Evaluated) {
        let together = evaluated.together;
        if evaluated.step == 0 {
            self.say(&format!("held out, before the first step: {together}"));
            return;
        }
        for (name, DomainNumbers { weight, eval }) in evaluated.domains {
            self.say(&format!("  held out, {name}: {eval} | weight {weight:.3}"));
        }
        self.say(&format!("  held out: {together}"));
        if evaluated.too_long > 0 {
            let rows = evaluated.too_long;
            self.say(&format!("  {rows} rows longer than seq_len skipped since the last evaluation"));
        }
    }
}
