//! A safetensors file: checks its header and reads its tensors as f32 on demand; writes f32
//! parameters.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::{Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use half::{bf16, f16};
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, View};

use super::file_error::FileError;
use crate::atomic_file::Staged;

/// Longest header that is accepted (the format's own limit).
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Bytes of a tensor that are read at once: a whole number of elements of every type.
const PART: usize = 1 << 18;

/// An open file. Only the header is in memory.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    file: std::fs::File,
    data_start: u64,
    header: Metadata,
}

impl SafetensorsFile {
    /// Opens a file and checks its header: tensors must fill the data section without gaps, each
    /// as long as its shape says.
    ///
    /// # Errors
    /// A file that can't be read or breaks one of these rules.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = std::fs::File::open(path).map_err(FileError::io(path))?;
        Self::from_file(path, file, MAX_HEADER_BYTES)
    }

    /// Reads the header of an open file, which may have at most `max_header` bytes. `path` is for
    /// errors.
    ///
    /// # Errors
    /// As [`SafetensorsFile::open`].
    pub fn from_file(path: &Path, file: std::fs::File, max_header: u64) -> Result<Self, FileError> {
        let wrong = |message: String| FileError::Safetensors { path: path.to_owned(), message };
        let length = file.metadata().map_err(FileError::io(path))?.len();
        let mut size = [0; 8];
        file.read_exact_at(&mut size, 0).map_err(|e| wrong(format!("the header's length: {e}")))?;
        let size = u64::from_le_bytes(size);
        if size > max_header.min(MAX_HEADER_BYTES) || size + 8 > length {
            return Err(wrong(format!("a header of {size} bytes in a file of {length}")));
        }
        let mut header = vec![0; size as usize];
        file.read_exact_at(&mut header, 8).map_err(FileError::io(path))?;
        // This finds gaps, overlaps and wrong lengths.
        let header: Metadata =
            serde_json::from_slice(&header).map_err(|e| wrong(format!("the header: {e}")))?;
        let (data_start, data) = (size + 8, header.data_len() as u64);
        if data != length - data_start {
            let found = length - data_start;
            return Err(wrong(format!("the header describes {data} bytes of data, and {found} are there")));
        }
        Ok(Self { path: path.to_owned(), file, data_start, header })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names and shapes of all tensors.
    pub fn shapes(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        self.header.tensors().into_iter().map(|(name, info)| (name, info.shape.clone()))
    }

    /// Shape and type of a tensor, if it exists.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.header.info(name)
    }

    /// The texts under `__metadata__`.
    pub fn metadata(&self) -> Option<&HashMap<String, String>> {
        self.header.metadata().as_ref()
    }

    /// Fills a buffer with the bytes of a tensor, starting at its byte `from`.
    ///
    /// # Errors
    /// No such tensor; it has fewer bytes.
    pub fn read_bytes(&self, name: &str, from: usize, buffer: &mut [u8]) -> Result<(), FileError> {
        let path = || self.path.clone();
        let missing = || FileError::MissingTensor { path: path(), tensor: name.to_owned(), expected: vec![] };
        let (start, end) = self.header.info(name).ok_or_else(missing)?.data_offsets;
        if buffer.len() > (end - start).saturating_sub(from) {
            let message =
                format!("tensor {name:?} has {} bytes, not {} from {from} on", end - start, buffer.len());
            return Err(FileError::Safetensors { path: path(), message });
        }
        let at = self.data_start + (start + from) as u64;
        self.file.read_exact_at(buffer, at).map_err(FileError::io(&self.path))
    }

    /// The elements of a tensor as f32, row-major.
    ///
    /// # Errors
    /// No such tensor; a type other than F32, F16, BF16.
    pub fn f32(&self, name: &str) -> Result<Vec<f32>, FileError> {
        let mut values = Vec::new();
        self.scan_f32(name, |part| {
            values.extend_from_slice(part);
            Ok::<_, FileError>(())
        })?;
        Ok(values)
    }

    /// Passes the elements of a tensor to `see` as f32, row-major, a part at a time.
    ///
    /// # Errors
    /// As [`SafetensorsFile::f32`]; those of `see`.
    pub fn scan_f32<E: From<FileError>>(
        &self,
        name: &str,
        mut see: impl FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let path = || self.path.clone();
        let Some(info) = self.header.info(name) else {
            return Err(
                FileError::MissingTensor { path: path(), tensor: name.to_owned(), expected: vec![] }.into()
            );
        };
        let convert: fn(&[u8]) -> Vec<f32> = match info.dtype {
            Dtype::F32 => |bytes| bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Dtype::F16 => {
                |bytes| bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect()
            }
            Dtype::BF16 => {
                |bytes| bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect()
            }
            other => {
                let (tensor, found) = (name.to_owned(), format!("{other:?}"));
                let expected = "F32, F16 or BF16";
                return Err(FileError::Dtype { path: path(), tensor, found, expected }.into());
            }
        };
        let (from, to) = info.data_offsets;
        let mut buffer = vec![0; PART.min(to - from)];
        for start in (from..to).step_by(PART) {
            let bytes = &mut buffer[..PART.min(to - start)];
            let at = self.data_start + start as u64;
            self.file.read_exact_at(bytes, at).map_err(FileError::io(&self.path))?;
            see(&convert(bytes))?;
        }
        Ok(())
    }
}

