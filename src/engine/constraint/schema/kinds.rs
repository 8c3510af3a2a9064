//! Reads the keywords of one schema: checks their values, and collects what they say about each
//! type.

use serde_json::{Map, Number, Value};

use super::Reader;
use super::decimal::Decimal;
use super::number::{Limit, Numbers};
use super::text::Texts;
use crate::json_schema::{Fault, Place};

/// Types as bits.
pub mod kind {
    pub const NULL: u8 = 1;
    pub const BOOLEAN: u8 = 2;
    pub const NUMBER: u8 = 4;
    pub const STRING: u8 = 8;
    pub const ARRAY: u8 = 16;
    pub const OBJECT: u8 = 32;
    pub const ALL: u8 = 63;
}

/// Whether a keyword with this value has no effect.
type IsIdle = fn(&Value) -> bool;

/// Keywords that can't be enforced. They are refused, unless their value has no effect.
const REFUSED: [(&str, IsIdle); 10] = [
    ("$dynamicRef", |_| false),
    ("$recursiveRef", |_| false),
    ("not", |value| matches!(value, Value::Bool(_)) || value.as_object().is_some_and(Map::is_empty)),
    ("if", |_| false),
    ("contains", |_| false),
    ("unevaluatedItems", |value| value == &Value::Bool(true)),
    ("unevaluatedProperties", |value| value == &Value::Bool(true)),
    ("dependentRequired", |value| value.as_object().is_some_and(Map::is_empty)),
    ("dependentSchemas", |value| value.as_object().is_some_and(Map::is_empty)),
    ("dependencies", |value| value.as_object().is_some_and(Map::is_empty)),
];

impl<'a> Reader<'a> {
    /// The fault of a keyword with an invalid value.
    pub fn wrong(&self, place: Place, keyword: &str, found: &Value, expected: &str) -> Fault {
        let found: String = found.to_string().chars().take(60).collect();
        Fault::new(self.document.path_to(place, &[keyword]), format!("found {found}, expected {expected}"))
    }

    /// Refuses keywords that can't be enforced.
    pub fn check(&self, place: Place, keywords: &Map<String, Value>) -> Result<(), Fault> {
        for (keyword, is_idle) in REFUSED {
            let idle_if = keyword == "if" && !keywords.contains_key("then") && !keywords.contains_key("else");
            if keywords.get(keyword).is_some_and(|value| !is_idle(value)) && !idle_if {
                let message = format!("{keyword} can't be enforced");
                return Err(Fault::new(self.document.path_to(place, &[keyword]), message));
            }
        }
        self.wants_distinct(place, keywords).map(drop)
    }

    /// Whether the items of an array have to differ. A grammar can't express that, so the answer is
    /// watched.
    pub fn wants_distinct(&self, place: Place, keywords: &Map<String, Value>) -> Result<bool, Fault> {
        match keywords.get("uniqueItems") {
            None => Ok(false),
            Some(Value::Bool(says)) => Ok(*says),
            Some(other) => Err(self.wrong(place, "uniqueItems", other, "true or false")),
        }
    }

    /// The types that a schema allows, and whether its numbers are whole.
    pub fn kinds(&self, place: Place, keywords: &Map<String, Value>) -> Result<(u8, bool), Fault> {
        let Some(value) = keywords.get("type") else { return Ok((kind::ALL, false)) };
        let expected = "a type (null, boolean, integer, number, string, array, object) or a list of types";
        let names = match value {
            Value::Array(names) => names.iter().collect(),
            name => vec![name],
        };
        let (mut kinds, mut integer, mut number) = (0, false, false);
        for name in names {
            kinds |= match name.as_str() {
                Some("null") => kind::NULL,
                Some("boolean") => kind::BOOLEAN,
                Some("string") => kind::STRING,
                Some("array") => kind::ARRAY,
                Some("object") => kind::OBJECT,
                Some(name @ ("integer" | "number")) => {
                    (integer, number) = (integer || name == "integer", number || name == "number");
                    kind::NUMBER
                }
                _ => return Err(self.wrong(place, "type", value, expected)),
            };
        }
        Ok((kinds, integer && !number))
    }

