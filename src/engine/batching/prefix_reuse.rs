//! Prefix reuse between sequences. Keys and values of a prefix can be copied from any sequence that
//! begins with it. A recurrent state can't be truncated, so it is copied to a sequence of its own
//! when decoding reaches the end of a head.

use super::super::prefix_cache::{Handing, Held, Origin, Placement, place, shared};
use super::super::scheduler::Slice;
use super::{KvSequence, Lanes, Running};

impl Lanes<'_> {
    /// Whether states can only be reused as a whole, so that the ends of heads must be known in
    /// advance.
    pub fn keeps_heads(&self) -> bool {
        !self.partial
    }

    /// Where a prompt should go; call only when a lane is free. Without `cache`, no prefix is
    /// reused.
    pub fn placement(&self, prompt: &[u32], origin: Origin, cache: bool) -> Placement {
        let held: Vec<Held<'_>> = self.kv.iter().enumerate().map(held).collect();
        let least = (self.copying / self.cost.prompt_token()) as usize;
        let handing = Handing { partial: self.partial, least };
        let found = place(&held, if cache { prompt } else { &[] }, origin, handing);
        found.expect("there are at least as many sequences as lanes")
    }

    /// Removes keys and values after the first `keep` tokens of a sequence, or all of them if the
    /// model can't remove a part.
    pub(super) fn forget(&mut self, sequence: usize, keep: usize) {
        let cached = &mut self.kv[sequence].cached;
        if keep == cached.len() {
            return;
        }
        let id = sequence as u32;
        if keep > 0 && self.context.forget(id, keep as u32) {
            cached.truncate(keep);
        } else {
            // Removing a whole sequence can't fail.
            self.context.forget(id, 0);
            cached.clear();
        }
    }

    /// Removes the last `drop` tokens of a running answer and continues it with `tokens`. A state
    /// that can't be truncated is recomputed from the longest kept head.
    pub(super) fn go_back(&mut self, lane: usize, drop: usize, tokens: Vec<u32>) {
        let KvSequence { cached, origin, .. } = &self.kv[lane];
        let (keep, origin) = (cached.len().saturating_sub(drop), *origin);
        let mut text = cached[..keep].to_vec();
        if self.partial {
            self.forget(lane, keep);
        } else {
            match self.kept_head(&text, origin) {
                Some((head, length)) => self.copy(head, lane, length),
                None => self.forget(lane, 0),
            }
        }
        text.drain(..self.kv[lane].cached.len());
        text.extend(tokens);
        if let Some(running) = &mut self.kv[lane].running {
            running.pending = text;
        }
    }

    /// Replaces what `to` holds by the first `length` tokens of `from`.
    pub(super) fn copy(&mut self, from: usize, to: usize, length: usize) {
        if length == 0 {
            return self.forget(to, 0);
        }
        self.context.copy(from as u32, to as u32, length as u32);
        let tokens = self.kv[from].cached.clone();
        let whole = if self.context.is_sparse() { length } else { self.cells };
        let target = &mut self.kv[to];
        (target.cached, target.written) = (tokens, target.written.max(whole));
        self.forget(to, length);
    }

    /// For each request that waits for another sequence's prefix: copies the prefix once it is
    /// decoded, or once waiting has become pointless.
    pub(super) fn catch_up(&mut self) {
        for index in 0..self.kv.len() {
            let Some(running) = &self.kv[index].running else { continue };
            let Some((leader, length)) = running.follow else { continue };
            let head = &running.planned[..length];
            let known = shared(&self.kv[leader].cached, head);
            let waits = known < length
                && self.kv[leader].running.as_ref().is_some_and(|other| {
                    other.age < running.age && other.planned.get(..length) == Some(head)
                });
            if waits {
                continue;
            }
            let before = self.kv[index].cached.len();
            let source = if self.partial {
                let same = self.kv[leader].origin == self.kv[index].origin;
                same.then_some((leader, known))
            } else {
                self.kept_head(head, self.kv[index].origin)
            };
            if let Some((source, known)) = source.filter(|&(_, known)| known > before) {
                self.copy(source, index, known);
            }
            let cached = self.kv[index].cached.len();
            let running = self.kv[index].running.as_mut().expect("seen above");
            running.follow = None;
            running.pending.drain(..cached - before);
            running.sequence.count_cached((cached - before) as u32);
            self.totals.cached_tokens += (cached - before) as u64;
        }
    }

    /// The longest kept head that the prompt begins with, and its length.
    fn kept_head(&self, prompt: &[u32], origin: Origin) -> Option<(usize, usize)> {
        let kept = self.kv.iter().enumerate().filter(|(_, s)| s.kept && s.origin == origin);
        kept.filter(|(_, s)| prompt.starts_with(&s.cached))
            .map(|(at, s)| (at, s.cached.len()))
            .max_by_key(|(_, length)| *length)
    }

    /// Keeps the states of lanes that have reached the end of a head.
    pub(super) fn keep_heads(&mut self, slices: &[Slice]) {
        for &Slice { lane, .. } in slices {
            let KvSequence { cached, origin, running: Some(running), .. } = &mut self.kv[lane] else {
                continue;
            };
            let (here, origin) = (cached.len(), *origin);
            if !running.heads.contains(&here) {
                continue;
            }
            running.heads.retain(|&head| head > here);
            let head = cached.clone();
            let known = self.kept_head(&head, origin).is_some_and(|(_, length)| length == here);
            let Some(target) = self.place_for_head().filter(|_| !known) else { continue };
            self.copy(lane, target, here);
            self.clock += 1;
            let kept = &mut self.kv[target];
            (kept.origin, kept.last_used, kept.kept) = (origin, self.clock, true);
        }
    }

    /// An idle sequence for a head. Once as many heads are kept as there are sequences in addition
    /// to the lanes, the oldest head is replaced.
    fn place_for_head(&self) -> Option<usize> {
        let kept = self.kv.iter().filter(|kv| kv.kept).count();
        let full = kept >= self.kv.len() - self.lanes;
        let idle = self.kv.iter().enumerate().filter(|(_, s)| s.running.is_none() && s.kept == full);
        idle.min_by_key(|(_, s)| (!s.cached.is_empty(), s.last_used)).map(|(at, _)| at)
    }
}

impl Running<'_> {
    /// Number of tokens until the end of the next head, with `decoded` tokens decoded.
    pub(super) fn until_head(&self, decoded: usize) -> usize {
        let ends = self.heads.iter().filter(|&&head| head > decoded);
        ends.min().map_or(usize::MAX, |head| head - decoded)
    }
}

fn held<'s>((sequence, held): (usize, &'s KvSequence<'_>)) -> Held<'s> {
    Held {
        sequence,
        origin: held.origin,
        tokens: &held.cached,
        planned: held.running.as_ref().map(|running| running.planned.as_slice()),
        last_used: held.last_used,
        kept: held.kept,
    }
}
