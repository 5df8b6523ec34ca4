//! Items and a plan → files: the sideload archive, the paired launcher, the deployment package. Decides nothing.

pub mod archive;
pub mod cache;
pub mod frame;
pub mod segment;
mod similar;
pub mod zip;

use anyhow::{Context, ensure};
use runtime_unpack::format::{Digest, FILE_NAME};
use runtime_unpack::launch::{Base, Launch, PAIRING_MARK, Place as LaunchPlace};

use crate::event::Sink;
use crate::plan::{Place, Plan};
use crate::tree::{Content, Item, LIBRARY_DIRECTORY, Role};
use archive::{Input, InputContent};
use cache::Cache;
use zip::Member;

/// Bytes that a launcher is allowed to have, and is planned with.
pub const LAUNCHER_SIZE: u64 = 500_000;

/// A file of the deployment package.
#[derive(Debug)]
pub struct File {
    /// Relative path.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Bytes, or a symlink's target.
    pub content: FileContent,
}

impl File {
    /// Bytes that it counts.
    pub fn size(&self) -> usize {
        match &self.content {
            FileContent::File(bytes) => bytes.len(),
            FileContent::Symlink(target) => target.len(),
        }
    }
}

/// What is at a path of the deployment package.
#[derive(Debug, Clone)]
pub enum FileContent {
    /// A regular file.
    File(Vec<u8>),
    /// A symlink.
    Symlink(String),
}

/// What packing made.
#[derive(Debug)]
pub struct Packed {
    /// The deployment package's files, sorted by path.
    pub files: Vec<File>,
    /// The deployment package.
    pub zip: Vec<u8>,
    /// Bytes of it, unzipped.
    pub unzipped: u64,
    /// The launcher's size, if there is one.
    pub launcher: Option<u64>,
    /// The archive, if there is one.
    pub archive: Option<ArchiveFacts>,
    /// For each item, its bytes in the archive; `None` for what is not in it.
    pub packed_sizes: Vec<Option<u64>>,
}

/// What there is to know about the archive.
#[derive(Debug, Clone, Copy)]
pub struct ArchiveFacts {
    /// Bytes.
    pub size: u64,
    /// Archive digest.
    pub digest: Digest,
    /// Number of frames.
    pub frames: usize,
    /// Bytes that its files have unpacked.
    pub unpacked: u64,
}

