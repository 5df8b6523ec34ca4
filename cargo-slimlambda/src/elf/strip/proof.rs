//! (Original, stripped bytes) → nothing, or what the loader would see differently.
//!
//! Reads the stripped file from its bytes alone and shares no decision with the code that wrote it.

use object::LittleEndian as LE;
use object::elf;

use super::super::image::{
    FileHeader, FileType, Image, ProgramHeader, Section, Segment, at, slice,
};
use super::{is_for_tools, last_named, loads};

/// Where the two fields of the file header lie that follow the layout, in bytes: `e_phoff` and
/// `e_shoff`, then `e_shnum` and `e_shstrndx` (gABI, ELF header).
const HEADER_OFFSETS: std::ops::Range<usize> = 32..48;
const HEADER_SECTIONS: std::ops::Range<usize> = 60..64;

/// Compares all that is loaded, or that says how to load.
pub(super) fn prove(old: &Image<'_>, bytes: &[u8]) -> Result<(), String> {
    let new = &Image::parse(bytes).map_err(|error| error.to_string())?;
    // Compared whole, but for the fields that say where in the file things are: these are checked
    // one by one.
    let (old_bytes, new_bytes) = (without_offsets(old), without_offsets(new));
    let header = size_of::<FileHeader>();
    if old_bytes[..header] != new_bytes[..header] {
        return Err("the file header differs".to_owned());
    }
    if headers(old).map(|range| &old_bytes[range]) != headers(new).map(|range| &new_bytes[range]) {
        return Err("a program header differs in more than its offset".to_owned());
    }
    for (index, (before, after)) in old.segments.iter().zip(&new.segments).enumerate() {
        let old_part = slice(&old_bytes, before.offset, before.file_size);
        let new_part = slice(&new_bytes, after.offset, after.file_size);
        if before.file_size > 0 && (old_part.is_none() || old_part != new_part) {
            return Err(format!("the bytes of segment {index} differ"));
        }
        if place(old, before) != place(new, after) {
            return Err(format!("segment {index} moved against the one around it"));
        }
    }
    check_mapping(old, new)?;
    check_dynamic(old, new)?;
    check_sections(old, new)
}

/// The file's bytes with zeros for all fields that depend on where in the file things are.
fn without_offsets(image: &Image<'_>) -> Vec<u8> {
    let mut bytes = image.bytes.to_vec();
    let table = headers(image).unwrap_or_default();
    for start in table.step_by(size_of::<ProgramHeader>()) {
        // `p_offset` (gABI, program header).
        bytes[start + 8..start + 16].fill(0);
    }
    bytes[HEADER_OFFSETS].fill(0);
    bytes[HEADER_SECTIONS].fill(0);
    bytes
}

/// The range of the program header table.
fn headers(image: &Image<'_>) -> Option<std::ops::Range<usize>> {
    let header: &FileHeader = at(image.bytes, 0)?;
    let start = usize::try_from(header.e_phoff.get(LE)).ok()?;
    let size = image.segments.len() * size_of::<ProgramHeader>();
    image.bytes.get(start..start + size)?;
    Some(start..start + size)
}

/// The address at which an offset of the file ends up, and in which `PT_LOAD`.
fn mapped(image: &Image<'_>, offset: u64, size: u64) -> Option<(usize, u64)> {
    loads(image).enumerate().find_map(|(index, load)| {
        let into = offset.checked_sub(load.offset)?;
        let inside = into.checked_add(size)? <= load.file_size;
        inside.then(|| (index, load.address.wrapping_add(into)))
    })
}

fn place(image: &Image<'_>, segment: &Segment) -> Option<(usize, u64)> {
    if segment.file_size == 0 {
        return None;
    }
    mapped(image, segment.offset, segment.file_size)
}

/// What the kernel and ld.so compute from offsets.
fn check_mapping(old: &Image<'_>, new: &Image<'_>) -> Result<(), String> {
    let mut end = 0;
    let mut ordered: Vec<&Segment> = loads(new).collect();
    ordered.sort_by_key(|load| load.offset);
    for load in ordered {
        if load.offset % load.align.max(1) != load.address % load.align.max(1) {
            return Err("a segment's offset does not fit its address".to_owned());
        }
        if load.offset < end {
            return Err("segments overlap".to_owned());
        }
        end = load.offset + load.file_size;
        if load.offset > new.bytes.len() as u64 {
            return Err("a segment's page lies behind the end".to_owned());
        }
    }
    let headers_at = |image: &Image<'_>| {
        let range = headers(image)?;
        mapped(image, range.start as u64, range.len() as u64)
    };
    if headers_at(old) != headers_at(new) {
        return Err("the program headers are loaded elsewhere".to_owned());
    }
    // Linux before 5.18 tells a program where its headers are by this sum.
    let headers_by_sum = |image: &Image<'_>| {
        let (first, range) = (loads(image).next()?, headers(image)?);
        let base = first.address.wrapping_sub(first.offset);
        Some(base.wrapping_add(range.start as u64))
    };
    let program = !matches!(
        (old.file_type, old.interpreter, old.pie),
        (FileType::SharedObject, None, false)
    );
    if program && headers_by_sum(old) != headers_by_sum(new) {
        return Err("older kernels would not find the program headers".to_owned());
    }
    Ok(())
}

/// All that the dynamic table leads to. The bytes are equal by now; this says that they are read from
/// the same places.
fn check_dynamic(old: &Image<'_>, new: &Image<'_>) -> Result<(), String> {
    let equal = old.machine == new.machine
        && (old.interpreter, old.soname) == (new.interpreter, new.soname)
        && (old.rpath, old.runpath) == (new.rpath, new.runpath)
        && old.needed == new.needed
        && old.version_needs == new.version_needs
        && old.version_definitions == new.version_definitions
        && old.symbols == new.symbols
        && old.build_id == new.build_id;
    if equal {
        Ok(())
    } else {
        Err("the dynamic table differs".to_owned())
    }
}

/// Sections that stay keep name, address and bytes, and those that dynamic symbols name their index.
fn check_sections(old: &Image<'_>, new: &Image<'_>) -> Result<(), String> {
    let described = |section: &Section<'_>| {
        let at = (section.name.to_owned(), section.kind, section.address);
        (
            at,
            section.flags,
            section.size,
            section.align,
            section.entry_size,
        )
    };
    let last_named = last_named(old);
    for (index, before) in old.sections.iter().enumerate() {
        if before.kind == elf::SHT_NULL.0 || is_for_tools(before) {
            continue;
        }
        let same = |after: &Section<'_>| {
            described(before) == described(after)
                && old.section_bytes(before) == new.section_bytes(after)
        };
        let stays = if index <= last_named {
            new.sections.get(index).is_some_and(same)
        } else {
            new.sections.iter().any(same)
        };
        if !stays {
            return Err(format!("section `{}` differs", before.name));
        }
    }
    Ok(())
}
