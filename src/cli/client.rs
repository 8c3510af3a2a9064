//! The HTTP client of the command line: exchanges JSON with the daemon and explains errors.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use ureq::http::Response;
use ureq::{Agent, Body};

use crate::task::Event;
use crate::task::prompt::{self, Wording};

/// The default address of the daemon.
pub const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:8899";

/// Longer than the daemon's own time limit for a request, so that the daemon reports the timeout.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// The address of the daemon and our key, for commands to flatten into their arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct Daemon {
    /// Address of the daemon
    #[arg(long, value_name = "URL", env = "BESPOKE_ENDPOINT", default_value = DEFAULT_ENDPOINT)]
    pub endpoint: String,
}

impl Daemon {
    /// A client for the daemon, with the key in `BESPOKE_API_KEY` if there is one.
    pub fn client(&self) -> Result<Client, ClientError> {
        Client::with_key_of_environment(&self.endpoint)
    }
}

/// The chat request that asks for the encoding of an event.
pub fn encoding_request(event: &Event) -> Value {
    prompt::request(event, &Wording::standard())
}

/// Selects a spoke for a request by name, the post alone (`post`), or the daemon's choice
/// (`None`).
pub fn choose_spoke(request: &mut Value, spoke: Option<&str>) {
    match spoke {
        None => {}
        Some("post") => request["lora"] = serde_json::json!([]),
        Some(name) => request["model"] = format!("bespoke:{name}").into(),
    }
}

/// A client of one daemon.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: String,
    key: Option<String>,
    agent: Agent,
}

/// Why there is no answer of the daemon.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not an address.
    #[error("endpoint {0:?}: expected http://ADDRESS:PORT")]
    Endpoint(String),
    /// There is no connection.
    #[error(
        "no daemon answers at {endpoint}: {reason}\nhint: start one with `bespoke serve`, or name its address with --endpoint"
    )]
    Unreachable {
        /// The address.
        endpoint: String,
        /// What the system says.
        reason: String,
    },
    /// The daemon refused.
    #[error("{endpoint} answers {status}: {message}")]
    Refused {
        /// The address.
        endpoint: String,
        /// The HTTP status.
        status: u16,
        /// The daemon's message.
        message: String,
    },
    /// The answer ended early.
    #[error("the answer of {endpoint} ended early: {reason}")]
    BrokenOff {
        /// The address.
        endpoint: String,
        /// What the system says.
        reason: String,
    },
    /// The answer isn't one of the daemon.
    #[error("{url} doesn't answer as the daemon does: {reason}")]
    Answer {
        /// The address.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
}

impl ClientError {
    /// Whether the same request may succeed a little later.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::BrokenOff { .. } => true,
            Self::Refused { status, .. } => matches!(status, 429 | 503),
            Self::Endpoint(_) | Self::Answer { .. } => false,
        }
    }
}

impl Client {
    /// A client; `endpoint` may end in `/v1`, as in the settings of other clients.
    pub fn new(endpoint: &str, key: Option<String>) -> Result<Self, ClientError> {
        let trimmed = endpoint.trim().trim_end_matches('/');
        let trimmed = trimmed.strip_suffix("/v1").unwrap_or(trimmed).trim_end_matches('/');
        let host = trimmed.strip_prefix("http://").unwrap_or_default();
        if host.is_empty() {
            return Err(ClientError::Endpoint(endpoint.to_owned()));
        }
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // The daemon is on this machine or nearby, so a proxy for the web must not get its
            // requests.
            .proxy(None)
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_global(Some(PATIENCE))
            .build()
            .new_agent();
        Ok(Self { endpoint: trimmed.to_owned(), key, agent })
    }

    /// A client with the key in `BESPOKE_API_KEY`, if there is one.
    pub fn with_key_of_environment(endpoint: &str) -> Result<Self, ClientError> {
        Self::new(endpoint, std::env::var("BESPOKE_API_KEY").ok().filter(|key| !key.is_empty()))
    }

    /// The address, without `/v1`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Sends JSON to a path such as `/v1/embeddings`.
    pub fn post(&self, path: &str, body: &impl Serialize) -> Result<Value, ClientError> {
        self.read(path, self.send(path, body))
    }

    /// Sends JSON to a path that answers with plain text.
    pub fn tell(&self, path: &str, body: &impl Serialize) -> Result<(), ClientError> {
        match self.send(path, body) {
            Ok(response) if response.status().as_u16() < 400 => Ok(()),
            other => self.read(path, other).map(drop),
        }
    }

    /// Sends JSON and returns the lines of the answer as they arrive: server-sent events.
    pub fn stream<B: Serialize>(&self, path: &str, body: &B) -> Result<impl BufRead + use<B>, ClientError> {
        match self.send(path, body) {
            Ok(response) if response.status().as_u16() < 400 => {
                Ok(BufReader::new(response.into_body().into_reader()))
            }
            other => {
                let said = self.read(path, other)?;
                let reason = format!("expected a stream, found {said}");
                Err(ClientError::Answer { url: self.url(path), reason })
            }
        }
    }

    fn send(&self, path: &str, body: &impl Serialize) -> Result<Response<Body>, ureq::Error> {
        let mut request = self.agent.post(self.url(path));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        request.send_json(body)
    }

    /// Gets a path such as `/v1/models`.
    pub fn get(&self, path: &str) -> Result<Value, ClientError> {
        let mut request = self.agent.get(self.url(path));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        self.read(path, request.call())
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.endpoint)
    }

    fn read(&self, path: &str, response: Result<Response<Body>, ureq::Error>) -> Result<Value, ClientError> {
        let mut response = response.map_err(|error| self.unreachable(&error))?;
        let status = response.status().as_u16();
        let text = response.body_mut().read_to_string().map_err(|error| ClientError::BrokenOff {
            endpoint: self.endpoint.clone(),
            reason: error.to_string(),
        })?;
        let answer = serde_json::from_str::<Value>(&text);
        if status >= 400 {
            let message = answer.ok().and_then(|body| Some(body["error"]["message"].as_str()?.to_owned()));
            let mut message = message.unwrap_or_else(|| text.chars().take(200).collect());
            if status == 401 {
                let sent = if self.key.is_some() {
                    "the daemon doesn't know the key in it"
                } else {
                    "it is not set"
                };
                message = format!("{message}\nhint: BESPOKE_API_KEY holds the key; {sent}");
            }
            return Err(ClientError::Refused { endpoint: self.endpoint.clone(), status, message });
        }
        answer.map_err(|error| ClientError::Answer { url: self.url(path), reason: error.to_string() })
    }

    fn unreachable(&self, error: &ureq::Error) -> ClientError {
        let reason = match error {
            ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                "connection refused".to_owned()
            }
            other => other.to_string(),
        };
        ClientError::Unreachable { endpoint: self.endpoint.clone(), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_taken_with_and_without_v1() {
        for endpoint in
            ["http://127.0.0.1:1", "http://127.0.0.1:1/", "http://127.0.0.1:1/v1", "http://127.0.0.1:1/v1/"]
        {
            assert_eq!(
                Client::new(endpoint, None).unwrap().url("/v1/models"),
                "http://127.0.0.1:1/v1/models"
            );
        }
        for wrong in ["", "127.0.0.1:1", "https://host", "http://"] {
            assert!(Client::new(wrong, None).is_err(), "{wrong}");
        }
    }
}
