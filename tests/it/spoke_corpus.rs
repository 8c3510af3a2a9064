//! The kinds of hostile spokes, each with the code of its refusal. `tests/corpus/spokes` has them
//! as files for the fuzzer.

mod safetensors;

use self::safetensors::{felix_safetensors, peft, peft_files, peft_in, safetensors_files};
use crate::spoke_files::{F32, Q8_0, RawGguf, felix, lora, number, peft_weights, post, text};

/// A file: its name, its bytes, and the code of its refusal (`None` if it is a spoke for the post).
pub type Kind = (&'static str, Vec<u8>, Option<&'static str>);

/// All kinds.
pub fn all() -> Vec<Kind> {
    let mut all: Vec<Kind> = vec![
        ("valid-lora.gguf", lora().bytes(), None),
        ("valid-felix.gguf", felix().bytes(), None),
        ("valid-felix.safetensors", felix_safetensors(|_| {}), None),
        ("valid-peft.zip", peft(|_| {}, peft_weights()), None),
        ("valid-peft-in-folder.zip", peft_in("adapter/"), None),
    ];
    let refused = [containers(), keys(), pairs(), felix_files(), safetensors_files(), peft_files()].concat();
    all.extend(refused.into_iter().map(|(name, bytes, code)| (name, bytes, Some(code))));
    all
}

type Refused = (&'static str, Vec<u8>, &'static str);

const A: &str = "blk.0.attn_q.weight.lora_a";
const B: &str = "blk.0.attn_q.weight.lora_b";

