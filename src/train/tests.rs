//! Promises of training that span its files: masks, learning, and continuing.

use std::path::Path;

use candle_core::{Device, IndexOp, Tensor};

use std::sync::Arc;

use super::batch::{Inputs, PackedRow, batch};
use super::checkpoint::{self, Checkpoint};
use super::data::{Chat, Domain, Mixture, Position, Row, Source};
use super::gradient::accumulate;
use super::log::LOG;
use super::metrics::METRICS;
use super::objective::StepContext;
use super::observer::End;
use super::optimiser::{AdamWConfig, Group, Matrices, MuonConfig, Optimiser};
use super::recipe::{LongRows, Recipe, Stage};
use super::run::{Outside, train};
use super::{TrainError, clip, log, vocabulary};
use crate::device::Workers;
use crate::model::features::DeltaNetShape;
use crate::model::spec::Mixer;
use crate::model::{Decoder, Family, NoTaps, Parameters, Uniform, init};
use crate::text::tokenizer::{END, Message, Tokenizer};

/// Conversations that ask to copy short words.
pub(super) struct Copies;

impl Copies {
    fn messages(index: u64) -> Vec<Message> {
        let words = (0..=index % 5).map(|i| format!("w{} ", (index * 31 + i * 17) % 97));
        let text = words.collect::<Vec<_>>().concat();
        let message = |role: &str, content: String| Message { role: role.into(), content };
        vec![message("user", text.clone()), message("assistant", format!("{{\"gist\":\"{text}\"}}"))]
    }
}

impl Source for Copies {
    fn row(&self, index: u64, _: Option<usize>) -> Result<Row, TrainError> {
        Ok(Row::Chat(Self::messages(index)))
    }
    fn place(&self, index: u64) -> String {
        format!("copies, row {index}")
    }
}

pub(super) fn tokenizer() -> Tokenizer {
    vocabulary::train((0..200).map(Copies::messages), 320).unwrap()
}

pub(super) fn domain(source: impl Source + 'static) -> Domain {
    let chat = Arc::new(Chat::of_post(tokenizer()));
    Domain::new("copies", Box::new(source), &chat, Path::new("unused")).unwrap()
}

/// Rows of [`Copies`] from one on.
struct Later(u64);

impl Source for Later {
    fn row(&self, index: u64, limit: Option<usize>) -> Result<Row, TrainError> {
        Copies.row(self.0 + index, limit)
    }
    fn place(&self, index: u64) -> String {
        Copies.place(self.0 + index)
    }
}

/// A model whose every part matters in short documents: windows are short, both kinds of mixers are
/// there.
pub(super) fn model(family: Family, tied: bool, vocab_size: usize) -> (Decoder, Parameters) {
    let shape = Uniform {
        family,
        vocab_size,
        hidden_size: 24,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        ffn: 40,
        rms_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: None,
        tied,
        max_position: 128,
    };
    let mut config = shape.config();
    let delta_net = DeltaNetShape { key_heads: 2, value_heads: 4, key_dim: 6, value_dim: 5, kernel: 3 };
    match family {
        Family::Gemma2 => config.blocks[0].attention_mut().unwrap().window = Some(5),
        Family::Qwen3_5 => {
            config.blocks[0].mixer = Mixer::DeltaNet(delta_net);
            config.blocks[1].mixer = Mixer::Attention(shape.attention());
        }
        _ => {}
    }
    let parameters = init::initialise(&config, 3).unwrap();
    (Decoder::new(config, &parameters).unwrap(), parameters)
}

pub(super) const STAGE: Stage = Stage { until_step: u64::MAX, max_event_chars: None, seq_len: 96, batch: 4 };

/// Rows that no other step has.
pub(super) fn packed(step: u64) -> Vec<PackedRow> {
    let mixture = Mixture::new(vec![domain(Later(step << 24))], 1);
    batch(&mixture, &[1.0], STAGE, &Position::default(), LongRows::Skip).unwrap().0.rows
}

