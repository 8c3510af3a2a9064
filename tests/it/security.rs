//! Tests of security: who may ask what, under which name, and what the log does not reveal.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bespoke::engine::{FakeEngine, Script};
use bespoke::hub::HubError;
use serde_json::json;
use tempfile::TempDir;

use crate::daemon::{Answer, Daemon, chat, read_until};
use crate::program::{MODEL, Program};

const INFERENCE: &str = "inference-key-0123456789";
const ADMIN: &str = "admin-key-0123456789";

/// A file with both keys, readable only by its owner.
fn keys(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("keys");
    write_keys(&path, &format!("# test\n{INFERENCE}\nadmin:{ADMIN}\n"));
    path
}

fn write_keys(path: &Path, text: &str) {
    bespoke::atomic_file::write(path, text.as_bytes()).unwrap();
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

fn guarded() -> (Daemon, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = keys(&folder);
    let daemon = Daemon::with(FakeEngine::new(Script::Echo), |settings| {
        settings.server.keys_file = Some(path);
    });
    (daemon, folder)
}

fn kind(answer: &Answer) -> String {
    answer.json()["error"]["type"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn without_a_key_only_health_and_the_document_are_told() {
    let (daemon, _folder) = guarded();
    for open in ["/health", "/openapi.json"] {
        assert_eq!(daemon.get(open).status, 200, "{open}");
    }
    for path in ["/v1/models", "/metrics", "/nowhere", "/v1/chat/completions"] {
        let answer = daemon.get(path);
        assert_eq!((answer.status, kind(&answer).as_str()), (401, "authentication_error"), "{path}");
    }
    let answer = daemon.chat("x", json!({}));
    assert_eq!(
        answer.json(),
        json!({"error": {"code": null, "message": "Invalid API Key", "param": null, "type": "authentication_error"}})
    );
    assert_eq!(answer.header("www-authenticate").as_deref(), Some("Bearer"));
    assert!(daemon.engine.requests().is_empty());
}

/// The head and the body of a request may arrive separately, and a key is judged by the head alone.
#[test]
fn a_refusal_before_the_body_has_come_costs_neither_the_answer_nor_the_connection() {
    let (daemon, _folder) = guarded();
    let head = |length: usize| {
        format!("POST /v1/load_lora_adapter HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n")
    };
    let mut connection = daemon.connection();
    for round in 0..3 {
        connection.write_all(head(2).as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        connection.write_all(b"{}").unwrap();
        let answer = read_until(&mut connection, "Invalid API Key");
        assert!(
            answer.contains("HTTP/1.1 401") && !answer.contains("Connection: close"),
            "{round}: {answer}"
        );
    }
    // If the body is too large to be read and discarded, the connection ends; the answer says so
    // and must arrive.
    let large = 4 << 20;
    connection.write_all(head(large).as_bytes()).unwrap();
    let part = vec![b' '; 1 << 16];
    let sent = (0..large / part.len()).take_while(|_| connection.write_all(&part).is_ok()).count();
    assert!(sent > 0);
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("Connection: close"), "{answer}");
    // A client that asks before sending is told not to send.
    let mut connection = daemon.connection();
    let asks = head(2).replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n");
    connection.write_all(asks.as_bytes()).unwrap();
    let answer = read_until(&mut connection, "Invalid API Key");
    assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("Connection: close"), "{answer}");
}

#[test]
fn either_header_takes_either_key_and_no_other() {
    let (daemon, _folder) = guarded();
    let with = |name: &str, value: &str| daemon.get_with("/v1/models", &[(name, value)]).status;
    for key in [INFERENCE, ADMIN] {
        assert_eq!(with("authorization", &format!("Bearer {key}")), 200);
        assert_eq!(with("x-api-key", key), 200);
    }
    for (name, value) in [
        ("authorization", INFERENCE.to_owned()),
        ("authorization", format!("Basic {INFERENCE}")),
        ("authorization", format!("Bearer {INFERENCE}x")),
        ("authorization", "Bearer ".to_owned()),
        ("x-api-key", INFERENCE[1..].to_owned()),
        ("x-api-key", format!("admin:{ADMIN}")),
        ("cookie", INFERENCE.to_owned()),
    ] {
        assert_eq!(with(name, &value), 401, "{name}: {value}");
    }
    let headers = [("x-api-key", INFERENCE), ("content-type", "application/json")];
    let answer = daemon.post_with("/v1/chat/completions", &headers, &chat("x", json!({})).to_string());
    assert_eq!(answer.status, 200, "{}", answer.text);
}

#[test]
fn an_address_for_others_needs_keys() {
    let everywhere = "0.0.0.0:0".parse().unwrap();
    let assemble = |keys: Option<PathBuf>| {
        let mut settings = bespoke::config::load(None, bespoke::config::Overrides::default()).unwrap();
        settings.server.listen = everywhere;
        settings.server.keys_file = keys;
        let state = tempfile::tempdir().unwrap();
        settings.paths.state = state.path().to_owned();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        let engine = std::sync::Arc::new(FakeEngine::new(Script::Echo));
        bespoke::hub::Hub::assemble(&settings, engine).map(|hub| hub.address())
    };
    let error = assemble(None).unwrap_err();
    assert!(matches!(&error, HubError::Unprotected(address) if *address == everywhere), "{error}");
    let folder = tempfile::tempdir().unwrap();
    assert!(assemble(Some(keys(&folder))).is_ok());

    let output = Command::new(env!("CARGO_BIN_EXE_bespoke"))
        .args(["serve", "--listen", "0.0.0.0:0"])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{stderr}");
    assert!(stderr.contains("hint: ") && stderr.contains("server.keys_file"), "{stderr}");
}

#[test]
fn keys_that_everybody_may_read_are_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = keys(&folder);
    std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let config = folder.path().join("bespoke.toml");
    bespoke::atomic_file::write(&config, b"[server]\nkeys_file = 'keys'\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_bespoke"))
        .args(["serve", "--listen", "127.0.0.1:0", "--config", config.to_str().unwrap()])
        .args(["--model", MODEL])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{stderr}");
    assert!(stderr.contains("chmod 600") && !stderr.contains(INFERENCE), "{stderr}");
}

