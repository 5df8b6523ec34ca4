//! Exception tables: `.eh_frame`, field by field, and `.eh_frame_hdr`, which follows from it.
//!
//! A record (FDE) says for one function where it is, how long it is, where its exception table lies, and how to unwind it.
//! The functions come in order, so each field is predicted from the record before: a function begins where the last one ended,
//! rounded up to 16. `.eh_frame_hdr` is a search table over the records; it is made again, not stored.
//!
//! Source: Linux Standard Base Core 5.0, 10.6 "Exception Frames"; DWARF 5, 6.4.1.

use super::values::Values;
use super::{Malformed, Reader, put};
use alloc::vec::Vec;
use core::ops::Range;

/// How a record is stored.
const OPAQUE: u8 = 0;
const CIE: u8 = 1;
/// With the most recent CIE.
const FDE: u8 = 2;
/// With an older CIE.
const FDE_OLDER: u8 = 3;
/// The rest of the piece, as it is.
const REST: u8 = 4;

/// Bytes of a record's length field and of its CIE pointer.
const LENGTH: usize = 4;
const POINTERS: usize = 16;
/// Encodings (`DW_EH_PE_*`): none, and 32 bits relative to the place.
const OMIT: u8 = 0xff;
const PCREL_SDATA4: u8 = 0x1b;

/// What is known of the records so far.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The file whose records these are.
    blob: Option<u32>,
    /// Address of the section, when its pieces so far are consecutive.
    address: u32,
    end: u32,
    cies: Vec<Cie>,
    /// Address of the function and of the record.
    functions: Vec<(u32, u32)>,
    /// Where the last function ended, and its exception table.
    last_end: u32,
    last_lsda: u32,
}

#[derive(Debug, Clone, Copy)]
struct Cie {
    address: u32,
    /// Whether its records point to exception tables.
    has_lsda: bool,
}

impl State {
    /// Turns to the piece of `blob` that is at `address`.
    fn enter(&mut self, blob: u32, address: u32) {
        if self.blob != Some(blob) || self.end != address {
            *self = State {
                blob: Some(blob),
                address,
                end: address,
                ..State::default()
            };
        }
    }
}

/// Numbers of the streams: kinds, contents of opaque records, unwinding programs; then tokens and misses of each sequence.
pub(super) const SEQUENCES: usize = 5;
const LENGTHS: usize = 0;
const OLDER: usize = 1;
const BEGINS: usize = 2;
const RANGES: usize = 3;
const LSDAS: usize = 4;

/// Number of streams.
const STREAMS: usize = 3 + 2 * SEQUENCES;

/// Puts the sections together again.
#[derive(Debug)]
pub(super) struct Decoder<'a> {
    buffer: &'a [u8],
    dictionary_end: usize,
    kinds: usize,
    programs: usize,
    sequences: [Values; SEQUENCES],
    state: State,
}

impl<'a> Decoder<'a> {
    /// `at` is where each stream lies in the buffer, in the order of [`Encoder::finish`].
    pub(super) fn new(buffer: &'a [u8], at: [Range<usize>; STREAMS]) -> Result<Self, Malformed> {
        let dictionary = &mut Reader(&buffer[at[0].clone()]);
        let mut sequences: [Values; SEQUENCES] = Default::default();
        for (n, values) in sequences.iter_mut().enumerate() {
            *values = Values::new(dictionary, at[3 + 2 * n].start, at[4 + 2 * n].start)?;
        }
        if !dictionary.0.is_empty() {
            return Err(Malformed);
        }
        Ok(Decoder {
            buffer,
            dictionary_end: at[0].end,
            kinds: at[1].start,
            programs: at[2].start,
            sequences,
            state: State::default(),
        })
    }

    /// Says of each stream how far it was read.
    pub(super) fn ends(&self, mut end: impl FnMut(u8, usize)) {
        let cursors = [self.dictionary_end, self.kinds, self.programs];
        let values = self.sequences.iter().flat_map(Values::ends);
        for (stream, at) in (0..).zip(cursors.into_iter().chain(values)) {
            end(stream, at);
        }
    }

    fn kind(&mut self) -> Result<u8, Malformed> {
        let kind = self.buffer.get(self.kinds).copied();
        self.kinds += 1;
        kind.ok_or(Malformed)
    }

