//! Trees of files: what goes into an archive, and what came out of it, in a form that can be compared.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cargo_slimlambda::pack::archive::{self, Input, InputContent, Packed};
use runtime_unpack::launch::Launch;

/// A path of a package.
#[derive(Debug, Clone)]
pub struct File {
    pub path: String,
    pub mode: u32,
    pub lazy: bool,
    pub content: Content,
}

#[derive(Debug, Clone)]
pub enum Content {
    Bytes(Vec<u8>),
    Link(String),
}

pub fn file(path: &str, mode: u32, bytes: impl Into<Vec<u8>>) -> File {
    File {
        path: path.into(),
        mode,
        lazy: false,
        content: Content::Bytes(bytes.into()),
    }
}

pub fn lazy(path: &str, mode: u32, bytes: impl Into<Vec<u8>>) -> File {
    File {
        lazy: true,
        ..file(path, mode, bytes)
    }
}

pub fn link(path: &str, target: &str) -> File {
    File {
        path: path.into(),
        mode: 0o777,
        lazy: false,
        content: Content::Link(target.into()),
    }
}

/// What is at a path. Contents by size and digest, so that a failed comparison can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    Directory,
    File {
        mode: u32,
        size: usize,
        digest: String,
    },
    Link(String),
}

pub type Tree = BTreeMap<String, Node>;

fn node(mode: u32, bytes: &[u8]) -> Node {
    Node::File {
        mode: mode & 0o777,
        size: bytes.len(),
        digest: blake3::hash(bytes).to_hex().to_string(),
    }
}

/// The tree that these files make.
pub fn expected<'f>(files: impl IntoIterator<Item = &'f File>) -> Tree {
    let mut out = Tree::new();
    for file in files {
        for (slash, _) in file.path.match_indices('/') {
            out.insert(file.path[..slash].into(), Node::Directory);
        }
        let node = match &file.content {
            Content::Bytes(bytes) => node(file.mode, bytes),
            Content::Link(target) => Node::Link(target.clone()),
        };
        out.insert(file.path.clone(), node);
    }
    out
}

/// The tree that is at `root`.
pub fn found(root: &Path) -> Tree {
    let mut out = Tree::new();
    read(root, "", &mut out);
    out
}

fn read(directory: &Path, prefix: &str, out: &mut Tree) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        let kind = entry.file_type().unwrap();
        let node = if kind.is_dir() {
            read(&entry.path(), &format!("{path}/"), out);
            Node::Directory
        } else if kind.is_symlink() {
            let target = fs::read_link(entry.path()).unwrap();
            Node::Link(target.to_str().unwrap().into())
        } else {
            let mode = entry.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o7000, 0, "{path}: {mode:o}");
            node(mode, &fs::read(entry.path()).unwrap())
        };
        out.insert(path, node);
    }
}

/// Packs as fast as possible.
pub fn pack(files: &[File], launch: &Launch) -> anyhow::Result<Packed> {
    let inputs: Vec<Input<'_>> = files
        .iter()
        .map(|file| Input {
            path: &file.path,
            mode: file.mode,
            lazy: file.lazy,
            content: match &file.content {
                Content::Bytes(bytes) => InputContent::File(bytes),
                Content::Link(target) => InputContent::Symlink(target),
            },
        })
        .collect();
    archive::pack(&inputs, launch, 1, None, &|_| {})
}

/// Bytes that do not compress, of a reproducible kind.
pub fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; size];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out
}

/// Bytes that compress to about half.
pub fn text(size: usize, seed: u64) -> Vec<u8> {
    let mut out = noise(size, seed);
    for byte in &mut out {
        *byte = b"etaoin shrdlu.,\n"[usize::from(*byte & 15)];
    }
    out
}