#[test]
fn only_tokens_of_the_answer_are_learnt() {
    let tokenizer = tokenizer();
    let messages = Copies::messages(3);
    let sample = Chat::of_post(tokenizer.clone()).sample(&Row::Chat(messages.clone())).unwrap();
    let answer = tokenizer.encode_answer(&messages[1].content).unwrap();
    assert_eq!(sample.ids[sample.answer..], [&answer[..], &[END]].concat());
    for row in packed(1) {
        let mut learnt = row.targets.iter();
        for (start, len) in row.documents {
            let inside: Vec<u32> =
                learnt.by_ref().take_while(|(at, _)| (*at as usize) < start + len - 1).map(|t| t.1).collect();
            let text = tokenizer.decode(&inside).unwrap();
            let read = tokenizer.decode(&row.ids[start..start + len]).unwrap();
            assert!(text.starts_with("{\"gist\"") && read.ends_with(&text), "{text} in {read}");
        }
    }
}

#[test]
fn a_document_does_not_feel_its_neighbours() {
    for family in Family::ALL {
        does_not_feel_its_neighbours(&model(family, true, 320).0);
    }
}

fn does_not_feel_its_neighbours(decoder: &Decoder) {
    let row = packed(1).remove(0);
    let hidden = |row: &PackedRow| {
        let inputs = Inputs::new(std::slice::from_ref(row), &Device::Cpu).unwrap();
        decoder.forward(&inputs.ids, &inputs.layout, &mut NoTaps).unwrap().i(0).unwrap()
    };
    let before = hidden(&row);
    let mut changed = row.clone();
    let (start, len) = row.documents[0];
    changed.ids[start..start + len].iter_mut().for_each(|id| *id = (*id + 1) % 320);
    let after = hidden(&changed);
    let part = |tensor: &Tensor, (start, len): (usize, usize)| {
        tensor.i(start..start + len).unwrap().to_vec2::<f32>().unwrap()
    };
    assert_ne!(part(&before, row.documents[0]), part(&after, row.documents[0]));
    for &document in &row.documents[1..] {
        assert_eq!(part(&before, document), part(&after, document));
        // Its position in the row doesn't matter either.
        let (start, len) = document;
        let alone = PackedRow {
            ids: row.ids[start..start + len].to_vec(),
            documents: vec![(0, len)],
            targets: vec![],
        };
        let (here, there) = (part(&before, document), part(&hidden(&alone), (0, len)));
        for (a, b) in here.iter().flatten().zip(there.iter().flatten()) {
            assert!((a - b).abs() < 1e-5, "{a} in a row, {b} alone");
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences_through_the_whole_decoder() {
    for family in Family::ALL {
        let tied = family != Family::Llama;
        let (decoder, parameters) = model(family, tied, 320);
        if family == Family::Qwen3_5 {
            // Near zero, the loss curves too sharply in the norms of q and k for any step size.
            let embedding = parameters.get("model.embed_tokens.weight").unwrap();
            embedding.set(&(embedding.as_tensor() * 20.0).unwrap()).unwrap();
        }
        let workers = Workers::new(2).unwrap();
        let rows = packed(2);
        let whole =
            accumulate(&workers, &decoder, StepContext::default(), Some(&parameters), &rows, 10_000).unwrap();
        let parts =
            accumulate(&workers, &decoder, StepContext::default(), Some(&parameters), &rows, 96).unwrap();
        let norm = clip::global_norm(&whole.gradients, &workers).unwrap();
        assert!((whole.loss - parts.loss).abs() < 1e-5, "{} {}", whole.loss, parts.loss);
        for ((name, var), (gradient, of_parts)) in
            parameters.iter().zip(whole.gradients.iter().zip(&parts.gradients))
        {
            let apart = [(gradient - of_parts).unwrap()];
            assert!(
                clip::global_norm(&apart, &workers).unwrap() < 1e-5 * norm,
                "{family:?}: {name}: parts differ"
            );
            // Along the gradient itself the loss must rise by its squared norm.
            let length = clip::global_norm(std::slice::from_ref(gradient), &workers).unwrap();
            let original = var.as_tensor().copy().unwrap();
            // Small, because the loss curves sharply in the embedding (by the first norm) and in q
            // and k (by their normalisation).
            let size = match name {
                _ if family == Family::Qwen3_5 => 3e-4,
                "model.embed_tokens.weight" => 1e-3,
                _ => 3e-3,
            };
            let loss_at = |sign: f64| {
                var.set(&(&original + (gradient * (sign * size / length)).unwrap()).unwrap()).unwrap();
                accumulate(&workers, &decoder, StepContext::default(), None, &rows, 10_000).unwrap().loss
            };
            let slope = (loss_at(1.0) - loss_at(-1.0)) / (2.0 * size);
            var.set(&original).unwrap();
            assert!(
                (slope - length).abs() < 0.02 * length + 1e-4,
                "{family:?}: {name}: slope {slope}, gradient {length}"
            );
        }
    }
}

#[test]
fn one_batch_is_learnt_by_heart() {
    let (decoder, parameters) = model(Family::Qwen3, true, 320);
    let workers = Workers::new(2).unwrap();
    let adamw = AdamWConfig { lr: 1e-2, ..Default::default() };
    let mut optimiser =
        Optimiser::new(&parameters, Group::of_recipe(Matrices::Muon, MuonConfig::default(), adamw)).unwrap();
    let rows = packed(3);
    let mut last = (f64::INFINITY, 0.0);
    for _ in 0..150 {
        let outcome =
            accumulate(&workers, &decoder, StepContext::default(), Some(&parameters), &rows, 192).unwrap();
        last = (outcome.loss, outcome.accuracy());
        optimiser.step(&outcome.gradients, 1.0, &workers).unwrap();
    }
    assert!(last.0 < 0.05 && last.1 > 0.99, "loss {}, accuracy {}", last.0, last.1);
}

/// Writes the data of a small run and gives its recipe.
pub(super) fn small_run(folder: &Path, overrides: &[&str]) -> Recipe {
    let row = |i| {
        let messages = Copies::messages(i);
        serde_json::json!({ "messages": messages }).to_string() + "\n"
    };
    let data = folder.join("rows.jsonl");
    crate::atomic_file::write(&data, (0..60).map(row).collect::<String>().as_bytes()).unwrap();
    let path = folder.join("recipe.toml");
    let text = format!(
        "[model]\nfamily = \"qwen3\"\nhidden_size = 16\nlayers = 1\nheads = 2\nkv_heads = 1\nhead_dim = 8\n\
         ffn = 24\nmax_position = 96\n[train]\nsteps = 6\nbatch = 2\nseq_len = 96\nseed = 1\ncheckpoint_every = 2\n\
         eval_every = 3\nema = 0.9\nmetrics_every = 2\n[data]\nvocabulary = 320\neval_rows = 10\n\
         [data.domains.rows]\ntrain = [{data:?}]\neval = [{data:?}]\n"
    );
    crate::atomic_file::write(&path, text.as_bytes()).unwrap();
    let overrides: Vec<String> = overrides.iter().map(|&s| s.to_owned()).collect();
    Recipe::load(&path, &overrides).unwrap()
}

pub(super) fn run(recipe: &Recipe, out: &Path, resume: bool) -> Result<End, TrainError> {
    train(recipe, out, resume, &Outside::default(), &mut ())
}

/// The bytes of a run's last checkpoint and of its other files.
pub(super) fn content(out: &Path, step: u64) -> Vec<(String, Vec<u8>)> {
    let checkpoint =
        ["weights.safetensors", "averaged.safetensors", "moments.safetensors", "state.json", "manifest.json"];
    let paths = checkpoint.iter().map(|name| format!("checkpoints/{step}/{name}"));
    let all = paths.chain([LOG, METRICS, "model.safetensors"].map(str::to_owned));
    all.map(|name| (name.clone(), fs_err::read(out.join(&name)).unwrap())).collect()
}

#[test]
fn a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let recipe = small_run(folder.path(), &[]);
    run(&recipe, &one, false).unwrap();
    run(&recipe, &two, false).unwrap();
    // Back to step 4, as if the run had died in step 5.
    fs_err::remove_dir_all(two.join("checkpoints/6")).unwrap();
    fs_err::remove_file(two.join("model.safetensors")).unwrap();
    run(&recipe, &two, true).unwrap();
    let (expected, found) = (content(&one, 6), content(&two, 6));
    for ((name, expected), (_, found)) in expected.iter().zip(&found) {
        assert!(expected == found, "{name} differs");
    }
    assert_eq!(log::read(&two).unwrap().len(), 6);
    assert!(fs_err::read_to_string(one.join("loss.svg")).unwrap().contains("<polyline"));
    assert!(fs_err::read_to_string(one.join("metrics/entropy-by-head.svg")).unwrap().contains("step 6"));
    // Only the last file was lost.
    fs_err::remove_file(two.join("model.safetensors")).unwrap();
    run(&recipe, &two, true).unwrap();
    assert_eq!(content(&two, 6), found);
    let error = run(&recipe, &two, false).unwrap_err();
    assert!(
        error.to_string().contains("checkpoints up to step 6") && error.hint().unwrap().contains("--resume")
    );
}

#[test]
fn a_damaged_or_foreign_checkpoint_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let recipe = small_run(folder.path(), &["train.steps=2"]);
    run(&recipe, &out, false).unwrap();
    let other = small_run(folder.path(), &["train.steps=2", "train.ema=0.5"]);
    let checkpoints = out.join("checkpoints");
    let error = Checkpoint::newest(&checkpoints, &other).unwrap_err();
    assert!(error.hint().unwrap().contains("--out"));
    let error = error.to_string();
    assert!(error.contains("ema = 0.9") && error.contains("ema = 0.5"), "{error}");
    // Other rows make another tokenizer.
    let saved = Checkpoint::newest(&checkpoints, &recipe).unwrap().unwrap();
    let path = checkpoints.join("2");
    let (_, parameters) = model(Family::Qwen3, true, 320);
    let error = checkpoint::restore(&parameters, &saved.weights, &path).unwrap_err().to_string();
    assert!(
        error.contains("checkpoints/2") && error.contains("[297, 16], expected F32 [320, 24]"),
        "{error}"
    );
    let mut halves = saved.weights.clone();
    let name = "model.norm.weight";
    let half = halves[name].to_dtype(candle_core::DType::F16).unwrap();
    halves.insert(name.to_owned(), half);
    let own = saved.weights.iter().map(|(name, tensor)| (name.as_str(), tensor));
    let error = checkpoint::check(own, &halves, &path).unwrap_err().to_string();
    assert!(error.contains(name) && error.contains("F16 [16], expected F32 [16]"), "{error}");
    let path = path.join("weights.safetensors");
    let mut bytes = fs_err::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    crate::atomic_file::write(&path, &bytes).unwrap();
    let error = Checkpoint::newest(&checkpoints, &recipe).unwrap_err().to_string();
    assert!(error.contains("weights.safetensors has SHA-256"), "{error}");
}

/// Has a run judged by what it doesn't learn: with large steps that only gets less likely, so an
/// early evaluation stays the best.
fn unlearnable(folder: &Path) -> String {
    let other = folder.join("other.jsonl");
    crate::atomic_file::write(&other, b"{\"text\":\"QQ@@##~~ZZ\"}\n").unwrap();
    format!("data.domains.rows.eval=[{other:?}]")
}

#[test]
fn the_newest_three_checkpoints_and_the_best_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let set = [
        "train.steps=12",
        "train.checkpoint_every=1",
        "train.eval_every=2",
        "train.ema=0",
        "train.adamw.lr=0.1",
        "train.muon.lr=0.1",
        &unlearnable(folder.path()),
    ];
    let recipe = small_run(folder.path(), &set);
    run(&recipe, &out, false).unwrap();
    let best = log::read(&out)
        .unwrap()
        .iter()
        .filter_map(|s| Some((s.eval?.loss, s.step)))
        .min_by(|a, b| a.0.total_cmp(&b.0));
    let mut expected = vec![best.unwrap().1, 10, 11, 12];
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(checkpoint::steps(&out.join("checkpoints")).unwrap(), expected);
    assert!(expected.len() == 4, "the best is among the newest: the test shows nothing");
}

