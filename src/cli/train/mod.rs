//! `bespoke train`: trains a model or an adapter from a recipe.

mod plan;
mod progress;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;

use super::WrongConfiguration;
use super::client::{Client, ClientError};
use crate::adapter::{Limits, Post, origin_texts, to_served, unexported_origin_texts};
use crate::model::{gguf_file, hugging_face};
use crate::train::distil::Ask;
use crate::train::observer::End;
use crate::train::recipe::{AdapterRecipe, Recipe};
use crate::train::run::{Origin, Outside};
use crate::train::{TrainError, adapter, run};
pub(super) use progress::Progress;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The recipe, a TOML file
    recipe: PathBuf,
    /// Folder for the result, logs and checkpoints [default: runs/<recipe's name>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Continue from the newest checkpoint in the output folder
    #[arg(long)]
    resume: bool,
    /// Change a key of the recipe: `--set train.steps=100`
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print the resolved recipe and its cost, and exit
    #[arg(long)]
    dry_run: bool,
    /// Price of all GPUs or of one in dollars per hour, for `--dry-run`: `2.5`, `H200=3.1`
    /// [default: 3]
    #[arg(long, value_name = "[GPU=]DOLLARS", requires = "dry_run")]
    gpu_price: Vec<plan::Price>,
}

/// Runs the command.
///
/// # Errors
/// A wrong recipe (exit code 78), or a run that failed.
pub fn run(args: Args) -> anyhow::Result<()> {
    let recipe = load(&args.recipe, &args.set)?;
    if args.dry_run {
        print!("{}", plan::plan(&recipe, &args.gpu_price)?);
        return Ok(());
    }
    let stem = args.recipe.file_stem().context("the recipe has no file name")?;
    let out = args.out.unwrap_or_else(|| PathBuf::from("runs").join(stem));
    let target = Target::of(&recipe)?;
    if let (Some(Target::Post(post)), Some(adapter)) = (&target, &recipe.adapter) {
        try_out(&recipe, adapter, post, &out)?;
    }
    let origin = target.as_ref().map(|target| target.origin(&recipe));
    let outside = Outside { origin, ask: ask(&recipe)?, method: None };
    let end = run::train(&recipe, &out, args.resume, &outside, &mut Progress::default());
    let result = match end.context("training stopped")? {
        End::Finished { result } => result,
        End::Cancelled { step } => anyhow::bail!("cancelled after step {step}: go on with --resume"),
    };
    let result = match target {
        Some(Target::Post(post)) => served(&result, &out, &post)?,
        Some(Target::Unexported(_)) | None => result,
    };
    println!("{}", result.display());
    Ok(())
}

/// Reads a recipe.
///
/// # Errors
/// A wrong recipe counts as wrong configuration.
pub(super) fn load(path: &Path, overrides: &[String]) -> anyhow::Result<Recipe> {
    let recipe = Recipe::load(path, overrides).map_err(|error| match error {
        TrainError::Recipe { .. } => WrongConfiguration(error.to_string()).into(),
        other => anyhow::Error::new(other),
    })?;
    let missing = recipe.files().into_iter().find(|(_, file)| !file.exists());
    if let Some((key, file)) = missing {
        return Err(WrongConfiguration(format!(
            "{}: {key}: {} doesn't exist",
            path.display(),
            file.display()
        ))
        .into());
    }
    Ok(recipe)
}

/// How to send requests to a remote teacher.
///
/// # Errors
/// An endpoint that is not an address.
pub(super) fn ask(recipe: &Recipe) -> anyhow::Result<Option<Ask>> {
    let Some(endpoint) = recipe.distil.as_ref().and_then(|distil| distil.endpoint.as_ref()) else {
        return Ok(None);
    };
    let client = Client::with_key_of_environment(endpoint)?;
    let answered = AtomicBool::new(false);
    Ok(Some(Arc::new(move |path, body| {
        let ask = || if body.is_null() { client.get(path) } else { client.post(path, body) };
        // A server that has never answered isn't retried.
        let patience = if answered.load(Ordering::Relaxed) { &PAUSES[..] } else { &[] };
        let answer = patiently(patience, ask).map_err(|error| error.to_string())?;
        answered.store(true, Ordering::Relaxed);
        Ok(answer)
    })))
}

