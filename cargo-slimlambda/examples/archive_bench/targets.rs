//! The targets, each a ratio that one run measures: reached or not. What a run does not measure is said to be so.

use super::contest::{Archive, Level, Unpack};
use super::machine::cores;
use super::payload::Payload;
use super::report::{LEVELS, Outcome, Report};
use super::table::{bytes, median, megabytes, seconds, table};
use super::unpack::{Place, Timed};

/// Anonymous memory while unpacking: so much, and so much for each thread. Bytes.
const MEMORY: u64 = 64_000_000;
const MEMORY_PER_THREAD: u64 = 8_000_000;
/// The launcher's size, bytes.
const LAUNCHER: u64 = 500_000;

/// One line: what is compared, both values as people read them, and their ratio against its bound.
struct Target {
    what: String,
    measured: Option<(String, f64)>,
    bound: f64,
    against: &'static str,
}

impl Target {
    fn new(
        what: impl Into<String>,
        against: &'static str,
        bound: f64,
        pair: Option<(f64, f64)>,
        told: impl Fn(f64) -> String,
    ) -> Target {
        Target {
            what: what.into(),
            measured: pair
                .map(|(ours, peer)| (format!("{} : {}", told(ours), told(peer)), ours / peer)),
            bound,
            against,
        }
    }

    fn row(&self) -> Vec<String> {
        let bound = format!("≤ {} × {}", self.bound, self.against);
        let (told, ratio, mark) = match &self.measured {
            Some((told, ratio)) => {
                let mark = if *ratio <= self.bound { "✓" } else { "✗" };
                (told.clone(), format!("{ratio:.3}"), mark)
            }
            None => ("not in this run".into(), String::new(), "–"),
        };
        vec![self.what.clone(), bound, told, ratio, mark.into()]
    }
}

/// All targets as a table.
pub fn targets(report: &Report) -> String {
    let mut all = sizes(report);
    all.extend(balanced(report));
    all.extend(unpacking(report));
    all.extend(small_files(report));
    all.extend([memory(report), rebuild(report), launcher(report)]);
    let rows: Vec<Vec<String>> = all.iter().map(Target::row).collect();
    table(&["target", "bound", "ours : theirs", "ratio", ""], 2, &rows)
}

fn sizes(report: &Report) -> Vec<Target> {
    let best = Archive::Ours(Level::Best);
    let target = |payload: Payload, peer: Archive, against, bound| {
        let pair = report
            .of(payload)
            .and_then(|outcome| Some((outcome.size(best)?, outcome.size(peer)?)));
        let what = format!("size, {}, best", payload.name());
        Target::new(what, against, bound, pair, |size| bytes(size as u64))
    };
    let mut out = vec![
        target(Payload::Tf112, Archive::SevenZip, "7z", 0.97),
        target(Payload::Tf112, Archive::Zip(9), "zip -9", 0.5),
        target(Payload::Cvort, Archive::SevenZip, "7z", 0.97),
        target(Payload::Fp32, Archive::ZstdUltra, "zstd -22", 0.9),
    ];
    // The quick run's part of cvort.
    let ort = target(Payload::Ort, Archive::SevenZip, "7z", 0.97);
    out.extend(ort.measured.is_some().then_some(ort));
    out
}

/// For every payload that has both: as small as zstd's last level, in no more time than its nineteenth.
fn balanced(report: &Report) -> Vec<Target> {
    let ours = Archive::Ours(Level::Balanced);
    let mut out = Vec::new();
    for outcome in &report.results {
        let name = outcome.payload.payload.name();
        let size = outcome.size(ours).zip(outcome.size(Archive::ZstdUltra));
        let time = outcome
            .packing(ours)
            .zip(outcome.packing(Archive::Zstd(19)));
        if size.is_some() {
            let what = format!("size, {name}, balanced");
            out.push(Target::new(what, "zstd -22", 1.0, size, |size| {
                bytes(size as u64)
            }));
        }
        if size.is_some() && time.is_some() {
            let what = format!("packing, {name}, balanced");
            out.push(Target::new(what, "zstd -19 -T2", 1.0, time, seconds));
        }
    }
    if out.is_empty() {
        let size = Target::new("size, balanced", "zstd -22", 1.0, None, seconds);
        let time = Target::new("packing, balanced", "zstd -19 -T2", 1.0, None, seconds);
        out.extend([size, time]);
    }
    out
}