#[test]
fn early_stopping_ends_the_run_with_the_best_weights() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let set = [
        "train.steps=40",
        "train.eval_every=1",
        "train.ema=0",
        "train.warmup=0",
        "train.muon.lr=0.1",
        "train.adamw.lr=0.1",
        "train.stop.patience=3",
        &unlearnable(folder.path()),
    ];
    let recipe = small_run(folder.path(), &set);
    run(&recipe, &out, false).unwrap();
    let steps = log::read(&out).unwrap();
    let losses: Vec<f64> = steps.iter().map(|step| step.eval.unwrap().loss).collect();
    let best = losses.iter().copied().fold(f64::INFINITY, f64::min);
    let at = losses.iter().position(|loss| *loss <= best).unwrap();
    assert_eq!(steps.len(), at + 1 + 3, "{losses:?}");
    let saved = Checkpoint::load(&out.join(format!("checkpoints/{}", at + 1)), &recipe).unwrap();
    let written = candle_core::safetensors::load(out.join("model.safetensors"), &Device::Cpu).unwrap();
    for (name, tensor) in saved.weights {
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&tensor), values(&written[&name]), "{name}");
    }
    // A stopped run stays stopped.
    run(&recipe, &out, true).unwrap();
    assert_eq!(log::read(&out).unwrap().len(), steps.len());
}

