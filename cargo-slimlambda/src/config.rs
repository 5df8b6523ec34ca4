//! `[package.metadata.slimlambda]` and the flags, merged into one `Config`.

use std::path::PathBuf;

/// Where a file may be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Runtime {
    /// Amazon Linux 2023, OS only.
    #[default]
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

/// One `assets` table of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssetSpec {
    /// Path or glob, absolute (already resolved against the manifest's directory).
    pub source: String,
    /// Path in the package (`dest`), `/`-separated, relative; `None` keeps the source's own
    /// path relative to the manifest's directory.
    pub dest: Option<String>,
    /// Permission bits to set; `None` keeps the executable bit of the source (0644 or 0755).
    pub mode: Option<u32>,
    /// Where it may go.
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
}
