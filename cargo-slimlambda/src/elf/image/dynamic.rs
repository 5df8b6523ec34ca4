//! The dynamic table and what hangs on it: strings, symbols, their versions.

use object::LittleEndian as LE;
use object::elf;
use object::read::elf::{GnuHashTable, HashTable};

use super::{FileHeader, FileType, Image, ImageError, Symbol, VersionNeed};
use super::{array, at, malformed, slice, string, text};

/// More symbol versions than a 15-bit version index can name (gABI: bit 15 of a versym is "hidden").
const MOST_VERSIONS: usize = 1 << 15;

/// The entries of the dynamic table that are read here. Addresses are as in the file.
#[derive(Default)]
struct Dynamic {
    strings: u64,
    strings_size: u64,
    symbols: Option<u64>,
    hash: Option<u64>,
    gnu_hash: Option<u64>,
    versions: Option<u64>,
    version_needs: Option<u64>,
    version_definitions: Option<u64>,
    relocations: Option<u64>,
    relocations_size: u64,
    plt_relocations: Option<u64>,
    plt_relocations_size: u64,
}

/// Fills in all that the dynamic table leads to.
pub(super) fn read(image: &mut Image<'_>) -> Result<(), ImageError> {
    let Some(segment) = image.segment(elf::PT_DYNAMIC.0) else {
        return Ok(());
    };
    let bytes = image.segment_bytes(segment);
    let count = bytes.len() / size_of::<elf::Dyn64<LE>>();
    let entries: &[elf::Dyn64<LE>] = array(bytes, 0, count as u64).unwrap_or_default();
    let mut dynamic = Dynamic::default();
    let (mut needed, mut soname, mut rpath, mut runpath) = (Vec::new(), None, None, None);
    for entry in entries {
        let value = entry.d_val.get(LE);
        match entry.d_tag.get(LE) {
            elf::DT_NULL => break,
            elf::DT_NEEDED => needed.push(value),
            elf::DT_SONAME => soname = Some(value),
            elf::DT_RPATH => rpath = Some(value),
            elf::DT_RUNPATH => runpath = Some(value),
            elf::DT_STRTAB => dynamic.strings = value,
            elf::DT_STRSZ => dynamic.strings_size = value,
            elf::DT_SYMTAB => dynamic.symbols = Some(value),
            elf::DT_HASH => dynamic.hash = Some(value),
            elf::DT_GNU_HASH => dynamic.gnu_hash = Some(value),
            elf::DT_VERSYM => dynamic.versions = Some(value),
            elf::DT_VERNEED => dynamic.version_needs = Some(value),
            elf::DT_VERDEF => dynamic.version_definitions = Some(value),
            elf::DT_RELA => dynamic.relocations = Some(value),
            elf::DT_RELASZ => dynamic.relocations_size = value,
            elf::DT_JMPREL => dynamic.plt_relocations = Some(value),
            elf::DT_PLTRELSZ => dynamic.plt_relocations_size = value,
            elf::DT_FLAGS_1 => image.pie |= value & elf::DF_1_PIE.0 != 0,
            _ => {}
        }
    }
    let strings = image
        .bytes_at(dynamic.strings)
        .and_then(|bytes| slice(bytes, 0, dynamic.strings_size))
        .unwrap_or_default();
    let string = |offset| {
        text(strings, offset).ok_or(malformed(
            "the dynamic table names a string that is not there",
        ))
    };
    image.needed = needed.into_iter().map(string).collect::<Result<_, _>>()?;
    image.soname = soname.map(string).transpose()?;
    image.rpath = rpath.map(string).transpose()?;
    image.runpath = runpath.map(string).transpose()?;
    image.pie |= image.file_type == FileType::SharedObject
        && image.interpreter.is_some()
        && image.soname.is_none();
    if let Some(address) = dynamic.version_needs {
        image.version_needs = version_needs(loaded(image, address)?, strings)?;
    }
    let mut definitions = Vec::new();
    if let Some(address) = dynamic.version_definitions {
        definitions = version_definitions(loaded(image, address)?, strings)?;
        let named = definitions.iter().filter(|definition| !definition.base);
        image.version_definitions = named.map(|definition| definition.version).collect();
    }
    if let Some(address) = dynamic.symbols {
        let count = symbol_count(image, &dynamic)?;
        let table = if count == 0 {
            &[]
        } else {
            array(loaded(image, address)?, 0, count)
                .ok_or(malformed("the dynamic symbol table goes past its segment"))?
        };
        let versions = match dynamic.versions {
            Some(address) if count > 0 => array(loaded(image, address)?, 0, count)
                .ok_or(malformed("the symbols' versions go past their segment"))?,
            _ => &[],
        };
        image.symbols = symbols(table, versions, strings, &image.version_needs, &definitions)?;
    }
    Ok(())
}

