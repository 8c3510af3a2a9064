//! What parameters are for, and their names: the only place that knows Hugging Face's.

use super::AttentionSpec;
use crate::model::taps::Projection;

/// What a parameter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The embedding, and where it is tied the head too.
    Embedding,
    /// A part of a block, or of an adapter there.
    Block {
        /// The block.
        layer: usize,
        /// What of it.
        part: Part,
    },
    /// The norm after the last block.
    FinalNorm,
    /// The output matrix.
    Head,
    /// No part of a decoder or adapter: what an objective brings along to be trained.
    Outside,
}

/// A part of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// Weight of a norm.
    Norm(NormAt),
    /// A weight matrix.
    Weight(Projection),
    /// The bias of one.
    Bias(Projection),
    /// Kernel of a `DeltaNet`'s short convolution.
    Convolution,
    /// Logarithm of a `DeltaNet`'s rates of decay.
    DecayRate,
    /// Bias of a `DeltaNet`'s time steps.
    TimeBias,
    /// A matrix of a LoRA on a weight.
    Lora(Projection, LoraSide),
    /// A tensor of a Felix spoke after the block.
    Felix(FelixTensor),
}

/// Where a norm stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NormAt {
    /// Before attention or DeltaNet.
    BeforeMixer,
    /// On what attention or DeltaNet adds to the residual stream.
    AfterMixer,
    /// Before the feed-forward part.
    BeforeFfn,
    /// On what the feed-forward part adds to the residual stream.
    AfterFfn,
    /// On each head's query.
    Query,
    /// On each head's key.
    Key,
    /// On each head of what a DeltaNet reads.
    DeltaRead,
}

/// The two matrices of a LoRA: `B A` is added to a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LoraSide {
    /// `[rank, inputs]`
    A,
    /// `[outputs, rank]`
    B,
}

/// The tensors of a Felix spoke in one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FelixTensor {
    /// b, of which the gate is the sigmoid.
    Gate,
    /// All W_down.
    Down,
    /// All W_up.
    Up,
}

/// Modules of a block that have a weight matrix.
const MATRICES: [(Projection, &str); 12] = [
    (Projection::Query, "self_attn.q_proj"),
    (Projection::Key, "self_attn.k_proj"),
    (Projection::Value, "self_attn.v_proj"),
    (Projection::Output, "self_attn.o_proj"),
    (Projection::DeltaMixed, "linear_attn.in_proj_qkv"),
    (Projection::DeltaGate, "linear_attn.in_proj_z"),
    (Projection::DeltaStrength, "linear_attn.in_proj_b"),
    (Projection::DeltaTime, "linear_attn.in_proj_a"),
    (Projection::DeltaOutput, "linear_attn.out_proj"),
    (Projection::Gate, "mlp.gate_proj"),
    (Projection::Up, "mlp.up_proj"),
    (Projection::Down, "mlp.down_proj"),
];

/// Norms of a block without norms after its parts, and what is a vector or kernel in it.
const OTHERS: [(Part, &str); 8] = [
    (Part::Norm(NormAt::BeforeMixer), "input_layernorm.weight"),
    (Part::Norm(NormAt::BeforeFfn), "post_attention_layernorm.weight"),
    (Part::Norm(NormAt::AfterFfn), "post_feedforward_layernorm.weight"),
    (Part::Norm(NormAt::Query), "self_attn.q_norm.weight"),
    (Part::Norm(NormAt::Key), "self_attn.k_norm.weight"),
    (Part::Norm(NormAt::DeltaRead), "linear_attn.norm.weight"),
    (Part::Convolution, "linear_attn.conv1d.weight"),
    (Part::DecayRate, "linear_attn.A_log"),
];

impl Projection {
    /// Hugging Face's name of its module in a block.
    pub fn module(self) -> &'static str {
        let found = MATRICES.iter().find(|(projection, _)| *projection == self);
        found.map(|(_, module)| *module).expect("the table has every projection")
    }

    /// The last part of that name, by which recipes and PEFT call it.
    pub fn short_name(self) -> &'static str {
        self.module().rsplit('.').next().unwrap_or_default()
    }
}

impl Role {
    /// The block that it belongs to.
    pub fn layer(self) -> Option<usize> {
        match self {
            Self::Block { layer, .. } => Some(layer),
            Self::Embedding | Self::FinalNorm | Self::Head | Self::Outside => None,
        }
    }

    /// What of a block it is.
    pub fn part(self) -> Option<Part> {
        match self {
            Self::Block { part, .. } => Some(part),
            Self::Embedding | Self::FinalNorm | Self::Head | Self::Outside => None,
        }
    }

    /// Whether it is a matrix of a block, or of an adapter there.
    pub fn is_block_matrix(self) -> bool {
        use FelixTensor::{Down, Up};
        matches!(self.part(), Some(Part::Weight(_) | Part::Lora(..) | Part::Felix(Down | Up)))
    }

