//! Values that a schema lists itself (`const`, `enum`), checked against all its other keywords.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::Key;
use super::Reader;
use super::decimal::Decimal;
use super::digits::text;
use super::expand::Alternative;
use super::graph::{Array, Form, Named, Object};
use super::kinds::kind;
use super::lexeme::{Lexeme, compiled};
use super::number::Numbers;
use super::text::{Texts, search};
use crate::json_schema::{Fault, Place};

impl<'a> Reader<'a> {
    /// The values that an alternative lists; `None` if it lists none.
    pub fn values(&mut self, alternative: &Alternative) -> Result<Option<Vec<Value>>, Fault> {
        let mut listing = None;
        for &place in &alternative.places {
            let Some(keywords) = self.document.keywords(place) else { continue };
            if listing.is_none() {
                listing = self.listed(place, keywords)?.map(|values| (place, values));
            }
        }
        let Some((listing, listed)) = listing else { return Ok(None) };
        let (mut values, mut seen) = (Vec::new(), HashSet::new());
        for value in listed {
            let mut fits = seen.insert(value.to_string());
            for &place in &alternative.places {
                fits = fits && self.judge(place, value, place != listing)?;
            }
            for &(place, taken) in &alternative.taken {
                let keywords = self.document.keywords(place);
                let branches =
                    keywords.map(|keywords| self.branches(place, keywords, "oneOf")).transpose()?.flatten();
                for (index, &branch) in branches.iter().flatten().enumerate() {
                    fits = fits && (index == taken || !self.fits(branch, value)?);
                }
            }
            if fits {
                values.push(value.clone());
            }
        }
        Ok(Some(values))
    }

