//! Cargo: what the workspace holds, what is to be built, and the building of it.
//!
//! The one module that spawns Cargo (and rustc and rustup, on the way there). Cargo's stderr is
//! ours, so progress and diagnostics are Cargo's own; its JSON messages on stdout say what came out
//! and where build scripts found native libraries. What happens before linking for another
//! architecture is in `cargo/cross.rs`; `select.rs` and `messages.rs` are the ways in and out.

mod cross;
pub mod launcher;
mod messages;
mod select;

use std::ffi::OsString;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use cargo_metadata::{Metadata, MetadataCommand, PackageId};

use crate::cli::{BuildArgs, CargoArgs, ChoiceArgs, Color, Compiler, MessageFormat};
use crate::config::Config;
use crate::error::Stop;
use crate::event::Sink;

pub use select::{Selected, current_package, select, select_one};

/// One binary that Cargo made, or that was given with `--binary`.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// Name of the binary.
    pub name: String,
    /// Package it belongs to; `None` for `--binary`.
    pub package_id: Option<PackageId>,
    /// `name version` of that package.
    pub package: Option<String>,
    /// Where the executable is.
    pub executable: PathBuf,
    /// Target triple that was asked for, without zigbuild's glibc suffix; `None` where nobody said
    /// (or in a file of their own): the executable itself tells its architecture.
    pub target: Option<String>,
    /// Where build scripts found native libraries, in the order of the build.
    pub search_paths: Vec<PathBuf>,
    /// Every Rust library of the build: `name version` of its package, and the file.
    pub rlibs: Vec<(String, PathBuf)>,
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The workspace, without its dependencies: nothing is resolved or downloaded for this.
///
/// # Errors
///
/// Cargo's own message, where there is no `Cargo.toml` or it is not valid.
pub fn metadata(choice: &ChoiceArgs) -> anyhow::Result<Metadata> {
    let mut command = MetadataCommand::new();
    command.no_deps();
    if let Some(path) = &choice.manifest_path {
        command.manifest_path(path);
    }
    command.exec().map_err(|error| match error {
        cargo_metadata::Error::CargoMetadata { stderr } => {
            let text = stderr.trim();
            anyhow::anyhow!("{}", text.strip_prefix("error: ").unwrap_or(text))
        }
        other => anyhow::Error::new(other).context("failed to run `cargo metadata`"),
    })
}

/// As [`metadata`], for `--binary`: `None` outside any project.
pub fn metadata_if_any(choice: &ChoiceArgs) -> anyhow::Result<Option<Metadata>> {
    match manifest(choice)? {
        Some(_) => metadata(choice).map(Some),
        None => Ok(None),
    }
}

/// The manifest that Cargo would start from.
fn manifest(choice: &ChoiceArgs) -> anyhow::Result<Option<PathBuf>> {
    let cwd = std::env::current_dir().context("failed to find the current directory")?;
    if let Some(path) = &choice.manifest_path {
        return Ok(Some(cwd.join(path)));
    }
    Ok(cwd
        .ancestors()
        .map(|above| above.join("Cargo.toml"))
        .find(|path| path.is_file()))
}

/// The target that was asked for, by flags or (`configs`, one for each selected binary) by
/// cargo-lambda's tables; `None` leaves it to Cargo.
///
/// # Errors
///
/// Binaries that want different targets.
pub fn target(args: &CargoArgs, configs: &[Config]) -> anyhow::Result<Option<String>> {
    if args.arm64 {
        return Ok(Some("aarch64-unknown-linux-gnu".to_string()));
    }
    if args.x86_64 {
        return Ok(Some("x86_64-unknown-linux-gnu".to_string()));
    }
    if let Some(target) = &args.target {
        return Ok(Some(target.clone()));
    }
    let mut targets = configs.iter().map(|config| &config.target);
    let first = targets.next().cloned().flatten();
    if targets.any(|other| *other != first) {
        return Err(crate::error::usage(
            "the binaries are for different targets\nhelp: say which with `--target`, or build one at a time with `--bin`",
        ));
    }
    // Lambda is Linux: another system's own target is never meant.
    let foreign_host =
        !cfg!(target_os = "linux") && std::env::var_os("CARGO_BUILD_TARGET").is_none();
    Ok(first.or_else(|| foreign_host.then(|| "x86_64-unknown-linux-gnu".to_string())))
}