    fn program(&mut self, size: usize) -> Result<&'a [u8], Malformed> {
        let program = self.buffer.get(self.programs..).and_then(|b| b.get(..size));
        self.programs += size;
        program.ok_or(Malformed)
    }

    fn next(&mut self, sequence: usize) -> Result<u32, Malformed> {
        self.sequences[sequence].next(self.buffer)
    }

    /// Fills `out`, a piece of `.eh_frame` of file `blob` that is at `address`.
    pub(super) fn decode(
        &mut self,
        blob: u32,
        address: u32,
        out: &mut [u8],
    ) -> Result<(), Malformed> {
        self.state.enter(blob, address);
        let mut at = 0;
        while at < out.len() {
            let kind = self.kind()?;
            if kind == REST {
                let rest = out.len() - at;
                out[at..].copy_from_slice(self.program(rest)?);
                break;
            }
            let length = self.next(LENGTHS)?;
            let end = (at + LENGTH)
                .checked_add(length as usize)
                .filter(|end| *end <= out.len())
                .ok_or(Malformed)?;
            put(out, at, length);
            let body = at + LENGTH;
            match kind {
                OPAQUE | CIE => out[body..end].copy_from_slice(self.program(end - body)?),
                FDE | FDE_OLDER => {
                    let back = match kind {
                        FDE => 0,
                        _ => self.next(OLDER)? as usize,
                    };
                    let cie = self.state.cies.iter().nth_back(back).ok_or(Malformed)?;
                    let fixed = fixed_size(cie);
                    if end - body < fixed {
                        return Err(Malformed);
                    }
                    let (cie, has_lsda) = (cie.address, cie.has_lsda);
                    let here = address.wrapping_add(body as u32);
                    put(out, body, here.wrapping_sub(cie));
                    let begin = self
                        .next(BEGINS)?
                        .wrapping_add(predicted(self.state.last_end));
                    let range = self.next(RANGES)?;
                    put(out, body + 4, begin.wrapping_sub(here.wrapping_add(4)));
                    put(out, body + 8, range);
                    out[body + 12] = (fixed - 13) as u8;
                    if has_lsda {
                        let value = match self.next(LSDAS)? {
                            0 => 0,
                            delta => {
                                self.state.last_lsda = self.state.last_lsda.wrapping_add(delta);
                                self.state.last_lsda.wrapping_sub(here.wrapping_add(13))
                            }
                        };
                        put(out, body + 13, value);
                    }
                    let program = body + fixed;
                    out[program..end].copy_from_slice(self.program(end - program)?);
                    self.state.functions.push((begin, here.wrapping_sub(4)));
                    self.state.last_end = begin.wrapping_add(range);
                }
                _ => return Err(Malformed),
            }
            if kind == CIE {
                let address = address.wrapping_add(at as u32);
                let has_lsda = read_cie(&out[body..end]).ok_or(Malformed)?;
                self.state.cies.push(Cie { address, has_lsda });
            }
            at = end;
        }
        self.state.end = address.wrapping_add(out.len() as u32);
        Ok(())
    }

    /// Fills `out`, all of `.eh_frame_hdr` at `address`, from the `.eh_frame` of the same file that came before.
    pub(super) fn derive(
        &mut self,
        blob: u32,
        address: u32,
        out: &mut [u8],
    ) -> Result<(), Malformed> {
        if self.state.blob != Some(blob) {
            return Err(Malformed);
        }
        search_table(&mut self.state, address, out).ok_or(Malformed)
    }
}

/// Bytes of a record before its program.
fn fixed_size(cie: &Cie) -> usize {
    if cie.has_lsda { POINTERS + 1 } else { 13 }
}

fn predicted(last_end: u32) -> u32 {
    last_end.wrapping_add(15) & !15
}

/// Reads a CIE (behind its length): whether its records point to exception tables; `None` if it is none that we know.
fn read_cie(body: &[u8]) -> Option<bool> {
    let mut reader = Reader(body);
    if reader.take(4).ok()? != [0; 4] {
        return None;
    }
    let version = reader.byte().ok()?;
    let augmentation = reader.0.split(|b| *b == 0).next()?;
    reader.skip(augmentation.len() + 1);
    skip_leb128(&mut reader)?;
    skip_leb128(&mut reader)?;
    match version {
        1 => reader.skip(1),
        3 => skip_leb128(&mut reader)?,
        _ => return None,
    }
    let (first, letters) = augmentation.split_first()?;
    if *first != b'z' {
        return None;
    }
    skip_leb128(&mut reader)?;
    let (mut pointers, mut lsda) = (None, OMIT);
    for letter in letters {
        match letter {
            b'R' => pointers = Some(reader.byte().ok()?),
            b'L' => lsda = reader.byte().ok()?,
            b'P' => match reader.byte().ok()? & 0x0f {
                0x03 | 0x0b => reader.skip(4),
                0x00 | 0x04 | 0x0c => reader.skip(8),
                _ => return None,
            },
            b'S' | b'B' => {}
            _ => return None,
        }
    }
    (pointers == Some(PCREL_SDATA4) && matches!(lsda, OMIT | PCREL_SDATA4))
        .then_some(lsda == PCREL_SDATA4)
}

fn skip_leb128(reader: &mut Reader<'_>) -> Option<()> {
    while reader.byte().ok()? & 0x80 != 0 {}
    Some(())
}

