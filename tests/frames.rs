//! Frames that are wrong though the index is right: refused when they are read, and no tree is left.

use std::fs;
use std::os::unix::fs::MetadataExt;

use runtime_unpack::Error;
use runtime_unpack::filter::Filter;
use runtime_unpack::format::{self, Codec, HEADER_SIZE};
use runtime_unpack::launch::Launch;

use super::archive::Place;
use super::raw::{
    HELLO, Raw, RawStream, blob, filtered, frame, good, one_file, piece, stored, stream,
};
use super::trees::{self, expected, file};

/// Refused when the frame is read: no tree.
#[track_caller]
fn corrupt(raw: &Raw, message: &str) {
    let place = Place::new(&raw.bytes());
    let error = place.unpack_all().unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains(message), "{error}");
    assert_eq!(place.trees(), 0);
}

/// A zstd frame with these fields (RFC 8878, 3.1.1); the window by its exponent.
fn zstd_frame(window: Option<u8>, dictionary: Option<u8>, size: u32, blocks: &[u8]) -> Vec<u8> {
    let mut out = 0xFD2F_B528u32.to_le_bytes().to_vec();
    let single_segment = u8::from(window.is_none()) << 5;
    out.push(2 << 6 | single_segment | u8::from(dictionary.is_some()));
    out.extend(window.map(|exponent| exponent << 3));
    out.extend(dictionary);
    out.extend(size.to_le_bytes());
    out.extend(blocks);
    out
}

/// A block's header: raw (0) or run-length (1).
fn block(last: bool, kind: u32, size: u32) -> [u8; 3] {
    let header = u32::from(last) | kind << 1 | size << 3;
    [header as u8, (header >> 8) as u8, (header >> 16) as u8]
}

/// `y` repeated, as one run-length block.
fn run(last: bool, size: u32) -> Vec<u8> {
    [&block(last, 1, size)[..], b"y"].concat()
}

fn zstd_of(size: u32, bytes: Vec<u8>) -> Raw {
    let content = vec![b'y'; size as usize];
    let stream = stream(0, Codec::Zstd, content.len(), bytes);
    let piece = piece(content.len(), 0, Filter::Plain, 0);
    one_file(&content, vec![piece], vec![frame(vec![stream])])
}

#[test]
fn hand_made_zstd_frames_are_read() {
    for window in [None, Some(0)] {
        let raw = zstd_of(1000, zstd_frame(window, None, 1000, &run(true, 1000)));
        assert!(Place::new(&raw.bytes()).unpack_all().is_ok(), "{window:?}");
    }
}

#[test]
fn frames_that_lie_about_their_size_are_refused() {
    for (declared, real) in [
        (1001, 1000),
        (999, 1000),
        (1000, 500),
        (500, 1000),
        (0, 1000),
    ] {
        // The record says what the frame declares, and the other way round.
        corrupt(
            &zstd_of(1000, zstd_frame(None, None, declared, &run(true, real))),
            "",
        );
        corrupt(
            &zstd_of(real, zstd_frame(None, None, 1000, &run(true, real + 1))),
            "",
        );
    }
    corrupt(
        &zstd_of(1000, zstd_frame(None, None, 1000, &run(true, 999))),
        "",
    );
    corrupt(
        &zstd_of(1000, zstd_frame(None, None, 1000, &run(true, 1001))),
        "",
    );
    // No size declared at all.
    let mut unsized_frame = zstd_frame(Some(0), None, 0, &[]);
    unsized_frame.truncate(9 - 3);
    unsized_frame[4] = 0;
    unsized_frame.extend(run(true, 1000));
    corrupt(&zstd_of(1000, unsized_frame), "declared size");
}

/// 320 KB that unpack to 10 GiB, declared as 4 MiB. (zstd needs 4 bytes for each 128 KiB, so smaller it cannot be.)
#[test]
fn a_bomb_stops_at_the_declared_size() {
    let size = 4 << 20;
    let mut blocks = run(false, 1 << 17).repeat((10 << 30 >> 17) - 1);
    blocks.extend(run(true, 1 << 17));
    corrupt(&zstd_of(size, zstd_frame(None, None, size, &blocks)), "");
    let smaller = zstd_frame(None, None, size, &run(false, 1 << 17).repeat(31));
    let honest = [smaller, run(true, 1 << 17)].concat();
    assert!(
        Place::new(&zstd_of(size, honest).bytes())
            .unpack_all()
            .is_ok()
    );
}