#[test]
fn a_request_under_a_strangers_name_is_refused() {
    let daemon = Daemon::with(FakeEngine::new(Script::Echo), |settings| {
        settings.server.hosts = vec!["box.lan".to_owned()];
    });
    let with = |host: &str| daemon.get_with("/v1/models", &[("host", host)]);
    for host in ["localhost", "127.0.0.1:8899", "[::1]:8899", "box.lan:80"] {
        assert_eq!(with(host).status, 200, "{host}");
    }
    for host in ["evil.example", "127.0.0.1.evil.example", "192.168.0.1"] {
        let answer = with(host);
        assert_eq!(answer.status, 421, "{host}");
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(host) && message.contains("server.hosts"), "{message}");
    }
    let absolute = daemon
        .raw("GET http://evil.example/v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    assert!(absolute.starts_with("HTTP/1.1 421"), "{absolute}");
    let nameless = daemon.raw("GET /health HTTP/1.0\r\n\r\n");
    assert!(nameless.contains(" 200 OK"), "{nameless}");
}

#[test]
fn other_sites_pages_are_kept_out_unless_configured() {
    let plain = Daemon::script(Script::Echo);
    let origin = ("origin", "http://app.example:3000");
    let answer = plain.get_with("/v1/models", &[origin]);
    assert_eq!(answer.header("access-control-allow-origin"), None);
    let preflight = "OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\norigin: http://app.example:3000\r\n\
                     access-control-request-method: POST\r\naccess-control-request-headers: content-type,authorization\r\n\
                     connection: close\r\n\r\n";
    assert!(plain.raw(preflight).starts_with("HTTP/1.1 405"));

    let folder = tempfile::tempdir().unwrap();
    let path = keys(&folder);
    let open = Daemon::with(FakeEngine::new(Script::Echo), |settings| {
        settings.server.cors_origins = vec![origin.1.to_owned()];
        settings.server.keys_file = Some(path);
    });
    let key = ("x-api-key", INFERENCE);
    let answer = open.get_with("/v1/models", &[origin, key]);
    assert_eq!(answer.header("access-control-allow-origin").as_deref(), Some(origin.1));
    let answer = open.get_with("/v1/models", &[("origin", "http://evil.example"), key]);
    assert_eq!(answer.header("access-control-allow-origin"), None);
    // A preflight request has no key.
    let allowed = open.raw(preflight).to_ascii_lowercase();
    assert!(allowed.starts_with("http/1.1 200"), "{allowed}");
    assert!(allowed.contains("access-control-allow-origin: http://app.example:3000"), "{allowed}");
    assert!(allowed.contains("authorization"), "{allowed}");
}

