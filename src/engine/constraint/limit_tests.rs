//! Tests of what constraints may take: stack, lexers and memory.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::grammars::MOST_GRAMMARS;
use super::tests::{answer_to, begin, grammars, words};
use super::*;
use crate::engine::{Constraint, EngineError};

/// Runs on a thread with a stack like the engine's.
fn on_the_engines_stack<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, run);
        thread.unwrap().join().unwrap()
    })
}

/// A stack overflow would end the whole process instead of causing a refusal.
#[test]
fn the_longest_chains_that_are_taken_fit_the_stack_and_longer_ones_are_refused() {
    let chain = |length: usize| Constraint::JsonSchema(size::tests::chain(length));
    let rules = |length: usize, last: &str| {
        let rules: Vec<_> = (0..length).map(|index| format!("r{index} ::= \"a\" r{}\n", index + 1)).collect();
        let rules = rules.concat();
        Constraint::Gbnf(format!("root ::= r0\n{rules}r{length} ::= {last}\n"))
    };
    let lark = |length: usize, nested: usize| {
        let rules: Vec<_> = (0..length).map(|index| format!("r{index}: \"a\" r{}\n", index + 1)).collect();
        let rules = rules.concat();
        let (open, close) = ("(".repeat(nested), ")".repeat(nested));
        Constraint::Lark(format!("start: r0\n{rules}r{length}: {open}\"b\"{close}\n"))
    };
    // Also nested within each rule, as deeply as the size limit of a grammar allows.
    let nested: Vec<_> = (0..1_900)
        .map(|index| format!("r{index}::={}r{}{}\n", "(".repeat(9), index + 1, ")".repeat(9)))
        .collect();
    let nested = nested.concat();
    let nested = Constraint::Gbnf(format!("root::=r0\n{nested}r1900::=\"b\"\n"));
    let taken = [chain(1_000), nested, rules(2_000, "\"b\""), rules(2_000, "\"b\" root?"), lark(2_000, 1)];
    let refused = [chain(4_000), rules(4_000, "\"b\""), lark(4_000, 1), lark(1, 4_000), lark(1, 8_000)];
    on_the_engines_stack(move || {
        let words = words();
        let grammars = grammars(&words);
        for constraint in taken {
            assert!(begin(&grammars, &constraint).is_ok());
        }
        for constraint in refused {
            let error = begin(&grammars, &constraint).unwrap_err();
            assert!(matches!(error, EngineError::Schema(_) | EngineError::Grammar(_)), "{error}");
        }
    });
}

#[test]
fn a_lexer_that_earlier_answers_have_filled_fails_nobody() {
    let words = words();
    let env = words.token_env();
    // The state includes everything after the last `a` but eight: there are hundreds of states, and
    // each answer visits some of them.
    let constraint = Constraint::Regex("(a|b)*a(a|b){8}c".to_owned());
    let grammars = Grammars::with_states(&env, 260).unwrap();
    let mut most = 0;
    for seed in 0..60 {
        assert!(answer_to(&grammars, &words, &constraint, 40, seed).is_ok());
        let cache = grammars.cache();
        let kept = cache.grammars.values().next().map(|kept| kept.grammar.as_ref().unwrap());
        most = most.max(kept.unwrap().parser.parser.lexer_stats().num_states);
    }
    assert!(most > 130, "only {most} states were ever used");
    // Sessions that share a lexer, so that one finds it full in the middle of its answer.
    let mut sessions: Vec<Session> = (0..12).map(|_| begin(&grammars, &constraint).unwrap()).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..40 {
        for session in &mut sessions {
            let mask = session.mask().unwrap();
            let letter = if rng.random_bool(0.5) { b'a' } else { b'b' };
            assert!(mask.is_allowed(u32::from(letter)));
            session.accept(u32::from(letter)).unwrap();
        }
    }
}

#[test]
fn grammars_that_take_much_memory_make_room_for_each_other() {
    let words = words();
    let grammars = grammars(&words);
    for index in 0..MOST_GRAMMARS + 8 {
        begin(&grammars, &Constraint::Regex(format!("a{{{},{}}}", index + 1, index + 2))).unwrap();
    }
    assert_eq!(grammars.cache().grammars.len(), MOST_GRAMMARS);
    grammars.cache().limit = 1;
    begin(&grammars, &Constraint::Regex("b".to_owned())).unwrap();
    assert_eq!(grammars.cache().grammars.len(), 1, "none but the one that is used now");
}
