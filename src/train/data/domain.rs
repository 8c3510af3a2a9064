//! Domains: rows of one kind with a weight, and the mixture that training draws from.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::cache::TokenFile;
use super::chat::{Chat, Sample};
use super::jsonl::Jsonl;
use super::order::{mix, shuffled};
use super::position::{Piece, Position};
use super::source::{Source, generated};
use crate::digest::Digest;
use crate::task::generator::Split;
use crate::text::tokenizer::Message;
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

    /// Texts of up to `count` training rows, taken evenly from all domains, to train a vocabulary
    /// on.
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

    /// The mixture for training and the domains for evaluation. Files are tokenised once, into
    /// `cache`.
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
    /// How its texts are cut for the length that was last asked for.
    cuts: Mutex<Option<Arc<Cuts>>>,
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
        Ok(Self { name: name.into(), source, chat: chat.clone(), tokens, cuts: Mutex::default() })
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

    /// Rows of files that no packed row of this length has room for, with the tokens that the model
    /// reads of each. Texts are none of them: they are cut.
    pub fn too_long(&self, seq_len: usize) -> impl Iterator<Item = (u64, usize)> {
        let rows = self.tokens.iter().flat_map(TokenFile::rows).zip(0..);
        rows.filter_map(move |((inputs, is_text), at)| (inputs > seq_len && !is_text).then_some((at, inputs)))
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

    /// How its texts are cut for packed rows of this length; none for a source without end.
    fn cuts(&self, seq_len: usize) -> Option<Arc<Cuts>> {
        let tokens = self.tokens.as_ref()?;
        let mut kept = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Arc::new(Cuts::new(tokens.rows(), seq_len));
        let cuts = kept.take().filter(|cuts| cuts.seq_len == seq_len).unwrap_or_else(fresh);
        *kept = Some(cuts.clone());
        Some(cuts)
    }
}

/// The pieces of a domain: its rows, and then what is left of each text that is longer than a
/// packed row.
struct Cuts {
    seq_len: usize,
    rows: u64,
    pieces: u64,
    /// The rows that are cut, each with the number of its second piece.
    long: Vec<(u64, u64)>,
}

impl Cuts {
    /// Cuts rows, of which these are the inputs and whether they are texts.
    fn new(rows: impl Iterator<Item = (usize, bool)>, seq_len: usize) -> Self {
        let (mut count, mut more, mut long) = (0, 0, vec![]);
        for (inputs, is_text) in rows {
            if is_text && inputs > seq_len {
                long.push((count, more));
                more += (inputs.div_ceil(seq_len) - 1) as u64;
            }
            count += 1;
        }
        // Now that the number of rows is known.
        for (_, second) in &mut long {
            *second += count;
        }
        Self { seq_len, rows: count, pieces: count + more, long }
    }

    /// The row that a piece belongs to, and its first token.
    fn piece(&self, number: u64) -> (u64, usize) {
        if number < self.rows {
            return (number, 0);
        }
        let after = self.long.partition_point(|(_, second)| *second <= number);
        let (row, second) = self.long[after - 1];
        (row, (number - second + 1) as usize * self.seq_len)
    }
}

/// What training draws from.
pub struct Mixture {
    domains: Vec<Domain>,
    seed: u64,
}

impl Mixture {
    /// Domains in their order, drawn from by this seed.
    pub fn new(domains: Vec<Domain>, seed: u64) -> Self {
        Self { domains, seed }
    }

    /// Domains, in the order of their weights.
    pub fn domains(&self) -> &[Domain] {
        &self.domains
    }

    /// Draws the next piece for packed rows of this length, from the domain that is furthest behind
    /// its share. Files are read once a pass, in an order that seed, domain and pass decide;
    /// generators go on where they are.
    ///
    /// A stage with another `seq_len` cuts long texts anew: of the pass that it begins in, their
    /// pieces may be read twice or not at all.
    pub fn draw(&self, position: &mut Position, seq_len: usize) -> Piece {
        let (domain, progress) = position.next_domain(self.domains.len());
        let (row, from) = match self.domains[domain].cuts(seq_len) {
            None => (progress.drawn, 0),
            Some(cuts) => {
                if progress.drawn >= cuts.pieces {
                    progress.epoch += 1;
                    progress.drawn = 0;
                }
                let key = mix(mix(self.seed ^ mix(domain as u64)) ^ progress.epoch);
                cuts.piece(shuffled(progress.drawn, cuts.pieces, key))
            }
        };
        progress.drawn += 1;
        Piece { domain, row, from }
    }

