//! Which of the host's files the function may see: what its runtime provides, and no more.
//!
//! (runtime, bootstrap) → files to copy and links to make. The host stands in for the runtime, so
//! versions may differ; what the runtime does not have is invisible, which is the point: a library
//! that happens to be on this machine does not hide that it is missing on Lambda.

use crate::elf::image::{Image, Machine};
use crate::elf::runtime::{self, Runtime};
use crate::elf::search::system_directories;
use anyhow::{Context, Result};
use goblin::elf::header::{EM_AARCH64, EM_X86_64};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The runtime's certificates, and where they are on other systems.
const CERTIFICATES: &[&str] = &[
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/ca-bundle.pem",
];

/// The machine of this program.
pub fn host() -> Machine {
    if cfg!(target_arch = "aarch64") {
        Machine::Aarch64
    } else {
        Machine::X86_64
    }
}

/// A private registration for binfmt_misc, if an emulator for this machine is installed.
pub fn emulator(machine: Machine) -> Option<String> {
    let emulator = find_program(&format!("qemu-{machine}-static"))?;
    let number = match machine {
        Machine::X86_64 => EM_X86_64,
        Machine::Aarch64 => EM_AARCH64,
    };
    let [low, high] = number.to_le_bytes();
    // Magic: ELF, 64 bit, little endian, ET_EXEC or ET_DYN, this machine (gABI chapter 4).
    let magic = format!(
        r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x{low:02x}\x{high:02x}"
    );
    let mask = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff";
    // F: the emulator is opened now, and need not be in the sandbox.
    Some(format!(
        ":qemu-{machine}-static:M::{magic}:{mask}:{}:F",
        emulator.display()
    ))
}

/// What a bootstrap is, as far as starting it is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bootstrap {
    /// An ELF file for a machine that Lambda has.
    Elf(Machine),
    /// A script and its interpreter.
    Script(PathBuf),
    /// Neither; executing it will tell.
    Other,
}

/// Looks at a bootstrap. A file that cannot be read is left to exec to judge.
pub fn recognise(bootstrap: &Path) -> Bootstrap {
    let head = head(bootstrap).unwrap_or_default();
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let words = String::from_utf8_lossy(line);
        let mut words = words.split_ascii_whitespace();
        let interpreter = match (words.next(), words.next()) {
            (Some("/usr/bin/env"), Some(program)) => format!("/bin/{program}"),
            (Some(path), _) => path.to_owned(),
            (None, _) => return Bootstrap::Other,
        };
        return Bootstrap::Script(PathBuf::from(interpreter));
    }
    let bytes = fs::read(bootstrap).unwrap_or_default();
    Image::parse(&bytes).map_or(Bootstrap::Other, |image| Bootstrap::Elf(image.machine))
}

/// Up to 256 bytes, the kernel's own look at a file (BINPRM_BUF_SIZE).
fn head(path: &Path) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    File::open(path)?.take(256).read_to_end(&mut head)?;
    Ok(head)
}

/// Why a bootstrap that is there cannot be executed, where its content explains it.
pub fn why_not_executable(bootstrap: &Path) -> Option<String> {
    let bytes = fs::read(bootstrap).ok()?;
    let image = Image::parse(&bytes).ok()?;
    if image.machine != host() {
        return Some(format!(
            "`bootstrap` is for {}, and this machine is {}\n\
             help: install an emulator (`apt-get install qemu-user-static`)",
            image.machine,
            host()
        ));
    }
    let interpreter = image.interpreter?;
    Some(format!("`bootstrap` wants the loader `{interpreter}`"))
}

/// What to put into the root.
#[derive(Debug, Default)]
pub struct Provided {
    /// Inside path (relative) → host path.
    pub files: BTreeMap<PathBuf, PathBuf>,
    /// Inside path (relative) → target.
    pub links: BTreeMap<PathBuf, PathBuf>,
    /// Sonames that the runtime has and this host has not.
    pub missing: Vec<String>,
}

