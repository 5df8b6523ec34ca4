//! A package that would not start is refused, with the reason; one that would is not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_slimlambda::elf::abi::{Fault, Provider, Verdict, attribute, crates_using, would_start};
use cargo_slimlambda::elf::explain::explain;
use cargo_slimlambda::elf::image::Machine;
use cargo_slimlambda::elf::needed::{Object, SearchPath, closure};
use cargo_slimlambda::elf::runtime::PROVIDED_AL2023;

use crate::elf_tools::{FOREIGN, HOST, cc, copy_for_foreign_machine, object, read, search_path};

fn judge(program: &Object<'static>, search: &SearchPath, machine: Machine) -> Verdict {
    let closure = closure(program, &[], &PROVIDED_AL2023, search, &read);
    would_start(program, &closure, &PROVIDED_AL2023, machine)
}

fn judge_here(program: PathBuf) -> Verdict {
    let here = program.parent().unwrap().to_owned();
    judge(&object(program), &search_path(&[here]), HOST)
}

/// A stand-in for the build machine's libc.so.6, so that these tests do not depend on how new that
/// one is: each version with one function.
fn fake_libc(dir: &Path, versions: &[(&str, &str)]) {
    let mut map = String::new();
    let mut source = String::new();
    for (version, function) in versions {
        map.push_str(&format!("{version} {{ global: {function}; }};\n"));
        source.push_str(&format!("int {function}(void) {{ return 0; }}\n"));
    }
    fs::write(dir.join("libc.map"), map).unwrap();
    let options = "-shared -nostdlib -fno-builtin -Wl,-soname,libc.so.6,--version-script,libc.map";
    cc(dir, "libc.so.6", &source, options);
}

/// A program that calls each of `functions`, with the fake libc alone.
fn program_with_fake_libc(dir: &Path, functions: &[&str]) -> PathBuf {
    let mut source = String::new();
    for function in functions {
        source.push_str(&format!("int {function}(void);\n"));
    }
    source.push_str("void _start(void) {");
    for function in functions {
        source.push_str(&format!("{function}();"));
    }
    source.push('}');
    cc(
        dir,
        "program",
        &source,
        "-nostdlib -fno-builtin ./libc.so.6",
    );
    dir.join("program")
}

#[test]
fn what_this_machine_builds_for_the_runtime_starts() {
    let dir = tempfile::tempdir().unwrap();
    // Weak and undefined is fine, and so are functions that glibc had long before 2.34.
    let source = "#include <math.h>\n#include <stdlib.h>\nextern int nobody(void) __attribute__((weak));\n\
        int main(int c, char **v) { return nobody ? 1 : (int)cos(strlen(v[0])); }\nint strlen();";
    cc(dir.path(), "program", source, "-fno-builtin -Wno-all -lm");
    assert_eq!(judge_here(dir.path().join("program")), Verdict::default());
}

#[test]
fn a_static_program_starts() {
    let dir = tempfile::tempdir().unwrap();
    cc(
        dir.path(),
        "program",
        "void _start(void) {}",
        "-nostdlib -static",
    );
    assert_eq!(judge_here(dir.path().join("program")), Verdict::default());
}

#[test]
fn only_a_program_starts() {
    let dir = tempfile::tempdir().unwrap();
    let source = "int main(void) { return 0; }";
    for (options, is) in [
        ("-c", Some("a relocatable object or a core dump")),
        ("-shared", Some("a shared library")),
        ("-shared -nostdlib", Some("a shared library")),
        ("-pie", None),
        ("-no-pie", None),
        ("-static-pie", None),
        ("-static", None),
        // A library that is a program, too, as libc.so.6 is.
        ("-pie -Wl,-soname,libboth.so", None),
    ] {
        cc(dir.path(), "program", source, options);
        let verdict = judge_here(dir.path().join("program"));
        let text = explain(&verdict.problems, &PROVIDED_AL2023, HOST);
        let Some(is) = is else {
            assert_eq!(verdict.problems, [], "{options}: {text}");
            continue;
        };
        let first = format!("`bootstrap` is not a program but {is}\n  found: `");
        assert!(text.starts_with(&first), "{options}: {text}");
        assert!(
            text.contains("help: give `--binary` a linked executable"),
            "{text}"
        );
    }
}

