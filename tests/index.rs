//! Archives whose index is wrong: refused before anything is written.

use runtime_unpack::Error;
use runtime_unpack::filter::{self, Filter};
use runtime_unpack::format::{
    self, Blob, Codec, HEADER_SIZE, Header, Kind, MAX_CONTENT, MAX_FRAME,
};

use super::archive::Place;
use super::raw::{
    FILE, HELLO, Raw, RawEntry, at, entry, frame, good, good_tree, one_file, piece, raw_link,
    stored, stream, within,
};

#[test]
fn the_raw_writer_writes_archives() {
    assert_eq!(
        Place::new(&good().bytes()).unpack_all().unwrap(),
        good_tree()
    );
}

/// Refused when the index is read: nothing is written at all.
#[track_caller]
fn refused(archive: &[u8], message: &str) {
    let place = Place::new(archive);
    let error = place.unpack_all().unwrap_err();
    assert!(error.to_string().contains(message), "{error}");
    assert!(matches!(error, Error::Malformed(_)), "{error:?}");
    assert!(!place.path("tmp/slimlambda").exists());
}

#[test]
fn paths_that_leave_the_root_are_refused() {
    let long = [b'x'; 256];
    let deep = b"x/".repeat(2_000);
    let cases: &[&[u8]] = &[
        b"../x",
        b"..",
        b"a/../../x",
        b"/etc/x",
        b"/",
        b"",
        b".",
        b"./x",
        b"a/./x",
        b"a//x",
        b"x/",
        b"a\0b",
        &long,
        &deep,
    ];
    for path in cases {
        refused(&at(path).bytes(), "path");
        refused(&within(&[raw_link(path, b"d")]).bytes(), "path");
        refused(&within(&[entry(Kind::Directory, path)]).bytes(), "path");
    }
}

#[test]
fn symlinks_that_leave_the_root_are_refused() {
    let long = [b'x'; 256];
    let cases: &[&[u8]] = &[
        b"",
        b"/",
        b"/etc/passwd",
        b"../../x",
        b"../..",
        b"a/../../../x",
        b"x/..",
        b"./x",
        b"x//y",
        b"x/",
        b"x\0y",
        &long,
    ];
    for target in cases {
        refused(
            &within(&[raw_link(b"d/l", target)]).bytes(),
            "a symlink leaves the root",
        );
    }
}

#[test]
fn entries_of_other_kinds_are_refused() {
    for kind in 3..=255 {
        let mut raw = good();
        raw.entries[1].record[0] = kind; // a device, a FIFO, a socket, …
        refused(&raw.bytes(), "neither file, directory nor symlink");
    }
}

#[test]
fn unknown_flags_and_modes_are_refused() {
    let cases: &[(usize, u8)] = &[
        (1, 2),
        (1, 0x80),
        (3, 0x08),
        (3, 0x04),
        (3, 0x02),
        (3, 0x80),
        (6, 1),
        (7, 1),
    ];
    for &(byte, value) in cases {
        let mut raw = good();
        raw.entries[1].record[byte] |= value; // flags; setuid, setgid, sticky; reserved
        refused(&raw.bytes(), "unknown flag or mode");
    }
}

#[test]
fn paths_that_clash_are_refused() {
    let cases: &[(&str, &[RawEntry])] = &[
        (
            "the same twice",
            &[entry(FILE, b"d/f"), entry(FILE, b"d/f")],
        ),
        (
            "file and directory",
            &[entry(FILE, b"d/f"), entry(Kind::Directory, b"d/f")],
        ),
        ("not sorted", &[entry(FILE, b"d/g"), entry(FILE, b"d/f")]),
        (
            "through a file",
            &[entry(FILE, b"d/f"), entry(FILE, b"d/f/g")],
        ),
        (
            "through a symlink",
            &[raw_link(b"d/l", b"f"), entry(FILE, b"d/l/g")],
        ),
        ("through nothing", &[entry(FILE, b"e/f")]),
        (
            "directory behind its file",
            &[entry(FILE, b"e/f"), entry(Kind::Directory, b"e")],
        ),
    ];
    for (_, entries) in cases {
        refused(&within(entries).bytes(), "path");
    }
}

