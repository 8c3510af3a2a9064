//! Tests of the checks of `deci`, llama.cpp's Llama whose blocks may each have other sizes.

use bespoke::gguf::{GgmlType, Gguf, check_model};

use super::Model;

#[test]
fn blocks_of_other_sizes_are_checked_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let check = |model: Model| check_model(&Gguf::open(&model.write(folder.path())).unwrap());
    let heads = "deci.attention.head_count";
    let kv_heads = "deci.attention.head_count_kv";
    let ffn = "deci.feed_forward_length";
    // A second block of other widths, a third with a matrix in place of attention, a fourth of
    // nothing.
    let uneven = || {
        let sizes = [("attn_q", 16, 32), ("attn_k", 16, 16), ("attn_v", 16, 16), ("attn_output", 32, 16)];
        let ffn_of = |f| [("ffn_gate", 16, f), ("ffn_up", 16, f), ("ffn_down", f, 16)];
        let mut model = Model::new()
            .per_block()
            .set("deci.block_count", 4u32)
            .set(heads, vec![2u32, 4, 2, 0])
            .set(kv_heads, vec![1u32, 2, 0, 0])
            .set(ffn, vec![32u32, 8, 4, 0]);
        for (part, input, output) in sizes.into_iter().chain(ffn_of(8)) {
            model = model.tensor(&format!("blk.1.{part}.weight"), &[input, output], GgmlType::F32);
        }
        for (part, input, output) in [("attn_output", 16, 16)].into_iter().chain(ffn_of(4)) {
            model = model.tensor(&format!("blk.2.{part}.weight"), &[input, output], GgmlType::F32);
        }
        for norm in ["blk.1.attn_norm", "blk.1.ffn_norm", "blk.2.attn_norm", "blk.2.ffn_norm"] {
            model = model.tensor(&format!("{norm}.weight"), &[16], GgmlType::F32);
        }
        model
    };
    check(Model::new().per_block()).unwrap();
    check(uneven()).unwrap();
    for (model, expected) in [
        (uneven().set(heads, vec![2u32, 4, 2]), "head_count\" has 3 entries, expected 4"),
        (
            uneven().set(kv_heads, vec![1u32, 3, 0, 0]),
            "is 3, expected 0, or a divisor of 4 (head_count), in block 1",
        ),
        (uneven().set(kv_heads, vec![1u32, 2, 0, 1]), "is 1, expected 0, or a divisor of 0"),
        (uneven().set(heads, vec![0u32, 4, 2, 0]).set(kv_heads, vec![0u32, 2, 0, 0]), "in the first block"),
        (uneven().set(ffn, vec![32u32, 16, 4, 0]), "tensor \"blk.1.ffn_"),
        (uneven().set(ffn, 32u32), "tensor \"blk."),
        (uneven().set(ffn, vec![32i32, 8, -4, 0]), "expected u32, or an array of u32"),
        (uneven().without(ffn), "\"deci.feed_forward_length\" is missing"),
        (uneven().tensor("blk.3.attn_norm.weight", &[16], GgmlType::F32), "\"blk.3.attn_norm.weight\""),
    ] {
        let message = check(model).unwrap_err().to_string();
        assert!(message.contains(expected), "{expected}: {message}");
    }
}
