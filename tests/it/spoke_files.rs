//! Builds spokes and a post byte by byte. Nothing here is checked, so every rule can be broken.

use half::f16;
use serde_json::{Value, json};

/// The parts of a GGUF file.
#[derive(Clone, Default)]
pub struct RawGguf {
    /// Counts to claim instead of the true ones: tensors, keys.
    pub claimed: [Option<u64>; 2],
    /// Key, value type, bytes of the value.
    pub keys: Vec<(Vec<u8>, u32, Vec<u8>)>,
    pub tensors: Vec<RawTensor>,
}

/// The parts of a tensor.
#[derive(Clone)]
pub struct RawTensor {
    pub name: String,
    pub dims: Vec<u64>,
    pub kind: u32,
    /// Offset to claim instead of the true one.
    pub offset: Option<u64>,
    pub data: Vec<u8>,
}

pub const F32: u32 = 0;
pub const F16: u32 = 1;
pub const Q8_0: u32 = 8;
const ALIGNMENT: usize = 32;

pub fn text(value: &str) -> Vec<u8> {
    let mut bytes = (value.len() as u64).to_le_bytes().to_vec();
    bytes.extend(value.as_bytes());
    bytes
}

impl RawGguf {
    /// Replaces the key of the same name, or adds a key at the end.
    pub fn key(mut self, key: &str, kind: u32, value: Vec<u8>) -> Self {
        match self.keys.iter_mut().find(|(other, ..)| other == key.as_bytes()) {
            Some(place) => *place = (key.into(), kind, value),
            None => self.keys.push((key.into(), kind, value)),
        }
        self
    }

    pub fn text(self, key: &str, value: &str) -> Self {
        self.key(key, 8, text(value))
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.key(key, 4, value.to_le_bytes().to_vec())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.key(key, 6, value.to_le_bytes().to_vec())
    }

    pub fn without(mut self, key: &str) -> Self {
        self.keys.retain(|(other, ..)| other != key.as_bytes());
        self
    }

    /// Adds a tensor of f32 values.
    pub fn tensor(self, name: &str, dims: &[u64], value: impl Fn(usize) -> f32) -> Self {
        let count = dims.iter().product::<u64>() as usize;
        let data = (0..count).flat_map(|at| value(at).to_le_bytes()).collect();
        self.stored(name, dims, F32, data)
    }

    /// Adds a tensor of f16 values.
    pub fn half(self, name: &str, dims: &[u64], value: impl Fn(usize) -> f32) -> Self {
        let count = dims.iter().product::<u64>() as usize;
        let data = (0..count).flat_map(|at| f16::from_f32(value(at)).to_le_bytes()).collect();
        self.stored(name, dims, F16, data)
    }

    pub fn stored(mut self, name: &str, dims: &[u64], kind: u32, data: Vec<u8>) -> Self {
        self.tensors.push(RawTensor { name: name.into(), dims: dims.into(), kind, offset: None, data });
        self
    }

    pub fn drop_tensor(mut self, name: &str) -> Self {
        let before = self.tensors.len();
        self.tensors.retain(|tensor| tensor.name != name);
        assert_eq!(self.tensors.len() + 1, before, "no tensor {name}");
        self
    }

    /// Changes a tensor.
    pub fn edit(mut self, name: &str, change: impl FnOnce(&mut RawTensor)) -> Self {
        change(self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap());
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        for tensor in &self.tensors {
            out.extend(&tensor.data);
            out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        }
        out
    }

    /// Everything before the data, with padding.
    pub fn header(&self) -> Vec<u8> {
        let (mut out, ..) = self.sections();
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out
    }

