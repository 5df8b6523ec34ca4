//! The archive reader: what was packed comes out, and whatever the bytes, nothing else ever does.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use runtime_unpack::Result;
use runtime_unpack::format::{
    self, BLOB_SIZE, Digest, ENTRY_SIZE, FRAME_SIZE, HEADER_SIZE, PIECE_SIZE, STREAM_SIZE,
};
use runtime_unpack::launch::Launch;
use runtime_unpack::reader::Entry;
use runtime_unpack::source::ArchiveFile;
use runtime_unpack::store::{self, Options};
use tempfile::TempDir;

use super::raw::{good, good_tree};
use super::trees::{self, Content, File, Node, Tree, expected, file, found, lazy, link};

/// A directory with an archive, a place to unpack to, and a file that must never change.
pub struct Place {
    directory: TempDir,
}

impl Place {
    pub fn new(archive: &[u8]) -> Place {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("outside")).unwrap();
        fs::write(directory.path().join("outside/sentinel"), "untouched").unwrap();
        fs::create_dir(directory.path().join("tmp")).unwrap();
        let place = Place { directory };
        place.put(archive);
        place
    }

    pub fn put(&self, archive: &[u8]) {
        fs::write(self.path("archive"), archive).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn open(&self, digest: Option<&Digest>) -> Result<ArchiveFile> {
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
    pub fn unpack(
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

    pub fn unpack_all(&self) -> Result<Tree> {
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
    pub fn trees(&self) -> usize {
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
    let block = 1usize << 20; // a piece; two are more than a frame of a small archive
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
    let mut holed = trees::noise(5_000, 3);
    holed.resize(100_000, 0);
    holed.extend(b"end");
    let files = [
        file("large", 0o644, trees::text(9 << 20, 1)),
        file("noise", 0o644, trees::noise(100_000, 2)),
        file("holed", 0o644, holed),
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
    assert_eq!(bytes[96..128], *blake3::hash(index).as_bytes());
    let index = zstd::bulk::decompress(index, index_unpacked).unwrap();
    let counts = [48, 52, 56, 60, 64].map(|at| u32_at(bytes, at));
    let sizes = [ENTRY_SIZE, BLOB_SIZE, PIECE_SIZE, FRAME_SIZE, STREAM_SIZE];
    let mut rest = &index[..];
    let mut at = 0;
    let [_, blobs, pieces, frames, streams] = counts.map(|count| {
        let table;
        (table, rest) = rest.split_at(count * sizes[at]);
        let records: Vec<&[u8]> = table.chunks_exact(sizes[at]).collect();
        at += 1;
        records
    });

    // By frame, the streams with their numbers.
    let (mut at, mut next) = (128 + index_packed, 0);
    let mut contents: Vec<BTreeMap<u8, Vec<u8>>> = Vec::new();
    for record in frames {
        let start = at;
        let mut content = BTreeMap::new();
        for stream in &streams[next..next + u32_at(record, 0)] {
            let (size, unpacked) = (u32_at(stream, 0), u32_at(stream, 4));
            let packed = &bytes[at..at + size];
            let plain = match stream[9] {
                0 => packed.to_vec(),
                _ => zstd::bulk::decompress(packed, unpacked).unwrap(),
            };
            assert_eq!(plain.len(), unpacked);
            content.insert(stream[8], plain);
            at += size;
        }
        next += u32_at(record, 0);
        assert_eq!(record[4..], *blake3::hash(&bytes[start..at]).as_bytes());
        contents.push(content);
    }
    assert_eq!((at, next), (bytes.len(), streams.len()));

    let mut pieces = pieces.into_iter();
    let mut digests = Vec::new();
    for record in blobs {
        let mut blob = Vec::new();
        for piece in pieces.by_ref().take(u32_at(record, 8)) {
            let (size, frame, param) = (u32_at(piece, 0), u32_at(piece, 4), u32_at(piece, 8));
            match piece[12] {
                0 => {
                    let stream = contents[frame].get_mut(&(param as u8)).unwrap();
                    blob.extend(stream.drain(..size));
                }
                6 => blob.resize(blob.len() + size, 0),
                filter => panic!("filter {filter} on text"),
            }
        }
        assert_eq!(record[12..], *blake3::hash(&blob).as_bytes());
        digests.push(blake3::hash(&blob));
    }
    assert!(pieces.next().is_none());
    assert!(
        contents
            .iter()
            .flat_map(BTreeMap::values)
            .all(Vec::is_empty)
    );
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
    let index = HEADER_SIZE..archive.len() - good().frames[0].streams[0].bytes.len();
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
