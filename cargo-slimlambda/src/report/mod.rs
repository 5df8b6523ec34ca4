//! What a build did, as plain data: drawn by `terminal`, serialised as it is for machines.
//!
//! The JSON layout is `schemas/build-report-v1.schema.json`; a change that a reader could stumble over raises
//! [`REPORT_VERSION`].

pub mod terminal;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use crate::cargo::Artifact;
use crate::config::Config;
use crate::elf::closure::Closure;
use crate::elf::dlopen::Hint;
use crate::elf::image::Machine;
use crate::error::exit_status;
use crate::estimate::{self, Work};
use crate::limits::{self, Limit};
use crate::pack::Packed;
use crate::plan::{self, Place, Plan, Why};
use crate::tree::{Item, Role, Strip};

/// Version of the JSON layout.
pub const REPORT_VERSION: u32 = 1;

/// Everything there is to say about one packaged function. Sizes are in bytes.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// [`REPORT_VERSION`].
    pub version: u32,
    /// Version of this program.
    pub tool: &'static str,
    /// Name of the binary.
    pub function: String,
    /// Lambda's name of the runtime.
    pub runtime: &'static str,
    /// Lambda's name of the architecture: `x86_64` or `arm64`.
    pub architecture: &'static str,
    /// Every file of the package, sorted by path.
    pub files: Vec<FileReport>,
    /// Needed libraries that the runtime brings along.
    pub provided: Vec<ProvidedReport>,
    /// Libraries that may be opened at run time and are neither in the package nor in the runtime.
    pub dlopen_hints: Vec<HintReport>,
    /// What could not be decided, and what should be known.
    pub notes: Vec<String>,
    /// The launcher, if there is one.
    pub launcher: Option<LauncherReport>,
    /// The sideload archive, if there is one.
    pub archive: Option<ArchiveReport>,
    /// What unpacking takes at a cold start.
    pub estimate: EstimateReport,
    /// Sums.
    pub totals: Totals,
    /// Each figure that Lambda limits.
    pub limits: Vec<LimitReport>,
    /// What to set.
    pub settings: Settings,
    /// What was written.
    pub outputs: Vec<Output>,
}

/// One file of the package.
#[derive(Debug, Clone, Serialize)]
pub struct FileReport {
    /// Path in the package; the binary's is `bin/<name>` even where it is the `bootstrap`.
    pub path: String,
    /// What it is for.
    pub role: Role,
    /// Where it went.
    pub place: Place,
    /// Why it went there.
    pub why: Why,
    /// Before stripping.
    pub original_size: u64,
    /// After stripping.
    pub size: u64,
    /// Its share of the archive.
    pub packed_size: Option<u64>,
    /// What stripping did.
    pub strip: Strip,
    /// Who needs it (libraries).
    pub needed_by: Vec<String>,
    /// Where it came from.
    pub source: PathBuf,
}

/// A needed library that stays out of the package.
#[derive(Debug, Clone, Serialize)]
pub struct ProvidedReport {
    /// Its soname.
    pub soname: &'static str,
    /// Who needs it.
    pub needed_by: Vec<String>,
    /// Where it is known from that the runtime has it.
    pub source: &'static str,
}

/// A library that may be opened at run time.
#[derive(Debug, Clone, Serialize)]
pub struct HintReport {
    /// The name it would be opened by.
    pub name: String,
    /// Files that mention it.
    pub files: Vec<String>,
    /// Declared in `.note.dlopen` rather than found as a string.
    pub declared: bool,
}

/// The launcher.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct LauncherReport {
    /// Bytes.
    pub size: u64,
}

/// The sideload archive.
#[derive(Debug, Clone, Serialize)]
pub struct ArchiveReport {
    /// Archive digest, hexadecimal.
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// Bytes of its files, unpacked.
    pub unpacked_size: u64,
    /// Number of frames, which is how many threads could unpack it at most.
    pub frames: usize,
}

