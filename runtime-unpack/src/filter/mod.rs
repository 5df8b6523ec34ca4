//! Reversible transforms that make bytes compress better, both directions side by side.
//!
//! A frame's pieces, each with its [`Filter`], become *streams*: like goes with like, whatever file it comes from. The streams
//! are what is compressed. Decoding walks the pieces in their order and takes from the streams what each needs; at the end every
//! stream has to be used up, to the byte.
//!
//! Decoders are total: whatever the streams hold, the answer is bytes of the piece's size or [`Malformed`]. The
//! other direction (feature `pack`) is for the build side; it is total too, since a filter that does not understand what it
//! sees has a way to store it plainly.

mod arm64;
mod eh_frame;
pub mod planes;
mod values;
mod x86;

use alloc::vec::Vec;
use core::ops::Range;

/// What was done to a piece of a file; the piece's parameter says more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Filter {
    /// Nothing. The parameter is the number of the stream, below [`PLAIN`].
    Plain = 0,
    /// x86-64 code; the parameter is its address.
    X86 = 1,
    /// AArch64 code; the parameter is its address.
    Arm64 = 2,
    /// `.eh_frame`; the parameter is its address.
    EhFrame = 3,
    /// `.eh_frame_hdr`, derived from the `.eh_frame` of the same file; the parameter is its address.
    EhFrameHdr = 4,
    /// An array of records or numbers; the parameter is a [`planes::Layout`].
    Planes = 5,
    /// Zeros, of which nothing is stored or written.
    Hole = 6,
}

impl Filter {
    /// The filter of this number.
    pub fn from_byte(byte: u8) -> Option<Filter> {
        const ALL: [Filter; 7] = [
            Filter::Plain,
            Filter::X86,
            Filter::Arm64,
            Filter::EhFrame,
            Filter::EhFrameHdr,
            Filter::Planes,
            Filter::Hole,
        ];
        ALL.into_iter().find(|filter| *filter as u8 == byte)
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Filter::Plain => "plain",
            Filter::X86 => "x86",
            Filter::Arm64 => "arm64",
            Filter::EhFrame => "eh_frame",
            Filter::EhFrameHdr => "eh_frame_hdr",
            Filter::Planes => "planes",
            Filter::Hole => "hole",
        }
    }

    /// Whether it is made from other pieces of the same file in the same frame, and so comes after them.
    pub fn is_derived(self) -> bool {
        self == Filter::EhFrameHdr
    }

    /// Most bytes of a piece: what a decoder has to hold at once beside the streams.
    pub const fn max_piece(self) -> u32 {
        match self {
            Filter::Plain | Filter::Hole => u32::MAX,
            // The tables of an instruction's begin are 12 bytes for each of the piece: 3 MiB, and the piece stays in L2.
            Filter::X86 => 1 << 18,
            // 20 bytes for each instruction: 1.25 MiB.
            Filter::Arm64 => 1 << 18,
            Filter::EhFrame | Filter::Planes => 1 << 20,
            Filter::EhFrameHdr => 1 << 22,
        }
    }

    /// Whether a piece may have this parameter.
    pub fn takes(self, param: u32) -> bool {
        match self {
            Filter::Plain => param < PLAIN as u32,
            Filter::Planes => planes::Layout::from_param(param).is_some(),
            Filter::Hole => param == 0,
            Filter::X86 | Filter::Arm64 | Filter::EhFrame | Filter::EhFrameHdr => true,
        }
    }
}

/// Number of the streams that plain pieces may lie in.
pub const PLAIN: u8 = 8;
/// Stream of tables, as planes.
const TABLES: u8 = 8;
/// Streams of floats, one for each plane.
const FLOATS: u8 = 9;
const X86: u8 = 16;
const X86_STREAMS: u8 = 9 + 2 * x86::SEQUENCES as u8;
const ARM64: u8 = 37;
const ARM64_STREAMS: u8 = 7 + 2 * arm64::SEQUENCES as u8;
const EH_FRAME: u8 = 64;
const EH_FRAME_STREAMS: u8 = 3 + 2 * eh_frame::SEQUENCES as u8;
/// All streams have numbers below this.
pub const STREAMS: u8 = 96;
const _: () = assert!(X86 + X86_STREAMS <= ARM64 && ARM64 + ARM64_STREAMS <= EH_FRAME);