/// Defects of the container.
fn containers() -> Vec<Refused> {
    let claimed = |tensors, keys| {
        let mut file = lora();
        file.claimed = [tensors, keys];
        file.bytes()
    };
    let array = |of: u32, count: u64, rest: &[u8]| {
        let mut value = of.to_le_bytes().to_vec();
        value.extend(count.to_le_bytes());
        value.extend(rest);
        lora().key("some.array", 9, value).bytes()
    };
    let long = |length: u64| lora().key("some.text", 8, length.to_le_bytes().to_vec()).bytes();
    let raw_key = |key: &[u8]| {
        let mut file = lora();
        file.keys.push((key.into(), 4, 1u32.to_le_bytes().to_vec()));
        file.bytes()
    };
    let dims = |dims: &[u64]| lora().edit(A, |t| t.dims = dims.into()).bytes();
    let offset = |offset| lora().edit(B, |t| t.offset = Some(offset)).bytes();
    let mut twice = lora();
    twice.keys.push((b"adapter.type".to_vec(), 8, text("lora")));
    let mut double = lora();
    double.tensors.push(double.tensors[0].clone());
    // The length of a key comes first after the counts.
    let mut key_length = lora().bytes();
    key_length[24..32].copy_from_slice(&(1u64 << 40).to_le_bytes());
    let (header, keys_end) = lora().sections();
    let whole = lora().bytes();
    let cut = |length: usize| whole[..length].to_vec();
    vec![
        ("empty.gguf", Vec::new(), "empty_file"),
        ("text.gguf", b"This is a spoke, believe me.\n".to_vec(), "unknown_format"),
        ("one-byte.gguf", b"G".to_vec(), "unknown_format"),
        ("magic-only.gguf", b"GGUF".to_vec(), "truncated"),
        ("big-endian.gguf", [b"GGUF".as_slice(), &[0, 0, 0, 3], &[0; 16]].concat(), "big_endian"),
        ("version-9.gguf", [b"GGUF".as_slice(), &[9, 0, 0, 0], &[0; 16]].concat(), "gguf_version"),
        ("cut-in-counts.gguf", cut(12), "truncated"),
        ("cut-in-keys.gguf", cut(keys_end - 5), "truncated"),
        ("cut-after-keys.gguf", cut(keys_end), "truncated"),
        ("cut-in-descriptions.gguf", cut(header.len() - 5), "truncated"),
        ("cut-before-data.gguf", cut(header.len()), "outside_file"),
        ("cut-in-data.gguf", cut(whole.len() - 100), "outside_file"),
        ("tensors-2-63.gguf", claimed(Some(1 << 63), None), "count"),
        ("keys-2-63.gguf", claimed(None, Some(1 << 63)), "count"),
        ("keys-too-many.gguf", claimed(None, Some(20)), "key_length"),
        ("key-length-past-file.gguf", key_length, "key_length"),
        ("key-not-utf8.gguf", raw_key(b"a\xff"), "not_utf8"),
        ("key-with-zero.gguf", raw_key(b"adapter.type\0"), "zero_byte"),
        ("key-empty.gguf", raw_key(b""), "key_length"),
        ("text-length-past-file.gguf", long(1 << 40), "truncated"),
        ("text-length-overflow.gguf", long(u64::MAX), "truncated"),
        ("array-length-past-file.gguf", array(4, 1 << 61, &[0; 8]), "count"),
        ("array-of-texts-past-file.gguf", array(8, 1 << 20, &[0; 8]), "count"),
        ("array-of-arrays.gguf", array(9, 1, &[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), "nested_array"),
        ("array-of-unknown.gguf", array(77, 1, &[0; 8]), "unknown_value_type"),
        ("bool-of-2.gguf", lora().key("some.bool", 7, vec![2]).bytes(), "bad_bool"),
        ("value-type-13.gguf", lora().key("some.key", 13, vec![0; 8]).bytes(), "unknown_value_type"),
        ("key-twice.gguf", twice.bytes(), "duplicate_key"),
        ("tensor-twice.gguf", double.bytes(), "duplicate_tensor"),
        ("alignment-0.gguf", lora().u32("general.alignment", 0).bytes(), "alignment"),
        ("alignment-48.gguf", lora().u32("general.alignment", 48).bytes(), "alignment"),
        ("alignment-text.gguf", lora().text("general.alignment", "32").bytes(), "wrong_type"),
        ("dims-overflow.gguf", dims(&[1 << 33, 1 << 33]), "size_overflow"),
        ("dims-none.gguf", dims(&[]), "dimension_count"),
        ("dims-five.gguf", dims(&[16, 2, 1, 1, 1]), "dimension_count"),
        ("rank-0.gguf", dims(&[16, 0]), "empty_dimension"),
        ("offset-past-file.gguf", offset(1 << 40), "outside_file"),
        ("offset-near-2-64.gguf", offset(u64::MAX - 31), "outside_file"),
        ("size-past-file.gguf", dims(&[16, 1 << 20]), "outside_file"),
        ("misaligned.gguf", offset(136), "misaligned"),
        ("overlap.gguf", offset(32), "overlap"),
        ("swapped.gguf", swapped(), "not_contiguous"),
        ("tensor-name-64.gguf", lora().edit(A, |t| t.name = "n".repeat(64)).bytes(), "tensor_name_length"),
        ("type-unknown.gguf", lora().edit(A, |t| t.kind = 99).bytes(), "unknown_tensor_type"),
        ("pickle.gguf", b"\x80\x04\x95\x10\0\0\0\0\0\0\0}".to_vec(), "pickle"),
    ]
}

/// Two tensors of the same size with exchanged offsets.
fn swapped() -> Vec<u8> {
    lora().edit(A, |t| t.offset = Some(128)).edit(B, |t| t.offset = Some(0)).bytes()
}

/// Defects of the keys that make a file an adapter for a post.
fn keys() -> Vec<Refused> {
    let number = |key: &str| lora().u32(key, 7).bytes();
    let digest = "0123456789abcdef".repeat(4);
    let alpha = |kind: u32, bytes: &[u8]| lora().key("adapter.lora.alpha", kind, bytes.to_vec()).bytes();
    let tokens = |count: u64| {
        let mut value = 8u32.to_le_bytes().to_vec();
        value.extend(count.to_le_bytes());
        (0..count).for_each(|id| value.extend(text(&format!("t{id}"))));
        lora().key("tokenizer.ggml.tokens", 9, value).bytes()
    };
    vec![
        ("type-as-number.gguf", number("general.type"), "wrong_type"),
        ("type-missing.gguf", lora().without("general.type").bytes(), "not_an_adapter"),
        ("type-model.gguf", post(false).bytes(), "not_an_adapter"),
        ("type-other.gguf", lora().text("general.type", "mmproj").bytes(), "not_an_adapter"),
        ("architecture-as-number.gguf", number("general.architecture"), "wrong_type"),
        ("architecture-missing.gguf", lora().without("general.architecture").bytes(), "missing_key"),
        (
            "architecture-other.gguf",
            lora().text("general.architecture", "qwen3").bytes(),
            "architecture_mismatch",
        ),
        ("name-as-number.gguf", number("general.name"), "wrong_type"),
        ("file-type-as-text.gguf", lora().text("general.file_type", "F16").bytes(), "wrong_type"),
        ("version-as-text.gguf", lora().text("general.quantization_version", "2").bytes(), "wrong_type"),
        ("adapter-as-number.gguf", number("adapter.type"), "wrong_type"),
        ("adapter-missing.gguf", lora().without("adapter.type").bytes(), "missing_key"),
        ("adapter-other.gguf", lora().text("adapter.type", "control_vector").bytes(), "unknown_adapter_type"),
        ("alpha-as-text.gguf", lora().text("adapter.lora.alpha", "4").bytes(), "wrong_type"),
        ("alpha-as-u32.gguf", number("adapter.lora.alpha"), "wrong_type"),
        ("alpha-as-f64.gguf", alpha(12, &4f64.to_le_bytes()), "wrong_type"),
        ("alpha-missing.gguf", lora().without("adapter.lora.alpha").bytes(), "missing_key"),
        ("alpha-nan.gguf", alpha(6, &f32::NAN.to_le_bytes()), "bad_value"),
        ("alpha-infinite.gguf", alpha(6, &f32::INFINITY.to_le_bytes()), "bad_value"),
        ("alpha-0.gguf", alpha(6, &0f32.to_le_bytes()), "bad_value"),
        ("task-name-as-number.gguf", number("adapter.lora.task_name"), "wrong_type"),
        ("prompt-prefix-as-number.gguf", number("adapter.lora.prompt_prefix"), "wrong_type"),
        ("activated-lora.gguf", number("adapter.alora.invocation_tokens"), "activated_lora"),
        ("adapter-key-unknown.gguf", number("adapter.lora.magic"), "unknown_key"),
        ("post-as-number.gguf", number("bespoke.post.sha256"), "wrong_type"),
        ("post-no-hash.gguf", lora().text("bespoke.post.sha256", "abc").bytes(), "bad_value"),
        ("post-other.gguf", lora().text("bespoke.post.sha256", &digest).bytes(), "post_mismatch"),
        ("tokenizer-as-number.gguf", number("bespoke.tokenizer.sha256"), "wrong_type"),
        (
            "tokenizer-other.gguf",
            lora().text("bespoke.tokenizer.sha256", &digest).bytes(),
            "tokenizer_mismatch",
        ),
        ("prompt-as-number.gguf", number("bespoke.prompt.id"), "wrong_type"),
        ("task-as-number.gguf", number("bespoke.task"), "wrong_type"),
        ("template-as-number.gguf", number("tokenizer.chat_template"), "wrong_type"),
        ("tokens-too-few.gguf", tokens(31), "array_length"),
        ("tokens-as-number.gguf", number("tokenizer.ggml.tokens"), "wrong_type"),
    ]
}

/// Defects of LoRA pairs.
fn pairs() -> Vec<Refused> {
    let dims = |name: &str, dims: &[u64]| {
        lora().edit(name, |t| {
            t.dims = dims.into();
            let bytes = dims.iter().product::<u64>() as usize * 4;
            t.data.resize(bytes, 0);
        })
    };
    let value = |name: &str, at: usize, value: f32| {
        lora().edit(name, |t| t.data[4 * at..][..4].copy_from_slice(&value.to_le_bytes())).bytes()
    };
    let kind = |kind: u32, bytes: usize| {
        lora()
            .edit(A, |t| {
                t.kind = kind;
                t.data = vec![0; bytes];
            })
            .bytes()
    };
    let renamed = |from: &str, to: &str| lora().edit(from, |t| t.name = to.into()).bytes();
    let only = |target: &str, a: &[u64], b: &[u64]| {
        let mut file = lora();
        file.tensors.clear();
        file.tensor(&format!("{target}.lora_a"), a, number)
            .tensor(&format!("{target}.lora_b"), b, number)
            .bytes()
    };
    // 32 columns are one block of Q8_0; its scale is a NaN.
    let mut block = vec![0u8; 34];
    block[..2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    let mut quantised = lora();
    quantised.tensors.clear();
    let quantised = quantised.stored("blk.1.ffn_down.weight.lora_a", &[32, 1], Q8_0, block).tensor(
        "blk.1.ffn_down.weight.lora_b",
        &[1, 16],
        number,
    );
    let mut none = lora();
    none.tensors.clear();
    vec![
        ("no-tensors.gguf", none.bytes(), "empty_spoke"),
        ("a-without-b.gguf", lora().drop_tensor(B).bytes(), "unpaired_tensor"),
        ("b-without-a.gguf", lora().drop_tensor(A).bytes(), "unpaired_tensor"),
        ("rank-mismatch.gguf", dims(B, &[3, 16]).bytes(), "rank_mismatch"),
        ("rank-1025.gguf", rank_1025(), "rank_limit"),
        ("inputs-off.gguf", dims(A, &[17, 2]).bytes(), "dimensions"),
        ("outputs-off.gguf", dims(B, &[2, 15]).bytes(), "dimensions"),
        ("experts-a.gguf", dims(A, &[16, 2, 4]).bytes(), "expert_dimension"),
        ("experts-b.gguf", dims(B, &[2, 16, 4]).bytes(), "expert_dimension"),
        ("fourth-dimension.gguf", dims(A, &[16, 2, 1, 4]).bytes(), "expert_dimension"),
        ("a-nan.gguf", value(A, 5, f32::NAN), "not_finite"),
        ("b-infinite.gguf", value(B, 31, f32::NEG_INFINITY), "not_finite"),
        ("scale-nan.gguf", quantised.bytes(), "not_finite"),
        ("f64.gguf", kind(28, 256), "tensor_type"),
        ("i8.gguf", kind(24, 32), "tensor_type"),
        ("i32.gguf", kind(26, 128), "tensor_type"),
        ("q4-0.gguf", only_q4_0(), "tensor_type"),
        (
            "target-unknown.gguf",
            renamed("blk.1.ffn_down.weight.lora_a", "blk.2.ffn_down.weight.lora_a"),
            "unpaired_tensor",
        ),
        ("target-past-blocks.gguf", only("blk.2.attn_q.weight", &[16, 2], &[2, 16]), "unknown_target"),
        ("target-made-up.gguf", only("blk.0.attn_x.weight", &[16, 2], &[2, 16]), "unknown_target"),
        ("target-norm.gguf", only("blk.0.attn_norm.weight", &[16, 2], &[2, 1]), "not_a_matrix"),
        ("suffix-other.gguf", renamed(A, "blk.0.attn_q.weight.lora_c"), "unexpected_tensor"),
        ("suffix-twice.gguf", renamed(A, "blk.0.attn_q.weight.lora_a.lora_a"), "unexpected_tensor"),
        (
            "norm-among-pairs.gguf",
            lora().tensor("blk.0.attn_norm.weight", &[16], number).bytes(),
            "unexpected_tensor",
        ),
        ("embedding-unflipped.gguf", only("token_embd.weight", &[16, 2], &[2, 32]), "rank_mismatch"),
        ("embedding-rows-off.gguf", only("token_embd.weight", &[2, 31], &[2, 16]), "dimensions"),
    ]
}

fn rank_1025() -> Vec<u8> {
    let mut file = lora();
    file.tensors.clear();
    file.half("blk.0.attn_k.weight.lora_a", &[16, 1025], number)
        .half("blk.0.attn_k.weight.lora_b", &[1025, 8], number)
        .bytes()
}

fn only_q4_0() -> Vec<u8> {
    let mut file = lora();
    file.tensors.clear();
    file.stored("blk.1.ffn_down.weight.lora_a", &[32, 1], 2, vec![0; 18])
        .tensor("blk.1.ffn_down.weight.lora_b", &[1, 16], number)
        .bytes()
}

/// Defects of Felix spokes as GGUF.
fn felix_files() -> Vec<Refused> {
    let name = |part: &str| format!("blk.1.spoke.{part}");
    let dims = |part: &str, dims: &[u64]| {
        felix()
            .edit(&name(part), |t| {
                t.dims = dims.into();
                t.data.resize(dims.iter().product::<u64>() as usize * 2, 0);
            })
            .bytes()
    };
    let without = |part: &str| felix().drop_tensor(&name(part)).bytes();
    let gate =
        |value: f32| felix().edit(&name("gate_bias"), |t| t.data = value.to_le_bytes().to_vec()).bytes();
    let with = |name: &str| felix().tensor(name, &[16], number).bytes();
    let f16_vector = felix().edit(&name("gate_bias"), |t| {
        t.kind = 1;
        t.data = vec![0; 2];
    });
    let huge = felix().edit(&name("w_down_fused.weight"), |t| {
        t.kind = F32;
        t.data = (0..96).flat_map(|at| if at == 9 { 1e5f32 } else { 0.1 }.to_le_bytes()).collect();
    });
    let nan = felix()
        .edit(&name("w_up_fused.weight"), |t| t.data[..2].copy_from_slice(&half::f16::NAN.to_le_bytes()));
    let mut none = felix();
    none.tensors.clear();
    let spokes = |spokes: u32, rank: u32| {
        felix().u32("felix.num_spokes", spokes).u32("felix.spoke_rank", rank).bytes()
    };
    vec![
        ("felix-no-tensors.gguf", none.bytes(), "empty_spoke"),
        ("felix-spokes-as-text.gguf", felix().text("felix.num_spokes", "2").bytes(), "wrong_type"),
        ("felix-rank-as-text.gguf", felix().text("felix.spoke_rank", "3").bytes(), "wrong_type"),
        ("felix-eps-as-text.gguf", felix().text("felix.rms_eps", "1e-6").bytes(), "wrong_type"),
        ("felix-spokes-missing.gguf", felix().without("felix.num_spokes").bytes(), "missing_key"),
        ("felix-rank-0.gguf", spokes(2, 0), "rank_limit"),
        ("felix-spokes-0.gguf", spokes(0, 3), "rank_limit"),
        ("felix-rank-huge.gguf", spokes(u32::MAX, u32::MAX), "rank_limit"),
        ("felix-rank-off.gguf", spokes(2, 4), "dimensions"),
        ("felix-eps-nan.gguf", felix().f32("felix.rms_eps", f32::NAN).bytes(), "bad_value"),
        ("felix-eps-negative.gguf", felix().f32("felix.rms_eps", -1e-6).bytes(), "bad_value"),
        ("felix-key-unknown.gguf", felix().u32("felix.router", 1).bytes(), "unknown_key"),
        ("felix-alpha.gguf", felix().f32("adapter.lora.alpha", 1.0).bytes(), "unknown_key"),
        ("felix-no-gate.gguf", without("gate_bias"), "missing_tensor"),
        ("felix-no-up.gguf", without("w_up_fused.weight"), "missing_tensor"),
        ("felix-no-down.gguf", without("w_down_fused.weight"), "missing_tensor"),
        ("felix-layer-2.gguf", with("blk.2.spoke.norm.weight"), "unknown_layer"),
        ("felix-tensor-unknown.gguf", with("blk.0.spoke.router.weight"), "unexpected_tensor"),
        ("felix-tensor-of-post.gguf", with("blk.0.attn_norm.weight"), "unexpected_tensor"),
        ("felix-part-beside-fused.gguf", with("blk.0.spoke.w_down.0.weight"), "unexpected_tensor"),
        ("felix-width-off.gguf", dims("w_down_fused.weight", &[15, 6]), "dimensions"),
        ("felix-transposed.gguf", dims("w_up_fused.weight", &[16, 6]), "dimensions"),
        ("felix-experts.gguf", dims("w_up_fused.weight", &[6, 16, 2]), "dimensions"),
        ("felix-gate-nan.gguf", gate(f32::NAN), "not_finite"),
        ("felix-gate-f16.gguf", f16_vector.bytes(), "tensor_type"),
        ("felix-nan.gguf", nan.bytes(), "not_finite"),
        ("felix-past-f16.gguf", huge.bytes(), "out_of_range"),
    ]
}

/// A spoke for the same post that changes the embedding. It is refused where the output matrix is
/// the same.
pub fn embedding() -> RawGguf {
    let mut file = lora();
    file.tensors.clear();
    file.tensor("token_embd.weight.lora_a", &[2, 32], number).tensor(
        "token_embd.weight.lora_b",
        &[2, 16],
        number,
    )
}
