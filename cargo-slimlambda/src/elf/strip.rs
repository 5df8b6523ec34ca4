//! An [`Image`]'s bytes → the same without what the loader and the unwinder do not use.
//!
//! What the program headers cover stays byte for byte; only file offsets change. Sections are then
//! described anew: those that are loaded keep their headers and their indexes (dynamic symbols name
//! sections by index), symbols and debugging data go, and what no tool chain is known to write stays,
//! because the program itself may read it: cargo-auditable's `.dep-v0`, PyInstaller's `pydata`.
//! The result is read again and compared with the original; where the two are not proven to load
//! the same, or where the file is of a kind that is known to break, the original is to be shipped.

use object::LittleEndian as LE;
use object::elf;
use object::pod;

use super::image::{FileHeader, FileType, Image, ProgramHeader, Section, SectionHeader, Segment};
use super::image::{at, slice};

mod proof;

/// What became of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stripped {
    /// New bytes, fewer than before and proven to load the same.
    Smaller(Vec<u8>),
    /// The original is to be used.
    Unchanged(Reason),
}

/// Why a file is left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It has neither symbols nor debugging data.
    AlreadyStripped,
    /// Stripping might break it. The text completes "not stripped: ", for a warning.
    Dangerous(String),
}

/// Non-loaded sections that compilers, linkers and debuggers write for each other, by the beginnings
/// of their names. Found by listing every such section of this project's test libraries and of a
/// Debian system; others stay.
const TOOLS_ONLY: &[&str] = &[
    ".annobin",
    ".BTF",
    ".comment",
    ".ctf",
    ".debug",
    ".gdb_index",
    ".gnu.build.attributes",
    ".gnu.lto_",
    ".gnu.warning.",
    ".gnu_debug",
    ".llvm",
    ".note.GNU-stack",
    ".note.bolt_info",
    ".note.gnu.gold-version",
    ".note.stapsdt",
    ".rustc",
    ".stab",
    ".SUNW",
    ".zdebug",
];

/// Linux before 5.18 (Lambda's included) finds a program's program headers by their distance from
/// its first `PT_LOAD` segment in the file (its change "binfmt_elf: Fix AT_PHDR for unusual ELF files").
const HEADERS_PINNED: &str = "its program headers lie behind what would go, and must not be moved";

/// Takes out symbols and debugging data. Pure: the same bytes in, the same bytes out.
pub fn strip(image: &Image<'_>) -> Stripped {
    match try_strip(image) {
        Ok(bytes) => Stripped::Smaller(bytes),
        Err(reason) => Stripped::Unchanged(reason),
    }
}

fn dangerous(why: impl Into<String>) -> Reason {
    Reason::Dangerous(why.into())
}

fn try_strip(image: &Image<'_>) -> Result<Vec<u8>, Reason> {
    if image.file_type == FileType::Other {
        return Err(dangerous("it is a relocatable object or a core file"));
    }
    if packed(image) {
        return Err(dangerous("it is packed with UPX"));
    }
    if image.sections.len() < 2 {
        return Err(dangerous("it has no sections to tell its contents apart"));
    }
    if !image.sections.iter().any(is_symbols) {
        return Err(Reason::AlreadyStripped);
    }
    check_loadable(image)?;
    check_accounted(image)?;
    let blocks = blocks(image);
    let bytes = write(image, &blocks)?;
    proof::prove(image, &bytes)
        .map_err(|what| dangerous(format!("the stripped file would not load the same: {what}")))?;
    if bytes.len() >= image.bytes.len() {
        return Err(dangerous(HEADERS_PINNED));
    }
    Ok(bytes)
}

/// UPX writes its magic number right behind the program headers, 4 bytes in.
fn packed(image: &Image<'_>) -> bool {
    let (start, size) = program_headers(image);
    slice(image.bytes, start + size, 64)
        .is_some_and(|bytes| bytes.windows(4).any(|window| window == b"UPX!"))
}

fn is_loaded(section: &Section<'_>) -> bool {
    section.flags & elf::SHF_ALLOC.0 != 0 && section.kind != elf::SHT_NULL.0
}

/// Whether a section goes.
fn is_for_tools(section: &Section<'_>) -> bool {
    let by_kind = matches!(
        elf::SectionType(section.kind),
        elf::SHT_SYMTAB
            | elf::SHT_SYMTAB_SHNDX
            | elf::SHT_STRTAB
            | elf::SHT_REL
            | elf::SHT_RELA
            | elf::SHT_GROUP
    );
    let by_name = || TOOLS_ONLY.iter().any(|name| section.name.starts_with(name));
    !is_loaded(section) && (by_kind || by_name())
}

/// Whether a section makes a file one that is not stripped yet.
fn is_symbols(section: &Section<'_>) -> bool {
    let debug = section.name.starts_with(".debug") || section.name.starts_with(".zdebug");
    is_for_tools(section) && (debug || section.kind == elf::SHT_SYMTAB.0)
}

