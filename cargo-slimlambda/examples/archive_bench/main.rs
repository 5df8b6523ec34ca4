//! The archive against its peers: size, packing, unpacking, rebuild.
//!
//!     cargo run --release -p cargo-slimlambda --example archive_bench -- [--quick | --full]
//!         [--payload NAME]… [--only size|unpack|rebuild] [--output FILE.md]
//!
//! Fetches pinned wheels from PyPI into `target/bench-payloads` (or `$SLIMLAMBDA_BENCH_DIR`; a full run takes about 8 GB there and
//! 1.5 GB of /dev/shm), builds `cargo-slimlambda` as it is released, measures it and its peers in one run, and prints
//! tables in Markdown. The quick run takes about five minutes, the full one some hours, most of them brotli's. Who interrupts it finds directories
//! `archive-bench-*` there and in /dev/shm.

mod contest;
mod machine;
mod measure;
mod pack;
mod payload;
mod plan;
mod rebuild;
mod report;
mod setting;
mod table;
mod targets;
mod tree;
mod unpack;
mod wheels;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use nix::sys::stat::{Mode, umask};

use machine::{Tool, Tools};
use payload::Payload;
use plan::{Extent, Part, Plan};
use report::{Outcome, Report};
use setting::Setting;
use unpack::Place;

