//! What Cargo is asked for, and what is made of its answers.

use cargo_slimlambda::cli::{BuildArgs, ChoiceArgs};
use cargo_slimlambda::config::Config;
use cargo_slimlambda::error::Stop;
use cargo_slimlambda::{cargo, error};
use tempfile::TempDir;

use crate::project::{build_args, choice, manifest, message, project};

const MAIN: &str = "fn main() {}";

fn workspace(root: &str) -> TempDir {
    let root =
        format!("[workspace]\nmembers = [\"one\", \"many\", \"lib\"]\nresolver = \"2\"\n{root}");
    project(&[
        ("Cargo.toml", &root),
        ("one/Cargo.toml", &manifest("one", "")),
        ("one/src/main.rs", MAIN),
        (
            "many/Cargo.toml",
            &manifest("many", "").replace("[package]", "[package]\ndefault-run = \"put\""),
        ),
        ("many/src/bin/get.rs", MAIN),
        ("many/src/bin/put.rs", MAIN),
        ("lib/Cargo.toml", &manifest("lib", "")),
        ("lib/src/lib.rs", ""),
    ])
}

fn names(choice: &ChoiceArgs) -> anyhow::Result<Vec<String>> {
    let metadata = cargo::metadata(choice)?;
    let selected = cargo::select(&metadata, choice)?;
    Ok(selected
        .iter()
        .map(|one| format!("{}/{}", one.package.name, one.bin))
        .collect())
}

#[test]
fn binaries_are_chosen_as_cargo_would() {
    let all = workspace("");
    let default = workspace("default-members = [\"many\"]\n");
    let cases: &[(&TempDir, &str, &[&str], &[&str])] = &[
        (&all, ".", &[], &["many/get", "one/one", "many/put"]),
        (&all, ".", &["--bin", "put"], &["many/put"]),
        (
            &all,
            ".",
            &["--bin", "put", "--bin", "one"],
            &["one/one", "many/put"],
        ),
        (&all, ".", &["-p", "many"], &["many/get", "many/put"]),
        (
            &all,
            ".",
            &["-p", "many@0.1.0", "--bin", "g*"],
            &["many/get"],
        ),
        (&all, "one", &[], &["one/one"]),
        (
            &all,
            "one",
            &["--workspace"],
            &["many/get", "one/one", "many/put"],
        ),
        (&all, "one", &["-p", "many"], &["many/get", "many/put"]),
        (&default, ".", &[], &["many/get", "many/put"]),
        (&default, "one", &[], &["one/one"]),
    ];
    for (directory, member, args, expected) in cases {
        let choice = choice(&directory.path().join(member), args);
        let mut got = names(&choice).unwrap();
        got.sort();
        let mut expected = expected.to_vec();
        expected.sort();
        assert_eq!(got, expected, "{member} {args:?}");
    }
}

#[test]
fn a_choice_that_means_nothing_is_explained() {
    let directory = workspace("");
    let cases: &[(&str, &[&str], &str)] = &[
        (
            "lib",
            &[],
            "no binary to build in `lib`\nhelp: a function is a binary",
        ),
        (
            ".",
            &["--bin", "pot"],
            "no binary is named `pot`\nhelp: there are `one`, `get`, `put`",
        ),
        (
            ".",
            &["-p", "two"],
            "no package of the workspace is named `two`\nhelp: there are `one`, `many`, `lib`",
        ),
    ];
    for (member, args, says) in cases {
        let error = names(&choice(&directory.path().join(member), args)).unwrap_err();
        let got = format!("{error:#}");
        // The order of members is Cargo's affair.
        let (got, says) = (sorted(&got), sorted(says));
        assert!(got.starts_with(&says), "{got}\n{says}");
    }
    let twice = project(&[
        (
            "Cargo.toml",
            "[workspace]\nmembers = [\"a\", \"b\"]\nresolver = \"2\"\n",
        ),
        (
            "a/Cargo.toml",
            &manifest("a", "[[bin]]\nname = \"f\"\npath = \"main.rs\"\n"),
        ),
        ("a/main.rs", MAIN),
        (
            "b/Cargo.toml",
            &manifest("b", "[[bin]]\nname = \"f\"\npath = \"main.rs\"\n"),
        ),
        ("b/main.rs", MAIN),
    ]);
    let error = names(&choice(twice.path(), &[])).unwrap_err().to_string();
    assert!(
        error.starts_with("two binaries are named `f`: in `a` and in `b`"),
        "{error}"
    );
}

