//! Rows and columns: benchmark numbers, settings, command output.

use crate::task::generator::draw::Draw;

/// Measurements, as a table or as lines.
pub fn benchmark(draw: &mut Draw, target: usize) -> String {
    let head = draw.pick(&[
        "{=Benchmark|Bench|Measured|Results} of {id} on {host} ({tool} {ver}):\n",
        "{tool} {ver}, {int} {nouns}, {size}:\n",
        "{Noun} {noun} {~faster|slower} by {pct} after {hash}:\n",
        "",
    ]);
    let mut text = draw.fill(head);
    let style = draw.count(0, 4);
    if style == 0 {
        text.push_str(&draw.fill("| {noun} | {noun} | {fn} | {fn} |\n|---|---:|---:|:---|\n"));
    }
    if style == 1 {
        text.push_str(&draw.fill("{noun}    {noun}   {noun}\n-----------------------\n"));
    }
    let unit = draw.fill("{=ms|tok/s|MB/s|us|GB|%}");
    while text.is_empty() || text.len() < target || text.ends_with("|\n") && text.lines().count() < 4 {
        let line = match style {
            0 => draw.fill("| {id} | {num} | {dec} | {num} |"),
            1 => draw.fill("{fn}    {dec}   {int}"),
            2 => draw.fill("{id}: {dec} ") + &unit + &draw.fill(" (was {dec}, {=+|-}{pct})"),
            3 => draw.fill("test {fn} ... bench: {int} ns/iter (+/- {int})"),
            _ => draw.fill("{np} {dec} ") + &unit + &draw.fill(", p50 {ms}, p99 {ms}, {nouns} {int}"),
        };
        text.push_str(&line);
        text.push('\n');
    }
    text.trim_end().to_owned()
}

/// A changed or dumped configuration.
pub fn config(draw: &mut Draw, target: usize) -> String {
    let head = draw.pick(&[
        "{=Changed|Edited|Updated} {path}:\n",
        "{path} (now {~enabled|disabled} for {host})\n",
        "{first} {=set|changed} {var} from {num} to {num} in {file}.\n",
        "export {var}={str}\n",
        "",
    ]);
    let mut text = draw.fill(head);
    let styles: [&[&str]; 5] = [
        &[
            "{fn} = {num}",
            "{fn} = \"{str}\"",
            "{fn} = {~true|false}",
            "[{noun}.{noun}]",
            "# {np} {=of|for} {tool}",
            "{fn} = [\"{str}\", \"{id}\"]",
        ],
        &[
            "{fn}: {num}",
            "{noun}:\n  {fn}: {str}\n  {fn}: {int}",
            "- {str}",
            "{fn}: \"{path}\"",
            "{noun}: {~enabled|disabled}",
        ],
        &["{var}={num}", "{var}={str}", "{var}={path}", "{var}=\"{np}\"", "export {var}={url}"],
        &[
            "-{fn}: {num}\n+{fn}: {num}",
            "- {var}={str}\n+ {var}={str}",
            "@@ -{int},{small} +{int},{small} @@ {id}",
        ],
        &["{fn} {num};", "{noun} {\n    {fn} {path};\n}", "listen {ip}:{port};", "{fn} {~on|off};"],
    ];
    let style = styles[draw.count(0, styles.len() - 1)];
    while text.is_empty() || text.len() < target {
        let line = draw.pick(style);
        // Templates can't contain literal braces, so those of the block are inserted after
        // filling.
        let line = match line.split_once("{\n") {
            Some((before, after)) => {
                let after = after.strip_suffix("\n}").unwrap_or(after);
                let (before, after) = (draw.fill(before), draw.fill(after));
                format!("{before}{{\n{after}\n}}")
            }
            None => draw.fill(line),
        };
        text.push_str(&line);
        text.push('\n');
    }
    text.trim_end().to_owned()
}

/// A command and what it printed.
pub fn command(draw: &mut Draw, target: usize) -> String {
    let command = draw.pick(&[
        "$ {fn} {flag} {path}\n",
        "$ {=git|docker|kubectl|cargo|curl|psql|ssh} {verb} {flag}={num} {str}\n",
        "{host}:~$ {fn} -{=a|l|v|x} {file} | {=grep|sort|head|wc} {str}\n",
        "> {fn} {path} {path}\n",
        "# {fn} {host} && {fn} {flag}\n",
    ]);
    let mut text = draw.fill(command);
    let styles: [&[&str]; 4] = [
        &[
            "-rw-r--r--  1 {fn} staff  {int} {date} {file}",
            "drwxr-xr-x {small} {fn} {noun} {int} {date} {noun}",
            "total {int}",
        ],
        &[
            "{fn}   {hash}   {ver}   Up {ms}",
            "{hash}  {tool}:{ver}  {size}",
            "{str}  {ip}:{port}  {~running|exited}",
        ],
        &["{path}:{int}: {id} {np}", "{path}: {adj} {noun}", "{int} {nouns} {=in|of} {path}"],
        &[
            "{past} {np} ({num})",
            "{=OK|done|skipped|failed}: {path}",
            "{Noun} {noun}: {num}",
            "\t{id} => {path} (0x{hash})",
        ],
    ];
    let style = styles[draw.count(0, styles.len() - 1)];
    while text.len() < target {
        let line = draw.pick(style);
        text.push_str(&draw.fill(line));
        text.push('\n');
    }
    text.trim_end().to_owned()
}
