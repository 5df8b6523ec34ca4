//! What each filter wins, and what it costs, on the files of a directory:
//!
//! ```text
//! cargo run --release -p cargo-slimlambda --example filters -- [--level N] DIR
//! ```
//!
//! Each filter's pieces are packed alone, in frames of 8 MiB, with the filter and without; and unpacked again on one thread
//! (processor time, the best of five), streams and pieces apart.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use cargo_slimlambda::pack::frame::{self, Input, Packed};
use cargo_slimlambda::pack::segment::{self, DATA};
use rayon::prelude::*;
use runtime_unpack::filter::{Filter, Scratch};
use runtime_unpack::reader::{self, Placed};

const FRAME: usize = 8 << 20;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (mut level, mut directory) = (19, None);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--level" => {
                level = arguments
                    .next()
                    .context("`--level` wants a number")?
                    .parse()?
            }
            _ => directory = Some(PathBuf::from(argument)),
        }
    }
    let mut files = Vec::new();
    read(
        &directory.context("usage: filters [--level N] DIR")?,
        &mut files,
    )?;
    let parts: Vec<_> = files.par_iter().map(|file| segment::parts(file)).collect();
    let mut inputs: BTreeMap<Filter, Vec<Input<'_>>> = BTreeMap::new();
    for (blob, (file, parts)) in files.iter().zip(&parts).enumerate() {
        for part in parts.iter().filter(|part| part.filter != Filter::Hole) {
            // What is derived is packed with what it is derived from.
            let kind = match part.filter {
                Filter::EhFrameHdr => Filter::EhFrame,
                other => other,
            };
            inputs.entry(kind).or_default().push(Input {
                blob: blob as u32,
                offset: part.range.start as u64,
                bytes: &file[part.range.clone()],
                filter: part.filter,
                param: part.param,
            });
        }
    }
    println!(
        "| filter | content | plain | filtered | gain | streams MB/s | pieces MB/s |\n|---|---|---|---|---|---|---|"
    );
    for (filter, inputs) in inputs {
        let frames = frames(inputs);
        let content: usize = frames.iter().flatten().map(|input| input.bytes.len()).sum();
        let filtered = pack(&frames, level)?;
        let plain = match filter {
            Filter::Plain => size(&filtered),
            _ => {
                let mut frames = frames.clone();
                for input in frames.iter_mut().flatten() {
                    (input.filter, input.param) = (Filter::Plain, DATA);
                }
                size(&pack(&frames, level)?)
            }
        };
        let [streams, pieces] = speeds(&frames, &filtered)?;
        let rate = |seconds: f64| content as f64 / seconds / 1e6;
        println!(
            "| {} | {content} | {plain} | {} | {:.1} % | {:.0} | {:.0} |",
            filter.name(),
            size(&filtered),
            100.0 - 100.0 * size(&filtered) as f64 / plain as f64,
            rate(streams),
            rate(pieces)
        );
    }
    Ok(())
}

fn read(path: &Path, out: &mut Vec<Vec<u8>>) -> anyhow::Result<()> {
    let mut entries: Vec<_> = std::fs::read_dir(path)
        .with_context(|| format!("failed to read `{}`", path.display()))?
        .collect::<Result<_, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::path);
    for entry in entries {
        let kind = entry.file_type()?;
        if kind.is_dir() {
            read(&entry.path(), out)?;
        } else if kind.is_file() {
            out.push(std::fs::read(entry.path())?);
        }
    }
    Ok(())
}

/// Frames of whole files where they fit, since some pieces need others of their file.
fn frames(inputs: Vec<Input<'_>>) -> Vec<Vec<Input<'_>>> {
    let mut frames: Vec<Vec<Input<'_>>> = Vec::new();
    let mut filled = usize::MAX;
    for file in inputs.chunk_by(|a, b| a.blob == b.blob || a.filter == Filter::X86) {
        for input in file {
            let tied = matches!(input.filter, Filter::EhFrame | Filter::EhFrameHdr);
            let new = frames
                .last()
                .and_then(|frame| frame.last())
                .is_none_or(|last| last.blob != input.blob);
            if filled.saturating_add(input.bytes.len()) > FRAME && (new || !tied) {
                frames.push(Vec::new());
                filled = 0;
            }
            if let Some(frame) = frames.last_mut() {
                filled += input.bytes.len();
                frame.push(*input);
            }
        }
    }
    frames
}

fn pack(frames: &[Vec<Input<'_>>], level: i32) -> anyhow::Result<Vec<Packed>> {
    frames
        .par_iter()
        .map(|inputs| frame::pack(inputs, level, None))
        .collect()
}

fn size(frames: &[Packed]) -> usize {
    frames.iter().map(|frame| frame.bytes.len()).sum()
}

/// Seconds to unpack the streams, and to put the pieces together.
fn speeds(frames: &[Vec<Input<'_>>], packed: &[Packed]) -> anyhow::Result<[f64; 2]> {
    const ROUNDS: usize = 5;
    let mut best = [f64::MAX; 2];
    for _ in 0..ROUNDS {
        let (mut sums, mut scratch) = ([0.0; 2], Scratch::default());
        let mut buffer = Vec::new();
        for (inputs, packed) in frames.iter().zip(packed) {
            let pieces = inputs
                .iter()
                .zip(&packed.filters)
                .map(|(input, (filter, param))| Placed {
                    blob: input.blob,
                    offset: input.offset,
                    size: input.bytes.len() as u32,
                    filter: *filter,
                    param: *param,
                });
            let mut pieces: Vec<Placed> = pieces.collect();
            pieces.sort_by_key(|piece| (piece.blob, piece.filter.is_derived()));
            let begin = processor_seconds()?;
            reader::decode_streams(
                0,
                &packed.record(),
                &packed.streams,
                &packed.bytes,
                &mut buffer,
            )?;
            let middle = processor_seconds()?;
            reader::decode_pieces(
                0,
                &packed.streams,
                &buffer,
                &pieces,
                &mut scratch,
                |_, bytes| {
                    black_box(bytes);
                    Ok(())
                },
            )?;
            sums[0] += middle - begin;
            sums[1] += processor_seconds()? - middle;
        }
        for (best, sum) in best.iter_mut().zip(sums) {
            *best = best.min(sum);
        }
    }
    Ok(best)
}

fn processor_seconds() -> anyhow::Result<f64> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    if time.tv_sec() < 0 {
        bail!("the processor's clock is wrong");
    }
    Ok(time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9)
}
