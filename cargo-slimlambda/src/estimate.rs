//! What unpacking takes at a cold start: ([`Work`], memory) → time. Pure arithmetic in whole numbers, since plans follow from it.
//!
//! An estimate, good for the order of magnitude: which of two plans is faster, whether memory is worth its price, whether Init's
//! ten seconds are in danger. It is of the launcher's part alone. What Lambda does before (it fetches the package) is not known, and
//! what the function does after is its own. Lambda's cores are not those that [`COSTS`] was measured on: a
//! start there may well take twice as long. And Lambda may lend Init more than the memory's share ([`limits::VCPU`]).

use std::time::Duration;

use runtime_unpack::filter::Filter;
use runtime_unpack::format::{Codec, HEADER_SIZE, Kind as EntryKind};
use runtime_unpack::reader::{self, Archive};

use crate::limits;

/// What a launcher does with its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of stored streams.
    Stored,
    /// Bytes of compressed streams, as they are in the archive.
    Packed,
    /// Bytes that compressed streams unpack to.
    Unpacked,
    /// Bytes of machine code.
    Code,
    /// Bytes of exception tables.
    Exceptions,
    /// Bytes of tables and numbers.
    Planes,
    /// Bytes written.
    Written,
    /// Files, directories and symlinks.
    Entries,
}

/// What one unit of a kind costs.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// The kind.
    pub kind: Kind,
    /// For people.
    pub what: &'static str,
    /// CPU time for a byte (or an entry), picoseconds: 1,000 is 1 GB/s.
    pub picoseconds: u64,
}

const fn cost(kind: Kind, what: &'static str, picoseconds: u64) -> Cost {
    Cost {
        kind,
        what,
        picoseconds,
    }
}

/// Number of kinds.
pub const KINDS: usize = 8;

/// What each kind costs, in the order of [`Kind`].
///
/// Fitted to the launcher's own CPU time, one thread, warm page cache, into a tmpfs, on an AMD EPYC of family 26 (2026-11), by
/// `cargo run --release -p cargo-slimlambda --example speeds -- DIR…` with the libraries of ONNX Runtime 1.31.1 and SciPy 1.2.1: it
/// tells that time to 25 % for any of those samples, mostly to 10 %.
pub const COSTS: [Cost; KINDS] = [
    cost(Kind::Stored, "stored: read, digested, copied", 800),
    cost(Kind::Packed, "compressed: read, digested, decoded", 3_000),
    cost(Kind::Unpacked, "compressed: what it unpacks to", 400),
    cost(Kind::Code, "machine code put together", 2_300),
    cost(Kind::Exceptions, "exception tables put together", 4_000),
    cost(Kind::Planes, "tables and numbers put together", 200),
    cost(Kind::Written, "written", 350),
    cost(Kind::Entries, "files, directories, symlinks", 7_000_000),
];

/// How much there is to do of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    amounts: [u64; KINDS],
    /// Frames, which are what threads share.
    pub frames: usize,
}

impl Work {
    /// What it takes to unpack those entries of an archive that `wanted` picks by their numbers: their frames are decoded as a
    /// whole.
    pub fn of(archive: &Archive, wanted: impl Fn(usize) -> bool) -> Work {
        let mut work = Work::default();
        let mut copies = vec![0u64; archive.blobs().len()];
        for (_, entry) in archive.entries().enumerate().filter(|(n, _)| wanted(*n)) {
            work.add(Kind::Entries, 1);
            if let EntryKind::File { blob } = entry.kind {
                copies[blob as usize] += 1;
            }
        }
        for (frame, pieces) in archive.frame_pieces().iter().enumerate() {
            if pieces.iter().all(|piece| copies[piece.blob as usize] == 0) {
                continue;
            }
            work.frames += 1;
            for stream in archive.streams(frame) {
                match stream.codec {
                    Codec::Stored => work.add(Kind::Stored, stream.packed.into()),
                    Codec::Zstd => {
                        work.add(Kind::Packed, stream.packed.into());
                        work.add(Kind::Unpacked, stream.unpacked.into());
                    }
                }
            }
            for piece in pieces {
                let size = u64::from(piece.size);
                match piece.filter {
                    Filter::X86 | Filter::Arm64 => work.add(Kind::Code, size),
                    Filter::EhFrame | Filter::EhFrameHdr => work.add(Kind::Exceptions, size),
                    Filter::Planes => work.add(Kind::Planes, size),
                    Filter::Plain | Filter::Hole => {}
                }
                work.add(Kind::Written, size * copies[piece.blob as usize]);
            }
        }
        work
    }

