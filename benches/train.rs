//! Training speed: a whole step of the default recipe's model and of one with 10M parameters, and
//! its parts. Run with `cargo bench --bench train`.

use std::sync::Arc;

use bespoke::device::Workers;
use bespoke::model::ops::{
    RotaryTable, Scoring, attention, linear, linear_cross_entropy, rms_norm, rotary, swiglu,
};
use bespoke::model::{BatchLayout, Decoder, Document, Family, Parameters, Uniform, init};
use bespoke::train::batch::PackedRow;
use bespoke::train::gradient::accumulate;
use bespoke::train::objective::StepContext;
use bespoke::train::optimiser::{AdamWConfig, Group, Matrices, MuonConfig, Optimiser};
use candle_core::{Device, Tensor, Var};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const SEQ: usize = 512;
const BATCH: usize = 8;
/// Tokens that one thread processes at a time.
const MICRO: usize = 1024;

fn default_model() -> Uniform {
    Uniform {
        family: Family::Qwen3,
        vocab_size: 4096,
        hidden_size: 256,
        layers: 6,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        ffn: 768,
        rms_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: None,
        tied: true,
        max_position: 2048,
    }
}

fn ten_million() -> Uniform {
    Uniform { hidden_size: 384, heads: 6, ffn: 896, ..default_model() }
}

/// Rows of two conversations, of which 45 % of the tokens are answers.
fn rows() -> Vec<PackedRow> {
    let row = |seed: u32| {
        let ids: Vec<u32> = (0..SEQ as u32).map(|i| (i * 7919 + seed * 104_729) % 4096).collect();
        let half = SEQ / 2;
        let answer = |start: usize| (start + half * 55 / 100..start + half - 1).map(|at| at as u32);
        let targets = answer(0).chain(answer(half)).map(|at| (at, ids[at as usize + 1])).collect();
        PackedRow { documents: vec![(0, half), (half, half)], targets, ids }
    };
    (0..BATCH as u32).map(row).collect()
}

fn step(criterion: &mut Criterion, name: &str, shape: &Uniform) {
    let config = shape.config();
    let parameters = init::initialise(&config, 1).unwrap();
    let decoder = Decoder::new(config, &parameters).unwrap();
    let workers = Workers::new(0).unwrap();
    let rows = rows();
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).throughput(Throughput::Elements((BATCH * SEQ) as u64));
    let gradients = |with: Option<&Parameters>| {
        accumulate(&workers, &decoder, StepContext::default(), with, &rows, MICRO).unwrap()
    };
    group.bench_function("forward", |b| b.iter(|| gradients(None).loss));
    group.bench_function("gradients", |b| b.iter(|| gradients(Some(&parameters)).loss));
    let mut optimiser = Optimiser::new(
        &parameters,
        Group::of_recipe(Matrices::Muon, MuonConfig::default(), AdamWConfig::default()),
    )
    .unwrap();
    let found = gradients(Some(&parameters)).gradients;
    group.bench_function("optimiser", |b| b.iter(|| optimiser.step(&found, 1e-6, &workers).unwrap()));
    group.bench_function("whole step", |b| {
        b.iter(|| {
            let found = gradients(Some(&parameters)).gradients;
            optimiser.step(&found, 1e-6, &workers).unwrap();
        });
    });
    group.finish();
}

fn steps(criterion: &mut Criterion) {
    step(criterion, "step of the default model (5.8M)", &default_model());
    step(criterion, "step of a model of 10M", &ten_million());
}

fn values(shape: &[usize]) -> Var {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 7919) % 1009) as f32 / 1009.0 - 0.5).collect();
    Var::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Forward and backward of single operations on one thread, at the size of one part of a batch.
fn operations(criterion: &mut Criterion) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let mut group = criterion.benchmark_group("one thread, 1024 tokens");
    group.sample_size(10);
    let mut measure = |name: &str, run: &(dyn Fn() -> Tensor + Sync)| {
        group.bench_function(name, |b| {
            b.iter(|| pool.install(|| run().sum_all().unwrap().backward().unwrap()));
        });
    };
    let (x, wide) = (values(&[MICRO, 256]), values(&[MICRO, 768]));
    let (square, up, down) = (values(&[256, 256]), values(&[768, 256]), values(&[256, 768]));
    measure("linear 256 to 256", &|| linear(&x, &square).unwrap());
    measure("linear 256 to 768", &|| linear(&x, &up).unwrap());
    measure("linear 768 to 256", &|| linear(&wide, &down).unwrap());
    let norm = values(&[256]);
    measure("rms norm", &|| rms_norm(&x, &norm, 1e-6).unwrap());
    measure("swiglu", &|| swiglu(&wide, &wide).unwrap());
    let (q, kv) = (values(&[2, SEQ, 4, 64]), values(&[2, SEQ, 2, 64]));
    let head_norm = values(&[64]);
    let table = Arc::new(RotaryTable::new(2048, 64, 10_000.0, None));
    let positions: Arc<[u32]> = (0..MICRO as u32).map(|i| i % SEQ as u32).collect();
    measure("norm and rotary", &|| rotary(&q, Some((&head_norm, 1e-6)), &table, &positions).unwrap());
    let document = |i: usize| Document { row: i / 2, start: i % 2 * 256, len: 256 };
    let layout = BatchLayout::packed(2, SEQ, (0..4).map(document).collect()).unwrap();
    measure("attention", &|| attention(&q, &kv, &kv, Scoring::of_width(64), &layout).unwrap());
    let head = values(&[4096, 256]);
    let answers = x.narrow(0, 0, 460).unwrap();
    let targets: Vec<u32> = (0..460).collect();
    measure("head and cross-entropy", &|| {
        linear_cross_entropy(&answers, &head, targets.clone(), 1.0, None, true).unwrap().loss
    });
    group.finish();
}

criterion_group!(benches, steps, operations);
criterion_main!(benches);
