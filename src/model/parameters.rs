//! The trainable tensors of a decoder, by Hugging Face name, in a fixed order.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor, Var};

use super::{ParameterSpec, Role};

/// Variables, each with its name and role, in the order of [`super::DecoderConfig::parameters`]:
/// optimisers, checkpoints and hashes rely on it.
#[derive(Debug, Clone, Default)]
pub struct Parameters {
    entries: Vec<Parameter>,
    by_name: HashMap<String, usize>,
    by_role: HashMap<Role, usize>,
}

/// A variable, and what it is.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Its name in files.
    pub name: String,
    /// What it is for; none for what is no part of a decoder or adapter, but brought along by an
    /// objective or a training method.
    pub role: Option<Role>,
    /// Its values.
    pub var: Var,
}

impl Parameter {
    /// The block that it belongs to.
    pub fn layer(&self) -> Option<usize> {
        self.role?.layer()
    }
}

impl Parameters {
    /// Adds a parameter at the end.
    ///
    /// # Errors
    /// A name or role that is there already.
    pub fn insert(&mut self, name: impl Into<String>, role: impl Into<Option<Role>>, var: Var) -> Result<()> {
        let (name, role, at) = (name.into(), role.into(), self.entries.len());
        let again = self.by_name.insert(name.clone(), at).is_some();
        if again || role.is_some_and(|role| self.by_role.insert(role, at).is_some()) {
            candle_core::bail!("parameter {name} ({role:?}) is there twice");
        }
        self.entries.push(Parameter { name, role, var });
        Ok(())
    }

    /// The variable of this name.
    ///
    /// # Errors
    /// No such parameter.
    pub fn get(&self, name: &str) -> Result<&Var> {
        match self.by_name.get(name) {
            Some(&at) => Ok(&self.entries[at].var),
            None => candle_core::bail!("parameter {name} is missing"),
        }
    }

    /// The variable of this role.
    ///
    /// # Errors
    /// No such parameter.
    pub fn of(&self, role: Role) -> Result<&Var> {
        match self.by_role.get(&role) {
            Some(&at) => Ok(&self.entries[at].var),
            None => candle_core::bail!("parameter {role:?} is missing"),
        }
    }

    /// The variable of a parameter, with its shape.
    ///
    /// # Errors
    /// No such parameter, or one of another shape.
    pub fn fitting(&self, parameter: &ParameterSpec) -> Result<&Var> {
        let (var, shape) = (self.of(parameter.role)?, parameter.shape());
        if var.dims() != shape {
            let (name, found) = (&parameter.name, var.dims());
            candle_core::bail!("parameter {name} has shape {found:?}, expected {shape:?}");
        }
        Ok(var)
    }

    /// Names and variables, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.entries.iter().map(|entry| (entry.name.as_str(), &entry.var))
    }

    /// All, in order.
    pub fn entries(&self) -> &[Parameter] {
        &self.entries
    }

    /// Copies on this device and of this type; variables that already match are shared.
    ///
    /// # Errors
    /// Out of memory.
    pub fn to(&self, device: &Device, dtype: DType) -> Result<Self> {
        self.moved(device, |_| dtype)
    }

    /// Copies on this device, as a model needs them that is computed in this type and not trained.
    /// Vectors stay f32: they are small, operations with them are computed in f32 anyway, and a
    /// norm that multiplies by `1 + w` loses the digits of w if that is rounded first.
    ///
    /// # Errors
    /// Memory that is not there.
    pub fn to_frozen(&self, device: &Device, dtype: DType) -> Result<Self> {
        self.moved(device, |var| if var.rank() > 1 { dtype } else { DType::F32 })
    }

    fn moved(&self, device: &Device, dtype: impl Fn(&Var) -> DType) -> Result<Self> {
        let mut moved = Self::default();
        for Parameter { name, role, var } in &self.entries {
            let dtype = dtype(var);
            let there = if var.device().same_device(device) && var.dtype() == dtype {
                var.clone()
            } else {
                Var::from_tensor(&var.as_detached_tensor().to_device(device)?.to_dtype(dtype)?)?
            };
            moved.insert(name.clone(), *role, there)?;
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
