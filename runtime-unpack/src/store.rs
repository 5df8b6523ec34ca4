//! Where trees live: `/tmp/slimlambda/`, shared by all processes of one execution environment, and by what earlier
//! ones left there (Lambda keeps /tmp when it resets an environment).
//!
//! ```text
//! <digest>/           the tree; appears by rename, whole
//! <digest>.partial/   the stage of whoever holds the lock
//! <digest>.progress   which frames are done in the stage
//! <digest>.lock       held (flock) while the tree is made or mended
//! <digest>.use        held shared by every process that runs from the tree, from before the lock is given back
//! ```
//!
//! Locks are `flock`s: the kernel gives them back when a process dies, however it dies. Lock files are never removed, since
//! a lock on a removed file excludes nobody.

use crate::error::{Error, Result};
use crate::format::hex;
use crate::fs::{open_directory, remove_tree, rename_new};
use crate::source::ArchiveFile;
use crate::sys;
use crate::unpack::{self, Counts, Progress, Selection};
use alloc::string::String;
use alloc::vec::Vec;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Dir, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// How to unpack; [`Options::from_env`] reads it from the environment.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory below which `slimlambda/` is made (`SLIMLAMBDA_TMP`, default `/tmp`).
    pub tmp: Vec<u8>,
    /// Compare the contents of files already there with their digests (`SLIMLAMBDA_VERIFY=1`).
    pub verify: bool,
    /// Threads to unpack with (`SLIMLAMBDA_THREADS`, default: the cores this process may use).
    pub threads: usize,
    /// How long to wait for another process that makes no progress, milliseconds
    /// (`SLIMLAMBDA_LOCK_TIMEOUT_MS`, default 10,000: the whole Init phase).
    pub lock_timeout_ms: u64,
}

impl Options {
    /// The options that the environment, as `get` answers for it, asks for.
    pub fn from_env(get: impl Fn(&str) -> Option<Vec<u8>>) -> Options {
        let number = |name: &str| core::str::from_utf8(&get(name)?).ok()?.parse::<u64>().ok();
        Options {
            tmp: get("SLIMLAMBDA_TMP")
                .filter(|t| !t.is_empty())
                .unwrap_or_else(|| b"/tmp".to_vec()),
            verify: number("SLIMLAMBDA_VERIFY") == Some(1),
            threads: number("SLIMLAMBDA_THREADS")
                .map_or_else(sys::cores, |n| n as usize)
                .clamp(1, 64),
            lock_timeout_ms: number("SLIMLAMBDA_LOCK_TIMEOUT_MS").unwrap_or(10_000),
        }
    }
}

/// A tree that is complete as far as it was asked for, and stays while this value (or a copy of its descriptor, also
/// across `exec`) lives.
#[derive(Debug)]
pub struct Tree {
    /// Absolute path of the tree.
    pub path: Vec<u8>,
    /// What was done for it.
    pub done: Done,
    in_use: OwnedFd,
}

impl Tree {
    /// The descriptor whose lock keeps the tree from being removed. It is inherited by programs that this one becomes.
    pub fn hold(&self) -> BorrowedFd<'_> {
        self.in_use.as_fd()
    }
}

/// What it took to complete a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Done {
    /// Whether everything was there already.
    pub warm: bool,
    /// Frames unpacked by this process.
    pub frames: usize,
    /// Bytes of them, packed.
    pub packed: u64,
    /// Bytes of them, unpacked.
    pub unpacked: u64,
    /// Threads that did it.
    pub threads: usize,
    /// Time waited for other processes, microseconds.
    pub waited_us: u64,
}

/// Sees to it that the entries that `wanted` picks are in the tree, whole; unpacks what is not.
pub fn ensure(
    source: &ArchiveFile,
    options: &Options,
    wanted: impl Fn(usize) -> bool,
) -> Result<Tree> {
    let archive = &source.archive;
    let store = Store::open(options, source)?;
    let (lock, waited_us) = store.lock()?;
    let in_use = store.open_lock(".use", OFlags::empty())?;
    lock_shared(&in_use).map_err(|e| store.fail("lock", ".use", e))?;

    let tree = store.tree()?;
    let wanted: Vec<bool> = (0..archive.len()).map(wanted).collect();
    let lacking = match &tree {
        Some(tree) => unpack::missing(archive, &wanted, tree.as_fd(), options.verify)?,
        None => wanted,
    };
    let mut done = Done {
        waited_us,
        ..Done::default()
    };
    if tree.is_some() && !lacking.contains(&true) {
        done.warm = true;
    } else {
        let counts = store.fill(tree, &Selection::new(archive, lacking))?;
        done = Done {
            frames: counts.frames,
            packed: counts.packed,
            unpacked: counts.unpacked,
            threads: counts.threads,
            ..done
        };
    }
    drop(lock);
    Ok(Tree {
        path: store.path(""),
        done,
        in_use,
    })
}

