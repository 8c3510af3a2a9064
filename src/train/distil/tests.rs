//! A student learns from every kind of teacher, and the same from all of them.

use std::sync::{Arc, Mutex};

use candle_core::Device;
use serde_json::{Value, json};

use super::*;
use crate::device::{DeviceChoice, Precision, Workers};
use crate::model::ops::with_floats;
use crate::model::parameters::Parameter;
use crate::model::{Family, Role, hugging_face};
use crate::train::gradient::accumulate;
use crate::train::objective::StepContext;
use crate::train::recipe::HiddenRecipe;
use crate::train::tests::{model, packed, tokenizer};

/// The outputs of a decoder in the form of a server.
fn server(decoder: Decoder, asked: Arc<Mutex<usize>>) -> Ask {
    Arc::new(move |path: &str, body: &Value| {
        assert_eq!(path, "/completion");
        *asked.lock().unwrap() += 1;
        let ids: Vec<u32> = serde_json::from_value(body["prompt"].clone()).unwrap();
        let count = ids.len();
        let ids = Tensor::from_vec(ids, (1, count), &Device::Cpu).unwrap();
        let layout = crate::model::BatchLayout::whole(1, count);
        let hidden = decoder.forward(&ids, &layout, &mut NoTaps).unwrap();
        let logits = decoder.logits(&hidden.narrow(1, count - 1, 1).unwrap().contiguous().unwrap()).unwrap();
        let logits = logits.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let answer =
            TopTokens::of(TeacherOutput::Logits(&logits), body["n_probs"].as_u64().unwrap() as usize, 1.0);
        let top: Vec<Value> = answer
            .ids
            .iter()
            .zip(&answer.probabilities)
            .map(|(id, p)| json!({"id": id, "logprob": f64::from(*p).ln()}))
            .collect();
        Ok(json!({"completion_probabilities": [{"top_logprobs": top}]}))
    })
}

fn recipe(text: &str) -> DistilRecipe {
    toml::from_str(text).unwrap()
}

/// A teacher for students of 320 entries.
fn of(kind: Kind, text: &str) -> Teacher {
    Teacher { kind, recipe: recipe(text), hidden: None, digest: None, vocabulary: 320 }
}

/// Another decoder of the same shape.
fn teacher() -> Decoder {
    noisy().0
}

fn noisy() -> (Decoder, Parameters) {
    let (decoder, parameters) = model(Family::Qwen3, true, 320);
    for (_, var) in parameters.iter() {
        let noisy = with_floats([var.as_tensor()], "test", |[values]| {
            let moved = |(at, v): (usize, &f32)| v * 1.5 + 0.02 * ((at * 7919 % 101) as f32 / 50.0 - 1.0);
            Tensor::from_vec(
                values.iter().enumerate().map(moved).collect::<Vec<_>>(),
                var.shape(),
                &Device::Cpu,
            )
        });
        var.set(&noisy.unwrap()).unwrap();
    }
    (decoder, parameters)
}

fn learnt(teacher: &Teacher) -> (Terms, Vec<Vec<f32>>) {
    let (decoder, parameters) = model(Family::Qwen3, true, 320);
    let student = Student { decoder: &decoder, adapter: None, effect: None };
    let workers = Workers::new(1).unwrap();
    let rows = packed(2);
    let outcome = accumulate(
        &workers,
        &teacher.objective(student),
        StepContext::default(),
        Some(&parameters),
        &rows[..2],
        96,
    )
    .unwrap();
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    (outcome.terms, outcome.gradients.iter().map(values).collect())
}

fn close(a: &(Terms, Vec<Vec<f32>>), b: &(Terms, Vec<Vec<f32>>), bound: f32) {
    let near = |a: f64, b: f64| (a - b).abs() < f64::from(bound) * b.abs().max(0.1);
    assert!(near(a.0.divergence, b.0.divergence), "{:?} {:?}", a.0, b.0);
    assert!(near(a.0.cross_entropy, b.0.cross_entropy), "{:?} {:?}", a.0, b.0);
    for (a, b) in a.1.iter().zip(&b.1) {
        let size = b.iter().fold(0f32, |most, v| most.max(v.abs()));
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= bound * size.max(1e-4)));
    }
}

