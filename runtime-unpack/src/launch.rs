//! From a paired archive to the running function: unpack, set the environment, become the real binary.
//!
//! The archive's launch text says what to start. Its lines are `key=base:path`; `base` is `tree` (unpacked files)
//! or `task` (the directory that the launcher is in, `/var/task`):
//!
//! ```text
//! program=task:bin/thumbnails       what to become; without it, the launcher's own arguments (a wrapper script's job)
//! library-path=tree:lib             in front of LD_LIBRARY_PATH, in this order
//! ```
//!
//! The program gets the launcher's arguments (all of them, `argv[0]` too), working directory, signal state and environment, and in
//! the environment besides: `LD_LIBRARY_PATH` with the package's directories in front, because Lambda puts the system's first;
//! `SLIMLAMBDA_ARCHIVE`, `SLIMLAMBDA_DIGEST`, `SLIMLAMBDA_TREE` and `SLIMLAMBDA_TASK`, for [`crate::asset`].

use crate::error::{Error, Result};
use crate::format::{self, Digest};
use crate::source::ArchiveFile;
use crate::store::{self, Options, Tree};
use crate::sys;
use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use rustix::io::Errno;

/// What a place's path is relative to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The unpacked tree.
    Tree,
    /// The directory of the deployment package.
    Task,
}

/// A path in the package, wherever it was placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What `path` is relative to.
    pub base: Base,
    /// Relative path.
    pub path: String,
}

/// What to start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Launch {
    /// The program, or `None` to start the launcher's arguments.
    pub program: Option<Place>,
    /// Directories for the dynamic loader, before all others.
    pub library_path: Vec<Place>,
}

impl Launch {
    /// The launch text.
    pub fn encode(&self) -> String {
        let line = |key: &str, place: &Place| {
            let base = match place.base {
                Base::Tree => "tree",
                Base::Task => "task",
            };
            format!("{key}={base}:{}\n", place.path)
        };
        let program = self.program.iter().map(|place| line("program", place));
        program
            .chain(
                self.library_path
                    .iter()
                    .map(|place| line("library-path", place)),
            )
            .collect()
    }

    /// Reads a launch text.
    pub fn parse(text: &[u8]) -> Result<Launch> {
        let text = core::str::from_utf8(text)
            .map_err(|_| Error::Launch("its launch text is not UTF-8"))?;
        let mut out = Launch::default();
        for line in text.lines() {
            let (key, place) = line
                .split_once('=')
                .ok_or(Error::Launch("a line without `=`"))?;
            let place = match place.split_once(':') {
                Some(("tree", path)) => Place {
                    base: Base::Tree,
                    path: path.into(),
                },
                Some(("task", path)) => Place {
                    base: Base::Task,
                    path: path.into(),
                },
                _ => {
                    return Err(Error::Launch(
                        "a place that is neither in `tree` nor in `task`",
                    ));
                }
            };
            if format::path_fault(place.path.as_bytes()).is_some() {
                return Err(Error::Launch("a path that leaves the package"));
            }
            match key {
                "program" if out.program.is_none() => out.program = Some(place),
                "library-path" => out.library_path.push(place),
                _ => return Err(Error::Launch("an unknown or repeated key")),
            }
        }
        Ok(out)
    }
}

/// Marks the pairing in the launcher's bytes, where the build side writes the archive's digest.
pub const PAIRING_MARK: [u8; 32] = *b"slimlambda launcher pairing  v1:";

/// The mark and the digest that follows it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Pairing {
    /// [`PAIRING_MARK`].
    pub mark: [u8; 32],
    /// The archive's digest; zero in a launcher fresh from the linker.
    pub digest: Digest,
}

