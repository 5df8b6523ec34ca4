//! x86-64 code, taken apart into instructions: what they are in one stream, their operands in others, by kind.
//!
//! Machine code compresses badly as bytes, because what repeats (the instructions) is interleaved with what does not
//! (distances, which differ at every place that refers to the same thing). Here each instruction's *head*, its bytes up
//! to and with ModRM and SIB, becomes a word of a dictionary; calls and RIP-relative operands become the addresses that
//! they mean; and jumps become a number of instructions, which is smaller than a number of bytes and does not change
//! when an operand on the way does.
//!
//! The split is total: bytes that are no instruction are heads of some length too, so data among the code costs size, never
//! correctness. Both directions walk the same [`layout`], which is determined by the head alone. A
//! jump's displacement is put in after the whole piece is there, since it may count instructions that come later.
//!
//! Source: Intel SDM volume 2, appendix A (opcode maps) and 2.3–2.7 (VEX, EVEX).

use super::values::{self, Values};
use super::{Malformed, Reader};
use alloc::vec::Vec;
use core::ops::Range;

/// What comes with a head. Displacement and immediate, each by the stream that it lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Layout {
    /// Bytes of the head, 1 to [`MAX_HEAD`].
    head: u8,
    disp: Disp,
    imm: Imm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
enum Disp {
    #[default]
    None,
    Byte,
    /// Of the stack pointer: such offsets have a distribution of their own.
    StackByte,
    Long,
    StackLong,
    /// Relative to the next instruction.
    Rip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
enum Imm {
    #[default]
    None,
    Byte,
    Word,
    WordByte,
    Long,
    Quad,
    Call,
    Jump,
    Branch,
    Short,
}

impl Disp {
    const fn size(self) -> usize {
        match self {
            Disp::None => 0,
            Disp::Byte | Disp::StackByte => 1,
            Disp::Long | Disp::StackLong | Disp::Rip => 4,
        }
    }
}

impl Imm {
    const fn size(self) -> usize {
        match self {
            Imm::None => 0,
            Imm::Byte | Imm::Short => 1,
            Imm::Word => 2,
            Imm::WordByte => 3,
            Imm::Long | Imm::Call | Imm::Jump | Imm::Branch => 4,
            Imm::Quad => 8,
        }
    }
}

impl Layout {
    pub(super) const fn size(self) -> usize {
        self.head as usize + self.disp.size() + self.imm.size()
    }
}

/// Longest head: with it, no instruction is longer than 15 + 4 + 8 bytes.
const MAX_HEAD: usize = 15;

/// Flags of an opcode.
const MODRM: u8 = 1;
const BYTE: u8 = 2;
/// 16 bits with an operand size prefix, else 32.
const LONG: u8 = 4;
/// As `LONG`, but 64 bits with REX.W.
const FULL: u8 = 8;
const WORD: u8 = 16;
const SHORT: u8 = 32;
const NEAR: u8 = 64;
/// Escapes to other maps, and group 3, whose immediate depends on ModRM.
const SPECIAL: u8 = 128;

const fn one_byte_map() -> [u8; 256] {
    let mut map = [0; 256];
    let mut op = 0;
    while op < 256 {
        map[op] = match op {
            0x0f | 0x62 | 0xc4 | 0xc5 => SPECIAL,
            0x00..=0x3f => match op & 7 {
                0..=3 => MODRM,
                4 => BYTE,
                5 => LONG,
                _ => 0,
            },
            0x63 | 0x84..=0x8f | 0xd0..=0xd3 | 0xd8..=0xdf | 0xfe | 0xff => MODRM,
            0x68 | 0xa9 => LONG,
            0x69 | 0x81 | 0xc7 => MODRM | LONG,
            0x6b | 0x80 | 0x82 | 0x83 | 0xc0 | 0xc1 | 0xc6 => MODRM | BYTE,
            0x6a | 0xa8 | 0xb0..=0xb7 | 0xcd | 0xe4..=0xe7 => BYTE,
            0x70..=0x7f | 0xe0..=0xe3 | 0xeb => SHORT,
            0xa0..=0xa3 => FULL | WORD, // an address: 64 bits without any prefix
            0xb8..=0xbf => FULL,
            0xc2 | 0xca => WORD,
            0xc8 => WORD | BYTE,
            0xe8 | 0xe9 => NEAR,
            0xf6 | 0xf7 => MODRM | SPECIAL,
            _ => 0,
        };
        op += 1;
    }
    map
}

const fn two_byte_map() -> [u8; 256] {
    let mut map = [MODRM; 256];
    let mut op = 0;
    while op < 256 {
        map[op] = match op {
            0x05..=0x09 | 0x0b | 0x0e | 0x30..=0x37 | 0x77 | 0xa0..=0xa2 | 0xa8..=0xaa
            | 0xc8..=0xcf => 0,
            0x80..=0x8f => NEAR,
            0x70..=0x73 | 0xa4 | 0xac | 0xba | 0xc2 | 0xc4..=0xc6 => MODRM | BYTE,
            _ => MODRM,
        };
        op += 1;
    }
    map
}

static ONE_BYTE: [u8; 256] = one_byte_map();
static TWO_BYTE: [u8; 256] = two_byte_map();

/// The layout of the instruction that `bytes` begin with; `None` if its head does not end within them.
fn layout(bytes: &[u8]) -> Option<Layout> {
    let mut at = 0;
    let (mut short, mut wide) = (false, false);
    let mut op = *bytes.first()?;
    loop {
        match op {
            0x66 => short = true,
            0x67 | 0xf0 | 0xf2 | 0xf3 | 0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65 => {}
            _ => break,
        }
        at += 1;
        op = *bytes.get(at)?;
    }
    if op & 0xf0 == 0x40 {
        wide = op & 8 != 0;
        at += 1;
        op = *bytes.get(at)?;
    }
    at += 1;
    let mut flags = ONE_BYTE[usize::from(op)];
    let mut near = match op {
        0xe8 => Imm::Call,
        _ => Imm::Jump,
    };
    if flags == SPECIAL {
        let map;
        (map, at) = match op {
            0x0f => match *bytes.get(at)? {
                0x38 => (2, at + 1),
                0x3a => (3, at + 1),
                _ => (0, at),
            },
            0xc5 => (1, at + 1),
            0xc4 => (*bytes.get(at)? & 31, at + 2),
            _ => (*bytes.get(at)? & 7, at + 3),
        };
        let op = usize::from(*bytes.get(at)?);
        at += 1;
        flags = match map {
            0 => TWO_BYTE[op],
            1 => TWO_BYTE[op] & (MODRM | BYTE),
            3 => MODRM | BYTE,
            _ => MODRM,
        };
        near = Imm::Branch;
    }
    let mut disp = Disp::None;
    if flags & MODRM != 0 {
        let modrm = *bytes.get(at)?;
        at += 1;
        let mode = modrm >> 6;
        if mode != 3 {
            let mut base = modrm & 7;
            let mut stack = false;
            let rip = mode == 0 && base == 5;
            if base == 4 {
                base = *bytes.get(at)? & 7;
                at += 1;
                stack = base == 4;
            }
            disp = match (mode, stack) {
                (0, _) if rip => Disp::Rip,
                (0, _) if base == 5 => Disp::Long,
                (0, _) => Disp::None,
                (1, false) => Disp::Byte,
                (1, true) => Disp::StackByte,
                (_, false) => Disp::Long,
                (_, true) => Disp::StackLong,
            };
        }
        if flags & SPECIAL != 0 {
            // `test` alone of its group has an immediate.
            let test = modrm & 0x38 <= 8;
            flags = match (test, op) {
                (false, _) => 0,
                (true, 0xf6) => BYTE,
                (true, _) => LONG,
            };
        }
    }
    let imm = match flags & !MODRM {
        0 => Imm::None,
        BYTE => Imm::Byte,
        LONG if short && !wide => Imm::Word,
        LONG => Imm::Long,
        FULL if wide => Imm::Quad,
        FULL if short => Imm::Word,
        FULL => Imm::Long,
        WORD => Imm::Word,
        SHORT => Imm::Short,
        NEAR => near,
        f if f == WORD | BYTE => Imm::WordByte,
        _ => Imm::Quad,
    };
    if at > MAX_HEAD || at > bytes.len() {
        return None;
    }
    Some(Layout {
        head: at as u8,
        disp,
        imm,
    })
}

/// A head in the dictionary, ready for a decoder that hardly branches: it copies sixteen bytes whatever the head's length,
/// and reads a byte of every kind whether it wants it or not. What is too much is overwritten by what follows.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(8))]
struct Word {
    bytes: [u8; 16],
    head: u8,
    /// Of the whole instruction.
    size: u8,
    disp_size: u8,
    disp_byte: u8,
    stack_byte: u8,
    imm_byte: u8,
    short: u8,
    near: u8,
    branch: u8,
    /// Which of the sequences has its displacement; [`NO_SEQUENCE`] for none.
    disp_long: u8,
    /// Which of the sequences has its immediate; [`PLAIN`] for plain bytes.
    imm_long: u8,
    disp_mask: u32,
    imm_mask: u32,
}

/// Number of value sequences: displacements, stack displacements, immediates, RIP-relative addresses, call targets.
pub(super) const SEQUENCES: usize = 5;
/// Number of streams.
const STREAMS: usize = 11 + 2 * SEQUENCES;
const RIPS: u8 = 3;
const CALLS: u8 = 4;
const NO_SEQUENCE: u8 = 5;
const PLAIN: u8 = 6;

impl Word {
    fn new(bytes: [u8; 16], layout: Layout) -> Word {
        let (disp_long, imm_long) = (
            match layout.disp {
                Disp::Long => 0,
                Disp::StackLong => 1,
                Disp::Rip => RIPS,
                _ => NO_SEQUENCE,
            },
            match layout.imm {
                Imm::Long => 2,
                Imm::Call => CALLS,
                Imm::Word | Imm::WordByte | Imm::Quad => PLAIN,
                _ => NO_SEQUENCE,
            },
        );
        Word {
            bytes,
            head: layout.head,
            size: layout.size() as u8,
            disp_size: layout.disp.size() as u8,
            disp_byte: u8::from(layout.disp == Disp::Byte),
            stack_byte: u8::from(layout.disp == Disp::StackByte),
            imm_byte: u8::from(layout.imm == Imm::Byte),
            short: u8::from(layout.imm == Imm::Short),
            near: u8::from(matches!(layout.imm, Imm::Jump | Imm::Branch)),
            branch: u8::from(layout.imm == Imm::Branch),
            disp_long,
            imm_long,
            disp_mask: if disp_long == RIPS { u32::MAX } else { 0 },
            imm_mask: if imm_long == CALLS { u32::MAX } else { 0 },
        }
    }
}

#[cold]
fn escaped_word(rest: &[u8]) -> Result<Word, Malformed> {
    let layout = layout(rest).ok_or(Malformed)?;
    let head = usize::from(layout.head);
    let mut bytes = [0; 16];
    bytes[..head].copy_from_slice(&rest[..head]);
    Ok(Word::new(bytes, layout))
}

/// Positions in the buffer of the streams that code is split into.
#[derive(Debug, Clone, Copy, Default)]
struct Cursors {
    dictionary: usize,
    heads: usize,
    bytes: usize,
    stack_bytes: usize,
    imm_bytes: usize,
    plain: usize,
    shorts: usize,
    /// Of jumps, of branches.
    near_high: [usize; 2],
    near_low: [usize; 2],
}

/// Room that the decoder wants beyond an instruction's begin: the longest one, and the sixteen bytes of a head after its
/// displacement.
const ROOM: usize = 32;

/// Puts code together again.
#[derive(Debug)]
pub(super) struct Decoder<'a> {
    words: Vec<Word>,
    rows: usize,
    buffer: &'a [u8],
    cursors: Cursors,
    sequences: [Values; SEQUENCES],
}

