//! Packed frames by what they were made of, so that a rebuild pays for what changed alone.
//!
//! ```text
//! $XDG_CACHE_HOME/slimlambda/frames/      or ~/.cache/slimlambda/frames/
//!   3f/a7…  magic, digest, payload        a key's first two hexadecimal digits, and the other 62
//!   3f/.new-…                             being written
//! ```
//!
//! Entries appear by rename and are never changed, so builds share them without locks. The digest is BLAKE3 of the
//! payload, keyed with the entry's key: what is truncated, damaged or under a wrong name is noticed, removed and made again.
//! The newest use of an entry is its mtime; [`Cache::finish`] removes those unused longest. A cache that does not work makes
//! a build slower, never fail.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::error::usage;
use crate::event::{Event, Sink};

/// First bytes of every entry.
const MAGIC: [u8; 8] = *b"slimfrm1";
/// Bytes before the payload: magic and digest.
const HEAD: usize = 8 + 32;
/// Begins the names of files that are being written.
const NEW: &str = ".new-";
/// After this, nobody is writing such a file any more.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Bytes that the cache may keep, unless the environment says otherwise: several builds of the largest packages.
const DEFAULT_SIZE: u64 = 2 << 30;
/// Bytes of the disk that the cache leaves free: the package has to be written, too.
const RESERVE: u64 = 512 << 20;
/// MiB that the cache may keep; 0 turns it off. In the environment, because it belongs to a machine and not to a project.
const SIZE_VARIABLE: &str = "SLIMLAMBDA_CACHE_SIZE";

/// A directory of packed frames.
#[derive(Debug)]
pub struct Cache {
    directory: PathBuf,
    max_bytes: u64,
    hits: AtomicU64,
    misses: AtomicU64,
    /// The first thing that went wrong; nothing is written after it.
    problem: OnceLock<String>,
    warned: AtomicBool,
}

impl Cache {
    /// A cache in `directory`, which need not exist yet.
    pub fn open(directory: &Path, max_bytes: u64) -> Cache {
        Cache {
            directory: directory.to_path_buf(),
            max_bytes,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            problem: OnceLock::new(),
            warned: AtomicBool::new(false),
        }
    }

    /// The user's cache, unless it is turned off or there is no place for it.
    ///
    /// # Errors
    ///
    /// `SLIMLAMBDA_CACHE_SIZE` is no number: exit code 2.
    pub fn of_user() -> anyhow::Result<Option<Cache>> {
        let max_bytes = match std::env::var_os(SIZE_VARIABLE) {
            None => DEFAULT_SIZE,
            Some(text) => match text.to_str().and_then(|text| text.parse::<u64>().ok()) {
                Some(mib) => mib.saturating_mul(1 << 20),
                None => {
                    return Err(usage(format!(
                        "`{SIZE_VARIABLE}` is `{}`\nhelp: set it to a number of MiB, or to 0 for no cache",
                        text.display()
                    )));
                }
            },
        };
        let absolute = |name| {
            let path = PathBuf::from(std::env::var_os(name)?);
            path.is_absolute().then_some(path)
        };
        let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
        let directory = base.map(|base| base.join("slimlambda/frames"));
        Ok(directory
            .filter(|_| max_bytes > 0)
            .map(|directory| Cache::open(&directory, max_bytes)))
    }

