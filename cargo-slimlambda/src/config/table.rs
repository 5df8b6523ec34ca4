//! The tables of one `Cargo.toml`, read with their places so that an error can point at its line.
//!
//! Cargo has parsed the file before, so only what is under `metadata` can be wrong here. Our own
//! tables refuse unknown keys; of cargo-lambda's we take what means the same and pass over the rest.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_spanned::Spanned;

use super::{AssetSpec, EPHEMERAL_STORAGE, Level, MEMORY, Placement, Runtime, TIMEOUT, diagnostic};

/// One source of settings, still without defaults.
#[derive(Debug, Default)]
pub(super) struct Layer {
    pub runtime: Option<Runtime>,
    /// Each with the placement it asks for itself.
    pub assets: Option<Vec<(AssetSpec, Option<Placement>)>>,
    pub libraries: Option<Vec<String>>,
    pub library_path: Option<Vec<PathBuf>>,
    pub strip: Option<Strip>,
    pub placement: Option<Placement>,
    pub level: Option<Level>,
    pub memory: Option<u32>,
    pub ephemeral_storage: Option<u32>,
    pub timeout: Option<u32>,
    pub target: Option<String>,
}

impl Layer {
    /// What `self` says, and what `under` says where `self` says nothing.
    pub fn over(self, under: Layer) -> Layer {
        Layer {
            runtime: self.runtime.or(under.runtime),
            assets: self.assets.or(under.assets),
            libraries: self.libraries.or(under.libraries),
            library_path: self.library_path.or(under.library_path),
            strip: self.strip.or(under.strip),
            placement: self.placement.or(under.placement),
            level: self.level.or(under.level),
            memory: self.memory.or(under.memory),
            ephemeral_storage: self.ephemeral_storage.or(under.ephemeral_storage),
            timeout: self.timeout.or(under.timeout),
            target: self.target.or(under.target),
        }
    }
}

/// What one manifest says about one binary.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// From our own table.
    pub own: Layer,
    /// From cargo-lambda's.
    pub foreign: Layer,
}