/// What a thread keeps from frame to frame.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Where each instruction of the piece begins, and where the last one ends.
    starts: Vec<u32>,
    /// The numbers of the instructions that jump.
    shorts: Vec<u32>,
    /// The same, shifted by one, with the lowest bit set for branches.
    nears: Vec<u32>,
    /// The piece as it is made, with [`ROOM`] behind it.
    piece: Vec<u8>,
}

impl<'a> Decoder<'a> {
    /// `at` is where each stream lies in the buffer, in the order of [`Encoder::finish`].
    pub(super) fn new(buffer: &'a [u8], at: [Range<usize>; STREAMS]) -> Result<Self, Malformed> {
        let start = |n: usize| at[n].start;
        let cursors = Cursors {
            dictionary: start(0),
            heads: start(1),
            bytes: start(2),
            stack_bytes: start(3),
            imm_bytes: start(4),
            plain: start(5),
            shorts: start(6),
            near_high: [start(7), start(9)],
            near_low: [start(8), start(10)],
        };
        let dictionary = &mut Reader(&buffer[at[0].clone()]);
        let one = usize::from(dictionary.u16()?);
        let two = usize::from(dictionary.u16()?);
        if one > values::ONE || two > values::TWO || (two > 0 && one < values::ONE) {
            return Err(Malformed);
        }
        let mut words: Vec<Word> = Vec::with_capacity(one + two);
        let mut bytes = [0; 16];
        for _ in 0..one + two {
            let sizes = dictionary.byte()?;
            let (same, new) = (usize::from(sizes >> 4), usize::from(sizes & 15));
            let suffix = dictionary.take(new)?;
            let head = same + new;
            bytes.get_mut(same..head).ok_or(Malformed)?.copy_from_slice(suffix);
            bytes[head..].fill(0);
            let layout = layout(&bytes[..head]).filter(|l| usize::from(l.head) == head);
            words.push(Word::new(bytes, layout.ok_or(Malformed)?));
        }
        let mut sequences: [Values; SEQUENCES] = Default::default();
        for (n, values) in sequences.iter_mut().enumerate() {
            *values = Values::new(dictionary, start(11 + 2 * n), start(12 + 2 * n))?;
        }
        if !dictionary.0.is_empty() {
            return Err(Malformed);
        }
        Ok(Decoder {
            words,
            rows: values::rows(two),
            sequences,
            buffer,
            cursors: Cursors {
                dictionary: at[0].end,
                ..cursors
            },
        })
    }

