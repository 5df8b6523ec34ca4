//! What the linker was told is read back; what lies is an error, never a panic.

use super::*;
use std::path::Path;
use std::process::Command;

/// A small file with everything that the reader knows: versions, TLS, rpath, a build-id.
fn library(dir: &Path) -> Vec<u8> {
    std::fs::write(
        dir.join("small.c"),
        "#include <math.h>\n#include <stdio.h>\n__thread int counter;\n\
         int old(double x) { return counter += printf(\"%f\", cos(x)); }\n\
         int new(double x) { return old(x) + 1; }\n\
         __asm__(\".symver old,call@FIRST_1\");\n__asm__(\".symver new,call@@SECOND_2\");\n",
    )
    .unwrap();
    std::fs::write(
        dir.join("small.map"),
        "FIRST_1 { global: call; };\nSECOND_2 { global: call; counter; local: *; } FIRST_1;\n",
    )
    .unwrap();
    link(
        dir,
        &[
            "-O1",
            "-shared",
            "-fPIC",
            "-nostartfiles",
            "small.c",
            "-Wl,--version-script=small.map,-soname,libsmall.so.1,--build-id=0x0123456789abcdef",
            "-Wl,--enable-new-dtags,-rpath,$ORIGIN/../lib",
            "-Wl,--push-state,--no-as-needed,-lm,--pop-state",
        ],
    )
}

fn link(dir: &Path, arguments: &[&str]) -> Vec<u8> {
    let status = Command::new("cc")
        .current_dir(dir)
        .args(arguments)
        .args(["-o", "out"])
        .status()
        .unwrap();
    assert!(status.success(), "cc {arguments:?}");
    std::fs::read(dir.join("out")).unwrap()
}

#[test]
fn reads_what_the_linker_was_told() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = library(dir.path());
    let image = Image::parse(&bytes).unwrap();
    assert_eq!(image.machine.as_str(), std::env::consts::ARCH);
    assert_eq!(image.file_type, FileType::SharedObject);
    assert!(!image.pie && !image.is_static());
    assert_eq!(image.soname, Some("libsmall.so.1"));
    // A third may follow: on x86_64 `__tls_get_addr` is in ld.so.
    assert_eq!(image.needed[..2], ["libm.so.6", "libc.so.6"]);
    assert_eq!(
        (image.rpath, image.runpath),
        (None, Some("$ORIGIN/../lib")),
        "new dtags are a runpath"
    );
    assert_eq!(
        image.build_id,
        Some(&[0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef][..])
    );
    assert_eq!(image.version_definitions, ["FIRST_1", "SECOND_2"]);
    let mut calls: Vec<_> = (image.symbols.iter())
        .filter(|symbol| symbol.name == "call")
        .map(|symbol| (symbol.version, symbol.default_version, symbol.undefined))
        .collect();
    calls.sort();
    assert_eq!(
        calls,
        [
            (Some("FIRST_1"), false, false),
            (Some("SECOND_2"), true, false)
        ]
    );
    let printf = |symbol: &&Symbol<'_>| symbol.name == "printf";
    let printf = image.symbols.iter().find(printf).unwrap();
    assert!(printf.undefined && !printf.weak);
    assert_eq!(printf.version_file, Some("libc.so.6"));
    let version = printf.version.unwrap();
    let need = |need: &VersionNeed<'_>| (need.file, need.version) == ("libc.so.6", version);
    assert!(image.version_needs.iter().any(need));
    let tls = |symbol: &Symbol<'_>| symbol.name == "counter" && symbol.kind == elf::STT_TLS.0;
    assert!(image.symbols.iter().any(tls));
}

#[test]
fn finds_undefined_symbols_of_executables_that_export_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let main = "#include <stdio.h>\nint main(void) { return puts(\"hello\") < 0; }\n";
    std::fs::write(dir.path().join("main.c"), main).unwrap();
    for (arguments, pie, fixed) in [
        (["main.c", "-pie", "-fPIE"], true, false),
        (["main.c", "-no-pie", "-fno-pie"], false, false),
        (["main.c", "-static", "-no-pie"], false, true),
        (["main.c", "-static-pie", "-fPIE"], true, true),
    ] {
        let bytes = link(dir.path(), &arguments);
        let image = Image::parse(&bytes).unwrap();
        assert_eq!(
            (image.pie, image.is_static()),
            (pie, fixed),
            "{arguments:?}"
        );
        assert_eq!(image.interpreter.is_none(), fixed, "{arguments:?}");
        let puts = |symbol: &Symbol<'_>| symbol.name == "puts" && symbol.undefined;
        assert_eq!(image.symbols.iter().any(puts), !fixed, "{arguments:?}");
    }
}

