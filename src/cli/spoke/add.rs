//! `bespoke spoke add`: copies a file atomically into the folder of spokes and reports its state.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::adapter::check_name;
use crate::adapter::{Digest, Generation, generation, inspect};
use crate::atomic_file::{self, Staged};
use crate::cli::client::{Client, ClientError, Daemon};
use crate::config::{self, Overrides, Settings};
use crate::database::StateDirectory;
use crate::model::gguf_file::kinship::compare;
use crate::spokes::folder::{counts, spoke_name};
use crate::spokes::store::{Kinship, Store};

/// How long to wait for the daemon.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long to follow a waiting spoke; the daemon retries it by itself later.
const WAITING: Duration = Duration::from_secs(10);
/// Interval between requests.
const PACE: Duration = Duration::from_millis(200);

/// The folder of spokes.
#[derive(Debug, clap::Args)]
pub struct Destination {
    /// Configuration of the daemon [default: config/bespoke.toml, if it exists]
    #[arg(long, value_name = "FILE", env = "BESPOKE_CONFIG")]
    config: Option<PathBuf>,
    /// The folder of spokes [default: that of the configuration]
    #[arg(long, value_name = "DIR")]
    spokes: Option<PathBuf>,
}

impl Destination {
    /// The folder.
    pub(super) fn folder(&self) -> anyhow::Result<PathBuf> {
        Ok(self.settings()?.paths.spokes)
    }