/// Measure the archive against its peers.
#[derive(Debug, Parser)]
#[command(name = "archive_bench")]
struct Args {
    /// What fits into five minutes (the default)
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Everything
    #[arg(long)]
    full: bool,
    /// Payload to measure; may be repeated
    #[arg(long, value_name = "NAME")]
    payload: Vec<Payload>,
    /// One part alone
    #[arg(long)]
    only: Option<Part>,
    /// Rounds of unpacking; without it, 3 in a quick run, 5 in a full one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Also write the tables here
    #[arg(long, value_name = "FILE.md")]
    output: Option<PathBuf>,
    /// Take peers' archives of an earlier run, their times with them
    #[arg(long)]
    reuse_peers: bool,
    /// Leave out what needs programs that are not here
    #[arg(long)]
    skip_missing: bool,
    /// Leave us out
    #[arg(long)]
    peers_only: bool,
    /// Leave out a peer, by its name in the tables; may be repeated
    #[arg(long, value_name = "PEER")]
    without: Vec<String>,
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let done = match (words.next(), words.next()) {
        (Some(word), Some(job)) if word == measure::RUN_ARG => measured(&job),
        _ => bench(&Args::parse()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measured(job: &str) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(&measure::run_here(job)?)?);
    Ok(())
}

fn bench(args: &Args) -> anyhow::Result<()> {
    // Modes that are compared must not depend on who runs this.
    umask(Mode::from_bits_truncate(0o022));
    let extent = if args.full {
        Extent::Full
    } else {
        Extent::Quick
    };
    let payloads = match args.payload.is_empty() {
        true => extent.payloads(),
        false => &args.payload,
    };
    let mut plans: Vec<(Payload, Plan)> = payloads
        .iter()
        .map(|&payload| (payload, plan::plan(extent, payload, args.only)))
        .filter(|(_, plan)| !plan.is_empty())
        .collect();
    for (_, plan) in &mut plans {
        plan.without(|archive| args.without.contains(&archive.name()));
    }
    if args.peers_only {
        plans.iter_mut().for_each(|(_, plan)| plan.without_ours());
    }
    let mut tools = find_tools(&mut plans, args.skip_missing)?;
    if !args.peers_only {
        tools.build_ours()?;
    }
    let base = base()?;
    let scratch = |place: &Path| {
        tempfile::Builder::new()
            .prefix("archive-bench-")
            .tempdir_in(place)
            .with_context(|| format!("failed to create a directory in `{}`", place.display()))
    };
    let (disk, tmpfs) = (scratch(&base)?, scratch(Path::new("/dev/shm"))?);
    let mut report = Report {
        extent,
        command: command(),
        machine: machine::told(&tools, tmpfs.path(), disk.path()),
        results: Vec::new(),
        launcher: None,
    };
    if tools.has_ours() && args.only.is_none_or(|part| part == Part::Size) {
        let launcher = cargo_slimlambda::cargo::launcher::launcher;
        report.launcher = Some(launcher(std::env::consts::ARCH, false, &|_| {})?.len() as u64);
    }
    let setting = Setting {
        tools,
        base,
        disk: disk.path().to_owned(),
        tmpfs: tmpfs.path().to_owned(),
        rounds: args.rounds.map_or(extent.rounds(), usize::from),
        samples: extent.samples(),
        reuse_peers: args.reuse_peers,
    };
    for (payload, plan) in plans {
        report
            .results
            .push(measure_payload(&setting, payload, plan)?);
        // What is there is kept, should a later payload fail.
        if let Some(path) = &args.output {
            fs::write(path, report.markdown())
                .with_context(|| format!("failed to write `{}`", path.display()))?;
        }
    }
    print!("{}", report.markdown());
    Ok(())
}

fn measure_payload(setting: &Setting, payload: Payload, plan: Plan) -> anyhow::Result<Outcome> {
    let payload = payload::prepare(&setting.base, payload)?;
    let archives = pack::pack(setting, &payload, &plan)?;
    let mut unpacked = Vec::new();
    if !plan.unpack.is_empty() {
        for place in [Place::Tmpfs, Place::Disk] {
            let timed = unpack::unpack(setting, &payload, &plan.unpack, &archives, place)?;
            unpacked.push((place, timed));
        }
    }
    let rebuilt = match plan.rebuild {
        Some(level) => Some(rebuild::rebuild(setting, &payload, level)?),
        None => None,
    };
    Ok(Outcome {
        payload,
        plan,
        archives,
        unpacked,
        rebuilt,
    })
}

/// Finds what the plans need. What is missing is an error, or leaves the plans.
fn find_tools(plans: &mut [(Payload, Plan)], skip_missing: bool) -> anyhow::Result<Tools> {
    let mut wanted = BTreeSet::from([Tool::Copy, Tool::Python, Tool::Pip]);
    for (_, plan) in plans.iter() {
        wanted.extend(plan.tools());
    }
    let (tools, missing) = Tools::find(wanted);
    let packages: BTreeSet<&str> = missing.iter().map(|tool| tool.package()).collect();
    let packages: Vec<&str> = packages.into_iter().collect();
    let vital = missing.contains(&Tool::Copy) || missing.contains(&Tool::Pip);
    if !missing.is_empty() && (vital || !skip_missing) {
        bail!(
            "programs are missing\nhelp: `apt-get install {}`, or `--skip-missing`",
            packages.join(" ")
        );
    }
    for (_, plan) in plans {
        plan.keep(|needed| needed.iter().all(|tool| tools.has(*tool)));
    }
    Ok(tools)
}

/// Where wheels, trees and archives are kept: by default in the target directory that this program is in.
fn base() -> anyhow::Result<PathBuf> {
    let base = match std::env::var_os("SLIMLAMBDA_BENCH_DIR") {
        Some(path) => PathBuf::from(path),
        None => {
            let program = std::env::current_exe().context("failed to find this program")?;
            let target = program.ancestors().nth(3).unwrap_or(Path::new("."));
            target.join("bench-payloads")
        }
    };
    fs::create_dir_all(&base)
        .and_then(|()| fs::canonicalize(&base))
        .with_context(|| format!("failed to create `{}`", base.display()))
}

/// What was typed, or could have been.
fn command() -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let command = "cargo run --release -p cargo-slimlambda --example archive_bench --";
    format!("{command} {}", arguments.join(" "))
        .trim_end_matches([' ', '-'])
        .to_owned()
}
