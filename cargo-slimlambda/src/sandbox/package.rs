//! Deployment package and layers (zips) → directories, the way Lambda unpacks them.
//!
//! Modes and symlinks are kept as the zip has them; paths that leave the root, go through a
//! symlink or come twice are refused before anything is written for them; the sizes are checked
//! before the first byte is unpacked, and each entry is stopped at its declared size. On Lambda the
//! files are root's, so a file that only its owner may read cannot be read by the function.

use crate::error::gate;
use crate::limits;
use anyhow::{Context, Result, bail};
use nix::unistd::{Uid, getuid};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use zip::ZipArchive;

/// A symlink's target may not be longer (PATH_MAX).
const TARGET_MAX: u64 = 4096;

/// Where a package lies unpacked.
#[derive(Debug, Clone)]
pub struct Unpacked {
    /// Becomes /var/task.
    pub task: PathBuf,
    /// Becomes /opt.
    pub opt: PathBuf,
    /// Bytes of both.
    pub size: u64,
}

/// Unpacks package and layers below `work`; a package that is a directory is used in place.
pub fn unpack(package: &Path, layers: &[PathBuf], work: &Path) -> Result<Unpacked> {
    let most = limits::LAYERS.value;
    if layers.len() as u64 > most {
        return Err(gate(format!(
            "`{}` layers, where Lambda takes at most `{most}`",
            layers.len()
        )));
    }
    let (task, opt) = (work.join("task"), work.join("opt"));
    for directory in [&task, &opt] {
        fs::create_dir(directory)
            .with_context(|| format!("failed to create `{}`", directory.display()))?;
    }
    let is_directory = package.is_dir();
    let code = if is_directory {
        tree_size(package)?
    } else {
        declared(package)?
    };
    let limit = limits::UNZIPPED.value;
    if code >= limit {
        return Err(gate(format!(
            "Unzipped size must be smaller than {limit} bytes\n  `{}` has `{code}` bytes",
            package.display()
        )));
    }
    let layered = layers
        .iter()
        .map(|layer| declared(layer))
        .sum::<Result<u64>>()?;
    let size = code + layered;
    if size >= limit {
        return Err(gate(format!(
            "Function code combined with layers exceeds the maximum allowed size of {limit} bytes. \
             The actual size is {size} bytes."
        )));
    }
    for layer in layers {
        extract(layer, &opt)?;
    }
    if is_directory {
        let task = fs::canonicalize(package)
            .with_context(|| format!("failed to resolve `{}`", package.display()))?;
        return Ok(Unpacked { task, opt, size });
    }
    extract(package, &task)?;
    Ok(Unpacked { task, opt, size })
}

fn open(path: &Path) -> Result<ZipArchive<File>> {
    let file = File::open(path).with_context(|| format!("failed to open `{}`", path.display()))?;
    ZipArchive::new(file).with_context(|| format!("failed to read `{}` as a zip", path.display()))
}

/// Bytes that a zip says it unpacks to.
fn declared(path: &Path) -> Result<u64> {
    let mut zip = open(path)?;
    let mut total = 0u64;
    for index in 0..zip.len() {
        total = total.saturating_add(zip.by_index_raw(index)?.size());
    }
    Ok(total)
}

fn tree_size(directory: &Path) -> Result<u64> {
    let mut total = 0;
    let context = || format!("failed to read `{}`", directory.display());
    for entry in fs::read_dir(directory).with_context(context)? {
        let entry = entry.with_context(context)?;
        let metadata = entry.metadata().with_context(context)?;
        total += if metadata.is_dir() {
            tree_size(&entry.path())?
        } else {
            metadata.len()
        };
    }
    Ok(total)
}

/// Unpacks one zip over what earlier ones left.
fn extract(path: &Path, root: &Path) -> Result<()> {
    let mut zip = open(path)?;
    let mut seen = BTreeSet::new();
    for index in 0..zip.len() {
        let entry = zip.by_index(index);
        let mut entry = entry
            .with_context(|| format!("failed to read entry {index} of `{}`", path.display()))?;
        let name = entry.name_raw().to_vec();
        let shown = String::from_utf8_lossy(&name).into_owned();
        extract_entry(&mut entry, &name, root, &mut seen)
            .with_context(|| format!("failed to unpack entry `{shown}` of `{}`", path.display()))?;
    }
    Ok(())
}

