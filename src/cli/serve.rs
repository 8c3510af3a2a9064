//! `bespoke serve`: the daemon in the foreground.

use std::io::{self, IsTerminal};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::dynamic_filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::WrongConfiguration;
use super::client::encoding_request;
use crate::api::auth::KeyRing;
use crate::config::{self, LogFormat, Overrides};
use crate::database::DatabaseError;
use crate::descriptors::{self, Raised};
use crate::engine::ffi::{end, gives_up};
use crate::engine::{EngineState, Health, ModelInfo};
use crate::hub::{Hub, HubError};
use crate::last_run;
use crate::task::Event;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration [default: config/bespoke.toml, if it exists]
    #[arg(long, value_name = "FILE", env = "BESPOKE_CONFIG")]
    config: Option<PathBuf>,
    /// Address and port to listen on; port 0 takes a free one [default: 127.0.0.1:8899]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// The GGUF file to serve [default: models/bespoke-tiny.gguf]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Folder to drop spokes into [default: spokes]
    #[arg(long, value_name = "DIR")]
    spokes: Option<PathBuf>,
    /// Folder for the daemon's persistent state [default: ~/.local/state/bespoke]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// [`WrongConfiguration`] for a configuration or model file that no restart can help.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { config, listen, model, spokes, state } = args;
    let overrides = Overrides { listen, model, spokes, state };
    let settings =
        config::load(config.as_deref(), overrides).map_err(|error| WrongConfiguration(error.to_string()))?;
    start_log(settings.log.format);
    let Raised { before, now } = descriptors::raise();
    tracing::info!(before, now, "limit of file descriptors");
    // HTTP needs little; the cores are for the engine.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("can't start the threads that serve HTTP")?;
    let outcome = runtime.block_on(async {
        // Before anything else, so that a signal during the start isn't lost.
        let stop = Stop::new().context("can't listen for signals")?;
        let reload = signal(SignalKind::hangup()).context("can't listen for signals")?;
        let hub = Hub::build(&settings).map_err(in_words)?;
        eprintln!("listening on http://{}", hub.address());
        let announcement = announce(hub.address(), settings.model.id.clone(), hub.health());
        tokio::spawn(announcement);
        tokio::spawn(reload_keys(reload, hub.keys()));
        if let Some(limit) = sd_notify::watchdog_enabled() {
            tokio::spawn(feed_watchdog(limit, hub.health()));
        }
        notify(NotifyState::Ready);
        let run = last_run::begin(&settings.paths.state);
        let outcome = hub.run_until(stop.signalled()).await.map_err(in_words);
        run.end(outcome.as_ref().err().map(ToString::to_string));
        outcome
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// The log goes to stderr; `RUST_LOG` filters it.
fn start_log(format: LogFormat) {
    // llama.cpp writes a page for each model at level info; `RUST_LOG=info` shows it.
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| "info,llama-cpp-2=error".into());
    let true_errors = dynamic_filter_fn(|about, _| about.target() != "llama-cpp-2" || !gives_up());
    let log = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let all = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => {
            all.with(log.with_ansi(io::stderr().is_terminal()).with_filter(true_errors)).init();
        }
        LogFormat::Json => all.with(log.json().with_filter(true_errors)).init(),
    }
}

fn in_words(error: HubError) -> anyhow::Error {
    match error {
        HubError::Model { .. }
        | HubError::Template { .. }
        | HubError::Keys(_)
        | HubError::Unprotected(_)
        | HubError::Folder { .. }
        | HubError::State(DatabaseError::Newer { .. } | DatabaseError::Io { .. }) => {
            WrongConfiguration(error.to_string()).into()
        }
        HubError::State(_)
        | HubError::Spokes(_)
        | HubError::Listen { .. }
        | HubError::Silent(_)
        | HubError::Reconciler
        | HubError::Engine(_)
        | HubError::Serve(_) => error.into(),
    }
}

/// Notifies systemd, if it started us.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "can't notify systemd");
    }
}

/// Reads the keys again at each SIGHUP.
async fn reload_keys(mut hangup: Signal, keys: Arc<KeyRing>) {
    while hangup.recv().await.is_some() {
        if let Err(error) = keys.reload() {
            tracing::error!(%error, "the keys stay as they were");
        }
    }
}

/// Forwards the engine's heartbeat to systemd, which kills us without it. There is no heartbeat
/// during the start and the shutdown, for which systemd has separate time limits.
async fn feed_watchdog(limit: Duration, health: watch::Receiver<Health>) {
    let mut ticks = tokio::time::interval((limit / 4).max(Duration::from_millis(1)));
    let mut last = None;
    loop {
        ticks.tick().await;
        let (beat, ready) = {
            let health = health.borrow();
            (health.beat, matches!(health.state, EngineState::Ready(_)))
        };
        if !ready || last != Some(beat) {
            notify(NotifyState::Watchdog);
        }
        last = Some(beat);
    }
}

/// Once the model is ready, prints a command to try.
async fn announce(address: SocketAddr, id: String, mut health: watch::Receiver<Health>) {
    let ready = health.wait_for(|health| !matches!(health.state, EngineState::Loading)).await;
    if let Ok(EngineState::Ready(model)) = ready.map(|health| health.state.clone()) {
        eprintln!("{}", invitation(address, &id, &model));
    }
}

fn invitation(address: SocketAddr, id: &str, model: &ModelInfo) -> String {
    let event = Event::new(
        "terminal",
        "error",
        "Deploy of billing-api 2.4.1 failed at 14:05: migration 0042_add_index timed out after 30s. Rolled back to 2.4.0.",
    );
    // In single quotes the shell changes nothing; a single quote itself has to be outside of them.
    let body = encoding_request(&event).to_string().replace('\'', r"'\''");
    let millions = model.parameters as f64 / 1e6;
    format!(
        "{id} is ready: {millions:.1}M parameters, context {context}. Try:\n\n\
         curl -s http://{reachable}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'\n",
        context = model.n_ctx,
        reachable = reachable(address),
    )
}

/// The address that a client on this machine can use if the daemon listens on all addresses.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// SIGTERM and SIGINT.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Completes at the first signal; the second ends the process, whatever is still running.
    async fn signalled(mut self) {
        self.next().await;
        eprintln!("stopping: running requests may end; a second signal stops at once");
        notify(NotifyState::Stopping);
        tokio::spawn(async move {
            self.next().await;
            end(super::FAILED);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::FakeEngine;

    #[test]
    fn the_invitation_survives_the_shell() {
        let text = invitation("0.0.0.0:8899".parse().unwrap(), "tiny", &FakeEngine::info());
        let command = text.lines().find(|line| line.starts_with("curl ")).unwrap();
        assert!(command.contains("http://127.0.0.1:8899/"), "{command}");
        let printed = std::process::Command::new("sh")
            .args(["-c", &command.replacen("curl", "printf '%s\\n'", 1)])
            .output()
            .unwrap();
        let arguments = String::from_utf8(printed.stdout).unwrap();
        let body: serde_json::Value = serde_json::from_str(arguments.lines().last().unwrap()).unwrap();
        assert_eq!(body["response_format"]["json_schema"]["name"], "encoding_response");
        assert!(body["messages"][1]["content"].as_str().unwrap().contains("0042_add_index"));
    }
}
