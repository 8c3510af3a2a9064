//! Domains: rows of one kind with a weight, and the mixture that training draws from.

use std::path::Path;
use std::sync::Arc;

use super::cache::TokenFile;
use super::chat::{Chat, Sample};
use super::jsonl::Jsonl;
use super::source::{Source, generated};
use crate::digest::Digest;
use crate::model::tokenizer::Message;
use crate::task::generator::Split;
use crate::train::TrainError;
use crate::train::recipe::{DataRecipe, DomainRecipe};

/// Training and held-out rows of all domains, before they are tokenised.
pub struct Sources {
    domains: Vec<Opened>,
}

struct Opened {
    name: String,
    train: Box<dyn Source>,
    eval: Box<dyn Source>,
}

impl Sources {
    /// Opens the sources of a recipe, in the order of their names.
    ///
    /// # Errors
    /// Files that can't be read or contain an invalid row.
    pub fn open(recipe: &DataRecipe) -> Result<Self, TrainError> {
        let open = |(name, domain): (&String, &DomainRecipe)| {
            let (train, eval) = match domain.generator {
                Some(task) => {
                    (generated(task, domain.seed, Split::Train), generated(task, domain.seed, Split::Eval))
                }
                None => (
                    Box::new(Jsonl::open(&domain.train)?) as Box<dyn Source>,
                    Box::new(Jsonl::open(&domain.eval)?) as Box<dyn Source>,
                ),
            };
            Ok(Opened { name: name.clone(), train, eval })
        };
        Ok(Self { domains: recipe.domains.iter().map(open).collect::<Result<_, TrainError>>()? })
    }

    /// Texts of up to `count` training rows, taken evenly from all domains, to train a vocabulary on.
    ///
    /// # Errors
    /// A source that fails.
    pub fn texts(&self, count: u64, max_event_chars: Option<usize>) -> Result<Vec<Vec<Message>>, TrainError> {
        let mut texts = Vec::new();
        for Opened { train, .. } in &self.domains {
            let share = count.div_ceil(self.domains.len() as u64);
            for index in 0..train.rows().map_or(share, |rows| rows.min(share)) {
                texts.push(train.row(index, max_event_chars)?.texts());
            }
        }
        Ok(texts)
    }

    /// The mixture for training and the domains for evaluation. Files are tokenised once, into `cache`.
    ///
    /// # Errors
    /// A row that has no tokens; the disk.
    pub fn tokenised(
        self,
        chat: &Arc<Chat>,
        cache: &Path,
        seed: u64,
    ) -> Result<(Mixture, Vec<Domain>), TrainError> {
        let (mut train, mut eval) = (vec![], vec![]);
        for domain in self.domains {
            train.push(Domain::new(domain.name.clone(), domain.train, chat, cache)?);
            eval.push(Domain::new(domain.name, domain.eval, chat, cache)?);
        }
        Ok((Mixture { domains: train, seed }, eval))
    }
}

/// Rows of one kind, as tokens.
pub struct Domain {
    /// Its name in the recipe.
    pub name: String,
    source: Box<dyn Source>,
    chat: Arc<Chat>,
    tokens: Option<TokenFile>,
}

impl Domain {
    /// A source with its tokens, kept in a file of `cache` where the source has an end.
    ///
    /// # Errors
    /// A row that has no tokens; the disk.
    pub fn new(
        name: impl Into<String>,
        source: Box<dyn Source>,
        chat: &Arc<Chat>,
        cache: &Path,
    ) -> Result<Self, TrainError> {
        let tokens = match (source.rows(), source.digest()) {
            (Some(rows), Some(digest)) => Some(TokenFile::of(&*source, rows, digest, chat, cache)?),
            _ => None,
        };
        Ok(Self { name: name.into(), source, chat: chat.clone(), tokens })
    }

    /// Row `index`.
    ///
    /// # Errors
    /// A source that fails, a row without tokens.
    pub fn sample(&self, index: u64, max_event_chars: Option<usize>) -> Result<Sample, TrainError> {
        if let Some(tokens) = &self.tokens {
            return tokens.sample(index);
        }
        let row = self.source.row(index, max_event_chars)?;
        self.chat
            .sample(&row)
            .map_err(|e| TrainError::Row { place: self.place(index), message: e.to_string() })
    }

