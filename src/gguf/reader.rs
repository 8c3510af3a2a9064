//! Reads the header of a GGUF file (keys and tensor descriptions), and tensor data on demand.

use std::collections::HashMap;
use std::io::{BufReader, ErrorKind, Read};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use super::{
    Array, DEFAULT_ALIGNMENT, FromValue, GgmlType, GgufError, MAX_DIMENSIONS, MAX_KEY_BYTES,
    MAX_TENSOR_NAME_BYTES, Rule, Value, ValueType,
};

/// Minimum bytes of a key with its value: length, one letter, type, one byte.
const MIN_PAIR_BYTES: u64 = 8 + 1 + 4 + 1;
/// Minimum bytes of a tensor description: name length, one letter, rank, one dimension, type,
/// offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// An open GGUF file whose header has passed every rule of the format.
///
/// The handle stays open, so that the checked file is the one that is read even if another file
/// replaces it by rename.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    file: std::fs::File,
    metadata: Vec<(String, Value)>,
    keys: HashMap<String, usize>,
    tensors: Vec<TensorInfo>,
    names: HashMap<String, usize>,
    /// Position in the file that tensor offsets count from.
    data_start: u64,
    alignment: u64,
}

/// Description of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// Name.
    pub name: String,
    /// Dimensions in ggml's order: the first is the length of a row.
    pub dims: Vec<u64>,
    /// How elements are stored.
    pub kind: GgmlType,
    /// Position of the data, relative to the start of the data section.
    pub offset: u64,
    /// Length of the data in bytes.
    pub bytes: u64,
}

impl TensorInfo {
    /// Dimensions in row-major order (row length last), as in Candle and PyTorch.
    pub fn shape(&self) -> Vec<usize> {
        self.dims.iter().rev().map(|&dim| dim as usize).collect()
    }
}

impl Gguf {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// The first [`Rule`] of the format that the file breaks.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        Self::open_inner(path).map_err(|rule| GgufError::new(path, rule))
    }

    fn open_inner(path: &Path) -> Result<Self, Rule> {
        // Check the type before opening: opening a FIFO would block until a writer opens it.
        let kind = std::fs::metadata(path)?.file_type();
        if !kind.is_file() {
            let found = match () {
                () if kind.is_dir() => "directory",
                () if kind.is_fifo() => "FIFO",
                () if kind.is_socket() => "socket",
                () => "device",
            };
            return Err(Rule::NotAFile { found });
        }
        Self::from_file_inner(path, std::fs::File::open(path)?, u64::MAX)
    }

    /// Takes an open file and checks its header, which may have at most `max_header` bytes. `path`
    /// is used in errors.
    ///
    /// # Errors
    /// The first [`Rule`] of the format that the file breaks.
    pub fn from_file(path: &Path, file: std::fs::File, max_header: u64) -> Result<Self, GgufError> {
        Self::from_file_inner(path, file, max_header).map_err(|rule| GgufError::new(path, rule))
    }

    fn from_file_inner(path: &Path, file: std::fs::File, max_header: u64) -> Result<Self, Rule> {
        let length = file.metadata()?.len();
        let mut source = Source { reader: BufReader::new(&file), at: 0, length, max_header };
        let header = Header::read(&mut source)?;
        let Header { metadata, keys, tensors, names, data_start, alignment } = header;
        Ok(Self { path: path.to_owned(), metadata, keys, tensors, names, data_start, alignment, file })
    }

    /// Checks only the header of a file that is held in memory.
    ///
    /// # Errors
    /// As for [`Gguf::open`].
    pub fn check_bytes(bytes: &[u8]) -> Result<(), Rule> {
        Header::read(&mut Source { reader: bytes, at: 0, length: bytes.len() as u64, max_header: u64::MAX })
            .map(drop)
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error for this file.
    pub fn error(&self, rule: Rule) -> GgufError {
        GgufError::new(&self.path, rule)
    }

    /// All keys and values, in file order.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    /// All tensors, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Alignment of tensor data.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// The value of a key as `T`.
    ///
    /// # Errors
    /// The key is missing or has another type.
    pub fn get<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T, GgufError> {
        let missing = || self.error(Rule::MissingKey { key: key.to_owned(), expected: T::EXPECTED });
        self.find(key)?.ok_or_else(missing)
    }

    /// The value of a key as `T`, if the key is there.
    ///
    /// # Errors
    /// The key has another type.
    pub fn find<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>, GgufError> {
        let Some(&index) = self.keys.get(key) else { return Ok(None) };
        let value = &self.metadata[index].1;
        T::from_value(value).map(Some).ok_or_else(|| {
            self.error(Rule::WrongType {
                key: key.to_owned(),
                found: value.type_name(),
                expected: T::EXPECTED,
            })
        })
    }

    /// The tensor of this name, if there is one.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.names.get(name).map(|&index| &self.tensors[index])
    }

    /// The stored bytes of a tensor.
    ///
    /// # Errors
    /// The file can't be read, or has shrunk since it was opened.
    pub fn tensor_bytes(&self, tensor: &TensorInfo) -> Result<Vec<u8>, GgufError> {
        let mut bytes = vec![0; tensor.bytes as usize];
        self.fill_from_tensor(tensor, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `into` with stored bytes of a tensor, starting at byte `from` of the tensor. The range
    /// must lie inside the tensor.
    pub(super) fn fill_from_tensor(
        &self,
        tensor: &TensorInfo,
        from: u64,
        into: &mut [u8],
    ) -> Result<(), GgufError> {
        let at = self.data_start + tensor.offset + from;
        match self.file.read_exact_at(into, at) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(self.error(Rule::Truncated {
                what: format!("tensor {:?}", tensor.name),
                at,
                needed: into.len() as u64,
                length: self.file.metadata().map_or(0, |m| m.len()),
            })),
            Err(error) => Err(self.error(error.into())),
        }
    }
}

