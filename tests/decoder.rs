//! The launcher's zstd decoder against the reference: what one makes of a frame the other makes of it, and of a damaged frame
//! never something else.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex};

use proptest::prelude::*;
use proptest::sample::Index;
use runtime_unpack::Error;
use runtime_unpack::format::{self, Codec, Frame, Stream};
use runtime_unpack::reader::decode_streams;
use zstd::zstd_safe::{CParameter, Strategy as Search};

use super::trees::{noise, text};

/// Decodes as the launcher does: one stream of one frame.
fn ours(packed: &[u8], size: usize) -> Result<Vec<u8>, &'static str> {
    let frame = Frame {
        streams: 1,
        digest: format::digest(packed),
    };
    let stream = Stream {
        number: 0,
        codec: Codec::Zstd,
        packed: packed.len() as u32,
        unpacked: size as u32,
    };
    let mut out = vec![0xaa; 100]; // a buffer that was used before
    match decode_streams(0, &frame, &[stream], packed, &mut out) {
        Ok(()) => Ok(out[..size].to_vec()),
        Err(Error::Corrupt { why, .. }) => Err(why),
        Err(other) => panic!("{other}"),
    }
}

/// Decodes with the C library.
fn reference(packed: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let out = zstd::bulk::decompress(packed, size).map_err(|error| error.to_string())?;
    match out.len() == size {
        true => Ok(out),
        false => Err(format!("{} bytes", out.len())),
    }
}

/// How a frame is made.
#[derive(Debug, Clone)]
struct Settings {
    level: i32,
    window: Option<u32>,
    search: Option<Search>,
    long: bool,
    least_match: Option<u32>,
    /// Bytes that a block should have.
    block: Option<u32>,
    /// Whether a checksum follows, which the packer never asks for.
    checksum: bool,
}

fn settings() -> impl Strategy<Value = Settings> {
    const SEARCHES: [Search; 9] = [
        Search::ZSTD_fast,
        Search::ZSTD_dfast,
        Search::ZSTD_greedy,
        Search::ZSTD_lazy,
        Search::ZSTD_lazy2,
        Search::ZSTD_btlazy2,
        Search::ZSTD_btopt,
        Search::ZSTD_btultra,
        Search::ZSTD_btultra2,
    ];
    (
        -5i32..=22,
        prop::option::of(10u32..=21),
        prop::option::of(prop::sample::select(SEARCHES.to_vec())),
        any::<bool>(),
        prop::option::of(3u32..=7),
        prop::option::of(1340u32..20_000),
        prop::bool::weighted(0.1),
    )
        .prop_map(
            |(level, window, search, long, least_match, block, checksum)| Settings {
                level,
                window,
                search,
                long,
                least_match,
                block,
                checksum,
            },
        )
}

fn pack(content: &[u8], settings: &Settings) -> Vec<u8> {
    let mut compressor = zstd::bulk::Compressor::new(settings.level).unwrap();
    let mut set = |parameter| compressor.set_parameter(parameter).unwrap();
    set(CParameter::ChecksumFlag(settings.checksum));
    set(CParameter::ContentSizeFlag(true));
    if let Some(log) = settings.window {
        set(CParameter::WindowLog(log));
    }
    if let Some(search) = settings.search {
        set(CParameter::Strategy(search));
    }
    if let Some(size) = settings.least_match {
        set(CParameter::MinMatch(size));
    }
    if let Some(size) = settings.block {
        set(CParameter::TargetCBlockSize(size));
    }
    set(CParameter::EnableLongDistanceMatching(settings.long));
    compressor.compress(content).unwrap()
}

/// Machine code, for what neither text nor noise is like.
static CODE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    bytes.truncate(2 << 20);
    bytes
});

fn content() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        (0usize..40_000, any::<u64>()).prop_map(|(size, seed)| text(size, seed)),
        (0usize..20_000, any::<u64>()).prop_map(|(size, seed)| noise(size, seed)),
        (0usize..200_000, any::<u8>()).prop_map(|(size, byte)| vec![byte; size]),
        (any::<Index>(), 0usize..100_000).prop_map(|(at, size)| {
            let at = at.index(CODE.len());
            CODE[at..CODE.len().min(at + size)].to_vec()
        }),
        prop::collection::vec(0u8..3, 0..300),
        prop::collection::vec(any::<u8>(), 0..40),
        // The same short word again and again, and something else between.
        (
            prop::collection::vec(any::<u8>(), 1..9),
            0usize..3_000,
            1usize..50
        )
            .prop_map(|(word, count, every)| {
                let words = (0..count).flat_map(|n| match n % every {
                    0 => n.to_le_bytes().to_vec(),
                    _ => word.clone(),
                });
                words.collect()
            }),
    ];
    prop::collection::vec((part, 1usize..3), 1..6).prop_map(|parts| {
        parts
            .into_iter()
            .flat_map(|(part, times)| part.repeat(times))
            .collect()
    })
}

