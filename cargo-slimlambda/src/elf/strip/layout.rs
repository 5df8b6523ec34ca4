//! The stripped file's layout: which bytes stay, where they go, and the sections described anew.

use object::LittleEndian as LE;
use object::elf;
use object::pod;
use object::{U32, U64};

use super::super::image::{FileHeader, FileType, Image, ProgramHeader, Section, SectionHeader};
use super::super::image::{at, slice};
use super::{Reason, dangerous, is_for_tools, is_loaded, last_named, loads};

/// The smallest page of both architectures, in bytes; the kernel maps whole pages.
pub(super) const PAGE: u64 = 4096;

/// A range of the file that stays, and where it goes.
struct Block {
    start: u64,
    end: u64,
    moved_to: u64,
}

impl Block {
    fn moved_end(&self) -> u64 {
        self.moved_to + (self.end - self.start)
    }
}

/// What stays, laid out again: a block moves down over what goes in front of it by whole multiples
/// of its segments' alignment, so that offset ≡ address stays true. In a program, the first segment
/// and the program headers stay where they are, because Linux before 5.18 tells a program where its
/// headers are by their distance in the file ("binfmt_elf: Fix AT_PHDR for unusual ELF files").
fn blocks(image: &Image<'_>) -> Vec<Block> {
    let (headers, headers_size) = image.program_headers();
    // Start, end, alignment.
    let mut ranges = vec![(0, size_of::<FileHeader>() as u64, PAGE)];
    ranges.push((headers, headers + headers_size, PAGE));
    for segment in &image.segments {
        // A PT_LOAD without bytes still has the page of its offset mapped.
        let is_load = segment.kind == elf::PT_LOAD.0;
        if segment.file_size > 0 || is_load {
            let align = if is_load {
                segment.align.max(PAGE)
            } else {
                PAGE
            };
            ranges.push((segment.offset, segment.offset + segment.file_size, align));
        }
    }
    ranges.sort_unstable();
    let mut merged: Vec<(u64, u64, u64)> = Vec::new();
    for (start, end, align) in ranges {
        match merged.last_mut() {
            Some(last) if start <= last.1 => {
                last.1 = last.1.max(end);
                last.2 = last.2.max(align);
            }
            _ => merged.push((start, end, align)),
        }
    }
    let program =
        image.interpreter.is_some() || image.pie || image.file_type == FileType::Executable;
    let first_load = loads(image).next().map_or(0, |load| load.offset);
    let mut blocks: Vec<Block> = Vec::with_capacity(merged.len());
    for (start, end, align) in merged {
        let holds = |offset: u64| start <= offset && offset < end;
        let pinned = program && (holds(headers) || holds(first_load));
        let gap = start - blocks.last().map_or(0, Block::moved_end);
        let moved_to = if pinned {
            start
        } else {
            start - gap / align * align
        };
        blocks.push(Block {
            start,
            end,
            moved_to,
        });
    }
    blocks
}

/// Where an offset of the original has gone.
fn moved(blocks: &[Block], offset: u64) -> u64 {
    // The first block starts at 0, with the file header.
    let after = blocks.partition_point(|block| block.start <= offset);
    let block = &blocks[after - 1];
    offset - block.start + block.moved_to
}

/// The new file: blocks; and behind them what is to be said about sections. Where sections went from
/// between two blocks, as in files that patchelf has appended to, that stands in the gap if it fits.
pub(super) fn write(image: &Image<'_>) -> Result<Vec<u8>, Reason> {
    let blocks = &blocks(image);
    let slots = slots(image);
    let end = blocks.last().map_or(0, Block::moved_end);
    let mut placed = None;
    for pair in blocks.windows(2) {
        let (start, gap) = (pair[0].moved_end(), pair[1].moved_to - pair[0].moved_end());
        if gap < (slots.len() * size_of::<SectionHeader>()) as u64 || !had_sections(image, pair) {
            continue;
        }
        let trailer = trailer(image, blocks, &slots, start)?;
        if trailer.bytes.len() as u64 <= gap {
            placed = Some((start, trailer));
            break;
        }
    }
    let (trailer_offset, trailer) = match placed {
        Some(placed) => placed,
        None => (end, trailer(image, blocks, &slots, end)?),
    };
    let size = end.max(trailer_offset + trailer.bytes.len() as u64);
    let mut out = vec![0; size as usize];
    for block in blocks {
        let bytes = slice(image.bytes, block.start, block.end - block.start);
        put(&mut out, block.moved_to, bytes.unwrap_or_default());
    }
    put(&mut out, trailer_offset, &trailer.bytes);

    let mut header = *image.file_header();
    let (start, size) = image.program_headers();
    let new_start = moved(blocks, start);
    header.e_phoff.set(LE, new_start);
    header.e_shoff.set(LE, trailer.table);
    header.e_shnum.set(LE, trailer.count);
    header
        .e_shstrndx
        .set(LE, elf::SymbolSection(trailer.count - 1));
    put(&mut out, 0, pod::bytes_of(&header));
    for distance in (0..size).step_by(size_of::<ProgramHeader>()) {
        let old: Option<&ProgramHeader> = at(image.bytes, start + distance);
        let mut header = *old.expect("BUG: a segment was parsed without its header");
        let offset = header.p_offset.get(LE);
        header.p_offset.set(LE, moved(blocks, offset));
        put(&mut out, new_start + distance, pod::bytes_of(&header));
    }
    Ok(out)
}

