//! Where an archive's bytes come from: for now, a file in the package or in a layer.

use crate::error::{Error, Result};
use crate::format::{self, Digest, HEADER_SIZE};
use crate::fs::pread_exact;
use crate::reader::{self, Archive};
use alloc::string::String;
use alloc::vec::Vec;
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags};

/// An archive in a file, opened and checked.
#[derive(Debug)]
pub struct ArchiveFile {
    /// The index.
    pub archive: Archive,
    /// The path that it was opened by.
    pub path: Vec<u8>,
    file: OwnedFd,
}

impl ArchiveFile {
    /// Opens the first of `candidates` that exists. With `expected`, refuses any other archive than that.
    pub fn open(candidates: &[Vec<u8>], expected: Option<&Digest>) -> Result<ArchiveFile> {
        for path in candidates {
            match rustix::fs::openat(
                CWD,
                path.as_slice(),
                OFlags::RDONLY | OFlags::CLOEXEC,
                Mode::empty(),
            ) {
                Ok(file) => return ArchiveFile::read(file, path.clone(), expected),
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {}
                Err(errno) => return Err(Error::io("open the archive", path, errno)),
            }
        }
        let names: Vec<String> = candidates
            .iter()
            .map(|p| alloc::format!("`{}`", String::from_utf8_lossy(p)))
            .collect();
        Err(Error::NoArchive {
            searched: names.join(", "),
        })
    }

    fn read(file: OwnedFd, path: Vec<u8>, expected: Option<&Digest>) -> Result<ArchiveFile> {
        let size = rustix::fs::fstat(&file)
            .map_err(|e| Error::io("inspect", &path, e))?
            .st_size as u64;
        let mut header = [0; HEADER_SIZE];
        if size < HEADER_SIZE as u64 {
            return Err(Error::Malformed("it is shorter than an archive's header"));
        }
        pread_exact(&file, &mut header, 0).map_err(|e| Error::io("read", &path, e))?;
        // Checked before the header is believed: whoever pinned a digest wants that archive alone.
        let found = format::digest(&header);
        let header = reader::read_header(&header)?;
        if let Some(expected) = expected.filter(|d| **d != found) {
            return Err(Error::WrongArchive {
                expected: format::hex(expected),
                found: format::hex(&found),
            });
        }
        if header.index_packed > size - HEADER_SIZE as u64 {
            return Err(Error::Malformed("the index is cut short"));
        }
        let mut packed = alloc::vec![0; header.index_packed as usize];
        pread_exact(&file, &mut packed, HEADER_SIZE as u64)
            .map_err(|e| Error::io("read", &path, e))?;
        let archive = reader::read_index(header, &packed, size)?;
        Ok(ArchiveFile {
            archive,
            path,
            file,
        })
    }

    /// Reads frame `number` and unpacks its streams into `out`; `packed` is scratch space.
    pub fn read_frame(&self, number: usize, packed: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<()> {
        let range = self.archive.frame_range(number);
        packed.resize((range.end - range.start) as usize, 0);
        pread_exact(&self.file, packed, range.start)
            .map_err(|e| Error::io("read", &self.path, e))?;
        let frame = &self.archive.frames()[number];
        reader::decode_streams(number, frame, self.archive.streams(number), packed, out)
    }
}
