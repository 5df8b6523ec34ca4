//! What the function prints: passed on line by line, the launcher's line about itself taken out.
//! A line without end comes in pieces, so that it is never held as a whole.

use super::report::LauncherTrace;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::{Mutex, PoisonError};

/// Starts the launcher's line, with `SLIMLAMBDA_TRACE` set.
const TRACE_PREFIX: &[u8] = b"slimlambda-trace: ";

/// Longest piece of a line, bytes: where Lambda cuts a line of the log into several events (256 KB).
const PIECE_MAX: u64 = 256 * 1024;

/// Reads until every process that could print is gone.
pub fn pump(
    reader: impl Read,
    output: &mut (dyn Write + Send),
    traces: &Mutex<Vec<LauncherTrace>>,
) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let mut starts = true;
    while let Ok(1..) = (&mut reader).take(PIECE_MAX).read_until(b'\n', &mut line) {
        match trace(&line).filter(|_| starts) {
            Some(trace) => traces
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(trace),
            // Nobody reads: go on reading, or the function would block.
            None => _ = pass(output, &line),
        }
        starts = line.ends_with(b"\n");
        line.clear();
    }
    if !starts {
        // What is said after this run begins on a line of its own.
        _ = pass(output, b"\n");
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

    const LINE: &[u8] =
        b"slimlambda-trace: {\"v\":1,\"launcher_us\":7,\"threads\":2,\"warm\":true}\n";

    /// Notes how much came at a time.
    struct Pieces(Vec<u8>, Vec<usize>);

    impl Write for Pieces {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.extend(bytes);
            self.1.push(bytes.len());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_last_line_is_ended() {
        for (said, expected) in [("a\nb", "a\nb\n"), ("a\n", "a\n"), ("", "")] {
            let mut output = Vec::new();
            pump(said.as_bytes(), &mut output, &Mutex::new(Vec::new()));
            assert_eq!(output, expected.as_bytes());
        }
    }

    #[test]
    fn a_line_without_end_comes_in_pieces() {
        let mut said = vec![b'x'; 2 * PIECE_MAX as usize];
        // Not at the start of a line, though at the start of a piece.
        said.extend(LINE);
        said.extend(b"next\n");
        let (mut pieces, traces) = (Pieces(Vec::new(), Vec::new()), Mutex::new(Vec::new()));
        pump(said.as_slice(), &mut pieces, &traces);
        assert_eq!(pieces.0, said);
        assert_eq!(
            pieces.1,
            [PIECE_MAX as usize, PIECE_MAX as usize, LINE.len(), 5]
        );
        assert!(traces.into_inner().is_ok_and(|traces| traces.is_empty()));
    }

    #[test]
    fn only_the_launchers_own_line_is_taken() {
        let expected = LauncherTrace {
            launcher_us: 7,
            threads: 2,
            warm: true,
            ..LauncherTrace::default()
        };
        assert_eq!(trace(LINE), Some(expected));
        assert_eq!(trace(b"slimlambda-trace: not JSON\n"), None);
        assert_eq!(trace(b"hello\n"), None);
    }
}