/// Everything before the data section.
struct Header {
    metadata: Vec<(String, Value)>,
    keys: HashMap<String, usize>,
    tensors: Vec<TensorInfo>,
    names: HashMap<String, usize>,
    data_start: u64,
    alignment: u64,
}

impl Header {
    fn read<R: Read>(source: &mut Source<R>) -> Result<Self, Rule> {
        let mut magic = vec![0; 4.min(source.length as usize)];
        source.fill(&mut magic, || "the magic".into())?;
        if magic != b"GGUF" {
            return Err(Rule::Magic { found: magic });
        }
        match source.u32(|| "the version".into())? {
            2 | 3 => {}
            version if matches!(version.swap_bytes(), 1..=3) => return Err(Rule::BigEndian),
            found => return Err(Rule::Version { found }),
        }
        let n_tensors = source.u64(|| "the number of tensors".into())?;
        let n_pairs = source.u64(|| "the number of keys".into())?;
        source.check_count(n_tensors, MIN_TENSOR_BYTES, || "tensors".into())?;
        source.check_count(n_pairs, MIN_PAIR_BYTES, || "keys".into())?;

        let (mut metadata, mut keys) = (Vec::new(), HashMap::new());
        for index in 0..n_pairs {
            let (key, value) = read_pair(source, index)?;
            if keys.insert(key.clone(), metadata.len()).is_some() {
                return Err(Rule::DuplicateKey { key });
            }
            metadata.push((key, value));
        }
        let alignment = match keys.get("general.alignment").map(|&index| &metadata[index].1) {
            None => DEFAULT_ALIGNMENT,
            Some(Value::U32(found)) if found.is_power_of_two() && (8..=1 << 20).contains(found) => {
                (*found).into()
            }
            Some(&Value::U32(found)) => return Err(Rule::Alignment { found }),
            Some(other) => {
                let (key, found) = ("general.alignment".into(), other.type_name());
                return Err(Rule::WrongType { key, found, expected: "u32" });
            }
        };

        let (mut tensors, mut names) = (Vec::new(), HashMap::new());
        for index in 0..n_tensors {
            let tensor = read_tensor_info(source, index, alignment)?;
            if names.insert(tensor.name.clone(), tensors.len()).is_some() {
                return Err(Rule::DuplicateTensor { tensor: tensor.name });
            }
            tensors.push(tensor);
        }
        let data_start = source.at.next_multiple_of(alignment);
        check_placement(&tensors, source.length.saturating_sub(data_start))?;
        Ok(Self { metadata, keys, tensors, names, data_start, alignment })
    }
}

fn read_pair<R: Read>(source: &mut Source<R>, index: u64) -> Result<(String, Value), Rule> {
    let what = || format!("key number {index}");
    let length = source.u64(what)?;
    if !(1..=MAX_KEY_BYTES).contains(&length) {
        return Err(Rule::KeyLength { index, found: length });
    }
    let key = source.text(length, what)?;
    let value_type = source.value_type(&key)?;
    let value = if value_type == ValueType::Array {
        let element = source.value_type(&key)?;
        let count = source.u64(|| format!("the length of {key:?}"))?;
        source.check_count(count, element.min_bytes(), || format!("entries of {key:?}"))?;
        Value::Array(read_array(source, &key, element, count)?)
    } else {
        read_value(source, &key, value_type)?
    };
    Ok((key, value))
}

