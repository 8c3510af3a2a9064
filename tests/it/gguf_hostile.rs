//! Tests of hostile GGUF files: each kind is refused by the rule that names it, before llama.cpp
//! sees a byte.

mod per_block;

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use bespoke::gguf::{GgmlType, Gguf, GgufError, TensorInfo, Value, Writer, check_model};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Bytes of a file, assembled by hand.
#[derive(Clone, Default)]
struct Raw(Vec<u8>);

impl Raw {
    fn header(tensors: u64, pairs: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(3).u64(tensors).u64(pairs)
    }
    fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }
    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
    fn text(self, text: &str) -> Self {
        self.u64(text.len() as u64).bytes(text.as_bytes())
    }
    /// Adds a tensor description.
    fn tensor(self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        let raw = self.text(name).u32(dims.len() as u32);
        dims.iter().fold(raw, |raw, &dim| raw.u64(dim)).u32(kind).u64(offset)
    }
    /// Adds the data section: padding, then zeros.
    fn data(mut self, bytes: usize) -> Self {
        let start = self.0.len().next_multiple_of(32);
        self.0.resize(start + bytes, 0);
        self
    }
}

/// Kinds of files, with the message of the refusal.
fn malformed() -> Vec<(&'static str, Raw, &'static str)> {
    let none = || Raw::header(0, 0);
    let pair = || Raw::header(0, 1).text("some.key");
    let one = |dims: &[u64], kind, offset| Raw::header(1, 0).tensor("t", dims, kind, offset).data(64);
    let array = |of: u32, count: u64| pair().u32(9).u32(of).u64(count);
    let alignment = |value: u32| Raw::header(0, 1).text("general.alignment").u32(4).u32(value);
    vec![
        ("empty", Raw::default(), "is not a GGUF file: begins with []"),
        ("text", Raw(b"Hello, world, this is text".to_vec()), "is not a GGUF file"),
        ("magic only", Raw(b"GGUF".to_vec()), "in the middle of the version"),
        ("version 1", Raw(b"GGUF".to_vec()).u32(1).u64(0).u64(0), "version 1, expected 2 or 3"),
        ("version 4", Raw(b"GGUF".to_vec()).u32(4).u64(0).u64(0), "version 4, expected 2 or 3"),
        ("big endian", Raw(b"GGUF".to_vec()).bytes(&[0, 0, 0, 3]).u64(0).u64(0), "big-endian"),
        ("no counts", Raw(b"GGUF".to_vec()).u32(3), "in the middle of the number of tensors"),
        ("2^63 tensors", Raw::header(1 << 63, 0).data(64), "claims 9223372036854775808 tensors"),
        ("2^63 keys", Raw::header(0, 1 << 63).data(64), "claims 9223372036854775808 keys"),
        ("more keys than fit", Raw::header(0, 9).data(64), "claims 9 keys"),
        (
            "truncated in a key",
            Raw::header(0, 1).u64(20).bytes(b"short and"),
            "in the middle of key number 0",
        ),
        ("key of no length", Raw::header(0, 1).u64(0).data(64), "key number 0 is 0 bytes long"),
        (
            "key of 65536 bytes",
            Raw::header(0, 1).u64(65_536).data(70_000),
            "key number 0 is 65536 bytes long",
        ),
        (
            "key of 2^64-1 bytes",
            Raw::header(0, 1).u64(u64::MAX).data(64),
            "key number 0 is 18446744073709551615",
        ),
        (
            "key not UTF-8",
            Raw::header(0, 1).u64(2).bytes(&[b'a', 0xff]).data(64),
            "key number 0 is not UTF-8",
        ),
        (
            "key with a zero byte",
            Raw::header(0, 1).text("general.architecture\0").u32(4).u32(1),
            "a zero byte",
        ),
        (
            "key twice",
            Raw::header(0, 2).text("k").u32(4).u32(1).text("k").u32(4).u32(2),
            "duplicate key \"k\"",
        ),
        ("type 13", pair().u32(13).u64(0), "key \"some.key\" has value type 13"),
        ("type -1", pair().u32(u32::MAX).u64(0), "key \"some.key\" has value type 4294967295"),
        ("bool of 2", pair().u32(7).u8(2).u64(0), "\"some.key\" has 2 where a bool"),
        ("truncated value", pair().u32(10).u32(1), "in the middle of the value of \"some.key\""),
        ("text past the file", pair().u32(8).u64(1 << 40).u64(0), "needs 1099511627776 bytes"),
        ("text of 2^64-1 bytes", pair().u32(8).u64(u64::MAX).u64(0), "needs 18446744073709551615 bytes"),
        ("text with a zero byte", pair().u32(8).text("a\0b"), "the value of \"some.key\" holds a zero byte"),
        ("array of arrays", array(9, 1).u32(4).u64(0), "\"some.key\" is an array of arrays"),
        ("array of type 99", array(99, 0), "\"some.key\" has value type 99"),
        (
            "array past the file",
            array(4, 1 << 62).u64(0),
            "claims 4611686018427387904 entries of \"some.key\"",
        ),
        ("texts past the file", array(8, 5).text("a").text("b"), "claims 5 entries of \"some.key\""),
        ("text in an array past the file", array(8, 1).u64(500), "in the middle of entry 0 of \"some.key\""),
        ("alignment 0", alignment(0), "\"general.alignment\" is 0, expected a power of two"),
        ("alignment 48", alignment(48), "\"general.alignment\" is 48"),
        ("alignment 4", alignment(4), "\"general.alignment\" is 4,"),
        ("alignment 2^31", alignment(1 << 31), "\"general.alignment\" is 2147483648"),
        (
            "alignment as a text",
            Raw::header(0, 1).text("general.alignment").u32(8).text("32"),
            "\"general.alignment\" is string, expected u32",
        ),
        ("tensor without a name", Raw::header(1, 0).u64(0).data(64), "tensor name number 0 is 0 bytes long"),
        (
            "tensor name of 64 bytes",
            Raw::header(1, 0).tensor(&"n".repeat(64), &[1], 0, 0).data(64),
            "tensor name number 0 is 64 bytes long",
        ),
        ("rank 0", one(&[], 0, 0), "tensor \"t\" has 0 dimensions"),
        ("rank 5", one(&[1; 5], 0, 0), "tensor \"t\" has 5 dimensions"),
        (
            "rank 2^32-1",
            Raw::header(1, 0).text("t").u32(u32::MAX).data(64),
            "tensor \"t\" has 4294967295 dimensions",
        ),
        ("dimension 0", one(&[4, 0], 0, 0), "a dimension of size 0: [4, 0]"),
        ("product past 2^64", one(&[1 << 32, 1 << 32, 2], 0, 0), "whose product exceeds any file size"),
        ("product past 2^63", one(&[1 << 62], 0, 0), "whose product exceeds any file size"),
        ("dimension -1", one(&[u64::MAX], 0, 0), "whose product exceeds any file size"),
        ("retired type 4", one(&[32], 4, 0), "tensor \"t\" has type 4"),
        ("type 43", one(&[32], 43, 0), "tensor \"t\" has type 43"),
        ("row of half a block", one(&[16], 8, 0), "rows of 16 elements, expected a multiple of 32"),
        ("misaligned", one(&[4], 0, 16), "at offset 16, expected a multiple of 32"),
        ("offset past the file", one(&[4], 0, 1 << 40), "needs 16 bytes from offset 1099511627776"),
        ("offset near 2^64", one(&[16], 0, u64::MAX - 31), "from offset 18446744073709551584"),
        ("size past the file", one(&[17], 0, 0), "needs 68 bytes from offset 0 of the data; there are 64"),
        (
            "no data at all",
            Raw::header(1, 0).tensor("t", &[1], 0, 0),
            "needs 4 bytes from offset 0 of the data; there are 0",
        ),
        (
            "truncated description",
            Raw::header(2, 0).tensor("t", &[1], 0, 0).tensor("u", &[1, 1, 1], 0, 0).bytes(&[]),
            "there are 0",
        ),
        (
            "overlap",
            Raw::header(2, 0).tensor("t", &[16], 0, 0).tensor("u", &[4], 0, 32).data(64),
            "tensors \"t\" and \"u\" overlap at offset 32",
        ),
        (
            "tensor twice",
            Raw::header(2, 0).tensor("t", &[4], 0, 0).tensor("t", &[4], 0, 32).data(64),
            "duplicate tensor \"t\"",
        ),
        ("nothing that a model needs", none(), "key \"general.architecture\" is missing"),
    ]
}