    /// More of a kind.
    pub fn add(&mut self, kind: Kind, amount: u64) {
        self.amounts[kind as usize] += amount;
    }

    /// How much of a kind.
    pub fn amount(&self, kind: Kind) -> u64 {
        self.amounts[kind as usize]
    }

    /// CPU time that it takes, of one core.
    pub fn cpu(&self) -> Duration {
        let costs = COSTS.iter().map(|cost| cost.picoseconds);
        let picoseconds: u128 = costs
            .zip(self.amounts)
            .map(|(cost, amount)| u128::from(cost) * u128::from(amount))
            .sum();
        Duration::from_nanos(u64::try_from(picoseconds / 1000).unwrap_or(u64::MAX))
    }

    /// Time that it takes with so much memory (MiB): the CPU time at the share of the cores that Lambda gives for that memory, with
    /// no more threads than there are frames.
    pub fn time(&self, memory_mib: u32) -> Duration {
        let threads = u64::try_from(self.frames).unwrap_or(u64::MAX).max(1);
        let thousandths =
            u64::from(limits::vcpu_thousandths(memory_mib)).min(threads.saturating_mul(1000));
        let nanoseconds = self.cpu().as_nanos() * 1000 / u128::from(thousandths.max(1));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// The least memory (MiB, a multiple of 64) with which it takes no longer than `limit`.
    pub fn memory_for(&self, limit: Duration) -> Option<u32> {
        (limits::MEMORY_MIN.mib()..=limits::MEMORY_MAX.mib())
            .step_by(64)
            .find(|memory| self.time(*memory) <= limit)
    }
}

/// The entries of an archive that is whole in memory.
pub fn read(archive: &[u8]) -> runtime_unpack::Result<Archive> {
    const SHORT: runtime_unpack::Error = runtime_unpack::Error::Malformed("it is cut short");
    let (header, rest) = archive.split_first_chunk::<HEADER_SIZE>().ok_or(SHORT)?;
    let header = reader::read_header(header)?;
    let index = rest.get(..header.index_packed as usize).ok_or(SHORT)?;
    reader::read_index(header, index, archive.len() as u64)
}

/// More memory that a start with `memory_mib` is compared with: the next one at which a whole vCPU comes along, two, or all.
pub fn next_size(memory_mib: u32) -> Option<u32> {
    let vcpu = limits::VCPU.mib();
    [vcpu, 2 * vcpu, limits::MEMORY_MAX.mib()]
        .into_iter()
        .find(|size| *size > memory_mib)
}

/// What to say where unpacking alone would take all of the Init phase.
pub fn warning(start: &Work, memory_mib: Option<u32>) -> Option<String> {
    let init = Duration::from_secs(limits::INIT.value);
    let memory = memory_mib.unwrap_or(limits::MEMORY_MIN.mib());
    if start.time(memory) <= init {
        return None;
    }
    // The function wants its share of the phase too.
    let help = match start.memory_for(init / 2) {
        Some(enough) => format!("with `memory = {enough}` it takes half of that"),
        None => "mark assets `lazy` that are not needed at once".to_string(),
    };
    Some(format!(
        "unpacking may take {} at {memory} MB, and Lambda ends the Init phase after {} s (the next one goes on where it stopped)\nhelp: {help}",
        about(start.time(memory)),
        init.as_secs(),
    ))
}

/// A time for people, with the two digits that an estimate has.
pub fn about(time: Duration) -> String {
    let ms = time.as_millis();
    match ms {
        0 => "less than 1 ms".to_string(),
        1..100 => format!("{ms} ms"),
        100..1000 => format!("{} ms", (ms + 5) / 10 * 10),
        1000..9950 => format!("{:.1} s", time.as_secs_f64()),
        _ => format!("{:.0} s", time.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Work of so many seconds on one core, in frames.
    fn work(seconds: u64, frames: usize) -> Work {
        let mut work = Work {
            frames,
            ..Work::default()
        };
        let cost = &COSTS[Kind::Entries as usize];
        work.add(cost.kind, seconds * 1_000_000_000_000 / cost.picoseconds);
        work
    }

    #[test]
    fn costs_are_in_the_order_of_their_kinds() {
        for (number, cost) in COSTS.iter().enumerate() {
            assert_eq!(cost.kind as usize, number);
            let mut work = Work::default();
            work.add(cost.kind, 1_000_000);
            let expected = Duration::from_nanos(cost.picoseconds * 1000);
            assert_eq!(work.cpu(), expected, "{}", cost.what);
        }
    }

    #[test]
    fn time_follows_the_share_of_the_cores_and_the_frames_there_are() {
        for (frames, memory, expected) in [
            (8, 1_769, 1_000),
            (8, 128, 13_889),
            (8, 256, 6_944),
            (8, 3_538, 500),
            (8, 10_240, 173),
            // One frame keeps one thread busy.
            (1, 128, 13_889),
            (1, 3_538, 1_000),
            (2, 10_240, 500),
            (0, 10_240, 1_000),
        ] {
            let ms = work(1, frames).time(memory).as_millis();
            assert!(
                ms.abs_diff(expected) <= 1,
                "{ms} for {frames} frames at {memory} MB"
            );
        }
        assert_eq!(Work::default().time(128), Duration::ZERO);
    }

    #[test]
    fn memory_is_found_for_a_time() {
        let second = Duration::from_secs(1);
        assert_eq!(Work::default().memory_for(second), Some(128));
        assert_eq!(work(1, 8).memory_for(second), Some(1_792));
        assert_eq!(work(3, 8).memory_for(second), Some(5_312));
        assert_eq!(work(3, 2).memory_for(second), None);
    }

    #[test]
    fn a_start_is_compared_with_the_next_whole_vcpus() {
        let sizes = [128, 1_768, 1_769, 3_538, 10_239, 10_240].map(next_size);
        let expected = [1_769, 1_769, 3_538, 10_240, 10_240].map(Some);
        assert_eq!(sizes[..5], expected);
        assert_eq!(sizes[5], None);
    }

    #[test]
    fn a_start_that_fills_init_is_warned_of() {
        assert_eq!(warning(&work(1, 8), Some(256)), None);
        let warning = |seconds, memory| warning(&work(seconds, 8), memory).unwrap_or_default();
        assert_eq!(
            warning(1, None),
            "unpacking may take 14 s at 128 MB, and Lambda ends the Init phase after 10 s (the next one goes on where it stopped)\n\
             help: with `memory = 384` it takes half of that"
        );
        assert!(warning(100, Some(10_240)).contains("17 s at 10240 MB"));
        assert!(
            warning(100, Some(10_240))
                .ends_with("help: mark assets `lazy` that are not needed at once")
        );
    }

    #[test]
    fn estimates_have_two_digits() {
        for (microseconds, expected) in [
            (0, "less than 1 ms"),
            (7_900, "7 ms"),
            (124_000, "120 ms"),
            (994_000, "990 ms"),
            (1_440_000, "1.4 s"),
            (13_900_000, "14 s"),
        ] {
            assert_eq!(about(Duration::from_micros(microseconds)), expected);
        }
    }
}
