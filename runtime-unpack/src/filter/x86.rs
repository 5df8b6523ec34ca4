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
use super::{Malformed, Reader, put};
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
    Long,
    /// Of the stack pointer: such offsets have a distribution of their own.
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
            Disp::Byte => 1,
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
            0x05..=0x09
            | 0x0b
            | 0x0e
            | 0x30..=0x37
            | 0x77
            | 0xa0..=0xa2
            | 0xa8..=0xaa
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
                (1, _) => Disp::Byte,
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
/// and two of the operands' bytes whether it wants them or not. What is too much is overwritten by what follows.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(8))]
struct Word {
    bytes: [u8; 16],
    head: u8,
    /// Where the immediate begins.
    imm: u8,
    /// Of the whole instruction.
    size: u8,
    /// Whether the displacement is a byte.
    disp_byte: u8,
    /// Displacements and immediates of one byte.
    small: u8,
    /// How it jumps; 0 if it does not.
    jump: u8,
    /// Which of the sequences has its displacement, counted from 1.
    disp_long: u8,
    /// Which of the sequences has its immediate, counted from 1; [`PLAIN`] for plain bytes.
    imm_long: u8,
}

/// Number of value sequences: displacements, stack displacements, immediates, RIP-relative addresses, call targets.
pub(super) const SEQUENCES: usize = 5;
/// Number of streams.
const STREAMS: usize = 9 + 2 * SEQUENCES;
const RIPS: u8 = 4;
const CALLS: u8 = 5;
const PLAIN: u8 = 6;

/// Kinds of jumps: by 8 bits, without condition, with one.
const SHORT_JUMP: u8 = 1;
const NEAR_JUMP: u8 = 2;
const BRANCH: u8 = 3;

impl Word {
    fn new(bytes: [u8; 16], layout: Layout) -> Word {
        let disp_byte = u8::from(layout.disp == Disp::Byte);
        Word {
            bytes,
            head: layout.head,
            imm: layout.head + layout.disp.size() as u8,
            size: layout.size() as u8,
            disp_byte,
            small: disp_byte + u8::from(layout.imm == Imm::Byte),
            jump: match layout.imm {
                Imm::Short => SHORT_JUMP,
                Imm::Jump => NEAR_JUMP,
                Imm::Branch => BRANCH,
                _ => 0,
            },
            disp_long: match layout.disp {
                Disp::Long => 1,
                Disp::StackLong => 2,
                Disp::Rip => RIPS,
                _ => 0,
            },
            imm_long: match layout.imm {
                Imm::Long => 3,
                Imm::Call => CALLS,
                Imm::Word | Imm::WordByte | Imm::Quad => PLAIN,
                _ => 0,
            },
        }
    }
}

/// The word behind a token that says it is not in the dictionary.
#[cold]
fn unknown_word(token: u8, rest: &[u8]) -> Result<Word, Malformed> {
    let layout = match token {
        // A byte that begins no instruction.
        values::RAW => Layout {
            head: 1,
            ..Layout::default()
        },
        _ => layout(rest).ok_or(Malformed)?,
    };
    let head = usize::from(layout.head);
    let mut bytes = [0; 16];
    bytes[..head].copy_from_slice(rest.get(..head).ok_or(Malformed)?);
    Ok(Word::new(bytes, layout))
}

/// Puts in the operands of more than a byte. Out of line: the loop around it needs every register.
#[inline(never)]
fn long_operands(
    word: &Word,
    next: u32,
    sequences: &mut [Values; SEQUENCES],
    cursors: &mut Cursors,
    buffer: &[u8],
    window: &mut [u8; ROOM],
) -> Result<(), Malformed> {
    let imm = usize::from(word.imm & 31);
    if word.disp_long != 0 {
        let value = sequences[usize::from(word.disp_long - 1)].next(buffer)?;
        let base = if word.disp_long == RIPS { next } else { 0 };
        put(
            window,
            usize::from(word.head & 15),
            value.wrapping_sub(base),
        );
    }
    if word.imm_long == PLAIN {
        let size = usize::from(word.size) - imm;
        let plain = buffer.get(cursors.plain..).and_then(|b| b.get(..size));
        window[imm..imm + size].copy_from_slice(plain.ok_or(Malformed)?);
        cursors.plain += size;
    } else if word.imm_long != 0 {
        let value = sequences[usize::from(word.imm_long - 1)].next(buffer)?;
        let base = if word.imm_long == CALLS { next } else { 0 };
        put(window, imm, value.wrapping_sub(base));
    }
    Ok(())
}

