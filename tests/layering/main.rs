//! Keeps the layers of DESIGN.md true: which top-level module may name which other, and how long a file
//! may be. It reads the source text, so that it also sees code that this platform does not compile.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use testkit::texts::texts;

/// Each top-level module and those it may import. `lib.rs`, binaries and tests stand outside.
const LAYERS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("tensor", &["error"]),
    ("fsio", &["error"]),
    ("isa", &[]),
    ("variables", &["error"]),
    ("memory", &["error"]),
    ("dist", &["error", "exec", "cuda"]),
    ("graph", &["error", "tensor", "ops"]),
    ("ops", &["error", "tensor", "graph"]),
    ("plan", &["error", "tensor", "graph", "ops"]),
    ("exec", &["error", "tensor", "graph", "ops", "plan"]),
    ("bundle", &["error", "checkpoint"]),
    ("cpu", &["error", "tensor", "graph", "ops", "plan", "exec", "isa", "memory", "bundle"]),
    ("cuda", &["error", "tensor", "fsio", "graph", "ops", "plan", "exec", "memory", "image", "bundle"]),
    ("model", &["error", "tensor", "graph", "ops"]),
    ("checkpoint", &["error", "tensor", "fsio", "isa", "memory"]),
    ("image", &["error", "tensor", "fsio", "isa", "memory"]),
    ("task", TASK),
    ("engine", ENGINE),
    ("train", TRAIN),
    ("capi", CAPI),
];

const TASK: &[&str] = &["error", "tensor", "ops", "plan", "cuda", "model", "image"];
const ENGINE: &[&str] = &[
    "error",
    "tensor",
    "fsio",
    "isa",
    "memory",
    "graph",
    "ops",
    "plan",
    "exec",
    "cpu",
    "cuda",
    "model",
    "checkpoint",
    "bundle",
    "image",
    "task",
];
const TRAIN: &[&str] = &[
    "error",
    "tensor",
    "fsio",
    "isa",
    "memory",
    "dist",
    "graph",
    "ops",
    "plan",
    "exec",
    "model",
    "checkpoint",
    "image",
    "task",
    "engine",
];
const CAPI: &[&str] = &["error", "tensor", "image", "engine", "train"];

/// A file longer than this holds two things.
const MAX_LINES: usize = 600;

/// Columns of a comment, and of every line of a kernel. Code of Rust is rustfmt's; it leaves comments as they
/// are, and what it cannot break, such as sentences.
const MAX_COLUMNS: usize = 110;

#[test]
fn comments_fit_into_a_page() {
    let wide = |line: &str| {
        let text = line.trim_start();
        // A row of a table cannot be broken.
        let prose = text.starts_with("//") && !text.trim_start_matches(['/', '!', ' ']).starts_with('|');
        (prose, line.chars().count() > MAX_COLUMNS)
    };
    let of = |files: Vec<(PathBuf, String)>, code: bool| -> Vec<String> {
        let found = |(path, text): &(PathBuf, String)| {
            let faults = text.lines().enumerate().filter(|(_, line)| {
                let (prose, wide) = wide(line);
                wide && (prose || code)
            });
            faults.map(|(at, _)| format!("{}:{}", path.display(), at + 1)).collect::<Vec<_>>()
        };
        files.iter().flat_map(found).collect()
    };
    let faults = [of(files("src", &["rs"]), false), of(files("kernels", &["cu", "cuh"]), true)].concat();
    assert!(faults.is_empty(), "wider than {MAX_COLUMNS} columns:\n{}", faults.join("\n"));
}

#[test]
fn modules_import_only_from_lower_layers() {
    let files = sources();
    let macros = exported_macros(&files);
    let mut faults = Vec::new();
    for (path, text) in &files {
        let module = module_path(path);
        let Some(top) = module.first().filter(|top| *top != "bin") else { continue };
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| name == top) else {
            faults.push(format!("{}: module `{top}` has no place in LAYERS", path.display()));
            continue;
        };
        for edge in edges(text, &module) {
            let target = macros.get(&edge.target).unwrap_or(&edge.target);
            if target == top || allowed.contains(&target.as_str()) {
                continue;
            }
            let place = format!("{}:{}", path.display(), edge.line);
            faults.push(if LAYERS.iter().any(|(name, _)| name == target) {
                format!("{place}: `{top}` must not import `{target}` (it may import {allowed:?})")
            } else {
                format!("{place}: `crate::{target}` is no module: import from the module that defines it")
            });
        }
    }
    assert!(faults.is_empty(), "layers broken:\n{}", faults.join("\n"));
}

