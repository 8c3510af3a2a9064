//! Turns the graph into a grammar for llguidance: lexemes, and rules between them. Only nodes that
//! can be completed get a rule.

use std::collections::HashMap;

use llguidance::api::SkipSpec;
use llguidance::derivre::RegexAst;
use llguidance::earley::lexerspec::{LexemeClass, LexemeIdx, LexerSpec};
use llguidance::earley::{Grammar, SymIdx, SymbolProps};
use serde_json::Value;

use super::digits::either;
use super::graph::{Array, Form, Graph, NodeId, Object, ROOT};
use crate::json_schema::Fault;

/// Maximum number of symbols. llguidance counts them in 16 bits.
const MOST_SYMBOLS: usize = 50_000;

/// The input for a schema's parser.
pub struct Compiled {
    pub grammar: Grammar,
    pub lexer: LexerSpec,
    /// Maximum bytes that close an answer, if a bound is known.
    pub bound: Option<usize>,
    /// Maximum levels of brackets that a closing has to open.
    pub levels: usize,
}

/// Writes the grammar of a graph.
pub fn compile(graph: &Graph) -> Result<Compiled, Fault> {
    let whole = |message: String| Fault::new("#", message);
    let mut writer = Writer::new(graph).map_err(whole)?;
    while let Some((node, symbol)) = writer.todo.pop() {
        let at = |message: String| Fault::new(graph.nodes[node].path.as_str(), message);
        writer.write(node, symbol).map_err(at)?;
        if writer.grammar.num_symbols() > MOST_SYMBOLS {
            return Err(whole(format!("the grammar has more than {MOST_SYMBOLS} symbols")));
        }
    }
    Ok(Compiled {
        grammar: writer.grammar,
        lexer: writer.lexer,
        bound: graph.closing_bound(),
        levels: graph.levels(),
    })
}

struct Writer<'g> {
    graph: &'g Graph,
    grammar: Grammar,
    lexer: LexerSpec,
    class: LexemeClass,
    lexemes: HashMap<LexemeIdx, SymIdx>,
    literals: HashMap<&'static str, SymIdx>,
    /// Symbols of the arrays and objects of nodes.
    nodes: HashMap<NodeId, SymIdx>,
    /// Symbols of nodes as values: their arrays, objects and scalars.
    values: HashMap<NodeId, SymIdx>,
    todo: Vec<(NodeId, SymIdx)>,
    repeated: HashMap<(SymIdx, usize, bool), SymIdx>,
}

type Written<T> = Result<T, String>;

impl<'g> Writer<'g> {
    fn new(graph: &'g Graph) -> Written<Self> {
        let mut lexer = LexerSpec::new().map_err(|error| error.to_string())?;
        // No optional whitespace.
        let class = lexer
            .setup_lexeme_class_with_skip(SkipSpec::once(RegexAst::NoMatch))
            .map_err(|e| e.to_string())?;
        lexer.regex_builder.unicode(true);
        lexer.regex_builder.utf8(true);
        let mut writer = Self {
            graph,
            grammar: Grammar::new(None),
            lexer,
            class,
            lexemes: HashMap::new(),
            literals: HashMap::new(),
            nodes: HashMap::new(),
            values: HashMap::new(),
            todo: Vec::new(),
            repeated: HashMap::new(),
        };
        let start = writer.fresh(true);
        let root = writer.value(ROOT)?;
        writer.rule(start, vec![root])?;
        Ok(writer)
    }

    fn fresh(&mut self, is_start: bool) -> SymIdx {
        let props = SymbolProps { grammar_id: self.class, is_start, ..SymbolProps::default() };
        self.grammar.fresh_symbol_ext(if is_start { "start" } else { "" }, props)
    }

    fn rule(&mut self, left: SymIdx, right: Vec<SymIdx>) -> Written<()> {
        self.grammar.add_rule(left, right).map_err(|error| error.to_string())
    }

    /// A symbol for any of these sequences.
    fn any_of(&mut self, options: Vec<Vec<SymIdx>>) -> Written<SymIdx> {
        if let [one] = options.as_slice()
            && let [symbol] = one.as_slice()
        {
            return Ok(*symbol);
        }
        let symbol = self.fresh(false);
        for option in options {
            self.rule(symbol, option)?;
        }
        Ok(symbol)
    }

    fn lexeme(&mut self, ast: RegexAst) -> Written<SymIdx> {
        let lexeme = self.lexer.add_greedy_lexeme(String::new(), ast, false, None, usize::MAX);
        let lexeme = lexeme.map_err(|error| error.to_string())?;
        if let Some(&symbol) = self.lexemes.get(&lexeme) {
            return Ok(symbol);
        }
        let symbol = self.fresh(false);
        self.grammar.make_terminal(symbol, lexeme, &self.lexer).map_err(|error| error.to_string())?;
        self.lexemes.insert(lexeme, symbol);
        Ok(symbol)
    }

