//! What packing takes again after a small change, with our cache.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::contest::{self, Archive, Level, Unpack, text};
use super::machine::Tool;
use super::measure::{self, Job, Usage};
use super::payload::Unpacked;
use super::setting::{Setting, progress, remove_file, settle};
use super::tree;

/// Packing again after a change.
#[derive(Debug)]
pub struct Rebuilt {
    /// Our level.
    pub level: Level,
    /// The file that was changed, and its size.
    pub changed: (PathBuf, u64),
    /// Packing with an empty cache.
    pub first: Usage,
    /// Packing after each change.
    pub again: Vec<f64>,
}

/// Packs a copy of the tree with an empty cache, then again after each of several changes of one file of about 1 MB.
pub fn rebuild(setting: &Setting, payload: &Unpacked, level: Level) -> anyhow::Result<Rebuilt> {
    let work = setting.disk.join("rebuild");
    let (copy, cache) = (work.join("tree"), work.join("cache"));
    let out = work.join("archive");
    fs::create_dir_all(&cache)
        .with_context(|| format!("failed to create `{}`", cache.display()))?;
    let from = format!("{}/.", text(&payload.root)?);
    let command = [setting.tools.path(Tool::Copy)?, "-r", &from, text(&copy)?];
    measure::run(&Job::program("/", &command))?;
    let changed = near_a_megabyte(&copy)?;
    let path = copy.join(&changed.0);
    let mut job = contest::pack(&setting.tools, &copy, &out, level, &[])?;
    job.environment = vec![("XDG_CACHE_HOME".into(), text(&cache)?.into())];
    progress(
        payload,
        &format!("packing at level {} for a rebuild …", level.name()),
    );
    settle(&copy)?;
    let first = measure::run(&job)?;
    progress(payload, &format!("first {:.1} s", first.wall));
    let mut again = Vec::new();
    for step in 1..=3 {
        change(&path, step)?;
        remove_file(&out)?;
        settle(&copy)?;
        let usage = measure::run(&job)?;
        progress(
            payload,
            &format!("after change {step}: {:.2} s", usage.wall),
        );
        again.push(usage.wall);
        let to = work.join(format!("to-{step}"));
        fs::create_dir(&to).with_context(|| format!("failed to create `{}`", to.display()))?;
        let how = Unpack::From(Archive::Ours(level));
        measure::run(&how.job(&setting.tools, &copy, Some(&out), &to)?)?;
        if tree::digest(&to)? != tree::digest(&copy)? {
            bail!("an archive made with the cache does not bring its tree back");
        }
        tree::empty(&to)?;
    }
    tree::empty(&copy)?;
    Ok(Rebuilt {
        level,
        changed,
        first,
        again,
    })
}

/// The file whose size is nearest to 1,000,000 bytes, and its size.
fn near_a_megabyte(root: &Path) -> anyhow::Result<(PathBuf, u64)> {
    let mut best: Option<(PathBuf, u64)> = None;
    for path in tree::files(root)? {
        let size = fs::metadata(root.join(&path))?.size();
        if best
            .as_ref()
            .is_none_or(|(_, bytes)| size.abs_diff(1_000_000) < bytes.abs_diff(1_000_000))
        {
            best = Some((path, size));
        }
    }
    best.context("a tree without files")
}

/// Changes one byte in each thousand, another one with each step.
fn change(path: &Path, step: usize) -> anyhow::Result<()> {
    let failed = || format!("failed to change `{}`", path.display());
    let mut bytes = fs::read(path).with_context(failed)?;
    for byte in bytes.iter_mut().skip(500 + step).step_by(1000) {
        *byte = byte.wrapping_add(1);
    }
    fs::write(path, bytes).with_context(failed)
}
