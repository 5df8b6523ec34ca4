//! Broken files are packed like any other: the packer makes of sections and numbers what it can, and every byte comes back.

use std::fs;
use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::sample::Index;
use runtime_unpack::filter::{Filter, Scratch};
use runtime_unpack::format::{HEADER_SIZE, Kind};
use runtime_unpack::launch::Launch;
use runtime_unpack::reader::{self, Archive};

use super::elf_tools::cc;
use super::trees::{self, file, noise, text};

/// An archive's files, by path, with the filters that their pieces have.
fn contents(bytes: &[u8]) -> Vec<(String, Vec<u8>, Vec<Filter>)> {
    let header = reader::read_header(bytes[..HEADER_SIZE].try_into().unwrap()).unwrap();
    let index = &bytes[HEADER_SIZE..][..header.index_packed as usize];
    let archive = reader::read_index(header, index, bytes.len() as u64).unwrap();
    let (blobs, filters) = blobs(&archive, bytes);
    let entries = archive.entries().filter_map(|entry| {
        let Kind::File { blob } = entry.kind else {
            return None;
        };
        let path = String::from_utf8(entry.path.to_vec()).unwrap();
        Some((
            path,
            blobs[blob as usize].clone(),
            filters[blob as usize].clone(),
        ))
    });
    entries.collect()
}

fn blobs(archive: &Archive, bytes: &[u8]) -> (Vec<Vec<u8>>, Vec<Vec<Filter>>) {
    let mut blobs: Vec<Vec<u8>> = archive
        .blobs()
        .iter()
        .map(|b| vec![0; b.size as usize])
        .collect();
    let mut filters = vec![Vec::new(); blobs.len()];
    for (_, piece) in archive.pieces() {
        filters[piece.blob as usize].push(piece.filter);
    }
    for (number, pieces) in archive.frame_pieces().iter().enumerate() {
        let range = archive.frame_range(number);
        let packed = &bytes[range.start as usize..range.end as usize];
        let streams = archive.streams(number);
        let mut buffer = Vec::new();
        reader::decode_streams(
            number,
            &archive.frames()[number],
            streams,
            packed,
            &mut buffer,
        )
        .unwrap();
        reader::decode_pieces(
            number,
            streams,
            &buffer,
            pieces,
            &mut Scratch::default(),
            |piece, bytes| {
                let start = piece.offset as usize;
                blobs[piece.blob as usize][start..start + bytes.len()].copy_from_slice(bytes);
                Ok(())
            },
        )
        .unwrap();
    }
    (blobs, filters)
}

/// Packs these as files of one package, and gives the filters of each.
#[track_caller]
fn survive(files: &[Vec<u8>]) -> Vec<Vec<Filter>> {
    let inputs: Vec<_> = (0..)
        .zip(files)
        .map(|(n, bytes)| file(&format!("{n:04}"), 0o644, bytes.clone()))
        .collect();
    let packed = trees::pack(&inputs, &Launch::default()).unwrap();
    let out = contents(&packed.bytes);
    assert_eq!(out.len(), files.len());
    for ((path, out, _), bytes) in out.iter().zip(files) {
        let at = out.iter().zip(bytes).position(|(a, b)| a != b);
        assert!(
            at.is_none() && out.len() == bytes.len(),
            "`{path}` of {} bytes: {at:?}",
            bytes.len()
        );
    }
    out.into_iter().map(|(_, _, filters)| filters).collect()
}

/// A library with code, relocations and exceptions.
static LIBRARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    let functions = (0..60).map(|n| {
        format!("int f{n}(int a, int b) {{ for (int i = 0; i < a; i++) b += g(\"text {n}\", b * {n}); return b ^ {n}; }}\n")
    });
    let source = format!(
        "int g(const char *text, int n);\n{}void *table[] = {{ f0, f1, f2, f3, f4, f5, f6, f7, f8, f9, table }};\n",
        functions.collect::<String>()
    );
    cc(
        directory.path(),
        "library.so",
        &source,
        "-O1 -shared -fexceptions -fno-inline",
    );
    fs::read(directory.path().join("library.so")).unwrap()
});

fn u64_at(bytes: &[u8], at: usize) -> usize {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

fn u16_at(bytes: &[u8], at: usize) -> usize {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()).into()
}

/// Where a file's section headers are. gABI: `e_shoff`, `e_shnum`; 64 bytes each.
fn section_headers(bytes: &[u8]) -> Vec<usize> {
    (0..u16_at(bytes, 60))
        .map(|n| u64_at(bytes, 40) + n * 64)
        .collect()
}

/// Offsets within a section's header, with the sizes of the fields: type, flags, address, offset, size, entry size.
const FIELDS: [(usize, usize); 6] = [(4, 4), (8, 8), (16, 8), (24, 8), (32, 8), (56, 8)];

