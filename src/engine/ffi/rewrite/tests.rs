//! Logits with and without the kernels.

use std::path::Path;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;

use crate::engine::backend::backend;
use crate::engine::ffi::{Batch, Context, ContextSettings};
use crate::model::gguf_file::{Precision, export, import};
use crate::model::stand_in::{self, Shape};

fn load(path: &Path) -> LlamaModel {
    LlamaModel::load_from_file(backend(), path, &LlamaModelParams::default()).unwrap()
}

/// Logits of a conversation in several sequences: a prompt that llama.cpp's own kernel computes, single rows, several
/// rows, several sequences at once (some with a row that nobody reads), a sequence that is cut back and continued.
fn logits(model: &LlamaModel, threads: u32, own_kernels: bool) -> Vec<f32> {
    let settings = ContextSettings { tokens: 1024, batch: 512, sequences: 3, threads, own_kernels };
    let mut context = Context::new(model, settings).unwrap();
    let token = |sequence: u32, position: u32| 5 + (position * 37 + sequence * 101) % 900;
    let mut all = Vec::new();
    let mut decode = |context: &mut Context<'_>, rows: &[(u32, std::ops::Range<u32>)]| {
        let mut batch = Batch::default();
        for (sequence, positions) in rows {
            for position in positions.clone() {
                let last = position + 1 == positions.end;
                batch.push(token(*sequence, position), position, *sequence, last);
            }
        }
        context.decode(&batch).unwrap();
        let mut place = 0;
        for (_, positions) in rows {
            place += positions.len();
            all.extend_from_slice(context.logits(place - 1));
        }
    };
    decode(&mut context, &[(0, 0..400)]);
    for position in 400..404 {
        decode(&mut context, &[(0, position..position + 1)]);
    }
    decode(&mut context, &[(0, 404..411)]);
    context.copy(0, 1);
    assert!(context.forget(1, 300));
    decode(&mut context, &[(1, 300..305)]);
    decode(&mut context, &[(2, 0..40)]);
    decode(&mut context, &[(0, 411..413), (1, 305..307), (2, 40..42)]);
    decode(&mut context, &[(0, 413..415), (1, 307..309), (2, 42..44)]);
    assert!(context.forget(0, 390));
    decode(&mut context, &[(0, 390..393), (1, 309..312)]);
    all
}

#[test]
fn logits_are_those_of_the_other_kernel() {
    let folder = tempfile::tempdir().unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bespoke-tiny.gguf");
    let stand_in = folder.path().join("stand-in.gguf");
    stand_in::write(Shape::Tiny, 7, &shipped, &stand_in).unwrap();
    for path in [shipped, stand_in] {
        // Not in Q8_0: rounding what goes into a product would make much of a small difference.
        let exact = folder.path().join("f32.gguf");
        export(&import(&path).unwrap(), "exact", folder.path(), &exact, Precision::F32).unwrap();
        let model = load(&exact);
        let given = logits(&model, 1, false);
        let size = given.iter().map(|x| x * x).sum::<f32>() / given.len() as f32;
        // With more threads than heads of keys and values, cells are divided among them.
        for threads in [1, 3] {
            let own = logits(&model, threads, true);
            let off = own.iter().zip(&given).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
            // llama.cpp sums values in f16.
            let relative = (off / given.len() as f32 / size).sqrt();
            assert!(relative < 5e-3, "{}, {threads} threads: {relative}", path.display());
            assert!(off > 0.0, "both kernels are the same: was anything rewritten?");
        }
    }
}
