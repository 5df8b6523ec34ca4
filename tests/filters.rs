//! Filters: what was taken apart is put together again, whatever it was; and whatever a decoder gets, it ends with bytes or an
//! error.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use cargo_slimlambda::elf::image::{Image, Machine};
use cargo_slimlambda::pack::segment;
use proptest::prelude::*;
use proptest::sample::Index;
use runtime_unpack::filter::{self, Decoder, Filter, Malformed, Piece, Scratch};

use super::trees::{noise, text};

/// A piece and what is in it.
#[derive(Debug, Clone)]
struct Given {
    piece: Piece,
    bytes: Vec<u8>,
}

/// Streams by number.
type Streams = Vec<(u8, Vec<u8>)>;

fn given(blob: u32, filter: Filter, param: u32, bytes: impl Into<Vec<u8>>) -> Given {
    Given {
        piece: Piece {
            blob,
            filter,
            param,
        },
        bytes: bytes.into(),
    }
}

fn take_apart(given: &[Given]) -> Streams {
    filter::encode(given.iter().map(|g| (g.piece, &g.bytes[..])))
}

/// The pieces, of these sizes; behind the streams lies so much of this byte.
fn put_together(
    streams: &Streams,
    pieces: impl Iterator<Item = (Piece, usize)>,
    padding: u8,
    scratch: &mut Scratch,
) -> Result<Vec<Vec<u8>>, Malformed> {
    let mut buffer: Vec<u8> = streams
        .iter()
        .flat_map(|(_, bytes)| bytes.clone())
        .collect();
    buffer.resize(buffer.len() + filter::PADDING, padding);
    let sizes = streams.iter().map(|(number, bytes)| (*number, bytes.len()));
    let mut decoder = Decoder::new(&buffer, sizes)?;
    let mut out = Vec::new();
    for (piece, size) in pieces {
        out.push(decoder.piece(&piece, size, scratch)?.to_vec());
        assert_eq!(out.last().unwrap().len(), size);
    }
    decoder.finish()?;
    Ok(out)
}

/// Takes apart and puts together, with buffers that something else was in before.
#[track_caller]
fn check(given: &[Given]) {
    let streams = take_apart(given);
    assert!(streams.is_sorted_by(|a, b| a.0 < b.0));
    assert!(
        streams
            .iter()
            .all(|(number, s)| *number < filter::STREAMS && !s.is_empty())
    );
    // A frame's streams are not much more than its pieces, or frames could outgrow the limit.
    let total = |sizes: &mut dyn Iterator<Item = usize>| sizes.sum::<usize>();
    let (before, after) = (
        total(&mut given.iter().map(|g| g.bytes.len())),
        total(&mut streams.iter().map(|(_, s)| s.len())),
    );
    assert!(after <= before * 4 + 200, "{before} bytes became {after}");
    let mut scratch = Scratch::default();
    for padding in [0, 0xff] {
        let sizes = given.iter().map(|g| (g.piece, g.bytes.len()));
        let out = put_together(&streams, sizes, padding, &mut scratch).expect("it decodes");
        for (given, out) in given.iter().zip(&out) {
            let at = given.bytes.iter().zip(out).position(|(a, b)| a != b);
            assert_eq!(at, None, "{:?} of {} bytes", given.piece, out.len());
        }
    }
}

/// All layouts of planes.
static LAYOUTS: LazyLock<Vec<u32>> = LazyLock::new(|| {
    (0..1 << 17)
        .filter(|param| Filter::Planes.takes(*param))
        .collect()
});

/// ELF files of this machine and its cross compiler, those that there are, and this program.
fn files() -> Vec<Vec<u8>> {
    let paths = [
        "/lib/x86_64-linux-gnu/libc.so.6",
        "/lib/x86_64-linux-gnu/libm.so.6",
        "/lib64/ld-linux-x86-64.so.2",
        "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
        "/lib/aarch64-linux-gnu/libc.so.6",
        "/usr/aarch64-linux-gnu/lib/libc.so.6",
        "/usr/aarch64-linux-gnu/lib/libstdc++.so.6",
        "/lib64/libc.so.6",
    ];
    let this = std::env::current_exe().unwrap();
    let files = paths.iter().map(Path::new).chain([this.as_path()]);
    let files: Vec<Vec<u8>> = files.filter_map(|path| fs::read(path).ok()).collect();
    assert!(files.len() > 1);
    files
}

