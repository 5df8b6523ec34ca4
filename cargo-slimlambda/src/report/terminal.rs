//! Events and reports → standard error, in Cargo's manner. Nothing here needs colour to be read.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{FileReport, Report, StartReport};
use crate::cli::{Color, OutputArgs};
use crate::estimate::about;
use crate::event::Event;
use crate::plan::{Place, Why};
use crate::tree::{Role, Strip};

/// Files that the table shows one by one; the rest is summed up.
const ROWS: usize = 12;

/// Where a person looks.
#[derive(Debug)]
pub struct Screen {
    quiet: bool,
    verbose: bool,
    color: bool,
    /// Show progress: only where somebody watches.
    live: bool,
    /// Whether the last line is a progress line, to be written over.
    dirty: AtomicBool,
    line: Mutex<()>,
}

impl Screen {
    /// As the arguments and the terminal have it.
    pub fn new(args: &OutputArgs) -> Screen {
        let terminal = std::io::stderr().is_terminal();
        let ci = std::env::var_os("CI").is_some_and(|ci| ci != "false");
        Screen {
            quiet: args.quiet,
            verbose: args.verbose > 0,
            color: match args.color.unwrap_or_default() {
                Color::Always => true,
                Color::Never => false,
                Color::Auto => terminal && std::env::var_os("NO_COLOR").is_none(),
            },
            live: terminal && !ci && !args.quiet,
            dirty: AtomicBool::new(false),
            line: Mutex::new(()),
        }
    }

    /// Tells what happened.
    pub fn event(&self, event: Event<'_>) {
        match event {
            Event::Status { verb, what } if !self.quiet => self.status(verb, what),
            Event::Progress { what, done, total } if self.live && total > 0 => {
                let width = 24 * done / total;
                let bar: String = (0..24).map(|n| if n < width { '=' } else { ' ' }).collect();
                self.progress(&format!(
                    "{:>12} {what} [{bar}] {} of {}",
                    "Packing",
                    size(done),
                    size(total)
                ));
            }
            Event::Warning(text) => self.line(&format!("{}: {text}", self.paint("33", "warning"))),
            Event::Note(text) if !self.quiet => {
                self.line(&format!("{}: {text}", self.paint("36", "note")))
            }
            _ => {}
        }
    }

    /// A line with a verb before it, as Cargo's are.
    pub fn status(&self, verb: &str, what: &str) {
        self.line(&format!(
            "{} {what}",
            self.paint("32", &format!("{verb:>12}"))
        ));
    }

    /// Draws the reports, unless nobody wants to see them.
    pub fn reports(&self, reports: &[Report]) {
        if self.quiet {
            return;
        }
        for report in reports {
            self.report(report);
        }
    }

    fn report(&self, report: &Report) {
        let zip = report
            .outputs
            .iter()
            .find(|output| output.path.extension().is_some_and(|e| e == "zip"));
        let output = zip
            .or(report.outputs.first())
            .map(|output| from_here(&output.path).display().to_string())
            .unwrap_or_default();
        self.status(
            "Packaged",
            &format!(
                "{} ({}, {}) → {output}",
                report.function, report.runtime, report.architecture
            ),
        );
        self.line("");
        for line in table(report, self.verbose) {
            self.line(&line);
        }
        self.line("");
        for line in figures(report) {
            self.line(&line);
        }
        for note in &report.notes {
            self.event(Event::Note(note));
        }
        if !report.dlopen_hints.is_empty() {
            self.event(Event::Note(&hints(report, self.verbose)));
        }
    }

    /// Takes the progress away, for what others are going to print.
    pub fn clear(&self) {
        if self.dirty.swap(false, Ordering::Relaxed) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }

    fn line(&self, text: &str) {
        let _guard = self.line.lock();
        self.clear();
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    fn progress(&self, text: &str) {
        let _guard = self.line.lock();
        self.dirty.store(true, Ordering::Relaxed);
        let _ = write!(std::io::stderr(), "\r\x1b[K{text}");
    }

    fn paint(&self, color: &str, text: &str) -> String {
        if self.color {
            format!("\x1b[1;{color}m{text}\x1b[0m")
        } else {
            text.to_string()
        }
    }
}

/// The files, biggest first.
fn table(report: &Report, all: bool) -> Vec<String> {
    let mut files: Vec<&FileReport> = report.files.iter().collect();
    files.sort_by(|a, b| {
        b.original_size
            .cmp(&a.original_size)
            .then_with(|| a.path.cmp(&b.path))
    });
    let shown = if all || files.len() <= ROWS + 1 {
        files.len()
    } else {
        ROWS
    };
    let (shown, rest) = files.split_at(shown);
    let packed = report.files.iter().any(|file| file.packed_size.is_some());
    // Without a launcher the function's binary is what Lambda starts.
    let path = |file: &FileReport| match (file.role, &report.launcher) {
        (Role::Binary, None) => "bootstrap".to_string(),
        _ => file.path.clone(),
    };

    let width = shown
        .iter()
        .map(|file| path(file).chars().count())
        .max()
        .unwrap_or(0)
        .clamp(12, 44);
    let row = |path: &str, before: &str, after: &str, archived: &str, place: &str| {
        let mut line = format!(
            "  {:<width$}  {before:>10}  {after:>10}",
            shorten(path, width)
        );
        if packed {
            let _ = write!(line, "  {archived:>10}");
        }
        let _ = write!(line, "  {place}");
        line.trim_end().to_string()
    };
    let mut lines = vec![row("file", "built", "stripped", "in archive", "placed")];
    for file in shown {
        let archived = file.packed_size.map(size).unwrap_or_default();
        lines.push(row(
            &path(file),
            &size(file.original_size),
            &size(file.size),
            &archived,
            &placed(file),
        ));
    }
    let sum = |files: &[&FileReport], of: fn(&FileReport) -> u64| {
        size(files.iter().map(|file| of(file)).sum())
    };
    if !rest.is_empty() {
        lines.push(row(
            &format!("… {} more files (-v)", rest.len()),
            &sum(rest, |file| file.original_size),
            &sum(rest, |file| file.size),
            &sum(rest, |file| file.packed_size.unwrap_or(0)),
            "",
        ));
    }
    if let Some(launcher) = report.launcher {
        lines.push(row(
            "bootstrap",
            "",
            &size(launcher.size),
            "",
            "package (launcher)",
        ));
    }
    lines.push(row(
        "total",
        &size(report.totals.original),
        &size(report.totals.stripped + report.launcher.map_or(0, |launcher| launcher.size)),
        &report
            .archive
            .as_ref()
            .map(|archive| size(archive.size))
            .unwrap_or_default(),
        "",
    ));
    lines
}

fn placed(file: &FileReport) -> String {
    let mut text = match file.place {
        Place::Package => "package",
        Place::Archive => "archive",
        Place::ArchiveLazy => "archive, on first use",
    }
    .to_string();
    match file.why {
        Why::Configured => text.push_str(", configured"),
        Why::BiggestWin => text.push_str(", cheapest to fit"),
        Why::Fits => {}
    }
    if let Strip::Refused(_) = file.strip {
        text.push_str(", unstripped");
    }
    text
}

/// What Lambda limits, and what to set.
fn figures(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for limit in &report.limits {
        let what = match limit.name {
            "zipped-direct" => "zipped",
            "unzipped" => "unzipped",
            _ if limit.value == 0 => continue,
            _ => "/tmp",
        };
        let percent = limit.value as f64 * 100.0 / limit.limit as f64;
        let of = match what {
            "zipped" => " for direct upload",
            "/tmp" => " with the setting below",
            _ => "",
        };
        lines.push(format!(
            "  {what:<10} {:>10} of {:>9}{of} ({percent:.1} %)",
            size(limit.value),
            size(limit.limit)
        ));
    }
    let mut set = Vec::new();
    let storage = report.settings.ephemeral_storage;
    if report.totals.tmp > 0 || storage != 512 {
        let default = if storage == 512 {
            ", Lambda's default"
        } else {
            ""
        };
        set.push(format!("EphemeralStorage {storage} MB{default}"));
    }
    set.extend(
        report
            .settings
            .memory
            .map(|memory| format!("MemorySize {memory} MB")),
    );
    set.extend(
        report
            .settings
            .timeout
            .map(|timeout| format!("Timeout {timeout} s")),
    );
    if !set.is_empty() {
        lines.push(format!("  {:<10} {}", "set", set.join(" · ")));
    }
    lines.push(format!("  {:<10} {}", "cold start", cold_start(report)));
    lines
}

/// What unpacking costs.
fn cold_start(report: &Report) -> String {
    let estimate = &report.estimate;
    if estimate.cpu_us == 0 {
        return match report
            .files
            .iter()
            .any(|file| file.place == Place::ArchiveLazy)
        {
            true => "nothing to unpack before the first use".to_string(),
            false => "fits unpacked: nothing to unpack at start".to_string(),
        };
    }
    let time = |at: &StartReport| about(Duration::from_micros(at.unpack_us));
    let (now, more) = (&estimate.at[0], estimate.at.get(1));
    let default = match report.settings.memory {
        Some(_) => "",
        None => ", Lambda's default",
    };
    let mut text = format!(
        "about {} to unpack {} at {} MB ({:.2} vCPU{default})",
        time(now),
        size(estimate.unpacked_size),
        now.memory,
        now.vcpus
    );
    if let Some(more) = more.filter(|more| time(more) != time(now)) {
        let _ = write!(text, "; {} at {} MB", time(more), more.memory);
        // Lambda does so, mostly, without a promise.
        if now.vcpus < 1.0 {
            text.push_str(", or if Init is lent a vCPU");
        }
    }
    text
}

fn hints(report: &Report, all: bool) -> String {
    let hints = &report.dlopen_hints;
    let shown = if all { hints.len() } else { hints.len().min(6) };
    let mut text =
        String::from("may be opened at run time, and neither bundled nor in the runtime:");
    for hint in &hints[..shown] {
        let _ = write!(
            text,
            "\n  `{}` (mentioned by {})",
            hint.name,
            hint.files.join(", ")
        );
    }
    if shown < hints.len() {
        let _ = write!(text, "\n  … {} more (-v)", hints.len() - shown);
    }
    text.push_str(
        "\n  if the function uses one: add it to `libraries` in [package.metadata.slimlambda]",
    );
    text
}

/// A path below the current directory, relative to it; any other as it is.
fn from_here(path: &Path) -> &Path {
    std::env::current_dir()
        .ok()
        .and_then(|here| path.strip_prefix(here).ok())
        .unwrap_or(path)
}

/// A size for people. Lambda's MB are MiB.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 3] = ["KiB", "MiB", "GiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Keeps the end of a long path, where its name is.
fn shorten(path: &str, width: usize) -> String {
    let count = path.chars().count();
    if count <= width {
        return path.to_string();
    }
    let tail: String = path.chars().skip(count - (width - 1)).collect();
    format!("…{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_lambda_counts() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(262_144_000), "250.0 MiB");
        assert_eq!(size(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(size(10 << 30), "10.0 GiB");
    }

    #[test]
    fn long_paths_keep_their_names() {
        assert_eq!(shorten("lib/libonnxruntime.so.1", 12), "…untime.so.1");
    }
}
