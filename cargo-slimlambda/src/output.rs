//! The package, from memory to the output directory: every file appears by rename, complete or not at all.
//!
//! ```text
//! target/lambda/<bin>/bootstrap, slimlambda.archive, lib/…, …   the package's files (`--output-format binary`)
//! target/lambda/<bin>/bootstrap.zip                             the deployment package (`--output-format zip`)
//! target/lambda/.slimlambda/<bin>.json                          the report, which `invoke` reads its settings from
//! ```

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

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
/// # Errors
///
/// A file cannot be written; what an earlier build left is then still there, as far as it was not replaced yet.
pub fn write(
    package: Package,
    directory: &Path,
    format: Option<OutputFormat>,
    flat: bool,
) -> anyhow::Result<Report> {
    let Package {
        files,
        zip,
        mut report,
    } = package;
    // The next build, from whatever directory, must know them again.
    let directory = &std::path::absolute(directory)
        .with_context(|| format!("failed to find `{}`", directory.display()))?;
    let report_path = report_path(directory, flat, &report.function);
    let mut outputs = Vec::new();
    let mut note = |path: &str, size: usize| {
        outputs.push(Output {
            path: directory.join(path),
            size: size as u64,
        })
    };
    let files = match format {
        Some(OutputFormat::Zip) => &[],
        _ => files.as_slice(),
    };
    files.iter().for_each(|file| note(&file.path, file.size()));
    if format != Some(OutputFormat::Binary) {
        note(ZIP, zip.len());
    }

    // What the last build left and this one does not have would be deployed along with it. It goes first: where a file or
    // a symlink was, there may be a directory now.
    let stale = |path: &PathBuf| {
        path.starts_with(directory) && !outputs.iter().any(|output| output.path == *path)
    };
    for path in previous(&report_path).iter().filter(|path| stale(path)) {
        remove(path, directory).with_context(|| {
            format!(
                "failed to remove `{}`, left by an earlier build",
                path.display()
            )
        })?;
    }
    fs::create_dir_all(directory)
        .with_context(|| format!("failed to create `{}`", directory.display()))?;
    for file in files {
        put(&directory.join(&file.path), file)?;
    }
    if format != Some(OutputFormat::Binary) {
        replace(&directory.join(ZIP), &zip, 0o644)?;
    }
    report.outputs = outputs;
    let text = serde_json::to_vec_pretty(&report).context("failed to write the report")?;
    fs::create_dir_all(report_path.parent().unwrap_or(directory)).with_context(|| {
        format!(
            "failed to create the directory of `{}`",
            report_path.display()
        )
    })?;
    replace(&report_path, &text, 0o644)?;
    Ok(report)
}

/// The files that the last build wrote, if there was one and its report can be read.
fn previous(report: &Path) -> Vec<PathBuf> {
    let text = fs::read(report).unwrap_or_default();
    let report: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let outputs = report["outputs"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    outputs
        .iter()
        .filter_map(|output| output["path"].as_str())
        .map(PathBuf::from)
        .collect()
}

/// Removes a file, and the directories below `directory` that are empty without it.
fn remove(path: &Path, directory: &Path) -> std::io::Result<()> {
    use std::io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
    match fs::remove_file(path) {
        // It is gone, or somebody has put something else there.
        Err(error) if [IsADirectory, NotADirectory, NotFound].contains(&error.kind()) => {}
        other => other?,
    }
    let mut above = path.parent();
    while let Some(empty) = above
        && empty != directory
        && fs::remove_dir(empty).is_ok()
    {
        above = empty.parent();
    }
    Ok(())
}

fn put(path: &Path, file: &File) -> anyhow::Result<()> {
    let parent = path.parent().context("an output has a parent")?;
    fs::create_dir_all(parent)
        .with_context(|| format!("failed to create `{}`", parent.display()))?;
    match &file.content {
        FileContent::File(bytes) => replace(path, bytes, file.mode),
        FileContent::Symlink(target) => {
            let failed = || format!("failed to create symlink `{}`", path.display());
            remove_entry(path).with_context(failed)?;
            std::os::unix::fs::symlink(target, path).with_context(failed)
        }
    }
}

fn remove_entry(path: &Path) -> std::io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let parent = path.parent().context("an output has a parent")?;
    let write = || {
        if path.is_dir() {
            remove_entry(path)?;
        }
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
