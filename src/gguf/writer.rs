//! Writes a GGUF file (version 3): metadata in the given order, then tensors one at a time.

use std::collections::HashSet;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::{
    Array, DEFAULT_ALIGNMENT, GgmlType, GgufError, MAX_DIMENSIONS, MAX_KEY_BYTES, MAX_TENSOR_NAME_BYTES,
    Rule, TensorInfo, Value,
};
use crate::atomic_file::Staged;

/// The contents of a file to write, except for tensor data.
#[derive(Debug, Default)]
pub struct Writer {
    metadata: Vec<(String, Value)>,
    tensors: Vec<(String, Vec<u64>, GgmlType)>,
}

impl Writer {
    /// Creates an empty file description.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a key. Keys are written in the order of these calls.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) -> &mut Self {
        self.metadata.push((key.into(), value.into()));
        self
    }

    /// Announces a tensor, with `dims` in ggml's order (row length first). Data must follow in the
    /// order of these calls.
    pub fn tensor(&mut self, name: impl Into<String>, dims: &[u64], kind: GgmlType) -> &mut Self {
        self.tensors.push((name.into(), dims.to_vec(), kind));
        self
    }

    /// Writes the file atomically. `data` returns the stored bytes of each tensor, in order. Only
    /// one tensor is held at a time.
    ///
    /// # Errors
    /// A name, value or size that the reader would refuse; an error of `data`; an I/O error.
    pub fn write<E: From<GgufError>>(
        &self,
        target: &Path,
        data: impl FnMut(&TensorInfo) -> Result<Vec<u8>, E>,
    ) -> Result<(), E> {
        let broken = |error: std::io::Error| E::from(GgufError::new(target, error));
        let mut staged = Staged::new(target).map_err(broken)?;
        self.write_to(&mut staged, target, data)?;
        staged.commit().map_err(broken)
    }

    /// Writes the file to an open writer. `target` is used in errors.
    ///
    /// # Errors
    /// As for [`Writer::write`].
    pub fn write_to<E: From<GgufError>>(
        &self,
        out: impl Write,
        target: &Path,
        mut data: impl FnMut(&TensorInfo) -> Result<Vec<u8>, E>,
    ) -> Result<(), E> {
        let wrong = |rule: Rule| E::from(GgufError::new(target, rule));
        let broken = |error: std::io::Error| wrong(error.into());
        let (header, tensors) = self.header().map_err(wrong)?;
        let mut out = BufWriter::with_capacity(1 << 20, out);
        out.write_all(&header).map_err(broken)?;
        for tensor in &tensors {
            let bytes = data(tensor)?;
            if bytes.len() as u64 != tensor.bytes {
                let (found, expected) = (bytes.len() as u64, tensor.bytes);
                return Err(wrong(Rule::DataLength { tensor: tensor.name.clone(), found, expected }));
            }
            out.write_all(&bytes).map_err(broken)?;
            let padding = tensor.bytes.next_multiple_of(DEFAULT_ALIGNMENT) - tensor.bytes;
            out.write_all(&[0; DEFAULT_ALIGNMENT as usize][..padding as usize]).map_err(broken)?;
        }
        out.flush().map_err(broken)
    }

    /// The header with its padding, and the position of each tensor.
    fn header(&self) -> Result<(Vec<u8>, Vec<TensorInfo>), Rule> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        let mut seen = HashSet::new();
        for (index, (key, value)) in self.metadata.iter().enumerate() {
            let length = key.len() as u64;
            if !(1..=MAX_KEY_BYTES).contains(&length) {
                return Err(Rule::KeyLength { index: index as u64, found: length });
            }
            if !seen.insert(key) {
                return Err(Rule::DuplicateKey { key: key.clone() });
            }
            if key == "general.alignment" {
                let expected = format!("no such key: this writer aligns to {DEFAULT_ALIGNMENT}");
                return Err(Rule::BadValue { key: key.clone(), found: format!("{value:?}"), expected });
            }
            put_text(&mut out, key, || format!("key number {index}"))?;
            put_value(&mut out, key, value)?;
        }
        let (mut infos, mut offset, mut seen) = (Vec::new(), 0u64, HashSet::new());
        for (index, (name, dims, kind)) in self.tensors.iter().enumerate() {
            let (length, tensor) = (name.len() as u64, name.clone());
            if !(1..=MAX_TENSOR_NAME_BYTES).contains(&length) {
                return Err(Rule::TensorNameLength { index: index as u64, found: length });
            }
            if !seen.insert(name) {
                return Err(Rule::DuplicateTensor { tensor });
            }
            if dims.is_empty() || dims.len() > MAX_DIMENSIONS as usize {
                return Err(Rule::Rank { tensor, found: dims.len() as u32 });
            }
            if dims.contains(&0) {
                return Err(Rule::EmptyDimension { tensor, dims: dims.clone() });
            }
            let (row, block) = (dims[0], kind.block_elements());
            if row % block != 0 {
                return Err(Rule::RowNotBlocks { tensor, kind: *kind, row, block });
            }
            let sized = kind.tensor_bytes(dims).and_then(|bytes| {
                let padded = bytes.checked_next_multiple_of(DEFAULT_ALIGNMENT)?;
                Some((bytes, offset.checked_add(padded)?))
            });
            let Some((bytes, next)) = sized else {
                return Err(Rule::SizeOverflow { tensor, dims: dims.clone() });
            };
            put_text(&mut out, name, || format!("tensor name number {index}"))?;
            out.extend((dims.len() as u32).to_le_bytes());
            out.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
            out.extend(kind.id().to_le_bytes());
            out.extend(offset.to_le_bytes());
            infos.push(TensorInfo { name: tensor, dims: dims.clone(), kind: *kind, offset, bytes });
            offset = next;
        }
        out.resize(out.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);
        Ok((out, infos))
    }
}

