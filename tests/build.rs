//! `cargo slimlambda build`: what is in the package, where it goes, and that it starts.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::function::{Function, RUNTIME_API, function, listing, project, shared};
use crate::project::manifest;

/// Answers with the text of the file that the event (a JSON string) names.
const READ: &str = r#"|event: &str| {
        std::fs::read_to_string(event.trim_matches('"'))
            .map(|text| format!("{text:?}"))
            .map_err(|error| error.to_string())
    }"#;

/// A function with a native library of its own, compiled by its build script with `compile` (`cc …`) and linked as `answer`.
fn native(name: &str, config: &str, source: (&str, &str), compile: &str) -> Function {
    let words: Vec<&str> = compile.split_whitespace().collect();
    let build = format!(
        "use std::process::Command;\n\nfn main() {{\n    \
         let out = std::env::var(\"OUT_DIR\").unwrap();\n    \
         let library = format!(\"{{out}}/libanswer.so.1\");\n    \
         let words = {words:?};\n    \
         let status = Command::new(words[0]).args(&words[1..]).args([\"-shared\", \"-fPIC\", {file:?}, \"-o\"]).arg(&library).status();\n    \
         assert!(status.unwrap().success());\n    \
         _ = std::fs::remove_file(format!(\"{{out}}/libanswer.so\"));\n    \
         std::os::unix::fs::symlink(&library, format!(\"{{out}}/libanswer.so\")).unwrap();\n    \
         println!(\"cargo::rerun-if-changed={file}\");\n    \
         println!(\"cargo::rustc-link-search=native={{out}}\");\n    \
         println!(\"cargo::rustc-link-lib=dylib=answer\");\n}}\n",
        file = source.0,
    );
    let main = "mod runtime_api;\n\nunsafe extern \"C\" {\n    safe fn answer(number: i32) -> i32;\n}\n\n\
                fn main() {\n    runtime_api::run(|event: &str| Ok(answer(event.parse().unwrap()).to_string()))\n}\n";
    project(
        name,
        &[
            (
                "Cargo.toml",
                &manifest(name, &format!("{config}\n[workspace]\n")),
            ),
            ("build.rs", &build),
            (source.0, source.1),
            ("src/main.rs", main),
            ("src/runtime_api.rs", RUNTIME_API),
        ],
    )
}

const C: (&str, &str) = (
    "answer.c",
    "int answer(int number) { return number + 1; }\n",
);
const CC: &str = "cc -Wl,-soname,libanswer.so.1";

#[test]
fn what_fits_is_a_plain_bootstrap_with_its_assets_beside_it() {
    let config = "[package.metadata.slimlambda]\nassets = [\n    \
                  { source = \"data\" },\n    { source = \"run.sh\", dest = \"tools/run\", mode = \"0755\" },\n]\n";
    let function = function("plain", config, READ);
    function.write("data/b.txt", "b\n");
    function.write("data/a.txt", "a\n");
    function.write("run.sh", "#!/bin/sh\n");
    let link = function.directory.join("data/link.txt");
    _ = fs::remove_file(&link);
    symlink("a.txt", &link).unwrap();

    function.build(&[]);
    assert_eq!(
        listing(&function.output("bootstrap.zip")),
        [
            "100755 bootstrap",
            "100644 data/a.txt",
            "100644 data/b.txt",
            "120777 data/link.txt -> a.txt",
            "100755 tools/run",
        ]
    );
    assert_eq!(function.report()["launcher"], serde_json::Value::Null);
    let events = [
        "--data",
        "\"data/link.txt\"",
        "--data",
        "\"/var/task/data/b.txt\"",
    ];
    let from_zip = function.invoke(&events);
    assert_eq!(from_zip.stdout, "\"a\\n\"\n\"b\\n\"\n");
    assert!(!from_zip.stderr.contains("Launcher"), "{}", from_zip.stderr);

    // The same as files.
    function.build(&["--output-format", "binary"]);
    assert_eq!(
        function.outputs(),
        [
            "bootstrap",
            "data/a.txt",
            "data/b.txt",
            "data/link.txt",
            "tools/run"
        ]
    );
    let mode = |path: &str| {
        fs::metadata(function.output(path))
            .unwrap()
            .permissions()
            .mode()
    };
    assert_eq!(mode("bootstrap") & 0o777, 0o755);
    assert_eq!(mode("data/a.txt") & 0o777, 0o644);
    assert_eq!(
        fs::read_link(function.output("data/link.txt")).unwrap(),
        Path::new("a.txt")
    );
    assert_eq!(function.invoke(&events).stdout, from_zip.stdout);
}