/// Unpacks and becomes the program. Returns only if that fails.
pub fn launch(
    arguments: &[CString],
    environment: &[CString],
    paired: &Digest,
) -> Result<core::convert::Infallible> {
    let start = sys::now_us();
    if *paired == [0; 32] {
        return Err(Error::Launch(
            "this launcher was never paired with an archive",
        ));
    }
    let get = |name: &str| variable(environment, name).map(<[u8]>::to_vec);
    let task = executable_directory()?;
    let beside = |directory: &[u8]| [directory, b"/", format::FILE_NAME.as_bytes()].concat();
    let source = ArchiveFile::open(&[beside(&task), beside(b"/opt")], Some(paired))?;
    let launch = Launch::parse(source.archive.launch())?;

    let before = sys::now_us();
    let tree = if source.archive.entries().any(|e| !e.lazy) {
        let options = Options::from_env(get);
        Some(store::ensure(&source, &options, |n| {
            !source.archive.entry(n).lazy
        })?)
    } else {
        None
    };
    let unpack_us = sys::now_us() - before;

    let place = |place: &Place| -> Result<Vec<u8>> {
        let base = match place.base {
            Base::Tree => {
                &tree
                    .as_ref()
                    .ok_or(Error::Launch("a place in the tree, but no tree"))?
                    .path
            }
            Base::Task => &task,
        };
        Ok([base.as_slice(), b"/", place.path.as_bytes()].concat())
    };
    let library_path = launch
        .library_path
        .iter()
        .map(place)
        .collect::<Result<Vec<_>>>()?;
    let environment =
        program_environment(environment, &library_path, &source, tree.as_ref(), &task);
    let (program, arguments) = match &launch.program {
        Some(program) => (place(program)?, arguments),
        None => {
            let command = arguments
                .get(1..)
                .filter(|a| !a.is_empty())
                .ok_or(Error::Launch("no program, and no arguments to start"))?;
            (command[0].to_bytes().to_vec(), command)
        }
    };
    if let Some(tree) = &tree {
        let mut places = launch.program.iter().chain(&launch.library_path);
        // The dynamic loader would say no more than that it "failed to map segment".
        if places.any(|p| p.base == Base::Tree) && forbids_execution(&tree.path) {
            return Err(Error::Exec {
                path: String::from_utf8_lossy(&tree.path).into_owned(),
                errno: Errno::ACCESS,
                noexec: true,
            });
        }
        // The one descriptor that the program inherits: as long as it runs, nobody removes the tree. Never a standard
        // stream's number, should one of them be closed.
        let held = rustix::io::fcntl_dupfd_cloexec(tree.hold(), 3);
        let held = held.map_err(|e| Error::io("hold", &tree.path, e))?;
        rustix::io::fcntl_setfd(&held, rustix::io::FdFlags::empty())
            .map_err(|e| Error::io("hold", &tree.path, e))?;
        core::mem::forget(held);
    }
    if get("SLIMLAMBDA_TRACE").is_some_and(|v| v == b"1") {
        trace(start, unpack_us, &source, tree.as_ref());
    }
    Err(start_program(&program, arguments, &environment))
}

fn forbids_execution(path: &[u8]) -> bool {
    rustix::fs::statvfs(path)
        .is_ok_and(|fs| fs.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC))
}

fn start_program(program: &[u8], arguments: &[CString], environment: &[CString]) -> Error {
    // A process that forked while we still had the file open for writing may hold that descriptor until it execs itself.
    const TRIES: u32 = 100;
    let mut errno = Errno::INVAL;
    for _ in 0..TRIES {
        errno = sys::exec(program, arguments, environment);
        if errno != Errno::TXTBSY {
            break;
        }
        sys::sleep_ms(10);
    }
    Error::Exec {
        path: String::from_utf8_lossy(program).into_owned(),
        errno,
        noexec: forbids_execution(program),
    }
}

fn executable_directory() -> Result<Vec<u8>> {
    let link = "/proc/self/exe";
    let path = rustix::fs::readlink(link, Vec::new())
        .map_err(|e| Error::io("read", link.as_bytes(), e))?
        .into_bytes();
    Ok(crate::reader::parent(&path).unwrap_or_default().to_vec())
}

fn variable<'e>(environment: &'e [CString], name: &str) -> Option<&'e [u8]> {
    environment.iter().find_map(|v| {
        v.to_bytes()
            .strip_prefix(name.as_bytes())?
            .strip_prefix(b"=")
    })
}

