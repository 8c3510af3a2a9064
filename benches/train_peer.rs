//! Training steps alternating with PyTorch's: same shape, tokens, threads, f32, AdamW, clipping. Run
//! with `cargo bench --bench train_peer -- PYTHON [ROUNDS [CASE...]]`, where PYTHON has torch,
//! transformers and peft; and `cargo bench --bench train_peer -- memory` for peak memory with and
//! without activation checkpointing.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use bespoke::device::Workers;
use bespoke::model::{Decoder, Family, Parameters, Uniform, init};
use bespoke::train::adapter::{self, Adapter};
use bespoke::train::batch::PackedRow;
use bespoke::train::clip::clip;
use bespoke::train::gradient::accumulate;
use bespoke::train::objective::{StepContext, Student};
use bespoke::train::optimiser::{AdamWConfig, Group, Matrices, MuonConfig, Optimiser};
use bespoke::train::recipe::AdapterRecipe;

const THREADS: usize = 2;
const SEQ: usize = 512;

/// A shape, how many rows a step has, and how many tokens a part.
struct Case {
    name: &'static str,
    shape: Uniform,
    rows: usize,
    micro_tokens: usize,
    adapter: Option<&'static str>,
}

fn llama(vocab_size: usize, hidden_size: usize, layers: usize, heads: usize, ffn: usize) -> Uniform {
    Uniform {
        family: Family::Llama,
        vocab_size,
        hidden_size,
        layers,
        heads,
        kv_heads: heads / 3,
        head_dim: 64,
        ffn,
        rms_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: None,
        tied: true,
        max_position: 2048,
    }
}

fn cases() -> Vec<Case> {
    let ten = || llama(4096, 384, 6, 6, 1024);
    let hundred = || llama(32_000, 768, 12, 12, 2048);
    let case = |name, shape, rows, micro_tokens, adapter| Case { name, shape, rows, micro_tokens, adapter };
    vec![
        case("10M", ten(), 8, 2048, None),
        case("100M", hundred(), 4, 2048, None),
        case("lora", hundred(), 4, 1024, Some("lora = { rank = 16, alpha = 32.0 }")),
        case("felix", hundred(), 4, 1024, Some("felix = { spokes = 4, rank = 64 }")),
    ]
}

/// One document per row, every token but the first a target.
fn rows(count: usize) -> Vec<PackedRow> {
    let row = |seed: u32| {
        let ids: Vec<u32> = (0..SEQ as u32).map(|i| (i * 7919 + seed * 104_729) % 4096).collect();
        let targets = (1..SEQ).map(|at| (at as u32 - 1, ids[at])).collect();
        PackedRow { documents: vec![(0, SEQ)], targets, ids }
    };
    (0..count as u32).map(row).collect()
}

struct Ours {
    decoder: Decoder,
    adapter: Option<Adapter>,
    trained: Parameters,
    optimiser: Optimiser,
    workers: Workers,
    rows: Vec<PackedRow>,
    micro_tokens: usize,
}

impl Ours {
    fn new(case: &Case, recompute: bool) -> anyhow::Result<Self> {
        let config = case.shape.config();
        let whole = init::initialise(&config, 1)?;
        let (decoder, adapter, trained) = match case.adapter {
            None => (Decoder::new(config, &whole)?, None, whole),
            Some(text) => {
                let recipe: AdapterRecipe = toml::from_str(text)?;
                let trained = adapter::initial(&recipe, &config, 1)?;
                let adapter = Adapter::new(&recipe, &config, &trained)?;
                (Decoder::frozen(config, &whole)?, Some(adapter), trained)
            }
        };
        let adamw = AdamWConfig { lr: 1e-5, ..AdamWConfig::default() };
        Ok(Self {
            decoder: decoder.recomputing(recompute),
            adapter,
            // AdamW updates everything, as in the peer.
            optimiser: Optimiser::new(
                &trained,
                Group::of_recipe(Matrices::AdamW, MuonConfig::default(), adamw),
            )?,
            trained,
            workers: Workers::new(THREADS)?,
            rows: rows(case.rows),
            micro_tokens: case.micro_tokens,
        })
    }

    fn step(&mut self) -> anyhow::Result<f64> {
        let student = Student { decoder: &self.decoder, adapter: self.adapter.as_ref(), effect: None };
        let outcome = accumulate(
            &self.workers,
            &student,
            StepContext::default(),
            Some(&self.trained),
            &self.rows,
            self.micro_tokens,
        )?;
        clip(&outcome.gradients, 1.0, &self.workers)?;
        self.optimiser.step(&outcome.gradients, 1.0, &self.workers)?;
        Ok(outcome.loss)
    }
}

