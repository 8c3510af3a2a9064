//! Tests of `bespoke spoke`: the facts of a file, conversions between formats, and splitting merged
//! files.

use std::path::Path;

use assert_cmd::Command;
use bespoke::adapter::{self, Adapter, Limits, Post};
use bespoke::atomic_file;
use bespoke::gguf::Gguf;
use serde_json::{Value, json};

use crate::spoke_files::{RawGguf, felix, lora, number, peft_config, peft_weights, post};
use crate::spoke_reference;

struct Answer {
    code: i32,
    out: String,
    err: String,
}

fn bespoke(arguments: &[&str], paths: &[&Path]) -> Answer {
    let output =
        Command::cargo_bin("bespoke").unwrap().arg("spoke").args(arguments).args(paths).output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    Answer { code: output.status.code().unwrap(), out, err }
}

#[test]
fn show_tells_what_a_spoke_holds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("encoding.gguf");
    atomic_file::write(&path, &lora().text("bespoke.prompt.id", "encoding-v3").bytes()).unwrap();
    let shown = bespoke(&["show"], &[&path]);
    assert_eq!((shown.code, shown.err.as_str()), (0, ""));
    let text = shown.out.replace(&path.display().to_string(), "encoding.gguf");
    insta::assert_snapshot!(text);

    let shown = bespoke(&["show", "--json"], &[&path]);
    let facts: Value = serde_json::from_str(&shown.out).unwrap();
    assert_eq!(facts["kind"], "lora");
    assert_eq!(facts["format"], "lora_gguf");
    assert_eq!(facts["ranks"], json!([2]));
    assert_eq!(facts["alpha"], 4.0);
    assert_eq!(facts["layers"], json!([0, 1]));
    assert_eq!(facts["prompt"], "encoding-v3");
    assert_eq!(facts["post"], Value::Null);
    assert_eq!(facts["generation"].as_str().unwrap().len(), 64);
    assert_eq!(facts["resident_bytes"], (32 + 32 + 64 + 32) * 4);
    assert!(facts["norms"][0]["down"].as_f64().unwrap() > 0.0);

    atomic_file::write(&path, &felix().bytes()).unwrap();
    let facts: Value = serde_json::from_str(&bespoke(&["show", "--json"], &[&path]).out).unwrap();
    assert_eq!(facts["kind"], "felix");
    assert_eq!((&facts["spokes"], &facts["rank"]), (&json!(2), &json!(3)));
    // Both matrices are f16 and the norm f32, in two layers.
    assert_eq!(facts["resident_bytes"], 2 * (2 * 2 * 6 * 16 + 4 * 16));
    let text = bespoke(&["show"], &[&path]).out;
    assert!(text.contains("2 bottlenecks of 3") && text.contains("0-1"), "{text}");
}

#[test]
fn a_refusal_has_a_reason_a_code_and_advice() {
    let folder = tempfile::tempdir().unwrap();
    let [spoke, post_path] = ["spoke.gguf", "post.gguf"].map(|name| folder.path().join(name));
    atomic_file::write(&post_path, &post(false).bytes()).unwrap();
    atomic_file::write(&spoke, &lora().text("bespoke.post.sha256", &"ab".repeat(32)).bytes()).unwrap();
    let shown = bespoke(&["show", "--post", post_path.to_str().unwrap()], &[&spoke]);
    assert_eq!((shown.code, shown.out.as_str()), (1, ""));
    assert!(shown.err.contains("was trained on the post abab"), "{}", shown.err);
    assert!(shown.err.contains("code: post_mismatch"), "{}", shown.err);
    assert!(shown.err.contains("\nhint: train it again on this post"), "{}", shown.err);
    assert!(!shown.err.contains("caused by"), "said once: {}", shown.err);
    assert_eq!(bespoke(&["show"], &[&spoke]).code, 0, "without a post, nothing can be compared");
    assert_eq!(bespoke(&["show"], &[]).code, 2);
    assert_eq!(bespoke(&["convert"], &[&spoke]).code, 2);
    assert_eq!(bespoke(&["import"], &[&spoke]).code, 2);
}

