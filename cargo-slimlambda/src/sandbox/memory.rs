//! Who runs in the sandbox, and how much memory they hold.
//!
//! Counted is anonymous resident memory (`RssAnon`). Pages of files are not: the kernel can drop
//! them, and files in /tmp are memory here but disk on Lambda. Shared memory is not either,
//! because it cannot be told from mapped files of /tmp. Lambda's own figure is somewhat higher.

use nix::unistd::Pid;
use std::fs;

/// How processes are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All in this PID namespace, whose init is the caller.
    Namespace,
    /// All descendants of the caller, who is their subreaper.
    Descendants,
}

/// Every process of the function.
pub fn processes(scope: Scope) -> Vec<Pid> {
    match scope {
        Scope::Namespace => numbers("/proc").filter(|pid| *pid != Pid::this()).collect(),
        Scope::Descendants => {
            let mut found = children(Pid::this());
            let mut next = 0;
            while let Some(&pid) = found.get(next) {
                found.extend(children(pid));
                next += 1;
            }
            found
        }
    }
}

/// Resident anonymous memory of the function, bytes.
pub fn resident(scope: Scope) -> u64 {
    let statuses = processes(scope)
        .into_iter()
        .map(|pid| format!("/proc/{pid}/status"));
    // A process that is gone by now holds nothing.
    statuses
        .filter_map(|path| fs::read_to_string(path).ok())
        .map(|status| anonymous(&status))
        .sum()
}

fn anonymous(status: &str) -> u64 {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|value| value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn children(parent: Pid) -> Vec<Pid> {
    let mut all = Vec::new();
    for thread in numbers(&format!("/proc/{parent}/task")) {
        let list = fs::read_to_string(format!("/proc/{parent}/task/{thread}/children"));
        let list = list.unwrap_or_default();
        all.extend(
            list.split_ascii_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .map(Pid::from_raw),
        );
    }
    all
}

/// The entries of a directory of /proc that are numbers.
fn numbers(directory: &str) -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_anonymous_memory_counts() {
        let status = "VmRSS:\t  9000 kB\nRssAnon:\t     128 kB\nRssFile:\t    4096 kB\n";
        assert_eq!(anonymous(status), 128 * 1024);
        assert_eq!(anonymous("Name:\tkthreadd\n"), 0);
    }
}
