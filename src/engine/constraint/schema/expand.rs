//! Expands a schema into alternatives, with `$ref`, `allOf`, `anyOf` and `oneOf` resolved. Each
//! alternative is a set of schemas that all hold at once; only their other keywords still matter.

use std::collections::{HashSet, VecDeque};
use std::rc::Rc;

use serde_json::{Map, Value};

use super::Reader;
use crate::json_schema::{Fault, Place};

/// Maximum number of alternatives of one place.
const MOST: usize = 2_000;

/// One way to satisfy a schema.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Alternative {
    /// Schemas that hold, in the order in which their properties are written.
    pub places: Vec<Place>,
    /// Branches of `oneOf` that were taken. The other branches must not hold.
    pub taken: Vec<(Place, usize)>,
}

/// An alternative that is being expanded.
#[derive(Clone)]
struct Open {
    found: Alternative,
    todo: VecDeque<(Place, Option<Rc<Link>>)>,
}

/// The chain of schemas that led to a schema without a value in between.
struct Link {
    place: Place,
    before: Option<Rc<Link>>,
}

fn leads_from(mut link: Option<&Rc<Link>>, place: Place) -> bool {
    while let Some(at) = link {
        if at.place == place {
            return true;
        }
        link = at.before.as_ref();
    }
    false
}

/// Keywords that say nothing about values, or nothing by themselves.
fn is_silent(keyword: &str) -> bool {
    matches!(
        keyword,
        "$ref"
            | "allOf"
            | "anyOf"
            | "oneOf"
            | "$anchor"
            | "$dynamicAnchor"
            | "$recursiveAnchor"
            | "$defs"
            | "definitions"
            | "$schema"
            | "$vocabulary"
            | "$id"
            | "id"
            | "$comment"
            | "title"
            | "description"
            | "default"
            | "deprecated"
            | "readOnly"
            | "writeOnly"
            | "examples"
            | "example"
            | "contentMediaType"
            | "contentEncoding"
            | "contentSchema"
            | "nullable"
    )
}

impl<'a> Reader<'a> {
    /// All ways to satisfy these schemas at once. Refuses schemas where one value may satisfy two
    /// branches of a `oneOf`.
    pub fn expand(&mut self, places: &[Place]) -> Result<Vec<Alternative>, Fault> {
        let alternatives = self.alternatives(places)?;
        self.check_one_of(&alternatives)?;
        Ok(alternatives)
    }

    /// Like [`Reader::expand`], but without checking `oneOf`.
    pub fn alternatives(&mut self, places: &[Place]) -> Result<Vec<Alternative>, Fault> {
        let todo = places.iter().map(|&place| (place, None)).collect();
        let mut open = vec![Open { found: Alternative { places: Vec::new(), taken: Vec::new() }, todo }];
        let mut done: Vec<Alternative> = Vec::new();
        while let Some(mut one) = open.pop() {
            let Some((place, link)) = one.todo.pop_front() else {
                if !done.contains(&one.found) {
                    done.push(one.found);
                }
                continue;
            };
            if one.found.places.contains(&place) {
                open.push(one);
                continue;
            }
            let Some(keywords) = self.document.keywords(place) else {
                if self.document.value(place) == &Value::Bool(true) {
                    open.push(one);
                }
                continue;
            };
            self.check(place, keywords)?;
            if keywords.get("not").is_some_and(|not| not != &Value::Bool(false)) {
                // `check` accepts only a `not` that no value satisfies.
                continue;
            }
            if keywords.keys().any(|keyword| !is_silent(keyword)) {
                one.found.places.push(place);
            }
            let link = Some(Rc::new(Link { place, before: link }));
            let mut next = Vec::new();
            for inner in self.applied(place, keywords)? {
                self.check_loop(place, inner, link.as_ref())?;
                next.push((inner, link.clone()));
            }
            for inner in next.into_iter().rev() {
                one.todo.push_front(inner);
            }
            let mut forks = vec![one];
            for keyword in ["anyOf", "oneOf"] {
                let Some(branches) = self.branches(place, keywords, keyword)? else { continue };
                let mut forked = Vec::new();
                for fork in forks {
                    for (index, &branch) in branches.iter().enumerate() {
                        self.check_loop(place, branch, link.as_ref())?;
                        let mut fork = fork.clone();
                        fork.todo.push_front((branch, link.clone()));
                        if keyword == "oneOf" && branches.len() > 1 {
                            fork.found.taken.push((place, index));
                        }
                        forked.push(fork);
                    }
                }
                forks = forked;
            }
            open.extend(forks.into_iter().rev());
            if open.len() + done.len() > MOST {
                let message = format!("anyOf and oneOf have more than {MOST} combinations here");
                return Err(Fault::new(self.document.path(place), message));
            }
        }
        Ok(done)
    }

    /// Schemas that hold whenever this one does: the target of `$ref`, and those of `allOf`.
    fn applied(&mut self, place: Place, keywords: &'a Map<String, Value>) -> Result<Vec<Place>, Fault> {
        let mut applied = Vec::new();
        for (keyword, value) in keywords {
            match (keyword.as_str(), value) {
                ("$ref", Value::String(reference)) => applied.push(self.document.follow(place, reference)?),
                ("$ref", other) => return Err(self.wrong(place, "$ref", other, "a text")),
                ("allOf", _) => applied.extend(self.branches(place, keywords, "allOf")?.unwrap_or_default()),
                _ => {}
            }
        }
        Ok(applied)
    }

    /// The schemas in a keyword's list.
    pub fn branches(
        &mut self,
        place: Place,
        keywords: &'a Map<String, Value>,
        keyword: &str,
    ) -> Result<Option<Vec<Place>>, Fault> {
        let Some(value) = keywords.get(keyword) else { return Ok(None) };
        let Value::Array(items) = value else {
            return Err(self.wrong(place, keyword, value, "a list of schemas"));
        };
        let place_of = |(index, item): (usize, &'a Value)| {
            self.document.within(place, &[keyword, &index.to_string()], item)
        };
        items.iter().enumerate().map(place_of).collect::<Result<_, _>>().map(Some)
    }

    fn check_loop(&self, from: Place, to: Place, link: Option<&Rc<Link>>) -> Result<(), Fault> {
        if leads_from(link, to) {
            let message =
                format!("it refers back to {} endlessly without requiring a value", self.document.path(to));
            return Err(Fault::new(self.document.path(from), message));
        }
        Ok(())
    }

    /// Normalises a set of schemas: follows references and drops schemas that say nothing.
    pub fn canonical(&mut self, places: Vec<Place>) -> Result<Vec<Place>, Fault> {
        let mut kept: Vec<Place> = Vec::new();
        for mut place in places {
            let mut seen = HashSet::new();
            while let Some(keywords) = self.document.keywords(place)
                && let Some(Value::String(reference)) = keywords.get("$ref")
                && keywords.keys().all(|keyword| {
                    is_silent(keyword) && !matches!(keyword.as_str(), "allOf" | "anyOf" | "oneOf")
                })
            {
                let target = self.document.follow(place, reference)?;
                if !seen.insert(target) {
                    let message = "it refers back to itself endlessly without requiring a value";
                    return Err(Fault::new(self.document.path_to(place, &["$ref"]), message));
                }
                place = target;
            }
            let nothing = match self.document.value(place) {
                Value::Bool(says) => *says,
                Value::Object(keywords) => keywords.is_empty(),
                _ => false,
            };
            if !nothing && !kept.contains(&place) {
                kept.push(place);
            }
        }
        Ok(kept)
    }
}