/// Builds the selected binaries with one run of Cargo. In the order of `selected`; those that Cargo
/// passes over for want of their `required-features` are left out.
///
/// # Errors
///
/// [`Stop::Cargo`] when Cargo fails, which has said why; and a linker or target that is not installed.
pub fn build(
    args: &BuildArgs,
    metadata: &Metadata,
    selected: &[Selected<'_>],
    target: Option<&str>,
    sink: Sink<'_>,
) -> anyhow::Result<Vec<Artifact>> {
    let mut command = cargo();
    command.args(arguments(args, target)?);
    if let Some(target) = target {
        cross::prepare(&mut command, args, target, sink)?;
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("failed to run `{:?}`", command.get_program()))?;
    let stdout = child.stdout.take().context("cargo has no stdout")?;
    let output = messages::read(BufReader::new(stdout), metadata, sink);
    let status = child.wait().context("failed to wait for cargo")?;
    if !status.success() {
        return Err(Stop::Cargo(status.code().unwrap_or(101)).into());
    }
    let output = output?;
    let mut artifacts = Vec::new();
    for one in selected {
        let made = |(id, name, _): &&(PackageId, String, PathBuf)| {
            *id == one.package.id && name == one.bin
        };
        let Some((id, name, executable)) = output.executables.iter().find(made) else {
            continue;
        };
        artifacts.push(Artifact {
            name: name.clone(),
            package_id: Some(id.clone()),
            package: Some(format!("{} {}", one.package.name, one.package.version)),
            executable: executable.clone(),
            target: target.and_then(named_triple),
            search_paths: output.search_paths.clone(),
            rlibs: output.rlibs.clone(),
        });
    }
    if artifacts.is_empty() {
        bail!(
            "cargo built no binary\nhelp: every selected binary has `required-features`; activate them with `--features`"
        );
    }
    Ok(artifacts)
}

/// The artifact for `--binary`.
pub fn given(path: &Path, target: Option<&str>) -> anyhow::Result<Artifact> {
    let metadata =
        std::fs::metadata(path).with_context(|| format!("failed to read `{}`", path.display()))?;
    if !metadata.is_file() {
        bail!("`{}` is not a file", path.display());
    }
    let name = path.file_name().and_then(|name| name.to_str());
    Ok(Artifact {
        name: name
            .with_context(|| format!("`{}` has no usable name", path.display()))?
            .to_string(),
        package_id: None,
        package: None,
        executable: path.to_path_buf(),
        target: target.and_then(named_triple),
        search_paths: Vec::new(),
        rlibs: Vec::new(),
    })
}

/// Where packages go: `--lambda-dir`, else `lambda` in the target directory (of the current
/// directory, outside a project); in it a directory for each binary that is not `flatten`ed.
pub fn output_directory(metadata: Option<&Metadata>, args: &BuildArgs, bin: &str) -> PathBuf {
    let lambda_dir = args.lambda_dir.clone().unwrap_or_else(|| match metadata {
        Some(metadata) => target_directory(metadata, args).join("lambda"),
        None => PathBuf::from("target/lambda"),
    });
    match args.flatten.as_deref() {
        Some(name) if name == bin => lambda_dir,
        _ => lambda_dir.join(bin),
    }
}

fn target_directory(metadata: &Metadata, args: &BuildArgs) -> PathBuf {
    match &args.cargo.target_dir {
        Some(directory) => std::path::absolute(directory).unwrap_or_else(|_| directory.clone()),
        None => metadata.target_directory.clone().into_std_path_buf(),
    }
}

/// The command line for Cargo.
fn arguments(args: &BuildArgs, target: Option<&str>) -> anyhow::Result<Vec<OsString>> {
    let (choice, cargo) = (&args.choice, &args.cargo);
    let mut line: Vec<OsString> = Vec::new();
    let mut flag = |on: bool, name: &str| line.extend(on.then(|| OsString::from(name)));
    flag(
        cargo.compiler.unwrap_or_default() == Compiler::Cargo,
        "build",
    );
    flag(cargo.compiler == Some(Compiler::CargoZigbuild), "zigbuild");
    flag(choice.workspace, "--workspace");
    flag(choice.bin.is_empty(), "--bins");
    flag(cargo.all_features, "--all-features");
    flag(cargo.no_default_features, "--no-default-features");
    flag(cargo.locked, "--locked");
    flag(cargo.offline, "--offline");
    flag(cargo.frozen, "--frozen");
    flag(args.output.quiet, "--quiet");
    (0..args.output.verbose).for_each(|_| flag(true, "--verbose"));

    let mut option = |name: &str, value: &std::ffi::OsStr| line.extend([name.into(), value.into()]);
    let format = match args.message_format {
        MessageFormat::Short => "json-render-diagnostics,json-diagnostic-short",
        _ => "json-render-diagnostics",
    };
    option("--message-format", format.as_ref());
    option(
        "--profile",
        cargo.profile.as_deref().unwrap_or("release").as_ref(),
    );
    choice
        .package
        .iter()
        .for_each(|spec| option("--package", spec.as_ref()));
    choice
        .bin
        .iter()
        .for_each(|name| option("--bin", name.as_ref()));
    cargo
        .features
        .iter()
        .for_each(|names| option("--features", names.as_ref()));
    let color = args.output.color.map(|color| match color {
        Color::Auto => "auto",
        Color::Always => "always",
        Color::Never => "never",
    });
    for (name, value) in [
        ("--target", target),
        ("--jobs", cargo.jobs.as_deref()),
        ("--color", color),
    ] {
        value.iter().for_each(|value| option(name, value.as_ref()));
    }
    for (name, path) in [
        ("--target-dir", &cargo.target_dir),
        ("--manifest-path", &choice.manifest_path),
    ] {
        path.iter().for_each(|path| option(name, path.as_ref()));
    }
    line.extend(cargo.cargo_args.iter().cloned());
    Ok(line)
}

/// The triple that a target goes by; a target of the user's own making (`./my-target.json`) has none.
fn named_triple(target: &str) -> Option<String> {
    (!target.ends_with(".json")).then(|| plain_triple(target).to_string())
}

/// zigbuild's `x86_64-unknown-linux-gnu.2.34` without the glibc version, which no directory has.
fn plain_triple(target: &str) -> &str {
    match target.split_once('.') {
        Some((triple, version)) if version.starts_with(|c: char| c.is_ascii_digit()) => triple,
        _ => target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glibc_version_is_no_part_of_a_triple() {
        let cases = [
            ("x86_64-unknown-linux-gnu.2.34", "x86_64-unknown-linux-gnu"),
            ("x86_64-unknown-linux-gnu", "x86_64-unknown-linux-gnu"),
            ("my-target.json", "my-target.json"),
        ];
        for (target, triple) in cases {
            assert_eq!(plain_triple(target), triple);
        }
        assert_eq!(named_triple("./my-target.json"), None);
    }
}
