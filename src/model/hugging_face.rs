//! A Hugging Face folder: `config.json`, safetensors (one file or shards), `tokenizer.json`, chat
//! template.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::file_error::FileError;
use super::hugging_face_config::{self, TokenIds};
use super::safetensors_file::{self, SafetensorsFile};
use super::source::read_parameters;
use super::{
    DecoderConfig, Family, ModelSource, ParameterSpec, Parameters, Role, hugging_face_text, superseded,
};
use crate::text::tokenizer::{BOS, CHAT_TEMPLATE, END, PAD, Tokenizer, TokenizerError};

/// All weights in one file.
pub(super) const WEIGHTS: &str = "model.safetensors";
/// Maps each weight to its file if there are several.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// A model as its files describe it.
#[derive(Debug, Clone)]
pub struct Model {
    /// Shape and constants.
    pub config: DecoderConfig,
    /// Weights, as f32.
    pub parameters: Parameters,
    /// Tokenizer and chat templates.
    pub text: TextSide,
}

/// How text becomes tokens: what a GGUF stores about it, and the small files of a Hugging Face
/// folder.
#[derive(Debug, Clone, PartialEq)]
pub struct TextSide {
    /// `tokenizer.json`.
    pub tokenizer: Value,
    /// Jinja template of conversations.
    pub chat_template: Option<String>,
    /// Further templates, by name (for tools, for retrieval).
    pub named_templates: Vec<(String, String)>,
    /// Special token ids.
    pub ids: TokenIds,
}

impl TextSide {
    /// The text side of a post trained by this program: its markers and its template.
    ///
    /// # Errors
    /// The tokenizer can't be written as JSON.
    pub fn of_post(tokenizer: &Tokenizer) -> Result<Self, TokenizerError> {
        let json = tokenizer.to_json()?;
        let tokenizer = serde_json::from_str(&json).map_err(|e| TokenizerError::Text(e.to_string()))?;
        let ids = TokenIds { bos: Some(BOS), eos: vec![END], pad: Some(PAD), unk: None };
        let chat_template = Some(CHAT_TEMPLATE.to_owned());
        Ok(Self { tokenizer, chat_template, named_templates: vec![], ids })
    }
}

/// Reads a folder into memory.
///
/// # Errors
/// Names the file and the key or tensor, what was found and what was expected.
pub fn load(folder: &Path) -> Result<Model, FileError> {
    let folder = Folder::open(folder)?;
    let parameters = read_parameters(&folder, |_| true)?;
    Ok(Model { config: folder.config, parameters, text: folder.text })
}

/// A folder whose weights are read one at a time.
#[derive(Debug)]
pub struct Folder {
    config: DecoderConfig,
    text: TextSide,
    weights: Weights,
}

impl Folder {
    /// Opens a folder: its tensors are the parameters of its configuration, with their shapes.
    ///
    /// # Errors
    /// As [`load`], but for types of weights, which are read later.
    pub fn open(folder: &Path) -> Result<Self, FileError> {
        let (config, ids) = load_config(folder)?;
        let weights = Weights::open(folder, &config)?;
        Ok(Self { config, text: hugging_face_text::load(folder, ids)?, weights })
    }
}

impl ModelSource for Folder {
    fn config(&self) -> &DecoderConfig {
        &self.config
    }
    fn text(&self) -> &TextSide {
        &self.text
    }
    fn values(&self, parameter: &ParameterSpec) -> Result<Vec<f32>, FileError> {
        self.weights.values(&parameter.name)
    }
}

/// Reads `config.json` of a folder.
///
/// # Errors
/// As [`hugging_face_config::parse`].
pub fn load_config(folder: &Path) -> Result<(DecoderConfig, TokenIds), FileError> {
    let path = folder.join("config.json");
    hugging_face_config::parse(&path, &read_object(&path)?)
}

/// The weights of a folder, read one tensor at a time.
#[derive(Debug)]
pub struct Weights {
    files: Vec<SafetensorsFile>,
    /// The file of each tensor.
    at: HashMap<String, usize>,
}

