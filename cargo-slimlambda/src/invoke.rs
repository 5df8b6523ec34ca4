//! `cargo slimlambda invoke`: which package, which events, which settings; then the sandbox, then what it measured.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::cli::{ConfigArgs, InvokeArgs, InvokeFormat};
use crate::config::{self, Config};
use crate::error::Stop;
use crate::event::Event;
use crate::report::terminal::{Screen, size};
use crate::sandbox::report::{InitOutcome, InitPhase};
use crate::sandbox::{self, Answer, Exit, Options, RunReport};
use crate::{cargo, output};

/// Lambda's own defaults, MiB and seconds: what a function gets where nobody says.
const MEMORY: u32 = 128;
const TIMEOUT: u32 = 3;
const TMP: u32 = 512;

/// Runs the package and prints answers and phases.
///
/// # Errors
///
/// [`Stop::Function`] where an answer is an error; and where the package cannot be run at all.
pub fn invoke(args: &InvokeArgs) -> anyhow::Result<()> {
    let screen = Screen::new(&args.output);
    let Chosen {
        package,
        name,
        config,
    } = choose(args)?;
    let options = Options {
        package,
        layers: args.layer.clone(),
        handler: name.clone(),
        function_name: name,
        memory_mib: config.memory.unwrap_or(MEMORY),
        tmp_mib: config.ephemeral_storage.unwrap_or(TMP),
        timeout: Duration::from_secs(config.timeout.unwrap_or(TIMEOUT).into()),
        environment: args.env.clone(),
        rootfs: args.rootfs.clone(),
        keep: args.keep,
        ..Options::default()
    };
    let events = events(args)?;
    let json = args.message_format == InvokeFormat::Json;
    let mut answers: Vec<Answer> = Vec::new();
    let mut show = |_: usize, answer: &Answer| {
        if !json {
            let mut out = std::io::stdout().lock();
            // A closed pipe is the reader's wish to see no more.
            let _ = out
                .write_all(&answer.payload)
                .and_then(|()| out.write_all(b"\n"))
                .and_then(|()| out.flush());
        }
        answers.push(answer.clone());
    };
    let report = sandbox::run(
        &options,
        &events,
        &mut show,
        &mut std::io::stderr(),
        &|event| screen.event(event),
    )?;
    if json {
        crate::report::print(&document(&report, &answers)?);
    } else if !args.output.quiet {
        for line in phases(&report, args.output.verbose > 0) {
            eprintln!("{line}");
        }
        if ended_well(&report) {
            screen.event(Event::Note(
                "the process ended by itself, without an error and without asking for an event\nhelp: a function's `main` asks for events until it is ended, as `lambda_runtime::run` does",
            ));
        }
    }
    match answers.iter().any(|answer| answer.error.is_some()) {
        true => Err(Stop::Function.into()),
        false => Ok(()),
    }
}

/// Whether every start of the process did what any other program does: it came to its end.
fn ended_well(report: &RunReport) -> bool {
    let ended = |init: &InitPhase| init.outcome == InitOutcome::Exited;
    report.inits.iter().all(ended) && report.exits.iter().all(|exit| *exit == Exit::Status(0))
}

/// What is run, and with which settings: flags over what the build was told.
struct Chosen {
    package: PathBuf,
    name: String,
    config: Config,
}

fn choose(args: &InvokeArgs) -> anyhow::Result<Chosen> {
    let flags = ConfigArgs {
        limits: args.limits.clone(),
        ..ConfigArgs::default()
    };
    if let Some(zip) = &args.zip {
        let name = zip
            .file_stem()
            .and_then(|name| name.to_str())
            .unwrap_or("function");
        let name = name.replace(
            |c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_',
            "-",
        );
        return Ok(Chosen {
            package: zip.clone(),
            name,
            config: config::load(None, None, "", &flags)?,
        });
    }
    let Some(metadata) = cargo::metadata_if_any(&args.choice)? else {
        bail!(
            "no `Cargo.toml` here or in a directory above\nhelp: `--zip FILE` runs a package without its project"
        );
    };
    let selected = cargo::select_one(&metadata, &args.choice())?;
    let name = selected.bin.to_string();
    let mut config = config::load(Some(&metadata), Some(selected.package), &name, &flags)?;
    let lambda_dir = args
        .lambda_dir
        .clone()
        .unwrap_or_else(|| metadata.target_directory.join("lambda").into());
    // As built, or as built with `--flatten`.
    let directories = [lambda_dir.join(&name), lambda_dir.clone()];
    let package_in = |directory: &PathBuf| {
        let zip = directory.join(output::ZIP);
        zip.is_file().then_some(zip).or_else(|| {
            directory
                .join("bootstrap")
                .is_file()
                .then(|| directory.clone())
        })
    };
    let Some(package) = directories.iter().find_map(package_in) else {
        bail!(
            "no package of `{name}` in `{}`\nhelp: `cargo slimlambda build` makes it",
            directories[0].display()
        );
    };
    // What the build was told or found to be needed, where nothing is configured.
    let report = std::fs::read(output::report_path(&lambda_dir, true, &name)).unwrap_or_default();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap_or_default();
    let planned = |name: &str| {
        let value = report["settings"][name].as_u64();
        value.and_then(|value| u32::try_from(value).ok())
    };
    config.ephemeral_storage = config.ephemeral_storage.or(planned("ephemeral_storage"));
    config.memory = config.memory.or(planned("memory"));
    config.timeout = config.timeout.or(planned("timeout"));
    Ok(Chosen {
        package,
        name,
        config,
    })
}