/// Bytes that a decoder wants readable behind the last stream.
pub const PADDING: usize = 16;

/// Streams that cannot have come from the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// One piece to decode or encode, but for its bytes.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// Number that tells its file from others.
    pub blob: u32,
    /// Its filter.
    pub filter: Filter,
    /// The filter's parameter.
    pub param: u32,
}

/// Buffers that a thread keeps from frame to frame.
#[derive(Debug, Default)]
pub struct Scratch {
    x86: x86::Scratch,
    arm64: arm64::Scratch,
    piece: Vec<u8>,
}

/// Puts one frame's pieces together again.
#[derive(Debug)]
pub struct Decoder<'a> {
    buffer: &'a [u8],
    streams: [Range<usize>; STREAMS as usize],
    x86: Option<x86::Decoder<'a>>,
    arm64: Option<arm64::Decoder<'a>>,
    eh_frame: Option<eh_frame::Decoder<'a>>,
}

impl<'a> Decoder<'a> {
    /// `buffer` has the streams one after the other, of these numbers and sizes, and [`PADDING`] bytes behind them.
    pub fn new(
        buffer: &'a [u8],
        streams: impl Iterator<Item = (u8, usize)>,
    ) -> Result<Self, Malformed> {
        let mut ranges = [const { 0..0 }; STREAMS as usize];
        let mut at = 0;
        for (number, size) in streams {
            let range = ranges.get_mut(usize::from(number)).ok_or(Malformed)?;
            *range = at..at + size;
            at = range.end;
        }
        if buffer.len() < at + PADDING {
            return Err(Malformed);
        }
        Ok(Decoder {
            buffer,
            streams: ranges,
            x86: None,
            arm64: None,
            eh_frame: None,
        })
    }

    /// The `size` bytes of the next piece.
    pub fn piece<'s>(
        &mut self,
        piece: &Piece,
        size: usize,
        scratch: &'s mut Scratch,
    ) -> Result<&'s [u8], Malformed>
    where
        'a: 's,
    {
        let param = piece.param;
        if !piece.filter.takes(param) {
            return Err(Malformed);
        }
        match piece.filter {
            Filter::Hole => Err(Malformed),
            Filter::Plain => self.take(param as u8, size),
            Filter::Planes => {
                let layout = planes::Layout::from_param(param).ok_or(Malformed)?;
                let stream = if layout.floats { FLOATS } else { TABLES };
                let out = room(&mut scratch.piece, size);
                planes::decode(
                    layout,
                    |plane, size| self.take(stream + plane as u8, size),
                    out,
                )?;
                Ok(out)
            }
            Filter::X86 => {
                let decoder = match &mut self.x86 {
                    Some(decoder) => decoder,
                    none => none.insert(x86_decoder(self.buffer, &self.streams)?),
                };
                decoder.decode(param, size, &mut scratch.x86)
            }
            Filter::Arm64 => {
                let decoder = match &mut self.arm64 {
                    Some(decoder) => decoder,
                    none => none.insert(arm64_decoder(self.buffer, &self.streams)?),
                };
                decoder.decode(param, size, &mut scratch.arm64)
            }
            Filter::EhFrame | Filter::EhFrameHdr => {
                let decoder = match &mut self.eh_frame {
                    Some(decoder) => decoder,
                    none => none.insert(eh_frame_decoder(self.buffer, &self.streams)?),
                };
                let out = room(&mut scratch.piece, size);
                match piece.filter {
                    Filter::EhFrame => decoder.decode(piece.blob, param, out)?,
                    _ => decoder.derive(piece.blob, param, out)?,
                }
                Ok(out)
            }
        }
    }

    fn take(&mut self, stream: u8, size: usize) -> Result<&'a [u8], Malformed> {
        let range = &mut self.streams[usize::from(stream)];
        if range.len() < size {
            return Err(Malformed);
        }
        let bytes = &self.buffer[range.start..range.start + size];
        range.start += size;
        Ok(bytes)
    }

    /// To be called when all pieces are done: every stream must be used up.
    pub fn finish(mut self) -> Result<(), Malformed> {
        if let Some(x86) = &self.x86 {
            x86.ends(|stream, end| self.streams[usize::from(X86 + stream)].start = end);
        }
        if let Some(arm64) = &self.arm64 {
            arm64.ends(|stream, end| self.streams[usize::from(ARM64 + stream)].start = end);
        }
        if let Some(eh_frame) = &self.eh_frame {
            eh_frame.ends(|stream, end| self.streams[usize::from(EH_FRAME + stream)].start = end);
        }
        match self.streams.iter().all(|range| range.start == range.end) {
            true => Ok(()),
            false => Err(Malformed),
        }
    }
}