/// An f32 tensor as a `View` of the safetensors crate; its bytes are made when they are written.
pub struct F32View<'a>(pub &'a Tensor);

impl View for F32View<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        self.0.dims()
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let values = f32_values(self.0).expect("callers pass f32 tensors");
        encode(&values, Dtype::F32).into()
    }
    fn data_len(&self) -> usize {
        self.0.elem_count() * size_of::<f32>()
    }
}

/// A tensor in memory that is to be written.
#[derive(Debug, Clone)]
pub struct NewTensor {
    /// Name.
    pub name: String,
    /// Shape, row-major.
    pub shape: Vec<usize>,
    /// Elements; F32.
    pub values: Vec<f32>,
}

impl View for &NewTensor {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        encode(&self.values, Dtype::F32).into()
    }
    fn data_len(&self) -> usize {
        self.values.len() * size_of::<f32>()
    }
}

/// Writes tensors with texts under `__metadata__`, atomically.
///
/// # Errors
/// The disk.
pub fn write_tensors(
    target: &Path,
    tensors: &[NewTensor],
    metadata: impl IntoIterator<Item = (String, String)>,
) -> Result<(), FileError> {
    let views = tensors.iter().map(|tensor| (&tensor.name, tensor));
    write_views(target, views, metadata)
}

/// Writes views as tensors, atomically.
///
/// # Errors
/// The disk.
pub fn write_views<S: AsRef<str> + Ord, V: View>(
    target: &Path,
    views: impl IntoIterator<Item = (S, V)>,
    metadata: impl IntoIterator<Item = (String, String)>,
) -> Result<(), FileError> {
    let mut views: Vec<(S, V)> = views.into_iter().collect();
    // Wide types first, as in the safetensors crate, so that each tensor is aligned to its type.
    views.sort_by(|(a, left), (b, right)| right.dtype().cmp(&left.dtype()).then(a.cmp(b)));
    let metadata: BTreeMap<String, String> = metadata.into_iter().collect();
    let metadata: Vec<(&str, String)> =
        metadata.iter().map(|(key, text)| (key.as_str(), text.clone())).collect();
    let tensors: Vec<(&str, Dtype, Vec<usize>)> =
        views.iter().map(|(name, view)| (name.as_ref(), view.dtype(), view.shape().to_vec())).collect();
    let mut all = views.iter();
    write_streamed(target, &metadata, &tensors, |_, out| {
        // In the same order.
        all.next().map_or(Ok(()), |(_, view)| out.write_all(&view.data()))
    })
}

