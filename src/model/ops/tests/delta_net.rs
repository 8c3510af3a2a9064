//! The operations of a DeltaNet block against the recurrence that they speed up, token by token in
//! plain Candle.

use super::*;
use crate::model::features::DeltaNetShape;

/// Documents longer than a chunk, shorter, of one token; row 1 ends in padding.
fn documents() -> Vec<Document> {
    let document = |row, start, len| Document { row, start, len };
    vec![document(0, 0, 90), document(1, 0, 1), document(1, 1, 64), document(1, 65, 12)]
}

fn layout() -> BatchLayout {
    BatchLayout::packed(2, 90, documents()).unwrap()
}

#[test]
fn the_short_convolution_stays_inside_documents() {
    let (seq, channels) = (90, 10);
    for kernel in [1, 2, 4] {
        let (x, w) = (values(&[2, seq, channels], 1), values(&[channels, 1, kernel], 2));
        let plain = || {
            let mut rows = vec![Tensor::zeros(channels, DType::F32, &Device::Cpu)?; 2 * seq];
            for document in documents() {
                for at in 0..document.len {
                    let mut sum = Tensor::zeros(channels, DType::F32, &Device::Cpu)?;
                    for tap in 0..kernel.min(at + 1) {
                        let x = x.get(document.row)?.get(document.start + at - tap)?;
                        sum = (sum + x * w.narrow(2, kernel - 1 - tap, 1)?.flatten_all()?)?;
                    }
                    rows[document.row * seq + document.start + at] = sum.silu()?;
                }
            }
            Tensor::stack(&rows, 0)?.reshape((2, seq, channels))
        };
        compare(&format!("kernel {kernel}"), &[&x, &w], || short_convolution(&x, &w, &layout()), plain);
    }
}

#[test]
fn the_decay_matches() {
    let (time, rate, bias) = (values(&[2, 9, 3], 1), values(&[3], 2), values(&[3], 3));
    let wide = || &*time * 30.0;
    let plain = || {
        let softplus = (wide()?.broadcast_add(&bias)?.exp()? + 1.0)?.log()?;
        softplus.broadcast_mul(&rate.exp()?.neg()?)
    };
    compare("decay", &[&time, &rate, &bias], || decay(&wide()?, &rate, &bias), plain);
}

/// Token by token: `S <- exp(g) S; S <- S + k (b (v - k^T S))^T; o = q^T S`.
fn plain_delta_rule(mixed: &Tensor, g: &Tensor, b: &Tensor, shape: DeltaNetShape) -> Result<Tensor> {
    let (_, seq, _) = mixed.dims3()?;
    let DeltaNetShape { key_heads, value_heads, key_dim, value_dim, .. } = shape;
    let unit = |x: Tensor| x.broadcast_div(&((x.sqr()?.sum_all()? + 1e-6)?.sqrt()?));
    let mut reads = vec![Tensor::zeros((value_heads, value_dim), DType::F32, &Device::Cpu)?; 2 * seq];
    for document in documents() {
        let row = mixed.get(document.row)?;
        let mut states = vec![Tensor::zeros((key_dim, value_dim), DType::F32, &Device::Cpu)?; value_heads];
        for at in document.start..document.start + document.len {
            let token = row.get(at)?;
            let mut heads = Vec::new();
            for (head, state) in states.iter_mut().enumerate() {
                let key_head = head / (value_heads / key_heads);
                let q = unit(token.narrow(0, key_head * key_dim, key_dim)?)?;
                let q = (q / (key_dim as f64).sqrt())?.unsqueeze(0)?;
                let k = unit(token.narrow(0, (key_heads + key_head) * key_dim, key_dim)?)?.unsqueeze(0)?;
                let v =
                    token.narrow(0, 2 * key_heads * key_dim + head * value_dim, value_dim)?.unsqueeze(0)?;
                let scalar = |x: &Tensor| x.get(document.row)?.get(at)?.get(head);
                *state = state.broadcast_mul(&scalar(g)?.exp()?)?;
                let write = (v - k.matmul(state)?)?.broadcast_mul(&scalar(b)?)?;
                *state = (&*state + k.t()?.matmul(&write)?)?;
                heads.push(q.matmul(state)?);
            }
            reads[document.row * seq + at] = Tensor::cat(&heads, 0)?;
        }
    }
    Tensor::stack(&reads, 0)?.reshape((2, seq, value_heads, value_dim))
}

#[test]
fn the_chunked_delta_rule_is_the_recurrence() {
    let shapes = [(1, 1, 4, 4), (2, 4, 6, 3), (2, 2, 3, 8)];
    for (key_heads, value_heads, key_dim, value_dim) in shapes {
        let shape = DeltaNetShape { key_heads, value_heads, key_dim, value_dim, kernel: 4 };
        let mixed = values(&[2, 90, shape.channels()], 1);
        let (g, b) = (values(&[2, 90, value_heads], 2), values(&[2, 90, value_heads], 3));
        // Decays from almost none to complete.
        let decays = || (&*g - 1.0)?.sqr()?.neg();
        let strengths = || (&*b + 1.0)? / 2.0;
        compare(
            &format!("{shape:?}"),
            &[&mixed, &g, &b],
            || delta_rule(&mixed, &decays()?, &strengths()?, shape, &layout()),
            || plain_delta_rule(&mixed, &decays()?, &strengths()?, shape),
        );
    }
    let shape = DeltaNetShape { key_heads: 2, value_heads: 3, key_dim: 4, value_dim: 4, kernel: 4 };
    let (mixed, heads) = (values(&[2, 90, shape.channels()], 1), values(&[2, 90, 3], 2));
    let error = delta_rule(&mixed, &heads, &heads, shape, &layout()).unwrap_err().to_string();
    assert!(error.contains("value_heads: 3"), "{error}");
}
