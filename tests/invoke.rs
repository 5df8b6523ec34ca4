//! `cargo slimlambda invoke`: events in, answers and phases out, and how it ends.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use serde_json::{Value, json};
use snapbox::{assert_data_eq, str};

use crate::function::{Function, function, project, run, slimlambda};
use crate::project::manifest;
use crate::schema::faults;

const SCHEMA: &str = include_str!("../cargo-slimlambda/schemas/invoke-report-v1.schema.json");

/// Does what the event (a JSON string) says; counts its events, so that a warm environment is seen.
static ACTOR: LazyLock<Function> = LazyLock::new(|| {
    let handler = r#"{
        let mut count = 0;
        move |event: &str| {
            count += 1;
            match event.trim_matches('"').split_once(' ').unwrap_or((event.trim_matches('"'), "")) {
                ("count", _) => Ok(count.to_string()),
                ("env", name) => Ok(format!("{:?}", std::env::var(name).unwrap_or_default())),
                ("write", path) => std::fs::write(path, "kept").map(|()| "true".to_owned()).map_err(|error| error.to_string()),
                ("fail", why) => Err(why.to_owned()),
                ("text", text) => Ok(text.to_owned()),
                ("sleep", _) => loop { std::thread::park() },
                ("fallocate", _) => {
                    let file = std::fs::File::create("/tmp/file").map_err(|error| error.to_string())?;
                    Ok(posix_fallocate(std::os::fd::AsRawFd::as_raw_fd(&file), 0, 4096).to_string())
                }
                ("death-signal", _) => match prctl(1, 15, 0, 0, 0) {
                    0 => Ok("0".to_owned()),
                    _ => Err(std::io::Error::last_os_error().to_string()),
                },
                _ => Ok(event.to_owned()),
            }
        }
    }"#;
    let function = function("actor", "", handler);
    // PR_SET_PDEATHSIG is 1, SIGTERM 15.
    let main = fs::read_to_string(function.directory.join("src/main.rs")).unwrap();
    let calls = "unsafe extern \"C\" {\n    safe fn posix_fallocate(fd: i32, offset: i64, length: i64) -> i32;\n    \
                 safe fn prctl(option: i32, a: u64, b: u64, c: u64, d: u64) -> i32;\n}\n";
    if !main.contains(calls) {
        function.write("src/main.rs", &format!("{main}\n{calls}"));
    }
    function.build(&[]);
    function
});

#[test]
fn events_go_to_one_environment_in_order() {
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("event.json");
    fs::write(&file, "\"count\"").unwrap();
    let file = file.to_str().unwrap();
    let args = [
        "actor",
        "--event",
        file,
        "--event",
        "-",
        "--data",
        "\"count\"",
        "--event",
        file,
    ];
    let ran = ACTOR.try_invoke(&args, "{\"from\": \"stdin\"}\n");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.stdout, "1\n{\"from\": \"stdin\"}\n\n3\n4\n");
    let phases: Vec<&str> = ran
        .stderr
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(
        phases,
        ["Init", "Invoke", "Invoke", "Invoke", "Invoke", "Report"]
    );
    assert_eq!(ran.stderr.matches("cold").count(), 1, "{}", ran.stderr);
    // Without an event there is an empty one.
    assert_eq!(ACTOR.invoke(&[]).stdout, "{}\n");
    assert_eq!(ACTOR.invoke(&["--quiet"]).stderr, "");
}

