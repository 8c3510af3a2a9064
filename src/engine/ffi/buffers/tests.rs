//! Pages that buffers take, and sequences that are copied between them.

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;

use super::*;
use crate::engine::backend::backend;
use crate::engine::ffi::{Batch, Context, ContextSettings};
use crate::engine::kernels::Kernels;

impl Half {
    /// Number of resident pages of a stream's cells, read or written.
    pub(in crate::engine::ffi) fn resident(&self, stream: usize) -> usize {
        let begin = self.start.addr() + stream * self.stream;
        let (first, last) = (begin / page(), (begin + self.places * self.place).div_ceil(page()));
        let mut found = vec![0u8; last - first];
        let start = self.start.with_addr(first * page());
        // SAFETY: whole pages of a living mapping, and a byte for each of them.
        let code = unsafe { libc::mincore(start.cast(), found.len() * page(), found.as_mut_ptr()) };
        assert_eq!(code, 0, "{}", std::io::Error::last_os_error());
        found.iter().filter(|page| **page & 1 != 0).count()
    }
}

const PLACES: u32 = 1 << 16;

fn model() -> LlamaModel {
    let path = crate::config::default_model();
    LlamaModel::load_from_file(backend(), path, &LlamaModelParams::default()).unwrap()
}

fn context(model: &LlamaModel) -> Context<'_> {
    let settings = ContextSettings {
        tokens: PLACES,
        batch: 512,
        outputs: 4,
        sequences: 4,
        threads: 1,
        kernels: Kernels::best(),
        exact_cache: false,
        embeddings: false,
    };
    Context::new(model, settings).unwrap()
}

fn token(position: u32) -> u32 {
    300 + position * 37 % 900
}

/// Decodes tokens of a sequence. Returns the logits after the last one.
fn read(context: &mut Context<'_>, sequence: u32, positions: std::ops::Range<u32>) -> Vec<f32> {
    let (mut batch, last) = (Batch::default(), positions.end - 1);
    for position in positions {
        batch.push(token(position), position, sequence, position == last);
    }
    context.decode(&batch).unwrap();
    context.logits(batch.len() - 1).to_vec()
}

#[test]
fn this_llama_cpp_makes_buffers_as_is_known_here() {
    backend();
    assert!(take_part());
}

/// Kilobytes of huge pages in this process's mapping of an address.
fn huge_kilobytes(address: usize) -> usize {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut within = false;
    let mut huge = 0;
    for line in maps.lines() {
        let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
        let bounds = range.map(|(from, to)| [from, to].map(|hex| usize::from_str_radix(hex, 16)));
        if let Some([Ok(from), Ok(to)]) = bounds {
            within = (from..to).contains(&address);
        } else if let Some(size) = line.strip_prefix("AnonHugePages:").filter(|_| within) {
            huge += size.trim().trim_end_matches(" kB").parse::<usize>().unwrap();
        }
    }
    huge
}

#[test]
fn weights_are_read_into_huge_pages_and_freed() {
    backend();
    const SIZE: usize = (5 << 20) + 123;
    // SAFETY: a CPU buffer, written within its size and freed once.
    unsafe {
        let kind = sys::ggml_backend_cpu_buffer_type();
        let buffer = reading_weights(|| sys::ggml_backend_buft_alloc_buffer(kind, SIZE));
        assert!(!READING.get());
        let start = sys::ggml_backend_buffer_get_base(buffer);
        assert_eq!(start.addr() % HUGE, 0);
        start.cast::<u8>().write_bytes(1, SIZE);
        let modes = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        if modes.is_ok_and(|modes| !modes.contains("[never]")) {
            assert_eq!(huge_kilobytes(start.addr()), 4 << 10);
        }
        sys::ggml_backend_buffer_free(buffer);
        assert_eq!(huge_kilobytes(start.addr()), 0);
        // A buffer smaller than a huge page is allocated as usual.
        let small = reading_weights(|| sys::ggml_backend_buft_alloc_buffer(kind, HUGE - 1));
        sys::ggml_backend_buffer_get_base(small).cast::<u8>().write_bytes(1, HUGE - 1);
        sys::ggml_backend_buffer_free(small);
    }
}

#[test]
fn a_place_without_a_token_takes_no_memory() {
    let model = model();
    let mut context = context(&model);
    assert!(context.place_bytes() > 0 && context.is_sparse());
    assert_eq!(context.resident(), [0; 4]);
    read(&mut context, 2, 0..1);
    // Attention reads 256 cells at a time.
    let most = 256 * context.place_bytes() as usize / page() + 2 * context.halves();
    let found = context.resident();
    assert!((1..=most).contains(&found[2]), "{found:?}, at most {most}");
    assert_eq!((found[0], found[1], found[3]), (0, 0, 0));
}

#[test]
fn a_sequence_is_handed_on_as_far_as_it_is_wanted_and_computes_as_before() {
    let model = model();
    let mut context = context(&model);
    read(&mut context, 0, 0..100);
    (0..2).for_each(|part| drop(read(&mut context, 0, 100 + part * 300..400 + part * 300)));
    context.copy(0, 1, 100);
    context.forget(1, 100);
    assert!(!context.give_back(0, 700), "it is about to be read");
    let handed = read(&mut context, 1, 100..101);
    let most = 256 * context.place_bytes() as usize / page() + 2 * context.halves();
    let found = context.resident();
    assert!(found[1] <= most && found[0] > 2 * most, "{found:?}, at most {most}");
    read(&mut context, 2, 0..100);
    assert_eq!(handed, read(&mut context, 2, 100..101));
    // Of two copies before the next batch, the longer one counts.
    context.copy(0, 3, 200);
    context.copy(0, 3, 100);
    context.forget(3, 200);
    let again = read(&mut context, 3, 200..201);
    context.forget(0, 200);
    assert_eq!(again, read(&mut context, 0, 200..201));
}

#[test]
fn what_is_forgotten_can_be_given_back_and_the_rest_computes_as_before() {
    let model = model();
    let mut context = context(&model);
    read(&mut context, 0, 0..100);
    (0..2).for_each(|part| drop(read(&mut context, 0, 100 + part * 300..400 + part * 300)));
    read(&mut context, 1, 0..100);
    let before = context.resident();
    context.forget(0, 100);
    assert!(context.give_back(0, 100));
    let after = context.resident();
    let held = 100 * context.place_bytes() as usize / page() + 2 * context.halves();
    assert!(after[0] <= held && before[0] > 2 * held, "{before:?} {after:?}, at most {held}");
    assert_eq!(after[1], before[1], "another sequence keeps its own");
    assert_eq!(read(&mut context, 0, 100..101), read(&mut context, 1, 100..101));
}
