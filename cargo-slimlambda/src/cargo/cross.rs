//! What must be installed before Cargo can build for another target, found before it starts.
//!
//! Without this the user meets rustc's E0463 for a missing target and `ld`'s "file in wrong format"
//! for a missing linker; neither says what to do.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::plain_triple;
use crate::cli::{BuildArgs, Compiler};
use crate::event::{Event, Sink};

/// Makes sure that `target` can be compiled and linked for; installs the Rust target where rustup
/// can, and tells `cargo` of a cross linker where the user has not.
pub(super) fn prepare(
    cargo: &mut Command,
    args: &BuildArgs,
    target: &str,
    sink: Sink<'_>,
) -> anyhow::Result<()> {
    let triple = plain_triple(target);
    let zigbuild = args.cargo.compiler == Some(Compiler::CargoZigbuild);
    if triple != target && !zigbuild {
        return Err(crate::error::usage(format!(
            "a glibc version in `--target {target}` is understood by `cargo-zigbuild` alone\n\
             help: add `--compiler cargo-zigbuild`, or build for `{triple}`"
        )));
    }
    if zigbuild && program("cargo-zigbuild").is_none() {
        bail!(
            "`cargo-zigbuild` is not installed\n\
             help: `cargo install cargo-zigbuild` and `pip install ziglang`"
        );
    }
    let offline = args.cargo.offline || args.cargo.frozen;
    // Whoever builds the standard library has no use for a compiled one.
    let build_std = args
        .cargo
        .cargo_args
        .iter()
        .any(|arg| arg.to_string_lossy().contains("build-std"));
    if !triple.ends_with(".json") && !build_std {
        install_target(triple, offline, sink)?;
    }
    if !zigbuild && let Some(gcc) = cross_gcc(triple, &host()?) {
        let variable = format!(
            "CARGO_TARGET_{}_LINKER",
            triple.to_uppercase().replace('-', "_")
        );
        let told = std::env::var_os(&variable).is_some() || linker_configured(triple)?;
        if !told && program(&gcc).is_none() {
            bail!(
                "no linker for `{triple}`: `{gcc}` is not installed\n\
                 help: `apt-get install gcc-{}`, or add `--compiler cargo-zigbuild`",
                gcc.trim_end_matches("-gcc").replace('_', "-")
            );
        }
        if !told {
            cargo.env(variable, gcc);
        }
    }
    Ok(())
}

/// The host's triple.
pub(super) fn host() -> anyhow::Result<String> {
    let text = rustc(&["-vV"])?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` names no host")?.to_string())
}

pub(super) fn rustc(args: &[&str]) -> anyhow::Result<String> {
    let program = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(&program).args(args).output();
    let output = output.with_context(|| format!("failed to run `{}`", program.display()))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let text = stderr.trim();
        bail!("{}", text.strip_prefix("error: ").unwrap_or(text));
    }
    String::from_utf8(output.stdout).context("rustc's output is not UTF-8")
}

pub(super) fn install_target(triple: &str, offline: bool, sink: Sink<'_>) -> anyhow::Result<()> {
    let libdir = rustc(&["--print", "target-libdir", "--target", triple])?;
    if Path::new(libdir.trim()).is_dir() {
        return Ok(());
    }
    let missing =
        format!("the Rust target `{triple}` is not installed\nhelp: `rustup target add {triple}`");
    if offline || program("rustup").is_none() {
        bail!(missing);
    }
    sink(Event::Status {
        verb: "Installing",
        what: &format!("Rust target {triple}"),
    });
    let output = Command::new("rustup")
        .args(["target", "add", triple])
        .output();
    let output = output.context("failed to run `rustup`")?;
    if !output.status.success() {
        return Err(
            anyhow::anyhow!("{}", String::from_utf8_lossy(&output.stderr).trim()).context(missing),
        );
    }
    Ok(())
}

/// Debian's name of the C compiler that links for `triple` on `host`; `None` where the host's own does.
fn cross_gcc(triple: &str, host: &str) -> Option<String> {
    let (arch, rest) = triple.split_once('-')?;
    let same_arch = host.starts_with(&format!("{arch}-"));
    (!same_arch && rest == "unknown-linux-gnu").then(|| format!("{arch}-linux-gnu-gcc"))
}

/// Whether a Cargo configuration file names a linker for `triple`, or hands one to rustc.
fn linker_configured(triple: &str) -> anyhow::Result<bool> {
    let flags = ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"];
    if flags
        .iter()
        .filter_map(std::env::var_os)
        .any(|flags| flags.to_string_lossy().contains("linker="))
    {
        return Ok(true);
    }
    let cwd = std::env::current_dir().context("failed to find the current directory")?;
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let above = cwd.ancestors().map(|directory| directory.join(".cargo"));
    for directory in above.chain(home) {
        for name in ["config.toml", "config"] {
            let Ok(text) = std::fs::read_to_string(directory.join(name)) else {
                continue;
            };
            // Cargo itself reports a file that does not parse.
            let Ok(table) = text.parse::<toml::Table>() else {
                continue;
            };
            if names_linker(&table, triple) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn names_linker(config: &toml::Table, triple: &str) -> bool {
    let Some(targets) = config.get("target").and_then(toml::Value::as_table) else {
        return false;
    };
    let meant = targets
        .iter()
        .filter(|(key, _)| *key == triple || key.starts_with("cfg("));
    meant
        .filter_map(|(_, value)| value.as_table())
        .any(|table| {
            let rustflags = table.get("rustflags").map(toml::Value::to_string);
            table.contains_key("linker") || rustflags.is_some_and(|flags| flags.contains("linker="))
        })
}

/// A program by its name in `PATH`.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_cross_compiler_is_wanted_for_another_architecture_alone() {
        let (x86, arm) = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu");
        let cases = [
            (arm, x86, Some("aarch64-linux-gnu-gcc")),
            (x86, arm, Some("x86_64-linux-gnu-gcc")),
            (x86, x86, None),
            // musl links by itself.
            ("aarch64-unknown-linux-musl", x86, None),
        ];
        for (triple, host, gcc) in cases {
            assert_eq!(
                cross_gcc(triple, host).as_deref(),
                gcc,
                "{triple} on {host}"
            );
        }
    }

    #[test]
    fn a_linker_of_the_users_own_is_seen() {
        let triple = "aarch64-unknown-linux-gnu";
        let cases = [
            (
                "[target.aarch64-unknown-linux-gnu]\nlinker = \"clang\"",
                true,
            ),
            (
                "[target.aarch64-unknown-linux-gnu]\nrustflags = [\"-Clinker=clang\"]",
                true,
            ),
            (
                "[target.'cfg(target_arch = \"aarch64\")']\nrustflags = \"-C linker=clang\"",
                true,
            ),
            (
                "[target.aarch64-unknown-linux-gnu]\nrunner = \"qemu-aarch64\"",
                false,
            ),
            (
                "[target.x86_64-unknown-linux-gnu]\nlinker = \"clang\"",
                false,
            ),
            ("[build]\njobs = 1", false),
        ];
        for (config, seen) in cases {
            assert_eq!(
                names_linker(&config.parse().unwrap(), triple),
                seen,
                "{config}"
            );
        }
    }
}