    fn literal(&mut self, text: &'static str) -> Written<SymIdx> {
        if let Some(&symbol) = self.literals.get(text) {
            return Ok(symbol);
        }
        let symbol = self.lexeme(RegexAst::Literal(text.to_owned()))?;
        self.literals.insert(text, symbol);
        Ok(symbol)
    }

    /// The symbol of a value that may stand at a node. The node must be completable.
    fn value(&mut self, node: NodeId) -> Written<SymIdx> {
        if let Some(&known) = self.values.get(&node) {
            return Ok(known);
        }
        // All scalars of a node form one lexeme.
        let (mut texts, mut parted, mut inner) = (Vec::new(), Vec::new(), vec![node]);
        while let Some(at) = inner.pop() {
            let graph = self.graph;
            let forms = graph.nodes[at].forms.iter().filter(|form| graph.end(form).is_some());
            texts.extend(forms.clone().filter_map(|form| match form {
                Form::Text(lexeme) => Some(lexeme.ast.clone()),
                _ => None,
            }));
            if forms.clone().any(|form| matches!(form, Form::Array(_) | Form::Object(_))) {
                parted.push(at);
            }
            inner.extend(forms.rev().filter_map(|form| match form {
                Form::Node(next) => Some(*next),
                _ => None,
            }));
        }
        let mut options = Vec::new();
        if !texts.is_empty() {
            options.push(vec![self.lexeme(either(texts))?]);
        }
        for at in parted {
            options.push(vec![self.parts(at)]);
        }
        let symbol = self.any_of(options)?;
        self.values.insert(node, symbol);
        Ok(symbol)
    }

    /// The symbol of the arrays and objects of a node. Their rules are written later, because they
    /// may be recursive.
    fn parts(&mut self, node: NodeId) -> SymIdx {
        if let Some(&known) = self.nodes.get(&node) {
            return known;
        }
        let symbol = self.fresh(false);
        self.nodes.insert(node, symbol);
        self.todo.push((node, symbol));
        symbol
    }

    fn write(&mut self, node: NodeId, symbol: SymIdx) -> Written<()> {
        let graph = self.graph;
        for form in graph.nodes[node].forms.iter().filter(|form| graph.end(form).is_some()) {
            let right = match form {
                Form::Array(array) => self.array(array)?,
                Form::Object(object) => self.object(object)?,
                Form::Text(_) | Form::Node(_) => None,
            };
            if let Some(right) = right {
                self.rule(symbol, right)?;
            }
        }
        Ok(())
    }

    /// The sequence of an array; `None` if it can't be completed.
    fn array(&mut self, array: &Array) -> Written<Option<Vec<SymIdx>>> {
        let ending = array.first.iter().take_while(|&&node| self.graph.ends(node)).count();
        let mut most = array.most.unwrap_or(usize::MAX);
        if ending < array.first.len() || !self.graph.ends(array.rest) {
            most = most.min(ending);
        }
        if array.least > most {
            return Ok(None);
        }
        let comma = self.literal(",")?;
        let count = ending.min(most);
        // Build from the end: what may follow after this many items.
        let mut following: Vec<SymIdx> = Vec::new();
        if most > count {
            let item = self.value(array.rest)?;
            let next = self.any_of(vec![vec![comma, item]])?;
            let least = array.least.saturating_sub(count);
            let more = most.saturating_sub(count);
            let more = if most == usize::MAX { None } else { Some(more) };
            if count > 0 {
                following = self.repeat(next, least, more)?;
            } else {
                let mut several = vec![item];
                several.extend(self.repeat(next, least.saturating_sub(1), more.map(|more| more - 1))?);
                following = if least > 0 { several } else { vec![self.any_of(vec![vec![], several])?] };
            }
        }
        for index in (0..count).rev() {
            let mut here = if index > 0 { vec![comma] } else { Vec::new() };
            here.push(self.value(array.first[index])?);
            here.extend(following);
            following = if index < array.least { here } else { vec![self.any_of(vec![vec![], here])?] };
        }
        let mut right = vec![self.literal("[")?];
        right.extend(following);
        right.push(self.literal("]")?);
        Ok(Some(right))
    }

