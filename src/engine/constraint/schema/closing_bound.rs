//! An upper bound for the bytes that close an answer in any state. While more tokens than that are
//! left, no closing needs to be computed.

use super::graph::{Array, Form, Graph, NodeId, Object, ROOT};
use super::reach::quoted;

/// Maximum bytes of a value's shortest closing.
#[derive(Clone, Copy)]
struct Size {
    /// From before the value.
    whole: usize,
    /// From any point inside the value.
    rest: usize,
}

/// What is known about a node.
#[derive(Clone, Copy)]
enum Known {
    /// The size is being computed. A recursive value has no bound.
    Asked,
    Size(Option<Size>),
}

impl Graph {
    /// An upper bound for the bytes that close an answer, from any state. `None` if the search may
    /// need more than that (patterns, lengths), or if a value may contain values of its own kind.
    pub fn closing_bound(&self) -> Option<usize> {
        let mut known = vec![None; self.nodes.len()];
        let size = self.size(ROOT, &mut known)?;
        Some(size.whole.max(size.rest))
    }

    fn size(&self, node: NodeId, known: &mut Vec<Option<Known>>) -> Option<Size> {
        match known[node] {
            Some(Known::Size(size)) => return size,
            Some(Known::Asked) => return None,
            None => known[node] = Some(Known::Asked),
        }
        let mut largest = Some(Size { whole: 0, rest: 0 });
        for form in self.nodes[node].forms.iter().filter(|form| self.end(form).is_some()) {
            let size = match form {
                Form::Text(lexeme) => lexeme.closing.map(|bytes| Size { whole: bytes, rest: bytes }),
                Form::Node(inner) => self.size(*inner, known),
                Form::Array(array) => self.array(array, known),
                Form::Object(object) => self.object(object, known),
            };
            largest = largest.zip(size).map(|(one, other)| Size {
                whole: one.whole.max(other.whole),
                rest: one.rest.max(other.rest),
            });
        }
        known[node] = Some(Known::Size(largest));
        largest
    }

    fn array(&self, array: &Array, known: &mut Vec<Option<Known>>) -> Option<Size> {
        // Only arrays that may be closed anywhere have a bound.
        if array.least > 0 || !array.first.is_empty() {
            return None;
        }
        if !self.ends(array.rest) {
            return Some(Size { whole: 2, rest: 2 });
        }
        let item = self.size(array.rest, known)?;
        Some(Size { whole: 2, rest: 2 + item.whole.max(item.rest) })
    }

    fn object(&self, object: &Object, known: &mut Vec<Option<Known>>) -> Option<Size> {
        if object.least > 0 || !object.free.is_empty() {
            return None;
        }
        let (mut whole, mut deepest) = (2, 0);
        for named in object.named.iter().filter(|named| self.ends(named.node)) {
            let value = self.size(named.node, known)?;
            // Key, colon and comma.
            whole += quoted(&named.name) + 2 + value.whole;
            deepest = deepest.max(value.rest);
        }
        Some(Size { whole, rest: whole + deepest })
    }
}
