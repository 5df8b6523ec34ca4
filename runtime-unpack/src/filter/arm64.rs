//! AArch64 code, taken apart into instructions: what they are in one stream, their operands in others, by kind.
//!
//! The idea is that of [`x86`](super::x86), and simpler, since every instruction is one word of four bytes: the word with
//! its operand taken out, the *head*, is a token of a dictionary. A head that is too rare for the dictionary loses its
//! registers as well, which makes it one of few, and they go to a stream of their own.
//!
//! Calls become the addresses that they mean. ADRP gives a page, and some instruction after it the place in the page: both
//! are one value, stored with the first, and the second says that it takes what the register was given ([`LOW`]).
//! The target of a jump is most often that of another one just before, or begins a block that cannot be reached otherwise,
//! behind a jump or return without a condition; such places are counted, the others are distances. So jumps are put in
//! after the whole piece is there.
//!
//! Every word of four bytes has a head, whether or not it is an instruction, so data among the code costs size, never
//! correctness.
//!
//! Source: Arm Architecture Reference Manual (DDI 0487), C4.1 (A64 instruction set encoding).

use super::values::{self, Values};
use super::{Malformed, Reader};
use alloc::vec::Vec;
use core::ops::Range;

/// What operand an instruction has, but for registers and what stays in the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    /// BL, or a B that is marked with [`FAR`].
    Call,
    Jump,
    /// B.cond, CBZ, CBNZ.
    Branch,
    /// TBZ, TBNZ.
    Test,
    Adr,
    Adrp,
    Add,
    StackAdd,
    Load,
    StackLoad,
    Pair,
    StackPair,
    /// An addition or load that is marked with [`LOW`].
    Low,
}

/// Mark in the field of a B: its target is among those of calls.
const FAR: u32 = 1;
/// Mark in the field of an addition, load or store: it is what ADRP left for the register.
const LOW: u32 = 1 << 10;

/// The stack pointer, where a register is a base.
const STACK: u32 = 31;

fn base(bits: u32) -> u32 {
    bits >> 5 & 31
}

/// The kind of a head. The operand's field of an instruction has to be zero, or hold a mark.
fn kind(bits: u32) -> Kind {
    let stack = base(bits) == STACK;
    match bits >> 24 {
        0x94..=0x97 => Kind::Call,
        0x14..=0x17 if bits & FAR != 0 => Kind::Call,
        0x14..=0x17 => Kind::Jump,
        0x54 | 0x34 | 0x35 | 0xb4 | 0xb5 => Kind::Branch,
        0x36 | 0x37 | 0xb6 | 0xb7 => Kind::Test,
        0x10 | 0x30 | 0x50 | 0x70 => Kind::Adr,
        // With a page that is too far away it stays as it is.
        0x90 if bits & mask(Kind::Adrp) == 0 => Kind::Adrp,
        _ if bits & 0x3b00_0000 == 0x3900_0000 => match stack {
            _ if bits & LOW != 0 => Kind::Low,
            true => Kind::StackLoad,
            false => Kind::Load,
        },
        _ if bits & 0x1f80_0000 == 0x1100_0000 => match stack {
            _ if bits & LOW != 0 => Kind::Low,
            true => Kind::StackAdd,
            false => Kind::Add,
        },
        _ if bits & 0x3a00_0000 == 0x2800_0000 => match stack {
            true => Kind::StackPair,
            false => Kind::Pair,
        },
        _ => Kind::Plain,
    }
}

/// Where the operand is: its lowest bit, and its width.
const fn field(kind: Kind) -> (u8, u8) {
    match kind {
        Kind::Plain => (0, 0),
        Kind::Call | Kind::Jump => (0, 26),
        // ADR and ADRP: but for the two lowest bits of the value, which are further up.
        Kind::Branch | Kind::Adr | Kind::Adrp => (5, 19),
        Kind::Test => (5, 14),
        Kind::Add | Kind::StackAdd | Kind::Load | Kind::StackLoad | Kind::Low => (10, 12),
        Kind::Pair | Kind::StackPair => (15, 7),
    }
}

const fn mask(kind: Kind) -> u32 {
    let (shift, width) = field(kind);
    let low = match kind {
        Kind::Adr | Kind::Adrp => 3 << 29,
        _ => 0,
    };
    ((1 << width) - 1) << shift | low
}

/// By how much the offset of a load or store is shifted; none for an addition.
fn scale(bits: u32) -> u32 {
    match bits & 0x3b00_0000 == 0x3900_0000 {
        true => bits >> 30 | (bits >> 24 & bits >> 21 & 4),
        false => 0,
    }
}

