//! A file's bytes → parts, by what the bytes are: which filter may help, and what they go well together with.
//!
//! Sections say it for ELF files; whatever is not a well-formed ELF file, and whatever no section covers, is judged by its
//! bytes. Nothing here has to be right: a filter that does not help is dropped when the frame is packed.

use std::ops::Range;

use object::elf;
use runtime_unpack::filter::{self, Filter, planes};

use crate::elf::image::{Image, Machine, Section};

/// What goes well together: parts of one class share frames. In the order in which they are laid out, what takes
/// longest to decode first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Machine code.
    Code,
    /// Tables of ELF files, and names.
    Tables,
    /// Anything binary.
    Data,
    /// Text.
    Text,
    /// Floating-point numbers.
    Floats,
    /// Zeros, which are in no frame.
    Hole,
}

/// A run of a file's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Where it is in the file.
    pub range: Range<usize>,
    /// What it goes with.
    pub class: Class,
    /// What to try on it.
    pub filter: Filter,
    /// The filter's parameter.
    pub param: u32,
    /// Parts of a file that have the same one of these have to be in one frame.
    pub unit: Option<Unit>,
}

/// Parts that need each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Records of exceptions, and the search table that follows from them.
    Exceptions,
}

/// The plain streams.
pub const DATA: u32 = 0;
const TEXT: u32 = 1;
const NAMES: u32 = 2;
const CONSTANTS: u32 = 3;
const EXCEPTIONS: u32 = 4;
const DEBUG: u32 = 5;

/// Least bytes of a section that is worth a part of its own.
const LEAST: usize = 64;
/// Least bytes of zeros that are left out.
const LEAST_HOLE: usize = 1 << 14;
/// What a file system leaves out.
const BLOCK: usize = 1 << 12;
/// Most bytes of a plain part: frames are cut between parts.
const MOST: usize = 1 << 20;

/// Most bytes of `.eh_frame`: all of a file's is in one frame. (TensorFlow 1.12 has 6.7 MiB.)
const MOST_EXCEPTIONS: usize = 32 << 20;

/// The parts of a file, from its first byte to its last.
pub fn parts(bytes: &[u8]) -> Vec<Part> {
    let whole = match Image::parse(bytes) {
        Ok(image) => elf_parts(&image),
        Err(_) => other_parts(bytes),
    };
    let mut out = Vec::with_capacity(whole.len());
    for part in whole {
        match part.filter {
            Filter::Plain => plain(bytes, part, &mut out),
            _ => out.push(part),
        }
    }
    out
}

fn part(range: Range<usize>, class: Class, filter: Filter, param: u32) -> Part {
    Part {
        range,
        class,
        filter,
        param,
        unit: None,
    }
}

/// Cuts a plain part at holes, and into pieces that frames can be made of.
fn plain(bytes: &[u8], whole: Part, out: &mut Vec<Part>) {
    let mut push = |range: Range<usize>| {
        for at in range.clone().step_by(MOST) {
            out.push(Part {
                range: at..range.end.min(at + MOST),
                ..whole.clone()
            });
        }
    };
    let mut rest = whole.range.start;
    let mut holes = Vec::new();
    let mut at = rest.next_multiple_of(BLOCK);
    while at + BLOCK <= whole.range.end {
        let start = at;
        while at + BLOCK <= whole.range.end && bytes[at..at + BLOCK].iter().all(|b| *b == 0) {
            at += BLOCK;
        }
        if at - start >= LEAST_HOLE {
            push(rest..start);
            holes.push(start..at);
            rest = at;
        }
        at += BLOCK;
    }
    push(rest..whole.range.end);
    for hole in holes {
        // A hole has 32 bits for its size, as any piece.
        for at in hole.clone().step_by(1 << 30) {
            out.push(part(
                at..hole.end.min(at + (1 << 30)),
                Class::Hole,
                Filter::Hole,
                0,
            ));
        }
    }
    out.sort_by_key(|part| part.range.start);
}

