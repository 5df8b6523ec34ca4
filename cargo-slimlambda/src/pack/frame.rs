//! Pieces → one packed frame: filters tried, streams compressed, the result unpacked again and compared.

use std::collections::BTreeMap;

use anyhow::Context;
use runtime_unpack::filter::{self, Filter, Piece};
use runtime_unpack::format::{self, Codec, Digest, Frame, Stream};
use runtime_unpack::reader::{self, Placed};

use super::cache::Cache;
use super::segment::DATA;

/// A piece to be packed.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Number of its blob.
    pub blob: u32,
    /// Where it is in the blob.
    pub offset: u64,
    /// What it is.
    pub bytes: &'a [u8],
    /// The filter to try.
    pub filter: Filter,
    /// The filter's parameter.
    pub param: u32,
}

/// A packed frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// For each piece, in their order, the filter that it has, and its parameter.
    pub filters: Vec<(Filter, u32)>,
    /// The streams.
    pub streams: Vec<Stream>,
    /// The streams' packed bytes, one after the other.
    pub bytes: Vec<u8>,
    /// Digest of `bytes`.
    pub digest: Digest,
}

impl Packed {
    /// The frame's record.
    pub fn record(&self) -> Frame {
        Frame {
            streams: self.streams.len() as u32,
            digest: self.digest,
        }
    }

    /// Bytes that the streams unpack to.
    pub fn unpacked(&self) -> u64 {
        self.streams.iter().map(|s| u64::from(s.unpacked)).sum()
    }
}