/// Lowest bits of the register fields.
const REGISTERS: [u32; 4] = [0, 5, 16, 10];

/// Which of the [`REGISTERS`] a head has, one bit for each. For what is no register, but has its place, that is as good.
fn registers(bits: u32) -> u8 {
    let all = match bits >> 25 & 15 {
        8 | 9 => match bits >> 23 & 7 {
            0 | 1 | 5 => 0b1,
            7 => 0b111,
            _ => 0b11,
        },
        10 | 11 if bits & 0x7c00_0000 == 0x3400_0000 => 0b1,
        5 | 13 if bits & 0x1f00_0000 == 0x1b00_0000 => 0b1111,
        5 | 7 | 13 | 15 => 0b111,
        4 | 6 | 12 | 14 => match bits {
            _ if bits & 0x3a00_0000 == 0x2800_0000 => 0b1011,
            _ if bits & 0x3b20_0c00 == 0x3820_0800 => 0b111,
            _ if bits & 0x3b00_0000 == 0x1800_0000 => 0b1,
            _ => 0b11,
        },
        _ => 0,
    };
    match kind(bits) {
        // What makes them operands of the stack stays.
        Kind::StackAdd | Kind::StackLoad | Kind::StackPair => all & !0b10,
        _ => all,
    }
}

/// Whether it works with vectors or floats: their registers are used otherwise, and have a stream of their own.
fn is_vector(bits: u32) -> bool {
    bits >> 26 & 3 == 3
}

/// Whether what follows cannot be reached from here: B, BR, RET.
fn ends_block(bits: u32) -> bool {
    bits >> 26 == 5 || bits & 0xffbf_fc1f == 0xd61f_0000
}

/// Number of value sequences.
pub(super) const SEQUENCES: usize = 10;
/// Number of streams.
const STREAMS: usize = 7 + 2 * SEQUENCES;
const CALLS: u8 = 0;
const ADDRESSES: u8 = 1;
const JUMPS: u8 = 2;
const BRANCHES: u8 = 3;
const NO_SEQUENCE: u8 = SEQUENCES as u8;

fn sequence(kind: Kind) -> u8 {
    match kind {
        Kind::Call => CALLS,
        Kind::Adr | Kind::Adrp => ADDRESSES,
        Kind::Jump => JUMPS,
        Kind::Branch | Kind::Test => BRANCHES,
        Kind::Add => 4,
        Kind::StackAdd => 5,
        Kind::Load => 6,
        Kind::StackLoad => 7,
        Kind::Pair => 8,
        Kind::StackPair => 9,
        Kind::Plain | Kind::Low => NO_SEQUENCE,
    }
}

/// A head, ready for the decoder.
#[derive(Debug, Clone, Copy)]
struct Word {
    /// Without a mark.
    bits: u32,
    mask: u32,
    /// All ones if the value counts from the beginning of the address space, not from here.
    relative: u32,
    kind: Kind,
    sequence: u8,
    /// Where the operand comes from while the piece is put together: the sequence, but for jumps.
    first: u8,
    shift: u8,
    registers: u8,
    vector: u8,
    jump: u8,
    ends: u8,
}

impl Word {
    fn new(head: u32) -> Word {
        let kind = kind(head);
        let jump = matches!(kind, Kind::Jump | Kind::Branch | Kind::Test);
        Word {
            bits: match kind {
                Kind::Call => head & !FAR,
                Kind::Low => head & !LOW,
                _ => head,
            },
            mask: mask(kind),
            relative: if kind == Kind::Call { u32::MAX } else { 0 },
            kind,
            sequence: sequence(kind),
            first: if jump { NO_SEQUENCE } else { sequence(kind) },
            shift: field(kind).0,
            registers: registers(head),
            vector: is_vector(head).into(),
            jump: jump.into(),
            ends: ends_block(head).into(),
        }
    }
}

/// Heads by token.
#[derive(Debug)]
struct Words {
    words: Vec<Word>,
    rows: usize,
}

impl Words {
    fn new(dictionary: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (words, rows) = values::words(dictionary)?;
        Ok(Words {
            words: words.into_iter().map(Word::new).collect(),
            rows,
        })
    }

