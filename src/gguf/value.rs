//! Metadata values of a GGUF file, and typed access to them.

/// Type of a metadata value, with its id in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    /// The type with this id.
    pub fn from_id(id: u32) -> Option<Self> {
        use ValueType::{Array, Bool, F32, F64, I8, I16, I32, I64, String, U8, U16, U32, U64};
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64].get(id as usize).copied()
    }

    /// Minimum bytes of a value of this type in a file.
    pub fn min_bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }
}

impl std::fmt::Display for ValueType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        })
    }
}

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of metadata values. Nested arrays are refused.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// Evaluates an expression for the elements of an array, whatever their type.
macro_rules! each {
    ($array:expr, $values:ident => $what:expr) => {
        match $array {
            Array::U8($values) => $what,
            Array::I8($values) => $what,
            Array::U16($values) => $what,
            Array::I16($values) => $what,
            Array::U32($values) => $what,
            Array::I32($values) => $what,
            Array::F32($values) => $what,
            Array::Bool($values) => $what,
            Array::String($values) => $what,
            Array::U64($values) => $what,
            Array::I64($values) => $what,
            Array::F64($values) => $what,
        }
    };
}

impl Array {
    /// Type of the elements.
    pub fn element_type(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) => ValueType::String,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        each!(self, values => values.len())
    }

    /// Whether the array is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps only the first `len` elements.
    pub fn truncate(&mut self, len: usize) {
        each!(self, values => values.truncate(len));
    }
}

impl Value {
    /// Type of the value.
    pub fn value_type(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) => ValueType::String,
            Self::Array(_) => ValueType::Array,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
        }
    }

    /// The type in words, including the element type: `array of i32`.
    pub fn type_name(&self) -> String {
        match self {
            Self::Array(array) => format!("array of {}", array.element_type()),
            other => other.value_type().to_string(),
        }
    }
}

/// A Rust type that a metadata value can be read as. There are no conversions, because llama.cpp
/// also requires exact types.
pub trait FromValue<'a>: Sized {
    /// The type in words, for errors.
    const EXPECTED: &'static str;
    /// The value, if it has this type.
    fn from_value(value: &'a Value) -> Option<Self>;
}

macro_rules! values {
    ($($rust:ty, $variant:ident, $name:literal;)*) => {$(
        impl<'a> FromValue<'a> for $rust {
            const EXPECTED: &'static str = $name;
            fn from_value(value: &'a Value) -> Option<Self> {
                if let Value::$variant(value) = value { Some(*value) } else { None }
            }
        }
        impl<'a> FromValue<'a> for &'a [$rust] {
            const EXPECTED: &'static str = concat!("array of ", $name);
            fn from_value(value: &'a Value) -> Option<Self> {
                if let Value::Array(Array::$variant(values)) = value { Some(values) } else { None }
            }
        }
        impl From<$rust> for Value {
            fn from(value: $rust) -> Self {
                Self::$variant(value)
            }
        }
        impl From<Vec<$rust>> for Value {
            fn from(values: Vec<$rust>) -> Self {
                Self::Array(Array::$variant(values))
            }
        }
    )*};
}
values! {
    u8, U8, "u8"; i8, I8, "i8"; u16, U16, "u16"; i16, I16, "i16"; u32, U32, "u32"; i32, I32, "i32";
    f32, F32, "f32"; bool, Bool, "bool"; u64, U64, "u64"; i64, I64, "i64"; f64, F64, "f64";
}

impl<'a> FromValue<'a> for &'a str {
    const EXPECTED: &'static str = "string";
    fn from_value(value: &'a Value) -> Option<Self> {
        if let Value::String(text) = value { Some(text) } else { None }
    }
}
impl<'a> FromValue<'a> for &'a [String] {
    const EXPECTED: &'static str = "array of string";
    fn from_value(value: &'a Value) -> Option<Self> {
        if let Value::Array(Array::String(texts)) = value { Some(texts) } else { None }
    }
}
impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}
impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}
impl From<Vec<String>> for Value {
    fn from(texts: Vec<String>) -> Self {
        Self::Array(Array::String(texts))
    }
}
