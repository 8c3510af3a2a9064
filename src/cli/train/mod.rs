//! `bespoke train`: trains a model or an adapter from a recipe.

mod plan;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;

use super::WrongConfiguration;
use super::client::Client;
use crate::spoke::{self, Limits, Post};
use crate::train::TrainError;
use crate::train::distil::Ask;
use crate::train::r#loop::{self, Outside};
use crate::train::recipe::Recipe;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The recipe, a TOML file
    recipe: PathBuf,
    /// Where the result, logs and checkpoints go [default: runs/<recipe's name>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on from the newest checkpoint in the output folder
    #[arg(long)]
    resume: bool,
    /// Change a key of the recipe: `--set train.steps=100`
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print the resolved recipe and what it costs, and stop
    #[arg(long)]
    dry_run: bool,
    /// Dollars per hour of a GPU, for `--dry-run`
    #[arg(long, value_name = "DOLLARS", default_value_t = 3.0)]
    gpu_price: f64,
}

/// Runs the command.
///
/// # Errors
/// A wrong recipe (exit code 78), or a run that failed.
pub fn run(args: Args) -> anyhow::Result<()> {
    let recipe = load(&args.recipe, &args.set)?;
    if args.dry_run {
        print!("{}", plan::plan(&recipe, args.gpu_price)?);
        return Ok(());
    }
    let stem = args.recipe.file_stem().context("the recipe has no file name")?;
    let out = args.out.unwrap_or_else(|| PathBuf::from("runs").join(stem));
    let post = post(&recipe)?;
    let texts = post.as_ref().map_or_else(BTreeMap::new, |post| texts(&recipe, post));
    let outside = Outside { texts, ask: ask(&recipe)? };
    let result = r#loop::train(&recipe, &out, args.resume, &outside).context("training stopped")?;
    let result = match post {
        Some(post) => served(&result, &out, &post)?,
        None => result,
    };
    println!("{}", result.display());
    Ok(())
}

/// Reads a recipe.
///
/// # Errors
/// A wrong one is wrong configuration.
pub(super) fn load(path: &Path, overrides: &[String]) -> anyhow::Result<Recipe> {
    Recipe::load(path, overrides).map_err(|error| match error {
        TrainError::Recipe { .. } => WrongConfiguration(error.to_string()).into(),
        other => anyhow::Error::new(other),
    })
}

/// How a served teacher is asked.
///
/// # Errors
/// An endpoint that is no address.
pub(super) fn ask(recipe: &Recipe) -> anyhow::Result<Option<Ask>> {
    let Some(endpoint) = recipe.distil.as_ref().and_then(|distil| distil.endpoint.as_ref()) else {
        return Ok(None);
    };
    let client = Client::with_key_of_environment(endpoint)?;
    Ok(Some(Arc::new(move |path, body| client.post(path, body).map_err(|error| error.to_string()))))
}

/// The post that an adapter is trained for, if that is a file which is served.
fn post(recipe: &Recipe) -> anyhow::Result<Option<Post>> {
    match (&recipe.adapter, &recipe.base) {
        (Some(_), Some(base)) if base.path.is_file() => Ok(Some(Post::open(&base.path)?)),
        _ => Ok(None),
    }
}

fn texts(recipe: &Recipe, post: &Post) -> BTreeMap<String, String> {
    let adapter = recipe.adapter.as_ref();
    let part = |of: fn(&crate::train::recipe::AdapterRecipe) -> Option<&str>| adapter.and_then(of);
    spoke::origin_texts(
        post,
        part(|adapter| adapter.prompt.as_deref()),
        part(|adapter| adapter.task.as_deref()),
    )
}

/// Writes the adapter as the file that the daemon loads, inspected as the daemon does.
fn served(adapter: &Path, out: &Path, post: &Post) -> anyhow::Result<PathBuf> {
    let name = out.file_name().map_or_else(|| "spoke".into(), |name| name.to_string_lossy().into_owned());
    let target = out.join(format!("{name}.gguf"));
    spoke::to_served(adapter, &target, post, &Limits::default())?;
    Ok(target)
}
