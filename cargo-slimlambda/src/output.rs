//! The package, from memory to the output directory: every file appears by rename, complete or not at all.
//!
//! ```text
//! target/lambda/<bin>/bootstrap.zip                             the deployment package (`--output-format zip`)
//! target/lambda/<bin>/bootstrap, slimlambda.archive, lib/…, …   its files (`--output-format binary`)
//! target/lambda/.slimlambda/<bin>.json                          the report, which `invoke` reads its settings from
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail, ensure};

use crate::cli::OutputFormat;
use crate::pack::{File, FileContent};
use crate::report::{Output, Report};

/// Name of the deployment package.
pub const ZIP: &str = "bootstrap.zip";

/// A finished package, not yet written.
#[derive(Debug)]
pub struct Package {
    /// The files of the deployment package.
    pub files: Vec<File>,
    /// The deployment package.
    pub zip: Vec<u8>,
    /// What there is to say about it.
    pub report: Report,
}

/// Where the report of `bin` is kept, given its output directory.
pub fn report_path(directory: &Path, flat: bool, bin: &str) -> PathBuf {
    let lambda_dir = if flat {
        directory
    } else {
        directory.parent().unwrap_or(directory)
    };
    lambda_dir.join(".slimlambda").join(format!("{bin}.json"))
}

/// Writes the package and its report; answers the report with the outputs in it.
///
/// Where nothing is asked for, the zip is written, and a `bootstrap` beside it if that alone is the package. A
/// `bootstrap` that needs files beside it stays in the zip: tools that take it alone (a plain `cargo lambda deploy`) must
/// fail rather than deploy half a package.
///
/// # Errors
///
/// A file cannot be written, or is one that the package was made from; what an earlier build left is then still there,
/// as far as it was not replaced yet.
pub fn write(
    package: Package,
    directory: &Path,
    format: Option<OutputFormat>,
    flat: bool,
) -> anyhow::Result<Report> {
    let Package {
        mut files,
        zip,
        mut report,
    } = package;
    // The next build, from whatever directory, must know them again.
    let directory = &std::path::absolute(directory)
        .with_context(|| format!("failed to find `{}`", directory.display()))?;
    let report_path = report_path(directory, flat, &report.function);
    let alone = files.len() == 1;
    if format == Some(OutputFormat::Zip) || (format.is_none() && !alone) {
        files.clear();
    }
    if format != Some(OutputFormat::Binary) {
        files.push(File {
            path: ZIP.to_string(),
            mode: 0o644,
            content: FileContent::File(zip),
        });
    }
    let outputs: Vec<Output> = files.iter().map(|file| output(directory, file)).collect();
    keep_sources(&outputs, &report)?;

    // What the last build left and this one does not have would be deployed along with it. It goes first: where a file or
    // a symlink was, there may be a directory now.
    for (path, digest) in previous(&report_path) {
        let plain = path.strip_prefix(directory).is_ok_and(|below| {
            below
                .components()
                .all(|part| matches!(part, Component::Normal(_)))
        });
        let wanted = outputs.iter().any(|output| output.path == path);
        // A file that has changed since is somebody's.
        if plain && !wanted && digest_of(&path).as_deref() == Some(&digest) {
            remove(&path, directory).with_context(|| {
                format!(
                    "failed to remove `{}`, left by an earlier build",
                    path.display()
                )
            })?;
        }
    }
    fs::create_dir_all(directory)
        .with_context(|| format!("failed to create `{}`", directory.display()))?;
    for file in &files {
        put(directory, file)?;
    }
    report.outputs = outputs;
    let text = serde_json::to_vec_pretty(&report).context("failed to write the report")?;
    let parent = report_path.parent().unwrap_or(directory);
    fs::create_dir_all(parent)
        .with_context(|| format!("failed to create `{}`", parent.display()))?;
    replace(&report_path, &text, 0o644)?;
    Ok(report)
}

