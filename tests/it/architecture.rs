//! Tests that the code follows `docs/architecture.md`: no room uses one that its table doesn't list,
//! no rooms or folders depend on each other in a circle, and the picture matches the table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const TABLE: &str = "docs/architecture.md";
const PICTURE: &str = "docs/architecture.svg";

type Arrows = BTreeMap<String, BTreeSet<String>>;

/// A source file: its module path, and its text without comments and unit tests.
struct Source {
    module: Vec<String>,
    text: String,
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.extend(source(&path));
            }
        }
    }
    found.sort_by(|a, b| a.module.cmp(&b.module));
    found
}

/// `None` for the roots of the crates, and for files of unit tests.
fn source(path: &Path) -> Option<Source> {
    let inside = path.strip_prefix("src").unwrap().with_extension("");
    let mut module: Vec<String> = inside.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if module.last().unwrap() == "mod" {
        module.pop();
    }
    let name = module.last().unwrap();
    if ["lib", "main"].contains(&name.as_str()) || name.ends_with("tests") {
        return None;
    }
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let code = |line: &str| line.split("//").next().unwrap().to_owned();
    Some(Source { module, text: text.lines().map(code).collect::<Vec<_>>().join("\n") })
}

impl Source {
    /// Paths that the file uses, from the crate's root.
    fn used(&self) -> Vec<Vec<String>> {
        let path = regex::Regex::new(r"\b(crate|super|self)((?:::\w+)+)(?:::\{([^;]*?)\};)?").unwrap();
        let group = regex::Regex::new(r"\bcrate::\{([^;]*)\};").unwrap();
        let first = regex::Regex::new(r"(?:^|,)\s*(\w+)").unwrap();
        let mut used = Vec::new();
        for found in path.captures_iter(&self.text) {
            let mut names: Vec<&str> = found[2].split("::").filter(|name| !name.is_empty()).collect();
            let mut at = match &found[1] {
                "crate" => Vec::new(),
                "self" => self.module.clone(),
                _ => self.module[..self.module.len() - 1].to_vec(),
            };
            while names.first() == Some(&"super") {
                at.pop();
                names.remove(0);
            }
            at.extend(names.into_iter().map(str::to_owned));
            used.push(at);
        }
        for found in group.captures_iter(&self.text) {
            used.extend(first.captures_iter(&found[1]).map(|name| vec![name[1].to_owned()]));
        }
        used
    }
}

/// Uses in the code, where both modules have a name at the depth where they differ.
fn arrows(of: impl Fn(&[String], &[String]) -> Option<(String, String)>) -> Arrows {
    let mut arrows = Arrows::new();
    for source in sources() {
        for used in source.used() {
            if let Some((from, to)) = of(&source.module, &used) {
                arrows.entry(from).or_default().insert(to);
            }
        }
    }
    arrows
}

fn rooms_in_code() -> Arrows {
    arrows(|from, to| (from[0] != to[0]).then(|| (from[0].clone(), to[0].clone())))
}

/// The table: each room with the rooms that it may use.
fn table() -> Arrows {
    let text = std::fs::read_to_string(TABLE).unwrap();
    let names = |cell: &str| -> Vec<String> {
        cell.split('`')
            .skip(1)
            .step_by(2)
            .map(|n| n.trim_end_matches('/').trim_end_matches(".rs").to_owned())
            .collect()
    };
    let mut rooms = Arrows::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
        let [room, _, uses] = cells[..] else { continue };
        let previous = rooms.insert(names(room)[0].clone(), names(uses).into_iter().collect());
        assert!(previous.is_none(), "{room} stands twice in {TABLE}");
    }
    rooms
}