/// Sections of real files, as the packer sees them.
static REAL: LazyLock<Vec<Given>> = LazyLock::new(|| {
    let mut out = Vec::new();
    for (file, bytes) in files().into_iter().enumerate() {
        let image = Image::parse(&bytes).unwrap();
        for section in &image.sections {
            let Some(bytes) = image
                .section_bytes(section)
                .filter(|bytes| bytes.len() > 64)
            else {
                continue;
            };
            let (filter, param) = match section.name {
                ".eh_frame" => (Filter::EhFrame, section.address as u32),
                ".text" | ".plt" => match image.machine {
                    Machine::X86_64 => (Filter::X86, section.address as u32),
                    Machine::Aarch64 => (Filter::Arm64, section.address as u32),
                },
                ".rela.dyn" => (Filter::Planes, 24 | 0b01_0001 << 8),
                ".data.rel.ro" => (Filter::Planes, 8 | 1 << 8),
                _ => continue,
            };
            out.push(given(
                file as u32,
                filter,
                param,
                &bytes[..bytes.len().min(4 << 20)],
            ));
        }
    }
    out
});

// Bytes to try.

/// Something that a filter may be used on.
fn filter_and_param() -> impl Strategy<Value = (Filter, u32)> {
    let address = prop_oneof![
        any::<u32>(),
        Just(0),
        0u32..0x10_0000,
        u32::MAX - 5_000..=u32::MAX
    ];
    prop_oneof![
        1 => (0..u32::from(filter::PLAIN)).prop_map(|param| (Filter::Plain, param)),
        4 => address.clone().prop_map(|address| (Filter::X86, address)),
        4 => address.clone().prop_map(|address| (Filter::Arm64, address)),
        4 => address.prop_map(|address| (Filter::EhFrame, address)),
        3 => any::<Index>().prop_map(|n| (Filter::Planes, LAYOUTS[n.index(LAYOUTS.len())])),
    ]
}

/// Instructions, with operands that come again and ones that do not, and junk in between.
fn code() -> impl Strategy<Value = Vec<u8>> {
    const HEADS: &[&[u8]] = &[
        &[0xe8],
        &[0xe9],
        &[0xeb],
        &[0x74],
        &[0x0f, 0x84],
        &[0xc3],
        &[0x90],
        &[0x48, 0x8b, 0x05],
        &[0x48, 0x8d, 0x3d],
        &[0x89, 0x44, 0x24],
        &[0x48, 0x81, 0xec],
        &[0x48, 0x83, 0xc4],
        &[0xb8],
        &[0x48, 0xb8],
        &[0x66, 0xb8],
        &[0xc2],
        &[0xc8],
        &[0x66, 0x0f, 0x1f, 0x84, 0x00],
        &[0xf6, 0x05],
        &[0xf7, 0xc0],
        &[0xf7, 0xd8],
        &[0xc5, 0xf8, 0x77],
        &[0xc4, 0xe2, 0x7d, 0x18, 0x05],
        &[0x62, 0xf1, 0x7c, 0x48, 0x28, 0x05],
        &[0x8b, 0x04, 0x25],
        &[0x83, 0x3d],
        &[0xc7, 0x84, 0x24],
        &[0xa1],
        &[0x67, 0xe8],
        &[0xf3, 0x0f, 0x1e, 0xfa],
        &[0x66; 20],
        &[0x0f],
        &[0x62],
        &[0xc4],
        &[0x48],
    ];
    let head = prop_oneof![
        9 => prop::sample::select(HEADS).prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 1..6),
    ];
    let value = prop_oneof![
        prop::sample::select(vec![0u64, 8, 16, 0x1000, u64::MAX, u64::MAX - 100]),
        0u64..300,
        any::<u64>(),
    ];
    let operands =
        (value, 0usize..=8).prop_map(|(value, size)| value.to_le_bytes()[..size].to_vec());
    let instructions = prop::collection::vec((head, operands), 0..200);
    instructions.prop_map(|list| {
        list.into_iter()
            .flat_map(|(a, b)| [a, b].concat())
            .collect()
    })
}

