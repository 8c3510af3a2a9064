//! Follows a JSON answer and detects when an item repeats an earlier one of its list.

use std::collections::HashSet;
use std::sync::Arc;

use super::identity::Rule;
use super::unique::{Judges, Shapes};
use crate::engine::Guard;
use crate::engine::constraint::json_cursor::{Place, Scanner};

/// The lists whose items have to differ.
#[derive(Debug, Default)]
pub struct Rules {
    /// Lists by the schema: with equal items, an answer would be invalid.
    pub shapes: Option<Arc<Shapes>>,
    /// Lists by the request's guard: with equal items, an answer would only be poor.
    pub guard: Option<Guard>,
}

/// An item that repeats an earlier one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repeat {
    /// JSON pointer of the list.
    pub path: String,
    /// The comma before the item.
    pub mark: Mark,
    /// Whether the answer would be invalid with the item.
    pub invalid: bool,
}

/// The comma at which an item begins that is not the first of its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Index of the token that contains the comma.
    pub token: usize,
    /// Bytes of the token before the comma. They belong to the item before.
    pub before: usize,
}

/// Follows an answer.
#[derive(Debug, Clone)]
pub struct Watch {
    rules: Arc<Rules>,
    scanner: Scanner,
    frames: Vec<Frame>,
    /// Text of the outermost item that is watched, or of a key.
    text: Vec<u8>,
    /// Start of the current key in `text`.
    key: Option<usize>,
    /// The first repeat.
    found: Option<Repeat>,
    /// Bytes of values, not counting brackets, quotation marks and keys.
    said: usize,
}

/// An open list or object.
#[derive(Debug, Clone)]
struct Frame {
    is_list: bool,
    /// Name or index of the current or last value.
    name: String,
    index: usize,
    /// Whether a string that begins now is a key.
    names: bool,
    judges: Judges,
    distinct: Option<Distinct>,
}

/// A list whose items have to differ.
#[derive(Debug, Clone)]
struct Distinct {
    rule: Rule,
    invalid: bool,
    /// Keys of the items so far. Shared between copies until one of them adds a key.
    seen: Arc<HashSet<String>>,
    mark: Option<Mark>,
    /// Start in `text` of the current item, while its key isn't known.
    item: Option<usize>,
    /// Whether the last item that began is known to be new.
    is_new: bool,
}

impl Watch {
    /// The state at the beginning of an answer.
    pub fn new(rules: Arc<Rules>) -> Self {
        Self { rules, scanner: Scanner::START, frames: vec![], text: vec![], key: None, found: None, said: 0 }
    }

    /// The state at the beginning of the same answer.
    pub fn anew(&self) -> Self {
        Self::new(Arc::clone(&self.rules))
    }

    /// Whether answers with equal items would be invalid.
    pub fn is_strict(&self) -> bool {
        self.rules.shapes.is_some()
    }

    /// Advances by a token.
    pub fn push_all(&mut self, token: usize, bytes: &[u8]) {
        for (before, &byte) in bytes.iter().enumerate() {
            self.push(Mark { token, before }, byte);
        }
    }

    /// The first item that repeats another.
    pub fn found(&self) -> Option<&Repeat> {
        self.found.as_ref()
    }

    /// Whether the current position is inside an item that has to differ from others and isn't
    /// known to be new.
    pub fn is_within(&self) -> bool {
        self.frames.iter().any(|frame| frame.distinct.as_ref().is_some_and(|list| !list.is_new))
    }

    /// Bytes of values so far, not counting brackets, quotation marks and keys.
    pub fn said(&self) -> usize {
        self.said
    }

    /// Where items begin that may turn out to be repeats, outermost first.
    pub fn marks(&self) -> impl Iterator<Item = Mark> {
        let open = self.frames.iter().filter_map(|frame| frame.distinct.as_ref());
        open.filter(|list| !list.is_new).filter_map(|list| list.mark)
    }

    /// JSON pointer of the current value.
    pub fn path(&self) -> String {
        path(&self.frames)
    }

    fn push(&mut self, mark: Mark, byte: u8) {
        let before = self.scanner.place();
        self.scanner.push(byte);
        let after = self.scanner.place();
        if before == Place::Number && after != Place::Number {
            self.end();
        }
        let between = matches!(before, Place::Between | Place::Number);
        if between && self.key.is_none() && !self.reads() {
            self.text.clear();
        }
        let at = self.text.len();
        self.text.push(byte);
        let quote = before == Place::String && after == Place::Between;
        let value = matches!(after, Place::Number | Place::Literal(_)) || (!between && !quote);
        self.said += usize::from(value && self.key.is_none());
        match (before, after) {
            _ if !between => {
                if after == Place::Between {
                    self.text_ends();
                }
            }
            (Place::Number, Place::Number) => {}
            (_, Place::String) if self.frames.last().is_some_and(|frame| frame.names) => {
                self.key = Some(at);
            }
            (_, Place::String | Place::Number | Place::Literal(_)) => self.begin(at),
            _ => self.bracket(mark, at, byte),
        }
    }

