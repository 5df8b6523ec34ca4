//! What `[package.metadata.slimlambda]` and its neighbours mean, and how their errors look.

use cargo_slimlambda::config::{Config, Level, Placement, Runtime, load};
use cargo_slimlambda::{cargo, error};
use snapbox::{assert_data_eq, str};
use tempfile::TempDir;

use crate::project::{build_args, choice, manifest, message, project, real};

const MAIN: (&str, &str) = ("src/main.rs", "fn main() {}");

/// A package `f` whose manifest ends with `tables`.
fn package(tables: &str) -> TempDir {
    project(&[("Cargo.toml", &manifest("f", tables)), MAIN])
}

fn load_in(directory: &TempDir, args: &[&str]) -> anyhow::Result<Config> {
    let choice = choice(directory.path(), args);
    let metadata = cargo::metadata(&choice)?;
    let selected = cargo::select_one(&metadata, &choice)?;
    load(
        Some(&metadata),
        Some(selected.package),
        selected.bin,
        &build_args(args).config,
    )
}

fn error_of(tables: &str) -> String {
    let directory = package(tables);
    let error = load_in(&directory, &[]).unwrap_err();
    assert!(
        matches!(error.downcast_ref(), Some(error::Stop::Usage(_))),
        "{error:#}"
    );
    message(&error, &directory)
}

#[test]
fn without_tables_the_defaults_hold() {
    let config = load_in(&package(""), &[]).unwrap();
    assert_eq!(config.runtime, Runtime::ProvidedAl2023);
    assert_eq!(config.level, Level::Balanced);
    assert_eq!(config.placement, Placement::Auto);
    assert!(config.strip && config.assets.is_empty() && config.libraries.is_empty());
    assert_eq!(
        (config.memory, config.ephemeral_storage, config.timeout),
        (None, None, None)
    );
    // Outside any project too.
    assert!(load(None, None, "f", &Default::default()).unwrap().strip);
}

#[test]
fn every_key_is_read() {
    let directory = package(
        r#"[package.metadata.slimlambda]
runtime = "provided.al2023"
libraries = ["libcuda.so.1", "vendor/libx.so"]
library-path = ["vendor", "/opt/lib"]
strip = { exclude = ["libonnx*.so*"] }
placement = "sideload"
level = 12
memory = 512
ephemeral-storage = 1024
timeout = 30
assets = [
    { source = "models/*.onnx", dest = "m", mode = "0600", placement = "inline" },
    { source = "words", lazy = true },
]
"#,
    );
    let config = load_in(&directory, &[]).unwrap();
    let at = |path: &str| real(&directory).join(path);
    assert_eq!(
        config.libraries,
        [
            "libcuda.so.1".into(),
            at("vendor/libx.so").display().to_string()
        ]
    );
    assert_eq!(config.library_path, [at("vendor"), "/opt/lib".into()]);
    assert!(config.strip);
    assert_eq!(config.strip_exclude, ["libonnx*.so*"]);
    assert_eq!(
        (config.placement, config.level),
        (Placement::Sideload, Level::Number(12))
    );
    assert_eq!(
        (config.memory, config.ephemeral_storage, config.timeout),
        (Some(512), Some(1024), Some(30))
    );
    let [models, words] = config.assets.as_slice() else {
        panic!("{:?}", config.assets)
    };
    assert_eq!(
        (models.mode, models.placement, models.lazy),
        (Some(0o600), Placement::Inline, false)
    );
    assert_eq!(models.dest.as_deref(), Some("m"));
    assert!(
        models.origin.ends_with("Cargo.toml:17"),
        "{}",
        models.origin
    );
    assert_eq!(
        (words.mode, words.placement, words.lazy),
        (None, Placement::Sideload, true)
    );
    assert_eq!(words.base, real(&directory));
}

