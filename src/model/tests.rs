//! What stands on the forward pass (pruning, calibration, statistics) works through its public
//! seams alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};

use super::*;
use spec::{Axis, Part};

/// Blocks of both kinds that differ in all that they may.
fn uneven(family: Family) -> DecoderConfig {
    let shape = Uniform { family, vocab_size: 61, hidden_size: 24, ..Uniform::small() };
    let mut config = Uniform { layers: 4, head_dim: 8, ffn: 40, ..shape }.config();
    config.blocks[1].ffn.width = 16;
    let attention = config.blocks[3].attention_mut().unwrap();
    (attention.heads, attention.kv_heads) = (6, 3);
    (attention.rope_theta, attention.rotary_dim, attention.window) = (500.0, 8, Some(3));
    config
}

fn decoder(config: &DecoderConfig) -> (Decoder, Parameters) {
    let parameters = init::initialise(config, 5).unwrap();
    (Decoder::new(config.clone(), &parameters).unwrap(), parameters)
}

/// Two rows of packed documents, the second with padding.
fn batch() -> (Tensor, BatchLayout) {
    let ids: Vec<u32> = (0..16).map(|at| (at * 7 + 3) % 61).collect();
    let document = |row, start, len| Document { row, start, len };
    let documents = vec![document(0, 0, 5), document(0, 5, 3), document(1, 1, 4)];
    let ids = Tensor::from_vec(ids, (2, 8), &Device::Cpu).unwrap();
    (ids, BatchLayout::packed(2, 8, documents).unwrap())
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

/// A loss that depends on every value of the tokens.
fn loss(hidden: &Tensor, layout: &BatchLayout) -> Tensor {
    let tokens = layout.tokens();
    let tokens = Tensor::from_slice(&tokens, tokens.len(), &Device::Cpu).unwrap();
    let of_tokens = hidden.flatten(0, 1).unwrap().index_select(&tokens, 0).unwrap();
    let weights = Tensor::arange(0f32, of_tokens.elem_count() as f32, &Device::Cpu).unwrap();
    let weights = weights.reshape(of_tokens.shape()).unwrap().sin().unwrap();
    (of_tokens * weights).unwrap().sum_all().unwrap()
}

#[test]
fn every_block_has_its_own_widths_heads_base_and_window() {
    for family in [Family::Llama, Family::Gemma2, Family::Qwen3_5] {
        let config = uneven(family);
        let ((decoder, parameters), (ids, layout)) = (decoder(&config), batch());
        let hidden = decoder.forward(&ids, &layout, &mut NoTaps).unwrap();
        let store = loss(&hidden, &layout).backward().unwrap();
        for (spec, entry) in config.parameters().iter().zip(parameters.entries()) {
            assert_eq!(
                (&spec.name, Some(spec.role), spec.shape()),
                (&entry.name, entry.role, entry.var.dims().to_vec())
            );
            assert!(store.get(&entry.var).is_some(), "{family:?}: {}", entry.name);
            let width =
                spec.axes.iter().find_map(|axis| if let Axis::Ffn(f) = axis { Some(*f) } else { None });
            if let (Some(width), Some(layer)) = (width, spec.role.layer()) {
                assert_eq!(width, if layer == 1 { 16 } else { 40 }, "{}", spec.name);
            }
        }
        // Each of these matters in its own block only.
        let without = |change: fn(&mut spec::AttentionSpec)| {
            let mut config = config.clone();
            change(config.blocks[3].attention_mut().unwrap());
            let other = Decoder::new(config, &parameters).unwrap();
            let mut captured = Captured::default();
            other.forward(&ids, &layout, &mut captured).unwrap();
            captured.0
        };
        let mut captured = Captured::default();
        decoder.forward(&ids, &layout, &mut captured).unwrap();
        for other in [without(|a| a.rope_theta = 10_000.0), without(|a| a.window = None)] {
            assert!(bits(&other[&2]) == bits(&captured.0[&2]) && bits(&other[&3]) != bits(&captured.0[&3]));
        }
    }
}

/// Keeps what leaves each block.
#[derive(Default)]
struct Captured(BTreeMap<usize, Tensor>);

impl Taps for Captured {
    fn tap(&mut self, point: Point, at: Context, tensor: Tensor) -> Result<Tensor> {
        if point == Point::BlockOutput {
            self.0.insert(at.layer, tensor.clone());
        }
        Ok(tensor)
    }
}

#[test]
fn a_block_alone_gives_what_the_whole_pass_gives_there() {
    for family in [Family::Llama, Family::Gemma2, Family::Qwen3_5] {
        let (decoder, _) = decoder(&uneven(family));
        let (ids, layout) = batch();
        let mut captured = Captured::default();
        let whole = decoder.forward(&ids, &layout, &mut captured).unwrap();
        let mut x = decoder.embed(&ids).unwrap();
        for layer in 0..4 {
            x = decoder.block(layer, x, &layout, &mut NoTaps).unwrap();
            assert!(bits(&x) == bits(&captured.0[&layer]), "{family:?}: block {layer}");
        }
        assert!(bits(&decoder.finish(&x, &layout, &mut NoTaps).unwrap()) == bits(&whole), "{family:?}");
        let error = decoder.block(4, x, &layout, &mut NoTaps).unwrap_err().to_string();
        assert!(error.contains("block 4"), "{error}");
    }
}

/// Multiplies the intermediates of one block by the sigmoid of a variable.
#[derive(Clone)]
struct Mask {
    layer: usize,
    logits: Tensor,
    /// What is said to be brought into the block, if it may be computed again.
    named: Option<Vec<Tensor>>,
}

impl Taps for Mask {
    fn tap(&mut self, point: Point, at: Context, tensor: Tensor) -> Result<Tensor> {
        if (point, at.layer) != (Point::FfnIntermediate, self.layer) {
            return Ok(tensor);
        }
        tensor.broadcast_mul(&candle_nn::ops::sigmoid(&self.logits)?)
    }

    fn recompute(&self, layer: usize) -> Option<Recompute> {
        let same = self.clone();
        let variables = if layer == self.layer { self.named.clone()? } else { vec![] };
        Some(Recompute { taps: Arc::new(move || Box::new(same.clone())), variables })
    }
}

/// Gradients of the mask's variable and of the weights before it.
fn masked(decoder: &Decoder, parameters: &Parameters, mask: &Mask, variable: &Var) -> Result<[Vec<u32>; 2]> {
    let (ids, layout) = batch();
    let hidden = decoder.forward(&ids, &layout, &mut mask.clone())?;
    let mut gradients = ops::Gradients::of(&loss(&hidden, &layout))?;
    let up = parameters.of(Role::Block { layer: 1, part: Part::Weight(Projection::Up) })?;
    let (of_mask, of_up) = (gradients.take(variable)?.unwrap(), gradients.take(up)?.unwrap());
    assert!(of_mask.abs()?.min_all()?.to_scalar::<f32>()? > 0.0, "every element has its part");
    Ok([bits(&of_mask), bits(&of_up)])
}

#[test]
fn a_mask_is_learnt_through_a_tap_also_where_blocks_are_computed_again() {
    let (decoder, parameters) = decoder(&uneven(Family::Llama));
    let recomputing = decoder.clone().recomputing(true);
    let values: Vec<f32> = (0..16).map(|at| at as f32 / 8.0 - 0.9).collect();
    let variable = Var::from_vec(values, 16, &Device::Cpu).unwrap();
    let logits = variable.as_tensor().clone();
    let mask = |logits: &Tensor, named: Option<&[&Tensor]>| {
        let named = named.map(|named| named.iter().map(|&tensor| tensor.clone()).collect());
        Mask { layer: 1, logits: logits.clone(), named }
    };
    let learnt = |decoder: &Decoder, mask: &Mask| masked(decoder, &parameters, mask, &variable);
    let expected = learnt(&decoder, &mask(&logits, None)).unwrap();
    // Computed again with the variable named, or kept because the taps can't be repeated.
    assert!(learnt(&recomputing, &mask(&logits, Some(&[&logits]))).unwrap() == expected);
    assert!(learnt(&recomputing, &mask(&logits, None)).unwrap() == expected);
    // What comes from a variable outside the block leads back to it.
    let doubled = (&logits * 2.0).unwrap();
    let expected = learnt(&decoder, &mask(&doubled, None)).unwrap();
    assert!(learnt(&recomputing, &mask(&doubled, Some(&[&logits]))).unwrap() == expected);
    // A gradient is never lost in silence.
    let other = Var::zeros(3, candle_core::DType::F32, &Device::Cpu).unwrap();
    for (named, expected) in [
        (vec![], "a variable of shape [16] that Taps::recompute doesn't name"),
        (
            vec![&logits, other.as_tensor()],
            "a tensor of shape [3] from which nothing in the block is computed",
        ),
        (vec![&logits, &doubled], "a tensor of shape [16] that is no variable"),
    ] {
        let error = learnt(&recomputing, &mask(&logits, Some(&named))).unwrap_err().to_string();
        assert!(error.contains("block 1") && error.contains(expected), "{error}");
    }
}

/// Sums of squares of the intermediates, of tokens alone.
#[derive(Default)]
struct Squares(BTreeMap<usize, Vec<f32>>);

impl Taps for Squares {
    fn tap(&mut self, point: Point, at: Context, tensor: Tensor) -> Result<Tensor> {
        if point == Point::FfnIntermediate {
            let tokens = at.layout().tokens();
            let tokens = Tensor::from_slice(&tokens, tokens.len(), tensor.device())?;
            let sums = tensor.flatten(0, 1)?.index_select(&tokens, 0)?.sqr()?.sum(0)?; // [F]
            self.0.insert(at.layer, sums.to_vec1()?);
        }
        Ok(tensor)
    }
}

#[test]
fn a_statistic_passes_over_padding() {
    let (decoder, _) = decoder(&uneven(Family::Llama));
    let squares = |ids: &[u32], documents: Vec<Document>| {
        let layout = BatchLayout::packed(1, ids.len(), documents).unwrap();
        let input = Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu).unwrap();
        let mut squares = Squares::default();
        decoder.forward(&input, &layout, &mut squares).unwrap();
        squares.0
    };
    let document = |start, len| Document { row: 0, start, len };
    let plain = squares(&[5, 9, 2, 40, 33], vec![document(0, 3), document(3, 2)]);
    let padded = squares(&[7, 5, 9, 2, 7, 7, 40, 33, 7], vec![document(1, 3), document(6, 2)]);
    assert_eq!(plain.len(), 4);
    for (layer, sums) in &plain {
        for (plain, padded) in sums.iter().zip(&padded[layer]) {
            assert!((plain - padded).abs() <= 1e-5 * plain.abs(), "block {layer}: {plain}, {padded}");
        }
    }
}

#[test]
fn taps_know_the_step() {
    struct Steps(Vec<(usize, u64)>);
    impl Taps for Steps {
        fn tap(&mut self, point: Point, at: Context, tensor: Tensor) -> Result<Tensor> {
            if matches!(point, Point::FfnNorm | Point::FinalNorm) {
                self.0.push((at.layer, at.pass.step));
            }
            Ok(tensor)
        }
    }
    let (decoder, _) = decoder(&uneven(Family::Llama));
    let ((ids, layout), mut steps) = (batch(), Steps(vec![]));
    decoder.forward(&ids, Pass { layout: &layout, step: 7 }, &mut steps).unwrap();
    assert_eq!(steps.0, [(0, 7), (1, 7), (2, 7), (3, 7), (4, 7)]);
}