fn loaded<'a>(image: &Image<'a>, address: u64) -> Result<&'a [u8], ImageError> {
    image.bytes_at(address).ok_or(malformed(
        "the dynamic table holds an address outside every segment",
    ))
}

/// How many dynamic symbols there are, which no header says: the hash table's length; or, when it
/// is empty (GNU ld writes that for executables that export nothing), one more than the highest
/// that a relocation names, since the loader looks up no others.
fn symbol_count(image: &Image<'_>, dynamic: &Dynamic) -> Result<u64, ImageError> {
    let bad = |_| malformed("the symbol hash table goes past its segment");
    if let Some(address) = dynamic.hash {
        let table = HashTable::<FileHeader>::parse(LE, loaded(image, address)?).map_err(bad)?;
        return Ok(u64::from(table.symbol_table_length()));
    }
    if let Some(address) = dynamic.gnu_hash {
        let table = GnuHashTable::<FileHeader>::parse(LE, loaded(image, address)?).map_err(bad)?;
        if let Some(count) = table.symbol_table_length(LE) {
            return Ok(u64::from(count));
        }
    }
    let mut count = 0;
    for (address, size) in [
        (dynamic.relocations, dynamic.relocations_size),
        (dynamic.plt_relocations, dynamic.plt_relocations_size),
    ] {
        let Some(address) = address.filter(|_| size > 0) else {
            continue;
        };
        let entries = size / size_of::<elf::Rela64<LE>>() as u64;
        let table: &[elf::Rela64<LE>] = array(loaded(image, address)?, 0, entries)
            .ok_or(malformed("a relocation table goes past its segment"))?;
        let symbols = table.iter().map(|entry| u64::from(entry.r_sym(LE, false)));
        count = symbols.map(|symbol| symbol + 1).fold(count, u64::max);
    }
    Ok(count)
}

fn version_needs<'a>(
    bytes: &'a [u8],
    strings: &'a [u8],
) -> Result<Vec<VersionNeed<'a>>, ImageError> {
    let bad = malformed("the version needs lead outside their segment");
    let mut needs = Vec::new();
    let mut offset = 0;
    loop {
        let need: &elf::Verneed<LE> = at(bytes, offset).ok_or(bad.clone())?;
        let file = text(strings, u64::from(need.vn_file.get(LE))).ok_or(bad.clone())?;
        let mut aux_offset = offset + u64::from(need.vn_aux.get(LE));
        for _ in 0..need.vn_cnt.get(LE) {
            let aux: &elf::Vernaux<LE> = at(bytes, aux_offset).ok_or(bad.clone())?;
            let version = text(strings, u64::from(aux.vna_name.get(LE))).ok_or(bad.clone())?;
            needs.push(VersionNeed {
                file,
                version,
                weak: aux.vna_flags.get(LE).0 & elf::VER_FLG_WEAK.0 != 0,
                index: aux.vna_other.get(LE).0 & elf::VERSYM_VERSION,
            });
            aux_offset += u64::from(aux.vna_next.get(LE));
        }
        if needs.len() > MOST_VERSIONS {
            return Err(malformed("more version needs than indexes for them"));
        }
        match need.vn_next.get(LE) {
            0 => return Ok(needs),
            next => offset += u64::from(next),
        }
    }
}

