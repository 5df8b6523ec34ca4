//! Where libraries are looked for: the dynamic loader's directories, in its order.
//!
//! Three deliberate differences from `ld.so(8)`. What build scripts linked from comes before the
//! system's directories. Directories that are relative to wherever the
//! process stands are left out, because a build must not depend on that. And the variants in
//! `glibc-hwcaps` are left out, because the build machine's processor is not Lambda's.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::closure::Shadow;
use super::image::{Image, Machine};
use super::runtime::LIBRARY_DIRECTORIES;

/// The directories that do not come from the files themselves.
#[derive(Debug, Clone, Default)]
pub struct SearchPath {
    /// In the place of `LD_LIBRARY_PATH`: `--library-path` and the configuration's.
    pub library_path: Vec<PathBuf>,
    /// What build scripts linked from. The loader knows nothing of these, so they come behind all that
    /// a file says itself; but what was linked against is meant rather than the system's.
    pub link_paths: Vec<PathBuf>,
    /// The system's, usually [`system_directories`].
    pub system: Vec<PathBuf>,
}

/// Which rule found a library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// `DT_RPATH` of the file named.
    Rpath(String),
    /// `--library-path` or the configuration's.
    LibraryPath,
    /// `DT_RUNPATH` of the file named.
    Runpath(String),
    /// A build script's directory.
    LinkPath,
    /// The system's directories.
    System,
    /// Its path was given.
    Path,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Found::Rpath(file) => write!(f, "rpath of `{file}`"),
            Found::LibraryPath => f.write_str("library path"),
            Found::Runpath(file) => write!(f, "runpath of `{file}`"),
            Found::LinkPath => f.write_str("link path of a build script"),
            Found::System => f.write_str("system"),
            Found::Path => f.write_str("given path"),
        }
    }
}

/// A directory to look in.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub found: Found,
    /// As it is written in the file or on the command line.
    pub said: String,
    pub directory: PathBuf,
}

/// What of a file decides where it has its libraries looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seeker<'s, 'a> {
    pub label: &'s str,
    /// `$ORIGIN`.
    pub origin: &'s Path,
    pub image: &'s Image<'a>,
}

/// All the places for what `chain[0]` needs, in order. `chain` goes on with the file that
/// `chain[0]` was loaded for, and so on up to the executable: a runpath is for a file's own needs,
/// an rpath also for the needs of those below, unless the file with the need has a runpath.
pub(super) fn places(chain: &[Seeker<'_, '_>], search: &SearchPath) -> Vec<Place> {
    let Some(needer) = chain.first() else {
        return Vec::new();
    };
    let mut places = Vec::new();
    if needer.image.runpath.is_none() {
        for seeker in chain.iter().filter(|seeker| seeker.image.runpath.is_none()) {
            let found = Found::Rpath(seeker.label.to_owned());
            places.extend(expanded(seeker, seeker.image.rpath, &found));
        }
    }
    let given = |found: Found| {
        move |directory: &PathBuf| Place {
            found: found.clone(),
            said: directory.display().to_string(),
            directory: directory.clone(),
        }
    };
    places.extend(search.library_path.iter().map(given(Found::LibraryPath)));
    places.extend(expanded(
        needer,
        needer.image.runpath,
        &Found::Runpath(needer.label.to_owned()),
    ));
    places.extend(search.link_paths.iter().map(given(Found::LinkPath)));
    places.extend(search.system.iter().map(given(Found::System)));
    places
}

/// What in the rpaths that hold for `chain[0]` (see [`places`]) leads to the runtime's libraries in
/// front of the package's own.
pub(super) fn shadow(chain: &[Seeker<'_, '_>]) -> Option<Shadow> {
    let (root, needer) = (chain.last()?, chain.first()?);
    if needer.image.runpath.is_some() {
        return None;
    }
    for seeker in chain.iter().filter(|seeker| seeker.image.runpath.is_none()) {
        // Where the file is in the package, not on this machine.
        let origin = match seeker.label == root.label {
            true => "/package/bin",
            false => "/package/lib",
        };
        let list = seeker.image.rpath.unwrap_or_default();
        for said in list.split(':') {
            for directory in expand(said, Path::new(origin), seeker.image.machine) {
                let directory = plain(&directory);
                if directory == Path::new("/package/lib") {
                    return None;
                }
                if LIBRARY_DIRECTORIES
                    .iter()
                    .any(|one| directory == Path::new(one))
                {
                    return Some(Shadow {
                        file: seeker.label.to_owned(),
                        directory: said.to_owned(),
                    });
                }
            }
        }
    }
    None
}

/// A path without `.` and `..`, as if there were no symlinks.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