/// Packs pieces, which come in the order of blobs and offsets, at a zstd level.
pub fn pack(inputs: &[Input<'_>], level: i32, cache: Option<&Cache>) -> anyhow::Result<Packed> {
    let key = key(inputs, level);
    if let Some(packed) = cache
        .and_then(|cache| cache.get(&key))
        .and_then(|b| from_cache(&b, inputs.len()))
    {
        return Ok(packed);
    }
    let filters = choose(inputs)?;
    let packed = match pack_as(inputs, filters, level)? {
        Some(packed) => packed,
        // A filter that does not give back what it was given would be a fault of ours; the package is right nevertheless.
        None => pack_as(inputs, vec![(Filter::Plain, DATA); inputs.len()], level)?
            .context("a frame does not unpack to what was packed")?,
    };
    if let Some(cache) = cache {
        cache.put(&key, &to_cache(&packed));
    }
    Ok(packed)
}

/// Packs with these filters; `None` if that does not unpack to the same.
fn pack_as(
    inputs: &[Input<'_>],
    filters: Vec<(Filter, u32)>,
    level: i32,
) -> anyhow::Result<Option<Packed>> {
    let encoded = encode(inputs, &filters);
    let mut streams = Vec::with_capacity(encoded.len());
    let mut bytes = Vec::new();
    for (number, content) in encoded {
        let (codec, packed) = compress(&content, level)?;
        streams.push(Stream {
            number,
            codec,
            packed: u32::try_from(packed.len())?,
            unpacked: u32::try_from(content.len()).context("a frame of more than 4 GiB")?,
        });
        bytes.extend_from_slice(&packed);
    }
    let packed = Packed {
        filters,
        streams,
        digest: format::digest(&bytes),
        bytes,
    };
    Ok(unpacks(inputs, &packed).then_some(packed))
}

/// The inputs in the order of decoding.
fn decoding_order<'i, 'a>(
    inputs: &'i [Input<'a>],
    filters: &[(Filter, u32)],
) -> Vec<(Placed, &'i Input<'a>)> {
    let mut pieces: Vec<(Placed, &Input<'a>)> = inputs
        .iter()
        .zip(filters)
        .map(|(input, (filter, param))| {
            let placed = Placed {
                blob: input.blob,
                offset: input.offset,
                size: input.bytes.len() as u32,
                filter: *filter,
                param: *param,
            };
            (placed, input)
        })
        .collect();
    pieces.sort_by_key(|(piece, _)| (piece.blob, piece.filter.is_derived()));
    pieces
}

fn encode(inputs: &[Input<'_>], filters: &[(Filter, u32)]) -> Vec<(u8, Vec<u8>)> {
    let pieces = decoding_order(inputs, filters);
    filter::encode(pieces.iter().map(|(placed, input)| {
        let piece = Piece {
            blob: placed.blob,
            filter: placed.filter,
            param: placed.param,
        };
        (piece, input.bytes)
    }))
}

/// Whether the frame gives back what went into it, by the very code that will unpack it.
fn unpacks(inputs: &[Input<'_>], packed: &Packed) -> bool {
    let pieces = decoding_order(inputs, &packed.filters);
    let mut buffer = Vec::new();
    let placed: Vec<Placed> = pieces.iter().map(|(placed, _)| *placed).collect();
    let (mut at, mut same) = (0, true);
    let decoded = reader::decode_streams(
        0,
        &packed.record(),
        &packed.streams,
        &packed.bytes,
        &mut buffer,
    )
    .and_then(|()| {
        let scratch = &mut filter::Scratch::default();
        reader::decode_pieces(0, &packed.streams, &buffer, &placed, scratch, |_, bytes| {
            same &= bytes == pieces[at].1.bytes;
            at += 1;
            Ok(())
        })
    });
    decoded.is_ok() && same
}

/// Level at which filters are compared: what they win does not depend much on it.
const TRIAL_LEVEL: i32 = 1;

/// Decides for each kind of filter whether it pays, by trying.
fn choose(inputs: &[Input<'_>]) -> anyhow::Result<Vec<(Filter, u32)>> {
    let mut kinds: BTreeMap<(Filter, u32), Vec<Input<'_>>> = BTreeMap::new();
    for input in inputs {
        kinds.entry(kind(input)).or_default().push(*input);
    }
    let mut dropped = Vec::new();
    for (kind, inputs) in &kinds {
        if matches!(kind.0, Filter::Plain | Filter::EhFrameHdr) {
            continue;
        }
        let cost = |filters: Vec<(Filter, u32)>| -> anyhow::Result<usize> {
            let streams = encode(inputs, &filters);
            let sizes = streams
                .iter()
                .map(|(_, s)| Ok(compress(s, TRIAL_LEVEL)?.1.len()));
            sizes.sum()
        };
        let filtered = cost(inputs.iter().map(|i| (i.filter, i.param)).collect())?;
        let plain = cost(vec![(Filter::Plain, DATA); inputs.len()])?;
        if plain <= filtered {
            dropped.push(*kind);
        }
    }
    let no_records = dropped.iter().any(|(filter, _)| *filter == Filter::EhFrame);
    Ok(inputs
        .iter()
        .map(|input| match dropped.contains(&kind(input)) {
            true => (Filter::Plain, DATA),
            false if no_records && input.filter == Filter::EhFrameHdr => (Filter::Plain, DATA),
            false => (input.filter, input.param),
        })
        .collect())
}

/// What is tried as one: pieces with the same filter, and the same layout of planes.
fn kind(input: &Input<'_>) -> (Filter, u32) {
    let layout = if input.filter == Filter::Planes {
        input.param
    } else {
        0
    };
    (input.filter, layout)
}

/// Compresses a stream; stored, where next to nothing is won and unpacking should be a copy.
fn compress(content: &[u8], level: i32) -> anyhow::Result<(Codec, Vec<u8>)> {
    let zstd = zstd(content, level)?;
    Ok(match zstd.len() + content.len() / 64 < content.len() {
        true => (Codec::Zstd, zstd),
        false => (Codec::Stored, content.to_vec()),
    })
}

/// One zstd frame, as the format wants it.
pub fn zstd(content: &[u8], level: i32) -> anyhow::Result<Vec<u8>> {
    let mut compressor = zstd::bulk::Compressor::new(level).context("failed to set up zstd")?;
    // What holds it has a digest of its own.
    let set_up = compressor
        .include_checksum(false)
        .and_then(|()| compressor.include_contentsize(true));
    set_up.context("failed to set up zstd")?;
    compressor.compress(content).context("failed to compress")
}

/// The cache's key of a frame: everything that its packed bytes depend on.
fn key(inputs: &[Input<'_>], level: i32) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    // Another format, or another way to make it: another number here.
    hasher.update(b"slimlambda frame 2\0");
    hasher.update(&zstd::zstd_safe::version_number().to_le_bytes());
    hasher.update(&level.to_le_bytes());
    let (mut last, mut blobs) = (None, 0u32);
    for input in inputs {
        // Blobs are numbered anew: a file more or less elsewhere changes nothing here.
        blobs += u32::from(last.replace(input.blob) != Some(input.blob));
        hasher.update(&[input.filter as u8]);
        for number in [blobs, input.param, input.bytes.len() as u32] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(input.bytes);
    }
    *hasher.finalize().as_bytes()
}

fn to_cache(packed: &Packed) -> Vec<u8> {
    let mut out = (packed.streams.len() as u32).to_le_bytes().to_vec();
    for (filter, param) in &packed.filters {
        out.push(*filter as u8);
        out.extend(param.to_le_bytes());
    }
    out.extend(packed.streams.iter().flat_map(format::encode_stream));
    out.extend(&packed.digest);
    out.extend(&packed.bytes);
    out
}

/// The cache has checked that this is what it was given.
fn from_cache(bytes: &[u8], pieces: usize) -> Option<Packed> {
    let (count, rest) = bytes.split_first_chunk()?;
    let (filters, rest) = rest.split_at_checked(pieces * 5)?;
    let streams = u32::from_le_bytes(*count) as usize;
    let (streams, rest) = rest.split_at_checked(streams.checked_mul(format::STREAM_SIZE)?)?;
    let (digest, bytes) = rest.split_first_chunk()?;
    let filters = filters.chunks_exact(5).map(|record| {
        let (byte, param) = record.split_first()?;
        Some((
            Filter::from_byte(*byte)?,
            u32::from_le_bytes(*param.first_chunk()?),
        ))
    });
    Some(Packed {
        filters: filters.collect::<Option<_>>()?,
        streams: streams
            .chunks_exact(format::STREAM_SIZE)
            .map(|record| reader::read_stream(record).ok())
            .collect::<Option<_>>()?,
        digest: *digest,
        bytes: bytes.to_vec(),
    })
}
