//! The cache of packed frames, from the outside: it saves time and shows in nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::function::{Ran, run};
use crate::trees::{noise, text};

/// A directory to pack, of eleven frames: of text one for each MiB, of noise too.
fn place() -> TempDir {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("in")).unwrap();
    for n in 0..3 {
        let path = place.path().join(format!("in/{n}"));
        fs::write(path, text(3 << 20, n)).unwrap();
    }
    fs::write(place.path().join("in/noise"), noise(2 << 20, 7)).unwrap();
    fs::write(place.path().join("in/small"), "small").unwrap();
    place
}

fn pack(place: &TempDir, output: &str, level: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cargo-slimlambda"));
    command
        .args([
            "archive",
            "pack",
            "in",
            "--message-format",
            "json",
            "-o",
            output,
        ])
        .args(["--level", level])
        .args(args)
        .current_dir(place.path())
        .env("XDG_CACHE_HOME", place.path().join("cache"))
        .env_remove("SLIMLAMBDA_CACHE_SIZE");
    command
}

/// Frames from the cache, all frames, and the archive.
fn packed(place: &TempDir, output: &str, ran: &Ran) -> (u64, u64, Vec<u8>) {
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    let count = |name: &str| document[name].as_u64().unwrap();
    let bytes = fs::read(place.path().join(output)).unwrap();
    (count("cached_frames"), count("frames"), bytes)
}

fn try_pack(place: &TempDir, args: &[&str]) -> (u64, u64, Vec<u8>) {
    packed(place, "out", &run(pack(place, "out", "2", args), ""))
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for shard in fs::read_dir(directory.join("cache/slimlambda/frames")).unwrap() {
        let entries = fs::read_dir(shard.unwrap().path()).unwrap();
        out.extend(entries.map(|entry| entry.unwrap().path()));
    }
    out.sort();
    out
}

#[test]
fn what_is_packed_again_is_the_same_and_only_what_changed_is_compressed() {
    let place = place();
    let (_, _, without) = try_pack(&place, &["--no-cache"]);
    assert!(!place.path().join("cache").exists());
    let (hits, frames, first) = try_pack(&place, &[]);
    assert_eq!((hits, frames), (0, 11));
    let (hits, _, second) = try_pack(&place, &["--threads", "1"]);
    assert_eq!(hits, 11);
    assert!(first == without && second == without);

    // Another level is another frame.
    assert_eq!(
        packed(&place, "out", &run(pack(&place, "out", "3", &[]), "")).0,
        0
    );

    fs::write(place.path().join("in/1"), text(3 << 20, 9)).unwrap();
    let (hits, _, changed) = try_pack(&place, &[]);
    assert_eq!(hits, 8);
    assert!(changed == try_pack(&place, &["--no-cache"]).2);
}

#[test]
fn damaged_entries_are_made_again() {
    let place = place();
    let first = try_pack(&place, &[]).2;
    let entries = entries(place.path());
    assert_eq!(entries.len(), 11);
    for (n, path) in entries.iter().enumerate() {
        let mut bytes = fs::read(path).unwrap();
        match n {
            0 => bytes.truncate(bytes.len() / 2),
            1 => bytes.clear(),
            _ => *bytes.last_mut().unwrap() ^= 1,
        }
        fs::write(path, bytes).unwrap();
    }
    let (hits, _, second) = try_pack(&place, &[]);
    assert_eq!(hits, 0);
    assert!(second == first);
    let (hits, _, third) = try_pack(&place, &[]);
    assert_eq!(hits, 11);
    assert!(third == first);
}

#[test]
fn several_at_once_share_it() {
    let place = place();
    let expected = try_pack(&place, &["--no-cache"]).2;
    let archives: Vec<_> = std::thread::scope(|scope| {
        let run = |n: u32| {
            let (place, output) = (&place, format!("out{n}"));
            // Two of them are so small that they remove what the others have just put there.
            let size = if n.is_multiple_of(2) { "2048" } else { "1" };
            scope.spawn(move || {
                let mut command = pack(place, &output, "2", &[]);
                command.env("SLIMLAMBDA_CACHE_SIZE", size);
                let ran = run(command, "");
                assert_eq!(ran.stderr, "");
                packed(place, &output, &ran).2
            })
        };
        let running: Vec<_> = (0..4).map(run).collect();
        running.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(archives.iter().all(|archive| *archive == expected));
}

#[test]
fn its_size_is_limited() {
    let place = place();
    try_pack(&place, &[]);
    let size = || -> u64 {
        let entries = entries(place.path()).into_iter();
        entries.map(|path| fs::metadata(path).unwrap().len()).sum()
    };
    assert!(size() > 2 << 20);
    for (mib, most) in [("2", 2 << 20), ("1", 1 << 20)] {
        let mut command = pack(&place, "out", "2", &[]);
        command.env("SLIMLAMBDA_CACHE_SIZE", mib);
        assert_eq!(run(command, "").code, 0);
        assert!(size() <= most, "{} of {mib} MiB", size());
    }
    let before = entries(place.path());
    let mut command = pack(&place, "out", "2", &[]);
    command.env("SLIMLAMBDA_CACHE_SIZE", "0");
    assert_eq!(packed(&place, "out", &run(command, "")).0, 0);
    assert_eq!(entries(place.path()), before);

    let mut command = pack(&place, "out", "2", &[]);
    command.env("SLIMLAMBDA_CACHE_SIZE", "2 GiB");
    let ran = run(command, "");
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr.contains("`SLIMLAMBDA_CACHE_SIZE` is `2 GiB`"),
        "{}",
        ran.stderr
    );
}

#[test]
fn without_a_place_for_it_one_warning_is_all() {
    let place = place();
    let expected = try_pack(&place, &["--no-cache"]).2;
    // A file where the directory would be: root could write into any directory.
    fs::create_dir(place.path().join("cache")).unwrap();
    fs::write(place.path().join("cache/slimlambda"), "").unwrap();
    let ran = run(pack(&place, "out", "2", &[]), "");
    let warnings = ran
        .stderr
        .matches("warning: packed frames could not be kept in `")
        .count();
    assert_eq!(warnings, 1, "{}", ran.stderr);
    assert!(packed(&place, "out", &ran).2 == expected);

    let mut command = pack(&place, "out", "2", &[]);
    command.env_remove("XDG_CACHE_HOME").env_remove("HOME");
    let ran = run(command, "");
    assert_eq!(ran.stderr, "");
    assert!(packed(&place, "out", &ran).2 == expected);
}