#[test]
fn sizes_that_do_not_add_up_are_refused() {
    let raw = good();
    let header = |change: &dyn Fn(&mut Header)| raw.bytes_with(change, |_| {});
    refused(
        &header(&|h| h.frames_packed = u64::MAX),
        "longer or shorter",
    );
    refused(&header(&|h| h.frames_packed -= 1), "longer or shorter");
    refused(&header(&|h| h.index_packed = u64::MAX), "cut short");
    refused(&header(&|h| h.index_packed = u64::MAX - 127), "cut short");
    refused(&header(&|h| h.index_packed += 1), "digest");
    refused(&header(&|h| h.index_unpacked = u64::MAX), "index size");
    refused(
        &header(&|h| h.index_unpacked = format::MAX_INDEX_SIZE),
        "index size",
    );
    refused(&header(&|h| h.index_unpacked += 1), "declared size");
    refused(&header(&|h| h.index_unpacked = 0), "index size");
    refused(&header(&|h| h.content_size += 1), "add up");
    refused(&header(&|h| h.content_size = MAX_CONTENT), "add up");
    refused(
        &header(&|h| h.content_size = MAX_CONTENT + 1),
        "content size",
    );
    refused(&header(&|h| h.content_size = u64::MAX), "content size");
    refused(&header(&|h| h.entries = u32::MAX), "more entries");
    refused(&header(&|h| h.blobs = u32::MAX), "more entries");
    refused(&header(&|h| h.frames = u32::MAX), "more entries");
    refused(&header(&|h| h.entries = format::MAX_COUNT), "index size");
    refused(&header(&|h| h.launch_size = u32::MAX), "index size");
    refused(&header(&|h| h.entries -= 1), "");
    refused(&header(&|h| h.entries += 1), "");
    refused(&header(&|h| h.blobs += 1), "");
    refused(&header(&|h| h.frames -= 1), "");
    refused(&header(&|h| h.pieces = u32::MAX), "more entries");
    refused(&header(&|h| h.streams = u32::MAX), "more entries");
    refused(&header(&|h| h.pieces -= 1), "");
    refused(&header(&|h| h.pieces += 1), "");
    refused(&header(&|h| h.streams -= 1), "");
    refused(&header(&|h| h.streams += 1), "");
    refused(&header(&|h| h.frame_limit = MAX_FRAME + 1), "frame size");
    refused(&header(&|h| h.frame_limit = u32::MAX), "frame size");
    refused(&header(&|h| h.frame_limit -= 1), "frame size");
    refused(&header(&|h| h.frame_limit += 1), "frame size");
    refused(&[raw.bytes(), b"x".to_vec()].concat(), "longer or shorter");
    refused(
        &Raw {
            slack: vec![0],
            ..good()
        }
        .bytes(),
        "bytes behind the last path",
    );

    let blobs = |sizes: &[u64]| {
        let mut raw = good();
        raw.blobs = sizes
            .iter()
            .map(|size| Blob {
                size: *size,
                pieces: 1,
                digest: [0; 32],
            })
            .collect();
        raw.bytes()
    };
    let size = HELLO.len() as u64;
    refused(&blobs(&[size - 1]), "add up");
    refused(&blobs(&[size + 1]), "add up");
    refused(&blobs(&[u64::MAX, size + 1]), "add up"); // wraps to the right sum
    refused(&blobs(&[1 << 63, (1 << 63) + size]), "add up"); // as this does
    refused(&blobs(&[]), "");

    let mut dangling = good();
    dangling.entries[1].record[8] = 1; // there is no blob 1
    refused(&dangling.bytes(), "neither file");
    let mut outside = good();
    outside.entries[2].record[8] = 200; // a target longer than what is left of the index
    refused(&outside.bytes(), "outside the index");
    let mut outside = good();
    outside.entries[2].record[4..6].copy_from_slice(&u16::MAX.to_le_bytes());
    refused(&outside.bytes(), "outside the index");
    let mut directory = good();
    directory.entries[0].record[8] = 1;
    refused(&directory.bytes(), "neither file");
}

/// `good()` with these bytes of a record changed to this.
fn changed(record: impl Fn(&mut Raw) -> &mut [u8], at: usize, value: u32) -> Vec<u8> {
    let mut raw = good();
    record(&mut raw)[at..at + 4].copy_from_slice(&value.to_le_bytes());
    raw.bytes()
}

