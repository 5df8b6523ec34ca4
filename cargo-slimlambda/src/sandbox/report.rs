//! What a run of the sandbox measured, as plain data; serialised it is `invoke`'s JSON report.

use super::control::{Exit, Isolation};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Version of the report's JSON layout.
pub const REPORT_VERSION: u32 = 1;

/// Everything a run measured.
#[derive(Debug, Clone, Serialize)]
pub struct RunReport {
    /// [`REPORT_VERSION`].
    pub version: u32,
    /// How far the function was kept apart from the host.
    pub isolation: Isolation,
    /// Each start of the function's process, in order.
    pub inits: Vec<InitPhase>,
    /// What the launcher said about itself, one for each start that had one.
    pub launcher: Vec<LauncherTrace>,
    /// Each event, in order.
    pub invokes: Vec<InvokePhase>,
    /// The function's memory setting, bytes.
    pub memory_limit: u64,
    /// Highest resident anonymous memory seen, bytes, sampled every 5 ms.
    pub peak_memory: u64,
    /// Size of /tmp, bytes.
    pub tmp_limit: u64,
    /// Highest use of /tmp seen, bytes; `None` where /tmp is the host's.
    pub tmp_used: Option<u64>,
    /// Unzipped size of the deployment package and the layers, bytes.
    pub unzipped: u64,
    /// System calls that were refused, as Lambda refuses them.
    pub refused: Vec<RefusedCall>,
    /// What of Lambda's environment was not enforced in this run, each a sentence fragment.
    pub not_enforced: Vec<String>,
    /// How processes ended that were not ended by us, in order.
    pub exits: Vec<Exit>,
    /// Where the files were kept, when that was asked for.
    pub kept: Option<Kept>,
}

/// One start of the function's process.
#[derive(Debug, Clone, Serialize)]
pub struct InitPhase {
    /// From exec to the first `next`, or to the failure, milliseconds.
    pub ms: f64,
    /// How it ended.
    pub outcome: InitOutcome,
    /// Run again during an invoke, under the function's timeout.
    pub during_invoke: bool,
}

/// How a start of the function's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum InitOutcome {
    /// It asked for an event.
    Ready,
    /// It did not within the time it had.
    TimedOut,
    /// Its process ended.
    Exited,
    /// It reported an error of its own.
    Error,
    /// It was over its memory.
    OutOfMemory,
    /// The bootstrap could not be executed.
    InvalidEntrypoint,
}

/// One event.
#[derive(Debug, Clone, Serialize)]
pub struct InvokePhase {
    /// The event's request id.
    pub request_id: String,
    /// Until the answer, milliseconds; with the Init phase only where that was run again.
    pub ms: f64,
    /// The first event of its process.
    pub cold: bool,
    /// The error's type, if it failed.
    pub error: Option<String>,
}

/// The launcher's line about itself. Unknown fields are ignored, missing ones are zero.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LauncherTrace {
    /// Start of the launcher to exec of the real binary, microseconds.
    pub launcher_us: u64,
    /// The part of it that unpacked, microseconds.
    pub unpack_us: u64,
    /// Bytes written.
    pub unpacked_bytes: u64,
    /// Bytes read from the archive.
    pub packed_bytes: u64,
    /// Entries unpacked.
    pub entries: u64,
    /// Threads that unpacked.
    pub threads: u64,
    /// The tree was there already.
    pub warm: bool,
}

/// A system call that Lambda refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusedCall {
    /// The call.
    pub name: String,
    /// What it wanted, where the arguments say so (`PR_SET_NAME`); else empty.
    pub detail: String,
    /// Name of the process.
    pub process: String,
    /// How often.
    pub count: u64,
}

/// Directories on the host that outlive the run.
#[derive(Debug, Clone, Serialize)]
pub struct Kept {
    /// The deployment package, unpacked.
    pub task: PathBuf,
    /// The layers, unpacked.
    pub opt: PathBuf,
    /// What was in /tmp at the end; `None` where /tmp is the host's.
    pub tmp: Option<PathBuf>,
}
