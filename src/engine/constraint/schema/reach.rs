//! Finds the nodes that can be completed: some value, short enough to be written, must be able to
//! stand there. Nodes that only lead to others (a reference that comes back to itself, a pattern
//! that nothing matches, a required property that can't exist) are removed. If that removes the
//! root, the schema is refused.

use std::collections::HashSet;

use serde_json::Value;

use super::graph::{Array, End, Form, Graph, Node, NodeId, Object, ROOT};
use super::lexeme::LONGEST;
use crate::json_schema::Fault;

impl Graph {
    /// Computes the ends of all nodes.
    ///
    /// # Errors
    /// The root has no end.
    pub fn new(nodes: Vec<Node>) -> Result<Self, Fault> {
        let mut graph = Self { ends: vec![None; nodes.len()], nodes };
        // Ends only get shorter, so this terminates. Nodes are numbered in the order in which they
        // were found, outer ones first.
        loop {
            let mut moved = false;
            for node in (0..graph.nodes.len()).rev() {
                let ends = graph.nodes[node].forms.iter().filter_map(|form| graph.end(form));
                let nearest = ends.reduce(|one, other| End {
                    bytes: one.bytes.min(other.bytes),
                    levels: one.levels.min(other.levels),
                });
                if nearest != graph.ends[node] {
                    graph.ends[node] = nearest;
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
        if graph.ends(ROOT) { Ok(graph) } else { Err(graph.why()) }
    }

    /// Maximum levels of brackets that must be opened to end an answer, in any state.
    pub fn levels(&self) -> usize {
        // Only values count: once an alternative has begun, it is not chosen again.
        let parts = self.nodes.iter().flat_map(|node| &node.forms).flat_map(|form| match form {
            Form::Array(array) => array.first.iter().copied().chain([array.rest]).collect(),
            Form::Object(object) => {
                let named = object.named.iter().map(|named| named.node);
                named.chain(object.free.iter().map(|free| free.node)).collect()
            }
            Form::Text(_) | Form::Node(_) => Vec::new(),
        });
        let ends = parts.chain([ROOT]).filter_map(|node| self.ends[node]);
        ends.map(|end| end.levels).max().unwrap_or(0)
    }

    /// The end of a form.
    pub fn end(&self, form: &Form) -> Option<End> {
        let end = match form {
            Form::Text(lexeme) => Some(End { bytes: lexeme.bytes, levels: 0 }),
            Form::Node(node) => self.ends[*node],
            Form::Array(array) => self.end_of_array(array),
            Form::Object(object) => self.end_of_object(object),
        };
        end.filter(|end| end.bytes <= LONGEST)
    }

    fn end_of_array(&self, array: &Array) -> Option<End> {
        if array.most.is_some_and(|most| most < array.least) || array.least > LONGEST {
            return None;
        }
        let items = (0..array.least).map(|index| array.first.get(index).copied().unwrap_or(array.rest));
        self.end_of_all(items.map(|node| (0, node)))
    }

    fn end_of_object(&self, object: &Object) -> Option<End> {
        let chosen = self.chosen(object)?;
        let named =
            chosen.0.iter().map(|&at| &object.named[at]).map(|named| (quoted(&named.name), named.node));
        let free = chosen.1.map(|at| &object.free[at]).map(|free| (free.sample.len(), free.node));
        self.end_of_all(named.chain(free).map(|(key, node)| (key + 1, node)))
    }

    /// The end of brackets around these nodes, each with this many bytes before it.
    fn end_of_all(&self, parts: impl Iterator<Item = (usize, NodeId)>) -> Option<End> {
        let mut all = End { bytes: 2, levels: 1 };
        for (index, (before, node)) in parts.enumerate() {
            let end = self.ends[node]?;
            all.bytes = all.bytes.saturating_add(before + end.bytes + usize::from(index > 0));
            all.levels = all.levels.max(end.levels + 1);
        }
        Some(all)
    }

    /// The properties of a short object: the required ones, more if there must be more, and one
    /// whose name isn't listed if nothing else suffices. Two unlisted properties might have the
    /// same name, so more than one can't be guaranteed.
    pub(super) fn chosen(&self, object: &Object) -> Option<(Vec<usize>, Option<usize>)> {
        let most = object.most.unwrap_or(usize::MAX);
        let required = |at: &usize| object.named[*at].required;
        let cost = |at: &usize| self.ends[object.named[*at].node].map_or(usize::MAX, |end| end.bytes);
        let mut chosen: Vec<usize> = (0..object.named.len()).filter(required).collect();
        if chosen.iter().any(|at| !self.ends(object.named[*at].node)) {
            return None;
        }
        let mut others: Vec<usize> = (0..object.named.len()).filter(|at| !required(at)).collect();
        others.retain(|at| self.ends(object.named[*at].node));
        others.sort_by_key(cost);
        let missing = object.least.saturating_sub(chosen.len());
        let free = (0..object.free.len()).filter(|&at| self.ends(object.free[at].node));
        let free = free.min_by_key(|&at| self.ends[object.free[at].node].map(|end| end.bytes));
        let (taken, free) = if missing <= others.len() {
            (missing, None)
        } else {
            (others.len(), Some(free.filter(|_| missing == others.len() + 1)?))
        };
        chosen.extend(&others[..taken]);
        chosen.sort_unstable();
        (chosen.len() + usize::from(free.is_some()) <= most).then_some((chosen, free))
    }

    /// Explains why nothing can stand at the root: the first obstacle on the first way.
    fn why(&self) -> Fault {
        let (mut node, mut seen) = (ROOT, HashSet::new());
        loop {
            let path = &self.nodes[node].path;
            if !seen.insert(node) {
                return Fault::new(path, "it requires itself recursively, so no value validates");
            }
            let mut nearest = None;
            for form in &self.nodes[node].forms {
                let next = match form {
                    Form::Text(lexeme) => return too_long(path, lexeme.bytes),
                    Form::Node(inner) => Some(*inner),
                    Form::Array(array) if array.most.is_some_and(|most| most < array.least) => None,
                    Form::Array(array) if array.least > LONGEST => {
                        return too_long(path, array.least.saturating_mul(2));
                    }
                    Form::Array(array) => (0..array.least)
                        .map(|index| array.first.get(index).copied().unwrap_or(array.rest))
                        .find(|&node| !self.ends(node)),
                    Form::Object(object) => {
                        let required =
                            object.named.iter().filter(|named| named.required).map(|named| named.node);
                        let missing = required.clone().find(|&node| !self.ends(node));
                        if missing.is_none() && self.chosen(object).is_none() {
                            return uncountable(path, object);
                        }
                        missing
                    }
                };
                if next.is_none() && self.only_long(form) {
                    return too_long(path, LONGEST + 1);
                }
                nearest = nearest.or(next);
            }
            match nearest {
                Some(next) => node = next,
                None => return Fault::new(path, "no value validates that could be written"),
            }
        }
    }

    /// Whether a form has no end only because its parts are too long together.
    fn only_long(&self, form: &Form) -> bool {
        match form {
            Form::Array(array) => self.end_of_array(array).is_some(),
            Form::Object(object) => self.end_of_object(object).is_some(),
            Form::Text(_) | Form::Node(_) => false,
        }
    }
}

fn uncountable(path: &str, object: &Object) -> Fault {
    let (least, listed) = (object.least, object.named.len());
    let message = match object.most {
        Some(most) if most < least => format!("minProperties is {least} and maxProperties {most}"),
        Some(most) if object.named.iter().filter(|named| named.required).count() > most => {
            format!("more properties are required than maxProperties allows, which is {most}")
        }
        _ => format!(
            "minProperties is {least}, but only {listed} names are listed: at most one more can be guaranteed, since two might be equal"
        ),
    };
    Fault::new(path, message)
}

fn too_long(path: &str, bytes: usize) -> Fault {
    Fault::new(path, format!("the shortest value has at least {bytes} bytes; at most {LONGEST} are allowed"))
}

/// Length of a name as JSON writes it.
pub fn quoted(name: &str) -> usize {
    Value::from(name).to_string().len()
}
