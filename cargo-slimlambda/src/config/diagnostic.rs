//! An error that points at its place in a file, drawn as Cargo and rustc draw it.

use std::ops::Range;
use std::path::Path;

/// `message`, the place, the offending line with carets below, and `help:`.
pub(super) fn render(
    path: &Path,
    text: &str,
    span: Range<usize>,
    message: &str,
    help: Option<&str>,
) -> String {
    let number = line(text, span.start);
    let start = text[..span.start]
        .rfind('\n')
        .map_or(0, |newline| newline + 1);
    let content = text[start..].lines().next().unwrap_or_default();
    let before = &text[start..span.start];
    let end = span.end.clamp(span.start, start + content.len());
    let carets = text[span.start..end].chars().count().max(1);
    // Tabs are kept, so that the carets stand below what they mean.
    let indent: String = before
        .chars()
        .map(|c| if c == '\t' { c } else { ' ' })
        .collect();
    let gutter = " ".repeat(number.to_string().len());
    let column = before.chars().count() + 1;
    let mut drawn = format!(
        "{message}\n{gutter}--> {}:{number}:{column}\n{gutter} |\n{number} | {content}\n{gutter} | {indent}{}",
        shown(path),
        "^".repeat(carets),
    );
    if let Some(help) = help {
        drawn.push_str("\nhelp: ");
        drawn.push_str(help);
    }
    drawn
}

/// Line of a byte offset, counted from 1.
pub(super) fn line(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}

/// A path as people type it: from the current directory where it is below.
pub(super) fn shown(path: &Path) -> String {
    let cwd = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&cwd)
        .unwrap_or(path)
        .display()
        .to_string()
}