#[test]
fn what_is_no_event_is_refused_before_anything_runs() {
    let ran = ACTOR.try_invoke(&["--data", "1", "--data", "{name: 1}"], "");
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
    assert_data_eq!(
        ran.stderr,
        str![[r#"
error: event 2 is not JSON: key must be a string at line 1 column 2
help: text goes in quotes, as in `--data '"text"'`

"#]]
    );
    let ran = ACTOR.try_invoke(&["--event", "no-such.json"], "");
    assert_eq!(ran.code, 101);
    assert!(
        ran.stderr
            .starts_with("error: failed to read event `no-such.json`"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_functions_error_is_its_answer() {
    let ran = ACTOR.try_invoke(&["--data", "\"fail no reason\"", "--data", "\"count\""], "");
    assert_eq!(ran.code, 1);
    assert_eq!(
        ran.stdout,
        "{\"errorType\":\"Function.Refused\",\"errorMessage\":\"no reason\"}\n2\n"
    );
    assert!(
        ran.stderr.contains("cold, Function.Refused"),
        "{}",
        ran.stderr
    );
}

#[test]
fn programs_read_json_as_its_schema_says() {
    let data = ["1", "\"text no JSON\"", "\"fail why\"", "\"fallocate\""];
    let data: Vec<&str> = data.iter().flat_map(|event| ["--data", event]).collect();
    let ran = ACTOR.try_invoke(
        &[&["--keep", "--message-format", "json"], &data[..]].concat(),
        "",
    );
    assert_eq!(ran.code, 1);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(faults(SCHEMA, &document), [""; 0]);
    let payloads: Vec<&Value> = document["answers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|answer| &answer["payload"])
        .collect();
    let failed = json!({ "errorType": "Function.Refused", "errorMessage": "why" });
    assert_eq!(payloads, [&json!(1), &json!("no JSON"), &failed, &json!(1)]);
    assert_eq!(document["answers"][2]["error"], "Function.Refused");
    assert_eq!(document["report"]["refused"][0]["name"], "fallocate");
    assert_eq!(document["report"]["invokes"].as_array().unwrap().len(), 4);
    let task = document["report"]["kept"]["task"].as_str().unwrap();
    fs::remove_dir_all(Path::new(task).parent().unwrap()).unwrap();
}

#[test]
fn calls_that_lambda_refuses_fail_and_are_named() {
    let ran = ACTOR.try_invoke(
        &["--data", "\"fallocate\"", "--data", "\"death-signal\""],
        "",
    );
    // posix_fallocate answers EPERM itself, which is 1.
    let (first, second) = ran.stdout.split_once('\n').unwrap();
    assert_eq!(first, "1");
    assert!(
        second.contains("Operation not permitted (os error 1)"),
        "{second}"
    );
    for call in [
        "`fallocate` of `bootstrap`",
        "`prctl` (PR_SET_PDEATHSIG) of `bootstrap`",
    ] {
        let line = ran.stderr.lines().find(|line| line.contains(call));
        let line = line.unwrap_or_else(|| panic!("no {call} in {}", ran.stderr));
        assert!(line.contains("Refused"), "{line}");
    }
}

#[test]
fn variables_are_the_functions() {
    let args = [
        "--env",
        "GREETING=hello=there",
        "--env",
        "EMPTY=",
        "--data",
        "\"env GREETING\"",
        "--data",
        "\"env EMPTY\"",
    ];
    assert_eq!(ACTOR.invoke(&args).stdout, "\"hello=there\"\n\"\"\n");
    let ran = ACTOR.try_invoke(&["--env", "AWS_REGION=mars"], "");
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("AWS_REGION"), "{}", ran.stderr);
}

#[test]
fn what_is_kept_can_be_looked_at() {
    let ran = ACTOR.invoke(&["--keep", "--data", "\"write /tmp/result.txt\""]);
    let line = ran
        .stderr
        .lines()
        .find(|line| line.trim_start().starts_with("Kept"))
        .unwrap();
    let paths: Vec<&Path> = line.split('`').skip(1).step_by(2).map(Path::new).collect();
    let [task, tmp] = paths[..] else {
        panic!("{line}")
    };
    assert!(task.join("bootstrap").is_file());
    assert_eq!(fs::read_to_string(tmp.join("result.txt")).unwrap(), "kept");
    fs::remove_dir_all(task.parent().unwrap()).unwrap();
}

#[test]
fn memory_tmp_and_timeout_come_from_the_configuration_and_flags_win() {
    let config =
        "[package.metadata.slimlambda]\nmemory = 300\nephemeral-storage = 600\ntimeout = 1\n";
    let function = function(
        "settings",
        config,
        r#"|event: &str| match event {
        "\"sleep\"" => loop { std::thread::park() },
        _ => Ok(std::env::var("AWS_LAMBDA_FUNCTION_MEMORY_SIZE").unwrap()),
    }"#,
    );
    function.build(&[]);
    let ran = function.invoke(&[]);
    assert_eq!(ran.stdout, "300\n");
    assert!(ran.stderr.contains("of 600.0 MiB"), "{}", ran.stderr);
    let ran = function.invoke(&["--memory", "200", "--ephemeral-storage", "700"]);
    assert_eq!(ran.stdout, "200\n");
    assert!(ran.stderr.contains("of 700.0 MiB"), "{}", ran.stderr);
    let ran = function.try_invoke(&["--data", "\"sleep\""], "");
    assert_eq!(ran.code, 1);
    assert!(
        ran.stdout.contains("Task timed out after 1.00 seconds"),
        "{}",
        ran.stdout
    );
}

#[test]
fn without_a_package_the_way_to_one_is_said() {
    let function = function("unbuilt", "", "|event: &str| Ok(event.to_owned())");
    let ran = function.try_invoke(&[], "");
    assert_eq!(ran.code, 101);
    assert_data_eq!(
        ran.stderr,
        str![[r#"
error: no package of `unbuilt` in `[..]/lambda/unbuilt/unbuilt`
help: `cargo slimlambda build` makes it

"#]]
    );
    let nowhere = tempfile::tempdir().unwrap();
    let ran = run(slimlambda(nowhere.path(), "invoke"), "");
    assert_eq!(ran.code, 101);
    assert!(
        ran.stderr.contains("help: `--zip FILE` runs a package"),
        "{}",
        ran.stderr
    );
    let ran = function.try_invoke(&["--zip", "no-such.zip"], "");
    assert_eq!(ran.code, 101);
    assert!(ran.stderr.contains("`no-such.zip`"), "{}", ran.stderr);
    function.write("half.zip", "PK");
    let ran = function.try_invoke(&["--zip", "half.zip"], "");
    assert_eq!(ran.code, 101);
    assert!(ran.stderr.contains("`half.zip`"), "{}", ran.stderr);
}

#[test]
fn a_program_that_is_no_function_is_told_what_one_does() {
    let main = "fn main() {\n    println!(\"Hello, world!\");\n}\n";
    let function = project(
        "no-function",
        &[
            ("Cargo.toml", &manifest("no-function", "[workspace]\n")),
            ("src/main.rs", main),
        ],
    );
    function.build(&[]);
    let ran = function.try_invoke(&[], "");
    assert_eq!(ran.code, 1);
    assert!(ran.stdout.contains("Runtime.ExitError"), "{}", ran.stdout);
    assert!(
        ran.stderr.contains("as `lambda_runtime::run` does"),
        "{}",
        ran.stderr
    );
    // A function is not told.
    let ran = ACTOR.try_invoke(&["--data", "\"fail why\""], "");
    assert!(!ran.stderr.contains("lambda_runtime"), "{}", ran.stderr);
}
