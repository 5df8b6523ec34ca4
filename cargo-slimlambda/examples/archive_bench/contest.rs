//! Who takes part: the archives (ours at each level, and the peers' formats) and the ways to unpack, each as the command that
//! is measured.

use std::path::Path;

use anyhow::Context;

use super::machine::{Tool, Tools};
use super::measure::Job;

/// Our levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// For every day.
    Fast,
    /// The default.
    Balanced,
    /// For a release.
    Best,
}

/// A way to make one file of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archive {
    /// `cargo slimlambda archive pack`.
    Ours(Level),
    /// zip, with its level.
    Zip(u8),
    /// zstd of a tar, two threads.
    Zstd(u8),
    /// zstd's last level with a window of 128 MiB.
    ZstdUltra,
    /// xz of a tar, one thread: the smallest it can do.
    Xz,
    /// 7-Zip's last level.
    SevenZip,
    /// brotli's last level with a window of 128 MiB, of a tar.
    Brotli,
}

/// A way to have the tree in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unpack {
    /// `cp -r` of the uncompressed tree.
    Copy,
    /// An archive's own program.
    From(Archive),
    /// Python's `zipfile.extractall` of a zip.
    Python(Archive),
}

/// Where a payload's forms are.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// The tree.
    pub tree: &'a Path,
    /// The same as a tar.
    pub tar: &'a Path,
}

const EXTRACTALL: &str =
    "import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2])";

impl Level {
    /// The word that `--level` takes.
    pub fn name(self) -> &'static str {
        match self {
            Level::Fast => "fast",
            Level::Balanced => "balanced",
            Level::Best => "best",
        }
    }
}

impl Archive {
    /// As tables have it.
    pub fn name(self) -> String {
        match self {
            Archive::Ours(level) => format!("**slimlambda {}**", level.name()),
            Archive::Zip(level) => format!("zip -{level}"),
            Archive::Zstd(level) => format!("zstd -{level} -T2"),
            Archive::ZstdUltra => "zstd --ultra -22 --long=27".into(),
            Archive::Xz => "xz -9e".into(),
            Archive::SevenZip => "7z -mx=9".into(),
            Archive::Brotli => "brotli -q 11 --large_window=27".into(),
        }
    }

    /// A name for its file.
    pub fn file_name(self) -> String {
        match self {
            Archive::Ours(level) => format!("{}.slim", level.name()),
            Archive::Zip(level) => format!("{level}.zip"),
            Archive::Zstd(level) => format!("{level}.tar.zst"),
            Archive::ZstdUltra => "ultra.tar.zst".into(),
            Archive::Xz => "tar.xz".into(),
            Archive::SevenZip => "solid.7z".into(),
            Archive::Brotli => "tar.br".into(),
        }
    }

    /// The programs that it takes, without ours.
    pub fn tools(self) -> Vec<Tool> {
        let tar = self.of_tar().then_some(Tool::Tar);
        self.tool().into_iter().chain(tar).collect()
    }

    /// The program that makes it; `None` for ours.
    pub fn tool(self) -> Option<Tool> {
        match self {
            Archive::Ours(_) => None,
            Archive::Zip(_) => Some(Tool::Zip),
            Archive::Zstd(_) | Archive::ZstdUltra => Some(Tool::Zstd),
            Archive::Xz => Some(Tool::Xz),
            Archive::SevenZip => Some(Tool::SevenZip),
            Archive::Brotli => Some(Tool::Brotli),
        }
    }

    /// Whether it compresses a tar that is there already, which is then not in its time.
    pub fn of_tar(self) -> bool {
        !matches!(self, Archive::Ours(_) | Archive::Zip(_) | Archive::SevenZip)
    }

    /// The command that makes `out`, a path that does not exist.
    pub fn job(self, tools: &Tools, places: Places<'_>, out: &Path) -> anyhow::Result<Job> {
        let (tar, to) = (text(places.tar)?, text(out)?);
        let program = match self.tool() {
            Some(tool) => tools.path(tool)?,
            None => tools.ours()?,
        };
        let run = |command: &[&str]| Job::program(places.tree, command);
        Ok(match self {
            Archive::Ours(level) => pack(tools, places.tree, out, level, &["--no-cache"])?,
            Archive::Zip(level) => run(&[program, &format!("-{level}"), "-r", "-q", "-X", to, "."]),
            Archive::Zstd(level) => {
                run(&[program, "-q", &format!("-{level}"), "-T2", "-o", to, tar])
            }
            Archive::ZstdUltra => {
                run(&[program, "-q", "--ultra", "-22", "--long=27", "-o", to, tar])
            }
            Archive::Xz => run(&[program, "-9e", "-T1", "-k", "-c", tar]).into_file(out),
            Archive::SevenZip => run(&[program, "a", "-mx=9", "-bd", "-bso0", to, "."]),
            Archive::Brotli => run(&[program, "-q", "11", "--large_window=27", "-o", to, tar]),
        })
    }
}

