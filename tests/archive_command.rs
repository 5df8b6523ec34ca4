//! `cargo slimlambda archive`: what it packs comes out again, what it is asked for is what it does, and what is damaged has a
//! name.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::getuid;
use serde_json::Value;
use snapbox::{assert_data_eq, str};
use tempfile::TempDir;

use crate::function::{Ran, run};
use crate::raw::{HELLO, good, one_file, piece};
use crate::schema::faults;
use crate::trees::{Content, File, Tree, expected, file, found, lazy, link, noise, pack, text};
use runtime_unpack::filter::Filter;
use runtime_unpack::format::HEADER_SIZE;
use runtime_unpack::launch::Launch;

const SCHEMA: &str = include_str!("../cargo-slimlambda/schemas/archive-report-v1.schema.json");

/// A directory to work in, with a cache of its own.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    /// With an archive of these files, packed without the command.
    fn with(files: &[File]) -> Place {
        let place = Place::new();
        let packed = pack(files, &Launch::default()).unwrap();
        fs::write(place.path("archive"), packed.bytes).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cargo-slimlambda"));
        command
            .arg("archive")
            .args(args)
            .current_dir(self.0.path())
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env_remove("SLIMLAMBDA_CACHE_SIZE");
        command
    }

    fn try_run(&self, args: &[&str]) -> Ran {
        run(self.command(args), "")
    }

    fn run(&self, args: &[&str]) -> String {
        let ran = self.try_run(args);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{args:?}");
        ran.stdout
    }

    fn json(&self, args: &[&str]) -> Value {
        let ran = self.try_run(&[args, &["--message-format", "json"]].concat());
        let document: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(faults(SCHEMA, &document), [""; 0], "{}", ran.stdout);
        let code = document["error"]["exit_code"].as_i64().unwrap_or(0);
        assert_eq!(i64::from(ran.code), code);
        document
    }

    /// What it says while failing.
    #[track_caller]
    fn fails(&self, args: &[&str], code: i32) -> String {
        let ran = self.try_run(args);
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (code, ""),
            "{}",
            ran.stderr
        );
        ran.stderr
    }

    fn write(&self, files: &[File]) {
        for file in files {
            let path = self.path("in").join(&file.path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match &file.content {
                Content::Bytes(bytes) => {
                    fs::write(&path, bytes).unwrap();
                    fs::set_permissions(&path, fs::Permissions::from_mode(file.mode)).unwrap();
                }
                Content::Link(target) => symlink(target, &path).unwrap(),
            }
        }
    }

    /// Names at the top, the cache's aside.
    fn names(&self) -> Vec<String> {
        names(self.0.path())
            .into_iter()
            .filter(|name| name != "cache")
            .collect()
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

fn files() -> Vec<File> {
    vec![
        file("bin/run", 0o755, "#!/bin/sh\n"),
        file("empty", 0o644, ""),
        file("lib/libx.so.1", 0o644, text(9 << 20, 1)),
        link("lib/libx.so", "libx.so.1"),
        link("lib/deep/up", "../../bin/run"),
        file("models/noise", 0o600, noise(2 << 20, 2)),
        file("models/same", 0o644, noise(2 << 20, 2)),
        file("models/ü 1", 0o400, "read only"),
        link("nowhere", "gone"),
    ]
}

#[test]
fn a_directory_comes_back_as_it_was() {
    let place = Place::new();
    place.write(&files());
    fs::create_dir_all(place.path("in/nothing/in/here")).unwrap();
    symlink("./lib//libx.so.1/", place.path("in/dotted")).unwrap();
    let mut tree = expected(&files());
    for path in ["nothing", "nothing/in", "nothing/in/here"] {
        tree.insert(path.to_owned(), crate::trees::Node::Directory);
    }
    tree.insert(
        "dotted".to_owned(),
        crate::trees::Node::Link("lib/libx.so.1".to_owned()),
    );

    let said = place.run(&["pack", "in", "-o", "a", "--level", "1"]);
    assert_data_eq!(
        said,
        str![[r#"
packed 6 files, 4 symlinks: 13.0 MiB → [..] MiB ([..] %) in [..]s, digest [..]

"#]]
    );
    let said = place.run(&["extract", "a", "-C", "new/out", "--threads", "2"]);
    assert_data_eq!(
        said,
        str![[r#"
extracted 6 files, 4 symlinks: 13.0 MiB in [..]s ([..] MB/s, 2 threads)

"#]]
    );
    assert_eq!(found(&place.path("new/out")), tree);
    let said = place.run(&["verify", "a"]);
    assert_data_eq!(
        said,
        str![[r#"
verified 6 files, 4 symlinks: 11.0 MiB in [..]s, digest [..]

"#]]
    );
    assert_eq!(place.run(&["verify", "a", "--quiet"]), "");

    // In a directory that exists, and in the current one.
    fs::create_dir(place.path("there")).unwrap();
    let mut command = place.command(&["extract", "../a"]);
    command.current_dir(place.path("there"));
    assert_eq!(run(command, "").code, 0);
    assert_eq!(found(&place.path("there")), tree);
}

#[test]
fn threads_and_places_do_not_show_in_an_archive() {
    let place = Place::new();
    place.write(&files());
    place.run(&[
        "pack",
        "in",
        "-o",
        "a",
        "--level",
        "fast",
        "--threads",
        "1",
        "--no-cache",
    ]);
    let mut command = place.command(&["pack", ".", "-o", "../b", "--level", "6", "--threads", "3"]);
    command.current_dir(place.path("in"));
    assert_eq!(run(command, "").code, 0);
    let [a, b] = ["a", "b"].map(|name| fs::read(place.path(name)).unwrap());
    assert!(a == b);
    let mode = fs::metadata(place.path("a")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
}

#[test]
fn what_an_archive_cannot_hold_is_an_error_that_names_it() {
    let odd = OsStr::from_bytes(b"in/od\xffd");
    type Make = Box<dyn Fn(&Place)>;
    let link = |target: &'static str| -> Make {
        Box::new(move |place| symlink(target, place.path("in/sub/odd")).unwrap())
    };
    let cases: Vec<(Make, &str)> = vec![
        (
            Box::new(|place| {
                let path = place.path("in/sub/odd");
                nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
            }),
            "`in/sub/odd` cannot be packed: it is neither a file, a directory nor a symlink",
        ),
        (
            link("/etc/passwd"),
            "symlink `in/sub/odd` → `/etc/passwd` cannot be packed: it is absolute",
        ),
        (
            link("../../x"),
            "symlink `in/sub/odd` → `../../x` cannot be packed: it points outside the root",
        ),
        (
            link("x/../../../y"),
            "symlink `in/sub/odd` → `x/../../../y` cannot be packed",
        ),
        (
            Box::new(move |place| fs::write(place.0.path().join(odd), "").unwrap()),
            "is not UTF-8",
        ),
        (
            Box::new(|place| fs::remove_dir_all(place.path("in")).unwrap()),
            "failed to read directory `in/`",
        ),
    ];
    for (make, says) in cases {
        let place = Place::new();
        place.write(&[file("sub/x", 0o644, "x")]);
        fs::write(place.path("a"), "what was there").unwrap();
        make(&place);
        let said = place.fails(&["pack", "in", "-o", "a"], 101);
        assert!(said.contains(says), "{said}");
        assert_eq!(fs::read(place.path("a")).unwrap(), b"what was there");
        let names = place.names();
        assert!(names == ["a", "in"] || names == ["a"], "{names:?}");
    }

    let place = Place::new();
    place.write(&[file("sub/x", 0o644, "x")]);
    let said = place.fails(&["pack", "in", "-o", "in/sub/a"], 2);
    assert!(
        said.contains("`in/sub/a` is inside the directory to pack"),
        "{said}"
    );
    let said = place.fails(&["pack", "in/sub/x", "-o", "a"], 101);
    assert!(said.contains("`in/sub/x"), "{said}");
    let said = place.fails(&["pack", "in", "-o", "gone/a"], 101);
    assert!(said.contains("failed to write `gone/a`"), "{said}");
}

/// Runs a command with a small tmpfs at `full`; then says what is in there. `None` where mounts are not allowed.
fn on_full_disk(place: &Place, args: &[&str]) -> Option<(Ran, String)> {
    let full = place.path("full");
    fs::create_dir_all(&full).unwrap();
    let script = "mount -t tmpfs -o size=1m none full || exit 77; echo old >full/a; \"$@\"; code=$?; ls -A full; exit $code";
    let command = place.command(args);
    let mut shell = Command::new("unshare");
    if !getuid().is_root() {
        shell.args(["--user", "--map-root-user"]);
    }
    shell
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(place.0.path())
        .env("XDG_CACHE_HOME", place.path("cache"));
    let ran = run(shell, "");
    if ran.code == 77 || ran.code == 1 {
        println!("skipped: mounts need root or unprivileged user namespaces");
        return None;
    }
    let left = ran.stdout.trim().to_owned();
    Some((ran, left))
}

#[test]
fn a_full_disk_leaves_no_half_archive() {
    let place = Place::new();
    place.write(&[file("noise", 0o644, noise(2 << 20, 1))]);
    for output in ["full/a", "full/b"] {
        let Some((ran, left)) = on_full_disk(&place, &["pack", "in", "-o", output]) else {
            return;
        };
        assert_eq!(ran.code, 101, "{}", ran.stderr);
        assert!(
            ran.stderr.contains(&format!("failed to write `{output}`")),
            "{}",
            ran.stderr
        );
        assert!(ran.stderr.contains("No space left"), "{}", ran.stderr);
        assert_eq!(left, "a");
    }
}

#[test]
fn a_full_disk_leaves_nothing_extracted() {
    let place = Place::with(&[
        file("noise", 0o644, noise(2 << 20, 1)),
        file("x", 0o644, "x"),
    ]);
    for directory in ["full", "full/new/out"] {
        let Some((ran, left)) = on_full_disk(&place, &["extract", "archive", "-C", directory])
        else {
            return;
        };
        assert_eq!(ran.code, 101, "{}", ran.stderr);
        let says = format!("error: nothing was extracted to `{directory}`");
        assert!(ran.stderr.contains(&says), "{}", ran.stderr);
        assert!(
            ran.stderr
                .contains("could not write `noise`: No space left"),
            "{}",
            ran.stderr
        );
        assert_eq!(left, "a");
    }
}

#[test]
fn parts_are_extracted_by_name() {
    let place = Place::with(&files());
    let only = |prefixes: &[&str]| -> Tree {
        let files = files();
        let of = |file: &&File| prefixes.iter().any(|prefix| file.path.starts_with(prefix));
        expected(files.iter().filter(of))
    };
    place.run(&["extract", "archive", "bin", "lib/libx.so.1", "-C", "one"]);
    assert_eq!(found(&place.path("one")), only(&["bin/", "lib/libx.so.1"]));
    place.run(&["extract", "archive", "./lib/", "-C", "two"]);
    assert_eq!(found(&place.path("two")), only(&["lib/"]));
    // What is added joins what is there.
    place.run(&["extract", "archive", "lib/deep", "models", "-C", "one"]);
    let all = only(&["bin/", "lib/libx.so.1", "lib/deep/", "models/"]);
    assert_eq!(found(&place.path("one")), all);

    let said = place.fails(&["extract", "archive", "lib/libz.so.1", "-C", "three"], 2);
    assert_data_eq!(
        said,
        str![[r#"
error: `lib/libz.so.1` is not in the archive
help: it has `lib/libx.so.1`, `lib/libx.so`, [..]

"#]]
    );
    let said = place.fails(&["extract", "archive", "li", "-C", "three"], 2);
    assert!(said.contains("it has `lib`"), "{said}");
    assert_eq!(place.names(), ["archive", "one", "two"]);
}

#[test]
fn lazy_files_are_extracted_too() {
    let files = [lazy("later", 0o644, "later"), file("now", 0o644, "now")];
    let place = Place::with(&files);
    place.run(&["extract", "archive", "-C", "out"]);
    assert_eq!(found(&place.path("out")), expected(&files));
}

#[test]
fn nothing_is_overwritten_unless_it_is_said() {
    let place = Place::with(&files());
    let out = place.path("out");
    fs::create_dir_all(out.join("bin")).unwrap();
    fs::write(out.join("bin/run"), "mine").unwrap();
    fs::write(out.join("bin/other"), "mine").unwrap();
    symlink("elsewhere", out.join("empty")).unwrap();
    let before = found(&out);

    let said = place.fails(&["extract", "archive", "-C", "out"], 101);
    assert_data_eq!(
        said,
        str![[r#"
error: `out` has already: `bin/run`, `empty`
help: replace it with `--force`, or extract to another directory

"#]]
    );
    assert_eq!(found(&out), before);

    place.run(&["extract", "archive", "-C", "out", "--force"]);
    let mut all = expected(&files());
    all.insert("bin/other".to_owned(), before["bin/other"].clone());
    assert_eq!(found(&out), all);
    // And again, over all of it.
    place.run(&["extract", "archive", "-C", "out", "--force"]);
    assert_eq!(found(&out), all);

    // Nobody knows what is in a directory.
    fs::remove_file(out.join("empty")).unwrap();
    fs::create_dir(out.join("empty")).unwrap();
    let before = found(&out);
    let said = place.fails(&["extract", "archive", "-C", "out", "--force"], 101);
    assert!(
        said.contains("a directory of `out` is where a file would be extracted: `empty`"),
        "{said}"
    );
    assert_eq!(found(&out), before);
}

#[test]
fn symlinks_in_the_directory_are_not_followed() {
    let place = Place::with(&files());
    fs::create_dir_all(place.path("outside")).unwrap();
    fs::write(place.path("outside/run"), "untouched").unwrap();
    fs::create_dir(place.path("out")).unwrap();
    symlink("../outside", place.path("out/bin")).unwrap();
    let said = place.fails(&["extract", "archive", "bin", "-C", "out"], 101);
    assert!(said.contains("`out` has already: `bin`"), "{said}");
    place.run(&["extract", "archive", "bin", "-C", "out", "--force"]);
    assert_eq!(
        found(&place.path("out")),
        expected(&[file("bin/run", 0o755, "#!/bin/sh\n")])
    );
    assert_eq!(names(&place.path("outside")), ["run"]);
    assert_eq!(fs::read(place.path("outside/run")).unwrap(), b"untouched");
}

/// Damage at every place, one bit at a time.
#[test]
fn damage_is_found_and_named() {
    let files = [
        file("a/large", 0o644, text(5 << 20, 1)),
        file("a/noise", 0o644, noise(2 << 20, 2)),
        file("a/same", 0o644, noise(2 << 20, 2)),
        file("b", 0o644, "b"),
    ];
    let place = Place::with(&files);
    let whole = fs::read(place.path("archive")).unwrap();
    let archive = place.json(&["stat", "archive"]);
    let frames = archive["frames"].as_array().unwrap();
    let index = archive["index"]["packed_size"].as_u64().unwrap() as usize;
    let flip = |at: usize, bit: u8| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << bit;
        fs::write(place.path("archive"), bytes).unwrap();
    };
    // The first bytes say what it is, so that without them it is something else.
    for at in (0..HEADER_SIZE + index).step_by(7).skip(2) {
        flip(at, (at % 8) as u8);
        let ran = place.try_run(&["verify", "archive"]);
        assert_eq!(ran.code, 100, "{at}: {}", ran.stderr);
        assert!(
            ran.stderr.starts_with("error: `archive` is damaged: "),
            "{at}: {}",
            ran.stderr
        );
    }
    let mut at = HEADER_SIZE + index;
    for (number, frame) in frames.iter().enumerate() {
        let size = frame["packed_size"].as_u64().unwrap() as usize;
        flip(at + size / 2, 3);
        let document = place.json(&["verify", "archive"]);
        assert_eq!(document["intact"], false);
        assert_eq!(document["damaged_frames"], serde_json::json!([number]));
        let first = frame["first"].as_str().unwrap();
        let damaged: &[&str] = match first {
            "a/noise" => &["a/noise", "a/same"],
            first => &[first],
        };
        assert_eq!(document["damaged"], serde_json::json!(damaged));
        let said = place.fails(&["verify", "archive"], 100);
        assert!(said.contains(&format!("frame {number}: ")), "{said}");
        assert!(said.contains(&format!("damaged: `{first}`")), "{said}");

        // Nothing comes out of it, but what is sound does.
        let said = place.fails(&["extract", "archive", "-C", "out"], 101);
        assert!(said.contains("nothing was extracted to `out`"), "{said}");
        assert_eq!(place.names(), ["archive"]);
        let sound = if first == "b" { "a" } else { "b" };
        place.run(&["extract", "archive", sound, "-C", "out"]);
        fs::remove_dir_all(place.path("out")).unwrap();
        at += size;
    }
    assert_eq!(at, whole.len());

    for size in [100, HEADER_SIZE, HEADER_SIZE + index, whole.len() - 1] {
        fs::write(place.path("archive"), &whole[..size]).unwrap();
        for command in ["verify", "list", "stat", "extract"] {
            let code = if command == "verify" { 100 } else { 101 };
            let said = place.fails(&[command, "archive"], code);
            assert!(said.starts_with("error: `archive` is damaged: "), "{said}");
        }
    }
}

/// A blob whose frame is sound and whose own digest is not: somebody's packer was wrong.
#[test]
fn a_wrong_digest_of_a_file_is_found() {
    let place = Place::with(&[file("x", 0o644, "content of x"), file("y", 0o644, "")]);
    let bytes = fs::read(place.path("archive")).unwrap();
    let digest = blake3::hash(b"content of x");
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let (packed, unpacked) = (u64_at(16), u64_at(24));
    let index = &bytes[HEADER_SIZE..HEADER_SIZE + packed];
    let mut index = zstd::bulk::decompress(index, unpacked).unwrap();
    // The blob's digest comes before the frame's, which is the same here: the frame is stored.
    let at = index
        .windows(32)
        .position(|bytes| bytes == digest.as_bytes())
        .unwrap();
    index[at] ^= 1;
    let repacked = zstd::bulk::compress(&index, 1).unwrap();
    let mut header = bytes[..HEADER_SIZE].to_vec();
    header[16..24].copy_from_slice(&(repacked.len() as u64).to_le_bytes());
    header[96..128].copy_from_slice(blake3::hash(&repacked).as_bytes());
    let frames = &bytes[HEADER_SIZE + packed..];
    fs::write(place.path("archive"), [&header, &repacked, frames].concat()).unwrap();
    let said = place.fails(&["verify", "archive"], 100);
    assert_data_eq!(
        said,
        str![[r#"
error: `archive` is damaged
  damaged: `x`
help: pack or download it again

"#]]
    );
}

/// A file of two gigabytes in a few hundred bytes: what is read is bounded by what is there.
#[test]
fn holes_are_verified_without_memory_for_them() {
    let place = Place::new();
    let hole = piece(1 << 20, 0, Filter::Hole, 0);
    let mut raw = one_file(HELLO, Vec::new(), good().frames);
    raw.pieces = vec![piece(HELLO.len(), 0, Filter::Plain, 0)];
    // In 600 MiB of address space.
    raw.pieces.extend([hole; 2_000]);
    raw.blobs[0].pieces = 2_001;
    raw.blobs[0].size = HELLO.len() as u64 + (2_000 << 20);
    fs::write(place.path("archive"), raw.bytes()).unwrap();
    let command = place.command(&["verify", "archive", "--threads", "1"]);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "ulimit -v 600000; exec \"$@\"", "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(place.0.path());
    let ran = run(shell, "");
    // The digest is that of the few bytes alone.
    assert_eq!(ran.code, 100, "{}", ran.stderr);
    assert!(ran.stderr.contains("damaged: `f`"), "{}", ran.stderr);
}

#[test]
fn what_is_no_archive_is_said_to_be_none() {
    let place = Place::with(&files());
    let whole = fs::read(place.path("archive")).unwrap();
    let mut future = whole.clone();
    future[8] = 77;
    fs::write(place.path("future"), future).unwrap();
    fs::write(place.path("empty"), "").unwrap();
    fs::write(place.path("text"), "slimlambda".repeat(99)).unwrap();
    fs::write(place.path("bootstrap.zip"), "PK\u{3}\u{4}".repeat(99)).unwrap();
    fs::create_dir(place.path("directory")).unwrap();
    for (name, says, code) in [
        (
            "future",
            "has version 77 of the format, found where this program reads version ",
            101,
        ),
        ("empty", "`empty` is not a slimlambda archive", 100),
        ("text", "`text` is not a slimlambda archive", 100),
        ("bootstrap.zip", "`slimlambda.archive` in it", 100),
        (
            "directory",
            "could not read `directory`: Is a directory",
            101,
        ),
        ("gone", "no such file: `gone`", 101),
    ] {
        for command in ["list", "stat", "extract", "verify"] {
            let code = if command == "verify" { code } else { 101 };
            let said = place.fails(&[command, name], code);
            assert!(said.contains(says), "{said}");
            assert!(said.starts_with("error: "), "{said}");
        }
    }
    let document = place.json(&["list", "text"]);
    assert_eq!(document["error"]["exit_code"], 101);
}

#[test]
fn people_read_lists() {
    let place = Place::with(&[
        lazy("later", 0o644, vec![0; 3 << 20]),
        file("models/\u{1b}[2Jevil\u{202e}\n", 0o600, ""),
        file("models/\\back", 0o751, "12345"),
        link("models/link", "evil\r"),
    ]);
    assert_data_eq!(
        place.run(&["list", "archive"]),
        str![[r#"
mode                size  packed  path
-rw-r--r-- lazy  3.0 MiB  [..] B  later
drwxr-xr-x                        models/
-rw-------           0 B     0 B  models//u{1b}[2Jevil/u{202e}/n
-rwxr-x--x           5 B     5 B  models///back
lrwxrwxrwx                        models/link -> evil/r

"#]]
    );
}

#[test]
fn people_read_how_an_archive_is_packed() {
    let place = Place::with(&[
        file("holes", 0o644, vec![0; 5 << 20]),
        file("noise", 0o644, noise(2 << 20, 2)),
        file("same", 0o644, noise(2 << 20, 2)),
        file("sub/a", 0o644, text(1 << 20, 3)),
        file("sub/b", 0o644, "b"),
    ]);
    assert_data_eq!(
        place.run(&["stat", "archive"]),
        str![[r#"
archive: 2.5 MiB, 25.0 % of 10.0 MiB
  digest   [..]
  entries  5 files, 1 directory
  content  8.0 MiB in 4 blobs, 2.0 MiB of equal files once
  index    [..] B of 547 B
  frames   4, in memory at most 1.0 MiB

filter  pieces  content
hole         1  5.0 MiB
plain        4  3.0 MiB

stream  frames  unpacked     packed    ratio   stored
data         2   2.0 MiB    2.0 MiB  100.0 %  2.0 MiB
text         2   1.0 MiB  51[..] KiB   50.0 %      1 B

frame  filters  content  streams     packed    ratio  blobs  first
    0  plain    1.0 MiB  1.0 MiB    1.0 MiB  100.0 %      1  noise
    1  plain    1.0 MiB  1.0 MiB    1.0 MiB  100.0 %      1  noise
    2  plain    1.0 MiB  1.0 MiB  51[..] KiB   50.0 %      1  sub/a
    3  plain        1 B      1 B        1 B  100.0 %      1  sub/b

"#]]
    );
}

#[test]
fn programs_read_json_as_its_schema_says() {
    let place = Place::new();
    place.write(&files());
    let packed = place.json(&["pack", "in", "-o", "a", "--level", "1"]);
    let list = place.json(&["list", "a"]);
    let stat = place.json(&["stat", "a"]);
    let verified = place.json(&["verify", "a", "--threads", "2"]);
    let extracted = place.json(&["extract", "a", "-C", "out", "--threads", "2"]);

    // And it is true.
    let size = fs::metadata(place.path("a")).unwrap().len();
    let total: u64 = files()
        .iter()
        .map(|file| match &file.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Link(_) => 0,
        })
        .sum();
    for document in [&list, &stat, &verified, &extracted] {
        assert_eq!(document["digest"], packed["digest"]);
    }
    for document in [&packed, &stat] {
        assert_eq!(document["packed_size"], size);
    }
    for document in [&packed, &stat, &extracted] {
        assert_eq!(document["unpacked_size"], total);
        assert_eq!(document["entries"]["files"], 6);
        assert_eq!(document["entries"]["directories"], 4);
        assert_eq!(document["entries"]["symlinks"], 3);
    }
    let sum = |rows: &Value, name: &str| -> u64 {
        let rows = rows.as_array().unwrap().iter();
        rows.map(|row| row[name].as_u64().unwrap()).sum()
    };
    assert_eq!(sum(&stat["filters"], "unpacked_size"), stat["content_size"]);
    for (streams, frames) in [
        ("packed_size", "packed_size"),
        ("unpacked_size", "streams_size"),
    ] {
        assert_eq!(sum(&stat["streams"], streams), sum(&stat["frames"], frames));
    }
    assert_eq!(sum(&list["entries"], "size"), total);
    let shares = sum(&list["entries"], "packed_size");
    let frames = sum(&stat["frames"], "packed_size");
    assert!(
        shares <= frames && shares + 99 > frames,
        "{shares} of {frames}"
    );
    for entry in list["entries"].as_array().unwrap() {
        let path = place.path("in").join(entry["path"].as_str().unwrap());
        if entry["kind"] == "file" {
            let digest = blake3::hash(&fs::read(&path).unwrap()).to_hex();
            assert_eq!(entry["digest"], digest.as_str());
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(entry["mode"], format!("{mode:04o}"));
        }
    }
}
