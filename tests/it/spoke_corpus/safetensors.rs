//! Hostile safetensors files and archives of PEFT adapters.

use serde_json::{Value, json};

use super::Refused;
use crate::spoke_files::{PEFT, TRAINED, archive, header, peft_config, peft_weights, safetensors, trained};

/// A Felix spoke as safetensors, with a changed header.
pub(super) fn felix_safetensors(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let (mut header, data) = trained();
    change(&mut header);
    safetensors(&header, data)
}

/// Defects of safetensors files.
pub(super) fn safetensors_files() -> Vec<Refused> {
    let set =
        |at: &'static str, value: Value| felix_safetensors(|header| *header.pointer_mut(at).unwrap() = value);
    let config = |config: Value| felix_safetensors(|header| header["__metadata__"] = config);
    let shaped = |tensors: &[(&str, &[u64])]| {
        let (header, data) = header(tensors, json!({"num_spokes": "1", "spoke_rank": "2"}));
        safetensors(&header, data)
    };
    let raw = |length: u64, header: &[u8]| [&length.to_le_bytes(), header].concat();
    let valid = felix_safetensors(|_| {});
    let mut nan = valid.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let digest = "0123456789abcdef".repeat(4);
    let wider = [TRAINED[0], ("0.w_down.0.weight", &[2, 17]), TRAINED[2]];
    vec![
        ("header-past-file.safetensors", raw(1 << 30, b"{}"), "malformed_safetensors"),
        ("header-no-json.safetensors", raw(4, b"{abc"), "malformed_safetensors"),
        ("header-nested.safetensors", nested(), "malformed_safetensors"),
        ("cut-in-header.safetensors", valid[..40].to_vec(), "malformed_safetensors"),
        ("cut-in-data.safetensors", valid[..end - 8].to_vec(), "malformed_safetensors"),
        ("trailing-bytes.safetensors", [valid.as_slice(), b"more"].concat(), "malformed_safetensors"),
        ("overlap.safetensors", set("/0.w_up.0.weight/data_offsets/0", json!(100)), "malformed_safetensors"),
        (
            "offsets-backwards.safetensors",
            set("/0.w_up.0.weight/data_offsets/1", json!(1)),
            "malformed_safetensors",
        ),
        (
            "shape-overflow.safetensors",
            set("/0.w_up.0.weight/shape", json!([1u64 << 63, 4])),
            "malformed_safetensors",
        ),
        ("shape-off.safetensors", set("/0.w_up.0.weight/shape", json!([16, 3])), "malformed_safetensors"),
        ("dtype-unknown.safetensors", set("/0.w_up.0.weight/dtype", json!("F7")), "malformed_safetensors"),
        ("tensor-twice.safetensors", twice(), "malformed_safetensors"),
        ("i32.safetensors", set("/0.w_up.0.weight/dtype", json!("I32")), "tensor_type"),
        ("f64.safetensors", f64_tensor(), "tensor_type"),
        (
            "rank-0.safetensors",
            shaped(&[("0.gate_bias", &[]), ("0.w_down.0.weight", &[0, 16])]),
            "empty_dimension",
        ),
        ("dims-five.safetensors", shaped(&[("0.gate_bias", &[1, 1, 1, 1, 1])]), "dimension_count"),
        ("nan.safetensors", nan, "not_finite"),
        ("width-off.safetensors", shaped(&wider), "dimensions"),
        ("layer-past-blocks.safetensors", shaped(&[("7.gate_bias", &[])]), "unknown_layer"),
        ("part-missing.safetensors", shaped(&TRAINED[..2]), "missing_tensor"),
        ("name-unknown.safetensors", shaped(&[("weight", &[4])]), "unexpected_tensor"),
        ("number-with-zero.safetensors", shaped(&[("00.gate_bias", &[])]), "unexpected_tensor"),
        (
            "no-config.safetensors",
            felix_safetensors(|h| drop(h.as_object_mut().unwrap().remove("__metadata__"))),
            "no_config",
        ),
        (
            "config-no-number.safetensors",
            config(json!({"num_spokes": "many", "spoke_rank": "2"})),
            "bad_value",
        ),
        ("config-negative.safetensors", config(json!({"num_spokes": "-1", "spoke_rank": "2"})), "bad_value"),
        (
            "config-too-large.safetensors",
            config(json!({"num_spokes": "99999", "spoke_rank": "99999"})),
            "rank_limit",
        ),
        ("config-rank-off.safetensors", config(json!({"num_spokes": "1", "spoke_rank": "3"})), "dimensions"),
        (
            "config-every-0.safetensors",
            config(json!({"num_spokes": "1", "spoke_rank": "2", "spoke_every_n": "0"})),
            "bad_value",
        ),
        (
            "config-every-1.safetensors",
            config(json!({"num_spokes": "1", "spoke_rank": "2", "spoke_every_n": "1"})),
            "missing_tensor",
        ),
        (
            "config-eps.safetensors",
            config(json!({"num_spokes": "1", "spoke_rank": "2", "rms_eps": "nan"})),
            "bad_value",
        ),
        (
            "config-architecture.safetensors",
            config(json!({"num_spokes": "1", "spoke_rank": "2", "architecture": "qwen3"})),
            "architecture_mismatch",
        ),
        (
            "config-post.safetensors",
            config(json!({"num_spokes": "1", "spoke_rank": "2", "post_sha256": digest})),
            "post_mismatch",
        ),
    ]
}