/// Words of four bytes with the operands of AArch64's instructions large and small, and not always whole ones.
fn words() -> impl Strategy<Value = Vec<u8>> {
    const HEADS: [u32; 17] = [
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
        0x3dc0_0000,
        0x1f40_0000,
        0x5800_0000,
        0xd61f_0000,
        0xd65f_03c0,
    ];
    let operand = prop_oneof![Just(0u32), 0u32..64, 0u32..0x40_0000, any::<u32>()];
    let word = (
        prop::sample::select(&HEADS[..]),
        operand,
        any::<u32>(),
        0u8..4,
    );
    let words = prop::collection::vec(word, 0..300);
    (words, 0usize..4).prop_map(|(words, cut)| {
        let words = words
            .into_iter()
            .map(|(head, operand, word, how)| match how {
                0 => word,
                1 => head | (operand & 0x1ffff) << 5 | word & 31,
                _ => head ^ (operand & 0x60ff_ffff),
            });
        let mut out: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        out.truncate(out.len().saturating_sub(cut));
        out
    })
}

/// Records of exceptions, most of them as a compiler would write them.
fn exceptions() -> impl Strategy<Value = (u32, Vec<u8>)> {
    #[derive(Debug, Clone)]
    enum Record {
        Cie(Vec<u8>),
        Fde(usize, u32, u32, u32, Vec<u8>),
        Other(Vec<u8>),
    }
    const PLAIN: &[u8] = &[1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x1b, 0x0c, 7, 8, 0x90, 1];
    const LSDA: &[u8] = &[
        1, b'z', b'P', b'L', b'R', 0, 1, 0x78, 16, 7, 0x9b, 1, 2, 3, 4, 0x1b, 0x1b,
    ];
    const VERSION_3: &[u8] = &[3, b'z', b'R', b'S', 0, 1, 0x78, 0x90, 1, 1, 0x1b];
    let cie = prop_oneof![
        8 => prop::sample::select(vec![PLAIN, LSDA, VERSION_3]).prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ];
    let program = prop::collection::vec(any::<u8>(), 0..12);
    let lsda = prop_oneof![Just(0), 1u32..1000, any::<u32>()];
    let record = prop_oneof![
        2 => cie.prop_map(Record::Cie),
        9 => (0usize..4, 0u32..200, prop_oneof![0u32..100, any::<u32>()], lsda, program)
            .prop_map(|(cie, gap, range, lsda, program)| Record::Fde(cie, gap, range, lsda, program)),
        1 => prop::collection::vec(any::<u8>(), 0..30).prop_map(Record::Other),
    ];
    let start = prop_oneof![Just(0x2000u32), any::<u32>()];
    (start, prop::collection::vec(record, 0..60)).prop_map(|(address, records)| {
        let mut out: Vec<u8> = Vec::new();
        let (mut cies, mut function) = (Vec::new(), 0x10_0000u32);
        for record in records {
            let here = address.wrapping_add(out.len() as u32);
            let body = match record {
                Record::Cie(body) => {
                    let lsda = body.get(2..4) == Some(b"PL");
                    cies.push((here, lsda));
                    [&[0; 4][..], &body].concat()
                }
                Record::Fde(back, gap, range, lsda, program) => {
                    let Some((cie, has_lsda)) = cies.iter().nth_back(back) else {
                        continue;
                    };
                    function = function.wrapping_add(gap);
                    let mut body = here
                        .wrapping_add(4)
                        .wrapping_sub(*cie)
                        .to_le_bytes()
                        .to_vec();
                    body.extend(function.wrapping_sub(here.wrapping_add(8)).to_le_bytes());
                    body.extend(range.to_le_bytes());
                    body.push(if *has_lsda { 4 } else { 0 });
                    if *has_lsda {
                        body.extend(lsda.to_le_bytes());
                    }
                    function = function.wrapping_add(range);
                    [body, program].concat()
                }
                Record::Other(body) => body,
            };
            out.extend((body.len() as u32).to_le_bytes());
            out.extend(body);
        }
        (address, out)
    })
}