fn read_value<R: Read>(source: &mut Source<R>, key: &str, value_type: ValueType) -> Result<Value, Rule> {
    let what = || format!("the value of {key:?}");
    Ok(match value_type {
        ValueType::U8 => Value::U8(u8::from_le_bytes(source.bytes(what)?)),
        ValueType::I8 => Value::I8(i8::from_le_bytes(source.bytes(what)?)),
        ValueType::U16 => Value::U16(u16::from_le_bytes(source.bytes(what)?)),
        ValueType::I16 => Value::I16(i16::from_le_bytes(source.bytes(what)?)),
        ValueType::U32 => Value::U32(u32::from_le_bytes(source.bytes(what)?)),
        ValueType::I32 => Value::I32(i32::from_le_bytes(source.bytes(what)?)),
        ValueType::F32 => Value::F32(f32::from_le_bytes(source.bytes(what)?)),
        ValueType::U64 => Value::U64(u64::from_le_bytes(source.bytes(what)?)),
        ValueType::I64 => Value::I64(i64::from_le_bytes(source.bytes(what)?)),
        ValueType::F64 => Value::F64(f64::from_le_bytes(source.bytes(what)?)),
        ValueType::Bool => Value::Bool(read_bool(source, key)?),
        ValueType::String => Value::String(source.string(what)?),
        ValueType::Array => return Err(Rule::NestedArray { key: key.to_owned() }),
    })
}

fn read_bool<R: Read>(source: &mut Source<R>, key: &str) -> Result<bool, Rule> {
    match u8::from_le_bytes(source.bytes(|| format!("the value of {key:?}"))?) {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(Rule::BadBool { key: key.to_owned(), found }),
    }
}

/// Reads `count` elements. The caller must have checked that the file can hold them.
fn read_array<R: Read>(source: &mut Source<R>, key: &str, of: ValueType, count: u64) -> Result<Array, Rule> {
    macro_rules! numbers {
        ($variant:ident, $rust:ty) => {{
            let mut raw = vec![0; count as usize * size_of::<$rust>()];
            source.fill(&mut raw, || format!("the entries of {key:?}"))?;
            let number = |b: &[u8]| <$rust>::from_le_bytes(b.try_into().expect("chunks have this size"));
            Array::$variant(raw.chunks_exact(size_of::<$rust>()).map(number).collect())
        }};
    }
    Ok(match of {
        ValueType::U8 => numbers!(U8, u8),
        ValueType::I8 => numbers!(I8, i8),
        ValueType::U16 => numbers!(U16, u16),
        ValueType::I16 => numbers!(I16, i16),
        ValueType::U32 => numbers!(U32, u32),
        ValueType::I32 => numbers!(I32, i32),
        ValueType::F32 => numbers!(F32, f32),
        ValueType::U64 => numbers!(U64, u64),
        ValueType::I64 => numbers!(I64, i64),
        ValueType::F64 => numbers!(F64, f64),
        ValueType::Bool => Array::Bool((0..count).map(|_| read_bool(source, key)).collect::<Result<_, _>>()?),
        ValueType::String => {
            let mut texts = Vec::new(); // grows only as entries are read
            for index in 0..count {
                texts.push(source.string(|| format!("entry {index} of {key:?}"))?);
            }
            Array::String(texts)
        }
        ValueType::Array => return Err(Rule::NestedArray { key: key.to_owned() }),
    })
}

fn read_tensor_info<R: Read>(source: &mut Source<R>, index: u64, alignment: u64) -> Result<TensorInfo, Rule> {
    let what = || format!("tensor description number {index}");
    let length = source.u64(what)?;
    if !(1..=MAX_TENSOR_NAME_BYTES).contains(&length) {
        return Err(Rule::TensorNameLength { index, found: length });
    }
    let name = source.text(length, what)?;
    let rank = source.u32(what)?;
    if !(1..=MAX_DIMENSIONS).contains(&rank) {
        return Err(Rule::Rank { tensor: name, found: rank });
    }
    let dims = (0..rank).map(|_| source.u64(what)).collect::<Result<Vec<_>, _>>()?;
    let kind_id = source.u32(what)?;
    let offset = source.u64(what)?;
    if dims.contains(&0) {
        return Err(Rule::EmptyDimension { tensor: name, dims });
    }
    let Some(kind) = GgmlType::from_id(kind_id) else {
        return Err(Rule::UnknownTensorType { tensor: name, found: kind_id });
    };
    let (row, block) = (dims[0], kind.block_elements());
    if row % block != 0 {
        return Err(Rule::RowNotBlocks { tensor: name, kind, row, block });
    }
    // Elements and bytes, padding included, must fit into ggml's signed 64-bit integers.
    let elements = dims.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim));
    let fits = |n: &u64| *n <= i64::MAX as u64 - alignment;
    let (Some(bytes), Some(_)) = (kind.tensor_bytes(&dims).filter(fits), elements.filter(fits)) else {
        return Err(Rule::SizeOverflow { tensor: name, dims });
    };
    if offset % alignment != 0 {
        return Err(Rule::Misaligned { tensor: name, offset, alignment });
    }
    Ok(TensorInfo { name, dims, kind, offset, bytes })
}

