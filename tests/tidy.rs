//! What the compiler does not check: which module may know which, where `unsafe` may stand, and that the launcher's
//! carried source is this source.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use runtime_unpack::carried::SOURCE;

/// Module → modules that it may use. `lib.rs` uses all; nobody else does.
const ARROWS: &[(&str, &[&str])] = &[
    (
        "archive",
        &["cli", "error", "event", "output", "pack", "report", "tree"],
    ),
    ("assets", &["config", "output"]),
    ("cargo", &["cli", "config", "error", "event"]),
    ("cli", &["config"]),
    ("config", &["cli", "error", "limits"]),
    ("elf", &[]),
    ("error", &[]),
    ("estimate", &["limits"]),
    ("event", &[]),
    (
        "invoke",
        &[
            "cargo", "cli", "config", "error", "event", "output", "report", "sandbox",
        ],
    ),
    ("limits", &[]),
    ("output", &["cli", "pack", "report"]),
    ("pack", &["elf", "error", "event", "plan", "tree"]),
    ("plan", &["config", "limits"]),
    (
        "report",
        &[
            "cargo", "cli", "config", "elf", "error", "estimate", "event", "limits", "pack",
            "plan", "tree",
        ],
    ),
    ("sandbox", &["elf", "error", "event", "limits"]),
    ("tree", &["config"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The Rust files below `directory`, by path relative to it, with their text.
fn sources(directory: &Path) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(directory).unwrap().to_str().unwrap();
                out.insert(name.to_owned(), fs::read_to_string(&path).unwrap());
            }
        }
    }
    assert!(!out.is_empty());
    out
}

/// The code without its line comments.
fn code(text: &str) -> String {
    let lines = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

/// The modules that follow `crate::`, also in braces.
fn used(code: &str) -> BTreeSet<&str> {
    let mut out = BTreeSet::new();
    for (at, path) in code.match_indices("crate::") {
        let after = &code[at + path.len()..];
        let within = match after.strip_prefix('{') {
            Some(list) => &list[..list.find("};").unwrap()],
            None => identifier(after),
        };
        let mut depth = 0;
        let names = within.split_inclusive(['{', '}', ',']).filter_map(|part| {
            let outermost = depth == 0;
            depth += part.matches('{').count();
            depth -= part.matches('}').count();
            outermost.then(|| identifier(part.trim()))
        });
        out.extend(names.filter(|name| !name.is_empty()));
    }
    out
}

#[test]
fn modules_use_those_that_they_may() {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (file, text) in sources(&root().join("cargo-slimlambda/src")) {
        let module = identifier(&file);
        if ["lib", "main"].contains(&module) {
            continue;
        }
        let code = code(&text);
        let uses = found.entry(module.to_owned()).or_default();
        let others = used(&code).into_iter().filter(|name| *name != module);
        uses.extend(others.map(str::to_owned));
        // Another way to a sibling, which would not be seen here.
        if !file.contains('/') && !file.ends_with("mod.rs") {
            let ways = code.matches("super::").count() - code.matches("use super::*").count();
            assert_eq!(ways, 0, "{file} reaches its siblings by `super`");
        }
    }
    let allowed: BTreeMap<String, BTreeSet<String>> = ARROWS
        .iter()
        .map(|(from, to)| {
            (
                from.to_string(),
                to.iter().map(|name| name.to_string()).collect(),
            )
        })
        .collect();
    assert_eq!(found, allowed);
}

#[test]
fn uses_are_found() {
    let code = "use crate::a::b;\nuse crate::{c, d::{self, e}, f::g};\nuse crate::{h};\nlet x = crate::i::j();";
    assert_eq!(used(code).into_iter().collect::<String>(), "acdfhi");
}

/// All of it is in the `sys` modules, but for one mapping of files and the launcher's entry point.
#[test]
fn unsafe_code_is_where_it_belongs() {
    let word = |c: char| !c.is_alphanumeric() && c != '_';
    for package in ["cargo-slimlambda", "runtime-unpack"] {
        for (file, text) in sources(&root().join(package).join("src")) {
            let count = code(&text)
                .split(word)
                .filter(|word| *word == "unsafe")
                .count();
            match file.rsplit('/').next().unwrap() {
                "sys.rs" => assert!(count > 0, "{file}"),
                "launcher.rs" if file.starts_with("bin/") => assert!(count > 0, "{file}"),
                "tree.rs" => assert_eq!(count, 1, "{file}"),
                _ => assert_eq!(count, 0, "{package}/src/{file}"),
            }
            if count > 0 && file.ends_with("sys.rs") {
                let reasons = text.matches("// SAFETY:").count();
                let blocks = code(&text).matches("unsafe {").count();
                assert!(
                    reasons >= blocks,
                    "{file}: {blocks} unsafe blocks, {reasons} reasons"
                );
            }
        }
    }
}

/// A launcher is built from all of `runtime-unpack` but what only functions need.
#[test]
fn carried_source_is_complete() {
    let mut wanted: BTreeSet<String> = sources(&root().join("runtime-unpack/src"))
        .into_keys()
        .filter(|file| !["asset.rs", "carried.rs", "extract.rs"].contains(&file.as_str()))
        .map(|file| format!("src/{file}"))
        .collect();
    wanted.extend(["Cargo.toml".to_string(), "Cargo.lock".to_string()]);
    let carried: BTreeSet<String> = SOURCE.iter().map(|(path, _)| path.to_string()).collect();
    assert_eq!(carried, wanted);
}

fn carried(name: &str) -> toml::Table {
    let (_, text) = SOURCE.iter().find(|(path, _)| *path == name).unwrap();
    text.parse().unwrap()
}

#[test]
fn the_launcher_has_the_crates_dependencies() {
    let manifest = fs::read_to_string(root().join("runtime-unpack/Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let launcher = carried("Cargo.toml");
    assert_eq!(launcher["dependencies"], manifest["dependencies"]);
    for key in ["name", "version", "edition"] {
        assert_eq!(launcher["package"][key], manifest["package"][key]);
    }
    assert!(manifest["dependencies"].get("cargo-slimlambda").is_none());
}

/// (name, version) of all that a lock file holds.
fn locked(lock: &toml::Table) -> BTreeSet<(String, String)> {
    let packages = lock["package"].as_array().unwrap();
    let field = |package: &toml::Value, key: &str| package[key].as_str().unwrap().to_owned();
    packages
        .iter()
        .map(|package| (field(package, "name"), field(package, "version")))
        .collect()
}

#[test]
fn the_launchers_lock_fits_and_holds_what_the_tests_use() {
    let directory = tempfile::tempdir().unwrap();
    for (path, text) in SOURCE {
        super::project::write(&directory.path().join(path), text);
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--locked", "--offline", "--format-version", "1"])
        .current_dir(directory.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    let ours = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let ours = locked(&ours.parse().unwrap());
    let launcher = locked(&carried("Cargo.lock"));
    let others: Vec<_> = launcher.difference(&ours).collect();
    assert!(
        others.is_empty(),
        "the launcher has {others:?}, the workspace other versions"
    );
    for (name, _) in &launcher {
        assert!(
            !["tokio", "clap", "serde"].contains(&name.as_str()),
            "{name}"
        );
    }
}