/// A part of a real section, changed here and there.
fn mutated() -> impl Strategy<Value = Given> {
    let changes = prop::collection::vec((any::<Index>(), any::<u8>()), 0..12);
    (any::<Index>(), any::<Index>(), 1usize..6_000, changes).prop_map(
        |(section, at, size, changes)| {
            let real = &REAL[section.index(REAL.len())];
            // Records of exceptions begin somewhere; half of the time at the section's own begin.
            let at = at
                .index(2 * real.bytes.len())
                .saturating_sub(real.bytes.len());
            let mut bytes = real.bytes[at..(at + size).min(real.bytes.len())].to_vec();
            for (place, byte) in changes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            Given {
                piece: Piece {
                    param: match real.piece.filter {
                        Filter::Planes => real.piece.param,
                        _ => real.piece.param.wrapping_add(at as u32),
                    },
                    ..real.piece
                },
                bytes,
            }
        },
    )
}

/// Any piece.
fn one_piece() -> impl Strategy<Value = Given> {
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..700),
        prop::collection::vec(0u8..4, 0..700),
        (0usize..3_000, any::<u8>()).prop_map(|(size, byte)| vec![byte; size]),
        code(),
        exceptions().prop_map(|(_, bytes)| bytes),
        mutated().prop_map(|given| given.bytes),
    ];
    let any_of = (0u32..4, filter_and_param(), bytes)
        .prop_map(|(blob, (filter, param), bytes)| given(blob, filter, param, bytes));
    prop_oneof![
        4 => any_of,
        2 => (0u32..4, code(), any::<u32>()).prop_map(|(b, bytes, at)| given(b, Filter::X86, at, bytes)),
        2 => (0u32..4, words(), any::<u32>()).prop_map(|(b, bytes, at)| given(b, Filter::Arm64, at, bytes)),
        2 => (0u32..4, exceptions()).prop_map(|(b, (at, bytes))| given(b, Filter::EhFrame, at, bytes)),
        2 => mutated(),
    ]
}

/// Pieces of one frame, some of them cut in two.
fn pieces() -> impl Strategy<Value = Vec<Given>> {
    let cut = prop::option::of(any::<Index>());
    prop::collection::vec((one_piece(), cut), 0..8).prop_map(|pieces| {
        let mut out = Vec::new();
        for (mut piece, cut) in pieces {
            if let Some(cut) = cut.filter(|_| !piece.bytes.is_empty()) {
                let rest = piece.bytes.split_off(cut.index(piece.bytes.len()));
                let mut second = given(
                    piece.piece.blob,
                    piece.piece.filter,
                    piece.piece.param,
                    rest,
                );
                if matches!(
                    second.piece.filter,
                    Filter::X86 | Filter::Arm64 | Filter::EhFrame
                ) {
                    second.piece.param = second.piece.param.wrapping_add(piece.bytes.len() as u32);
                }
                out.extend([piece, second]);
            } else {
                out.push(piece);
            }
        }
        out
    })
}

/// What may happen to streams.
#[derive(Debug, Clone)]
enum Damage {
    Change(Index, Index, u8),
    Truncate(Index, Index),
    Extend(Index, Vec<u8>),
    Remove(Index),
    Replace(Index, Vec<u8>),
    Swap(Index, Index),
    Resize(Index, usize),
    Param(Index, u32),
}

fn damage() -> impl Strategy<Value = Damage> {
    let bytes = prop::collection::vec(any::<u8>(), 1..60);
    prop_oneof![
        6 => any::<(Index, Index, u8)>().prop_map(|(a, b, c)| Damage::Change(a, b, c)),
        2 => any::<(Index, Index)>().prop_map(|(a, b)| Damage::Truncate(a, b)),
        1 => (any::<Index>(), bytes.clone()).prop_map(|(a, b)| Damage::Extend(a, b)),
        1 => any::<Index>().prop_map(Damage::Remove),
        1 => (any::<Index>(), bytes).prop_map(|(a, b)| Damage::Replace(a, b)),
        1 => any::<(Index, Index)>().prop_map(|(a, b)| Damage::Swap(a, b)),
        2 => (any::<Index>(), 0usize..4_000).prop_map(|(a, b)| Damage::Resize(a, b)),
        1 => any::<(Index, u32)>().prop_map(|(a, b)| Damage::Param(a, b)),
    ]
}