#[test]
fn a_whole_library_is_filtered() {
    let filters = survive(std::slice::from_ref(&LIBRARY)).remove(0);
    // Small as it is, these pay; on another machine's code there may be no filter.
    if cfg!(target_arch = "x86_64") {
        assert!(filters.contains(&Filter::X86), "{filters:?}");
        assert!(
            filters.contains(&Filter::EhFrame) && filters.contains(&Filter::EhFrameHdr),
            "{filters:?}"
        );
    }
}

#[test]
fn files_cut_short_anywhere_come_back() {
    let whole = &*LIBRARY;
    let mut sizes: Vec<usize> = (0..whole.len()).step_by(whole.len() / 200).collect();
    for header in section_headers(whole) {
        let (start, size) = (u64_at(whole, header + 24), u64_at(whole, header + 32));
        sizes.extend([start, start + 1, start + size / 2, start + size]);
        sizes.extend([header, header + 63]);
    }
    let files: Vec<Vec<u8>> = sizes
        .into_iter()
        .filter_map(|size| whole.get(..size))
        .map(<[u8]>::to_vec)
        .collect();
    for files in files.chunks(16) {
        survive(files);
    }
}

#[test]
fn sections_that_lie_come_back() {
    let whole = &*LIBRARY;
    let headers = section_headers(whole);
    let end = whole.len() as u64;
    let mut files = Vec::new();
    let mut change = |header: usize, (field, size): (usize, usize), value: u64| {
        let mut bytes = whole.clone();
        bytes[header + field..][..size].copy_from_slice(&value.to_le_bytes()[..size]);
        files.push(bytes);
    };
    for &header in &headers {
        for field in FIELDS {
            for value in [0, 1, end - 64, end, end + 1, u64::MAX, 1 << 63] {
                change(header, field, value);
            }
        }
        // At the place of another, and reaching into it.
        for &other in headers.iter().step_by(5) {
            change(header, (24, 8), u64_at(whole, other + 24) as u64);
            change(header, (24, 8), u64_at(whole, other + 24) as u64 + 3);
            change(header, (0, 4), u64_at(whole, other) as u64);
        }
    }
    // The table itself: elsewhere, with another count, another size of its records, another one with the names.
    for (field, size) in [(40, 8), (58, 2), (60, 2), (62, 2)] {
        for value in [0, 1, 63, 64, end - 64, 0xff00, 0xffff, u64::MAX] {
            change(0, (field, size), value);
        }
    }
    for files in files.chunks(64) {
        survive(files);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn files_with_changed_bytes_come_back(changes in prop::collection::vec(
        prop::collection::vec((any::<Index>(), any::<u8>(), any::<bool>()), 1..8), 16)
    ) {
        let files: Vec<Vec<u8>> = changes.into_iter().map(|changes| {
            let mut bytes = LIBRARY.clone();
            let headers = section_headers(&bytes);
            let table = headers[0]..headers[0] + headers.len() * 64;
            for (at, value, anywhere) in changes {
                // Half of them where the sections are described.
                let at = match anywhere {
                    true => at.index(bytes.len()),
                    false => table.start + at.index(table.len()),
                };
                bytes[at] = value;
            }
            bytes
        }).collect();
        survive(&files);
    }

    #[test]
    fn numbers_of_any_kind_and_place_come_back(
        kind in 0usize..4, head in 0usize..70_000, size in 0usize..300_000, cut in 0usize..9, seed in any::<u64>()
    ) {
        let mut bytes = vec![b' '; head];
        bytes.extend(numbers(kind, size, seed));
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        survive(&[bytes]);
    }
}

/// Numbers of four kinds: floats of 32 and of 16 bits (with an 8-bit exponent), doubles, and integers.
fn numbers(kind: usize, size: usize, seed: u64) -> Vec<u8> {
    let random = noise(size * 8 + 8, seed);
    let normal = |n: usize| {
        let sum: u32 = random[n * 8..n * 8 + 8].iter().map(|b| u32::from(*b)).sum();
        (sum as f32 - 1020.0) / 4096.0
    };
    let numbers = (0..size).flat_map(|n| match kind {
        0 => normal(n).to_le_bytes().to_vec(),
        1 => normal(n).to_le_bytes()[2..].to_vec(),
        2 => f64::from(normal(n)).to_le_bytes().to_vec(),
        _ => (n as u32 * 24).to_le_bytes().to_vec(),
    });
    numbers.take(size).collect()
}

// Files made from nothing.

/// A section: its name, type, flags, address and bytes.
type Section<'a> = (&'a str, u32, u64, u64, Vec<u8>);

