//! A schema as a graph: every value that validates, described by what may stand where. All that
//! remains of JSON Schema are the limits of arrays and objects.

use llguidance::derivre::RegexAst;

use super::lexeme::Lexeme;

/// Index of a [`Node`].
pub type NodeId = usize;

/// The node of the whole answer.
pub const ROOT: NodeId = 0;

/// The values that may stand at one place of an answer.
#[derive(Default)]
pub struct Node {
    /// Path in the schema, for messages.
    pub path: String,
    /// Alternatives.
    pub forms: Vec<Form>,
}

pub enum Form {
    /// A scalar value.
    Text(Lexeme),
    Array(Array),
    Object(Object),
    /// Any value of this node.
    Node(NodeId),
}

pub struct Array {
    /// The first items.
    pub first: Vec<NodeId>,
    /// All other items.
    pub rest: NodeId,
    pub least: usize,
    pub most: Option<usize>,
}

pub struct Object {
    /// Properties, in the order in which they are written.
    pub named: Vec<Named>,
    /// Properties whose names are not listed. They are written last.
    pub free: Vec<Free>,
    pub least: usize,
    pub most: Option<usize>,
}

pub struct Named {
    pub name: String,
    pub node: NodeId,
    pub required: bool,
}

/// Properties whose names have one form. The forms don't overlap.
pub struct Free {
    pub key: RegexAst,
    /// A short name, as JSON writes it.
    pub sample: String,
    pub node: NodeId,
}

/// The graph of a schema, with the shortest end of each node.
pub struct Graph {
    pub nodes: Vec<Node>,
    /// `None` if no value can stand there, or only values that are too long to be written.
    pub ends: Vec<Option<End>>,
}

/// The shortest values of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Minimum number of bytes.
    pub bytes: usize,
    /// Minimum levels of brackets.
    pub levels: usize,
}

impl Graph {
    pub fn ends(&self, node: NodeId) -> bool {
        self.ends[node].is_some()
    }
}