/// Whether sections lay between two blocks in the original.
fn had_sections(image: &Image<'_>, pair: &[Block]) -> bool {
    let gap = pair[0].end..pair[1].start;
    let inside = |section: &Section<'_>| section.size > 0 && gap.contains(&section.offset);
    image.sections.iter().any(inside)
}

fn put(out: &mut [u8], offset: u64, bytes: &[u8]) {
    let offset = offset as usize;
    out[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// What is not loaded: sections that are kept all the same, names, the section header table.
struct Trailer {
    bytes: Vec<u8>,
    /// The table's offset in the file.
    table: u64,
    /// Its headers, of which that of the names is the last.
    count: u16,
}

fn trailer(
    image: &Image<'_>,
    blocks: &[Block],
    slots: &[Option<usize>],
    offset: u64,
) -> Result<Trailer, Reason> {
    let count = u16::try_from(slots.len() + 1)
        .ok()
        .filter(|&count| count < elf::SHN_LORESERVE)
        .ok_or(dangerous("it has too many sections"))?;
    let mut indexes = vec![0; image.sections.len()];
    for (new, old) in slots.iter().enumerate() {
        if let Some(old) = *old {
            indexes[old] = new as u32;
        }
    }
    let index = |old: u32| indexes.get(old as usize).copied().unwrap_or(0);
    let mut bytes = Vec::new();
    // Aligned in the file, not in these bytes.
    let pad = |bytes: &mut Vec<u8>, align: u64| {
        let end = offset + bytes.len() as u64;
        bytes.resize((end.next_multiple_of(align) - offset) as usize, 0);
        end.next_multiple_of(align)
    };
    let mut names = vec![0];
    let mut headers = Vec::with_capacity(usize::from(count));
    for &slot in slots {
        let Some(mut section) = slot.map(|old| image.sections[old]) else {
            headers.push(section_header(&PLACEHOLDER, 0));
            continue;
        };
        section.link = index(section.link);
        let kind = elf::SectionType(section.kind);
        if section.flags & elf::SHF_INFO_LINK.0 != 0 || matches!(kind, elf::SHT_REL | elf::SHT_RELA)
        {
            section.info = index(section.info);
        }
        let old = image.section_bytes(&section).unwrap_or_default();
        if is_loaded(&section) {
            check_covered(&section, old, blocks)?;
            section.offset = moved(blocks, section.offset);
        } else {
            // Nothing maps these; an alignment past a page has no reader.
            section.offset = pad(&mut bytes, section.align.clamp(1, PAGE).next_power_of_two());
            bytes.extend(old);
        }
        headers.push(section_header(&section, add_name(&mut names, section.name)));
    }
    // Section 0 stands for counts that do not fit elsewhere: now only that of the segments may not.
    headers[0].sh_info.set(LE, image.sections[0].info);
    let name = add_name(&mut names, ".shstrtab");
    let section = Section {
        kind: elf::SHT_STRTAB.0,
        offset: pad(&mut bytes, 1),
        size: names.len() as u64,
        align: 1,
        ..PLACEHOLDER
    };
    headers.push(section_header(&section, name));
    bytes.extend(names);
    let table = pad(&mut bytes, 8);
    for header in &headers {
        bytes.extend(pod::bytes_of(header));
    }
    Ok(Trailer {
        bytes,
        table,
        count,
    })
}

/// A section that is to be loaded must be part of what moves as one.
fn check_covered(section: &Section<'_>, bytes: &[u8], blocks: &[Block]) -> Result<(), Reason> {
    let end = section.offset.saturating_add(bytes.len() as u64);
    let covers = |block: &Block| block.start <= section.offset && end <= block.end;
    if bytes.is_empty() || blocks.iter().any(covers) {
        return Ok(());
    }
    let name = section.name;
    let why = format!("section `{name}` is to be loaded, but no segment loads it");
    Err(dangerous(why))
}

/// Which old section each new index stands for. Up to the last section that dynamic symbols name, the
/// indexes are the old ones, with placeholders for what went: `st_shndx` is loaded data.
fn slots(image: &Image<'_>) -> Vec<Option<usize>> {
    let last_named = last_named(image);
    let mut slots = vec![None];
    for (index, section) in image.sections.iter().enumerate().skip(1) {
        if !is_for_tools(section) && section.kind != elf::SHT_NULL.0 {
            slots.push(Some(index));
        } else if index < last_named {
            slots.push(None);
        }
    }
    slots
}

const PLACEHOLDER: Section<'_> = Section {
    name: "",
    kind: elf::SHT_NULL.0,
    flags: 0,
    address: 0,
    offset: 0,
    size: 0,
    link: 0,
    info: 0,
    align: 0,
    entry_size: 0,
};

fn section_header(section: &Section<'_>, name: u32) -> SectionHeader {
    SectionHeader {
        sh_name: U32::new(LE, name),
        sh_type: U32::new(LE, elf::SectionType(section.kind)),
        sh_flags: U64::new(LE, elf::SectionFlags(section.flags)),
        sh_addr: U64::new(LE, section.address),
        sh_offset: U64::new(LE, section.offset),
        sh_size: U64::new(LE, section.size),
        sh_link: U32::new(LE, section.link),
        sh_info: U32::new(LE, section.info),
        sh_addralign: U64::new(LE, section.align),
        sh_entsize: U64::new(LE, section.entry_size),
    }
}

fn add_name(names: &mut Vec<u8>, name: &str) -> u32 {
    let offset = names.len() as u32;
    names.extend(name.as_bytes());
    names.push(0);
    offset
}
