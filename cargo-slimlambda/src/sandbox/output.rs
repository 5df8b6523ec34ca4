//! What the function prints: passed on line by line, the launcher's line about itself taken out.

use super::report::LauncherTrace;
use std::io::{self, BufRead, BufReader, PipeReader, Write};
use std::sync::{Mutex, PoisonError};

/// Starts the launcher's line, with `SLIMLAMBDA_TRACE` set.
const TRACE_PREFIX: &[u8] = b"slimlambda-trace: ";

/// Reads until every process that could print is gone.
pub fn pump(
    reader: PipeReader,
    output: &mut (dyn Write + Send),
    traces: &Mutex<Vec<LauncherTrace>>,
) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while let Ok(1..) = reader.read_until(b'\n', &mut line) {
        match trace(&line) {
            Some(trace) => traces
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(trace),
            // Nobody reads: go on reading, or the function would block.
            None => _ = pass(output, &line),
        }
        line.clear();
    }
}

fn pass(output: &mut (dyn Write + Send), line: &[u8]) -> io::Result<()> {
    output.write_all(line)?;
    output.flush()
}

fn trace(line: &[u8]) -> Option<LauncherTrace> {
    serde_json::from_slice(line.strip_prefix(TRACE_PREFIX)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_launchers_own_line_is_taken() {
        let line = b"slimlambda-trace: {\"v\":1,\"launcher_us\":7,\"threads\":2,\"warm\":true}\n";
        let expected = LauncherTrace {
            launcher_us: 7,
            threads: 2,
            warm: true,
            ..LauncherTrace::default()
        };
        assert_eq!(trace(line), Some(expected));
        assert_eq!(trace(b"slimlambda-trace: not JSON\n"), None);
        assert_eq!(trace(b"hello\n"), None);
    }
}
