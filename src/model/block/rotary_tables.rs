//! The rotary tables of a decoder: blocks with the same frequencies share one.

use std::sync::Arc;

use crate::model::ops::RotaryTable;
use crate::model::spec::{AttentionSpec, RopeScaling};

/// Tables that were made so far.
pub(in crate::model) struct RotaryTables {
    positions: usize,
    made: Vec<(Frequencies, Arc<RotaryTable>)>,
}

/// What a table follows from.
type Frequencies = (usize, f64, Option<RopeScaling>);

impl RotaryTables {
    /// None yet, for so many positions.
    pub(in crate::model) fn new(positions: usize) -> Self {
        Self { positions, made: vec![] }
    }

    /// The table of a block's attention.
    pub(super) fn of(&mut self, attention: &AttentionSpec) -> Arc<RotaryTable> {
        let AttentionSpec { rotary_dim, rope_theta, rope_scaling, .. } = attention;
        let wanted = (*rotary_dim, *rope_theta, rope_scaling.clone());
        if let Some((_, table)) = self.made.iter().find(|(made, _)| *made == wanted) {
            return table.clone();
        }
        let scaling = rope_scaling.as_ref();
        let table = Arc::new(RotaryTable::new(self.positions, *rotary_dim, *rope_theta, scaling));
        self.made.push((wanted, table.clone()));
        table
    }
}