    /// The head of the token at `at`; `None` for one that is not in the dictionary.
    #[inline(always)]
    fn next(&self, buffer: &[u8], at: &mut usize) -> Result<Option<&Word>, Malformed> {
        let [first, second] = *buffer
            .get(*at..)
            .and_then(|b| b.first_chunk())
            .ok_or(Malformed)?;
        if first == values::ESCAPE {
            *at += 1;
            return Ok(None);
        }
        let two = usize::from(first) >= values::ONE;
        let row = usize::from(first)
            .wrapping_sub(values::ONE)
            .wrapping_mul(self.rows);
        let long = values::ONE.wrapping_add(row).wrapping_add(second.into());
        *at += 1 + usize::from(two);
        let number = if two { long } else { first.into() };
        self.words.get(number).map(Some).ok_or(Malformed)
    }
}

/// A jump that waits for its target.
#[derive(Debug, Clone, Copy, Default)]
struct Jump {
    /// The number of its instruction.
    number: u32,
    /// How many blocks began up to there.
    begun: u32,
    mask: u32,
    shift: u8,
    sequence: u8,
}

/// What a thread keeps from frame to frame.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    jumps: Vec<Jump>,
    /// The instructions that begin blocks.
    blocks: Vec<u32>,
    piece: Vec<u8>,
}

/// Puts code together again.
#[derive(Debug)]
pub(super) struct Decoder<'a> {
    buffer: &'a [u8],
    heads: Words,
    rare: Words,
    cursors: Cursors,
    sequences: [Values; SEQUENCES],
}

/// Positions in the buffer of the streams that code is split into.
#[derive(Debug, Clone, Copy)]
struct Cursors {
    dictionary: usize,
    heads: usize,
    rare: usize,
    unknown: usize,
    /// Of general registers, of vectors.
    registers: [usize; 2],
    tails: usize,
}

impl<'a> Decoder<'a> {
    /// `at` is where each stream lies in the buffer, in the order of [`Encoder::finish`].
    pub(super) fn new(buffer: &'a [u8], at: [Range<usize>; STREAMS]) -> Result<Self, Malformed> {
        let start = |n: usize| at[n].start;
        let dictionary = &mut Reader(&buffer[at[0].clone()]);
        let heads = Words::new(dictionary)?;
        let rare = Words::new(dictionary)?;
        let mut sequences: [Values; SEQUENCES] = Default::default();
        for (n, values) in sequences.iter_mut().enumerate() {
            *values = Values::new(dictionary, start(7 + 2 * n), start(8 + 2 * n))?;
        }
        if !dictionary.0.is_empty() {
            return Err(Malformed);
        }
        Ok(Decoder {
            buffer,
            heads,
            rare,
            cursors: Cursors {
                dictionary: at[0].end,
                heads: start(1),
                rare: start(2),
                unknown: start(3),
                registers: [start(4), start(5)],
                tails: start(6),
            },
            sequences,
        })
    }