/// Our own packing, with flags as given.
pub fn pack(
    tools: &Tools,
    tree: &Path,
    out: &Path,
    level: Level,
    flags: &[&str],
) -> anyhow::Result<Job> {
    let mut command = vec![tools.ours()?, "slimlambda", "archive", "pack", text(tree)?];
    command.extend(["-o", text(out)?, "--level", level.name()]);
    command.extend(flags);
    Ok(Job::program(tree, &command))
}

/// Our own check of an archive.
pub fn verify(tools: &Tools, archive: &Path) -> anyhow::Result<Job> {
    let command = [
        tools.ours()?,
        "slimlambda",
        "archive",
        "verify",
        text(archive)?,
    ];
    Ok(Job::program("/", &command))
}

impl Unpack {
    /// As tables have it.
    pub fn name(self) -> String {
        match self {
            Unpack::Copy => "cp -r".into(),
            Unpack::From(archive @ Archive::Ours(_)) => archive.name(),
            Unpack::From(Archive::Zip(level)) => format!("unzip -q (of zip -{level})"),
            Unpack::From(Archive::Zstd(level)) => format!("zstd -dc \\| tar x (of -{level})"),
            Unpack::From(Archive::ZstdUltra) => "zstd -dc \\| tar x (of -22 --long=27)".into(),
            Unpack::From(Archive::Xz) => "xz -dc -T2 \\| tar x".into(),
            Unpack::From(Archive::SevenZip) => "7z x".into(),
            Unpack::From(Archive::Brotli) => "brotli -dc \\| tar x".into(),
            Unpack::Python(archive) => format!("Python extractall (of {})", archive.name()),
        }
    }

    /// The archive that it reads.
    pub fn archive(self) -> Option<Archive> {
        match self {
            Unpack::Copy => None,
            Unpack::From(archive) | Unpack::Python(archive) => Some(archive),
        }
    }

    fn tools(self) -> Vec<Tool> {
        match self {
            Unpack::Copy => vec![Tool::Copy],
            Unpack::Python(_) => vec![Tool::Python],
            Unpack::From(Archive::Ours(_)) => Vec::new(),
            Unpack::From(Archive::Zip(_)) => vec![Tool::Unzip],
            Unpack::From(Archive::SevenZip) => vec![Tool::SevenZip],
            Unpack::From(archive) => archive.tool().into_iter().chain([Tool::Tar]).collect(),
        }
    }

    /// The programs that unpacking and the archive take.
    pub fn all_tools(self) -> Vec<Tool> {
        let archive = self.archive().map(Archive::tools).unwrap_or_default();
        self.tools().into_iter().chain(archive).collect()
    }

    /// Whether modes come back as they were.
    pub fn keeps_modes(self) -> bool {
        !matches!(self, Unpack::Python(_))
    }

    /// The command that fills `to`, a directory that exists and is empty.
    pub fn job(
        self,
        tools: &Tools,
        tree: &Path,
        archive: Option<&Path>,
        to: &Path,
    ) -> anyhow::Result<Job> {
        let to = text(to)?;
        let from = match archive {
            Some(path) => text(path)?,
            None => &format!("{}/.", text(tree)?),
        };
        let run = |command: &[&str]| Job::program("/", command);
        let untar = |job: Job| -> anyhow::Result<Job> {
            Ok(job.pipe(&[tools.path(Tool::Tar)?, "-x", "-f", "-", "-C", to]))
        };
        Ok(match self {
            Unpack::Copy => run(&[tools.path(Tool::Copy)?, "-r", from, to]),
            Unpack::Python(_) => run(&[tools.path(Tool::Python)?, "-c", EXTRACTALL, from, to]),
            Unpack::From(Archive::Ours(_)) => extract(tools, from, to)?,
            Unpack::From(Archive::Zip(_)) => run(&[tools.path(Tool::Unzip)?, "-q", from, "-d", to]),
            Unpack::From(Archive::Zstd(_) | Archive::ZstdUltra) => {
                let zstd = tools.path(Tool::Zstd)?;
                untar(run(&[zstd, "-q", "-dc", "--long=27", from]))?
            }
            Unpack::From(Archive::Xz) => untar(run(&[tools.path(Tool::Xz)?, "-dc", "-T2", from]))?,
            Unpack::From(Archive::Brotli) => {
                let brotli = tools.path(Tool::Brotli)?;
                untar(run(&[brotli, "-dc", "--large_window=27", from]))?
            }
            Unpack::From(Archive::SevenZip) => {
                let seven = tools.path(Tool::SevenZip)?;
                run(&[seven, "x", "-y", "-bd", "-bso0", &format!("-o{to}"), from])
            }
        })
    }
}

fn extract(tools: &Tools, from: &str, to: &str) -> anyhow::Result<Job> {
    let command = [
        tools.ours()?,
        "slimlambda",
        "archive",
        "extract",
        from,
        "-C",
        to,
    ];
    Ok(Job::program("/", &command))
}

/// A path as an argument.
pub fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str()
        .with_context(|| format!("`{}` is not UTF-8", path.display()))
}