/// Positions in the buffer of the streams that code is split into.
#[derive(Debug, Clone, Copy, Default)]
struct Cursors {
    dictionary: usize,
    heads: usize,
    small: usize,
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
    /// The instructions that jump: the number, shifted by two, and how.
    jumps: Vec<u32>,
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
            small: start(2),
            plain: start(3),
            shorts: start(4),
            near_high: [start(5), start(7)],
            near_low: [start(6), start(8)],
        };
        let dictionary = &mut Reader(&buffer[at[0].clone()]);
        let [one, two, three] = values::read_counts(dictionary)?;
        let mut words: Vec<Word> = Vec::new();
        let mut bytes = [0; 16];
        for _ in 0..one + two + three {
            let sizes = dictionary.byte()?;
            let (same, new) = (usize::from(sizes >> 4), usize::from(sizes & 15));
            let suffix = dictionary.take(new)?;
            let head = same + new;
            bytes
                .get_mut(same..head)
                .ok_or(Malformed)?
                .copy_from_slice(suffix);
            bytes[head..].fill(0);
            let layout = layout(&bytes[..head]).filter(|l| usize::from(l.head) == head);
            words.push(Word::new(bytes, layout.ok_or(Malformed)?));
        }
        let mut sequences: [Values; SEQUENCES] = Default::default();
        for (n, values) in sequences.iter_mut().enumerate() {
            *values = Values::new(dictionary, start(9 + 2 * n), start(10 + 2 * n))?;
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
        for list in [&mut scratch.starts, &mut scratch.jumps] {
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

    /// Everything but the jumps' displacements; gives the number of instructions, and of jumps.
    fn assemble(
        &mut self,
        address: u32,
        size: usize,
        scratch: &mut Scratch,
    ) -> Result<[usize; 2], Malformed> {
        let words = self.words.as_slice();
        let rows = self.rows;
        let piece = &mut scratch.piece[..size + ROOM];
        let starts = &mut scratch.starts[..size + 2];
        let jumps = &mut scratch.jumps[..size + 2];
        let buffer = self.buffer;
        let Cursors {
            mut heads,
            mut small,
            ..
        } = self.cursors;
        let (mut at, mut number, mut jump) = (0, 0usize, 0usize);
        while at < size {
            let window: &mut [u8; ROOM] = piece
                .get_mut(at..)
                .and_then(|rest| rest.first_chunk_mut())
                .ok_or(Malformed)?;
            starts[number] = at as u32;
            let [first, second] = *buffer
                .get(heads..)
                .and_then(|b| b.first_chunk())
                .ok_or(Malformed)?;
            let escaped;
            let word = if first < values::THREE {
                let two = usize::from(first) >= values::ONE;
                let row = usize::from(first)
                    .wrapping_sub(values::ONE)
                    .wrapping_mul(rows);
                let long = values::ONE.wrapping_add(row).wrapping_add(second.into());
                heads += 1 + usize::from(two);
                let number = if two { long } else { first.into() };
                words.get(number).ok_or(Malformed)?
            } else if first == values::THREE {
                let third = *buffer.get(heads + 2).ok_or(Malformed)?;
                heads += 3;
                let number = usize::from(u16::from_be_bytes([second, third]));
                words
                    .get(values::ONE + values::TWO + number)
                    .ok_or(Malformed)?
            } else {
                escaped = unknown_word(first, &buffer[heads + 1..])?;
                heads += 1 + usize::from(escaped.head);
                &escaped
            };
            window[..16].copy_from_slice(&word.bytes);
            let head = usize::from(word.head & 15);
            let imm = usize::from(word.imm & 31);
            let [one, two] = *buffer
                .get(small..)
                .and_then(|b| b.first_chunk())
                .ok_or(Malformed)?;
            window[head] = one;
            window[imm] = if word.disp_byte == 0 { one } else { two };
            small += usize::from(word.small);
            jumps[jump] = (number as u32) << 2 | u32::from(word.jump);
            jump += usize::from(word.jump != 0);
            number += 1;
            at += usize::from(word.size);
            if word.disp_long | word.imm_long != 0 {
                let next = address.wrapping_add(at as u32);
                long_operands(
                    word,
                    next,
                    &mut self.sequences,
                    &mut self.cursors,
                    buffer,
                    window,
                )?;
            }
        }
        if at != size {
            return Err(Malformed);
        }
        starts[number] = at as u32;
        (self.cursors.heads, self.cursors.small) = (heads, small);
        Ok([number, jump])
    }

    /// Puts in the jumps' displacements, now that it is known where each instruction begins.
    fn patch(
        &mut self,
        address: u32,
        [count, jumps]: [usize; 2],
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
            let number = number.wrapping_add(values::unzigzag(count)) as usize;
            starts.get(number).copied().ok_or(Malformed)
        };
        for &jump in &scratch.jumps[..jumps] {
            let (number, kind) = (jump >> 2, jump as u8 & 3);
            let next = starts.get(number as usize + 1).copied().ok_or(Malformed)?;
            let end = next as usize;
            if kind == SHORT_JUMP {
                let count = byte(&mut self.cursors.shorts)?;
                let displacement = match count {
                    SHORT_ESCAPE => byte(&mut self.cursors.plain)?,
                    _ => target(number, count.into())?.wrapping_sub(next) as u8,
                };
                *scratch
                    .piece
                    .get_mut(end.wrapping_sub(1))
                    .ok_or(Malformed)? = displacement;
                continue;
            }
            let planes = usize::from(kind == BRANCH);
            let high = byte(&mut self.cursors.near_high[planes])?;
            let low = byte(&mut self.cursors.near_low[planes])?;
            let count = u16::from_be_bytes([high, low]);
            let displacement = match count {
                NEAR_ESCAPE => {
                    let target = self.sequences[usize::from(CALLS - 1)].next(buffer)?;
                    target.wrapping_sub(address.wrapping_add(next))
                }
                _ => target(number, count.into())?.wrapping_sub(next),
            };
            let place = scratch
                .piece
                .get_mut(end.wrapping_sub(4)..end)
                .ok_or(Malformed)?;
            place.copy_from_slice(&displacement.to_le_bytes());
        }
        Ok(())
    }

    /// Says of each stream how far it was read.
    pub(super) fn ends(&self, mut end: impl FnMut(u8, usize)) {
        let c = &self.cursors;
        let cursors = [
            c.dictionary,
            c.heads,
            c.small,
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

/// Takes code apart. Pieces first; the streams come when all have been seen, because they share a dictionary.
#[cfg(feature = "pack")]
#[derive(Debug, Default)]
pub(super) struct Encoder {
    /// Numbers of the distinct heads, as they come, each with its bytes and how often it came.
    numbers: super::Map<u128, u32>,
    words: Vec<(u128, u32)>,
    /// By instruction, the number of its head; [`LITERAL`] and a byte for what is none.
    heads: Vec<u32>,
    small: Vec<u8>,
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
                Disp::Byte => self.small.push(code[at]),
                Disp::Long => self.longs.push(get(code, at)),
                Disp::StackLong => self.stack_longs.push(get(code, at)),
                Disp::Rip => self.rips.push(get(code, at).wrapping_add(next)),
            }
            match layout.imm {
                Imm::None => {}
                Imm::Byte => self.small.push(code[imm]),
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
                .map(|n| values::zigzag(n.wrapping_sub(number)));
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
        let mut out = alloc::vec![dictionary, heads, self.small, self.plain, self.shorts,];
        out.extend(self.jumps);
        out.extend(self.branches);
        out.extend(
            sequences
                .into_iter()
                .flat_map(|(tokens, misses)| [tokens, misses]),
        );
        out
    }

    fn finish_heads(&self, dictionary: &mut Vec<u8>) -> Vec<u8> {
        let [one, two, three] =
            values::dictionary(self.words.iter().copied(), values::MAX_THREE - 1);
        for words in [&one, &two, &three] {
            dictionary.extend((words.len() as u16).to_be_bytes());
        }
        let words = || one.iter().chain(&two).chain(&three);
        let mut last: Vec<u8> = Vec::new();
        for key in words() {
            let head = key_bytes(key);
            let same = head.iter().zip(&last).take_while(|(a, b)| a == b).count();
            dictionary.push((same << 4 | (head.len() - same)) as u8);
            dictionary.extend_from_slice(&head[same..]);
            last = head;
        }
        let rows = values::rows(two.len());
        let mut tokens: Vec<Option<([u8; 3], usize)>> = alloc::vec![None; self.words.len()];
        for (number, key) in words().enumerate() {
            tokens[self.numbers[key] as usize] = Some(values::token(number, rows));
        }
        let mut out = Vec::with_capacity(self.heads.len() * 3 / 2);
        for &head in &self.heads {
            if head & LITERAL != 0 {
                out.extend([values::RAW, head as u8]);
                continue;
            }
            match tokens[head as usize] {
                Some((token, size)) => out.extend_from_slice(&token[..size]),
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
