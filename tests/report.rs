//! What a build says: to people on stderr, to programs on stdout.

use std::fs;

use serde_json::Value;
use snapbox::{assert_data_eq, str};

use crate::function::{Function, Ran, function, run, shared, slimlambda};
use crate::schema::faults;

const SCHEMA: &str = include_str!("../cargo-slimlambda/schemas/build-report-v1.schema.json");

/// A function with a binary, and assets in and out of the archive.
fn told(name: &str) -> Function {
    let config = "[package.metadata.slimlambda]\nmemory = 256\ntimeout = 20\nassets = [\n    \
                  { source = \"zeros\", placement = \"sideload\" },\n    \
                  { source = \"zeros\", dest = \"later\", lazy = true, placement = \"sideload\" },\n    \
                  { source = \"src\", dest = \"source\" },\n]\n";
    let function = function(name, config, "|event: &str| Ok(event.to_owned())");
    function.write("zeros", &"0".repeat(3 << 20));
    function
}

/// stderr with what differs from machine to machine taken out.
fn redacted(ran: &Ran) -> String {
    let text = ran.stderr.replace(shared("").to_str().unwrap(), "[TMP]/");
    let ours = text.lines().filter(|line| {
        // Cargo's own.
        !["   Compiling ", "    Finished ", "    Blocking "]
            .iter()
            .any(|verb| line.starts_with(verb))
    });
    ours.map(|line| line.to_owned() + "\n").collect()
}

#[test]
fn people_read_what_went_where_and_what_to_set() {
    let function = told("told");
    // The launcher is built once for the machine, and says so then.
    function.build(&["--quiet"]);
    let ran = function.build(&[]);
    assert_eq!(ran.stdout, "");
    assert_data_eq!(
        redacted(&ran),
        str![[r#"
    Checking told would start on provided.al2023 ([..])
   Stripping told
     Packing told
    Packaged told (provided.al2023, [..]) → [TMP]/lambda/told/told/bootstrap.zip

  file                        built    stripped  in archive  placed
  later                     3.0 MiB     3.0 MiB       [..] B  archive, on first use, configured
  zeros                     3.0 MiB     3.0 MiB         0 B  archive, configured
  bin/told                [..] KiB   [..] KiB              package
  source/runtime_api.rs     1.8 KiB     1.8 KiB              package
  source/main.rs               89 B        89 B              package
  bootstrap                           [..] KiB              package (launcher)
  total                     6.5 MiB     6.7 MiB       [..] B

  zipped      [..] KiB of  50.0 MiB for direct upload ([..] %)
  unzipped    [..] KiB of 250.0 MiB ([..] %)
  /tmp          6.0 MiB of 512.0 MiB with the setting below (1.2 %)
  set        EphemeralStorage 512 MB, Lambda's default · MemorySize 256 MB · Timeout 20 s
  cold start about [..] ms to unpack 3.0 MiB at 256 MB (0.14 vCPU); [..] at 1769 MB, or if Init is lent a vCPU
note: everything would fit uncompressed, and each cold start be [..] ms shorter: `placement = "auto"`

"#]]
    );
}

/// The line about the cold start.
fn cold_start(ran: &Ran) -> &str {
    let mut lines = ran.stderr.lines().map(str::trim);
    lines
        .find(|line| line.starts_with("cold start"))
        .expect("every package has one")
}

#[test]
fn a_start_with_nothing_to_unpack_says_why() {
    let function = function("unpacked", "", "|event: &str| Ok(event.to_owned())");
    let ran = function.build(&[]);
    assert_eq!(
        cold_start(&ran),
        "cold start fits unpacked: nothing to unpack at start"
    );
    assert_eq!(function.report()["estimate"]["cpu_us"], 0);

    function.write("model", &"0".repeat(1 << 20));
    let lazy = "[package.metadata.slimlambda]\nassets = [{ source = \"model\", lazy = true, placement = \"sideload\" }]\n";
    let manifest = fs::read_to_string(function.directory.join("Cargo.toml")).unwrap();
    function.write("Cargo.toml", &(manifest + lazy));
    let ran = function.build(&[]);
    assert_eq!(
        cold_start(&ran),
        "cold start nothing to unpack before the first use"
    );
}

#[test]
fn quiet_says_nothing() {
    let function = told("quiet");
    function.build(&[]);
    let ran = function.build(&["--quiet"]);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""));
}