    fn settings(&self) -> anyhow::Result<Settings> {
        let overrides = Overrides { spokes: self.spokes.clone(), ..Overrides::default() };
        let settings = config::load(self.config.as_deref(), overrides);
        settings.map_err(|error| crate::cli::WrongConfiguration(error.to_string()).into())
    }
}

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Destination,
    #[command(flatten)]
    daemon: Daemon,
    /// A spoke: a GGUF, safetensors or zip file, or a PEFT folder
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Name to serve it under [default: that of the file]
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// Hugging Face folder that it was trained on. If the served post holds the same model, with
    /// every tensor within the error of its quantisation, spokes of this folder are accepted from
    /// now on
    #[arg(long, value_name = "FOLDER")]
    trained_on: Option<PathBuf>,
    /// The post that the daemon serves, to compare with that folder [default: that of the
    /// configuration]
    #[arg(long, value_name = "MODEL.gguf", requires = "trained_on")]
    model: Option<PathBuf>,
    /// Don't wait for the daemon
    #[arg(long)]
    no_wait: bool,
    /// Print its state as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// A file that is no spoke, can't be copied or has no name for a spoke; a daemon that refuses it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let settings = args.place.settings()?;
    let entry = entry(&args.file, args.name.as_deref())?;
    // An invalid file must not replace a valid spoke.
    let limits = settings.spokes.limits();
    let found = inspect(&args.file, None, &limits)?;
    if let Some(folder) = &args.trained_on {
        befriend(args, &settings, folder, found.post)?;
    }
    let generation = generation(&args.file, &limits)?;
    let target = settings.paths.spokes.join(&entry);
    let began = SystemTime::now();
    copy(&args.file, &target).with_context(|| format!("can't copy to {}", target.display()))?;
    eprintln!("copied to {}", target.display());
    if args.no_wait {
        return Ok(());
    }
    let row = match followed(&args.daemon.client()?, &entry, generation, began) {
        Ok(row) => row,
        Err(error) if error.downcast_ref().is_some_and(|e| matches!(e, ClientError::Unreachable { .. })) => {
            eprintln!("{error}");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    tell(&row, args.json);
    let message = || row["reason"]["message"].as_str().unwrap_or("it isn't served").to_owned();
    ensure!(row["state"] == "serving", "{}", message());
    Ok(())
}

/// Compares a folder with the post, and makes the daemon accept spokes that were trained on it.
fn befriend(args: &Args, settings: &Settings, folder: &Path, named: Option<Digest>) -> anyhow::Result<()> {
    let model = args.model.as_ref().unwrap_or(&settings.model.path);
    let kin = compare(folder, model)?;
    eprintln!(
        "{}: {} tensors compared with {}; the largest difference: {}",
        model.display(),
        kin.tensors,
        folder.display(),
        kin.worst
    );
    if let Some(named) = named.filter(|named| *named != kin.folder && *named != kin.post) {
        bail!(
            "{}: was trained on the post {}, and {} is {}",
            args.file.display(),
            named.short(),
            folder.display(),
            kin.folder.short()
        );
    }
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned()).display().to_string();
    let kinship = Kinship { post_sha256: kin.post, trained_on: kin.folder, folder };
    match args.daemon.client()?.post("/v1/spokes/trained-on", &kinship) {
        Ok(_) => Ok(()),
        // Then we may write the state, unless another daemon holds it.
        Err(ClientError::Unreachable { .. }) => {
            let state = StateDirectory::open(&settings.paths.state)?;
            Store::open(state.database()?)?.set_kin(&kinship)?;
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Prints the state of a spoke.
pub(super) fn tell(row: &Value, json: bool) {
    if json {
        println!("{row}");
        return;
    }
    let text = |key: &str| row[key].as_str().unwrap_or_default();
    let generation: String = text("generation").chars().take(12).collect();
    println!("{}: {} {generation}", text("name"), text("state"));
    if let Some(hint) = row["reason"]["hint"].as_str() {
        eprintln!("hint: {hint}");
    }
}

/// The name of the entry in the folder.
fn entry(file: &Path, name: Option<&str>) -> anyhow::Result<String> {
    let own = file.file_name().and_then(|name| name.to_str());
    let own = own.with_context(|| format!("{}: its name is not UTF-8", file.display()))?;
    let entry = match name {
        None => own.to_owned(),
        Some(name) => {
            let ending = &own[spoke_name(own).map_or(own.len(), str::len)..];
            format!("{name}{ending}")
        }
    };
    let served = spoke_name(&entry).and_then(|name| check_name(name).map(|()| name));
    served.map_err(|message| anyhow::anyhow!("{entry:?}: {message}; --as gives it another name"))?;
    ensure!(counts(&entry), "{entry:?}: the daemon leaves such files alone; --as gives it another name");
    Ok(entry)
}

/// Copies so that no partial copy is ever visible.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    if !from.is_dir() {
        // The configuration of a safetensors file first, because the file is inspected as soon as
        // it exists.
        let (from_beside, to_beside) = (from.with_extension("json"), to.with_extension("json"));
        if from.extension().is_some_and(|end| end == "safetensors") && from_beside.is_file() {
            copy_file(&from_beside, &to_beside)?;
        }
        return copy_file(from, to);
    }
    let parent = to.parent().unwrap_or(Path::new("."));
    atomic_file::make_folder(parent)?;
    let stage = tempfile::Builder::new().prefix(".adding-").suffix(".tmp").tempdir_in(parent)?;
    for part in fs_err::read_dir(from)? {
        let part = part?;
        if part.file_type()?.is_file() {
            copy_file(&part.path(), &stage.path().join(part.file_name()))?;
        }
    }
    atomic_file::rename_folder(&stage.keep(), to)
}

fn copy_file(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut staged = Staged::new(to)?;
    std::io::copy(&mut fs_err::File::open(from)?, &mut staged)?;
    staged.commit()
}

/// Waits until the state of this content is final and returns its row. A file that is refused
/// before it is read (its name is taken, there are too many) has no known content. The time
/// distinguishes a new state from an earlier one, unless the content keeps serving.
fn followed(
    client: &Client,
    entry: &str,
    generation: Generation,
    copied: SystemTime,
) -> anyhow::Result<Value> {
    let generation = generation.to_string();
    let copied = copied.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let began = Instant::now();
    let mut shown = String::new();
    let mut waiting = None;
    while began.elapsed() < PATIENCE {
        let answer = client.get("/v1/spokes")?;
        let rows = answer["data"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut own = rows.iter().filter(|row| row["file"] == entry);
        // Before it is copied, its content isn't known.
        let is_new = |row: &Value| row["since"].as_u64().is_some_and(|since| since >= copied);
        let is_over = |state: &str| matches!(state, "serving" | "inert" | "quarantined" | "retired");
        let counts = |row: &Value| {
            let state = row["state"].as_str().unwrap_or_default();
            let known = row["generation"] == *generation;
            (known && state == "serving")
                || ((known || row["generation"].is_null()) && (is_new(row) || !is_over(state)))
        };
        if let Some(row) = own.find(|row| counts(row)) {
            let state = row["state"].as_str().unwrap_or_default();
            // It is retried, perhaps a second later.
            let waits = (state == "waiting").then(|| *waiting.get_or_insert_with(Instant::now));
            if is_over(state) || waits.is_some_and(|since| since.elapsed() > WAITING) {
                return Ok(row.clone());
            }
            if shown != state {
                state.clone_into(&mut shown);
                match row["reason"]["message"].as_str() {
                    Some(message) => eprintln!("{state}: {message}"),
                    None => eprintln!("{state}"),
                }
            }
        }
        std::thread::sleep(PACE);
    }
    bail!("{}: the daemon doesn't report its state; is this its folder of spokes?", client.endpoint())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_name_keeps_the_ending() {
        let of = |file: &str, name| entry(Path::new(file), name).unwrap();
        assert_eq!(of("/x/a.gguf", None), "a.gguf");
        assert_eq!(of("/x/a b.safetensors", Some("c")), "c");
        assert_eq!(of("/x/run-7.GGUF", Some("encoding")), "encoding.GGUF");
        assert_eq!(of("/x/peft-folder", Some("encoding")), "encoding");
        for (file, name) in
            [("/x/two words.gguf", None), ("/x/a.gguf", Some("b:c")), ("/x/a.tmp", None), ("/", None)]
        {
            assert!(entry(Path::new(file), name).is_err(), "{file}");
        }
    }

    #[test]
    fn folders_are_copied_with_their_files_and_nothing_is_left_beside() {
        let root = tempfile::tempdir().unwrap();
        let from = root.path().join("from");
        atomic_file::write(&from.join("adapter_config.json"), b"{}").unwrap();
        atomic_file::write(&from.join("deep/er"), b"x").unwrap();
        let to = root.path().join("spokes/peft");
        copy(&from, &to).unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(fs_err::read(to.join("adapter_config.json")).unwrap(), b"{}");
        assert_eq!(fs_err::read_dir(root.path().join("spokes")).unwrap().count(), 1);
    }
}