    /// Gives `size` bytes of code that is at `address` (its lower 32 bits).
    pub(super) fn decode<'s>(
        &mut self,
        address: u32,
        size: usize,
        scratch: &'s mut Scratch,
    ) -> Result<&'s [u8], Malformed> {
        // An instruction has at least one byte; the one after the last says where that ends.
        for list in [&mut scratch.starts, &mut scratch.shorts, &mut scratch.nears] {
            if list.len() < size + 2 {
                list.resize(size + 2, 0);
            }
        }
        if scratch.piece.len() < size + ROOM {
            scratch.piece.resize(size + ROOM, 0);
        }
        let counts = self.assemble(address, size, scratch)?;
        self.patch(address, counts, scratch)?;
        Ok(&scratch.piece[..size])
    }

    /// Everything but the jumps' displacements; gives the number of instructions and of jumps of each kind.
    fn assemble(
        &mut self,
        address: u32,
        size: usize,
        scratch: &mut Scratch,
    ) -> Result<[usize; 3], Malformed> {
        let words = self.words.as_slice();
        let rows = self.rows;
        let piece = &mut scratch.piece[..size + ROOM];
        let starts = &mut scratch.starts[..size + 2];
        let shorts = &mut scratch.shorts[..size + 2];
        let nears = &mut scratch.nears[..size + 2];
        let (mut short, mut near) = (0, 0);
        let buffer = self.buffer;
        let Cursors { mut heads, mut bytes, mut stack_bytes, mut imm_bytes, .. } = self.cursors;
        let (mut at, mut number) = (0, 0usize);
        while at < size {
            let window: &mut [u8; ROOM] = piece
                .get_mut(at..)
                .and_then(|rest| rest.first_chunk_mut())
                .ok_or(Malformed)?;
            starts[number] = at as u32;
            let [first, second] = *buffer.get(heads..).and_then(|b| b.first_chunk()).ok_or(Malformed)?;
            let escaped;
            let word = if first < values::RAW {
                let two = usize::from(first) >= values::ONE;
                let row = usize::from(first).wrapping_sub(values::ONE).wrapping_mul(rows);
                let long = values::ONE.wrapping_add(row).wrapping_add(second.into());
                heads += 1 + usize::from(two);
                let number = if two { long } else { first.into() };
                words.get(number).ok_or(Malformed)?
            } else if first == values::RAW {
                window[0] = second;
                heads += 2;
                (at, number) = (at + 1, number + 1);
                continue;
            } else {
                escaped = escaped_word(&buffer[heads + 1..])?;
                heads += 1 + usize::from(escaped.head);
                &escaped
            };
            window[..16].copy_from_slice(&word.bytes);
            let head = usize::from(word.head & 15);
            let which = if word.stack_byte != 0 { stack_bytes } else { bytes };
            window[head] = *buffer.get(which).ok_or(Malformed)?;
            bytes += usize::from(word.disp_byte);
            stack_bytes += usize::from(word.stack_byte);
            let imm = head + usize::from(word.disp_size & 7);
            window[imm] = *buffer.get(imm_bytes).ok_or(Malformed)?;
            imm_bytes += usize::from(word.imm_byte);
            shorts[short] = number as u32;
            short += usize::from(word.short);
            nears[near] = (number as u32) << 1 | u32::from(word.branch);
            near += usize::from(word.near);
            number += 1;
            let end = at + usize::from(word.size);
            let next = address.wrapping_add(end as u32);
            if word.disp_long != NO_SEQUENCE {
                let value = self.sequences[usize::from(word.disp_long & 7)].next(buffer)?;
                put(window, head, value.wrapping_sub(next & word.disp_mask));
            }
            if word.imm_long != NO_SEQUENCE {
                if word.imm_long == PLAIN {
                    let size = usize::from(word.size) - imm;
                    let plain = buffer.get(self.cursors.plain..).and_then(|b| b.get(..size)).ok_or(Malformed)?;
                    self.cursors.plain += size;
                    window[imm..imm + size].copy_from_slice(plain);
                } else {
                    let value = self.sequences[usize::from(word.imm_long & 7)].next(buffer)?;
                    put(window, imm, value.wrapping_sub(next & word.imm_mask));
                }
            }
            at = end;
        }
        if at != size {
            return Err(Malformed);
        }
        starts[number] = at as u32;
        self.cursors = Cursors { heads, bytes, stack_bytes, imm_bytes, ..self.cursors };
        Ok([number, short, near])
    }

    /// Puts in the jumps' displacements, now that it is known where each instruction begins.
    fn patch(
        &mut self,
        address: u32,
        [count, short, near]: [usize; 3],
        scratch: &mut Scratch,
    ) -> Result<(), Malformed> {
        let starts = &scratch.starts[..=count];
        let buffer = self.buffer;
        let byte = |at: &mut usize| -> Result<u8, Malformed> {
            let byte = *buffer.get(*at).ok_or(Malformed)?;
            *at += 1;
            Ok(byte)
        };
        let target = |number: u32, count: u32| -> Result<u32, Malformed> {
            let number = number.wrapping_add(unzigzag(count)) as usize;
            starts.get(number).copied().ok_or(Malformed)
        };
        let next = |number: u32| starts.get(number as usize + 1).copied().ok_or(Malformed);
        for &number in &scratch.shorts[..short] {
            let next = next(number)?;
            let count = byte(&mut self.cursors.shorts)?;
            let displacement = match count {
                SHORT_ESCAPE => byte(&mut self.cursors.plain)?,
                _ => target(number, count.into())?.wrapping_sub(next) as u8,
            };
            *scratch.piece.get_mut((next as usize).wrapping_sub(1)).ok_or(Malformed)? = displacement;
        }
        for &near in &scratch.nears[..near] {
            let (number, kind) = (near >> 1, near as usize & 1);
            let next = next(number)?;
            let high = byte(&mut self.cursors.near_high[kind])?;
            let low = byte(&mut self.cursors.near_low[kind])?;
            let count = u16::from_be_bytes([high, low]);
            let displacement = match count {
                NEAR_ESCAPE => {
                    let target = self.sequences[usize::from(CALLS)].next(buffer)?;
                    target.wrapping_sub(address.wrapping_add(next))
                }
                _ => target(number, count.into())?.wrapping_sub(next),
            };
            put(&mut scratch.piece, (next as usize).wrapping_sub(4), displacement);
        }
        Ok(())
    }

    /// Says of each stream how far it was read.
    pub(super) fn ends(&self, mut end: impl FnMut(u8, usize)) {
        let c = &self.cursors;
        let cursors = [
            c.dictionary,
            c.heads,
            c.bytes,
            c.stack_bytes,
            c.imm_bytes,
            c.plain,
            c.shorts,
            c.near_high[0],
            c.near_low[0],
            c.near_high[1],
            c.near_low[1],
        ];
        let values = self.sequences.iter().flat_map(Values::ends);
        for (stream, at) in (0..).zip(cursors.into_iter().chain(values)) {
            end(stream, at);
        }
    }
}

