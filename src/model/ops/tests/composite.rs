//! The composite forms against the fused ones, in f32 on the CPU, where both can run.

use super::super::distillation::{TeacherOutput, TeacherSource, Weights, distillation};
use super::super::{composite, decay, delta_rule, short_convolution};
use super::*;
use crate::model::features::DeltaNetShape;

fn document(row: usize, start: usize, len: usize) -> Document {
    Document { row, start, len }
}

/// Documents longer and shorter than a chunk or a block, of one token, at the very end; padding
/// between and after documents.
fn layout() -> BatchLayout {
    let documents = vec![
        document(0, 0, 150),
        document(1, 0, 1),
        document(1, 1, 64),
        document(1, 70, 10),
        document(1, 80, 60),
        document(2, 3, 125),
        document(2, 128, 22),
    ];
    BatchLayout::packed(3, 150, documents).unwrap()
}

#[test]
fn norms_and_rotary_positions_match() {
    let (x, w) = (values(&[3, 50, 36], 1), values(&[36], 2));
    compare("rms norm", &[&x, &w], || rms_norm(&x, &w, 1e-6), || composite::rms_norm(&x, &w, 1e-6));
    let (x, w) = (values(&[2, 70, 3, 16], 1), values(&[16], 2));
    let positions: Arc<[u32]> = (0..140).map(|i| i % 41).collect();
    for rotary_dim in [16, 4] {
        let table = Arc::new(RotaryTable::new(41, rotary_dim, 10_000.0, None));
        for (operands, norm) in [(vec![&x], None), (vec![&x, &w], Some((w.as_tensor(), 1e-6)))] {
            compare(
                &format!("{rotary_dim} rotated, {} operands", operands.len()),
                &operands,
                || rotary(&x, norm, &table, &positions),
                || composite::rotary(&x, norm, &table, &positions),
            );
        }
    }
}

#[test]
fn gated_products_and_what_adapters_add_match() {
    let (gate, up) = (values(&[4, 33], 1), values(&[4, 33], 2));
    let wide = || &*gate * 8.0;
    let both = [&gate, &up];
    compare("swiglu", &both, || swiglu(&wide()?, &up), || composite::swiglu(&wide()?, &up));
    compare("geglu", &both, || geglu(&wide()?, &up), || composite::geglu(&wide()?, &up));
    compare("sigmoid gate", &both, || sigmoid_gate(&wide()?, &up), || composite::sigmoid_gate(&wide()?, &up));
    compare("silu", &[&gate], || silu(&wide()?), || composite::silu(&wide()?));

    let (y, inner, b) = (values(&[2, 5, 12], 1), values(&[2, 5, 3], 2), values(&[12, 3], 3));
    let fused = || low_rank(&y, &inner, &b, 1.5);
    compare("low rank", &[&y, &inner, &b], fused, || composite::low_rank(&y, &inner, &b, 1.5));
    let (update, bias) = (values(&[2, 5, 12], 5), values(&[1], 6));
    let fused = || gated_update(&y, &update, &bias, 0.25);
    compare("gated update", &[&y, &update, &bias], fused, || {
        composite::gated_update(&y, &update, &bias, 0.25)
    });
}

#[test]
fn attention_matches_in_blocks_of_any_size() {
    let (heads, kv_heads, width) = (4, 2, 8);
    let q = values(&[3, 150, heads, width], 1);
    let (k, v) = (values(&[3, 150, kv_heads, width], 2), values(&[3, 150, kv_heads, width], 3));
    let layout = layout();
    let usual = Scoring::of_width(width);
    let cases = [
        usual,
        Scoring { window: Some(70), ..usual },
        Scoring { window: Some(2), ..usual },
        Scoring { cap: Some(1.5), ..usual },
        Scoring { scale: 0.2, cap: Some(0.5), window: Some(64) },
    ];
    for scoring in cases {
        for queries in [64, 50, 150] {
            compare(
                &format!("{queries} queries at a time, {scoring:?}"),
                &[&q, &k, &v],
                || attention(&(&*q * 4.0)?, &k, &v, scoring, &layout),
                || {
                    let blocks = composite::Blocks::new(scoring, &layout, kv_heads, queries);
                    composite::attention_in(&(&*q * 4.0)?, &k, &v, blocks)
                },
            );
        }
    }
}

