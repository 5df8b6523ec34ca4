//! Files → sideload archive, as `runtime_unpack::format` specifies it.
//!
//! Frames are cut first, compressed by all cores, and written in order; so the bytes depend on the files and the
//! level alone. Large files begin a frame of their own; small ones share frames, neighbours of one kind together.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};
use rayon::prelude::*;
use runtime_unpack::format::{self, Blob, Codec, Digest, Frame, HEADER_SIZE, Header, Kind};
use runtime_unpack::launch::Launch;

use super::cache::Cache;
use crate::event::{Event, Sink};

/// Bytes that a frame unpacks to at most: the memory that each unpacking thread needs, against what a longer
/// window would save.
pub const BLOCK_LOG2: u8 = 22;

/// One path to put into an archive.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Relative path, `/`-separated.
    pub path: &'a str,
    /// Permission bits.
    pub mode: u32,
    /// Unpacked on first use.
    pub lazy: bool,
    /// File content or link target.
    pub content: InputContent<'a>,
}

/// What is at a path.
#[derive(Debug, Clone, Copy)]
pub enum InputContent<'a> {
    /// A regular file with these bytes.
    File(&'a [u8]),
    /// A symlink to here.
    Symlink(&'a str),
    /// A directory; needed only for one that holds nothing.
    Directory,
}

/// A finished archive.
#[derive(Debug)]
pub struct Packed {
    /// All of it.
    pub bytes: Vec<u8>,
    /// The archive digest, which a launcher is paired with.
    pub digest: Digest,
    /// For each input, the bytes that it takes in the archive: its share of the frames that hold it.
    pub packed_sizes: Vec<u64>,
    /// Number of frames.
    pub frames: usize,
}

/// A blob to be laid into the content.
struct Content<'a> {
    bytes: &'a [u8],
    digest: Digest,
    lazy: bool,
    /// For the order: the path of the first file that has this content.
    path: &'a str,
}

/// Packs `inputs` at zstd `level`.
///
/// Runs on the current rayon pool; any number of threads gives the same bytes, and so does any cache.
///
/// # Errors
///
/// A path that the format does not allow.
pub fn pack(
    inputs: &[Input<'_>],
    launch: &Launch,
    level: i32,
    cache: Option<&Cache>,
    sink: Sink<'_>,
) -> anyhow::Result<Packed> {
    let entries = entries(inputs)?;
    let (blobs, blob_of) = blobs(inputs);
    let frames = cut(&blobs);
    let total: u64 = blobs.iter().map(|blob| blob.bytes.len() as u64).sum();
    let done = AtomicU64::new(0);
    let packed: Vec<(Frame, Vec<u8>)> = frames
        .par_iter()
        .map(|parts| {
            let frame = compress(parts, level, cache)?;
            let len = u64::from(frame.0.unpacked);
            let done = done.fetch_add(len, Ordering::Relaxed) + len;
            sink(Event::Progress {
                what: "archive",
                done,
                total,
            });
            Ok(frame)
        })
        .collect::<anyhow::Result<_>>()?;

    let launch = launch.encode();
    let index = index(&entries, inputs, &blobs, &blob_of, &packed, &launch);
    let index_packed = compressor(19)?
        .compress(&index)
        .context("failed to compress the index")?;
    let header = Header {
        block_log2: BLOCK_LOG2,
        index_packed: index_packed.len() as u64,
        index_unpacked: index.len() as u64,
        frames_packed: packed
            .iter()
            .map(|(frame, _)| u64::from(frame.packed))
            .sum(),
        content_size: total,
        entries: count(entries.len())?,
        blobs: count(blobs.len())?,
        frames: count(packed.len())?,
        launch_size: count(launch.len())?,
        index_digest: format::digest(&index_packed),
    };
    let mut bytes =
        Vec::with_capacity(HEADER_SIZE + index_packed.len() + header.frames_packed as usize);
    bytes.extend_from_slice(&header.encode());
    bytes.extend_from_slice(&index_packed);
    for (_, frame) in &packed {
        bytes.extend_from_slice(frame);
    }
    let packed_sizes = packed_sizes(&blobs, &blob_of, &packed);
    Ok(Packed {
        bytes,
        digest: header.digest(),
        packed_sizes,
        frames: packed.len(),
    })
}

/// Bytes that `bytes` would take packed, quickly guessed: its frames at a low level.
pub fn estimate(bytes: &[u8]) -> anyhow::Result<u64> {
    let blocks: Vec<&[u8]> = bytes.chunks(1 << BLOCK_LOG2).collect();
    let sizes = blocks
        .par_iter()
        .map(|block| Ok(u64::from(compress(&[block], 3, None)?.0.packed)));
    sizes.sum::<anyhow::Result<u64>>()
}

/// An entry: its path, and the input it is of; `None` for a directory that only holds others.
type Entry<'a> = (&'a str, Option<usize>);