#[test]
fn pages_of_this_machine_can_be_let_in_at_any_port_and_send_any_header() {
    let daemon = Daemon::with(FakeEngine::new(Script::Echo), |settings| {
        settings.server.cors_origins = vec!["localhost".to_owned()];
    });
    let preflight = |origin: &str| {
        let request = format!(
            "OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\norigin: {origin}\r\n\
             access-control-request-method: POST\r\naccess-control-request-headers: x-stainless-os,authorization\r\n\
             connection: close\r\n\r\n"
        );
        daemon.raw(&request).to_ascii_lowercase()
    };
    let local = preflight("http://127.0.0.1:3000");
    assert!(local.contains("access-control-allow-origin: http://127.0.0.1:3000"), "{local}");
    assert!(local.contains("access-control-allow-headers: x-stainless-os,authorization"), "{local}");
    let other = preflight("http://localhost.evil.com");
    assert!(other.starts_with("http/1.1 200") && !other.contains("allow-origin: "), "{other}");
    let send = |origin: &str| {
        let headers = [("origin", origin), ("content-type", "application/json")];
        daemon.post_with("/v1/chat/completions", &headers, &chat("x", json!({})).to_string()).status
    };
    assert_eq!((send("http://[::1]:5"), send("http://evil.example")), (200, 403));
}

/// Browsers let any page send a request without a body, or with a form's body, to any address; they
/// only withhold the answer.
#[test]
fn a_page_of_another_origin_can_change_nothing() {
    let good = "http://app.example:3000";
    let daemon = Daemon::with(FakeEngine::new(Script::Echo), |settings| {
        settings.server.cors_origins = vec![good.to_owned()];
    });
    let ours = format!("http://{}", daemon.address);
    let disable =
        |headers: &[(&str, &str)]| daemon.post_with("/v1/spokes/encoding:disable", headers, "").status;
    for headers in [
        &[("origin", "http://evil.example")][..],
        &[("origin", "http://localhost:1")],
        &[("origin", "null")],
        &[("sec-fetch-site", "cross-site")],
    ] {
        assert_eq!(disable(headers), 403, "{headers:?}");
        let body = chat("x", json!({})).to_string();
        let headers = [headers, &[("content-type", "application/json")]].concat();
        let answer = daemon.post_with("/v1/chat/completions", &headers, &body);
        assert_eq!((answer.status, kind(&answer).as_str()), (403, "permission_error"), "{headers:?}");
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with("origin: ") && message.contains("server.cors_origins"), "{message}");
    }
    // No spoke has this name, so a 404 shows that the request came through.
    for headers in [
        &[][..],
        &[("origin", ours.as_str())],
        &[("origin", good), ("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "none")],
    ] {
        assert_eq!(disable(headers), 404, "{headers:?}");
    }
    assert!(daemon.engine.requests().is_empty());
}

#[test]
fn keys_are_read_again_at_sighup_and_no_secret_is_logged() {
    if !Path::new(MODEL).exists() {
        eprintln!("skipped: {MODEL} is not there");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = keys(&folder);
    let config = folder.path().join("bespoke.toml");
    let model = std::path::absolute(MODEL).unwrap();
    let text = format!("[server]\nkeys_file = 'keys'\n[model]\npath = '{}'\n", model.display());
    bespoke::atomic_file::write(&config, text.as_bytes()).unwrap();
    let mut program =
        Program::serve(&["--config", config.to_str().unwrap()], &[("RUST_LOG", "debug,hyper=info")]);
    let url = program.url();
    let ask = |key: &str| {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().new_agent();
        let body = chat("a very private matter", json!({"max_tokens": 4})).to_string();
        let request = agent.post(format!("{url}/v1/chat/completions"));
        let request = request.header("x-api-key", key).header("content-type", "application/json");
        request.send(body).unwrap().status().as_u16()
    };
    let renewed = "renewed-key-0123456789";
    assert_eq!((ask(INFERENCE), ask(renewed)), (200, 401));
    write_keys(&path, renewed);
    program.signal("HUP");
    program.line("keys are read again");
    assert_eq!((ask(INFERENCE), ask(renewed)), (401, 200));
    write_keys(&path, "short");
    program.signal("HUP");
    program.line("the keys stay as they were");
    assert_eq!(ask(renewed), 200);
    assert_eq!(program.terminate(), Some(0));
    let log = program.lines(std::time::Duration::from_secs(1)).join("\n");
    assert!(log.contains("access POST /v1/chat/completions 200"), "{log}");
    for secret in [INFERENCE, renewed, ADMIN, "private matter"] {
        assert!(!log.contains(secret), "{secret:?} is in the log:\n{log}");
    }
}

#[test]
fn systemd_may_hand_over_the_keys() {
    let folder = tempfile::tempdir().unwrap();
    write_keys(&folder.path().join("bespoke-keys"), INFERENCE);
    let credentials = folder.path().to_str().unwrap();
    let mut program = Program::serve(&[], &[("CREDENTIALS_DIRECTORY", credentials)]);
    let url = program.url();
    let agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().new_agent();
    let status = |key: &str| {
        agent.get(format!("{url}/v1/models")).header("x-api-key", key).call().unwrap().status().as_u16()
    };
    assert_eq!((status(INFERENCE), status("another-key-0123456789")), (200, 401));
    assert_eq!(program.terminate(), Some(0));
}
