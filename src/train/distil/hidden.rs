//! Hidden states: 1 - cos(map(student), teacher) over pairs of blocks, read through taps.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::model::ops::linear;
use crate::model::{Decoder, DecoderConfig, Parameters, Point, Recompute, Taps};
use crate::train::TrainError;
use crate::train::recipe::HiddenRecipe;

/// Prefix of the names of the maps, which are trained with the model but aren't part of it.
const MAP_PREFIX: &str = "distil.map.";

/// Added to the product of the two lengths.
const EPS: f64 = 1e-8;

/// The pairs of blocks that are compared.
pub(super) struct Hidden {
    pub weight: f64,
    pairs: Vec<[usize; 2]>,
    /// Maps from the student's width to the teacher's, `[D_teacher, D_student]`.
    maps: Vec<Tensor>,
}

impl Hidden {
    pub fn new(recipe: &HiddenRecipe, teacher: &Decoder, trained: &Parameters) -> Result<Self> {
        let width = teacher.config().hidden_size;
        let map = |at| {
            let map = trained.get(&format!("{MAP_PREFIX}{at}"))?.as_tensor().clone();
            match map.dim(0)? {
                rows if rows == width => Ok(map),
                rows => candle_core::bail!("{MAP_PREFIX}{at} has {rows} rows, the teacher is {width} wide"),
            }
        };
        let maps = (0..recipe.layers.len()).map(map).collect::<Result<_>>()?;
        Ok(Self { weight: recipe.weight, pairs: recipe.layers.clone(), maps })
    }

    /// The student's blocks of all pairs.
    pub fn of_student(&self) -> impl Iterator<Item = usize> {
        self.pairs.iter().map(|pair| pair[0])
    }

    /// The teacher's blocks of all pairs.
    pub fn of_teacher(&self) -> impl Iterator<Item = usize> {
        self.pairs.iter().map(|pair| pair[1])
    }

    /// Sum over tokens of the mean over pairs of 1 - cos, a scalar with a gradient; `tokens` are
    /// indices into the batch.
    pub fn apart(&self, student: &Capture, teacher: &Capture, tokens: &Tensor) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for ([ours, theirs], map) in self.pairs.iter().zip(&self.maps) {
            let rows = |capture: &Capture, layer| {
                let rows = capture.get(layer)?.flatten(0, 1)?.index_select(tokens, 0)?; // [targets, D]
                rows.to_dtype(DType::F32)
            };
            let (ours, theirs) = (linear(&rows(student, *ours)?, map)?, rows(teacher, *theirs)?.detach());
            let product = (&ours * &theirs)?.sum(D::Minus1)?;
            let lengths = (ours.sqr()?.sum(D::Minus1)? * theirs.sqr()?.sum(D::Minus1)?)?.sqrt()?;
            let apart = (1.0 - (product / (lengths + EPS)?)?)?.sum_all()?;
            sum = Some(match sum {
                None => apart,
                Some(sum) => (sum + apart)?,
            });
        }
        let sum = sum.ok_or_else(|| candle_core::Error::Msg("no pairs of blocks to compare".into()))?;
        sum / self.pairs.len() as f64
    }
}

/// Adds a map for each pair: the identity if both have the same width, else random values of
/// variance 1 / D.
pub(super) fn add_maps(
    recipe: &HiddenRecipe,
    student: &DecoderConfig,
    teacher: &DecoderConfig,
    seed: u64,
    trained: &mut Parameters,
) -> std::result::Result<(), TrainError> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x6d61_7073);
    for (at, &[ours, theirs]) in recipe.layers.iter().enumerate() {
        for (whose, layer, layers) in [("student", ours, student.layers), ("teacher", theirs, teacher.layers)]
        {
            if layer >= layers {
                let message = format!(
                    "distil.hidden.layers.{at}: block {layer} of the {whose}, which has {layers} (the first is 0)"
                );
                return Err(candle_core::Error::Msg(message).into());
            }
        }
        let (rows, columns) = (teacher.hidden_size, student.hidden_size);
        let bound = (3.0 / columns as f32).sqrt();
        let value = |index: usize, rng: &mut ChaCha8Rng| match (
            rows == columns,
            index / columns == index % columns,
        ) {
            (true, true) => 1.0,
            (true, false) => 0.0,
            // Uniform with the variance 1 / D.
            (false, _) => rng.random_range(-bound..bound),
        };
        let values: Vec<f32> = (0..rows * columns).map(|index| value(index, &mut rng)).collect();
        trained.insert(format!("{MAP_PREFIX}{at}"), Var::from_vec(values, (rows, columns), &Device::Cpu)?)?;
    }
    Ok(())
}

/// Captures the outputs of some blocks, after other taps.
pub(super) struct Capture {
    inner: Box<dyn Taps>,
    found: BTreeMap<usize, Option<Tensor>>,
}

impl Capture {
    pub fn new(inner: Box<dyn Taps>, layers: impl Iterator<Item = usize>) -> Self {
        Self { inner, found: layers.map(|layer| (layer, None)).collect() }
    }

    fn get(&self, layer: usize) -> Result<&Tensor> {
        match self.found.get(&layer) {
            Some(Some(tensor)) => Ok(tensor),
            _ => candle_core::bail!("block {layer} was not passed"),
        }
    }
}

impl Taps for Capture {
    fn before(&mut self) -> Option<&mut dyn Taps> {
        Some(&mut *self.inner)
    }

    fn tap(&mut self, point: Point, layer: usize, tensor: Tensor) -> Result<Tensor> {
        let tensor = self.inner.tap(point, layer, tensor)?;
        if let (Point::BlockOutput, Some(place)) = (point, self.found.get_mut(&layer)) {
            *place = Some(tensor.clone());
        }
        Ok(tensor)
    }

    /// It reads only the outputs of blocks.
    fn recompute(&self, layer: usize) -> Option<Recompute> {
        self.inner.recompute(layer)
    }
}
