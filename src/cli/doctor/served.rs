//! What is served: the port and who answers there, the model, and its kernels.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Item, State, bytes};
use crate::config::Settings;
use crate::digest::Digest;
use crate::engine::{ComputingReport, Outcome, computing_report};
use crate::gguf::{self, Gguf};
use crate::hub;

/// Time limit for an answer at the port.
const PATIENCE: Duration = Duration::from_secs(5);
/// Size up to which a model is hashed.
const HASHED: u64 = 8 << 30;

/// The owner of the port.
pub(super) enum Daemon {
    /// The port is free: a daemon could listen there.
    Free(SocketAddr),
    /// A daemon of this program, with its description if it has a model.
    Bespoke(SocketAddr, Value),
    /// Another program.
    Other(SocketAddr, String),
    /// The system refuses to let us listen there.
    Refused(SocketAddr, std::io::Error),
}

impl Daemon {
    /// Finds the owner of the configured port.
    pub(super) fn find(settings: &Settings) -> Self {
        let address = settings.server.listen;
        if address.port() == 0 {
            return Self::Free(address);
        }
        match TcpListener::bind(address) {
            Ok(_) => Self::Free(address),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Self::ask(address),
            Err(error) => Self::Refused(address, error),
        }
    }

    fn ask(address: SocketAddr) -> Self {
        let mut reached = address;
        if address.ip().is_unspecified() {
            reached.set_ip(match address.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(PATIENCE))
            .build()
            .new_agent();
        let get = |path: &str| {
            let mut request = agent.get(format!("http://{reached}{path}"));
            if let Ok(key) = std::env::var("BESPOKE_API_KEY") {
                request = request.header("authorization", format!("Bearer {key}"));
            }
            let mut answer = request.call().map_err(|error| error.to_string())?;
            let body = answer.body_mut().read_json::<Value>().map_err(|error| error.to_string())?;
            Ok::<_, String>((answer.status().as_u16(), body))
        };
        // The API description needs no key and no model.
        match get("/openapi.json") {
            Ok((200, text))
                if text["info"]["title"].as_str().is_some_and(|title| title.contains("bespoke")) =>
            {
                let props = get("/props").ok().filter(|(status, _)| *status == 200);
                Self::Bespoke(address, props.map_or(Value::Null, |(_, props)| props))
            }
            Ok((status, _)) => {
                Self::Other(address, format!("it answers {status}, unlike a daemon of this program"))
            }
            Err(error) => Self::Other(address, error),
        }
    }

    /// The port.
    pub(super) fn port(&self) -> Item {
        const NAME: &str = "port";
        match self {
            Self::Free(address) => Item::ok(NAME, format!("{address} is free: no daemon is running"))
                .with(json!({"address": address, "by": null})),
            Self::Bespoke(address, props) => {
                let model = props["model_alias"].as_str();
                let found = match model {
                    Some(model) => format!("{address}: a daemon serves {model}"),
                    None => format!("{address}: a daemon answers, but doesn't say what it serves"),
                };
                let details = json!({"address": address, "by": "bespoke", "model": model});
                if model.is_some() {
                    Item::ok(NAME, found).with(details)
                } else {
                    let hint = "it may still be reading its model, or require a key (BESPOKE_API_KEY)";
                    Item::warning(NAME, found, hint).with(details)
                }
            }
            Self::Other(address, why) => Item::failure(
                NAME,
                format!("{address} belongs to another program: {why}"),
                "server.listen and --listen name another address",
            )
            .with(json!({"address": address, "by": "another program"})),
            Self::Refused(address, error) => Item::failure(
                NAME,
                format!("{address}: {error}"),
                "server.listen and --listen name another address; ports below 1024 need privileges",
            )
            .with(json!({"address": address, "by": null})),
        }
    }

    /// The kernels, as the daemon reports them, or as a self-test does now.
    pub(super) fn kernels(&self, settings: &Settings) -> Item {
        const NAME: &str = "kernels";
        let said = match self {
            Self::Bespoke(_, props) => {
                serde_json::from_value::<ComputingReport>(props["computing"].clone()).ok()
            }
            _ => None,
        };
        let report = match said.map_or_else(|| tried(settings), Ok) {
            Ok(report) => report,
            Err(error) => {
                let (what, hint) = error.split_once("\nhint: ").unwrap_or((&error, "the log says more"));
                return Item::failure(NAME, what, hint);
            }
        };
        let details = json!(report);
        let forms: Vec<String> =
            report.kernels.iter().map(|kernel| format!("{} {}", kernel.kernel.name(), kernel.form)).collect();
        let test = &report.self_test;
        let found = format!("{}; self-test: {}", forms.join(", "), test.outcome.name());
        let faults: Vec<String> = report
            .kernels
            .iter()
            .filter_map(|kernel| Some(format!("{}: {}", kernel.kernel.name(), kernel.fault.as_ref()?)))
            .collect();
        let item = match test.outcome {
            Outcome::Faulty => Item::warning(
                NAME,
                format!("{found}; {}", faults.join("; ")),
                "faulty kernels are disabled, and answers are slower; please report it with `bespoke doctor --json`",
            ),
            Outcome::Unfinished => Item::warning(
                NAME,
                found,
                test.note.clone().unwrap_or_else(|| "the log says more".to_owned()),
            ),
            Outcome::Skipped | Outcome::Passed | Outcome::Remembered => Item::ok(NAME, found),
        };
        item.with(details)
    }
}

/// The self-test of the model that would be served.
fn tried(settings: &Settings) -> Result<ComputingReport, String> {
    // Without a state folder the result isn't stored.
    let test = hub::self_test(settings, &settings.paths.state).map(|mut test| {
        test.remembered = test.remembered.filter(|_| settings.paths.state.exists());
        test
    });
    computing_report(&settings.model, test)
}

/// The model file.
pub(super) fn model(settings: &Settings) -> Item {
    const NAME: &str = "model";
    let path = &settings.model.path;
    let checked = Gguf::open(path).and_then(|file| gguf::check_model(&file).map(|()| file));
    let file = match checked {
        Ok(file) => file,
        Err(error) => {
            let hint = "--model and model.path name a GGUF file; `bespoke export` makes one";
            return Item::failure(NAME, error.to_string(), hint);
        }
    };
    let text = |key: &str| file.find::<&str>(key).ok().flatten().unwrap_or("?").to_owned();
    let size = fs_err::metadata(path).map_or(0, |metadata| metadata.len());
    let hash = (size <= HASHED).then(|| hash(path)).flatten();
    let parameters: u64 =
        file.tensors().iter().map(|tensor| tensor.shape().iter().product::<usize>() as u64).sum();
    let details = json!({
        "path": path,
        "name": text("general.name"),
        "architecture": text("general.architecture"),
        "parameters": parameters,
        "bytes": size,
        "sha256": hash.map(|hash| hash.to_string()),
    });
    let found = format!(
        "{}: {}, {:.1}M parameters, {}{}",
        path.display(),
        text("general.architecture"),
        parameters as f64 / 1e6,
        bytes(size),
        hash.map_or_else(String::new, |hash| format!(", sha256 {}", hash.short())),
    );
    Item::new(NAME, State::Ok, found).with(details)
}

fn hash(path: &Path) -> Option<Digest> {
    Digest::of_reader(fs_err::File::open(path).ok()?).ok()
}
