//! The archive reader: what was packed comes out, and whatever the bytes, nothing else ever does.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use runtime_unpack::format::{
    self, BLOB_SIZE, Blob, Codec, Digest, ENTRY_SIZE, FRAME_SIZE, Frame, HEADER_SIZE, Header, Kind,
};
use runtime_unpack::launch::Launch;
use runtime_unpack::reader::Entry;
use runtime_unpack::source::ArchiveFile;
use runtime_unpack::store::{self, Options};
use runtime_unpack::{Error, Result};
use tempfile::TempDir;

use super::trees::{self, Content, File, Node, Tree, expected, file, found, lazy, link};

/// A directory with an archive, a place to unpack to, and a file that must never change.
struct Place {
    directory: TempDir,
}

impl Place {
    fn new(archive: &[u8]) -> Place {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("outside")).unwrap();
        fs::write(directory.path().join("outside/sentinel"), "untouched").unwrap();
        fs::create_dir(directory.path().join("tmp")).unwrap();
        let place = Place { directory };
        place.put(archive);
        place
    }

    fn put(&self, archive: &[u8]) {
        fs::write(self.path("archive"), archive).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn open(&self, digest: Option<&Digest>) -> Result<ArchiveFile> {
        let path = self.path("archive").into_os_string().into_encoded_bytes();
        ArchiveFile::open(&[path], digest)
    }

    fn options(&self, threads: usize) -> Options {
        Options {
            tmp: self.path("tmp").into_os_string().into_encoded_bytes(),
            verify: false,
            threads,
            lock_timeout_ms: 10_000,
        }
    }

    /// The whole way, for the entries that `wanted` picks.
    fn unpack(
        &self,
        digest: Option<&Digest>,
        threads: usize,
        wanted: impl Fn(Entry<'_>) -> bool,
    ) -> Result<Tree> {
        let source = self.open(digest)?;
        let wanted = |n| wanted(source.archive.entry(n));
        let result = store::ensure(&source, &self.options(threads), wanted);
        self.check_outside();
        let tree = result?;
        Ok(found(Path::new(std::str::from_utf8(&tree.path).unwrap())))
    }

    fn unpack_all(&self) -> Result<Tree> {
        self.unpack(None, 2, |_| true)
    }

    fn check_outside(&self) {
        let names = |directory: &Path| {
            let entries = fs::read_dir(directory).unwrap();
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(self.directory.path()), ["archive", "outside", "tmp"]);
        assert_eq!(names(&self.path("outside")), ["sentinel"]);
        let sentinel = fs::read(self.path("outside/sentinel")).unwrap();
        assert_eq!(sentinel, b"untouched");
    }

    /// Names in /tmp/slimlambda that are trees.
    fn trees(&self) -> usize {
        let entries = fs::read_dir(self.path("tmp/slimlambda"));
        entries.map_or(0, |entries| {
            let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
            entries
                .filter(|_| true)
                .map(name)
                .filter(|n| n.len() == 64)
                .count()
        })
    }
}

// What is packed comes out.

fn component() -> impl Strategy<Value = String> {
    prop_oneof![
        10 => prop::sample::select(vec!["a", "b", "a-b", "a.b", "c.so", "c.so.1", "ü", "0", "...", " ", "-rf"])
            .prop_map(str::to_owned),
        1 => "[a-z]{255}",
    ]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let block = 1usize << cargo_slimlambda::pack::archive::BLOCK_LOG2;
    prop_oneof![
        3 => Just(Vec::new()),
        8 => prop::sample::select(vec![&b"same"[..], b"same too"]).prop_map(<[u8]>::to_vec),
        20 => prop::collection::vec(any::<u8>(), 0..2_000),
        10 => (1usize..200_000, any::<u64>()).prop_map(|(size, seed)| trees::text(size, seed)),
        1 => (block - 2..2 * block + 2, any::<u64>()).prop_map(|(size, seed)| trees::noise(size, seed)),
        1 => (block / 4 - 2..block + 2, any::<u8>()).prop_map(|(size, byte)| vec![byte; size]),
    ]
}

fn one_file() -> impl Strategy<Value = File> {
    let path = prop::collection::vec(component(), 1..5);
    let content = prop_oneof![
        8 => bytes().prop_map(|bytes| (None, bytes)),
        1 => (0usize..5, component()).prop_map(|(ups, name)| (Some((ups, name)), Vec::new())),
    ];
    (path, content, 0u32..=0o777, any::<bool>()).prop_map(|(path, content, mode, lazy)| File {
        content: match content {
            (None, bytes) => Content::Bytes(bytes),
            (Some((ups, name)), _) => {
                Content::Link(format!("{}{name}", "../".repeat(ups.min(path.len() - 1))))
            }
        },
        path: path.join("/"),
        mode,
        lazy,
    })
}

/// Files, of which none stands in another's way.
fn files() -> impl Strategy<Value = Vec<File>> {
    prop::collection::vec(one_file(), 0..40).prop_map(|files| {
        let mut kept: BTreeMap<String, File> = BTreeMap::new();
        for file in files {
            let within = |a: &str, b: &str| a == b || a.starts_with(&format!("{b}/"));
            let clash = |other: &String| within(other, &file.path) || within(&file.path, other);
            if !kept.keys().any(clash) {
                kept.insert(file.path.clone(), file);
            }
        }
        // Not in the archive's order.
        let mut files: Vec<File> = kept.into_values().collect();
        files.sort_by_key(|file| blake3::hash(file.path.as_bytes()).to_hex());
        files
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_packed_is_unpacked(files in files(), threads in 1usize..5) {
        let packed = trees::pack(&files, &Launch::default()).unwrap();
        let place = Place::new(&packed.bytes);
        let some_lazy = |entry: Entry<'_>| !entry.lazy;
        let eager = place.unpack(Some(&packed.digest), threads, some_lazy).unwrap();
        let mut wanted = expected(files.iter().filter(|file| !file.lazy));
        // Directories are never lazy.
        wanted.extend(expected(&files).into_iter().filter(|(_, node)| *node == Node::Directory));
        prop_assert_eq!(eager, wanted);
        let all = place.unpack(Some(&packed.digest), threads, |_| true).unwrap();
        prop_assert_eq!(all, expected(&files));
    }

    #[test]
    fn threads_and_order_do_not_show_in_the_bytes(files in files()) {
        let pack = |threads, files: &[File]| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| trees::pack(files, &Launch::default()).unwrap().bytes)
        };
        let sorted = {
            let mut files = files.clone();
            files.sort_by(|a, b| a.path.cmp(&b.path));
            files
        };
        let one = pack(1, &files);
        prop_assert!(one == pack(2, &files));
        prop_assert!(one == pack(2, &sorted));
    }

    #[test]
    fn random_bytes_are_no_archive(bytes in prop::collection::vec(any::<u8>(), 0..400), magic in any::<bool>()) {
        let mut bytes = bytes;
        if magic && bytes.len() > 10 {
            bytes[..8].copy_from_slice(&format::MAGIC);
            bytes[8..10].copy_from_slice(&format::VERSION.to_le_bytes());
        }
        prop_assert!(Place::new(&bytes).unpack_all().is_err());
    }
}

/// zstd's own decoder and BLAKE3 itself read the format as its specification says, without our reader.
#[test]
fn frames_and_digests_are_what_others_say() {
    let files = [
        file("large", 0o644, trees::text(9 << 20, 1)),
        file("noise", 0o644, trees::noise(100_000, 2)),
        file("small", 0o644, "hello"),
    ];
    let packed = trees::pack(&files, &Launch::default()).unwrap();
    let bytes = &packed.bytes;
    assert_eq!(packed.digest, *blake3::hash(&bytes[..128]).as_bytes());
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let u32_at =
        |b: &[u8], at: usize| u32::from_le_bytes(b[at..at + 4].try_into().unwrap()) as usize;
    let (index_packed, index_unpacked) = (u64_at(16), u64_at(24));
    let index = &bytes[128..128 + index_packed];
    assert_eq!(bytes[64..96], *blake3::hash(index).as_bytes());
    let index = zstd::bulk::decompress(index, index_unpacked).unwrap();
    let [entries, blobs, frames] = [48, 52, 56].map(|at| u32_at(bytes, at));
    assert_eq!((entries, blobs), (3, 3));

    let mut at = 128 + index_packed;
    let mut content = Vec::new();
    for n in 0..frames {
        let record =
            &index[entries * ENTRY_SIZE + blobs * BLOB_SIZE + n * FRAME_SIZE..][..FRAME_SIZE];
        let (size, unpacked) = (u32_at(record, 0), u32_at(record, 4));
        let frame = &bytes[at..at + size];
        let plain = match record[8] {
            0 => frame.to_vec(),
            _ => zstd::bulk::decompress(frame, unpacked).unwrap(),
        };
        assert_eq!(plain.len(), unpacked);
        assert_eq!(record[12..], *blake3::hash(&plain).as_bytes());
        content.extend(plain);
        at += size;
    }
    assert_eq!(at, bytes.len());
    let mut left = &content[..];
    let mut digests = Vec::new();
    for n in 0..blobs {
        let record = &index[entries * ENTRY_SIZE + n * BLOB_SIZE..][..BLOB_SIZE];
        let size = u64::from_le_bytes(record[..8].try_into().unwrap());
        let (blob, rest) = left.split_at(size as usize);
        assert_eq!(record[8..], *blake3::hash(blob).as_bytes());
        digests.push(blake3::hash(blob));
        left = rest;
    }
    assert!(left.is_empty());
    for file in &files {
        let Content::Bytes(bytes) = &file.content else {
            continue;
        };
        assert!(digests.contains(&blake3::hash(bytes)), "{}", file.path);
    }
}

#[test]
fn packing_masks_what_no_file_should_have() {
    let packed = trees::pack(&[file("tool", 0o107_755, "x")], &Launch::default()).unwrap();
    let tree = Place::new(&packed.bytes).unpack_all().unwrap();
    assert_eq!(tree, expected(&[file("tool", 0o755, "x")]));
}

#[test]
fn packing_refuses_what_the_reader_would() {
    let cases: &[(&[File], &str)] = &[
        (&[file("../x", 0o644, "")], "`..`"),
        (&[file("/x", 0o644, "")], "is absolute"),
        (&[file("", 0o644, "")], "is empty"),
        (&[file("a\0b", 0o644, "")], "NUL"),
        (
            &[file("a", 0o644, ""), file("a", 0o644, "")],
            "two files want to be `a`",
        ),
        (
            &[file("a", 0o644, ""), file("a/b", 0o644, "")],
            "a file and a directory",
        ),
        (
            &[file("b", 0o644, ""), link("a", "b"), file("a/b", 0o644, "")],
            "a file and a directory",
        ),
        (&[link("a", "../b")], "points outside the root"),
        (&[link("a", "/etc/passwd")], "absolute"),
    ];
    for (files, message) in cases {
        let error = trees::pack(files, &Launch::default()).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
}

// Archives that our packer would never write.

/// An archive as records, so that wrong ones can be said.
#[derive(Clone)]
struct Raw {
    entries: Vec<RawEntry>,
    blobs: Vec<Blob>,
    frames: Vec<RawFrame>,
    launch: Vec<u8>,
    /// Behind the last string of the index.
    slack: Vec<u8>,
    block_log2: u8,
}

#[derive(Clone)]
struct RawEntry {
    record: [u8; ENTRY_SIZE],
    path: Vec<u8>,
    target: Vec<u8>,
}

#[derive(Clone)]
struct RawFrame {
    record: [u8; FRAME_SIZE],
    bytes: Vec<u8>,
}

fn entry(kind: Kind, path: &[u8]) -> RawEntry {
    RawEntry {
        record: format::encode_entry(kind, false, 0o755, path.len() as u16),
        path: path.into(),
        target: Vec::new(),
    }
}

fn raw_link(path: &[u8], target: &[u8]) -> RawEntry {
    let kind = Kind::Symlink {
        target: target.len() as u32,
    };
    RawEntry {
        target: target.into(),
        ..entry(kind, path)
    }
}

fn blob(bytes: &[u8]) -> Blob {
    Blob {
        size: bytes.len() as u64,
        digest: format::digest(bytes),
    }
}

fn frame(unpacked: u32, content: &[u8], codec: Codec, bytes: Vec<u8>) -> RawFrame {
    let record = Frame {
        packed: bytes.len() as u32,
        unpacked,
        codec,
        digest: format::digest(content),
    };
    RawFrame {
        record: format::encode_frame(&record),
        bytes,
    }
}

const HELLO: &[u8] = b"hello hello hello hello hello hello hello hello hello hello hello hello";

fn packed(content: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(content, 3).unwrap()
}

const FILE: Kind = Kind::File { blob: 0 };

/// `d/`, `d/f` and `d/l -> f`: nothing wrong with it.
fn good() -> Raw {
    Raw {
        entries: vec![
            entry(Kind::Directory, b"d"),
            entry(FILE, b"d/f"),
            raw_link(b"d/l", b"f"),
        ],
        blobs: vec![blob(HELLO)],
        frames: vec![frame(HELLO.len() as u32, HELLO, Codec::Zstd, packed(HELLO))],
        launch: Vec::new(),
        slack: Vec::new(),
        block_log2: 20,
    }
}

/// The file alone, at this path.
fn at(path: &[u8]) -> Raw {
    Raw {
        entries: vec![entry(FILE, path)],
        ..good()
    }
}

/// `d/` and these.
fn within(entries: &[RawEntry]) -> Raw {
    let mut all = vec![entry(Kind::Directory, b"d")];
    all.extend_from_slice(entries);
    Raw {
        entries: all,
        ..good()
    }
}

/// The good one with another frame for its content.
fn with_frame(frame: RawFrame) -> Raw {
    Raw {
        frames: vec![frame],
        ..good()
    }
}

impl Raw {
    fn bytes(&self) -> Vec<u8> {
        self.bytes_with(|_| {}, |_| {})
    }

    /// The bytes, with the header and the index changed before digests are taken.
    fn bytes_with(&self, header: impl Fn(&mut Header), index: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
        let mut text = Vec::new();
        self.entries
            .iter()
            .for_each(|e| text.extend_from_slice(&e.record));
        self.blobs
            .iter()
            .for_each(|b| text.extend_from_slice(&format::encode_blob(b)));
        self.frames
            .iter()
            .for_each(|f| text.extend_from_slice(&f.record));
        text.extend_from_slice(&self.launch);
        for entry in &self.entries {
            text.extend_from_slice(&entry.path);
            text.extend_from_slice(&entry.target);
        }
        text.extend_from_slice(&self.slack);
        index(&mut text);
        let index_packed = packed(&text);
        let mut head = Header {
            block_log2: self.block_log2,
            index_packed: index_packed.len() as u64,
            index_unpacked: text.len() as u64,
            frames_packed: self.frames.iter().map(|f| f.bytes.len() as u64).sum(),
            content_size: self.blobs.iter().fold(0, |sum, b| b.size.wrapping_add(sum)),
            entries: self.entries.len() as u32,
            blobs: self.blobs.len() as u32,
            frames: self.frames.len() as u32,
            launch_size: self.launch.len() as u32,
            index_digest: format::digest(&index_packed),
        };
        header(&mut head);
        let mut out = head.encode().to_vec();
        out.extend(index_packed);
        self.frames
            .iter()
            .for_each(|f| out.extend_from_slice(&f.bytes));
        out
    }
}

fn good_tree() -> Tree {
    expected(&[file("d/f", 0o755, HELLO), link("d/l", "f")])
}

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
    refused(&header(&|h| h.content_size = u64::MAX), "add up");
    refused(&header(&|h| h.entries = u32::MAX), "more entries");
    refused(&header(&|h| h.blobs = u32::MAX), "more entries");
    refused(&header(&|h| h.frames = u32::MAX), "more entries");
    refused(&header(&|h| h.entries = format::MAX_COUNT), "index size");
    refused(&header(&|h| h.launch_size = u32::MAX), "index size");
    refused(&header(&|h| h.entries -= 1), "");
    refused(&header(&|h| h.entries += 1), "");
    refused(&header(&|h| h.blobs += 1), "");
    refused(&header(&|h| h.frames -= 1), "");
    refused(&header(&|h| h.block_log2 = 15), "block size");
    refused(&header(&|h| h.block_log2 = 64), "block size");
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
                digest: [0; 32],
            })
            .collect();
        raw.bytes()
    };
    let size = HELLO.len() as u64;
    refused(&blobs(&[size - 1]), "add up");
    refused(&blobs(&[size + 1]), "add up");
    refused(&blobs(&[u64::MAX, size + 1]), "add up"); // wraps to the right sum
    refused(&blobs(&[1 << 63, (1 << 63) + size]), "add up");
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

