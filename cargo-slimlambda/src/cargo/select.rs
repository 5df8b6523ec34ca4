//! Which binaries of a workspace the flags mean.

use anyhow::bail;
use cargo_metadata::{Metadata, Package};

use super::manifest;
use crate::cli::ChoiceArgs;

/// A binary that is to be built.
#[derive(Debug, Clone, Copy)]
pub struct Selected<'m> {
    /// The package it belongs to.
    pub package: &'m Package,
    /// Its name.
    pub bin: &'m str,
}

/// The package whose directory the user is in (or named by `--manifest-path`), if it is one.
pub fn current_package<'m>(
    metadata: &'m Metadata,
    choice: &ChoiceArgs,
) -> anyhow::Result<Option<&'m Package>> {
    let Some(manifest) = manifest(choice)?.and_then(|path| path.canonicalize().ok()) else {
        return Ok(None);
    };
    let same = |package: &&Package| {
        package
            .manifest_path
            .canonicalize()
            .is_ok_and(|path| path == manifest)
    };
    Ok(metadata.packages.iter().find(same))
}

/// The binaries that the flags mean, as Cargo would choose: of the named packages, else of the one
/// in the current directory, else of the workspace's default members.
///
/// # Errors
///
/// No such package or binary, no binary at all, or two of one name.
pub fn select<'m>(
    metadata: &'m Metadata,
    choice: &ChoiceArgs,
) -> anyhow::Result<Vec<Selected<'m>>> {
    let packages = packages(metadata, choice)?;
    let of = |package: &'m Package| {
        let bins = package.targets.iter().filter(|target| target.is_bin());
        bins.map(move |target| Selected {
            package,
            bin: &target.name,
        })
    };
    let all: Vec<Selected<'_>> = packages.iter().flat_map(|package| of(package)).collect();
    if all.is_empty() {
        let names: Vec<&str> = packages
            .iter()
            .map(|package| package.name.as_str())
            .collect();
        bail!(
            "no binary to build in {}\nhelp: a function is a binary: add `src/main.rs` or a `[[bin]]` table, or choose a package with `-p`",
            listed(&names)
        );
    }
    let mut selected = all.clone();
    if !choice.bin.is_empty() {
        for wanted in &choice.bin {
            if !all.iter().any(|one| matches(wanted, one.bin)) {
                let names: Vec<&str> = all.iter().map(|one| one.bin).collect();
                return Err(crate::error::usage(format!(
                    "no binary is named `{wanted}`\nhelp: {}",
                    there_are(&names)
                )));
            }
        }
        selected.retain(|one| choice.bin.iter().any(|wanted| matches(wanted, one.bin)));
    }
    selected.sort_by_key(|one| one.bin);
    if let Some(pair) = selected.windows(2).find(|pair| pair[0].bin == pair[1].bin) {
        bail!(
            "two binaries are named `{}`: in `{}` and in `{}`\nhelp: choose one package with `-p`",
            pair[0].bin,
            pair[0].package.name,
            pair[1].package.name
        );
    }
    Ok(selected)
}

/// The one binary that `invoke` means: the only one, or the package's `default-run`.
///
/// # Errors
///
/// As [`select`]; and where several are left.
pub fn select_one<'m>(metadata: &'m Metadata, choice: &ChoiceArgs) -> anyhow::Result<Selected<'m>> {
    let selected = select(metadata, choice)?;
    let default_run = |one: &&Selected<'_>| one.package.default_run.as_deref() == Some(one.bin);
    match (
        selected.as_slice(),
        selected
            .iter()
            .filter(default_run)
            .collect::<Vec<_>>()
            .as_slice(),
    ) {
        ([one], _) => Ok(*one),
        (_, [one]) => Ok(**one),
        (several, _) => {
            let names: Vec<&str> = several.iter().map(|one| one.bin).collect();
            Err(crate::error::usage(format!(
                "which binary? {}\nhelp: name one, or set `default-run` in `[package]`",
                there_are(&names)
            )))
        }
    }
}

fn packages<'m>(metadata: &'m Metadata, choice: &ChoiceArgs) -> anyhow::Result<Vec<&'m Package>> {
    let members = metadata.workspace_packages();
    if choice.workspace {
        return Ok(members);
    }
    if choice.package.is_empty() {
        if let Some(package) = current_package(metadata, choice)? {
            return Ok(vec![package]);
        }
        let default = &metadata.workspace_default_members;
        return Ok(if default.is_available() {
            metadata.workspace_default_packages()
        } else {
            members
        });
    }
    let mut packages = Vec::new();
    for spec in &choice.package {
        // `name`, `name@1.2.3`, a glob of names, or the URL that `cargo pkgid` prints.
        let name = spec.split('@').next().unwrap_or(spec);
        let meant = |package: &&&Package| matches(name, &package.name) || package.id.repr == *spec;
        let found: Vec<&Package> = members.iter().filter(meant).copied().collect();
        if found.is_empty() {
            let names: Vec<&str> = members
                .iter()
                .map(|package| package.name.as_str())
                .collect();
            bail!(
                "no package of the workspace is named `{spec}`\nhelp: {}",
                there_are(&names)
            );
        }
        packages.extend(found);
    }
    Ok(packages)
}

/// Cargo takes globs where it takes names.
fn matches(pattern: &str, name: &str) -> bool {
    pattern == name || glob::Pattern::new(pattern).is_ok_and(|pattern| pattern.matches(name))
}

fn there_are(names: &[&str]) -> String {
    let verb = if names.len() == 1 { "is" } else { "are" };
    format!("there {verb} {}", listed(names))
}

fn listed(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}
