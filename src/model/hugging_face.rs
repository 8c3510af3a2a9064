//! A Hugging Face folder: `config.json`, safetensors (one file or shards), `tokenizer.json`, chat
//! template.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{Device, Var};
use serde_json::{Map, Value};

use super::file_error::FileError;
use super::hugging_face_config::{self, TokenIds};
use super::safetensors_file::{self, SafetensorsFile};
use super::tokenizer::{BOS, CHAT_TEMPLATE, END, PAD, Tokenizer, TokenizerError};
use super::{DecoderConfig, Family, Parameters, hugging_face_text, superseded};

/// All weights in one file.
const WEIGHTS: &str = "model.safetensors";
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

/// Reads a folder.
///
/// # Errors
/// Names the file and the key or tensor, what was found and what was expected.
pub fn load(folder: &Path) -> Result<Model, FileError> {
    let (config, ids) = load_config(folder)?;
    let parameters = load_parameters(folder, &config)?;
    Ok(Model { config, parameters, text: hugging_face_text::load(folder, ids)? })
}

/// Reads `config.json` of a folder.
///
/// # Errors
/// As [`hugging_face_config::parse`].
pub fn load_config(folder: &Path) -> Result<(DecoderConfig, TokenIds), FileError> {
    let path = folder.join("config.json");
    hugging_face_config::parse(&path, &read_object(&path)?)
}

/// Reads the weights of a folder: exactly the parameters of `config`, in their order, as f32.
///
/// # Errors
/// Files that are missing or not safetensors; a tensor that is missing, extra, or of the wrong
/// shape or type.
pub fn load_parameters(folder: &Path, config: &DecoderConfig) -> Result<Parameters, FileError> {
    let files = open_shards(folder)?;
    let mut found: HashMap<String, (Vec<usize>, &SafetensorsFile)> = HashMap::new();
    for file in &files {
        for (name, shape) in file.shapes() {
            if found.insert(name.clone(), (shape, file)).is_some() {
                let message = format!("tensor {name:?} is also in another shard");
                return Err(FileError::Safetensors { path: file.path().to_owned(), message });
            }
        }
    }
    let mut parameters = Parameters::default();
    for (name, expected) in config.parameter_shapes() {
        let Some((shape, file)) = found.remove(&name) else {
            return Err(FileError::MissingTensor { path: folder.to_owned(), tensor: name, expected });
        };
        if shape != expected {
            let path = file.path().to_owned();
            return Err(FileError::Shape { path, tensor: name, found: shape, expected });
        }
        let values = file.f32(&name)?;
        parameters.insert(name, Var::from_vec(values, shape, &Device::Cpu)?)?;
    }
    let embedding = || Ok(safetensors_file::f32_values(parameters.get(EMBEDDING)?)?);
    refuse_rest(found, config, embedding)?;
    Ok(parameters)
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
    /// As [`load_parameters`].
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
        refuse_rest(rest.into_iter().map(described).collect(), config, || weights(EMBEDDING))?;
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

const EMBEDDING: &str = "model.embed_tokens.weight";

/// Refuses tensors that are no parameters, except kinds that don't affect the forward pass.
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
        if config.tied && name == "lm_head.weight" {
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

/// Writes a folder that transformers loads: `config.json`, `model.safetensors` (f32),
/// `tokenizer.json`, `tokenizer_config.json`. Each file is replaced atomically, and files of an
/// earlier model that would take precedence are removed.
///
/// # Errors
/// Parameters that don't fit the configuration; I/O errors.
pub fn save(folder: &Path, model: &Model) -> Result<(), FileError> {
    for (name, expected) in model.config.parameter_shapes() {
        let found = model.parameters.get(&name)?.dims().to_vec();
        if found != expected {
            return Err(FileError::Shape { path: folder.to_owned(), tensor: name, found, expected });
        }
    }
    save_parts(folder, &model.config, &model.text, |name| {
        Ok(safetensors_file::f32_values(model.parameters.get(name)?)?)
    })
}

/// As [`save`], with one parameter at a time in memory: `values` returns the values of the named
/// parameter.
///
/// # Errors
/// Those of `values`; a parameter whose size isn't that of its shape; I/O errors.
pub fn save_parts(
    folder: &Path,
    config: &DecoderConfig,
    text: &TextSide,
    values: impl FnMut(&str) -> Result<Vec<f32>, FileError>,
) -> Result<(), FileError> {
    superseded::refuse_adapter(folder)?;
    safetensors_file::write_parts(&folder.join(WEIGHTS), config.parameter_shapes(), values)?;
    hugging_face_text::save(folder, text)?;
    superseded::remove(folder)?;
    // Last: a folder with a configuration is complete.
    write_json(folder.join("config.json"), &hugging_face_config::render(config, &text.ids))
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
