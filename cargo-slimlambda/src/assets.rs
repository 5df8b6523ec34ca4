//! The configuration's `assets` and `--include`, expanded into single files.
//!
//! A `source` is a file, a directory (taken with all below it) or a glob; a path that exists is
//! never read as a glob. A relative symlink stays one when what it points at comes along in the same
//! asset; any other is replaced by what it points at. Directories without files are left out, as
//! nothing in a package names them. Sorted by `dest`, so that no file system decides an order.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};

use crate::config::{AssetSpec, Placement};

/// Longest name of a file or directory, bytes (`NAME_MAX` of Linux).
const COMPONENT_MAX: usize = 255;

/// One file of the package that the configuration asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asset {
    /// Where its content is.
    pub source: PathBuf,
    /// Path in the package: relative, `/`-separated, without `.` and `..`.
    pub dest: String,
    /// Permission bits: as configured, else 0755 for what anyone may execute and 0644 for the rest.
    pub mode: u32,
    /// File or symlink.
    pub kind: Kind,
    /// Where it may go.
    pub placement: Placement,
    /// Unpacked on first use instead of at cold start.
    pub lazy: bool,
    /// Where this was asked for, for errors.
    pub origin: String,
    /// Number of the spec that it belongs to.
    pub spec: usize,
}

/// What an [`Asset`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
    },
    /// A symlink.
    Symlink {
        /// What it points at, relative to its own directory.
        target: String,
    },
}

/// What one spec found: source paths by `dest`.
#[derive(Default)]
struct Found {
    files: BTreeMap<String, PathBuf>,
    directories: BTreeMap<String, PathBuf>,
    links: BTreeMap<String, PathBuf>,
}

/// Expands every spec. Sorted by `dest`.
///
/// # Errors
///
/// A source that is missing, matches nothing or cannot be read; a `dest` that leaves the package, is
/// `bootstrap`, or is claimed by two different assets.
pub fn collect(specs: &[AssetSpec]) -> anyhow::Result<Vec<Asset>> {
    let mut assets: BTreeMap<String, Asset> = BTreeMap::new();
    for (number, spec) in specs.iter().enumerate() {
        let expanded =
            expand(spec).with_context(|| format!("asset `{}` ({})", spec.source, spec.origin))?;
        for mut asset in expanded {
            asset.spec = number;
            match assets.entry(asset.dest.clone()) {
                Entry::Vacant(vacant) => {
                    vacant.insert(asset);
                }
                Entry::Occupied(taken) if says_nothing_new(taken.get(), &asset, spec) => {}
                Entry::Occupied(taken) => bail!(two_for_one(taken.get(), &asset)),
            }
        }
    }
    for asset in assets.values() {
        let parents = asset
            .dest
            .match_indices('/')
            .map(|(slash, _)| &asset.dest[..slash]);
        if let Some(file) = parents.filter_map(|parent| assets.get(parent)).next() {
            bail!(
                "`{}` is a file and a directory of the package\n  file: `{}` ({})\n  below it: `{}` ({})",
                file.dest,
                file.source.display(),
                file.origin,
                asset.source.display(),
                asset.origin
            );
        }
    }
    Ok(assets.into_values().collect())
}

/// The same file named a second time, without any wish of its own: cargo-lambda's `include` beside
/// our `assets`, say.
fn says_nothing_new(first: &Asset, second: &Asset, spec: &AssetSpec) -> bool {
    let same = match (first.source.canonicalize(), second.source.canonicalize()) {
        (Ok(first), Ok(second)) => first == second,
        _ => false,
    };
    let no_wish = spec.mode.is_none() && !spec.lazy;
    let no_place = matches!(spec.placement, Placement::Auto) || spec.placement == first.placement;
    same && first.kind == second.kind && no_wish && no_place
}

fn two_for_one(first: &Asset, second: &Asset) -> String {
    format!(
        "two assets want to be `{}` in the package\n  first: `{}` ({})\n  second: `{}` ({})\n\
         help: give one of them another `dest`",
        first.dest,
        first.source.display(),
        first.origin,
        second.source.display(),
        second.origin
    )
}