#[test]
fn every_variable_that_is_read_is_known() {
    let files = sources();
    let read = files.iter().filter(|(path, _)| !path.ends_with("variables.rs"));
    let texts = read.flat_map(|(_, text)| text.split("(\"").skip(1)).filter(|text| text.starts_with("KNET_"));
    let end = |text: &str| text.find(|c: char| c != '_' && !c.is_ascii_uppercase()).unwrap_or(text.len());
    let names: Vec<&str> = texts.map(|text| &text[..end(text)]).collect();
    assert!(names.contains(&"KNET_ISA"), "{names:?}");
    for name in names {
        let known = knet::variables::KNOWN.iter().any(|(known, _)| *known == name);
        assert!(known, "{name} is missing in src/variables.rs");
    }
}

#[test]
fn no_source_file_is_too_long() {
    let long: Vec<String> = sources()
        .iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|&(_, lines)| lines > MAX_LINES)
        .map(|(path, lines)| format!("{}: {lines} lines, at most {MAX_LINES}", path.display()))
        .collect();
    assert!(long.is_empty(), "split by meaning:\n{}", long.join("\n"));
}

#[test]
fn edges_are_found_where_they_hide() {
    let text = r##"
        //! crate::doc::Link
        use crate::{error::Error, tensor};
        use super::{super::plan::Plan, sibling};
        /* crate::comment /* nested */ */
        const S: &str = "crate::text"; const R: &str = r#"crate::raw""#;
        fn f<'a>(x: &'a str, c: char) -> bool { c == '"' && crate::cuda::ready(x) }
        pub(crate) mod inner { use super::super::local; use super::super::super::engine; }
        #[cfg(test)]
        mod tests { use crate::train; }
    "##;
    let module = ["cpu", "ops"].map(String::from);
    let found: Vec<(String, usize)> = edges(text, &module).into_iter().map(|e| (e.target, e.line)).collect();
    let wanted = [("error", 3), ("tensor", 3), ("plan", 4), ("cuda", 7), ("engine", 8)];
    assert_eq!(found, wanted.map(|(target, line)| (target.to_string(), line)));
}

/// All of `src/**/*.rs` with their text.
fn sources() -> Vec<(PathBuf, String)> {
    files("src", &["rs"])
}

/// Path in the repository and text of the files below a folder of it.
fn files(folder: &str, extensions: &[&str]) -> Vec<(PathBuf, String)> {
    let files =
        texts(folder, extensions).into_iter().map(|(name, text)| (Path::new(folder).join(name), text));
    let mut files: Vec<_> = files.collect();
    files.sort();
    assert!(files.len() > 10, "only {} files found in {folder}", files.len());
    files
}

/// `src/cpu/ops/mod.rs` is `["cpu", "ops"]`, `src/lib.rs` is `[]`.
fn module_path(path: &Path) -> Vec<String> {
    let mut parts: Vec<String> =
        path.with_extension("").iter().skip(1).map(|p| p.to_string_lossy().into_owned()).collect();
    if matches!(parts.last().map(String::as_str), Some("mod" | "lib")) {
        parts.pop();
    }
    parts
}

/// Exported macros live at the crate root but belong to the module that defines them.
fn exported_macros(files: &[(PathBuf, String)]) -> HashMap<String, String> {
    let mut owners = HashMap::new();
    for (path, text) in files {
        let Some(top) = module_path(path).first().cloned() else { continue };
        let mut exported = false;
        for line in text.lines().map(str::trim_start) {
            exported |= line.starts_with("#[macro_export]");
            if let Some(rest) = line.strip_prefix("macro_rules! ") {
                let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if std::mem::take(&mut exported) {
                    owners.insert(name, top.clone());
                }
            }
        }
    }
    owners
}

/// A path from the crate's root.
#[derive(Debug)]
struct Edge {
    line: usize,
    target: String,
}

#[derive(Clone, Debug, PartialEq)]
struct Token {
    line: usize,
    text: String,
}

/// The top-level items that the code of `module` names by `crate::` or by enough `super::`s, outside its
/// unit tests.
fn edges(text: &str, module: &[String]) -> Vec<Edge> {
    let tokens = tokens(text);
    let word = |at: usize| tokens.get(at).map_or("", |t| t.text.as_str());
    let mut edges = Vec::new();
    // Open braces; an inline module deepens the path by its name.
    let mut open: Vec<bool> = Vec::new();
    let mut path = module.to_vec();
    let mut at = 0;
    while at < tokens.len() {
        match word(at) {
            "mod" if word(at + 2) == "{" => {
                let test = at >= 7 && (at - 7..at).map(word).eq(["#", "[", "cfg", "(", "test", ")", "]"]);
                if test {
                    at = skip_block(&tokens, at + 2);
                    continue;
                }
                path.push(word(at + 1).to_string());
                open.push(true);
                at += 3;
            }
            "{" => {
                open.push(false);
                at += 1;
            }
            "}" => {
                if open.pop() == Some(true) {
                    path.pop();
                }
                at += 1;
            }
            "crate" | "super" if word(at + 1) == "::" && (at == 0 || word(at - 1) != "::") => {
                at = use_tree(&tokens, at, &path, &mut edges);
            }
            _ => at += 1,
        }
    }
    edges
}