/// Flags over the binary's table, over the package's, over the workspace's, over cargo-lambda's.
#[test]
fn what_is_nearer_wins() {
    let tables = |timeout_of_workspace: &str| {
        format!(
            r#"[[bin]]
name = "f"
path = "src/main.rs"
[[bin]]
name = "g"
path = "src/main.rs"
[package.metadata.slimlambda.bin.f]
memory = 1001
[package.metadata.slimlambda]
memory = 1002
level = "fast"
[workspace.metadata.slimlambda]
memory = 1003
level = "best"
{timeout_of_workspace}
[package.metadata.lambda.deploy]
memory = 1004
timeout = 4
[package.metadata.lambda.bin.g.deploy]
timeout = 5
[workspace]
"#
        )
    };
    type Case<'a> = (&'a str, &'a [&'a str], (u32, u32, Level));
    let cases: &[Case<'_>] = &[
        ("", &["--bin", "f"], (1001, 4, Level::Fast)),
        ("", &["--bin", "g"], (1002, 5, Level::Fast)),
        ("timeout = 9", &["--bin", "g"], (1002, 9, Level::Fast)),
        (
            "",
            &["--bin", "f", "--memory", "1000", "--level", "3"],
            (1000, 4, Level::Number(3)),
        ),
    ];
    for (workspace, args, expected) in cases {
        let config = load_in(&package(&tables(workspace)), args).unwrap();
        let got = (
            config.memory.unwrap(),
            config.timeout.unwrap(),
            config.level,
        );
        assert_eq!(got, *expected, "{workspace} {args:?}");
    }
}

#[test]
fn a_workspace_member_inherits_the_workspaces_table() {
    let root = r#"[workspace]
members = ["f"]
resolver = "2"
[workspace.metadata.slimlambda]
library-path = ["lib"]
assets = [{ source = "common" }]
memory = 256
"#;
    let member = manifest(
        "f",
        "[package.metadata.slimlambda]\nassets = [{ source = \"own\" }]\n",
    );
    let directory = project(&[
        ("Cargo.toml", root),
        ("f/Cargo.toml", &member),
        ("f/src/main.rs", "fn main() {}"),
    ]);
    let config = load_in(&directory, &[]).unwrap();
    // Paths start where they are written; a list replaces the one below it.
    assert_eq!(config.library_path, [real(&directory).join("lib")]);
    assert_eq!(config.memory, Some(256));
    let sources: Vec<_> = config
        .assets
        .iter()
        .map(|asset| (asset.source.as_str(), asset.base.clone()))
        .collect();
    assert_eq!(sources, [("own", real(&directory).join("f"))]);
}

#[test]
fn cargo_lambdas_tables_are_read_for_what_means_the_same() {
    let directory = package(
        r#"[package.metadata.lambda.build]
include = ["config", "data:fixtures/data"]
arm64 = true
compiler = { type = "cargo" }
[package.metadata.lambda.deploy]
include = ["README.md"]
memory = 512
timeout = 60
tracing = "active"
[package.metadata.lambda.watch]
anything = 1
[package.metadata.slimlambda]
assets = [{ source = "models" }]
"#,
    );
    let config = load_in(&directory, &["--include", "more"]).unwrap();
    let named: Vec<_> = config
        .assets
        .iter()
        .map(|asset| (asset.source.as_str(), asset.dest.as_deref()))
        .collect();
    let expected = [
        ("models", None),
        ("config", None),
        ("fixtures/data", Some("data")),
        ("README.md", None),
        ("more", None),
    ];
    assert_eq!(named, expected);
    assert_eq!(config.assets[4].origin, "--include");
    assert_eq!(config.assets[4].base, std::env::current_dir().unwrap());
    assert_eq!((config.memory, config.timeout), (Some(512), Some(60)));
    assert_eq!(config.target.as_deref(), Some("aarch64-unknown-linux-gnu"));
}