fn room(buffer: &mut Vec<u8>, size: usize) -> &mut [u8] {
    if buffer.len() < size {
        buffer.resize(size, 0);
    }
    &mut buffer[..size]
}

fn x86_decoder<'a>(
    buffer: &'a [u8],
    streams: &[Range<usize>],
) -> Result<x86::Decoder<'a>, Malformed> {
    let at = core::array::from_fn(|n| streams[usize::from(X86) + n].clone());
    x86::Decoder::new(buffer, at)
}

fn arm64_decoder<'a>(
    buffer: &'a [u8],
    streams: &[Range<usize>],
) -> Result<arm64::Decoder<'a>, Malformed> {
    let at = core::array::from_fn(|n| streams[usize::from(ARM64) + n].clone());
    arm64::Decoder::new(buffer, at)
}

fn eh_frame_decoder<'a>(
    buffer: &'a [u8],
    streams: &[Range<usize>],
) -> Result<eh_frame::Decoder<'a>, Malformed> {
    let at = core::array::from_fn(|n| streams[usize::from(EH_FRAME) + n].clone());
    eh_frame::Decoder::new(buffer, at)
}

/// Writes a number as x86-64 and DWARF have it, little-endian.
#[inline(always)]
fn put(out: &mut [u8], at: usize, value: u32) {
    out[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// What is left of a stream.
#[derive(Debug, Clone, Copy, Default)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.0.split_first().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*first)
    }

    fn take(&mut self, size: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(size).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    fn skip(&mut self, size: usize) {
        self.0 = self.0.get(size..).unwrap_or_default();
    }
}

/// Takes a frame's pieces apart: the streams, by number, none of them empty.
///
/// Pieces come in the order in which they are decoded. Total, but for what is derived: whether a derived piece really
/// follows from the others is for the caller to see, by decoding.
#[cfg(feature = "pack")]
pub fn encode<'a>(pieces: impl Iterator<Item = (Piece, &'a [u8])>) -> Vec<(u8, Vec<u8>)> {
    let mut plain = [const { Vec::new() }; X86 as usize];
    let mut x86: Option<x86::Encoder> = None;
    let mut arm64: Option<arm64::Encoder> = None;
    let mut eh_frame: Option<eh_frame::Encoder> = None;
    for (piece, bytes) in pieces {
        match piece.filter {
            Filter::Hole | Filter::EhFrameHdr => {}
            Filter::Plain => plain[piece.param as usize].extend_from_slice(bytes),
            Filter::Planes => {
                // The caller's parameter; one that means nothing is one record as long as the piece.
                if let Some(layout) = planes::Layout::from_param(piece.param) {
                    let stream = if layout.floats { FLOATS } else { TABLES };
                    planes::encode(layout, bytes, |plane, bytes| {
                        plain[usize::from(stream) + plane].extend_from_slice(bytes);
                    });
                }
            }
            Filter::X86 => x86.get_or_insert_default().push(piece.param, bytes),
            Filter::Arm64 => arm64.get_or_insert_default().push(piece.param, bytes),
            Filter::EhFrame => {
                let encoder = eh_frame.get_or_insert_default();
                encoder.push(piece.blob, piece.param, bytes);
            }
        }
    }
    let x86 = x86.map_or(Vec::new(), |encoder| encoder.finish());
    let arm64 = arm64.map_or(Vec::new(), |encoder| encoder.finish());
    let eh_frame = eh_frame.map_or(Vec::new(), |encoder| encoder.finish());
    (0..)
        .zip(plain)
        .chain((X86..).zip(x86))
        .chain((ARM64..).zip(arm64))
        .chain((EH_FRAME..).zip(eh_frame))
        .filter(|(_, stream)| !stream.is_empty())
        .collect()
}