/// Collects the runtime's libraries, the loader, /bin/sh, a script's interpreter and /etc.
pub fn collect(runtime: &Runtime, machine: Machine, bootstrap: &Bootstrap) -> Result<Provided> {
    let mut provided = Provided::default();
    let loader = Path::new(runtime::interpreters(machine)[0]);
    let loader_name = loader.file_name().unwrap_or_default();
    let rows = runtime.rows.iter();
    let sonames = rows.filter(|row| row.machines.contains(&machine));
    let mut sonames: Vec<_> = sonames.map(|row| row.soname).collect();
    sonames.extend(loader_name.to_str());
    sonames.sort_unstable();
    sonames.dedup();
    let directories = system_directories(machine);
    for soname in sonames {
        // The runtime's /lib64 is where its loader looks, and first in LD_LIBRARY_PATH.
        match find_library(soname, machine, &directories) {
            Some((path, _)) => drop(provided.files.insert(Path::new("lib64").join(soname), path)),
            None => provided.missing.push(soname.to_owned()),
        }
    }
    let inside = loader.strip_prefix("/").unwrap_or(loader);
    if !inside.starts_with("lib64") {
        let target = Path::new("/lib64").join(loader_name);
        provided.links.insert(inside.to_owned(), target);
    }
    // This host's loader may have other built-in directories than the runtime's.
    let multiarch = format!("{machine}-linux-gnu");
    for (inside, target) in [
        (format!("lib/{multiarch}"), "/lib64"),
        (format!("usr/lib/{multiarch}"), "/lib64"),
        ("usr/lib64".to_owned(), "/lib64"),
        ("usr/bin".to_owned(), "/bin"),
        ("etc/ssl/certs".to_owned(), "/etc/pki/tls/certs"),
        ("etc/pki/tls/cert.pem".to_owned(), "certs/ca-bundle.crt"),
        (
            "etc/pki/tls/certs/ca-certificates.crt".to_owned(),
            "ca-bundle.crt",
        ),
    ] {
        provided.links.insert(inside.into(), target.into());
    }
    program(&mut provided, Path::new("/bin/sh"))?;
    if let Bootstrap::Script(interpreter) = bootstrap {
        program(&mut provided, interpreter)?;
    }
    if let Some(bundle) = CERTIFICATES.iter().find(|path| Path::new(path).is_file()) {
        provided
            .files
            .insert("etc/pki/tls/certs/ca-bundle.crt".into(), bundle.into());
    }
    if Path::new("/etc/resolv.conf").is_file() {
        provided
            .files
            .insert("etc/resolv.conf".into(), "/etc/resolv.conf".into());
    }
    Ok(provided)
}

/// Adds a host program under its own path, with the libraries that it needs.
fn program(provided: &mut Provided, path: &Path) -> Result<()> {
    if !path.is_file() {
        return Ok(()); // exec will say that it is not there
    }
    let name = path.file_name().unwrap_or_default();
    let inside = match path.strip_prefix("/usr/bin") {
        Ok(_) => Path::new("bin").join(name),
        Err(_) => path.strip_prefix("/").unwrap_or(path).to_owned(),
    };
    provided.files.insert(inside, path.to_owned());
    let bytes = fs::read(path).with_context(|| format!("failed to read `{}`", path.display()))?;
    let directories = system_directories(host());
    let mut wanted = vec![bytes];
    while let Some(bytes) = wanted.pop() {
        let needed = Image::parse(&bytes).map_or_else(|_| Vec::new(), |image| image.needed);
        for soname in needed {
            let inside = Path::new("lib64").join(soname);
            if !provided.files.contains_key(&inside)
                && let Some((found, bytes)) = find_library(soname, host(), &directories)
            {
                provided.files.insert(inside, found);
                wanted.push(bytes);
            }
        }
    }
    Ok(())
}

/// Path and bytes of the first library of this name that is for the machine.
fn find_library(
    soname: &str,
    machine: Machine,
    directories: &[PathBuf],
) -> Option<(PathBuf, Vec<u8>)> {
    directories
        .iter()
        .map(|directory| directory.join(soname))
        .filter_map(|path| fs::read(&path).ok().map(|bytes| (path, bytes)))
        .find(|(_, bytes)| Image::parse(bytes).is_ok_and(|image| image.machine == machine))
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

/// The small text files of /etc, as the runtime has them.
pub const TEXTS: &[(&str, &str)] = &[
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/bash\n\
         sbx_user1051:x:993:990::/home/sbx_user1051:/sbin/nologin\n",
    ),
    ("etc/group", "root:x:0:\nsbx_user1051:x:990:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n"),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files dns\n",
    ),
];

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn bootstraps_are_recognised() {
        let mut elf = vec![0; 64];
        elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        elf[18] = 183;
        let cases: &[(&[u8], Bootstrap)] = &[
            (b"#!/bin/sh\nexit", Bootstrap::Script("/bin/sh".into())),
            (b"#! /bin/bash -e\n", Bootstrap::Script("/bin/bash".into())),
            (
                b"#!/usr/bin/env bash\n",
                Bootstrap::Script("/bin/bash".into()),
            ),
            (b"#!", Bootstrap::Other),
            (b"", Bootstrap::Other),
            (b"\x7fELF\x02\x01", Bootstrap::Other),
            (&elf, Bootstrap::Elf(Machine::Aarch64)),
        ];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bootstrap");
        for (bytes, expected) in cases {
            fs::write(&path, bytes).unwrap();
            assert_eq!(recognise(&path), *expected);
        }
    }

    #[test]
    fn what_the_host_lacks_is_named() {
        let libc = runtime::PROVIDED_AL2023.row("libc.so.6", host()).unwrap();
        let nobody = |soname, machine: &'static [Machine]| runtime::Row {
            soname,
            machines: machine,
            ..*libc
        };
        let other: &'static [Machine] = match host() {
            Machine::X86_64 => &[Machine::Aarch64],
            Machine::Aarch64 => &[Machine::X86_64],
        };
        let rows = vec![
            *libc,
            nobody("libnobody.so.7", libc.machines),
            nobody("libother.so.7", other),
        ];
        let runtime = Runtime {
            name: "test",
            rows: rows.leak(),
        };
        let provided = collect(&runtime, host(), &Bootstrap::Other).unwrap();
        assert!(provided.files.contains_key(Path::new("lib64/libc.so.6")));
        assert_eq!(provided.missing, ["libnobody.so.7"]);
    }
}