#[test]
fn frames_that_are_more_than_a_plain_frame_are_refused() {
    let plain = zstd_frame(None, None, 1000, &run(true, 1000));
    let skippable = [
        &0x184D_2A50u32.to_le_bytes()[..],
        &3u32.to_le_bytes(),
        b"abc",
    ]
    .concat();
    let empty = zstd_frame(None, None, 0, &block(true, 0, 0));
    let half = zstd_frame(None, None, 500, &run(true, 500));
    let mut compressor = zstd::bulk::Compressor::new(3).unwrap();
    compressor.include_checksum(true).unwrap();
    let checked = compressor.compress(&[b'y'; 1000]).unwrap();
    let cases = [
        (skippable.clone(), "not a zstd frame"),
        ([&skippable[..], &plain].concat(), "not a zstd frame"),
        ([&plain[..], &skippable].concat(), "something follows it"),
        ([&plain[..], &empty].concat(), "something follows it"),
        ([&plain[..], b"x"].concat(), "something follows it"),
        ([&half[..], &half].concat(), "declared size"),
        (
            zstd_frame(None, Some(7), 1000, &run(true, 1000)),
            "dictionary",
        ),
        (checked, "checksum"),
        (zstd_frame(Some(20), None, 1000, &run(true, 1000)), "window"),
        (zstd_frame(Some(31), None, 1000, &run(true, 1000)), "window"),
        (plain[..plain.len() - 1].to_vec(), "cut short"),
        (plain[..9].to_vec(), "cut short"),
        (plain[..3].to_vec(), "not a zstd frame"),
        (zstd_frame(None, None, 1000, &block(true, 3, 1)), ""),
    ];
    for (bytes, message) in cases {
        corrupt(&zstd_of(1000, bytes), message);
    }
}

#[test]
fn a_frame_must_have_its_digest() {
    for at in 0..32 {
        let mut raw = good();
        raw.frames[0].record[4 + at] ^= 1;
        corrupt(&raw, "digest");
    }
    // The digest is of what is packed: bytes that unpack to the same are others.
    let mut raw = good();
    raw.frames[0].streams = vec![stored(0, HELLO)];
    corrupt(&raw, "digest");
    let mut raw = good();
    raw.frames[0].streams[0].bytes[9] ^= 1;
    corrupt(&raw, "digest");
}

// Streams and pieces.

/// Some code, of all kinds of operands; to be at [`ADDRESS`].
fn code() -> Vec<u8> {
    let mut out = Vec::new();
    for n in 0..200u32 {
        out.extend([0x48, 0x8b, 0x05]); // mov rax, [rip + …]
        out.extend(n.wrapping_mul(7_919).to_le_bytes());
        out.extend([0xe8, 1, 0, n as u8, 0]); // call
        out.extend([0x48, 0x83, 0xec, 0x18, 0x75, 0xfe, 0x0f, 0x84, 3, 0, 0, 0]); // sub rsp; jne; je
        out.extend([0x48, 0x89, 0x44, 0x24, 0x08, 0x06]); // mov [rsp + 8], rax; a byte that is no instruction
    }
    out
}

/// Some code of four bytes each, of all kinds of operands, and half an instruction.
fn words() -> Vec<u8> {
    let mut out = Vec::new();
    for n in 0..150u32 {
        // adrp, add, ldr, stp, bl, b.ne, tbz, madd, and a word that is no instruction
        let words = [
            0x9000_0001 + ((n % 7) << 5),
            0x9104_8c21,
            0xf940_9420 | (n % 5),
            0xa9bf_7bfd,
            0x9400_0000 | (n * 77),
            0x5400_0041,
            0x3748_0043,
            0x9b01_7c00 + (n << 16),
            n.wrapping_mul(0x9e37_79b9),
        ];
        out.extend(words.into_iter().flat_map(u32::to_le_bytes));
    }
    out.extend([0x1f, 0x20]);
    out
}

const ADDRESS: u32 = 0x1000;

/// `.eh_frame` with one CIE and these many records, and the search table for it; to be at [`ADDRESS`] and [`TABLE`].
fn exceptions(records: u32) -> (Vec<u8>, Vec<u8>) {
    let cie = [
        &20u32.to_le_bytes()[..],
        &[0; 4],
        &[
            1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x1b, 0x0c, 7, 8, 0x90, 1, 0, 0,
        ],
    ]
    .concat();
    let mut section = cie;
    let mut table = vec![1, 0x1b, 0x03, 0x3b];
    table.extend(ADDRESS.wrapping_sub(TABLE + 4).to_le_bytes());
    table.extend(records.to_le_bytes());
    for n in 0..records {
        let at = section.len() as u32;
        let function = 0x10_0000 + n * 64;
        section.extend(20u32.to_le_bytes());
        section.extend((at + 4).to_le_bytes()); // back to the CIE
        section.extend(function.wrapping_sub(ADDRESS + at + 8).to_le_bytes());
        section.extend([60, 0, 0, 0, 0, 0x41, 0x0e, n as u8, 0x86, 2, 0, 0]);
        table.extend(function.wrapping_sub(TABLE).to_le_bytes());
        table.extend((ADDRESS + at).wrapping_sub(TABLE).to_le_bytes());
    }
    (section, table)
}