const PROGBITS: u32 = 1;
const EXECUTABLE: u64 = 4 | 2;

/// An ELF library for x86-64 of these sections, and no segments.
fn elf(sections: &[Section<'_>]) -> Vec<u8> {
    let mut names = vec![0];
    let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    out.extend([3, 0, 62, 0, 1, 0, 0, 0]);
    out.resize(64, 0);
    let mut headers = vec![0; 64];
    let mut header =
        |name: usize, kind: u32, flags: u64, address: u64, offset: usize, size: usize| {
            headers.extend((name as u32).to_le_bytes());
            headers.extend(kind.to_le_bytes());
            for value in [flags, address, offset as u64, size as u64, 0, 1, 0] {
                headers.extend(value.to_le_bytes());
            }
        };
    for (name, kind, flags, address, bytes) in sections {
        header(names.len(), *kind, *flags, *address, out.len(), bytes.len());
        names.extend(name.as_bytes());
        names.push(0);
        out.extend(bytes);
    }
    header(names.len(), 3, 0, 0, out.len(), names.len() + 10);
    names.extend(b".shstrtab\0");
    out.extend(&names);
    let (table, count) = (out.len() as u64, sections.len() as u16 + 2);
    out[40..48].copy_from_slice(&table.to_le_bytes());
    out[52..64].copy_from_slice(&[
        64,
        0,
        56,
        0,
        0,
        0,
        64,
        0,
        count as u8,
        (count >> 8) as u8,
        count as u8 - 1,
        0,
    ]);
    out.extend(headers);
    out
}

fn progbits(name: &str, address: u64, bytes: impl Into<Vec<u8>>) -> Section<'_> {
    (name, PROGBITS, 2, address, bytes.into())
}

/// `.eh_frame` at 0x1000 with this many records, and its search table at 0x900.
fn exceptions(count: u32) -> (Vec<u8>, Vec<u8>) {
    let mut section = [
        &16u32.to_le_bytes()[..],
        &[0; 4],
        &[1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x1b, 0, 0, 0],
    ]
    .concat();
    let mut table = vec![1, 0x1b, 0x03, 0x3b];
    table.extend((0x1000u32 - 0x904).to_le_bytes());
    table.extend(count.to_le_bytes());
    for n in 0..count {
        let (at, function) = (section.len() as u32, 0x10_0000 + n * 48);
        section.extend(16u32.to_le_bytes());
        section.extend((at + 4).to_le_bytes());
        section.extend(function.wrapping_sub(0x1000 + at + 8).to_le_bytes());
        section.extend([40, 0, 0, 0, 0, 0x41, 0x0e, 0x10]);
        table.extend((function - 0x900).to_le_bytes());
        table.extend((0x1000 + at - 0x900).to_le_bytes());
    }
    (section, table)
}

#[test]
fn exceptions_that_are_none_come_back() {
    let (good, table) = exceptions(300);
    let hdr = |bytes: &[u8]| progbits(".eh_frame_hdr", 0x900, bytes);
    let with = |bytes: Vec<u8>| elf(&[hdr(&table), progbits(".eh_frame", 0x1000, bytes)]);
    let filters = survive(&[with(good.clone())]).remove(0);
    assert!(
        filters.contains(&Filter::EhFrame) && filters.contains(&Filter::EhFrameHdr),
        "{filters:?}"
    );

    let mut files = vec![
        with(noise(9_000, 1)),
        with(text(9_000, 1)),
        with(vec![0; 9_000]),
        with(vec![0xff; 9_000]),
        with([&good[..], &[0; 4]].concat()),
        with([&[0; 4], &good[..]].concat()),
        with([&good[..], &[0xff; 4], &[9; 40]].concat()),
        with([&good[..], &[1, 2, 3]].concat()),
        with(good[..good.len() - 1].to_vec()),
        with(Vec::new()),
    ];
    // A length that leads into the middle of the next record, or past the end.
    for length in [0u32, 1, 12, 13, 15, 17, 21, 0x7fff_fff0, u32::MAX - 3] {
        for record in [0, 1, 150, 299] {
            let mut bytes = good.clone();
            bytes[record * 20..][..4].copy_from_slice(&length.to_le_bytes());
            files.push(with(bytes));
        }
    }
    // A search table that is not quite its own.
    for at in (0..table.len()).step_by(97) {
        let mut other = table.clone();
        other[at] ^= 1;
        files.push(elf(&[
            hdr(&other),
            progbits(".eh_frame", 0x1000, good.clone()),
        ]));
    }
    files.extend([
        elf(&[hdr(&table)]),
        elf(&[
            hdr(&table[..table.len() - 8]),
            progbits(".eh_frame", 0x1000, good.clone()),
        ]),
        elf(&[hdr(&table), progbits(".eh_frame", 0x1004, good.clone())]),
        // Several of each.
        elf(&[
            progbits(".eh_frame", 0x1000, good.clone()),
            hdr(&table),
            progbits(".eh_frame", 0x1000, good.clone()),
            hdr(&table),
        ]),
        elf(&[
            progbits(".eh_frame", 0x1000, good.clone()),
            progbits(".eh_frame", 0x1000 + good.len() as u64, good.clone()),
            hdr(&table),
        ]),
    ]);
    for files in files.chunks(32) {
        survive(files);
    }
}