fn program_environment(
    environment: &[CString],
    library_path: &[Vec<u8>],
    source: &ArchiveFile,
    tree: Option<&Tree>,
    task: &[u8],
) -> Vec<CString> {
    let mut libraries = library_path.to_vec();
    libraries.extend(
        variable(environment, "LD_LIBRARY_PATH")
            .filter(|v| !v.is_empty())
            .map(<[u8]>::to_vec),
    );
    let set: [(&str, Option<Vec<u8>>); 5] = [
        (
            "LD_LIBRARY_PATH",
            Some(libraries.join(&b':')).filter(|l| !l.is_empty()),
        ),
        ("SLIMLAMBDA_ARCHIVE", Some(source.path.clone())),
        (
            "SLIMLAMBDA_DIGEST",
            Some(format::hex(&source.archive.digest()).into_bytes()),
        ),
        ("SLIMLAMBDA_TREE", tree.map(|t| t.path.clone())),
        ("SLIMLAMBDA_TASK", Some(task.to_vec())),
    ];
    let kept = environment.iter().filter(|v| {
        !set.iter().any(|(name, _)| {
            v.to_bytes()
                .strip_prefix(name.as_bytes())
                .is_some_and(|r| r.first() == Some(&b'='))
        })
    });
    let ours = set.iter().filter_map(|(name, value)| {
        CString::new([name.as_bytes(), b"=", value.as_ref()?].concat()).ok()
    });
    kept.cloned().chain(ours).collect()
}

/// One line of JSON for whoever measures; `cargo slimlambda invoke` reads it.
fn trace(start: u64, unpack_us: u64, source: &ArchiveFile, tree: Option<&Tree>) {
    let done = tree.map(|t| t.done).unwrap_or_default();
    say(&format!(
        "slimlambda-trace: {{\"v\":1,\"launcher_us\":{},\"unpack_us\":{unpack_us},\"waited_us\":{},\"unpacked_bytes\":{},\"packed_bytes\":{},\"frames\":{},\"entries\":{},\"threads\":{},\"warm\":{}}}\n",
        sys::now_us() - start,
        done.waited_us,
        done.unpacked,
        done.packed,
        done.frames,
        source.archive.len(),
        done.threads,
        tree.is_none_or(|t| t.done.warm),
    ));
}

/// Writes to standard error, as far as that is possible.
pub fn say(message: &str) {
    let mut bytes = message.as_bytes();
    while !bytes.is_empty() {
        match sys::write_stderr(bytes) {
            Ok(n) if n > 0 => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            _ => return,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn launch_texts_are_read_as_written() {
        let place = |base, path: &str| Place {
            base,
            path: path.into(),
        };
        let launch = Launch {
            program: Some(place(Base::Task, "bin/with = and : in it")),
            library_path: alloc::vec![place(Base::Tree, "lib"), place(Base::Task, "lib")],
        };
        assert_eq!(Launch::parse(launch.encode().as_bytes()).unwrap(), launch);
        assert_eq!(Launch::parse(b"").unwrap(), Launch::default());
    }

    #[test]
    fn bad_launch_texts_are_refused() {
        let cases: &[(&[u8], &str)] = &[
            (b"program", "without `=`"),
            (b"program=bin/x", "neither in `tree` nor in `task`"),
            (b"program=root:bin/x", "neither in `tree` nor in `task`"),
            (b"program=task:../x", "leaves the package"),
            (b"program=task:/bin/sh", "leaves the package"),
            (b"library-path=tree:", "leaves the package"),
            (b"program=task:x\nprogram=task:y", "unknown or repeated"),
            (b"environment=task:x", "unknown or repeated"),
            (b"\xff", "UTF-8"),
        ];
        for (text, message) in cases {
            let error = alloc::string::ToString::to_string(&Launch::parse(text).unwrap_err());
            assert!(error.contains(message), "{error}");
        }
    }
}