/// The binary search table, as GNU ld, gold, lld and mold write it: sorted by function.
fn search_table(state: &mut State, address: u32, out: &mut [u8]) -> Option<()> {
    if out.len() != 12 + 8 * state.functions.len() {
        return None;
    }
    out[..4].copy_from_slice(&[1, PCREL_SDATA4, 0x03, 0x3b]);
    put(out, 4, state.address.wrapping_sub(address.wrapping_add(4)));
    put(out, 8, state.functions.len() as u32);
    // In order already, nearly: each linker keeps the order of its input files.
    state.functions.sort_by_key(|(function, _)| *function);
    for (entry, (function, record)) in out[12..].chunks_exact_mut(8).zip(&state.functions) {
        put(entry, 0, function.wrapping_sub(address));
        put(entry, 4, record.wrapping_sub(address));
    }
    Some(())
}

/// Takes the sections apart.
#[cfg(feature = "pack")]
#[derive(Debug, Default)]
pub(super) struct Encoder {
    kinds: Vec<u8>,
    programs: Vec<u8>,
    sequences: [Vec<u32>; SEQUENCES],
    state: State,
}

#[cfg(feature = "pack")]
impl Encoder {
    pub(super) fn push(&mut self, blob: u32, address: u32, section: &[u8]) {
        self.state.enter(blob, address);
        let mut at = 0;
        while at < section.len() {
            let end = get(section, at)
                .and_then(|length| (at + LENGTH).checked_add(length as usize))
                .filter(|end| *end <= section.len());
            let Some(end) = end else {
                self.kinds.push(REST);
                self.programs.extend_from_slice(&section[at..]);
                break;
            };
            let body = at + LENGTH;
            self.sequences[LENGTHS].push((end - body) as u32);
            let here = address.wrapping_add(body as u32);
            if let Some(has_lsda) = read_cie(&section[body..end]) {
                self.kinds.push(CIE);
                self.programs.extend_from_slice(&section[body..end]);
                self.state.cies.push(Cie {
                    address: here.wrapping_sub(4),
                    has_lsda,
                });
            } else if self.record(&section[body..end], here).is_none() {
                self.kinds.push(OPAQUE);
                self.programs.extend_from_slice(&section[body..end]);
            }
            at = end;
        }
        self.state.end = address.wrapping_add(section.len() as u32);
    }

    /// Takes one record apart (behind its length), if it is as expected.
    fn record(&mut self, body: &[u8], here: u32) -> Option<()> {
        let cie = here.wrapping_sub(get(body, 0)?);
        let back = self
            .state
            .cies
            .iter()
            .rev()
            .position(|c| c.address == cie)?;
        let cie = *self.state.cies.iter().nth_back(back)?;
        let fixed = fixed_size(&cie);
        if body.len() < fixed || usize::from(body[12]) != fixed - 13 {
            return None;
        }
        let begin = get(body, 4)?.wrapping_add(here.wrapping_add(4));
        let range = get(body, 8)?;
        if cie.has_lsda {
            let delta = match get(body, 13)? {
                0 => 0,
                value => {
                    let lsda = value.wrapping_add(here.wrapping_add(13));
                    let delta = lsda.wrapping_sub(self.state.last_lsda);
                    if delta == 0 {
                        return None;
                    }
                    self.state.last_lsda = lsda;
                    delta
                }
            };
            self.sequences[LSDAS].push(delta);
        }
        match back {
            0 => self.kinds.push(FDE),
            back => {
                self.kinds.push(FDE_OLDER);
                self.sequences[OLDER].push(back as u32);
            }
        }
        self.sequences[BEGINS].push(begin.wrapping_sub(predicted(self.state.last_end)));
        self.sequences[RANGES].push(range);
        self.programs.extend_from_slice(&body[fixed..]);
        self.state.functions.push((begin, here.wrapping_sub(4)));
        self.state.last_end = begin.wrapping_add(range);
        Some(())
    }

    /// Whether this search table follows from the records so far.
    pub(super) fn derives(&mut self, address: u32, section: &[u8]) -> bool {
        let mut made = alloc::vec![0; section.len()];
        search_table(&mut self.state, address, &mut made).is_some() && made == section
    }

    /// Dictionary, kinds, programs, then tokens and misses of each sequence.
    pub(super) fn finish(self) -> Vec<Vec<u8>> {
        let mut dictionary = Vec::new();
        let sequences = self
            .sequences
            .map(|values| super::values::encode(&values, &mut dictionary));
        let mut out = alloc::vec![dictionary, self.kinds, self.programs];
        out.extend(
            sequences
                .into_iter()
                .flat_map(|(tokens, misses)| [tokens, misses]),
        );
        out
    }
}

#[cfg(feature = "pack")]
fn get(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|bytes| u32::from_le_bytes(*bytes))
}
