//! Tests of embeddings with the real engine: computed in small parts between other work, they equal
//! those computed in one batch.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use bespoke::engine::{Embeddings, Engine, EngineError, LlamaEngine, Prompt, Query, Reply, Segment};
use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams, LlamaPoolingType};
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;

use crate::engine::{CONTEXT, ask, request, serve};

fn inputs(texts: &[String]) -> Vec<Prompt> {
    texts.iter().map(|text| vec![Segment::plain(text)]).collect()
}

fn embed(engine: &LlamaEngine, texts: &[String]) -> Result<Embeddings, EngineError> {
    engine.embed(inputs(texts)).unwrap().blocking_recv().unwrap()
}

/// llama.cpp's own mean of a text in one batch. With `exact`, keys and values are f32 instead of
/// f16, and flash attention, which also rounds, is off.
fn in_one_piece(model: &LlamaModel, ids: &[u32], exact: bool) -> Vec<f32> {
    let mut params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(CONTEXT))
        .with_n_batch(CONTEXT)
        .with_n_ubatch(CONTEXT)
        .with_n_threads(1)
        .with_n_threads_batch(1)
        .with_embeddings(true)
        .with_pooling_type(LlamaPoolingType::Mean);
    if exact {
        params = params
            .with_type_k(KvCacheType::F32)
            .with_type_v(KvCacheType::F32)
            .with_flash_attention_policy(llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED);
    }
    let mut context = model.new_context(bespoke::engine::backend::backend(), params).unwrap();
    let mut batch = LlamaBatch::new(ids.len(), 1);
    for (position, &id) in (0..).zip(ids) {
        batch.add(LlamaToken(id.cast_signed()), position, &[0], true).unwrap();
    }
    context.decode(&mut batch).unwrap();
    let mean = context.embeddings_seq_ith(0).unwrap();
    let norm = mean.iter().map(|x| x * x).sum::<f32>().sqrt();
    mean.iter().map(|x| x / norm).collect()
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_text_read_in_parts_has_the_vector_that_it_has_in_one_piece() {
    let served = serve(|_| {});
    let backend = bespoke::engine::backend::backend();
    let model = LlamaModel::load_from_file(backend, served.path(), &LlamaModelParams::default()).unwrap();
    let mut longest = 0;
    for text in ["short", "the build failed", &"seventeen tests passed, one did not. ".repeat(5)] {
        let text = text.to_owned();
        let query = Query::Tokenize { prompt: vec![Segment::plain(&text)], whole: true };
        let Reply::Tokens(ids) = served.engine.query(query).unwrap().blocking_recv().unwrap().unwrap() else {
            panic!("no tokens")
        };
        longest = longest.max(ids.len());
        let found = embed(&served.engine, &[text]).unwrap().vectors.remove(0);
        let (whole, exact) = (in_one_piece(&model, &ids, false), in_one_piece(&model, &ids, true));
        // Attention in f16 rounds differently in one batch and in several. The parts must not be
        // much further from the exact result.
        let (rounded, parted) = (apart(&whole, &exact), apart(&found, &exact));
        assert!(
            parted < 2.0 * rounded + 1e-5,
            "{parted} apart, in one piece {rounded}: {} tokens",
            ids.len()
        );
        assert!(ids.len() > 32 || apart(&found, &whole) < 1e-6, "one part is one piece");
    }
    assert!(longest > 64, "{longest} tokens are few parts");
}

#[test]
fn many_texts_let_others_through_and_end_when_nobody_waits_for_them() {
    let served = serve(|settings| settings.queue = 8);
    let engine = &served.engine;
    let texts = vec!["one of very many texts that are to be embedded at once ".repeat(2); 2_048];
    let began = Instant::now();
    let mut many = engine.embed(inputs(&texts)).unwrap();
    let few = engine.embed(inputs(&texts[..1])).unwrap();
    assert!(ask(engine, request("hello")).is_ok());
    assert_eq!(few.blocking_recv().unwrap().unwrap().vectors.len(), 1);
    assert!(many.try_recv().is_err(), "the others were not let through: {:?}", began.elapsed());
    let beats = engine.health().borrow().beat;
    std::thread::sleep(Duration::from_millis(300));
    assert!(many.try_recv().is_err(), "too fast to see anything: {:?}", began.elapsed());
    assert!(engine.health().borrow().beat > beats, "no sign of life beside it");
    drop(many);
    // The next request has the embedder to itself.
    let began = Instant::now();
    assert!(embed(engine, &texts[..1]).is_ok());
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[test]
fn texts_have_a_limit_together_too() {
    let served = serve(|_| {});
    let texts = vec!["many words make many tokens ".repeat(6); 2_048];
    let tokens = embed(&served.engine, &texts[..1]).unwrap().prompt_tokens;
    assert!(u64::from(tokens) * 2_048 > 300_000, "{tokens} tokens in one text are too few for this test");
    let error = embed(&served.engine, &texts).unwrap_err();
    assert_eq!(error, EngineError::TooMuchInput { limit: 300_000 });
}