#[test]
fn outputs_are_those_asked_for_and_none_of_an_earlier_build() {
    let with = |assets: &str| {
        let config = format!("[package.metadata.slimlambda]\nassets = [{assets}]\n[workspace]\n");
        manifest("stale", &config)
    };
    let function = function("stale", "", READ);
    function.write("x", "x\n");
    let built = |assets: &str, args: &[&str]| {
        function.write("Cargo.toml", &with(assets));
        function.build(args);
        function.outputs()
    };
    // A `bootstrap` alone is a package too; one with files beside it is not offered without them.
    assert_eq!(built("", &[]), ["bootstrap", "bootstrap.zip"]);
    fs::write(function.output("mine.txt"), "the user's own").unwrap();
    let two = "{ source = \"x\", dest = \"kept/x\" }, { source = \"x\", dest = \"gone/deep/x\" }";
    assert_eq!(built(two, &[]), ["bootstrap.zip", "mine.txt"]);
    let binary = &["--output-format", "binary"];
    assert_eq!(
        built(two, binary),
        ["bootstrap", "gone/deep/x", "kept/x", "mine.txt"]
    );

    // What was a directory is a file now, and the other way round.
    let file = "{ source = \"x\", dest = \"gone\" }";
    assert_eq!(built(file, binary), ["bootstrap", "gone", "mine.txt"]);
    let deep = "{ source = \"x\", dest = \"gone/deep/x\" }";
    assert_eq!(
        built(deep, binary),
        ["bootstrap", "gone/deep/x", "mine.txt"]
    );
    assert_eq!(
        built("", &["--output-format", "zip"]),
        ["bootstrap.zip", "mine.txt"]
    );
}

#[test]
fn a_link_left_by_an_earlier_build_is_not_written_through() {
    let with = |assets: &str| {
        let config = format!("[package.metadata.slimlambda]\nassets = [{assets}]\n[workspace]\n");
        manifest("links", &config)
    };
    let function = function("links", "", READ);
    function.write("data/real/x", "the first\n");
    function.write("other", "the second\n");
    _ = fs::remove_file(function.directory.join("data/at"));
    symlink("real", function.directory.join("data/at")).unwrap();
    function.write("Cargo.toml", &with("{ source = \"data\" }"));
    function.build(&["--output-format", "binary"]);
    assert_eq!(
        fs::read_link(function.output("data/at")).unwrap(),
        Path::new("real")
    );
    let assets = "{ source = \"data/real\" }, { source = \"other\", dest = \"data/at/x\" }";
    function.write("Cargo.toml", &with(assets));
    function.build(&["--output-format", "binary"]);
    let text = |path: &str| fs::read_to_string(function.output(path)).unwrap();
    assert_eq!(text("data/real/x"), "the first\n");
    assert_eq!(text("data/at/x"), "the second\n");
}

#[test]
fn packages_go_where_they_are_sent() {
    let function = function("sent", "", "|event: &str| Ok(event.to_owned())");
    let out = shared("lambda").join("sent-elsewhere");
    if out.exists() {
        fs::remove_dir_all(&out).unwrap();
    }
    let out = out.to_str().unwrap();
    function.build(&["--lambda-dir", out]);
    assert!(Path::new(out).join("sent/bootstrap.zip").is_file());
    function.build(&["--lambda-dir", out, "--flatten", "sent"]);
    assert!(Path::new(out).join("bootstrap.zip").is_file());
    assert!(
        !Path::new(out).join("sent").exists(),
        "`invoke` would run the older one"
    );
    let ran = function.invoke(&["--lambda-dir", out, "--data", "1"]);
    assert_eq!(ran.stdout, "1\n");
}

#[test]
fn a_bundled_library_travels_with_a_launcher_that_finds_it() {
    let function = native("inline", "", C, CC);
    function.build(&[]);
    assert_eq!(
        listing(&function.output("bootstrap.zip")),
        [
            "100755 bin/inline",
            "100755 bootstrap",
            "100755 lib/libanswer.so.1",
            "100644 slimlambda.archive",
        ]
    );
    assert_eq!(function.placed("lib/libanswer.so.1"), "package fits");
    let ran = function.invoke(&["--data", "41"]);
    assert_eq!(ran.stdout, "42\n");
    assert!(ran.stderr.contains("Launcher"), "{}", ran.stderr);

    // The sandbox shows none of the host's own libraries: without its copy the function does not start.
    let task = tempfile::tempdir().unwrap();
    let binary = shared("target/release/inline");
    fs::copy(binary, task.path().join("bootstrap")).unwrap();
    let alone = task.path().to_str().unwrap();
    let ran = function.try_invoke(&["--lambda-dir", alone, "--data", "41"], "");
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(
        ran.stderr
            .contains("libanswer.so.1: cannot open shared object file"),
        "{}",
        ran.stderr
    );
}