#[test]
fn convert_goes_there_and_back_where_mathematics_allows() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let (post_path, _) = spoke_reference::post("llama_gqa", folder.path());
    let post_path = post_path.to_str().unwrap();
    let peft = Path::new("tests/fixtures/spokes/rslora");
    let felix = Path::new("tests/fixtures/spokes/felix/spoke.safetensors");

    let alone = bespoke(&["convert"], &[peft, &place("lora.gguf")]);
    assert_eq!(alone.code, 1);
    assert!(alone.err.contains("code: post_needed") && alone.err.contains("--post"), "{}", alone.err);
    let written = bespoke(&["convert", "--post", post_path], &[peft, &place("lora.gguf")]);
    assert_eq!((written.code, written.err.as_str()), (0, ""));
    assert!(written.out.contains("lora.gguf: a LoRA (llama.cpp's GGUF)"), "{}", written.out);
    let back = bespoke(&["convert", "--post", post_path], &[&place("lora.gguf"), &place("peft")]);
    assert_eq!((back.code, back.err.as_str()), (0, ""));
    let again = bespoke(&["convert", "--post", post_path], &[&place("peft"), &place("again.gguf")]);
    assert_eq!(again.code, 0, "{}", again.err);
    // rsLoRA becomes plain LoRA with the same numbers.
    let [one, two] = ["lora.gguf", "again.gguf"].map(|name| std::fs::read(place(name)).unwrap());
    assert!(one == two);

    let written = bespoke(&["convert", "--post", post_path], &[felix, &place("felix.gguf")]);
    assert_eq!(written.code, 0, "{}", written.err);
    let back = bespoke(&["convert"], &[&place("felix.gguf"), &place("felix.safetensors")]);
    assert_eq!(back.code, 0, "{}", back.err);

    for (from, to, why) in [
        (felix, "folder", "a Felix spoke has a SiLU between its two matrices"),
        (&place("lora.gguf"), "x.safetensors", "a LoRA is linear"),
        (peft, "x.safetensors", "a LoRA is linear"),
        (&place("lora.gguf"), "x.gguf", "it has that format already"),
        (&place("lora.gguf"), "x.zip", "archives are read and not written"),
    ] {
        let refused = bespoke(&["convert", "--post", post_path], &[from, &place(to)]);
        assert_eq!(refused.code, 1);
        assert!(
            refused.err.contains(why) && refused.err.contains("code: not_convertible"),
            "{}",
            refused.err
        );
        assert!(!place(to).exists());
    }
}

#[test]
fn an_archive_is_converted_like_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    atomic_file::write(&place("post.gguf"), &post(false).bytes()).unwrap();
    let post = Post::open(&place("post.gguf")).unwrap();
    let config = peft_config().to_string();
    let parts =
        [("adapter_config.json", config.as_bytes()), ("adapter_model.safetensors", &peft_weights()[..])];
    for (name, bytes) in parts {
        atomic_file::write(&place("folder").join(name), bytes).unwrap();
    }
    atomic_file::write(&place("packed.zip"), &crate::spoke_files::archive(&parts)).unwrap();
    for name in ["folder", "packed.zip"] {
        adapter::to_served(&place(name), &place(&format!("{name}.gguf")), &post, &Limits::default()).unwrap();
    }
    let [one, two] = ["folder.gguf", "packed.zip.gguf"].map(|name| std::fs::read(place(name)).unwrap());
    assert!(one == two);
}

/// Post and spoke in one file, either fused or with one pair of matrices for each bottleneck.
fn merged(fused: bool) -> RawGguf {
    let mut file = post(false).u32("llama.num_spokes", 2).u32("llama.spoke_rank", 3);
    for tensor in felix().tensors {
        let values: Vec<f32> = if tensor.kind == 1 {
            tensor.data.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect()
        } else {
            tensor.data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
        };
        let block = tensor.name.strip_suffix("_fused.weight").filter(|_| !fused);
        let Some(prefix) = block else {
            file.tensors.push(tensor);
            continue;
        };
        for s in 0..2usize {
            let name = format!("{prefix}.{s}.weight");
            file = if prefix.ends_with("w_down") {
                file.half(&name, &[16, 3], |at| values[s * 48 + at])
            } else {
                file.half(&name, &[3, 16], |at| values[at / 3 * 6 + s * 3 + at % 3])
            };
        }
    }
    file
}