    /// Tokens that the model reads of each row, where rows have an end.
    pub fn lengths(&self) -> impl Iterator<Item = usize> {
        self.tokens.iter().flat_map(TokenFile::inputs)
    }

    /// Its file of tokens, if that was damaged and has been made again.
    pub fn remade(&self) -> Option<&Path> {
        self.tokens.as_ref().and_then(TokenFile::remade)
    }

    /// Number of rows, unless they are endless.
    pub fn rows(&self) -> Option<u64> {
        self.source.rows()
    }

    /// Hash of its rows, unless they are endless.
    pub fn digest(&self) -> Option<Digest> {
        self.source.digest()
    }

    /// The place of a row, for messages.
    pub fn place(&self, index: u64) -> String {
        self.source.place(index)
    }
}

/// What training draws from: draw number `n` is a pure function of seed, weights and `n`.
pub struct Mixture {
    domains: Vec<Domain>,
    seed: u64,
}

/// Tells the draw of a domain from the draw of a row.
const DOMAIN_SALT: u64 = 0x6d69_7874_7572_6521;

impl Mixture {
    /// Domains in their order, drawn from by this seed.
    pub fn new(domains: Vec<Domain>, seed: u64) -> Self {
        Self { domains, seed }
    }

    /// Domains, in the order of their weights.
    pub fn domains(&self) -> &[Domain] {
        &self.domains
    }

    /// Draw `n`: the domain by its weight, then a row of it. Files are drawn from with replacement, generators in order.
    ///
    /// # Errors
    /// As [`Domain::sample`].
    pub fn draw(&self, n: u64, weights: &[f64], max_event_chars: Option<usize>) -> Result<Drawn, TrainError> {
        let domain = self.choose(n, weights);
        let index = match self.domains[domain].rows() {
            Some(rows) => mix(self.seed ^ mix(n)) % rows,
            None => n,
        };
        let sample = self.domains[domain].sample(index, max_event_chars)?;
        Ok(Drawn { domain, index, sample })
    }

    fn choose(&self, n: u64, weights: &[f64]) -> usize {
        let total: f64 = weights.iter().sum();
        // 53 bits make a number in 0..1 exactly.
        let mut left = (mix(self.seed ^ DOMAIN_SALT ^ mix(n)) >> 11) as f64 / (1u64 << 53) as f64 * total;
        let last = self.domains.len() - 1;
        weights[..last]
            .iter()
            .position(|weight| {
                left -= weight;
                left < 0.0
            })
            .unwrap_or(last)
    }
}

/// A drawn row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drawn {
    /// Which domain.
    pub domain: usize,
    /// Which row of it.
    pub index: u64,
    /// Its tokens.
    pub sample: Sample,
}

/// SplitMix64's finaliser (Steele et al. 2014): neighbouring numbers become unrelated ones.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::tests::{Copies, tokenizer};

    #[test]
    fn domains_are_drawn_by_weight_and_the_same_each_time() {
        let chat = Arc::new(Chat::of_post(tokenizer()));
        let domain = |name: &str| Domain::new(name, Box::new(Copies), &chat, Path::new("unused")).unwrap();
        let mixture = Mixture::new(vec![domain("a"), domain("b"), domain("c")], 5);
        let weights = [1.0, 6.0, 3.0];
        let draws: Vec<Drawn> = (0..2000).map(|n| mixture.draw(n, &weights, None).unwrap()).collect();
        for (domain, weight) in weights.iter().enumerate() {
            let share = draws.iter().filter(|drawn| drawn.domain == domain).count() as f64 / 2000.0;
            assert!((share - weight / 10.0).abs() < 0.03, "{domain}: {share}");
        }
        assert_eq!(mixture.draw(77, &weights, None).unwrap(), draws[77]);
        let other = Mixture::new(vec![domain("a"), domain("b"), domain("c")], 6);
        assert!((0..50).any(|n| other.draw(n, &weights, None).unwrap().domain != draws[n as usize].domain));
    }
}