struct Store<'a> {
    source: &'a ArchiveFile,
    options: &'a Options,
    /// `/tmp/slimlambda`
    base: OwnedFd,
    base_path: Vec<u8>,
    digest: String,
}

impl<'a> Store<'a> {
    fn open(options: &'a Options, source: &'a ArchiveFile) -> Result<Self> {
        let mut base_path = options.tmp.clone();
        base_path.extend_from_slice(b"/slimlambda");
        match rustix::fs::mkdirat(CWD, base_path.as_slice(), Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Error::io("create directory", &base_path, errno)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let untrusted = |why| Error::Untrusted {
            path: String::from_utf8_lossy(&base_path).into_owned(),
            why,
        };
        let base = rustix::fs::openat(CWD, base_path.as_slice(), flags, Mode::empty()).map_err(
            |errno| match errno {
                Errno::LOOP => untrusted("is a symlink"),
                Errno::NOTDIR => untrusted("is no directory"),
                errno => Error::io("open directory", &base_path, errno),
            },
        )?;
        let stat = rustix::fs::fstat(&base).map_err(|e| Error::io("inspect", &base_path, e))?;
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(untrusted("belongs to another user"));
        }
        if stat.st_mode & 0o022 != 0 {
            return Err(untrusted("can be written by others"));
        }
        Ok(Store {
            source,
            options,
            base,
            base_path,
            digest: hex(&source.archive.digest()),
        })
    }

    fn name(&self, suffix: &str) -> Vec<u8> {
        [self.digest.as_bytes(), suffix.as_bytes()].concat()
    }

    fn path(&self, suffix: &str) -> Vec<u8> {
        [self.base_path.as_slice(), b"/", &self.name(suffix)].concat()
    }

    fn fail(&self, doing: &'static str, suffix: &str, errno: Errno) -> Error {
        Error::io(doing, &self.path(suffix), errno)
    }

    fn open_lock(&self, suffix: &str, flags: OFlags) -> Result<OwnedFd> {
        open_lock(self.base.as_fd(), &self.name(suffix), flags)
            .map_err(|e| self.fail("open", suffix, e))
    }