    /// Adds what a schema says about numbers.
    pub fn limit_numbers(
        &self,
        place: Place,
        keywords: &Map<String, Value>,
        numbers: &mut Numbers,
    ) -> Result<(), Fault> {
        numbers.whole |= self.kinds(place, keywords)?.1;
        let number = |keyword: &str| match keywords.get(keyword) {
            None => Ok(None),
            Some(Value::Number(number)) => Ok(Some(Decimal::of(number))),
            Some(other) => Err(self.wrong(place, keyword, other, "a number")),
        };
        // Draft 4 has `exclusiveMinimum: true` next to `minimum`.
        let flag = |keyword: &str| keywords.get(keyword).and_then(Value::as_bool);
        for (inclusive, exclusive, is_low) in
            [("minimum", "exclusiveMinimum", true), ("maximum", "exclusiveMaximum", false)]
        {
            let mut limits = Vec::new();
            if let Some(value) = number(inclusive)? {
                limits.push(Limit { value, exclusive: flag(exclusive) == Some(true) });
            }
            if flag(exclusive).is_none()
                && let Some(value) = number(exclusive)?
            {
                limits.push(Limit { value, exclusive: true });
            }
            for limit in limits {
                if is_low { numbers.at_least(limit) } else { numbers.at_most(limit) }
            }
        }
        if let Some(factor) = number("multipleOf")? {
            if factor.is_zero() || factor.is_negative() {
                return Err(self.wrong(place, "multipleOf", &keywords["multipleOf"], "a number above 0"));
            }
            numbers.multiple_of(factor);
        }
        Ok(())
    }

    /// Adds what a schema says about strings.
    pub fn limit_texts(
        &self,
        place: Place,
        keywords: &Map<String, Value>,
        texts: &mut Texts,
    ) -> Result<(), Fault> {
        if let Some(least) = self.count(place, keywords, "minLength")? {
            texts.at_least(least);
        }
        if let Some(most) = self.count(place, keywords, "maxLength")? {
            texts.at_most(most);
        }
        let fault =
            |keyword: &str, message: String| Fault::new(self.document.path_to(place, &[keyword]), message);
        match keywords.get("pattern") {
            None => {}
            Some(Value::String(pattern)) => texts.like(pattern).map_err(|message| {
                fault("pattern", format!("the regular expression can't be enforced: {message}"))
            })?,
            Some(other) => return Err(self.wrong(place, "pattern", other, "a text")),
        }
        match keywords.get("format") {
            None => Ok(()),
            Some(Value::String(format)) => {
                texts.of_format(format).map_err(|message| fault("format", message))
            }
            Some(other) => Err(self.wrong(place, "format", other, "a text")),
        }
    }

    /// A keyword's number of characters, items or properties.
    pub fn count(
        &self,
        place: Place,
        keywords: &Map<String, Value>,
        keyword: &str,
    ) -> Result<Option<usize>, Fault> {
        let whole = |number: &Number| {
            let double =
                number.as_f64().filter(|double| double.fract() == 0.0 && (0.0..9e15).contains(double));
            number
                .as_u64()
                .or(double.map(|double| double as u64))
                .and_then(|count| usize::try_from(count).ok())
        };
        match keywords.get(keyword) {
            None => Ok(None),
            Some(value) => match value.as_number().and_then(whole) {
                Some(count) => Ok(Some(count)),
                None => Err(self.wrong(place, keyword, value, "a whole number that isn't negative")),
            },
        }
    }

    /// The names that a schema requires.
    pub fn required(&self, place: Place, keywords: &'a Map<String, Value>) -> Result<Vec<&'a str>, Fault> {
        let Some(value) = keywords.get("required") else { return Ok(Vec::new()) };
        // Draft 3 (and many schemas by mistake) have a boolean in the property, which has no effect
        // here.
        let names =
            value.as_array().and_then(|names| names.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        names.ok_or_else(|| self.wrong(place, "required", value, "a list of names"))
    }

    /// The schemas of a keyword that maps names to schemas.
    pub fn entries(
        &mut self,
        place: Place,
        keywords: &'a Map<String, Value>,
        keyword: &str,
    ) -> Result<Vec<(&'a str, Place)>, Fault> {
        match keywords.get(keyword) {
            None => Ok(Vec::new()),
            Some(Value::Object(entries)) => entries
                .iter()
                .map(|(name, value)| {
                    Ok((name.as_str(), self.document.within(place, &[keyword, name], value)?))
                })
                .collect(),
            Some(other) => Err(self.wrong(place, keyword, other, "an object of schemas")),
        }
    }

    /// The schema of a keyword.
    pub fn schema(
        &mut self,
        place: Place,
        keywords: &'a Map<String, Value>,
        keyword: &str,
    ) -> Result<Option<Place>, Fault> {
        keywords.get(keyword).map(|value| self.document.within(place, &[keyword], value)).transpose()
    }

    /// The schemas of the first items of an array, and of all others.
    pub fn items(
        &mut self,
        place: Place,
        keywords: &'a Map<String, Value>,
    ) -> Result<(Vec<Place>, Option<Place>), Fault> {
        // Before 2020-12, a list in `items` had the meaning of `prefixItems`.
        if keywords.get("items").is_some_and(Value::is_array) {
            let first = self.branches(place, keywords, "items")?.unwrap_or_default();
            return Ok((first, self.schema(place, keywords, "additionalItems")?));
        }
        let first = self.branches(place, keywords, "prefixItems")?.unwrap_or_default();
        Ok((first, self.schema(place, keywords, "items")?))
    }
}
