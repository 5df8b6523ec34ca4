//! Files → deployment package: a zip whose bytes depend on nothing but its content.
//!
//! Sorted by path, times fixed, modes as given, symlinks kept. Each file is deflated by itself, all cores at once, and the
//! parts are put together in order.

use std::io::{Cursor, Write};

use anyhow::Context;
use rayon::prelude::*;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

use super::archive::InputContent;

/// zlib's level for files: its best.
const DEFLATE_LEVEL: i64 = 9;

/// One path of the deployment package.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// Relative path.
    pub path: &'a str,
    /// Permission bits.
    pub mode: u32,
    /// File content or link target.
    pub content: InputContent<'a>,
    /// Compressed already: deflating it again would only cost Lambda time.
    pub stored: bool,
}

/// The zip's bytes. `members` are sorted here; the order they come in does not matter.
pub fn zip(members: &[Member<'_>]) -> anyhow::Result<Vec<u8>> {
    let mut members = members.to_vec();
    members.sort_by_key(|member| member.path);
    let parts = members
        .par_iter()
        .map(part)
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut out = ZipWriter::new(Cursor::new(Vec::new()));
    for (member, part) in members.iter().zip(parts) {
        let failed = || format!("failed to add `{}` to the zip", member.path);
        let part = ZipArchive::new(Cursor::new(part)).with_context(failed)?;
        out.merge_archive(part).with_context(failed)?;
    }
    Ok(out
        .finish()
        .context("failed to finish the zip")?
        .into_inner())
}

/// A zip of one member.
fn part(member: &Member<'_>) -> anyhow::Result<Vec<u8>> {
    let failed = || format!("failed to add `{}` to the zip", member.path);
    let options = SimpleFileOptions::default()
        .last_modified_time(DateTime::default()) // 1980-01-01, where zip's time begins
        .unix_permissions(member.mode)
        .compression_method(CompressionMethod::Deflated)
        .compression_level(Some(DEFLATE_LEVEL));
    let mut out = ZipWriter::new(Cursor::new(Vec::new()));
    match member.content {
        InputContent::File(bytes) => {
            let options = match member.stored {
                true => options
                    .compression_method(CompressionMethod::Stored)
                    .compression_level(None),
                false => options,
            };
            let large = bytes.len() as u64 >= u64::from(u32::MAX);
            out.start_file(member.path, options.large_file(large))
                .with_context(failed)?;
            out.write_all(bytes).with_context(failed)?;
        }
        InputContent::Symlink(target) => out
            .add_symlink(member.path, target, options)
            .with_context(failed)?,
        InputContent::Directory => out
            .add_directory(member.path, options)
            .with_context(failed)?,
    }
    Ok(out.finish().with_context(failed)?.into_inner())
}
