//! `bespoke bench train`: measures the speed of training steps for a model's shape.

use std::time::Instant;

use bytesize::ByteSize;
use serde::Serialize;

use crate::device::{ComputeDevice, DeviceChoice, Precision, Workers, watched};
use crate::model::synthetic_model::Shape;
use crate::model::{Decoder, DecoderConfig, Family, Parameters, Uniform, init};
use crate::train::TrainError;
use crate::train::adapter::{self, Adapter};
use crate::train::batch::PackedRow;
use crate::train::clip::clip;
use crate::train::cost;
use crate::train::gradient::accumulate;
use crate::train::objective::{StepContext, Student};
use crate::train::optimiser::{AdamWConfig, Group, Matrices, MuonConfig, Optimiser};
use crate::train::recipe::AdapterRecipe;
use candle_core::DType;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Shape of the Llama to train: that of Qwen2.5-1.5B, or a tiny one
    #[arg(long, value_enum, default_value_t = Shape::Post)]
    shape: Shape,
    /// Train a LoRA of this rank on every matrix of the blocks, with the model frozen
    #[arg(long, value_name = "RANK", value_parser = clap::value_parser!(u32).range(1..=1024))]
    lora: Option<u32>,
    /// Device to compute on
    #[arg(long, value_enum, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
    /// Type to compute in
    #[arg(long, value_enum, default_value_t = Precision::Auto)]
    precision: Precision,
    /// Rows per step, each a single document
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    rows: u32,
    /// Tokens per row
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(2..))]
    seq: u32,
    /// Tokens per part of a step (`train.micro_tokens`)
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..))]
    micro_tokens: u32,
    /// Keep the activations of all blocks instead of recomputing them (`train.recompute = false`)
    #[arg(long)]
    keep: bool,
    /// Use Muon instead of AdamW for the matrices of blocks
    #[arg(long)]
    muon: bool,
    /// Measured steps
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Warm-up steps
    #[arg(long, value_name = "N", default_value_t = 3)]
    warmup: u32,
    /// Peak of the device in this type, in TFLOP/s [default: 989 on a GPU in bf16, that of an H100
    /// (SXM) or H200]
    #[arg(long, value_name = "TFLOPS")]
    peak: Option<f64>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Dense bf16 peak of H100 SXM and H200, from their data sheets.
const PEAK: f64 = 989.0;

#[derive(Debug, Serialize)]
struct Report {
    place: String,
    parameters: u64,
    trained: usize,
    tokens_per_step: usize,
    first_loss: f64,
    last_loss: f64,
    /// Median, minimum and maximum.
    seconds_per_step: [f64; 3],
    tokens_per_second: f64,
    peak_bytes: Option<u64>,
    /// The arithmetic of the model itself; recomputation isn't counted.
    tflops: f64,
    share_of_peak: Option<f64>,
}

/// Runs the command.
///
/// # Errors
/// A device that doesn't exist, too little memory.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let compute = ComputeDevice::new(args.device, args.precision).map_err(TrainError::from)?;
    let (report, peak_bytes) = watched(&compute.device, || measure(args, &compute));
    let report = Report { peak_bytes, ..report? };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    let [median, least, largest] = report.seconds_per_step;
    let peak =
        report.peak_bytes.map_or("unknown".to_owned(), |bytes| ByteSize(bytes).display().iec().to_string());
    println!("{}: {} parameters, {} trained", report.place, report.parameters, report.trained);
    println!("step of {} tokens: {median:.3} s ({least:.3} to {largest:.3})", report.tokens_per_step);
    println!("{:.0} tokens/s, at most {peak} in use", report.tokens_per_second);
    let share =
        report.share_of_peak.map_or(String::new(), |share| format!(", {:.1} % of the peak", share * 100.0));
    println!("{:.2} TFLOP/s{share}", report.tflops);
    println!("loss {:.4} at the first step, {:.4} at the last", report.first_loss, report.last_loss);
    Ok(())
}

