//! `GET /openapi.json`: the routes as an OpenAPI 3.1 document, assembled from one file per module.

use std::sync::LazyLock;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde_json::Value;

use super::app::App;

/// Head of the document: version, security, and the shared components.
const HEAD: &str = include_str!("head.json");
/// Paths and schemas, one file per module.
const ROOMS: [&str; 6] = [
    include_str!("request.json"),
    include_str!("openai.json"),
    include_str!("anthropic.json"),
    include_str!("llama_server.json"),
    include_str!("spokes.json"),
    include_str!("operation.json"),
];

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let read = |text| serde_json::from_str::<Value>(text).expect("constants that a test reads");
    let mut document = read(HEAD);
    for room in ROOMS.map(read) {
        for place in ["/paths", "/components/schemas"] {
            let parts = room.pointer(place).and_then(Value::as_object).cloned().unwrap_or_default();
            let whole = document.pointer_mut(place).and_then(Value::as_object_mut);
            whole.expect("the head has both places").extend(parts);
        }
    }
    for (alias, path) in super::ALIASES.map(|(alias, path)| (plain(alias), plain(path))) {
        let mut item = document["paths"][&path].clone();
        for operation in item.as_object_mut().into_iter().flat_map(serde_json::Map::values_mut) {
            let id = operation["operationId"].as_str().unwrap_or_default();
            operation["operationId"] = format!("{id}At{}", alias.replace(['/', '{', '}', '_'], "-")).into();
            operation["summary"] = format!("The same as {path}.").into();
        }
        document["paths"][&alias] = item;
    }
    document
});

/// A route's path in OpenAPI's form, which has no parameters that span slashes.
fn plain(path: &str) -> String {
    path.replace("{*", "{")
}

/// The document, with the configured body limit.
pub(super) async fn show(State(app): State<App>) -> impl IntoResponse {
    let mut document = DOCUMENT.clone();
    if let Some(info) = document.get_mut("info").and_then(Value::as_object_mut) {
        info.insert("version".to_owned(), env!("CARGO_PKG_VERSION").into());
        info.insert("x-body-limit".to_owned(), app.body_limit().into());
    }
    ([(header::CONTENT_TYPE, "application/json")], document.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::auth::{Access, Scope};

    /// Method and path of each operation in a document.
    fn operations(document: &Value) -> Vec<(String, String)> {
        let paths = document["paths"].as_object().expect("a document has paths");
        let of = |(path, item): (&String, &Value)| -> Vec<(String, String)> {
            let methods = item.as_object().into_iter().flat_map(serde_json::Map::keys);
            methods.map(|method| (method.to_uppercase(), path.clone())).collect()
        };
        paths.iter().flat_map(of).collect()
    }

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let mut described = operations(&DOCUMENT);
        let routes = crate::api::routes();
        let mut there: Vec<_> =
            routes.iter().map(|route| (route.method.to_string(), plain(route.path))).collect();
        described.sort();
        there.sort();
        assert_eq!(described, there);
    }

    #[test]
    fn who_may_ask_is_described_as_it_is() {
        for route in crate::api::routes() {
            let operation = &DOCUMENT["paths"][plain(route.path)][route.method.as_str().to_lowercase()];
            let scope = match route.access {
                Access::Open => "open",
                Access::Key(Scope::Inference) => "inference",
                Access::Key(Scope::Admin) => "admin",
            };
            assert_eq!(operation["x-scope"], scope, "{} {}", route.method, route.path);
            assert_eq!(operation["security"] == serde_json::json!([]), scope == "open", "{}", route.path);
        }
    }

    #[test]
    fn references_lead_somewhere_and_request_schemas_are_schemas() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(fields) => {
                    found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                    fields.values().for_each(|value| references(value, found));
                }
                Value::Array(items) => items.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        references(&DOCUMENT, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference} is not local"));
            assert!(DOCUMENT.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
        for (name, schema) in DOCUMENT["components"]["schemas"].as_object().unwrap() {
            let whole = serde_json::json!({"allOf": [schema], "components": DOCUMENT["components"]});
            jsonschema::draft202012::new(&whole).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    /// Bodies that the tests of chat requests accept must be valid by the document too, and refused
    /// ones invalid.
    #[test]
    fn the_schema_of_a_chat_request_agrees_with_what_is_taken() {
        let whole = serde_json::json!({
            "$ref": "#/components/schemas/ChatRequest", "components": DOCUMENT["components"]
        });
        let schema = jsonschema::draft202012::new(&whole).unwrap();
        let message = serde_json::json!([{"role": "user", "content": "x"}]);
        for (fields, right) in [
            (serde_json::json!({}), true),
            (serde_json::json!({"temperature": 0.3, "stop": ["a"], "stream": null, "user": "me"}), true),
            (
                serde_json::json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}),
                true,
            ),
            (serde_json::json!({"max_tokens": -1}), true),
            (serde_json::json!({"messages": []}), false),
            (serde_json::json!({"temperature": 3}), false),
            (serde_json::json!({"stop": ["a", ""]}), false),
            (serde_json::json!({"max_tokens": 0}), false),
            (serde_json::json!({"stream": "yes"}), false),
            (serde_json::json!({"response_format": {"type": "xml"}}), false),
        ] {
            let mut body = serde_json::json!({"messages": message});
            body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            assert_eq!(schema.is_valid(&body), right, "{fields}");
        }
    }
}
