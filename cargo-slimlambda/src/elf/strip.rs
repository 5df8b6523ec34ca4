//! An [`Image`]'s bytes → the same without what the loader and the unwinder do not use.
//!
//! What the program headers cover stays byte for byte; only file offsets change. Sections are then
//! described anew: loaded ones keep their headers, symbols and debugging data go, and what no tool
//! chain is known to write stays, because somebody may read it from the file: cargo-auditable's
//! `.dep-v0`, PyInstaller's `pydata` (which is the whole Python program, and which llvm-strip drops).
//! The result is read again and compared with the original; where the two are not proven to load
//! the same, or where the file is of a kind that is known to break, the original is to be shipped.

use object::LittleEndian as LE;
use object::elf;

use super::identify::is_upx;
use super::image::{FileHeader, FileType, Image, Section, SectionHeader, Segment};
use super::image::{at, slice};

mod layout;
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
    /// What could go lies between segments that are too close to move together by whole pages.
    NothingToGain,
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
    if is_upx(image) {
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
    let bytes = layout::write(image)?;
    proof::prove(image, &bytes)
        .map_err(|what| dangerous(format!("the stripped file would not load the same: {what}")))?;
    if bytes.len() >= image.bytes.len() {
        return Err(Reason::NothingToGain);
    }
    Ok(bytes)
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

/// The highest section index that a dynamic symbol names, 0 if none does.
fn last_named(image: &Image<'_>) -> usize {
    let tables = image.sections.iter();
    let tables = tables.filter(|section| section.kind == elf::SHT_DYNSYM.0);
    tables
        .filter_map(|section| image.section_bytes(section))
        .flat_map(|bytes| bytes.chunks_exact(size_of::<elf::Sym64<LE>>()))
        .filter_map(|bytes| Some(at::<elf::Sym64<LE>>(bytes, 0)?.st_shndx.get(LE).0))
        .filter(|&index| index < elf::SHN_LORESERVE)
        .max()
        .map_or(0, usize::from)
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
    let header = image.file_header();
    let table_size = (image.sections.len() * size_of::<SectionHeader>()) as u64;
    let (program_headers, program_headers_size) = image.program_headers();
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::image::ProgramHeader;
    use super::*;
    use object::pod;
    use std::process::Command;

    /// A library with symbols and debugging data.
    fn library(arguments: &[&str]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let source = "int table[99] = { 1 };\nint sum(int i) { return table[i] + i; }\n";
        std::fs::write(dir.path().join("sum.c"), source).unwrap();
        let status = Command::new("cc")
            .current_dir(dir.path())
            .args(["-g", "-fPIC", "-nostdlib", "sum.c", "-o", "out"])
            .args(arguments)
            .status()
            .unwrap();
        assert!(status.success(), "cc {arguments:?}");
        std::fs::read(dir.path().join("out")).unwrap()
    }

    fn program_header(bytes: &[u8], index: usize) -> usize {
        let image = Image::parse(bytes).unwrap();
        let of_kind = |segment: &&(usize, &Segment)| segment.1.kind == elf::PT_LOAD.0;
        let segments = image.segments.iter().enumerate();
        let (position, _) = segments.filter(|pair| of_kind(&pair)).nth(index).unwrap();
        image.program_headers().0 as usize + position * size_of::<ProgramHeader>()
    }

    fn add(bytes: &mut [u8], at: usize, number: u64) {
        let old = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        bytes[at..at + 8].copy_from_slice(&old.wrapping_add(number).to_le_bytes());
    }

    #[test]
    fn ships_the_original_of_what_is_known_to_break() {
        type Change = fn(&mut Vec<u8>);
        let cases: &[(&str, Change)] = &[
            ("relocatable", |bytes| *bytes = library(&["-c"])),
            ("UPX", |bytes| {
                let (start, size) = Image::parse(bytes).unwrap().program_headers();
                let magic = (start + size) as usize + 4;
                bytes[magic..magic + 4].copy_from_slice(b"UPX!");
            }),
            ("no sections", |bytes| bytes[40..48].fill(0)),
            ("16 bytes follow its last section", |bytes| {
                bytes.extend([1; 16])
            }),
            ("disagree about its alignment", |bytes| {
                let header = program_header(bytes, 1);
                add(bytes, header + 16, 16);
            }),
            ("overlap in the file", |bytes| {
                let header = program_header(bytes, 0);
                add(bytes, header + 32, 8192);
            }),
            ("goes past its end", |bytes| {
                let table = u64::from_le_bytes(bytes[40..48].try_into().unwrap()) as usize;
                let last = bytes.len() - size_of::<SectionHeader>();
                assert!(last > table);
                add(bytes, last + 32, 1 << 40);
            }),
        ];
        for (expected, change) in cases {
            let mut bytes = library(&["-shared"]);
            change(&mut bytes);
            let stripped = strip(&Image::parse(&bytes).unwrap());
            let Stripped::Unchanged(Reason::Dangerous(why)) = stripped else {
                panic!("stripped, though `{expected}`");
            };
            assert!(why.contains(expected), "{why}");
        }
    }

    /// Puts the program headers behind everything, in a segment of their own (GNU_STACK's header
    /// becomes its), as some tools do to make room.
    fn with_headers_last(mut bytes: Vec<u8>) -> Vec<u8> {
        let image = Image::parse(&bytes).unwrap();
        let (table, size) = image.program_headers();
        let kind = |kind: elf::ProgramType| {
            let mut segments = image.segments.iter();
            let position = segments.position(|segment| segment.kind == kind.0);
            position.map(|position| position * size_of::<ProgramHeader>())
        };
        let mut headers = slice(&bytes, table, size).unwrap().to_vec();
        // Behind all addresses, too, so that offset and address can be the same.
        let place = (bytes.len() as u64 + 0x10000).next_multiple_of(layout::PAGE);
        let stack = kind(elf::PT_GNU_STACK).unwrap();
        headers[stack..stack + 4].copy_from_slice(&elf::PT_LOAD.0.to_le_bytes());
        headers[stack + 4..stack + 8].copy_from_slice(&elf::PF_R.0.to_le_bytes());
        for (entry, align) in [(Some(stack), layout::PAGE), (kind(elf::PT_PHDR), 8)] {
            let Some(entry) = entry else { continue };
            let fields = [place, place, place, size, size, align];
            headers[entry + 8..entry + 56].copy_from_slice(pod::bytes_of_slice(&fields));
        }
        bytes[32..40].copy_from_slice(&place.to_le_bytes());
        bytes.resize(place as usize, 0);
        bytes.extend(headers);
        bytes
    }

    #[test]
    fn moves_program_headers_in_libraries_but_not_in_programs() {
        let library = with_headers_last(library(&["-shared", "-g3"]));
        let Stripped::Smaller(stripped) = strip(&Image::parse(&library).unwrap()) else {
            panic!("the library was not stripped");
        };
        assert!(stripped.len() < library.len() - 0x10000);

        let program = with_headers_last(self::library(&["-pie", "-Wl,-esum,-Iloader"]));
        let unchanged = strip(&Image::parse(&program).unwrap());
        assert_eq!(unchanged, Stripped::Unchanged(Reason::NothingToGain));
    }

    #[test]
    fn padding_behind_the_end_is_no_payload() {
        let mut bytes = library(&["-shared"]);
        bytes.extend([0; 16]);
        let stripped = strip(&Image::parse(&bytes).unwrap());
        assert!(matches!(stripped, Stripped::Smaller(_)), "{stripped:?}");
    }

    #[test]
    fn the_proof_finds_every_change_to_what_is_loaded() {
        let bytes = library(&["-shared"]);
        let image = Image::parse(&bytes).unwrap();
        let stripped = layout::write(&image).unwrap();
        assert_eq!(proof::prove(&image, &stripped), Ok(()));
        let new = Image::parse(&stripped).unwrap();
        let (table, size) = new.program_headers();
        let loaded = loads(&new).flat_map(|load| load.offset..load.offset + load.file_size);
        // GNU_STACK has no bytes, so its offset is nobody's.
        let empty = new
            .segments
            .iter()
            .position(|segment| segment.file_size == 0);
        let empty = table + (empty.unwrap() * size_of::<ProgramHeader>()) as u64 + 8;
        let free = [32..48, 60..64, empty..empty + 8];
        let free = |at: &u64| free.iter().any(|range| range.contains(at));
        for position in loaded.chain(table..table + size).filter(|at| !free(at)) {
            let mut tampered = stripped.clone();
            tampered[position as usize] ^= 0x40;
            assert!(proof::prove(&image, &tampered).is_err(), "byte {position}");
        }
    }
}