#[test]
fn the_parts_of_a_delta_net_match() {
    let (time, rate, bias) = (values(&[2, 9, 3], 1), values(&[3], 2), values(&[3], 3));
    let wide = || &*time * 30.0;
    let operands = [&time, &rate, &bias];
    let fused = || decay(&wide()?, &rate, &bias);
    compare("decay", &operands, fused, || composite::decay(&wide()?, &rate, &bias));
    let layout = layout();
    for kernel in [1, 4] {
        let (x, w) = (values(&[3, 150, 10], 1), values(&[10, 1, kernel], 2));
        compare(
            &format!("kernel {kernel}"),
            &[&x, &w],
            || short_convolution(&x, &w, &layout),
            || composite::short_convolution(&x, &w, &layout),
        );
    }
    for (key_heads, value_heads, key_dim, value_dim) in [(1, 1, 4, 4), (2, 4, 6, 3), (2, 2, 3, 8)] {
        let shape = DeltaNetShape { key_heads, value_heads, key_dim, value_dim, kernel: 4 };
        let mixed = values(&[3, 150, shape.channels()], 1);
        let (g, b) = (values(&[3, 150, value_heads], 2), values(&[3, 150, value_heads], 3));
        // Decays from almost none to complete.
        let decays = || (&*g - 1.0)?.sqr()?.neg();
        let strengths = || (&*b + 1.0)? / 2.0;
        compare(
            &format!("{shape:?}"),
            &[&mixed, &g, &b],
            || delta_rule(&mixed, &decays()?, &strengths()?, shape, &layout),
            || composite::delta_rule(&mixed, &decays()?, &strengths()?, shape, &layout),
        );
    }
}

#[test]
fn keys_that_repeat_lose_no_digits() {
    // No decay, and every token writes under the same key: the triangle is all ones, and its
    // powers are huge.
    let shape = DeltaNetShape { key_heads: 1, value_heads: 1, key_dim: 4, value_dim: 4, kernel: 4 };
    let layout = BatchLayout::whole(1, 128);
    let same = values(&[1, 1, 8], 1).broadcast_as((1, 128, 8)).unwrap().contiguous().unwrap();
    let v = values(&[1, 128, 4], 2);
    let (none, all) =
        (Tensor::zeros((1, 128, 1), DType::F32, &Device::Cpu).unwrap(), values(&[1, 128, 1], 3));
    let strengths = || all.ones_like();
    let mixed = || Tensor::cat(&[&same, v.as_tensor()], 2);
    compare(
        "one key",
        &[&v],
        || delta_rule(&mixed()?, &none, &strengths()?, shape, &layout),
        || composite::delta_rule(&mixed()?, &none, &strengths()?, shape, &layout),
    );
}

#[test]
fn cross_entropy_matches_in_chunks_of_any_size() {
    let (rows, vocab, width) = (100, 37, 16);
    let (x, w) = (values(&[rows, width], 1), values(&[vocab, width], 2));
    let targets: Vec<u32> = (0..rows as u32).map(|i| (i * 5) % vocab as u32).collect();
    for cap in [None, Some(2.0)] {
        let wide = || &*x * 8.0;
        let fused = || linear_cross_entropy(&wide()?, &w, targets.clone(), 0.01, cap, true);
        for at_once in [33, 100, 500] {
            let composite = || composite::cross_entropy(&wide()?, &w, &targets, 0.01, cap, (at_once, true));
            compare(
                &format!("{at_once} rows at a time, cap {cap:?}"),
                &[&x, &w],
                || Ok(fused()?.loss),
                || Ok(composite()?.loss),
            );
            assert_eq!(fused().unwrap().hits, composite().unwrap().hits);
        }
    }
    let without = composite::cross_entropy(&x, &w, &targets, 1.0, None, (64, false)).unwrap();
    let error = without.loss.backward().unwrap_err().to_string();
    assert!(error.contains("with_gradient is false"), "{error}");
    let error =
        composite::cross_entropy(&x, &w, &targets[1..], 1.0, None, (64, false)).unwrap_err().to_string();
    assert!(error.contains("99 targets"), "{error}");
    // A frozen head.
    let head = w.as_detached_tensor();
    let frozen = |fused: bool| {
        let targets = targets.clone();
        if fused {
            linear_cross_entropy(&x, &head, targets, 0.1, None, true)
        } else {
            composite::cross_entropy(&x, &head, &targets, 0.1, None, (64, true))
        }
    };
    compare("frozen head", &[&x], || Ok(frozen(true)?.loss), || Ok(frozen(false)?.loss));
}

