//! The payloads: which files of which wheels. A payload is unpacked once, and its digest is kept beside it, so that a later
//! run notices when it has been touched.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use cargo_slimlambda::elf::image::Image;
use cargo_slimlambda::elf::strip::{Stripped, strip};
use clap::ValueEnum;

use super::tree::{self, Digest};
use super::wheels::{self, Wheel};

/// A set of files to pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Payload {
    /// TensorFlow 1.12, Keras, SciPy and what they need: 536 MB
    Tf112,
    /// The same, its ELF files stripped by us
    Tf112Stripped,
    /// OpenCV and ONNX Runtime, nearly all native libraries: 224 MB
    Cvort,
    /// The native libraries of ONNX Runtime alone: 60 MB
    Ort,
    /// A sentence model's fp32 weights: 91 MB
    Fp32,
    /// 20,000 different small files: sources, headers, JSON, YAML
    Small,
    /// Pictures, fonts, archives: compressed already
    Media,
    /// As cvort, for AArch64
    CvortAarch64,
    /// TensorFlow 2.10 for AArch64: 860 MB
    TfAarch64,
}

/// A payload that lies on disk.
#[derive(Debug)]
pub struct Unpacked {
    /// Which.
    pub payload: Payload,
    /// Its files.
    pub root: PathBuf,
    /// What they are.
    pub digest: Digest,
}

/// Number of files in [`Payload::Small`].
const SMALL_FILES: usize = 20_000;
/// Bytes in the largest of them.
const SMALL: u64 = 32 << 10;
/// Their kinds: text that programs are shipped with.
const TEXT: [&str; 11] = [
    "c", "h", "hpp", "json", "md", "ps1", "py", "pyi", "rst", "yaml", "yml",
];
/// What is compressed by its own format.
const COMPRESSED: [&str; 9] = [
    "bz2", "gif", "gz", "jpeg", "jpg", "png", "woff", "woff2", "zip",
];

impl Payload {
    /// The word that `--payload` takes.
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The wheels whose files it has.
    fn sources(self) -> Vec<&'static Wheel> {
        let groups: &[&'static [Wheel]] = match self {
            Payload::Tf112 | Payload::Tf112Stripped => &[wheels::TF112],
            Payload::Cvort => &[wheels::CVORT],
            Payload::Ort => &[wheels::ORT],
            Payload::Fp32 => &[wheels::MODEL],
            Payload::Small => &[wheels::TEXTS, wheels::TF112, wheels::CVORT],
            Payload::Media => &[wheels::PICTURES],
            Payload::CvortAarch64 => &[wheels::CVORT_AARCH64],
            Payload::TfAarch64 => &[wheels::TF_AARCH64],
        };
        groups.iter().copied().flatten().collect()
    }

    /// The wheels that are files of it.
    fn whole(self) -> &'static [Wheel] {
        match self {
            Payload::Media => wheels::WHOLE,
            _ => &[],
        }
    }

    fn wants(self, path: &Path, bytes: u64) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let kind = path.extension().unwrap_or_default().to_string_lossy();
        match self {
            Payload::Tf112
            | Payload::Tf112Stripped
            | Payload::Cvort
            | Payload::CvortAarch64
            | Payload::TfAarch64 => true,
            Payload::Ort => kind == "so" || name.contains(".so."),
            Payload::Fp32 => name == "model.safetensors",
            Payload::Small => (1..=SMALL).contains(&bytes) && TEXT.contains(&&*kind),
            Payload::Media => COMPRESSED.contains(&&*kind.to_lowercase()),
        }
    }
}

