//! The launcher as a process: killed, raced, starved of space and files, and tampered with.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getuid};
use runtime_unpack::format::{self, Digest, FILE_NAME};
use runtime_unpack::launch::{Base, Launch, Place};
use tempfile::TempDir;

use super::trees::{self, Content, File, Tree, expected, file, found, lazy, link};

/// The launcher for this machine, not paired.
static LAUNCHER: LazyLock<Vec<u8>> = LazyLock::new(|| launcher(std::env::consts::ARCH));

/// The program that it starts.
static PROGRAM: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    let [source, output] = ["launcher.c", "program"].map(|name| directory.path().join(name));
    fs::write(&source, include_str!("launcher.c")).unwrap();
    // Static, so that no failure injected below meets the dynamic loader.
    let status = Command::new("cc")
        .arg("-static")
        .arg(&source)
        .arg("-o")
        .arg(&output)
        .status()
        .unwrap();
    assert!(status.success());
    fs::read(output).unwrap()
});

/// 66 MiB: large files, small ones, links, in some seventy frames.
static LARGE: LazyLock<Vec<File>> = LazyLock::new(|| {
    let mut files = vec![program()];
    for n in 0..3 {
        files.push(file(
            &format!("lib/large{n}.so"),
            0o755,
            trees::text(19 << 20, n),
        ));
    }
    files.push(file("noise", 0o400, trees::noise(5 << 20, 9)));
    for n in 0..600 {
        files.push(file(
            &format!("data/{}/{n}", n % 7),
            0o644,
            trees::text(7_000, n),
        ));
    }
    files.push(link("lib/large.so", "large0.so"));
    files.push(file("data/empty", 0o600, ""));
    files
});

/// The package of [`LARGE`].
static LARGE_PACKAGE: LazyLock<Package> = LazyLock::new(|| Package::new(&LARGE, &in_tree()));

fn launcher(arch: &str) -> Vec<u8> {
    cargo_slimlambda::cargo::launcher::launcher(arch, false, &|_| {}).unwrap()
}

/// Writes a program into `directory`.
fn executable(directory: &Path, bytes: &[u8]) -> PathBuf {
    let path = directory.join("program");
    install(&path, bytes);
    path
}

/// Writes an executable by another process: what this one has open for writing, a child that another test starts just
/// then has too, and nobody can execute it.
fn install(path: &Path, bytes: &[u8]) {
    let mut command = Command::new("sh");
    command
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(path);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    assert!(child.wait().unwrap().success());
}

fn program() -> File {
    file("bin/program", 0o755, PROGRAM.clone())
}

/// Some hundred KiB of everything.
fn small() -> Vec<File> {
    let mut files = vec![
        program(),
        link("current", "data"),
        file("data/empty", 0o600, ""),
    ];
    for n in 0..20 {
        files.push(file(&format!("data/{n}"), 0o644, trees::text(9_000, n)));
    }
    files
}

/// Starts `bin/program` of the tree.
fn in_tree() -> Launch {
    Launch {
        program: Some(Place {
            base: Base::Tree,
            path: "bin/program".into(),
        }),
        library_path: vec![
            Place {
                base: Base::Tree,
                path: "lib".into(),
            },
            Place {
                base: Base::Task,
                path: "lib".into(),
            },
        ],
    }
}

/// What Lambda would find in /var/task.
struct Package {
    task: TempDir,
    digest: Digest,
    frames: usize,
}

impl Package {
    fn new(files: &[File], launch: &Launch) -> Package {
        Package::with(&LAUNCHER, files, launch)
    }

    fn with(launcher: &[u8], files: &[File], launch: &Launch) -> Package {
        let packed = trees::pack(files, launch).unwrap();
        let task = tempfile::tempdir().unwrap();
        let bootstrap = cargo_slimlambda::pack::pair(launcher.to_vec(), &packed.digest).unwrap();
        install(&task.path().join("bootstrap"), &bootstrap);
        fs::write(task.path().join(FILE_NAME), &packed.bytes).unwrap();
        Package {
            task,
            digest: packed.digest,
            frames: packed.frames,
        }
    }

    fn bootstrap(&self) -> PathBuf {
        self.task.path().join("bootstrap")
    }

    /// The launcher with this /tmp, about to say what it does.
    fn command(&self, tmp: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.bootstrap());
        command
            .args(arguments)
            .env("SLIMLAMBDA_TMP", tmp)
            .env("SLIMLAMBDA_TRACE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, tmp: &Path) -> Outcome {
        outcome(self.command(tmp, &[]))
    }

    /// Where something of this package's is in /tmp.
    fn path(&self, tmp: &Path, suffix: &str) -> PathBuf {
        tmp.join(format!("slimlambda/{}{suffix}", format::hex(&self.digest)))
    }

    fn tree(&self, tmp: &Path) -> Tree {
        found(&self.path(tmp, ""))
    }

    /// Frames that are marked as done in the stage.
    fn marks(&self, tmp: &Path) -> usize {
        let progress = fs::read(self.path(tmp, ".progress")).unwrap_or_default();
        progress.iter().skip(32).filter(|byte| **byte == 1).count()
    }
}

struct Outcome {
    code: Option<i32>,
    signal: Option<i32>,
    out: String,
    err: String,
}

impl Outcome {
    /// The launcher's account of itself.
    #[track_caller]
    fn trace(&self) -> BTreeMap<String, serde_json::Value> {
        let line = self
            .err
            .lines()
            .find_map(|line| line.strip_prefix("slimlambda-trace: "));
        serde_json::from_str(line.unwrap_or_else(|| panic!("no trace: {}", self.err))).unwrap()
    }

    #[track_caller]
    fn frames(&self) -> usize {
        self.trace()["frames"].as_u64().unwrap() as usize
    }

    #[track_caller]
    fn started(self) -> Outcome {
        assert_eq!(self.code, Some(0), "{}", self.err);
        assert_eq!(self.out, "started\n");
        self
    }

    /// It failed, with one line that says all this.
    #[track_caller]
    fn failed(&self, parts: &[&str]) {
        assert_eq!(self.code, Some(1), "{}{}", self.out, self.err);
        assert_eq!(self.err.lines().count(), 1, "{}", self.err);
        assert!(self.err.starts_with("slimlambda: error: "), "{}", self.err);
        for part in parts {
            assert!(self.err.contains(part), "`{part}` is not in {}", self.err);
        }
    }
}

fn outcome(mut command: Command) -> Outcome {
    wait(command.spawn().unwrap())
}