struct VersionDefinition<'a> {
    version: &'a str,
    index: u16,
    base: bool,
}

fn version_definitions<'a>(
    bytes: &'a [u8],
    strings: &'a [u8],
) -> Result<Vec<VersionDefinition<'a>>, ImageError> {
    let bad = malformed("the version definitions lead outside their segment");
    let mut definitions = Vec::new();
    let mut offset = 0;
    loop {
        let definition: &elf::Verdef<LE> = at(bytes, offset).ok_or(bad.clone())?;
        // The first auxiliary entry is the version's name, the others are its parents.
        let aux = offset + u64::from(definition.vd_aux.get(LE));
        let aux: &elf::Verdaux<LE> = at(bytes, aux).ok_or(bad.clone())?;
        definitions.push(VersionDefinition {
            version: text(strings, u64::from(aux.vda_name.get(LE))).ok_or(bad.clone())?,
            index: definition.vd_ndx.get(LE).0 & elf::VERSYM_VERSION,
            base: definition.vd_flags.get(LE).0 & elf::VER_FLG_BASE.0 != 0,
        });
        if definitions.len() > MOST_VERSIONS {
            return Err(malformed("more version definitions than indexes for them"));
        }
        match definition.vd_next.get(LE) {
            0 => return Ok(definitions),
            next => offset += u64::from(next),
        }
    }
}

fn symbols<'a>(
    table: &[elf::Sym64<LE>],
    versions: &[elf::Versym<LE>],
    strings: &'a [u8],
    needs: &[VersionNeed<'a>],
    definitions: &[VersionDefinition<'a>],
) -> Result<Vec<Symbol<'a>>, ImageError> {
    // Indexes are 15 bits, so a table of them is small, and spares a search for each symbol.
    let mut needed: Vec<Option<(&str, &str)>> = Vec::new();
    for need in needs {
        let index = usize::from(need.index);
        needed.resize(needed.len().max(index + 1), None);
        needed[index] = Some((need.version, need.file));
    }
    let mut defined: Vec<Option<&str>> = Vec::new();
    for definition in definitions.iter().filter(|definition| !definition.base) {
        let index = usize::from(definition.index);
        defined.resize(defined.len().max(index + 1), None);
        defined[index] = Some(definition.version);
    }
    let mut symbols = Vec::new();
    // Entry 0 is the null symbol.
    for (position, symbol) in table.iter().enumerate().skip(1) {
        if symbol.st_bind() == elf::STB_LOCAL {
            continue;
        }
        let name = string(strings, u64::from(symbol.st_name.get(LE)))
            .ok_or(malformed("a dynamic symbol has a name that is not there"))?;
        // The loader compares bytes, so any will do; none of those that are asked about is not UTF-8.
        let Ok(name) = std::str::from_utf8(name) else {
            continue;
        };
        let undefined = symbol.st_shndx.get(LE) == elf::SHN_UNDEF;
        let versym = versions
            .get(position)
            .map_or(elf::VER_NDX_GLOBAL.0, |versym| versym.0.get(LE).0);
        let index = usize::from(versym & elf::VERSYM_VERSION);
        let need = needed.get(index).copied().flatten();
        let (version, version_file) = if undefined {
            (need.map(|need| need.0), need.map(|need| need.1))
        } else {
            // Copy relocations define a symbol here, with the version of its library.
            let own = defined.get(index).copied().flatten();
            (own.or(need.map(|need| need.0)), None)
        };
        symbols.push(Symbol {
            name,
            version,
            version_file,
            undefined,
            weak: symbol.st_bind() == elf::STB_WEAK,
            default_version: versym & elf::VERSYM_HIDDEN.0 == 0,
            kind: symbol.st_type().0,
        });
    }
    Ok(symbols)
}