/// Sections, and what is between them.
fn elf_parts(image: &Image<'_>) -> Vec<Part> {
    let mut sections: Vec<(&Section<'_>, Range<usize>)> = image
        .sections
        .iter()
        .filter_map(|section| {
            let bytes = image.section_bytes(section)?;
            let start = usize::try_from(section.offset).ok()?;
            (bytes.len() >= LEAST).then_some((section, start..start + bytes.len()))
        })
        .collect();
    sections.sort_by_key(|(_, range)| range.start);
    let mut out: Vec<Part> = Vec::new();
    let mut at = 0;
    let data = |range: Range<usize>, out: &mut Vec<Part>| match out.last_mut() {
        // Headers, gaps and small sections make one part.
        Some(last)
            if last.class == Class::Data && last.param == DATA && last.range.end == range.start =>
        {
            last.range.end = range.end;
        }
        _ if range.is_empty() => {}
        _ => out.push(part(range, Class::Data, Filter::Plain, DATA)),
    };
    for (section, range) in sections {
        // Overlapping sections are nothing that a linker makes.
        if range.start < at {
            continue;
        }
        data(at..range.start, &mut out);
        at = range.end;
        match section_parts(image, section, range.clone()) {
            Some(parts) => out.extend(parts),
            None => data(range, &mut out),
        }
    }
    data(at..image.bytes.len(), &mut out);
    out
}

/// What a section is made of; `None` for data of no particular kind.
fn section_parts(
    image: &Image<'_>,
    section: &Section<'_>,
    range: Range<usize>,
) -> Option<Vec<Part>> {
    use Class::{Code, Data, Tables};
    let name = section.name;
    let address = section.address as u32;
    let table = |stride, differences| {
        let layout = planes::Layout {
            stride,
            differences,
            floats: false,
        };
        Some(cut(
            range.clone(),
            Tables,
            Filter::Planes,
            layout.param(),
            stride,
        ))
    };
    let plain = |class, stream| Some(vec![part(range.clone(), class, Filter::Plain, stream)]);
    if section.kind == elf::SHT_PROGBITS.0 && section.flags & elf::SHF_EXECINSTR.0 != 0 {
        let (filter, stride) = match image.machine {
            Machine::X86_64 => (Filter::X86, 1),
            Machine::Aarch64 => (Filter::Arm64, 4),
        };
        let start = range.start;
        let mut parts = cut(range, Code, filter, 0, stride);
        for part in &mut parts {
            part.param = address.wrapping_add((part.range.start - start) as u32);
        }
        return Some(parts);
    }
    match (elf::SectionType(section.kind), name) {
        (elf::SHT_RELA, _) => table(24, 0b01_0001),
        (elf::SHT_DYNSYM | elf::SHT_SYMTAB, _) => table(24, 0b00_0101),
        (elf::SHT_GNU_VERSYM, _) => table(2, 0),
        (elf::SHT_STRTAB, _) => plain(Tables, NAMES),
        (_, ".eh_frame") => eh_frame(image, range, address),
        (_, ".eh_frame_hdr") => search_table(image, range, address),
        (_, ".gcc_except_table") => plain(Tables, EXCEPTIONS),
        (_, ".data.rel.ro" | ".got" | ".got.plt" | ".init_array" | ".fini_array") => table(8, 0b01),
        (_, ".rodata") => plain(Data, CONSTANTS),
        _ if name.starts_with(".debug_") => plain(Data, DEBUG),
        _ => None,
    }
}

/// Equal parts, as large as the filter takes them, each of whole records.
fn cut(range: Range<usize>, class: Class, filter: Filter, param: u32, stride: usize) -> Vec<Part> {
    let most = filter.max_piece() as usize / stride * stride;
    range
        .clone()
        .step_by(most)
        .map(|at| part(at..range.end.min(at + most), class, filter, param))
        .collect()
}

/// `.eh_frame` in parts, cut between records; the search table comes along where there is one.
fn eh_frame(image: &Image<'_>, range: Range<usize>, address: u32) -> Option<Vec<Part>> {
    let most = Filter::EhFrame.max_piece() as usize;
    let bytes = &image.bytes[range.clone()];
    if bytes.len() > MOST_EXCEPTIONS {
        return None;
    }
    let (mut start, mut at) = (0, 0);
    let mut parts: Vec<Part> = Vec::new();
    let mut push = |start: usize, end: usize| {
        let place = range.start + start..range.start + end;
        let address = address.wrapping_add(start as u32);
        let mut part = part(place, Class::Tables, Filter::EhFrame, address);
        part.unit = Some(Unit::Exceptions);
        parts.push(part);
    };
    while at < bytes.len() {
        let length = u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?);
        let end = at.checked_add(4)?.checked_add(length as usize)?;
        if end > bytes.len() || end - at > most {
            return None;
        }
        if end - start > most {
            push(start, at);
            start = at;
        }
        at = end;
    }
    push(start, at);
    Some(parts)
}

