//! Sizes, and what packing takes: each archive of a payload once, from a tree in the page cache.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::contest::{self, Archive, Places, text};
use super::machine::{Tool, Tools};
use super::measure::{self, Job, Usage};
use super::payload::Unpacked;
use super::plan::Plan;
use super::setting::{Setting, progress, remove_file};

/// An archive that was made.
#[derive(Debug, Clone)]
pub struct Packed {
    /// Where.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// What it took.
    pub usage: Usage,
    /// Whether that was an earlier run.
    pub earlier: bool,
}

/// Beside a peer's archive: what it is of, how it was made, and what that took.
#[derive(Serialize, Deserialize)]
struct Note {
    key: String,
    usage: Usage,
}

/// Makes the archives that the plan wants to see or to unpack.
pub fn pack(
    setting: &Setting,
    payload: &Unpacked,
    plan: &Plan,
) -> anyhow::Result<HashMap<String, Packed>> {
    let directory = setting.base.join("archives").join(payload.payload.name());
    fs::create_dir_all(&directory)
        .with_context(|| format!("failed to create `{}`", directory.display()))?;
    let unpacked = plan.unpack.iter().filter_map(|how| how.archive());
    let mut wanted: Vec<Archive> = plan.size.clone();
    for archive in unpacked {
        if !wanted.contains(&archive) {
            wanted.push(archive);
        }
    }
    let tar = directory.join("tar");
    if wanted.iter().any(|archive| archive.of_tar()) {
        make_tar(&setting.tools, &payload.root, &tar)?;
    }
    let mut made = HashMap::new();
    for archive in wanted {
        let places = Places {
            tree: &payload.root,
            tar: &tar,
        };
        let path = directory.join(archive.file_name());
        let packed = pack_one(setting, payload, archive, places, path)?;
        made.insert(archive.name(), packed);
    }
    remove_file(&tar)?;
    Ok(made)
}

fn pack_one(
    setting: &Setting,
    payload: &Unpacked,
    archive: Archive,
    places: Places<'_>,
    path: PathBuf,
) -> anyhow::Result<Packed> {
    let job = archive.job(&setting.tools, places, &path)?;
    let note = path.with_added_extension("json");
    let version = archive.tool().map(|tool| setting.tools.version(tool));
    let key = format!(
        "{} {} {} {}",
        payload.digest.contents,
        payload.digest.modes,
        version.unwrap_or_default(),
        serde_json::to_string(&job)?
    );
    let noted = match setting.reuse_peers && archive.tool().is_some() && path.exists() {
        true => fs::read(&note)
            .ok()
            .and_then(|text| serde_json::from_slice::<Note>(&text).ok()),
        false => None,
    };
    let noted = noted.filter(|note| note.key == key);
    let earlier = noted.is_some();
    let usage = match noted {
        Some(note) => note.usage,
        None => {
            progress(payload, &format!("{} …", archive.name()));
            remove_file(&note)?;
            remove_file(&path)?;
            let usage = measure::run(&job)?;
            let told = Note { key, usage };
            fs::write(&note, serde_json::to_string(&told)?)
                .with_context(|| format!("failed to write `{}`", note.display()))?;
            told.usage
        }
    };
    let bytes = fs::metadata(&path)
        .with_context(|| format!("no `{}` after packing", path.display()))?
        .size();
    let from = if earlier { " (of an earlier run)" } else { "" };
    progress(
        payload,
        &format!(
            "{} {bytes} bytes, {:.1} s{from}",
            archive.name(),
            usage.wall
        ),
    );
    if archive.tool().is_none() {
        measure::run(&contest::verify(&setting.tools, &path)?)?;
    }
    Ok(Packed {
        path,
        bytes,
        usage,
        earlier,
    })
}

/// The same bytes for the same tree.
fn make_tar(tools: &Tools, tree: &Path, tar: &Path) -> anyhow::Result<()> {
    let program = tools.path(Tool::Tar)?;
    let order = ["--sort=name", "--format=gnu", "--mtime=@1577836800"];
    let owner = ["--owner=0", "--group=0", "--numeric-owner"];
    let mut command = vec![program];
    command.extend(order.iter().chain(&owner));
    command.extend(["-c", "-f", text(tar)?, "-C", text(tree)?, "."]);
    measure::run(&Job::program(tree, &command))?;
    Ok(())
}