#[test]
fn streams_out_of_bounds_are_refused() {
    let change = |at, value| changed(|raw| &mut raw.frames[0].streams[0].record, at, value);
    let size = HELLO.len() as u32;
    refused(&change(0, u32::MAX), "stream size");
    refused(&change(0, size + 1), "stream size");
    refused(&change(0, 1), "add up");
    refused(&change(4, 0), "stream size");
    refused(&change(4, u32::MAX), "frame size");
    refused(&change(4, MAX_FRAME + 1), "frame size");
    let (codec, stored) = (1 << 8, 0);
    for number in filter::STREAMS..=255 {
        refused(&change(8, codec | u32::from(number)), "unknown stream");
    }
    for codec in 2..=255 {
        refused(&change(8, codec << 8), "codec");
    }
    refused(&change(8, stored), "a stored stream changes its size");
    refused(&change(8, codec | 1 << 16), "reserved");
    refused(&change(8, codec | 1 << 31), "reserved");
}

#[test]
fn frames_with_streams_that_are_not_theirs_are_refused() {
    let change = |value| changed(|raw| &mut raw.frames[0].record, 0, value);
    refused(&change(0), "frame size");
    refused(&change(2), "streams that are not there");
    refused(&change(u32::MAX), "streams that are not there");

    let frames = |frames: &[&[u8]]| {
        let frames = frames.iter().map(|numbers| {
            let streams = numbers.iter().map(|number| stored(*number, HELLO));
            frame(streams.collect())
        });
        Raw {
            frames: frames.collect(),
            ..good()
        }
    };
    refused(&frames(&[&[1, 0]]).bytes(), "not in order");
    refused(&frames(&[&[1, 1]]).bytes(), "not in order");
    refused(&frames(&[&[0, 3, 2]]).bytes(), "not in order");
    refused(&frames(&[&[0], &[]]).bytes(), "frame size");
    refused(&frames(&[]).bytes(), "frame that is not there");
    // A stream that no frame has.
    let mut raw = frames(&[&[0, 1]]);
    raw.frames[0].record[0] = 1;
    refused(&raw.bytes(), "add up");
    let mut raw = frames(&[&[0, 1], &[0]]);
    raw.frames[1].record[0] = 2;
    refused(&raw.bytes(), "streams that are not there");

    // As many bytes as a frame may have, and one more.
    let mut raw = frames(&[&[0], &[0, 1]]);
    raw.frame_limit = Some(2 * HELLO.len() as u32 - 1);
    refused(&raw.bytes(), "frame size");
    let most = |more: usize| {
        let size = MAX_FRAME as usize / 2;
        let streams = [(0, size), (1, size + more)];
        let streams = streams.map(|(number, size)| stream(number, Codec::Zstd, size, vec![0]));
        one_file(b"", vec![], vec![frame(streams.into())]).bytes()
    };
    refused(&most(1), "frame size");
    assert!(Place::new(&most(0)).open(None).is_ok());
}

#[test]
fn pieces_out_of_bounds_are_refused() {
    let change = |at, value| changed(|raw| &mut raw.pieces[0], at, value);
    let size = HELLO.len() as u32;
    refused(&change(0, 0), "size or parameter");
    refused(&change(0, size - 1), "add up");
    refused(&change(0, size + 1), "add up");
    refused(&change(0, u32::MAX), "add up");
    refused(&change(4, 1), "frame that is not there");
    refused(&change(4, u32::MAX), "frame that is not there");
    refused(&change(8, filter::PLAIN.into()), "size or parameter");
    refused(&change(8, u32::MAX), "size or parameter");
    for byte in 0..=255 {
        match Filter::from_byte(byte) {
            None => refused(&change(12, byte.into()), "unknown filter"),
            Some(filter) => assert_eq!(filter as u8, byte),
        }
    }
    for reserved in [8, 16, 31] {
        refused(&change(12, 1 << reserved), "reserved");
    }
}