    /// Gives `size` bytes of code that is at `address` (its lower 32 bits).
    pub(super) fn decode<'s>(
        &mut self,
        address: u32,
        size: usize,
        scratch: &'s mut Scratch,
    ) -> Result<&'s [u8], Malformed> {
        let count = size / 4;
        if scratch.jumps.len() <= count {
            scratch.jumps.resize(count + 1, Jump::default());
            scratch.blocks.resize(count + 1, 0);
        }
        let Scratch {
            jumps,
            blocks,
            piece,
        } = scratch;
        let piece = super::room(piece, size);
        let (code, tail) = piece.split_at_mut(4 * count);
        let [jumped, begun] = self.assemble(address, code, jumps, blocks)?;
        self.patch(code, &jumps[..jumped], &blocks[..begun])?;
        let bytes = self
            .buffer
            .get(self.cursors.tails..)
            .and_then(|b| b.get(..tail.len()));
        tail.copy_from_slice(bytes.ok_or(Malformed)?);
        self.cursors.tails += tail.len();
        Ok(piece)
    }

    /// Everything but the jumps' targets; gives the number of jumps, and of places where blocks begin.
    fn assemble(
        &mut self,
        address: u32,
        code: &mut [u8],
        jumps: &mut [Jump],
        blocks: &mut [u32],
    ) -> Result<[usize; 2], Malformed> {
        let buffer = self.buffer;
        let count = code.len() / 4;
        let (jumps, blocks) = (&mut jumps[..=count], &mut blocks[..=count]);
        let (mut jumped, mut begun) = (0, 0);
        let mut heads = self.cursors.heads;
        // What ADRP left for each register.
        let mut low = [0; 32];
        for (number, out) in (0u32..).zip(code.chunks_exact_mut(4)) {
            let rare;
            let (word, mut bits) = match self.heads.next(buffer, &mut heads)? {
                Some(word) => (word, word.bits),
                None => {
                    rare = rare_word(&self.rare, buffer, &mut self.cursors)?;
                    (&rare, rare.bits)
                }
            };
            jumps[jumped] = Jump {
                number,
                begun: begun as u32,
                mask: word.mask,
                shift: word.shift,
                sequence: word.sequence,
            };
            jumped += usize::from(word.jump);
            blocks[begun] = number + 1;
            begun += usize::from(word.ends);
            if let Some(values) = self.sequences.get_mut(usize::from(word.first)) {
                let value = values.next(buffer)?;
                if word.first == ADDRESSES {
                    let here = address.wrapping_add(4 * number);
                    let distance = match word.kind {
                        Kind::Adr => value.wrapping_sub(here),
                        _ => {
                            low[(bits & 31) as usize] = value & 0xfff;
                            // Signed, in 21 bits.
                            ((value & !0xfff).wrapping_sub(here & !0xfff) as i32 >> 12) as u32
                        }
                    };
                    bits |= adr(distance);
                } else {
                    let here = (address >> 2).wrapping_add(number) & word.relative;
                    bits |= value.wrapping_sub(here) << (word.shift & 31) & word.mask;
                }
            } else if word.kind == Kind::Low {
                bits |= low[base(bits) as usize] >> scale(bits) << 10;
            }
            out.copy_from_slice(&bits.to_le_bytes());
        }
        self.cursors.heads = heads;
        Ok([jumped, begun])
    }

    /// Puts in the jumps' targets, now that it is known where blocks begin.
    fn patch(&mut self, code: &mut [u8], jumps: &[Jump], blocks: &[u32]) -> Result<(), Malformed> {
        let mut recent = Recent::default();
        for jump in jumps {
            let at = 4 * jump.number as usize;
            let out: &mut [u8; 4] = code
                .get_mut(at..)
                .and_then(|b| b.first_chunk_mut())
                .ok_or(Malformed)?;
            let values = self
                .sequences
                .get_mut(usize::from(jump.sequence))
                .ok_or(Malformed)?;
            let value = values.next(self.buffer)?;
            let (place, count) = (value & 3, value >> 2);
            // Which of the three it is cannot be foreseen, so all are looked up.
            let distance = values::unzigzag(count);
            let block = blocks
                .get(jump.begun.wrapping_add(distance) as usize)
                .copied();
            let known = if place == BLOCK {
                block.ok_or(Malformed)?
            } else {
                recent.get(count)
            };
            let target = if place == DISTANCE {
                jump.number.wrapping_add(distance)
            } else {
                known
            };
            recent.push(target, place != RECENT);
            let bits = u32::from_le_bytes(*out);
            let bits = bits | target.wrapping_sub(jump.number) << (jump.shift & 31) & jump.mask;
            *out = bits.to_le_bytes();
        }
        Ok(())
    }

    /// Says of each stream how far it was read.
    pub(super) fn ends(&self, mut end: impl FnMut(u8, usize)) {
        let c = &self.cursors;
        let cursors = [
            c.dictionary,
            c.heads,
            c.rare,
            c.unknown,
            c.registers[0],
            c.registers[1],
            c.tails,
        ];
        let values = self.sequences.iter().flat_map(Values::ends);
        for (stream, at) in (0..).zip(cursors.into_iter().chain(values)) {
            end(stream, at);
        }
    }
}

/// A head that is not in the dictionary, with its registers.
fn rare_word(rare: &Words, buffer: &[u8], cursors: &mut Cursors) -> Result<Word, Malformed> {
    let mut word = match rare.next(buffer, &mut cursors.rare)? {
        Some(word) => *word,
        None => {
            let head = buffer
                .get(cursors.unknown..)
                .and_then(|b| b.first_chunk())
                .ok_or(Malformed)?;
            cursors.unknown += 4;
            Word::new(u32::from_be_bytes(*head))
        }
    };
    let registers = &mut cursors.registers[usize::from(word.vector & 1)];
    for (n, shift) in REGISTERS.into_iter().enumerate() {
        let has = u32::from(word.registers) >> n & 1;
        let register = u32::from(*buffer.get(*registers).ok_or(Malformed)?) & 31;
        word.bits |= (register * has) << shift;
        *registers += has as usize;
    }
    Ok(word)
}

/// What the lower two bits of a jump's value say of the others: an instruction so far away, zigzag.
const DISTANCE: u32 = 0;
/// The beginning of a block so many further, zigzag.
const BLOCK: u32 = 1;
/// The target before so many others.
const RECENT: u32 = 2;

