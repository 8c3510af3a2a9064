//! Tests of model folders as people have them, including folders with files of two models or in two
//! formats.

use std::path::Path;

use assert_cmd::Command;
use bespoke::model::safetensors_file::{NewTensor, f32_values, write_tensors};
use bespoke::model::{Model, gguf_file, hugging_face};
use bespoke::text::tokenizer::Tokenizer;
use serde_json::{Value, json};

fn copy(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(Path::new("tests/fixtures/hf").join(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

fn write(path: &Path, value: &Value) {
    bespoke::atomic_file::write(path, value.to_string().as_bytes()).unwrap();
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Adds an older save of the same model: two shards in which every weight is 9, and their index.
fn add_old_shards(folder: &Path, model: &Model) {
    let mut map = serde_json::Map::new();
    let names: Vec<_> = model.config.parameter_shapes();
    for (at, part) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", at + 1);
        let tensors: Vec<_> = part
            .iter()
            .map(|(name, shape)| {
                map.insert(name.clone(), file.clone().into());
                let values = vec![9.0; shape.iter().product()];
                NewTensor { name: name.clone(), shape: shape.clone(), values }
            })
            .collect();
        write_tensors(&folder.join(&file), &tensors, [("format".to_owned(), "pt".to_owned())]).unwrap();
    }
    write(&folder.join("model.safetensors.index.json"), &json!({"weight_map": map}));
}

fn weights(model: &Model) -> Vec<Vec<f32>> {
    model.parameters.iter().map(|(_, var)| f32_values(var).unwrap()).collect()
}

#[test]
fn one_file_goes_before_an_index_as_in_transformers() {
    let folder = copy("llama_tied");
    let before = hugging_face::load(folder.path()).unwrap();
    add_old_shards(folder.path(), &before);
    assert_eq!(weights(&hugging_face::load(folder.path()).unwrap()), weights(&before));
    // Without that file, the shards are used.
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let old = hugging_face::load(folder.path()).unwrap();
    assert!(weights(&old).iter().flatten().all(|w| (w - 9.0).abs() < f32::EPSILON));
}

#[test]
fn nothing_of_an_earlier_model_wins_over_an_import() {
    let (source, folder) = (copy("llama_tied"), copy("qwen3_tied"));
    let (gguf, target) = (source.path().join("model.gguf"), folder.path());
    let model = hugging_face::load(source.path()).unwrap();
    gguf_file::export(&model, "x", source.path(), &gguf, gguf_file::Precision::F32).unwrap();
    add_old_shards(target, &hugging_face::load(target).unwrap());
    let text =
        |name: &str, text: &str| bespoke::atomic_file::write(&target.join(name), text.as_bytes()).unwrap();
    text("chat_template.jinja", "old");
    std::fs::create_dir(target.join("additional_chat_templates")).unwrap();
    text("additional_chat_templates/rag.jinja", "old");
    text("special_tokens_map.json", r#"{"eos_token": "<|pad|>"}"#);
    text("generation_config.json", r#"{"eos_token_id": [0, 5]}"#);
    text("added_tokens.json", "{}");
    text("tokenizer.model", "old");
    text("README.md", "kept");
    Command::cargo_bin("bespoke").unwrap().arg("import").arg(&gguf).arg(target).assert().success();
    let found = hugging_face::load(target).unwrap();
    assert_eq!(weights(&found), weights(&model));
    assert_eq!((found.text.chat_template, found.text.ids), (model.text.chat_template, model.text.ids));
    assert!(found.text.named_templates.is_empty());
    let mut left: Vec<_> = std::fs::read_dir(target)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.retain(|name| name != "additional_chat_templates" && name != "expected.safetensors");
    left.sort();
    let expected =
        ["README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(left, expected);
}

#[test]
fn an_adapter_in_the_folder_is_refused_by_both_names() {
    let folder = copy("llama_tied");
    write(&folder.path().join("adapter_config.json"), &json!({"peft_type": "LORA"}));
    let message = hugging_face::load(folder.path()).unwrap_err().to_string();
    assert!(
        message.contains("adapter_config.json") && message.contains("config.json both exist"),
        "{message}"
    );
    // Saving fails as well.
    let model = hugging_face::load(copy("llama_tied").path()).unwrap();
    let before = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    assert!(hugging_face::save(folder.path(), &model).is_err());
    assert_eq!(std::fs::read(folder.path().join("model.safetensors")).unwrap(), before);
}

#[test]
fn ends_of_generation_and_names_of_tokens_come_from_where_transformers_takes_them() {
    let folder = copy("llama_tied");
    let ids = || hugging_face::load(folder.path()).unwrap().text.ids;
    let path = |name: &str| folder.path().join(name);
    let mut config = read(&path("config.json"));
    config["eos_token_id"] = json!(4);
    write(&path("config.json"), &config);
    let mut names = read(&path("tokenizer_config.json"));
    names["eos_token"] = Value::Null;
    write(&path("tokenizer_config.json"), &names);
    assert_eq!(ids().eos, [4]);
    write(&path("generation_config.json"), &json!({"eos_token_id": [5, 2]}));
    assert_eq!(ids().eos, [5, 2]);
    write(&path("generation_config.json"), &json!({"temperature": 0.6}));
    assert_eq!(ids().eos, [4]);
    write(&path("generation_config.json"), &json!({"eos_token_id": "end"}));
    let message = hugging_face::load(folder.path()).unwrap_err().to_string();
    assert!(message.contains("generation_config.json") && message.contains("eos_token_id"), "{message}");
    std::fs::remove_file(path("generation_config.json")).unwrap();
    // Names of tokens in a separate file, unless each token is described.
    let content = read(&path("tokenizer.json"))["added_tokens"][1].clone();
    write(&path("special_tokens_map.json"), &json!({"eos_token": {"content": content["content"]}}));
    assert_eq!(ids().eos[0], content["id"].as_u64().unwrap() as u32);
    names["added_tokens_decoder"] = json!({});
    write(&path("tokenizer_config.json"), &names);
    assert_eq!(ids().eos, [4]);
}

#[test]
fn cutting_filling_and_chance_of_a_tokenizer_file_are_off() {
    let folder = copy("llama_tied");
    let path = folder.path().join("tokenizer.json");
    let long = "The parser failed again, and nobody knew why. ".repeat(20);
    let plain = Tokenizer::from_file(&path).unwrap().encode(&long).unwrap();
    let mut file = read(&path);
    file["truncation"] =
        json!({"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0});
    file["padding"] = json!({
        "strategy": {"Fixed": 1024}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<|pad|>",
    });
    file["model"]["dropout"] = json!(0.9);
    write(&path, &file);
    let tokenizer = Tokenizer::from_file(&path).unwrap();
    assert_eq!(tokenizer.encode(&long).unwrap(), plain);
    assert_eq!(tokenizer.encode("x").unwrap().len(), 1);
    let json: Value = serde_json::from_str(&tokenizer.to_json().unwrap()).unwrap();
    assert!(json["truncation"].is_null() && json["padding"].is_null() && json["model"]["dropout"].is_null());
    // The same holds for a folder, and for what is written from it.
    let text = hugging_face::load(folder.path()).unwrap().text;
    assert!(text.tokenizer["truncation"].is_null() && text.tokenizer["padding"].is_null());
    let chat = bespoke::train::data::Chat::of_model(&text).unwrap();
    assert_eq!(chat.tokenizer().encode(&long).unwrap(), plain);
}

/// llama.cpp recognises these as tokens in any text, whether or not they are control tokens, so a
/// user's text could forge them.
#[test]
fn a_token_that_llama_cpp_reads_in_any_text_is_not_exported() {
    for text in ["<|channel|>", "<|start|>"] {
        let folder = copy("llama_tied");
        let path = folder.path().join("tokenizer.json");
        let mut file = read(&path);
        let mut token = file["added_tokens"][1].clone();
        let last = file["model"]["vocab"].as_object_mut().unwrap();
        let (entry, id) = last
            .iter()
            .find(|(_, id)| id.as_u64() == Some(294))
            .map(|(e, i)| (e.clone(), i.clone()))
            .unwrap();
        last.remove(&entry);
        file["model"]["merges"].as_array_mut().unwrap().retain(|merge| {
            let parts = merge.as_array().map_or_else(
                || merge.as_str().unwrap().replace(' ', ""),
                |parts| parts.iter().map(|part| part.as_str().unwrap()).collect(),
            );
            parts != entry
        });
        token["id"] = id;
        token["content"] = text.into();
        file["added_tokens"].as_array_mut().unwrap().push(token);
        write(&path, &file);
        let out = folder.path().join("out.gguf");
        let failed = Command::cargo_bin("bespoke")
            .unwrap()
            .arg("export")
            .arg(folder.path())
            .arg(&out)
            .assert()
            .code(1);
        let message = String::from_utf8(failed.get_output().stderr.clone()).unwrap();
        assert!(message.contains(text) && message.contains("treats it specially"), "{message}");
        assert!(!out.exists());
    }
}