    /// Handles a bracket, comma or colon.
    fn bracket(&mut self, mark: Mark, at: usize, byte: u8) {
        match byte {
            b'{' | b'[' => {
                self.begin(at);
                let frame = self.frame(byte == b'[');
                self.frames.push(frame);
            }
            b'}' | b']' => {
                self.frames.pop();
                self.end();
            }
            b',' => {
                self.member_ends(at);
                let Some(frame) = self.frames.last_mut() else { return };
                frame.index += 1;
                frame.names = !frame.is_list;
                if let Some(list) = &mut frame.distinct {
                    (list.mark, list.is_new) = (Some(mark), false);
                }
            }
            b':' => {
                if let Some(frame) = self.frames.last_mut() {
                    frame.names = false;
                }
            }
            _ => {}
        }
    }

    /// Whether the text of an item is needed.
    fn reads(&self) -> bool {
        self.frames.iter().any(|frame| frame.distinct.as_ref().is_some_and(|list| list.item.is_some()))
    }

    fn frame(&self, is_list: bool) -> Frame {
        let judges = match (&self.rules.shapes, self.frames.last()) {
            (None, _) => Judges::new(),
            (Some(shapes), None) => shapes.root(),
            (Some(shapes), Some(parent)) if parent.is_list => shapes.of_item(&parent.judges, parent.index),
            (Some(shapes), Some(parent)) => shapes.of_member(&parent.judges, &parent.name),
        };
        let distinct = if is_list { self.distinct(&judges) } else { None };
        Frame { is_list, name: String::new(), index: 0, names: !is_list, judges, distinct }
    }

    fn distinct(&self, judges: &Judges) -> Option<Distinct> {
        let invalid = self.rules.shapes.as_ref().is_some_and(|shapes| shapes.is_unique(judges));
        let path = path(&self.frames);
        let lists = self.rules.guard.iter().flat_map(|guard| &guard.distinct);
        let named = lists.into_iter().find(|list| list.path == path);
        let rule = match named {
            // Items with different names are different, whatever else they contain.
            Some(list) => Rule::Named(list.members.clone()),
            None if invalid => Rule::Equal,
            None => return None,
        };
        Some(Distinct { rule, invalid, seen: Arc::default(), mark: None, item: None, is_new: true })
    }

    fn begin(&mut self, at: usize) {
        if let Some(list) = self.frames.last_mut().and_then(|frame| frame.distinct.as_mut()) {
            (list.item, list.is_new) = (Some(at), false);
        }
    }

    /// Handles the end of a string or a literal.
    fn text_ends(&mut self) {
        let Some(from) = self.key.take() else { return self.end() };
        let name = serde_json::from_slice(&self.text[from..]).unwrap_or_default();
        if let Some(frame) = self.frames.last_mut() {
            frame.name = name;
        }
    }

    /// Handles the end of a value.
    fn end(&mut self) {
        let at = self.frames.len().wrapping_sub(1);
        self.judge(at, Rule::of_whole, self.text.len());
    }

    /// Handles the end of a member of an object, which may be the last that an item's name needs.
    fn member_ends(&mut self, end: usize) {
        let is_object = self.frames.last().is_some_and(|frame| !frame.is_list);
        if is_object && self.frames.len() > 1 {
            self.judge(self.frames.len() - 2, Rule::of_part, end);
        }
    }

    fn judge(&mut self, at: usize, name: impl Fn(&Rule, &str) -> Option<String>, end: usize) {
        let Some(list) = self.frames.get_mut(at).and_then(|frame| frame.distinct.as_mut()) else { return };
        let Some(from) = list.item else { return };
        let item = String::from_utf8_lossy(&self.text[from..end]);
        let Some(name) = name(&list.rule, &item) else { return };
        list.item = None;
        if Arc::make_mut(&mut list.seen).insert(name) {
            list.is_new = true;
        } else if let (None, Some(mark)) = (&self.found, list.mark) {
            let invalid = list.invalid;
            self.found = Some(Repeat { path: path(&self.frames[..at]), mark, invalid });
        }
    }
}

