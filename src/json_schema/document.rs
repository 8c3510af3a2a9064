//! A JSON schema with its references resolved: JSON pointers (RFC 6901), anchors, and `$id`s within
//! the document.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::Fault;
use super::keywords::inside;
use super::uri::{join, percent_decoded, unescaped};

/// Index of a schema in a [`Document`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(usize);

/// A schema and everything that its references lead to.
#[derive(Debug)]
pub struct Document<'a> {
    places: Vec<Placed<'a>>,
    /// By address: each value of the document is in one place.
    known: HashMap<*const Value, Place>,
    resources: Vec<Resource>,
}

#[derive(Debug)]
struct Placed<'a> {
    value: &'a Value,
    /// JSON pointer from the root of the document.
    path: String,
    resource: usize,
}

/// A schema with its own URI (`$id`). A `#` reference in it resolves within it.
#[derive(Debug)]
struct Resource {
    uri: String,
    root: Place,
    anchors: HashMap<String, Place>,
}

/// Appends a key to a path, escaped as in a JSON pointer.
pub fn step(path: &str, key: &str) -> String {
    format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"))
}

impl<'a> Document<'a> {
    /// Collects the `$id`s and anchors of a schema.
    ///
    /// # Errors
    /// Two schemas have the same anchor, or the root is no schema.
    pub fn new(root: &'a Value) -> Result<Self, Fault> {
        let resource = Resource { uri: String::new(), root: Place(0), anchors: HashMap::new() };
        let mut document = Self { places: Vec::new(), known: HashMap::new(), resources: vec![resource] };
        document.add(root, "#".to_owned(), 0)?;
        Ok(document)
    }

    /// The root schema.
    pub fn root(&self) -> Place {
        Place(0)
    }

