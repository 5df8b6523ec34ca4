//! What is measured on which payload: everything for a release, and what fits into five minutes for every day.
//!
//! The quick plan has smaller sets where a peer is slow, and levels that pack fast where unpacking is the question: how fast
//! zip and zstd unpack depends little on how hard they packed.

use clap::ValueEnum;

use super::contest::{Archive, Level, Unpack};
use super::machine::Tool;
use super::payload::Payload;

use Archive::{Brotli, Ours, SevenZip, Xz, Zip, Zstd, ZstdUltra};
use Level::{Balanced, Best, Fast};

/// How much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// About five minutes.
    Quick,
    /// Hours.
    Full,
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Sizes, and what packing takes
    Size,
    /// What unpacking takes
    Unpack,
    /// What packing takes again after a small change
    Rebuild,
}

/// What is measured on one payload.
#[derive(Debug, Default)]
pub struct Plan {
    /// Archives, for their size.
    pub size: Vec<Archive>,
    /// Ways to unpack.
    pub unpack: Vec<Unpack>,
    /// The level of a rebuild.
    pub rebuild: Option<Level>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.size.is_empty() && self.unpack.is_empty() && self.rebuild.is_none()
    }

    /// The programs that it takes, without ours.
    pub fn tools(&self) -> Vec<Tool> {
        let size = self.size.iter().flat_map(|archive| archive.tools());
        let unpack = self.unpack.iter().flat_map(|how| how.all_tools());
        size.chain(unpack).collect()
    }

    /// Keeps what `may` be measured, by the programs that it takes.
    pub fn keep(&mut self, may: impl Fn(&[Tool]) -> bool) {
        self.size.retain(|archive| may(&archive.tools()));
        self.unpack.retain(|how| may(&how.all_tools()));
    }

    /// Leaves archives out, and what is unpacked from them.
    pub fn without(&mut self, left_out: impl Fn(&Archive) -> bool) {
        self.size.retain(|archive| !left_out(archive));
        self.unpack
            .retain(|how| !how.archive().is_some_and(|archive| left_out(&archive)));
    }

    /// Keeps the peers.
    pub fn without_ours(&mut self) {
        self.size.retain(|archive| !matches!(archive, Ours(_)));
        self.unpack
            .retain(|how| !matches!(how, Unpack::From(Ours(_))));
        self.rebuild = None;
    }
}

impl Extent {
    /// The payloads when none are named.
    pub fn payloads(self) -> &'static [Payload] {
        use Payload::*;
        match self {
            Extent::Quick => &[Ort, Fp32, Small, Media, Tf112],
            Extent::Full => &[
                Tf112,
                Tf112Stripped,
                Cvort,
                Fp32,
                Small,
                Media,
                CvortAarch64,
                TfAarch64,
            ],
        }
    }

    /// Rounds of unpacking when no number is given.
    pub fn rounds(self) -> usize {
        match self {
            Extent::Quick => 3,
            Extent::Full => 5,
        }
    }

    /// Runs in which memory is sampled.
    pub fn samples(self) -> usize {
        match self {
            Extent::Quick => 1,
            Extent::Full => 3,
        }
    }
}

/// The plan for a payload; `part` leaves one part of it.
pub fn plan(extent: Extent, payload: Payload, part: Option<Part>) -> Plan {
    let mut plan = match extent {
        Extent::Quick => quick(payload),
        Extent::Full => full(payload),
    };
    let without = |this: Part| part.is_some_and(|part| part != this);
    if without(Part::Size) {
        plan.size.clear();
    }
    if without(Part::Unpack) {
        plan.unpack.clear();
    }
    if without(Part::Rebuild) {
        plan.rebuild = None;
    }
    plan
}

fn full(payload: Payload) -> Plan {
    let ours = [Ours(Fast), Ours(Balanced), Ours(Best)];
    let peers = [Zip(9), Zstd(19), ZstdUltra, Xz, SevenZip, Brotli];
    let size = match payload {
        Payload::Tf112Stripped | Payload::TfAarch64 => {
            vec![Ours(Balanced), Ours(Best), Zip(9), SevenZip]
        }
        Payload::CvortAarch64 => [&ours[..], &[Zip(9), Zstd(19), ZstdUltra, SevenZip]].concat(),
        _ => [&ours[..], &peers].concat(),
    };
    let mut unpack = vec![
        Unpack::From(Ours(Fast)),
        Unpack::From(Ours(Balanced)),
        Unpack::From(Ours(Best)),
        Unpack::Copy,
        Unpack::From(Zstd(19)),
        Unpack::From(ZstdUltra),
        Unpack::From(Zip(9)),
        Unpack::Python(Zip(9)),
        Unpack::From(SevenZip),
    ];
    match payload {
        Payload::Tf112 | Payload::Cvort => unpack.push(Unpack::From(Xz)),
        Payload::Tf112Stripped | Payload::CvortAarch64 | Payload::TfAarch64 => unpack.clear(),
        _ => {}
    }
    Plan {
        size,
        unpack,
        rebuild: (payload == Payload::Tf112).then_some(Balanced),
    }
}

fn quick(payload: Payload) -> Plan {
    let unpack = |ours: Level, zip: u8, zstd: u8| {
        vec![
            Unpack::From(Ours(ours)),
            Unpack::Copy,
            Unpack::From(Zstd(zstd)),
            Unpack::From(Zip(zip)),
            Unpack::Python(Zip(zip)),
        ]
    };
    let (size, unpack) = match payload {
        Payload::Tf112 => (vec![Ours(Fast), Zip(1), Zstd(3)], unpack(Fast, 1, 3)),
        Payload::Small => (vec![Ours(Fast), Zip(9), Zstd(9)], unpack(Fast, 9, 9)),
        Payload::Media => (
            vec![Ours(Balanced), Zip(9), Zstd(19)],
            unpack(Balanced, 9, 19),
        ),
        Payload::Fp32 => (
            vec![Ours(Balanced), Ours(Best), ZstdUltra],
            vec![
                Unpack::From(Ours(Balanced)),
                Unpack::From(Ours(Best)),
                Unpack::Copy,
                Unpack::From(ZstdUltra),
            ],
        ),
        Payload::Ort => (
            vec![
                Ours(Fast),
                Ours(Balanced),
                Ours(Best),
                Zstd(19),
                ZstdUltra,
                SevenZip,
            ],
            vec![
                Unpack::From(Ours(Balanced)),
                Unpack::From(Ours(Best)),
                Unpack::Copy,
                Unpack::From(Zstd(19)),
                Unpack::From(SevenZip),
            ],
        ),
        Payload::Cvort | Payload::Tf112Stripped | Payload::CvortAarch64 | Payload::TfAarch64 => {
            (vec![Ours(Balanced), Zip(9), SevenZip], Vec::new())
        }
    };
    Plan {
        size,
        unpack,
        rebuild: (payload == Payload::Tf112).then_some(Fast),
    }
}
