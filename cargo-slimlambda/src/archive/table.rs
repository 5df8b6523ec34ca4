//! An archive's index → the tables of `list` and `stat`.
//!
//! A table is rows and columns, and a column is one line here: what else there is to know of a frame is one more.

use runtime_unpack::format::{Codec, Kind, hex};
use runtime_unpack::reader::{Archive, Entry};
use runtime_unpack::source::ArchiveFile;
use serde::Serialize;
use serde_json::json;

use super::Answer;
use super::facts::{Count, number, percent, shown};
use crate::report::terminal::size;

/// A column: its head, how it is aligned, and what it shows of a row.
struct Column<R> {
    head: &'static str,
    align: Align,
    cell: fn(&R) -> String,
}

enum Align {
    Left,
    Right,
}

fn left<R>(head: &'static str, cell: fn(&R) -> String) -> Column<R> {
    let align = Align::Left;
    Column { head, align, cell }
}

fn right<R>(head: &'static str, cell: fn(&R) -> String) -> Column<R> {
    let align = Align::Right;
    Column { head, align, cell }
}

fn table<R>(columns: &[Column<R>], rows: &[R]) -> String {
    let head = columns
        .iter()
        .map(|column| column.head.to_string())
        .collect();
    let mut lines: Vec<Vec<String>> = vec![head];
    lines.extend(
        rows.iter()
            .map(|row| columns.iter().map(|column| (column.cell)(row)).collect()),
    );
    let width = |n: usize| {
        let cells = lines.iter().map(|line| line[n].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut out = String::new();
    for line in &lines {
        let cells = line.iter().zip(columns).zip(&widths);
        let cells: Vec<String> = cells
            .map(|((cell, column), width)| match column.align {
                Align::Left => format!("{cell:<width$}"),
                Align::Right => format!("{cell:>width$}"),
            })
            .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// One path.
#[derive(Debug, Serialize)]
struct Row {
    /// As UTF-8, with what is not replaced.
    path: String,
    kind: &'static str,
    mode: String,
    /// Of a file's content.
    size: u64,
    /// Its share of the frames.
    packed_size: u64,
    lazy: bool,
    /// A symlink's.
    target: Option<String>,
    /// A file's.
    digest: Option<String>,
    #[serde(skip)]
    shown: String,
}

/// `list`
pub fn list(source: &ArchiveFile) -> Answer {
    let archive = &source.archive;
    let mut shares = shares(archive);
    let rows: Vec<Row> = archive
        .entries()
        .map(|entry| row(archive, &entry, &mut shares))
        .collect();
    let columns = [
        left("mode", |row: &Row| row.mode_shown()),
        right("size", |row| row.of_file(row.size)),
        right("packed", |row| row.of_file(row.packed_size)),
        left("path", |row| row.shown.clone()),
    ];
    Answer {
        text: table(&columns, &rows),
        json: json!({
            "archive": String::from_utf8_lossy(&source.path),
            "digest": hex(&archive.digest()),
            "entries": rows,
        }),
        verdict: Ok(()),
    }
}

fn row(archive: &Archive, entry: &Entry<'_>, shares: &mut [u64]) -> Row {
    let path = shown(entry.path);
    let mut row = Row {
        path: String::from_utf8_lossy(entry.path).into_owned(),
        kind: "directory",
        mode: format!("{:04o}", entry.mode),
        size: 0,
        packed_size: 0,
        lazy: entry.lazy,
        target: None,
        digest: None,
        shown: path,
    };
    match entry.kind {
        Kind::Directory => row.shown.push('/'),
        Kind::Symlink { .. } => {
            row.kind = "symlink";
            row.target = Some(String::from_utf8_lossy(entry.target).into_owned());
            row.shown = format!("{} -> {}", row.shown, shown(entry.target));
        }
        Kind::File { blob } => {
            row.kind = "file";
            let number = blob as usize;
            row.size = archive.blobs()[number].size;
            row.packed_size = std::mem::take(&mut shares[number]);
            row.digest = Some(hex(&archive.blobs()[number].digest));
        }
    }
    row
}

impl Row {
    /// As `ls -l` has it; a lazy entry with an `l` behind.
    fn mode_shown(&self) -> String {
        let mode = u32::from_str_radix(&self.mode, 8).unwrap_or(0);
        let mut out = String::from(match self.kind {
            "directory" => "d",
            "symlink" => "l",
            _ => "-",
        });
        for (n, letter) in "rwxrwxrwx".chars().enumerate() {
            out.push(if mode >> (8 - n) & 1 == 1 {
                letter
            } else {
                '-'
            });
        }
        if self.lazy {
            out.push_str(" lazy");
        }
        out
    }

    fn of_file(&self, bytes: u64) -> String {
        match self.kind {
            "file" => size(bytes),
            _ => String::new(),
        }
    }
}

/// By blob: its part of the frames that hold it.
fn shares(archive: &Archive) -> Vec<u64> {
    let mut shares = vec![0; archive.blobs().len()];
    for (number, pieces) in archive.pieces().iter().enumerate() {
        let packed = packed_size(archive, number);
        let unpacked = u64::from(archive.frames()[number].unpacked);
        for piece in pieces {
            shares[piece.blob as usize] += u64::from(piece.len) * packed / unpacked;
        }
    }
    shares
}

fn packed_size(archive: &Archive, frame: usize) -> u64 {
    let range = archive.frame_range(frame);
    range.end - range.start
}

/// One frame.
#[derive(Debug, Serialize)]
struct FrameRow {
    number: usize,
    codec: &'static str,
    unpacked_size: u64,
    packed_size: u64,
    /// Files of which it holds at least a part.
    blobs: usize,
    /// Path of the first of them.
    first: String,
    #[serde(skip)]
    shown: String,
}

/// All frames of one codec.
#[derive(Debug, Serialize)]
struct CodecRow {
    codec: &'static str,
    frames: usize,
    unpacked_size: u64,
    packed_size: u64,
}

fn name(codec: Codec) -> &'static str {
    match codec {
        Codec::Stored => "stored",
        Codec::Zstd => "zstd",
    }
}

/// `stat`
pub fn stat(source: &ArchiveFile) -> Answer {
    let archive = &source.archive;
    let header = archive.header();
    let frames = frame_rows(archive);
    let codecs = codec_rows(&frames);
    let count = Count::of_entries(archive, |_| true);
    let packed_size = frames.iter().map(|row| row.packed_size).sum::<u64>()
        + header.index_packed
        + runtime_unpack::format::HEADER_SIZE as u64;
    let digest = hex(&archive.digest());

    let mut text = format!(
        "{}: {}, {} of {}\n",
        shown(&source.path),
        size(packed_size),
        percent(packed_size, count.bytes),
        size(count.bytes)
    );
    let mut line = |name: &str, what: String| text.push_str(&format!("  {name:<8} {what}\n"));
    line("digest", digest.clone());
    line(
        "entries",
        format!("{count}, {}", directories(count.directories)),
    );
    line(
        "content",
        format!(
            "{} in {}, {} of equal files once",
            size(header.content_size),
            number(archive.blobs().len(), "blob"),
            size(count.bytes.saturating_sub(header.content_size))
        ),
    );
    line(
        "index",
        format!(
            "{} of {}",
            size(header.index_packed),
            size(header.index_unpacked)
        ),
    );
    line(
        "frames",
        format!(
            "{}, of at most {}",
            frames.len(),
            size(1 << header.block_log2)
        ),
    );
    let sections = [
        table(
            &[
                left("codec", |row: &CodecRow| row.codec.to_string()),
                right("frames", |row| row.frames.to_string()),
                right("unpacked", |row| size(row.unpacked_size)),
                right("packed", |row| size(row.packed_size)),
                right("ratio", |row| percent(row.packed_size, row.unpacked_size)),
            ],
            &codecs,
        ),
        table(
            &[
                right("frame", |row: &FrameRow| row.number.to_string()),
                left("codec", |row| row.codec.to_string()),
                right("unpacked", |row| size(row.unpacked_size)),
                right("packed", |row| size(row.packed_size)),
                right("ratio", |row| percent(row.packed_size, row.unpacked_size)),
                right("blobs", |row| row.blobs.to_string()),
                left("first", |row| row.shown.clone()),
            ],
            &frames,
        ),
    ];
    for section in sections {
        text.push('\n');
        text.push_str(&section);
    }
    Answer {
        text,
        json: json!({
            "archive": String::from_utf8_lossy(&source.path),
            "digest": digest,
            "format_version": runtime_unpack::format::VERSION,
            "entries": count,
            "blobs": archive.blobs().len(),
            "unpacked_size": count.bytes,
            "content_size": header.content_size,
            "packed_size": packed_size,
            "index": { "packed_size": header.index_packed, "unpacked_size": header.index_unpacked },
            "block_size": 1u64 << header.block_log2,
            "codecs": codecs,
            "frames": frames,
        }),
        verdict: Ok(()),
    }
}

fn directories(count: usize) -> String {
    match count {
        1 => "1 directory".to_string(),
        several => format!("{several} directories"),
    }
}

fn frame_rows(archive: &Archive) -> Vec<FrameRow> {
    // Of each blob, the first path that has it.
    let mut paths: Vec<Option<&[u8]>> = vec![None; archive.blobs().len()];
    for number in 0..archive.len() {
        let entry = archive.entry(number);
        if let Kind::File { blob } = entry.kind {
            paths[blob as usize].get_or_insert(entry.path);
        }
    }
    let pieces = archive.pieces();
    let rows = archive.frames().iter().zip(&pieces).enumerate();
    rows.map(|(number, (frame, pieces))| {
        let first = pieces.first().and_then(|piece| paths[piece.blob as usize]);
        let first = first.unwrap_or_default();
        FrameRow {
            number,
            codec: name(frame.codec),
            unpacked_size: frame.unpacked.into(),
            packed_size: packed_size(archive, number),
            blobs: pieces.len(),
            first: String::from_utf8_lossy(first).into_owned(),
            shown: shown(first),
        }
    })
    .collect()
}

/// By codec, the one that holds most first.
fn codec_rows(frames: &[FrameRow]) -> Vec<CodecRow> {
    let mut rows: Vec<CodecRow> = Vec::new();
    for frame in frames {
        let known = rows.iter().position(|row| row.codec == frame.codec);
        let at = known.unwrap_or_else(|| {
            rows.push(CodecRow {
                codec: frame.codec,
                frames: 0,
                unpacked_size: 0,
                packed_size: 0,
            });
            rows.len() - 1
        });
        rows[at].frames += 1;
        rows[at].unpacked_size += frame.unpacked_size;
        rows[at].packed_size += frame.packed_size;
    }
    rows.sort_by(|a, b| (b.unpacked_size, a.codec).cmp(&(a.unpacked_size, b.codec)));
    rows
}