#[test]
fn a_version_newer_than_the_runtimes_is_named_with_its_symbols() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    fake_libc(
        path,
        &[
            ("GLIBC_2.4", "fine"),
            ("GLIBC_2.38", "strlcpy"),
            ("GLIBC_2.36", "arc4random"),
        ],
    );
    let program = program_with_fake_libc(path, &["fine", "arc4random", "strlcpy"]);
    let verdict = judge_here(program);
    assert_eq!(
        explain(&verdict.problems, &PROVIDED_AL2023, HOST),
        format!(
            "`bootstrap` needs `GLIBC_2.38`, `GLIBC_2.36` of `libc.so.6`, `provided.al2023` has up to `GLIBC_2.34`\n  \
             symbols: `strlcpy`, `arc4random`\n\
             help: build against an older glibc with `--compiler cargo-zigbuild --target \
             {HOST}-unknown-linux-gnu.2.34`, or on Amazon Linux 2023"
        )
    );
}

#[test]
fn a_library_that_wants_too_new_a_glibc_is_the_one_to_blame() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    fake_libc(
        path,
        &[("GLIBC_2.36", "arc4random"), ("GLIBC_PRIVATE", "inner")],
    );
    let source =
        "int arc4random(void); int inner(void); int x(void) { return arc4random() + inner(); }";
    cc(
        path,
        "libx.so",
        source,
        "-shared -nostdlib -fno-builtin -Wl,-soname,libx.so ./libc.so.6",
    );
    let source = "int x(void); void _start(void) { x(); }";
    cc(
        path,
        "program",
        source,
        "-nostdlib -L. -lx -Wl,--allow-shlib-undefined",
    );
    let verdict = judge_here(path.join("program"));
    let [problem] = verdict.problems.as_slice() else {
        panic!("{verdict:?}")
    };
    assert_eq!(problem.file, "lib/libx.so");
    let Fault::Versions {
        soname,
        missing,
        provider,
    } = &problem.fault
    else {
        panic!("{problem:?}")
    };
    assert_eq!(soname, "libc.so.6");
    assert_eq!(
        *provider,
        Provider::Runtime {
            newest: Some("GLIBC_2.34".to_owned())
        }
    );
    let missing: Vec<_> = missing
        .iter()
        .map(|m| (m.version.as_str(), m.symbols.join(" ")))
        .collect();
    assert_eq!(
        missing,
        [
            ("GLIBC_2.36", "arc4random".to_owned()),
            ("GLIBC_PRIVATE", "inner".to_owned())
        ]
    );
}

#[test]
fn a_newer_libstdcxx_is_bundled_and_its_own_needs_are_judged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    fake_libc(path, &[("GLIBC_2.36", "arc4random")]);
    fs::write(path.join("map"), "GLIBCXX_3.4.30 { global: wait; };\n").unwrap();
    let source = "int arc4random(void); int wait(void) { return arc4random(); }";
    let options = "-shared -nostdlib -fno-builtin -Wl,-soname,libstdc++.so.6,--version-script,map";
    cc(
        path,
        "libstdc++.so.6",
        source,
        &format!("{options} ./libc.so.6"),
    );
    let source = "int wait(void); void _start(void) { wait(); }";
    let options = "-nostdlib -fno-builtin -Wl,--allow-shlib-undefined ./libstdc++.so.6";
    cc(path, "program", source, options);
    let verdict = judge_here(path.join("program"));
    let text = explain(&verdict.problems, &PROVIDED_AL2023, HOST);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    assert!(
        lines[0].starts_with("`lib/libstdc++.so.6` needs `GLIBC_2.36` of `libc.so.6`"),
        "{text}"
    );
    assert_eq!(
        lines[3],
        "  bundled because: `bootstrap` needs `GLIBCXX_3.4.30` of it"
    );
    assert!(lines[4].contains("with GCC 11 or older"), "{text}");
}

#[test]
fn relative_relocations_need_a_newer_loader() {
    let dir = tempfile::tempdir().unwrap();
    let source = "int x; int *p = &x; int main(void) { return *p; }";
    cc(
        dir.path(),
        "program",
        source,
        "-pie -Wl,-z,pack-relative-relocs",
    );
    let program = object(dir.path().join("program"));
    if !program
        .image
        .version_needs
        .iter()
        .any(|need| need.version == "GLIBC_ABI_DT_RELR")
    {
        eprintln!("skipped: this machine's linker does not know `-z pack-relative-relocs`");
        return;
    }
    let verdict = judge_here(dir.path().join("program"));
    let text = explain(&verdict.problems, &PROVIDED_AL2023, HOST);
    assert!(
        text.contains("needs `GLIBC_ABI_DT_RELR` of `libc.so.6`"),
        "{text}"
    );
    assert!(
        text.ends_with("help: link with `-z nopack-relative-relocs`"),
        "{text}"
    );
}

