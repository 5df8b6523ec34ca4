//! `[package.metadata.slimlambda]`, `[workspace.metadata.slimlambda]`, cargo-lambda's tables and
//! the flags, merged into one `Config`.
//!
//! What wins, first to last: flags, the binary's own table (`bin.NAME`), the package's, the
//! workspace's, and then cargo-lambda's `[package.metadata.lambda]` and `[workspace.metadata.lambda]`
//! in the same order. A list replaces the list below it; only flags and cargo-lambda's `include` add.
//! The tables are read in `config/table.rs`, errors drawn in `config/diagnostic.rs`.

mod diagnostic;
mod table;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context;
use cargo_metadata::{Metadata, Package};

use crate::cli::ConfigArgs;
use crate::limits;
use table::{Layer, Source, Strip, include_spec};

/// Least and most memory of a function, MiB.
pub const MEMORY: (u32, u32) = (limits::MEMORY_MIN.mib(), limits::MEMORY_MAX.mib());
/// Least and most `EphemeralStorage.Size`, MiB.
pub const EPHEMERAL_STORAGE: (u32, u32) = (limits::TMP_DEFAULT.mib(), limits::TMP_MAX.mib());
/// Shortest and longest function timeout, seconds.
pub const TIMEOUT: (u32, u32) = (1, limits::TIMEOUT_MAX.value as u32);

/// Where a file may be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// Inline when everything fits, sideload what does not: the planner decides.
    #[default]
    Auto,
    /// In the deployment package, as it is.
    Inline,
    /// In the compressed sideload archive.
    Sideload,
}

/// The runtime a package is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Deserialize)]
pub enum Runtime {
    /// Amazon Linux 2023, OS only.
    #[default]
    #[value(name = "provided.al2023")]
    #[serde(rename = "provided.al2023")]
    ProvidedAl2023,
}

/// How hard to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Level {
    /// zstd 6.
    Fast,
    /// zstd 19.
    #[default]
    Balanced,
    /// zstd 22.
    Best,
    /// A zstd level by number, 1 to 22.
    Number(i32),
}

impl Level {
    /// zstd's number for it.
    pub fn zstd(self) -> i32 {
        match self {
            Level::Fast => 6,
            Level::Balanced => 19,
            Level::Best => 22,
            Level::Number(number) => number,
        }
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Level, String> {
        match text {
            "fast" => Ok(Level::Fast),
            "balanced" => Ok(Level::Balanced),
            "best" => Ok(Level::Best),
            _ => match text.parse() {
                Ok(number @ 1..=22) => Ok(Level::Number(number)),
                _ => {
                    Err("expected `fast`, `balanced`, `best` or a number from 1 to 22".to_string())
                }
            },
        }
    }
}

/// One `assets` table of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssetSpec {
    /// Path or glob as it was written.
    pub source: String,
    /// Directory that a relative `source` starts from: the manifest's, or for flags the current one.
    pub base: PathBuf,
    /// Path in the package (`dest`), `/`-separated, relative; `None` keeps the source's own
    /// path relative to `base`.
    pub dest: Option<String>,
    /// Permission bits to set; `None` keeps the executable bit of the source (0644 or 0755).
    pub mode: Option<u32>,
    /// Where it may go; the configuration's `placement` where the asset says nothing itself.
    pub placement: Placement,
    /// Unpacked on first use instead of at cold start.
    pub lazy: bool,
    /// Where this was said (`Cargo.toml:12` or `--include`), for errors.
    pub origin: String,
}