fn hurt(streams: &mut Streams, pieces: &mut [(Piece, usize)], damage: Damage) {
    let streams_left = streams.len();
    let one = |n: &Index| (streams_left > 0).then(|| n.index(streams_left));
    match damage {
        Damage::Change(n, at, byte) => {
            if let Some(stream) = one(&n).map(|n| &mut streams[n].1)
                && !stream.is_empty()
            {
                let at = at.index(stream.len());
                stream[at] = byte;
            }
        }
        Damage::Truncate(n, at) => {
            if let Some(stream) = one(&n).map(|n| &mut streams[n].1) {
                stream.truncate(at.index(stream.len() + 1));
            }
        }
        Damage::Extend(n, more) => {
            if let Some(n) = one(&n) {
                streams[n].1.extend(more);
            }
        }
        Damage::Remove(n) => {
            if let Some(n) = one(&n) {
                streams.remove(n);
            }
        }
        Damage::Replace(n, bytes) => {
            if let Some(n) = one(&n) {
                streams[n].1 = bytes;
            }
        }
        Damage::Swap(a, b) => {
            if let (Some(a), Some(b)) = (one(&a), one(&b)) {
                let bytes = streams[a].1.clone();
                streams[a].1 = std::mem::replace(&mut streams[b].1, bytes);
            }
        }
        Damage::Resize(n, size) if !pieces.is_empty() => {
            let n = n.index(pieces.len());
            pieces[n].1 = size;
        }
        Damage::Param(n, param) if !pieces.is_empty() => {
            let n = n.index(pieces.len());
            pieces[n].0.param = param;
        }
        Damage::Resize(..) | Damage::Param(..) => {}
    }
}