/// A change of a frame: bits flipped, cut off, put in, or moved from one place to another.
#[derive(Debug, Clone)]
enum Change {
    Flip(Index, u8),
    FlipHead(usize, u8),
    Truncate(Index),
    Insert(Index, Vec<u8>),
    Copy(Index, Index, usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        8 => (any::<Index>(), 0u8..8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        6 => (4usize..60, 0u8..8).prop_map(|(at, bit)| Change::FlipHead(at, bit)),
        1 => any::<Index>().prop_map(Change::Truncate),
        1 => (any::<Index>(), prop::collection::vec(any::<u8>(), 1..5)).prop_map(|(at, b)| Change::Insert(at, b)),
        2 => (any::<Index>(), any::<Index>(), 1usize..30).prop_map(|(from, to, size)| Change::Copy(from, to, size)),
    ]
}

fn apply(frame: &mut Vec<u8>, change: &Change) {
    match change {
        _ if frame.is_empty() => {}
        Change::Flip(at, bit) => {
            let at = at.index(frame.len());
            frame[at] ^= 1 << bit;
        }
        Change::FlipHead(at, bit) => {
            if let Some(byte) = frame.get_mut(*at) {
                *byte ^= 1 << bit;
            }
        }
        Change::Truncate(at) => frame.truncate(at.index(frame.len())),
        Change::Insert(at, bytes) => {
            let at = at.index(frame.len());
            frame.splice(at..at, bytes.iter().copied());
        }
        Change::Copy(from, to, size) => {
            let (from, to) = (from.index(frame.len()), to.index(frame.len()));
            let size = (*size).min(frame.len() - from.max(to));
            frame.copy_within(from..from + size, to);
        }
    }
}

/// Why one refused what the other took, and how often.
static DIFFERENCES: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

fn differ(how: &str) {
    *DIFFERENCES
        .lock()
        .unwrap()
        .entry(how.to_owned())
        .or_default() += 1;
}

/// What we refuse and the reference does not: rules of the format, and Huffman-coded literals whose bits are not used
/// up to the last, which RFC 8878 (4.2.2) wants refused.
const STRICTER: [&str; 6] = [
    "it has a checksum",
    "it wants a dictionary",
    "its declared size is wrong",
    "its window is larger than its content",
    "something follows it",
    "zstd cannot unpack it",
];

/// What the reference says of what it refuses and we do not: reserved bits of a block, and Huffman tables without a code of
/// the greatest length. What comes out is as long as it should be, and the digest has vouched for what went in.
const STRICTER_REFERENCE: &str = "Data corruption detected";

/// Both say the same, or one of them refuses for a reason that we know.
#[track_caller]
fn agree(frame: &[u8], size: usize) -> bool {
    let ours = ours(frame, size);
    match (&ours, reference(frame, size)) {
        (Ok(ours), Ok(reference)) => {
            assert!(*ours == reference, "the same frame is read differently")
        }
        (Ok(_), Err(why)) => {
            assert_eq!(why, STRICTER_REFERENCE);
            differ(&format!("the reference: {why}"));
        }
        (Err(why), Ok(_)) => {
            assert!(STRICTER.contains(why), "{why}");
            differ(why);
        }
        (Err(_), Err(_)) => {}
    }
    ours.is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_the_reference_packs_is_unpacked(content in content(), settings in settings()) {
        let packed = pack(&content, &settings);
        let unpacked = ours(&packed, content.len());
        if settings.checksum {
            prop_assert_eq!(unpacked, Err("it has a checksum"));
            return Ok(());
        }
        prop_assert!(unpacked.as_ref() == Ok(&content), "{:?}", unpacked.err());
        // And no other size.
        prop_assert!(ours(&packed, content.len() + 1).is_err());
        prop_assert!(content.is_empty() || ours(&packed, content.len() - 1).is_err());
    }

    #[test]
    fn a_damaged_frame_is_refused_or_what_the_reference_reads(
        content in content(),
        settings in settings(),
        changes in prop::collection::vec(prop::collection::vec(change(), 1..4), 40),
    ) {
        let packed = pack(&content, &settings);
        for changes in changes {
            let mut damaged = packed.clone();
            changes.iter().for_each(|change| apply(&mut damaged, change));
            agree(&damaged, content.len());
        }
    }
}

/// Every bit of small frames, which are headers and tables for the most part.
#[test]
fn small_frames_with_any_bit_flipped() {
    let words = b"abcabcabdabcabcabcabcabfabcabcabc".repeat(9);
    let contents = [
        words,
        text(300, 1),
        vec![7; 300],
        noise(50, 1),
        CODE[5_000..6_500].to_vec(),
    ];
    for content in contents {
        for level in [1, 3, 12, 19, 22] {
            let settings = Settings {
                level,
                window: None,
                search: None,
                long: false,
                least_match: None,
                block: None,
                checksum: false,
            };
            let packed = pack(&content, &settings);
            assert!(agree(&packed, content.len()));
            for bit in 0..packed.len() * 8 {
                let mut damaged = packed.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                agree(&damaged, content.len());
            }
        }
    }
    println!("refused by one alone: {:#?}", DIFFERENCES.lock().unwrap());
}
