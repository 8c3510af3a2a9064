//! The trainable tensors of a decoder, by Hugging Face name, in a fixed order.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor, Var};

/// Named variables in the order of [`super::DecoderConfig::parameter_shapes`]: optimisers,
/// checkpoints and hashes rely on that order.
#[derive(Debug, Clone, Default)]
pub struct Parameters {
    entries: Vec<(String, Var)>,
    index: HashMap<String, usize>,
}

impl Parameters {
    /// Adds a parameter at the end.
    ///
    /// # Errors
    /// The name is taken.
    pub fn insert(&mut self, name: impl Into<String>, value: Var) -> Result<()> {
        let name = name.into();
        if self.index.insert(name.clone(), self.entries.len()).is_some() {
            candle_core::bail!("parameter {name} is there twice");
        }
        self.entries.push((name, value));
        Ok(())
    }

    /// The variable of this name.
    ///
    /// # Errors
    /// No such parameter.
    pub fn get(&self, name: &str) -> Result<&Var> {
        match self.index.get(name) {
            Some(&at) => Ok(&self.entries[at].1),
            None => candle_core::bail!("parameter {name} is missing"),
        }
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.entries.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// Copies on this device and of this type; variables that already match are shared.
    ///
    /// # Errors
    /// Out of memory.
    pub fn to(&self, device: &Device, dtype: DType) -> Result<Self> {
        let mut moved = Self::default();
        for (name, var) in self.iter() {
            let there = if var.device().same_device(device) && var.dtype() == dtype {
                var.clone()
            } else {
                Var::from_tensor(&var.as_detached_tensor().to_device(device)?.to_dtype(dtype)?)?
            };
            moved.insert(name, there)?;
        }
        Ok(moved)
    }

    /// All as plain tensors, by name.
    pub fn tensors(&self) -> HashMap<String, Tensor> {
        self.iter().map(|(name, var)| (name.to_owned(), var.as_tensor().clone())).collect()
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