fn output(directory: &Path, file: &File) -> Output {
    let bytes = match &file.content {
        FileContent::File(bytes) => bytes,
        FileContent::Symlink(target) => target.as_bytes(),
    };
    Output {
        path: directory.join(&file.path),
        size: file.size() as u64,
        digest: hex(bytes),
    }
}

/// Refuses to write over what the package was made from: a `--lambda-dir` in the middle of the sources.
fn keep_sources(outputs: &[Output], report: &Report) -> anyhow::Result<()> {
    let real = |path: &Path| path.canonicalize().ok();
    let sources: BTreeSet<PathBuf> = report
        .files
        .iter()
        .filter_map(|file| real(&file.source))
        .collect();
    let taken = |output: &&Output| real(&output.path).is_some_and(|path| sources.contains(&path));
    match outputs.iter().find(taken) {
        None => Ok(()),
        Some(output) => bail!(
            "the package would be written over its own source `{}`\nhelp: choose another `--lambda-dir`",
            output.path.display()
        ),
    }
}

/// The files that the last build wrote, each with its digest, if there was one and its report can be read.
fn previous(report: &Path) -> Vec<(PathBuf, String)> {
    let text = fs::read(report).unwrap_or_default();
    let report: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let outputs = report["outputs"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let known = outputs.iter().filter_map(|output| {
        Some((
            PathBuf::from(output["path"].as_str()?),
            output["digest"].as_str()?.to_string(),
        ))
    });
    known.collect()
}

fn hex(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// The digest of what is at `path` itself, as [`output`] takes it.
fn digest_of(path: &Path) -> Option<String> {
    match fs::read_link(path) {
        Ok(target) => Some(hex(target.as_os_str().as_encoded_bytes())),
        Err(_) => Some(hex(&fs::read(path).ok()?)),
    }
}

/// Removes a file, and the directories below `directory` that are empty without it.
fn remove(path: &Path, directory: &Path) -> std::io::Result<()> {
    fs::remove_file(path)?;
    let mut above = path.parent();
    while let Some(empty) = above
        && empty != directory
        && fs::remove_dir(empty).is_ok()
    {
        above = empty.parent();
    }
    Ok(())
}

fn put(directory: &Path, file: &File) -> anyhow::Result<()> {
    let mut parent = directory.to_path_buf();
    let (above, name) = file.path.rsplit_once('/').unwrap_or(("", &file.path));
    for part in above.split('/').filter(|part| !part.is_empty()) {
        parent.push(part);
        let failed = || format!("failed to create `{}`", parent.display());
        match fs::create_dir(&parent) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let kind = fs::symlink_metadata(&parent)
                    .with_context(failed)?
                    .file_type();
                ensure!(
                    kind.is_dir(),
                    "`{}` is in the way: the package has a directory there\nhelp: remove it, or choose another `--lambda-dir`",
                    parent.display()
                );
            }
            other => other.with_context(failed)?,
        }
    }
    let path = parent.join(name);
    ensure!(
        !fs::symlink_metadata(&path).is_ok_and(|there| there.is_dir()),
        "directory `{}` is in the way: the package has a file there\nhelp: remove it, or choose another `--lambda-dir`",
        path.display()
    );
    match &file.content {
        FileContent::File(bytes) => replace(&path, bytes, file.mode),
        FileContent::Symlink(target) => {
            let failed = || format!("failed to create symlink `{}`", path.display());
            if fs::symlink_metadata(&path).is_ok() {
                fs::remove_file(&path).with_context(failed)?;
            }
            std::os::unix::fs::symlink(target, &path).with_context(failed)
        }
    }
}

/// Writes a file that appears, or replaces another, complete or not at all.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let parent = path.parent().context("an output has a parent")?;
    let write = || {
        let mut file = tempfile::Builder::new()
            .prefix(".slimlambda-")
            .tempfile_in(parent)?;
        file.write_all(bytes)?;
        file.as_file()
            .set_permissions(fs::Permissions::from_mode(mode))?;
        file.persist(path)?;
        Ok::<(), std::io::Error>(())
    };
    write().with_context(|| format!("failed to write `{}`", path.display()))
}