/// What unpacking takes at a cold start, by estimate.
#[derive(Debug, Clone, Serialize)]
pub struct EstimateReport {
    /// Bytes that are written.
    pub unpacked_size: u64,
    /// CPU time, microseconds of one core.
    pub cpu_us: u64,
    /// The time with the configured memory (or Lambda's default), and with more, where there is more.
    pub at: Vec<StartReport>,
}

/// An estimate for a memory size.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct StartReport {
    /// `MemorySize`, MB.
    pub memory: u32,
    /// vCPUs that come with it.
    pub vcpus: f64,
    /// Time, microseconds.
    pub unpack_us: u64,
}

/// Sums over the package.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Totals {
    /// All files before stripping.
    pub original: u64,
    /// All files after stripping.
    pub stripped: u64,
    /// The deployment package, unzipped.
    pub unzipped: u64,
    /// The deployment package, zipped.
    pub zipped: u64,
    /// What the archive's files take in /tmp.
    pub tmp: u64,
}

/// A figure against its limit.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct LimitReport {
    /// The limit's name.
    pub name: &'static str,
    /// The package's figure.
    pub value: u64,
    /// The limit.
    pub limit: u64,
    /// Where the limit is known from.
    pub source: &'static str,
}

/// What the function's configuration must say.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Settings {
    /// `EphemeralStorage.Size`, MB.
    pub ephemeral_storage: u32,
    /// `MemorySize`, MB, if configured.
    pub memory: Option<u32>,
    /// `Timeout`, seconds, if configured.
    pub timeout: Option<u32>,
}

/// A file that was written.
#[derive(Debug, Clone, Serialize)]
pub struct Output {
    /// Absolute path.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// BLAKE3, hexadecimal: by it the next build knows the file again before it removes it.
    pub digest: String,
}

/// What a report is made from.
pub struct Facts<'f> {
    /// The binary.
    pub artifact: &'f Artifact,
    /// What the build was told.
    pub config: &'f Config,
    /// Lambda's name of the runtime.
    pub runtime: &'static str,
    /// What the package is for.
    pub machine: Machine,
    /// The files.
    pub items: &'f [Item],
    /// What was decided.
    pub plan: &'f Plan,
    /// What was made.
    pub packed: &'f Packed,
    /// What the launcher has to do at a cold start.
    pub start: &'f Work,
    /// The libraries.
    pub closure: &'f Closure<'f>,
    /// What could not be decided.
    pub notes: Vec<String>,
    /// Libraries that may be opened at run time.
    pub hints: Vec<Hint>,
}

