//! `&[u8]` → [`Image`]: segments, sections, dynamic table, versions, build-id.
//!
//! Everything dynamic is read through the program headers, as the loader does: stripped files need
//! not have sections, and a section table may tell another story. The reader is total: it borrows
//! from the bytes, never panics, and reserves nothing from a count that the bytes present do not
//! bear out. Only what Lambda runs is read: 64-bit, little-endian, x86_64 or aarch64; anything else
//! gets an error that says what it is.

use std::fmt;

use goblin::Hint;
use object::LittleEndian as LE;
use object::elf;
use object::pod::{self, Pod};

mod dynamic;
mod notes;

pub use notes::Note;
pub(super) use notes::notes;

pub(super) type FileHeader = elf::FileHeader64<LE>;
pub(super) type ProgramHeader = elf::ProgramHeader64<LE>;
pub(super) type SectionHeader = elf::SectionHeader64<LE>;

/// The two architectures that Lambda has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Machine {
    /// 64-bit x86.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Machine {
    /// The name that Rust's target triples use.
    pub fn as_str(self) -> &'static str {
        match self {
            Machine::X86_64 => "x86_64",
            Machine::Aarch64 => "aarch64",
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the file header says the file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    /// `ET_EXEC`: loaded at fixed addresses.
    Executable,
    /// `ET_DYN`: a shared library or a position-independent executable.
    SharedObject,
    /// Relocatable objects, core files and the rest, which the loader does not take.
    Other,
}

/// One program header. Sizes, offsets and addresses in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// `PT_*`.
    pub kind: u32,
    /// `PF_*`.
    pub flags: u32,
    /// Where its bytes begin in the file.
    pub offset: u64,
    /// Where it is mapped.
    pub address: u64,
    /// Bytes in the file; [`Image::parse`] has checked that they are there.
    pub file_size: u64,
    /// Bytes in memory.
    pub memory_size: u64,
    /// Alignment of address and offset.
    pub align: u64,
}

/// One section header. Its bytes need not be there: see [`Image::section_bytes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section<'a> {
    /// The name, empty when it cannot be read or is not UTF-8.
    pub name: &'a str,
    /// `SHT_*`.
    pub kind: u32,
    /// `SHF_*`.
    pub flags: u64,
    /// Where it is mapped, 0 if it is not.
    pub address: u64,
    /// Where its bytes begin in the file.
    pub offset: u64,
    /// Bytes in the file, or in memory for `SHT_NOBITS`.
    pub size: u64,
    /// `sh_link`.
    pub link: u32,
    /// `sh_info`.
    pub info: u32,
    /// Alignment of the address.
    pub align: u64,
    /// Bytes of one entry, for tables.
    pub entry_size: u64,
}

/// One symbol version that a needed library must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionNeed<'a> {
    /// The soname of the library, as in `libc.so.6`.
    pub file: &'a str,
    /// The version, as in `GLIBC_2.17`.
    pub version: &'a str,
    /// `VER_FLG_WEAK`: the loader goes on without it.
    pub weak: bool,
    /// What the symbols call it.
    pub index: u16,
}

/// One dynamic symbol that other files can see, or that this file wants from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// The name, without a version.
    pub name: &'a str,
    /// The version it is defined with, or needed in.
    pub version: Option<&'a str>,
    /// The soname that the version is needed from; for undefined symbols only.
    pub version_file: Option<&'a str>,
    /// Somebody else has to provide it.
    pub undefined: bool,
    /// `STB_WEAK`: may stay undefined.
    pub weak: bool,
    /// The definition that a reference without a version gets (`name@@VERSION`).
    pub default_version: bool,
    /// `STT_*`.
    pub kind: u8,
}