fn extract_entry<R: Read>(
    entry: &mut zip::read::ZipFile<'_, R>,
    name: &[u8],
    root: &Path,
    seen: &mut BTreeSet<PathBuf>,
) -> Result<()> {
    let relative = safe_path(name)?;
    let mode = entry.unix_mode();
    let target = root.join(&relative);
    if relative.as_os_str().is_empty() {
        // The root itself (`./`), which is there and not the zip's to set.
        anyhow::ensure!(entry.is_dir(), "the path names no file");
        return Ok(());
    }
    if entry.is_dir() {
        create_directories(root, &relative)?;
        // Writable for us in any case, or the tree could not be removed again.
        let mode = mode.unwrap_or(0o755) & 0o777 | 0o700;
        return Ok(fs::set_permissions(
            &target,
            fs::Permissions::from_mode(mode),
        )?);
    }
    if !seen.insert(relative.clone()) {
        bail!("the path comes twice");
    }
    create_directories(root, relative.parent().unwrap_or(Path::new("")))?;
    match fs::symlink_metadata(&target) {
        Ok(found) if found.is_dir() => bail!("a directory has the same path"),
        Ok(_) => fs::remove_file(&target)?, // from an earlier layer: the later one wins
        Err(_) => {}
    }
    if entry.is_symlink() {
        let mut link = String::new();
        entry.take(TARGET_MAX).read_to_string(&mut link)?;
        return Ok(symlink(link, &target)?);
    }
    let size = entry.size();
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&target)?;
    let written = io::copy(&mut entry.take(size.saturating_add(1)), &mut file)?;
    if written != size {
        bail!("`{written}` bytes or more, where `{size}` were declared");
    }
    // A zip without modes gives plain files, also on Lambda: such a bootstrap does not start.
    let mode = mode_for(getuid(), mode.unwrap_or(0o644) & 0o777);
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// The mode that gives the function the rights that it has on Lambda, where it is one of the others.
/// Unless we are root, the file is ours and we are the function: what counts is the owner's part.
fn mode_for(user: Uid, mode: u32) -> u32 {
    if user.is_root() {
        mode
    } else {
        (mode & 0o007) * 0o111
    }
}

/// A path that stays inside, component by component. A leading `./`, as `find . | zip -@` and other
/// zip writers leave it, says nothing.
fn safe_path(name: &[u8]) -> Result<PathBuf> {
    let name = std::str::from_utf8(name).context("the path is not UTF-8")?;
    let path = Path::new(name);
    let parts = || path.components().filter(|part| *part != Component::CurDir);
    let inside = parts().all(|part| matches!(part, Component::Normal(part) if part.len() <= 255));
    if name.is_empty() || name.contains(['\0', '\\']) || !inside {
        bail!("the path does not stay inside the package");
    }
    Ok(parts().collect())
}

