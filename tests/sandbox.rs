//! The sandbox runs a package as Lambda does: real processes, real limits, Lambda's words.

use cargo_slimlambda::error::Stop;
use cargo_slimlambda::event::Event;
use cargo_slimlambda::sandbox::report::{InitOutcome, RunReport};
use cargo_slimlambda::sandbox::{Answer, Exit, Isolation, Options, run};
use nix::unistd::getuid;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

/// Set when the tests run again without root: where the program is.
const EXECUTABLE: &str = "SLIMLAMBDA_TEST_EXECUTABLE";

/// The function, compiled once.
pub static FUNCTION: LazyLock<(TempDir, Vec<u8>)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("sandbox.c");
    fs::write(&source, include_str!("sandbox.c")).unwrap();
    let bytes = compile(&source, &dir.path().join("function"), &["-pthread"]);
    (dir, bytes)
});

fn compile(source: &Path, output: &Path, arguments: &[&str]) -> Vec<u8> {
    let mut cc = Command::new("cc");
    let status = cc
        .arg(source)
        .args(arguments)
        .arg("-o")
        .arg(output)
        .status()
        .unwrap();
    assert!(status.success());
    fs::read(output).unwrap()
}

pub fn options(handler: &str) -> Options {
    let executable = std::env::var_os(EXECUTABLE)
        .unwrap_or_else(|| env!("CARGO_BIN_EXE_cargo-slimlambda").into());
    Options {
        handler: handler.to_owned(),
        executable: executable.into(),
        timeout: Duration::from_secs(60),
        ..Options::default()
    }
}

pub struct Outcome {
    pub answers: Vec<Answer>,
    pub report: RunReport,
    output: String,
    said: String,
}

impl Outcome {
    fn text(&self, index: usize) -> &str {
        std::str::from_utf8(&self.answers[index].payload).unwrap()
    }

    /// The `key=value` lines of an answer.
    fn facts(&self) -> BTreeMap<&str, &str> {
        self.text(0)
            .lines()
            .filter_map(|line| line.rsplit_once('='))
            .collect()
    }
}

/// Path, content and mode of a file in a zip.
pub type Entry<'a> = (&'a str, &'a [u8], u32);