/// A manifest's text and where it is.
pub(super) struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    pub fn read(path: &Path) -> anyhow::Result<Source> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("failed to read `{}`", path.display()))?;
        Ok(Source {
            path: path.to_path_buf(),
            text,
        })
    }

    /// The `[package.metadata.…]` tables, those of `bin` laid over the common ones. `bins` are the
    /// names that may have a table.
    pub fn package(&self, bin: &str, bins: &[&str]) -> anyhow::Result<Tables> {
        self.tables(self.parse()?.package, bin, bins)
    }

    /// The `[workspace.metadata.…]` tables, likewise.
    pub fn workspace(&self, bin: &str, bins: &[&str]) -> anyhow::Result<Tables> {
        self.tables(self.parse()?.workspace, bin, bins)
    }

    fn parse(&self) -> anyhow::Result<Document> {
        toml::from_str(&self.text).map_err(|error| {
            let (message, help) = explain(error.message());
            self.error(error.span().unwrap_or_default(), &message, help.as_deref())
        })
    }

    fn error(&self, span: Range<usize>, message: &str, help: Option<&str>) -> anyhow::Error {
        crate::error::usage(diagnostic::render(
            &self.path, &self.text, span, message, help,
        ))
    }

    fn tables(&self, section: Option<Section>, bin: &str, bins: &[&str]) -> anyhow::Result<Tables> {
        let Some(metadata) = section.and_then(|section| section.metadata) else {
            return Ok(Tables::default());
        };
        Ok(Tables {
            own: self.own(metadata.slimlambda.unwrap_or_default(), bin, bins)?,
            foreign: self.foreign(metadata.lambda.unwrap_or_default(), bin)?,
        })
    }

    fn own(&self, table: OwnTable, bin: &str, bins: &[&str]) -> anyhow::Result<Layer> {
        let mut layer = Layer::default();
        for (name, mut table) in table.bin.clone() {
            if !bins.contains(&name.get_ref().as_str()) {
                let help = nearest(name.get_ref(), bins)
                    .map(|near| format!("did you mean `{near}`?"))
                    .unwrap_or_else(|| format!("there are {}", backticked(bins)));
                let message = format!("no binary is named `{}`", name.get_ref());
                return Err(self.error(name.span(), &message, Some(&help)));
            }
            if let Some((inner, _)) = table.bin.pop_first() {
                return Err(self.error(
                    inner.span(),
                    "a binary's table holds no `bin` itself",
                    None,
                ));
            }
            let own = self.layer(table)?;
            if name.get_ref() == bin {
                layer = own;
            }
        }
        Ok(layer.over(self.layer(table)?))
    }

    fn layer(&self, table: OwnTable) -> anyhow::Result<Layer> {
        let directory = self.path.parent().unwrap_or(Path::new(""));
        // A bare name is a soname; what has a slash is a path, and those start at the manifest.
        let library = |name: String| match name.contains('/') {
            true => directory.join(name).to_string_lossy().into_owned(),
            false => name,
        };
        let assets = table
            .assets
            .map(|assets| assets.into_iter().map(|asset| self.asset(asset)).collect())
            .transpose()?;
        Ok(Layer {
            runtime: table.runtime,
            assets,
            libraries: table
                .libraries
                .map(|names| names.into_iter().map(library).collect()),
            library_path: table
                .library_path
                .map(|paths| paths.into_iter().map(|path| directory.join(path)).collect()),
            strip: table.strip,
            placement: table.placement,
            level: table.level,
            memory: self.within("memory", "MiB", table.memory, MEMORY)?,
            ephemeral_storage: self.within(
                "ephemeral-storage",
                "MiB",
                table.ephemeral_storage,
                EPHEMERAL_STORAGE,
            )?,
            timeout: self.within("timeout", "seconds", table.timeout, TIMEOUT)?,
            target: None,
        })
    }

    fn asset(&self, asset: Spanned<AssetTable>) -> anyhow::Result<(AssetSpec, Option<Placement>)> {
        let span = asset.span();
        let asset = asset.into_inner();
        let mode = match asset.mode {
            None => None,
            Some(mode) => match parse_mode(mode.get_ref()) {
                Some(bits) => Some(bits),
                None => {
                    let message = format!("`{}` is not a file mode", mode.get_ref());
                    let help = "write permission bits in octal, from \"0000\" to \"0777\"";
                    return Err(self.error(mode.span(), &message, Some(help)));
                }
            },
        };
        if asset.lazy && asset.placement == Some(Placement::Inline) {
            let message = "a lazy asset cannot be placed inline";
            let help =
                "only what is in the archive is unpacked later: leave out `placement` or `lazy`";
            return Err(self.error(span, message, Some(help)));
        }
        let spec = AssetSpec {
            source: asset.source,
            base: self.directory(),
            dest: asset.dest,
            mode,
            placement: Placement::default(),
            lazy: asset.lazy,
            origin: self.origin(span.start),
        };
        Ok((spec, asset.placement))
    }

    /// cargo-lambda's table: `include`, `memory`, `timeout`, `runtime` and the target.
    fn foreign(&self, mut table: ForeignTable, bin: &str) -> anyhow::Result<Layer> {
        let own = table.bin.remove(bin).unwrap_or_default();
        Ok(self.foreign_layer(own)?.over(self.foreign_layer(table)?))
    }

    fn foreign_layer(&self, table: ForeignTable) -> anyhow::Result<Layer> {
        let ForeignTable { build, deploy, .. } = table;
        let include = match (build.include, deploy.include) {
            (None, None) => None,
            (build, deploy) => Some(
                build
                    .unwrap_or_default()
                    .into_iter()
                    .chain(deploy.unwrap_or_default()),
            ),
        };
        let target = match (build.arm64, build.x86_64) {
            (true, _) => Some("aarch64-unknown-linux-gnu".to_string()),
            (_, true) => Some("x86_64-unknown-linux-gnu".to_string()),
            _ => build.target,
        };
        Ok(Layer {
            runtime: deploy.runtime,
            assets: include.map(|paths| {
                paths
                    .map(|path| {
                        let origin = self.origin(path.span().start);
                        (
                            include_spec(path.get_ref(), &self.directory(), &origin),
                            None,
                        )
                    })
                    .collect()
            }),
            memory: self.within("memory", "MiB", deploy.memory, MEMORY)?,
            timeout: self.within("timeout", "seconds", deploy.timeout, TIMEOUT)?,
            target,
            ..Layer::default()
        })
    }

    fn within(
        &self,
        key: &str,
        unit: &str,
        value: Option<Spanned<i64>>,
        (low, high): (u32, u32),
    ) -> anyhow::Result<Option<u32>> {
        let Some(value) = value else { return Ok(None) };
        match u32::try_from(*value.get_ref()) {
            Ok(number) if (low..=high).contains(&number) => Ok(Some(number)),
            _ => {
                let message = format!("`{key}` is {low} to {high} {unit}, not {}", value.get_ref());
                Err(self.error(value.span(), &message, None))
            }
        }
    }

    fn directory(&self) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).to_path_buf()
    }

    /// `Cargo.toml:12` for a byte offset.
    fn origin(&self, offset: usize) -> String {
        format!(
            "{}:{}",
            diagnostic::shown(&self.path),
            diagnostic::line(&self.text, offset)
        )
    }
}