#[test]
fn a_merged_file_is_split_into_post_and_spoke() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    atomic_file::write(&place("original.gguf"), &post(false).bytes()).unwrap();
    let original = Post::open(&place("original.gguf")).unwrap();
    let mut spokes = Vec::new();
    for fused in [true, false] {
        atomic_file::write(&place("merged.gguf"), &merged(fused).bytes()).unwrap();
        let [to_post, to_spoke] = ["post.gguf", "spoke.gguf"].map(place);
        let targets = ["--post-out", to_post.to_str().unwrap(), "--spoke-out", to_spoke.to_str().unwrap()];
        let split = bespoke(&[&["import"], &targets[..]].concat(), &[&place("merged.gguf")]);
        assert_eq!((split.code, split.err.as_str()), (0, ""));
        let post = Post::open(&to_post).unwrap();
        assert_eq!(post, original);
        assert!(Gguf::open(&to_post).unwrap().find::<u32>("llama.num_spokes").unwrap().is_none());
        let facts = adapter::inspect(&to_spoke, Some(&post), &Limits::default()).unwrap();
        assert_eq!((facts.post, facts.tokenizer), (Some(post.sha256), Some(post.tokenizer)));
        let Adapter::Felix(felix) = &facts.adapter else { panic!("{facts:?}") };
        // The runtime of such files uses the post's epsilon.
        assert_eq!((felix.spokes, felix.rank, felix.eps), (2, 3, Some(1e-5)));
        spokes.push(std::fs::read(&to_spoke).unwrap());
    }
    assert!(spokes[0] == spokes[1], "both ways of storing the matrices are one spoke");
    let trained = adapter::load_felix(&place("spoke.gguf"), &original, &Limits::default()).unwrap();
    let expected: Vec<f32> = (0..96).map(|at| half::f16::from_f32(number(at)).to_f32()).collect();
    assert_eq!(trained.layers[&1].w_up, expected);
}

#[test]
fn what_can_not_be_split_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let cases = [
        (post(false), "not_merged"),
        (lora(), "not_merged"),
        (merged(true).drop_tensor("blk.1.spoke.gate_bias"), "missing_tensor"),
        (merged(true).u32("llama.spoke_rank", 4), "dimensions"),
        (merged(true).text("llama.spoke_rank", "3"), "wrong_type"),
        (merged(true).drop_tensor("blk.1.ffn_up.weight"), "missing_tensor"),
        (
            merged(true).edit("blk.1.spoke.gate_bias", |t| t.data = f32::NAN.to_le_bytes().to_vec()),
            "not_finite",
        ),
        // The width of the spoke differs from that of the post, which can only be checked with the
        // post.
        (narrow(), "dimensions"),
    ];
    for (file, code) in cases {
        atomic_file::write(&place("merged.gguf"), &file.bytes()).unwrap();
        let refusal = adapter::split(
            &place("merged.gguf"),
            &place("post.gguf"),
            &place("spoke.gguf"),
            &Limits::default(),
        );
        assert_eq!(refusal.unwrap_err().code(), code);
        assert!(!place("post.gguf").exists() && !place("spoke.gguf").exists(), "{code}");
    }
}

fn narrow() -> RawGguf {
    let mut file = post(false).u32("llama.num_spokes", 1).u32("llama.spoke_rank", 2);
    file = file.tensor("blk.0.spoke.gate_bias", &[1], number);
    file.half("blk.0.spoke.w_down_fused.weight", &[8, 2], number).half(
        "blk.0.spoke.w_up_fused.weight",
        &[2, 8],
        number,
    )
}