impl Weights {
    /// Opens the files of a folder, which hold exactly the parameters of `config`.
    ///
    /// # Errors
    /// Files that are not there or not safetensors; a tensor that is missing, extra, or of another shape.
    pub fn open(folder: &Path, config: &DecoderConfig) -> Result<Self, FileError> {
        let files = open_shards(folder)?;
        let mut at = HashMap::new();
        for (index, file) in files.iter().enumerate() {
            for (name, _) in file.shapes() {
                if at.insert(name.clone(), index).is_some() {
                    let message = format!("tensor {name:?} is also in another shard");
                    return Err(FileError::Safetensors { path: file.path().to_owned(), message });
                }
            }
        }
        let mut rest = at.clone();
        for (name, expected) in config.parameter_shapes() {
            let Some(index) = rest.remove(&name) else {
                return Err(FileError::MissingTensor { path: folder.to_owned(), tensor: name, expected });
            };
            let found = files[index].info(&name).map(|info| info.shape.clone()).unwrap_or_default();
            if found != expected {
                let path = files[index].path().to_owned();
                return Err(FileError::Shape { path, tensor: name, found, expected });
            }
        }
        let described = |(name, index): (String, usize)| {
            let shape = files[index].info(&name).map(|info| info.shape.clone()).unwrap_or_default();
            (name, (shape, &files[index]))
        };
        let weights = |name: &str| files[at[name]].f32(name);
        refuse_rest(rest.into_iter().map(described).collect(), config, || {
            weights(&Role::Embedding.name(false))
        })?;
        Ok(Self { files, at })
    }

    /// The values of a parameter, as f32.
    ///
    /// # Errors
    /// No such parameter; a type that is no float.
    pub fn values(&self, name: &str) -> Result<Vec<f32>, FileError> {
        if let Some(&index) = self.at.get(name) {
            self.files[index].f32(name)
        } else {
            let path = self.files.first().map(|file| file.path().to_owned()).unwrap_or_default();
            Err(FileError::MissingTensor { path, tensor: name.to_owned(), expected: vec![] })
        }
    }
}

/// Refuses tensors that are no parameters, but for kinds that have no part in what is computed.
fn refuse_rest(
    rest: HashMap<String, (Vec<usize>, &SafetensorsFile)>,
    config: &DecoderConfig,
    embedding: impl Fn() -> Result<Vec<f32>, FileError>,
) -> Result<(), FileError> {
    // Sorted, so that the same folder always gives the same message.
    let rest: BTreeMap<_, _> = rest.into_iter().collect();
    for (name, (shape, file)) in rest {
        // Old versions of transformers stored this table, which follows from the configuration.
        if name.ends_with(".rotary_emb.inv_freq") {
            continue;
        }
        // The head for multi-token prediction, not part of the model proper; transformers skips it
        // too.
        if config.family == Family::Qwen3_5 && (name.starts_with("mtp.") || name.starts_with("model.mtp.")) {
            continue;
        }
        // A tied head may be stored as a copy of the embedding.
        if config.tied && Role::of(&name) == Some(Role::Head) {
            let embedding = embedding()?;
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
            let head = file.f32(&name)?;
            if head.len() == embedding.len() && head.iter().zip(&embedding).all(same) {
                continue;
            }
        }
        return Err(FileError::ExtraTensor { path: file.path().to_owned(), tensor: name, found: shape });
    }
    Ok(())
}

