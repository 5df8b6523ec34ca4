//! `cargo slimlambda archive`: packs, lists, extracts, verifies and measures archives as files of their own.
//!
//! Each command makes an [`Answer`], once for people and once for programs, and prints one of them on stdout. Reading and
//! unpacking is done by `runtime_unpack`, the way launchers do it.

mod facts;
mod table;
mod verify;
mod walk;

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use runtime_unpack::Error;
use runtime_unpack::extract::{self, Existing};
use runtime_unpack::format::{HEADER_SIZE, MAGIC, VERSION, hex};
use runtime_unpack::launch::Launch;
use runtime_unpack::reader::Archive;
use runtime_unpack::source::ArchiveFile;
use serde_json::{Value, json};

use crate::cli::archive::{
    ArchiveArgs, ArchiveCommand, ArchiveFormat, ExtractArgs, PackArgs, VerifyArgs, WorkArgs,
};
use crate::error::{exit_status, gate, usage};
use crate::event::Sink;
use crate::output::replace;
use crate::pack::archive::{Input, pack};
use crate::pack::cache::Cache;
use crate::report;
use crate::report::terminal::{Screen, size};
use facts::{Count, shown};

/// Version of the JSON documents; `schemas/archive-report-v1.schema.json` describes them.
const REPORT_VERSION: u32 = 1;

/// What a command found out.
struct Answer {
    /// For people; may be empty.
    text: String,
    /// For programs: an object.
    json: Value,
    /// Why the command fails nevertheless.
    verdict: anyhow::Result<()>,
}

/// Runs `cargo slimlambda archive`.
///
/// # Errors
///
/// Exit code 100 where `verify` finds damage, 2 where the command line asks for what is not there, 101 for the rest.
pub fn archive(args: &ArchiveArgs) -> anyhow::Result<()> {
    let screen = Screen::new(args.output());
    let sink: Sink<'_> = &|event| screen.event(event);
    let (command, answer) = match &args.command {
        ArchiveCommand::Pack(args) => ("pack", threads(&args.work, || pack_directory(args, sink))),
        ArchiveCommand::List(args) => ("list", open(&args.file).map(|file| table::list(&file))),
        ArchiveCommand::Extract(args) => ("extract", extract_to(args)),
        ArchiveCommand::Verify(args) => ("verify", threads(&args.work, || verify_all(args))),
        ArchiveCommand::Stat(args) => ("stat", open(&args.file).map(|file| table::stat(&file))),
    };
    screen.clear();
    let mut document = json!({ "version": REPORT_VERSION, "command": command });
    let mut text = String::new();
    let verdict = match answer {
        Err(error) => Err(error),
        Ok(answer) => {
            if let (Some(document), Value::Object(more)) = (document.as_object_mut(), answer.json) {
                document.extend(more);
            }
            text = answer.text;
            answer.verdict
        }
    };
    if args.messages().message_format == ArchiveFormat::Json {
        if let Err(error) = &verdict {
            document["error"] =
                json!({ "message": format!("{error:#}"), "exit_code": exit_status(error) });
        }
        text = serde_json::to_string_pretty(&document).context("failed to write the report")?;
    } else if args.output().quiet && !matches!(command, "list" | "stat") {
        text.clear();
    }
    if !text.is_empty() {
        report::print(text.trim_end());
    }
    verdict
}

/// Runs `work` on as many threads as were asked for.
fn threads<R: Send>(
    args: &WorkArgs,
    work: impl FnOnce() -> anyhow::Result<R> + Send,
) -> anyhow::Result<R> {
    let Some(threads) = args.threads else {
        return work();
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.into())
        .build()
        .context("failed to start threads")?
        .install(work)
}

fn pack_directory(args: &PackArgs, sink: Sink<'_>) -> anyhow::Result<Answer> {
    let start = Instant::now();
    if inside(&args.output, &args.directory) {
        return Err(usage(format!(
            "`{}` is inside the directory to pack, and would be part of itself\nhelp: write it elsewhere",
            args.output.display()
        )));
    }
    let found = walk::walk(&args.directory)?;
    let inputs: Vec<Input<'_>> = found.iter().map(walk::Found::input).collect();
    let level = args.level.unwrap_or_default().zstd();
    let cache = match args.no_cache {
        true => None,
        false => Cache::of_user()?,
    };
    let packed = pack(&inputs, &Launch::default(), level, cache.as_ref(), sink)?;
    if let Some(cache) = &cache {
        cache.finish(sink);
    }
    replace(&args.output, &packed.bytes, 0o644)?;

    let count = Count::of(&inputs);
    let (unpacked_size, packed_size) = (count.bytes, packed.bytes.len() as u64);
    let hits = cache.as_ref().map_or(0, |cache| cache.counts().0);
    let known = match hits {
        0 => String::new(),
        hits => format!(", {hits} of {} frames from the cache", packed.frames),
    };
    let time = start.elapsed();
    Ok(Answer {
        text: format!(
            "packed {count}: {} → {} ({}) in {}{known}, digest {}",
            size(unpacked_size),
            size(packed_size),
            facts::percent(packed_size, unpacked_size),
            seconds(time),
            hex(&packed.digest)
        ),
        json: json!({
            "archive": args.output.to_string_lossy(),
            "digest": hex(&packed.digest),
            "entries": count,
            "unpacked_size": unpacked_size,
            "packed_size": packed_size,
            "frames": packed.frames,
            "cached_frames": hits,
            "threads": rayon::current_num_threads(),
            "seconds": time.as_secs_f64(),
        }),
        verdict: Ok(()),
    })
}

