//! Files → sideload archive, as `runtime_unpack::format` specifies it.
//!
//! Files are taken apart into parts of one kind ([`segment`]); like parts of all files share frames, which are
//! packed by all cores ([`frame`]) and written in order. So the bytes depend on the files and the level alone.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};
use rayon::prelude::*;
use runtime_unpack::filter::Filter;
use runtime_unpack::format::{self, Blob, Digest, HEADER_SIZE, Header, Kind, Piece};
use runtime_unpack::launch::Launch;
use runtime_unpack::reader;

use super::cache::Cache;
use super::frame;
use super::segment::{self, Class, Part};
use super::similar;
use crate::event::{Event, Sink};

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

/// A distinct content of files.
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
    let parts: Vec<Vec<Part>> = blobs
        .par_iter()
        .map(|blob| segment::parts(blob.bytes))
        .collect();
    let total: u64 = blobs.iter().map(|blob| blob.bytes.len() as u64).sum();
    let frames = cut(&blobs, &parts, frame_size(level, total));
    let done = AtomicU64::new(0);
    let packed: Vec<frame::Packed> = frames
        .par_iter()
        .with_max_len(1)
        .map(|parts| {
            let inputs: Vec<frame::Input<'_>> =
                parts.iter().map(|part| part.input(&blobs)).collect();
            let packed = frame::pack(&inputs, level, cache)?;
            let len: u64 = inputs.iter().map(|input| input.bytes.len() as u64).sum();
            let done = done.fetch_add(len, Ordering::Relaxed) + len;
            sink(Event::Progress {
                what: "archive",
                done,
                total,
            });
            Ok(packed)
        })
        .collect::<anyhow::Result<_>>()?;

    let pieces = pieces(&parts, &frames, &packed);
    let launch = launch.encode();
    let index = index(
        &entries, inputs, &blobs, &blob_of, &pieces, &packed, &launch,
    );
    let index_packed = frame::zstd(&index, 19)?;
    let header = Header {
        index_packed: index_packed.len() as u64,
        index_unpacked: index.len() as u64,
        frames_packed: packed.iter().map(|frame| frame.bytes.len() as u64).sum(),
        content_size: total,
        entries: count(entries.len())?,
        blobs: count(blobs.len())?,
        pieces: count(pieces.iter().map(Vec::len).sum::<usize>())?,
        frames: count(packed.len())?,
        streams: count(
            packed
                .iter()
                .map(|frame| frame.streams.len())
                .sum::<usize>(),
        )?,
        frame_limit: count(
            packed
                .iter()
                .map(frame::Packed::unpacked)
                .max()
                .unwrap_or(0),
        )?,
        launch_size: count(launch.len())?,
        index_digest: format::digest(&index_packed),
    };
    // What no launcher would take is not to be written: too many files, say.
    reader::read_header(&header.encode())
        .context("the archive is larger than its format allows")?;
    let mut bytes =
        Vec::with_capacity(HEADER_SIZE + index_packed.len() + header.frames_packed as usize);
    bytes.extend_from_slice(&header.encode());
    bytes.extend_from_slice(&index_packed);
    for frame in &packed {
        bytes.extend_from_slice(&frame.bytes);
    }
    let packed_sizes = packed_sizes(&blobs, &blob_of, &frames, &packed);
    Ok(Packed {
        bytes,
        digest: header.digest(),
        packed_sizes,
        frames: packed.len(),
    })
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

/// Like next to like: by kind of file and path.
fn order<'c>(blob: &'c Content<'_>) -> (bool, &'c str, &'c str) {
    let name = blob.path.rsplit('/').next().unwrap_or(blob.path);
    let kind = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    (blob.lazy, kind, blob.path)
}

/// A part of a blob, by number.
#[derive(Debug, Clone)]
struct Member {
    blob: usize,
    /// Number among the blob's parts.
    number: usize,
    part: Part,
}

impl Member {
    fn input<'a>(&self, blobs: &[Content<'a>]) -> frame::Input<'a> {
        frame::Input {
            blob: self.blob as u32,
            offset: self.part.range.start as u64,
            bytes: &blobs[self.blob].bytes[self.part.range.clone()],
            filter: self.part.filter,
            param: self.part.param,
        }
    }
}

/// Bytes that a frame holds at most, nearly: what each unpacking thread has to hold, against what a longer memory saves. At
/// least eight frames, so that there is work for several threads.
fn frame_size(level: i32, total: u64) -> usize {
    let most = match level {
        ..=9 => 4 << 20,
        10..=19 => 8 << 20,
        _ => 16 << 20,
    };
    ((total / 8) as usize).clamp(1 << 20, most)
}

/// The streams of code take less than the code.
const CODE_SHARE: (usize, usize) = (3, 2);