#[test]
fn frames_out_of_bounds_are_refused() {
    let change = |at: usize, value: u32| {
        let mut raw = good();
        raw.frames[0].record[at..at + 4].copy_from_slice(&value.to_le_bytes());
        raw.bytes()
    };
    let size = HELLO.len() as u32;
    refused(&change(0, u32::MAX), "frame size");
    refused(&change(0, 1), "add up");
    refused(&change(4, 0), "frame size");
    refused(&change(4, u32::MAX), "frame size");
    refused(&change(4, (1 << 20) + 1), "frame size");
    refused(&change(4, size - 1), "add up");
    refused(&change(8, 2), "codec");
    refused(&change(8, 0), "stored frame");
    refused(&change(8, 0x0100_0001), "reserved");
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

/// Whatever is done to the bytes: an error, or the identical tree.
#[track_caller]
fn error_or_identical(place: &Place, archive: &[u8]) -> bool {
    place.put(archive);
    let result = place.unpack_all();
    match &result {
        Ok(tree) => assert_eq!(*tree, good_tree()),
        Err(_) => assert_eq!(place.trees(), 0),
    }
    _ = fs::remove_dir_all(place.path("tmp/slimlambda"));
    result.is_ok()
}

#[test]
fn truncated_anywhere_it_is_refused() {
    let archive = good().bytes();
    let place = Place::new(&archive);
    for size in 0..archive.len() {
        assert!(
            !error_or_identical(&place, &archive[..size]),
            "{size} bytes"
        );
    }
    assert!(error_or_identical(&place, &archive));
}

#[test]
fn with_any_bit_flipped_it_is_refused_or_the_same() {
    let archive = good().bytes();
    let digest = format::digest(&archive[..HEADER_SIZE]);
    let place = Place::new(&archive);
    let index = HEADER_SIZE..archive.len() - good().frames[0].bytes.len();
    for bit in 0..archive.len() * 8 {
        let mut flipped = archive.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let same = error_or_identical(&place, &flipped);
        assert!(
            !same || !index.contains(&(bit / 8)),
            "bit {bit} of the index"
        );
        if bit / 8 < HEADER_SIZE {
            place.put(&flipped);
            assert!(
                place.open(Some(&digest)).is_err(),
                "bit {bit} of the header"
            );
        }
    }
}

// Frames.

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
    let mut raw = with_frame(frame(size, &content, Codec::Zstd, bytes));
    raw.blobs = vec![blob(&content)];
    raw
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
    let mut raw = zstd_of(size, zstd_frame(None, None, size, &blocks));
    raw.block_log2 = 22;
    corrupt(&raw, "");
    let smaller = zstd_frame(None, None, size, &run(false, 1 << 17).repeat(31));
    let honest = [smaller, run(true, 1 << 17)].concat();
    let mut raw = zstd_of(size, honest);
    raw.block_log2 = 22;
    assert!(Place::new(&raw.bytes()).unpack_all().is_ok());
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
    let mut other = HELLO.to_vec();
    other[3] ^= 1;
    corrupt(
        &with_frame(frame(HELLO.len() as u32, HELLO, Codec::Stored, other)),
        "digest",
    );
}