/// All records of a file are in one frame; where that would be too large for a reader, they are not taken for records.
#[test]
fn more_exceptions_than_a_frame_holds_come_back() {
    let record = |n| [&1000u32.to_le_bytes()[..], &noise(1000, n)].concat();
    let records: Vec<u8> = (0..35_000).flat_map(record).collect();
    let file = elf(&[progbits(".eh_frame", 0x1000, records)]);
    let filters = survive(&[file]).remove(0);
    assert!(!filters.contains(&Filter::EhFrame), "{filters:?}");
}

/// The table follows from records that are not packed as such, because another section lies over them.
#[test]
fn a_search_table_whose_records_are_hidden_comes_back() {
    let (records, table) = exceptions(300);
    let mut bytes = elf(&[
        progbits(".comment", 0, vec![b'x'; 100]),
        progbits(".eh_frame", 0x1000, records),
        progbits(".eh_frame_hdr", 0x900, table),
        (".text", PROGBITS, EXECUTABLE, 0x2000, text(3_000, 1)),
    ]);
    let first = section_headers(&bytes)[1];
    bytes[first + 32..first + 40].copy_from_slice(&200u64.to_le_bytes());
    survive(&[bytes]);
}

#[test]
fn code_that_is_none_comes_back() {
    let of = |bytes: Vec<u8>| elf(&[(".text", PROGBITS, EXECUTABLE, u64::MAX - 999, bytes)]);
    let prefixes = vec![0x66; 3_000];
    let halves: Vec<u8> = [0x48, 0x8b].repeat(500);
    let mut files = vec![
        of(noise(5_000, 1)),
        of(text(5_000, 2)),
        of(vec![0; 5_000]),
        of(prefixes),
        of(halves),
    ];
    for opcode in 0..=255 {
        files.push(of([opcode].repeat(700)));
        files.push(of([0x0f, opcode, 0x84, 0x24].repeat(300)));
    }
    for files in files.chunks(64) {
        survive(files);
    }
}

/// As many sections as a header can count, one over the other.
#[test]
fn thousands_of_sections_come_back() {
    let mut bytes = elf(&[(".text", PROGBITS, EXECUTABLE, 0, text(70_000, 1))]);
    let header = bytes[section_headers(&bytes)[1]..][..64].to_vec();
    let table = bytes.len() as u64;
    for n in 0..60_000u64 {
        let mut header = header.clone();
        header[24..32].copy_from_slice(&(64 + n).to_le_bytes());
        header[32..40].copy_from_slice(&(64 + n % 5).to_le_bytes());
        bytes.extend(header);
    }
    bytes[40..48].copy_from_slice(&table.to_le_bytes());
    bytes[60..62].copy_from_slice(&60_000u16.to_le_bytes());
    survive(&[bytes]);
}

/// A tensor file whose header says anything, and one with what is behind its data.
#[test]
fn tensors_that_lie_come_back() {
    let data = numbers(0, 600_000, 1);
    let json = br#"{"a":{"dtype":"F32","shape":[9999999999,2],"data_offsets":[7,18446744073709551615]},"b":{"dtype":"BF16","shape":[-1],"data_offsets":[9,3]}}"#;
    let with = |size: u64, json: &[u8], data: &[u8]| [&size.to_le_bytes()[..], json, data].concat();
    let mut files = vec![
        with(json.len() as u64, json, &data),
        with(json.len() as u64 - 1, json, &data),
        with(u64::MAX, json, &data),
        with(0, b"", &data),
        with(2, b"{}", &data[..data.len() - 3]),
        with(1 << 40, &[b'['; 100_000], &data),
    ];
    // Other formats of tensors, as far as their magic bytes.
    for magic in [
        &b"\x93NUMPY\x01\0\xff\xff"[..],
        b"\x89HDF\r\n\x1a\n",
        b"GGUF\xff\xff\xff\xff",
        b"PK\x03\x04",
    ] {
        files.push([magic, &data[1..]].concat());
    }
    let filters = survive(&files);
    assert!(
        filters
            .iter()
            .all(|filters| filters.contains(&Filter::Planes)),
        "{filters:?}"
    );
}
