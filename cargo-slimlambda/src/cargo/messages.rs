//! Cargo's JSON messages: what came out of a build, and where build scripts found native libraries.

use std::path::PathBuf;

use anyhow::Context;
use cargo_metadata::{Message, Metadata, PackageId};

use crate::event::{Event, Sink};

/// What a run of Cargo said it made.
#[derive(Default)]
pub(super) struct Output {
    pub executables: Vec<(PackageId, String, PathBuf)>,
    pub search_paths: Vec<PathBuf>,
    pub rlibs: Vec<(String, PathBuf)>,
}

pub(super) fn read(
    stdout: impl std::io::BufRead,
    metadata: &Metadata,
    sink: Sink<'_>,
) -> anyhow::Result<Output> {
    let mut output = Output::default();
    for message in Message::parse_stream(stdout) {
        match message.context("failed to read cargo's messages")? {
            Message::CompilerArtifact(artifact) => {
                if let (Some(path), true) = (artifact.executable, artifact.target.is_bin()) {
                    let (id, name) = (artifact.package_id.clone(), artifact.target.name);
                    output
                        .executables
                        .push((id, name, path.into_std_path_buf()));
                }
                let rlibs = artifact
                    .filenames
                    .into_iter()
                    .filter(|path| path.extension() == Some("rlib"));
                let package = package_label(&artifact.package_id);
                output
                    .rlibs
                    .extend(rlibs.map(|path| (package.clone(), path.into_std_path_buf())));
            }
            Message::BuildScriptExecuted(script) => {
                for path in &script.linked_paths {
                    // `native=…`, `dependency=…`; a relative one starts where rustc runs.
                    let path = path.as_str();
                    let path = path.split_once('=').map_or(path, |(_, path)| path);
                    let path = metadata.workspace_root.as_std_path().join(path);
                    if !output.search_paths.contains(&path) {
                        output.search_paths.push(path);
                    }
                }
            }
            // A proc macro's `println!`, most likely.
            Message::TextLine(line) => sink(Event::Note(&line)),
            _ => {}
        }
    }
    Ok(output)
}

/// `serde 1.0.228` from a package id: `registry+https://…#serde@1.0.228`, `path+file:///…/serde#1.0.228`
/// or, before Cargo 1.77, `serde 1.0.228 (registry+https://…)`.
fn package_label(id: &PackageId) -> String {
    match id.repr.rsplit_once('#') {
        Some((_, fragment)) if fragment.contains('@') => fragment.replace('@', " "),
        Some((url, version)) if !version.contains(' ') => {
            let path = url.split('?').next().unwrap_or(url);
            let name = path
                .trim_end_matches('/')
                .rsplit('/')
                .next()
                .unwrap_or(path);
            format!("{name} {version}")
        }
        _ => id.repr.split(' ').take(2).collect::<Vec<_>>().join(" "),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_package_id_of_any_cargo_tells_name_and_version() {
        let cases = [
            (
                "registry+https://github.com/rust-lang/crates.io-index#serde@1.0.228",
                "serde 1.0.228",
            ),
            ("path+file:///home/me/my-fn#0.1.0", "my-fn 0.1.0"),
            ("path+file:///home/me/dir#name@0.1.0", "name 0.1.0"),
            (
                "git+https://example.com/ort?rev=abc#2.0.0-rc.9",
                "ort 2.0.0-rc.9",
            ),
            (
                "serde 1.0.228 (registry+https://github.com/rust-lang/crates.io-index)",
                "serde 1.0.228",
            ),
        ];
        for (repr, label) in cases {
            assert_eq!(
                package_label(&PackageId {
                    repr: repr.to_string()
                }),
                label,
                "{repr}"
            );
        }
    }
}