    /// The payload that was kept under `key`.
    pub fn get(&self, key: &[u8; 32]) -> Option<Vec<u8>> {
        let found = self.read(key);
        let counter = match found {
            Some(_) => &self.hits,
            None => &self.misses,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    fn read(&self, key: &[u8; 32]) -> Option<Vec<u8>> {
        let path = self.path(key);
        let mut file = File::open(&path).ok()?;
        let mut bytes = Vec::new();
        // Nothing larger than the whole cache has been kept.
        let limit = self.max_bytes.saturating_add(HEAD as u64);
        let read = Read::by_ref(&mut file).take(limit).read_to_end(&mut bytes);
        let sound = read.is_ok()
            && bytes.len() >= HEAD
            && bytes[..8] == MAGIC
            && bytes[8..HEAD] == *blake3::keyed_hash(key, &bytes[HEAD..]).as_bytes();
        if !sound {
            let _ = fs::remove_file(&path);
            return None;
        }
        // Where this cannot be noted, the entry goes a little sooner.
        let _ = file.set_modified(SystemTime::now());
        Some(bytes.split_off(HEAD))
    }

    /// Keeps `payload` under `key`, as far as that is possible.
    pub fn put(&self, key: &[u8; 32], payload: &[u8]) {
        if payload.len() as u64 > self.max_bytes || self.problem.get().is_some() {
            return;
        }
        if let Err(error) = self.write(key, payload) {
            let _ = self.problem.set(error.to_string());
        }
    }

    fn write(&self, key: &[u8; 32], payload: &[u8]) -> io::Result<()> {
        let path = self.path(key);
        let shard = path.parent().unwrap_or(&self.directory);
        fs::create_dir_all(shard)?;
        let disk = nix::sys::statvfs::statvfs(shard)?;
        if disk.blocks_available() * disk.fragment_size() < RESERVE {
            return Err(io::Error::other("less than 512 MiB are free there"));
        }
        let mut file = tempfile::Builder::new().prefix(NEW).tempfile_in(shard)?;
        file.write_all(&MAGIC)?;
        file.write_all(blake3::keyed_hash(key, payload).as_bytes())?;
        file.write_all(payload)?;
        file.persist(&path)?;
        Ok(())
    }

    fn path(&self, key: &[u8; 32]) -> PathBuf {
        let name = runtime_unpack::format::hex(key);
        self.directory.join(&name[..2]).join(&name[2..])
    }

    /// How many [`Cache::get`] found something, and how many did not.
    pub fn counts(&self) -> (u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (count(&self.hits), count(&self.misses))
    }

    /// After packing: removes what is too much, and says it once if the cache did not work.
    pub fn finish(&self, sink: Sink<'_>) {
        let evicted = match self.problem.get() {
            None => self.evict(),
            Some(_) => Ok(()),
        };
        let problem = match &evicted {
            Ok(()) => self.problem.get().cloned(),
            Err(error) => Some(error.to_string()),
        };
        if let Some(problem) = problem
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            sink(Event::Warning(&format!(
                "packed frames could not be kept in `{}`, the next build will take as long: {problem}\nhelp: `--no-cache` does without",
                self.directory.display()
            )));
        }
    }

    /// Removes the entries unused longest until the rest is small enough. Other processes may be at the same.
    fn evict(&self) -> io::Result<()> {
        let mut entries: Vec<(SystemTime, PathBuf, u64)> = Vec::new();
        for shard in listed(&self.directory)? {
            for path in listed(&shard)? {
                let Some(metadata) = there(fs::symlink_metadata(&path))? else {
                    continue;
                };
                let used = metadata.modified()?;
                let name = path.file_name().unwrap_or_default();
                if !name.as_encoded_bytes().starts_with(NEW.as_bytes()) {
                    entries.push((used, path, metadata.len()));
                } else if used.elapsed().is_ok_and(|age| age > ABANDONED) {
                    there(fs::remove_file(&path))?;
                }
            }
        }
        let mut size: u64 = entries.iter().map(|(.., size)| size).sum();
        entries.sort();
        for (_, path, bytes) in entries {
            if size <= self.max_bytes {
                break;
            }
            there(fs::remove_file(&path))?;
            size -= bytes;
        }
        Ok(())
    }
}

/// The paths in a directory; none, if it is not there or is none.
fn listed(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(Vec::new()),
        other => match there(other)? {
            Some(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
            None => Ok(Vec::new()),
        },
    }
}

/// `None` where another process was quicker.
fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn key(n: u8) -> [u8; 32] {
        [n; 32]
    }

    /// What [`Cache::finish`] warns of.
    fn warnings(cache: &Cache) -> Vec<String> {
        let said = Mutex::new(Vec::new());
        cache.finish(&|event| {
            if let Event::Warning(text) = event {
                said.lock().unwrap().push(text.to_string());
            }
        });
        said.into_inner().unwrap()
    }

    fn age(cache: &Cache, n: u8, seconds: u64) {
        let file = File::open(cache.path(&key(n))).unwrap();
        let then = SystemTime::now() - Duration::from_secs(seconds);
        file.set_modified(then).unwrap();
    }