/// Whether this `.eh_frame_hdr` at `address` is what its filter would make of these consecutive pieces of `.eh_frame`,
/// each with its address.
#[cfg(feature = "pack")]
pub fn derives_eh_frame_hdr<'a>(
    eh_frame: impl Iterator<Item = (u32, &'a [u8])>,
    address: u32,
    section: &[u8],
) -> bool {
    let mut encoder = eh_frame::Encoder::default();
    for (address, piece) in eh_frame {
        encoder.push(0, address, piece);
    }
    encoder.derives(address, section)
}

#[cfg(feature = "pack")]
type Map<K, V> = std::collections::HashMap<K, V, core::hash::BuildHasherDefault<Fold>>;

/// A quick hash, for keys that nobody chooses against us: what they decide is sizes, and order is always sorted out.
#[cfg(feature = "pack")]
#[derive(Debug, Clone, Copy, Default)]
struct Fold(u64);

#[cfg(feature = "pack")]
impl core::hash::Hasher for Fold {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        const MULTIPLIER: u128 = 0x9e37_79b9_7f4a_7c15;
        let product =
            u128::from(self.0.rotate_left(23) ^ value ^ 0x243f_6a88_85a3_08d3) * MULTIPLIER;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn write_u128(&mut self, value: u128) {
        self.write_u64(value as u64);
        self.write_u64((value >> 64) as u64);
    }
}

/// What a stream holds, for people.
pub fn stream_name(number: u8) -> &'static str {
    const PLAIN_NAMES: [&str; 13] = [
        "data",
        "text",
        "names",
        "read-only data",
        "exception tables",
        "debug information",
        "packed",
        "other",
        "tables",
        "floats plane 0",
        "floats plane 1",
        "floats plane 2",
        "floats plane 3",
    ];
    const X86_NAMES: [&str; X86_STREAMS as usize] = [
        "x86 dictionary",
        "x86 heads",
        "x86 bytes",
        "x86 plain",
        "x86 short jumps",
        "x86 jumps high",
        "x86 jumps low",
        "x86 branches high",
        "x86 branches low",
        "x86 disp32",
        "x86 disp32 misses",
        "x86 stack disp32",
        "x86 stack disp32 misses",
        "x86 imm32",
        "x86 imm32 misses",
        "x86 rip",
        "x86 rip misses",
        "x86 calls",
        "x86 calls misses",
    ];
    const ARM64_NAMES: [&str; ARM64_STREAMS as usize] = [
        "arm64 dictionary",
        "arm64 heads",
        "arm64 rare heads",
        "arm64 unknown heads",
        "arm64 registers",
        "arm64 vector registers",
        "arm64 odd bytes",
        "arm64 calls",
        "arm64 calls misses",
        "arm64 addresses",
        "arm64 addresses misses",
        "arm64 jumps",
        "arm64 jumps misses",
        "arm64 branches",
        "arm64 branches misses",
        "arm64 add",
        "arm64 add misses",
        "arm64 stack add",
        "arm64 stack add misses",
        "arm64 load",
        "arm64 load misses",
        "arm64 stack load",
        "arm64 stack load misses",
        "arm64 pair",
        "arm64 pair misses",
        "arm64 stack pair",
        "arm64 stack pair misses",
    ];
    const EH_FRAME_NAMES: [&str; EH_FRAME_STREAMS as usize] = [
        "eh dictionary",
        "eh kinds",
        "eh programs",
        "eh lengths",
        "eh lengths misses",
        "eh older",
        "eh older misses",
        "eh begins",
        "eh begins misses",
        "eh ranges",
        "eh ranges misses",
        "eh lsdas",
        "eh lsdas misses",
    ];
    let name = match number {
        EH_FRAME.. => EH_FRAME_NAMES.get(usize::from(number - EH_FRAME)),
        ARM64.. => ARM64_NAMES.get(usize::from(number - ARM64)),
        X86.. => X86_NAMES.get(usize::from(number - X86)),
        _ => PLAIN_NAMES.get(usize::from(number)),
    };
    name.copied().unwrap_or("unknown")
}
