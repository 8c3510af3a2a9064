//! Tests of terms of a step, masks of weights, and groups of the optimiser that ascend, without a
//! run.

use std::sync::Mutex;

use bespoke::device::Workers;
use bespoke::model::spec::Part;
use bespoke::model::{Parameters, Projection, Role};
use bespoke::train::TrainError;
use bespoke::train::batch::PackedRow;
use bespoke::train::gradient::accumulate;
use bespoke::train::objective::{Objective, PartLoss, StepContext, Terms};
use bespoke::train::optimiser::{
    AdamWConfig, Algorithm, Class, Direction, Group, Matrices, MuonConfig, Optimiser, Takes,
};
use candle_core::{Device, Tensor, Var};
use rand::Rng;

use crate::train_seams::{UP, adamw, every_third, insert, is_sparse, values};

/// (x - 3)^2 over rows, under the constraint x = 1, with a multiplier and a penalty.
struct Constrained {
    x: Tensor,
    multiplier: Tensor,
    drawn: Mutex<Vec<u32>>,
}

impl Constrained {
    fn new(x: f32, multiplier: f32) -> (Self, Parameters) {
        let mut parameters = Parameters::default();
        insert(&mut parameters, "x", Tensor::new(&[x], &Device::Cpu).unwrap());
        insert(&mut parameters, "multiplier", Tensor::new(&[multiplier], &Device::Cpu).unwrap());
        let get = |name| parameters.get(name).unwrap().as_tensor().clone();
        (Self { x: get("x"), multiplier: get("multiplier"), drawn: Mutex::default() }, parameters)
    }
}

impl Objective for Constrained {
    fn loss(
        &self,
        rows: &[PackedRow],
        scale: f32,
        context: StepContext,
        _with_gradient: bool,
    ) -> Result<PartLoss, TrainError> {
        self.drawn.lock().unwrap().push(context.rng(1).random());
        let targets: usize = rows.iter().map(|row| row.targets.len()).sum();
        let apart = (&self.x - 3.0)?.sqr()?.sum_all()?;
        let loss = (apart * (f64::from(scale) * targets as f64))?;
        Ok(PartLoss { loss, terms: Terms::default(), hits: vec![true; targets] })
    }

    fn step_term(&self, _context: StepContext) -> Result<Option<Tensor>, TrainError> {
        let apart = (&self.x - 1.0)?;
        Ok(Some(((&self.multiplier * &apart)?.sum_all()? + apart.sqr()?.sum_all()?)?))
    }
}

fn rows(count: usize) -> Vec<PackedRow> {
    vec![PackedRow { ids: vec![0; 8], documents: vec![(0, 8)], targets: vec![(0, 1)] }; count]
}

#[test]
fn a_term_of_the_step_counts_once_and_noise_is_the_same_in_all_parts() {
    let workers = Workers::new(2).unwrap();
    let context = |step, seed| StepContext { step, seed, trains: true };
    let run = |micro_tokens, context| {
        let (objective, parameters) = Constrained::new(2.0, 0.5);
        let found =
            accumulate(&workers, &objective, context, Some(&parameters), &rows(4), micro_tokens).unwrap();
        let drawn = objective.drawn.into_inner().unwrap();
        assert_eq!(drawn.len(), 32 / micro_tokens);
        assert!(drawn.iter().all(|noise| *noise == drawn[0]), "{drawn:?}");
        (found, drawn[0])
    };
    for micro_tokens in [32, 8] {
        let (found, _) = run(micro_tokens, context(1, 5));
        // 1 of the rows, 0.5 * 1 + 1 of the step.
        assert_eq!((found.loss, found.step_term), (2.5, Some(1.5)), "{micro_tokens} tokens a part");
        // 2 (2 - 3) + 0.5 + 2 (2 - 1) for x; 2 - 1 for the multiplier, which no row depends on.
        let gradients: Vec<f32> = found.gradients.iter().flat_map(values).collect();
        assert_eq!(gradients, [0.5, 1.0], "{micro_tokens} tokens a part");
    }
    let noise = |step, seed| run(8, context(step, seed)).1;
    assert!(noise(1, 5) == noise(1, 5) && noise(1, 5) != noise(2, 5) && noise(1, 5) != noise(1, 6));
    // What is judged is the rows.
    let (objective, _) = Constrained::new(2.0, 0.5);
    let found = accumulate(&workers, &objective, StepContext::default(), None, &rows(4), 8).unwrap();
    assert_eq!((found.loss, found.step_term), (1.0, None));
}

#[test]
fn a_parameter_that_nothing_depends_on_is_named() {
    let (objective, mut parameters) = Constrained::new(2.0, 0.5);
    insert(&mut parameters, "idle", Tensor::new(&[0.0f32], &Device::Cpu).unwrap());
    let workers = Workers::new(1).unwrap();
    let found = accumulate(&workers, &objective, StepContext::default(), Some(&parameters), &rows(1), 8);
    assert!(found.unwrap_err().to_string().contains("parameter idle has no gradient"));
}

/// x and the multiplier after each of 300 steps.
fn constrained(direction: Direction) -> Vec<[f32; 2]> {
    let workers = Workers::new(2).unwrap();
    let (objective, parameters) = Constrained::new(3.0, 0.0);
    let groups = vec![
        adamw("multipliers", "multiplier", 0.05, direction),
        adamw("others", "x", 0.05, Direction::Descend),
    ];
    let mut optimiser = Optimiser::new(&parameters, groups).unwrap();
    let step = |step| {
        let context = StepContext { step, seed: 1, trains: true };
        let found = accumulate(&workers, &objective, context, Some(&parameters), &rows(4), 8).unwrap();
        optimiser.step(&found.gradients, 1.0, &workers).unwrap();
        ["x", "multiplier"].map(|name| values(parameters.get(name).unwrap())[0])
    };
    (1..=300).map(step).collect()
}