/// Count of a short jump that has its displacement in the plain stream.
const SHORT_ESCAPE: u8 = u8::MAX;
/// Count of a jump that has its target's address among the call targets.
const NEAR_ESCAPE: u16 = u16::MAX;

#[inline(always)]
fn put(out: &mut [u8], at: usize, value: u32) {
    out[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn unzigzag(value: u32) -> u32 {
    (value >> 1) ^ (value & 1).wrapping_neg()
}

/// Takes code apart. Pieces first; the streams come when all have been seen, because they share a dictionary.
#[cfg(feature = "pack")]
#[derive(Debug, Default)]
pub(super) struct Encoder {
    /// Numbers of the distinct heads, as they come, each with its bytes and how often it came.
    numbers: super::Map<u128, u32>,
    words: Vec<(u128, u32)>,
    /// By instruction, the number of its head; [`LITERAL`] and a byte for what is none.
    heads: Vec<u32>,
    bytes: Vec<u8>,
    stack_bytes: Vec<u8>,
    imm_bytes: Vec<u8>,
    plain: Vec<u8>,
    shorts: Vec<u8>,
    jumps: [Vec<u8>; 2],
    branches: [Vec<u8>; 2],
    longs: Vec<u32>,
    stack_longs: Vec<u32>,
    imm_longs: Vec<u32>,
    rips: Vec<u32>,
    calls: Vec<u32>,
}

#[cfg(feature = "pack")]
const LITERAL: u32 = 1 << 31;

#[cfg(feature = "pack")]
impl Encoder {
    /// Takes code that is at `address` apart.
    pub(super) fn push(&mut self, address: u32, code: &[u8]) {
        const NONE: u32 = u32::MAX;
        let mut numbers = alloc::vec![NONE; code.len()];
        let mut jumps: Vec<(u32, u32, Imm)> = Vec::new();
        let (mut at, mut number) = (0, 0u32);
        while at < code.len() {
            numbers[at] = number;
            number += 1;
            let Some(layout) = layout(&code[at..]).filter(|l| at + l.size() <= code.len()) else {
                self.heads.push(LITERAL | u32::from(code[at]));
                at += 1;
                continue;
            };
            self.head(&code[at..at + usize::from(layout.head)]);
            at += usize::from(layout.head);
            let imm = at + layout.disp.size();
            let end = imm + layout.imm.size();
            let next = address.wrapping_add(end as u32);
            match layout.disp {
                Disp::None => {}
                Disp::Byte => self.bytes.push(code[at]),
                Disp::StackByte => self.stack_bytes.push(code[at]),
                Disp::Long => self.longs.push(get(code, at)),
                Disp::StackLong => self.stack_longs.push(get(code, at)),
                Disp::Rip => self.rips.push(get(code, at).wrapping_add(next)),
            }
            match layout.imm {
                Imm::None => {}
                Imm::Byte => self.imm_bytes.push(code[imm]),
                Imm::Long => self.imm_longs.push(get(code, imm)),
                Imm::Call => self.calls.push(get(code, imm).wrapping_add(next)),
                Imm::Jump | Imm::Branch | Imm::Short => {
                    jumps.push((number - 1, end as u32, layout.imm));
                }
                Imm::Word | Imm::WordByte | Imm::Quad => {
                    self.plain.extend_from_slice(&code[imm..end]);
                }
            }
            at = end;
        }
        // Kind by kind, as the decoder does it.
        jumps.sort_by_key(|(_, _, kind)| match kind {
            Imm::Short => 0,
            _ => 1,
        });
        for (number, next, kind) in jumps {
            let end = next as usize;
            let displacement = match kind {
                Imm::Short => code[end - 1] as i8 as u32,
                _ => get(code, end - 4),
            };
            let target = next.wrapping_add(displacement);
            let count = numbers
                .get(target as usize)
                .filter(|n| **n != NONE)
                .map(|n| zigzag(n.wrapping_sub(number)));
            if kind == Imm::Short {
                match count.filter(|c| *c < SHORT_ESCAPE.into()) {
                    Some(count) => self.shorts.push(count as u8),
                    None => {
                        self.shorts.push(SHORT_ESCAPE);
                        self.plain.push(code[end - 1]);
                    }
                }
                continue;
            }
            let count = match count.filter(|c| *c < NEAR_ESCAPE.into()) {
                Some(count) => count as u16,
                None => {
                    self.calls.push(address.wrapping_add(target));
                    NEAR_ESCAPE
                }
            };
            let planes = match kind {
                Imm::Jump => &mut self.jumps,
                _ => &mut self.branches,
            };
            for (plane, byte) in planes.iter_mut().zip(count.to_be_bytes()) {
                plane.push(byte);
            }
        }
    }

    fn head(&mut self, head: &[u8]) {
        let mut key = [0; 16];
        key[..head.len()].copy_from_slice(head);
        key[15] = head.len() as u8;
        let key = u128::from_be_bytes(key);
        let number = *self.numbers.entry(key).or_insert_with(|| {
            self.words.push((key, 0));
            self.words.len() as u32 - 1
        });
        self.words[number as usize].1 += 1;
        self.heads.push(number);
    }

    /// The streams.
    pub(super) fn finish(self) -> Vec<Vec<u8>> {
        let mut dictionary = Vec::new();
        let heads = self.finish_heads(&mut dictionary);
        let sequences = [
            &self.longs,
            &self.stack_longs,
            &self.imm_longs,
            &self.rips,
            &self.calls,
        ]
        .map(|values| values::encode(values, &mut dictionary));
        let mut out = alloc::vec![
            dictionary,
            heads,
            self.bytes,
            self.stack_bytes,
            self.imm_bytes,
            self.plain,
            self.shorts,
        ];
        out.extend(self.jumps);
        out.extend(self.branches);
        out.extend(sequences.into_iter().flat_map(|(tokens, misses)| [tokens, misses]));
        out
    }

    fn finish_heads(&self, dictionary: &mut Vec<u8>) -> Vec<u8> {
        let (one, two) = values::dictionary(self.words.iter().copied());
        dictionary.extend((one.len() as u16).to_be_bytes());
        dictionary.extend((two.len() as u16).to_be_bytes());
        let mut last: Vec<u8> = Vec::new();
        for key in one.iter().chain(&two) {
            let head = key_bytes(key);
            let same = head.iter().zip(&last).take_while(|(a, b)| a == b).count();
            dictionary.push((same << 4 | (head.len() - same)) as u8);
            dictionary.extend_from_slice(&head[same..]);
            last = head;
        }
        let rows = values::rows(two.len());
        let mut tokens: Vec<Option<(u8, Option<u8>)>> = alloc::vec![None; self.words.len()];
        for (number, key) in one.iter().chain(&two).enumerate() {
            tokens[self.numbers[key] as usize] = Some(values::token(number, rows));
        }
        let mut out = Vec::with_capacity(self.heads.len() * 3 / 2);
        for &head in &self.heads {
            if head & LITERAL != 0 {
                out.extend([values::RAW, head as u8]);
                continue;
            }
            match tokens[head as usize] {
                Some((first, second)) => {
                    out.push(first);
                    out.extend(second);
                }
                None => {
                    out.push(values::ESCAPE);
                    out.extend(key_bytes(&self.words[head as usize].0));
                }
            }
        }
        out
    }
}

#[cfg(feature = "pack")]
fn key_bytes(key: &u128) -> Vec<u8> {
    let bytes = key.to_be_bytes();
    bytes[..bytes[15].into()].to_vec()
}

#[cfg(feature = "pack")]
fn get(code: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([code[at], code[at + 1], code[at + 2], code[at + 3]])
}

#[cfg(feature = "pack")]
fn zigzag(value: u32) -> u32 {
    (value << 1) ^ ((value as i32) >> 31) as u32
}
