//! Compiles JSON Schema for the parser. A schema is read into a graph of what may stand where
//! ([`Reader`]), nodes that can't be completed are removed ([`reach`]), and the rest becomes a
//! grammar ([`grammar`]). Whatever an answer begins can therefore be completed, and what can't be
//! enforced is refused before the first token, with its place in the schema.

mod apart;
mod closing_bound;
mod decimal;
mod digits;
mod expand;
mod formats;
mod grammar;
mod graph;
#[cfg(feature = "test-support")]
mod instance;
mod kinds;
mod lexeme;
mod literal;
mod number;
mod object;
mod reach;
mod text;

use std::collections::HashMap;

use llguidance::derivre::{Regex, RegexAst};
use serde_json::Value;

use self::expand::Alternative;
pub use self::grammar::Compiled;
use self::graph::{Array, Form, Graph, Node, NodeId};
#[cfg(feature = "test-support")]
pub use self::instance::instance;
use self::kinds::kind;
use self::lexeme::Lexeme;
use self::number::Numbers;
use self::text::Texts;
use crate::json_schema::{Document, Fault, Place};

/// Maximum number of nodes.
const MOST_NODES: usize = 20_000;

/// Compiles the grammar of a schema.
///
/// # Errors
/// What can't be enforced, with its place in the schema.
pub fn compile(schema: &Value) -> Result<Compiled, Fault> {
    grammar::compile(&read(schema)?)
}

fn read(schema: &Value) -> Result<Graph, Fault> {
    let mut reader = Reader {
        document: Document::new(schema)?,
        known: HashMap::new(),
        nodes: Vec::new(),
        todo: Vec::new(),
        patterns: HashMap::new(),
        asked: Vec::new(),
    };
    let root = reader.document.root();
    reader.node(Key::All(vec![root]));
    while let Some((node, key)) = reader.todo.pop() {
        reader.nodes[node].forms = reader.forms(&key)?;
        if reader.nodes.len() > MOST_NODES {
            let path = reader.nodes[node].path.clone();
            return Err(Fault::new(path, format!("it has more than {MOST_NODES} distinct places")));
        }
    }
    Graph::new(reader.nodes)
}

/// Reads a schema into a graph.
struct Reader<'a> {
    document: Document<'a>,
    known: HashMap<Key, NodeId>,
    nodes: Vec<Node>,
    /// Nodes whose forms aren't computed yet.
    todo: Vec<(NodeId, Key)>,
    patterns: HashMap<String, Option<Regex>>,
    /// Values that are being checked, with the schemas they are checked against.
    asked: Vec<(Place, *const Value)>,
}

/// What a node stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    /// Values that satisfy all of these schemas.
    All(Vec<Place>),
    /// Values that satisfy one alternative.
    One(Alternative),
    /// Only this value.
    Value(Value),
}