#[test]
fn a_served_and_a_stored_teacher_teach_what_one_beside_the_student_does() {
    // All tokens are named, so that the tail is empty.
    let text = "teacher = \"x\"\ntop = 320\nce = 0.3\n";
    let local = of(Kind::Local(teacher().into()), text);
    let expected = learnt(&local);
    assert!(expected.0.divergence > 0.01, "{:?}", expected.0);

    let asked = Arc::new(Mutex::new(0));
    let remote = RemoteTeacher::new("http://x", 320, 320, Some(server(teacher(), asked.clone()))).unwrap();
    let remote = of(Kind::Remote(remote), text);
    close(&learnt(&remote), &expected, 1e-3);
    assert_eq!(*asked.lock().unwrap(), packed(2)[..2].iter().map(|row| row.targets.len()).sum::<usize>());

    let folder = tempfile::tempdir().unwrap();
    let mut writer = LogitWriter::open(folder.path(), Digest([1; 32]), 320, 1.0).unwrap();
    for row in &packed(2)[..2] {
        writer.add(row, local.top_tokens(std::slice::from_ref(row)).unwrap()).unwrap();
        assert!(writer.has(row));
    }
    let documents: usize = packed(2)[..2].iter().map(|row| row.documents.len()).sum();
    assert!(writer.finish().unwrap() <= documents);
    let cache = LogitCache::open(folder.path(), 1.0, 320).unwrap();
    let unknown = cache.top_tokens(&packed(3)[..1]).unwrap_err().to_string();
    assert!(unknown.contains("has nothing about a row"), "{unknown}");
    let cached = of(Kind::Cached(cache), text);
    close(&learnt(&cached), &expected, 1e-5);

    let other = LogitCache::open(folder.path(), 2.0, 320).err().unwrap().to_string();
    assert!(other.contains("temperature 1, distil.temperature is 2"), "{other}");
    // With fewer tokens, the rest is in the tail.
    let head = local.top_tokens(&packed(2)[..1]).unwrap();
    let few = TopTokens::of(
        TeacherOutput::Top { ids: &head[0].ids, probabilities: &head[0].probabilities, tail: head[0].tail },
        3,
        1.0,
    );
    assert_eq!(few, head[0]);
    let logits = [0.0, 3.0, 1.0, 2.0];
    let top = TopTokens::of(TeacherOutput::Logits(&logits), 2, 1.0);
    let sum: f32 = logits.iter().map(|l: &f32| l.exp()).sum();
    assert_eq!(top.ids, [1, 3]);
    assert!((top.tail - (0f32.exp() + 1f32.exp()) / sum).abs() < 1e-6, "{top:?}");
}

#[test]
fn an_answer_without_numbers_is_refused() {
    let ask = |reply: Value| -> Ask { Arc::new(move |_, _| Ok(reply.clone())) };
    for (reply, part) in [
        (json!({}), "no completion_probabilities"),
        (json!({"completion_probabilities": [{"top_logprobs": []}]}), "names no token"),
        (json!({"completion_probabilities": [{"top_logprobs": [{"id": -1, "logprob": 0.0}]}]}), "id is -1"),
        (
            json!({"completion_probabilities": [{"top_logprobs": [{"id": 1, "logprob": null}]}]}),
            "logprob is null",
        ),
        (
            json!({"completion_probabilities": [{"top_logprobs": [{"id": 9, "logprob": -1.0}, {"id": 9, "logprob": -2.0}]}]}),
            "names token 9 twice",
        ),
        (
            json!({"completion_probabilities": [{"top_logprobs": [{"id": 320, "logprob": -1.0}]}]}),
            "names token 320, the student has 320",
        ),
    ] {
        let remote = RemoteTeacher::new("http://x", 4, 320, Some(ask(reply))).unwrap();
        let error = remote.top_tokens(&packed(1)[..1]).unwrap_err().to_string();
        assert!(error.contains("http://x") && error.contains(part), "{error}");
    }
}

#[test]
fn a_served_teacher_that_reads_texts_otherwise_is_refused() {
    let own = tokenizer();
    let remote = |shift: u32| {
        let own = own.clone();
        let ask: Ask = Arc::new(move |path, body| {
            assert_eq!(path, "/tokenize");
            let ids = own.encode(body["content"].as_str().unwrap()).unwrap();
            Ok(json!({"tokens": ids.into_iter().map(|id| id + shift).collect::<Vec<u32>>()}))
        });
        RemoteTeacher::new("http://x", 4, 320, Some(ask)).unwrap()
    };
    remote(0).check_tokens(&own).unwrap();
    let error = remote(1).check_tokens(&own).unwrap_err().to_string();
    assert!(error.contains("http://x") && error.contains("The retry at 14:05"), "{error}");
}

