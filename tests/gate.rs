//! A package that would not start on Lambda, or not fit, is an error here: exit 100, what is wrong, and nothing written.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use snapbox::{assert_data_eq, str};

use crate::elf_tools::{HOST, cc, copy_for_foreign_machine};
use crate::function::{Function, RUNTIME_API, Ran, function, project};
use crate::project::manifest;

/// What a build that must fail at a gate says, with directories taken out.
fn refused(function: &Function, args: &[&str], directories: &[(&Path, &str)]) -> String {
    let ran = function.try_build(&[&["--quiet"], args].concat());
    told(function, &ran, directories)
}

fn told(function: &Function, ran: &Ran, directories: &[(&Path, &str)]) -> String {
    assert_eq!((ran.code, ran.stdout.as_str()), (100, ""), "{}", ran.stderr);
    assert!(!function.lambda_dir.exists(), "something was written");
    let mut text = ran.stderr.clone();
    for (path, name) in directories {
        text = text.replace(path.to_str().unwrap(), name);
    }
    text
}

/// A function that needs a newer glibc than the runtime has, because of a crate that it depends on.
fn too_new(name: &str) -> Function {
    let dependency = "[dependencies]\nentropy = { path = \"entropy\" }\n[workspace]\n";
    let main = "mod runtime_api;\n\nfn main() {\n    \
                runtime_api::run(|_: &str| Ok(entropy::number().to_string()))\n}\n";
    // `arc4random` came with glibc 2.36.
    let entropy = "unsafe extern \"C\" {\n    safe fn arc4random() -> u32;\n}\n\n\
                   #[inline(never)]\npub fn number() -> u32 {\n    arc4random()\n}\n";
    project(
        name,
        &[
            ("Cargo.toml", &manifest(name, dependency)),
            ("src/main.rs", main),
            ("src/runtime_api.rs", RUNTIME_API),
            ("entropy/Cargo.toml", &manifest("entropy", "")),
            ("entropy/src/lib.rs", entropy),
        ],
    )
}