/// Whether `file` (which need not exist) is in `directory`.
fn inside(file: &Path, directory: &Path) -> bool {
    let parent = match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    match (parent.canonicalize(), directory.canonicalize()) {
        (Ok(parent), Ok(directory)) => parent.starts_with(directory),
        _ => false,
    }
}

fn extract_to(args: &ExtractArgs) -> anyhow::Result<Answer> {
    let start = Instant::now();
    let source = open(&args.file)?;
    let archive = &source.archive;
    let wanted = wanted(archive, &args.paths)?;
    let count = Count::of_entries(archive, |number| wanted[number]);

    let directory = &args.directory;
    let made = make_directory(directory)?;
    let undo = |error| {
        // Only what was made for this, and only where nothing is in it.
        for directory in made.iter().rev() {
            let _ = std::fs::remove_dir(directory);
        }
        error
    };
    let open = || {
        let destination = File::open(directory)
            .with_context(|| format!("failed to open `{}`", directory.display()))?;
        let obstacles = extract::obstacles(archive, |n| wanted[n], destination.as_fd())
            .map_err(|error| said(error, &args.file))?;
        refuse(archive, &obstacles, args)?;
        Ok(destination)
    };
    let destination = open().map_err(undo)?;
    let existing = match args.force {
        true => Existing::Replace,
        false => Existing::Keep,
    };
    let threads = args.work.threads.map_or_else(cores, usize::from);
    let done = extract::extract(
        &source,
        |number| wanted[number],
        destination.as_fd(),
        threads,
        existing,
    );
    let done = done.map_err(|failed| {
        let left = match failed.placed {
            0 => format!("nothing was extracted to `{}`", directory.display()),
            placed => format!(
                "extracted only in part to `{}`: {placed} files and directories, each complete",
                directory.display()
            ),
        };
        undo(said(failed.error, &args.file).context(left))
    })?;
    let time = start.elapsed();
    Ok(Answer {
        text: format!(
            "extracted {count}: {} in {} ({:.0} MB/s, {})",
            size(count.bytes),
            seconds(time),
            count.bytes as f64 / 1e6 / time.as_secs_f64().max(1e-6),
            facts::number(done.threads, "thread"),
        ),
        json: json!({
            "archive": args.file.to_string_lossy(),
            "digest": hex(&archive.digest()),
            "directory": directory.to_string_lossy(),
            "entries": count,
            "unpacked_size": count.bytes,
            "frames": done.frames,
            "threads": done.threads,
            "seconds": time.as_secs_f64(),
        }),
        verdict: Ok(()),
    })
}

/// By entry: whether it is one of `paths` or below one; all, where there are none.
fn wanted(archive: &Archive, paths: &[String]) -> anyhow::Result<Vec<bool>> {
    let mut wanted = vec![paths.is_empty(); archive.len()];
    for asked in paths {
        let path = asked.trim_start_matches("./").trim_end_matches('/');
        if archive.find(path.as_bytes()).is_none() {
            let near = facts::nearest(archive, path);
            let help = match near.as_slice() {
                [] => "it is empty".to_string(),
                near => format!("it has {}", near.join(", ")),
            };
            return Err(usage(format!(
                "`{}` is not in the archive\nhelp: {help}",
                shown(asked.as_bytes())
            )));
        }
        for (wanted, entry) in wanted.iter_mut().zip(archive.entries()) {
            let rest = entry.path.strip_prefix(path.as_bytes());
            *wanted |= rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/');
        }
    }
    Ok(wanted)
}

/// Makes `directory` and those that lead to it; answers those that were not there, outermost first.
fn make_directory(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let missing = directory
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && std::fs::metadata(path).is_err());
    let mut missing: Vec<PathBuf> = missing.map(Path::to_path_buf).collect();
    missing.reverse();
    std::fs::create_dir_all(directory)
        .with_context(|| format!("failed to create directory `{}`", directory.display()))?;
    Ok(missing)
}