/// Offset and size of the program header table.
fn program_headers(image: &Image<'_>) -> (u64, u64) {
    let offset = file_header(image).e_phoff.get(LE);
    let size = image.segments.len() * size_of::<ProgramHeader>();
    (offset, size as u64)
}

fn file_header<'a>(image: &Image<'a>) -> &'a FileHeader {
    at(image.bytes, 0).expect("BUG: an image was parsed without a file header")
}

fn loads<'i>(image: &'i Image<'_>) -> impl Iterator<Item = &'i Segment> {
    let loads = |segment: &&Segment| segment.kind == elf::PT_LOAD.0;
    image.segments.iter().filter(loads)
}

/// Refuses what the loader would refuse, and what it would load in ways that moving might change.
fn check_loadable(image: &Image<'_>) -> Result<(), Reason> {
    let mut ranges = Vec::new();
    for load in loads(image) {
        let align = load.align.max(1);
        if !align.is_power_of_two() || load.address % align != load.offset % align {
            let why = "a segment's address and file offset disagree about its alignment";
            return Err(dangerous(why));
        }
        if load.offset > image.bytes.len() as u64 {
            return Err(dangerous("a segment without bytes lies behind its end"));
        }
        ranges.push((load.offset, load.offset + load.file_size));
    }
    ranges.sort_unstable();
    if ranges.is_empty() {
        return Err(dangerous("nothing of it is loaded"));
    }
    if ranges.windows(2).any(|pair| pair[0].1 > pair[1].0) {
        return Err(dangerous("its loaded segments overlap in the file"));
    }
    Ok(())
}

/// Refuses files with bytes that no header speaks of: self-extracting programs keep their payload
/// behind the last section, and find it by its distance from the end.
fn check_accounted(image: &Image<'_>) -> Result<(), Reason> {
    let header = file_header(image);
    let table_size = (image.sections.len() * size_of::<SectionHeader>()) as u64;
    let (program_headers, program_headers_size) = program_headers(image);
    let mut ranges = vec![
        (0, size_of::<FileHeader>() as u64),
        (program_headers, program_headers_size),
        (header.e_shoff.get(LE), table_size),
    ];
    let segments = image.segments.iter();
    ranges.extend(segments.map(|segment| (segment.offset, segment.file_size)));
    for section in &image.sections {
        if matches!(
            elf::SectionType(section.kind),
            elf::SHT_NULL | elf::SHT_NOBITS
        ) {
            continue;
        }
        if image.section_bytes(section).is_none() {
            let name = section.name;
            return Err(dangerous(format!("section `{name}` goes past its end")));
        }
        ranges.push((section.offset, section.size));
    }
    ranges.retain(|range| range.1 > 0);
    ranges.sort_unstable();
    // Zeros are padding.
    let is_payload = |bytes: &[u8]| bytes.iter().any(|&byte| byte != 0);
    let mut end = 0;
    for (start, size) in ranges {
        if let Some(gap) = start.checked_sub(end)
            && slice(image.bytes, end, gap).is_some_and(is_payload)
        {
            let why = format!("{gap} bytes at offset {end} belong to no section or segment");
            return Err(dangerous(why));
        }
        end = end.max(start + size);
    }
    let overlay = image.bytes.len() as u64 - end;
    if slice(image.bytes, end, overlay).is_some_and(is_payload) {
        return Err(dangerous(format!(
            "{overlay} bytes follow its last section, as in a self-extracting program"
        )));
    }
    Ok(())
}

/// A range of the file that stays, and where it goes.
struct Block {
    start: u64,
    end: u64,
    moved_to: u64,
}