fn events(args: &InvokeArgs) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut events = Vec::new();
    for path in &args.event {
        let mut event = Vec::new();
        if path.as_os_str() == "-" {
            std::io::stdin()
                .read_to_end(&mut event)
                .context("failed to read the event from stdin")?;
        } else {
            event = std::fs::read(path)
                .with_context(|| format!("failed to read event `{}`", path.display()))?;
        }
        events.push(event);
    }
    events.extend(args.data.iter().map(|data| data.clone().into_bytes()));
    if events.is_empty() {
        events.push(b"{}".to_vec());
    }
    for (event, number) in events.iter().zip(1..) {
        let valid: Result<serde::de::IgnoredAny, _> = serde_json::from_slice(event);
        valid.map_err(|error| crate::error::usage(format!("event {number} is not JSON: {error}\nhelp: text goes in quotes, as in `--data '\"text\"'`")))?;
    }
    Ok(events)
}

fn document(report: &RunReport, answers: &[Answer]) -> anyhow::Result<String> {
    let answers: Vec<_> = answers
        .iter()
        .map(|answer| {
            // An answer that is not JSON is told as text.
            let payload = serde_json::from_slice(&answer.payload)
                .unwrap_or_else(|_| serde_json::Value::from(String::from_utf8_lossy(&answer.payload)));
            serde_json::json!({ "request_id": answer.request_id, "payload": payload, "error": answer.error, "cold": answer.cold })
        })
        .collect();
    let document =
        serde_json::json!({ "version": report.version, "answers": answers, "report": report });
    serde_json::to_string_pretty(&document).context("failed to write the report")
}

/// The phases, one a line, and a line like Lambda's own REPORT.
fn phases(report: &RunReport, all: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let mut say = |what: &str, text: String| lines.push(format!("{what:>12} {text}"));
    for trace in &report.launcher {
        let ms = |us: u64| us as f64 / 1000.0;
        let what = if trace.warm {
            "nothing to unpack".to_string()
        } else {
            let rate = trace.unpacked_bytes as f64 / 1e6 / (trace.unpack_us.max(1) as f64 / 1e6);
            let (from, to) = (size(trace.packed_bytes), size(trace.unpacked_bytes));
            format!(
                "unpacked {from} → {to} in {:.1} ms ({rate:.0} MB/s, {} threads)",
                ms(trace.unpack_us),
                trace.threads
            )
        };
        say(
            "Launcher",
            format!("{:.1} ms: {what}", ms(trace.launcher_us)),
        );
    }
    for init in &report.inits {
        let how = match init.outcome {
            InitOutcome::Ready => "",
            InitOutcome::TimedOut => ", timed out",
            InitOutcome::Exited => ", the process ended",
            InitOutcome::Error => ", it reported an error",
            InitOutcome::OutOfMemory => ", out of memory",
            InitOutcome::InvalidEntrypoint => ", the bootstrap could not be executed",
        };
        let again = if init.during_invoke {
            " (run again at the invoke, in its time)"
        } else {
            ""
        };
        say("Init", format!("{:.1} ms{how}{again}", init.ms));
    }
    for invoke in &report.invokes {
        let how = if invoke.cold { "cold" } else { "warm" };
        let error = invoke
            .error
            .as_ref()
            .map(|error| format!(", {error}"))
            .unwrap_or_default();
        say("Invoke", format!("{:.1} ms, {how}{error}", invoke.ms));
    }
    for call in &report.refused {
        let detail = if call.detail.is_empty() {
            String::new()
        } else {
            format!(" ({})", call.detail)
        };
        say(
            "Refused",
            format!(
                "`{}`{detail} of `{}` with EPERM, {} times, as on Lambda",
                call.name, call.process, call.count
            ),
        );
    }
    if let Some(kept) = &report.kept {
        let tmp = kept
            .tmp
            .as_ref()
            .map(|tmp| format!(", /tmp in `{}`", tmp.display()))
            .unwrap_or_default();
        say(
            "Kept",
            format!("/var/task in `{}`{tmp}", kept.task.display()),
        );
    }
    let total: f64 = report.invokes.iter().map(|invoke| invoke.ms).sum();
    let init: f64 = report
        .inits
        .iter()
        .filter(|init| !init.during_invoke)
        .map(|init| init.ms)
        .sum();
    let tmp = report
        .tmp_used
        .map_or_else(|| "not measured".to_string(), size);
    say(
        "Report",
        format!(
            "Duration {total:.1} ms · Init Duration {init:.1} ms · Memory Size {} MB · Max Memory Used {} MB · /tmp {tmp} of {}",
            report.memory_limit >> 20,
            report.peak_memory.div_ceil(1 << 20),
            size(report.tmp_limit),
        ),
    );
    let shown = if all {
        report.not_enforced.as_slice()
    } else {
        &[]
    };
    for what in shown {
        say("Not enforced", what.clone());
    }
    lines
}