/// Deeper than any parser should descend.
fn nested() -> Vec<u8> {
    let header = format!("{{\"a\":{}", "[".repeat(5000));
    [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()
}

/// One name with two ranges. The last one counts, so the first leaves a gap.
fn twice() -> Vec<u8> {
    let tensor = |from: u32, to: u32| {
        format!("\"0.w_up.0.weight\":{{\"dtype\":\"F32\",\"shape\":[16,2],\"data_offsets\":[{from},{to}]}}")
    };
    let header = format!("{{{},{}}}", tensor(0, 128), tensor(128, 256));
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 256]].concat()
}

fn f64_tensor() -> Vec<u8> {
    let header = json!({"0.gate_bias": {"dtype": "F64", "shape": [], "data_offsets": [0, 8]},
                        "__metadata__": {"num_spokes": "1", "spoke_rank": "2"}});
    safetensors(&header, 8)
}

/// A PEFT archive with a changed configuration.
pub(super) fn peft(change: impl FnOnce(&mut Value), weights: Vec<u8>) -> Vec<u8> {
    let mut config = peft_config();
    change(&mut config);
    let config = config.to_string();
    archive(&[("adapter_config.json", config.as_bytes()), ("adapter_model.safetensors", &weights)])
}

pub(super) fn peft_in(folder: &str) -> Vec<u8> {
    let [config, weights] =
        ["adapter_config.json", "adapter_model.safetensors"].map(|name| format!("{folder}{name}"));
    archive(&[
        (&config, peft_config().to_string().as_bytes()),
        (&weights, &peft_weights()),
        ("README.md", b"Hello"),
    ])
}

