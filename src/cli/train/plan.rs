//! `bespoke train --dry-run`: prints the resolved recipe and its cost.

use std::fmt::Write;
use std::path::Path;
use std::str::FromStr;

use candle_core::{DType, Tensor};

use crate::device::{self, ComputeDevice};
use crate::model::spec::Mixer;
use crate::model::{BlockSpec, DecoderConfig, Role, gguf_file, hugging_face};
use crate::train::recipe::{Recipe, Stage};
use crate::train::{TrainError, adapter, cost};

/// GPUs for rent: name, dense bf16 peak in FLOP/s, memory in bytes (from data sheets).
const GPUS: [(&str, f64, f64); 2] = [("MI300X", 1307e12, 192e9), ("H200", 989e12, 141e9)];

/// Dollars per hour, of one GPU or of all.
#[derive(Debug, Clone)]
pub struct Price {
    gpu: Option<&'static str>,
    dollars: f64,
}

impl FromStr for Price {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, dollars) = text.split_once('=').map_or((None, text), |(name, rest)| (Some(name), rest));
        let known = || GPUS.map(|(name, ..)| name).join(", ");
        let gpu = name
            .map(|name| {
                let found = GPUS.into_iter().map(|(gpu, ..)| gpu).find(|gpu| gpu.eq_ignore_ascii_case(name));
                found.ok_or_else(|| format!("{name} is not a GPU of the estimate: {}", known()))
            })
            .transpose()?;
        let dollars = dollars.parse().ok().filter(|dollars: &f64| *dollars >= 0.0 && dollars.is_finite());
        let expected = || format!("expected DOLLARS or GPU=DOLLARS, with one of {}", known());
        Ok(Self { gpu, dollars: dollars.ok_or_else(expected)? })
    }
}

/// The default price of a GPU per hour.
const DOLLARS: f64 = 3.0;

/// The price of a GPU per hour: the last one for this GPU, or else the last one for all.
fn price(prices: &[Price], gpu: &str) -> f64 {
    let last = |own: Option<&str>| prices.iter().rfind(|price| price.gpu == own).map(|price| price.dollars);
    last(Some(gpu)).or_else(|| last(None)).unwrap_or(DOLLARS)
}
/// Share of the peak that training reaches on a GPU, as good code bases report it for dense models
/// of this size.
const GPU_SHARE: f64 = 0.4;
/// Share of the speed of a plain matrix product that a training step reaches on the CPU
/// (`cargo bench --bench train`), and is assumed to reach on a GPU.
const PRODUCT_SHARE: f64 = 0.55;

/// The resolved recipe, followed by its cost as comments.
///
/// # Errors
/// A base that can't be read.
pub fn plan(recipe: &Recipe, prices: &[Price]) -> anyhow::Result<String> {
    let compute =
        ComputeDevice::new(recipe.train.device, recipe.train.precision).map_err(TrainError::from)?;
    let config = decoder(recipe)?;
    let teacher = match recipe.distil.as_ref().and_then(|distil| distil.teacher.as_deref()) {
        Some(path) => Some(of_files(path)?),
        None => None,
    };
    let whole = config.parameter_count() as f64;
    let shapes: Vec<(Option<Role>, Vec<usize>)> = match &recipe.adapter {
        None => config.parameters().iter().map(|spec| (Some(spec.role), spec.shape())).collect(),
        Some(recipe) => {
            let parameters = adapter::initial(recipe, &config, 0)?;
            parameters.entries().iter().map(|entry| (entry.role, entry.var.dims().to_vec())).collect()
        }
    };
    let elements = |of: &dyn Fn(Option<Role>, &[usize]) -> usize| -> f64 {
        let each = shapes.iter().map(|(role, dims)| dims.iter().product::<usize>() * of(*role, dims));
        each.sum::<usize>() as f64
    };
    let counts = Counts {
        whole,
        trained: elements(&|_, _| 1),
        moments: elements(&|role, dims| recipe.train.matrices.moments(role, dims)),
        teacher: teacher.as_ref().map_or(0.0, |teacher| teacher.parameter_count() as f64),
    };
    let mut out = format!("{}\n", recipe.to_toml());
    let mut say = |line: std::fmt::Arguments| writeln!(out, "# {line}").expect("a String takes every text");
    say(format_args!("{compute}"));
    say(format_args!(
        "parameters: {whole} with a vocabulary of {}, {} trained",
        config.vocab_size, counts.trained
    ));
    let Work { tokens, flops } = work(recipe, &config, teacher.as_ref(), &mut say);
    say(format_args!("tokens: {:.2}M at most", tokens / 1e6));
    say(format_args!("arithmetic: about {flops:.2e} FLOPs"));
    let threads = device::thread_count(recipe.train.threads);
    let memory = |dtype, threads| Memory::of(recipe, &config, &counts, dtype, threads);
    // A GPU computes one part at a time, whatever this machine does.
    let rented = memory(DType::BF16, 1);
    let memory = memory(compute.dtype, compute.threads(threads));
    say(format_args!(
        "memory here, about {}: weights {}, teacher {}, gradients {}, moments {}, averages {}, activations {}",
        bytes(memory.total()),
        bytes(memory.weights),
        bytes(memory.teacher),
        bytes(memory.gradients),
        bytes(memory.moments),
        bytes(memory.averages),
        bytes(memory.activations),
    ));
    let here = matrix_speed(&compute)? * PRODUCT_SHARE;
    say(format_args!(
        "time here: about {} at {:.0} GFLOP/s ({:.0} % of a plain matrix product)",
        time(flops / here),
        here / 1e9,
        PRODUCT_SHARE * 100.0
    ));
    for (name, peak, room) in GPUS {
        let seconds = flops / (peak * GPU_SHARE);
        let fits = if rented.total() <= room { "fits" } else { "does not fit" };
        let dollars = price(prices, name);
        say(format_args!(
            "time on one {name}: about {} at {:.0} % of its bf16 peak; {fits} its {}; ${:.2} at ${dollars}/h",
            time(seconds),
            GPU_SHARE * 100.0,
            bytes(room),
            seconds / 3600.0 * dollars,
        ));
    }
    Ok(out)
}