fn any_filter() -> impl Strategy<Value = Filter> {
    prop::sample::select((0..=255).filter_map(Filter::from_byte).collect::<Vec<_>>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_taken_apart_is_put_together(pieces in pieces()) {
        check(&pieces);
    }

    #[test]
    fn damaged_streams_end_with_bytes_or_an_error(given in pieces(), damage in prop::collection::vec(damage(), 1..5)) {
        let mut streams = take_apart(&given);
        let mut pieces: Vec<(Piece, usize)> = given.iter().map(|g| (g.piece, g.bytes.len())).collect();
        for damage in damage {
            hurt(&mut streams, &mut pieces, damage);
        }
        let mut scratch = Scratch::default();
        let first = put_together(&streams, pieces.iter().copied(), 0, &mut scratch);
        // Neither what is behind the streams nor what was decoded before shows in what comes out.
        for padding in [0xff, 0x3c] {
            let again = put_together(&streams, pieces.iter().copied(), padding, &mut scratch);
            prop_assert_eq!(&again, &first);
        }
    }

    #[test]
    fn streams_of_anything_end_with_bytes_or_an_error(
        streams in prop::collection::btree_map(0..filter::STREAMS, prop::collection::vec(any::<u8>(), 0..200), 0..40),
        pieces in prop::collection::vec((any_filter(), any::<u32>(), 0usize..2_000), 0..6),
    ) {
        let pieces = pieces.into_iter().enumerate().map(|(n, (filter, param, size))| {
            (Piece { blob: n as u32 / 3, filter, param }, size)
        });
        _ = put_together(&streams.into_iter().collect(), pieces, 7, &mut Scratch::default());
    }

    /// A search table comes back too, and only the right one is said to follow from the records.
    #[test]
    fn search_tables_follow_from_records((address, records) in exceptions(), at in any::<u32>(), change in any::<(Index, u8)>()) {
        let table = search_table(address, &records, at);
        let derives = |table: &[u8]| filter::derives_eh_frame_hdr([(address, &records[..])].into_iter(), at, table);
        prop_assert!(derives(&table));
        let mut other = table.clone();
        let place = change.0.index(other.len());
        other[place] = other[place].wrapping_add(change.1 | 1);
        prop_assert!(!derives(&other));
        prop_assert!(!derives(&table[..table.len() - 1]));
        check(&[given(3, Filter::EhFrame, address, records), given(3, Filter::EhFrameHdr, at, table)]);
    }
}

/// The search table that a linker would write for the records that the filter knows, by another way: a decoder that is given
/// sizes until one fits.
fn search_table(address: u32, records: &[u8], at: u32) -> Vec<u8> {
    let pieces = [given(0, Filter::EhFrame, address, records)];
    let streams = take_apart(&pieces);
    for count in 0.. {
        let derived = Piece {
            blob: 0,
            filter: Filter::EhFrameHdr,
            param: at,
        };
        let wanted = [(pieces[0].piece, records.len()), (derived, 12 + 8 * count)];
        let made = put_together(&streams, wanted.into_iter(), 0, &mut Scratch::default());
        if let Ok(mut made) = made {
            return made.pop().unwrap();
        }
        assert!(count < 100, "no size fits");
    }
    unreachable!()
}

/// Every part of real files, with the filter that the packer tries on it: none of them needs a way out.
#[test]
fn real_files_are_put_together() {
    for bytes in files() {
        let mut pieces = Vec::new();
        for part in segment::parts(&bytes) {
            if part.filter != Filter::Hole && part.range.end < 24 << 20 {
                assert!(part.range.len() <= part.filter.max_piece() as usize);
                assert!(part.filter.takes(part.param));
                pieces.push(given(1, part.filter, part.param, &bytes[part.range]));
            }
        }
        pieces.sort_by_key(|given| given.piece.filter.is_derived());
        check(&pieces);
    }
}

/// The search tables of real files are what the filter says they are: not one that is stored.
#[test]
fn real_search_tables_are_derived() {
    let derived = files()
        .iter()
        .filter(|bytes| {
            segment::parts(bytes)
                .iter()
                .any(|part| part.filter == Filter::EhFrameHdr)
        })
        .count();
    assert!(
        derived * 2 > files().len(),
        "{derived} of {}",
        files().len()
    );
}

/// What is one thing, taken for another.
#[test]
fn real_sections_survive_any_filter() {
    for real in REAL.iter() {
        let bytes = &real.bytes[..real.bytes.len().min(150_000)];
        for (filter, param) in [
            (Filter::X86, 1),
            (Filter::Arm64, 3),
            (Filter::EhFrame, real.piece.param),
            (Filter::EhFrame, 7),
        ] {
            check(&[given(0, filter, param, bytes)]);
        }
        for param in [4 | 1 << 16, 2 | 1 << 16, 1, 7, 24 | 63 << 8, 32 | 255 << 8] {
            check(&[given(0, Filter::Planes, param, bytes)]);
        }
    }
}

#[test]
fn pieces_of_the_largest_size_are_put_together() {
    for filter in [Filter::X86, Filter::Arm64, Filter::EhFrame, Filter::Planes] {
        let most = filter.max_piece() as usize;
        for size in [most - 1, most] {
            let param = if filter == Filter::Planes {
                24 | 1 << 8
            } else {
                u32::MAX - 1000
            };
            let nops = vec![0x90; size];
            let jumps: Vec<u8> = [0xeb, 0x7f, 0x74, 0x80]
                .into_iter()
                .cycle()
                .take(size)
                .collect();
            let far: Vec<u8> = [0xe9, 0xf0, 0xff, 1, 0]
                .into_iter()
                .cycle()
                .take(size)
                .collect();
            for bytes in [
                nops,
                jumps,
                far,
                vec![0; size],
                noise(size, 1),
                text(size, 2),
            ] {
                check(&[
                    given(0, filter, param, bytes.clone()),
                    given(1, filter, param, bytes),
                ]);
            }
        }
    }
}

/// As many records as the largest search table has.
#[test]
fn the_largest_search_table_is_derived() {
    const ADDRESS: u32 = 0x1000;
    let count = (Filter::EhFrameHdr.max_piece() as usize - 12) / 8;
    let cie = [1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x1b, 0, 0, 0];
    let mut records = [&16u32.to_le_bytes()[..], &[0; 4], &cie].concat();
    for n in 0..count {
        let at = records.len() as u32;
        records.extend(13u32.to_le_bytes());
        records.extend((at + 4).to_le_bytes());
        // Not in order, as the table is.
        let function = (n as u32).wrapping_mul(0x9e37_79b9);
        records.extend(function.wrapping_sub(ADDRESS + at + 8).to_le_bytes());
        records.extend([1, 0, 0, 0, 0]);
    }
    let (mut pieces, mut at) = (Vec::new(), ADDRESS);
    // Cut between records, the first of which is 20 bytes long and the others 17.
    let most = (Filter::EhFrame.max_piece() as usize - 20) / 17 * 17;
    let (first, rest) = records.split_at(20 + most);
    for piece in [first].into_iter().chain(rest.chunks(most)) {
        pieces.push(given(0, Filter::EhFrame, at, piece));
        at += piece.len() as u32;
    }
    let streams = take_apart(&pieces);
    let mut wanted: Vec<(Piece, usize)> = pieces.iter().map(|g| (g.piece, g.bytes.len())).collect();
    let hdr = Piece {
        blob: 0,
        filter: Filter::EhFrameHdr,
        param: 0x800,
    };
    wanted.push((hdr, 12 + 8 * count));
    let out = put_together(&streams, wanted.into_iter(), 0, &mut Scratch::default()).unwrap();
    assert_eq!(out[..out.len() - 1].concat(), records);
    let table = out.last().unwrap()[12..].chunks_exact(8);
    let functions: Vec<u32> = table
        .map(|e| u32::from_le_bytes(e[..4].try_into().unwrap()).wrapping_add(0x800))
        .collect();
    assert!(functions.is_sorted() && functions.len() == count);
    let pieces = pieces.iter().map(|g| (g.piece.param, &g.bytes[..]));
    assert!(filter::derives_eh_frame_hdr(
        pieces,
        0x800,
        out.last().unwrap()
    ));
}

/// Dictionaries that are empty, full, and just not: of tokens with one byte, with two, with three.
#[test]
fn dictionaries_of_every_size_are_put_together() {
    let bounds = [
        0, 1, 223, 224, 225, 253, 7_647, 7_648, 7_649, 7_903, 7_904, 7_905, 20_000,
    ];
    for count in bounds {
        // `mov`, `add`, … between registers, with every prefix.
        let heads = (0..count).map(|n: usize| {
            let (op, modrm, rex) = (n % 32, n / 32 % 64, n / 2048);
            [
                0x40 | rex as u8,
                (op / 4 * 8 + op % 4) as u8,
                0xc0 | modrm as u8,
            ]
        });
        let code: Vec<u8> = heads.flatten().collect();
        // Calls and immediates of so many values.
        let values: Vec<u8> = (0..count as u32)
            .flat_map(|n| {
                [
                    vec![0xb8],
                    n.wrapping_mul(0x9e37_79b9).to_le_bytes().to_vec(),
                ]
                .concat()
            })
            .collect();
        let mut pieces = Vec::new();
        for bytes in [&code, &values] {
            let thrice = bytes.repeat(3);
            let chunks = thrice.chunks(Filter::X86.max_piece() as usize);
            pieces.extend(chunks.map(|chunk| given(0, Filter::X86, 0, chunk)));
        }
        check(&pieces);
        // The same for instructions of four bytes: `add` of three registers, `b` to anywhere, and words that are nothing.
        let words =
            (0..count as u32).flat_map(|n| [0x8b00_0000 | n, 0x1400_0000 | n << 8, n << 12]);
        let code: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        let thrice = code.repeat(3);
        let chunks = thrice.chunks(Filter::Arm64.max_piece() as usize);
        check(
            &chunks
                .map(|chunk| given(0, Filter::Arm64, 0, chunk))
                .collect::<Vec<_>>(),
        );
    }
    // More heads than there are tokens, all of which come often enough.
    let many: Vec<u8> = (0..90_000u32)
        .flat_map(|n| {
            [
                0xc4,
                0xe1 + (n % 3) as u8,
                (n / 3 % 256) as u8,
                (n / 768) as u8,
                0xc0,
            ]
        })
        .collect();
    let thrice = many.repeat(3);
    let chunks = thrice.chunks(Filter::X86.max_piece() as usize);
    check(
        &chunks
            .map(|chunk| given(0, Filter::X86, 0, chunk))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn every_layout_of_planes_is_undone() {
    let bytes = noise(333, 5);
    for param in LAYOUTS.iter() {
        for size in [0, 1, 31, 32, 33, 64, 333] {
            check(&[given(0, Filter::Planes, *param, &bytes[..size])]);
        }
    }
}

/// Parameters that a reader lets through mean something to the decoder.
#[test]
fn planes_take_only_layouts() {
    for param in (0..1 << 18).chain([u32::MAX, 1 << 31 | 4]) {
        let streams = vec![(8, vec![0; 64])];
        let piece = Piece {
            blob: 0,
            filter: Filter::Planes,
            param,
        };
        let decoded = put_together(
            &streams,
            [(piece, 64)].into_iter(),
            0,
            &mut Scratch::default(),
        );
        let floats = param >> 16 == 1;
        assert_eq!(
            decoded.is_ok(),
            Filter::Planes.takes(param) && !floats,
            "{param:#x}"
        );
    }
}