fn inspect(path: &Path) -> Result<(), GgufError> {
    check_model(&Gguf::open(path)?)
}

#[test]
fn every_kind_of_malformed_file_is_refused_by_its_rule() {
    let folder = tempfile::tempdir().unwrap();
    for (kind, raw, expected) in malformed() {
        let path = folder.path().join("hostile.gguf");
        bespoke::atomic_file::write(&path, &raw.0).unwrap();
        let message = inspect(&path).expect_err(kind).to_string();
        assert!(message.contains(expected), "{kind}: {message}");
        assert!(message.starts_with(&path.display().to_string()), "{kind}: {message}");
    }
}

#[test]
fn what_is_no_regular_file_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |path: &Path| inspect(path).unwrap_err().to_string();
    assert!(refused(folder.path()).contains("is a directory, expected a regular file"));
    assert!(refused(&folder.path().join("nowhere")).contains("can't be read"));
    let fifo = folder.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    assert!(refused(&fifo).contains("is a FIFO"));
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&fifo, &link).unwrap();
    assert!(refused(&link).contains("is a FIFO"));
    assert!(refused(Path::new("/dev/zero")).contains("is a device"));
}

#[test]
fn the_command_says_which_file_and_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.gguf");
    bespoke::atomic_file::write(&path, b"not a model").unwrap();
    let failed =
        Command::cargo_bin("bespoke").unwrap().arg("import").arg(&path).arg(folder.path()).assert().code(1);
    let message = String::from_utf8(failed.get_output().stderr.clone()).unwrap();
    assert!(message.contains("text.gguf: is not a GGUF file: begins with [6e, 6f, 74, 20]"), "{message}");
}