    /// The tokens of a piece for packed rows of this length. A row that is no text may be longer.
    ///
    /// # Errors
    /// As [`Domain::sample`].
    pub fn sample(
        &self,
        piece: Piece,
        seq_len: usize,
        max_event_chars: Option<usize>,
    ) -> Result<Sample, TrainError> {
        let domain = &self.domains[piece.domain];
        match &domain.tokens {
            Some(tokens) if tokens.is_text(piece.row) => tokens.part(piece.row, piece.from, seq_len),
            _ => domain.sample(piece.row, max_event_chars),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::tests::{Copies, tokenizer};

    fn chat() -> Arc<Chat> {
        Arc::new(Chat::of_post(tokenizer()))
    }

    /// A domain of JSONL rows.
    fn file(rows: &str, chat: &Arc<Chat>) -> (Domain, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        crate::atomic_file::write(&path, rows.as_bytes()).unwrap();
        let source = Box::new(Jsonl::open(&[path]).unwrap());
        (Domain::new("file", source, chat, folder.path()).unwrap(), folder)
    }

    /// Draws pieces and counts them.
    fn drawn(mixture: &Mixture, position: &mut Position, weights: &[f64], count: usize) -> Vec<Piece> {
        let draw = |_| {
            let piece = mixture.draw(position, 96);
            position.count(piece.domain, weights);
            piece
        };
        (0..count).map(draw).collect()
    }

    #[test]
    fn domains_are_drawn_by_weight_and_the_same_each_time() {
        let domain = |name: &str| Domain::new(name, Box::new(Copies), &chat(), Path::new("unused")).unwrap();
        let mixture = Mixture::new(vec![domain("a"), domain("b"), domain("c")], 5);
        let weights = [1.0, 6.0, 3.0];
        let mut position = Position::default();
        let first = drawn(&mixture, &mut position, &weights, 400);
        let kept = serde_json::to_string(&position).unwrap();
        let second = drawn(&mixture, &mut position, &weights, 400);
        for (domain, weight) in weights.iter().enumerate() {
            let of_domain = first.iter().chain(&second).filter(|piece| piece.domain == domain).count();
            assert!((of_domain as f64 - weight * 80.0).abs() <= 1.0, "{domain}: {of_domain}");
        }
        // Weights that change count from then on: what was read before is not made up for.
        let turned = drawn(&mixture, &mut position, &[1.0, 0.0, 0.0], 50);
        assert!(turned.iter().filter(|piece| piece.domain == 0).count() >= 45, "{turned:?}");
        let mut position: Position = serde_json::from_str(&kept).unwrap();
        assert_eq!(drawn(&mixture, &mut position, &weights, 400), second);
    }

    #[test]
    fn each_pass_over_a_file_reads_every_row_once_in_an_order_of_its_own() {
        let chat = chat();
        let rows: String = (0..60).map(|i| format!("{{\"text\":\"w{i}\"}}\n")).collect::<Vec<_>>().concat();
        let passes = |seed: u64| {
            let (domain, _folder) = file(&rows, &chat);
            let mixture = Mixture::new(vec![domain], seed);
            let drawn = drawn(&mixture, &mut Position::default(), &[1.0], 180);
            drawn
                .chunks(60)
                .map(|pass| pass.iter().map(|piece| piece.row).collect())
                .collect::<Vec<Vec<u64>>>()
        };
        let one = passes(1);
        for pass in &one {
            let mut sorted = pass.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..60).collect::<Vec<_>>());
        }
        assert!(one[0] != one[1] && one[1] != one[2]);
        assert_eq!(passes(1), one);
        assert_ne!(passes(2)[0], one[0]);
    }

    #[test]
    fn texts_longer_than_a_packed_row_are_cut_and_every_token_is_learnt_once() {
        let chat = chat();
        let texts = ["Q".repeat(250), "short".into(), "R".repeat(96), "S".repeat(97)];
        let rows: String =
            texts.iter().map(|text| format!("{{\"text\":\"{text}\"}}\n")).collect::<Vec<_>>().concat();
        let (domain, _folder) = file(&rows, &chat);
        let whole: Vec<Sample> = (0..4).map(|row| domain.sample(row, None).unwrap()).collect();
        assert_eq!(domain.too_long(96).count(), 0);
        let mixture = Mixture::new(vec![domain], 3);
        // 250 inputs are three pieces, 97 are two.
        let mut pieces = drawn(&mixture, &mut Position::default(), &[1.0], 7);
        pieces.sort_unstable_by_key(|piece| (piece.row, piece.from));
        let places: Vec<(u64, usize)> = pieces.iter().map(|piece| (piece.row, piece.from)).collect();
        assert_eq!(places, [(0, 0), (0, 96), (0, 192), (1, 0), (2, 0), (3, 0), (3, 96)]);
        for (row, whole) in whole.into_iter().enumerate() {
            let of_row = pieces.iter().filter(|piece| piece.row == row as u64);
            let cut: Vec<Sample> = of_row.map(|&piece| mixture.sample(piece, 96, None).unwrap()).collect();
            assert!(cut.iter().all(|part| part.inputs() <= 96));
            let learnt: Vec<u32> = cut.iter().flat_map(|part| &part.ids[part.answer..]).copied().collect();
            assert_eq!(learnt, whole.ids[1..]);
            assert_eq!(whole.parts(96), cut);
        }
    }
}