    /// The schema at a place: an object or a boolean.
    pub fn value(&self, place: Place) -> &'a Value {
        self.places[place.0].value
    }

    /// The keywords of the schema at a place; `None` if it is a boolean.
    pub fn keywords(&self, place: Place) -> Option<&'a Map<String, Value>> {
        self.value(place).as_object()
    }

    /// Path of a place from the root: `#/properties/a`.
    pub fn path(&self, place: Place) -> &str {
        &self.places[place.0].path
    }

    /// Path from the root to a value within the schema at a place.
    pub fn path_to(&self, place: Place, keys: &[&str]) -> String {
        keys.iter().fold(self.path(place).to_owned(), |path, key| step(&path, key))
    }

    /// The place of the schema `value`, which `keys` lead to from `place`.
    ///
    /// # Errors
    /// The value is no schema.
    pub fn within(&mut self, place: Place, keys: &[&str], value: &'a Value) -> Result<Place, Fault> {
        match self.known.get(&std::ptr::from_ref(value)) {
            Some(&known) => Ok(known),
            None => self.add(value, self.path_to(place, keys), self.places[place.0].resource),
        }
    }

    /// Resolves a `$ref` in the schema at a place.
    ///
    /// # Errors
    /// The reference leads nowhere within this document, or to something that is no schema.
    pub fn follow(&mut self, from: Place, reference: &str) -> Result<Place, Fault> {
        let fault = |message: String| Fault::new(self.path_to(from, &["$ref"]), message);
        let (uri, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let here = self.places[from.0].resource;
        let target = join(&self.resources[here].uri, uri);
        let mut named = (0..self.resources.len()).filter(|&other| self.resources[other].uri == target);
        let resource = if uri.is_empty() || self.resources[here].uri == target {
            here
        } else {
            let found = named.next().ok_or_else(|| {
                fault(format!("{reference:?} leads out of this schema; put what it means into $defs"))
            })?;
            if named.next().is_some() {
                return Err(fault(format!(
                    "{reference:?} is ambiguous: more than one schema is named {target:?}"
                )));
            }
            found
        };
        let decoded = percent_decoded(fragment)
            .ok_or_else(|| fault(format!("{reference:?} has a broken percent escape")))?;
        let root = self.resources[resource].root;
        if decoded.is_empty() {
            return Ok(root);
        }
        if !decoded.starts_with('/') {
            let anchor = self.resources[resource].anchors.get(&decoded).copied();
            return anchor
                .ok_or_else(|| fault(format!("{reference:?} leads nowhere: no $anchor is named so")));
        }
        let (mut value, mut path) = (self.value(root), self.path(root).to_owned());
        let mut resource = resource;
        for escaped in decoded.split('/').skip(1) {
            let key = unescaped(escaped)
                .ok_or_else(|| fault(format!("{reference:?} has a ~ that is neither ~0 nor ~1")))?;
            let found = match value {
                Value::Object(entries) => entries.get(&key),
                Value::Array(items) => index(&key).and_then(|index| items.get(index)),
                _ => None,
            };
            value =
                found.ok_or_else(|| fault(format!("{reference:?} leads nowhere: {path} has no {key:?}")))?;
            path = step(&path, &key);
            if let Some(known) = self.known.get(&std::ptr::from_ref(value)) {
                resource = self.places[known.0].resource;
            }
        }
        match self.known.get(&std::ptr::from_ref(value)) {
            Some(&known) => Ok(known),
            None => self.add(value, path, resource),
        }
    }

    /// Adds a schema and all schemas in it to the document.
    fn add(&mut self, value: &'a Value, path: String, resource: usize) -> Result<Place, Fault> {
        if !value.is_object() && !value.is_boolean() {
            let found = value.to_string().chars().take(40).collect::<String>();
            return Err(Fault::new(
                path,
                format!("found {found}, expected a schema: an object, true or false"),
            ));
        }
        let place = Place(self.places.len());
        self.places.push(Placed { value, path: path.clone(), resource });
        self.known.insert(value, place);
        let Some(keywords) = value.as_object() else { return Ok(place) };
        let resource = self.named(keywords, place, resource)?;
        for (way, inner) in inside(keywords) {
            if !self.known.contains_key(&std::ptr::from_ref(inner)) {
                self.add(inner, format!("{path}{way}"), resource)?;
            }
        }
        Ok(place)
    }

    /// Records the `$id` and anchors of a schema, and returns the resource that the schema belongs
    /// to.
    fn named(
        &mut self,
        keywords: &Map<String, Value>,
        place: Place,
        mut resource: usize,
    ) -> Result<usize, Fault> {
        let text = |key: &str| keywords.get(key).and_then(Value::as_str);
        // Draft 4 used `id`, which has no meaning in later drafts.
        let draft4 = self.keywords(self.root()).and_then(|root| root.get("$schema")).and_then(Value::as_str);
        let draft4 = draft4.is_some_and(|schema| schema.contains("draft-04"));
        let id = text("$id").or_else(|| text("id").filter(|_| draft4));
        let mut anchors = vec![text("$anchor"), text("$dynamicAnchor")];
        if let Some(id) = id {
            let (uri, fragment) = id.split_once('#').unwrap_or((id, ""));
            if !uri.is_empty() {
                let uri = join(&self.resources[resource].uri, uri);
                if place == self.root() {
                    self.resources[0].uri = uri;
                } else {
                    resource = self.resources.len();
                    self.resources.push(Resource { uri, root: place, anchors: HashMap::new() });
                    self.places[place.0].resource = resource;
                }
            }
            anchors.push(Some(fragment).filter(|fragment| !fragment.is_empty()));
        }
        for anchor in anchors.into_iter().flatten() {
            let before = self.resources[resource].anchors.insert(anchor.to_owned(), place);
            if before.is_some_and(|before| before != place) {
                let message = format!("another schema has the anchor {anchor:?}, too");
                return Err(Fault::new(self.path(place), message));
            }
        }
        Ok(resource)
    }
}

/// An array index in RFC 6901's form: no leading zeros.
fn index(key: &str) -> Option<usize> {
    let good = key.bytes().all(|byte| byte.is_ascii_digit()) && (key == "0" || !key.starts_with('0'));
    key.parse().ok().filter(|_| good)
}