fn zip_of(at: &Path, files: &[Entry<'_>]) -> PathBuf {
    let mut writer = zip::ZipWriter::new(File::create(at).unwrap());
    for (name, bytes, mode) in files {
        let options = SimpleFileOptions::default().unix_permissions(*mode);
        writer.start_file(*name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap();
    at.to_owned()
}

fn try_run(options: &Options, events: &[&str]) -> anyhow::Result<Outcome> {
    let events: Vec<Vec<u8>> = events
        .iter()
        .map(|event| event.as_bytes().to_vec())
        .collect();
    let mut answers = Vec::new();
    let mut output = Vec::new();
    let said = Mutex::new(String::new());
    let report = run(
        options,
        &events,
        &mut |index, answer| {
            assert_eq!(index, answers.len());
            answers.push(answer.clone());
        },
        &mut output,
        &|event| {
            if let Event::Warning(text) | Event::Note(text) = event {
                said.lock().unwrap().push_str(&format!("{text}\n"));
            }
        },
    )?;
    let output = String::from_utf8(output).unwrap();
    Ok(Outcome {
        answers,
        report,
        output,
        said: said.into_inner().unwrap(),
    })
}

/// Runs a package with these files.
pub fn run_files(mut options: Options, files: &[Entry<'_>], events: &[&str]) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    options.package = zip_of(&dir.path().join("bootstrap.zip"), files);
    try_run(&options, events).unwrap()
}

/// Runs the test function.
fn run_function(options: Options, events: &[&str]) -> Outcome {
    run_files(options, &[("bootstrap", &FUNCTION.1, 0o755)], events)
}

const EPERM: &str = "1";
const ENOENT: &str = "2";
const EACCES: &str = "13";
const EROFS: &str = "30";

#[test]
fn events_are_answered_and_only_the_first_is_cold() {
    let outcome = run_function(options("echo"), &["{\"a\":1}", "\"second\"", ""]);
    assert_eq!(outcome.text(0), "{\"a\":1}");
    assert_eq!(outcome.text(1), "\"second\"");
    let cold: Vec<bool> = outcome.answers.iter().map(|answer| answer.cold).collect();
    assert_eq!(cold, [true, false, false]);
    assert_eq!(outcome.report.inits.len(), 1);
    assert_eq!(outcome.report.inits[0].outcome, InitOutcome::Ready);
    assert_eq!(outcome.report.exits, []);
    assert!(outcome.report.peak_memory < 64 << 20);
}

#[test]
fn output_is_passed_on_without_the_launchers_line() {
    let outcome = run_function(options("echo"), &["1"]);
    assert_eq!(outcome.output, "out\nerr\n");
    assert_eq!(outcome.report.launcher.len(), 1);
    assert_eq!(outcome.report.launcher[0].unpacked_bytes, 42);
}

#[test]
fn the_environment_is_the_documented_one() {
    let mut options = options("env");
    options.environment = vec![("OWN".to_owned(), "value".to_owned())];
    let outcome = run_function(options, &["1"]);
    let mut names: Vec<&str> = outcome
        .text(0)
        .lines()
        .map(|line| line.split('=').next().unwrap())
        .collect();
    names.retain(|name| {
        // These are the caller's own, where it has them.
        ![
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
        ]
        .contains(name)
            && !name.starts_with("AWS_ENDPOINT_URL")
    });
    names.sort_unstable();
    let expected = [
        "AWS_DEFAULT_REGION",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
        "AWS_LAMBDA_FUNCTION_NAME",
        "AWS_LAMBDA_FUNCTION_VERSION",
        "AWS_LAMBDA_INITIALIZATION_TYPE",
        "AWS_LAMBDA_LOG_GROUP_NAME",
        "AWS_LAMBDA_LOG_STREAM_NAME",
        "AWS_LAMBDA_RUNTIME_API",
        "AWS_REGION",
        "AWS_XRAY_CONTEXT_MISSING",
        "AWS_XRAY_DAEMON_ADDRESS",
        "LAMBDA_RUNTIME_DIR",
        "LAMBDA_TASK_ROOT",
        "LANG",
        "LD_LIBRARY_PATH",
        "OWN",
        "PATH",
        "SLIMLAMBDA_TRACE",
        "TZ",
        "_HANDLER",
    ];
    assert_eq!(names, expected);
    let line = "LD_LIBRARY_PATH=/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:\
                /var/task/lib:/opt/lib\n";
    assert!(outcome.text(0).contains(line));
}

#[test]
fn a_variable_of_the_caller_that_is_not_utf8_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let package = zip_of(
        &dir.path().join("env.zip"),
        &[("bootstrap", &FUNCTION.1, 0o755)],
    );
    let odd = |text: &'static [u8]| std::ffi::OsStr::from_bytes(text);
    let output = Command::new(options("env").executable)
        .args(["slimlambda", "invoke", "--zip"])
        .arg(package)
        .env(odd(b"ODD_\xff"), odd(b"\xff"))
        .env("AWS_ENDPOINT_URL", odd(b"\xff"))
        .env("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
        .output()
        .unwrap();
    let answer = String::from_utf8(output.stdout).unwrap();
    assert!(
        answer.contains("AWS_ENDPOINT_URL_S3=http://127.0.0.1:1\n"),
        "{answer}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!answer.contains("ODD_") && !answer.contains("AWS_ENDPOINT_URL="));
}

#[test]
fn the_process_has_lambdas_user_files_and_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options("look");
    options.layers = vec![zip_of(
        &dir.path().join("layer.zip"),
        &[("layer", b"x", 0o644)],
    )];
    let files: &[Entry<'_>] = &[("bootstrap", &FUNCTION.1, 0o755), ("private", b"x", 0o600)];
    let outcome = run_files(options, files, &["1"]);
    let text = outcome.text(0);
    assert!(text.starts_with("uid=993 gid=990"), "{text}");
    assert!(
        text.lines().next().unwrap().ends_with("cwd=/var/task"),
        "{text}"
    );
    let facts = outcome.facts();
    for place in ["/x", "/var/task/x", "/opt/x", "/etc/x", "/dev/x"] {
        let error = facts[format!("write {place}").as_str()];
        assert!([EROFS, EACCES].contains(&error), "{place}: {error}");
    }
    assert_eq!(facts["write /dev/shm/x"], ENOENT);
    assert_eq!(facts["write /tmp/x"], "0");
    for hidden in ["/etc/shadow", "/home", "/root", "/usr/share", "/sys"] {
        assert_eq!(facts[format!("see {hidden}").as_str()], ENOENT, "{hidden}");
    }
    for shown in ["/bin/sh", "/opt/layer"] {
        assert_eq!(facts[format!("see {shown}").as_str()], "0", "{shown}");
    }
    assert!(
        text.contains("CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n"),
        "{text}"
    );
    assert_eq!(facts["read private"], EACCES, "the file is root's");
    assert_eq!(facts["first descriptor"], "3");
    assert!(text.contains("descriptors=1024 errno=24\n"), "{text}");
    assert_eq!(facts["thread"], "0");
    let host = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    let host = (0..nix::sched::CpuSet::count()).filter(|core| host.is_set(*core).unwrap());
    assert_eq!(facts["cores"], host.count().min(2).to_string(), "128 MiB");
}

#[test]
fn refused_system_calls_fail_and_are_named() {
    let outcome = run_function(options("refused"), &["1"]);
    let facts = outcome.facts();
    for call in ["posix_fallocate", "pdeathsig", "name", "nnp", "unshare"] {
        assert_eq!(facts[call], EPERM, "{call}");
    }
    assert_eq!((facts["shm_open"], facts["sem_open"]), ("1", "1"));
    let rows: Vec<(&str, &str, u64)> = outcome
        .report
        .refused
        .iter()
        .map(|row| (row.name.as_str(), row.detail.as_str(), row.count))
        .collect();
    let expected = [
        ("fallocate", "", 1),
        ("prctl", "PR_SET_NAME", 2),
        ("prctl", "PR_SET_NO_NEW_PRIVS", 1),
        ("prctl", "PR_SET_PDEATHSIG", 1),
        ("unshare", "", 1),
    ];
    assert_eq!(rows, expected);
    assert!(
        outcome
            .report
            .refused
            .iter()
            .all(|row| row.process == "bootstrap")
    );
}

#[test]
fn tmp_has_the_configured_size() {
    let outcome = run_function(options("fill"), &["1"]);
    assert_eq!(outcome.text(0), "errno=28 mib=512\n"); // ENOSPC
    assert_eq!(outcome.report.tmp_used, Some(512 << 20));
    assert_eq!(
        outcome.answers[0].error, None,
        "files in /tmp do not count as memory"
    );
}

#[test]
fn a_function_over_its_memory_is_killed() {
    let outcome = run_function(options("memory"), &["16", "4096", "16"]);
    assert_eq!(outcome.answers[0].error, None);
    assert_eq!(
        outcome.answers[1].error.as_deref(),
        Some("Runtime.OutOfMemory")
    );
    assert!(
        outcome
            .text(1)
            .contains("Runtime exited with error: signal: killed")
    );
    assert!(outcome.report.peak_memory > 128 << 20);
    assert_eq!(outcome.answers[2].error, None);
    assert!(outcome.answers[2].cold);
}

#[test]
fn a_functions_errors_reach_the_caller() {
    let outcome = run_function(options("error"), &["1", "2"]);
    assert_eq!(outcome.answers[0].error.as_deref(), Some("Own.Error"));
    assert_eq!(
        outcome.text(1),
        "{\"errorType\":\"Own.Error\",\"errorMessage\":\"bad\"}"
    );
    assert!(
        !outcome.answers[1].cold,
        "an error does not end the process"
    );
    let outcome = run_function(options("big"), &["1"]);
    assert_eq!(
        outcome.answers[0].error.as_deref(),
        Some("Function.ResponseSizeTooLarge")
    );
    let outcome = run_function(options("wrong-id"), &["1"]);
    assert_eq!(outcome.text(0), "400");
}

#[test]
fn an_exit_during_init_is_tried_once_more_then_an_error() {
    let outcome = run_function(options("exit-init"), &["1"]);
    assert_eq!(
        outcome.answers[0].error.as_deref(),
        Some("Runtime.ExitError")
    );
    assert!(
        outcome
            .text(0)
            .contains("Runtime exited with error: exit status 3")
    );
    assert_eq!(outcome.report.exits, [Exit::Status(3), Exit::Status(3)]);
    let during: Vec<bool> = outcome
        .report
        .inits
        .iter()
        .map(|init| init.during_invoke)
        .collect();
    assert_eq!(during, [false, true]);
    assert!(outcome.said.contains("init runs again"));

    let outcome = run_function(options("exit-first-init"), &["\"x\""]);
    assert_eq!(
        outcome.text(0),
        "\"x\"",
        "the second init finds what the first left in /tmp"
    );
    let outcome = run_function(options("init-error"), &["1"]);
    assert_eq!(outcome.answers[0].error.as_deref(), Some("Own.Init"));
}

#[test]
fn an_init_of_more_than_ten_seconds_runs_again_with_tmp_kept() {
    let outcome = run_function(options("slow-first-init"), &["\"x\""]);
    assert_eq!(outcome.text(0), "\"x\"");
    let outcomes: Vec<InitOutcome> = outcome
        .report
        .inits
        .iter()
        .map(|init| init.outcome)
        .collect();
    assert_eq!(outcomes, [InitOutcome::TimedOut, InitOutcome::Ready]);
    assert!(outcome.said.contains("took more than 10 s"));
}

#[test]
fn a_timeout_or_a_crash_resets_the_process_and_keeps_tmp() {
    let mut options = options("echo");
    options.timeout = Duration::from_secs(2);
    let outcome = run_function(options, &["hang", "hung?", "crash", "hung?"]);
    assert_eq!(
        outcome.answers[0].error.as_deref(),
        Some("Sandbox.Timedout")
    );
    assert!(
        outcome
            .text(0)
            .contains("Task timed out after 2.00 seconds")
    );
    assert_eq!(outcome.text(1), "0");
    assert_eq!(
        outcome.answers[2].error.as_deref(),
        Some("Runtime.ExitError")
    );
    assert!(
        outcome
            .text(2)
            .contains("Runtime exited with error: signal: aborted")
    );
    assert_eq!(outcome.text(3), "0");
    assert_eq!(outcome.report.exits, [Exit::Signal(6)]);
}

#[test]
fn a_bootstrap_that_cannot_start_is_named_as_lambda_does() {
    let (function, script) = (FUNCTION.1.as_slice(), b"#!/bin/nothing\n".as_slice());
    let mut foreign = function.to_vec();
    foreign[18] = 21; // EM_PPC64
    let cases: [(&[Entry<'_>], &str); 4] = [
        (
            &[("other", function, 0o755)],
            "Couldn't find valid bootstrap(s): [/var/task/bootstrap /opt/bootstrap]",
        ),
        (
            &[("bootstrap", function, 0o644)],
            "fork/exec /var/task/bootstrap: permission denied",
        ),
        (
            &[("bootstrap", script, 0o755)],
            "fork/exec /var/task/bootstrap: no such file or directory",
        ),
        (
            &[("bootstrap", &foreign, 0o755)],
            "fork/exec /var/task/bootstrap: exec format error",
        ),
    ];
    for (files, message) in cases {
        let outcome = run_files(options("echo"), files, &["1"]);
        assert_eq!(
            outcome.answers[0].error.as_deref(),
            Some("Runtime.InvalidEntrypoint")
        );
        assert!(outcome.text(0).contains(message), "{}", outcome.text(0));
        assert_eq!(
            outcome.report.exits,
            [],
            "no process of the function has run"
        );
    }
}

#[test]
fn a_script_in_a_layer_can_be_the_bootstrap() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options("echo");
    let script = b"#!/bin/sh\nexec /var/task/function\n";
    options.layers = vec![zip_of(
        &dir.path().join("1.zip"),
        &[("bootstrap", script, 0o755)],
    )];
    let outcome = run_files(options, &[("function", &FUNCTION.1, 0o755)], &["7"]);
    assert_eq!(outcome.text(0), "7");
}

#[test]
fn a_library_of_the_host_that_the_runtime_lacks_is_invisible() {
    let mut poor = options("echo");
    let mut rows = poor.runtime.rows.to_vec();
    rows.retain(|row| row.soname != "libm.so.6");
    poor.runtime.rows = rows.leak();
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("needy.c");
    fs::write(&source, include_str!("sandbox.c")).unwrap();
    let needy = compile(
        &source,
        &dir.path().join("needy"),
        &["-Wl,--no-as-needed", "-lm"],
    );
    let files: &[Entry<'_>] = &[("bootstrap", &needy, 0o755)];
    assert_eq!(run_files(options("echo"), files, &["1"]).text(0), "1");
    let outcome = run_files(poor, files, &["1"]);
    assert_eq!(
        outcome.answers[0].error.as_deref(),
        Some("Runtime.ExitError")
    );
    assert!(
        outcome
            .output
            .contains("libm.so.6: cannot open shared object file")
    );
}

#[test]
fn another_systems_root_can_be_shown() {
    let tree = tempfile::tempdir().unwrap();
    fs::set_permissions(tree.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(tree.path().join("usr/share")).unwrap();
    fs::create_dir(tree.path().join("lib64")).unwrap();
    for soname in ["libc.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"] {
        let directories = [
            "/lib64",
            "/lib",
            "/lib/x86_64-linux-gnu",
            "/lib/aarch64-linux-gnu",
        ];
        let host = directories.map(|directory| Path::new(directory).join(soname));
        if let Some(host) = host.iter().find(|path| path.is_file()) {
            fs::copy(host, tree.path().join("lib64").join(soname)).unwrap();
        }
    }
    std::os::unix::fs::symlink("lib64", tree.path().join("lib")).unwrap();
    let mut options = options("look");
    options.rootfs = Some(tree.path().to_owned());
    let outcome = run_function(options, &["1"]);
    let facts = outcome.facts();
    assert_eq!(facts["see /usr/share"], "0", "{}", outcome.text(0));
    assert_eq!(facts["see /bin/sh"], ENOENT);
    assert_eq!(facts["write /tmp/x"], "0");
    assert!(
        !tree.path().join("var").exists(),
        "the tree itself is not written to"
    );
}

#[test]
fn kept_files_are_on_the_host() {
    let mut options = options("fill");
    options.keep = true;
    let outcome = run_function(options, &["1"]);
    let kept = outcome.report.kept.unwrap();
    assert_eq!(fs::read(kept.task.join("bootstrap")).unwrap(), FUNCTION.1);
    assert_eq!(
        fs::metadata(kept.tmp.unwrap().join("full")).unwrap().len(),
        512 << 20
    );
    fs::remove_dir_all(kept.task.parent().unwrap()).unwrap();
}

#[test]
fn a_plain_process_says_what_is_not_enforced() {
    let mut plain = options("refused");
    plain.isolation = Some(Isolation::Plain);
    let outcome = run_function(plain.clone(), &["1"]);
    assert_eq!(
        outcome.facts()["pdeathsig"],
        EPERM,
        "system calls are refused all the same"
    );
    let list = outcome.report.not_enforced.join("\n");
    for what in ["file system", "/var/task and /opt", "/tmp", "/dev/shm"] {
        assert!(list.contains(what), "{what} in {list}");
        assert!(
            outcome.said.contains(what),
            "without being asked: {}",
            outcome.said
        );
    }
    assert_eq!(outcome.report.tmp_used, None);
    plain.handler = "daemon".to_owned();
    plain.timeout = Duration::from_secs(5);
    assert_eq!(
        run_function(plain, &["1"]).text(0),
        "1",
        "daemons are ended with the function"
    );
}

#[test]
fn bad_settings_are_refused() {
    type Change = fn(&mut Options);
    let cases: &[(Change, &str)] = &[
        (
            |options| options.memory_mib = 64,
            "memory of `64` MiB, where Lambda takes `128`",
        ),
        (|options| options.tmp_mib = 100, "/tmp of `100` MiB"),
        (
            |options| options.timeout = Duration::from_secs(901),
            "timeout",
        ),
        (
            |options| options.function_name = "a b".to_owned(),
            "function name `a b`",
        ),
        (
            |options| options.environment = vec![("AWS_REGION".to_owned(), "x".to_owned())],
            "`AWS_REGION` is reserved",
        ),
    ];
    for (change, message) in cases {
        let mut options = options("echo");
        change(&mut options);
        let error = try_run(&options, &[]).err().unwrap();
        assert!(is_usage(&error));
        assert!(error.to_string().contains(message), "{error}");
    }
    let event = " ".repeat(6 * 1024 * 1024 + 1);
    let error = try_run(&options("echo"), &[&event]).err().unwrap();
    assert!(is_usage(&error));
    let error = error.to_string();
    assert!(
        error.contains("Request must be smaller than 6291456 bytes"),
        "{error}"
    );
}

fn is_usage(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Stop::Usage(_)))
}

#[test]
fn a_host_that_allows_no_sandbox_is_no_failed_gate() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options("echo");
    options.isolation = Some(Isolation::Plain);
    options.rootfs = Some(dir.path().to_owned());
    options.package = zip_of(
        &dir.path().join("p.zip"),
        &[("bootstrap", &FUNCTION.1, 0o755)],
    );
    let error = try_run(&options, &[]).err().unwrap();
    assert!(error.downcast_ref::<Stop>().is_none());
    let error = error.to_string();
    assert!(
        error.starts_with("failed to build the sandbox\n  plain processes: "),
        "{error}"
    );
}

#[test]
fn a_panic_of_the_caller_takes_the_sandbox_down() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options("echo");
    options.package = zip_of(
        &dir.path().join("p.zip"),
        &[("bootstrap", &FUNCTION.1, 0o755)],
    );
    let mut output = Vec::new();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        run(
            &options,
            &[b"1".to_vec()],
            &mut |_, _| panic!("caller"),
            &mut output,
            &|_| {},
        )
    }));
    assert!(caught.is_err());
}

/// Set in the process that is killed in the next test.
const KILLED: &str = "SLIMLAMBDA_TEST_KILLED";

#[test]
fn nothing_is_left_when_the_program_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    if std::env::var_os(KILLED).is_some() {
        let mut options = options("echo");
        options.package = zip_of(
            &dir.path().join("bootstrap.zip"),
            &[("bootstrap", &FUNCTION.1, 0o755)],
        );
        let event = b"hang".to_vec();
        run(
            &options,
            &[event],
            &mut |_, _| {},
            &mut std::io::stderr(),
            &|_| {},
        )
        .unwrap();
        return;
    }
    let mut program = Command::new(std::env::current_exe().unwrap())
        .args([
            "sandbox::nothing_is_left_when_the_program_is_killed",
            "--exact",
            "--nocapture",
        ])
        .env(KILLED, "1")
        .env("TMPDIR", dir.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(program.stderr.take().unwrap()).lines();
    assert!(
        lines.map_while(Result::ok).any(|line| line == "err"),
        "the function runs"
    );
    let sandboxes = || {
        let names = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        names
            .filter(|name| name.to_str().unwrap().starts_with("slimlambda-"))
            .count()
    };
    assert_eq!(sandboxes(), 1);
    program.kill().unwrap();
    program.wait().unwrap();
    while sandboxes() != 0 {
        std::thread::sleep(Duration::from_millis(5)); // the test runner's own limit ends this
    }
}

/// The same promises hold for a user without privileges, in a user namespace.
#[test]
fn again_without_root() {
    if !getuid().is_root() {
        return; // the others have shown it already
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let copy = |from: &Path, name: &str| {
        let to = dir.path().join(name);
        fs::copy(from, &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
        to
    };
    let tests = copy(&std::env::current_exe().unwrap(), "suite");
    let program = copy(Path::new(env!("CARGO_BIN_EXE_cargo-slimlambda")), "program");
    let output = Command::new(tests)
        .args(["sandbox::", "--skip", "ten_seconds"])
        .env(EXECUTABLE, program)
        .env("TMPDIR", dir.path())
        .current_dir(dir.path())
        .gid(65534)
        .uid(65534)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("sandbox::refused_system_calls_fail_and_are_named ... ok"),
        "{text}"
    );
}
