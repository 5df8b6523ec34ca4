//! What unpacking takes: every way once a round, each round beginning with another one, into a fresh directory, with all that
//! is read in the page cache. What came out is compared with the original each time.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, bail};

use super::contest::Unpack;
use super::measure::{self, Usage};
use super::pack::Packed;
use super::payload::Unpacked;
use super::setting::{Setting, progress, settle};
use super::tree;

/// A way to unpack, measured in one place.
#[derive(Debug)]
pub struct Timed {
    /// Which way.
    pub how: Unpack,
    /// Seconds, round by round.
    pub wall: Vec<f64>,
    /// The largest anonymous memory that was seen, bytes.
    pub anonymous: u64,
    /// The largest resident size of a process, bytes.
    pub resident: u64,
}

/// The kinds of places to unpack into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In memory.
    Tmpfs,
    /// On disk; written, not synced.
    Disk,
}

impl Place {
    /// As tables have it.
    pub fn name(self) -> &'static str {
        match self {
            Place::Tmpfs => "tmpfs",
            Place::Disk => "disk",
        }
    }
}

/// Unpacks in every way that the plan has, in turn, as often as the setting has rounds.
pub fn unpack(
    setting: &Setting,
    payload: &Unpacked,
    ways: &[Unpack],
    archives: &HashMap<String, Packed>,
    place: Place,
) -> anyhow::Result<Vec<Timed>> {
    let base = match place {
        Place::Tmpfs => &setting.tmpfs,
        Place::Disk => &setting.disk,
    };
    room(base, payload.digest.bytes)?;
    let mut timed: Vec<Timed> = ways
        .iter()
        .map(|&how| Timed {
            how,
            wall: Vec::new(),
            anonymous: 0,
            resident: 0,
        })
        .collect();
    let sampled = match place {
        Place::Tmpfs => setting.samples,
        Place::Disk => 0,
    };
    warm(payload, ways, archives)?;
    for round in 0..setting.rounds + sampled {
        let sample = round >= setting.rounds;
        let what = if sample { "memory" } else { "round" };
        progress(payload, &format!("unpacking, {what}, {}", round + 1));
        for at in 0..timed.len() {
            let at = (at + round) % ways.len();
            let to = base.join(format!("{}-{round}-{at}", payload.payload.name()));
            let usage = unpack_once(setting, payload, timed[at].how, archives, &to, sample)?;
            match place {
                Place::Tmpfs => tree::remove(&to)?,
                Place::Disk => tree::empty(&to)?,
            }
            let row = &mut timed[at];
            row.resident = row.resident.max(usage.resident);
            row.anonymous = row.anonymous.max(usage.anonymous);
            if !sample {
                row.wall.push(usage.wall);
            }
        }
    }
    Ok(timed)
}

/// One way, into a fresh directory; the result is compared with the original.
fn unpack_once(
    setting: &Setting,
    payload: &Unpacked,
    how: Unpack,
    archives: &HashMap<String, Packed>,
    to: &Path,
    sample: bool,
) -> anyhow::Result<Usage> {
    fs::create_dir(to).with_context(|| format!("failed to create `{}`", to.display()))?;
    settle(to)?;
    let archive = match how.archive() {
        Some(archive) => {
            let made = archives.get(&archive.name());
            Some(&*made.context("an archive that was not made")?.path)
        }
        None => None,
    };
    let mut job = how.job(&setting.tools, &payload.root, archive, to)?;
    job.sample = sample;
    let usage = measure::run(&job)?;
    same(payload, how, to)?;
    Ok(usage)
}

fn same(payload: &Unpacked, how: Unpack, to: &Path) -> anyhow::Result<()> {
    let found = tree::digest(to)?;
    if found.contents != payload.digest.contents {
        bail!(
            "`{}` did not bring `{}` back",
            how.name(),
            payload.payload.name()
        );
    }
    if how.keeps_modes() && found.modes != payload.digest.modes {
        bail!("`{}` brought other modes back", how.name());
    }
    Ok(())
}

/// Reads all that will be read.
fn warm(
    payload: &Unpacked,
    ways: &[Unpack],
    archives: &HashMap<String, Packed>,
) -> anyhow::Result<()> {
    tree::digest(&payload.root)?;
    let used = ways.iter().filter_map(|how| how.archive());
    for packed in used.filter_map(|archive| archives.get(&archive.name())) {
        File::open(&packed.path)
            .and_then(|mut file| std::io::copy(&mut file, &mut std::io::sink()))
            .with_context(|| format!("failed to read `{}`", packed.path.display()))?;
    }
    Ok(())
}

fn room(directory: &Path, bytes: u64) -> anyhow::Result<()> {
    let found = nix::sys::statvfs::statvfs(directory)
        .with_context(|| format!("failed to look at `{}`", directory.display()))?;
    let free = found.blocks_available() * found.fragment_size();
    // Blocks that are not full, and directories.
    let needed = bytes + bytes / 4 + (64 << 20);
    if free < needed {
        bail!(
            "`{}` has {free} bytes left, and {needed} are needed\nhelp: in a container, `--shm-size` makes /dev/shm larger",
            directory.display()
        );
    }
    Ok(())
}
