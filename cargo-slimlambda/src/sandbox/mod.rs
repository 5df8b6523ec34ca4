//! Runs a deployment package the way Lambda would, without Docker.
//!
//! Options and events come in, an answer for each event and a [`RunReport`] go out. The package is
//! unpacked (`package`), the inner half of the sandbox is started (`process`, `root`), and the
//! function's process lives its phases against a Runtime API of ours (`lifecycle`). What this
//! system does not let us enforce is listed in the report rather than passed over.

mod control;
mod environment;
mod failure;
mod lifecycle;
mod memory;
mod output;
mod package;
mod process;
mod provided;
pub mod report;
mod root;
mod runtime_api;
mod seccomp;
mod start;
mod sys;

pub use control::{Exit, Isolation};
pub use process::child_main;
pub use report::RunReport;

use crate::elf::runtime::{PROVIDED_AL2023, Runtime};
use crate::error::usage;
use crate::event::{Event, Sink};
use crate::limits::{self, Limit};
use anyhow::{Context, Result};
use control::Spec;
use lifecycle::Function;
use provided::Bootstrap;
use report::{Kept, REPORT_VERSION};
use start::Teardown;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

/// First argument of this executable when it is to become the sandbox's inner half.
pub const STAGE2_ARG: &str = "__sandbox";

/// The user of a function's process: `sbx_user1051`. Source: reports of `id` on Lambda.
const UID: u32 = 993;
const GID: u32 = 990;

/// What to run, and how large its execution environment is.
#[derive(Debug, Clone)]
pub struct Options {
    /// Deployment package: a zip, or a directory with a `bootstrap`.
    pub package: PathBuf,
    /// Layer zips, in order.
    pub layers: Vec<PathBuf>,
    /// `_HANDLER`.
    pub handler: String,
    /// Name of the function.
    pub function_name: String,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Size of /tmp, MiB.
    pub tmp_mib: u32,
    /// Time for one event.
    pub timeout: Duration,
    /// The function's own variables.
    pub environment: Vec<(String, String)>,
    /// The runtime whose libraries are shown; no others of the host's are visible.
    pub runtime: Runtime,
    /// Another system's root to show instead of the provided files.
    pub rootfs: Option<PathBuf>,
    /// Leave the unpacked package and /tmp on the host.
    pub keep: bool,
    /// Use this isolation or fail; `None` takes the best that the system allows.
    pub isolation: Option<Isolation>,
    /// The executable that calls [`child_main`] when its first argument is [`STAGE2_ARG`].
    pub executable: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            package: PathBuf::new(),
            layers: Vec::new(),
            handler: "bootstrap".to_owned(),
            function_name: "function".to_owned(),
            memory_mib: 128,
            tmp_mib: 512,
            timeout: Duration::from_secs(3),
            environment: Vec::new(),
            runtime: PROVIDED_AL2023,
            rootfs: None,
            keep: false,
            isolation: None,
            executable: PathBuf::from("/proc/self/exe"),
        }
    }
}

/// What came of one event.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The event's request id.
    pub request_id: String,
    /// The function's answer, or Lambda's JSON object with `errorType` and `errorMessage`.
    pub payload: Vec<u8>,
    /// The error's type, if it failed.
    pub error: Option<String>,
    /// Until the answer, without the Init phase except where that was run again.
    pub duration: Duration,
    /// The first event of its process.
    pub cold: bool,
}