/// A complete tiny model, whose keys and tensors a test may change before it is written.
#[derive(Clone)]
struct Model {
    keys: Vec<(String, Value)>,
    tensors: Vec<(String, Vec<u64>, GgmlType)>,
}

impl Model {
    fn new() -> Self {
        let tokens: Vec<String> = (0..32).map(|id| format!("t{id}")).collect();
        let sizes = [
            ("context_length", 64),
            ("embedding_length", 16),
            ("block_count", 1),
            ("feed_forward_length", 32),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
        ];
        let mut keys: Vec<(String, Value)> = vec![("general.architecture".into(), "llama".into())];
        keys.extend(sizes.map(|(key, size)| (format!("llama.{key}"), Value::U32(size))));
        keys.extend([
            ("llama.attention.layer_norm_rms_epsilon".into(), 1e-5f32.into()),
            ("tokenizer.ggml.model".into(), "gpt2".into()),
            ("tokenizer.ggml.pre".into(), "qwen2".into()),
            ("tokenizer.ggml.tokens".into(), tokens.into()),
            ("tokenizer.ggml.token_type".into(), vec![1i32; 32].into()),
            ("tokenizer.ggml.merges".into(), vec!["t1 t2".to_owned()].into()),
            ("tokenizer.ggml.eos_token_id".into(), 2u32.into()),
        ]);
        let tensor = |name: &str, dims: &[u64]| (format!("{name}.weight"), dims.to_vec(), GgmlType::F32);
        let tensors = vec![
            tensor("token_embd", &[16, 32]),
            tensor("output_norm", &[16]),
            tensor("blk.0.attn_norm", &[16]),
            tensor("blk.0.ffn_norm", &[16]),
            tensor("blk.0.attn_q", &[16, 16]),
            tensor("blk.0.attn_k", &[16, 8]),
            tensor("blk.0.attn_v", &[16, 8]),
            tensor("blk.0.attn_output", &[16, 16]),
            tensor("blk.0.ffn_gate", &[16, 32]),
            tensor("blk.0.ffn_up", &[16, 32]),
            tensor("blk.0.ffn_down", &[32, 16]),
        ];
        Self { keys, tensors }
    }

    fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.keys.retain(|(other, _)| other != key);
        self.keys.push((key.to_owned(), value.into()));
        self
    }

    /// The same as llama.cpp's Llama whose blocks may differ.
    fn per_block(mut self) -> Self {
        for (key, _) in &mut self.keys {
            *key = key.replace("llama.", "deci.");
        }
        self.set("general.architecture", "deci")
    }

    fn without(mut self, key: &str) -> Self {
        self.keys.retain(|(other, _)| other != key);
        self
    }

    fn tensor(mut self, name: &str, dims: &[u64], kind: GgmlType) -> Self {
        match self.tensors.iter_mut().find(|tensor| tensor.0 == name) {
            Some(tensor) => *tensor = (name.to_owned(), dims.to_vec(), kind),
            None => self.tensors.push((name.to_owned(), dims.to_vec(), kind)),
        }
        self
    }

    fn write(&self, folder: &Path) -> PathBuf {
        let path = folder.join("model.gguf");
        let mut writer = Writer::new();
        for (key, value) in &self.keys {
            writer.set(key, value.clone());
        }
        for (name, dims, kind) in &self.tensors {
            writer.tensor(name, dims, *kind);
        }
        writer
            .write(&path, |tensor: &TensorInfo| Ok::<_, GgufError>(vec![0; tensor.bytes as usize]))
            .unwrap();
        path
    }
}