    #[test]
    fn what_is_kept_is_found_by_its_key_alone() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(&directory.path().join("a/b"), 1 << 20);
        assert_eq!(cache.get(&key(1)), None);
        cache.put(&key(1), b"one");
        cache.put(&key(2), b"");
        assert_eq!(cache.get(&key(1)).unwrap(), b"one");
        assert_eq!(cache.get(&key(2)).unwrap(), b"");
        assert_eq!(cache.get(&key(3)), None);
        assert_eq!(cache.counts(), (2, 2));
        assert_eq!(warnings(&cache), [""; 0]);
    }

    #[test]
    fn what_is_damaged_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path(), 1 << 20);
        cache.put(&key(1), b"payload");
        let whole = fs::read(cache.path(&key(1))).unwrap();
        let mut cases: Vec<Vec<u8>> = (0..whole.len()).map(|len| whole[..len].to_vec()).collect();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            cases.push(bytes);
        }
        cases.push([&whole[..], b"more"].concat());
        for bytes in cases {
            fs::write(cache.path(&key(1)), &bytes).unwrap();
            assert_eq!(cache.get(&key(1)), None, "{bytes:?}");
            assert!(!cache.path(&key(1)).exists());
        }
        // Sound, but another's.
        fs::create_dir_all(cache.path(&key(2)).parent().unwrap()).unwrap();
        fs::write(cache.path(&key(2)), &whole).unwrap();
        assert_eq!(cache.get(&key(2)), None);
    }

    #[test]
    fn what_was_unused_longest_goes_first() {
        let directory = tempfile::tempdir().unwrap();
        let entry = 1000 + HEAD as u64;
        let cache = Cache::open(directory.path(), 3 * entry);
        for n in 1..=5 {
            cache.put(&key(n), &[n; 1000]);
            age(&cache, n, 1000 - u64::from(n));
        }
        assert!(cache.get(&key(1)).is_some()); // used now
        assert_eq!(warnings(&cache), [""; 0]);
        let kept: Vec<u8> = (1..=5).filter(|n| cache.path(&key(*n)).exists()).collect();
        assert_eq!(kept, [1, 4, 5]);
    }

    #[test]
    fn what_a_killed_build_left_goes_and_what_a_running_one_writes_stays() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path(), 1 << 20);
        cache.put(&key(1), b"one");
        let shard = cache.path(&key(1)).parent().unwrap().to_path_buf();
        let (old, new) = (shard.join(".new-old"), shard.join(".new-new"));
        for path in [&old, &new] {
            fs::write(path, "half").unwrap();
        }
        let then = SystemTime::now() - ABANDONED - Duration::from_secs(9);
        File::open(&old).unwrap().set_modified(then).unwrap();
        assert_eq!(warnings(&cache), [""; 0]);
        assert_eq!((old.exists(), new.exists()), (false, true));
    }

    #[test]
    fn a_cache_that_cannot_be_written_warns_once_and_finds_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let cache = Cache::open(&file.join("frames"), 1 << 20);
        for n in 0..9 {
            cache.put(&key(n), b"payload");
            assert_eq!(cache.get(&key(n)), None);
        }
        assert_eq!(warnings(&cache).len(), 1);
        assert_eq!(warnings(&cache).len(), 0); // the next package of the same build
    }

    #[test]
    fn caches_in_one_directory_do_not_disturb_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let entry = 1000 + HEAD as u64;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    // Too small for all: each removes what the others have just written.
                    let cache = Cache::open(directory.path(), 8 * entry);
                    for round in 0..200u32 {
                        let n = (round % 16) as u8;
                        let found = cache.get(&key(n));
                        assert!(found.is_none_or(|found| found == [n; 1000]));
                        cache.put(&key(n), &[n; 1000]);
                        if round % 8 == 0 {
                            assert_eq!(warnings(&cache), [""; 0]);
                        }
                    }
                });
            }
        });
        let cache = Cache::open(directory.path(), 8 * entry);
        assert_eq!(warnings(&cache), [""; 0]);
        let kept = (0..16).filter(|n| cache.path(&key(*n)).exists()).count();
        assert_eq!(kept, 8);
    }
}