/// Defects of PEFT adapters and of archives.
pub(super) fn peft_files() -> Vec<Refused> {
    let option = |key: &'static str, value: Value| peft(|config| config[key] = value, peft_weights());
    let renamed = |names: [&str; 2]| {
        let tensors = [(names[0], PEFT[0].1), (names[1], PEFT[1].1)];
        let (header, data) = header(&tensors, Value::Null);
        peft(|_| {}, safetensors(&header, data))
    };
    let with = |name: &str| {
        let (header, data) = header(&[PEFT[0], PEFT[1], (name, &[16])], Value::Null);
        peft(|_| {}, safetensors(&header, data))
    };
    let shaped = |a: &[u64], b: &[u64]| {
        let (header, data) = header(&[(PEFT[0].0, a), (PEFT[1].0, b)], Value::Null);
        peft(|_| {}, safetensors(&header, data))
    };
    let valid = peft(|_| {}, peft_weights());
    let config = peft_config().to_string();
    let config = ("adapter_config.json", config.as_bytes());
    let weights = peft_weights();
    let prefix = "base_model.model.model.layers.0.self_attn.q_proj";
    // Zeros compress a thousandfold: 40 MB in 40 KB.
    let zeros = vec![0u8; 40_000_000];
    vec![
        ("cut.zip", valid[..valid.len() / 2].to_vec(), "malformed_zip"),
        ("no-directory.zip", b"PK\x03\x04 and nothing more".to_vec(), "malformed_zip"),
        ("no-config.zip", archive(&[("adapter_model.safetensors", &weights)]), "missing_file"),
        ("no-weights.zip", archive(&[config]), "missing_file"),
        (
            "two-folders.zip",
            archive(&[config, ("other/adapter_model.safetensors", &weights)]),
            "malformed_zip",
        ),
        (
            "two-configs.zip",
            archive(&[config, ("adapter_model.safetensors", &weights), ("b/adapter_config.json", b"{}")]),
            "malformed_zip",
        ),
        (
            "pytorch.zip",
            archive(&[("archive/data.pkl", b"\x80\x02}q\0."), ("archive/version", b"3")]),
            "pickle",
        ),
        (
            "bomb.zip",
            archive(&[("adapter_config.json", &zeros), ("adapter_model.safetensors", &weights)]),
            "too_large",
        ),
        ("empty-part.zip", archive(&[config, ("adapter_model.safetensors", b"")]), "empty_file"),
        (
            "config-no-json.zip",
            archive(&[("adapter_config.json", b"{"), ("adapter_model.safetensors", &weights)]),
            "malformed_json",
        ),
        (
            "config-no-object.zip",
            archive(&[("adapter_config.json", b"[1]"), ("adapter_model.safetensors", &weights)]),
            "malformed_json",
        ),
        (
            "weights-no-safetensors.zip",
            archive(&[config, ("adapter_model.safetensors", b"GGUF....")]),
            "malformed_safetensors",
        ),
        ("dora.zip", option("use_dora", json!(true)), "dora"),
        ("dora-tensor.zip", with(&format!("{prefix}.lora_magnitude_vector")), "dora"),
        ("modules-to-save.zip", option("modules_to_save", json!(["lm_head"])), "modules_to_save"),
        ("module-saved.zip", with("base_model.model.lm_head.weight"), "modules_to_save"),
        ("bias.zip", option("bias", json!("all")), "bias"),
        ("bias-tensor.zip", with(&format!("{prefix}.bias")), "bias"),
        ("lora-bias.zip", option("lora_bias", json!(true)), "bias"),
        ("fan-in-fan-out.zip", option("fan_in_fan_out", json!(true)), "fan_in_fan_out"),
        ("layer-replication.zip", option("layer_replication", json!([[0, 2]])), "layer_replication"),
        ("trainable-tokens.zip", option("trainable_token_indices", json!([1])), "trainable_tokens"),
        ("pissa.zip", option("init_lora_weights", json!("pissa")), "changed_base"),
        ("option-unknown.zip", option("use_something", json!(true)), "peft_option"),
        ("peft-type.zip", option("peft_type", json!("IA3")), "bad_value"),
        ("r-0.zip", option("r", json!(0)), "bad_value"),
        ("r-off.zip", option("r", json!(3)), "bad_value"),
        ("alpha-0.zip", option("lora_alpha", json!(0)), "bad_value"),
        ("alpha-huge.zip", option("lora_alpha", json!(1e300)), "bad_value"),
        ("alpha-as-text.zip", option("lora_alpha", json!("4")), "bad_value"),
        ("pattern-no-regex.zip", option("rank_pattern", json!({"(": 2})), "bad_value"),
        ("pattern-huge.zip", option("rank_pattern", json!({"\\w{900}{900}": 2})), "bad_value"),
        (
            "module-unknown.zip",
            renamed([&format!("{prefix}x.lora_A.weight"), &format!("{prefix}x.lora_B.weight")]),
            "unknown_target",
        ),
        (
            "prefix-other.zip",
            renamed(["model.q_proj.lora_A.weight", "model.q_proj.lora_B.weight"]),
            "unknown_target",
        ),
        (
            "a-without-b.zip",
            renamed([PEFT[0].0, "base_model.model.lm_head.lora_B.weight"]),
            "unpaired_tensor",
        ),
        ("inputs-off.zip", shaped(&[2, 15], &[16, 2]), "dimensions"),
        ("rank-mismatch.zip", shaped(&[2, 16], &[16, 3]), "rank_mismatch"),
        ("experts.zip", shaped(&[2, 2, 16], &[16, 2]), "expert_dimension"),
    ]
}