const TABLE: u32 = 0x10_0000 - 4096;

/// Contents of a file as one piece of each filter that makes streams.
fn one_of_each() -> Vec<(Filter, u32, Vec<u8>)> {
    let floats = 4 | 1 << 16;
    let records = 24 | 0b01_0001 << 8;
    let mut out = vec![
        (Filter::Plain, 3, HELLO.to_vec()),
        (Filter::X86, ADDRESS, code()),
        (Filter::Arm64, ADDRESS, words()),
        (Filter::EhFrame, ADDRESS, exceptions(40).0),
        (Filter::Planes, floats, trees::noise(4_001, 1)),
        (Filter::Planes, records, trees::text(2_411, 2)),
    ];
    // And two on what they are not made for.
    out.push((Filter::X86, 7, trees::noise(3_000, 3)));
    out.push((Filter::EhFrame, 7, trees::text(3_000, 4)));
    out
}

fn one_piece(filter: Filter, param: u32, content: &[u8], streams: Vec<RawStream>) -> Raw {
    let piece = piece(content.len(), 0, filter, param);
    one_file(content, vec![piece], vec![frame(streams)])
}

#[test]
fn every_filter_gives_back_what_it_was_given() {
    for (filter, param, content) in one_of_each() {
        let raw = one_piece(filter, param, &content, filtered(filter, param, &content));
        let tree = Place::new(&raw.bytes()).unpack_all().unwrap();
        assert_eq!(tree, expected(&[file("f", 0o755, content)]), "{filter:?}");
    }
}

const DISAGREE: &str = "its pieces and its streams do not agree";

#[test]
fn streams_that_are_not_used_up_are_refused() {
    for (filter, param, content) in one_of_each() {
        let streams = filtered(filter, param, &content);
        for number in 0..runtime_unpack::filter::STREAMS {
            let mut more = streams.clone();
            match more.iter_mut().find(|s| s.record[8] == number) {
                // One byte more; in a dictionary, four times so many words.
                Some(known) => {
                    *known = stored(number, &[&known.bytes[..], &[0]].concat());
                }
                None => {
                    more.push(stored(number, b"x"));
                    more.sort_by_key(|s| s.record[8]);
                }
            }
            corrupt(&one_piece(filter, param, &content, more), DISAGREE);
        }
    }
}

#[test]
fn streams_that_are_too_short_are_refused() {
    for (filter, param, content) in one_of_each() {
        let streams = filtered(filter, param, &content);
        for cut in 0..streams.len() {
            let mut less = streams.clone();
            let bytes = &less[cut].bytes;
            less[cut] = stored(less[cut].record[8], &bytes[..bytes.len() - 1]);
            // Streams have no room for nothing: one that is empty is not there.
            less.retain(|stream| !stream.bytes.is_empty());
            if !less.is_empty() {
                corrupt(&one_piece(filter, param, &content, less), DISAGREE);
            }
            let mut without = streams.clone();
            without.remove(cut);
            if !without.is_empty() {
                corrupt(&one_piece(filter, param, &content, without), DISAGREE);
            }
        }
    }
}

#[test]
fn pieces_that_are_larger_or_smaller_than_their_streams_are_refused() {
    for (filter, param, content) in one_of_each() {
        let streams = filtered(filter, param, &content);
        for size in [1, content.len() - 1, content.len() + 1, content.len() * 2] {
            let content = vec![0; size];
            corrupt(
                &one_piece(filter, param, &content, streams.clone()),
                DISAGREE,
            );
        }
    }
}

