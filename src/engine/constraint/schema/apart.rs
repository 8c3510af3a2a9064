//! Checks `oneOf`: a value must satisfy exactly one branch. A grammar can guarantee that only if no
//! value satisfies two branches.

use llguidance::derivre::RegexAst;

use super::Reader;
use super::expand::Alternative;
use super::kinds::kind;
use super::lexeme::compiled;
use crate::json_schema::{Fault, Place};

/// Maximum levels of properties and items that are compared.
const DEPTH: usize = 4;

impl Reader<'_> {
    /// Refuses alternatives of different branches that one value could satisfy.
    pub fn check_one_of(&mut self, alternatives: &[Alternative]) -> Result<(), Fault> {
        for (index, one) in alternatives.iter().enumerate() {
            for other in &alternatives[index + 1..] {
                let differing = one.taken.iter().find_map(|&(place, branch)| {
                    let (_, second) =
                        other.taken.iter().find(|(whose, second)| *whose == place && *second != branch)?;
                    Some((place, branch, *second))
                });
                if let Some((place, first, second)) = differing
                    && !self.apart(one, other, DEPTH)?
                {
                    let message = format!(
                        "one value could satisfy branches {first} and {second}: say what tells them apart (a type, a constant \
                         under a required name), or use anyOf"
                    );
                    return Err(Fault::new(self.document.path_to(place, &["oneOf"]), message));
                }
            }
        }
        Ok(())
    }

    /// Whether it is certain that no value satisfies both.
    fn apart(&mut self, one: &Alternative, other: &Alternative, depth: usize) -> Result<bool, Fault> {
        for (listing, second) in [(one, other), (other, one)] {
            // Compare without the `oneOf` exclusions: the question is whether a listed value
            // satisfies both.
            let listed = Alternative { places: listing.places.clone(), taken: Vec::new() };
            let Some(values) = self.values(&listed)? else { continue };
            let second = Alternative { places: second.places.clone(), taken: Vec::new() };
            let both_listed = self.values(&second)?.is_some();
            if both_listed && !listing.taken.is_empty() {
                // Each alternative excludes the values that the other branch takes.
                return Ok(true);
            }
            for value in &values {
                let mut fits = true;
                for &place in &second.places {
                    fits = fits && self.fits(place, value)?;
                }
                if fits {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        let (one, other) = (&one.places, &other.places);
        let kinds = self.kinds_of(one)? & self.kinds_of(other)?;
        if kinds & (kind::NULL | kind::BOOLEAN) != 0 {
            return Ok(false);
        }
        if kinds & kind::NUMBER != 0 && !self.numbers(one)?.is_apart_from(&self.numbers(other)?) {
            return Ok(false);
        }
        if kinds & kind::STRING != 0 && !self.apart_as_texts(one, other)? {
            return Ok(false);
        }
        if kinds & kind::ARRAY != 0 && !self.apart_as_arrays(one, other, depth)? {
            return Ok(false);
        }
        Ok(kinds & kind::OBJECT == 0 || self.apart_as_objects(one, other, depth)?)
    }

    fn apart_as_texts(&mut self, one: &[Place], other: &[Place]) -> Result<bool, Fault> {
        let fault = |message: String| Fault::new(self.saying(one, &["pattern", "format", "type"]), message);
        let first = self.texts(one)?.lexeme().map_err(fault)?;
        let second = self.texts(other)?.lexeme().map_err(fault)?;
        let (Some(first), Some(second)) = (first, second) else { return Ok(true) };
        // If it can't be decided, assume an overlap.
        Ok(matches!(compiled(&RegexAst::And(vec![first.ast, second.ast])), Ok(None)))
    }

    fn apart_as_arrays(&mut self, one: &[Place], other: &[Place], depth: usize) -> Result<bool, Fault> {
        let (first, second) = (self.array(one)?, self.array(other)?);
        let most = |most: Option<usize>| most.unwrap_or(usize::MAX);
        let least = first.least.max(second.least);
        if least > most(first.most).min(most(second.most)) {
            return Ok(true);
        }
        let schemas = |reader: &mut Self, places: &[Place], index: usize| -> Result<Vec<Place>, Fault> {
            let mut found = Vec::new();
            for &place in places {
                let Some(keywords) = reader.document.keywords(place) else { continue };
                let (first, rest) = reader.items(place, keywords)?;
                found.extend(first.get(index).copied().or(rest));
            }
            Ok(found)
        };
        for index in 0..least.min(16) {
            let (one, other) = (schemas(self, one, index)?, schemas(self, other, index)?);
            if self.all_apart(&one, &other, depth)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn apart_as_objects(&mut self, one: &[Place], other: &[Place], depth: usize) -> Result<bool, Fault> {
        let mut names = Vec::new();
        for &place in one.iter().chain(other) {
            let Some(keywords) = self.document.keywords(place) else { continue };
            names.extend(self.required(place, keywords)?);
        }
        // An object without the name fails the schema that requires it.
        for name in names {
            let (one, other) = (self.schemas_of(one, name)?, self.schemas_of(other, name)?);
            if self.all_apart(&one, &other, depth)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether no value satisfies all schemas of `one` and all of `other`.
    fn all_apart(&mut self, one: &[Place], other: &[Place], depth: usize) -> Result<bool, Fault> {
        if depth == 0 {
            return Ok(false);
        }
        let (one, other) = (self.alternatives(one)?, self.alternatives(other)?);
        for first in &one {
            for second in &other {
                if !self.apart(first, second, depth - 1)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}