fn expanded(seeker: &Seeker<'_, '_>, list: Option<&str>, found: &Found) -> Vec<Place> {
    let mut places = Vec::new();
    for said in list.unwrap_or_default().split(':') {
        for directory in expand(said, seeker.origin, seeker.image.machine) {
            places.push(Place {
                found: found.clone(),
                said: said.to_owned(),
                directory,
            });
        }
    }
    places
}

/// Replaces `$ORIGIN`, `$LIB` and `$PLATFORM`, braced or not; what is then not absolute yields
/// nothing. `$LIB` is whatever the distribution's loader was built with, so all three are tried.
fn expand(path: &str, origin: &Path, machine: Machine) -> Vec<PathBuf> {
    let multiarch = format!("lib/{machine}-linux-gnu");
    let mut libs = vec![multiarch.as_str(), "lib64", "lib"];
    if !path.contains("$LIB") && !path.contains("${LIB}") {
        libs.truncate(1);
    }
    let origin = origin.to_string_lossy();
    libs.into_iter()
        .map(|lib| {
            let mut text = path.to_owned();
            for (token, value) in [
                ("ORIGIN", origin.as_ref()),
                ("LIB", lib),
                ("PLATFORM", machine.as_str()),
            ] {
                text = text.replace(&format!("${{{token}}}"), value);
                text = text.replace(&format!("${token}"), value);
            }
            PathBuf::from(text)
        })
        .filter(|path| path.is_absolute())
        .collect()
}

/// The system's library directories for a machine: those of `/etc/ld.so.conf` first, as `ldconfig`
/// has them, then the built-in ones of Fedora's and Debian's loaders and Debian's for other machines.
/// That some are for the wrong machine does no harm: the files say what they are.
pub fn system_directories(machine: Machine) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    read_conf(Path::new("/etc/ld.so.conf"), 0, &mut directories);
    let triple = format!("{machine}-linux-gnu");
    for pattern in [
        "/lib/{}",
        "/usr/lib/{}",
        "/lib64",
        "/usr/lib64",
        "/lib",
        "/usr/lib",
        "/usr/{}/lib",
    ] {
        directories.push(PathBuf::from(pattern.replace("{}", &triple)));
    }
    let mut seen = Vec::new();
    directories.retain(|directory| {
        let new = directory.is_dir() && !seen.contains(directory);
        if new {
            seen.push(directory.clone());
        }
        new
    });
    directories
}

/// One file of `ld.so.conf(5)`; what cannot be read is left out, as `ldconfig` does. Inclusion
/// deeper than `ldconfig`'s users have ever needed is taken for a cycle.
fn read_conf(path: &Path, depth: u32, directories: &mut Vec<PathBuf>) {
    let Ok(text) = fs::read_to_string(path) else {
        return;
    };
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(patterns) = line
            .strip_prefix("include ")
            .or(line.strip_prefix("include\t"))
        {
            for pattern in patterns.split_whitespace().filter(|_| depth < 8) {
                let pattern = path.parent().unwrap_or(Path::new("/")).join(pattern);
                let files = glob::glob(&pattern.to_string_lossy()).into_iter().flatten();
                for file in files.filter_map(Result::ok) {
                    read_conf(&file, depth + 1, directories);
                }
            }
        } else if line.starts_with('/') {
            // `directory=libc6` is an old way to name the kind of library.
            let directory = line.split('=').next().unwrap_or_default().trim_end();
            directories.push(PathBuf::from(directory));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_expanded_and_relative_directories_left_out() {
        let cases: &[(&str, &[&str])] = &[
            ("$ORIGIN/../lib", &["/app/bin/../lib"]),
            ("${ORIGIN}", &["/app/bin"]),
            ("/opt/$PLATFORM/x", &["/opt/aarch64/x"]),
            (
                "/usr/${LIB}",
                &["/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"],
            ),
            ("/a/$OTHER", &["/a/$OTHER"]),
            ("lib", &[]),
            ("", &[]),
        ];
        for (path, expected) in cases {
            let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(
                expand(path, Path::new("/app/bin"), Machine::Aarch64),
                expected,
                "{path}"
            );
        }
    }

    #[test]
    fn ld_so_conf_is_followed_through_includes() {
        let dir = tempfile::tempdir().unwrap();
        let conf = dir.path().join("ld.so.conf");
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(
            &conf,
            "# first\n/one # why\ninclude d/*.conf\nhwcap 1 x\n/last=libc6\n",
        )
        .unwrap();
        fs::write(dir.path().join("d/b.conf"), "/three\n").unwrap();
        fs::write(dir.path().join("d/a.conf"), "\t/two\ninclude a.conf\n").unwrap();
        let mut directories = Vec::new();
        read_conf(&conf, 0, &mut directories);
        directories.dedup();
        let expected = ["/one", "/two", "/three", "/last"].map(PathBuf::from);
        assert_eq!(directories, expected);
    }
}