/// What an ELF file says about itself, borrowed from its bytes.
#[derive(Debug, Clone)]
pub struct Image<'a> {
    /// The whole file.
    pub bytes: &'a [u8],
    /// The architecture.
    pub machine: Machine,
    /// Executable, shared object, or neither.
    pub file_type: FileType,
    /// A position-independent executable, which the file type alone does not tell (`DF_1_PIE`, or a
    /// shared object with an interpreter and without a soname).
    pub pie: bool,
    /// The program headers, in file order.
    pub segments: Vec<Segment>,
    /// The section headers, in file order, the null section included; may be empty.
    pub sections: Vec<Section<'a>>,
    /// The loader that it asks for.
    pub interpreter: Option<&'a str>,
    /// What others call it.
    pub soname: Option<&'a str>,
    /// Sonames of what it needs, in order.
    pub needed: Vec<&'a str>,
    /// `DT_RPATH`, colon-separated, unexpanded.
    pub rpath: Option<&'a str>,
    /// `DT_RUNPATH`, colon-separated, unexpanded.
    pub runpath: Option<&'a str>,
    /// Symbol versions that must be provided.
    pub version_needs: Vec<VersionNeed<'a>>,
    /// Symbol versions that it provides, without the base version (the file itself).
    pub version_definitions: Vec<&'a str>,
    /// Global and weak dynamic symbols, but for names that are not UTF-8.
    pub symbols: Vec<Symbol<'a>>,
    /// `NT_GNU_BUILD_ID`.
    pub build_id: Option<&'a [u8]>,
}

/// What a file is when it is not ELF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FileKind {
    /// No bytes at all.
    #[error("an empty file")]
    Empty,
    /// Begins with `#!`.
    #[error("a script")]
    Script,
    /// macOS.
    #[error("a Mach-O file (macOS)")]
    MachO,
    /// Windows.
    #[error("a PE file (Windows)")]
    PortableExecutable,
    /// `.a`, thin ones too.
    #[error("a static archive (`ar`)")]
    Archive,
    /// What LTO leaves in object files.
    #[error("LLVM bitcode")]
    Bitcode,
    /// Zip, and so a Python wheel or a jar.
    #[error("a zip file")]
    Zip,
    /// Gzip.
    #[error("a gzip file")]
    Gzip,
    /// Text in place of a library, which points to the real one.
    #[error("a linker script (text)")]
    LinkerScript,
    /// None of these.
    #[error("a file of unknown kind")]
    Unknown,
}

/// Why a file could not be read as an ELF file that Lambda could load.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Something else entirely.
    #[error("not an ELF file but {0}")]
    NotElf(FileKind),
    /// `ELFCLASS32`.
    #[error("a 32-bit ELF file; Lambda runs 64-bit code only")]
    Class32,
    /// `ELFDATA2MSB`.
    #[error("a big-endian ELF file; Lambda's processors are little-endian")]
    BigEndian,
    /// Another processor; the number is `e_machine`.
    #[error("an ELF file for machine {0}; Lambda has x86_64 (62) and aarch64 (183)")]
    Machine(u16),
    /// The file ends before something that its headers promise.
    #[error("truncated: {what} at offset {offset} goes past the end ({length} bytes)")]
    Truncated {
        /// What is not all there.
        what: &'static str,
        /// Where it begins.
        offset: u64,
        /// The file's size.
        length: u64,
    },
    /// Something that contradicts itself or the gABI.
    #[error("malformed: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
}