/// A message with the words of its last line in order.
fn sorted(text: &str) -> String {
    let (head, list) = text.rsplit_once("there are ").unwrap_or((text, ""));
    let mut names: Vec<&str> = list.split(", ").collect();
    names.sort_unstable();
    format!("{head}{}", names.join(", "))
}

#[test]
fn invoke_means_one_binary() {
    let directory = workspace("");
    let one = |member: &str, args: &[&str]| {
        let choice = choice(&directory.path().join(member), args);
        let metadata = cargo::metadata(&choice)?;
        cargo::select_one(&metadata, &choice).map(|one| one.bin.to_string())
    };
    assert_eq!(one("one", &[]).unwrap(), "one");
    assert_eq!(one("many", &[]).unwrap(), "put", "default-run");
    assert_eq!(one("many", &["--bin", "get"]).unwrap(), "get");
    let error = one(".", &["--bin", "one", "--bin", "get"]).unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(error::Stop::Usage(_))));
    assert!(
        error
            .to_string()
            .contains("which binary? there are `get`, `one`"),
        "{error}"
    );
}

#[test]
fn no_manifest_is_cargos_own_message() {
    let empty = project(&[]);
    let error = message(
        &cargo::metadata(&choice(empty.path(), &[])).unwrap_err(),
        &empty,
    );
    assert!(
        error.contains("manifest path `[DIR]/Cargo.toml` does not exist"),
        "{error}"
    );
    assert!(!error.starts_with("error"), "{error}");
}

#[test]
fn a_target_comes_from_flags_then_from_cargo_lambdas_table() {
    let wants = |target: Option<&str>| Config {
        target: target.map(str::to_string),
        ..Config::default()
    };
    let (arm, none) = (wants(Some("aarch64-unknown-linux-gnu")), wants(None));
    let target =
        |args: &[&str], configs: &[Config]| cargo::target(&build_args(args).cargo, configs);
    assert_eq!(target(&[], std::slice::from_ref(&none)).unwrap(), None);
    assert_eq!(target(&[], std::slice::from_ref(&arm)).unwrap(), arm.target);
    assert_eq!(
        target(&["--arm64"], std::slice::from_ref(&none)).unwrap(),
        arm.target
    );
    let x86 = Some("x86_64-unknown-linux-gnu".to_string());
    assert_eq!(
        target(&["--x86-64"], &[arm.clone(), none.clone()]).unwrap(),
        x86
    );
    assert!(
        target(&[], &[arm, none])
            .unwrap_err()
            .to_string()
            .contains("different targets")
    );
}

#[test]
fn packages_go_where_cargo_lambda_puts_them() {
    let directory = workspace("");
    let choice = choice(directory.path(), &[]);
    let metadata = cargo::metadata(&choice).unwrap();
    let at = |args: &[&str]| cargo::output_directory(Some(&metadata), &build_args(args), "f");
    assert_eq!(
        at(&[]),
        metadata.target_directory.as_std_path().join("lambda/f")
    );
    assert_eq!(
        at(&["--target-dir", "/t"]),
        std::path::Path::new("/t/lambda/f")
    );
    assert_eq!(at(&["--lambda-dir", "out"]), std::path::Path::new("out/f"));
    assert_eq!(
        at(&["--lambda-dir", "out", "--flatten", "f"]),
        std::path::Path::new("out")
    );
    assert_eq!(
        at(&["--lambda-dir", "out", "--flatten", "g"]),
        std::path::Path::new("out/f")
    );
}