fn expand(spec: &AssetSpec) -> anyhow::Result<Vec<Asset>> {
    let mut found = Found::default();
    for (source, dest) in roots(spec)? {
        walk(&source, &dest, &mut found)?;
    }
    let kept = resolve_links(&mut found)?;
    if found.files.is_empty() && kept.is_empty() {
        bail!("no file is in it");
    }
    let mut assets = Vec::with_capacity(found.files.len() + kept.len());
    for (dest, source) in found.files {
        let metadata = fs::metadata(&source).with_context(|| failed("read", &source))?;
        let executable = metadata.permissions().mode() & 0o111 != 0;
        let mode = spec.mode.unwrap_or(if executable { 0o755 } else { 0o644 });
        assets.push(asset(
            spec,
            source,
            dest,
            mode,
            Kind::File {
                size: metadata.len(),
            },
        )?);
    }
    for (dest, (source, target)) in kept {
        assets.push(asset(spec, source, dest, 0o777, Kind::Symlink { target })?);
    }
    Ok(assets)
}

fn asset(
    spec: &AssetSpec,
    source: PathBuf,
    dest: String,
    mode: u32,
    kind: Kind,
) -> anyhow::Result<Asset> {
    check_dest(&dest)?;
    let (placement, lazy, origin) = (spec.placement, spec.lazy, spec.origin.clone());
    Ok(Asset {
        source,
        dest,
        mode,
        kind,
        placement,
        lazy,
        origin,
        spec: 0,
    })
}

fn failed(what: &str, path: &Path) -> String {
    format!("failed to {what} `{}`", path.display())
}

/// The paths that `source` names, each with its own path in the package.
fn roots(spec: &AssetSpec) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let source = Path::new(&spec.source);
    let path = spec.base.join(source);
    match fs::symlink_metadata(&path) {
        Ok(_) => {
            let is_dir = fs::metadata(&path)
                .with_context(|| failed("read", &path))?
                .is_dir();
            let dest = match &spec.dest {
                None => package_path(source)?,
                Some(dest) if is_dir => package_path(Path::new(dest))?,
                Some(dest) if dest.ends_with('/') => {
                    join(&package_path(Path::new(dest))?, &file_name(source)?)
                }
                Some(dest) => package_path(Path::new(dest))?,
            };
            // What was named itself is followed: only a link below it can point at what comes along.
            let path = path.canonicalize().with_context(|| failed("read", &path))?;
            Ok(vec![(path, dest)])
        }
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| failed("read", &path))
        }
        Err(_) if spec.source.contains(['*', '?', '[']) => globbed(spec),
        Err(_) => bail!("no such file or directory: `{}`", path.display()),
    }
}

fn globbed(spec: &AssetSpec) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let source = Path::new(&spec.source);
    let literal: PathBuf = source
        .components()
        .take_while(|part| !part.as_os_str().to_string_lossy().contains(['*', '?', '[']))
        .collect();
    // A last `**` alone would match directories only; everywhere else it means what is in them.
    let last = if spec.source.ends_with("/**") || spec.source == "**" {
        "/*"
    } else {
        ""
    };
    // The base is a path even where it looks like a glob.
    let pattern = match source.is_absolute() {
        true => format!("{}{last}", spec.source),
        false => format!(
            "{}/{}{last}",
            glob::Pattern::escape(&utf8(&spec.base)?),
            spec.source
        ),
    };
    let under = match &spec.dest {
        Some(dest) => package_path(Path::new(dest))?,
        None => package_path(&literal)?,
    };
    let start = spec.base.join(&literal);
    let mut roots: Vec<(PathBuf, String)> = Vec::new();
    for path in glob::glob(&pattern).context("not a valid glob")? {
        let path = path.context("failed to read a directory")?;
        // `**` looks through links to directories; where the link itself matched, it stands for them.
        if path.ancestors().skip(1).any(|above| {
            roots
                .iter()
                .any(|(root, _)| root == above && root.is_symlink())
        }) {
            continue;
        }
        let rest = path
            .strip_prefix(&start)
            .with_context(|| failed("place", &path))?;
        roots.push((path.clone(), join(&under, &package_path(rest)?)));
    }
    if roots.is_empty() {
        bail!("the glob matches nothing in `{}`", start.display());
    }
    Ok(roots)
}

/// Takes `source` and what is below it; symlinks are only noted.
fn walk(source: &Path, dest: &str, found: &mut Found) -> anyhow::Result<()> {
    let kind = fs::symlink_metadata(source)
        .with_context(|| failed("read", source))?
        .file_type();
    let (dest, source) = (dest.to_string(), source.to_path_buf());
    if kind.is_symlink() {
        found.links.insert(dest, source);
    } else if kind.is_file() {
        found.files.insert(dest, source);
    } else if kind.is_dir() {
        for entry in fs::read_dir(&source).with_context(|| failed("read directory", &source))? {
            let path = entry
                .with_context(|| failed("read directory", &source))?
                .path();
            walk(&path, &join(&dest, &file_name(&path)?), found)?;
        }
        found.directories.insert(dest, source);
    } else {
        bail!(
            "`{}` is neither a file, a directory nor a symlink",
            source.display()
        );
    }
    Ok(())
}

