//! PEFT's LoRA: reads the configuration and safetensors of a folder (or archive) as pairs for a
//! post.

pub(super) mod config;
pub(super) mod names;

use std::cmp::Reverse;
use std::collections::HashMap;

use super::container::Container;
use super::dropped::Json;
use super::keys::{Origin, bad};
use super::lora::{self, Half, Pair, Side};
use super::metadata::Metadata;
use super::{Defect, Format, Limits, Post, Refusal, Spoke};
use crate::gguf::GgmlType;
use config::Config;
use names::Module;

/// An adapter of PEFT, in llama.cpp's terms: names, dimensions, one alpha.
#[derive(Debug)]
pub(super) struct Peft {
    /// Numerator of the scale of every pair.
    pub alpha: f32,
    /// The pairs, each with the factor of its B that makes `alpha / r` right for all of them.
    pub pairs: Vec<(Pair, f32)>,
    pub origin: Origin,
}

impl Peft {
    /// Reads descriptions and configuration, and checks them against the post.
    ///
    /// # Errors
    /// As [`Config::read`], [`names::read`] and [`lora::pair_up`]; a rank that differs from the
    /// configuration's.
    pub fn read(
        container: &Container,
        config: &Json,
        post: Option<&Post>,
        limits: &Limits,
    ) -> Result<Self, Refusal> {
        let refuse = |reason: Defect| container.refuse(reason);
        let origin = Metadata::new(container, None).origin()?;
        origin.check(post).map_err(refuse)?;
        if let Some(post) = post {
            names::check_family(post).map_err(refuse)?;
        }
        let path = &config.path;
        let config = Config::read(config)?;
        let (mut halves, mut modules) = (Vec::new(), HashMap::new());
        for stored in container.tensors(limits)? {
            let Module { module, target, side } = names::read(&stored.name).map_err(refuse)?;
            let mut half = Half { target, side, stored };
            // The type that the conversion writes.
            half.stored.kind = GgmlType::F32;
            half.stored.bytes = half.stored.dims.iter().product::<u64>().saturating_mul(4);
            if half.target == lora::EMBEDDING && side == Side::A {
                // PEFT keeps a column for each token, llama.cpp a row.
                half.stored.dims.swap(0, 1);
            }
            modules.insert(half.target.clone(), module);
            halves.push(half);
        }
        let mut pairs = Vec::new();
        for pair in lora::pair_up(container, halves, post, limits)? {
            let module = &modules[&pair.target];
            if config.rank(module) != pair.rank {
                let expected = format!("{}, the rank of {:?}", pair.rank, pair.a.name);
                return Err(Refusal::new(path, bad("r", config.rank(module), expected)));
            }
            let alpha = config.scale(module) * pair.rank as f64;
            pairs.push((pair, alpha));
        }
        let alpha = most_common(pairs.iter().map(|(_, alpha)| *alpha as f32));
        if !alpha.is_finite() || alpha == 0.0 {
            return Err(Refusal::new(path, bad("lora_alpha", alpha, "a number that f32 holds")));
        }
        let factor = |own: f64| {
            if (own as f32).to_bits() == alpha.to_bits() { 1.0 } else { (own / f64::from(alpha)) as f32 }
        };
        let pairs = pairs.into_iter().map(|(pair, own)| (pair, factor(own))).collect();
        Ok(Self { alpha, pairs, origin })
    }

    /// Reads every number and returns the facts.
    pub fn inspect(self, container: &Container, format: Format, limits: &Limits) -> Result<Spoke, Refusal> {
        let factors: HashMap<String, f32> =
            self.pairs.iter().map(|(pair, factor)| (pair.target.clone(), *factor)).collect();
        let pairs: Vec<Pair> = self.pairs.into_iter().map(|(pair, _)| pair).collect();
        let scale = |pair: &Pair| f64::from(self.alpha) / pair.rank as f64 * f64::from(factors[&pair.target]);
        let (bytes, norms) = lora::weigh(container, &pairs, limits, scale)?;
        Ok(lora::facts(format, self.alpha, &pairs, bytes, norms, self.origin))
    }
}

/// The most frequent value; of several, the first.
fn most_common(values: impl Iterator<Item = f32>) -> f32 {
    let mut counts: HashMap<u32, (usize, Reverse<usize>)> = HashMap::new();
    for (at, value) in values.enumerate() {
        counts.entry(value.to_bits()).or_insert((0, Reverse(at))).0 += 1;
    }
    counts.into_iter().max_by_key(|(_, rank)| *rank).map_or(0.0, |(bits, _)| f32::from_bits(bits))
}