#[test]
fn pieces_larger_than_their_filter_takes_are_refused() {
    for filter in (0..=255).filter_map(Filter::from_byte) {
        let param = match filter {
            Filter::Planes => 1,
            _ => 0,
        };
        let most = filter.max_piece();
        if most == u32::MAX {
            continue; // all sizes that can be said
        }
        let open = |size: u32| {
            let mut raw = one_file(
                b"",
                vec![piece(size as usize, 0, filter, param)],
                good().frames,
            );
            raw.blobs[0].size = size.into();
            raw.bytes()
        };
        refused(&open(most + 1), "size or parameter");
        refused(&open(u32::MAX), "size or parameter");
        assert!(Place::new(&open(most)).open(None).is_ok(), "{filter:?}");
    }
}

#[test]
fn layouts_that_mean_nothing_are_refused() {
    let open = |param| {
        one_file(
            HELLO,
            vec![piece(HELLO.len(), 0, Filter::Planes, param)],
            good().frames,
        )
    };
    let (floats, difference) = (1 << 16, 1 << 8);
    for param in [
        0,
        33,
        255,
        3 | difference,
        4 | difference << 1,
        1 | floats,
        8 | floats,
        1 | 1 << 17,
        u32::MAX,
    ] {
        refused(&open(param).bytes(), "size or parameter");
    }
}

#[test]
fn holes_in_frames_are_refused() {
    let hole = |frame, param| {
        let mut raw = good();
        raw.blobs[0] = blob_of(HELLO.len() as u64 + 9, 2);
        raw.pieces.push(piece(9, frame, Filter::Hole, param));
        raw.frames.push(raw.frames[0].clone());
        raw.bytes()
    };
    refused(&hole(1, 0), "frame that is not there");
    refused(&hole(0, 1), "size or parameter");
    assert!(Place::new(&hole(0, 0)).open(None).is_ok());
}

fn blob_of(size: u64, pieces: u32) -> Blob {
    Blob {
        size,
        pieces,
        digest: [0; 32],
    }
}

#[test]
fn pieces_that_do_not_add_up_to_blobs_are_refused() {
    let size = HELLO.len() as u64;
    let plain = |size: u64| piece(size as usize, 0, Filter::Plain, 0);
    let hole = |size: u32| piece(size as usize, 0, Filter::Hole, 0);
    let cases: &[(&[Blob], &[[u8; 16]])] = &[
        (&[blob_of(size, 0)], &[plain(size)]),
        (&[blob_of(size, 2)], &[plain(size)]),
        (&[blob_of(size, u32::MAX)], &[plain(size)]),
        (&[blob_of(size, 1)], &[plain(size), plain(1)]),
        (&[blob_of(size, 1)], &[]),
        (&[blob_of(0, 1)], &[plain(size)]),
        (&[blob_of(size, 1), blob_of(0, 1)], &[plain(size)]),
        // The right sum, wrongly shared out.
        (
            &[blob_of(size - 1, 1), blob_of(1, 1)],
            &[plain(1), plain(size - 1)],
        ),
        (
            &[blob_of(size, 1), blob_of(1, 1)],
            &[plain(size - 1), plain(2)],
        ),
        (&[blob_of(1 << 33, 2)], &[hole(u32::MAX), hole(u32::MAX)]),
    ];
    for (blobs, pieces) in cases {
        let raw = Raw {
            blobs: blobs.to_vec(),
            pieces: pieces.to_vec(),
            ..good()
        };
        refused(&raw.bytes(), "add up");
    }
}

#[test]
fn a_newer_version_names_the_launcher_it_needs() {
    let mut archive = good().bytes();
    archive[8..10].copy_from_slice(&7u16.to_le_bytes());
    let error = Place::new(&archive).unpack_all().unwrap_err();
    assert_eq!(error, Error::Version { needs: 7 });
    assert!(
        error.to_string().contains("needs launcher \u{2265} 7"),
        "{error}"
    );
}

#[test]
fn another_archive_than_the_paired_one_is_refused() {
    let other = at(b"other").bytes();
    let digest = format::digest(&good().bytes()[..HEADER_SIZE]);
    let place = Place::new(&other);
    let error = place.unpack(Some(&digest), 2, |_| true).unwrap_err();
    assert!(matches!(error, Error::WrongArchive { .. }), "{error:?}");
    assert!(!place.path("tmp/slimlambda").exists());
}