/// Decides for each link: kept (returned, with its target) or replaced by what it points at.
fn resolve_links(found: &mut Found) -> anyhow::Result<BTreeMap<String, (PathBuf, String)>> {
    let mut kept = BTreeMap::new();
    // With each link, the directories that were entered through links to reach it.
    let mut open: Vec<(String, Vec<PathBuf>)> = found
        .links
        .keys()
        .map(|dest| (dest.clone(), Vec::new()))
        .collect();
    while let Some((dest, entered)) = open.pop() {
        let source = found.links[&dest].clone();
        let target = fs::read_link(&source).with_context(|| failed("read link", &source))?;
        let real = source
            .canonicalize()
            .with_context(|| format!("failed to follow symlink `{}`", source.display()))?;
        // In the package the link must lead to the very thing that it leads to here.
        let inside = beside(&dest, &target).and_then(|path| found.get(&path));
        if inside.is_some_and(|path| path.canonicalize().is_ok_and(|path| path == real)) {
            kept.insert(dest, (source, utf8(&target)?));
            continue;
        }
        if entered.iter().any(|directory| directory.starts_with(&real)) {
            bail!(
                "symlink `{}` leads back to `{}`",
                source.display(),
                real.display()
            );
        }
        let mut below = Found::default();
        walk(&real, &dest, &mut below)?;
        let entered = [entered, vec![real]].concat();
        open.extend(
            below
                .links
                .keys()
                .map(|dest| (dest.clone(), entered.clone())),
        );
        found.files.extend(below.files);
        found.directories.extend(below.directories);
        found.links.extend(below.links);
    }
    Ok(kept)
}

impl Found {
    fn get(&self, dest: &str) -> Option<&PathBuf> {
        let maps = [&self.files, &self.directories, &self.links];
        maps.into_iter().find_map(|map| map.get(dest))
    }
}

/// Where a link at `dest` points within the package; `None` if it is absolute or leaves it.
fn beside(dest: &str, target: &Path) -> Option<String> {
    let mut parts: Vec<&str> = dest.split('/').collect();
    parts.pop();
    for part in target.components() {
        match part {
            Component::Normal(name) => parts.push(name.to_str()?),
            Component::CurDir => {}
            Component::ParentDir => {
                parts.pop()?;
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

/// A relative path as it stands in the package; empty for the package's root.
fn package_path(path: &Path) -> anyhow::Result<String> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.push(utf8(Path::new(name))?),
            Component::CurDir => {}
            _ => bail!(
                "`{}` is not a path inside the package\nhelp: say where it goes with `dest` (or `--include DEST:PATH`)",
                path.display()
            ),
        }
    }
    Ok(parts.join("/"))
}

fn check_dest(dest: &str) -> anyhow::Result<()> {
    let reason = if dest.is_empty() {
        "is empty"
    } else if dest.contains(['\\', '\0', '\n']) {
        "holds a backslash, a NUL or a line break"
    } else if dest.split('/').any(|part| part.len() > COMPONENT_MAX) {
        "has a name of more than 255 bytes"
    } else if dest == "bootstrap" || dest.starts_with("bootstrap/") {
        "is what Lambda starts, and comes from the binary"
    } else if [crate::output::ZIP, runtime_unpack::format::FILE_NAME].contains(&dest) {
        "is an output of the build"
    } else {
        return Ok(());
    };
    bail!("path `{}` in the package {reason}", dest.escape_debug())
}

fn join(directory: &str, name: &str) -> String {
    match (directory.is_empty(), name.is_empty()) {
        (true, _) => name.to_string(),
        (_, true) => directory.to_string(),
        _ => format!("{directory}/{name}"),
    }
}

fn file_name(path: &Path) -> anyhow::Result<String> {
    utf8(Path::new(
        path.file_name().with_context(|| failed("name", path))?,
    ))
}

fn utf8(path: &Path) -> anyhow::Result<String> {
    let text = path
        .to_str()
        .with_context(|| format!("`{}` is not valid UTF-8", path.display()))?;
    Ok(text.to_string())
}
