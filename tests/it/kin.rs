//! Tests of a LoRA that was trained on a Hugging Face folder and served with a quantisation of the
//! same model that doesn't name its origin: refused until the two are compared, and accepted from
//! then on, even after a restart.

use std::path::Path;
use std::process::Command;

use bespoke::model::{Model, gguf_file, hugging_face};

use crate::contents::Backend;
use crate::daemon::wait_until;
use crate::dropped::{lora_trained_on, put};
use crate::home::Home;
use crate::program::MODEL;

/// The command's output on both streams, and whether it succeeded.
fn add(home: &Home, url: &str, file: &Path, folder: &Path) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_bespoke"))
        .args(["spoke", "add", "--config"])
        .arg(home.root.path().join("bespoke.toml"))
        .arg("--spokes")
        .arg(home.folder())
        .args(["--endpoint", url, "--trained-on"])
        .arg(folder)
        .arg(file)
        .env("STATE_DIRECTORY", home.state())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (output.status.success(), said.concat())
}

#[test]
fn spokes_of_a_folder_are_accepted_once_it_is_compared_with_the_post() {
    let home = Home::new(Backend::Scripted(0));
    // The shipped post was made from another folder; this one holds the values that the post
    // computes with.
    let model = gguf_file::import(Path::new(MODEL)).unwrap();
    let folder = home.root.path().join("hf");
    hugging_face::save(&folder, &model).unwrap();
    let trained_on = gguf_file::content_hash(&model).unwrap();
    let mut living = home.start("");
    put(&home.folder(), "early.gguf", &lora_trained_on(1, &trained_on));
    let refused = || living.client.rows("early").iter().any(|row| row["reason"]["code"] == "post_mismatch");
    wait_until("it is refused", refused);

    // Another folder of the same shape, which the spoke was not trained on.
    let late = home.root.path().join("late.gguf");
    bespoke::atomic_file::write(&late, &lora_trained_on(2, &trained_on)).unwrap();
    let other = home.root.path().join("other");
    let name = model.config.parameter_shapes()[5].0.clone();
    hugging_face::save(&other, &with_noise(&model, &name)).unwrap();
    let (done, said) = add(&home, &living.client.url, &late, &other);
    assert!(!done && said.contains("its type explains") && said.contains("it was not made from"), "{said}");
    let (done, said) = add(&home, &living.client.url, &late, &home.root.path().join("nowhere"));
    assert!(!done && said.contains("config.json"), "{said}");
    wait_until("it is refused still", refused);
    assert!(living.client.rows("late").is_empty(), "nothing was copied");

    let (done, said) = add(&home, &living.client.url, &late, &folder);
    assert!(done && said.contains("tensors compared") && said.contains("late: serving"), "{said}");
    wait_until("what was refused is looked at again", || living.client.serving("early").is_some());
    living.program.terminate();
    drop(living);

    // The comparison holds after a restart, and for spokes that come later.
    let living = home.start("");
    assert!(living.client.asked("late", false).is_ok());
    let later = home.put("later.gguf", &lora_trained_on(3, &trained_on));
    living.client.serves("later", later);
}

#[test]
fn what_is_compared_while_no_daemon_runs_counts_when_one_does() {
    let home = Home::new(Backend::Scripted(0));
    let model = gguf_file::import(Path::new(MODEL)).unwrap();
    let folder = home.root.path().join("hf");
    hugging_face::save(&folder, &model).unwrap();
    let trained_on = gguf_file::content_hash(&model).unwrap();
    let file = home.root.path().join("a.gguf");
    let content = lora_trained_on(1, &trained_on);
    bespoke::atomic_file::write(&file, &content).unwrap();
    // A port on which nothing listens.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (done, said) = add(&home, &format!("http://127.0.0.1:{port}"), &file, &folder);
    assert!(done && said.contains("no daemon answers"), "{said}");
    let living = home.start("");
    living.client.serves("a", crate::dropped::generation(&content));
}

/// The model with noise in one parameter.
fn with_noise(model: &Model, name: &str) -> Model {
    let parameters = bespoke::model::Parameters::default();
    let mut changed = Model { parameters, ..model.clone() };
    for parameter in model.config.parameters() {
        let tensor = model.parameters.of(parameter.role).unwrap().as_tensor().clone();
        let mut values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        if parameter.name == name {
            values.iter_mut().enumerate().for_each(|(at, value)| {
                *value *= if at % 2 == 0 { 1.3 } else { 0.7 };
            });
        }
        let tensor =
            candle_core::Var::from_vec(values, parameter.shape(), &candle_core::Device::Cpu).unwrap();
        changed.parameters.insert(parameter.name, parameter.role, tensor).unwrap();
    }
    changed
}