    /// The sequence of an object; `None` if it can't be completed.
    fn object(&mut self, object: &Object) -> Written<Option<Vec<SymIdx>>> {
        let most = object.most.unwrap_or(usize::MAX);
        let (comma, colon) = (self.literal(",")?, self.literal(":")?);
        let mut fields = Vec::new();
        for named in &object.named {
            if self.graph.ends(named.node) {
                let key = self.lexeme(RegexAst::Literal(Value::from(named.name.as_str()).to_string()))?;
                fields.push((vec![key, colon, self.value(named.node)?], named.required));
            } else if named.required {
                return Ok(None);
            }
        }
        let mut pairs = Vec::new();
        for free in object.free.iter().filter(|free| self.graph.ends(free.node)) {
            let key = self.lexeme(free.key.clone())?;
            pairs.push(vec![key, colon, self.value(free.node)?]);
        }
        // Count properties only as far as necessary: whether there is one, and up to the limits.
        let limit = object.most.map_or(object.least, |most| most.max(object.least)).max(1);
        let top = limit.min(fields.len() + 1);
        if top.saturating_mul(fields.len()) > MOST_SYMBOLS {
            return Err(format!(
                "minProperties and maxProperties over {} properties are too many to count",
                fields.len()
            ));
        }
        let saturates = object.most.is_none() && top == limit;
        let mut following: Vec<Option<Vec<SymIdx>>> = Vec::new();
        for count in 0..=top {
            following.push(self.free(
                &pairs,
                count,
                object.least.saturating_sub(count),
                most.checked_sub(count),
            )?);
        }
        for (field, required) in fields.into_iter().rev() {
            let mut here = Vec::new();
            for count in 0..=top {
                let next = if saturates { (count + 1).min(top) } else { count + 1 };
                let mut options = Vec::new();
                if !required {
                    options.extend(following[count].clone());
                }
                if next <= most
                    && let Some(Some(rest)) = following.get(next)
                {
                    let mut taken = if count > 0 { vec![comma] } else { Vec::new() };
                    taken.extend(&field);
                    taken.extend(rest);
                    options.push(taken);
                }
                here.push(match options.len() {
                    0 => None,
                    1 => options.pop(),
                    _ => Some(vec![self.any_of(options)?]),
                });
            }
            following = here;
        }
        let Some(inner) = following.swap_remove(0) else { return Ok(None) };
        let mut right = vec![self.literal("{")?];
        right.extend(inner);
        right.push(self.literal("}")?);
        Ok(Some(right))
    }

    /// At least `least` and at most `most` properties whose names aren't listed, after `count`
    /// others.
    fn free(
        &mut self,
        pairs: &[Vec<SymIdx>],
        count: usize,
        least: usize,
        most: Option<usize>,
    ) -> Written<Option<Vec<SymIdx>>> {
        let Some(most) = most else { return Ok(None) };
        // Two of them might have the same name, so at most one can be guaranteed.
        if least > 1 || least > most || (least > 0 && pairs.is_empty()) {
            return Ok(None);
        }
        if pairs.is_empty() || most == 0 {
            return Ok(Some(Vec::new()));
        }
        let comma = self.literal(",")?;
        let pair = self.any_of(pairs.to_vec())?;
        let next = self.any_of(vec![vec![comma, pair]])?;
        let limit = |most: usize| if most > usize::MAX / 2 { None } else { Some(most) };
        if count > 0 {
            return self.repeat(next, least, limit(most)).map(Some);
        }
        let mut several = vec![pair];
        several.extend(self.repeat(next, 0, limit(most).map(|most| most - 1))?);
        Ok(Some(if least > 0 { several } else { vec![self.any_of(vec![vec![], several])?] }))
    }

    /// A sequence of `least` to `most` repetitions of a symbol.
    fn repeat(&mut self, symbol: SymIdx, least: usize, most: Option<usize>) -> Written<Vec<SymIdx>> {
        let mut all = Vec::new();
        if least > 0 {
            all.push(self.exactly(symbol, least)?);
        }
        match most {
            None => {
                let many = self.fresh(false);
                self.rule(many, vec![])?;
                self.rule(many, vec![many, symbol])?;
                all.push(many);
            }
            Some(most) if most > least => all.push(self.at_most(symbol, most - least)?),
            Some(_) => {}
        }
        Ok(all)
    }

    fn exactly(&mut self, symbol: SymIdx, count: usize) -> Written<SymIdx> {
        if count == 1 {
            return Ok(symbol);
        }
        if let Some(&known) = self.repeated.get(&(symbol, count, true)) {
            return Ok(known);
        }
        let half = self.exactly(symbol, count / 2)?;
        let mut right = vec![half, half];
        right.extend((count % 2 == 1).then_some(symbol));
        let all = self.any_of(vec![right])?;
        self.repeated.insert((symbol, count, true), all);
        Ok(all)
    }

    /// Up to `count` repetitions, each number in only one way: groups of eight, and the rest.
    fn at_most(&mut self, symbol: SymIdx, count: usize) -> Written<SymIdx> {
        const GROUP: usize = 8;
        if let Some(&known) = self.repeated.get(&(symbol, count, false)) {
            return Ok(known);
        }
        let all = if count < 2 * GROUP {
            let mut right = vec![symbol];
            if count > 1 {
                right.push(self.at_most(symbol, count - 1)?);
            }
            self.any_of(vec![vec![], right])?
        } else {
            let (groups, rest) = (count / GROUP, count % GROUP);
            let group = self.exactly(symbol, GROUP)?;
            let fewer = vec![self.at_most(group, groups - 1)?, self.at_most(symbol, GROUP - 1)?];
            let mut full = vec![self.exactly(group, groups)?];
            if rest > 0 {
                full.push(self.at_most(symbol, rest)?);
            }
            self.any_of(vec![fewer, full])?
        };
        self.repeated.insert((symbol, count, false), all);
        Ok(all)
    }
}