fn measure(args: &Args, compute: &ComputeDevice) -> anyhow::Result<Report> {
    let config = llama(args.shape);
    let (rows, seq) = (rows(args, config.vocab_size), args.seq as usize);
    anyhow::ensure!(
        seq <= config.max_position,
        "--seq is {seq}, the model has {} positions",
        config.max_position
    );
    let whole = init::initialise(&config, 1)?;
    let (decoder, adapter, trained) = match args.lora {
        None => {
            let whole = whole.to(&compute.device, DType::F32)?;
            (Decoder::new(config.clone(), &whole)?, None, whole)
        }
        Some(rank) => {
            let whole = whole.to_frozen(&compute.device, compute.dtype)?;
            let recipe: AdapterRecipe =
                toml::from_str(&format!("lora = {{ rank = {rank}, alpha = {}.0 }}", 2 * rank))?;
            let trained = adapter::initial(&recipe, &config, 1)?.to(&compute.device, DType::F32)?;
            let adapter = Adapter::new(&recipe, &config, &trained)?;
            (Decoder::frozen(config.clone(), &whole)?, Some(adapter), trained)
        }
    };
    let decoder = decoder.recomputing(!args.keep).computing_in(compute.dtype);
    let matrices = if args.muon { Matrices::Muon } else { Matrices::AdamW };
    let adamw = AdamWConfig { lr: 1e-5, ..AdamWConfig::default() };
    let muon = MuonConfig { lr: 1e-4, ..MuonConfig::default() };
    let mut optimiser = Optimiser::new(&trained, Group::of_recipe(matrices, muon, adamw))?;
    let workers = Workers::new(compute.threads(0))?;
    let student = Student { decoder: &decoder, adapter: adapter.as_ref(), effect: None };
    let mut step = || -> anyhow::Result<(f64, f64)> {
        let began = Instant::now();
        let outcome = accumulate(
            &workers,
            &student,
            StepContext::default(),
            Some(&trained),
            &rows,
            args.micro_tokens as usize,
        )?;
        clip(&outcome.gradients, 1.0, &workers)?;
        optimiser.step(&outcome.gradients, 1.0, &workers)?;
        compute.device.synchronize()?;
        Ok((outcome.loss, began.elapsed().as_secs_f64()))
    };
    let mut losses = Vec::new();
    let mut seconds = Vec::new();
    for number in 0..args.warmup + args.steps {
        let (loss, took) = step()?;
        eprintln!("step {}: loss {loss:.4}, {took:.3} s", number + 1);
        losses.push(loss);
        if number >= args.warmup {
            seconds.push(took);
        }
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let tokens = args.rows as usize * seq;
    let tflops = cost::of_token(&config, seq, args.lora.is_some()) * tokens as f64 / median / 1e12;
    let on_gpu_in_bf16 = !compute.device.is_cpu() && compute.dtype == DType::BF16;
    let peak = args.peak.or(on_gpu_in_bf16.then_some(PEAK));
    let count = |parameters: &Parameters| parameters.iter().map(|(_, var)| var.elem_count()).sum();
    Ok(Report {
        place: compute.to_string(),
        parameters: config.parameter_count(),
        trained: count(&trained),
        tokens_per_step: tokens,
        first_loss: losses[0],
        last_loss: losses[losses.len() - 1],
        seconds_per_step: [median, seconds[0], seconds[seconds.len() - 1]],
        tokens_per_second: tokens as f64 / median,
        peak_bytes: None,
        tflops,
        share_of_peak: peak.map(|peak| tflops / peak),
    })
}

/// A Llama of the synthetic model's shape, because every other trainer supports that architecture.
fn llama(shape: Shape) -> DecoderConfig {
    Uniform { family: Family::Llama, ..shape.sizes() }.config()
}

/// One document per row, every token but the first a target; the same rows as in
/// `benches/gpu_peer.py`.
fn rows(args: &Args, vocabulary: usize) -> Vec<PackedRow> {
    let row = |row: u64| {
        let ids: Vec<u32> = (0..u64::from(args.seq))
            .map(|at| ((at * 7919 + row * 104_729) % vocabulary.min(4096) as u64) as u32)
            .collect();
        let targets = ids.iter().enumerate().skip(1).map(|(at, &id)| (at as u32 - 1, id)).collect();
        PackedRow { documents: vec![(0, ids.len())], targets, ids }
    };
    (0..u64::from(args.rows)).map(row).collect()
}