/// Fetches the payload's wheels and unpacks them, or finds it unpacked.
pub fn prepare(base: &Path, payload: Payload) -> anyhow::Result<Unpacked> {
    let cache = base.join("wheels");
    let wheels: Vec<&Wheel> = payload
        .sources()
        .into_iter()
        .chain(payload.whole())
        .collect();
    wheels::fetch(&cache, &wheels)?;
    let name = payload.name();
    let root = base.join("trees").join(&name);
    let note = root.with_extension("digest");
    // What strip makes depends on this program.
    if payload == Payload::Tf112Stripped || !note.exists() {
        eprintln!("unpacking {name}");
        tree::remove(&root)?;
        unpack(&cache, payload, &root)?;
        tree::settle(&root)?;
        let digest = tree::digest(&root)?;
        fs::write(&note, digest.contents + &digest.modes)
            .with_context(|| format!("failed to write `{}`", note.display()))?;
    }
    let digest = tree::digest(&root)?;
    let expected = fs::read_to_string(&note)
        .with_context(|| format!("failed to read `{}`", note.display()))?;
    if expected != digest.contents.clone() + &digest.modes {
        bail!(
            "`{}` is not as it was unpacked\nhelp: delete `{}`, and it is unpacked again",
            root.display(),
            note.display()
        );
    }
    Ok(Unpacked {
        payload,
        root,
        digest,
    })
}

fn unpack(cache: &Path, payload: Payload, root: &Path) -> anyhow::Result<()> {
    let mut texts = Vec::new();
    for wheel in payload.sources() {
        each_file(&cache.join(wheel.file), |path, bytes, executable| {
            if !payload.wants(path, bytes.len() as u64) {
                return Ok(());
            }
            match payload {
                Payload::Small => {
                    texts.push((path.to_owned(), bytes));
                    Ok(())
                }
                Payload::Tf112Stripped => {
                    tree::write(&root.join(path), &stripped(bytes), executable)
                }
                _ => tree::write(&root.join(path), &bytes, executable),
            }
        })?;
    }
    for wheel in payload.whole() {
        let path = cache.join(wheel.file);
        let bytes =
            fs::read(&path).with_context(|| format!("failed to read `{}`", path.display()))?;
        tree::write(&root.join("wheels").join(wheel.file), &bytes, false)?;
    }
    if payload == Payload::Small {
        small(texts, root)?;
    }
    Ok(())
}

/// Those of the files, no two alike, whose digests come first.
fn small(texts: Vec<(PathBuf, Vec<u8>)>, root: &Path) -> anyhow::Result<()> {
    let mut chosen: Vec<(blake3::Hash, PathBuf, Vec<u8>)> = texts
        .into_iter()
        .map(|(path, bytes)| (blake3::hash(&bytes), path, bytes))
        .collect();
    chosen.sort_by(|a, b| (a.0.as_bytes(), &a.1).cmp(&(b.0.as_bytes(), &b.1)));
    chosen.dedup_by(|a, b| a.0 == b.0);
    // A path that two wheels have.
    let mut paths = HashSet::new();
    chosen.retain(|(_, path, _)| paths.insert(path.clone()));
    if chosen.len() < SMALL_FILES {
        bail!(
            "the wheels have {} small files, expected {SMALL_FILES}",
            chosen.len()
        );
    }
    chosen[..SMALL_FILES]
        .iter()
        .try_for_each(|(_, path, bytes)| tree::write(&root.join(path), bytes, false))
}

/// Calls `visit` with each file of a wheel: its path, its bytes, and whether it is executable.
fn each_file(
    wheel: &Path,
    mut visit: impl FnMut(&Path, Vec<u8>, bool) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let broken = || format!("failed to read `{}`", wheel.display());
    let file = File::open(wheel).with_context(broken)?;
    let mut archive = zip::ZipArchive::new(file).with_context(broken)?;
    for at in 0..archive.len() {
        let mut entry = archive.by_index(at).with_context(broken)?;
        if entry.is_dir() {
            continue;
        }
        let path = entry
            .enclosed_name()
            .with_context(|| format!("an entry of `{}` leads out of it", wheel.display()))?;
        let executable = entry.unix_mode().is_some_and(|mode| mode & 0o111 != 0);
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).with_context(broken)?;
        visit(&path, bytes, executable)?;
    }
    Ok(())
}

fn stripped(bytes: Vec<u8>) -> Vec<u8> {
    match Image::parse(&bytes).map(|image| strip(&image)) {
        Ok(Stripped::Smaller(smaller)) => smaller,
        _ => bytes,
    }
}
