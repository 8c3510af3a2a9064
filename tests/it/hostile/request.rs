//! One hostile request: an operation of the API description with a defect in its body, its text or
//! its HTTP.

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::value::{absurd, right, spoil, text};

/// The bytes to send.
pub struct Hostile {
    pub bytes: Vec<u8>,
    /// Whether the client leaves without waiting for an answer.
    pub leaves: bool,
}

/// Maximum tokens that a valid request may ask for, so that answers come in time.
const MOST_TOKENS: u64 = 24;

impl Hostile {
    /// The request with this number.
    pub fn new(document: &Value, seed: u64) -> Self {
        let random = &mut ChaCha8Rng::seed_from_u64(seed);
        let operations: Vec<(&String, &String, &Value)> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, item)| {
                item.as_object().unwrap().iter().map(move |(method, what)| (path, method, what))
            })
            .collect();
        let (with, without): (Vec<_>, Vec<_>) =
            operations.into_iter().partition(|(_, _, operation)| operation.get("requestBody").is_some());
        // Prefer operations with a body, because more can go wrong there.
        let (path, method, operation) =
            *if random.random_bool(0.85) { with } else { without }.choose(random).unwrap();
        let schema = operation.pointer("/requestBody/content/application~1json/schema");
        let mut body = schema.map_or(Value::Null, |schema| right(document, schema, random, 0));
        limit(&mut body, random);
        for _ in 0..random.random_range(0..4) {
            spoil(&mut body, random);
        }
        let mut bytes = if schema.is_some() || random.random_bool(0.1) {
            body.to_string().into_bytes()
        } else {
            Vec::new()
        };
        if !bytes.is_empty() && random.random_bool(0.3) {
            spoil_text(&mut bytes, random);
        }
        let mut method = method.to_uppercase();
        let mut path = path.replace("{id}", &text(random, 0).replace([' ', '\r', '\n', '\0'], "/"));
        if random.random_ratio(1, 15) {
            method = (*["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD", "BREW", "get"]
                .choose(random)
                .unwrap())
            .into();
        }
        if random.random_ratio(1, 15) {
            path = odd_path(&path, random);
        }
        let leaves = random.random_ratio(1, 50);
        let bytes =
            if random.random_ratio(1, 25) { garbage(random) } else { http(&method, &path, &bytes, random) };
        Self { bytes, leaves }
    }

    /// The beginning of the request, for messages.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.bytes).chars().take(1_500).collect()
    }
}

/// Keeps a valid request's answer short.
fn limit(body: &mut Value, random: &mut ChaCha8Rng) {
    let Some(fields) = body.as_object_mut() else { return };
    for name in ["max_tokens", "max_completion_tokens", "n_predict"] {
        if fields.get(name).and_then(Value::as_i64).is_none_or(|given| given > MOST_TOKENS as i64)
            && random.random_bool(0.9)
        {
            fields.insert(name.to_owned(), random.random_range(1..=MOST_TOKENS).into());
        }
    }
}

/// Breaks the JSON, or makes it unusual.
fn spoil_text(bytes: &mut Vec<u8>, random: &mut ChaCha8Rng) {
    let at = random.random_range(0..bytes.len());
    let splice = |bytes: &mut Vec<u8>, part: &[u8]| drop(bytes.splice(at..at, part.iter().copied()));
    match random.random_range(0..14) {
        0 => bytes.truncate(at),
        1 => bytes[at] = random.random(),
        2 => splice(bytes, b"\xff\xfe\x80"),
        3 => splice(bytes, b"\\ud800"),
        4 => splice(bytes, b"NaN"),
        5 => splice(bytes, b"Infinity"),
        6 => splice(bytes, b"1e99999"),
        7 => splice(bytes, &b"[".repeat(random.random_range(1..50_000))),
        8 => splice(bytes, &b" ".repeat(random.random_range(1..50_000))),
        9 => splice(bytes, b"\0"),
        10 => splice(bytes, &b"7".repeat(random.random_range(1..5_000))),
        11 => drop(bytes.splice(0..0, *b"\xef\xbb\xbf")),
        12 => {
            let copy = bytes.clone();
            bytes.extend(copy);
        }
        _ => drop(bytes.splice(0..0, absurd(random).to_string().into_bytes())),
    }
}

fn odd_path(path: &str, random: &mut ChaCha8Rng) -> String {
    match random.random_range(0..8) {
        0 => format!("{path}/"),
        1 => format!("/{path}"),
        2 => format!("{path}/../../etc/passwd"),
        3 => format!("{path}?{}", "a=b&".repeat(random.random_range(0..2_000))),
        4 => format!("{path}%00%ff"),
        5 => path.to_uppercase(),
        6 => format!("/{}", "x".repeat(random.random_range(1..60_000))),
        _ => "*".to_owned(),
    }
}

/// The request as HTTP, sometimes with a wrong or unusual head.
fn http(method: &str, path: &str, body: &[u8], random: &mut ChaCha8Rng) -> Vec<u8> {
    const TYPES: [&str; 9] = [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-16",
        "application/problem+json",
        "",
        "json",
        "application/json, text/html",
        "\u{e9}",
    ];
    let odd = random.random_bool(0.2);
    let content_type =
        if odd && random.random_bool(0.5) { TYPES.choose(random).unwrap() } else { "application/json" };
    let mut length = body.len().to_string();
    let mut more = String::new();
    let mut host = "localhost".to_owned();
    if odd {
        match random.random_range(0..12) {
            0 => length = (body.len() / 2).to_string(),
            1 => length = (body.len() + 10).to_string(),
            2 => "-1".clone_into(&mut length),
            3 => "99999999999999999999".clone_into(&mut length),
            4 => length = format!("{}, {}", body.len(), body.len() + 1),
            5 => more = format!("x-long: {}\r\n", "y".repeat(random.random_range(1..80_000))),
            6 => more = "x-many: 1\r\n".repeat(random.random_range(1..300)),
            7 => host = text(random, 1).replace(['\r', '\n'], ""),
            8 => "transfer-encoding: chunked\r\n".clone_into(&mut more),
            9 => "expect: 100-continue\r\n".clone_into(&mut more),
            10 => "authorization: Bearer \u{e9}\r\nx-request-id: \u{0}\r\n".clone_into(&mut more),
            _ => "x request: id\r\n".clone_into(&mut more),
        }
    }
    let mut bytes = format!(
        "{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n{more}connection: close\r\n\r\n"
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// Bytes that are hardly HTTP.
fn garbage(random: &mut ChaCha8Rng) -> Vec<u8> {
    match random.random_range(0..6) {
        0 => (0..random.random_range(1..2_000)).map(|_| random.random()).collect(),
        1 => b"GET /health\r\n\r\n".to_vec(),
        2 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        3 => b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        4 => b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nZZZ\r\n"
            .to_vec(),
        _ => b"GET /health HTTP/9.9\r\nhost: localhost\r\n\r\n".to_vec(),
    }
}
