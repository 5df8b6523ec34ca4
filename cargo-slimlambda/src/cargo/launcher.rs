//! The launcher for a target: built once from the source that this program carries, with the user's own
//! toolchain, and kept in the user's cache directory.
//!
//! Nothing but the Rust target is needed: the code has no C in it, and rustc's own linker and libc make a
//! static program of it, for whatever host. Where the dependencies are in Cargo's registry already (`cargo install
//! --locked` of this program puts them there) no network is needed either.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use runtime_unpack::carried::SOURCE;

use super::cross;
use crate::event::{Event, Sink};

/// The launcher's bytes for `x86_64` or `aarch64`, not yet paired with an archive.
///
/// # Errors
///
/// The Rust target is missing and cannot be installed, or Cargo fails; the message holds what it said.
pub fn launcher(arch: &str, offline: bool, sink: Sink<'_>) -> anyhow::Result<Vec<u8>> {
    let target = format!("{arch}-unknown-linux-musl");
    let path = cache_directory()?.join(key(&target)?).join("launcher");
    match fs::read(&path) {
        Ok(bytes) => return Ok(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("failed to read `{}`", path.display()));
        }
    }
    cross::install_target(&target, offline, sink)
        .context("failed to build the launcher, which needs a Rust target for static programs")?;
    sink(Event::Status {
        verb: "Building",
        what: &format!("launcher for {arch} (once)"),
    });
    let bytes = build(&target, offline)?;
    keep(&path, &bytes)?;
    Ok(bytes)
}

/// `$XDG_CACHE_HOME/slimlambda/launchers`.
fn cache_directory() -> anyhow::Result<PathBuf> {
    let absolute = |name| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    let cache = cache.context(
        "no directory to keep the launcher in\nhelp: set `HOME` or `XDG_CACHE_HOME` to an absolute path",
    )?;
    Ok(cache.join("slimlambda/launchers"))
}

/// Everything that the launcher's bytes depend on.
fn key(target: &str) -> anyhow::Result<String> {
    let mut hasher = blake3::Hasher::new();
    let compiler = cross::rustc(&["-vV"])?;
    let flags = flags(&sysroot()?, &[])?.join(" ");
    for text in [target, &compiler, &flags] {
        hasher.update(text.as_bytes()).update(b"\0");
    }
    for (path, text) in SOURCE {
        for text in [path, text] {
            hasher.update(text.as_bytes()).update(b"\0");
        }
    }
    Ok(hasher.finalize().to_hex()[..32].to_string())
}

/// What the profile in the launcher's manifest says, in the one place that the user's own Cargo configuration does not
/// win over.
const PROFILE: [(&str, &str); 5] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s"),
    ("CARGO_PROFILE_RELEASE_LTO", "fat"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
    ("CARGO_PROFILE_RELEASE_STRIP", "true"),
];

/// Flags for rustc, with `directories` (each with the name that stands for it) kept out of the bytes.
fn flags(sysroot: &Path, directories: &[(PathBuf, &str)]) -> anyhow::Result<Vec<String>> {
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_string()];
    // Rustup's toolchains bring a linker for every target; a distribution's may leave it to the system's.
    let lld = sysroot
        .join("lib/rustlib")
        .join(cross::host()?)
        .join("bin/rust-lld");
    if lld.is_file() {
        flags.push("-Clinker=rust-lld".to_string());
    }
    let remap =
        |(path, name): &(PathBuf, &str)| format!("--remap-path-prefix={}={name}", path.display());
    flags.extend(directories.iter().map(remap));
    Ok(flags)
}

/// The toolchain that this directory is set to, which `rust-toolchain.toml` may have chosen.
fn sysroot() -> anyhow::Result<PathBuf> {
    Ok(PathBuf::from(cross::rustc(&["--print", "sysroot"])?.trim()))
}

fn build(target: &str, offline: bool) -> anyhow::Result<Vec<u8>> {
    let directory = tempfile::Builder::new()
        .prefix("slimlambda-launcher-")
        .tempdir();
    let directory = directory.context("failed to create a temporary directory")?;
    let root = directory
        .path()
        .canonicalize()
        .context("failed to find the temporary directory")?;
    for (path, text) in SOURCE {
        let path = root.join(path);
        let parent = path.parent().unwrap_or(&root);
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, text))
            .with_context(|| format!("failed to write `{}`", path.display()))?;
    }
    // What is in the registry already is good enough, and asks nobody.
    let first = run(&root, target, true)?;
    let second = match first {
        Ok(()) => Ok(()),
        Err(_) if !offline => run(&root, target, false)?,
        error => error,
    };
    if let Err(said) = second {
        bail!(
            "failed to build the launcher for `{target}`\n{}\nhelp: `cargo-slimlambda` needs Rust {} or newer, and crates.io or a registry that has been fetched before",
            said.trim_end(),
            env!("CARGO_PKG_RUST_VERSION"),
        );
    }
    let path = root.join("target").join(target).join("release/launcher");
    fs::read(&path).with_context(|| format!("failed to read `{}`", path.display()))
}

/// Runs Cargo for the launcher; `Ok(Err(…))` holds what a failed one said.
fn run(root: &Path, target: &str, offline: bool) -> anyhow::Result<Result<(), String>> {
    let mut command: Command = super::cargo();
    command
        .current_dir(root)
        .args(["build", "--release", "--locked", "--no-default-features"])
        .args(["--features", "launcher", "--target", target])
        .args(offline.then_some("--offline"))
        .stdin(Stdio::null());
    // The function's own build settings are not the launcher's.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let foreign = [
            "CARGO_PROFILE_",
            "CARGO_TARGET_",
            "CARGO_BUILD_",
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
        ];
        if foreign.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let mut directories = vec![(root.to_path_buf(), "launcher")];
    directories.extend(home.map(|home| (home, "cargo")));
    let sysroot = sysroot()?;
    command.env(
        "CARGO_ENCODED_RUSTFLAGS",
        flags(&sysroot, &directories)?.join("\x1f"),
    );
    // Where the launcher's sources lie, another toolchain may be the default.
    if std::env::var_os("RUSTC").is_none() {
        command.env("RUSTC", sysroot.join("bin/rustc"));
    }
    command.envs(PROFILE);
    command.env("CARGO_TARGET_DIR", root.join("target"));
    let output = command
        .output()
        .context("failed to run cargo for the launcher")?;
    Ok(match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    })
}

/// Keeps the launcher; whoever builds the same at the same time keeps the same.
fn keep(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let parent = path.parent().context("a cache path has a parent")?;
    let write = || {
        fs::create_dir_all(parent)?;
        let mut file = tempfile::NamedTempFile::new_in(parent)?;
        std::io::Write::write_all(&mut file, bytes)?;
        file.persist(path)?;
        Ok::<(), std::io::Error>(())
    };
    write().with_context(|| format!("failed to keep the launcher as `{}`", path.display()))
}
