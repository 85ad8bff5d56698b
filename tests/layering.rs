//! House rules that a compiler does not know: which module may import which, and what operations never do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// DESIGN.md's floors. A module imports from lower floors, or from its own without going in a circle.
const FLOORS: &[(u8, &[&str])] = &[
    (5, &["main", "cli"]),
    (4, &["operations"]),
    (
        3,
        &[
            "instance",
            "layout",
            "service",
            "transfer",
            "ssh",
            "source_build",
            "store",
            "sql",
            "agent",
            "builds",
            "http_server",
            "platform",
            "tls",
            "wire",
        ],
    ),
    (2, &["compress", "process", "durable", "net", "nss", "progress", "settings"]),
    (1, &["postgres", "blurb", "backups"]),
    (0, &["checked", "error", "fault"]),
];

/// Module path ("postgres::version") to its source without comments.
fn sources() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    read(&root, &root, &mut found);
    assert!(found.contains_key("error"), "no sources in {}", root.display());
    found
}

fn read(root: &Path, directory: &Path, found: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(root, &path, found);
            continue;
        }
        if path.extension().is_none_or(|e| e != "rs") {
            continue;
        }
        let relative = path.strip_prefix(root).unwrap().with_extension("");
        let parts: Vec<_> = relative.iter().map(|p| p.to_str().unwrap()).filter(|p| *p != "mod").collect();
        let name = parts.join("::");
        // The crate's root only names its modules.
        if name != "lib" {
            found.insert(name, std::fs::read_to_string(&path).unwrap());
        }
    }
}

fn without_comments(source: &str) -> String {
    source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| format!("{line}\n"))
        .collect()
}

fn floor(module: &str) -> Option<u8> {
    let top = module.split("::").next().unwrap();
    FLOORS.iter().find(|(_, names)| names.contains(&top)).map(|(floor, _)| *floor)
}

/// Every module of this crate that `source` names by `crate::`, the binary's `pgmahout::`, or `super::`
/// at the top of the file.
fn imports(module: &str, source: &str, known: &BTreeSet<String>) -> BTreeSet<String> {
    let mut paths = Vec::new();
    for prefix in ["crate::", "pgmahout::"] {
        for (at, _) in source.match_indices(prefix) {
            let before = source[..at].chars().next_back();
            if before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':') {
                paths.extend(expand("", &source[at + prefix.len()..]));
            }
        }
    }
    let parent = module.rsplit_once("::").map_or(String::new(), |(parent, _)| format!("{parent}::"));
    for line in source.split_inclusive('\n').scan(0, |at, line| Some(std::mem::replace(at, *at + line.len())))
    {
        for start in ["use super::", "pub use super::"] {
            if let Some(rest) = source[line..].strip_prefix(start) {
                paths.extend(expand(&parent, rest));
            }
        }
    }
    // The longest prefix of the path that is a module; the rest names something in it.
    let resolve = |path: &String| {
        let parts: Vec<_> = path.split("::").collect();
        (1..=parts.len()).rev().map(|n| parts[..n].join("::")).find(|p| known.contains(p))
    };
    paths.iter().filter_map(resolve).filter(|imported| imported != module).collect()
}

/// `a::{b, c::{d}}` after `prefix` to all its paths; ends where the path does.
fn expand(prefix: &str, text: &str) -> Vec<String> {
    let text = text.trim_start();
    let Some(inside) = text.strip_prefix('{') else {
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        let path = format!("{prefix}{}", &text[..end]);
        return match text[end..].strip_prefix("::") {
            Some(rest) => expand(&format!("{path}::"), rest),
            None => vec![path],
        };
    };
    let (mut depth, mut start, mut paths) = (0, 0, Vec::new());
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                if !inside[start..at].trim().is_empty() {
                    paths.extend(expand(prefix, &inside[start..at]));
                }
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    paths
}

fn graph() -> BTreeMap<String, BTreeSet<String>> {
    let sources = sources();
    let known: BTreeSet<String> = sources.keys().cloned().collect();
    sources
        .iter()
        .map(|(name, source)| (name.clone(), imports(name, &without_comments(source), &known)))
        .collect()
}

#[test]
fn every_module_has_a_floor() {
    let homeless: Vec<_> = graph().into_keys().filter(|module| floor(module).is_none()).collect();
    assert!(homeless.is_empty(), "not in DESIGN.md's table of floors (FLOORS in this test): {homeless:?}");
}

#[test]
fn no_module_imports_upwards() {
    let mut upwards = Vec::new();
    for (module, imported) in graph() {
        for other in imported {
            if floor(&other) > floor(&module) {
                upwards.push(format!(
                    "{module} (floor {:?}) imports {other} ({:?})",
                    floor(&module),
                    floor(&other)
                ));
            }
        }
    }
    assert!(upwards.is_empty(), "imports from a higher floor:\n{}", upwards.join("\n"));
}

#[test]
fn no_modules_import_each_other_in_a_circle() {
    let graph = graph();
    for start in graph.keys() {
        let mut path = vec![start.clone()];
        assert!(!reaches(&graph, start, start, &mut path), "a circle of imports: {}", path.join(" -> "));
    }
}

fn reaches(
    graph: &BTreeMap<String, BTreeSet<String>>,
    from: &str,
    goal: &str,
    path: &mut Vec<String>,
) -> bool {
    for next in &graph[from] {
        if next == goal {
            path.push(next.clone());
            return true;
        }
        if !path.contains(next) {
            path.push(next.clone());
            if reaches(graph, next, goal, path) {
                return true;
            }
            path.pop();
        }
    }
    false
}

#[test]
fn operations_never_print_exit_or_parse_flags() {
    forbid(
        |module| module.starts_with("operations"),
        &["println!", "eprintln!", "print!", "eprint!", "process::exit", "clap", "std::env::args"],
    );
}

#[test]
fn nothing_is_left_unfinished() {
    forbid(|_| true, &["todo!", "unimplemented!", "dbg!"]);
}

fn forbid(of: impl Fn(&str) -> bool, words: &[&str]) {
    let mut found = Vec::new();
    for (module, source) in sources().into_iter().filter(|(module, _)| of(module)) {
        for (number, line) in
            source.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"))
        {
            let here = |word: &&&str| {
                line.match_indices(**word).any(|(at, _)| {
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '"')
                })
            };
            found
                .extend(words.iter().find(here).map(|word| format!("{module}, line {}: {word}", number + 1)));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_module_opens_by_saying_what_it_owns() {
    let silent: Vec<_> = sources()
        .into_iter()
        .filter(|(_, source)| !source.starts_with("//!"))
        .map(|(module, _)| module)
        .collect();
    assert!(silent.is_empty(), "these do not open with a //! comment: {silent:?}");
}

#[test]
fn this_test_reads_imports_as_the_compiler_does() {
    let known: BTreeSet<String> =
        ["error", "sql", "a", "a::b", "a::c", "a::d"].into_iter().map(str::to_owned).collect();
    let read = |module: &str, source: &str| {
        imports(module, source, &known).into_iter().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(read("sql", "use crate::error::{Error, Result};"), "error");
    assert_eq!(read("sql", "use crate::{error::Error, a::{b::X, c}};"), "a::b a::c error");
    assert_eq!(read("sql", "fn f() { crate::a::b::g() }"), "a::b");
    assert_eq!(read("a::b", "use super::c::{X,\n    Y};\nmod tests {\n    use super::*;\n}"), "a::c");
    assert_eq!(read("sql", "use crate::a::Name;"), "a");
    assert_eq!(read("sql", "use other_crate::a::Name;"), "");
}