/// Runs the events one after the other in one execution environment.
///
/// Each answer goes to `on_answer` as it comes; what the function prints goes to `output`, line by
/// line, except the launcher's line about itself, which goes into the report.
///
/// # Errors
/// Fails when the package cannot be run at all (unreadable, too large, reserved variables). A
/// function that fails is not an error: its answer says so.
pub fn run(
    options: &Options,
    events: &[Vec<u8>],
    on_answer: &mut dyn FnMut(usize, &Answer),
    output: &mut (dyn Write + Send),
    sink: Sink<'_>,
) -> Result<RunReport> {
    check(options, events)?;
    let work = tempfile::Builder::new()
        .prefix("slimlambda-")
        .tempdir()
        .context("failed to create a temporary directory")?;
    // The function's user must reach the package where namespaces do not show it elsewhere.
    fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755))?;
    fs::create_dir(work.path().join("root")).context("failed to create the root")?;
    let unpacked = package::unpack(&options.package, &options.layers, work.path())?;
    let mut spec = specify(options, &unpacked, work.path(), sink)?;
    let entrypoint = entrypoint(&unpacked);

    let (reader, writer) = std::io::pipe().context("failed to create a pipe")?;
    let started = start::start(options, &mut spec, &writer, sink)?;
    drop(writer);
    let mut not_enforced = started.not_enforced;
    not_enforced.extend(never_enforced(&spec));
    let refused = seccomp::Refused::new(BTreeMap::new());
    let launcher = Mutex::new(Vec::new());
    let (sender, messages) = mpsc::channel();

    let mut report = RunReport {
        version: REPORT_VERSION,
        isolation: spec.isolation,
        inits: Vec::new(),
        launcher: Vec::new(),
        invokes: Vec::new(),
        memory_limit: spec.memory,
        peak_memory: 0,
        tmp_limit: spec.tmp_size,
        tmp_used: None,
        unzipped: unpacked.size,
        refused: Vec::new(),
        not_enforced,
        exits: Vec::new(),
        kept: None,
    };
    let environment = environment::environment(
        options,
        spec.task_root(),
        if spec.isolation == Isolation::Plain {
            &spec.opt
        } else {
            Path::new("/opt")
        },
    );
    let control = started.control;
    let mut child = started.child;
    std::thread::scope(|scope| {
        let _teardown = Teardown(&control, &mut child);
        scope.spawn(|| output::pump(reader, output, &launcher));
        let (incoming, refused) = (&control, &refused);
        let sent = sender.clone();
        scope.spawn(move || lifecycle::listen(scope, incoming, refused, &sent));
        let mut function = Function {
            options,
            environment,
            entrypoint,
            control: control.as_fd(),
            sender,
            messages,
            sink,
            report: &mut report,
            process: None,
            ending: false,
        };
        let result = function.run(events, on_answer);
        let ended = function.end();
        let kept = match (&result, &ended) {
            (Ok(()), Ok(())) if options.keep => keep_tmp(started.tmp.as_ref(), work.path()),
            _ => Ok(None),
        };
        result.and(ended)?;
        kept.map(|tmp| {
            if options.keep {
                let (task, opt) = (unpacked.task.clone(), unpacked.opt.clone());
                report.kept = Some(Kept { task, opt, tmp });
            }
        })
    })?;
    report.refused = seccomp::list(refused);
    report.launcher = launcher
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if options.keep {
        _ = work.keep();
    }
    Ok(report)
}

/// Refuses what Lambda would not accept.
fn check(options: &Options, events: &[Vec<u8>]) -> Result<()> {
    let within = |name: &str, mib: u32, least: Limit, most: Limit| {
        let bytes = u64::from(mib) * limits::MIB;
        let (low, high) = (least.mib(), most.mib());
        if (least.value..=most.value).contains(&bytes) {
            return Ok(());
        }
        Err(usage(format!(
            "{name} of `{mib}` MiB, where Lambda takes `{low}` to `{high}`"
        )))
    };
    within(
        "memory",
        options.memory_mib,
        limits::MEMORY_MIN,
        limits::MEMORY_MAX,
    )?;
    within(
        "/tmp",
        options.tmp_mib,
        limits::TMP_DEFAULT,
        limits::TMP_MAX,
    )?;
    let most = limits::TIMEOUT_MAX.value;
    if options.timeout.is_zero() || options.timeout > Duration::from_secs(most) {
        return Err(usage(format!(
            "timeout, where Lambda takes `1` to `{most}` seconds"
        )));
    }
    let name = options.function_name.as_bytes();
    if name.is_empty()
        || !name
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte))
    {
        let name = &options.function_name;
        return Err(usage(format!(
            "function name `{name}` does not match `[a-zA-Z0-9-_]+`"
        )));
    }
    let most = limits::EVENT.value;
    let mut sizes = events.iter().map(|event| event.len() as u64);
    if let Some(size) = sizes.find(|size| *size > most) {
        return Err(usage(format!(
            "Request must be smaller than {most} bytes for the InvokeFunction operation\n  \
             the event has `{size}` bytes"
        )));
    }
    environment::check(&options.environment)
}

