//! Every fused operation against the same formula in plain Candle: values and gradients.

mod composite;
mod delta_net;

use std::sync::Arc;

use candle_core::{D, DType, Device, Result, Tensor, Var};

use super::*;
use crate::model::layout::{BatchLayout, Document};

/// Fixed, spread-out values in -1..1 that differ between operands.
fn values(shape: &[usize], salt: usize) -> Var {
    let count: usize = shape.iter().product();
    let value = |i: usize| (((i * 7919 + salt * 104_729) % 1009) as f32 / 1009.0).mul_add(2.0, -1.0);
    Var::from_vec((0..count).map(value).collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
}

fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(found.dims(), expected.dims(), "{what}: shape");
    let norm = expected.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    let difference = (found - expected).unwrap().abs().unwrap().flatten_all().unwrap();
    let difference = difference.max(0).unwrap().to_scalar::<f32>().unwrap();
    assert!(
        difference <= tolerance * norm.max(1e-3),
        "{what}: differs by {difference}, largest value {norm}"
    );
}

/// Compares outputs, and the gradients of `sum(output * fixed weights)` for every operand.
fn compare(
    what: &str,
    operands: &[&Var],
    fused: impl Fn() -> Result<Tensor>,
    plain: impl Fn() -> Result<Tensor>,
) {
    let (fused, plain) = (fused().unwrap(), plain().unwrap());
    assert_close(what, &fused, &plain, 2e-5);
    let weights = values(fused.dims(), 99).as_detached_tensor();
    let gradients = |y: &Tensor| (y * &weights).unwrap().sum_all().unwrap().backward().unwrap();
    let (fused, plain) = (gradients(&fused), gradients(&plain));
    for (at, operand) in operands.iter().enumerate() {
        let expected = plain.get(operand).unwrap();
        assert_close(&format!("{what}: gradient {at}"), fused.get(operand).unwrap(), expected, 5e-5);
    }
}

fn plain_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean + eps)?.sqrt()?)?.broadcast_mul(weight)
}

#[test]
fn linear_is_a_product_with_the_transpose() {
    let (x, w) = (values(&[2, 5, 12], 1), values(&[7, 12], 2));
    compare("linear", &[&x, &w], || linear(&x, &w), || x.broadcast_matmul(&w.t()?));
    let narrow = values(&[7, 11], 3);
    let error = linear(&x, &narrow).unwrap_err().to_string();
    assert!(error.contains("12") && error.contains("11"), "{error}");
}

#[test]
fn rms_norm_matches() {
    let (x, w) = (values(&[3, 50, 36], 1), values(&[36], 2));
    compare("rms norm", &[&x, &w], || rms_norm(&x, &w, 1e-6), || plain_norm(&x, &w, 1e-6));
}

#[test]
fn swiglu_matches() {
    let (gate, up) = (values(&[4, 33], 1), values(&[4, 33], 2));
    let gate_wide = || &*gate * 8.0;
    compare("swiglu", &[&gate, &up], || swiglu(&gate_wide()?, &up), || gate_wide()?.silu()? * &*up);
}

#[test]
fn the_other_gated_products_match() {
    let (gate, up) = (values(&[4, 33], 1), values(&[4, 33], 2));
    let wide = || &*gate * 8.0;
    compare("geglu", &[&gate, &up], || geglu(&wide()?, &up), || wide()?.gelu()? * &*up);
    let plain = || candle_nn::ops::sigmoid(&wide()?)? * &*up;
    compare("sigmoid gate", &[&gate, &up], || sigmoid_gate(&wide()?, &up), plain);
}

/// Half rotation, as `transformers` writes it: `x cos + rotate_half(x) sin`.
fn plain_rotary(x: &Tensor, positions: &[u32], theta: f64) -> Result<Tensor> {
    let (batch, seq, _, width) = x.dims4()?;
    let half = width / 2;
    let angle = |p: u32, i: usize| f64::from(p) * theta.powf(-2.0 * (i % half) as f64 / width as f64);
    let angles: Vec<f64> = positions.iter().flat_map(|&p| (0..width).map(move |i| angle(p, i))).collect();
    let angles = Tensor::from_vec(angles, (batch, seq, 1, width), x.device())?;
    let (cos, sin) = (angles.cos()?.to_dtype(DType::F32)?, angles.sin()?.to_dtype(DType::F32)?);
    let turned = Tensor::cat(&[&x.narrow(3, half, half)?.neg()?, &x.narrow(3, 0, half)?], 3)?;
    x.broadcast_mul(&cos)? + turned.broadcast_mul(&sin)?
}