/// A package with a build script, a library and two binaries, one of them behind a feature.
fn buildable(main: &str) -> TempDir {
    let features = "[features]\nextra = []\n[[bin]]\nname = \"f\"\npath = \"src/main.rs\"\n\
                    [[bin]]\nname = \"g\"\npath = \"src/main.rs\"\nrequired-features = [\"extra\"]\n";
    project(&[
        ("Cargo.toml", &manifest("f", features)),
        (
            "build.rs",
            "fn main() {\n    for path in [\"native=/opt/b\", \"/opt/a\", \"native=/opt/b\", \"vendor\"] {\n        \
             println!(\"cargo:rustc-link-search={path}\");\n    }\n}\n",
        ),
        ("src/lib.rs", "pub fn answer() -> u8 {\n    42\n}\n"),
        ("src/main.rs", main),
    ])
}

fn build_in(directory: &TempDir, args: &[&str]) -> anyhow::Result<Vec<cargo::Artifact>> {
    let target_dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("cargo-build");
    let more = [
        "--offline",
        "--quiet",
        "--target-dir",
        target_dir.to_str().unwrap(),
    ];
    let args: BuildArgs = BuildArgs {
        choice: choice(directory.path(), args),
        ..build_args(&[args, &more].concat())
    };
    let metadata = cargo::metadata(&args.choice)?;
    let selected = cargo::select(&metadata, &args.choice)?;
    let target = cargo::target(&args.cargo, &[])?;
    cargo::build(&args, &metadata, &selected, target.as_deref(), &|_| {})
}

#[test]
fn a_build_tells_executables_libraries_and_search_paths() {
    let directory = buildable("fn main() {\n    println!(\"{}\", f::answer());\n}\n");
    let artifacts = build_in(&directory, &[]).unwrap();
    // `g` lacks its feature, as with Cargo.
    let [f] = artifacts.as_slice() else {
        panic!("{artifacts:?}")
    };
    assert_eq!(
        (f.name.as_str(), f.package.as_deref()),
        ("f", Some("f 0.1.0"))
    );
    assert_eq!(f.target, None);
    let vendor = directory.path().canonicalize().unwrap().join("vendor");
    assert_eq!(f.search_paths, ["/opt/b".into(), "/opt/a".into(), vendor]);
    assert!(
        matches!(f.rlibs.as_slice(), [(name, path)] if name == "f 0.1.0" && path.is_file()),
        "{:?}",
        f.rlibs
    );
    let output = std::process::Command::new(&f.executable).output().unwrap();
    assert_eq!(output.stdout, b"42\n");

    let both = build_in(&directory, &["--features", "extra"]).unwrap();
    assert_eq!(
        both.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(),
        ["f", "g"]
    );
}

#[test]
fn a_failed_build_ends_with_cargos_code() {
    let directory = buildable("fn main() {\n    nonsense\n}\n");
    let error = build_in(&directory, &[]).unwrap_err();
    assert!(
        matches!(error.downcast_ref(), Some(Stop::Cargo(101))),
        "{error:#}"
    );
}

#[test]
fn a_glibc_version_wants_zigbuild() {
    let error = build_in(
        &buildable(MAIN),
        &["--target", "x86_64-unknown-linux-gnu.2.34"],
    )
    .unwrap_err();
    assert!(
        error.to_string().contains("--compiler cargo-zigbuild"),
        "{error}"
    );
}

#[test]
fn a_binary_built_elsewhere_is_taken_as_it_is() {
    let directory = project(&[("out/resize", "elf")]);
    let path = directory.path().join("out/resize");
    let artifact = cargo::given(&path, Some("x86_64-unknown-linux-gnu.2.34")).unwrap();
    assert_eq!(
        (artifact.name.as_str(), artifact.executable),
        ("resize", path)
    );
    assert_eq!(artifact.target.as_deref(), Some("x86_64-unknown-linux-gnu"));
    assert!(cargo::given(directory.path(), None).is_err());
}
