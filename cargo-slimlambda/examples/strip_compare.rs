//! Sizes of ELF files: as they are, stripped by us, by GNU strip and by llvm-strip.
//!
//!     cargo run --release --example strip_compare -- FILE...
//!
//! Each file of ours is stripped once more, which must change nothing. A directory of results can be
//! kept for loading them: set `STRIP_COMPARE_OUT`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_slimlambda::elf::image::Image;
use cargo_slimlambda::elf::strip::{Reason, Stripped, strip};

fn main() -> Result<(), Box<dyn Error>> {
    let files: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let keep = std::env::var_os("STRIP_COMPARE_OUT").map(PathBuf::from);
    let scratch = tempfile::tempdir()?;
    println!("| file | original | ours | GNU strip | llvm-strip | ours / GNU | seconds |");
    println!("|---|---|---|---|---|---|---|");
    for file in &files {
        compare(file, scratch.path(), keep.as_deref())
            .map_err(|error| format!("failed to compare `{}`: {error}", file.display()))?;
    }
    Ok(())
}

fn compare(file: &Path, scratch: &Path, keep: Option<&Path>) -> Result<(), Box<dyn Error>> {
    let name = file.file_name().ok_or("no file name")?;
    let bytes = std::fs::read(file)?;
    let start = std::time::Instant::now();
    let stripped = strip(&Image::parse(&bytes)?);
    let seconds = start.elapsed().as_secs_f64();
    let (ours, note) = match &stripped {
        Stripped::Smaller(ours) => (&ours[..], String::new()),
        Stripped::Unchanged(Reason::AlreadyStripped) => (&bytes[..], " (stripped already)".into()),
        Stripped::Unchanged(Reason::NothingToGain) => (&bytes[..], " (nothing to gain)".into()),
        Stripped::Unchanged(Reason::Dangerous(why)) => {
            (&bytes[..], format!(" (not stripped: {why})"))
        }
    };
    if let Stripped::Smaller(ours) = &stripped
        && strip(&Image::parse(ours)?) != Stripped::Unchanged(Reason::AlreadyStripped)
    {
        return Err("stripping a second time changes it".into());
    }
    if let Some(keep) = keep {
        std::fs::create_dir_all(keep)?;
        std::fs::write(keep.join(name), ours)?;
    }
    let gnu = foreign("strip", file, scratch);
    let ratio = gnu.map_or("-".into(), |gnu| {
        format!("{:.4}", ours.len() as f64 / gnu as f64)
    });
    let shown = |size: Option<u64>| size.map_or("-".into(), |size| size.to_string());
    println!(
        "| {}{note} | {} | {} | {} | {} | {ratio} | {seconds:.2} |",
        name.display(),
        bytes.len(),
        ours.len(),
        shown(gnu),
        shown(foreign("llvm-strip", file, scratch)),
    );
    Ok(())
}

/// The size that another program strips a copy of the file to; `None` when it is missing or fails.
fn foreign(program: &str, file: &Path, scratch: &Path) -> Option<u64> {
    let out = scratch.join("out");
    let status = Command::new(program)
        .args(["--strip-all", "-o"])
        .args([out.as_os_str(), file.as_os_str()])
        .status()
        .ok()?;
    let size = std::fs::metadata(&out).ok().map(|metadata| metadata.len());
    size.filter(|_| status.success())
}
