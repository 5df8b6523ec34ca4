//! What was measured, as a Markdown document: targets, sizes, unpacking, rebuild, payloads, machine.

use std::collections::HashMap;

use super::contest::{Archive, Level, Unpack};
use super::pack::Packed;
use super::payload::{Payload, Unpacked};
use super::plan::{Extent, Plan};
use super::rebuild::Rebuilt;
use super::table::{bytes, median, megabytes, ratio, seconds, spread, table};
use super::targets::targets;
use super::unpack::{Place, Timed};

/// Everything that one run measured.
#[derive(Debug)]
pub struct Report {
    /// How much was asked for.
    pub extent: Extent,
    /// The command line, for whom wants the same.
    pub command: String,
    /// What was found out about the machine.
    pub machine: Vec<(String, String)>,
    /// Payload by payload.
    pub results: Vec<Outcome>,
    /// The launcher's size, bytes.
    pub launcher: Option<u64>,
}

/// What was measured on one payload.
#[derive(Debug)]
pub struct Outcome {
    /// The payload.
    pub payload: Unpacked,
    /// What was planned.
    pub plan: Plan,
    /// Archives by name.
    pub archives: HashMap<String, Packed>,
    /// Unpacking, place by place.
    pub unpacked: Vec<(Place, Vec<Timed>)>,
    /// Packing again.
    pub rebuilt: Option<Rebuilt>,
}

impl Report {
    /// A payload's outcome.
    pub fn of(&self, payload: Payload) -> Option<&Outcome> {
        self.results
            .iter()
            .find(|outcome| outcome.payload.payload == payload)
    }

    /// The document.
    pub fn markdown(&self) -> String {
        let extent = match self.extent {
            Extent::Quick => "quick",
            Extent::Full => "full",
        };
        let mut out = format!(
            "# The archive, measured ({extent})\n\nWritten by `{}`.\n\n## Targets\n\n{}",
            self.command,
            targets(self)
        );
        out.push_str(&self.sizes());
        out.push_str(&self.unpacking());
        out.push_str(&self.rebuilds());
        out.push_str(&self.payloads());
        let machine: Vec<Vec<String>> = self
            .machine
            .iter()
            .map(|(name, value)| vec![name.clone(), value.clone()])
            .collect();
        out + "\n## Machine\n\n" + &table(&["", ""], 2, &machine)
    }

    fn sizes(&self) -> String {
        let mut rows = Vec::new();
        for outcome in &self.results {
            for &archive in &outcome.plan.size {
                rows.extend(outcome.size_row(archive));
            }
        }
        if rows.is_empty() {
            return String::new();
        }
        let head = [
            "payload",
            "archive",
            "bytes",
            "of tree",
            "× zip -9",
            "× zstd -22",
            "× 7z",
            "packed in",
            "CPU",
            "peak RSS",
        ];
        let earlier = self
            .results
            .iter()
            .any(|outcome| outcome.archives.values().any(|packed| packed.earlier));
        let earlier = match earlier {
            true => "\n† Time and memory are from an earlier run (`--reuse-peers`).\n",
            false => "",
        };
        format!(
            "\n## Size and packing\n\n\
             Every archive made once. The tar that zstd, xz and brotli read is made beforehand.\n\n{}{earlier}",
            table(&head, 2, &rows)
        )
    }

    fn unpacking(&self) -> String {
        let mut rows = Vec::new();
        for outcome in &self.results {
            for (place, ways) in &outcome.unpacked {
                let copy = ways.iter().find(|timed| timed.how == Unpack::Copy);
                let copy = copy.map(|timed| median(&timed.wall));
                rows.extend(
                    ways.iter()
                        .map(|timed| outcome.unpack_row(*place, timed, copy)),
                );
            }
        }
        if rows.is_empty() {
            return String::new();
        }
        let head = [
            "payload",
            "into",
            "by",
            "median",
            "least to most",
            "× cp -r",
            "MB/s",
            "peak anonymous",
            "peak RSS",
        ];
        format!(
            "\n## Unpacking\n\n\
             Cold: each time by a new process into a fresh directory, what is read being in the page cache. All ways in turn, round by \
             round, each round beginning with another; written, not synced. The clock runs from the first program's start to the last one's \
             end. Anonymous memory is the sum of the programs' `RssAnon`, sampled each millisecond in runs of their own; peak RSS is the \
             kernel's `ru_maxrss` of the largest program, mapped output files counted. Every tree was compared with the original.\n\n{}",
            table(&head, 3, &rows)
        )
    }

