//! Small projects made for one test.

use std::fs;
use std::path::{Path, PathBuf};

use cargo_slimlambda::cli::{BuildArgs, ChoiceArgs, Cli, Command};
use tempfile::TempDir;

/// A directory with these files; it goes when the value does.
pub fn project(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (path, text) in files {
        write(&directory.path().join(path), text);
    }
    directory
}

pub fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// `[package]` with this name and whatever else.
pub fn manifest(name: &str, rest: &str) -> String {
    format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\n{rest}")
}

/// A command line of `build`, parsed.
pub fn build_args(args: &[&str]) -> BuildArgs {
    let words = ["cargo-slimlambda", "build"].iter().chain(args);
    let cli = Cli::from_args(words.map(std::ffi::OsString::from)).unwrap();
    match cli.command {
        Command::Build(args) => *args,
        _ => unreachable!(),
    }
}

/// The choice of what is in `directory`, with more flags.
pub fn choice(directory: &Path, args: &[&str]) -> ChoiceArgs {
    ChoiceArgs {
        manifest_path: Some(directory.join("Cargo.toml")),
        ..build_args(args).choice
    }
}

/// The temporary directory, as programs name it.
pub fn real(directory: &TempDir) -> PathBuf {
    directory.path().canonicalize().unwrap()
}

/// An error and its causes with the temporary directory taken out.
pub fn message(error: &anyhow::Error, directory: &TempDir) -> String {
    let text = format!("{error:#}");
    text.replace(&*real(directory).to_string_lossy(), "[DIR]")
        .replace(&*directory.path().to_string_lossy(), "[DIR]")
}