impl<'a> Image<'a> {
    /// Reads the headers, the dynamic table and what hangs on it.
    ///
    /// # Errors
    /// When the bytes are not an ELF file for x86_64 or aarch64, end too early, or contradict
    /// themselves in a place that the loader reads.
    pub fn parse(bytes: &'a [u8]) -> Result<Image<'a>, ImageError> {
        check_ident(bytes)?;
        let header: &FileHeader =
            at(bytes, 0).ok_or_else(|| truncated(bytes, "the file header", 0))?;
        let machine = match header.e_machine.get(LE) {
            elf::EM_X86_64 => Machine::X86_64,
            elf::EM_AARCH64 => Machine::Aarch64,
            other => return Err(ImageError::Machine(other.0)),
        };
        let file_type = match header.e_type.get(LE) {
            elf::ET_EXEC => FileType::Executable,
            elf::ET_DYN => FileType::SharedObject,
            _ => FileType::Other,
        };
        let section_headers = section_headers(bytes, header)?;
        let segments = segments(bytes, header, section_headers)?;
        let mut image = Image {
            bytes,
            machine,
            file_type,
            pie: false,
            segments,
            sections: sections(bytes, header, section_headers),
            interpreter: None,
            soname: None,
            needed: Vec::new(),
            rpath: None,
            runpath: None,
            version_needs: Vec::new(),
            version_definitions: Vec::new(),
            symbols: Vec::new(),
            build_id: None,
        };
        if let Some(segment) = image.segment(elf::PT_INTERP.0) {
            let path = image.segment_bytes(segment);
            let path = text(path, 0).ok_or(malformed("the interpreter is not a path"))?;
            image.interpreter = Some(path);
        }
        let build_id = image
            .notes()
            .find(|note| note.owner == b"GNU\0" && note.kind == elf::NT_GNU_BUILD_ID.0)
            .map(|note| note.description);
        image.build_id = build_id;
        dynamic::read(&mut image)?;
        Ok(image)
    }

    /// A program rather than a library: at a fixed address, or position-independent. What has neither
    /// an interpreter nor a dynamic table could not be linked to, and is what UPX makes of programs.
    pub fn is_executable(&self) -> bool {
        match self.file_type {
            FileType::Executable => true,
            FileType::SharedObject => {
                self.pie || self.interpreter.is_some() || self.segment(elf::PT_DYNAMIC.0).is_none()
            }
            FileType::Other => false,
        }
    }

    /// A program that starts without the dynamic loader.
    pub fn is_static(&self) -> bool {
        self.is_executable() && self.interpreter.is_none()
    }

    /// The file header.
    pub(super) fn file_header(&self) -> &'a FileHeader {
        at(self.bytes, 0).expect("BUG: an image was parsed without a file header")
    }

    /// Offset and size of the program header table.
    pub(super) fn program_headers(&self) -> (u64, u64) {
        let size = self.segments.len() * size_of::<ProgramHeader>();
        (self.file_header().e_phoff.get(LE), size as u64)
    }

    /// The first segment of a kind (`PT_*`).
    pub fn segment(&self, kind: u32) -> Option<&Segment> {
        self.segments.iter().find(|segment| segment.kind == kind)
    }

    /// The first section of a name.
    pub fn section(&self, name: &str) -> Option<&Section<'a>> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// The bytes that a segment has in the file.
    pub fn segment_bytes(&self, segment: &Segment) -> &'a [u8] {
        slice(self.bytes, segment.offset, segment.file_size).unwrap_or_default()
    }

    /// The bytes that a section has in the file: `None` when it has none (`SHT_NOBITS`) or when its
    /// header points outside the file, which the loader does not mind.
    pub fn section_bytes(&self, section: &Section<'_>) -> Option<&'a [u8]> {
        if section.kind == elf::SHT_NOBITS.0 {
            return None;
        }
        slice(self.bytes, section.offset, section.size)
    }

    /// The notes of all segments.
    pub fn notes(&self) -> impl Iterator<Item = Note<'a>> {
        self.segments
            .iter()
            .filter(|segment| segment.kind == elf::PT_NOTE.0)
            .flat_map(|segment| notes(self.segment_bytes(segment), segment.align))
    }

    /// The file's bytes from an address to the end of the `PT_LOAD` segment around it.
    pub fn bytes_at(&self, address: u64) -> Option<&'a [u8]> {
        self.segments
            .iter()
            .filter(|segment| segment.kind == elf::PT_LOAD.0)
            .find_map(|segment| {
                let into = address.checked_sub(segment.address)?;
                if into >= segment.file_size {
                    return None;
                }
                self.segment_bytes(segment)
                    .get(usize::try_from(into).ok()?..)
            })
    }
}

fn malformed(what: &'static str) -> ImageError {
    ImageError::Malformed { what }
}