/// Creates a directory and its parents; none of them may be a symlink or a file.
fn create_directories(root: &Path, relative: &Path) -> Result<()> {
    let mut path = root.to_owned();
    for component in relative.components() {
        path.push(component);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => bail!("`{}` is not a directory", path.display()),
            Err(_) => {
                fs::create_dir(&path)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;
    use zip::write::SimpleFileOptions;

    enum Entry<'a> {
        File(&'a str, u32),
        Link(&'a str, &'a str),
    }

    fn zip(at: &Path, entries: &[Entry<'_>]) -> PathBuf {
        let mut writer = zip::ZipWriter::new(File::create(at).unwrap());
        for entry in entries {
            match entry {
                Entry::File(name, mode) => {
                    writer
                        .start_file(*name, SimpleFileOptions::default().unix_permissions(*mode))
                        .unwrap();
                    writer.write_all(b"content").unwrap();
                }
                Entry::Link(name, target) => {
                    writer
                        .add_symlink(*name, *target, SimpleFileOptions::default())
                        .unwrap();
                }
            }
        }
        writer.finish().unwrap();
        at.to_owned()
    }

    #[test]
    fn bad_paths_are_refused_and_nothing_appears_outside() {
        use Entry::{File, Link};
        let cases: &[&[Entry<'_>]] = &[
            &[File("../outside", 0o644)],
            &[File("a/../../outside", 0o644)],
            &[File("/outside", 0o644)],
            &[Link("up", ".."), File("up/outside", 0o644)],
            &[File("a", 0o644), File("a/b", 0o644)],
            &[File("a/b", 0o644), File("a", 0o644)],
            &[File("./../outside", 0o644)],
            &[File("a", 0o644), File("./a", 0o644)],
            &[File(".", 0o644)],
        ];
        for (index, entries) in cases.iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let work = dir.path().join("work");
            fs::create_dir(&work).unwrap();
            let package = zip(&dir.path().join("p.zip"), entries);
            unpack(&package, &[], &work).expect_err(&format!("case {index}"));
            assert!(!dir.path().join("outside").exists() && !work.join("outside").exists());
        }
    }

    #[test]
    fn a_leading_dot_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let package = dir.path().join("p.zip");
        let mut writer = zip::ZipWriter::new(File::create(&package).unwrap());
        let options = SimpleFileOptions::default();
        writer.add_directory("./", options).unwrap();
        writer.start_file("./lib/./a", options).unwrap();
        writer.finish().unwrap();
        zip(&dir.path().join("l.zip"), &[Entry::File("./b", 0o644)]);
        let work = dir.path().join("work");
        fs::create_dir(&work).unwrap();
        let unpacked = unpack(&package, &[dir.path().join("l.zip")], &work).unwrap();
        assert!(unpacked.task.join("lib/a").is_file() && unpacked.opt.join("b").is_file());
    }

    #[test]
    fn modes_and_symlinks_are_kept_and_later_layers_win() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let package = zip(
            &path("p.zip"),
            &[
                Entry::File("bin/x", 0o6711),
                Entry::Link("bootstrap", "bin/x"),
            ],
        );
        let first = zip(
            &path("1.zip"),
            &[Entry::File("a", 0o600), Entry::Link("b", "a")],
        );
        let second = zip(
            &path("2.zip"),
            &[Entry::File("a", 0o755), Entry::File("b", 0o640)],
        );
        let work = path("work");
        fs::create_dir(&work).unwrap();
        let unpacked = unpack(&package, &[first, second], &work).unwrap();
        let mode = |path: PathBuf| fs::symlink_metadata(path).unwrap().permissions().mode();
        let expected = |mode| mode_for(getuid(), mode);
        assert_eq!(mode(unpacked.task.join("bin/x")) & 0o7777, expected(0o711));
        assert_eq!(
            fs::read_link(unpacked.task.join("bootstrap")).unwrap(),
            Path::new("bin/x")
        );
        assert_eq!(mode(unpacked.opt.join("a")) & 0o777, expected(0o755));
        assert_eq!(mode(unpacked.opt.join("b")), 0o100_000 | expected(0o640));
    }

    #[test]
    fn the_function_has_the_rights_of_others() {
        for (mode, without_root) in [(0o600, 0o000), (0o644, 0o444), (0o755, 0o555)] {
            assert_eq!(mode_for(Uid::from_raw(0), mode), mode);
            assert_eq!(mode_for(Uid::from_raw(1000), mode), without_root);
        }
    }

    #[test]
    fn code_and_layers_are_counted_together() {
        let dir = tempfile::tempdir().unwrap();
        let big = |name: &str, size: u64| {
            let path = dir.path().join(name);
            let mut writer = zip::ZipWriter::new(File::create(&path).unwrap());
            writer
                .start_file("zeros", SimpleFileOptions::default())
                .unwrap();
            io::copy(&mut io::repeat(0).take(size), &mut writer).unwrap();
            writer.finish().unwrap();
            path
        };
        let (all, half) = (
            big("all.zip", limits::UNZIPPED.value),
            big("half.zip", 131_072_000),
        );
        let work = tempfile::tempdir().unwrap();
        let error = unpack(&all, &[], work.path()).unwrap_err().to_string();
        assert!(
            error.contains("Unzipped size must be smaller than 262144000 bytes"),
            "{error}"
        );
        let work = tempfile::tempdir().unwrap();
        let error = unpack(&half, std::slice::from_ref(&half), work.path())
            .unwrap_err()
            .to_string();
        assert!(
            error.ends_with("The actual size is 262144000 bytes."),
            "{error}"
        );
    }
}
