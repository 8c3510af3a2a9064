//! `--set KEY=VALUE` on a recipe's table.

/// Applies one `KEY=VALUE`: dotted keys, numbers for indices of lists, TOML values; anything else
/// is a string.
pub(super) fn set(table: &mut toml::Table, setting: &str) -> Result<(), String> {
    let Some((key, value)) = setting.split_once('=') else {
        return Err(format!("--set {setting}: expected KEY=VALUE"));
    };
    let value = format!("value = {value}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut parsed| parsed.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut parts: Vec<&str> = key.split('.').collect();
    let last = parts.pop().unwrap_or_default();
    let mut place = table;
    let mut parts = parts.into_iter();
    while let Some(part) = parts.next() {
        let entry = place.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        let entry = match entry {
            toml::Value::Array(list) => {
                let (index, length) = (parts.next().unwrap_or(last), list.len());
                let found = index.parse::<usize>().ok().and_then(|index| list.get_mut(index));
                found.ok_or_else(|| {
                    format!("--set {setting}: {part} is a list of {length}; expected a number below that, found {index}")
                })?
            }
            other => other,
        };
        let Some(inner) = entry.as_table_mut() else {
            return Err(format!("--set {setting}: {part} is not a table"));
        };
        place = inner;
    }
    place.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_lists_and_words() {
        let mut table: toml::Table = "[a]\nb = 1\n[[list]]\nx = 1\n[[list]]\nx = 2\n".parse().unwrap();
        for setting in ["a.b=2.5", "a.c=word", "new.deep=[1, 2]", "list.1.x=7"] {
            set(&mut table, setting).unwrap();
        }
        assert_eq!(table["a"]["b"].as_float(), Some(2.5));
        assert_eq!(table["a"]["c"].as_str(), Some("word"));
        assert_eq!(table["new"]["deep"].as_array().unwrap().len(), 2);
        assert_eq!(table["list"][1]["x"].as_integer(), Some(7));
        assert!(set(&mut table, "list.5.x=7").unwrap_err().contains("a list of 2"));
        assert!(set(&mut table, "a.b.c=7").unwrap_err().contains("b is not a table"));
    }
}