    /// Its name among the parameters of a model, as Hugging Face has it. `post_norms`: whether its block has norms after its
    /// parts too, which changes what one name means.
    ///
    /// # Panics
    /// [`Role::Outside`], whose names others give.
    pub fn name(self, post_norms: bool) -> String {
        let (layer, part) = match self {
            Self::Embedding => return "model.embed_tokens.weight".to_owned(),
            Self::FinalNorm => return "model.norm.weight".to_owned(),
            Self::Head => return "lm_head.weight".to_owned(),
            Self::Outside => panic!("what is outside of a decoder has no name in one"),
            Self::Block { layer, part } => (layer, part),
        };
        let within = match part {
            Part::Weight(projection) => format!("{}.weight", projection.module()),
            Part::Bias(projection) => format!("{}.bias", projection.module()),
            Part::Lora(projection, LoraSide::A) => format!("{}.lora_A.weight", projection.module()),
            Part::Lora(projection, LoraSide::B) => format!("{}.lora_B.weight", projection.module()),
            Part::Felix(FelixTensor::Gate) => "felix.gate_bias".to_owned(),
            Part::Felix(FelixTensor::Down) => "felix.w_down".to_owned(),
            Part::Felix(FelixTensor::Up) => "felix.w_up".to_owned(),
            Part::TimeBias => "linear_attn.dt_bias".to_owned(),
            Part::Norm(NormAt::AfterMixer) => "post_attention_layernorm.weight".to_owned(),
            Part::Norm(NormAt::BeforeFfn) if post_norms => "pre_feedforward_layernorm.weight".to_owned(),
            Part::Norm(_) | Part::Convolution | Part::DecayRate => {
                let found = OTHERS.iter().find(|(other, _)| *other == part);
                found.map(|(_, name)| (*name).to_owned()).expect("the table has all that is not above")
            }
        };
        format!("model.layers.{layer}.{within}")
    }

    /// The role of a parameter with this name in a model without norms after the parts of its blocks; none for other names.
    pub fn of(name: &str) -> Option<Self> {
        let outer = [Self::Embedding, Self::FinalNorm, Self::Head];
        if let Some(role) = outer.into_iter().find(|role| role.name(false) == name) {
            return Some(role);
        }
        let (layer, within) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let layer = layer.parse::<u32>().ok()? as usize;
        let matrix = |module: &str| {
            MATRICES.iter().find(|(_, known)| *known == module).map(|(projection, _)| *projection)
        };
        let part = OTHERS.iter().find(|(_, known)| *known == within).map(|(part, _)| *part);
        let part = part.or_else(|| match within.rsplit_once('.')? {
            (module, "weight") => matrix(module).map(Part::Weight),
            (module, "bias") => matrix(module).map(Part::Bias),
            ("linear_attn", "dt_bias") => Some(Part::TimeBias),
            _ => None,
        })?;
        // A layer has one name: "07" would be a second one of block 7.
        Some(Self::Block { layer, part }).filter(|role| role.name(false) == name)
    }
}

/// One dimension of a parameter: which of the decoder's widths it has. Pruning cuts all axes of a width together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Vocabulary entries.
    Vocabulary(usize),
    /// Width D of the residual stream.
    Residual(usize),
    /// Query heads, each of so many rows or columns: a head's width, or twice that with its gate.
    Heads {
        /// How many.
        heads: usize,
        /// Rows or columns of each.
        width: usize,
    },
    /// Key/value heads.
    KvHeads {
        /// How many.
        heads: usize,
        /// Rows or columns of each.
        width: usize,
    },
    /// Width of one head.
    HeadWidth(usize),
    /// Width F of the feed-forward intermediate.
    Ffn(usize),
    /// Channels of a DeltaNet's short convolution: q and k of all key heads, then v of all value heads.
    DeltaChannels(super::DeltaNetShape),
    /// Value heads of a DeltaNet, each as wide as its values.
    DeltaValues(super::DeltaNetShape),
    /// One for each value head of a DeltaNet.
    DeltaHeads(usize),
    /// Width of one value head of a DeltaNet.
    DeltaWidth(usize),
    /// Tokens that a short convolution sees.
    Kernel(usize),
    /// A dimension of one element.
    One,
}

impl Axis {
    /// Query heads of an attention.
    pub(super) fn heads(attention: &AttentionSpec) -> Self {
        Self::Heads { heads: attention.heads, width: attention.head_dim }
    }

    /// Elements along it.
    pub fn size(self) -> usize {
        match self {
            Self::Vocabulary(size)
            | Self::Residual(size)
            | Self::HeadWidth(size)
            | Self::Ffn(size)
            | Self::DeltaHeads(size)
            | Self::DeltaWidth(size)
            | Self::Kernel(size) => size,
            Self::Heads { heads, width } | Self::KvHeads { heads, width } => heads * width,
            Self::DeltaChannels(shape) => shape.channels(),
            Self::DeltaValues(shape) => shape.values(),
            Self::One => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::features::Family;
    use crate::model::spec::Uniform;

    #[test]
    fn names_say_what_roles_do() {
        for family in Family::ALL {
            let config = Uniform { family, layers: 4, ..Uniform::small() }.config();
            for parameter in config.parameters() {
                let found = Role::of(&parameter.name);
                if config.blocks[0].post_norms && parameter.name.contains("_layernorm") {
                    continue; // the same names for other norms
                }
                assert_eq!(found, Some(parameter.role), "{}", parameter.name);
            }
        }
        for other in
            ["model.layers.07.mlp.up_proj.weight", "model.layers.7.mlp.up_proj.scale", "lm_head.bias"]
        {
            assert_eq!(Role::of(other), None, "{other}");
        }
    }
}