/// All entries, sorted: the inputs and every directory that leads to one.
fn entries<'a>(inputs: &[Input<'a>]) -> anyhow::Result<Vec<Entry<'a>>> {
    let mut entries: BTreeMap<&str, Option<usize>> = BTreeMap::new();
    for (number, input) in inputs.iter().enumerate() {
        if let Some(fault) = format::path_fault(input.path.as_bytes()) {
            bail!(
                "path `{}` in the package {fault}",
                input.path.escape_debug()
            );
        }
        if let InputContent::Symlink(target) = input.content
            && let Some(fault) = format::target_fault(input.path.as_bytes(), target.as_bytes())
        {
            bail!(
                "symlink `{}` → `{target}` {fault}\nhelp: place it inline, or make it a file",
                input.path
            );
        }
        let of = match input.content {
            InputContent::Directory => None,
            InputContent::File(_) | InputContent::Symlink(_) => Some(number),
        };
        // A directory may have been met already, as what leads to another input.
        let taken = entries.insert(input.path, of);
        if taken.is_some_and(|taken| taken.is_some() || of.is_some()) {
            bail!("two files want to be `{}` in the package", input.path);
        }
        for (slash, _) in input.path.match_indices('/') {
            entries.entry(&input.path[..slash]).or_insert(None);
        }
    }
    let file = |path: &str| entries.get(path).copied().flatten();
    for path in entries.keys() {
        if let Some((parent, _)) = path.rsplit_once('/')
            && file(parent).is_some()
        {
            bail!("`{parent}` is a file and a directory of the package (because of `{path}`)");
        }
    }
    Ok(entries.into_iter().collect())
}

/// The distinct contents, in the order in which they are laid out, and which of them each input has.
fn blobs<'a>(inputs: &[Input<'a>]) -> (Vec<Content<'a>>, Vec<Option<usize>>) {
    let digests: Vec<Option<(Digest, &[u8])>> = inputs
        .par_iter()
        .map(|input| match input.content {
            InputContent::File(bytes) => Some((format::digest(bytes), bytes)),
            InputContent::Symlink(_) | InputContent::Directory => None,
        })
        .collect();
    let mut by_digest: BTreeMap<Digest, Content<'a>> = BTreeMap::new();
    for (input, content) in inputs.iter().zip(&digests) {
        let Some((digest, bytes)) = *content else {
            continue;
        };
        let blob = by_digest.entry(digest).or_insert(Content {
            bytes,
            digest,
            lazy: true,
            path: input.path,
        });
        blob.lazy &= input.lazy;
        blob.path = blob.path.min(input.path);
    }
    let mut blobs: Vec<Content<'a>> = by_digest.into_values().collect();
    blobs.sort_by(|a, b| order(a).cmp(&order(b)));
    let number: BTreeMap<Digest, usize> = blobs
        .iter()
        .enumerate()
        .map(|(n, blob)| (blob.digest, n))
        .collect();
    let blob_of = digests
        .iter()
        .map(|content| content.map(|(digest, _)| number[&digest]))
        .collect();
    (blobs, blob_of)
}

/// What is needed at start before what is lazy; large files first, so that no thread is left with one at the end;
/// small ones by kind and path, so that like is compressed with like.
fn order<'c>(blob: &'c Content<'_>) -> (bool, std::cmp::Reverse<usize>, &'c str, &'c str) {
    let large = if is_large(blob) { blob.bytes.len() } else { 0 };
    let name = blob.path.rsplit('/').next().unwrap_or(blob.path);
    let kind = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    (blob.lazy, std::cmp::Reverse(large), kind, blob.path)
}

fn is_large(blob: &Content<'_>) -> bool {
    blob.bytes.len() > 1 << (BLOCK_LOG2 - 2)
}

/// The frames, each as the runs of bytes that it is made of.
fn cut<'a>(blobs: &[Content<'a>]) -> Vec<Vec<&'a [u8]>> {
    let block = 1 << BLOCK_LOG2;
    let mut frames: Vec<Vec<&[u8]>> = Vec::new();
    let (mut open, mut filled, mut lazy) = (false, 0, false);
    for blob in blobs.iter().filter(|blob| !blob.bytes.is_empty()) {
        if is_large(blob) {
            frames.extend(blob.bytes.chunks(block).map(|chunk| vec![chunk]));
            open = false;
            continue;
        }
        if !open || lazy != blob.lazy || filled + blob.bytes.len() > block {
            frames.push(Vec::new());
            (open, filled, lazy) = (true, 0, blob.lazy);
        }
        if let Some(frame) = frames.last_mut() {
            frame.push(blob.bytes);
        }
        filled += blob.bytes.len();
    }
    frames
}

