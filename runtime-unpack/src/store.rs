//! Where trees live: `/tmp/slimlambda/`, shared by all processes of one execution environment, and by what earlier
//! ones left there (Lambda keeps /tmp when it resets an environment).
//!
//! ```text
//! <digest>/           the tree; appears by rename, whole
//! <digest>.partial/   the stage of whoever holds the lock
//! <digest>.progress   what the stage is for, and which frames are done in it
//! <digest>.lock       held (flock) while the tree is made or mended
//! <digest>.use        held shared by every process that runs from the tree, from before the lock is given back
//! ```
//!
//! Locks are `flock`s: the kernel gives them back when a process dies, however it dies. Lock files are never removed, since
//! a lock on a removed file excludes nobody.

use crate::error::{Error, Result};
use crate::format::hex;
use crate::fs::{names, open_directory, remove_tree, rename_new};
use crate::source::ArchiveFile;
use crate::sys;
use crate::unpack::{self, Counts, Progress, Selection};
use alloc::string::String;
use alloc::vec::Vec;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
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
    /// The descriptor whose lock keeps the tree from being removed.
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
    let in_use = store.open_lock(".use")?;
    lock_shared(&in_use).map_err(|e| store.fail("lock", ".use", e))?;

    let tree = store.tree()?;
    let wanted: Vec<bool> = (0..archive.len()).map(wanted).collect();
    let mut lacking = match &tree {
        Some(tree) => unpack::missing(archive, &wanted, tree.as_fd(), options.verify)?,
        None => wanted,
    };
    unpack::add_parents(archive, &mut lacking);
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
        if base_path.first() != Some(&b'/') {
            return Err(Error::Untrusted {
                path: String::from_utf8_lossy(&base_path).into_owned(),
                why: "is no absolute path",
            });
        }
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

    fn open_lock(&self, suffix: &str) -> Result<OwnedFd> {
        open_lock(self.base.as_fd(), &self.name(suffix)).map_err(|e| self.fail("open", suffix, e))
    }

    /// Takes the lock. Waits as long as its holder gets on, and `lock_timeout_ms` longer.
    fn lock(&self) -> Result<(OwnedFd, u64)> {
        let lock = self.open_lock(".lock")?;
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
        let fill = || {
            let (stage, counts) = self.stage(selection)?;
            match &tree {
                Some(tree) => unpack::move_into(selection, stage.as_fd(), tree.as_fd())?,
                None => {
                    let base = self.base.as_fd();
                    rename_new(base, &self.name(".partial"), base, &self.name(""))
                        .map_err(|e| self.fail("complete", "", e))?
                }
            }
            self.clear_stage()?;
            Ok(counts)
        };
        let full = |result: &Result<Counts>| {
            let space = |errno| matches!(errno, Errno::NOSPC | Errno::DQUOT);
            matches!(result, Err(Error::Io { errno, .. }) if space(*errno))
        };
        let mut result = fill();
        if full(&result) && self.remove_stale()? {
            result = fill();
        }
        if full(&result) {
            result = Err(self.space_error(selection));
            self.clear_stage()?; // nothing of ours stays behind on a full disk
        }
        result
    }

    fn stage(&self, selection: &Selection<'_>) -> Result<(OwnedFd, Counts)> {
        let (stage, mut progress) = match self.resume_stage(selection)? {
            Some(begun) => begun,
            None => self.new_stage(selection)?,
        };
        // Sooner than by writing until the disk is full.
        if self.free_space()? + self.staged_size() < selection.disk_size() {
            return Err(self.fail("write", ".partial", Errno::NOSPC));
        }
        let counts = unpack::unpack(
            self.source,
            selection,
            stage.as_fd(),
            &mut progress,
            self.options.threads,
        )?;
        Ok((stage, counts))
    }

    /// The stage as a killed process left it, if it was at the same selection.
    fn resume_stage(&self, selection: &Selection<'_>) -> Result<Option<(OwnedFd, Progress)>> {
        let stage = match open_directory(self.base.as_fd(), &self.name(".partial")) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            other => other.map_err(|e| self.fail("open directory", ".partial", e))?,
        };
        let progress = Progress::resume(self.base.as_fd(), &self.name(".progress"), selection)?;
        Ok(progress.map(|progress| (stage, progress)))
    }

    fn new_stage(&self, selection: &Selection<'_>) -> Result<(OwnedFd, Progress)> {
        self.clear_stage()?;
        let (base, name) = (self.base.as_fd(), self.name(".partial"));
        rustix::fs::mkdirat(base, &*name, Mode::from_raw_mode(0o755))
            .map_err(|e| self.fail("create directory", ".partial", e))?;
        let stage =
            open_directory(base, &name).map_err(|e| self.fail("open directory", ".partial", e))?;
        let progress = Progress::create(base, &self.name(".progress"), selection)?;
        Ok((stage, progress))
    }

    fn clear_stage(&self) -> Result<()> {
        // Progress first: it must never outlive the files it speaks of. A stage without it is not resumed.
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
            for name in names(dir.as_fd())? {
                let stat = rustix::fs::statat(&dir, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
                sum += stat.st_blocks as u64 * 512 + size(dir.as_fd(), &name).unwrap_or(0);
            }
            Ok(sum)
        }
        size(self.base.as_fd(), &self.name(".partial")).unwrap_or(0)
    }

    fn space_error(&self, selection: &Selection<'_>) -> Error {
        let path = String::from_utf8_lossy(&self.options.tmp).into_owned();
        let total = rustix::fs::fstatvfs(&self.base).map_or(0, |fs| fs.f_blocks * fs.f_frsize);
        let free = self.free_space().unwrap_or(0) + self.staged_size();
        let needed = selection.disk_size();
        Error::Space {
            path,
            needed,
            free: free.min(needed.saturating_sub(1)),
            total,
        }
    }

    /// Removes the trees of other archives (older versions of the function) that nobody holds. Says whether it removed any.
    fn remove_stale(&self) -> Result<bool> {
        let base = self.base.as_fd();
        let names = names(base).map_err(|e| Error::io("clean up", &self.base_path, e))?;
        let mut digests: Vec<&[u8]> = names.iter().map(|n| &n[..n.len().min(64)]).collect();
        digests.sort_unstable();
        digests.dedup();
        digests.retain(|d| crate::format::parse_hex(d).is_some() && *d != self.digest.as_bytes());
        let mut removed = false;
        for digest in digests {
            let name = |suffix: &str| [digest, suffix.as_bytes()].concat();
            let lock = |suffix| {
                let file = open_lock(base, &name(suffix)).ok()?;
                rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
                Some(file)
            };
            if let Some(_lock) = lock(".lock")
                && let Some(_use) = lock(".use")
            {
                for suffix in [".progress", ".partial", ""] {
                    let there = names.iter().any(|n| *n == name(suffix));
                    removed |= there && remove_tree(base, &name(suffix)).is_ok();
                }
            }
        }
        Ok(removed)
    }
}

fn open_lock(base: BorrowedFd<'_>, name: &[u8]) -> core::result::Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(base, name, flags, Mode::from_raw_mode(0o600))
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
