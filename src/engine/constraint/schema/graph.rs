//! A schema taken apart: every value that validates, as a graph of what may stand where. Nothing of
//! JSON Schema is left in it but the limits of arrays and objects.

use llguidance::derivre::RegexAst;

use super::lexeme::Lexeme;

/// Index of a [`Node`]; the first is the whole answer.
pub type NodeId = usize;

/// The whole.
pub const ROOT: NodeId = 0;

/// What may stand at one place of an answer.
#[derive(Default)]
pub struct Node {
    /// Where in the schema that is said, for messages.
    pub path: String,
    /// Any of these.
    pub forms: Vec<Form>,
}

pub enum Form {
    /// A value without parts, or a part of one.
    Text(Lexeme),
    Array(Array),
    Object(Object),
    /// What may stand there.
    Node(NodeId),
}

pub struct Array {
    /// The first items.
    pub first: Vec<NodeId>,
    /// All others.
    pub rest: NodeId,
    pub least: usize,
    pub most: Option<usize>,
}

pub struct Object {
    /// Properties in the order in which they are written.
    pub named: Vec<Named>,
    /// Those whose names are not listed come at the end.
    pub free: Vec<Free>,
    pub least: usize,
    pub most: Option<usize>,
}

pub struct Named {
    pub name: String,
    pub node: NodeId,
    pub required: bool,
}

/// Properties with names of one kind; no name is of two.
pub struct Free {
    pub key: RegexAst,
    /// A short name, as it is written.
    pub sample: String,
    pub node: NodeId,
}

/// The graph of a schema, with what is known of the way to the end of each node.
pub struct Graph {
    pub nodes: Vec<Node>,
    /// `None`: no value can stand there, or none that is short enough to be written.
    pub ends: Vec<Option<End>>,
}

/// The shortest values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Fewest bytes.
    pub bytes: usize,
    /// Fewest levels of brackets.
    pub levels: usize,
}

impl Graph {
    pub fn ends(&self, node: NodeId) -> bool {
        self.ends[node].is_some()
    }
}