// What stands in the way on disk.

/// The stage of an earlier try at everything in `good()`, with nothing done.
fn staged(place: &Place, archive: &[u8]) -> PathBuf {
    let base = place.path("tmp/slimlambda");
    let digest = format::hex(&format::digest(&archive[..HEADER_SIZE]));
    let stage = base.join(format!("{digest}.partial"));
    fs::create_dir_all(&stage).unwrap();
    fs::set_permissions(&base, fs::Permissions::from_mode(0o700)).unwrap();
    let mut progress = format::digest(&[1; 3]).to_vec();
    progress.push(0);
    fs::write(base.join(format!("{digest}.progress")), progress).unwrap();
    stage
}

#[test]
fn symlinks_beforehand_lead_nowhere() {
    let archive = good().bytes();
    let digest = format::hex(&format::digest(&archive[..HEADER_SIZE]));
    for name in [digest.clone(), format!("{digest}.partial")] {
        let place = Place::new(&archive);
        let stage = staged(&place, &archive);
        fs::remove_dir(&stage).unwrap();
        symlink(place.path("outside"), stage.with_file_name(&name)).unwrap();
        assert_eq!(place.unpack_all().unwrap(), good_tree(), "{name}");
    }
    for name in [".lock", ".use"] {
        let place = Place::new(&archive);
        let stage = staged(&place, &archive);
        symlink(
            place.path("outside/sentinel"),
            stage.with_file_name(format!("{digest}{name}")),
        )
        .unwrap();
        let error = place.unpack_all().unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
    {
        let place = Place::new(&archive);
        let progress = staged(&place, &archive).with_file_name(format!("{digest}.progress"));
        fs::remove_file(&progress).unwrap();
        symlink(place.path("outside/sentinel"), progress).unwrap();
        assert_eq!(place.unpack_all().unwrap(), good_tree());
    }
}

#[test]
fn symlinks_in_a_resumed_stage_lead_nowhere() {
    let archive = good().bytes();
    for path in ["d", "d/f", "d/l"] {
        let place = Place::new(&archive);
        let stage = staged(&place, &archive);
        fs::write(stage.join("resumed"), "").unwrap();
        fs::create_dir(stage.join("d")).unwrap();
        _ = fs::remove_dir(stage.join(path));
        let to = if path == "d" {
            "outside"
        } else {
            "outside/sentinel"
        };
        symlink(place.path(to), stage.join(path)).unwrap();
        let mut tree = place.unpack_all().unwrap();
        assert!(
            tree.remove("resumed").is_some(),
            "the stage was not resumed"
        );
        assert_eq!(tree, good_tree(), "{path}");
    }
}

/// In the tree itself, a directory became a symlink: mended, and nothing is written through it.
#[test]
fn symlinks_in_the_tree_are_replaced() {
    let archive = good().bytes();
    let place = Place::new(&archive);
    place.unpack_all().unwrap();
    let digest = format::hex(&format::digest(&archive[..HEADER_SIZE]));
    let directory = place.path("tmp/slimlambda").join(digest).join("d");
    fs::remove_dir_all(&directory).unwrap();
    symlink(place.path("outside"), &directory).unwrap();
    assert_eq!(place.unpack_all().unwrap(), good_tree());
}

#[test]
fn a_directory_swapped_while_unpacking_leads_nowhere() {
    let many: Vec<File> = (0..100)
        .map(|n| file(&format!("d/{n}"), 0o644, format!("{n}")))
        .collect();
    let packed = trees::pack(&many, &Launch::default()).unwrap();
    let place = Place::new(&packed.bytes);
    let base = place.path("tmp/slimlambda");
    let stage = base.join(format!("{}.partial", format::hex(&packed.digest)));
    let stop = AtomicBool::new(false);
    let source = place.open(None).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // Also back again, so that some of the files find their directory.
                if fs::rename(stage.join("d"), stage.join("aside")).is_ok() {
                    _ = symlink(place.path("outside"), stage.join("d"));
                    _ = fs::remove_file(stage.join("d"));
                    _ = fs::rename(stage.join("aside"), stage.join("d"));
                }
            }
        });
        for _ in 0..20 {
            _ = store::ensure(&source, &place.options(2), |_| true);
            _ = fs::remove_dir_all(&base);
        }
        stop.store(true, Ordering::Relaxed);
    });
    place.check_outside();
    _ = fs::remove_dir_all(&base);
    assert_eq!(place.unpack_all().unwrap(), expected(&many));
}