/// Opens `model.safetensors`, or else all files that `model.safetensors.index.json` names.
/// transformers looks in the same order, which matters if a model was saved into another's folder.
fn open_shards(folder: &Path) -> Result<Vec<SafetensorsFile>, FileError> {
    superseded::refuse_adapter(folder)?;
    let (single, index) = (folder.join(WEIGHTS), folder.join(INDEX));
    if single.exists() || !index.exists() {
        return Ok(vec![SafetensorsFile::open(&single)?]);
    }
    let object = read_object(&index)?;
    let Some(map) = object.get("weight_map").and_then(Value::as_object) else {
        return Err(FileError::key(
            &index,
            "weight_map",
            "missing or no object",
            "tensor names to file names",
        ));
    };
    let mut names = Vec::new();
    for (tensor, file) in map {
        // A name that contains a path could point anywhere.
        let plain =
            file.as_str().filter(|name| Path::new(name).file_name().is_some_and(|base| base == *name));
        let Some(name) = plain else {
            return Err(FileError::key(
                &index,
                format!("weight_map.{tensor}"),
                file.to_string(),
                "a file name",
            ));
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.into_iter().map(|name| SafetensorsFile::open(&folder.join(name))).collect()
}

/// How the weights of a folder are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage {
    /// F32 or BF16.
    pub dtype: Dtype,
    /// Most bytes of weights in one file. A larger parameter has a file of its own.
    pub file_bytes: u64,
}

impl Storage {
    /// Everything as F32 in one file.
    pub const F32: Self = Self { dtype: Dtype::F32, file_bytes: u64::MAX };
}

/// Writes a folder that transformers loads, with all weights as F32 in one file.
///
/// # Errors
/// As [`save_as`].
pub fn save(folder: &Path, model: &impl ModelSource) -> Result<(), FileError> {
    save_as(folder, model, Storage::F32)
}

/// Writes a folder that transformers loads: `config.json`, weights, `tokenizer.json`,
/// `tokenizer_config.json`. One parameter is in memory at a time. Each file is replaced atomically,
/// and files of an earlier model that would win over these are removed.
///
/// # Errors
/// A parameter that is missing or of another size than its shape; the disk.
pub fn save_as(folder: &Path, model: &impl ModelSource, storage: Storage) -> Result<(), FileError> {
    superseded::refuse_adapter(folder)?;
    let path = folder.join("config.json");
    let described = hugging_face_config::render(model.config(), &model.text().ids, &path)?;
    let written = write_weights(folder, model, storage)?;
    hugging_face_text::save(folder, model.text())?;
    superseded::remove(folder, &written)?;
    // Last: a folder with a configuration is complete.
    write_json(path, &described)
}

/// Writes the weights: `model.safetensors`, or shards with an index. Gives the names of the files.
fn write_weights(
    folder: &Path,
    model: &impl ModelSource,
    storage: Storage,
) -> Result<Vec<String>, FileError> {
    let parameters = model.config().parameters();
    let shards = shards(&parameters, storage);
    let write = |file: &str, parameters: &[ParameterSpec]| {
        let named: HashMap<&str, &ParameterSpec> =
            parameters.iter().map(|parameter| (parameter.name.as_str(), parameter)).collect();
        let shapes = parameters.iter().map(|parameter| (parameter.name.clone(), parameter.shape()));
        let values = |name: &str| model.values(named[name]);
        safetensors_file::write_parts(&folder.join(file), shapes.collect(), storage.dtype, values)
    };
    if let [all] = shards.as_slice() {
        write(WEIGHTS, all)?;
        return Ok(vec![WEIGHTS.to_owned()]);
    }
    let (mut written, mut map, mut total) = (Vec::new(), Map::new(), 0);
    for (at, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", at + 1, shards.len());
        write(&file, shard)?;
        for parameter in *shard {
            map.insert(parameter.name.clone(), file.clone().into());
            total += bytes(parameter, storage.dtype);
        }
        written.push(file);
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    write_json(folder.join(INDEX), &index)?;
    written.push(INDEX.to_owned());
    Ok(written)
}

/// The parameters of each file, in their order.
fn shards(parameters: &[ParameterSpec], storage: Storage) -> Vec<&[ParameterSpec]> {
    let (mut shards, mut from, mut size) = (Vec::new(), 0, 0u64);
    for (at, parameter) in parameters.iter().enumerate() {
        let more = bytes(parameter, storage.dtype);
        if at > from && size.saturating_add(more) > storage.file_bytes {
            shards.push(&parameters[from..at]);
            (from, size) = (at, 0);
        }
        size = size.saturating_add(more);
    }
    shards.push(&parameters[from..]);
    shards
}

fn bytes(parameter: &ParameterSpec, dtype: Dtype) -> u64 {
    (parameter.shape().iter().product::<usize>() * dtype.bitsize() / 8) as u64
}

pub(super) fn write_json(path: PathBuf, value: &Value) -> Result<(), FileError> {
    let text =
        serde_json::to_string_pretty(value).expect("a JSON value has no map keys that are not strings");
    crate::atomic_file::write(&path, (text + "\n").as_bytes()).map_err(FileError::io(&path))
}

pub(super) fn read_object(path: &Path) -> Result<Map<String, Value>, FileError> {
    let bytes = fs_err::read(path).map_err(FileError::io(path))?;
    serde_json::from_slice(&bytes).map_err(|source| FileError::Json { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn fixture() -> Model {
        load(Path::new("tests/fixtures/hf/llama_gqa")).unwrap()
    }

    #[test]
    fn shards_are_full_and_hold_each_parameter_once() {
        let parameters = fixture().config.parameters();
        let total: u64 = parameters.iter().map(|parameter| bytes(parameter, Dtype::F32)).sum();
        let largest = parameters.iter().map(|parameter| bytes(parameter, Dtype::F32)).max().unwrap();
        for file_bytes in [1, largest, largest + 4, total / 3, total - 1, total, u64::MAX] {
            let found = shards(&parameters, Storage { dtype: Dtype::F32, file_bytes });
            assert_eq!(found.concat(), parameters);
            let sizes: Vec<u64> = found
                .iter()
                .map(|shard| shard.iter().map(|parameter| bytes(parameter, Dtype::F32)).sum())
                .collect();
            assert_eq!(sizes.len() == 1, file_bytes >= total, "{file_bytes}: {sizes:?}");
            assert!(
                found.iter().zip(&sizes).all(|(shard, size)| shard.len() == 1 || *size <= file_bytes),
                "{file_bytes}: {sizes:?}"
            );
            // The first parameter of the next file wouldn't have fit.
            for (next, size) in found.iter().skip(1).zip(&sizes) {
                assert!(size + bytes(&next[0], Dtype::F32) > file_bytes);
            }
        }
    }

    #[test]
    fn a_folder_of_rounded_shards_is_read_back_and_replaces_one_file_and_is_replaced() {
        let (model, folder) = (fixture(), tempfile::tempdir().unwrap());
        let names = || {
            let mut names: Vec<String> = fs_err::read_dir(folder.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name.contains("safetensors"))
                .collect();
            names.sort();
            names
        };
        save(folder.path(), &model).unwrap();
        assert_eq!(names(), ["model.safetensors"]);
        let storage = Storage { dtype: Dtype::BF16, file_bytes: 20_000 };
        save_as(folder.path(), &model, storage).unwrap();
        let sharded = names();
        assert!(sharded.len() > 2 && sharded[0].starts_with("model-00001-of-000"), "{sharded:?}");
        assert!(!sharded.contains(&WEIGHTS.to_owned()), "{sharded:?}");
        let index = read_object(&folder.path().join(INDEX)).unwrap();
        assert_eq!(index["metadata"]["total_size"], 2 * model.config.parameter_count());
        let again = load(folder.path()).unwrap();
        assert_eq!(again.config, model.config);
        for parameter in model.config.parameters() {
            let rounded: Vec<f32> = model
                .values(&parameter)
                .unwrap()
                .into_iter()
                .map(|value| bf16::from_f32(value).to_f32())
                .collect();
            assert_eq!(again.values(&parameter).unwrap(), rounded, "{}", parameter.name);
        }
        save(folder.path(), &model).unwrap();
        assert_eq!(names(), ["model.safetensors"]);
    }
}
