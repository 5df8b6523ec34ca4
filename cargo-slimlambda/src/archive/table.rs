//! An archive's index → the tables of `list` and `stat`.
//!
//! A table is rows and columns, and a column is one line here: what else there is to know of a frame is one more.

use std::collections::{BTreeMap, BTreeSet};

use runtime_unpack::filter::{Filter, stream_name};
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
    for (number, pieces) in archive.frame_pieces().iter().enumerate() {
        let (packed, _) = archive.frame_sizes(number);
        let content: u64 = pieces.iter().map(|piece| u64::from(piece.size)).sum();
        for piece in pieces {
            shares[piece.blob as usize] += u64::from(piece.size) * packed / content.max(1);
        }
    }
    shares
}

/// One frame.
#[derive(Debug, Serialize)]
struct FrameRow {
    number: usize,
    /// What was done to its pieces.
    filters: Vec<&'static str>,
    /// Bytes of files.
    unpacked_size: u64,
    /// Bytes of its streams, unpacked: what a thread holds.
    streams_size: u64,
    packed_size: u64,
    /// Files of which it holds at least a part.
    blobs: usize,
    /// Path of the first of them.
    first: String,
    #[serde(skip)]
    shown: String,
}

/// All streams of one kind.
#[derive(Debug, Serialize)]
struct StreamRow {
    stream: &'static str,
    frames: usize,
    unpacked_size: u64,
    packed_size: u64,
    /// Bytes of it that are not compressed.
    stored_size: u64,
}

/// All pieces of one filter.
#[derive(Debug, Serialize)]
struct FilterRow {
    filter: &'static str,
    pieces: usize,
    /// Bytes of files.
    unpacked_size: u64,
}

/// `stat`
pub fn stat(source: &ArchiveFile) -> Answer {
    let archive = &source.archive;
    let header = archive.header();
    let frames = frame_rows(archive);
    let filters = filter_rows(archive);
    let streams = stream_rows(archive);
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
            "{}, in memory at most {}",
            frames.len(),
            size(header.frame_limit.into())
        ),
    );
    let sections = [
        table(
            &[
                left("filter", |row: &FilterRow| row.filter.to_string()),
                right("pieces", |row| row.pieces.to_string()),
                right("content", |row| size(row.unpacked_size)),
            ],
            &filters,
        ),
        table(
            &[
                left("stream", |row: &StreamRow| row.stream.to_string()),
                right("frames", |row| row.frames.to_string()),
                right("unpacked", |row| size(row.unpacked_size)),
                right("packed", |row| size(row.packed_size)),
                right("ratio", |row| percent(row.packed_size, row.unpacked_size)),
                right("stored", |row| size(row.stored_size)),
            ],
            &streams,
        ),
        table(
            &[
                right("frame", |row: &FrameRow| row.number.to_string()),
                left("filters", |row| row.filters.join("+")),
                right("content", |row| size(row.unpacked_size)),
                right("streams", |row| size(row.streams_size)),
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
            "frame_limit": header.frame_limit,
            "filters": filters,
            "streams": streams,
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
    let pieces = archive.frame_pieces();
    let rows = pieces.iter().enumerate();
    rows.map(|(number, pieces)| {
        let first = pieces.first().and_then(|piece| paths[piece.blob as usize]);
        let first = first.unwrap_or_default();
        let (packed_size, streams_size) = archive.frame_sizes(number);
        let filters: BTreeSet<Filter> = pieces.iter().map(|piece| piece.filter).collect();
        let blobs: BTreeSet<u32> = pieces.iter().map(|piece| piece.blob).collect();
        FrameRow {
            number,
            filters: filters.into_iter().map(Filter::name).collect(),
            unpacked_size: pieces.iter().map(|piece| u64::from(piece.size)).sum(),
            streams_size,
            packed_size,
            blobs: blobs.len(),
            first: String::from_utf8_lossy(first).into_owned(),
            shown: shown(first),
        }
    })
    .collect()
}

/// By filter, the one that most bytes went through first.
fn filter_rows(archive: &Archive) -> Vec<FilterRow> {
    let mut sums: BTreeMap<Filter, (usize, u64)> = BTreeMap::new();
    for (_, piece) in archive.pieces() {
        let (pieces, size) = sums.entry(piece.filter).or_default();
        (*pieces, *size) = (*pieces + 1, *size + u64::from(piece.size));
    }
    let row = |(filter, (pieces, unpacked_size)): (Filter, (usize, u64))| FilterRow {
        filter: filter.name(),
        pieces,
        unpacked_size,
    };
    let mut rows: Vec<FilterRow> = sums.into_iter().map(row).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.unpacked_size));
    rows
}

/// By stream, the one that takes most packed first.
fn stream_rows(archive: &Archive) -> Vec<StreamRow> {
    let mut rows: BTreeMap<u8, StreamRow> = BTreeMap::new();
    for stream in (0..archive.frames().len()).flat_map(|frame| archive.streams(frame)) {
        let row = rows.entry(stream.number).or_insert(StreamRow {
            stream: stream_name(stream.number),
            frames: 0,
            unpacked_size: 0,
            packed_size: 0,
            stored_size: 0,
        });
        row.frames += 1;
        row.unpacked_size += u64::from(stream.unpacked);
        row.packed_size += u64::from(stream.packed);
        if stream.codec == Codec::Stored {
            row.stored_size += u64::from(stream.packed);
        }
    }
    let mut rows: Vec<StreamRow> = rows.into_values().collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.packed_size));
    rows
}