fn truncated(bytes: &[u8], what: &'static str, offset: u64) -> ImageError {
    let length = bytes.len() as u64;
    ImageError::Truncated {
        what,
        offset,
        length,
    }
}

/// `size` bytes at `offset`, if they are there.
pub(super) fn slice(bytes: &[u8], offset: u64, size: u64) -> Option<&[u8]> {
    let end = usize::try_from(offset.checked_add(size)?).ok()?;
    bytes.get(usize::try_from(offset).ok()?..end)
}

/// One structure at `offset`.
pub(super) fn at<T: Pod>(bytes: &[u8], offset: u64) -> Option<&T> {
    let tail = bytes.get(usize::try_from(offset).ok()?..)?;
    Some(pod::from_bytes(tail).ok()?.0)
}

/// `count` structures at `offset`; borrowed, so a false count costs nothing.
fn array<T: Pod>(bytes: &[u8], offset: u64, count: u64) -> Option<&[T]> {
    let tail = bytes.get(usize::try_from(offset).ok()?..)?;
    Some(
        pod::slice_from_bytes(tail, usize::try_from(count).ok()?)
            .ok()?
            .0,
    )
}

/// The NUL-terminated string at `offset` of a string table.
fn string(strings: &[u8], offset: u64) -> Option<&[u8]> {
    let tail = strings.get(usize::try_from(offset).ok()?..)?;
    let length = tail.iter().position(|&byte| byte == 0)?;
    Some(&tail[..length])
}

/// As [`string`], where it is UTF-8.
fn text(strings: &[u8], offset: u64) -> Option<&str> {
    std::str::from_utf8(string(strings, offset)?).ok()
}

fn check_ident(bytes: &[u8]) -> Result<(), ImageError> {
    if !bytes.starts_with(&elf::ELFMAG) {
        return Err(ImageError::NotElf(file_kind(bytes)));
    }
    let (Some(&class), Some(&data)) = (bytes.get(4), bytes.get(5)) else {
        return Err(truncated(bytes, "the file header", 0));
    };
    match elf::FileClass(class) {
        elf::ELFCLASS64 => {}
        elf::ELFCLASS32 => return Err(ImageError::Class32),
        _ => return Err(malformed("neither 32-bit nor 64-bit")),
    }
    match elf::DataEncoding(data) {
        elf::ELFDATA2LSB => Ok(()),
        elf::ELFDATA2MSB => Err(ImageError::BigEndian),
        _ => Err(malformed("neither little-endian nor big-endian")),
    }
}

/// Names what is not ELF, by its first bytes.
fn file_kind(bytes: &[u8]) -> FileKind {
    const MAGICS: &[(&[u8], FileKind)] = &[
        (b"#!", FileKind::Script),
        (b"!<thin>\n", FileKind::Archive),
        (b"BC\xc0\xde", FileKind::Bitcode),
        (b"\xde\xc0\x17\x0b", FileKind::Bitcode),
        (b"PK\x03\x04", FileKind::Zip),
        (b"PK\x05\x06", FileKind::Zip),
        (b"\x1f\x8b", FileKind::Gzip),
    ];
    if bytes.is_empty() {
        return FileKind::Empty;
    }
    if let Some((_, kind)) = MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return *kind;
    }
    let mut head = [0; 16];
    let length = bytes.len().min(head.len());
    head[..length].copy_from_slice(&bytes[..length]);
    match goblin::peek_bytes(&head) {
        Ok(Hint::Mach(_) | Hint::MachFat(_)) => return FileKind::MachO,
        Ok(Hint::PE) => return FileKind::PortableExecutable,
        Ok(Hint::Archive) => return FileKind::Archive,
        _ => {}
    }
    // The scripts that stand for libraries are short, and have their command near the start.
    let start = &bytes[..bytes.len().min(4096)];
    let has = |word: &[u8]| start.windows(word.len()).any(|window| window == word);
    let plain = !start.contains(&0);
    if plain && (has(b"GNU ld script") || has(b"INPUT(") || has(b"INPUT (") || has(b"GROUP (")) {
        return FileKind::LinkerScript;
    }
    FileKind::Unknown
}