    fn rebuilds(&self) -> String {
        let rebuilt = self.results.iter().filter_map(|outcome| {
            Some((outcome.payload.payload.name(), outcome.rebuilt.as_ref()?))
        });
        let rows: Vec<Vec<String>> = rebuilt
            .map(|(name, rebuilt)| {
                let again = median(&rebuilt.again);
                let (least, most) = spread(&rebuilt.again);
                vec![
                    name,
                    rebuilt.level.name().into(),
                    format!(
                        "{} ({} bytes)",
                        rebuilt.changed.0.display(),
                        bytes(rebuilt.changed.1)
                    ),
                    seconds(rebuilt.first.wall),
                    seconds(again),
                    format!("{} to {}", seconds(least), seconds(most)),
                    ratio(Some(again), Some(rebuilt.first.wall)),
                ]
            })
            .collect();
        if rows.is_empty() {
            return String::new();
        }
        let head = [
            "payload",
            "level",
            "changed",
            "first pack",
            "again",
            "least to most",
            "again / first",
        ];
        format!(
            "\n## Rebuild\n\n\
             Packed with an empty cache, then after each of three changes of one file (one byte in a thousand).\n\n{}",
            table(&head, 3, &rows)
        )
    }

    fn payloads(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .results
            .iter()
            .map(|outcome| {
                let digest = &outcome.payload.digest;
                vec![
                    outcome.payload.payload.name(),
                    bytes(digest.files as u64),
                    bytes(digest.bytes),
                    digest.contents[..16].to_owned(),
                ]
            })
            .collect();
        format!(
            "\n## Payloads\n\n{}",
            table(&["payload", "files", "bytes", "digest"], 1, &rows)
        )
    }
}

impl Outcome {
    /// An archive's size.
    pub fn size(&self, archive: Archive) -> Option<f64> {
        Some(self.archives.get(&archive.name())?.bytes as f64)
    }

    /// The seconds that packing it took.
    pub fn packing(&self, archive: Archive) -> Option<f64> {
        Some(self.archives.get(&archive.name())?.usage.wall)
    }

    /// The ways that were measured in a place.
    pub fn ways(&self, place: Place) -> &[Timed] {
        let found = self.unpacked.iter().find(|(this, _)| *this == place);
        found.map_or(&[], |(_, ways)| ways)
    }

    fn size_row(&self, archive: Archive) -> Option<Vec<String>> {
        let packed = self.archives.get(&archive.name())?;
        let size = Some(packed.bytes as f64);
        let mark = if packed.earlier { "†" } else { "" };
        Some(vec![
            self.payload.payload.name(),
            archive.name(),
            bytes(packed.bytes),
            format!(
                "{:.2} %",
                100.0 * packed.bytes as f64 / self.payload.digest.bytes as f64
            ),
            ratio(size, self.size(Archive::Zip(9))),
            ratio(size, self.size(Archive::ZstdUltra)),
            ratio(size, self.size(Archive::SevenZip)),
            format!("{}{mark}", seconds(packed.usage.wall)),
            format!("{}{mark}", seconds(packed.usage.cpu)),
            format!("{}{mark}", megabytes(packed.usage.resident)),
        ])
    }

    fn unpack_row(&self, place: Place, timed: &Timed, copy: Option<f64>) -> Vec<String> {
        let middle = median(&timed.wall);
        let (least, most) = spread(&timed.wall);
        let memory = match place {
            Place::Tmpfs => [megabytes(timed.anonymous), megabytes(timed.resident)],
            Place::Disk => ["".into(), megabytes(timed.resident)],
        };
        let mut row = vec![
            self.payload.payload.name(),
            place.name().into(),
            timed.how.name(),
            seconds(middle),
            format!("{} to {}", seconds(least), seconds(most)),
            ratio(Some(middle), copy),
            format!("{:.0}", self.payload.digest.bytes as f64 / 1e6 / middle),
        ];
        row.extend(memory);
        row
    }
}

/// Our levels, in order.
pub const LEVELS: [Level; 3] = [Level::Fast, Level::Balanced, Level::Best];