#[test]
fn rotary_matches_with_and_without_norm() {
    let (x, w) = (values(&[2, 70, 3, 8], 1), values(&[8], 2));
    let positions: Arc<[u32]> = (0..140).map(|i| i % 41).collect();
    let table = Arc::new(RotaryTable::new(41, 8, 10_000.0, None));
    let plain = |x: &Tensor| plain_rotary(x, &positions, 10_000.0);
    compare("rotary", &[&x], || rotary(&x, None, &table, &positions), || plain(&x));
    compare(
        "norm and rotary",
        &[&x, &w],
        || rotary(&x, Some((&w, 1e-6)), &table, &positions),
        || plain(&plain_norm(&x, &w, 1e-6)?),
    );
    // A quarter of each head turns; the rest stays.
    let x = values(&[2, 70, 3, 16], 1);
    let quarter = Arc::new(RotaryTable::new(41, 4, 10_000.0, None));
    let w = values(&[16], 2);
    let partly = |x: &Tensor| {
        let turned = plain_rotary(&x.narrow(3, 0, 4)?.contiguous()?, &positions, 10_000.0)?;
        Tensor::cat(&[&turned, &x.narrow(3, 4, 12)?], 3)
    };
    compare("partial rotary", &[&x], || rotary(&x, None, &quarter, &positions), || partly(&x));
    compare(
        "norm and partial rotary",
        &[&x, &w],
        || rotary(&x, Some((&w, 1e-6)), &quarter, &positions),
        || partly(&plain_norm(&x, &w, 1e-6)?),
    );
    let x = values(&[2, 70, 3, 8], 1);
    let far: Arc<[u32]> = vec![41; 140].into();
    assert!(rotary(&x, None, &table, &far).unwrap_err().to_string().contains("41"));
}

/// Softmax over explicit scores, masked to each token's own document and its window of the past.
fn plain_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scoring: Scoring,
    documents: &[Document],
) -> Result<Tensor> {
    let (batch, seq, heads, _) = q.dims4()?;
    let group = heads / k.dim(2)?;
    let spread = |x: &Tensor| -> Result<Tensor> {
        let parts: Vec<Tensor> = (0..heads).map(|h| x.narrow(2, h / group, 1)).collect::<Result<_>>()?;
        Tensor::cat(&parts, 2)?.transpose(1, 2)?.contiguous()
    };
    let (mut mask, mut inside) = (vec![-1e9f32; batch * seq * seq], vec![0f32; batch * seq]);
    for document in documents {
        for i in 0..document.len {
            let token = document.row * seq + document.start + i;
            inside[token] = 1.0;
            let first = document.start + (i + 1).saturating_sub(scoring.window.unwrap_or(seq));
            mask[token * seq + first..=token * seq + document.start + i].fill(0.0);
        }
    }
    let mask = Tensor::from_vec(mask, (batch, 1, seq, seq), q.device())?;
    let inside = Tensor::from_vec(inside, (batch, seq, 1, 1), q.device())?;
    let q = q.transpose(1, 2)?.contiguous()?;
    let mut scores = (q.matmul(&spread(k)?.t()?)? * f64::from(scoring.scale))?;
    if let Some(cap) = scoring.cap.map(f64::from) {
        scores = ((scores / cap)?.tanh()? * cap)?;
    }
    let scores = scores.broadcast_add(&mask)?;
    let scores = scores.broadcast_sub(&scores.max_keepdim(3)?.detach())?.exp()?;
    let weights = scores.broadcast_div(&scores.sum_keepdim(3)?)?;
    weights.matmul(&spread(v)?)?.transpose(1, 2)?.broadcast_mul(&inside)
}

#[test]
fn attention_matches_inside_documents_longer_and_shorter_than_a_block() {
    let (seq, heads, kv_heads, width) = (150, 4, 2, 8);
    let q = values(&[2, seq, heads, width], 1);
    let (k, v) = (values(&[2, seq, kv_heads, width], 2), values(&[2, seq, kv_heads, width], 3));
    let document = |row, start, len| Document { row, start, len };
    // Row 1 ends in padding.
    let documents = vec![document(0, 0, 150), document(1, 0, 1), document(1, 1, 64), document(1, 65, 70)];
    let layout = BatchLayout::packed(2, seq, documents.clone()).unwrap();
    let usual = Scoring::of_width(width);
    let cases = [
        usual,
        Scoring { window: Some(70), ..usual },
        Scoring { window: Some(3), ..usual },
        Scoring { window: Some(2), ..usual },
        Scoring { cap: Some(1.5), ..usual },
        Scoring { scale: 0.2, cap: Some(0.5), window: Some(64) },
    ];
    for scoring in cases {
        compare(
            &format!("attention, {scoring:?}"),
            &[&q, &k, &v],
            || attention(&(&*q * 4.0)?, &k, &v, scoring, &layout),
            || plain_attention(&(&*q * 4.0)?, &k, &v, scoring, &documents),
        );
    }
    let never = Scoring { window: Some(0), ..usual };
    assert!(attention(&q, &k, &v, never, &layout).is_err());
}