/// The section header table; empty when there is none.
fn section_headers<'a>(
    bytes: &'a [u8],
    header: &FileHeader,
) -> Result<&'a [SectionHeader], ImageError> {
    let offset = header.e_shoff.get(LE);
    if offset == 0 {
        return Ok(&[]);
    }
    let past_end = || truncated(bytes, "the section header table", offset);
    let mut count = u64::from(header.e_shnum.get(LE));
    if count == 0 {
        // gABI: a count that does not fit is in the size of section 0.
        let first: &SectionHeader = at(bytes, offset).ok_or_else(past_end)?;
        count = first.sh_size.get(LE);
    }
    if count > 0 && usize::from(header.e_shentsize.get(LE)) != size_of::<SectionHeader>() {
        return Err(malformed("section headers of an unknown size"));
    }
    array(bytes, offset, count).ok_or_else(past_end)
}

fn segments(
    bytes: &[u8],
    header: &FileHeader,
    section_headers: &[SectionHeader],
) -> Result<Vec<Segment>, ImageError> {
    let offset = header.e_phoff.get(LE);
    let mut count = u64::from(header.e_phnum.get(LE));
    if count == u64::from(elf::PN_XNUM) {
        // gABI: a count that does not fit is in the info of section 0.
        let first = section_headers.first();
        count = u64::from(
            first
                .ok_or(malformed("no section 0 to hold the segment count"))?
                .sh_info
                .get(LE),
        );
    }
    if offset == 0 || count == 0 {
        return Ok(Vec::new());
    }
    if usize::from(header.e_phentsize.get(LE)) != size_of::<ProgramHeader>() {
        return Err(malformed("program headers of an unknown size"));
    }
    let headers: &[ProgramHeader] = array(bytes, offset, count)
        .ok_or_else(|| truncated(bytes, "the program header table", offset))?;
    headers
        .iter()
        .map(|header| {
            let segment = Segment {
                kind: header.p_type.get(LE).0,
                flags: header.p_flags.get(LE).0,
                offset: header.p_offset.get(LE),
                address: header.p_vaddr.get(LE),
                file_size: header.p_filesz.get(LE),
                memory_size: header.p_memsz.get(LE),
                align: header.p_align.get(LE),
            };
            // Without bytes there is nothing to be missing: `.tbss`, GNU_STACK.
            match slice(bytes, segment.offset, segment.file_size) {
                None if segment.file_size > 0 => Err(truncated(bytes, "a segment", segment.offset)),
                _ => Ok(segment),
            }
        })
        .collect()
}

fn sections<'a>(
    bytes: &'a [u8],
    header: &FileHeader,
    section_headers: &'a [SectionHeader],
) -> Vec<Section<'a>> {
    let names = match header.e_shstrndx.get(LE) {
        elf::SHN_XINDEX => section_headers
            .first()
            .map_or(0, |first| first.sh_link.get(LE)),
        index => u32::from(index.0),
    };
    let names = section_headers
        .get(names as usize)
        .filter(|names| names.sh_type.get(LE) == elf::SHT_STRTAB)
        .and_then(|names| slice(bytes, names.sh_offset.get(LE), names.sh_size.get(LE)))
        .unwrap_or_default();
    section_headers
        .iter()
        .map(|section| Section {
            name: text(names, u64::from(section.sh_name.get(LE))).unwrap_or_default(),
            kind: section.sh_type.get(LE).0,
            flags: section.sh_flags.get(LE).0,
            address: section.sh_addr.get(LE),
            offset: section.sh_offset.get(LE),
            size: section.sh_size.get(LE),
            link: section.sh_link.get(LE),
            info: section.sh_info.get(LE),
            align: section.sh_addralign.get(LE),
            entry_size: section.sh_entsize.get(LE),
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
