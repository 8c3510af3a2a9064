//! The parts of RFC 3986 that references within one document need: resolution against a base, and
//! percent-decoding.

/// Resolves `reference` against `base`, both without fragment.
pub fn join(base: &str, reference: &str) -> String {
    if reference.is_empty() {
        return base.to_owned();
    }
    if has_scheme(reference) {
        return reference.to_owned();
    }
    let scheme = if has_scheme(base) { base.find(':').map_or(0, |colon| colon + 1) } else { 0 };
    if reference.starts_with("//") {
        return format!("{}{reference}", &base[..scheme]);
    }
    let path = match base[scheme..].strip_prefix("//") {
        Some(rest) => scheme + 2 + rest.find('/').unwrap_or(rest.len()),
        None => scheme,
    };
    if reference.starts_with('/') {
        return format!("{}{}", &base[..path], without_dots(reference));
    }
    let base_path = base[path..].split('?').next().unwrap_or_default();
    let folder = base_path.rfind('/').map_or("", |slash| &base_path[..=slash]);
    let folder = if folder.is_empty() && path > scheme { "/" } else { folder };
    format!("{}{}", &base[..path], without_dots(&format!("{folder}{reference}")))
}

fn has_scheme(uri: &str) -> bool {
    let Some((scheme, _)) = uri.split_once(':') else { return false };
    let mut letters = scheme.chars();
    letters.next().is_some_and(|first| first.is_ascii_alphabetic())
        && letters.all(|letter| letter.is_ascii_alphanumeric() || "+-.".contains(letter))
}

fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let parts: Vec<&str> = path.split('/').collect();
    for (index, part) in parts.iter().enumerate() {
        let last = index + 1 == parts.len();
        match *part {
            "." => {}
            ".." => {
                if kept.len() > 1 || kept.first().is_some_and(|first| !first.is_empty()) {
                    kept.pop();
                }
            }
            part => {
                kept.push(part);
                continue;
            }
        }
        if last {
            kept.push("");
        }
    }
    kept.join("/")
}

/// Decodes `%XX` escapes. `None` if an escape is broken or the result is no UTF-8.
pub fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let digits = after.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Decodes `~1` and `~0` in a step of a JSON pointer. `None` if there is another `~`.
pub fn unescaped(step: &str) -> Option<String> {
    let broken = step.split('~').skip(1).any(|after| !after.starts_with(['0', '1']));
    (!broken).then(|| step.replace("~1", "/").replace("~0", "~"))
}
