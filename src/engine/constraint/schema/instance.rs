//! Short values that validate.

use std::fmt::Write;

use serde_json::Value;

use super::graph::{Form, Graph, NodeId, ROOT};
use super::read;
use crate::json_schema::Fault;

/// A short value that validates against a schema.
///
/// # Errors
/// As for [`super::compile`].
pub fn instance(schema: &Value) -> Result<String, Fault> {
    Ok(read(schema)?.instance(ROOT))
}

impl Graph {
    /// A short value of a node that has an end.
    fn instance(&self, node: NodeId) -> String {
        let cheapest = |form: &&Form| self.end(form).map_or(usize::MAX, |end| end.bytes);
        let form = self.nodes[node].forms.iter().min_by_key(cheapest);
        match form.expect("a node with an end has a form") {
            Form::Text(lexeme) => lexeme.sample.clone(),
            Form::Node(node) => self.instance(*node),
            Form::Array(array) => {
                let items =
                    (0..array.least).map(|index| array.first.get(index).copied().unwrap_or(array.rest));
                let items: Vec<String> = items.map(|node| self.instance(node)).collect();
                format!("[{}]", items.join(","))
            }
            Form::Object(object) => {
                let (named, free) = self.chosen(object).unwrap_or_default();
                let mut text = String::new();
                let named = named.into_iter().map(|at| &object.named[at]);
                let named = named.map(|named| (Value::from(named.name.as_str()).to_string(), named.node));
                let free = free.map(|at| &object.free[at]).map(|free| (free.sample.clone(), free.node));
                for (key, node) in named.chain(free) {
                    let comma = if text.is_empty() { "" } else { "," };
                    let _ = write!(text, "{comma}{key}:{}", self.instance(node));
                }
                format!("{{{text}}}")
            }
        }
    }
}