#[test]
fn hidden_states_pull_the_student_towards_the_teacher() {
    let (decoder, mut trained) = model(Family::Qwen3, true, 320);
    let teacher = teacher();
    let pairs = HiddenRecipe { weight: 0.5, layers: vec![[0, 0], [1, 1]] };
    hidden::add_maps(&pairs, decoder.config(), teacher.config(), 1, &mut trained).unwrap();
    let hidden = Hidden::new(&pairs, &teacher, &trained).unwrap();
    let text = "teacher = \"x\"\nkl = 0.0\nce = 1.0\n";
    let teacher = Teacher { hidden: Some(hidden), ..of(Kind::Local(teacher.into()), text) };
    let objective = teacher.objective(Student { decoder: &decoder, adapter: None, effect: None });
    let workers = Workers::new(1).unwrap();
    let rows = packed(2);
    let outcome =
        accumulate(&workers, &objective, StepContext::default(), Some(&trained), &rows[..2], 96).unwrap();
    assert!(outcome.terms.hidden > 1e-3, "{:?}", outcome.terms);
    let expected = outcome.terms.cross_entropy + 0.5 * outcome.terms.hidden;
    assert!((outcome.loss - expected).abs() < 1e-5, "{} {expected}", outcome.loss);
    // Along the gradient, the whole loss rises at a rate of its length, for maps and model alike.
    for (at, (name, var)) in trained.iter().enumerate() {
        if !name.contains("map") && !name.contains("layers.1.mlp.up") && !name.contains("q_proj") {
            continue;
        }
        let gradient = &outcome.gradients[at];
        let length = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let original = var.as_tensor().copy().unwrap();
        let loss = |sign: f64| {
            let step = (gradient * (sign * 3e-3 / f64::from(length))).unwrap();
            var.set(&(&original + step).unwrap()).unwrap();
            accumulate(&workers, &objective, StepContext::default(), None, &rows[..2], 96).unwrap().loss
        };
        let slope = ((loss(1.0) - loss(-1.0)) / 6e-3) as f32;
        var.set(&original).unwrap();
        assert!((slope - length).abs() < 0.03 * length + 1e-4, "{name}: slope {slope}, gradient {length}");
    }
    let none = HiddenRecipe { weight: 1.0, layers: vec![[0, 9]] };
    let error =
        hidden::add_maps(&none, decoder.config(), decoder.config(), 1, &mut trained).unwrap_err().to_string();
    assert!(error.contains("block 9 of the teacher, which has 2"), "{error}");
}

#[test]
fn a_teacher_with_other_tokens_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (decoder, parameters) = model(Family::Qwen3, true, 320);
    let text = crate::model::TextSide::of_post(&tokenizer()).unwrap();
    let written = crate::model::Model { config: decoder.config().clone(), parameters, text };
    hugging_face::save(folder.path(), &written).unwrap();
    let own = Chat::of_post(tokenizer());
    let compute = ComputeDevice::new(DeviceChoice::Cpu, Precision::Auto).unwrap();
    open_local(folder.path(), &own, &compute).unwrap();
    let other = crate::train::vocabulary::train(
        (0..50).map(|i| {
            vec![crate::text::tokenizer::Message { role: "user".into(), content: format!("zz{i} yy{i}") }]
        }),
        310,
    );
    let error = open_local(folder.path(), &Chat::of_post(other.unwrap()), &compute).unwrap_err().to_string();
    let said =
        format!("a teacher needs the student's tokenizer: it has {} entries", tokenizer().vocab_size());
    assert!(error.contains(&said), "{error}");
}

#[test]
fn vectors_of_a_teacher_keep_their_digits_in_bf16() {
    let folder = tempfile::tempdir().unwrap();
    let saved = crate::train::frozen_tests::base(folder.path());
    let compute = ComputeDevice::new(DeviceChoice::Cpu, Precision::Bf16).unwrap();
    let (opened, _) = open_local(&folder.path().join("base"), &Chat::of_post(tokenizer()), &compute).unwrap();
    let row = packed(1).remove(0);
    let inputs = Inputs::new(std::slice::from_ref(&row), &Device::Cpu).unwrap();
    let hidden = |decoder: &Decoder| {
        let hidden = decoder.forward(&inputs.ids, &inputs.layout, &mut NoTaps).unwrap();
        hidden.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let of = |kept: &Parameters| {
        hidden(&Decoder::frozen(saved.config.clone(), kept).unwrap().computing_in(DType::BF16))
    };
    assert_eq!(hidden(&opened), of(&saved.parameters.to_frozen(&Device::Cpu, DType::BF16).unwrap()));
    // That rounded norms are others is what the test rests on.
    assert_ne!(hidden(&opened), of(&saved.parameters.to(&Device::Cpu, DType::BF16).unwrap()));
}

/// Rows of an embedding that is padded for GPUs stand for no token and are ignored.
#[test]
fn a_padded_teacher_teaches_what_it_does_without_padding() {
    let (decoder, parameters) = noisy();
    let mut padded = Parameters::default();
    for Parameter { name, role, var } in parameters.entries() {
        let tensor = match role {
            Some(Role::Embedding) => {
                let rows = Tensor::full(0.7f32, (8, var.dims()[1]), &Device::Cpu).unwrap();
                Tensor::cat(&[var.as_tensor(), &rows], 0).unwrap()
            }
            _ => var.as_detached_tensor(),
        };
        padded.insert(name.clone(), *role, candle_core::Var::from_tensor(&tensor).unwrap()).unwrap();
    }
    let config = crate::model::DecoderConfig { vocab_size: 328, ..decoder.config().clone() };
    let text = crate::model::TextSide::of_post(&tokenizer()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    hugging_face::save(folder.path(), &crate::model::Model { config, parameters: padded, text }).unwrap();
    let compute = ComputeDevice::new(DeviceChoice::Cpu, Precision::Auto).unwrap();
    let (opened, _) = open_local(folder.path(), &Chat::of_post(tokenizer()), &compute).unwrap();
    assert_eq!(opened.config().vocab_size, 328);
    let learnt_from = |decoder: Decoder| learnt(&of(Kind::Local(decoder.into()), "teacher = \"x\"\n"));
    close(&learnt_from(opened), &learnt_from(decoder), 1e-5);
}