#[test]
fn a_multiplier_grows_while_its_constraint_is_violated() {
    let steps = constrained(Direction::Ascend);
    let held = steps.iter().position(|[x, _]| *x <= 1.0).expect("the constraint is never met");
    let multipliers: Vec<f32> = steps[..=held].iter().map(|[_, multiplier]| *multiplier).collect();
    assert!(held > 10 && multipliers.windows(2).all(|pair| pair[0] < pair[1]), "{multipliers:?}");
    assert!(multipliers[held] > 3.0, "{multipliers:?}");
    // A multiplier that descends gives up the constraint.
    assert!(constrained(Direction::Descend).iter().all(|[x, _]| *x > 1.5));
}

/// A matrix of a block, an embedding and a norm.
fn parameters() -> Parameters {
    let mut parameters = Parameters::default();
    let up = Role::Block { layer: 0, part: Part::Weight(Projection::Up) };
    for (role, shape) in [(up, vec![6, 4]), (Role::Embedding, vec![7, 4]), (Role::FinalNorm, vec![4])] {
        let count: usize = shape.iter().product();
        let value = |i: usize| ((i * i * 7919 + 31 * i) % 1009) as f32 / 504.5 - 0.99;
        let values: Vec<f32> = (0..count).map(value).collect();
        let values = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        parameters.insert(role.name(false), role, Var::from_tensor(&values).unwrap()).unwrap();
    }
    parameters
}

#[test]
fn masked_weights_stay_zero_through_the_steps_of_both_optimisers() {
    let workers = Workers::new(2).unwrap();
    let parameters = parameters();
    let adamw = AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() };
    let muon = MuonConfig { weight_decay: 0.1, ..MuonConfig::default() };
    let mut optimiser = Optimiser::new(&parameters, Group::of_recipe(Matrices::Muon, muon, adamw)).unwrap();
    let gradients = |step: u32| -> Vec<Tensor> {
        let turn = 1.5 + (2.0 * f64::from(step)).sin();
        parameters
            .iter()
            .map(|(_, var)| ((var.as_detached_tensor() + 0.3).unwrap() * turn).unwrap())
            .collect()
    };
    // Moments are there before the masks.
    for step in 0..3 {
        optimiser.step(&gradients(step), 1.0, &workers).unwrap();
    }
    for (name, var) in parameters.iter() {
        optimiser.set_mask(name, Some(&every_third(var.dims()))).unwrap();
    }
    let all = || parameters.iter().map(|(_, var)| values(var)).collect::<Vec<_>>();
    let masked = all();
    assert!(masked.iter().all(|values| is_sparse(values)), "{masked:?}");
    assert!(optimiser.state().values().all(|moment| is_sparse(&values(moment))));
    for step in 3..13 {
        let gradients = gradients(step);
        // With gradients of weights that aren't there, and without.
        if step % 2 == 0 {
            optimiser.mask_gradients(&gradients, &workers).unwrap();
            assert!(gradients.iter().all(|gradient| is_sparse(&values(gradient))));
        }
        optimiser.step(&gradients, 1.0, &workers).unwrap();
        assert!(all().iter().all(|values| is_sparse(values)), "step {step}: {:?}", all());
    }
    for (before, after) in masked.iter().flatten().zip(all().iter().flatten()) {
        assert!(*before == 0.0 || (before - after).abs() > 1e-4, "{before} did not move");
    }
    // A copy, as of averages.
    let copied = self::parameters();
    optimiser.mask_values(&copied).unwrap();
    assert!(copied.iter().all(|(_, var)| is_sparse(&values(var))));
    // Without its mask a parameter moves whole.
    optimiser.set_mask(UP, None).unwrap();
    optimiser.step(&gradients(13), 1.0, &workers).unwrap();
    assert!(values(parameters.get(UP).unwrap()).iter().all(|value| *value != 0.0));

    let mut refused = |name: &str, mask: &[f32]| {
        let mask = Tensor::new(mask, &Device::Cpu).unwrap();
        optimiser.set_mask(name, Some(&mask)).unwrap_err().to_string()
    };
    let norm = "model.norm.weight";
    assert!(refused(norm, &[1.0; 3]).contains("mask of model.norm.weight: [3], expected [4]"));
    assert!(refused(norm, &[1.0, 0.5, 1.0, 1.0]).contains("0.5, expected 0 or 1"));
    assert!(refused("lm_head.weight", &[1.0]).contains("lm_head.weight, which isn't trained"));
}

#[test]
fn a_parameter_without_a_group_and_a_vector_for_muon_are_refused() {
    let refused = |groups| Optimiser::new(&parameters(), groups).unwrap_err().to_string();
    let mut groups = Group::of_recipe(Matrices::Muon, MuonConfig::default(), AdamWConfig::default());
    let vectors = groups.iter().position(|group| group.takes == Takes::Class(Class::Vector)).unwrap();
    assert!(
        refused(vec![groups[vectors].clone()]).contains(&format!("parameter {UP} [6, 4] is in no group"))
    );
    groups[vectors].algorithm = Algorithm::Muon { momentum: 0.9, weight_decay: 0.0 };
    assert!(
        refused(groups).contains(
            "model.norm.weight [4] is in the group \"vectors\", which Muon moves: expected a matrix"
        )
    );
}