/// JSON pointer of the last value of the innermost frame.
fn path(frames: &[Frame]) -> String {
    let part = |frame: &Frame| {
        let name = if frame.is_list { frame.index.to_string() } else { frame.name.clone() };
        format!("/{}", name.replace('~', "~0").replace('/', "~1"))
    };
    frames.iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::DistinctList;
    use serde_json::json;

    fn guard() -> Rules {
        let list = |path: &str, members: &[&str]| DistinctList {
            path: path.to_owned(),
            members: members.iter().map(ToString::to_string).collect(),
        };
        let distinct = vec![list("/concepts", &[]), list("/s/entities", &["name"]), list("/a", &["v", "o"])];
        Rules { shapes: None, guard: Some(Guard { distinct, longest: None }) }
    }

    /// Where a repeat is first found: the list, and the bytes that were read.
    fn found(rules: Rules, text: &str) -> Option<(String, String)> {
        let mut watch = Watch::new(Arc::new(rules));
        for (index, byte) in text.bytes().enumerate() {
            watch.push_all(index, &[byte]);
            if let Some(repeat) = watch.found() {
                assert_eq!(text.as_bytes()[repeat.mark.token], b',');
                return Some((repeat.path.clone(), text[..=index].to_owned()));
            }
        }
        None
    }

    #[test]
    fn items_are_the_same_by_their_names() {
        let at = |path: &str, read: &str| Some((path.to_owned(), read.to_owned()));
        assert_eq!(
            found(guard(), r#"{"concepts":["a","b"," A","c"]}"#),
            at("/concepts", r#"{"concepts":["a","b"," A""#)
        );
        assert_eq!(
            found(guard(), r#"{"concepts":["a","b","ab"],"x":["a","a"],"y":{"concepts":[1,1]}}"#),
            None
        );
        // A name is known before its item ends.
        assert_eq!(
            found(
                guard(),
                r#"{"s":{"entities":[{"name":"x","t":[1,"}"]},{"name":"y"},{"name":"X","t":1}]}}"#
            ),
            at("/s/entities", r#"{"s":{"entities":[{"name":"x","t":[1,"}"]},{"name":"y"},{"name":"X","#)
        );
        assert_eq!(found(guard(), r#"{"a":[{"v":"x","o":"y"},{"v":"x","o":"z"},{"v":"y","o":"x"}]}"#), None);
        assert_eq!(
            found(guard(), r#"{"a":[{"v":"x","o":"y"},{"d":1,"o":"Y","v":"x"}]}"#),
            at("/a", r#"{"a":[{"v":"x","o":"y"},{"d":1,"o":"Y","v":"x"}"#)
        );
    }

    #[test]
    fn unique_items_are_judged_at_every_depth() {
        let strict = |schema: serde_json::Value| Rules {
            shapes: Some(Arc::new(Shapes::of(&schema).unwrap())),
            guard: None,
        };
        let list = || strict(json!({"type": "array", "uniqueItems": true}));
        for (text, read) in [
            ("[1,2,1.0,3]", Some("[1,2,1.0,")),
            ("[1,2,10]", None),
            (r#"["a",{"b":1,"c":2},{"c":2,"b":1}]"#, Some(r#"["a",{"b":1,"c":2},{"c":2,"b":1}"#)),
            ("[true,null,false,true]", Some("[true,null,false,true")),
            (r#"[["a","a"],["a"],["a","a"]]"#, Some(r#"[["a","a"],["a"],["a","a"]"#)),
            (r#"["\"a,","a"]"#, None),
            ("[[],[]]", Some("[[],[]")),
        ] {
            assert_eq!(found(list(), text), read.map(|read| (String::new(), read.to_owned())), "{text}");
        }
        let nested = strict(json!({"items": {"properties": {"l": {"type": "array", "uniqueItems": true}}}}));
        let text = r#"[{"k":[1,1],"l":[1,2]},{"l":[2,1,2]}]"#;
        assert_eq!(
            found(nested, text).unwrap(),
            ("/1/l".to_owned(), r#"[{"k":[1,1],"l":[1,2]},{"l":[2,1,2]"#.to_owned())
        );
    }

    #[test]
    fn what_may_be_taken_back_is_known() {
        let mut watch = Watch::new(Arc::new(guard()));
        let mut marks = |token, text: &str| {
            watch.push_all(token, text.as_bytes());
            watch.marks().map(|mark| (mark.token, mark.before)).collect::<Vec<_>>()
        };
        assert_eq!(marks(0, r#"{"concepts":["a"#), []);
        assert_eq!(marks(1, r#"","b"#), [(1, 1)]);
        assert_eq!(marks(2, "c"), [(1, 1)]);
        assert_eq!(marks(3, "\""), []);
        assert_eq!(marks(4, ","), [(4, 0)]);
        assert_eq!(marks(5, r#""d"],"x"#), []);
    }
}