#[test]
fn a_newer_glibc_than_the_runtimes() {
    let text = refused(&too_new("newer-glibc"), &[], &[]);
    assert_data_eq!(
        text,
        str![[r#"
error: `newer-glibc` needs `GLIBC_2.36` of `libc.so.6`, `provided.al2023` has up to `GLIBC_2.34`
  symbols: `arc4random`
  pulled in by: `entropy 0.1.0`
help: build against an older glibc with `--compiler cargo-zigbuild --target [..]-unknown-linux-gnu.2.34`, or on Amazon Linux 2023

"#]]
    );
}

/// The gate tells the truth: with an older glibc the same binary does not start. Debian bullseye has 2.31:
///
/// ```sh
/// sudo debootstrap --variant=minbase bullseye /tmp/bullseye
/// SLIMLAMBDA_OLD_ROOT=/tmp/bullseye cargo test -p cargo-slimlambda --test suite an_older_glibc -- --ignored
/// ```
#[test]
#[ignore = "needs a tree with an older glibc, as `SLIMLAMBDA_OLD_ROOT`"]
fn an_older_glibc_does_not_start_what_the_gate_refuses() {
    let root = std::env::var("SLIMLAMBDA_OLD_ROOT").expect("`SLIMLAMBDA_OLD_ROOT` is the tree");
    let function = too_new("older-glibc");
    let ran = function.try_build(&[]);
    assert_eq!(ran.code, 100, "{}", ran.stderr);

    // A package that no gate has seen.
    let binary = crate::function::shared("target/release").join(&function.name);
    let task = tempfile::tempdir().unwrap();
    let zip = task.path().join("bootstrap.zip");
    let mut writer = zip::ZipWriter::new(File::create(&zip).unwrap());
    let options = zip::write::SimpleFileOptions::default().unix_permissions(0o755);
    writer.start_file("bootstrap", options).unwrap();
    writer.write_all(&fs::read(binary).unwrap()).unwrap();
    writer.finish().unwrap();
    let zip = zip.to_str().unwrap();

    // Here it runs, there the dynamic loader refuses it.
    assert_eq!(function.try_invoke(&["--zip", zip], "").code, 0);
    let ran = function.try_invoke(&["--zip", zip, "--rootfs", &root], "");
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("version `GLIBC_2.36' not found"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_missing_library() {
    let directory = tempfile::tempdir().unwrap();
    cc(
        directory.path(),
        "libmissing.so",
        "int missing(void) { return 1; }\n",
        "-shared -Wl,-soname,libmissing.so.3",
    );
    cc(
        directory.path(),
        "program",
        "int missing(void);\nint main(void) { return missing(); }\n",
        "-L. -lmissing -Wl,-rpath,$ORIGIN/lib",
    );
    let function = function("no-library", "", "");
    let program = directory.path().join("program");
    let text = refused(
        &function,
        &[
            "--binary",
            program.to_str().unwrap(),
            "--library-path",
            "native",
        ],
        &[
            (directory.path(), "[DIR]"),
            (&function.directory, "[PROJECT]"),
        ],
    );
    assert_data_eq!(
        text,
        str![[r#"
error: failed to resolve needed library `libmissing.so.3`
  needed by: `program`
  searched: `[PROJECT]/native`, `$ORIGIN/lib`, [..]`/usr/lib`
help: add its directory with `--library-path`

"#]]
    );
}

#[test]
fn a_wrong_architecture() {
    let directory = tempfile::tempdir().unwrap();
    cc(
        directory.path(),
        "program",
        "int main(void) { return 0; }\n",
        "",
    );
    let foreign = directory.path().join("foreign");
    copy_for_foreign_machine(&directory.path().join("program"), &foreign);
    let flag = match HOST.as_str() {
        "x86_64" => "--x86-64",
        _ => "--arm64",
    };
    let text = refused(
        &function("wrong-machine", "", ""),
        &["--binary", foreign.to_str().unwrap(), flag],
        &[(directory.path(), "[DIR]")],
    );
    if flag == "--x86-64" {
        assert_data_eq!(
            text,
            str![[r#"
error: `[DIR]/foreign` is for aarch64, the package is for x86_64-unknown-linux-gnu
help: give the target that it was built for (`--arm64` or `--x86-64`), or build it for x86_64-unknown-linux-gnu

"#]]
        );
    }
}

#[test]
fn data_that_nothing_makes_small_enough() {
    let directory = tempfile::tempdir().unwrap();
    let noise = directory.path().join("noise");
    write_noise(&noise, 300 << 20);
    let function = function("noise", "", "|event: &str| Ok(event.to_owned())");
    let include = format!("noise:{}", noise.display());
    let text = refused(&function, &["--include", &include], &[]);
    // The binary's size is the toolchain's affair.
    let binary = fs::metadata(crate::function::shared("target/release/noise"))
        .unwrap()
        .len();
    assert!(binary < 1 << 20);
    assert_data_eq!(
        text,
        str![[r#"
error: the package does not fit: [..] bytes unzipped, and Lambda takes less than 262144000 ([..] bytes over)
  largest:
    314572800 bytes uncompressed: `noise`
       [..] bytes compressed: `bin/noise`
help: leave files out, keep models in S3 and fetch them when they are used, or use a container image (10 GB)

"#]]
    );
    // Nor does an archive help, nor a promise that is smaller than the need.
    for args in [&["--placement", "sideload"][..], &["--placement", "inline"]] {
        let text = refused(&function, &[&["--include", &include], args].concat(), &[]);
        assert!(text.contains("the package does not fit"), "{text}");
    }
}

/// Bytes that do not compress: xorshift64 (Marsaglia 2003).
fn write_noise(path: &Path, bytes: u64) {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..bytes / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.write_all(&state.to_le_bytes()).unwrap();
    }
    file.flush().unwrap();
}

#[test]
fn more_in_tmp_than_is_configured() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("zeros");
    File::create(&file).unwrap().set_len(600 << 20).unwrap();
    let function = function("tmp", "", "|event: &str| Ok(event.to_owned())");
    let include = format!("zeros:{}", file.display());
    let text = refused(
        &function,
        &["--include", &include, "--ephemeral-storage", "512"],
        &[],
    );
    assert_data_eq!(
        text,
        str![[r#"
error: the unpacked files need 601 MB of /tmp, and `ephemeral-storage` is 512
help: set it to 601 or more

"#]]
    );
}

#[test]
fn what_is_no_program_for_lambda_is_named() {
    let directory = tempfile::tempdir().unwrap();
    cc(
        directory.path(),
        "program",
        "int main(void) { return 0; }\n",
        "",
    );
    let elf = fs::read(directory.path().join("program")).unwrap();
    let changed = |at: usize, byte: u8| {
        let mut elf = elf.clone();
        elf[at] = byte;
        elf
    };
    // e_ident's class and data encoding (gABI, "ELF Identification"), e_machine 243 for RISC-V.
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("empty", vec![], "an empty file"),
        ("script", b"#!/bin/sh\nexec ./real\n".to_vec(), "a script"),
        ("mach-o", mach_o(), "a Mach-O file (macOS)"),
        ("function.exe", pe(), "a PE file (Windows)"),
        ("libx.a", b"!<arch>\n".to_vec(), "a static archive (`ar`)"),
        ("text", b"hello\n".to_vec(), "a file of unknown kind"),
        ("elf32", changed(4, 1), "a 32-bit ELF file"),
        ("big-endian", changed(5, 2), "a big-endian ELF file"),
        ("risc-v", changed(18, 243), "an ELF file for machine 243"),
        ("half", elf[..elf.len() / 2].to_vec(), "truncated"),
        ("head", elf[..40].to_vec(), "truncated"),
    ];
    let function = function("no-program", "", "");
    for (name, bytes, says) in cases {
        let path = directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        let text = refused(
            &function,
            &["--binary", path.to_str().unwrap()],
            &[(directory.path(), "[DIR]")],
        );
        let begins = format!("error: `[DIR]/{name}` would not start on Lambda: ");
        assert!(text.starts_with(&begins), "{text}");
        assert!(text.contains(says), "{name}: {text}");
        assert!(text.contains("\nhelp: "), "{text}");
    }
    let missing = directory.path().join("missing");
    let ran = function.try_build(&["--binary", missing.to_str().unwrap()]);
    assert_eq!(ran.code, 101);
    assert!(
        ran.stderr.contains("No such file or directory"),
        "{}",
        ran.stderr
    );
}

/// The head of a 64-bit Mach-O executable for arm64, without load commands.
fn mach_o() -> Vec<u8> {
    [0xfeed_facf_u32, 0x0100_000c, 0, 2, 0, 0, 0, 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

/// The head of a PE file: DOS header with the offset of the PE header at 0x3c.
fn pe() -> Vec<u8> {
    let mut bytes = vec![0; 0x200];
    bytes[..2].copy_from_slice(b"MZ");
    bytes[0x3c] = 0x80;
    bytes[0x80..0x84].copy_from_slice(b"PE\0\0");
    bytes[0x84..0x86].copy_from_slice(&0x8664u16.to_le_bytes());
    bytes
}