/// Reads a path or use tree at `at`, relative to the module `base`, and returns the position after it.
fn use_tree(tokens: &[Token], mut at: usize, base: &[String], edges: &mut Vec<Edge>) -> usize {
    let word = |at: usize| tokens.get(at).map_or("", |t| t.text.as_str());
    let mut base = base.to_vec();
    loop {
        match word(at) {
            "crate" => base.clear(),
            "super" => drop(base.pop()),
            "self" => {}
            "{" => {
                at += 1;
                while at < tokens.len() && word(at) != "}" {
                    at = if word(at) == "," { at + 1 } else { use_tree(tokens, at, &base, edges) };
                }
                return at + 1;
            }
            name => {
                let top = base.is_empty() && name != "*";
                if top {
                    edges.push(Edge { line: tokens[at].line, target: name.to_string() });
                }
                // The rest of the path lies inside what was named: nothing below can leave it.
                return skip_path(tokens, at);
            }
        }
        if word(at + 1) != "::" {
            return at + 1;
        }
        at += 2;
    }
}

/// The position after the path or use tree whose first segment is at `at`.
fn skip_path(tokens: &[Token], mut at: usize) -> usize {
    let word = |at: usize| tokens.get(at).map_or("", |t| t.text.as_str());
    at += 1;
    while word(at) == "::" {
        match word(at + 1) {
            "{" => return skip_block(tokens, at + 1),
            "<" => return at + 1,
            _ => at += 2,
        }
    }
    if word(at) == "as" { at + 2 } else { at }
}

/// The position after the block that opens at `at`.
fn skip_block(tokens: &[Token], mut at: usize) -> usize {
    let mut depth = 0usize;
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            break;
        }
    }
    at
}

/// Words, `::` and single characters, without comments, strings and character literals.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let starts = |at: usize, what: &str| what.chars().enumerate().all(|(i, c)| chars.get(at + i) == Some(&c));
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < chars.len() {
        let begin = at;
        if starts(at, "//") {
            while at < chars.len() && chars[at] != '\n' {
                at += 1;
            }
        } else if starts(at, "/*") {
            let mut depth = 0;
            while at < chars.len() {
                if starts(at, "/*") {
                    (depth, at) = (depth + 1, at + 2);
                } else if starts(at, "*/") {
                    (depth, at) = (depth - 1, at + 2);
                } else {
                    at += 1;
                }
                if depth == 0 {
                    break;
                }
            }
        } else if let Some(hashes) = raw_string(&chars, at) {
            let close: String = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            at += 2 + hashes;
            while at < chars.len() && !starts(at, &close) {
                at += 1;
            }
            at += close.len();
        } else if chars[at] == '"' {
            at += 1;
            while at < chars.len() && chars[at] != '"' {
                at += 1 + usize::from(chars[at] == '\\');
            }
            at += 1;
        } else if chars[at] == '\'' {
            // A character literal ends in a quote; a lifetime does not.
            if chars.get(at + 1) == Some(&'\\') {
                at += 3;
                while at < chars.len() && chars[at] != '\'' {
                    at += 1;
                }
                at += 1;
            } else {
                at += if chars.get(at + 2) == Some(&'\'') { 3 } else { 1 };
            }
        } else {
            if is_word(chars[at]) {
                while at < chars.len() && is_word(chars[at]) {
                    at += 1;
                }
            } else {
                at += if starts(at, "::") { 2 } else { 1 };
            }
            if !chars[begin].is_whitespace() {
                tokens.push(Token { line, text: chars[begin..at].iter().collect() });
            }
        }
        at = at.min(chars.len());
        line += chars[begin..at].iter().filter(|&&c| c == '\n').count();
    }
    tokens
}

/// Number of hashes of the raw string that begins at `at`, if one does.
fn raw_string(chars: &[char], at: usize) -> Option<usize> {
    let after_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    if chars[at] != 'r' || after_word {
        return None;
    }
    let hashes = chars[at + 1..].iter().take_while(|&&c| c == '#').count();
    (chars.get(at + 1 + hashes) == Some(&'"')).then_some(hashes)
}