impl Reader<'_> {
    fn node(&mut self, key: Key) -> NodeId {
        if let Some(&known) = self.known.get(&key) {
            return known;
        }
        let place = match &key {
            Key::All(places) | Key::One(Alternative { places, .. }) => places.first().copied(),
            Key::Value(_) => None,
        };
        let path = place.map_or("#", |place| self.document.path(place)).to_owned();
        let node = self.nodes.len();
        self.nodes.push(Node { path, forms: Vec::new() });
        self.known.insert(key.clone(), node);
        self.todo.push((node, key));
        node
    }

    /// The node of the values that satisfy all of these schemas.
    fn node_of(&mut self, places: Vec<Place>) -> Result<NodeId, Fault> {
        let places = self.canonical(places)?;
        Ok(self.node(Key::All(places)))
    }

    fn forms(&mut self, key: &Key) -> Result<Vec<Form>, Fault> {
        match key {
            Key::Value(value) => Ok(vec![self.form_of_value(value)]),
            Key::One(alternative) => self.forms_of(alternative),
            Key::All(places) => {
                let mut alternatives = self.expand(places)?;
                if alternatives.len() == 1 {
                    return self.forms_of(&alternatives.swap_remove(0));
                }
                Ok(alternatives.into_iter().map(|one| Form::Node(self.node(Key::One(one)))).collect())
            }
        }
    }

    fn forms_of(&mut self, alternative: &Alternative) -> Result<Vec<Form>, Fault> {
        if let Some(values) = self.values(alternative)? {
            return Ok(values.iter().map(|value| self.form_of_value(value)).collect());
        }
        let places = &alternative.places;
        let mut forms = Vec::new();
        let kinds = self.kinds_of(places)?;
        if kinds & kind::NULL != 0 {
            forms.push(Form::Text(Lexeme::literal("null".to_owned())));
        }
        if kinds & kind::BOOLEAN != 0 {
            let ast = RegexAst::Regex("true|false".to_owned());
            forms.push(Form::Text(Lexeme::known(ast, Some(5), "false".to_owned())));
        }
        if kinds & kind::NUMBER != 0 {
            let lexeme = self.numbers(places)?.lexeme();
            let keyword =
                |reader: &Self| reader.saying(places, &["multipleOf", "minimum", "maximum", "type"]);
            forms.extend(lexeme.map_err(|message| Fault::new(keyword(self), message))?.map(Form::Text));
        }
        if kinds & kind::STRING != 0 {
            let lexeme = self.texts(places)?.lexeme();
            let keyword = |reader: &Self| reader.saying(places, &["pattern", "format", "type"]);
            forms.extend(lexeme.map_err(|message| Fault::new(keyword(self), message))?.map(Form::Text));
        }
        if kinds & kind::ARRAY != 0 {
            forms.push(Form::Array(self.array(places)?));
        }
        if kinds & kind::OBJECT != 0 {
            forms.extend(self.object(places)?.map(Form::Object));
        }
        Ok(forms)
    }

    /// The types that all of these schemas allow.
    fn kinds_of(&self, places: &[Place]) -> Result<u8, Fault> {
        places.iter().try_fold(kind::ALL, |kinds, &place| {
            Ok(kinds
                & self
                    .document
                    .keywords(place)
                    .map_or(Ok((kind::ALL, false)), |keys| self.kinds(place, keys))?
                    .0)
        })
    }

    fn numbers(&self, places: &[Place]) -> Result<Numbers, Fault> {
        let mut numbers = Numbers::default();
        for &place in places {
            let Some(keywords) = self.document.keywords(place) else { continue };
            self.limit_numbers(place, keywords, &mut numbers)?;
        }
        Ok(numbers)
    }

    fn texts(&self, places: &[Place]) -> Result<Texts, Fault> {
        let mut texts = Texts::default();
        for &place in places {
            let Some(keywords) = self.document.keywords(place) else { continue };
            self.limit_texts(place, keywords, &mut texts)?;
        }
        Ok(texts)
    }

    /// Path of the first of these keywords that is present.
    fn saying(&self, places: &[Place], keywords: &[&str]) -> String {
        let says = |place: &&Place, keyword: &str| {
            self.document.keywords(**place).is_some_and(|keys| keys.contains_key(keyword))
        };
        let found = keywords.iter().find_map(|keyword| {
            places
                .iter()
                .find(|place| says(place, keyword))
                .map(|&place| self.document.path_to(place, &[keyword]))
        });
        found.unwrap_or_else(|| "#".to_owned())
    }

    fn array(&mut self, places: &[Place]) -> Result<Array, Fault> {
        let (mut least, mut most, mut parts) = (0, None::<usize>, Vec::new());
        for &place in places {
            let Some(keywords) = self.document.keywords(place) else { continue };
            least = least.max(self.count(place, keywords, "minItems")?.unwrap_or(0));
            if let Some(here) = self.count(place, keywords, "maxItems")? {
                most = Some(most.map_or(here, |most| most.min(here)));
            }
            parts.push(self.items(place, keywords)?);
        }
        let longest = parts.iter().map(|(first, _)| first.len()).max().unwrap_or(0);
        let at = |index: usize| {
            parts
                .iter()
                .filter_map(move |(first, rest)| first.get(index).copied().or(*rest))
                .collect::<Vec<Place>>()
        };
        let first = (0..longest).map(|index| self.node_of(at(index))).collect::<Result<_, _>>()?;
        let rest = self.node_of(at(longest))?;
        Ok(Array { first, rest, least, most })
    }
}

#[cfg(test)]
mod tests;
