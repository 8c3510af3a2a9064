//! Objects: which property names they may have, and which schemas apply to each.

use std::collections::HashSet;

use llguidance::derivre::RegexAst;

use super::Reader;
use super::digits::{either, regex};
use super::graph::{Free, Named, Object};
use super::kinds::kind;
use super::lexeme::Lexeme;
use super::text::{quoted, search};
use crate::json_schema::{Fault, Place};

/// Maximum number of name classes that patterns distinguish.
const MOST_KINDS: usize = 64;

/// A class of names that are not listed.
#[derive(Clone)]
struct Names {
    /// Patterns that the names match, each as the place of the schema that has it and the schema of
    /// the property.
    matched: Vec<(Place, Place)>,
    /// Expressions that the names must all match, as JSON writes them.
    parts: Vec<RegexAst>,
}

impl Names {
    fn ast(&self) -> RegexAst {
        match self.parts.as_slice() {
            [one] => one.clone(),
            parts => RegexAst::And(parts.to_vec()),
        }
    }
}

impl Reader<'_> {
    /// The objects that satisfy all of these schemas; `None` if there are none.
    pub fn object(&mut self, places: &[Place]) -> Result<Option<Object>, Fault> {
        let (mut least, mut most) = (0, None::<usize>);
        let (mut names, mut seen, mut required) = (Vec::new(), HashSet::new(), HashSet::new());
        for &place in places {
            let Some(keywords) = self.document.keywords(place) else { continue };
            least = least.max(self.count(place, keywords, "minProperties")?.unwrap_or(0));
            if let Some(here) = self.count(place, keywords, "maxProperties")? {
                most = Some(most.map_or(here, |most| most.min(here)));
            }
            let listed = self.entries(place, keywords, "properties")?;
            names.extend(listed.into_iter().map(|(name, _)| name).filter(|name| seen.insert(*name)));
        }
        for &place in places {
            let Some(keywords) = self.document.keywords(place) else { continue };
            let here = self.required(place, keywords)?;
            names.extend(here.iter().copied().filter(|name| seen.insert(*name)));
            required.extend(here);
        }
        let mut named = Vec::new();
        for &name in &names {
            let required = required.contains(name);
            if self.allows_name(places, name)? {
                let schemas = self.schemas_of(places, name)?;
                named.push(Named { name: name.to_owned(), node: self.node_of(schemas)?, required });
            } else if required {
                return Ok(None);
            }
        }
        let free = self.free(places, &names)?;
        Ok(Some(Object { named, free, least, most }))
    }

    /// The schemas that a property of this name must satisfy.
    pub fn schemas_of(&mut self, places: &[Place], name: &str) -> Result<Vec<Place>, Fault> {
        let mut found = Vec::new();
        for &place in places {
            let Some(keywords) = self.document.keywords(place) else { continue };
            let before = found.len();
            let listed = self.entries(place, keywords, "properties")?;
            found.extend(listed.into_iter().filter(|(listed, _)| *listed == name).map(|(_, schema)| schema));
            for (pattern, schema) in self.entries(place, keywords, "patternProperties")? {
                if self.matches(place, pattern, name)? {
                    found.push(schema);
                }
            }
            if found.len() == before {
                found.extend(self.schema(place, keywords, "additionalProperties")?);
            }
        }
        Ok(found)
    }

    /// Whether all of these schemas allow a property of this name.
    pub fn allows_name(&mut self, places: &[Place], name: &str) -> Result<bool, Fault> {
        for &place in places {
            let Some(keywords) = self.document.keywords(place) else { continue };
            if let Some(names) = self.schema(place, keywords, "propertyNames")?
                && !self.fits(names, &name.into())?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Properties whose names are not listed, classified by the patterns that they match.
    fn free(&mut self, places: &[Place], listed: &[&str]) -> Result<Vec<Free>, Fault> {
        let mut kinds = vec![Names { matched: Vec::new(), parts: vec![quoted(regex("(?s:.*)"))] }];
        if !listed.is_empty() {
            let taken = listed.iter().map(|name| Self::written(name)).collect();
            kinds[0].parts.push(RegexAst::Not(Box::new(either(taken))));
        }
        for &place in places {
            let Some(keywords) = self.document.keywords(place) else { continue };
            if let Some(names) = self.schema(place, keywords, "propertyNames")? {
                let written = self.texts_of(&[names])?;
                kinds[0].parts.push(written);
            }
        }
        for &place in places {
            let Some(keywords) = self.document.keywords(place) else { continue };
            for (pattern, schema) in self.entries(place, keywords, "patternProperties")? {
                // Report a pattern that can't be compiled, with its place.
                self.matches(place, pattern, "")?;
                let written = quoted(search(pattern));
                let mut parted = Vec::new();
                for kind in kinds {
                    let (mut with, mut without) = (kind.clone(), kind);
                    with.matched.push((place, schema));
                    with.parts.push(written.clone());
                    without.parts.push(RegexAst::Not(Box::new(written.clone())));
                    for names in [with, without] {
                        if self.names(places, &names)?.is_some() {
                            parted.push(names);
                        }
                    }
                }
                kinds = parted;
                if kinds.len() > MOST_KINDS {
                    let path = self.document.path_to(place, &["patternProperties"]);
                    let message = format!("the patterns distinguish more than {MOST_KINDS} classes of names");
                    return Err(Fault::new(path, message));
                }
            }
        }
        let mut free = Vec::new();
        for names in kinds {
            let mut schemas = Vec::new();
            for &place in places {
                let Some(keywords) = self.document.keywords(place) else { continue };
                let matched = names.matched.iter().filter(|(whose, _)| *whose == place);
                let before = schemas.len();
                schemas.extend(matched.map(|(_, schema)| *schema));
                if schemas.len() == before {
                    schemas.extend(self.schema(place, keywords, "additionalProperties")?);
                }
            }
            if schemas.iter().any(|&schema| *self.document.value(schema) == false) {
                continue;
            }
            let Some(key) = self.names(places, &names)? else { continue };
            free.push(Free { key: key.ast, sample: key.sample, node: self.node_of(schemas)? });
        }
        Ok(free)
    }

    fn names(&self, places: &[Place], names: &Names) -> Result<Option<Lexeme>, Fault> {
        if names.parts.len() == 1 {
            return Ok(Some(Lexeme::known(names.ast(), None, "\"\"".to_owned())));
        }
        Lexeme::checked(names.ast(), None).map_err(|message| {
            let path = self.saying(places, &["patternProperties", "propertyNames", "properties", "required"]);
            Fault::new(path, format!("unlisted names can't be distinguished: {message}"))
        })
    }

    /// The JSON notation of strings that satisfy all of these schemas.
    fn texts_of(&mut self, places: &[Place]) -> Result<RegexAst, Fault> {
        let mut options = Vec::new();
        for alternative in self.expand(places)? {
            if let Some(values) = self.values(&alternative)? {
                options.extend(values.iter().filter_map(|value| value.as_str()).map(Self::written));
            } else if self.kinds_of(&alternative.places)? & kind::STRING != 0 {
                let lexeme = self.texts(&alternative.places)?.lexeme().map_err(|message| {
                    Fault::new(self.saying(&alternative.places, &["pattern", "format", "type"]), message)
                })?;
                options.extend(lexeme.map(|lexeme| lexeme.ast));
            }
        }
        Ok(either(options))
    }
}