/// A dependency cycle, if there is one.
fn circle(arrows: &Arrows) -> Option<Vec<String>> {
    fn walk(
        at: &str,
        arrows: &Arrows,
        path: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Option<Vec<String>> {
        if let Some(start) = path.iter().position(|name| name == at) {
            return Some(path[start..].to_vec());
        }
        if !done.insert(at.to_owned()) {
            return None;
        }
        path.push(at.to_owned());
        let found = arrows.get(at).into_iter().flatten().find_map(|to| walk(to, arrows, path, done));
        path.pop();
        found
    }
    let mut done = BTreeSet::new();
    arrows.keys().find_map(|name| walk(name, arrows, &mut Vec::new(), &mut done))
}

#[test]
fn rooms_use_only_what_the_table_lists() {
    let (table, code) = (table(), rooms_in_code());
    let names: BTreeSet<_> = sources().into_iter().map(|source| source.module[0].clone()).collect();
    let listed: BTreeSet<_> = table.keys().cloned().collect();
    assert_eq!(names, listed, "rooms of src/ and of {TABLE}");
    let mut wrong = Vec::new();
    for name in &names {
        let none = BTreeSet::new();
        let (uses, may) = (code.get(name).unwrap_or(&none), &table[name]);
        wrong.extend(uses.difference(may).map(|to| format!("{name} uses {to}, which {TABLE} doesn't list")));
        wrong.extend(may.difference(uses).map(|to| format!("{name} doesn't use {to}, which {TABLE} lists")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(circle(&table), None);
}

#[test]
fn no_two_folders_use_each_other() {
    let folder = |path: &[String]| Path::new("src").join(path.iter().collect::<PathBuf>()).is_dir();
    let between = arrows(|from, to| {
        let same = from.iter().zip(to).take_while(|(a, b)| a == b).count();
        let (from, to) = (from.get(..=same)?, to.get(..=same)?);
        (folder(from) && folder(to)).then(|| (from.join("/"), to.join("/")))
    });
    assert!(between.len() > 10, "folders use each other: {between:?}");
    assert_eq!(circle(&between), None);
}

#[test]
fn a_circle_is_found() {
    let arrows = |pairs: &[(&str, &str)]| {
        let mut arrows = Arrows::new();
        for (from, to) in pairs {
            arrows.entry((*from).to_owned()).or_default().insert((*to).to_owned());
        }
        arrows
    };
    assert_eq!(circle(&arrows(&[("a", "b"), ("b", "c"), ("a", "c")])), None);
    assert_eq!(circle(&arrows(&[("a", "b"), ("b", "c"), ("c", "b")])).unwrap(), ["b", "c"]);
}

/// With `UPDATE=1`, the test writes the picture.
#[test]
fn the_picture_is_that_of_the_table() {
    let drawn = picture(&table());
    if std::env::var_os("UPDATE").is_some() {
        bespoke::atomic_file::write(Path::new(PICTURE), drawn.as_bytes()).unwrap();
    }
    let kept = std::fs::read_to_string(PICTURE).unwrap_or_default();
    assert!(kept == drawn, "{PICTURE} is not that of {TABLE}: UPDATE=1 cargo test --test it architecture");
}

/// Draws rooms in storeys, each above all that it uses. Rooms that every second room uses are drawn
/// without arrows.
fn picture(rooms: &Arrows) -> String {
    let users = |name: &String| rooms.values().filter(|uses| uses.contains(name)).count();
    let (ground, house): (Vec<&String>, Vec<&String>) = rooms.keys().partition(|name| {
        rooms[*name].iter().all(|to| rooms[to].is_empty()) && !["gguf", "text"].contains(&name.as_str())
    });
    let mut storey: BTreeMap<&String, usize> = ground.iter().map(|name| (*name, 0)).collect();
    while storey.len() < rooms.len() {
        for name in &house {
            let below: Option<Vec<usize>> = rooms[*name].iter().map(|to| storey.get(to).copied()).collect();
            if let Some(below) = below {
                storey.insert(*name, below.into_iter().max().unwrap_or(0) + 1);
            }
        }
    }
    let top = storey.values().copied().max().unwrap_or(0);
    let (width, height, step) = (900, 40, 78);
    let mut places = BTreeMap::new();
    for level in 0..=top {
        let mut here: Vec<&String> =
            storey.iter().filter(|(_, at)| **at == level).map(|(name, _)| *name).collect();
        here.sort_by_key(|name| std::cmp::Reverse(users(name)));
        let per_row = if level == 0 { here.len().div_ceil(2) } else { here.len() };
        for (index, name) in here.iter().enumerate() {
            let (row, column) = (index / per_row, index % per_row);
            let slot = width / per_row;
            places.insert(
                *name,
                (column * slot + slot / 2, (top - level) * step + row * 50 + 30, slot.min(130) - 14),
            );
        }
    }
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {}\" font-family=\"sans-serif\" font-size=\"13\" text-anchor=\"middle\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        top * step + 120
    );
    for name in &house {
        let (x, y, _) = places[name];
        for to in rooms[*name].iter().filter(|to| storey[to] > 0) {
            let (to_x, to_y, _) = places[to];
            let (y, to_y) = (y + height / 2, to_y - height / 2);
            let middle = y.midpoint(to_y);
            writeln!(out, "<path d=\"M{x} {y} C{x} {middle} {to_x} {middle} {to_x} {to_y}\" fill=\"none\" stroke=\"#9ab\"/>").unwrap();
        }
    }
    for (name, (x, y, wide)) in &places {
        let fill = if storey[name] == 0 { "#eee" } else { "#dbe9f6" };
        writeln!(
            out,
            "<rect x=\"{}\" y=\"{}\" width=\"{wide}\" height=\"{height}\" rx=\"6\" fill=\"{fill}\" stroke=\"#456\"/><text x=\"{x}\" y=\"{}\">{name}</text>",
            x - wide / 2, y - height / 2, y + 5
        )
        .unwrap();
    }
    out + "</svg>\n"
}

/// All files and folders of `src/`, folders with a slash at the end.
fn paths(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.to_str().unwrap().to_owned();
        if path.is_dir() {
            found.extend(paths(&path));
            found.push(name + "/");
        } else {
            found.push(name);
        }
    }
    found
}

#[test]
fn every_path_that_the_document_names_exists() {
    let text = std::fs::read_to_string(TABLE).unwrap();
    let path = regex::Regex::new(r"`([a-z_]+(?:/[a-z_0-9]+)*(?:/|\.rs))`").unwrap();
    let named: Vec<&str> = path.captures_iter(&text).map(|found| found.get(1).unwrap().as_str()).collect();
    assert!(named.len() > 40, "{named:?}");
    let all = paths(Path::new("src"));
    // After a folder was named, its files are named without it.
    let exists =
        |name: &str| Path::new(name).exists() || all.iter().any(|path| path.ends_with(&format!("/{name}")));
    let missing: Vec<&str> = named.into_iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
