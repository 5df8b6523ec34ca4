//! Runs other programs and says what they took.
//!
//! Each job runs below a process of its own: this program again, started for it. So the kernel's figures (`getrusage` of the waited-for
//! children) are this job's alone, and the peak memory's floor is a small process, not this one: Linux counts
//! what a process was before `exec`. The clock runs in that process, from before the first start to after the last exit.
//!
//! Anonymous memory has no peak in Linux. It is sampled: a thread reads each process's `RssAnon` every millisecond, in runs
//! whose time is not used. A peak shorter than that can be missed.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};

/// The first argument by which this program knows that it is to run a job.
pub const RUN_ARG: &str = "--run-measured-job";

/// A program, or several with pipes between.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// Programs with their arguments.
    pub stages: Vec<Vec<String>>,
    /// Where they run.
    pub directory: PathBuf,
    /// Where the last one's output goes; without it, nowhere.
    pub output: Option<PathBuf>,
    /// Variables on top of this process's.
    pub environment: Vec<(String, String)>,
    /// Whether memory is sampled.
    pub sample: bool,
}

/// What a job took.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Usage {
    /// Seconds on the clock.
    pub wall: f64,
    /// Seconds of all cores.
    pub cpu: f64,
    /// The largest resident size of one process, bytes; all pages counted.
    pub resident: u64,
    /// The largest sum of anonymous memory that was seen, bytes; 0 without sampling.
    pub anonymous: u64,
}

impl Job {
    /// One program.
    pub fn program(directory: impl Into<PathBuf>, command: &[&str]) -> Job {
        Job {
            stages: vec![words(command)],
            directory: directory.into(),
            output: None,
            environment: Vec::new(),
            sample: false,
        }
    }

    /// Another program, which reads what the last one writes.
    pub fn pipe(mut self, command: &[&str]) -> Job {
        self.stages.push(words(command));
        self
    }

    /// The last program's output in a file.
    pub fn into_file(mut self, path: impl Into<PathBuf>) -> Job {
        self.output = Some(path.into());
        self
    }

    fn told(&self) -> String {
        let stages: Vec<String> = self.stages.iter().map(|stage| stage.join(" ")).collect();
        stages.join(" | ")
    }
}

fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|word| word.to_string()).collect()
}

/// Runs a job; that one of its programs fails is an error.
pub fn run(job: &Job) -> anyhow::Result<Usage> {
    let failed = || format!("failed to measure `{}`", job.told());
    let output = Command::new(std::env::current_exe()?)
        .arg(RUN_ARG)
        .arg(serde_json::to_string(job)?)
        .stderr(Stdio::inherit())
        .output()
        .with_context(failed)?;
    if !output.status.success() {
        bail!("{}", failed());
    }
    serde_json::from_slice(&output.stdout).with_context(failed)
}

/// The other side of [`run`].
pub fn run_here(job: &str) -> anyhow::Result<Usage> {
    let job: Job = serde_json::from_str(job)?;
    let started = Instant::now();
    let mut children = start(&job)?;
    let processes: Vec<u32> = children.iter().map(Child::id).collect();
    let done = AtomicBool::new(false);
    let (anonymous, statuses) = std::thread::scope(|scope| {
        let sampler = job
            .sample
            .then(|| scope.spawn(|| sampled(&processes, &done)));
        let statuses: Vec<_> = children.iter_mut().map(Child::wait).collect();
        done.store(true, Ordering::Relaxed);
        let anonymous = sampler.map_or(0, |sampler| sampler.join().unwrap_or_default());
        (anonymous, statuses)
    });
    let wall = started.elapsed().as_secs_f64();
    for (status, stage) in statuses.into_iter().zip(&job.stages) {
        let status = status.with_context(|| format!("failed to wait for `{}`", stage[0]))?;
        if !status.success() {
            bail!("`{}` failed: {status}", stage.join(" "));
        }
    }
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let cpu = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Usage {
        wall,
        cpu: cpu as f64 / 1e6,
        resident: usage.max_rss() as u64 * 1024,
        anonymous,
    })
}

fn start(job: &Job) -> anyhow::Result<Vec<Child>> {
    let mut children: Vec<Child> = Vec::new();
    for (at, stage) in job.stages.iter().enumerate() {
        let last = at + 1 == job.stages.len();
        let stdin = match children.last_mut().and_then(|before| before.stdout.take()) {
            Some(pipe) => Stdio::from(pipe),
            None => Stdio::null(),
        };
        let stdout = match &job.output {
            _ if !last => Stdio::piped(),
            Some(path) => Stdio::from(
                File::create(path)
                    .with_context(|| format!("failed to create `{}`", path.display()))?,
            ),
            None => Stdio::null(),
        };
        let child = Command::new(&stage[0])
            .args(&stage[1..])
            .current_dir(&job.directory)
            .envs(job.environment.iter().map(|(name, value)| (name, value)))
            .stdin(stdin)
            .stdout(stdout)
            .spawn()
            .with_context(|| format!("failed to start `{}`", stage[0]))?;
        children.push(child);
    }
    Ok(children)
}

fn sampled(processes: &[u32], done: &AtomicBool) -> u64 {
    let mut peak = 0;
    while !done.load(Ordering::Relaxed) {
        let now = processes.iter().map(|process| anonymous(*process)).sum();
        peak = peak.max(now);
        std::thread::sleep(Duration::from_millis(1));
    }
    peak
}

/// A process's anonymous memory, bytes; 0 when it has ended.
fn anonymous(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}