#[test]
fn every_wrong_model_is_refused_by_its_rule() {
    let model = Model::new;
    let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let repeated: Vec<String> = (0..32).map(|id| format!("t{}", id % 31)).collect();
    let cases: Vec<(Model, &str)> = vec![
        (model().set("general.architecture", 7u32), "\"general.architecture\" is u32, expected string"),
        (model().set("general.architecture", "no/where"), "\"general.architecture\" is \"no/where\""),
        (model().set("general.type", 7u32), "\"general.type\" is u32, expected string"),
        (model().set("general.type", "adapter"), "\"general.type\" is \"adapter\", expected \"model\""),
        (model().set("general.name", vec![1u8]), "\"general.name\" is array of u8"),
        (model().set("general.file_type", "F32"), "\"general.file_type\" is string"),
        (model().set("tokenizer.chat_template", true), "\"tokenizer.chat_template\" is bool"),
        (model().set("split.count", 3u16), "part of a model in 3 files"),
        (model().without("llama.context_length"), "\"llama.context_length\" is missing, expected u32"),
        (model().set("llama.embedding_length", 16u64), "\"llama.embedding_length\" is u64, expected u32"),
        (model().set("llama.embedding_length", 0u32), "\"llama.embedding_length\" is 0"),
        (model().set("llama.block_count", 513u32), "\"llama.block_count\" is 513, expected 1 to 512"),
        (
            model().set("llama.block_count", 2u32),
            "tensor \"blk.1.attn_k.weight\" is missing, expected dimensions [16, 8]",
        ),
        (model().set("llama.rope.scaling.type", "odd"), "\"llama.rope.scaling.type\" is \"odd\""),
        (model().set("llama.attention.head_count", 0u32), "\"llama.attention.head_count\" is 0"),
        (
            model().set("llama.attention.head_count", 3u32).without("llama.attention.head_count_kv"),
            "a divisor of 16",
        ),
        (model().set("llama.attention.head_count_kv", 0u32), "\"llama.attention.head_count_kv\" is 0"),
        (model().set("llama.attention.head_count", vec![2u32]), "is array of u32, expected u32"),
        (model().set("llama.attention.key_length", 7u32), "an even number"),
        (
            model().set("llama.attention.value_length", 4u32),
            "\"llama.attention.value_length\" is 4, expected 8",
        ),
        (model().set("llama.rope.dimension_count", 4u32), "\"llama.rope.dimension_count\" is 4, expected 8"),
        (model().set("llama.attention.layer_norm_rms_epsilon", -1.0f32), "rms_epsilon\" is -1"),
        (model().set("llama.attention.layer_norm_rms_epsilon", f32::NAN), "rms_epsilon\" is NaN"),
        (model().set("llama.rope.freq_base", f32::INFINITY), "\"llama.rope.freq_base\" is inf"),
        (model().set("llama.expert_count", 8u32), "\"llama.expert_count\" is 8, expected 0"),
        (model().set("llama.vocab_size", 31u32), "\"llama.vocab_size\" is 31, expected 32"),
        (model().without("tokenizer.ggml.model"), "\"tokenizer.ggml.model\" is missing"),
        (model().set("tokenizer.ggml.model", "odd"), "\"tokenizer.ggml.model\" is \"odd\""),
        (model().set("tokenizer.ggml.model", "llama"), "without <0x00>"),
        (model().set("tokenizer.ggml.tokens", vec![1u32]), "\"tokenizer.ggml.tokens\" is array of u32"),
        (
            model().set("tokenizer.ggml.tokens", Vec::<String>::new()),
            "\"tokenizer.ggml.tokens\" is 0 entries",
        ),
        (model().set("tokenizer.ggml.tokens", repeated), "has \"t0\" twice, as 0 and 31"),
        (model().set("tokenizer.ggml.tokens", texts(&["a", ""])), "empty at 1"),
        (
            model().set("tokenizer.ggml.token_type", vec![1i32; 31]),
            "\"tokenizer.ggml.token_type\" has 31 entries, expected 32",
        ),
        (model().set("tokenizer.ggml.token_type", vec![0i32; 32]), "\"tokenizer.ggml.token_type\" is 0"),
        (model().set("tokenizer.ggml.token_type", vec![1u32; 32]), "is array of u32, expected array of i32"),
        (model().set("tokenizer.ggml.scores", vec![0f32; 31]), "\"tokenizer.ggml.scores\" has 31 entries"),
        (model().without("tokenizer.ggml.merges"), "\"tokenizer.ggml.merges\" is missing"),
        (model().set("tokenizer.ggml.merges", texts(&["a b", "ab"])), "\"ab\" at 1"),
        (
            model().set("tokenizer.ggml.bos_token_id", 32u32),
            "\"tokenizer.ggml.bos_token_id\" is 32, expected less than 32",
        ),
        (model().set("tokenizer.ggml.bos_token_id", -1i32), "\"tokenizer.ggml.bos_token_id\" is i32"),
        (model().set("tokenizer.ggml.add_bos_token", true), "\"tokenizer.ggml.bos_token_id\" is missing"),
        (
            model().tensor("token_embd.weight", &[16, 31], GgmlType::F32),
            "has dimensions [16, 31], expected [16, 32]",
        ),
        (
            model().tensor("blk.0.attn_q.weight", &[16, 16, 1], GgmlType::F32),
            "has dimensions [16, 16, 1], expected [16, 16]",
        ),
        (
            model().tensor("blk.0.attn_q.weight", &[16, 16], GgmlType::F64),
            "has type F64, expected a type of weights",
        ),
        (
            model().tensor("blk.0.attn_q.weight", &[16, 16], GgmlType::I8),
            "has type I8, expected a type of weights",
        ),
        (model().tensor("output_norm.weight", &[16], GgmlType::F16), "has type F16, expected F32"),
        (
            model().tensor("blk.0.odd.weight", &[16], GgmlType::F32),
            "\"blk.0.odd.weight\" is not part of architecture \"llama\"",
        ),
        (
            model().tensor("blk.0.attn_q_norm.weight", &[8], GgmlType::F32),
            "is not part of architecture \"llama\"",
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    inspect(&model().write(folder.path())).expect("the model itself is fine");
    for (model, expected) in cases {
        let message = inspect(&model.write(folder.path())).expect_err(expected).to_string();
        assert!(message.contains(expected), "expected {expected}: {message}");
    }
}

#[test]
fn tensors_with_a_hole_between_are_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = Model::new().write(folder.path());
    let mut bytes = std::fs::read(&path).unwrap();
    let name = b"blk.0.ffn_down.weight";
    let at = bytes.windows(name.len()).rposition(|window| window == name).unwrap() + name.len();
    // Rank, two dimensions and type precede the offset.
    let offset = &mut bytes[at + 4 + 16 + 4..][..8];
    let moved = u64::from_le_bytes(offset.try_into().unwrap()) + 32;
    offset.copy_from_slice(&moved.to_le_bytes());
    bytes.extend([0; 32]);
    bespoke::atomic_file::write(&path, &bytes).unwrap();
    let message = inspect(&path).unwrap_err().to_string();
    assert!(message.contains("right after the one before"), "{message}");
}

#[test]
fn a_file_cut_anywhere_is_refused_and_one_cut_while_open_fails_to_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = Model::new().write(folder.path());
    let bytes = std::fs::read(&path).unwrap();
    let cut = folder.path().join("cut.gguf");
    for length in (0..bytes.len() - 1).step_by(7) {
        assert!(Gguf::check_bytes(&bytes[..length]).is_err(), "cut to {length}");
    }
    bespoke::atomic_file::write(&cut, &bytes).unwrap();
    let open = Gguf::open(&cut).unwrap();
    std::fs::OpenOptions::new().write(true).open(&cut).unwrap().set_len(bytes.len() as u64 / 2).unwrap();
    let message = open.tensor_f32("blk.0.ffn_down.weight").unwrap_err().to_string();
    assert!(message.contains("in the middle of tensor \"blk.0.ffn_down.weight\""), "{message}");
    // After a replacement by rename, the checked file is the one that is read.
    bespoke::atomic_file::write(&cut, &bytes).unwrap();
    let open = Gguf::open(&cut).unwrap();
    bespoke::atomic_file::write(&cut, b"another").unwrap();
    assert_eq!(open.tensor_f32("blk.0.ffn_down.weight").unwrap().len(), 512);
}

