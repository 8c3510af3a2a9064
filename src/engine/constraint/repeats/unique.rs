//! Finds where a JSON Schema requires `uniqueItems`. No grammar can enforce that, so the lists in
//! question are watched while they are written.
//!
//! Several schemas may apply to one place of an answer (`allOf`, `anyOf`, a reference). If any of
//! them requires unique items, the items are kept unique: an answer that uses less than the schema
//! allows is still valid.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};

use crate::json_schema::{Document, Place};

/// The schemas of a document, by number. Number 0 is the document itself.
#[derive(Debug, Default)]
pub struct Shapes {
    nodes: Vec<Node>,
}

/// Numbers of the schemas that apply to one place.
pub type Judges = BTreeSet<usize>;

#[derive(Debug, Default)]
struct Node {
    unique: bool,
    /// Schemas that apply to the same place.
    also: Vec<usize>,
    properties: HashMap<String, usize>,
    /// Schemas of members whose names match a pattern. Each name is assumed to match.
    patterned: Vec<usize>,
    /// Schemas of members whose names aren't listed.
    additional: Vec<usize>,
    /// Schemas of the first items, and of the rest.
    first: Vec<usize>,
    rest: Vec<usize>,
}

struct Reading<'a> {
    document: Document<'a>,
    shapes: Shapes,
    known: HashMap<Place, usize>,
    /// Schemas that have a number but aren't read yet.
    todo: Vec<(usize, Place)>,
}

impl<'a> Reading<'a> {
    /// Number of the schema at a place.
    fn node(&mut self, place: Place) -> usize {
        if let Some(&known) = self.known.get(&place) {
            return known;
        }
        let number = self.shapes.nodes.len();
        self.shapes.nodes.push(Node::default());
        self.known.insert(place, number);
        self.todo.push((number, place));
        number
    }

    /// Numbers of the schemas in a keyword's list or object, with their names. Unreadable schemas
    /// are skipped, because compiling the grammar reports such faults.
    fn inner(&mut self, place: Place, keyword: &str, value: &'a Value) -> Vec<(&'a str, usize)> {
        let entries: Vec<(String, &'a str, &'a Value)> = match value {
            Value::Array(all) => {
                all.iter().enumerate().map(|(index, one)| (index.to_string(), "", one)).collect()
            }
            Value::Object(all) => all.iter().map(|(name, one)| (name.clone(), name.as_str(), one)).collect(),
            _ => Vec::new(),
        };
        let place_of = |(key, name, one): (String, &'a str, &'a Value)| {
            let inner = self.document.within(place, &[keyword, &key], one).ok()?;
            Some((name, self.node(inner)))
        };
        entries.into_iter().filter_map(place_of).collect()
    }

    /// Number of a keyword's schema.
    fn one(&mut self, place: Place, keyword: &str, value: &'a Value) -> Option<usize> {
        let inner = self.document.within(place, &[keyword], value).ok()?;
        Some(self.node(inner))
    }

    fn read(&mut self, place: Place, keywords: &'a Map<String, Value>) -> Node {
        let mut node =
            Node { unique: keywords.get("uniqueItems") == Some(&Value::Bool(true)), ..Node::default() };
        for (keyword, value) in keywords {
            match (keyword.as_str(), value) {
                ("$ref", Value::String(reference)) => {
                    let target = self.document.follow(place, reference).ok();
                    node.also.extend(target.map(|target| self.node(target)));
                }
                ("allOf" | "anyOf" | "oneOf", _) => {
                    node.also.extend(self.inner(place, keyword, value).into_iter().map(number_of));
                }
                ("properties", _) => {
                    let all = self.inner(place, keyword, value).into_iter();
                    node.properties = all.map(|(name, number)| (name.to_owned(), number)).collect();
                }
                ("patternProperties", _) => {
                    node.patterned.extend(self.inner(place, keyword, value).into_iter().map(number_of));
                }
                ("additionalProperties", _) => node.additional.extend(self.one(place, keyword, value)),
                ("prefixItems", _) | ("items", Value::Array(_)) => {
                    node.first = self.inner(place, keyword, value).into_iter().map(number_of).collect();
                }
                ("items" | "additionalItems", _) => node.rest.extend(self.one(place, keyword, value)),
                _ => {}
            }
        }
        node
    }
}

