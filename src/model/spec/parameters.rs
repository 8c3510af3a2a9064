//! The parameters of a decoder, generated from its blocks: name, role, and what each dimension is.

use super::role::{Axis, NormAt, Part, Role};
use super::{AttentionSpec, BlockSpec, DecoderConfig, Mixer};
use crate::model::features::{AttentionBias, DeltaNetShape};
use crate::model::taps::Projection;

/// A parameter as a decoder has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterSpec {
    /// Hugging Face's name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// What each dimension is, the outputs of a matrix first.
    pub axes: Vec<Axis>,
}

impl ParameterSpec {
    /// Elements along each dimension.
    pub fn shape(&self) -> Vec<usize> {
        self.axes.iter().map(|axis| axis.size()).collect()
    }
}

impl DecoderConfig {
    /// All parameters in their fixed order: embedding, blocks, final norm, head. Optimisers,
    /// checkpoints, hashes and the random numbers of initial values rely on it.
    pub fn parameters(&self) -> Vec<ParameterSpec> {
        let d = Axis::Residual(self.hidden_size);
        let vocabulary = Axis::Vocabulary(self.vocab_size);
        let outer = |role: Role, axes| ParameterSpec { name: role.name(false), role, axes };
        let mut parameters = vec![outer(Role::Embedding, vec![vocabulary, d])];
        for (layer, block) in self.blocks.iter().enumerate() {
            parameters.extend(of_block(block, d).into_iter().map(|(part, axes)| {
                let role = Role::Block { layer, part };
                ParameterSpec { name: role.name(block.post_norms), role, axes }
            }));
        }
        parameters.push(outer(Role::FinalNorm, vec![d]));
        if !self.tied {
            parameters.push(outer(Role::Head, vec![vocabulary, d]));
        }
        parameters
    }

    /// Number of parameters (a tied head counts once).
    pub fn parameter_count(&self) -> u64 {
        self.parameters().iter().map(|parameter| parameter.shape().iter().product::<usize>() as u64).sum()
    }
}

/// A part of a block and its dimensions.
type Entry = (Part, Vec<Axis>);

fn of_block(block: &BlockSpec, d: Axis) -> Vec<Entry> {
    let f = Axis::Ffn(block.ffn.width);
    let norm = |at| (Part::Norm(at), vec![d]);
    let mut entries = vec![norm(NormAt::BeforeMixer)];
    match &block.mixer {
        Mixer::Attention(attention) => attention_entries(attention, d, &mut entries),
        Mixer::DeltaNet(shape) => entries.extend(delta_net_entries(*shape, d)),
    }
    if block.post_norms {
        entries.push(norm(NormAt::AfterMixer));
    }
    entries.push(norm(NormAt::BeforeFfn));
    for (projection, outputs, inputs) in
        [(Projection::Gate, f, d), (Projection::Up, f, d), (Projection::Down, d, f)]
    {
        matrix(projection, outputs, inputs, block.ffn.bias, &mut entries);
    }
    if block.post_norms {
        entries.push(norm(NormAt::AfterFfn));
    }
    entries
}

fn matrix(projection: Projection, outputs: Axis, inputs: Axis, bias: bool, entries: &mut Vec<Entry>) {
    entries.push((Part::Weight(projection), vec![outputs, inputs]));
    if bias {
        entries.push((Part::Bias(projection), vec![outputs]));
    }
}

fn attention_entries(attention: &AttentionSpec, d: Axis, entries: &mut Vec<Entry>) {
    let &AttentionSpec { heads, kv_heads, head_dim, bias, .. } = attention;
    let kv = Axis::KvHeads { heads: kv_heads, width: head_dim };
    // Each head's query and its gate stand side by side.
    let width = if attention.output_gate { 2 * head_dim } else { head_dim };
    let some = bias != AttentionBias::None;
    matrix(Projection::Query, Axis::Heads { heads, width }, d, some, entries);
    matrix(Projection::Key, kv, d, some, entries);
    matrix(Projection::Value, kv, d, some, entries);
    matrix(
        Projection::Output,
        d,
        Axis::Heads { heads, width: head_dim },
        bias == AttentionBias::All,
        entries,
    );
    if attention.qk_norm {
        for at in [NormAt::Query, NormAt::Key] {
            entries.push((Part::Norm(at), vec![Axis::HeadWidth(head_dim)]));
        }
    }
}

fn delta_net_entries(shape: DeltaNetShape, d: Axis) -> [Entry; 9] {
    let (heads, channels) = (Axis::DeltaHeads(shape.value_heads), Axis::DeltaChannels(shape));
    let values = Axis::DeltaValues(shape);
    [
        (Part::TimeBias, vec![heads]),
        (Part::DecayRate, vec![heads]),
        (Part::Convolution, vec![channels, Axis::One, Axis::Kernel(shape.kernel)]),
        (Part::Norm(NormAt::DeltaRead), vec![Axis::DeltaWidth(shape.value_dim)]),
        (Part::Weight(Projection::DeltaOutput), vec![d, values]),
        (Part::Weight(Projection::DeltaMixed), vec![channels, d]),
        (Part::Weight(Projection::DeltaGate), vec![values, d]),
        (Part::Weight(Projection::DeltaStrength), vec![heads, d]),
        (Part::Weight(Projection::DeltaTime), vec![heads, d]),
    ]
}
