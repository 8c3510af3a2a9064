//! The end of a run: curves, and the result.

use std::path::PathBuf;

use super::Outside;
use super::steps::Run;
use crate::model::{Model, hugging_face};
use crate::train::checkpoint::{self, Checkpoint};
use crate::train::observer::Event;
use crate::train::prepare::result;
use crate::train::{TrainError, adapter, log, loss_curve};
use crate::{atomic_file, failpoints};

impl Run<'_> {
    /// Draws the curves and writes the result; gives its path.
    pub(super) fn finish(&mut self, outside: &Outside) -> Result<PathBuf, TrainError> {
        let Self { recipe, out, prepared, .. } = *self;
        let judged = self.averaged.unwrap_or(&prepared.trained);
        if let (Some(_), Some((loss, step))) = (recipe.train.stop, self.state.best) {
            let path = self.checkpoints.join(step.to_string());
            let best = Checkpoint::load(&path, recipe)?;
            checkpoint::restore(judged, best.averaged.as_ref().unwrap_or(&best.weights), &path)?;
            self.observer.event(&Event::BestTaken { step, loss: loss.0 });
        }
        let path = out.join("loss.svg");
        let drawn = loss_curve::svg(&[loss_curve::Run { name: "", steps: &log::read(out)? }]);
        atomic_file::write(&path, drawn.as_bytes()).map_err(TrainError::file(path))?;
        self.metrics.draw(out)?;
        let parameters = result(judged)?;
        let written = if let Some(adapter) = &recipe.adapter {
            let origin = outside.origin.as_ref().zip(prepared.identity.base);
            let texts = origin.map(|(origin, base)| origin(base)).unwrap_or_default();
            adapter::write(out, adapter, &prepared.config, &parameters, &texts)?
        } else {
            let model = Model { config: prepared.config.clone(), parameters, text: prepared.text.clone() };
            hugging_face::save(out, &model)?;
            out.to_owned()
        };
        failpoints::point("train.written", "");
        Ok(written)
    }
}