fn number_of((_, number): (&str, usize)) -> usize {
    number
}

impl Shapes {
    /// Reads a schema that could be compiled; `None` if none of its lists requires unique items.
    pub fn of(schema: &Value) -> Option<Self> {
        let document = Document::new(schema).ok()?;
        let mut reading =
            Reading { document, shapes: Self::default(), known: HashMap::new(), todo: Vec::new() };
        let root = reading.document.root();
        reading.node(root);
        while let Some((number, place)) = reading.todo.pop() {
            if let Some(keywords) = reading.document.keywords(place) {
                reading.shapes.nodes[number] = reading.read(place, keywords);
            }
        }
        Some(reading.shapes).filter(|shapes| shapes.nodes.iter().any(|node| node.unique))
    }

    /// Schemas that apply to the answer as a whole.
    pub fn root(&self) -> Judges {
        self.with_others([0])
    }

    /// Whether a list that these schemas apply to must have unique items.
    pub fn is_unique(&self, judges: &Judges) -> bool {
        judges.iter().any(|&judge| self.nodes[judge].unique)
    }

    /// Schemas that apply to a member of an object.
    pub fn of_member(&self, judges: &Judges, name: &str) -> Judges {
        let of = |node: &Node| match node.properties.get(name) {
            Some(&listed) => [&[listed], node.patterned.as_slice()].concat(),
            None => [node.patterned.as_slice(), &node.additional].concat(),
        };
        self.with_others(judges.iter().flat_map(|&judge| of(&self.nodes[judge])).collect::<Vec<_>>())
    }

    /// Schemas that apply to an item of a list.
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
    fn the_keyword_counts_in_schemas_and_not_in_data() {
        for schema in [
            json!({"type": "array", "uniqueItems": true}),
            json!({"$defs": {"d": {"$anchor": "here", "uniqueItems": true}}, "anyOf": [{"$ref": "#here"}]}),
            json!({"x": {"y": {"uniqueItems": true}}, "items": {"$ref": "#/x/y"}}),
        ] {
            assert!(Shapes::of(&schema).is_some(), "{schema}");
        }
        for schema in [
            json!({"properties": {"a": {"uniqueItems": false}}}),
            json!({"properties": {"uniqueItems": {"type": "array", "items": {"type": "null"}},
                                  "c": {"const": {"uniqueItems": true}, "default": {"uniqueItems": true}}}}),
            json!({"$defs": {"unused": {"uniqueItems": true}}}),
        ] {
            assert!(Shapes::of(&schema).is_none(), "{schema}");
        }
    }

    #[test]
    fn lists_are_found_by_where_they_are() {
        let schema = json!({
            "properties": {"a/b": {"$ref": "#/$defs/x%20y"}, "plain": {"type": "array"}},
            "patternProperties": {"^p": {"type": "array"}},
            "additionalProperties": {"allOf": [{"items": {"$ref": "#/properties/a~1b"}}]},
            "$defs": {"x y": {"anyOf": [{"type": "null"}, {"type": "array", "uniqueItems": true, "items": {"$ref": "#"}}]}},
        });
        let shapes = Shapes::of(&schema).unwrap();
        let root = shapes.root();
        let member = |name| shapes.of_member(&root, name);
        assert!(shapes.is_unique(&member("a/b")));
        assert!(!shapes.is_unique(&root) && !shapes.is_unique(&member("plain")));
        assert!(shapes.is_unique(&shapes.of_item(&member("other"), 3)));
        // Only names that aren't listed are additional.
        assert!(!shapes.is_unique(&shapes.of_item(&member("plain"), 0)));
        // The document's schema also applies to the items of the list.
        let inner = shapes.of_item(&member("a/b"), 0);
        assert!(shapes.is_unique(&shapes.of_member(&inner, "a/b")));
        // A pattern may match a name that is also listed.
        let schema = json!({"properties": {"pq": {}}, "patternProperties": {"^p": {"uniqueItems": true}}});
        let shapes = Shapes::of(&schema).unwrap();
        assert!(shapes.is_unique(&shapes.of_member(&shapes.root(), "pq")));
    }
}