/// The configuration of the trained decoder, from the recipe or from the files of the base,
/// without reading weights.
pub(super) fn decoder(recipe: &Recipe) -> anyhow::Result<DecoderConfig> {
    Ok(match (&recipe.model, &recipe.base) {
        (Some(model), _) => model.decoder_config(recipe.data.vocabulary),
        (None, Some(base)) => of_files(&base.path)?,
        (None, None) => unreachable!("a recipe without model and base is refused when it is read"),
    })
}

/// The decoder configuration of a model's files, without reading weights.
fn of_files(path: &Path) -> anyhow::Result<DecoderConfig> {
    Ok(if path.is_dir() { hugging_face::load_config(path)?.0 } else { gguf_file::load_config(path)? })
}

struct Work {
    tokens: f64,
    flops: f64,
}

/// Tokens and arithmetic over all stages.
fn work(
    recipe: &Recipe,
    config: &DecoderConfig,
    teacher: Option<&DecoderConfig>,
    say: &mut impl FnMut(std::fmt::Arguments),
) -> Work {
    let mut work = Work { tokens: 0.0, flops: 0.0 };
    let mut from = 0;
    for Stage { until_step, seq_len, batch, .. } in recipe.stages() {
        let until = until_step.min(recipe.train.steps);
        let per_step = (batch * seq_len) as f64;
        let tokens = until.saturating_sub(from) as f64 * per_step;
        work.tokens += tokens;
        work.flops += tokens * flops_per_token(recipe, config, teacher, seq_len);
        say(format_args!("steps {}..={until}: {per_step} tokens per step at most", from + 1));
        from = until;
    }
    work
}

/// Operations per token. `train.recompute` adds a forward pass of the blocks, a teacher one of its
/// own.
fn flops_per_token(
    recipe: &Recipe,
    config: &DecoderConfig,
    teacher: Option<&DecoderConfig>,
    seq_len: usize,
) -> f64 {
    let once = cost::of_token(config, seq_len, recipe.adapter.is_some());
    let again = if recipe.train.recompute { cost::of_recomputing(config, seq_len) } else { 0.0 };
    once + again + teacher.map_or(0.0, |teacher| cost::of_forward(teacher, seq_len))
}

/// Counts of values in memory.
struct Counts {
    whole: f64,
    trained: f64,
    moments: f64,
    teacher: f64,
}

/// Memory in bytes.
struct Memory {
    weights: f64,
    teacher: f64,
    gradients: f64,
    moments: f64,
    averages: f64,
    activations: f64,
}

impl Memory {
    fn of(
        recipe: &Recipe,
        config: &DecoderConfig,
        &Counts { whole, trained, moments, teacher }: &Counts,
        dtype: DType,
        threads: usize,
    ) -> Self {
        const F32: f64 = 4.0;
        // Trained parameters and their state are f32; the rest has the type of the computation.
        let computed = dtype.size_in_bytes() as f64;
        let weights = if recipe.adapter.is_some() { computed * whole + F32 * trained } else { F32 * whole };
        let averages = if recipe.train.ema > 0.0 { trained } else { 0.0 };
        // Per token and block: the residual stream about eight times, heads five, the intermediate four.
        let of_block = |block: &BlockSpec| {
            let heads = match &block.mixer {
                Mixer::Attention(attention) => attention.heads * attention.head_dim,
                Mixer::DeltaNet(shape) => shape.values(),
            };
            8 * config.hidden_size + 5 * heads + 4 * block.ffn.width
        };
        let of_blocks = config.blocks.iter().map(of_block);
        // Recomputed, a block leaves only its input, and one at a time is there whole.
        let per_token = if recipe.train.recompute {
            config.layers() * config.hidden_size + of_blocks.max().unwrap_or(0)
        } else {
            of_blocks.sum()
        };
        let longest = recipe.stages().iter().map(|stage| stage.seq_len).max().unwrap_or(1);
        let tokens = recipe.train.micro_tokens.max(longest) * threads;
        Self {
            weights,
            teacher: computed * teacher,
            // One sum, and one part per thread.
            gradients: F32 * trained * (1 + threads) as f64,
            moments: F32 * moments,
            averages: F32 * averages,
            activations: computed * (per_token * tokens) as f64,
        }
    }

    fn total(&self) -> f64 {
        self.weights + self.teacher + self.gradients + self.moments + self.averages + self.activations
    }
}

/// FLOP/s of a product of two square matrices on the device of a run, with all threads: the best
/// of three.
fn matrix_speed(compute: &ComputeDevice) -> candle_core::Result<f64> {
    let side = if compute.device.is_cpu() { 1024 } else { 8192 };
    let x = Tensor::ones((side, side), compute.dtype, &compute.device)?;
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let began = std::time::Instant::now();
        x.matmul(&x)?;
        compute.device.synchronize()?;
        best = best.min(began.elapsed().as_secs_f64());
    }
    Ok(2.0 * (side * side * side) as f64 / best)
}

fn bytes(count: f64) -> String {
    bytesize::ByteSize(count as u64).display().si().to_string()
}

fn time(seconds: f64) -> String {
    let rounded = if seconds < 60.0 { seconds.max(1.0) } else { (seconds / 60.0).ceil() * 60.0 };
    humantime::format_duration(std::time::Duration::from_secs(rounded as u64)).to_string()
}