    /// The values of `const` or `enum`.
    fn listed(&self, place: Place, keywords: &'a Map<String, Value>) -> Result<Option<&'a [Value]>, Fault> {
        if let Some(value) = keywords.get("const") {
            return Ok(Some(std::slice::from_ref(value)));
        }
        match keywords.get("enum") {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(self.wrong(place, "enum", other, "a list of values")),
        }
    }

    /// A form that admits only this value. Strings keep all their characters.
    pub fn form_of_value(&mut self, value: &Value) -> Form {
        match value {
            Value::Array(items) => {
                let first: Vec<_> = items.iter().map(|item| self.node(Key::Value(item.clone()))).collect();
                let (count, rest) = (items.len(), self.node(Key::All(Vec::new())));
                Form::Array(Array { first, rest, least: count, most: Some(count) })
            }
            Value::Object(entries) => {
                let named = entries.iter().map(|(name, value)| {
                    let node = self.node(Key::Value(value.clone()));
                    Named { name: name.clone(), node, required: true }
                });
                let named: Vec<_> = named.collect();
                let count = named.len();
                Form::Object(Object { named, free: Vec::new(), least: count, most: Some(count) })
            }
            scalar => Form::Text(Lexeme::literal(scalar.to_string())),
        }
    }

    /// Whether a value validates against the schema at a place.
    pub fn fits(&mut self, place: Place, value: &Value) -> Result<bool, Fault> {
        self.judge(place, value, true)
    }

    /// Like [`Reader::fits`], but without `with_listed`, `const` and `enum` are ignored.
    fn judge(&mut self, place: Place, value: &Value, with_listed: bool) -> Result<bool, Fault> {
        let asked = (place, std::ptr::from_ref(value));
        if self.asked.contains(&asked) {
            let message = "it refers back to itself endlessly without requiring a value";
            return Err(Fault::new(self.document.path(place), message));
        }
        self.asked.push(asked);
        let judged = self.judge_once(place, value, with_listed);
        self.asked.pop();
        judged
    }

    fn judge_once(&mut self, place: Place, value: &Value, with_listed: bool) -> Result<bool, Fault> {
        let Some(keywords) = self.document.keywords(place) else {
            return Ok(self.document.value(place) == &Value::Bool(true));
        };
        self.check(place, keywords)?;
        if keywords.get("not").is_some_and(|not| not != &Value::Bool(false)) {
            return Ok(false);
        }
        let (kinds, whole) = self.kinds(place, keywords)?;
        let (kind, here) = match value {
            Value::Null => (kind::NULL, true),
            Value::Bool(_) => (kind::BOOLEAN, true),
            Value::Number(number) => {
                let decimal = Decimal::of(number);
                let mut numbers = Numbers::default();
                self.limit_numbers(place, keywords, &mut numbers)?;
                (kind::NUMBER, (!whole || decimal.fraction().is_empty()) && numbers.holds(&decimal))
            }
            Value::String(text) => {
                let mut texts = Texts::default();
                self.limit_texts(place, keywords, &mut texts)?;
                (kind::STRING, texts.holds(text))
            }
            Value::Array(items) => (kind::ARRAY, self.fits_items(place, keywords, items)?),
            Value::Object(entries) => (kind::OBJECT, self.fits_entries(place, keywords, entries)?),
        };
        let listed = self.listed(place, keywords)?.filter(|_| with_listed);
        let listed = listed.is_none_or(|values| values.iter().any(|other| same(other, value)));
        if kinds & kind == 0 || !here || !listed {
            return Ok(false);
        }
        if let Some(Value::String(reference)) = keywords.get("$ref") {
            let target = self.document.follow(place, reference)?;
            if !self.fits(target, value)? {
                return Ok(false);
            }
        }
        for keyword in ["allOf", "anyOf", "oneOf"] {
            let Some(branches) = self.branches(place, keywords, keyword)? else { continue };
            let mut fitting = 0;
            for &branch in &branches {
                fitting += usize::from(self.fits(branch, value)?);
            }
            let fits = match keyword {
                "allOf" => fitting == branches.len(),
                "anyOf" => fitting > 0,
                _ => fitting == 1,
            };
            if !fits {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn fits_items(
        &mut self,
        place: Place,
        keywords: &'a Map<String, Value>,
        items: &[Value],
    ) -> Result<bool, Fault> {
        let least = self.count(place, keywords, "minItems")?.unwrap_or(0);
        let most = self.count(place, keywords, "maxItems")?.unwrap_or(usize::MAX);
        let (first, rest) = self.items(place, keywords)?;
        for (index, item) in items.iter().enumerate() {
            if let Some(schema) = first.get(index).copied().or(rest)
                && !self.fits(schema, item)?
            {
                return Ok(false);
            }
        }
        let repeats = |(index, item): (usize, &Value)| items[..index].iter().any(|other| same(other, item));
        let distinct = !self.wants_distinct(place, keywords)? || !items.iter().enumerate().any(repeats);
        Ok(distinct && (least..=most).contains(&items.len()))
    }

    fn fits_entries(
        &mut self,
        place: Place,
        keywords: &'a Map<String, Value>,
        entries: &Map<String, Value>,
    ) -> Result<bool, Fault> {
        let least = self.count(place, keywords, "minProperties")?.unwrap_or(0);
        let most = self.count(place, keywords, "maxProperties")?.unwrap_or(usize::MAX);
        let required = self.required(place, keywords)?.into_iter().all(|name| entries.contains_key(name));
        if !required || !(least..=most).contains(&entries.len()) {
            return Ok(false);
        }
        for (name, entry) in entries {
            if !self.allows_name(&[place], name)? {
                return Ok(false);
            }
            for schema in self.schemas_of(&[place], name)? {
                if !self.fits(schema, entry)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Whether a text contains a match of a pattern.
    pub fn matches(&mut self, place: Place, pattern: &str, found: &str) -> Result<bool, Fault> {
        if !self.patterns.contains_key(pattern) {
            let regex = compiled(&search(pattern)).map_err(|message| {
                let path = self.document.path_to(place, &["patternProperties", pattern]);
                Fault::new(path, format!("the regular expression can't be enforced: {message}"))
            })?;
            self.patterns.insert(pattern.to_owned(), regex);
        }
        let regex = self.patterns.get_mut(pattern).and_then(Option::as_mut);
        Ok(regex.is_some_and(|regex| regex.is_match(found)))
    }

    /// A text as JSON writes it.
    pub fn written(found: &str) -> llguidance::derivre::RegexAst {
        text(Value::from(found).to_string())
    }
}

/// Equality as JSON Schema defines it, with numbers compared by value.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            one == other || ((one.is_f64() || other.is_f64()) && Decimal::of(one) == Decimal::of(other))
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let has = |(key, one): (&String, &Value)| other.get(key).is_some_and(|other| same(one, other));
            one.len() == other.len() && one.iter().all(has)
        }
        (one, other) => one == other,
    }
}