#[test]
fn a_symbol_that_is_not_utf8_is_no_reason_to_refuse_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = library(dir.path());
    let name = b"\0counter\0";
    // The first is the dynamic string table's, the other the static one's.
    let at = bytes
        .windows(name.len())
        .position(|window| window == name)
        .unwrap();
    bytes[at + 1] = 0xff;
    let image = Image::parse(&bytes).unwrap();
    assert!(image.symbols.iter().any(|symbol| symbol.name == "call"));
    assert!(
        !image
            .symbols
            .iter()
            .any(|symbol| symbol.name.ends_with("ounter"))
    );
}

#[test]
fn says_what_is_not_elf() {
    for (bytes, expected) in [
        (&b""[..], FileKind::Empty),
        (b"#!/bin/sh\n", FileKind::Script),
        (
            b"\xcf\xfa\xed\xfe\x07\0\0\x01\x03\0\0\0\x02\0\0\0",
            FileKind::MachO,
        ),
        (b"MZ\x90\0", FileKind::PortableExecutable),
        (b"!<arch>\nfoo.o/", FileKind::Archive),
        (b"!<thin>\n", FileKind::Archive),
        (b"BC\xc0\xde\x35\x14", FileKind::Bitcode),
        (b"PK\x03\x04", FileKind::Zip),
        (b"\x1f\x8b\x08", FileKind::Gzip),
        (
            b"/* GNU ld script\n*/\nGROUP ( libc.so.6 )",
            FileKind::LinkerScript,
        ),
        (b"INPUT(-lfoo)\n", FileKind::LinkerScript),
        (b"hello", FileKind::Unknown),
        (b"\0", FileKind::Unknown),
    ] {
        let error = Image::parse(bytes).unwrap_err();
        assert_eq!(error, ImageError::NotElf(expected), "{bytes:?}");
    }
    let mut bytes = std::fs::read("/proc/self/exe").unwrap();
    let mut with = |offset: usize, value: u8| {
        let before = std::mem::replace(&mut bytes[offset], value);
        let error = Image::parse(&bytes).unwrap_err();
        bytes[offset] = before;
        error
    };
    assert_eq!(with(4, 1), ImageError::Class32);
    assert_eq!(with(5, 2), ImageError::BigEndian);
    assert_eq!(with(18, 243), ImageError::Machine(243));
}

#[test]
fn truncated_anywhere_is_an_error_or_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = library(dir.path());
    for length in 0..bytes.len() {
        // The section header table comes last, so no shorter file is whole.
        Image::parse(&bytes[..length]).unwrap_err();
    }
}

#[test]
fn any_byte_of_the_headers_may_lie() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = library(dir.path());
    let image = Image::parse(&bytes).unwrap();
    let dynamic = image.segment(elf::PT_DYNAMIC.0).unwrap();
    let (start, size) = (dynamic.offset as usize, dynamic.file_size as usize);
    // All up to the code (headers, notes, hash table, symbols, versions), the dynamic table, and
    // the section headers.
    let code = |segment: &&Segment| segment.kind == elf::PT_LOAD.0 && segment.flags & 1 != 0;
    let code = image.segments.iter().find(code).unwrap().offset as usize;
    let header: &FileHeader = at(&bytes, 0).unwrap();
    let sections = header.e_shoff.get(LE) as usize;
    let end = bytes.len();
    for position in (0..code.min(4096))
        .chain(start..start + size)
        .chain(sections..end)
    {
        let before = bytes[position];
        for value in [0, 1, 0x7f, 0x80, 0xff, before ^ 1, before.wrapping_add(8)] {
            bytes[position] = value;
            let _ = Image::parse(&bytes);
        }
        bytes[position] = before;
    }
}
