//! Real ELF files for the tests: compiled on the spot, read as the program reads them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_slimlambda::elf::image::{Image, Machine};
use cargo_slimlambda::elf::needed::{File, Object, SearchPath, system_directories};

/// What the tests' own machine compiles for.
pub const HOST: Machine = if cfg!(target_arch = "x86_64") {
    Machine::X86_64
} else {
    Machine::Aarch64
};

/// What it does not.
pub const FOREIGN: Machine = if cfg!(target_arch = "x86_64") {
    Machine::Aarch64
} else {
    Machine::X86_64
};

/// Writes `source` to `name` and compiles it to `output`; all paths are in `dir`. Arguments are
/// separated by spaces and come last, where libraries belong.
pub fn cc(dir: &Path, output: &str, source: &str, arguments: &str) {
    let name = format!("{}.c", output.replace('/', "_"));
    fs::write(dir.join(&name), source).unwrap();
    let output = dir.join(output);
    fs::create_dir_all(output.parent().unwrap()).unwrap();
    let result = Command::new("cc")
        .current_dir(dir)
        .args(["-fPIC", "-o"])
        .arg(&output)
        .arg(&name)
        .args(arguments.split_whitespace())
        .output()
        .expect("`cc` must be installed: these tests compile C");
    let said = String::from_utf8_lossy(&result.stderr);
    assert!(result.status.success(), "cc {name} {arguments}: {said}");
}

/// Reads a file the way a build does. The bytes live as long as the test program.
pub fn read(path: &Path) -> io::Result<File<'static>> {
    let bytes = fs::read(path)?;
    Ok(File {
        real: fs::canonicalize(path)?,
        bytes: bytes.leak(),
    })
}

/// A program as a closure's root.
pub fn object(path: PathBuf) -> Object<'static> {
    let file = read(&path).unwrap();
    Object {
        label: "bootstrap".to_owned(),
        path,
        real: file.real,
        image: Image::parse(file.bytes).unwrap(),
    }
}

/// The system's directories behind the ones given.
pub fn search_path(library_path: &[PathBuf]) -> SearchPath {
    SearchPath {
        library_path: library_path.to_vec(),
        link_paths: Vec::new(),
        system: system_directories(HOST),
    }
}

/// Copies an ELF file and makes it one for the other machine, in its header only.
pub fn copy_for_foreign_machine(from: &Path, to: &Path) {
    let mut bytes = fs::read(from).unwrap();
    // e_machine: gABI, "ELF Header"; EM_X86_64 is 62, EM_AARCH64 183.
    bytes[18..20].copy_from_slice(&match HOST {
        Machine::X86_64 => 183u16.to_le_bytes(),
        Machine::Aarch64 => 62u16.to_le_bytes(),
    });
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::write(to, bytes).unwrap();
}
