//! How `assets` become files of the package.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use cargo_slimlambda::assets::{Asset, Kind, collect};
use cargo_slimlambda::config::{AssetSpec, Placement};
use tempfile::TempDir;

use crate::project::{message, project};

/// An asset as configured in `directory`; `dest` of `-` is none.
fn spec(directory: &TempDir, source: &str, dest: &str) -> AssetSpec {
    AssetSpec {
        source: source.to_string(),
        base: directory.path().to_path_buf(),
        dest: (dest != "-").then(|| dest.to_string()),
        mode: None,
        placement: Placement::Auto,
        lazy: false,
        origin: "Cargo.toml:9".to_string(),
    }
}

fn dests(assets: &[Asset]) -> Vec<&str> {
    assets.iter().map(|asset| asset.dest.as_str()).collect()
}

fn tree() -> TempDir {
    project(&[
        ("models/digits.onnx", "d"),
        ("models/old/digits.onnx", "old"),
        ("models/.hidden", "h"),
        ("models/read me.txt", "r"),
        ("a[1].txt", "literal"),
    ])
}

#[test]
fn a_source_is_a_file_a_directory_or_a_glob() {
    let all = |at: &str| {
        [".hidden", "digits.onnx", "old/digits.onnx", "read me.txt"]
            .map(|name| format!("{at}{name}"))
            .to_vec()
    };
    let names = |names: &[&str]| {
        names
            .iter()
            .map(|name| name.to_string())
            .collect::<Vec<_>>()
    };
    let cases = [
        ("models/digits.onnx", "-", names(&["models/digits.onnx"])),
        (
            "./models/./digits.onnx",
            "-",
            names(&["models/digits.onnx"]),
        ),
        ("models/digits.onnx", "m.onnx", names(&["m.onnx"])),
        ("models/digits.onnx", "m/", names(&["m/digits.onnx"])),
        ("models", "-", all("models/")),
        ("models/", "m/n", all("m/n/")),
        ("models", ".", all("")),
        ("models/*.onnx", "-", names(&["models/digits.onnx"])),
        (
            "models/**/*.onnx",
            "-",
            names(&["models/digits.onnx", "models/old/digits.onnx"]),
        ),
        (
            "models/**/*.onnx",
            "m",
            names(&["m/digits.onnx", "m/old/digits.onnx"]),
        ),
        // A directory that matches comes whole.
        ("models/o*", "-", names(&["models/old/digits.onnx"])),
        ("model?", "m", all("m/models/")),
        // What exists is not a glob.
        ("a[1].txt", "-", names(&["a[1].txt"])),
    ];
    let tree = tree();
    for (source, dest, expected) in cases {
        let assets = collect(&[spec(&tree, source, dest)]).unwrap();
        assert_eq!(dests(&assets), expected, "{source} → {dest}");
    }
}

#[test]
fn a_base_that_looks_like_a_glob_is_a_path() {
    let outer = project(&[("x[1]/models/a.bin", "a")]);
    let spec = AssetSpec {
        base: outer.path().join("x[1]"),
        ..spec(&outer, "models/*", "-")
    };
    assert_eq!(dests(&collect(&[spec]).unwrap()), ["models/a.bin"]);
}

#[test]
fn modes_are_normalised_unless_given() {
    let tree = tree();
    for (on_disk, configured, expected) in [
        (0o600, None, 0o644),
        (0o4711, None, 0o755),
        (0o777, None, 0o755),
        (0o644, Some(0o400), 0o400),
    ] {
        let path = tree.path().join("models/digits.onnx");
        fs::set_permissions(&path, fs::Permissions::from_mode(on_disk)).unwrap();
        let spec = AssetSpec {
            mode: configured,
            ..spec(&tree, "models/digits.onnx", "-")
        };
        let asset = collect(&[spec]).unwrap().remove(0);
        assert_eq!(
            (asset.mode, asset.kind),
            (expected, Kind::File { size: 1 }),
            "{on_disk:o}"
        );
    }
}