fn refuse(
    archive: &Archive,
    obstacles: &[extract::Obstacle],
    args: &ExtractArgs,
) -> anyhow::Result<()> {
    let list = |only_directories: bool| {
        let counted = obstacles
            .iter()
            .filter(|obstacle| obstacle.is_directory || !only_directories);
        facts::some(counted.map(|obstacle| archive.entry(obstacle.entry).path))
    };
    let directory = args.directory.display();
    if obstacles.iter().any(|obstacle| obstacle.is_directory) {
        bail!(
            "a directory of `{directory}` is where a file would be extracted: {}\nhelp: remove it, or extract to another directory",
            list(true)
        );
    }
    if !obstacles.is_empty() && !args.force {
        bail!(
            "`{directory}` has already: {}\nhelp: replace it with `--force`, or extract to another directory",
            list(false)
        );
    }
    Ok(())
}

fn verify_all(args: &VerifyArgs) -> anyhow::Result<Answer> {
    let start = Instant::now();
    let source = match ArchiveFile::open(&[bytes(&args.file)], None) {
        Err(error @ Error::Malformed(_)) => return Err(gate(said(error, &args.file).to_string())),
        other => other.map_err(|error| said(error, &args.file))?,
    };
    let damage = verify::verify(&source).map_err(|error| said(error, &args.file))?;
    let archive = &source.archive;
    let paths = damage.paths(&source);
    let digest = hex(&archive.digest());
    let count = Count::of_entries(archive, |_| true);
    let time = start.elapsed();
    let verdict = match damage.is_none() {
        true => Ok(()),
        false => Err(gate(facts::damage(&args.file, &damage, &paths))),
    };
    Ok(Answer {
        text: match verdict.is_ok() {
            true => format!(
                "verified {count}: {} in {}, digest {digest}",
                size(archive.header().content_size),
                seconds(time)
            ),
            false => String::new(),
        },
        json: json!({
            "archive": args.file.to_string_lossy(),
            "digest": digest,
            "intact": verdict.is_ok(),
            "damaged_frames": damage.frames.iter().map(|(number, _)| number).collect::<Vec<_>>(),
            "damaged": paths.iter().map(|path| String::from_utf8_lossy(path)).collect::<Vec<_>>(),
            "entries": count,
            "frames": archive.frames().len(),
            "threads": rayon::current_num_threads(),
            "seconds": time.as_secs_f64(),
        }),
        verdict,
    })
}

/// Opens an archive, whichever it is.
fn open(path: &Path) -> anyhow::Result<ArchiveFile> {
    ArchiveFile::open(&[bytes(path)], None).map_err(|error| said(error, path))
}

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_encoded_bytes().to_vec()
}

/// An error of the launcher's code in the words for somebody who has the file before them.
fn said(error: Error, path: &Path) -> anyhow::Error {
    let file = path.display();
    let text = match error {
        Error::NoArchive { .. } => format!("no such file: `{file}`"),
        Error::Malformed(_) if !begins_as_archive(path) => {
            let mut text = format!("`{file}` is not a slimlambda archive");
            if path.extension().is_some_and(|extension| extension == "zip") {
                text.push_str(
                    "\nhelp: the archive of a deployment package is `slimlambda.archive` in it",
                );
            }
            text
        }
        Error::Malformed(why) => {
            format!("`{file}` is damaged: {why}\nhelp: pack or download it again")
        }
        Error::Corrupt { frame, why } => format!(
            "`{file}` is damaged: frame {frame}: {why}\nhelp: `cargo slimlambda archive verify` names the files that it holds"
        ),
        Error::Version { needs } => format!(
            "`{file}` has version {needs} of the format, found where this program reads version {VERSION}\nhelp: use the `cargo slimlambda` that packed it"
        ),
        Error::Io { doing, path, errno } => format!(
            "could not {doing} `{}`: {}",
            shown(path.as_bytes()),
            std::io::Error::from(errno)
        ),
        other => other.to_string(),
    };
    anyhow::Error::msg(text)
}

/// Whether the file has the magic bytes, or is cut short before their end.
fn begins_as_archive(path: &Path) -> bool {
    let mut start = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(HEADER_SIZE as u64).read_to_end(&mut start));
    read.is_ok() && !start.is_empty() && start.iter().zip(MAGIC).all(|(a, b)| *a == b)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn seconds(time: Duration) -> String {
    match time.as_secs_f64() {
        short if short < 1.0 => format!("{:.1} ms", short * 1e3),
        long => format!("{long:.2} s"),
    }
}
