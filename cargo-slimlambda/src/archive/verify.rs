//! Archive → what of it is damaged: every frame and every blob against its digest, on all cores.
//!
//! Frames are decoded in batches, so that memory stays bounded; a blob that several frames hold is hashed as they come.

use rayon::prelude::*;
use runtime_unpack::format::{self, Digest, Kind};
use runtime_unpack::reader::Piece;
use runtime_unpack::source::ArchiveFile;
use runtime_unpack::{Error, Result};

/// What is wrong with an archive whose index is sound.
#[derive(Debug, Default)]
pub struct Damage {
    /// Numbers of the frames that cannot be decoded, each with the reason.
    pub frames: Vec<(usize, Error)>,
    /// By blob: it is not there, or not what its digest says.
    pub blobs: Vec<bool>,
}

impl Damage {
    /// Nothing is wrong.
    pub fn is_none(&self) -> bool {
        !self.blobs.contains(&true) && self.frames.is_empty()
    }

    /// The paths whose files are damaged.
    pub fn paths<'a>(&self, source: &'a ArchiveFile) -> Vec<&'a [u8]> {
        let entries = source.archive.entries();
        let damaged = entries
            .filter(|entry| matches!(entry.kind, Kind::File { blob } if self.blobs[blob as usize]));
        damaged.map(|entry| entry.path).collect()
    }
}

/// Decodes everything on the current rayon pool.
///
/// # Errors
///
/// The file cannot be read; what it holds is never an error here.
pub fn verify(source: &ArchiveFile) -> Result<Damage> {
    let archive = &source.archive;
    let pieces = archive.pieces();
    let mut damage = Damage {
        frames: Vec::new(),
        blobs: vec![false; archive.blobs().len()],
    };
    // No frame holds a byte of an empty blob.
    let empty = format::digest(&[]);
    for (damaged, blob) in damage.blobs.iter_mut().zip(archive.blobs()) {
        *damaged = blob.size == 0 && blob.digest != empty;
    }
    let numbers: Vec<usize> = (0..pieces.len()).collect();
    let mut open: Option<(u32, blake3::Hasher)> = None;
    for batch in numbers.chunks(2 * rayon::current_num_threads()) {
        let decoded: Vec<_> = batch
            .par_iter()
            .map(|&number| decode(source, number, &pieces[number]))
            .collect();
        for (&number, decoded) in batch.iter().zip(decoded) {
            let decoded = match decoded {
                Ok(decoded) => decoded,
                Err(error @ Error::Io { .. }) => return Err(error),
                Err(error) => {
                    for piece in &pieces[number] {
                        damage.blobs[piece.blob as usize] = true;
                    }
                    damage.frames.push((number, error));
                    continue;
                }
            };
            for (piece, digest) in pieces[number].iter().zip(&decoded.whole) {
                let blob = &archive.blobs()[piece.blob as usize];
                let digest = match digest {
                    Some(digest) => *digest,
                    None => {
                        let bytes = &decoded.content[piece.frame_offset as usize..];
                        let hasher = match &mut open {
                            Some((number, hasher)) if *number == piece.blob => hasher,
                            _ => &mut open.insert((piece.blob, blake3::Hasher::new())).1,
                        };
                        hasher.update(&bytes[..piece.len as usize]);
                        if piece.blob_offset + u64::from(piece.len) < blob.size {
                            continue;
                        }
                        *hasher.finalize().as_bytes()
                    }
                };
                damage.blobs[piece.blob as usize] |= digest != blob.digest;
            }
        }
    }
    Ok(damage)
}

/// A frame's bytes, and by piece the digest of what is all of its blob.
struct Decoded {
    content: Vec<u8>,
    whole: Vec<Option<Digest>>,
}

fn decode(source: &ArchiveFile, number: usize, pieces: &[Piece]) -> Result<Decoded> {
    let mut content = Vec::new();
    source.read_frame(number, &mut Vec::new(), &mut content)?;
    let whole = pieces.iter().map(|piece| {
        let all = u64::from(piece.len) == source.archive.blobs()[piece.blob as usize].size;
        let bytes = &content[piece.frame_offset as usize..][..piece.len as usize];
        all.then(|| format::digest(bytes))
    });
    let whole = whole.collect();
    Ok(Decoded { content, whole })
}