    /// Takes the lock. Waits as long as its holder gets on, and `lock_timeout_ms` longer.
    fn lock(&self) -> Result<(OwnedFd, u64)> {
        let lock = self.open_lock(".lock", OFlags::CLOEXEC)?;
        let start = sys::now_us();
        let (mut seen, mut since) = (None, start);
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok((lock, sys::now_us() - start)),
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(errno) => return Err(self.fail("lock", ".lock", errno)),
            }
            let progress = rustix::fs::statat(
                &self.base,
                self.name(".progress"),
                AtFlags::SYMLINK_NOFOLLOW,
            );
            let progress = progress.ok().map(|s| (s.st_mtime, s.st_mtime_nsec));
            let now = sys::now_us();
            if progress != seen {
                (seen, since) = (progress, now);
            }
            let waited_ms = (now - since) / 1000;
            if waited_ms >= self.options.lock_timeout_ms {
                return Err(Error::Stalled {
                    path: String::from_utf8_lossy(&self.path(".lock")).into_owned(),
                    waited_ms,
                });
            }
            sys::sleep_ms(5);
        }
    }

    /// The tree, if there is a directory of its name; anything else of that name is removed.
    fn tree(&self) -> Result<Option<OwnedFd>> {
        match open_directory(self.base.as_fd(), &self.name("")) {
            Ok(tree) => Ok(Some(tree)),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                remove_tree(self.base.as_fd(), &self.name(""))
                    .map_err(|e| self.fail("remove", "", e))?;
                Ok(None)
            }
            Err(errno) => Err(self.fail("open directory", "", errno)),
        }
    }

    /// Unpacks the selection: into a new tree that appears whole, or file by file into the one that is there.
    fn fill(&self, tree: Option<OwnedFd>, selection: &Selection<'_>) -> Result<Counts> {
        if tree.is_some() {
            self.clear_stage()?; // what a killed first unpacking left is no start for mending
        }
        let result = self.stage(selection).and_then(|(stage, counts)| {
            match &tree {
                Some(tree) => {
                    unpack::move_into(selection, stage.as_fd(), tree.as_fd())?;
                    self.clear_stage()?;
                }
                None => {
                    rename_new(self.base.as_fd(), &self.name(".partial"), &self.name(""))
                        .map_err(|e| self.fail("complete", "", e))?;
                    self.remove(".progress")?;
                }
            }
            Ok(counts)
        });
        match result {
            Err(Error::Io {
                errno: Errno::NOSPC | Errno::DQUOT,
                ..
            }) => {
                let error = self.space_error(selection);
                self.clear_stage()?; // nothing of ours stays behind on a full disk
                Err(error)
            }
            other => other,
        }
    }

    fn stage(&self, selection: &Selection<'_>) -> Result<(OwnedFd, Counts)> {
        let needed = selection.disk_size();
        if self.free_space()? + self.staged_size() < needed {
            self.remove_stale()?;
            if self.free_space()? + self.staged_size() < needed {
                return Err(Error::io("write", &self.path(".partial"), Errno::NOSPC));
            }
        }
        match rustix::fs::mkdirat(
            &self.base,
            self.name(".partial"),
            Mode::from_raw_mode(0o755),
        ) {
            // Without a stage, progress would speak of files that are not there.
            Ok(()) => self.remove(".progress")?,
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(self.fail("create directory", ".partial", errno)),
        }
        let stage = match open_directory(self.base.as_fd(), &self.name(".partial")) {
            Err(Errno::NOTDIR | Errno::LOOP) => {
                self.clear_stage()?;
                return self.stage(selection);
            }
            other => other.map_err(|e| self.fail("open directory", ".partial", e))?,
        };
        let mut progress = Progress::open(
            self.base.as_fd(),
            &self.name(".progress"),
            self.source.archive.frames().len(),
        )?;
        let counts = unpack::unpack(
            self.source,
            selection,
            stage.as_fd(),
            &mut progress,
            self.options.threads,
        )?;
        Ok((stage, counts))
    }

    fn clear_stage(&self) -> Result<()> {
        // Progress first: it must never outlive the files it speaks of.
        self.remove(".progress")?;
        self.remove(".partial")
    }

    fn remove(&self, suffix: &str) -> Result<()> {
        remove_tree(self.base.as_fd(), &self.name(suffix))
            .map_err(|e| self.fail("remove", suffix, e))
    }

    fn free_space(&self) -> Result<u64> {
        let fs = rustix::fs::fstatvfs(&self.base).map_err(|e| self.fail("inspect", "", e))?;
        Ok(fs.f_bavail * fs.f_frsize)
    }

    /// Bytes that an earlier try has left on the stage, which this one will write over.
    fn staged_size(&self) -> u64 {
        fn size(dir: BorrowedFd<'_>, name: &[u8]) -> core::result::Result<u64, Errno> {
            let dir = open_directory(dir, name)?;
            let mut sum = 0;
            for entry in Dir::read_from(&dir)? {
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                if name == b"." || name == b".." {
                    continue;
                }
                let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                sum += stat.st_blocks as u64 * 512 + size(dir.as_fd(), name).unwrap_or(0);
            }
            Ok(sum)
        }
        size(self.base.as_fd(), &self.name(".partial")).unwrap_or(0)
    }

    fn space_error(&self, selection: &Selection<'_>) -> Error {
        let path = String::from_utf8_lossy(&self.options.tmp).into_owned();
        let total = rustix::fs::fstatvfs(&self.base).map_or(0, |fs| fs.f_blocks * fs.f_frsize);
        let free = self.free_space().unwrap_or(0) + self.staged_size();
        let needed = selection.disk_size().max(selection.content_size());
        Error::Space {
            path,
            needed,
            free: free.min(needed.saturating_sub(1)),
            total,
        }
    }

    /// Removes the trees of other archives (older versions of the function) that nobody holds.
    fn remove_stale(&self) -> Result<()> {
        let fail = |errno| Error::io("clean up", &self.base_path, errno);
        let mut digests: Vec<Vec<u8>> = Vec::new();
        for entry in Dir::read_from(&self.base).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name().to_bytes();
            let digest = &name[..name.len().min(64)];
            if crate::format::parse_hex(digest).is_some()
                && digest != self.digest.as_bytes()
                && !digests.iter().any(|d| d == digest)
            {
                digests.push(digest.to_vec());
            }
        }
        for digest in digests {
            let name = |suffix: &str| [digest.as_slice(), suffix.as_bytes()].concat();
            let lock = |suffix| {
                let file = open_lock(self.base.as_fd(), &name(suffix), OFlags::CLOEXEC).ok()?;
                rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
                Some(file)
            };
            if let Some(_lock) = lock(".lock")
                && let Some(_use) = lock(".use")
            {
                for suffix in [".progress", ".partial", ""] {
                    remove_tree(self.base.as_fd(), &name(suffix)).map_err(fail)?;
                }
            }
        }
        Ok(())
    }
}

fn open_lock(
    base: BorrowedFd<'_>,
    name: &[u8],
    flags: OFlags,
) -> core::result::Result<OwnedFd, Errno> {
    rustix::fs::openat(
        base,
        name,
        OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | flags,
        Mode::from_raw_mode(0o600),
    )
}

/// Never waits in practice: who wants `.use` for itself holds `.lock` too, and that one is ours.
fn lock_shared(file: &OwnedFd) -> core::result::Result<(), Errno> {
    loop {
        match rustix::fs::flock(file, FlockOperation::LockShared) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}
