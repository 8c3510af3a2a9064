//! Short values that validate against schemas: what a scripted engine answers under a constraint.

use serde_json::Value;
use toktrie::ApproximateTokEnv;

use super::repeats::Shapes;
use super::{Grammars, schema};

/// A short value that validates against a schema, as compact JSON.
///
/// # Errors
/// The part of the schema that can't be enforced or has no value, with its place.
pub fn instance(schema: &Value) -> Result<String, String> {
    let instance = schema::instance(schema).map_err(|fault| fault.to_string())?;
    match Shapes::of(schema) {
        None => Ok(instance),
        Some(_) => Grammars::new(&ApproximateTokEnv::single_byte_env())
            .and_then(|grammars| grammars.shortest(schema))
            .map_err(|error| error.to_string()),
    }
}
