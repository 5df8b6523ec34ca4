//! The machine and the programs on it: which are here, which package has those that are not, and what is told of them above the
//! tables.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use cargo_metadata::Message;

/// A program of somebody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tool {
    /// `cp`.
    Copy,
    /// GNU tar.
    Tar,
    /// Info-ZIP's zip.
    Zip,
    /// Info-ZIP's unzip.
    Unzip,
    /// zstd.
    Zstd,
    /// XZ Utils.
    Xz,
    /// 7-Zip.
    SevenZip,
    /// brotli.
    Brotli,
    /// Python 3.
    Python,
    /// Python's pip, of which wheels come.
    Pip,
}

/// The programs that were found.
#[derive(Debug, Default)]
pub struct Tools {
    found: BTreeMap<Tool, Found>,
    ours: Option<String>,
}

#[derive(Debug)]
struct Found {
    path: String,
    version: String,
}

impl Tool {
    /// Its names, the flags that make it tell its version, and the Debian package that has it.
    fn known(
        self,
    ) -> (
        &'static [&'static str],
        &'static [&'static str],
        &'static str,
    ) {
        match self {
            Tool::Copy => (&["cp"], &["--version"], "coreutils"),
            Tool::Tar => (&["tar"], &["--version"], "tar"),
            Tool::Zip => (&["zip"], &["-v"], "zip"),
            Tool::Unzip => (&["unzip"], &["-v"], "unzip"),
            Tool::Zstd => (&["zstd"], &["--version"], "zstd"),
            Tool::Xz => (&["xz"], &["--version"], "xz-utils"),
            Tool::SevenZip => (&["7z", "7zz"], &["i"], "7zip"),
            Tool::Brotli => (&["brotli"], &["--version"], "brotli"),
            // A version manager's `python3` is a script that takes longer to start than Python does.
            Tool::Python => (
                &["python3"],
                &["-c", "import sys; print(sys.executable, sys.version)"],
                "python3",
            ),
            Tool::Pip => (&["python3"], &["-m", "pip", "--version"], "python3-pip"),
        }
    }

    /// The package that has it.
    pub fn package(self) -> &'static str {
        self.known().2
    }

    fn find(self) -> Option<Found> {
        let (names, flags, _) = self.known();
        names.iter().find_map(|name| {
            let output = Command::new(name).args(flags).output().ok()?;
            let told = String::from_utf8_lossy(&output.stdout).into_owned();
            // Info-ZIP's first lines are about its copyright.
            let line = told
                .lines()
                .find(|line| !line.trim().is_empty() && !line.starts_with("Copyright"))?
                .trim();
            let found = |path: &str, version: &str| Found {
                path: path.to_owned(),
                version: version.to_owned(),
            };
            match self {
                _ if !output.status.success() => None,
                Tool::Python => {
                    let (path, version) = line.split_once(' ')?;
                    let version = version.split(' ').next()?;
                    Some(found(path, &format!("Python {version}")))
                }
                _ => Some(found(name, short(line))),
            }
        })
    }
}

/// A version without whose it is.
fn short(line: &str) -> &str {
    let end = [" : ", ", by ", " of ", " from "].map(|word| line.find(word).unwrap_or(line.len()));
    let end = end.into_iter().min().unwrap_or(line.len());
    line[..end]
        .trim_matches(['*', ' '])
        .trim_start_matches("This is ")
}

impl Tools {
    /// Looks for programs; those that are missing come back as well.
    pub fn find(wanted: impl IntoIterator<Item = Tool>) -> (Tools, Vec<Tool>) {
        let (mut tools, mut missing) = (Tools::default(), Vec::new());
        for tool in wanted {
            match tool.find() {
                Some(found) => {
                    tools.found.insert(tool, found);
                }
                None => missing.push(tool),
            }
        }
        (tools, missing)
    }

    /// Whether a program is here.
    pub fn has(&self, tool: Tool) -> bool {
        self.found.contains_key(&tool)
    }

    /// What to start.
    pub fn path(&self, tool: Tool) -> anyhow::Result<&str> {
        let found = self.found.get(&tool);
        let found = found.with_context(|| format!("`{}` is missing", tool.package()))?;
        Ok(&found.path)
    }