#[test]
fn flags_add_to_lists_and_switch_stripping_off() {
    let directory = package(
        "[package.metadata.slimlambda]\nlibraries = [\"a.so\"]\nlibrary-path = [\"/a\"]\nstrip = true\n",
    );
    let args = ["--library", "b.so", "--library-path", "/b", "--no-strip"];
    let config = load_in(&directory, &args).unwrap();
    assert_eq!(config.libraries, ["a.so", "b.so"]);
    assert_eq!(
        config.library_path,
        [std::path::Path::new("/b"), std::path::Path::new("/a")]
    );
    assert!(!config.strip);
}

#[test]
fn an_unknown_key_is_pointed_at() {
    assert_data_eq!(
        error_of("[package.metadata.slimlambda]\nmemory = 512\nlibrary_path = [\"lib\"]\n"),
        str![[r#"
unknown key `library_path`
 --> [DIR]/Cargo.toml:8:1
  |
8 | library_path = ["lib"]
  | ^^^^^^^^^^^^
help: did you mean `library-path`?
"#]]
    );
    assert_data_eq!(
        error_of(
            "[package.metadata.slimlambda]\nassets = [\n  { source = \"a\", destination = \"b\" },\n]\n"
        ),
        str![[r#"
unknown key `destination`
 --> [DIR]/Cargo.toml:8:19
  |
8 |   { source = "a", destination = "b" },
  |                   ^^^^^^^^^^^
help: known keys: `source`, `dest`, `mode`, `placement`, `lazy`
"#]]
    );
}

#[test]
fn a_wrong_value_is_pointed_at() {
    let cases = [
        ("memory = 64", "`memory` is 128 to 10240 MiB, not 64", "64"),
        (
            "memory = \"1 GB\"",
            "invalid type: string \"1 GB\", expected i64",
            "\"1 GB\"",
        ),
        (
            "ephemeral-storage = 20000",
            "`ephemeral-storage` is 512 to 10240 MiB, not 20000",
            "20000",
        ),
        (
            "timeout = -1",
            "`timeout` is 1 to 900 seconds, not -1",
            "-1",
        ),
        (
            "level = 23",
            "`23` is not a level: expected `fast`, `balanced`, `best` or a number from 1 to 22",
            "23",
        ),
        (
            "placement = \"sidelaod\"",
            "unknown value `sidelaod`",
            "\"sidelaod\"",
        ),
        (
            "runtime = \"provided.al2\"",
            "unknown value `provided.al2`",
            "\"provided.al2\"",
        ),
        (
            "strip = 1",
            "invalid type: integer `1`, expected a boolean or a table",
            "1",
        ),
        (
            "strip = { exclude = [\"a[\"] }",
            "`a[`: Pattern syntax error",
            "{ exclude",
        ),
        (
            "libraries = \"liba.so\"",
            "invalid type: string \"liba.so\", expected a sequence",
            "\"liba.so\"",
        ),
        (
            "assets = [\"models\"]",
            "expected a table such as `{ source = \"models/*.onnx\" }`",
            "\"models\"",
        ),
        (
            "assets = [{ dest = \"m\" }]",
            "missing field `source`",
            "{ dest",
        ),
        (
            "assets = [{ source = \"m\", mode = \"4755\" }]",
            "`4755` is not a file mode",
            "\"4755\"",
        ),
        (
            "assets = [{ source = \"m\", mode = \"rw\" }]",
            "`rw` is not a file mode",
            "\"rw\"",
        ),
        (
            "assets = [{ source = \"m\", lazy = true, placement = \"inline\" }]",
            "a lazy asset cannot be placed inline",
            "{ source",
        ),
        ("bin.h.memory = 512", "no binary is named `h`", "h.memory"),
    ];
    for (line, says, at) in cases {
        let error = error_of(&format!("[package.metadata.slimlambda]\n{line}\n"));
        let column = line.find(at).unwrap() + 1;
        assert!(error.contains(says), "{line}: {error}");
        assert!(
            error.contains(&format!("Cargo.toml:7:{column}\n")),
            "{line}: {error}"
        );
        assert!(error.contains(&format!("7 | {line}\n")), "{line}: {error}");
    }
}