#[test]
fn a_bundled_library_without_the_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    fs::write(
        path.join("map"),
        "V_1 { global: one; };\nV_2 { global: two; };\n",
    )
    .unwrap();
    let options = "-shared -Wl,-soname,libv.so.1,--version-script,map";
    cc(
        path,
        "libv.so.1",
        "int one(void) { return 0; } int two(void) { return 0; }",
        options,
    );
    cc(
        path,
        "program",
        "int one(void); int two(void); int main(void) { return one() + two(); }",
        "./libv.so.1",
    );
    assert_eq!(judge_here(path.join("program")), Verdict::default());
    // The library goes back to an older version.
    fs::write(path.join("map"), "V_1 { global: one; };\n").unwrap();
    cc(path, "libv.so.1", "int one(void) { return 0; }", options);
    let verdict = judge_here(path.join("program"));
    let [problem] = verdict.problems.as_slice() else {
        panic!("{verdict:?}")
    };
    let Fault::Versions {
        missing, provider, ..
    } = &problem.fault
    else {
        panic!("{problem:?}")
    };
    assert_eq!(
        (missing[0].version.as_str(), missing[0].symbols.join(" ")),
        ("V_2", "two".to_owned())
    );
    assert_eq!(*provider, Provider::Bundled(path.join("libv.so.1")));
    // The loader agrees.
    let output = Command::new(path.join("program"))
        .env("LD_LIBRARY_PATH", path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("version `V_2' not found"),
        "{said}"
    );
}

#[test]
fn symbols_that_nobody_defines_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let source = "int a(void), b(void), c(void), d(void), e(void), f(void), malloc_usable_size(void);\n\
        extern int w(void) __attribute__((weak));\n\
        int x(void) { return a() + b() + c() + d() + e() + f() + malloc_usable_size() + (w ? w() : 0); }";
    // Without libc at link time, what libc defines is wanted without a version; that is found all
    // the same, in this machine's libc.
    cc(
        path,
        "libx.so",
        source,
        "-shared -nostdlib -fno-builtin -Wl,-soname,libx.so",
    );
    let source = "int x(void); int f(void) { return 0; } int main(void) { return x(); }";
    cc(
        path,
        "program",
        source,
        "-rdynamic -L. -lx -Wl,--unresolved-symbols=ignore-all",
    );
    let verdict = judge_here(path.join("program"));
    let [problem] = verdict.problems.as_slice() else {
        panic!("{verdict:?}")
    };
    assert_eq!(problem.file, "lib/libx.so");
    let expected = ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec();
    assert_eq!(problem.fault, Fault::Symbols(expected));

    // Where there is no libc to look into, it cannot be told.
    let blind = SearchPath {
        library_path: vec![path.to_owned()],
        ..SearchPath::default()
    };
    let verdict = judge(&object(path.join("program")), &blind, HOST);
    assert_eq!(verdict.problems, []);
    assert!(
        verdict.notes[0].contains("`a`, `b`, `c`, `d`, `e` and 1 more"),
        "{:?}",
        verdict.notes
    );
}

#[test]
fn a_package_for_the_other_machine_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    cc(dir.path(), "program", "int main(void) { return 0; }", "");
    let verdict = judge(
        &object(dir.path().join("program")),
        &search_path(&[]),
        FOREIGN,
    );
    let text = explain(&verdict.problems, &PROVIDED_AL2023, FOREIGN);
    assert!(
        text.starts_with(&format!(
            "`bootstrap` is for {HOST}, the package is for {FOREIGN}"
        )),
        "{text}"
    );
    // And so is a single library, given by its path.
    cc(dir.path(), "libx.so", "int x;", "-shared");
    copy_for_foreign_machine(
        &dir.path().join("libx.so"),
        &dir.path().join("foreign/libx.so"),
    );
    let program = object(dir.path().join("program"));
    let extra = [dir.path().join("foreign/libx.so").display().to_string()];
    let closure = closure(&program, &extra, &PROVIDED_AL2023, &search_path(&[]), &read);
    let verdict = would_start(&program, &closure, &PROVIDED_AL2023, HOST);
    let [problem] = verdict.problems.as_slice() else {
        panic!("{verdict:?}")
    };
    assert_eq!(
        problem.fault,
        Fault::Machine {
            found: FOREIGN,
            wanted: HOST
        }
    );
}

#[test]
fn a_foreign_interpreter_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let musl = format!("/lib/ld-musl-{HOST}.so.1");
    for (interpreter, help) in [
        (musl.as_str(), "link musl statically"),
        ("/nix/store/x/ld.so", "patchelf"),
    ] {
        let options = format!("-Wl,--dynamic-linker={interpreter}");
        cc(
            dir.path(),
            "program",
            "int main(void) { return 0; }",
            &options,
        );
        let verdict = judge_here(dir.path().join("program"));
        let text = explain(&verdict.problems, &PROVIDED_AL2023, HOST);
        assert_eq!(verdict.problems.len(), 1, "{text}");
        assert!(
            text.contains(&format!("asks for the dynamic loader `{interpreter}`")),
            "{text}"
        );
        assert!(text.contains(help), "{text}");
    }
}