    /// What a program says of itself.
    pub fn version(&self, tool: Tool) -> &str {
        self.found.get(&tool).map_or("", |found| &found.version)
    }

    /// Our own binary.
    pub fn ours(&self) -> anyhow::Result<&str> {
        self.ours
            .as_deref()
            .context("`cargo-slimlambda` was not built")
    }

    /// Whether we take part.
    pub fn has_ours(&self) -> bool {
        self.ours.is_some()
    }

    /// Builds our binary as it is released, from the sources that this program is of.
    pub fn build_ours(&mut self) -> anyhow::Result<()> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["build", "--release", "--bin", "cargo-slimlambda"])
            .args(["--message-format", "json-render-diagnostics"])
            .arg("--manifest-path")
            .arg(&manifest)
            .stderr(std::process::Stdio::inherit())
            .output()
            .context("failed to run `cargo build`")?;
        if !output.status.success() {
            bail!("`cargo build --release` of cargo-slimlambda failed");
        }
        let path = Message::parse_stream(&output.stdout[..])
            .filter_map(Result::ok)
            .find_map(|message| match message {
                Message::CompilerArtifact(artifact) => artifact.executable,
                _ => None,
            })
            .context("`cargo build` named no executable")?;
        let help = Command::new(&path)
            .args(["slimlambda", "archive", "--help"])
            .output()
            .with_context(|| format!("failed to run `{path}`"))?;
        if !help.status.success() {
            bail!("`{path}` has no command `archive`\nhelp: `--peers-only` measures the others");
        }
        self.ours = Some(path.into_string());
        Ok(())
    }
}

/// What stands above the tables: machine, system, programs.
pub fn told(tools: &Tools, tmpfs: &Path, disk: &Path) -> Vec<(String, String)> {
    let processor = field("/proc/cpuinfo", "model name").unwrap_or("unknown".into());
    let memory = field("/proc/meminfo", "MemTotal").unwrap_or_default();
    let memory = memory.split(' ').next().and_then(|kib| kib.parse().ok());
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut out = vec![
        ("processor".to_owned(), processor),
        ("cores".to_owned(), cores().to_string()),
        (
            "memory".to_owned(),
            format!("{:.1} GiB", memory.unwrap_or(0.0) / f64::from(1 << 20)),
        ),
        (
            "system".to_owned(),
            format!(
                "{} {}, {}",
                std::env::consts::OS,
                read("/proc/sys/kernel/osrelease").trim(),
                std::env::consts::ARCH
            ),
        ),
        (
            "load before".to_owned(),
            read("/proc/loadavg").split(' ').next().unwrap_or("").into(),
        ),
        (
            "unpacked into".to_owned(),
            format!("{} and {}", file_system(tmpfs), file_system(disk)),
        ),
    ];
    let manifest = env!("CARGO_MANIFEST_DIR");
    let describe = [
        "-C",
        manifest,
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
    ];
    if let Some(commit) = said("git", &describe) {
        out.push(("slimlambda".to_owned(), format!("commit {commit}")));
    }
    if let Some(day) = said("date", &["-u", "+%F"]) {
        out.push(("day".to_owned(), day));
    }
    let versions: Vec<&str> = tools
        .found
        .iter()
        .filter(|(tool, _)| **tool != Tool::Pip)
        .map(|(_, found)| &*found.version)
        .collect();
    out.push(("programs".to_owned(), versions.join(" · ")));
    out
}

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The value after `name` and a colon.
fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The kind of file system that a directory is on.
fn file_system(directory: &Path) -> String {
    let directory = fs::canonicalize(directory).unwrap_or(directory.to_owned());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some((PathBuf::from(words.next()?), words.next()?))
    });
    mounts
        .filter(|(point, _)| directory.starts_with(point))
        .max_by_key(|(point, _)| point.as_os_str().len())
        .map_or("unknown".into(), |(_, kind)| kind.to_owned())
}

/// What a program writes, if it succeeds.
fn said(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let told = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| told.trim().to_owned())
}