#[test]
fn a_loss_above_its_bound_stops_the_run_before_it_moves_anything() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let error = run(&small_run(folder.path(), &["train.max_loss=1.0"]), &out, false).unwrap_err();
    assert!(error.to_string().contains("above train.max_loss, 1"), "{error}");
    assert!(error.hint().unwrap().contains("learning rates"));
    assert!(!out.join("checkpoints").exists() && log::read(&out).unwrap().is_empty());
}

#[test]
fn a_held_out_loss_that_is_no_number_ends_the_run_before_it_is_logged_or_saved() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    // The loss of the first step is sound, but the step overflows the weights.
    let set = ["train.eval_every=1", "train.ema=0", "train.warmup=0", "train.adamw.lr=1e300"];
    let error = run(&small_run(folder.path(), &set), &out, false).unwrap_err();
    assert!(error.to_string().starts_with("step 1: held-out loss "), "{error}");
    assert!(!out.join("checkpoints").exists() && log::read(&out).unwrap().is_empty());
}

#[test]
fn a_domain_whose_held_out_rows_are_all_too_long_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let long = folder.path().join("long.jsonl");
    let text = format!("{{\"prompt\":\"w1 \",\"completion\":\"{}\"}}\n", "w1 w2 ".repeat(90)).repeat(3);
    crate::atomic_file::write(&long, text.as_bytes()).unwrap();
    let recipe = small_run(folder.path(), &[&format!("data.domains.rows.eval=[{long:?}]")]);
    let error = run(&recipe, &out, false).unwrap_err();
    let said = "data.domains.rows: 3 of 3 held-out rows are longer than seq_len, 96";
    assert!(error.to_string().contains(said), "{error}");
    assert!(error.hint().unwrap().contains("train.seq_len"));
    assert!(!out.join(LOG).exists());
}