/// The last targets that were not among these already.
#[derive(Debug, Default)]
struct Recent {
    targets: [u32; 16],
    count: u32,
}

impl Recent {
    fn get(&self, back: u32) -> u32 {
        self.targets[(self.count.wrapping_sub(1).wrapping_sub(back) & 15) as usize]
    }

    /// Puts it in for good if it is `new`; else only until the next one, in the place of the oldest.
    fn push(&mut self, target: u32, new: bool) {
        self.targets[(self.count & 15) as usize] = target;
        self.count = self.count.wrapping_add(new.into());
    }
}

/// The field of ADR and ADRP.
fn adr(value: u32) -> u32 {
    (value & 3) << 29 | (value >> 2 << 5 & 0x00ff_ffe0)
}

/// Takes code apart. Pieces first; the streams come when all have been seen, because they share a dictionary.
#[cfg(feature = "pack")]
#[derive(Debug, Default)]
pub(super) struct Encoder {
    heads: Vec<u32>,
    sequences: [Vec<u32>; SEQUENCES],
    tails: Vec<u8>,
}

/// How many instructions after an ADRP may have the rest of the address.
#[cfg(feature = "pack")]
const AHEAD: usize = 16;
/// Instructions from a B to its target that make it the call that a function ends with, not a jump within.
#[cfg(feature = "pack")]
const FAR_AWAY: u32 = 1 << 15;
/// Registers that a called function may change.
#[cfg(feature = "pack")]
const VOLATILE: usize = 19;
/// Blocks further away than this are told by the distance.
#[cfg(feature = "pack")]
const MOST_BLOCKS: u32 = 200;

#[cfg(feature = "pack")]
impl Encoder {
    /// Takes code that is at `address` apart.
    pub(super) fn push(&mut self, address: u32, code: &[u8]) {
        let words = code.chunks_exact(4);
        self.tails.extend_from_slice(words.remainder());
        let code: Vec<u32> = words
            .map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]))
            .collect();
        let mut targets = Targets::new(&code);
        let mut low: [Option<u32>; 32] = [None; 32];
        for (number, &bits) in code.iter().enumerate() {
            let here = address.wrapping_add(4 * number as u32);
            let destination = (bits & 31) as usize;
            let kind = bare_kind(bits);
            let (shift, _) = field(kind);
            let operand = (bits & mask(kind)) >> shift;
            let distance = signed(operand, kind);
            let called = (address >> 2)
                .wrapping_add(number as u32)
                .wrapping_add(distance);
            let mut head = bits & !mask(kind);
            let mut value = operand;
            match kind {
                Kind::Call => {
                    value = called;
                    low[..VOLATILE].fill(None);
                }
                Kind::Jump if values::zigzag(distance) >= 2 * FAR_AWAY => {
                    head |= FAR;
                    value = called;
                }
                Kind::Jump | Kind::Branch | Kind::Test => {
                    value = targets.value(number, distance);
                }
                Kind::Adr => {
                    value = here.wrapping_add(adr_distance(bits));
                    low[destination] = None;
                }
                Kind::Adrp => {
                    let rest = rest_of_address(&code[number + 1..], bits & 31);
                    low[destination] = rest;
                    let page = (here >> 12).wrapping_add(adr_distance(bits)) << 12;
                    value = page | rest.unwrap_or(0);
                }
                _ => {
                    let known = low12(bits).is_some() && low12(bits) == low[base(bits) as usize];
                    head |= if known { LOW } else { 0 };
                }
            }
            if kind != Kind::Adrp && writes(bits) {
                low[destination] = None;
            }
            self.heads.push(head);
            if let Some(values) = self
                .sequences
                .get_mut(usize::from(sequence(self::kind(head))))
            {
                values.push(value);
            }
        }
    }

    /// The streams.
    pub(super) fn finish(self) -> Vec<Vec<u8>> {
        let mut dictionary = Vec::new();
        let (heads, misses) = values::encode(&self.heads, &mut dictionary);
        let (mut rare, mut registers) = (Vec::new(), [Vec::new(), Vec::new()]);
        for head in misses.chunks_exact(4) {
            let mut head = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            let has = self::registers(head);
            for (n, shift) in REGISTERS.into_iter().enumerate() {
                if has >> n & 1 != 0 {
                    registers[usize::from(is_vector(head))].push((head >> shift & 31) as u8);
                    head &= !(31 << shift);
                }
            }
            rare.push(head);
        }
        let (rare, unknown) = values::encode(&rare, &mut dictionary);
        let sequences = self
            .sequences
            .map(|values| values::encode(&values, &mut dictionary));
        let mut out = alloc::vec![dictionary, heads, rare, unknown];
        out.extend(registers);
        out.push(self.tails);
        out.extend(
            sequences
                .into_iter()
                .flat_map(|(tokens, misses)| [tokens, misses]),
        );
        out
    }
}