fn put_text(out: &mut Vec<u8>, text: &str, what: impl FnOnce() -> String) -> Result<(), Rule> {
    if text.contains('\0') {
        return Err(Rule::ZeroByte { what: what() });
    }
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
    Ok(())
}

fn put_value(out: &mut Vec<u8>, key: &str, value: &Value) -> Result<(), Rule> {
    out.extend((value.value_type() as u32).to_le_bytes());
    match value {
        Value::U8(v) => out.extend(v.to_le_bytes()),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(text) => put_text(out, text, || format!("the value of {key:?}"))?,
        Value::Array(array) => put_array(out, key, array)?,
    }
    Ok(())
}

fn put_array(out: &mut Vec<u8>, key: &str, array: &Array) -> Result<(), Rule> {
    macro_rules! numbers {
        ($values:expr) => {{
            out.extend(($values.len() as u64).to_le_bytes());
            out.extend($values.iter().flat_map(|v| v.to_le_bytes()));
        }};
    }
    out.extend((array.element_type() as u32).to_le_bytes());
    match array {
        Array::U8(v) => numbers!(v),
        Array::I8(v) => numbers!(v),
        Array::U16(v) => numbers!(v),
        Array::I16(v) => numbers!(v),
        Array::U32(v) => numbers!(v),
        Array::I32(v) => numbers!(v),
        Array::F32(v) => numbers!(v),
        Array::U64(v) => numbers!(v),
        Array::I64(v) => numbers!(v),
        Array::F64(v) => numbers!(v),
        Array::Bool(values) => {
            out.extend((values.len() as u64).to_le_bytes());
            out.extend(values.iter().map(|&v| u8::from(v)));
        }
        Array::String(texts) => {
            out.extend((texts.len() as u64).to_le_bytes());
            for (index, text) in texts.iter().enumerate() {
                put_text(out, text, || format!("entry {index} of {key:?}"))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Gguf;
    use super::*;

    /// A file with every value type and a few tensor types.
    fn sample() -> Writer {
        let mut writer = Writer::new();
        writer.set("general.architecture", "llama").set("a.u8", 7u8).set("a.i8", -7i8).set("a.u16", 300u16);
        writer.set("a.i16", -300i16).set("a.u32", 70_000u32).set("a.i32", -70_000i32).set("a.f32", 0.5f32);
        writer.set("a.u64", u64::MAX).set("a.i64", i64::MIN).set("a.f64", -0.25f64).set("a.bool", true);
        writer.set("b.strings", vec!["é".to_owned(), String::new()]).set("b.i32", vec![1i32, -2]);
        writer.set("b.bools", vec![true, false]).set("b.none", Vec::<f32>::new()).set("b.f64", vec![1.5f64]);
        writer.tensor("one", &[3], GgmlType::F32).tensor("half", &[2, 3], GgmlType::F16);
        writer.tensor("brain", &[5], GgmlType::BF16).tensor("eight", &[32, 2], GgmlType::Q8_0);
        writer
    }

    #[allow(clippy::unnecessary_wraps)] // the shape that `write` takes
    fn data(tensor: &TensorInfo) -> Result<Vec<u8>, GgufError> {
        Ok(match tensor.name.as_str() {
            "one" => [1.0f32, -2.0, 3.5].iter().flat_map(|v| v.to_le_bytes()).collect(),
            "half" => (0..6).flat_map(|v| half::f16::from_f32(v as f32 / 2.0).to_le_bytes()).collect(),
            "brain" => (0..5).flat_map(|v| half::bf16::from_f32(-(v as f32)).to_le_bytes()).collect(),
            "eight" => [half::f16::from_f32(0.5), half::f16::from_f32(2.0)]
                .iter()
                .flat_map(|d| d.to_le_bytes().into_iter().chain((-16i8..16).map(i8::cast_unsigned)))
                .collect(),
            other => unreachable!("{other}"),
        })
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sample.gguf");
        let writer = sample();
        writer.write(&path, data).unwrap();
        let read = Gguf::open(&path).unwrap();
        assert_eq!(read.metadata(), writer.metadata);
        let names: Vec<_> =
            read.tensors().iter().map(|t| (t.name.as_str(), t.dims.as_slice(), t.kind)).collect();
        let announced: Vec<_> =
            writer.tensors.iter().map(|(n, d, k)| (n.as_str(), d.as_slice(), *k)).collect();
        assert_eq!(names, announced);
        assert_eq!(read.tensor_f32("one").unwrap(), [1.0, -2.0, 3.5]);
        assert_eq!(read.tensor_f32("half").unwrap(), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]);
        assert_eq!(read.tensor("half").unwrap().shape(), [3, 2]);
        assert_eq!(read.tensor_f32("brain").unwrap(), [0.0, -1.0, -2.0, -3.0, -4.0]);
        let eight = read.tensor_f32("eight").unwrap();
        assert_eq!((eight[0], eight[31], eight[32], eight[63]), (-8.0, 7.5, -32.0, 30.0));
    }

    #[test]
    fn getters_name_key_found_and_expected_type() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sample.gguf");
        sample().write(&path, data).unwrap();
        let read = Gguf::open(&path).unwrap();
        assert_eq!(read.get::<u32>("a.u32").unwrap(), 70_000);
        assert_eq!(read.get::<&[i32]>("b.i32").unwrap(), [1, -2]);
        assert_eq!(read.find::<&str>("nowhere").unwrap(), None);
        let message = |error: GgufError| error.rule.to_string();
        assert_eq!(message(read.get::<&str>("a.u32").unwrap_err()), "key \"a.u32\" is u32, expected string");
        let found = message(read.get::<&[u32]>("b.i32").unwrap_err());
        assert_eq!(found, "key \"b.i32\" is array of i32, expected array of u32");
        assert_eq!(
            message(read.get::<bool>("nowhere").unwrap_err()),
            "key \"nowhere\" is missing, expected bool"
        );
    }

    #[test]
    fn data_of_the_wrong_length_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sample.gguf");
        let short = |tensor: &TensorInfo| data(tensor).map(|mut bytes| bytes.split_off(1));
        let error = sample().write(&path, short).unwrap_err();
        assert!(matches!(error.rule, Rule::DataLength { found: 11, expected: 12, .. }), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_the_reader_refuses_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |writer: &mut Writer| {
            let none = |_: &TensorInfo| Ok::<_, GgufError>(Vec::new());
            writer.write(&folder.path().join("x.gguf"), none).unwrap_err().rule
        };
        let rule = refused(Writer::new().set("k", 1u8).set("k", 2u8));
        assert!(matches!(rule, Rule::DuplicateKey { .. }));
        let rule = refused(Writer::new().set("k", "a\0b"));
        assert!(matches!(rule, Rule::ZeroByte { .. }));
        let rule = refused(Writer::new().tensor("t", &[33], GgmlType::Q8_0));
        assert!(matches!(rule, Rule::RowNotBlocks { .. }));
        let rule = refused(Writer::new().tensor("t", &[1, 1, 1, 1, 1], GgmlType::F32));
        assert!(matches!(rule, Rule::Rank { found: 5, .. }));
        let rule = refused(Writer::new().tensor("t", &[1 << 40, 1 << 40], GgmlType::F32));
        assert!(matches!(rule, Rule::SizeOverflow { .. }));
    }
}