#[test]
fn parts_of_a_batch_accumulate_to_the_gradient_of_the_whole_bit_for_bit() {
    let (decoder, parameters) = model(Family::Qwen3, true, 320);
    let rows = packed(4);
    let gradients = |threads: usize| {
        let workers = Workers::new(threads).unwrap();
        accumulate(&workers, &decoder, StepContext::default(), Some(&parameters), &rows, 96).unwrap()
    };
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let whole = gradients(1);
    // Whatever the number of threads.
    for (a, b) in whole.gradients.iter().zip(&gradients(3).gradients) {
        assert_eq!(values(a), values(b));
    }
    // One row at a time, weighted by its share of the batch's answer tokens, added in order.
    let scale = 1.0 / rows.iter().map(|row| row.targets.len()).sum::<usize>() as f32;
    let mut sums: Vec<Vec<f32>> = vec![];
    for row in rows.chunks(1) {
        let part =
            super::objective::Objective::loss(&decoder, row, scale, StepContext::default(), true).unwrap();
        let mut found = crate::model::ops::Gradients::of(&part.loss).unwrap();
        let gradients: Vec<Vec<f32>> =
            parameters.iter().map(|(_, var)| values(&found.take(var).unwrap().unwrap())).collect();
        if sums.is_empty() {
            sums = gradients;
        } else {
            for (sum, part) in sums.iter_mut().zip(gradients) {
                sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
        }
    }
    for (whole, sum) in whole.gradients.iter().zip(&sums) {
        assert_eq!(&values(whole), sum);
    }
}