#[test]
fn a_search_table_needs_its_records() {
    let (section, table) = exceptions(40);
    let streams = filtered(Filter::EhFrame, ADDRESS, &section);
    let records = |frame| piece(section.len(), frame, Filter::EhFrame, ADDRESS);
    let derived = |frame, size| piece(size, frame, Filter::EhFrameHdr, TABLE);
    let frames = || vec![frame(streams.clone())];
    let both = [&section[..], &table].concat();
    let good = one_file(&both, vec![records(0), derived(0, table.len())], frames());
    let place = Place::new(&good.bytes());
    let tree = place.unpack_all().unwrap();
    assert_eq!(tree, expected(&[file("f", 0o755, both.clone())]));
    // It is decoded last, wherever in the file it is.
    let turned = [&table[..], &section].concat();
    let good = one_file(&turned, vec![derived(0, table.len()), records(0)], frames());
    let tree = Place::new(&good.bytes()).unpack_all().unwrap();
    assert_eq!(tree, expected(&[file("f", 0o755, turned)]));

    // None at all, or in another frame, or in another file.
    let alone = one_file(&table, vec![derived(0, table.len())], frames());
    corrupt(&alone, DISAGREE);
    let plain = vec![stored(0, HELLO)];
    let elsewhere = Raw {
        frames: vec![frame(streams.clone()), frame(plain.clone())],
        ..one_file(&both, vec![records(0), derived(1, table.len())], Vec::new())
    };
    corrupt(&elsewhere, DISAGREE);
    let mut stranger = one_file(&section, vec![records(0)], frames());
    stranger.blobs.push(blob(&table, 1));
    stranger.pieces.push(derived(0, table.len()));
    corrupt(&stranger, DISAGREE);
    // Of another size than the records say.
    for size in [1, 11, 12, table.len() - 8, table.len() - 1, table.len() + 8] {
        let wrong = vec![0; section.len() + size];
        let pieces = vec![records(0), derived(0, size)];
        corrupt(&one_file(&wrong, pieces, frames()), DISAGREE);
    }
}

#[test]
fn a_plain_piece_of_a_missing_stream_is_refused() {
    let of_stream = |number| {
        let piece = piece(HELLO.len(), 0, Filter::Plain, number);
        one_file(HELLO, vec![piece], vec![frame(vec![stored(0, HELLO)])])
    };
    assert!(Place::new(&of_stream(0).bytes()).unpack_all().is_ok());
    for number in 1..8 {
        corrupt(&of_stream(number), DISAGREE);
    }
}

// Holes.

/// A file with holes at its begin, in its middle and at its end.
fn holed(hole: usize) -> Raw {
    let zeros = vec![0; hole];
    let content = [&zeros[..], HELLO, &zeros, HELLO, &zeros].concat();
    let (data, hole) = (
        piece(HELLO.len(), 0, Filter::Plain, 0),
        piece(hole, 0, Filter::Hole, 0),
    );
    let streams = vec![stored(0, &[HELLO, HELLO].concat())];
    one_file(
        &content,
        vec![hole, data, hole, data, hole],
        vec![frame(streams)],
    )
}

#[test]
fn holes_are_zeros() {
    for hole in [1, 4096, 70_000] {
        let zeros = vec![0; hole];
        let content = [&zeros[..], HELLO, &zeros, HELLO, &zeros].concat();
        let tree = Place::new(&holed(hole).bytes()).unpack_all().unwrap();
        assert_eq!(tree, expected(&[file("f", 0o755, content)]));
        let only = one_file(&zeros, vec![piece(hole, 0, Filter::Hole, 0)], Vec::new());
        let tree = Place::new(&only.bytes()).unpack_all().unwrap();
        assert_eq!(tree, expected(&[file("f", 0o755, zeros)]));
    }
}

/// Nothing is written where nothing is: files with holes take less of the disk than their size.
#[test]
fn holes_take_no_space() {
    let mut mixed = trees::noise(10_000, 1);
    mixed.resize(3 << 20, 0);
    mixed.extend(trees::text(10_000, 2));
    mixed.resize(8 << 20, 0);
    let files = [
        file("mixed", 0o640, mixed.clone()),
        file("twin", 0o400, mixed),
        file("zeros", 0o604, vec![0; 4 << 20]),
    ];
    let packed = trees::pack(&files, &Launch::default()).unwrap();
    assert!(packed.bytes.len() < 20_000, "{}", packed.bytes.len());
    let place = Place::new(&packed.bytes);
    assert_eq!(place.unpack_all().unwrap(), expected(&files));
    let tree = place.path("tmp/slimlambda");
    let tree = tree.join(format::hex(&format::digest(&packed.bytes[..HEADER_SIZE])));
    for (name, most) in [("mixed", 64 << 10), ("twin", 64 << 10), ("zeros", 0)] {
        let taken = fs::metadata(tree.join(name)).unwrap().blocks() * 512;
        assert!(taken <= most, "`{name}` takes {taken} bytes");
    }
}