#[test]
fn a_log_has_no_progress_and_no_colour_but_where_asked_for() {
    let function = told("log");
    for (args, color) in [(&[][..], false), (&["--color", "always"], true)] {
        let mut command = slimlambda(&function.directory, "build");
        command
            .args(["--offline", "--target-dir"])
            .arg(shared("target"))
            .arg("--lambda-dir")
            .arg(&function.lambda_dir)
            .args(args)
            .env("CI", "true");
        let ran = run(command, "");
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(!ran.stderr.contains('\r'), "{}", ran.stderr);
        assert_eq!(ran.stderr.contains("\u{1b}["), color, "{}", ran.stderr);
    }
}

#[test]
fn programs_read_json_as_its_schema_says() {
    let function = told("json");
    let ran = function.build(&["--message-format", "json"]);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(faults(SCHEMA, &document), [""; 0]);

    // And it is true.
    let report = &document["functions"][0];
    let size = |path: &str| fs::metadata(function.output(path)).unwrap().len();
    assert_eq!(report["totals"]["zipped"], size("bootstrap.zip"));
    assert_eq!(report["archive"]["unpacked_size"], 6 << 20);
    assert_eq!(report["settings"]["memory"], 256);
    for output in report["outputs"].as_array().unwrap() {
        let path = output["path"].as_str().unwrap();
        assert_eq!(output["size"], fs::metadata(path).unwrap().len(), "{path}");
    }
    assert_eq!(*report, function.report(), "the one that is kept");
    // What is lazy is not unpacked at start.
    let estimate = &report["estimate"];
    assert_eq!(estimate["unpacked_size"], 3 << 20);
    let memory: Vec<&Value> = estimate["at"]
        .as_array()
        .unwrap()
        .iter()
        .map(|at| &at["memory"])
        .collect();
    assert_eq!(memory, [256, 1769]);

    function.build(&["--output-format", "binary"]);
    let files = function.outputs();
    let unzipped: u64 = files.iter().map(|path| size(path)).sum();
    assert_eq!(report["totals"]["unzipped"], unzipped);
    assert_eq!(report["launcher"]["size"], size("bootstrap"));
    assert_eq!(report["archive"]["size"], size("slimlambda.archive"));
}

#[test]
fn programs_read_why_there_is_no_package() {
    let config = "[package.metadata.slimlambda]\nassets = [{ source = \"gone.bin\" }]\n";
    let function = function("json-refused", config, "|event: &str| Ok(event.to_owned())");
    let ran = function.try_build(&["--message-format", "json"]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(faults(SCHEMA, &document), [""; 0]);
    assert_eq!(document["error"]["exit_code"], 2);
    let message = document["error"]["message"].as_str().unwrap();
    assert!(message.contains("gone.bin"), "{message}");
    assert!(ran.stderr.contains(message), "{}", ran.stderr);
}

#[test]
fn several_functions_are_one_document() {
    let function = function("several", "", "|event: &str| Ok(event.to_owned())");
    let main = fs::read_to_string(function.directory.join("src/main.rs")).unwrap();
    function.write(
        "src/bin/second.rs",
        &main.replace(
            "mod runtime_api;",
            "#[path = \"../runtime_api.rs\"]\nmod runtime_api;",
        ),
    );
    let ran = function.build(&["--message-format", "json"]);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(faults(SCHEMA, &document), [""; 0]);
    let mut names: Vec<&str> = document["functions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|report| report["function"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["second", "several"]);
    assert!(function.lambda_dir.join("second/bootstrap.zip").is_file());
    assert!(function.lambda_dir.join("several/bootstrap.zip").is_file());
}