/// The frames: of each class, what is needed at start before what is lazy.
fn cut(blobs: &[Content<'_>], parts: &[Vec<Part>], size: usize) -> Vec<Vec<Member>> {
    let mut by_class: BTreeMap<(bool, Class), Vec<Vec<Member>>> = BTreeMap::new();
    for (number, (blob, parts)) in blobs.iter().zip(parts).enumerate() {
        let mut units: Vec<(Option<segment::Unit>, Class, Vec<Member>)> = Vec::new();
        for (n, part) in parts.iter().enumerate() {
            let member = Member {
                blob: number,
                number: n,
                part: part.clone(),
            };
            let known = units
                .iter_mut()
                .find(|(unit, ..)| part.unit.is_some() && *unit == part.unit);
            match known {
                Some((.., members)) => members.push(member),
                None => units.push((part.unit, part.class, vec![member])),
            }
        }
        for (_, class, members) in units {
            if class != Class::Hole {
                by_class
                    .entry((blob.lazy, class))
                    .or_default()
                    .push(members);
            }
        }
    }
    let mut frames = Vec::new();
    for ((_, class), units) in by_class {
        let size = match class {
            Class::Code => size * CODE_SHARE.0 / CODE_SHARE.1,
            _ => size,
        };
        let units = match class {
            Class::Code => by_similarity(blobs, units),
            _ => units,
        };
        let (mut frame, mut filled): (Vec<Member>, usize) = (Vec::new(), 0);
        for unit in units {
            let bytes: usize = unit.iter().map(|member| member.part.range.len()).sum();
            // Some files begin a frame wherever they are, so that a change only moves what is near.
            let Member { blob, number, .. } = unit[0];
            let landmark = number == 0 && filled > size / 2 && blobs[blob].digest[0] < 32;
            if !frame.is_empty() && (filled + bytes > size || landmark) {
                frames.push(std::mem::take(&mut frame));
                filled = 0;
            }
            filled += bytes;
            frame.extend(unit);
        }
        if !frame.is_empty() {
            frames.push(frame);
        }
    }
    for frame in &mut frames {
        frame.sort_by_key(|member| (member.blob, member.number));
    }
    frames
}

fn by_similarity(blobs: &[Content<'_>], units: Vec<Vec<Member>>) -> Vec<Vec<Member>> {
    let runs: Vec<(usize, &[u8])> = units
        .iter()
        .map(|unit| (unit[0].blob, unit[0].input(blobs).bytes))
        .collect();
    let mut units: Vec<Option<Vec<Member>>> = units.into_iter().map(Some).collect();
    let order = similar::order(&runs);
    order
        .into_iter()
        .filter_map(|number| units[number].take())
        .collect()
}

/// Each blob's pieces, as its parts were packed.
fn pieces(
    parts: &[Vec<Part>],
    frames: &[Vec<Member>],
    packed: &[frame::Packed],
) -> Vec<Vec<Piece>> {
    let mut pieces: Vec<Vec<Piece>> = parts
        .iter()
        .map(|parts| {
            let hole = |part: &Part| Piece {
                size: part.range.len() as u32,
                frame: 0,
                filter: Filter::Hole,
                param: 0,
            };
            parts.iter().map(hole).collect()
        })
        .collect();
    for (number, (members, packed)) in frames.iter().zip(packed).enumerate() {
        for (member, (filter, param)) in members.iter().zip(&packed.filters) {
            let piece = &mut pieces[member.blob][member.number];
            (piece.frame, piece.filter, piece.param) = (number as u32, *filter, *param);
        }
    }
    for pieces in &mut pieces {
        join(pieces);
    }
    pieces
}

/// Neighbours that became plain bytes of one stream and frame are one piece, and so are holes.
fn join(pieces: &mut Vec<Piece>) {
    pieces.dedup_by(|next, last| {
        let same = matches!(next.filter, Filter::Plain | Filter::Hole)
            && (last.filter, last.param, last.frame) == (next.filter, next.param, next.frame);
        let sum = last.size.checked_add(next.size).filter(|_| same);
        if let Some(sum) = sum {
            last.size = sum;
        }
        sum.is_some()
    });
}

fn index(
    entries: &[Entry<'_>],
    inputs: &[Input<'_>],
    blobs: &[Content<'_>],
    blob_of: &[Option<usize>],
    pieces: &[Vec<Piece>],
    packed: &[frame::Packed],
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
    for (blob, pieces) in blobs.iter().zip(pieces) {
        out.extend_from_slice(&format::encode_blob(&Blob {
            size: blob.bytes.len() as u64,
            pieces: pieces.len() as u32,
            digest: blob.digest,
        }));
    }
    out.extend(pieces.iter().flatten().flat_map(format::encode_piece));
    for frame in packed {
        out.extend_from_slice(&format::encode_frame(&frame.record()));
    }
    let streams = packed.iter().flat_map(|frame| &frame.streams);
    out.extend(streams.flat_map(format::encode_stream));
    out.extend_from_slice(launch.as_bytes());
    out.extend_from_slice(&strings);
    out
}

/// Shares each frame's bytes out among the inputs that it holds, by size; a content that several inputs have is
/// charged to the first of them.
fn packed_sizes(
    blobs: &[Content<'_>],
    blob_of: &[Option<usize>],
    frames: &[Vec<Member>],
    packed: &[frame::Packed],
) -> Vec<u64> {
    let mut of_blob = vec![0u64; blobs.len()];
    for (members, packed) in frames.iter().zip(packed) {
        let size = |member: &Member| member.part.range.len() as u64;
        let all: u64 = members.iter().map(size).sum();
        for member in members {
            of_blob[member.blob] += size(member) * packed.bytes.len() as u64 / all.max(1);
        }
    }
    blob_of
        .iter()
        .map(|blob| blob.map_or(0, |blob| std::mem::take(&mut of_blob[blob])))
        .collect()
}

/// A number as the format has it.
fn count<N: TryInto<u32>>(value: N) -> anyhow::Result<u32> {
    value
        .try_into()
        .ok()
        .context("more than the archive format can count")
}