#[test]
fn links_inside_are_kept_and_others_replaced_by_their_content() {
    let tree = project(&[
        ("lib/libx.so.1.2", "elf"),
        ("lib/sub/deep", "d"),
        ("outside/o", "out"),
    ]);
    let link = |target: &str, name: &str| symlink(target, tree.path().join(name)).unwrap();
    link("libx.so.1.2", "lib/libx.so.1");
    link("libx.so.1", "lib/libx.so");
    link("../libx.so", "lib/sub/up");
    link("sub", "lib/dir");
    link("../outside", "lib/out");
    link(
        tree.path().join("lib/libx.so.1.2").to_str().unwrap(),
        "lib/absolute",
    );
    let kept = |target: &str| Kind::Symlink {
        target: target.to_string(),
    };
    let file = |size| Kind::File { size };

    for (source, dest) in [
        ("lib", "l"),
        ("lib/*", "l"),
        ("lib/**", "l"),
        ("lib/**/*", "l"),
    ] {
        let assets = collect(&[spec(&tree, source, dest)]).unwrap();
        let kinds: Vec<_> = assets
            .iter()
            .map(|asset| (asset.dest.as_str(), asset.kind.clone()))
            .collect();
        let expected = [
            ("l/absolute", file(3)),
            ("l/dir", kept("sub")),
            ("l/libx.so", kept("libx.so.1")),
            ("l/libx.so.1", kept("libx.so.1.2")),
            ("l/libx.so.1.2", file(3)),
            ("l/out/o", file(3)),
            ("l/sub/deep", file(1)),
            ("l/sub/up", kept("../libx.so")),
        ];
        assert_eq!(kinds, expected, "{source}");
    }
    // Alone, the link has nothing to point at.
    let alone = collect(&[spec(&tree, "lib/libx.s?", "l")]).unwrap();
    assert_eq!(
        (dests(&alone), &alone[0].kind),
        (vec!["l/libx.so"], &file(3))
    );
    let named = collect(&[spec(&tree, "lib/libx.so", "-")]).unwrap();
    assert_eq!(
        (dests(&named), &named[0].kind),
        (vec!["lib/libx.so"], &file(3))
    );
}

#[test]
fn what_cannot_be_packed_is_an_error_that_names_it() {
    let tree = tree();
    let path = |name: &str| tree.path().join(name);
    fs::create_dir_all(path("empty/er")).unwrap();
    fs::create_dir_all(path("dangling")).unwrap();
    symlink("nowhere", path("dangling/link")).unwrap();
    fs::create_dir_all(path("loop/in")).unwrap();
    symlink(path("loop"), path("loop/in/back")).unwrap();
    fs::create_dir_all(path("socket")).unwrap();
    let _listener = UnixListener::bind(path("socket/s")).unwrap();
    let cases = [
        ("modles", "-", "no such file or directory: `[DIR]/modles`"),
        (
            "models/*.pb",
            "-",
            "the glob matches nothing in `[DIR]/models`",
        ),
        ("models/[", "-", "not a valid glob"),
        ("empty", "-", "no file is in it"),
        (
            "dangling",
            "-",
            "failed to follow symlink `[DIR]/dangling/link`",
        ),
        ("loop", "-", "symlink `[DIR]/loop/in/back"),
        (
            "socket",
            "-",
            "`[DIR]/socket/s` is neither a file, a directory nor a symlink",
        ),
        ("models/../models", "-", "is not a path inside the package"),
        ("/etc/passwd", "-", "is not a path inside the package"),
        ("models", "../m", "is not a path inside the package"),
        ("models", "/m", "is not a path inside the package"),
        ("models/digits.onnx", "", "path `` in the package is empty"),
        ("models/digits.onnx", "bootstrap.zip", "is an output"),
        ("models/digits.onnx", "slimlambda.archive", "is an output"),
        ("models/digits.onnx", "bootstrap", "is what Lambda starts"),
        ("models/digits.onnx", "a\\b", "holds a backslash"),
        ("models/digits.onnx", "a\0b", "holds a backslash, a NUL"),
    ];
    for (source, dest, says) in cases {
        let error = message(&collect(&[spec(&tree, source, dest)]).unwrap_err(), &tree);
        assert!(error.contains(says), "{source} → {dest}: {error}");
        assert!(
            error.starts_with(&format!("asset `{source}` (Cargo.toml:9)")),
            "{error}"
        );
    }
    let long = "x".repeat(256);
    assert!(collect(&[spec(&tree, "models", &long)]).is_err());
}

#[test]
fn two_assets_for_one_path_are_an_error_that_names_both() {
    let tree = tree();
    let error = |first: AssetSpec, second: AssetSpec| {
        let second = AssetSpec {
            origin: "Cargo.toml:10".to_string(),
            ..second
        };
        message(&collect(&[first, second]).unwrap_err(), &tree)
    };
    let one = spec(&tree, "models/digits.onnx", "m");
    let same_path = error(one.clone(), spec(&tree, "models/old/digits.onnx", "m"));
    for says in [
        "`m`",
        "models/digits.onnx` (Cargo.toml:9)",
        "models/old/digits.onnx` (Cargo.toml:10)",
    ] {
        assert!(same_path.contains(says), "{same_path}");
    }
    let below = error(one.clone(), spec(&tree, "models", "m"));
    assert!(below.contains("`m` is a file and a directory"), "{below}");
    let other_mode = error(
        one.clone(),
        AssetSpec {
            mode: Some(0o600),
            ..one.clone()
        },
    );
    assert!(
        other_mode.contains("two assets want to be `m`"),
        "{other_mode}"
    );
    // Named again without another wish: cargo-lambda's `include` beside our own table.
    let lazy = AssetSpec {
        lazy: true,
        ..one.clone()
    };
    let assets = collect(&[lazy, one]).unwrap();
    assert!(matches!(assets.as_slice(), [only] if only.lazy));
}