/// A PyTorch process that takes a step for every line it reads.
struct Peer {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    fn start(python: &str, case: &Case) -> anyhow::Result<Self> {
        let c = &case.shape;
        let shape = serde_json::json!({"vocab": c.vocab_size, "hidden": c.hidden_size, "layers": c.layers, "heads": c.heads,
            "kv_heads": c.kv_heads, "head_dim": c.head_dim, "ffn": c.ffn, "rows": case.rows, "seq": SEQ});
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/train_peer.py");
        let mut command = Command::new(python);
        command.args([script, case.name, &THREADS.to_string(), &shape.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (ask, answers) = (child.stdin.take(), child.stdout.take());
        let ask = ask.ok_or_else(|| anyhow::anyhow!("the peer has no stdin"))?;
        let answers = BufReader::new(answers.ok_or_else(|| anyhow::anyhow!("the peer has no stdout"))?);
        let mut peer = Self { child, ask, answers };
        println!("{}: {}", case.name, peer.line()?.trim());
        Ok(peer)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        anyhow::ensure!(self.answers.read_line(&mut line)? > 0, "the peer has ended");
        Ok(line)
    }

    /// Wall and processor seconds of a step.
    fn step(&mut self) -> anyhow::Result<[f64; 2]> {
        self.ask.write_all(b"step\n")?;
        let line = self.line()?;
        let numbers: Vec<f64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        <[f64; 2]>::try_from(numbers).map_err(|_| anyhow::anyhow!("the peer said {line:?}"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Seconds of processor time of this process so far.
fn processor() -> anyhow::Result<f64> {
    let stat = fs_err::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: Vec<&str> = after_name.split_whitespace().skip(11).take(2).collect();
    Ok(ticks.iter().map(|ticks| ticks.parse::<f64>()).sum::<Result<f64, _>>()? / 100.0)
}

/// Median, minimum, maximum.
fn spread(values: &mut [f64]) -> String {
    values.sort_by(f64::total_cmp);
    let (first, last) = (values[0], values[values.len() - 1]);
    format!("{:.3} ({first:.3}-{last:.3})", values[values.len() / 2])
}

fn compare(python: &str, case: &Case, rounds: usize) -> anyhow::Result<()> {
    let mut peer = Peer::start(python, case)?;
    let mut ours = Ours::new(case, false)?;
    println!("{}: first loss {:.3}", case.name, ours.step()?);
    let (mut walls, mut processors) = ([vec![], vec![]], [vec![], vec![]]);
    for _ in 0..rounds {
        let (began, cpu) = (Instant::now(), processor()?);
        ours.step()?;
        walls[0].push(began.elapsed().as_secs_f64());
        processors[0].push(processor()? - cpu);
        let [wall, cpu] = peer.step()?;
        walls[1].push(wall);
        processors[1].push(cpu);
    }
    for (what, [ours, theirs]) in [("wall", &mut walls), ("processor", &mut processors)] {
        let mut ratios: Vec<f64> =
            ours.iter().zip(theirs.iter()).map(|(ours, theirs)| theirs / ours).collect();
        println!(
            "{}, {what}: ours {} s, PyTorch {} s, {} times as fast",
            case.name,
            spread(ours),
            spread(theirs),
            spread(&mut ratios)
        );
    }
    Ok(())
}

/// Largest resident memory of a process that takes two steps, in MiB.
fn peak(recompute: bool) -> anyhow::Result<f64> {
    let flag = if recompute { "recompute" } else { "keep" };
    let output = Command::new(std::env::current_exe()?).args(["memory-of", flag]).output()?;
    let text = String::from_utf8(output.stdout)?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(text.trim().parse::<f64>()? / 1024.0)
}

/// 12 layers whose activations outweigh their weights: long rows of a narrow model.
fn memory_case() -> Case {
    Case { name: "memory", shape: llama(4096, 384, 12, 6, 1024), rows: 8, micro_tokens: 4096, adapter: None }
}

fn memory_of(recompute: bool) -> anyhow::Result<()> {
    let mut ours = Ours::new(&memory_case(), recompute)?;
    ours.step()?;
    ours.step()?;
    let status = fs_err::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|rest| rest.split_whitespace().next());
    println!("{}", peak.ok_or_else(|| anyhow::anyhow!("/proc/self/status has no VmHWM"))?);
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["memory-of", flag] => memory_of(flag == "recompute"),
        ["memory"] => {
            let (keep, recompute) = (peak(false)?, peak(true)?);
            println!(
                "12 layers, 4096 tokens: {keep:.0} MiB, recomputing {recompute:.0} MiB: {:.2}",
                recompute / keep
            );
            Ok(())
        }
        [python, ref rest @ ..] => {
            let rounds = rest.first().map_or(Ok(5), |rounds| rounds.parse())?;
            let wanted = |case: &Case| rest.len() < 2 || rest[1..].contains(&case.name);
            cases().iter().filter(|case| wanted(case)).try_for_each(|case| compare(python, case, rounds))
        }
        [] => {
            println!("usage: cargo bench --bench train_peer -- PYTHON [ROUNDS [CASE...]] | memory");
            Ok(())
        }
    }
}
