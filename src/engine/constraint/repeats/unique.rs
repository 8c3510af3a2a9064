//! Where a JSON Schema says `uniqueItems`: llguidance does not know the keyword, so it is taken out
//! of the schema, and the lists that it is about are watched while they are written.
//!
//! A place of an answer may be judged by several schemas (`allOf`, `anyOf`, a reference). If one of
//! them wants different items they are different: an answer that says less than the schema allows
//! is still valid.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};

/// The schemas of a document, by number; the first is the document itself.
#[derive(Debug, Default)]
pub struct Shapes {
    nodes: Vec<Node>,
}

/// Numbers of the schemas that judge one place.
pub type Judges = BTreeSet<usize>;

#[derive(Debug, Default)]
struct Node {
    unique: bool,
    /// Schemas that judge the same place.
    also: Vec<usize>,
    properties: HashMap<String, usize>,
    /// Of members with any other name.
    others: Vec<usize>,
    /// Of the first items, and of the rest.
    first: Vec<usize>,
    rest: Vec<usize>,
}

/// Keywords that hold a schema, a list of schemas, and schemas by name.
const ONE: [&str; 12] = [
    "items",
    "additionalItems",
    "additionalProperties",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contains",
    "propertyNames",
    "contentSchema",
    "not",
    "if",
    "then",
    "else",
];
const LIST: [&str; 5] = ["allOf", "anyOf", "oneOf", "prefixItems", "items"];
const NAMED: [&str; 5] = ["properties", "patternProperties", "dependentSchemas", "$defs", "definitions"];

/// Takes `uniqueItems` out of a schema and all schemas in it; the shapes, if one of them wanted
/// different items.
pub fn take(schema: &mut Value) -> Option<Shapes> {
    let shapes = Reading::of(schema);
    let keys = schema.as_object_mut()?;
    strip(keys);
    shapes.nodes.iter().any(|node| node.unique).then_some(shapes)
}

fn strip(keys: &mut Map<String, Value>) {
    if keys.get("uniqueItems").is_some_and(Value::is_boolean) {
        keys.shift_remove("uniqueItems");
    }
    for (key, value) in keys {
        let name = key.as_str();
        match value {
            Value::Object(inner) if ONE.contains(&name) => strip(inner),
            Value::Object(inner) if NAMED.contains(&name) => {
                inner.values_mut().filter_map(Value::as_object_mut).for_each(strip);
            }
            Value::Array(inner) if LIST.contains(&name) => {
                inner.iter_mut().filter_map(Value::as_object_mut).for_each(strip);
            }
            _ => {}
        }
    }
}

struct Reading<'a> {
    root: &'a Value,
    shapes: Shapes,
    known: HashMap<String, usize>,
}

impl<'a> Reading<'a> {
    fn of(root: &'a Value) -> Shapes {
        let mut reading = Reading { root, shapes: Shapes::default(), known: HashMap::new() };
        reading.node(String::new());
        reading.shapes
    }

    /// Number of the schema at a JSON pointer.
    fn node(&mut self, pointer: String) -> usize {
        if let Some(&known) = self.known.get(&pointer) {
            return known;
        }
        let number = self.shapes.nodes.len();
        self.shapes.nodes.push(Node::default());
        self.known.insert(pointer.clone(), number);
        let root = self.root;
        let Some(keys) = root.pointer(&pointer).and_then(Value::as_object) else { return number };
        let mut node =
            Node { unique: keys.get("uniqueItems") == Some(&Value::Bool(true)), ..Node::default() };
        for (key, value) in keys {
            let at = format!("{pointer}/{}", escaped(key));
            match (key.as_str(), value) {
                ("$ref" | "$dynamicRef", Value::String(reference)) => {
                    let target = reference.strip_prefix('#').map(percent_decoded);
                    if let Some(target) = target.filter(|target| self.root.pointer(target).is_some()) {
                        node.also.push(self.node(target));
                    }
                }
                ("allOf" | "anyOf" | "oneOf", Value::Array(all)) => {
                    node.also.extend((0..all.len()).map(|index| self.node(format!("{at}/{index}"))));
                }
                ("if" | "then" | "else", _) => node.also.push(self.node(at)),
                ("dependentSchemas", Value::Object(all)) => {
                    node.also.extend(all.keys().map(|name| self.node(format!("{at}/{}", escaped(name)))));
                }
                ("properties", Value::Object(all)) => {
                    for name in all.keys() {
                        let property = self.node(format!("{at}/{}", escaped(name)));
                        node.properties.insert(name.clone(), property);
                    }
                }
                ("patternProperties", Value::Object(all)) => {
                    node.others.extend(all.keys().map(|name| self.node(format!("{at}/{}", escaped(name)))));
                }
                ("additionalProperties" | "unevaluatedProperties", Value::Object(_)) => {
                    node.others.push(self.node(at));
                }
                ("prefixItems" | "items", Value::Array(all)) => {
                    node.first = (0..all.len()).map(|index| self.node(format!("{at}/{index}"))).collect();
                }
                ("items" | "additionalItems" | "unevaluatedItems", Value::Object(_)) => {
                    node.rest.push(self.node(at));
                }
                _ => {}
            }
        }
        self.shapes.nodes[number] = node;
        number
    }
}

fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

fn percent_decoded(fragment: &str) -> String {
    let bytes = fragment.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = fragment.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match hex.filter(|_| bytes[at] == b'%') {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8(decoded).unwrap_or_else(|_| fragment.to_owned())
}

impl Shapes {
    /// What judges the answer as a whole.
    pub fn root(&self) -> Judges {
        self.with_others([0])
    }

    /// Whether a list that these judge has to have different items.
    pub fn is_unique(&self, judges: &Judges) -> bool {
        judges.iter().any(|&judge| self.nodes[judge].unique)
    }

    /// What judges a member of an object.
    pub fn of_member(&self, judges: &Judges, name: &str) -> Judges {
        // A pattern may hold for a name that is also listed.
        let of = |node: &Node| node.properties.get(name).copied().into_iter().chain(node.others.clone());
        self.with_others(judges.iter().flat_map(|&judge| of(&self.nodes[judge])).collect::<Vec<_>>())
    }

    /// What judges an item of a list.
    pub fn of_item(&self, judges: &Judges, index: usize) -> Judges {
        let of = |node: &Node| node.first.get(index).map_or_else(|| node.rest.clone(), |&one| vec![one]);
        self.with_others(judges.iter().flat_map(|&judge| of(&self.nodes[judge])).collect::<Vec<_>>())
    }

    fn with_others(&self, some: impl IntoIterator<Item = usize>) -> Judges {
        let mut all = Judges::new();
        let mut next: Vec<usize> = some.into_iter().collect();
        while let Some(node) = next.pop() {
            if all.insert(node) {
                next.extend(&self.nodes[node].also);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_keyword_is_taken_out_of_schemas_and_left_in_data() {
        let mut schema = json!({
            "type": "object", "uniqueItems": true,
            "properties": {"uniqueItems": {"type": "array", "uniqueItems": false, "items": {"type": "null"}},
                           "c": {"const": {"uniqueItems": true}, "default": {"uniqueItems": true}}},
            "$defs": {"d": {"anyOf": [{"uniqueItems": true}]}},
        });
        assert!(take(&mut schema).is_some());
        let expected = json!({
            "type": "object",
            "properties": {"uniqueItems": {"type": "array", "items": {"type": "null"}},
                           "c": {"const": {"uniqueItems": true}, "default": {"uniqueItems": true}}},
            "$defs": {"d": {"anyOf": [{}]}},
        });
        assert_eq!(schema, expected);
        assert!(take(&mut schema).is_none());
        assert!(take(&mut json!({"properties": {"a": {"uniqueItems": false}}})).is_none());
    }

    #[test]
    fn lists_are_found_by_where_they_are() {
        let mut schema = json!({
            "properties": {"a/b": {"$ref": "#/$defs/x%20y"}, "plain": {"type": "array"}},
            "patternProperties": {"^p": {"$ref": "#/$defs/x%20y"}},
            "additionalProperties": {"allOf": [{"items": {"$ref": "#/properties/a~1b"}}]},
            "$defs": {"x y": {"anyOf": [{"type": "null"}, {"type": "array", "uniqueItems": true, "items": {"$ref": "#"}}]}},
        });
        let shapes = take(&mut schema).unwrap();
        let root = shapes.root();
        let member = |name| shapes.of_member(&root, name);
        assert!(shapes.is_unique(&member("a/b")) && shapes.is_unique(&member("pq")));
        assert!(!shapes.is_unique(&root));
        assert!(shapes.is_unique(&shapes.of_item(&member("other"), 3)));
        // Items of the list are judged by the document again.
        let inner = shapes.of_item(&member("a/b"), 0);
        assert!(shapes.is_unique(&shapes.of_member(&inner, "a/b")));
    }
}
