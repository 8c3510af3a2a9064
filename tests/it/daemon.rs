//! A daemon for tests: the real hub, router and listener on a free port, with a scripted engine.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bespoke::config::{self, Overrides, Settings};
use bespoke::engine::{Engine, FakeEngine, Script};
use bespoke::hub::{Hub, HubError};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;

/// A running daemon. Stopped when dropped.
pub struct Daemon {
    pub engine: FakeEngine,
    pub address: SocketAddr,
    agent: ureq::Agent,
    stop: Option<oneshot::Sender<()>>,
    /// State and spokes, unless the settings specify others.
    _folder: TempDir,
    thread: Option<JoinHandle<Result<(), HubError>>>,
}

/// Status, headers and body of an answer.
pub struct Answer {
    pub status: u16,
    pub retry_after: Option<String>,
    pub text: String,
    headers: Vec<(String, String)>,
}

impl Answer {
    /// A header by its lowercase name.
    pub fn header(&self, name: &str) -> Option<String> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The JSON of an answer with status 200.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }

    /// Content of the first choice.
    pub fn content(&self) -> String {
        self.ok()["choices"][0]["message"]["content"].as_str().expect("content is a string").to_owned()
    }
}

impl Daemon {
    pub fn script(script: Script) -> Self {
        Self::over(FakeEngine::new(script))
    }

    pub fn over(engine: FakeEngine) -> Self {
        Self::with(engine, |_| {})
    }

    /// A daemon with settings changed by `change`.
    pub fn with(engine: FakeEngine, change: impl FnOnce(&mut Settings)) -> Self {
        let served = Arc::new(engine.clone());
        Self::serving(served, engine, change)
    }

    /// A daemon with any engine. `engine` is the handle to its scripted part, if it has one.
    pub fn serving(served: Arc<dyn Engine>, engine: FakeEngine, change: impl FnOnce(&mut Settings)) -> Self {
        let listen = Some("127.0.0.1:0".parse().unwrap());
        let mut settings = config::load(None, Overrides { listen, ..Overrides::default() }).unwrap();
        // Tests read answers, not logs.
        settings.log.access = None;
        let folder = tempfile::tempdir().unwrap();
        settings.paths.state = folder.path().join("state");
        settings.paths.spokes = folder.path().join("spokes");
        settings.paths.spokes_named = true;
        settings.spokes.probe_program = env!("CARGO_BIN_EXE_bespoke").into();
        change(&mut settings);
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, address) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async move {
                let hub = Hub::assemble(&settings, served)?;
                tell.send(hub.address()).unwrap();
                hub.run_until(async {
                    let _ = stopped.await;
                })
                .await
            })
        });
        let address = address.recv().expect("the daemon starts");
        let agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().new_agent();
        Self { engine, address, agent, stop: Some(stop), _folder: folder, thread: Some(thread) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn get(&self, path: &str) -> Answer {
        answer(self.agent.get(self.url(path)).call())
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_text(path, Some("application/json"), &body.to_string())
    }

    pub fn post_text(&self, path: &str, content_type: Option<&str>, body: &str) -> Answer {
        let request = self.agent.post(self.url(path));
        match content_type {
            Some(content_type) => answer(request.header("content-type", content_type).send(body)),
            None => answer(request.send(body)),
        }
    }

    /// Sends a GET with these headers.
    pub fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let request = self.agent.get(self.url(path));
        answer(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).call())
    }

    /// Sends a POST with these headers.
    pub fn post_with(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let request = self.agent.post(self.url(path));
        answer(
            headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send(body),
        )
    }

    /// Sends bytes unchanged and reads to the end.
    pub fn raw(&self, request: &str) -> String {
        let mut connection = self.connection();
        connection.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// A connection on which nothing has been sent.
    pub fn connection(&self) -> TcpStream {
        let connection = TcpStream::connect(self.address).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        connection
    }

    /// Sends a chat request with this user message and these additional fields.
    pub fn chat(&self, content: &str, fields: Value) -> Answer {
        self.post("/v1/chat/completions", &chat(content, fields))
    }

    /// A connection on which a chat request was sent and nothing was read.
    pub fn chat_connection(&self, fields: Value) -> TcpStream {
        let body = chat("x", fields).to_string();
        let mut connection = self.connection();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        connection.write_all((head + &body).as_bytes()).unwrap();
        connection
    }

    /// Stops the daemon. Returns its result and how long stopping took.
    pub fn stop(&mut self) -> (Result<(), HubError>, Duration) {
        let start = Instant::now();
        self.signal();
        let ended = self.thread.take().expect("is stopped once").join().expect("the daemon doesn't panic");
        (ended, start.elapsed())
    }

    /// Tells the daemon to stop and returns at once.
    pub fn signal(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// Waits until the daemon ends by itself.
    pub fn ended(&mut self) -> Result<(), HubError> {
        self.thread.take().expect("ends once").join().expect("the daemon doesn't panic")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Don't join the thread: a failed test must not wait for a drain.
        self.signal();
    }
}

pub fn chat(content: &str, fields: Value) -> Value {
    let mut body = json!({"model": "bespoke", "messages": [{"role": "user", "content": content}]});
    body.as_object_mut().unwrap().extend(fields.as_object().expect("fields are an object").clone());
    body
}

/// Data of a stream's events.
pub fn events(stream: &str) -> Vec<String> {
    stream.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect()
}

/// Chunks of a stream, without its end mark.
pub fn chunks(stream: &str) -> Vec<Value> {
    let data = events(stream);
    let chunks = data.iter().filter(|data| *data != "[DONE]");
    chunks.map(|data| serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}"))).collect()
}

/// Reads until `text` arrives.
pub fn read_until(connection: &mut TcpStream, text: &str) -> String {
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    while !seen.contains(text) {
        let length = connection.read(&mut buffer).unwrap();
        assert!(length > 0, "the connection ended before {text:?}: {seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    seen
}

/// Waits until `holds` returns true.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain until {what}");
        thread::sleep(Duration::from_millis(1));
    }
    start.elapsed()
}

fn answer(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Answer {
    let mut response = response.expect("the daemon answers");
    let retry_after = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
    let status = response.status().as_u16();
    let text = |value: &ureq::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers =
        response.headers().iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
    Answer { status, retry_after, text: response.body_mut().read_to_string().unwrap(), headers }
}
