//! Rules for the names of spokes.

/// Longest name of a spoke.
const LONGEST: usize = 100;

/// Checks whether a spoke may have this name.
///
/// # Errors
/// What is wrong with the name, in words.
pub fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || name.len() > LONGEST {
        return Err(format!("a name has 1 to {LONGEST} characters, found {}", name.len()));
    }
    match name.chars().find(|&c| !fits(c)) {
        Some(c) => Err(format!("a name has letters, digits, '.', '-' and '_', found {c:?}")),
        None if name.starts_with('.') => Err("a name doesn't begin with a dot".to_owned()),
        None => Ok(()),
    }
}