/// `.eh_frame_hdr`: nothing but its address, if it follows from `.eh_frame`.
fn search_table(image: &Image<'_>, range: Range<usize>, address: u32) -> Option<Vec<Part>> {
    let bytes = &image.bytes[range.clone()];
    let records = image.section(".eh_frame")?;
    let start = usize::try_from(records.offset).ok()?;
    let place = start..start + image.section_bytes(records)?.len();
    let parts = eh_frame(image, place, records.address as u32)?;
    let records = parts
        .iter()
        .map(|part| (part.param, &image.bytes[part.range.clone()]));
    let fits = bytes.len() <= Filter::EhFrameHdr.max_piece() as usize;
    if fits && filter::derives_eh_frame_hdr(records, address, bytes) {
        let mut part = part(range, Class::Tables, Filter::EhFrameHdr, address);
        part.unit = Some(Unit::Exceptions);
        return Some(vec![part]);
    }
    let layout = planes::Layout {
        stride: 8,
        differences: 0b11,
        floats: false,
    };
    // The header is twelve bytes long: half a record more.
    Some(cut(range, Class::Tables, Filter::Planes, layout.param(), 8))
}

/// A file that is no ELF file.
fn other_parts(bytes: &[u8]) -> Vec<Part> {
    let whole = 0..bytes.len();
    if bytes.is_empty() {
        return Vec::new();
    }
    let head = &bytes[..bytes.len().min(BLOCK)];
    if !head.contains(&0)
        && head.utf8_chunks().map(|c| c.invalid().len()).sum::<usize>() * 32 <= head.len()
    {
        return vec![part(whole, Class::Text, Filter::Plain, TEXT)];
    }
    let mut out: Vec<Part> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let window = &bytes[at..bytes.len().min(at + MOST)];
        let end = at + window.len();
        match floats(window) {
            Some((skip, layout)) => {
                let (start, stride) = (at + skip, layout.stride);
                let end = start + (end - start) / stride * stride;
                if skip > 0 {
                    out.push(part(at..start, Class::Data, Filter::Plain, DATA));
                }
                out.push(part(
                    start..end,
                    Class::Floats,
                    Filter::Planes,
                    layout.param(),
                ));
                at = end;
            }
            None => {
                out.push(part(at..end, Class::Data, Filter::Plain, DATA));
                at = end;
            }
        }
    }
    out
}

/// Bytes by which a window is judged.
const SAMPLE: usize = 1 << 16;

/// Whether a window looks like an array of floats, whatever file format is around it: where the first one begins, and how
/// they are laid out.
///
/// The byte with sign and exponent takes few values and the lowest ones take all alike, so the bytes at one of every two
/// or four places are much more predictable than the others.
fn floats(window: &[u8]) -> Option<(usize, planes::Layout)> {
    // From the middle: what is at the begin may be a header.
    let middle = window.len().saturating_sub(SAMPLE) / 2 & !3;
    let sample = &window[middle..window.len().min(middle + SAMPLE)];
    if sample.len() < SAMPLE {
        return None;
    }
    let whole = entropy(sample.iter());
    let best = [2usize, 4].into_iter().map(|stride| {
        let columns: Vec<f64> = (0..stride)
            .map(|n| entropy(sample.iter().skip(n).step_by(stride)))
            .collect();
        let exponent = (0..stride)
            .min_by(|a, b| columns[*a].total_cmp(&columns[*b]))
            .unwrap_or(0);
        let mean = columns.iter().sum::<f64>() / stride as f64;
        (mean, stride, (exponent + 1) % stride)
    });
    let (mean, stride, skip) = best.min_by(|a, b| a.0.total_cmp(&b.0))?;
    let layout = planes::Layout {
        stride,
        differences: 0,
        floats: true,
    };
    (mean < whole * MUCH_LESS).then_some((skip, layout))
}

/// Entropy of floats column by column, against that of their bytes: 0.85 for trained 32-bit weights, about 1 for other data.
const MUCH_LESS: f64 = 0.93;

/// Bits per byte, if bytes were independent.
fn entropy<'b>(bytes: impl Iterator<Item = &'b u8>) -> f64 {
    let mut counts = [0u32; 256];
    bytes.for_each(|byte| counts[usize::from(*byte)] += 1);
    let all: f64 = counts.iter().map(|n| f64::from(*n)).sum();
    let share = counts
        .iter()
        .filter(|n| **n > 0)
        .map(|n| f64::from(*n) / all);
    share.map(|p| -p * p.log2()).sum()
}