/// Everything a build is told, apart from what Cargo itself is told.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Runtime to build for.
    pub runtime: Runtime,
    /// Files to put beside the binary.
    pub assets: Vec<AssetSpec>,
    /// Libraries to bundle though nobody needs them (opened with `dlopen`): sonames or paths.
    pub libraries: Vec<String>,
    /// Directories searched for libraries before the build scripts' and the system's.
    pub library_path: Vec<PathBuf>,
    /// Strip the binary and the libraries.
    pub strip: bool,
    /// File names (globs) that are shipped as they are though `strip` is on.
    pub strip_exclude: Vec<String>,
    /// Default placement.
    pub placement: Placement,
    /// Compression level.
    pub level: Level,
    /// Function memory, MiB, if configured.
    pub memory: Option<u32>,
    /// `EphemeralStorage.Size`, MiB, if configured.
    pub ephemeral_storage: Option<u32>,
    /// Function timeout, seconds, if configured.
    pub timeout: Option<u32>,
    /// Target triple from cargo-lambda's `build` table; flags are not looked at here.
    pub target: Option<String>,
}

/// The configuration of one binary: `[…metadata.slimlambda]` of its package and of the workspace
/// with the flags over them.
///
/// Without `metadata` (a binary built elsewhere, outside any project) the flags alone count. An
/// unknown key or a wrong value is an error that ends with exit code 2 and points at the line.
pub fn load(
    metadata: Option<&Metadata>,
    package: Option<&Package>,
    bin: &str,
    args: &ConfigArgs,
) -> anyhow::Result<Config> {
    let mut own = Layer::default();
    let mut foreign = Layer::default();
    if let Some(package) = package {
        let source = Source::read(package.manifest_path.as_std_path())?;
        let tables = source.package(bin, &bins(&[package]))?;
        own = own.over(tables.own);
        foreign = foreign.over(tables.foreign);
    }
    if let Some(metadata) = metadata {
        let source = Source::read(metadata.workspace_root.join("Cargo.toml").as_std_path())?;
        let tables = source.workspace(bin, &bins(&metadata.workspace_packages()))?;
        own = own.over(tables.own);
        foreign = foreign.over(tables.foreign);
    }
    let cwd = std::env::current_dir().context("failed to find the current directory")?;
    Ok(merge(args, &cwd, own, foreign))
}

fn bins<'a>(packages: &[&'a Package]) -> Vec<&'a str> {
    let targets = packages.iter().flat_map(|package| &package.targets);
    targets
        .filter(|target| target.is_bin())
        .map(|target| target.name.as_str())
        .collect()
}

/// Lays the flags over both layers and fills in the defaults.
fn merge(args: &ConfigArgs, cwd: &Path, mut own: Layer, mut foreign: Layer) -> Config {
    let assets = own.assets.take().unwrap_or_default().into_iter();
    let assets = assets.chain(foreign.assets.take().unwrap_or_default());
    let include = args
        .include
        .iter()
        .map(|path| (include_spec(path, cwd, "--include"), None));
    let assets: Vec<_> = assets.chain(include).collect();

    let layer = own.over(foreign);
    let placement = args.placement.or(layer.placement).unwrap_or_default();
    let strip = layer.strip.unwrap_or(Strip {
        on: true,
        exclude: Vec::new(),
    });
    // A library given as a path starts where it was typed.
    let library = |name: &String| match name.contains('/') {
        true => cwd.join(name).to_string_lossy().into_owned(),
        false => name.clone(),
    };
    let library_path = args.library_path.iter().map(|path| cwd.join(path));
    let libraries = layer.libraries.unwrap_or_default().into_iter();
    Config {
        runtime: args.runtime.or(layer.runtime).unwrap_or_default(),
        assets: assets
            .into_iter()
            .map(|(asset, wish)| AssetSpec {
                placement: wish.unwrap_or(placement),
                ..asset
            })
            .collect(),
        libraries: libraries.chain(args.library.iter().map(library)).collect(),
        library_path: library_path
            .chain(layer.library_path.unwrap_or_default())
            .collect(),
        strip: strip.on && !args.no_strip,
        strip_exclude: strip.exclude,
        placement,
        level: args.level.or(layer.level).unwrap_or_default(),
        memory: args.limits.memory.or(layer.memory),
        ephemeral_storage: args.limits.ephemeral_storage.or(layer.ephemeral_storage),
        timeout: args.limits.timeout.or(layer.timeout),
        target: layer.target,
    }
}