/// What stays, laid out again: a block moves down over what goes in front of it by whole multiples
/// of the segments' alignment, so that offset ≡ address stays true.
fn blocks(image: &Image<'_>) -> Vec<Block> {
    let (headers, headers_size) = program_headers(image);
    let mut ranges = vec![(0, size_of::<FileHeader>() as u64)];
    ranges.push((headers, headers + headers_size));
    for segment in &image.segments {
        // A PT_LOAD without bytes still has the page of its offset mapped.
        if segment.file_size > 0 || segment.kind == elf::PT_LOAD.0 {
            ranges.push((segment.offset, segment.offset + segment.file_size));
        }
    }
    ranges.sort_unstable();
    let mut blocks: Vec<Block> = Vec::new();
    for (start, end) in ranges {
        match blocks.last_mut() {
            Some(last) if start <= last.end => last.end = last.end.max(end),
            _ => blocks.push(Block {
                start,
                end,
                moved_to: start,
            }),
        }
    }
    let program =
        image.interpreter.is_some() || image.pie || image.file_type == FileType::Executable;
    let pinned = |block: &Block| {
        let first = loads(image).next().map(|load| load.offset);
        let holds = |offset: u64| block.start <= offset && offset < block.end;
        program && (holds(headers) || first.is_some_and(holds))
    };
    let align = loads(image).map(|load| load.align).fold(1, u64::max);
    let mut end = 0;
    for block in &mut blocks {
        if !pinned(block) {
            block.moved_to -= (block.start - end) / align * align;
        }
        end = block.moved_to + (block.end - block.start);
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

/// The new file: blocks, sections that are kept though not loaded, names, section headers.
fn write(image: &Image<'_>, blocks: &[Block]) -> Result<Vec<u8>, Reason> {
    let mut out = Vec::with_capacity(image.bytes.len());
    for block in blocks {
        out.resize(block.moved_to as usize, 0);
        out.extend(slice(image.bytes, block.start, block.end - block.start).unwrap_or_default());
    }
    let (table, count) = write_sections(image, blocks, &mut out)?;
    let mut header = *file_header(image);
    let (start, size) = program_headers(image);
    let new_start = moved(blocks, start);
    header.e_phoff.set(LE, new_start);
    header.e_shoff.set(LE, table);
    header.e_shnum.set(LE, count);
    header.e_shstrndx.set(LE, elf::SymbolSection(count - 1));
    patch(&mut out, 0, &header);
    for distance in (0..size).step_by(size_of::<ProgramHeader>()) {
        let old: Option<&ProgramHeader> = at(image.bytes, start + distance);
        let mut header = *old.expect("BUG: a segment was parsed without its header");
        let offset = header.p_offset.get(LE);
        header.p_offset.set(LE, moved(blocks, offset));
        patch(&mut out, new_start + distance, &header);
    }
    Ok(out)
}

fn patch<T: pod::Pod>(out: &mut [u8], offset: u64, value: &T) {
    let offset = offset as usize;
    out[offset..offset + size_of::<T>()].copy_from_slice(pod::bytes_of(value));
}

/// Appends what is kept though not loaded, the names and the section header table. Returns the
/// table's offset and its count of headers, of which the names' is the last.
fn write_sections(
    image: &Image<'_>,
    blocks: &[Block],
    out: &mut Vec<u8>,
) -> Result<(u64, u16), Reason> {
    let slots = slots(image);
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
    let mut names = vec![0];
    let mut headers = Vec::with_capacity(usize::from(count));
    for &slot in &slots {
        let Some(mut section) = slot.map(|old| image.sections[old]) else {
            headers.push(section_header(&PLACEHOLDER, 0));
            continue;
        };
        if section.kind != elf::SHT_NULL.0 {
            section.link = index(section.link);
        }
        let has_index = section.flags & elf::SHF_INFO_LINK.0 != 0
            || matches!(elf::SectionType(section.kind), elf::SHT_REL | elf::SHT_RELA);
        if has_index {
            section.info = index(section.info);
        }
        if is_loaded(&section) {
            let inside = |block: &Block| {
                block.start <= section.offset && section.offset + section.size <= block.end
            };
            if image
                .section_bytes(&section)
                .is_some_and(|bytes| !bytes.is_empty())
                && !blocks.iter().any(inside)
            {
                let name = section.name;
                let why = format!("section `{name}` is to be loaded, but no segment loads it");
                return Err(dangerous(why));
            }
            section.offset = moved(blocks, section.offset);
        } else if let Some(bytes) = image.section_bytes(&section) {
            // Nothing maps these; an alignment past a page has no reader.
            let align = section.align.clamp(1, 4096).next_power_of_two();
            out.resize(out.len().next_multiple_of(align as usize), 0);
            section.offset = out.len() as u64;
            out.extend(bytes);
        }
        headers.push(section_header(&section, add_name(&mut names, section.name)));
    }
    // Section 0 stands for counts that do not fit elsewhere: now only that of the segments may not.
    headers[0].sh_info.set(LE, image.sections[0].info);
    let name = add_name(&mut names, ".shstrtab");
    let section = Section {
        name: ".shstrtab",
        kind: elf::SHT_STRTAB.0,
        offset: out.len() as u64,
        size: names.len() as u64,
        align: 1,
        ..PLACEHOLDER
    };
    headers.push(section_header(&section, name));
    out.extend(names);
    out.resize(out.len().next_multiple_of(8), 0);
    let table = out.len() as u64;
    for header in &headers {
        out.extend(pod::bytes_of(header));
    }
    Ok((table, count))
}

/// Which old section each new index stands for. Up to the last loaded section the indexes are the
/// old ones, with placeholders for what went, since `st_shndx` of the dynamic symbols is loaded data.
fn slots(image: &Image<'_>) -> Vec<Option<usize>> {
    let last_loaded = image.sections.iter().rposition(is_loaded).unwrap_or(0);
    let mut slots = vec![None];
    for (index, section) in image.sections.iter().enumerate().skip(1) {
        if !is_for_tools(section) && section.kind != elf::SHT_NULL.0 {
            slots.push(Some(index));
        } else if index < last_loaded {
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
    use object::{U32, U64};
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
