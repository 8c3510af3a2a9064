//! Code and data in formal notations.

use crate::task::generator::draw::Draw;

/// A remark and a fragment, or only the fragment.
pub fn snippet(draw: &mut Draw, target: usize) -> String {
    let head = draw.pick(&[
        "",
        "",
        "{path}\n",
        "Snippet {=from|for} {file}:\n",
        "{id} {=in|of} {tool} {ver}:\n",
        "// {path}:{int}\n",
    ]);
    let mut text = draw.fill(head);
    if draw.chance(0.35) {
        json(draw, &mut text, target);
    } else {
        code(draw, &mut text, target);
    }
    text.trim_end().to_owned()
}

/// A JSON object, pretty or compact.
fn json(draw: &mut Draw, text: &mut String, target: usize) {
    let (open, separator) = if draw.chance(0.5) { ("{\n  ", ",\n  ") } else { ("{", ", ") };
    text.push_str(open);
    loop {
        let pair = draw.pick(&[
            "\"{fn}\": {int}",
            "\"{noun}\": \"{str}\"",
            "\"{fn}\": {dec}",
            "\"{noun}\": \"{path}\"",
            "\"{fn}\": {~true|false}",
            "\"{noun}\": [\"{str}\", \"{id}\", {int}]",
            "\"{noun}\": \"{np}\"",
            "\"{fn}\": null",
            "\"version\": \"{ver}\"",
            "\"{noun}\": \"{mail}\"",
            "\"{noun}\": \"{url}\"",
            "\"{noun}\": \"a \\\"{str}\\\" {noun}\\n\"",
        ]);
        text.push_str(&draw.fill(pair));
        if text.len() >= target {
            break;
        }
        text.push_str(separator);
    }
    text.push_str(if separator.contains('\n') { "\n}" } else { "}" });
}

/// Lines of one language.
fn code(draw: &mut Draw, text: &mut String, target: usize) {
    let languages: [&[&str]; 6] = [
        &[
            "let {fn} = {id}({fn}, {num})?;",
            "pub fn {fn}(&self, {fn}: &{type}) -> Result<{type}> <",
            "    {fn}.{fn}().unwrap_or({num});",
            "use {fn}::{type};",
            "// {np} {verb}s {np}",
            "const {var}: usize = {int};",
            "    return Err({type}::{type});",
            "#[derive(Debug, {type})]",
        ],
        &[
            "def {fn}({fn}, {fn}={num}):",
            "    return {fn}[{int}:{int}]",
            "from {fn} import {type}",
            "    {fn} = {type}('{str}')",
            "# {np}",
            "    if {fn} >= {dec} and not {fn}:",
            "print(f\"{np} {str}\")",
            "assert {fn}({num}) == {num}",
        ],
        &[
            "func {fn}({fn} *{type}) error <",
            "\tif err != nil < return err >",
            "{fn} := {fn}.{type}({num})",
            "import \"{path}\"",
            "// {np} of {id}",
            "\tlog.Printf(\"{np} %d {str}\\n\", {fn})",
        ],
        &[
            "SELECT {fn}, {fn} FROM {fn} WHERE {fn} = '{str}' LIMIT {int};",
            "UPDATE {fn} SET {fn} = {num};",
            "-- {np}",
            "CREATE INDEX {fn} ON {fn} ({fn}, {fn});",
            "INSERT INTO {fn} VALUES ({int}, '{first}', '{str}');",
        ],
        &[
            "const {fn} = await fetch('{url}');",
            "export function {fn}({fn}: {type}): {type} <",
            "  {fn}.map(x => x.{fn} * {num})",
            "import < {type} > from '{path}';",
            "<div class=\"{fn}\" id='{str}'>{np}</div>",
            "// TODO {verb} {np}",
        ],
        &[
            "curl -X {=POST|PUT|GET} {url} -H 'X-{Noun}: {str}'",
            "for f in {path}; do {fn} \"$f\"; done",
            "export {var}={path}",
            "if [ -f {path} ]; then",
            "  {fn} {flag} {num} | tee {file}",
            "C:\\{Noun}\\{noun}\\{file} {flag}",
            "\\begin<{noun}> {np} \\end<{noun}>",
        ],
    ];
    let language = languages[draw.count(0, languages.len() - 1)];
    // Templates can't contain literal braces, so these languages use angle brackets around spaces
    // or at line ends instead.
    let braces = |line: String| {
        let line = line.replace(" < ", " { ").replace(" > ", " } ").replace(" >", " }");
        if let Some(start) = line.strip_suffix(" <") { format!("{start} {{") } else { line }
    };
    let mut lines = 0;
    while lines == 0 || text.len() < target {
        let line = draw.pick(language);
        text.push_str(&braces(draw.fill(line)));
        text.push('\n');
        lines += 1;
    }
}
