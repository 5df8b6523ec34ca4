//! What can go wrong while reading, unpacking and launching; each error says what to do about it.

use crate::sys::describe;
use alloc::string::String;
use core::fmt;
use rustix::io::Errno;

/// An error of this crate. Its `Display` is one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The bytes are no archive, or one that breaks a rule of the format.
    Malformed(&'static str),
    /// The archive needs a newer reader.
    Version {
        /// The version that the archive asks for.
        needs: u16,
    },
    /// The archive is intact in itself but not the one that was asked for.
    WrongArchive {
        /// Hexadecimal digest that was expected.
        expected: String,
        /// Hexadecimal digest that was found.
        found: String,
    },
    /// A frame's bytes are not what its digest says.
    Corrupt {
        /// Number of the frame.
        frame: u32,
        /// What is wrong with it.
        why: &'static str,
    },
    /// No archive where one was looked for.
    NoArchive {
        /// The places.
        searched: String,
    },
    /// A system call failed.
    Io {
        /// What was tried, in words.
        doing: &'static str,
        /// On which path.
        path: String,
        /// Why it failed.
        errno: Errno,
    },
    /// The disk is too small.
    Space {
        /// Directory on the full file system.
        path: String,
        /// Bytes that the tree takes.
        needed: u64,
        /// Bytes that were free for it.
        free: u64,
        /// Size of the file system, bytes.
        total: u64,
    },
    /// The directory for unpacked trees is not ours.
    Untrusted {
        /// The directory.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Another process holds the lock and does not get on.
    Stalled {
        /// The lock file.
        path: String,
        /// How long nothing moved, milliseconds.
        waited_ms: u64,
    },
    /// The program could not be started.
    Exec {
        /// Its path.
        path: String,
        /// Why.
        errno: Errno,
        /// Whether its file system forbids execution.
        noexec: bool,
    },
    /// The launch text of the archive makes no sense.
    Launch(&'static str),
    /// A directory whose files were placed partly in the archive, partly in the package.
    Split {
        /// The directory that was asked for.
        path: String,
    },
    /// No such asset.
    NoAsset {
        /// The path that was asked for.
        path: String,
        /// The places.
        searched: String,
    },
}

/// `Result` with this crate's error.
pub type Result<T> = core::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(doing: &'static str, path: &[u8], errno: Errno) -> Error {
        Error::Io {
            doing,
            path: String::from_utf8_lossy(path).into_owned(),
            errno,
        }
    }
}

/// Bytes as MiB, rounded up: a size to set must never be too small.
fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Malformed(why) => write!(
                f,
                "the archive is damaged: {why}; build and deploy the package again"
            ),
            Error::Version { needs } => write!(
                f,
                "this archive needs launcher \u{2265} {needs}, this is {}; build the package again with one version of cargo-slimlambda",
                crate::format::VERSION
            ),
            Error::WrongArchive { expected, found } => write!(
                f,
                "the archive is not the one that this launcher was paired with (expected digest {expected}, found {found}); deploy bootstrap and archive of one build together"
            ),
            Error::Corrupt { frame, why } => write!(
                f,
                "frame {frame} of the archive is damaged: {why}; build and deploy the package again"
            ),
            Error::NoArchive { searched } => write!(
                f,
                "no archive found (searched: {searched}); deploy the whole package, not its bootstrap alone"
            ),
            Error::Io { doing, path, errno } => {
                write!(f, "could not {doing} `{path}`: {}", describe(*errno))?;
                match *errno {
                    Errno::ROFS => f.write_str("; the file system is read-only: on Lambda only /tmp can be written, set SLIMLAMBDA_TMP to a writable directory elsewhere"),
                    Errno::ACCESS | Errno::PERM => f.write_str("; check owner and permissions"),
                    Errno::NOSPC | Errno::DQUOT => f.write_str("; set EphemeralStorage higher, or free space there"),
                    Errno::MFILE => f.write_str("; too many open files: close some, or raise the limit"),
                    _ => Ok(()),
                }
            }
            Error::Space {
                path,
                needed,
                free,
                total,
            } => write!(
                f,
                "no space in `{path}`: the tree needs {} MiB, {} MiB are free; set EphemeralStorage to at least {} MB or free space in it",
                mib(*needed),
                free >> 20,
                mib(*total + needed.saturating_sub(*free)).max(512),
            ),
            Error::Untrusted { path, why } => write!(
                f,
                "`{path}` {why}; remove it, or set SLIMLAMBDA_TMP to another directory"
            ),
            Error::Stalled { path, waited_ms } => write!(
                f,
                "another process holds `{path}` and has unpacked nothing for {waited_ms} ms; it hangs or was stopped: end it, or raise SLIMLAMBDA_LOCK_TIMEOUT_MS"
            ),
            Error::Exec {
                path, noexec: true, ..
            } => {
                write!(
                    f,
                    "could not start `{path}`: its file system is mounted noexec; set SLIMLAMBDA_TMP to a directory that allows execution"
                )
            }
            Error::Exec { path, errno, .. } => {
                write!(f, "could not start `{path}`: {}", describe(*errno))?;
                match *errno {
                    Errno::NOENT => {
                        f.write_str("; it, or the dynamic loader that it asks for, is not there")
                    }
                    Errno::NOEXEC => f.write_str("; it was built for another architecture"),
                    _ => Ok(()),
                }
            }
            Error::Launch(why) => write!(
                f,
                "the archive does not say what to start: {why}; build the package again"
            ),
            Error::Split { path } => write!(
                f,
                "directory `{path}` is partly in the archive and partly in the package; ask for its files, or give its assets one `placement`"
            ),
            Error::NoAsset { path, searched } => write!(
                f,
                "no asset `{path}` (searched: {searched}); add it to `assets` in [package.metadata.slimlambda]"
            ),
        }
    }
}

impl core::error::Error for Error {}