type IsPeer = fn(Unpack) -> bool;

/// Medians of ours at one level, and of a peer.
fn pair(outcome: &Outcome, place: Place, level: Level, peer: IsPeer) -> Option<(f64, f64)> {
    let ways = outcome.ways(place);
    let time = |timed: &Timed| median(&timed.wall);
    let ours = Unpack::From(Archive::Ours(level));
    let ours = ways.iter().find(|timed| timed.how == ours).map(time)?;
    let peer = ways.iter().find(|timed| peer(timed.how)).map(time)?;
    Some((ours, peer))
}

fn unpacking(report: &Report) -> Vec<Target> {
    let peers: [(&'static str, f64, IsPeer); 3] = [
        ("cp -r", 1.0, |how| how == Unpack::Copy),
        ("extractall", 0.25, |how| matches!(how, Unpack::Python(_))),
        ("7z x", 0.1, |how| how == Unpack::From(Archive::SevenZip)),
    ];
    let outcome = report.of(Payload::Tf112);
    let mut out = Vec::new();
    for (against, bound, is_peer) in peers {
        let before = out.len();
        for level in LEVELS {
            let pair = outcome.and_then(|outcome| pair(outcome, Place::Tmpfs, level, is_peer));
            if pair.is_some() {
                let what = format!("unpacking, tf112, tmpfs, {}", level.name());
                out.push(Target::new(what, against, bound, pair, seconds));
            }
        }
        if out.len() == before {
            let what = "unpacking, tf112, tmpfs";
            out.push(Target::new(what, against, bound, None, seconds));
        }
    }
    out
}

fn small_files(report: &Report) -> Vec<Target> {
    let outcome = report.of(Payload::Small);
    let mut out = Vec::new();
    for place in [Place::Tmpfs, Place::Disk] {
        for level in LEVELS {
            let is_copy = |how| how == Unpack::Copy;
            let pair = outcome.and_then(|outcome| pair(outcome, place, level, is_copy));
            if pair.is_some() {
                let what = format!("unpacking, small, {}, {}", place.name(), level.name());
                out.push(Target::new(what, "cp -r", 1.2, pair, seconds));
            }
        }
    }
    if out.is_empty() {
        out.push(Target::new("unpacking, small", "cp -r", 1.2, None, seconds));
    }
    out
}

/// The most that unpacking took on any payload.
fn memory(report: &Report) -> Target {
    let ours = report
        .results
        .iter()
        .flat_map(|outcome| outcome.ways(Place::Tmpfs))
        .filter(|timed| matches!(timed.how, Unpack::From(Archive::Ours(_))))
        .map(|timed| timed.anonymous)
        .max();
    let bound = (MEMORY + MEMORY_PER_THREAD * cores() as u64) as f64;
    let pair = ours.map(|ours| (ours as f64, bound));
    let what = format!("anonymous memory, unpacking, {} threads", cores());
    Target::new(what, "(64 MB + 8 MB a thread)", 1.0, pair, |size| {
        megabytes(size as u64)
    })
}

/// Not of the level that packs so fast that reading the tree is a large part of it.
fn rebuild(report: &Report) -> Target {
    let mut rebuilt = report
        .results
        .iter()
        .filter_map(|outcome| outcome.rebuilt.as_ref());
    let pair = rebuilt
        .find(|rebuilt| rebuilt.level != Level::Fast)
        .map(|rebuilt| (median(&rebuilt.again), rebuilt.first.wall));
    let what = "rebuild, tf112, 1 MB changed, balanced";
    Target::new(what, "the first pack", 0.05, pair, seconds)
}

fn launcher(report: &Report) -> Target {
    let pair = report.launcher.map(|size| (size as f64, LAUNCHER as f64));
    Target::new("launcher, stripped", "500 KB", 1.0, pair, |size| {
        bytes(size as u64)
    })
}
