//! What the three parts (sizes, unpacking, rebuild) share.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::machine::Tools;
use super::payload::Unpacked;

/// What the parts need to know.
#[derive(Debug)]
pub struct Setting {
    /// Programs.
    pub tools: Tools,
    /// A directory on disk, kept: wheels, trees, archives.
    pub base: PathBuf,
    /// A directory on disk, of this run.
    pub disk: PathBuf,
    /// A directory in memory, of this run.
    pub tmpfs: PathBuf,
    /// How often everything is unpacked.
    pub rounds: usize,
    /// How often memory is sampled.
    pub samples: usize,
    /// Whether peers' archives of an earlier run will do.
    pub reuse_peers: bool,
}

/// What earlier runs wrote goes to disk now, not in somebody else's time.
pub fn settle(directory: &Path) -> anyhow::Result<()> {
    let flushed = File::open(directory)
        .map_err(anyhow::Error::from)
        .and_then(|file| Ok(nix::unistd::syncfs(&file)?));
    flushed.with_context(|| format!("failed to sync `{}`", directory.display()))
}

/// Removes a file that may not be there.
pub fn remove_file(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove `{}`", path.display()))
        }
        _ => Ok(()),
    }
}

/// Says on stderr what goes on; names come as tables have them.
pub fn progress(payload: &Unpacked, what: &str) {
    let what = what.replace("**", "");
    eprintln!("{:>14}  {what}", payload.payload.name());
}