/// Property tests with a fixed seed, so that a failure is the same on every machine.
fn properties(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]))
}

#[test]
fn arbitrary_bytes_never_panic() {
    let strategy = (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..400));
    let run = |(magic, mut bytes): (bool, Vec<u8>)| {
        if magic {
            bytes.splice(0..bytes.len().min(24), Raw::header(1, 1).0);
        }
        let _ = Gguf::check_bytes(&bytes);
        Ok(())
    };
    properties(2000).run(&strategy, run).unwrap();
}

#[test]
fn damaged_models_never_panic_and_llama_cpp_survives_those_that_pass() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(Model::new().write(folder.path())).unwrap();
    // Change only bytes before the data: weights can't break a rule.
    let header = Gguf::open(&folder.path().join("model.gguf")).unwrap();
    let header = bytes.len() - header.tensors().iter().map(|tensor| tensor.bytes as usize).sum::<usize>();
    let edit = (0..header, prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(0x7f), Just(0x80)]);
    let strategy = proptest::collection::vec(edit, 1..4);
    let passed = std::cell::Cell::new(0);
    let path = folder.path().join("damaged.gguf");
    let run = |edits: Vec<(usize, u8)>| {
        let mut bytes = bytes.clone();
        for (at, value) in edits {
            bytes[at] = value;
        }
        bespoke::atomic_file::write(&path, &bytes).unwrap();
        if inspect(&path).is_ok() {
            passed.set(passed.get() + 1);
            // llama.cpp may refuse the file, but must not end the process.
            if let Ok(reference) = bespoke::engine::reference::Reference::open(&path) {
                let _ = reference.logits(&[1, 2, 3]);
            }
        }
        Ok(())
    };
    properties(std::env::var("BESPOKE_FUZZ_CASES").map_or(1000, |n| n.parse().unwrap()))
        .run(&strategy, run)
        .unwrap();
    assert!(passed.get() > 50, "only {} damaged files reached llama.cpp", passed.get());
}