/// A teacher that gives all logits, or some tokens and a tail.
struct Says {
    logits: Tensor,
    top: Option<usize>,
}

impl TeacherSource for Says {
    fn rows(
        &self,
        from: usize,
        count: usize,
        see: &mut dyn FnMut(usize, TeacherOutput) -> Result<()>,
    ) -> Result<()> {
        for (at, row) in self.logits.narrow(0, from, count)?.to_vec2::<f32>()?.into_iter().enumerate() {
            let Some(top) = self.top else {
                see(at, TeacherOutput::Logits(&row))?;
                continue;
            };
            // Some tokens, not the most likely; their number alternates from row to row.
            let ids: Vec<u32> = (0..(top - at % 2) as u32).map(|id| id * 3 + 1).collect();
            let probabilities: Vec<f32> =
                ids.iter().map(|id| 0.9 / ids.len() as f32 / (1 + id % 2) as f32).collect();
            let tail = 1.0 - probabilities.iter().sum::<f32>();
            see(at, TeacherOutput::Top { ids: &ids, probabilities: &probabilities, tail })?;
        }
        Ok(())
    }
}

#[test]
fn distillation_matches_whatever_the_teacher_says() {
    let (rows, vocab, width) = (90, 37, 16);
    let (x, w) = (values(&[rows, width], 1), values(&[vocab, width], 2));
    let targets: Vec<u32> = (0..rows as u32).map(|i| (i * 5) % vocab as u32).collect();
    for (entries, top, cap) in [
        (vocab, None, None),
        (vocab, None, Some(3.0)),
        (vocab + 3, None, None),
        (vocab - 2, None, None),
        (vocab, Some(8), None),
    ] {
        let logits = (values(&[rows, entries], 7).as_detached_tensor() * 3.0).unwrap();
        let teacher: Arc<dyn TeacherSource> = Arc::new(Says { logits, top });
        let weights = Weights { scale: 0.02, cross_entropy: 0.3, divergence: 0.9, temperature: 1.7, cap };
        let wide = || &*x * 4.0;
        let fused = || distillation(&wide()?, &w, targets.clone(), teacher.clone(), weights, true);
        let composite = || composite::distillation(&wide()?, &w, &targets, &*teacher, weights, (40, true));
        let what = format!("{entries} entries, top {top:?}, cap {cap:?}");
        compare(&what, &[&x, &w], || Ok(fused()?.loss), || Ok(composite()?.loss));
        let (fused, composite) = (fused().unwrap(), composite().unwrap());
        assert_eq!(fused.hits, composite.hits);
        for (a, b) in
            [(fused.cross_entropy, composite.cross_entropy), (fused.divergence, composite.divergence)]
        {
            assert!((a - b).abs() < 1e-5 * a.abs(), "{what}: {a}, {b}");
        }
    }
}

#[test]
fn bf16_operands_keep_their_type_and_weights_their_own() {
    let x = values(&[2, 5, 12], 1);
    let half = || x.to_dtype(DType::BF16);
    let (w, norm, bias) = (values(&[7, 12], 2), values(&[12], 3), values(&[7], 4));
    let run = |x: Tensor| add_bias(&linear(&rms_norm(&x, &norm, 1e-6)?, &w)?, &bias);
    let (wide, narrow) = (run(x.as_tensor().clone()).unwrap(), run(half().unwrap()).unwrap());
    assert_eq!(narrow.dtype(), DType::BF16);
    let near = |found: &Tensor, expected: &Tensor| {
        assert_close("bf16", &found.to_dtype(DType::F32).unwrap(), expected, 2e-2);
    };
    near(&narrow, &wide);
    let gradients = |y: &Tensor| y.to_dtype(DType::F32).unwrap().sum_all().unwrap().backward().unwrap();
    let (wide, narrow) = (gradients(&wide), gradients(&narrow));
    for var in [&x, &w, &norm, &bias] {
        let found = narrow.get(var).unwrap();
        assert_eq!(found.dtype(), DType::F32);
        near(found, wide.get(var).unwrap());
    }
}