    /// The header without padding, and the position where its keys end.
    pub fn sections(&self) -> (Vec<u8>, usize) {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(self.claimed[0].unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.claimed[1].unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.keys {
            out.extend((key.len() as u64).to_le_bytes());
            out.extend(key);
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        let keys_end = out.len();
        let mut offset = 0u64;
        for tensor in &self.tensors {
            out.extend(text(&tensor.name));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            out.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(offset).to_le_bytes());
            offset += (tensor.data.len() as u64).next_multiple_of(ALIGNMENT as u64);
        }
        (out, keys_end)
    }
}

/// Numbers in -0.5..0.5.
pub fn number(at: usize) -> f32 {
    (at * 37 % 101) as f32 / 101.0 - 0.5
}

/// A model of two blocks: width 16, two heads of 8 and one head for keys, 32 tokens.
pub fn post(tied: bool) -> RawGguf {
    // Lowercase letters, so that a text has tokens at all. Other characters are skipped.
    let letter = |id: u8| if id < 26 { char::from(b'a' + id).to_string() } else { format!("t{id}") };
    let tokens: Vec<u8> = (0..32).flat_map(|id| text(&letter(id))).collect();
    let array = |of: u32, count: u64, entries: &[u8]| {
        let mut bytes = of.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes.extend(entries);
        bytes
    };
    let mut file = RawGguf::default().text("general.architecture", "llama");
    for (key, value) in [
        ("context_length", 64),
        ("embedding_length", 16),
        ("block_count", 2),
        ("feed_forward_length", 32),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
    ] {
        file = file.u32(&format!("llama.{key}"), value);
    }
    file = file
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "qwen2")
        .key("tokenizer.ggml.tokens", 9, array(8, 32, &tokens))
        .key("tokenizer.ggml.merges", 9, array(8, 1, &text("a b")))
        .u32("tokenizer.ggml.eos_token_id", 31)
        .tensor("token_embd.weight", &[16, 32], number)
        .tensor("output_norm.weight", &[16], |_| 1.0);
    if !tied {
        file = file.tensor("output.weight", &[16, 32], number);
    }
    for block in 0..2 {
        let name = |part: &str| format!("blk.{block}.{part}.weight");
        file = file
            .tensor(&name("attn_norm"), &[16], |_| 1.0)
            .tensor(&name("ffn_norm"), &[16], |_| 1.0)
            .tensor(&name("attn_q"), &[16, 16], number)
            .tensor(&name("attn_k"), &[16, 8], number)
            .tensor(&name("attn_v"), &[16, 8], number)
            .tensor(&name("attn_output"), &[16, 16], number)
            .tensor(&name("ffn_gate"), &[16, 32], number)
            .tensor(&name("ffn_up"), &[16, 32], number)
            .tensor(&name("ffn_down"), &[32, 16], number);
    }
    file
}

/// A LoRA of rank 2 on two matrices of the post.
pub fn lora() -> RawGguf {
    RawGguf::default()
        .text("general.type", "adapter")
        .text("general.architecture", "llama")
        .text("adapter.type", "lora")
        .f32("adapter.lora.alpha", 4.0)
        .tensor("blk.0.attn_q.weight.lora_a", &[16, 2], number)
        .tensor("blk.0.attn_q.weight.lora_b", &[2, 16], number)
        .tensor("blk.1.ffn_down.weight.lora_a", &[32, 2], number)
        .tensor("blk.1.ffn_down.weight.lora_b", &[2, 16], number)
}

/// A Felix spoke with two bottlenecks of rank 3 after each of the two blocks.
pub fn felix() -> RawGguf {
    let mut file = RawGguf::default()
        .text("general.type", "adapter")
        .text("general.architecture", "llama")
        .text("adapter.type", "felix")
        .u32("felix.num_spokes", 2)
        .u32("felix.spoke_rank", 3)
        .f32("felix.rms_eps", 1e-6);
    for block in 0..2 {
        let name = |part: &str| format!("blk.{block}.spoke.{part}");
        file = file
            .tensor(&name("norm.weight"), &[16], |_| 1.0)
            .tensor(&name("gate_bias"), &[1], |_| -1.0)
            .half(&name("w_down_fused.weight"), &[16, 6], number)
            .half(&name("w_up_fused.weight"), &[6, 16], number);
    }
    file
}

/// A safetensors file with the given header, then data.
pub fn safetensors(header: &Value, data: usize) -> Vec<u8> {
    let header = header.to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..data / 4).flat_map(|at| number(at).to_le_bytes()));
    bytes
}

/// A header with consecutive F32 tensors, and the length of the data.
pub fn header(tensors: &[(&str, &[u64])], metadata: Value) -> (Value, usize) {
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    if !metadata.is_null() {
        header.insert("__metadata__".into(), metadata);
    }
    for (name, shape) in tensors {
        let end = at + 4 * shape.iter().product::<u64>();
        header.insert((*name).into(), json!({"dtype": "F32", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    (header.into(), at as usize)
}

/// The tensors of a Felix spoke under its training names: one bottleneck of rank 2 after the first
/// block.
pub const TRAINED: [(&str, &[u64]); 3] =
    [("0.gate_bias", &[]), ("0.w_down.0.weight", &[2, 16]), ("0.w_up.0.weight", &[16, 2])];

pub fn trained() -> (Value, usize) {
    header(&TRAINED, json!({"num_spokes": "1", "spoke_rank": "2"}))
}

/// The tensors of a PEFT adapter of rank 2.
pub const PEFT: [(&str, &[u64]); 2] = [
    ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", &[2, 16]),
    ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight", &[16, 2]),
];

pub fn peft_config() -> Value {
    json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"})
}

pub fn peft_weights() -> Vec<u8> {
    let (header, data) = header(&PEFT, Value::Null);
    safetensors(&header, data)
}

/// A zip archive of these files.
pub fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    use std::io::Write;
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in files {
        let options =
            zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        writer.start_file(*name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}