// Selections.

/// What was staged for one selection must not get into a tree that is made for another: a file in parts has its
/// size before it has its content.
#[test]
fn another_selections_stage_is_not_used() {
    let large = file("large", 0o600, trees::noise(9 << 20, 1));
    let files = [
        large,
        file("small", 0o644, "small"),
        lazy("lazy", 0o644, "lazy"),
    ];
    let packed = trees::pack(&files, &Launch::default()).unwrap();
    let place = Place::new(&packed.bytes);
    let base = place.path("tmp/slimlambda");
    let digest = format::hex(&packed.digest);
    // As a try at the eager entries leaves it that was killed after the large file's last part.
    let stage = base.join(format!("{digest}.partial"));
    fs::create_dir_all(&stage).unwrap();
    fs::set_permissions(&base, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(stage.join("large"), vec![0; 9 << 20]).unwrap();
    fs::set_permissions(stage.join("large"), fs::Permissions::from_mode(0o600)).unwrap();
    let source = place.open(None).unwrap();
    let eager: Vec<u8> = source
        .archive
        .entries()
        .map(|e| u8::from(!e.lazy))
        .collect();
    let mut progress = format::digest(&eager).to_vec();
    progress.extend(vec![0; source.archive.frames().len()]);
    fs::write(base.join(format!("{digest}.progress")), progress).unwrap();

    let tree = place
        .unpack(None, 2, |entry| entry.path == b"small")
        .unwrap();
    assert_eq!(tree, expected(&files[1..2]));
    let tree = place.unpack(None, 2, |entry| !entry.lazy).unwrap();
    assert_eq!(tree, expected(&files[..2]));
}

/// A file that is lazy under one name and eager under another is there when either is asked for.
#[test]
fn equal_contents_may_be_lazy_and_eager() {
    let bytes = trees::noise(9 << 20, 1);
    let files = [file("a", 0o400, bytes.clone()), lazy("b", 0o600, bytes)];
    let packed = trees::pack(&files, &Launch::default()).unwrap();
    assert!(packed.bytes.len() < 10 << 20);
    let place = Place::new(&packed.bytes);
    let tree = place.unpack(None, 2, |entry| entry.lazy).unwrap();
    assert_eq!(tree, expected(&files[1..]));
    let tree = place.unpack(None, 2, |entry| !entry.lazy).unwrap();
    assert_eq!(tree, expected(&files));
}