/// The kind of an instruction whose operand is there.
#[cfg(feature = "pack")]
fn bare_kind(bits: u32) -> Kind {
    match bits >> 24 {
        0x14..=0x17 => Kind::Jump,
        0x90 | 0xb0 | 0xd0 | 0xf0 => match adr_distance(bits) as i32 {
            // As many pages as 32 bits of address have.
            -0x8_0000..0x8_0000 => Kind::Adrp,
            _ => Kind::Plain,
        },
        _ => match kind(bits) {
            Kind::Low => kind(bits & !mask(Kind::Low)),
            kind => kind,
        },
    }
}

/// The places in one piece that jumps may go to.
#[cfg(feature = "pack")]
struct Targets {
    recent: Recent,
    /// For each instruction, and behind the last one, how many blocks began up to there, and whether one does.
    begun: Vec<(u32, bool)>,
}

#[cfg(feature = "pack")]
impl Targets {
    fn new(code: &[u32]) -> Targets {
        let mut begun = alloc::vec![(0, false)];
        let mut count = 0;
        for bits in code {
            let ends = ends_block(*bits);
            count += u32::from(ends);
            begun.push((count, ends));
        }
        Targets {
            recent: Recent::default(),
            begun,
        }
    }

    /// The value for a jump of this instruction.
    fn value(&mut self, number: usize, distance: u32) -> u32 {
        let target = (number as u32).wrapping_add(distance);
        let back = (0..self.recent.count.min(16)).find(|back| self.recent.get(*back) == target);
        self.recent.push(target, back.is_none());
        if let Some(back) = back {
            return back << 2 | RECENT;
        }
        if let Some((begun, true)) = self.begun.get(target as usize) {
            let blocks = values::zigzag((begun - 1).wrapping_sub(self.begun[number].0));
            if blocks < MOST_BLOCKS {
                return blocks << 2 | BLOCK;
            }
        }
        values::zigzag(distance) << 2 | DISTANCE
    }
}

/// The rest of the address whose page is in `register`: what the first instruction has that uses it.
#[cfg(feature = "pack")]
fn rest_of_address(code: &[u32], register: u32) -> Option<u32> {
    for &bits in code.iter().take(AHEAD) {
        if base(bits) == register && low12(bits).is_some() {
            return low12(bits);
        }
        if bits & 31 == register && writes(bits) {
            return None;
        }
    }
    None
}

/// What the instruction adds to its base, if it may be part of an address.
#[cfg(feature = "pack")]
fn low12(bits: u32) -> Option<u32> {
    let load = bits & 0x3b00_0000 == 0x3900_0000;
    let add = bits & 0xffc0_0000 == 0x9100_0000;
    let low = (bits >> 10 & 0xfff) << scale(bits);
    ((load || add) && low < 1 << 12).then_some(low)
}

/// Whether it seems to write to its first register: neither a store nor a branch.
#[cfg(feature = "pack")]
fn writes(bits: u32) -> bool {
    match bits >> 25 & 15 {
        4 | 6 | 12 | 14 => bits >> 22 & 3 != 0,
        10 | 11 => false,
        _ => true,
    }
}

#[cfg(feature = "pack")]
fn adr_distance(bits: u32) -> u32 {
    (((bits << 8 & 0xffff_e000) | (bits >> 29 & 3) << 11) as i32 >> 11) as u32
}

#[cfg(feature = "pack")]
fn signed(operand: u32, kind: Kind) -> u32 {
    let sign = 1 << field(kind).1 >> 1;
    (operand ^ sign).wrapping_sub(sign)
}