#[test]
fn placement_is_as_configured() {
    let config = "[package.metadata.slimlambda]\nplacement = \"sideload\"\nassets = [\n    \
                  { source = \"answer.c\", dest = \"beside\", placement = \"inline\" },\n    \
                  { source = \"answer.c\", dest = \"packed\" },\n    \
                  { source = \"answer.c\", dest = \"later\", lazy = true },\n]\n";
    let function = native("sideload", config, C, CC);
    function.build(&[]);
    assert_eq!(
        listing(&function.output("bootstrap.zip")),
        [
            "100644 beside",
            "100755 bootstrap",
            "100644 slimlambda.archive"
        ]
    );
    for (path, place) in [
        ("beside", "package configured"),
        ("bin/sideload", "archive configured"),
        ("later", "archive-lazy configured"),
        ("lib/libanswer.so.1", "archive configured"),
        ("packed", "archive configured"),
    ] {
        assert_eq!(function.placed(path), place, "{path}");
    }
    let ran = function.invoke(&["--data", "41", "--data", "42"]);
    assert_eq!(ran.stdout, "42\n43\n");
    assert!(ran.stderr.contains("unpacked"), "{}", ran.stderr);

    // A flag wins over the file.
    function.build(&["--placement", "inline"]);
    assert_eq!(function.placed("packed"), "package configured");
    assert_eq!(function.invoke(&["--data", "1"]).stdout, "2\n");
}

#[test]
fn a_cpp_library_uses_the_runtimes_own() {
    let source = "#include <stdexcept>\n#include <string>\n\
                  extern \"C\" int answer(int number) {\n    \
                  try { throw std::runtime_error(std::to_string(number)); }\n    \
                  catch (const std::exception &error) { return std::stoi(error.what()) * 2; }\n}\n";
    let function = native(
        "cpp",
        "",
        ("answer.cc", source),
        "c++ -Wl,-soname,libanswer.so.1",
    );
    function.build(&[]);
    let listing = listing(&function.output("bootstrap.zip"));
    assert!(
        !listing.iter().any(|line| line.contains("libstdc++")),
        "{listing:?}"
    );
    let provided = function.report()["provided"].to_string();
    assert!(provided.contains("libstdc++.so.6"), "{provided}");
    assert_eq!(function.invoke(&["--data", "21"]).stdout, "42\n");
}

#[test]
fn what_does_not_fit_is_sideloaded_biggest_win_first() {
    let files = tempfile::tempdir().unwrap();
    for (name, mib) in [("small", 100), ("large", 500)] {
        // No zeros: they would take no room in /tmp.
        fs::write(files.path().join(name), vec![b'0'; mib << 20]).unwrap();
    }
    let handler = "|_: &str| {\n        \
         let tree = std::env::var(\"SLIMLAMBDA_TREE\").unwrap();\n        \
         let size = |path: String| std::fs::metadata(path).map(|file| file.len()).unwrap_or_default();\n        \
         Ok(format!(\"[{},{}]\", size(format!(\"{tree}/large\")), size(\"/var/task/small\".to_owned())))\n    }";
    let function = function("large", "", handler);
    let include = |name: &str| format!("{name}:{}", files.path().join(name).display());
    function.build(&[
        "--include",
        &include("small"),
        "--include",
        &include("large"),
        "--level",
        "1",
    ]);
    assert_eq!(function.placed("large"), "archive biggest-win");
    assert_eq!(function.placed("small"), "package fits");
    assert_eq!(function.placed("bin/large"), "package fits");
    let report = function.report();
    let tmp = report["totals"]["tmp"].as_u64().unwrap();
    // The file itself, and a little for the directory that it is in.
    assert!((500 << 20..501 << 20).contains(&tmp), "{tmp}");
    let storage = report["settings"]["ephemeral_storage"].as_u64().unwrap();
    assert!(storage << 20 > tmp, "{storage} MB for {tmp} bytes");

    // The size of /tmp that the report names is what the sandbox has, and enough.
    let ran = function.invoke(&["--memory", "1024"]);
    assert_eq!(ran.stdout, format!("[{},{}]\n", 500 << 20, 100 << 20));
    assert!(ran.stderr.contains("/tmp 500."), "{}", ran.stderr);
    assert!(
        ran.stderr.contains(&format!("of {storage}.0 MiB")),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_failed_build_is_cargos_own() {
    let function = function("broken", "", "|event: &str| Ok(nonsense)");
    let ran = function.try_build(&[]);
    assert_eq!(ran.code, 101);
    assert!(
        ran.stderr.contains("cannot find value `nonsense`"),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr
            .trim_end()
            .lines()
            .last()
            .unwrap()
            .starts_with("error: could not compile `broken`"),
        "{}",
        ran.stderr
    );
    assert_eq!(function.outputs(), [""; 0]);
}

#[test]
fn a_mistaken_name_is_not_passed_over() {
    let function = native("mistaken", "", C, CC);
    let ran = function.try_build(&["--flatten", "mistake"]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("`--flatten mistake` is none of"),
        "{}",
        ran.stderr
    );
    // Where the launcher has the binary in `bin`, no asset can be called so.
    let ran = function.try_build(&["--quiet", "--include", "bin:answer.c"]);
    assert_eq!(ran.code, 101);
    assert!(
        ran.stderr
            .contains("`bin` is a file and a directory of the package (because of `bin/mistaken`)"),
        "{}",
        ran.stderr
    );
    assert!(!function.lambda_dir.exists());
}