/// Checks that every tensor lies inside the data section and that none overlap.
fn check_placement(tensors: &[TensorInfo], available: u64) -> Result<(), Rule> {
    for tensor in tensors {
        if tensor.offset.checked_add(tensor.bytes).is_none_or(|end| end > available) {
            let (tensor, offset, bytes) = (tensor.name.clone(), tensor.offset, tensor.bytes);
            return Err(Rule::OutsideFile { tensor, offset, bytes, available });
        }
    }
    let mut ordered: Vec<_> = tensors.iter().collect();
    ordered.sort_by_key(|tensor| tensor.offset);
    for pair in ordered.windows(2) {
        if pair[0].offset + pair[0].bytes > pair[1].offset {
            let (first, second) = (pair[0].name.clone(), pair[1].name.clone());
            return Err(Rule::Overlap { first, second, offset: pair[1].offset });
        }
    }
    Ok(())
}

/// A reader with a known length. `what` names the part being read, for errors.
struct Source<R> {
    reader: R,
    at: u64,
    length: u64,
    /// Maximum bytes to read. May be less than `length`, so that a header can't fill the memory.
    max_header: u64,
}

impl<R: Read> Source<R> {
    fn left(&self) -> u64 {
        self.length.saturating_sub(self.at)
    }

    /// Refuses a count whose smallest content doesn't fit into the rest of the file.
    fn check_count(&self, found: u64, each: u64, what: impl FnOnce() -> String) -> Result<(), Rule> {
        let (left, most) = (self.left(), self.left() / each);
        if found > most {
            return Err(Rule::Count { what: what(), found, most, left });
        }
        self.check_header(found * each, what)
    }

    /// Refuses to read on if the header would exceed its limit.
    fn check_header(&self, needed: u64, what: impl FnOnce() -> String) -> Result<(), Rule> {
        let limit = self.max_header;
        if self.at.checked_add(needed).is_some_and(|end| end <= limit) {
            return Ok(());
        }
        Err(Rule::HeaderLimit { what: what(), at: self.at, needed, limit })
    }

    fn fill(&mut self, into: &mut [u8], what: impl FnOnce() -> String) -> Result<(), Rule> {
        let needed = into.len() as u64;
        self.check_header(needed, || "the header".into())?;
        let result = if needed > self.left() {
            Err(ErrorKind::UnexpectedEof.into())
        } else {
            self.reader.read_exact(into)
        };
        match result {
            Ok(()) => {
                self.at += needed;
                Ok(())
            }
            // Also occurs when the file shrinks while it is read.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                Err(Rule::Truncated { what: what(), at: self.at, needed, length: self.length })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn bytes<const N: usize>(&mut self, what: impl FnOnce() -> String) -> Result<[u8; N], Rule> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    fn u32(&mut self, what: impl FnOnce() -> String) -> Result<u32, Rule> {
        Ok(u32::from_le_bytes(self.bytes(what)?))
    }

    fn u64(&mut self, what: impl FnOnce() -> String) -> Result<u64, Rule> {
        Ok(u64::from_le_bytes(self.bytes(what)?))
    }

    fn value_type(&mut self, key: &str) -> Result<ValueType, Rule> {
        let found = self.u32(|| format!("the type of {key:?}"))?;
        ValueType::from_id(found).ok_or_else(|| Rule::UnknownValueType { key: key.to_owned(), found })
    }

    fn string(&mut self, what: impl Fn() -> String) -> Result<String, Rule> {
        let length = self.u64(&what)?;
        self.text(length, what)
    }

    /// Reads a text. Compares its length with the rest of the file before memory is allocated.
    fn text(&mut self, length: u64, what: impl Fn() -> String) -> Result<String, Rule> {
        if length > self.left() {
            return Err(Rule::Truncated { what: what(), at: self.at, needed: length, length: self.length });
        }
        self.check_header(length, &what)?;
        let start = self.at;
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes, &what)?;
        // C strings end at a zero byte, so llama.cpp could see two different keys as one.
        if bytes.contains(&0) {
            return Err(Rule::ZeroByte { what: what() });
        }
        String::from_utf8(bytes)
            .map_err(|e| Rule::NotUtf8 { what: what(), at: start + e.utf8_error().valid_up_to() as u64 })
    }
}