#[test]
fn several_problems_make_one_message() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    fake_libc(path, &[("GLIBC_2.38", "strlcpy")]);
    cc(
        path,
        "libgone.so",
        "int gone(void) { return 0; }",
        "-shared -nostdlib -Wl,-soname,libgone.so",
    );
    let source = "int strlcpy(void); int gone(void); void _start(void) { strlcpy(); gone(); }";
    cc(
        path,
        "program",
        source,
        "-nostdlib -fno-builtin ./libc.so.6 libgone.so",
    );
    let program = object(path.join("program"));
    let nowhere = SearchPath {
        library_path: vec![PathBuf::from("/nowhere")],
        ..SearchPath::default()
    };
    let verdict = judge(&program, &nowhere, HOST);
    let text = explain(&verdict.problems, &PROVIDED_AL2023, HOST);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "the package would not start on `provided.al2023`");
    assert_eq!(
        lines[1..4],
        [
            "  failed to resolve needed library `libgone.so`",
            "    needed by: `bootstrap`",
            "    searched: `/nowhere`",
        ]
    );
    assert!(
        lines[4].starts_with("  `bootstrap` needs `GLIBC_2.38` of `libc.so.6`"),
        "{text}"
    );
    assert_eq!(text.matches("help: ").count(), 2, "{text}");
}

#[test]
fn the_crate_that_pulled_a_symbol_in_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let user = "extern \"C\" { fn arc4random() -> u32; }\n#[no_mangle]\npub extern \"C\" fn user() -> u32 { unsafe { arc4random() } }";
    let innocent = "#[no_mangle]\npub extern \"C\" fn innocent() -> u32 { 7 }";
    let mut rlibs = Vec::new();
    for (name, source, flags) in [
        ("user", user, &[][..]),
        ("innocent", innocent, &[]),
        ("hidden", user, &["-Clinker-plugin-lto"]),
    ] {
        let file = path.join(format!("{name}.rs"));
        fs::write(&file, source).unwrap();
        let output = path.join(format!("lib{name}.rlib"));
        let rustc = std::env::var_os("RUSTC").unwrap_or("rustc".into());
        let status = Command::new(rustc)
            .args(["--edition=2021", "--crate-type=rlib", "-o"])
            .arg(&output)
            .arg(&file)
            .args(flags)
            .status()
            .unwrap();
        assert!(status.success());
        rlibs.push((format!("{name} 1.2.3"), output));
    }
    // Neither of these can be looked into, which is no reason to keep silent about the rest.
    rlibs.insert(0, ("gone 1.2.3".to_owned(), path.join("libgone.rlib")));
    rlibs.insert(1, ("text 1.2.3".to_owned(), path.join("user.rs")));
    let users = crates_using(&["arc4random".to_owned()], &rlibs);
    assert_eq!(users.crates, ["user 1.2.3"]);
    assert_eq!(
        users.not_visible,
        ["gone 1.2.3", "text 1.2.3", "hidden 1.2.3"]
    );

    fake_libc(path, &[("GLIBC_2.36", "arc4random")]);
    let program = program_with_fake_libc(path, &["arc4random"]);
    let named = |rlibs: &[(String, PathBuf)]| {
        let mut verdict = judge_here(program.clone());
        attribute(&mut verdict.problems, &object(program.clone()), rlibs);
        let text = explain(&verdict.problems, &PROVIDED_AL2023, HOST);
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("  pulled in by: "));
        line.map(str::to_owned)
    };
    let of = |names: &[&str]| {
        let wanted = |(name, _): &&(String, PathBuf)| names.contains(&&name[..name.len() - 6]);
        named(&rlibs.iter().filter(wanted).cloned().collect::<Vec<_>>())
    };
    let cases: [(&[&str], Option<&str>); 4] = [
        (&["innocent", "hidden", "user"], Some("`user 1.2.3`")),
        (
            &["innocent", "hidden"],
            Some("not visible with LTO, as in `hidden 1.2.3`"),
        ),
        (
            &["innocent"],
            Some("the binary itself or the standard library"),
        ),
        (&[], None),
    ];
    for (rlibs, by) in cases {
        assert_eq!(of(rlibs).as_deref(), by, "{rlibs:?}");
    }
}