fn wait(child: Child) -> Outcome {
    let output = child.wait_with_output().unwrap();
    Outcome {
        code: output.status.code(),
        signal: output.status.signal(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
}

fn tmp() -> TempDir {
    tempfile::tempdir().unwrap()
}

// The ordinary way.

#[test]
fn it_unpacks_once_and_then_only_looks() {
    let (package, tmp) = (Package::new(&small(), &in_tree()), tmp());
    let cold = package.run(tmp.path()).started();
    assert_eq!(cold.trace()["warm"], false);
    assert_eq!(cold.frames(), package.frames);
    assert_eq!(package.tree(tmp.path()), expected(&small()));
    let warm = package.run(tmp.path()).started();
    assert_eq!(warm.trace()["warm"], true);
    assert_eq!(warm.frames(), 0);
    let mut names: Vec<_> = found(&tmp.path().join("slimlambda")).into_keys().collect();
    names.retain(|name| !name.contains('/'));
    let digest = format::hex(&package.digest);
    assert_eq!(
        names,
        [
            digest.clone(),
            format!("{digest}.lock"),
            format!("{digest}.use")
        ]
    );
}

#[test]
fn modes_and_trees_do_not_depend_on_the_umask() {
    let files = [
        program(),
        file("a/readonly", 0o400, trees::noise(5 << 20, 1)), // in parts
        file("a/all", 0o777, "x"),
        file("a/none", 0o000, "y"),
    ];
    for umask in ["077", "027", "000"] {
        let (package, tmp) = (Package::new(&files, &in_tree()), tmp());
        let script = format!("umask {umask}; exec {}", package.bootstrap().display());
        let mut command = Command::new("sh");
        command
            .args(["-c", &script])
            .env("SLIMLAMBDA_TMP", tmp.path());
        assert!(command.output().unwrap().status.success());
        assert_eq!(package.tree(tmp.path()), expected(&files), "{umask}");
        let mode = fs::metadata(tmp.path().join("slimlambda")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}

#[test]
fn what_it_cannot_start_is_said() {
    let tmp = tmp();
    let package = Package::new(&small(), &in_tree());
    fs::remove_file(package.task.path().join(FILE_NAME)).unwrap();
    package
        .run(tmp.path())
        .failed(&["no archive found", FILE_NAME, "deploy the whole package"]);

    let other = Package::new(&[program()], &in_tree());
    fs::copy(
        other.task.path().join(FILE_NAME),
        package.task.path().join(FILE_NAME),
    )
    .unwrap();
    package
        .run(tmp.path())
        .failed(&["not the one that this launcher was paired with"]);

    let mut archive = fs::read(other.task.path().join(FILE_NAME)).unwrap();
    archive.pop();
    fs::write(other.task.path().join(FILE_NAME), &archive).unwrap();
    other.run(tmp.path()).failed(&["longer or shorter"]);
    archive.push(0x55);
    fs::write(other.task.path().join(FILE_NAME), &archive).unwrap();
    other
        .run(tmp.path())
        .failed(&["frame", "is damaged", "build and deploy"]);
    assert!(!other.path(tmp.path(), "").exists());

    let unpaired = tmp.path().join("launcher");
    install(&unpaired, &LAUNCHER);
    let mut command = Command::new(unpaired);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    outcome(command).failed(&["never paired"]);

    let absent = Package::new(&[file("x", 0o644, "")], &in_tree());
    let outcome = absent.run(tmp.path());
    assert!(
        outcome.err.contains("bin/program`: No such file"),
        "{}",
        outcome.err
    );
    assert_eq!(outcome.code, Some(1));
}

#[test]
fn where_to_unpack_must_be_absolute() {
    let package = Package::new(&small(), &in_tree());
    package
        .run(Path::new("relative"))
        .failed(&["`relative` is no absolute path"]);
    package
        .run(Path::new("/nonexistent/tmp"))
        .failed(&["`/nonexistent/tmp/slimlambda`", "No such file"]);
}

// 11, 12, 21: ended at any moment.

/// A reproducible row of numbers from 0 to 1.
fn moments(seed: u64) -> impl Iterator<Item = f64> {
    (0..).map(move |n: u64| {
        let bytes = trees::noise(8, seed << 32 | n);
        u64::from_le_bytes(bytes.try_into().unwrap()) as f64 / u64::MAX as f64
    })
}

#[test]
fn killed_at_any_moment_it_goes_on_where_it_was() {
    let kills = std::env::var("SLIMLAMBDA_KILLS").map_or(40, |n| n.parse().unwrap());
    let package = &*LARGE_PACKAGE;
    let wanted = expected(&*LARGE);
    // The shortest of three, or most kills would come after the end.
    let once = || {
        let (tmp, start) = (tmp(), Instant::now());
        package.run(tmp.path()).started();
        start.elapsed()
    };
    let whole = [once(), once(), once()].into_iter().min().unwrap();
    let (mut tmp, mut in_the_middle, mut resumed) = (tmp(), 0, 0);
    let mut moments = moments(1);
    for _ in 0..kills {
        let before = package.marks(tmp.path());
        let mut child = package.command(tmp.path(), &[]).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(moments.next().unwrap()));
        signal(&child, Signal::SIGKILL);
        child.wait().unwrap();
        let marks = package.marks(tmp.path());
        if package.path(tmp.path(), "").exists() {
            assert_eq!(
                package.tree(tmp.path()),
                wanted,
                "a tree that is there is whole"
            );
        } else {
            assert!(marks >= before, "what was done is not undone");
            in_the_middle += usize::from(package.path(tmp.path(), ".partial").exists());
        }
        // Now and then one kill follows the other.
        if moments.next().unwrap() < 0.8 {
            let done = match package.path(tmp.path(), "").exists() {
                true => package.frames,
                false => marks,
            };
            resumed += usize::from(done > 0 && done < package.frames);
            let outcome = package.run(tmp.path()).started();
            assert_eq!(outcome.frames(), package.frames - done);
            assert_eq!(package.tree(tmp.path()), wanted);
            tmp = tempfile::tempdir().unwrap();
        }
    }
    println!(
        "{kills} kills within {whole:?}: {in_the_middle} in the middle; {resumed} starts went on with part of {} frames",
        package.frames
    );
    assert!(
        in_the_middle * 10 > kills && resumed > 0,
        "{in_the_middle} of {kills}, {resumed}"
    );
}

/// Runs the launcher until it has marked `more` frames; `None` if it ended before.
fn run_until(package: &Package, tmp: &Path, more: usize) -> Option<Child> {
    let before = package.marks(tmp);
    let mut child = package
        .command(tmp, &[])
        .env("SLIMLAMBDA_THREADS", "1")
        .spawn()
        .unwrap();
    while package.marks(tmp) < before + more {
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Some(child)
}

#[test]
fn short_tries_get_there() {
    let (package, tmp) = (&*LARGE_PACKAGE, tmp());
    let mut tries = 0;
    let mut marks = 0;
    while let Some(mut child) = run_until(package, tmp.path(), 1) {
        signal(&child, Signal::SIGKILL);
        child.wait().unwrap();
        tries += 1;
        let now = package.marks(tmp.path());
        assert!(now > marks || package.path(tmp.path(), "").exists());
        marks = now;
        assert!(tries <= package.frames);
    }
    assert!(tries > 2, "{tries}");
    package.run(tmp.path()).started();
    assert_eq!(package.tree(tmp.path()), expected(&*LARGE));
}

#[test]
fn sigterm_ends_it_at_once_and_loses_nothing() {
    let (package, tmp) = (&*LARGE_PACKAGE, tmp());
    let child = run_until(package, tmp.path(), 2).unwrap();
    signal(&child, Signal::SIGTERM);
    assert_eq!(wait(child).signal, Some(Signal::SIGTERM as i32));
    let marks = package.marks(tmp.path());
    assert!(marks >= 2);
    assert_eq!(
        package.run(tmp.path()).started().frames(),
        package.frames - marks
    );
    assert_eq!(package.tree(tmp.path()), expected(&*LARGE));
}

/// Mending is resumed like unpacking: many missing files must not need one long try.
#[test]
fn killed_while_mending_it_goes_on_where_it_was() {
    let (package, tmp) = (&*LARGE_PACKAGE, tmp());
    package.run(tmp.path()).started();
    fs::remove_dir_all(package.path(tmp.path(), "").join("lib")).unwrap();
    let mut child = run_until(package, tmp.path(), 2).unwrap();
    signal(&child, Signal::SIGKILL);
    child.wait().unwrap();
    let marks = package.marks(tmp.path());
    let frames = package.run(tmp.path()).started().frames();
    assert!(marks >= 2 && frames > 0 && frames < package.frames - marks);
    assert_eq!(package.tree(tmp.path()), expected(&*LARGE));
}

// 13: several at once.

#[test]
fn of_sixteen_one_unpacks() {
    let (package, tmp) = (&*LARGE_PACKAGE, tmp());
    let children: Vec<Child> = (0..16)
        .map(|_| package.command(tmp.path(), &[]).spawn().unwrap())
        .collect();
    let outcomes: Vec<Outcome> = children
        .into_iter()
        .map(|child| wait(child).started())
        .collect();
    let frames: Vec<usize> = outcomes.iter().map(Outcome::frames).collect();
    assert_eq!(frames.iter().sum::<usize>(), package.frames, "{frames:?}");
    assert_eq!(frames.iter().filter(|frames| **frames > 0).count(), 1);
    assert_eq!(package.tree(tmp.path()), expected(&*LARGE));
}

/// A launcher that holds the lock and is stopped.
fn stopped(package: &Package, tmp: &Path) -> Child {
    let child = run_until(package, tmp, 1).unwrap();
    signal(&child, Signal::SIGSTOP);
    assert!(
        !package.path(tmp, "").exists(),
        "it was done before it was stopped"
    );
    child
}

#[test]
fn a_stopped_holder_is_not_waited_for_for_ever() {
    let (package, tmp) = (&*LARGE_PACKAGE, tmp());
    let holder = stopped(package, tmp.path());
    let mut waiter = package.command(tmp.path(), &[]);
    waiter.env("SLIMLAMBDA_LOCK_TIMEOUT_MS", "200");
    outcome(waiter).failed(&[
        "another process holds",
        ".lock",
        "SLIMLAMBDA_LOCK_TIMEOUT_MS",
    ]);
    signal(&holder, Signal::SIGCONT);
    wait(holder).started();
    assert_eq!(package.tree(tmp.path()), expected(&*LARGE));
}

#[test]
fn a_killed_holder_is_succeeded() {
    let (package, tmp) = (&*LARGE_PACKAGE, tmp());
    let mut holder = stopped(package, tmp.path());
    let waiter = package.command(tmp.path(), &[]).spawn().unwrap();
    let marks = package.marks(tmp.path());
    signal(&holder, Signal::SIGKILL);
    holder.wait().unwrap();
    assert_eq!(wait(waiter).started().frames(), package.frames - marks);
    assert_eq!(package.tree(tmp.path()), expected(&*LARGE));
}

// 14, 16, 19: small, read-only and noexec file systems, mounted where only we see them.

/// A mount namespace of our own; ends with the value.
struct Namespace {
    child: Child,
    tmp: TempDir,
}

impl Namespace {
    /// Mounts a tmpfs with these options as /tmp; `None` (and why) where the system does not let us.
    fn new(options: &str) -> Option<Namespace> {
        let tmp = tmp();
        let script = format!(
            "mount -t tmpfs -o {options} none {} && echo mounted && exec cat",
            tmp.path().display()
        );
        let mut command = Command::new("unshare");
        let user: &[&str] = if getuid().is_root() {
            &[]
        } else {
            &["--user", "--map-root-user"]
        };
        command.args(user).args(["--mount", "sh", "-c", &script]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        if line != "mounted\n" {
            println!("skipped: mounts need root or unprivileged user namespaces");
            child.wait().unwrap();
            return None;
        }
        Some(Namespace { child, tmp })
    }

    fn run(&self, program: &[&OsStr]) -> Command {
        let mut command = Command::new("nsenter");
        let pid = self.child.id().to_string();
        let user: &[&str] = if getuid().is_root() {
            &[]
        } else {
            &["--user", "--preserve-credentials"]
        };
        command
            .args(["--target", &pid, "--mount"])
            .args(user)
            .args(program);
        command
    }

    fn launch(&self, package: &Package, arguments: &[&str]) -> Command {
        let mut command = self.run(&[package.bootstrap().as_os_str()]);
        command
            .args(arguments)
            .env("SLIMLAMBDA_TMP", self.tmp.path())
            .env("SLIMLAMBDA_TRACE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let arguments = ["mount", "-o", &options].map(OsStr::new);
        let status = self
            .run(&[&arguments[..], &[self.tmp.path().as_os_str()]].concat())
            .status();
        assert!(status.unwrap().success());
    }

    /// /tmp as seen from outside.
    fn path(&self) -> PathBuf {
        let root = format!("/proc/{}/root", self.child.id());
        Path::new(&root).join(self.tmp.path().strip_prefix("/").unwrap())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        _ = self.child.wait();
    }
}

/// Nothing of this package takes space.
#[track_caller]
fn nothing_left(package: &Package, tmp: &Path) {
    for suffix in ["", ".partial", ".progress"] {
        assert!(!package.path(tmp, suffix).exists(), "{suffix}");
    }
}

#[test]
fn too_little_space_is_said_in_numbers() {
    let Some(namespace) = Namespace::new("size=32m") else {
        return;
    };
    let blocks = expected(&*LARGE).into_values().map(|node| match node {
        trees::Node::File { size, .. } => size.div_ceil(4096),
        _ => 0,
    });
    let needed = (blocks.sum::<usize>() * 4096).div_ceil(1 << 20);
    outcome(namespace.launch(&LARGE_PACKAGE, &[])).failed(&[
        &format!("the tree needs {needed} MiB"),
        "31 MiB are free",
        "set EphemeralStorage to at least",
    ]);
    nothing_left(&LARGE_PACKAGE, &namespace.path());
    namespace.remount("size=80m");
    outcome(namespace.launch(&LARGE_PACKAGE, &[])).started();
    assert_eq!(LARGE_PACKAGE.tree(&namespace.path()), expected(&*LARGE));
}

/// Every number of files that fit but one is too few.
#[test]
fn a_disk_that_fills_up_at_any_file_leaves_nothing() {
    let package = Package::new(&small(), &in_tree());
    let Some(namespace) = Namespace::new("size=8m,nr_inodes=2") else {
        return;
    };
    let enough = expected(&small()).len() + 7; // two roots, stage, progress, two locks, and one to spare
    let mut last = 0;
    for inodes in 2..=enough {
        namespace.remount(&format!("nr_inodes={inodes}"));
        let outcome = outcome(namespace.launch(&package, &[]));
        if outcome.code == Some(0) {
            outcome.started();
            break;
        }
        last = inodes;
        outcome.failed(&["EphemeralStorage"]);
        nothing_left(&package, &namespace.path());
    }
    assert!(last > 10 && last < enough, "{last} of {enough}");
    assert_eq!(package.tree(&namespace.path()), expected(&small()));
}

#[test]
fn an_older_version_makes_room_when_nobody_holds_it() {
    let Some(namespace) = Namespace::new("size=90m") else {
        return;
    };
    let old = &*LARGE_PACKAGE;
    let mut files = LARGE.clone();
    files.push(file("new", 0o644, "new"));
    let new = Package::new(&files, &in_tree());
    let tmp = namespace.path();

    let mut holder = namespace.launch(old, &["hold", "noise"]).spawn().unwrap();
    let mut out = BufReader::new(holder.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "holding\n");
    outcome(namespace.launch(&new, &[])).failed(&["no space", "EphemeralStorage"]);
    nothing_left(&new, &tmp);
    assert_eq!(old.tree(&tmp), expected(&*LARGE));

    holder.stdin.take().unwrap().write_all(b"\n").unwrap();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "holding\nunchanged\n");
    assert!(holder.wait().unwrap().success());
    let outcome = outcome(namespace.launch(&new, &[])).started();
    assert_eq!(outcome.frames(), new.frames); // nothing of the old one's is reused
    assert_eq!(new.tree(&tmp), expected(&files));
    nothing_left(old, &tmp);
}

#[test]
fn where_there_is_room_older_versions_stay() {
    let (old, tmp) = (Package::new(&small(), &in_tree()), tmp());
    let new = Package::new(&[program()], &in_tree());
    old.run(tmp.path()).started();
    new.run(tmp.path()).started();
    assert!(old.run(tmp.path()).started().trace()["warm"] == true);
}

#[test]
fn read_only_and_noexec_are_named() {
    let package = Package::new(&small(), &in_tree());
    let Some(namespace) = Namespace::new("size=8m,ro") else {
        return;
    };
    outcome(namespace.launch(&package, &[])).failed(&["read-only", "SLIMLAMBDA_TMP"]);
    namespace.remount("rw,noexec");
    outcome(namespace.launch(&package, &[])).failed(&["is mounted noexec", "SLIMLAMBDA_TMP"]);

    // The program is elsewhere, but its libraries are not.
    let task = Launch {
        program: Some(Place {
            base: Base::Task,
            path: "program".into(),
        }),
        ..in_tree()
    };
    let package = Package::new(&small(), &task);
    executable(package.task.path(), &PROGRAM);
    outcome(namespace.launch(&package, &[])).failed(&["is mounted noexec"]);
    namespace.remount("rw,exec");
    outcome(namespace.launch(&package, &[])).started();
}

// 15: system calls that fail. strace makes them.

/// Runs the launcher with `fault` injected; `None` (and why) without strace.
fn with_fault(package: &Package, tmp: &Path, fault: &str) -> Option<Outcome> {
    let mut command = Command::new("strace");
    command
        .args(["-f", "-q", "-o", "/dev/null", "-e"])
        .arg(format!("inject={fault}"))
        .arg(package.bootstrap())
        .env("SLIMLAMBDA_TMP", tmp)
        .env("SLIMLAMBDA_THREADS", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    match command.spawn() {
        Ok(child) => Some(wait(child)),
        Err(error) => {
            println!("skipped: strace does not start: {error}");
            None
        }
    }
}

#[test]
fn interrupted_calls_are_made_again() {
    let package = Package::new(&small(), &in_tree());
    for call in ["pwrite64", "pread64"] {
        let tmp = tmp();
        let fault = format!("{call}:error=EINTR:when=1+2");
        let Some(outcome) = with_fault(&package, tmp.path(), &fault) else {
            return;
        };
        outcome.started();
        assert_eq!(package.tree(tmp.path()), expected(&small()));
    }
}

/// Whichever call fails, and however: an error and no tree, and the next start is a good one.
#[test]
fn any_failing_call_leaves_no_bad_tree() {
    let files: Vec<File> = small().into_iter().take(8).collect();
    let package = Package::new(&files, &in_tree());
    for call in [
        "pwrite64",
        "pread64",
        "openat",
        "mkdirat",
        "fchmod",
        "symlinkat",
        "renameat2",
        "fstat",
        "flock",
    ] {
        for error in ["EIO", "ENOSPC", "EACCES"] {
            for when in 1.. {
                let tmp = tmp();
                let fault = format!("{call}:error={error}:when={when}");
                let Some(outcome) = with_fault(&package, tmp.path(), &fault) else {
                    return;
                };
                if outcome.code == Some(0) {
                    // No such call any more, or one whose failure does not matter.
                    outcome.started();
                    assert_eq!(package.tree(tmp.path()), expected(&files), "{fault}");
                    break;
                }
                outcome.failed(&[]);
                package.run(tmp.path()).started();
                assert_eq!(package.tree(tmp.path()), expected(&files), "{fault}");
            }
        }
    }
}

/// A limit on the size of files makes the write that reaches it a short one, and the next one fail.
#[test]
fn a_short_write_leaves_no_bad_tree() {
    let mut files = small();
    files.push(file("parts", 0o644, trees::noise(3 << 20, 1)));
    let package = Package::new(&files, &in_tree());
    // In blocks of 512 bytes: within the small files, within the program, within the last part of the large one.
    let program = PROGRAM.len() / 512;
    for blocks in [1, 15, program - 1, program + 100, 3 * 2048 - 1] {
        let tmp = tmp();
        let script = format!(
            "trap '' XFSZ; ulimit -f {blocks}; exec {}",
            package.bootstrap().display()
        );
        let mut command = Command::new("sh");
        command
            .args(["-c", &script])
            .env("SLIMLAMBDA_TMP", tmp.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        outcome(command).failed(&["File too large"]);
        assert!(!package.path(tmp.path(), "").exists());
        package.run(tmp.path()).started();
        assert_eq!(package.tree(tmp.path()), expected(&files), "{blocks}");
    }
}

// 17: a tree that was tampered with.

#[test]
fn what_is_missing_or_changed_is_mended() {
    let files = small();
    let package = Package::new(&files, &in_tree());
    let tmp = tmp();
    package.run(tmp.path()).started();
    let tree = package.path(tmp.path(), "");
    let cases: &[(&str, &dyn Fn())] = &[
        ("missing", &|| fs::remove_file(tree.join("data/3")).unwrap()),
        ("truncated", &|| {
            fs::write(tree.join("data/3"), "short").unwrap()
        }),
        ("longer", &|| {
            fs::write(tree.join("data/empty"), "x").unwrap()
        }),
        ("other mode", &|| {
            fs::set_permissions(tree.join("data/3"), fs::Permissions::from_mode(0o600)).unwrap();
        }),
        ("a directory instead", &|| {
            fs::remove_file(tree.join("data/3")).unwrap();
            fs::create_dir_all(tree.join("data/3/deeper")).unwrap();
            fs::write(tree.join("data/3/deeper/file"), "x").unwrap();
        }),
        ("a symlink instead", &|| {
            fs::remove_file(tree.join("data/3")).unwrap();
            symlink("4", tree.join("data/3")).unwrap();
        }),
        ("a file instead of a directory", &|| {
            fs::remove_dir_all(tree.join("data")).unwrap();
            fs::write(tree.join("data"), "x").unwrap();
        }),
        ("another link", &|| {
            fs::remove_file(tree.join("current")).unwrap();
            symlink("bin", tree.join("current")).unwrap();
        }),
        ("no link", &|| {
            fs::remove_file(tree.join("current")).unwrap()
        }),
        ("no directory", &|| {
            fs::remove_dir_all(tree.join("data")).unwrap()
        }),
        ("nothing", &|| {
            fs::remove_dir_all(&tree).unwrap();
            fs::create_dir(&tree).unwrap();
        }),
        ("a file for a tree", &|| {
            fs::remove_dir_all(&tree).unwrap();
            fs::write(&tree, "").unwrap();
        }),
    ];
    for (name, tamper) in cases {
        tamper();
        let outcome = package.run(tmp.path()).started();
        assert_eq!(outcome.trace()["warm"], false, "{name}");
        assert_eq!(package.tree(tmp.path()), expected(&files), "{name}");
    }
}

#[test]
fn tampering_that_keeps_the_size_is_found_when_verifying() {
    let (package, tmp) = (Package::new(&small(), &in_tree()), tmp());
    package.run(tmp.path()).started();
    let victim = package.path(tmp.path(), "").join("data/3");
    let mut bytes = fs::read(&victim).unwrap();
    bytes[4_000] ^= 1;
    fs::write(&victim, bytes).unwrap();
    assert_eq!(package.run(tmp.path()).started().trace()["warm"], true);
    let mut verifying = package.command(tmp.path(), &[]);
    verifying.env("SLIMLAMBDA_VERIFY", "1");
    assert_eq!(outcome(verifying).started().trace()["warm"], false);
    assert_eq!(package.tree(tmp.path()), expected(&small()));
}

#[test]
fn mending_does_not_touch_what_a_running_function_has_mapped() {
    let (package, tmp) = (Package::new(&small(), &in_tree()), tmp());
    let mut holder = package
        .command(tmp.path(), &["hold", "data/3"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(holder.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    let path = package.path(tmp.path(), "").join("data/3");
    let inode = fs::metadata(&path).unwrap().ino();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    package.run(tmp.path()).started();
    assert_ne!(fs::metadata(&path).unwrap().ino(), inode);
    holder.stdin.take().unwrap().write_all(b"\n").unwrap();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "holding\nunchanged\n");
    assert!(holder.wait().unwrap().success());
}

// 18: the directory that is not ours.

#[test]
fn a_base_that_is_not_ours_is_not_followed() {
    let package = Package::new(&small(), &in_tree());
    let aside = tmp();
    type Make<'m> = &'m dyn Fn(&Path);
    let cases: &[(&str, Make<'_>)] = &[
        ("no directory", &|base| fs::write(base, "").unwrap()),
        ("", &|base| symlink(aside.path(), base).unwrap()),
        ("can be written by others", &|base| {
            fs::create_dir(base).unwrap();
            fs::set_permissions(base, fs::Permissions::from_mode(0o777)).unwrap();
        }),
        ("belongs to another user", &|base| {
            fs::create_dir(base).unwrap();
            std::os::unix::fs::chown(base, Some(12_345), None).unwrap();
        }),
    ];
    for (message, make) in cases {
        if message.contains("another user") && !getuid().is_root() {
            println!("skipped: only root can give a directory away");
            continue;
        }
        let tmp = tmp();
        make(&tmp.path().join("slimlambda"));
        package
            .run(tmp.path())
            .failed(&[message, "remove it, or set SLIMLAMBDA_TMP"]);
        assert_eq!(fs::read_dir(aside.path()).unwrap().count(), 0);
    }
}

// 19: few descriptors, little memory.

#[test]
fn thirty_two_descriptors_and_128_mb_are_enough() {
    // Deep, so that whoever recurses with open directories runs out.
    let deep: String = (0..40).map(|n| format!("{n}/")).collect();
    let mut files = LARGE.clone();
    files.push(file(&format!("{deep}leaf"), 0o644, "leaf"));
    let package = Package::new(&files, &in_tree());
    for threads in ["1", "6"] {
        let tmp = tmp();
        let limited = |script: &str| {
            let mut command = Command::new("sh");
            command
                .args([
                    "-c",
                    &format!("ulimit -n 32 && ulimit -v 131072 && {script}"),
                ])
                .env("SLIMLAMBDA_TMP", tmp.path())
                .env("SLIMLAMBDA_THREADS", threads)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            outcome(command).started();
        };
        limited(&format!("exec {}", package.bootstrap().display()));
        assert_eq!(package.tree(tmp.path()), expected(&files));
        // A stage for something else is cleared away, deep as it is.
        fs::rename(
            package.path(tmp.path(), ""),
            package.path(tmp.path(), ".partial"),
        )
        .unwrap();
        limited(&format!("exec {}", package.bootstrap().display()));
        assert_eq!(package.tree(tmp.path()), expected(&files));
    }
}

#[test]
fn twenty_thousand_entries_fit_too() {
    let mut files = vec![program()];
    files.extend(
        (0..20_000).map(|n| file(&format!("d{}/{n}", n % 300), 0o644, format!("{}", n % 1000))),
    );
    let (package, tmp) = (Package::new(&files, &in_tree()), tmp());
    let limited = || {
        let mut command = Command::new("sh");
        command
            .args([
                "-c",
                &format!("ulimit -v 65536 && exec {}", package.bootstrap().display()),
            ])
            .env("SLIMLAMBDA_TMP", tmp.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        outcome(command).started()
    };
    limited();
    assert_eq!(package.tree(tmp.path()), expected(&files));
    limited();
}

// 20: what the program is given.

/// The `key=value` lines of the program's report, those of one key together.
fn report(command: Command) -> BTreeMap<String, Vec<String>> {
    let outcome = outcome(command);
    assert_eq!(outcome.code, Some(0), "{}", outcome.err);
    let mut out = BTreeMap::<String, Vec<String>>::new();
    for line in outcome.out.lines() {
        let (key, value) = line.split_once(['=', ':']).unwrap();
        out.entry(key.into()).or_default().push(value.trim().into());
    }
    out
}

#[test]
fn the_program_gets_arguments_environment_and_directory() {
    let (package, tmp) = (Package::new(&small(), &in_tree()), tmp());
    let elsewhere = tempfile::tempdir().unwrap();
    let directory = elsewhere.path().canonicalize().unwrap();
    let run = |library_path: Option<&str>| {
        let mut command = package.command(tmp.path(), &["report", "a b", "", "--", "ü"]);
        command
            .arg0("named")
            .env_clear()
            .env("SLIMLAMBDA_TMP", tmp.path())
            .env("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9001")
            .env("EMPTY", "")
            .env("SLIMLAMBDA_TREE", "forged")
            .env("SLIMLAMBDA_DIGEST", "forged")
            .current_dir(&directory);
        library_path.map(|value| command.env("LD_LIBRARY_PATH", value));
        report(command)
    };
    let task = package.task.path().display().to_string();
    let tree = package.path(tmp.path(), "").display().to_string();
    for (given, appended) in [
        (None, ""),
        (Some(""), ""),
        (Some("/lib64:/opt/lib"), ":/lib64:/opt/lib"),
    ] {
        let report = run(given);
        assert_eq!(report["argv"], ["named", "report", "a b", "", "--", "ü"]);
        assert_eq!(report["cwd"], [directory.to_str().unwrap()]);
        let mut environment = report["env"].clone();
        environment.sort();
        assert_eq!(
            environment,
            [
                "AWS_LAMBDA_RUNTIME_API=127.0.0.1:9001".to_string(),
                "EMPTY=".to_string(),
                format!("LD_LIBRARY_PATH={tree}/lib:{task}/lib{appended}"),
                format!("SLIMLAMBDA_ARCHIVE={task}/{FILE_NAME}"),
                format!("SLIMLAMBDA_DIGEST={}", format::hex(&package.digest)),
                format!("SLIMLAMBDA_TASK={task}"),
                format!("SLIMLAMBDA_TMP={}", tmp.path().display()),
                format!("SLIMLAMBDA_TREE={tree}"),
            ]
        );
    }
}

#[test]
fn a_wrapper_starts_its_arguments() {
    let files = [file("data/x", 0o644, "x")];
    let (package, tmp) = (Package::new(&files, &Launch::default()), tmp());
    let program = executable(package.task.path(), &PROGRAM);
    let path = program.to_str().unwrap();
    let report = report(package.command(tmp.path(), &[path, "report", "-x"]));
    assert_eq!(report["argv"], [path, "report", "-x"]);
    package
        .run(tmp.path())
        .failed(&["no program, and no arguments to start"]);
}

#[test]
fn one_descriptor_is_inherited_and_it_is_no_standard_stream() {
    let (package, tmp) = (Package::new(&small(), &in_tree()), tmp());
    let used = format!(":{}", package.path(tmp.path(), ".use").display());
    let directory = tempfile::tempdir().unwrap();
    let plain = executable(directory.path(), &PROGRAM);
    let descriptors = |program: &Path, closed: &str| {
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("exec {} report {closed}", program.display())])
            .env("SLIMLAMBDA_TMP", tmp.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let fds = report(command).remove("fd").unwrap();
        let (ours, others): (Vec<_>, Vec<_>) = fds.into_iter().partition(|fd| fd.ends_with(&used));
        // Numbers alone: each run has pipes of its own.
        let number = |fd: &String| fd.split_once(':').unwrap().0.parse::<u32>().unwrap();
        let numbers = |fds: &[String]| fds.iter().map(number).collect::<Vec<_>>();
        (numbers(&ours), numbers(&others))
    };
    for closed in ["", "", "<&- 2>&-"] {
        let (ours, others) = descriptors(&package.bootstrap(), closed);
        assert!(ours.len() == 1 && ours[0] > 2, "{ours:?}");
        assert_eq!(others, descriptors(&plain, closed).1);
    }
}

#[test]
fn signals_stay_as_they_were() {
    let (package, tmp) = (Package::new(&small(), &in_tree()), tmp());
    let program = executable(package.task.path(), &PROGRAM);
    // A shell says what is ignored, for itself and so for what it becomes.
    for trap in ["", "trap '' PIPE;", "trap '' PIPE TERM USR1;"] {
        let signals = |what: &Path| {
            let script = format!("{trap} exec {} report", what.display());
            let mut command = Command::new("sh");
            command
                .args(["-c", &script])
                .env("SLIMLAMBDA_TMP", tmp.path());
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut report = report(command);
            report.retain(|key, _| key.starts_with("Sig"));
            report
        };
        let direct = signals(&program);
        assert_eq!(direct.len(), 4); // pending, blocked, ignored, caught
        assert_eq!(signals(&package.bootstrap()), direct, "{trap}");
    }
}

#[test]
fn a_program_that_is_being_written_is_waited_for_but_not_for_ever() {
    let task = Launch {
        program: Some(Place {
            base: Base::Task,
            path: "program".into(),
        }),
        library_path: Vec::new(),
    };
    let (package, tmp) = (Package::new(&[file("data", 0o644, "x")], &task), tmp());
    let program = package.task.path().join("program");
    let mut writer = fs::File::create(&program).unwrap();
    writer.write_all(&PROGRAM).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let busy = package.run(tmp.path());
    assert!(busy.err.contains("Text file busy"), "{}", busy.err);
    fs::remove_dir_all(tmp.path().join("slimlambda")).unwrap();
    let child = package.command(tmp.path(), &[]).spawn().unwrap();
    // Until it has unpacked, which is the last it does before it tries.
    while !package.path(tmp.path(), "").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(writer);
    wait(child).started();
}

// 20a: under Lambda's refusals.

#[test]
fn nothing_that_it_does_is_refused() {
    let launch = Launch {
        program: Some(Place {
            base: Base::Tree,
            path: "bin/function".into(),
        }),
        library_path: Vec::new(),
    };
    let mut files = LARGE.clone();
    files.push(file(
        "bin/function",
        0o755,
        super::sandbox::FUNCTION.1.clone(),
    ));
    let package = Package::new(&files, &launch);
    let read = |name: &str| fs::read(package.task.path().join(name)).unwrap();
    let (bootstrap, archive) = (read("bootstrap"), read(FILE_NAME));
    let outcome = super::sandbox::run_files(
        super::sandbox::options("echo"),
        &[
            ("bootstrap", &bootstrap, 0o755),
            (FILE_NAME, &archive, 0o644),
        ],
        &["{\"a\":1}"],
    );
    assert_eq!(outcome.answers[0].payload, b"{\"a\":1}");
    assert_eq!(outcome.report.refused, []);
    assert!(outcome.report.launcher[0].unpacked_bytes > 60 << 20);
}

// Lazy entries, and `asset()`.

/// Set for the child processes below: which assets they are to ask for, separated by `;`.
const ASSETS: &str = "SLIMLAMBDA_TEST_ASSETS";

/// Not a test: what the children of the tests below run.
#[test]
fn ask_for_assets() {
    let Some(assets) = std::env::var_os(ASSETS) else {
        return;
    };
    let assets = assets.into_string().unwrap();
    let answers: Vec<String> = std::thread::scope(|scope| {
        let ask = |asset: String| match runtime_unpack::asset(&asset) {
            Ok(path) => path.display().to_string(),
            Err(error) => format!("error: {error}"),
        };
        let threads: Vec<_> = assets
            .split(';')
            .map(|asset| scope.spawn(move || ask(asset.to_owned())))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    for answer in answers {
        eprintln!("answer: {answer}");
    }
    if std::env::var_os("SLIMLAMBDA_TEST_HOLD").is_some() {
        std::io::stdin().read_line(&mut String::new()).unwrap();
    }
}

fn eager_and_lazy() -> Vec<File> {
    let mut files = vec![
        file("models/eager.onnx", 0o644, trees::text(50_000, 1)),
        lazy("models/lazy.onnx", 0o444, trees::noise(5 << 20, 2)),
        lazy("models/more/a", 0o644, "a"),
        lazy("models/more/b", 0o644, "b"),
        lazy("words/de", 0o644, trees::text(80_000, 3)),
        link("words/default", "de"),
        link("dictionaries", "words"),
    ];
    files[5].lazy = false;
    files
}

/// A child that asks for `assets`, `;` between them, with the launcher of `package` before it or on its own.
fn asking(package: &Package, tmp: &Path, launcher: bool, assets: &str) -> Command {
    let executable = std::env::current_exe().unwrap();
    let mut command = match launcher {
        true => {
            let mut command = package.command(tmp, &[]);
            command.arg(executable);
            command
        }
        false => {
            let mut command = Command::new(executable);
            command
                .env("LAMBDA_TASK_ROOT", package.task.path())
                .env("SLIMLAMBDA_TMP", tmp);
            command
        }
    };
    command
        .args(["--exact", "launcher::ask_for_assets", "--nocapture"])
        .env(ASSETS, assets)
        .env_remove("CARGO_MANIFEST_DIR")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[track_caller]
fn answers(child: Child) -> Vec<String> {
    let outcome = wait(child);
    assert_eq!(outcome.code, Some(0), "{}{}", outcome.out, outcome.err);
    let lines = outcome.err.lines();
    lines
        .filter_map(|line| line.strip_prefix("answer: "))
        .map(str::to_owned)
        .collect()
}

#[track_caller]
fn ask(package: &Package, tmp: &Path, launcher: bool, assets: &str) -> Vec<String> {
    answers(asking(package, tmp, launcher, assets).spawn().unwrap())
}

/// The part of the tree that these paths make.
fn only(paths: &[&str]) -> Tree {
    let files = eager_and_lazy();
    expected(
        files
            .iter()
            .filter(|file| paths.contains(&file.path.as_str())),
    )
}

#[test]
fn lazy_assets_are_unpacked_when_they_are_asked_for() {
    let (package, tmp) = (Package::new(&eager_and_lazy(), &Launch::default()), tmp());
    let root = package.path(tmp.path(), "");
    let at = |path: &str| root.join(path).display().to_string();
    let eager = ["models/eager.onnx", "words/default", "dictionaries"];
    let files = |tree: Tree| -> Vec<String> {
        let is_file = |node: &trees::Node| *node != trees::Node::Directory;
        tree.into_iter()
            .filter(|(_, node)| is_file(node))
            .map(|(path, _)| path)
            .collect()
    };
    assert_eq!(
        ask(&package, tmp.path(), true, "models/eager.onnx"),
        [at("models/eager.onnx")]
    );
    assert_eq!(files(package.tree(tmp.path())), files(only(&eager)));

    // A link leads to what it stands for; so does a path through one.
    for (asset, word) in [
        ("words/default", "words/de"),
        ("dictionaries/de", "words/de"),
        ("dictionaries", "words/de"),
    ] {
        _ = fs::remove_dir_all(&root);
        let answer = ask(&package, tmp.path(), true, asset);
        assert_eq!(answer, [at(asset)]);
        assert_eq!(
            files(package.tree(tmp.path())),
            files(only(&[&eager[..], &[word]].concat())),
            "{asset}"
        );
    }

    // A directory is all that is in it.
    assert_eq!(ask(&package, tmp.path(), true, "models"), [at("models")]);
    let all: Vec<&str> = eager
        .into_iter()
        .chain([
            "words/de",
            "models/lazy.onnx",
            "models/more/a",
            "models/more/b",
        ])
        .collect();
    assert_eq!(package.tree(tmp.path()), only(&all));
}

#[test]
fn without_the_launcher_the_same_call_unpacks() {
    let (package, tmp) = (Package::new(&eager_and_lazy(), &Launch::default()), tmp());
    let root = package.path(tmp.path(), "");
    let answer = ask(&package, tmp.path(), false, "models/eager.onnx;words/de");
    assert_eq!(
        answer,
        [root.join("models/eager.onnx"), root.join("words/de")].map(|p| p.display().to_string())
    );
    assert_eq!(
        package.tree(tmp.path()),
        only(&["models/eager.onnx", "words/de"])
    );
    // The launcher finds part of its tree, and adds the rest.
    ask(&package, tmp.path(), true, "models/eager.onnx");
    assert_eq!(
        ask(&package, tmp.path(), true, "models;words;dictionaries").len(),
        3
    );
    assert_eq!(package.tree(tmp.path()), expected(&eager_and_lazy()));
}

#[test]
fn threads_and_processes_ask_at_once_and_one_unpacks() {
    for launcher in [true, false] {
        let (package, tmp) = (Package::new(&eager_and_lazy(), &Launch::default()), tmp());
        let assets = ["models/lazy.onnx"; 8].join(";") + ";models;words/de";
        let children: Vec<Child> = (0..6)
            .map(|_| {
                asking(&package, tmp.path(), launcher, &assets)
                    .spawn()
                    .unwrap()
            })
            .collect();
        let root = package.path(tmp.path(), "");
        for child in children {
            let answers = answers(child);
            assert_eq!(answers.len(), 10);
            assert!(
                answers
                    .iter()
                    .all(|answer| Path::new(answer).starts_with(&root)),
                "{answers:?}"
            );
        }
        let lazy = root.join("models/lazy.onnx");
        let (inode, all) = (fs::metadata(&lazy).unwrap().ino(), package.tree(tmp.path()));
        ask(&package, tmp.path(), launcher, &assets);
        assert_eq!(fs::metadata(&lazy).unwrap().ino(), inode);
        assert_eq!(package.tree(tmp.path()), all);
    }
}

#[test]
fn assets_in_the_package_and_missing_ones() {
    let (package, tmp) = (Package::new(&eager_and_lazy(), &Launch::default()), tmp());
    fs::create_dir(package.task.path().join("inline")).unwrap();
    fs::write(package.task.path().join("inline/x"), "x").unwrap();
    let inline = package.task.path().join("inline/x").display().to_string();
    for launcher in [true, false] {
        let assets = "inline/x;nothing;../escape;/etc/passwd;models/;dictionaries/none;";
        let answers = ask(&package, tmp.path(), launcher, assets);
        assert_eq!(answers[0], inline);
        assert_eq!(answers.len(), 7);
        for answer in &answers[1..] {
            assert!(answer.starts_with("error: no asset `"), "{answer}");
            assert!(answer.contains(FILE_NAME), "{answer}");
            assert!(
                answer.contains(&package.task.path().display().to_string()),
                "{answer}"
            );
            assert!(answer.contains("package.metadata.slimlambda"), "{answer}");
        }
    }
    // Nothing is sideloaded.
    fs::remove_file(package.task.path().join(FILE_NAME)).unwrap();
    assert_eq!(ask(&package, tmp.path(), false, "inline/x"), [inline]);
    let answer = ask(&package, tmp.path(), false, "models").remove(0);
    assert!(
        answer.starts_with("error: no asset `models` (searched:"),
        "{answer}"
    );
}

/// Whoever got a path from `asset()` holds the tree as a launched program does, and its children do not.
#[test]
fn asking_holds_the_tree() {
    let Some(namespace) = Namespace::new("size=8m") else {
        return;
    };
    let lazy_package = Package::new(&eager_and_lazy(), &Launch::default());
    let other = Package::new(
        &[program(), file("x", 0o644, trees::noise(5 << 20, 3))],
        &in_tree(),
    );
    let executable = std::env::current_exe().unwrap();
    let mut asking = namespace.run(&[
        executable.as_os_str(),
        OsStr::new("--exact"),
        OsStr::new("launcher::ask_for_assets"),
        OsStr::new("--nocapture"),
    ]);
    asking
        .env("LAMBDA_TASK_ROOT", lazy_package.task.path())
        .env("SLIMLAMBDA_TMP", namespace.tmp.path())
        .env(ASSETS, "models/lazy.onnx")
        .env("SLIMLAMBDA_TEST_HOLD", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = asking.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(line.starts_with("answer: /"), "{line}");
    outcome(namespace.launch(&other, &[])).failed(&["no space"]);
    assert!(lazy_package.path(&namespace.path(), "").exists());
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    outcome(namespace.launch(&other, &[])).started();
    assert!(!lazy_package.path(&namespace.path(), "").exists());
}

// The launcher itself.

#[test]
fn it_is_small_and_static() {
    for arch in ["x86_64", "aarch64"] {
        let bytes = launcher(arch);
        println!("{arch}: {} bytes", bytes.len());
        assert!(bytes.len() <= 450_000, "{arch}: {} bytes", bytes.len());
        let directory = tmp();
        let path = directory.path().join("launcher");
        fs::write(&path, bytes).unwrap();
        let output = Command::new("readelf")
            .args(["-hldSW"])
            .arg(&path)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let machine = if arch == "x86_64" {
            "X86-64"
        } else {
            "AArch64"
        };
        assert!(text.contains(machine), "{text}");
        for part in ["INTERP", "(NEEDED)", ".symtab", ".debug"] {
            assert!(!text.contains(part), "{arch}: {part} in\n{text}");
        }
        for (part, flags) in text.lines().filter_map(|line| line.trim().split_once(' ')) {
            assert!(
                part != "GNU_STACK" || !flags.contains("E "),
                "{arch}: an executable stack"
            );
        }
    }
}

#[test]
fn the_other_architectures_launcher_unpacks_too() {
    let (arch, emulator) = match std::env::consts::ARCH {
        "x86_64" => ("aarch64", "qemu-aarch64-static"),
        _ => ("x86_64", "qemu-x86_64-static"),
    };
    let package = Package::with(&launcher(arch), &small(), &in_tree());
    let tmp = tmp();
    let mut command = Command::new(emulator);
    command
        .arg(package.bootstrap())
        .env("SLIMLAMBDA_TMP", tmp.path())
        .env("SLIMLAMBDA_TRACE", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let Ok(child) = command.spawn() else {
        println!("skipped: no {emulator}");
        return;
    };
    // What it becomes is this machine's own program, which needs no emulator.
    let outcome = wait(child).started();
    assert_eq!(outcome.frames(), package.frames);
    assert_eq!(package.tree(tmp.path()), expected(&small()));
}

#[test]
fn the_contents_of_the_large_tree_are_what_they_are_said_to_be() {
    let size: usize = LARGE
        .iter()
        .map(|file| match &file.content {
            Content::Bytes(bytes) => bytes.len(),
            Content::Link(_) => 0,
        })
        .sum();
    assert!(
        size > 60 << 20 && LARGE_PACKAGE.frames > 15,
        "{size} bytes, {} frames",
        LARGE_PACKAGE.frames
    );
}