/// cargo-lambda's `include`: `PATH`, or `DEST:PATH`.
pub(super) fn include_spec(text: &str, base: &Path, origin: &str) -> AssetSpec {
    let (dest, source) = match text.split_once(':') {
        Some((dest, source)) => (Some(dest.to_string()), source),
        None => (None, text),
    };
    AssetSpec {
        source: source.to_string(),
        base: base.to_path_buf(),
        dest,
        mode: None,
        placement: Placement::default(),
        lazy: false,
        origin: origin.to_string(),
    }
}

fn parse_mode(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let octal = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    u32::from_str_radix(digits, 8)
        .ok()
        .filter(|bits| octal && *bits <= 0o777)
}

#[derive(Deserialize)]
struct Document {
    package: Option<Section>,
    workspace: Option<Section>,
}

#[derive(Deserialize)]
struct Section {
    metadata: Option<MetadataTables>,
}

#[derive(Deserialize)]
struct MetadataTables {
    slimlambda: Option<OwnTable>,
    lambda: Option<ForeignTable>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[serde(expecting = "a table")]
struct OwnTable {
    runtime: Option<Runtime>,
    assets: Option<Vec<Spanned<AssetTable>>>,
    libraries: Option<Vec<String>>,
    library_path: Option<Vec<String>>,
    strip: Option<Strip>,
    placement: Option<Placement>,
    level: Option<Level>,
    memory: Option<Spanned<i64>>,
    ephemeral_storage: Option<Spanned<i64>>,
    timeout: Option<Spanned<i64>>,
    #[serde(default)]
    bin: BTreeMap<Spanned<String>, OwnTable>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[serde(expecting = "a table such as `{ source = \"models/*.onnx\" }`")]
struct AssetTable {
    source: String,
    dest: Option<String>,
    mode: Option<Spanned<String>>,
    placement: Option<Placement>,
    #[serde(default)]
    lazy: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ForeignTable {
    build: ForeignBuild,
    deploy: ForeignDeploy,
    bin: BTreeMap<String, ForeignTable>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ForeignBuild {
    include: Option<Vec<Spanned<String>>>,
    target: Option<String>,
    arm64: bool,
    x86_64: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ForeignDeploy {
    include: Option<Vec<Spanned<String>>>,
    memory: Option<Spanned<i64>>,
    timeout: Option<Spanned<i64>>,
    runtime: Option<Runtime>,
}

/// `strip = true`, `strip = false` or `strip = { exclude = ["libfoo.so*"] }`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Strip {
    pub on: bool,
    pub exclude: Vec<String>,
}

impl<'de> Deserialize<'de> for Strip {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Strip, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct StripTable {
            exclude: Vec<String>,
        }

        struct StripVisitor;
        impl<'de> Visitor<'de> for StripVisitor {
            type Value = Strip;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a boolean or a table such as `{ exclude = [\"libfoo.so*\"] }`")
            }

            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Strip, E> {
                Ok(Strip {
                    on,
                    exclude: Vec::new(),
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Strip, A::Error> {
                let table = StripTable::deserialize(de::value::MapAccessDeserializer::new(map))?;
                for pattern in &table.exclude {
                    glob::Pattern::new(pattern)
                        .map_err(|error| de::Error::custom(format!("`{pattern}`: {error}")))?;
                }
                Ok(Strip {
                    on: true,
                    exclude: table.exclude,
                })
            }
        }
        deserializer.deserialize_any(StripVisitor)
    }
}

impl<'de> Deserialize<'de> for Level {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Level, D::Error> {
        struct LevelVisitor;
        impl Visitor<'_> for LevelVisitor {
            type Value = Level;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`fast`, `balanced`, `best` or a number from 1 to 22")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Level, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Level, E> {
                text.parse()
                    .map_err(|expected| E::custom(format!("`{text}` is not a level: {expected}")))
            }
        }
        deserializer.deserialize_any(LevelVisitor)
    }
}

/// serde's message in the words of this project, and what may have been meant.
fn explain(message: &str) -> (String, Option<String>) {
    let kind = [("unknown field", "key"), ("unknown variant", "value")];
    for (serde, ours) in kind {
        if !message.starts_with(serde) {
            continue;
        }
        let mut quoted = message.split('`').skip(1).step_by(2);
        let Some(unknown) = quoted.next() else {
            continue;
        };
        let known: Vec<&str> = quoted.collect();
        let help = match nearest(unknown, &known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known {ours}s: {}", backticked(&known)),
        };
        return (format!("unknown {ours} `{unknown}`"), Some(help));
    }
    (message.to_string(), None)
}

fn backticked(names: &[&str]) -> String {
    names
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The name that is at most a third of its letters away.
fn nearest<'a>(wrong: &str, names: &[&'a str]) -> Option<&'a str> {
    let wrong = wrong.replace('_', "-");
    names
        .iter()
        .map(|name| (edits(&wrong, name), *name))
        .filter(|(edits, name)| *edits <= name.len().div_ceil(3))
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein distance in bytes.
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}