#[cfg(all(test, feature = "pack"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{self as filter, Filter, Piece, Scratch};
    use super::*;
    use alloc::vec;

    type Streams = Vec<(u8, Vec<u8>)>;

    fn piece(address: u32) -> Piece {
        Piece {
            blob: 0,
            filter: Filter::Arm64,
            param: address,
        }
    }

    fn encode(pieces: &[(u32, Vec<u8>)]) -> Streams {
        filter::encode(
            pieces
                .iter()
                .map(|(address, bytes)| (piece(*address), &bytes[..])),
        )
    }

    fn decode(streams: &Streams, pieces: &[(u32, Vec<u8>)]) -> Result<Vec<Vec<u8>>, Malformed> {
        let mut buffer: Vec<u8> = streams
            .iter()
            .flat_map(|(_, bytes)| bytes)
            .copied()
            .collect();
        buffer.extend([0; filter::PADDING]);
        let mut scratch = Scratch::default();
        let sizes = streams.iter().map(|(number, bytes)| (*number, bytes.len()));
        let mut decoder = filter::Decoder::new(&buffer, sizes)?;
        let mut out = Vec::new();
        for (address, bytes) in pieces {
            out.push(
                decoder
                    .piece(&piece(*address), bytes.len(), &mut scratch)?
                    .to_vec(),
            );
        }
        decoder.finish()?;
        Ok(out)
    }

    fn comes_back(pieces: &[(u32, Vec<u8>)]) {
        let out = decode(&encode(pieces), pieces).unwrap();
        assert!(out.iter().eq(pieces.iter().map(|(_, bytes)| bytes)));
    }

    fn bytes(code: &[u32]) -> Vec<u8> {
        code.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn noise(seed: u64) -> impl FnMut() -> u32 {
        let mut state = seed;
        move || {
            state = state
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 32) as u32
        }
    }

    /// One instruction of each class: B, BL, B.cond, CBZ, TBZ, ADR, ADRP, ADD, LDR, LDP, MOVZ, ORR, LDUR, FMADD, LDR (literal), BR, RET.
    const CLASSES: [u32; 17] = [
        0x1400_0000,
        0x9400_0000,
        0x5400_0000,
        0xb400_0000,
        0x3600_0000,
        0x1000_0000,
        0x9000_0000,
        0x9100_0000,
        0xf940_0000,
        0xa940_0000,
        0xd280_0000,
        0xaa00_0000,
        0xf840_0000,
        0x1f40_0000,
        0x5800_0000,
        0xd61f_0000,
        0xd65f_0000,
    ];

    /// Code-like noise: instructions of all classes, operands large and small.
    fn code(size: usize, seed: u64) -> Vec<u8> {
        let mut next = noise(seed);
        let mut words = || {
            let class = CLASSES[next() as usize % CLASSES.len()];
            let operand = next() >> (next() % 32);
            match next() % 8 {
                0 => next(),
                1 => class,
                2 => class | (operand & 31) << 5 | next() & 3,
                _ => class ^ (operand & 0x00ff_ffff) ^ (next() & 0x6000_0000),
            }
        };
        let mut out = Vec::new();
        while out.len() < size {
            out.extend(words().to_le_bytes());
        }
        out.truncate(size);
        out
    }

    #[test]
    fn any_bytes_come_back() {
        for seed in 0..60 {
            let mut next = noise(seed);
            let pieces: Vec<(u32, Vec<u8>)> = (0..4)
                .map(|_| (next(), next() % 3000))
                .map(|(address, size)| (address, code(size as usize, u64::from(address))))
                .collect();
            comes_back(&pieces);
        }
        for size in 0..9 {
            comes_back(&[(1, vec![0xff; size]), (u32::MAX, code(size, 1))]);
        }
        comes_back(&[(0x1_0003, code(1 << 18, 7))]);
    }

    #[test]
    fn every_word_of_every_class_comes_back() {
        let mut next = noise(3);
        let words: Vec<u32> = (0..=u32::from(u8::MAX))
            .flat_map(|byte| {
                [
                    byte << 24,
                    byte << 24 | 0x00ff_ffff,
                    byte << 24 | 0x0080_03e0,
                ]
            })
            .chain((0..60_000).map(|n| n << 24 | next() & 0x00ff_ffff))
            .collect();
        comes_back(&[(0xffff_f000, bytes(&words))]);
    }

    /// The sequences' values for this code, those that there are.
    fn values(address: u32, code: &[u32]) -> Vec<(u8, Vec<u32>)> {
        comes_back(&[(address, bytes(code))]);
        let mut encoder = Encoder::default();
        encoder.push(address, &bytes(code));
        (0..)
            .zip(encoder.sequences)
            .filter(|(_, values)| !values.is_empty())
            .collect()
    }

    #[test]
    fn operands_go_where_their_kind_is() {
        let (nop, at) = (0xd503_201f, 0x40_0000);
        let jump = |count: u32| vec![values::zigzag(count) << 2 | DISTANCE];
        let cases: &[(u32, u8, Vec<u32>)] = &[
            (0x9400_0002, CALLS, vec![(at >> 2) + 3]),      // bl +8
            (0x97ff_ffff, CALLS, vec![at >> 2]),            // bl -4
            (0x1400_8000, CALLS, vec![(at >> 2) + 0x8001]), // b, far away
            (0x1400_0003, JUMPS, jump(3)),                  // b +12
            (0x17ff_ffff, JUMPS, jump(u32::MAX)),           // b -4
            (0x5400_0041, BRANCHES, jump(2)),               // b.ne +8
            (0xb4ff_ffe3, BRANCHES, jump(u32::MAX)),        // cbz x3, -4
            (0x3748_0043, BRANCHES, jump(2)),               // tbnz w3, 9, +8
            (0x3000_0041, ADDRESSES, vec![at + 4 + 9]),     // adr x1, +9
            (0xb000_0001, ADDRESSES, vec![at + 0x1000]),    // adrp x1, next page
            (0x9100_8020, 4, vec![0x20]),                   // add x0, x1, 0x20
            (0xd100_83ff, 5, vec![0x20]),                   // sub sp, sp, 0x20
            (0xf940_0c20, 6, vec![3]),                      // ldr x0, [x1, 24]
            (0xb900_07e0, 7, vec![1]),                      // str w0, [sp, 4]
            (0x2941_8420, 8, vec![3]),                      // ldp w0, w1, [x1, 12]
            (0xa9bf_7bfd, 9, vec![0x7e]),                   // stp x29, x30, [sp, -16]!
        ];
        for (word, sequence, expected) in cases {
            assert_eq!(
                values(at, &[nop, *word]),
                [(*sequence, expected.clone())],
                "{word:08x}"
            );
        }
        // mov x0, x19; movz; ldr x0, literal; ldur; a page that is more than 2 GiB away
        for word in [
            0xaa13_03e0,
            0x5280_0020,
            0x5800_0040,
            0xf85f_8020,
            0x9040_0000,
        ] {
            assert_eq!(values(at, &[nop, word]), [], "{word:08x}");
        }
    }

    #[test]
    fn an_address_in_two_instructions_is_one_value() {
        let adrp = 0xb000_0001;
        // add x1, x1, 0x123; ldr x0, [x1, 0x128]: only what the first one adds belongs to the address.
        let code = [adrp, 0x9104_8c21, 0xf940_9420];
        let expected = [(ADDRESSES, vec![0x40_1123]), (6, vec![0x128 / 8])];
        assert_eq!(values(0x40_0000, &code), expected);
        // ldr x0, [x1, 0x128] and str x2 there, behind something else.
        let code = [adrp, 0xd503_201f, 0xf940_9420, 0xf900_9422];
        assert_eq!(values(0x40_0000, &code), [(ADDRESSES, vec![0x40_1128])]);
    }

    #[test]
    fn jumps_go_to_blocks_and_where_others_went() {
        let (nop, ret) = (0xd503_201f, 0xd65f_03c0);
        // b.eq to the last nop; b.ne there as well; cbz to the nop behind ret.
        let code = [0x5400_00a0, 0x5400_0081, 0xb400_0040, ret, nop, nop];
        let expected = vec![values::zigzag(5) << 2 | DISTANCE, RECENT, BLOCK];
        assert_eq!(values(0, &code), [(BRANCHES, expected)]);
    }

    #[test]
    fn what_is_cut_off_or_too_much_is_malformed() {
        let pieces = [(0x1000, code(4001, 11))];
        let streams = encode(&pieces);
        for n in 0..streams.len() {
            let mut less = streams.clone();
            less[n].1.pop();
            assert_eq!(decode(&less, &pieces), Err(Malformed), "{}", streams[n].0);
            let mut more = streams.clone();
            more[n].1.push(0);
            assert_eq!(decode(&more, &pieces), Err(Malformed), "{}", streams[n].0);
        }
    }

    #[test]
    fn damage_is_never_worse_than_malformed() {
        let pieces = [(0x1000, code(3000, 5)), (0x2000, code(1000, 6))];
        let streams = encode(&pieces);
        let mut next = noise(9);
        for _ in 0..3000 {
            let mut damaged = streams.clone();
            let stream = next() as usize % damaged.len();
            let bytes = &mut damaged[stream].1;
            let at = next() as usize % bytes.len();
            bytes[at] = [next() as u8, 0xff, 0xfe, 0][next() as usize % 4];
            if let Ok(out) = decode(&damaged, &pieces) {
                assert!(
                    out.iter()
                        .zip(&pieces)
                        .all(|(out, piece)| out.len() == piece.1.len())
                );
            }
        }
    }
}