/// Pauses before a request is repeated: a busy or restarting daemon must not end a run of hours.
const PAUSES: [u64; 5] = [1, 2, 4, 8, 16];

fn patiently<T>(pauses: &[u64], ask: impl Fn() -> Result<T, ClientError>) -> Result<T, ClientError> {
    for pause in pauses {
        match ask() {
            Err(error) if error.may_pass() => {
                eprintln!("{error}; retrying in {pause} s");
                std::thread::sleep(Duration::from_secs(*pause));
            }
            answered => return answered,
        }
    }
    ask()
}

/// What an adapter is trained for.
enum Target {
    /// A GGUF file.
    Post(Box<Post>),
    /// A Hugging Face folder that isn't exported yet, with llama.cpp's name of its architecture.
    Unexported(&'static str),
}

impl Target {
    /// The target of a recipe; `None` if it trains a whole model.
    fn of(recipe: &Recipe) -> anyhow::Result<Option<Self>> {
        let (Some(_), Some(base)) = (&recipe.adapter, &recipe.base) else { return Ok(None) };
        Ok(Some(if base.path.is_file() {
            Self::Post(Box::new(Post::open(&base.path)?))
        } else {
            let config = hugging_face::load_config(&base.path)?.0;
            Self::Unexported(gguf_file::names::architecture(config.family))
        }))
    }

    /// The metadata about the origin of the adapter.
    fn origin(&self, recipe: &Recipe) -> Origin {
        let adapter = recipe.adapter.as_ref();
        let prompt = adapter.and_then(|adapter| adapter.prompt.clone());
        let task = adapter.and_then(|adapter| adapter.task.clone());
        match self {
            Self::Post(post) => {
                let texts = origin_texts(post, prompt.as_deref(), task.as_deref());
                Box::new(move |_| texts.clone())
            }
            &Self::Unexported(architecture) => Box::new(move |base| {
                unexported_origin_texts(architecture, base, prompt.as_deref(), task.as_deref())
            }),
        }
    }
}

/// Writes the initial adapter to a file and inspects it, so that an adapter whose kind, matrices
/// or size the daemon would refuse fails before training, not after it.
fn try_out(recipe: &Recipe, adapter: &AdapterRecipe, post: &Post, out: &Path) -> anyhow::Result<()> {
    let config = plan::decoder(recipe)?;
    // The temporary folder is where the run will write, where there should be room.
    let parent = out.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    let folder = tempfile::Builder::new().prefix(".trial-").tempdir_in(parent);
    let folder = folder.context("can't create a folder to test the adapter")?;
    let parameters = adapter::initial(adapter, &config, recipe.train.seed)?;
    let written = adapter::write(folder.path(), adapter, &config, &parameters, &BTreeMap::new())?;
    served(&written, folder.path(), post).context("the daemon would refuse the adapter of this recipe")?;
    Ok(())
}

/// Writes the adapter as the file that the daemon loads, and inspects it as the daemon does.
fn served(adapter: &Path, out: &Path, post: &Post) -> anyhow::Result<PathBuf> {
    let name = out.file_name().map_or_else(|| "spoke".into(), |name| name.to_string_lossy().into_owned());
    let target = out.join(format!("{name}.gguf"));
    to_served(adapter, &target, post, &Limits::default())?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn what_may_pass_is_asked_again_and_nothing_else() {
        let asked = Cell::new(0);
        let answers = |status: u16, from: u32| {
            asked.set(0);
            patiently(&[0, 0], || {
                asked.set(asked.get() + 1);
                if asked.get() >= from {
                    return Ok(asked.get());
                }
                Err(ClientError::Refused { endpoint: "x".into(), status, message: "busy".into() })
            })
            .ok()
        };
        assert_eq!((answers(503, 3), answers(429, 2), answers(503, 4)), (Some(3), Some(2), None));
        assert_eq!((answers(400, 2), asked.get()), (None, 1));
    }
}