/// Packs a function. `launcher` is there exactly where the plan wants one.
pub fn pack(
    name: &str,
    items: &[Item],
    plan: &Plan,
    launcher: Option<Vec<u8>>,
    level: i32,
    cache: Option<&Cache>,
    sink: Sink<'_>,
) -> anyhow::Result<Packed> {
    let mut files = Vec::new();
    let mut packed_sizes = vec![None; items.len()];
    let mut facts = None;
    let launcher_size = launcher.as_ref().map(|bytes| bytes.len() as u64);
    if let Some(launcher) = launcher {
        let inside: Vec<usize> = (0..items.len())
            .filter(|n| plan.places[*n].0 != Place::Package)
            .collect();
        let inputs: Vec<Input<'_>> = inside
            .iter()
            .map(|n| input(&items[*n], plan.places[*n].0))
            .collect();
        let archive = archive::pack(&inputs, &launch(items, plan)?, level, cache, sink)?;
        for (n, size) in inside.iter().zip(&archive.packed_sizes) {
            packed_sizes[*n] = Some(*size);
        }
        facts = Some(ArchiveFacts {
            size: archive.bytes.len() as u64,
            digest: archive.digest,
            frames: archive.frames,
            unpacked: inside.iter().map(|n| items[*n].size()).sum(),
        });
        let bootstrap = pair(launcher, &archive.digest)?;
        files.push(File {
            path: "bootstrap".into(),
            mode: 0o755,
            content: FileContent::File(bootstrap),
        });
        files.push(File {
            path: FILE_NAME.into(),
            mode: 0o644,
            content: FileContent::File(archive.bytes),
        });
    }
    for (item, (place, _)) in items.iter().zip(&plan.places) {
        if *place != Place::Package {
            continue;
        }
        let path = match (item.role, plan.launcher) {
            (Role::Binary, false) => "bootstrap".to_string(),
            _ => item.dest.clone(),
        };
        ensure!(
            !files.iter().any(|file| file.path == path),
            "two files want to be `{path}` in the package of `{name}`\nhelp: give the asset another `dest`"
        );
        let content = match &item.content {
            Content::File(bytes) => FileContent::File(bytes.to_vec()),
            Content::Symlink(target) => FileContent::Symlink(target.clone()),
        };
        files.push(File {
            path,
            mode: item.mode,
            content,
        });
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    no_file_is_a_directory(&files)?;
    let members: Vec<Member<'_>> = files.iter().map(member).collect();
    let unzipped = files.iter().map(|file| file.size() as u64).sum();
    let zip = zip::zip(&members)?;
    Ok(Packed {
        zip,
        unzipped,
        launcher: launcher_size,
        archive: facts,
        packed_sizes,
        files,
    })
}

/// `files` is sorted.
fn no_file_is_a_directory(files: &[File]) -> anyhow::Result<()> {
    for file in files {
        for (slash, _) in file.path.match_indices('/') {
            let above = &file.path[..slash];
            let taken = files.binary_search_by(|other| other.path.as_str().cmp(above));
            ensure!(
                taken.is_err(),
                "`{above}` is a file and a directory of the package (because of `{}`)\nhelp: give the asset another `dest`",
                file.path
            );
        }
    }
    Ok(())
}

fn input<'a>(item: &'a Item, place: Place) -> Input<'a> {
    let content = match &item.content {
        Content::File(bytes) => InputContent::File(bytes),
        Content::Symlink(target) => InputContent::Symlink(target),
    };
    Input {
        path: &item.dest,
        mode: item.mode,
        lazy: place == Place::ArchiveLazy,
        content,
    }
}

fn member(file: &File) -> Member<'_> {
    let content = match &file.content {
        FileContent::File(bytes) => InputContent::File(bytes),
        FileContent::Symlink(target) => InputContent::Symlink(target),
    };
    Member {
        path: &file.path,
        mode: file.mode,
        content,
        stored: file.path == FILE_NAME,
    }
}

/// What the launcher is to start, and where it finds the libraries.
fn launch(items: &[Item], plan: &Plan) -> anyhow::Result<Launch> {
    let base = |place: Place| match place {
        Place::Package => Base::Task,
        Place::Archive | Place::ArchiveLazy => Base::Tree,
    };
    let of = |role: Role| {
        items
            .iter()
            .zip(&plan.places)
            .filter(move |(item, _)| item.role == role)
    };
    let (binary, (place, _)) = of(Role::Binary).next().context("a package has a binary")?;
    let bases: Vec<Base> = of(Role::Library)
        .map(|(_, (place, _))| base(*place))
        .collect();
    let library_path = [Base::Tree, Base::Task]
        .into_iter()
        .filter(|base| bases.contains(base));
    Ok(Launch {
        program: Some(LaunchPlace {
            base: base(*place),
            path: binary.dest.clone(),
        }),
        library_path: library_path
            .map(|base| LaunchPlace {
                base,
                path: LIBRARY_DIRECTORY.into(),
            })
            .collect(),
    })
}

/// Writes the archive's digest into the launcher, which will accept no other archive.
pub fn pair(mut launcher: Vec<u8>, digest: &Digest) -> anyhow::Result<Vec<u8>> {
    let marks: Vec<usize> = launcher
        .windows(PAIRING_MARK.len())
        .enumerate()
        .filter(|(_, w)| **w == PAIRING_MARK)
        .map(|(at, _)| at)
        .collect();
    let [mark] = marks[..] else {
        anyhow::bail!(
            "the launcher has {} places for a digest instead of one",
            marks.len()
        );
    };
    let at = mark + PAIRING_MARK.len();
    let place = launcher
        .get_mut(at..at + digest.len())
        .context("the launcher ends inside its pairing")?;
    ensure!(
        place.iter().all(|byte| *byte == 0),
        "the launcher is paired already"
    );
    place.copy_from_slice(digest);
    Ok(launcher)
}