fn compressor(level: i32) -> anyhow::Result<zstd::bulk::Compressor<'static>> {
    let mut compressor = zstd::bulk::Compressor::new(level).context("failed to set up zstd")?;
    // The frame's record has a digest of its own.
    compressor
        .include_checksum(false)
        .context("failed to set up zstd")?;
    compressor
        .include_contentsize(true)
        .context("failed to set up zstd")?;
    Ok(compressor)
}

/// The cache's key of a frame: everything that its packed bytes depend on.
fn key(content: &Digest, level: i32) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    // Another format, or another way to make it: another number here.
    hasher.update(b"slimlambda frame 1\0");
    hasher.update(&zstd::zstd_safe::version_number().to_le_bytes());
    hasher.update(&level.to_le_bytes());
    hasher.update(content);
    *hasher.finalize().as_bytes()
}

fn compress(
    parts: &[&[u8]],
    level: i32,
    cache: Option<&Cache>,
) -> anyhow::Result<(Frame, Vec<u8>)> {
    let joined;
    let content = match parts {
        [one] => *one,
        several => {
            joined = several.concat();
            &joined
        }
    };
    let digest = format::digest(content);
    let key = key(&digest, level);
    // An empty payload stands for a frame that is stored.
    let zstd = match cache.and_then(|cache| cache.get(&key)) {
        Some(kept) => kept,
        None => {
            let mut zstd = compressor(level)?
                .compress(content)
                .context("failed to compress a frame")?;
            // Where next to nothing is won, unpacking should be a copy.
            if zstd.len() + content.len() / 64 >= content.len() {
                zstd.clear();
            }
            if let Some(cache) = cache {
                cache.put(&key, &zstd);
            }
            zstd
        }
    };
    let (codec, bytes) = match zstd.is_empty() {
        true => (Codec::Stored, content.to_vec()),
        false => (Codec::Zstd, zstd),
    };
    let frame = Frame {
        packed: count(bytes.len())?,
        unpacked: count(content.len())?,
        codec,
        digest,
    };
    Ok((frame, bytes))
}

fn index(
    entries: &[Entry<'_>],
    inputs: &[Input<'_>],
    blobs: &[Content<'_>],
    blob_of: &[Option<usize>],
    packed: &[(Frame, Vec<u8>)],
    launch: &str,
) -> Vec<u8> {
    let mut out = Vec::new();
    let mut strings = Vec::new();
    for (path, input) in entries {
        strings.extend_from_slice(path.as_bytes());
        let (kind, lazy, mode) = match input.map(|number| (&inputs[number], blob_of[number])) {
            None => (Kind::Directory, false, 0o755),
            Some((input, Some(blob))) => (Kind::File { blob: blob as u32 }, input.lazy, input.mode),
            Some((input, None)) => {
                let target = match input.content {
                    InputContent::Symlink(target) => target,
                    InputContent::File(_) | InputContent::Directory => "",
                };
                strings.extend_from_slice(target.as_bytes());
                (
                    Kind::Symlink {
                        target: target.len() as u32,
                    },
                    input.lazy,
                    0o777,
                )
            }
        };
        out.extend_from_slice(&format::encode_entry(
            kind,
            lazy,
            mode as u16 & 0o777,
            path.len() as u16,
        ));
    }
    for blob in blobs {
        out.extend_from_slice(&format::encode_blob(&Blob {
            size: blob.bytes.len() as u64,
            digest: blob.digest,
        }));
    }
    for (frame, _) in packed {
        out.extend_from_slice(&format::encode_frame(frame));
    }
    out.extend_from_slice(launch.as_bytes());
    out.extend_from_slice(&strings);
    out
}

/// Shares each frame's bytes out among the inputs that it holds, by size; a content that several inputs have is
/// charged to the first of them.
fn packed_sizes(
    blobs: &[Content<'_>],
    blob_of: &[Option<usize>],
    packed: &[(Frame, Vec<u8>)],
) -> Vec<u64> {
    let mut of_blob = vec![0u64; blobs.len()];
    let mut frames = packed.iter().map(|(frame, _)| frame);
    let (mut left, mut share) = (0u64, (0u64, 1u64));
    for (n, blob) in blobs.iter().enumerate() {
        let mut size = blob.bytes.len() as u64;
        while size > 0 {
            if left == 0 {
                let Some(frame) = frames.next() else { break };
                left = frame.unpacked.into();
                share = (frame.packed.into(), frame.unpacked.into());
            }
            let part = size.min(left);
            of_blob[n] += part * share.0 / share.1;
            (size, left) = (size - part, left - part);
        }
    }
    blob_of
        .iter()
        .map(|blob| blob.map_or(0, |blob| std::mem::take(&mut of_blob[blob])))
        .collect()
}

fn count(value: usize) -> anyhow::Result<u32> {
    u32::try_from(value).context("more than the archive format can count")
}