/// A softmax over one score does not depend on it: not even by rounding.
#[test]
fn a_score_that_stands_alone_has_no_gradient() {
    let [q, k, v] = [1, 2, 3].map(|salt| values(&[1, 40, 2, 8], salt));
    let documents = (0..40).map(|start| Document { row: 0, start, len: 1 }).collect();
    let layout = BatchLayout::packed(1, 40, documents).unwrap();
    for cap in [None, Some(1.5)] {
        let scoring = Scoring { cap, ..Scoring::of_width(8) };
        let weights = values(&[1, 40, 2, 8], 99).as_detached_tensor();
        let mixed = attention(&(&*q * 4.0).unwrap(), &k, &v, scoring, &layout).unwrap();
        let gradients = (mixed * &weights).unwrap().sum_all().unwrap().backward().unwrap();
        let all = |of: &Var| gradients.get(of).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(all(&q).iter().chain(&all(&k)).all(|value| *value == 0.0), "{cap:?}");
        assert_eq!(all(&v), weights.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    }
}

#[test]
fn cross_entropy_matches_over_several_chunks() {
    let (rows, vocab, width) = (700, 37, 16);
    let (x, w) = (values(&[rows, width], 1), values(&[vocab, width], 2));
    let targets: Vec<u32> = (0..rows as u32).map(|i| (i * 5) % vocab as u32).collect();
    let ids = Tensor::new(&targets[..], &Device::Cpu).unwrap();
    let fused = || Ok(linear_cross_entropy(&x, &w, targets.clone(), 0.01, None, true)?.loss);
    let plain = || {
        let logits = x.matmul(&w.t()?)?;
        candle_nn::loss::cross_entropy(&logits, &ids)? * (rows as f64 * 0.01)
    };
    compare("cross-entropy", &[&x, &w], fused, plain);
    let capped = || Ok(linear_cross_entropy(&(&*x * 8.0)?, &w, targets.clone(), 0.01, Some(2.0), true)?.loss);
    let plain = || {
        let logits = (((&*x * 8.0)?.matmul(&w.t()?)? / 2.0)?.tanh()? * 2.0)?;
        candle_nn::loss::cross_entropy(&logits, &ids)? * (rows as f64 * 0.01)
    };
    compare("capped cross-entropy", &[&x, &w], capped, plain);
    let result = linear_cross_entropy(&x, &w, targets.clone(), 1.0, None, false).unwrap();
    let best: Vec<u32> = x.matmul(&w.t().unwrap()).unwrap().argmax(1).unwrap().to_vec1().unwrap();
    let hits: Vec<bool> = best.iter().zip(&targets).map(|(a, b)| a == b).collect();
    assert_eq!(result.hits, hits);
    assert!(result.loss.backward().is_err());
}

#[test]
fn what_adapters_add_matches() {
    let (y, inner, b) = (values(&[2, 5, 12], 1), values(&[2, 5, 3], 2), values(&[12, 3], 3));
    let plain = || &*y + (inner.broadcast_matmul(&b.t()?)? * 1.5)?;
    compare("low rank", &[&y, &inner, &b], || low_rank(&y, &inner, &b, 1.5), plain);
    let error = low_rank(&y, &inner, &values(&[12, 4], 4), 1.0).unwrap_err().to_string();
    assert!(error.contains("[2, 5, 3]") && error.contains("[12, 4]"), "{error}");

    let (update, bias) = (values(&[2, 5, 12], 5), values(&[1], 6));
    let plain = || &*y + update.broadcast_mul(&(candle_nn::ops::sigmoid(&bias)? / 4.0)?)?;
    compare("gated update", &[&y, &update, &bias], || gated_update(&y, &update, &bias, 0.25), plain);
    let error = gated_update(&y, &inner, &bias, 1.0).unwrap_err().to_string();
    assert!(error.contains("[2, 5, 12]") && error.contains("[2, 5, 3]"), "{error}");

    let x = values(&[4, 33], 7);
    compare("silu", &[&x], || silu(&(&*x * 8.0)?), || (&*x * 8.0)?.silu());
}