/// Makes the report; `outputs` is still empty.
pub fn report(facts: &Facts<'_>) -> Report {
    let Facts {
        items,
        plan,
        packed,
        closure,
        config,
        ..
    } = facts;
    let files = items.iter().enumerate().map(|(n, item)| FileReport {
        path: item.dest.clone(),
        role: item.role,
        place: plan.places[n].0,
        why: plan.places[n].1,
        original_size: item.original_size,
        size: item.size(),
        packed_size: packed.packed_sizes[n],
        strip: item.strip.clone(),
        needed_by: needed_by(closure, item),
        source: item.source.clone(),
    });
    let zipped = packed.zip.len() as u64;
    let tmp = plan.tmp;
    let figure = |limit: Limit, value| LimitReport {
        name: limit.name,
        value,
        limit: limit.value,
        source: limit.source,
    };
    let mut notes = facts.notes.clone();
    notes.extend(plan::upload_note(zipped));
    let estimate = estimate(facts.start, config.memory);
    notes.extend(uncompressed_note(facts.plan, &estimate));
    Report {
        version: REPORT_VERSION,
        tool: env!("CARGO_PKG_VERSION"),
        function: facts.artifact.name.clone(),
        runtime: facts.runtime,
        architecture: match facts.machine {
            Machine::X86_64 => "x86_64",
            Machine::Aarch64 => "arm64",
        },
        files: files.collect(),
        provided: closure
            .provided
            .iter()
            .map(|provided| ProvidedReport {
                soname: provided.row.soname,
                needed_by: provided.needed_by.clone(),
                source: provided.row.source,
            })
            .collect(),
        dlopen_hints: facts
            .hints
            .iter()
            .map(|hint| HintReport {
                name: hint.name.clone(),
                files: hint.files.iter().cloned().collect(),
                declared: hint.declared,
            })
            .collect(),
        notes,
        launcher: packed.launcher.map(|size| LauncherReport { size }),
        archive: packed.archive.map(|archive| ArchiveReport {
            digest: runtime_unpack::format::hex(&archive.digest),
            size: archive.size,
            unpacked_size: archive.unpacked,
            frames: archive.frames,
        }),
        estimate,
        totals: Totals {
            original: items.iter().map(|item| item.original_size).sum(),
            stripped: items.iter().map(Item::size).sum(),
            unzipped: packed.unzipped,
            zipped,
            tmp,
        },
        limits: vec![
            figure(limits::ZIPPED_DIRECT, zipped),
            figure(limits::UNZIPPED, packed.unzipped),
            figure(
                Limit {
                    value: u64::from(plan.ephemeral_storage) * limits::MIB,
                    name: "tmp",
                    ..limits::TMP_MAX
                },
                tmp,
            ),
        ],
        settings: Settings {
            ephemeral_storage: plan.ephemeral_storage,
            memory: config.memory,
            timeout: config.timeout,
        },
        outputs: Vec::new(),
    }
}

fn estimate(start: &Work, memory: Option<u32>) -> EstimateReport {
    let memory = memory.unwrap_or(limits::MEMORY_MIN.mib());
    let at = std::iter::once(memory).chain(estimate::next_size(memory));
    EstimateReport {
        unpacked_size: start.amount(estimate::Kind::Written),
        cpu_us: start.cpu().as_micros() as u64,
        at: at
            .map(|memory| StartReport {
                memory,
                vcpus: f64::from(limits::vcpu_thousandths(memory)) / 1000.0,
                unpack_us: start.time(memory).as_micros() as u64,
            })
            .collect(),
    }
}

/// A remark where the configuration has files unpacked that need not be.
fn uncompressed_note(plan: &Plan, estimate: &EstimateReport) -> Option<String> {
    let configured = (Place::Archive, Why::Configured);
    (plan.fits_uncompressed && plan.places.contains(&configured) && estimate.cpu_us > 0).then(|| {
        let time = Duration::from_micros(estimate.at[0].unpack_us);
        format!(
            "everything would fit uncompressed, and each cold start be {} shorter: `placement = \"auto\"`",
            estimate::about(time)
        )
    })
}

fn needed_by(closure: &Closure<'_>, item: &Item) -> Vec<String> {
    let name = item.dest.rsplit('/').next().unwrap_or(&item.dest);
    let library = closure
        .libraries
        .iter()
        .find(|library| item.role == Role::Library && library.names.iter().any(|n| n == name));
    library
        .map(|library| library.needed_by.clone())
        .unwrap_or_default()
}

/// The document that `--message-format json` prints: what was packaged, or why it was not.
pub fn json(result: &anyhow::Result<Vec<Report>>) -> anyhow::Result<String> {
    let document = match result {
        Ok(reports) => serde_json::json!({ "version": REPORT_VERSION, "functions": reports }),
        Err(error) => serde_json::json!({
            "version": REPORT_VERSION,
            "functions": [],
            "error": { "message": format!("{error:#}"), "exit_code": exit_status(error) },
        }),
    };
    serde_json::to_string_pretty(&document).context("failed to write the report")
}

/// Prints a document on stdout. A reader that has seen enough and closed the pipe is no error.
pub fn print(document: &str) {
    let _ = writeln!(std::io::stdout(), "{document}");
}