/// The bootstrap as (path on the host, path inside), where Lambda looks for it.
fn entrypoint(unpacked: &package::Unpacked) -> Option<(PathBuf, PathBuf)> {
    [(&unpacked.task, "/var/task"), (&unpacked.opt, "/opt")]
        .into_iter()
        .map(|(host, inside)| (host.join("bootstrap"), Path::new(inside).join("bootstrap")))
        .find(|(host, _)| fs::symlink_metadata(host).is_ok())
}

/// What the sandbox is to be like, apart from the kind of isolation.
fn specify(
    options: &Options,
    unpacked: &package::Unpacked,
    work: &Path,
    sink: Sink<'_>,
) -> Result<Spec> {
    let entrypoint = entrypoint(unpacked);
    let kind = entrypoint
        .as_ref()
        .map_or(Bootstrap::Other, |(host, _)| provided::recognise(host));
    let machine = match kind {
        Bootstrap::Elf(machine) => machine,
        _ => provided::host(),
    };
    let system = match &options.rootfs {
        Some(_) => provided::Provided::default(),
        None => provided::collect(&options.runtime, machine, &kind)?,
    };
    for soname in &system.missing {
        sink(Event::Note(&format!(
            "`{soname}` is part of the runtime, but this host has none to show the function"
        )));
    }
    let rootfs = options.rootfs.as_ref().map(|tree| {
        fs::canonicalize(tree).with_context(|| format!("failed to resolve `{}`", tree.display()))
    });
    let foreign = machine != provided::host();
    Ok(Spec {
        isolation: Isolation::Plain,
        parent: nix::unistd::Pid::this().as_raw(),
        work: work.to_owned(),
        task: unpacked.task.clone(),
        opt: unpacked.opt.clone(),
        rootfs: rootfs.transpose()?,
        files: system.files.into_iter().collect(),
        links: system.links.into_iter().collect(),
        tmp_size: u64::from(options.tmp_mib) * limits::MIB,
        memory: u64::from(options.memory_mib) * limits::MIB,
        cores: limits::cores(options.memory_mib),
        binfmt: if foreign {
            provided::emulator(machine)
        } else {
            None
        },
        bootstrap: entrypoint.map(|(_, inside)| inside).unwrap_or_default(),
        share_tmp: options.keep,
    })
}

/// What no isolation enforces.
fn never_enforced(spec: &Spec) -> Vec<String> {
    let mut list = vec![
        "CPU share: the cores are there at their full speed, and /proc/cpuinfo lists all of this \
         machine's"
            .to_owned(),
        "network: it is this machine's".to_owned(),
    ];
    let wanted = spec.cores;
    match std::thread::available_parallelism().map(usize::from) {
        Ok(cores) if cores < wanted => list.push(format!(
            "cores: Lambda shows `{wanted}` at this memory, and this machine has `{cores}`"
        )),
        _ => {}
    }
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx512f") && spec.binfmt.is_none() {
        list.push("instructions: this CPU has AVX-512, which Lambda does not promise".to_owned());
    }
    if spec.binfmt.is_some() {
        list.push("CPU: it is emulated, so times and memory say little".to_owned());
    }
    list
}

/// Copies /tmp out of the sandbox, through the descriptor that the inner half has handed over.
fn keep_tmp(tmp: Option<&OwnedFd>, work: &Path) -> Result<Option<PathBuf>> {
    let Some(tmp) = tmp else { return Ok(None) };
    let from = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(tmp));
    let to = work.join("tmp");
    copy_tree(Path::new(&from), &to).context("failed to keep /tmp")?;
    Ok(Some(to))
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let context = || format!("failed to copy `{}`", to.display());
    fs::create_dir(to).with_context(context)?;
    for entry in fs::read_dir(from).with_context(context)? {
        let entry = entry.with_context(context)?;
        let (kind, to) = (
            entry.file_type().with_context(context)?,
            to.join(entry.file_name()),
        );
        if kind.is_dir() {
            copy_tree(&entry.path(), &to)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(entry.path()).with_context(context)?;
            std::os::unix::fs::symlink(target, to).with_context(context)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), to).with_context(context)?;
        }
    }
    Ok(())
}