/// Writes tensors whose bytes `fill` supplies one tensor at a time, atomically, for data that
/// doesn't fit in memory. Texts and tensors keep the given order, so equal content gives equal
/// bytes.
///
/// # Errors
/// I/O errors; those of `fill`, which must write as many bytes as the shape has.
pub fn write_streamed(
    target: &Path,
    metadata: &[(&str, String)],
    tensors: &[(&str, Dtype, Vec<usize>)],
    mut fill: impl FnMut(&str, &mut dyn Write) -> std::io::Result<()>,
) -> Result<(), FileError> {
    let mut header = serde_json::Map::new();
    let texts = metadata.iter().map(|(key, text)| ((*key).to_owned(), text.clone().into()));
    header.insert("__metadata__".to_owned(), serde_json::Value::Object(texts.collect()));
    let mut end = 0;
    for (name, dtype, shape) in tensors {
        let from = end;
        end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
        let info = TensorInfo { dtype: *dtype, shape: shape.clone(), data_offsets: (from, end) };
        header.insert((*name).to_owned(), serde_json::to_value(info).expect("a description has a JSON form"));
    }
    let mut header = serde_json::Value::Object(header).to_string();
    // The data section must be aligned to 8 bytes.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let io = || FileError::io(target);
    let mut staged = Staged::new(target).map_err(io())?;
    let mut write = || -> std::io::Result<u64> {
        let mut out = std::io::BufWriter::with_capacity(1 << 20, &mut staged);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        tensors.iter().try_for_each(|(name, ..)| fill(name, &mut out))?;
        out.flush()?;
        drop(out);
        staged.file().stream_position()
    };
    let (written, expected) = (write().map_err(io())?, (8 + header.len() + end) as u64);
    if written != expected {
        let message = format!("{written} bytes were written, its header describes {expected}");
        return Err(FileError::Safetensors { path: target.to_owned(), message });
    }
    staged.commit().map_err(io())
}

/// The stored bytes of values: F16, BF16 or else F32.
pub fn encode(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// The elements of an f32 tensor, row-major.
pub fn f32_values(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

/// Writes parameters of these names and shapes as F32 or BF16, atomically, with one at a time in
/// memory.
///
/// # Errors
/// Those of `values`, which must return as many values as the shape has; I/O errors.
pub fn write_parts(
    target: &Path,
    mut shapes: Vec<(String, Vec<usize>)>,
    dtype: Dtype,
    mut values: impl FnMut(&str) -> Result<Vec<f32>, FileError>,
) -> Result<(), FileError> {
    // The order of `write_views`.
    shapes.sort();
    let tensors: Vec<(&str, Dtype, Vec<usize>)> =
        shapes.iter().map(|(name, shape)| (name.as_str(), dtype, shape.clone())).collect();
    let mut told = None;
    let format = [("format", "pt".to_owned())];
    let written = write_streamed(target, &format, &tensors, |name, out| match values(name) {
        Ok(values) => values.chunks(PART).try_for_each(|part| out.write_all(&encode(part, dtype))),
        Err(error) => {
            let message = error.to_string();
            told = Some(error);
            Err(std::io::Error::other(message))
        }
    });
    // Report the error of the reader, not the write that it stopped.
    told.map_or(written, Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind};

    #[test]
    fn a_full_disk_is_no_damaged_file() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model.safetensors");
        let tensors = [("a", Dtype::F32, vec![2])];
        let full = |_: &str, _: &mut dyn Write| Err(Error::from(ErrorKind::StorageFull));
        let error = write_streamed(&target, &[], &tensors, full).unwrap_err();
        assert!(matches!(error, FileError::Io { .. }), "{error}");
        assert!(error.hint().unwrap().contains("make room"));
        let error = crate::train::TrainError::from(error);
        assert!(error.to_string().starts_with(&format!("{}: ", target.display())), "{error}");
        assert!(error.hint().unwrap().contains("--resume"));
        let few = write_streamed(&target, &[], &tensors, |_, out| out.write_all(&[0; 4])).unwrap_err();
        assert!(few.to_string().contains("its header describes"), "{few}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn equal_content_is_equal_bytes_that_the_formats_own_library_reads() {
        let folder = tempfile::tempdir().unwrap();
        let written = |name: &str, reversed: bool| {
            let target = folder.path().join(name);
            let mut tensors: Vec<NewTensor> = ["b", "a", "c"]
                .iter()
                .enumerate()
                .map(|(at, name)| NewTensor {
                    name: (*name).to_owned(),
                    shape: vec![at],
                    values: vec![at as f32; at],
                })
                .collect();
            let mut texts: Vec<(String, String)> =
                (0..9).map(|at| (format!("key{at}"), format!("\"text\" {at}"))).collect();
            if reversed {
                tensors.reverse();
                texts.reverse();
            }
            write_tensors(&target, &tensors, texts).unwrap();
            std::fs::read(target).unwrap()
        };
        let bytes = written("one", false);
        assert!(written("two", true) == bytes);
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("c").unwrap().data(), [2f32.to_le_bytes(), 2f32.to_le_bytes()].concat());
        assert_eq!(file.tensor("b").unwrap().shape(), [0]);
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["key7"], "\"text\" 7");
    }
}
