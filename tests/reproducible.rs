//! The same inputs give the same bytes: whatever the directory, the threads, the umask, the times, the user's own directories.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::function::{RUNTIME_API, run, shared, slimlambda};
use crate::project::{manifest, write};

/// Assets of each kind, in an archive of several frames.
const CONFIG: &str = "[profile.release]\nstrip = false\n\n[package.metadata.slimlambda]\nlevel = \"fast\"\nassets = [\n    \
    { source = \"data\", placement = \"sideload\" },\n    { source = \"run.sh\" },\n    \
    { source = \"later\", placement = \"sideload\", lazy = true },\n]\n[workspace]\n";

/// A project in a directory of its own; each time anew, with other times.
fn copy(at: &Path, age: u64) {
    if at.exists() {
        fs::remove_dir_all(at).unwrap();
    }
    let main = "mod runtime_api;\n\nfn main() {\n    runtime_api::run(|event: &str| Ok(event.to_owned()))\n}\n";
    let text = |n: u64| {
        (0..300_000)
            .map(|line| format!("{} ", line * n))
            .collect::<String>()
    };
    write(&at.join("Cargo.toml"), &manifest("same", CONFIG));
    write(&at.join("src/main.rs"), main);
    write(&at.join("src/runtime_api.rs"), RUNTIME_API);
    for n in 1..6 {
        write(&at.join(format!("data/{n}/numbers.txt")), &text(n));
    }
    write(&at.join("later"), &text(7));
    write(&at.join("run.sh"), "#!/bin/sh\n");
    let time = SystemTime::now() - Duration::from_secs(age);
    for path in ["data/1/numbers.txt", "later", "run.sh"] {
        fs::File::options()
            .append(true)
            .open(at.join(path))
            .unwrap()
            .set_modified(time)
            .unwrap();
    }
}

/// Builds it as files and as a zip; digests of what comes out.
fn digests(project: &Path, umask: u16, args: &[&str]) -> Vec<(&'static str, String)> {
    let out = project.join("out");
    let outputs = [
        ("binary", &["bootstrap", "slimlambda.archive"][..]),
        ("zip", &["bootstrap.zip"]),
    ];
    let built = outputs.iter().flat_map(|(format, names)| {
        let mut command = slimlambda(project, "build");
        command
            .args(["--offline", "--output-format", format])
            .args(args)
            .arg("--lambda-dir")
            .arg(&out);
        let ran = run(with_umask(&command, umask), "");
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        names
            .iter()
            .map(|name| (*name, digest(&out.join("same").join(name))))
            .collect::<Vec<_>>()
    });
    built.collect()
}

/// The same command, by way of a shell.
fn with_umask(command: &Command, umask: u16) -> Command {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &format!("umask {umask:03o} && exec \"$0\" \"$@\"")])
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(command.get_current_dir().unwrap());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

fn digest(path: &Path) -> String {
    blake3::hash(&fs::read(path).unwrap()).to_hex().to_string()
}

#[test]
fn a_build_is_the_same_in_any_directory_with_any_threads_umask_and_times() {
    let first = shared("reproducible").join("one");
    let second = shared("reproducible").join("a directory/of another length");
    copy(&first, 10);
    let expected = digests(&first, 0o022, &["--threads", "1", "--no-cache"]);
    copy(&second, 100_000);
    let two = ["--threads", "2", "--no-cache"];
    assert_eq!(digests(&second, 0o077, &two), expected);
    // The first of these fills the cache, if that is not full of it already.
    assert_eq!(digests(&second, 0o000, &["--threads", "1"]), expected);
}

#[test]
fn the_launcher_is_the_same_for_every_user() {
    let homes = tempfile::tempdir().unwrap();
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cargo"));
    let launchers = ["a", "another/longer"].map(|name| {
        let home = homes.path().join(name);
        fs::create_dir_all(home.join("cargo/registry")).unwrap();
        // Another home with the same registry: the launcher's dependencies are not fetched for this.
        for part in ["cache", "index"] {
            let from = cargo_home.join("registry").join(part);
            std::os::unix::fs::symlink(from, home.join("cargo/registry").join(part)).unwrap();
        }
        let project = shared("reproducible").join("launcher");
        copy(&project, 10);
        let mut command = slimlambda(&project, "build");
        command
            .args([
                "--quiet",
                "--offline",
                "--output-format",
                "binary",
                "--lambda-dir",
            ])
            .arg(home.join("out"))
            .env("CARGO_HOME", home.join("cargo"))
            .env("XDG_CACHE_HOME", home.join("cache"))
            .env("TMPDIR", &home);
        let ran = run(command, "");
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        fs::read(home.join("out/same/bootstrap")).unwrap()
    });
    assert!(launchers[0] == launchers[1], "the launchers differ");

    // Nothing in it tells where it was built.
    let text = String::from_utf8_lossy(&launchers[0]);
    let home = std::env::var("HOME").unwrap();
    for path in [
        homes.path().to_str().unwrap(),
        cargo_home.to_str().unwrap(),
        &format!("{home}/"),
        "/tmp/slimlambda-launcher-",
    ] {
        let at = text
            .find(path)
            .map(|at| text[at..].chars().take(120).collect::<String>());
        assert_eq!(at, None, "`{path}` shows");
    }
}
