//! Names and numbers of archives, ready to be shown.

use std::fmt;
use std::fmt::Write as _;
use std::path::Path;

use runtime_unpack::format::Kind;
use runtime_unpack::reader::Archive;

use super::verify::Damage;
use crate::pack::archive::{Input, InputContent};

/// Names that a message lists before it only counts.
const SOME: usize = 5;

/// How many entries there are of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Count {
    /// Regular files.
    pub files: usize,
    /// Directories.
    pub directories: usize,
    /// Symlinks.
    pub symlinks: usize,
    /// Bytes of all files.
    #[serde(skip)]
    pub bytes: u64,
}

impl Count {
    /// Of what is to be packed.
    pub fn of(inputs: &[Input<'_>]) -> Count {
        let mut count = Count::default();
        for input in inputs {
            match input.content {
                InputContent::File(bytes) => count.file(bytes.len() as u64),
                InputContent::Symlink(_) => count.symlinks += 1,
                InputContent::Directory => count.directories += 1,
            }
        }
        count
    }

    /// Of the entries that `wanted` picks.
    pub fn of_entries(archive: &Archive, wanted: impl Fn(usize) -> bool) -> Count {
        let mut count = Count::default();
        for (_, entry) in archive.entries().enumerate().filter(|(n, _)| wanted(*n)) {
            match entry.kind {
                Kind::File { blob } => count.file(archive.blobs()[blob as usize].size),
                Kind::Symlink { .. } => count.symlinks += 1,
                Kind::Directory => count.directories += 1,
            }
        }
        count
    }

    fn file(&mut self, size: u64) {
        self.files += 1;
        self.bytes += size;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&number(self.files, "file"))?;
        if self.symlinks > 0 {
            write!(f, ", {}", number(self.symlinks, "symlink"))?;
        }
        Ok(())
    }
}

/// `1 file`, `2 files`.
pub fn number(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// A part of a whole, for people.
pub fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_string(),
        _ => format!("{:.1} %", part as f64 * 100.0 / whole as f64),
    }
}

/// A name that a terminal shows and does not obey: control characters, those that turn the writing direction, and bytes
/// that are not UTF-8 are escaped, and so is the backslash.
pub fn shown(name: &[u8]) -> String {
    let mut out = String::new();
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if c.is_control() || turns || c == '\\' {
                out.extend(c.escape_default());
            } else {
                out.push(c);
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// The first few of some paths, and how many more there are.
pub fn some<'a>(paths: impl Iterator<Item = &'a [u8]>) -> String {
    let paths: Vec<&[u8]> = paths.collect();
    let mut names: Vec<String> = paths
        .iter()
        .take(SOME)
        .map(|path| format!("`{}`", shown(path)))
        .collect();
    if paths.len() > SOME {
        names.push(format!("and {} more", paths.len() - SOME));
    }
    names.join(", ")
}

/// What `verify` says of damage.
pub fn damage(file: &Path, damage: &Damage, paths: &[&[u8]]) -> String {
    let mut text = format!("`{}` is damaged", file.display());
    for (number, error) in damage.frames.iter().take(SOME) {
        let why = match error {
            runtime_unpack::Error::Corrupt { why, .. } => (*why).to_string(),
            other => other.to_string(),
        };
        let _ = write!(text, "\n  frame {number}: {why}");
    }
    if damage.frames.len() > SOME {
        let _ = write!(text, "\n  and {} more frames", damage.frames.len() - SOME);
    }
    for path in paths {
        let _ = write!(text, "\n  damaged: `{}`", shown(path));
    }
    text.push_str("\nhelp: pack or download it again");
    text
}

/// The entries whose paths are most like `path`, most alike first; of equals, those that are higher in the tree.
pub fn nearest(archive: &Archive, path: &str) -> Vec<String> {
    let name = |path: &str| path.rsplit('/').next().unwrap_or(path).to_string();
    let asked = name(path);
    let mut near: Vec<(usize, usize, String)> = archive
        .entries()
        .map(|entry| {
            let there = String::from_utf8_lossy(entry.path);
            // The same name elsewhere is as good a guess as a path with a slip in it.
            let far = distance(path, &there).min(1 + 2 * distance(&asked, &name(&there)));
            let depth = there.matches('/').count();
            (far, depth, format!("`{}`", shown(entry.path)))
        })
        .collect();
    near.sort();
    near.truncate(3);
    near.into_iter().map(|(.., name)| name).collect()
}

/// Characters to insert, remove or replace to get from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (n, a) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = n + 1;
        for (m, b) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[m + 1];
            row[m + 1] = replaced.min(diagonal + 1).min(row[m] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_command_a_terminal() {
        assert_eq!(shown("models/ü 1.onnx".as_bytes()), "models/ü 1.onnx");
        assert_eq!(shown(b"a\x1b[2J\n\r"), "a\\u{1b}[2J\\n\\r");
        assert_eq!(shown("exe\u{202e}gpj".as_bytes()), "exe\\u{202e}gpj");
        assert_eq!(shown(b"\xff\\"), "\\xff\\\\");
    }

    #[test]
    fn distances() {
        for (a, b, far) in [
            ("", "", 0),
            ("", "ab", 2),
            ("kitten", "sitting", 3),
            ("lib", "bin", 2),
        ] {
            assert_eq!(distance(a, b), far, "{a} {b}");
            assert_eq!(distance(b, a), far, "{b} {a}");
        }
    }
}
