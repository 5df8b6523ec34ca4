//! The needed closure is what the dynamic loader itself would load.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_slimlambda::elf::abi::{Verdict, would_start};
use cargo_slimlambda::elf::dlopen;
use cargo_slimlambda::elf::explain::explain;
use cargo_slimlambda::elf::needed::{Closure, Found, Missing, SearchPath, closure};
use cargo_slimlambda::elf::runtime::{PROVIDED_AL2023, Row, Runtime, Versions};

use crate::elf_tools::{FOREIGN, HOST, cc, copy_for_foreign_machine, object, read, search_path};

fn close(program: PathBuf, extra: &[&str], library_path: &[PathBuf]) -> Closure<'static> {
    let extra: Vec<String> = extra.iter().map(|name| (*name).to_owned()).collect();
    let search = search_path(library_path);
    closure(&object(program), &extra, &PROVIDED_AL2023, &search, &read)
}

/// What `ld.so` says it would load from below `dir`: name → file, or nothing where it finds none.
fn loader_says(program: &Path, library_path: &[PathBuf]) -> BTreeMap<String, Option<PathBuf>> {
    let mut command = Command::new(program);
    command.env("LD_TRACE_LOADED_OBJECTS", "1");
    command.env_remove("LD_LIBRARY_PATH");
    if !library_path.is_empty() {
        let joined = std::env::join_paths(library_path).unwrap();
        command.env("LD_LIBRARY_PATH", joined);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text
        .lines()
        .filter_map(|line| line.trim().split_once(" => "));
    lines
        .map(|(name, rest)| {
            let path = rest.split(" (").next().unwrap();
            (name.to_owned(), fs::canonicalize(path).ok())
        })
        .filter(|(name, _)| PROVIDED_AL2023.row(name, HOST).is_none())
        .collect()
}

fn we_say(closure: &Closure<'_>) -> BTreeMap<String, Option<PathBuf>> {
    let mut said = BTreeMap::new();
    for library in &closure.libraries {
        for name in &library.names {
            said.insert(name.clone(), Some(library.object.real.clone()));
        }
    }
    for unresolved in &closure.unresolved {
        said.insert(unresolved.name.clone(), None);
    }
    said
}

/// `program` → `libmiddle.so` → `libleaf.so`, the latter in `one/` and, as another file, in `two/`.
/// Linked with the options given.
fn tree(dir: &Path, program: &str, middle: &str) -> PathBuf {
    cc(
        dir,
        "one/libleaf.so",
        "int leaf(void) { return 1; }",
        "-shared -Wl,-soname,libleaf.so",
    );
    cc(
        dir,
        "two/libleaf.so",
        "int leaf(void) { return 2; }",
        "-shared -Wl,-soname,libleaf.so",
    );
    let source = "int leaf(void); int middle(void) { return leaf(); }";
    let options = format!("-shared -Wl,-soname,libmiddle.so {middle} -Lone -lleaf");
    cc(dir, "lib/libmiddle.so", source, &options);
    let source = "int middle(void); int main(void) { return middle(); }";
    let options = format!("{program} -Llib -lmiddle -Wl,-rpath-link,one");
    cc(dir, "bin/program", source, &options);
    dir.join("bin/program")
}

const RPATH: &str = "-Wl,--disable-new-dtags,-rpath,";
const RUNPATH: &str = "-Wl,--enable-new-dtags,-rpath,";

/// What is tried; what the program and libmiddle.so are linked with; the directories in
/// LD_LIBRARY_PATH; which libleaf.so the loader takes, to be sure that the cases differ.
type Case<'c> = (&'c str, String, String, &'c [&'c str], Option<&'c str>);

#[test]
fn needed_closure_follows_the_loader() {
    let program = "$ORIGIN/../lib";
    let cases: &[Case<'_>] = &[
        (
            "an rpath is inherited",
            format!("{RPATH}{program}:$ORIGIN/../one"),
            String::new(),
            &[],
            Some("one"),
        ),
        (
            "a runpath is not",
            format!("{RUNPATH}{program}:$ORIGIN/../one"),
            String::new(),
            &[],
            None,
        ),
        (
            "a library's own runpath, braced",
            format!("{RUNPATH}{program}"),
            format!("{RUNPATH}${{ORIGIN}}/../two"),
            &[],
            Some("two"),
        ),
        (
            "a library's runpath turns off the program's rpath",
            format!("{RPATH}{program}:$ORIGIN/../one"),
            format!("{RUNPATH}$ORIGIN/../two"),
            &[],
            Some("two"),
        ),
        (
            "a library's rpath comes before the program's",
            format!("{RPATH}{program}:$ORIGIN/../one"),
            format!("{RPATH}$ORIGIN/../two"),
            &[],
            Some("two"),
        ),
        (
            "the library path comes after an rpath",
            format!("{RPATH}{program}:$ORIGIN/../one"),
            String::new(),
            &["two"],
            Some("one"),
        ),
        (
            "the library path comes before a runpath",
            format!("{RUNPATH}{program}"),
            format!("{RUNPATH}$ORIGIN/../one"),
            &["two"],
            Some("two"),
        ),
        (
            "the library path alone, in order",
            String::new(),
            String::new(),
            &["lib", "two", "one"],
            Some("two"),
        ),
        ("nothing at all", String::new(), String::new(), &[], None),
    ];
    for (what, program, middle, library_path, leaf) in cases {
        let dir = tempfile::tempdir().unwrap();
        let program = tree(dir.path(), program, middle);
        let library_path: Vec<PathBuf> = library_path.iter().map(|d| dir.path().join(d)).collect();
        let said = we_say(&close(program.clone(), &[], &library_path));
        assert_eq!(said, loader_says(&program, &library_path), "{what}");
        let taken = said.get("libleaf.so").cloned().flatten();
        let expected = leaf.map(|leaf| fs::canonicalize(dir.path().join(leaf)).unwrap());
        assert_eq!(
            taken.as_deref().and_then(Path::parent),
            expected.as_deref(),
            "{what}"
        );
    }
}

#[test]
fn what_a_build_script_linked_from_comes_after_what_the_files_say() {
    for (options, leaf, found) in [
        (
            format!("{RUNPATH}$ORIGIN/../lib"),
            "one",
            Found::Runpath("lib/libmiddle.so".to_owned()),
        ),
        (String::new(), "two", Found::LinkPath),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let middle = match found {
            Found::Runpath(_) => format!("{RUNPATH}$ORIGIN/../one"),
            _ => String::new(),
        };
        let program = tree(dir.path(), &options, &middle);
        let search = SearchPath {
            link_paths: vec![dir.path().join("lib"), dir.path().join("two")],
            // Not what was linked against.
            system: vec![dir.path().join("one")],
            ..SearchPath::default()
        };
        let closure = closure(&object(program), &[], &PROVIDED_AL2023, &search, &read);
        let library = &closure.libraries[1];
        let directory = fs::canonicalize(dir.path().join(leaf)).unwrap();
        assert_eq!(library.object.real.parent(), Some(&*directory));
        assert_eq!(library.found, found);
    }
}

#[test]
fn origin_is_where_the_program_really_is_and_where_a_library_was_found() {
    let dir = tempfile::tempdir().unwrap();
    let options = format!("{RUNPATH}$ORIGIN/../links");
    let program = tree(dir.path(), &options, &format!("{RUNPATH}$ORIGIN/../two"));
    // The program by a symlink from elsewhere; the library through a symlink to it, beside which
    // there is no `two`… but `links/../two` is.
    fs::create_dir_all(dir.path().join("else/where")).unwrap();
    fs::create_dir(dir.path().join("links")).unwrap();
    fs::rename(
        dir.path().join("lib/libmiddle.so"),
        dir.path().join("else/where/libmiddle.so"),
    )
    .unwrap();
    symlink(
        dir.path().join("else/where/libmiddle.so"),
        dir.path().join("links/libmiddle.so"),
    )
    .unwrap();
    symlink(&program, dir.path().join("else/program")).unwrap();
    let program = dir.path().join("else/program");
    let said = we_say(&close(program.clone(), &[], &[]));
    assert_eq!(said, loader_says(&program, &[]));
    assert!(said["libleaf.so"].is_some(), "{said:?}");
}

#[test]
fn a_needed_cycle_ends() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let shared = "-shared -Wl,--no-as-needed";
    cc(
        dir,
        "libb.so",
        "int b(void) { return 1; }",
        &format!("{shared} -Wl,-soname,libb.so"),
    );
    cc(
        dir,
        "liba.so",
        "int b(void); int a(void) { return b(); }",
        &format!("{shared} -Wl,-soname,liba.so -L. -lb"),
    );
    cc(
        dir,
        "libb.so",
        "int a(void); int b(void) { return 1; }",
        &format!("{shared} -Wl,-soname,libb.so -L. -la"),
    );
    cc(
        dir,
        "program",
        "int a(void); int main(void) { return a(); }",
        &format!("{RPATH}$ORIGIN -L. -la"),
    );
    let closure = close(dir.join("program"), &[], &[]);
    assert_eq!(we_say(&closure), loader_says(&dir.join("program"), &[]));
    let needers: Vec<_> = closure
        .libraries
        .iter()
        .map(|l| (l.names.clone(), l.needed_by.clone()))
        .collect();
    let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        needers,
        [
            (
                strings(&["liba.so"]),
                strings(&["bootstrap", "lib/libb.so"])
            ),
            (strings(&["libb.so"]), strings(&["lib/liba.so"])),
        ]
    );
}

#[test]
fn a_missing_library_is_named_with_its_needer_and_all_places() {
    let dir = tempfile::tempdir().unwrap();
    let program = tree(dir.path(), &format!("{RUNPATH}$ORIGIN/../lib"), "");
    copy_for_foreign_machine(
        &dir.path().join("one/libleaf.so"),
        &dir.path().join("foreign/libleaf.so"),
    );
    let library_path = [dir.path().join("foreign")];
    let mut search = search_path(&library_path);
    search.system = vec![PathBuf::from("/nowhere")];
    let closure = closure(&object(program), &[], &PROVIDED_AL2023, &search, &read);
    let [unresolved] = closure.unresolved.as_slice() else {
        panic!("{:?}", closure.unresolved)
    };
    let foreign = library_path[0].display();
    assert_eq!(
        unresolved.to_string(),
        format!(
            "failed to resolve needed library `libleaf.so`\n  \
             needed by: `lib/libmiddle.so`\n  \
             searched: `{foreign}`, `/nowhere`\n  \
             passed over: `{foreign}/libleaf.so`: it is for {FOREIGN}\n\
             help: add its directory with `--library-path`"
        )
    );
}

#[test]
fn a_file_for_another_machine_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let program = tree(
        dir.path(),
        &format!("{RPATH}$ORIGIN/../lib:$ORIGIN/../foreign:$ORIGIN/../two"),
        "",
    );
    copy_for_foreign_machine(
        &dir.path().join("one/libleaf.so"),
        &dir.path().join("foreign/libleaf.so"),
    );
    let closure = close(program.clone(), &[], &[]);
    assert_eq!(we_say(&closure), loader_says(&program, &[]));
    assert_eq!(
        closure.libraries[1].object.path,
        dir.path().join("bin/../two/libleaf.so")
    );
    assert_eq!(
        closure.libraries[1].found,
        Found::Rpath("bootstrap".to_owned())
    );
}

#[test]
fn text_in_the_place_of_a_library_is_named_for_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let program = tree(
        dir.path(),
        &format!("{RPATH}$ORIGIN/../lib:$ORIGIN/../text:$ORIGIN/../two"),
        "",
    );
    fs::create_dir(dir.path().join("text")).unwrap();
    fs::write(
        dir.path().join("text/libleaf.so"),
        "/* GNU ld script */\nINPUT(libleaf.so.1)\n",
    )
    .unwrap();
    // The loader does not look further either: "invalid ELF header".
    let closure = close(program, &[], &[]);
    let [unresolved] = closure.unresolved.as_slice() else {
        panic!("{:?}", closure.unresolved)
    };
    assert!(
        matches!(unresolved.why, Missing::Unusable { .. }),
        "{unresolved}"
    );
    assert!(
        unresolved
            .to_string()
            .contains("text/libleaf.so`: not an ELF file but a linker script"),
        "{unresolved}"
    );
}

#[test]
fn two_libraries_with_one_soname_are_both_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let source = "int same(void) { return ANSWER; }";
    for (place, answer) in [("one", 1), ("two", 2)] {
        let options = format!("-shared -Wl,-soname,libsame.so.1 -DANSWER={answer}");
        cc(path, &format!("{place}/libsame.so.1"), source, &options);
        let user = format!("int same(void); int {place}(void) {{ return same(); }}");
        let options = format!(
            "-shared -Wl,-soname,lib{place}.so {RUNPATH}$ORIGIN/{place} {place}/libsame.so.1"
        );
        cc(path, &format!("lib{place}.so"), &user, &options);
    }
    let source = "int one(void); int two(void); int main(void) { return one() + two(); }";
    let options = format!("{RUNPATH}$ORIGIN -Wl,--allow-shlib-undefined -L. -lone -ltwo");
    cc(path, "program", source, &options);
    let closure = close(path.join("program"), &[], &[]);
    assert_eq!(we_say(&closure), loader_says(&path.join("program"), &[]));
    let [conflict] = closure.conflicts.as_slice() else {
        panic!("{:?}", closure.conflicts)
    };
    assert_eq!(conflict.soname, "libsame.so.1");
    assert_eq!(conflict.taken, path.join("one/libsame.so.1"));
    assert_eq!(conflict.other, path.join("two/libsame.so.1"));
    assert_eq!(conflict.needed_by, "lib/libtwo.so");
    // The same bytes twice are no conflict.
    fs::copy(path.join("one/libsame.so.1"), path.join("two/libsame.so.1")).unwrap();
    assert_eq!(close(path.join("program"), &[], &[]).conflicts, []);
}

#[test]
fn two_names_for_one_file_are_one_library() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    // Without a soname, the file's name is what gets needed.
    cc(path, "libx.so.1", "int x(void) { return 0; }", "-shared");
    symlink("libx.so.1", path.join("libalias.so")).unwrap();
    cc(
        path,
        "liby.so",
        "int x(void); int y(void) { return x(); }",
        &format!("-shared -Wl,-soname,liby.so {RPATH}$ORIGIN -L. -l:libx.so.1"),
    );
    let source = "int x(void); int y(void); int main(void) { return x() + y(); }";
    cc(
        path,
        "program",
        source,
        &format!("{RPATH}$ORIGIN -L. -lalias -ly"),
    );
    let closure = close(path.join("program"), &[], &[]);
    let [x, y] = closure.libraries.as_slice() else {
        panic!("{:?}", closure.libraries)
    };
    assert_eq!(x.names, ["libalias.so", "libx.so.1"]);
    assert_eq!(x.needed_by, ["bootstrap", "lib/liby.so"]);
    assert_eq!(y.names, ["liby.so"]);
    assert_eq!(closure.conflicts, []);
}

#[test]
fn a_library_needed_by_its_path_cannot_be_had() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let absolute = path.join("libpath.so").display().to_string();
    for (name, why) in [
        (
            &*absolute,
            "needed by its path, which Lambda does not have\n",
        ),
        // The loader replaces tokens here, too.
        (
            "$ORIGIN/libpath.so",
            "needed by a path that starts from the file, and on",
        ),
    ] {
        let soname = format!("-shared -Wl,-soname,{name}");
        cc(path, "libpath.so", "int x(void) { return 0; }", &soname);
        let source = "int x(void); int main(void) { return x(); }";
        cc(path, "program", source, "libpath.so");
        let closure = close(path.join("program"), &[], &[]);
        let [unresolved] = closure.unresolved.as_slice() else {
            panic!("{:?}", closure.unresolved)
        };
        assert_eq!(
            (&*unresolved.name, &unresolved.why),
            (name, &Missing::ByPath)
        );
        let said = unresolved.to_string();
        assert!(said.contains(&format!("`{name}` is {why}")), "{said}");
    }
}

#[test]
fn configured_libraries_are_added_with_what_they_need() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let shared = "-shared -Wl,-soname";
    cc(
        path,
        "libneeded.so",
        "int n(void) { return 0; }",
        &format!("{shared},libneeded.so"),
    );
    cc(
        path,
        "plugins/plugin.so",
        "int n(void); int p(void) { return n(); }",
        &format!("{shared},libplugin.so.1 {RUNPATH}$ORIGIN/.. -L. -lneeded"),
    );
    cc(
        path,
        "libextra.so.2",
        "int e(void) { return 0; }",
        &format!("{shared},libextra.so.2"),
    );
    cc(path, "program", "int main(void) { return 0; }", "");
    let plugin = path.join("plugins/plugin.so");
    let missing = path.join("plugins/none.so");
    let extra = [
        plugin.to_str().unwrap(),
        "libextra.so.2",
        missing.to_str().unwrap(),
        "libc.so.6",
    ];
    let closure = close(path.join("program"), &extra, &[path.to_owned()]);
    let names: Vec<_> = closure
        .libraries
        .iter()
        .map(|l| l.names.join(" "))
        .collect();
    assert_eq!(
        names,
        ["libplugin.so.1 plugin.so", "libneeded.so", "libextra.so.2"]
    );
    assert_eq!(closure.libraries[0].found, Found::Path);
    assert_eq!(closure.libraries[2].found, Found::LibraryPath);
    let [unresolved] = closure.unresolved.as_slice() else {
        panic!("{:?}", closure.unresolved)
    };
    assert_eq!(unresolved.name, missing.to_str().unwrap());
}

/// A runtime that has a `libversions.so.1`, up to `VERS_1.0`.
const OLD: Runtime = Runtime {
    name: "provided.test",
    rows: &[
        Row {
            soname: "libversions.so.1",
            package: "versions",
            machines: &[HOST],
            versions: &[Versions {
                prefix: "VERS_",
                newest: "1.0",
                others: &[],
            }],
            source: "this test",
        },
        PROVIDED_AL2023.rows[0],
    ],
};

#[test]
fn a_library_of_the_runtime_is_bundled_only_when_a_newer_one_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    fs::write(
        path.join("map"),
        "VERS_1.0 { global: old; local: *; };\nVERS_2.0 { global: new; } VERS_1.0;\n",
    )
    .unwrap();
    cc(
        path,
        "libversions.so.1",
        "int old(void) { return 0; } int new(void) { return 0; }",
        "-shared -Wl,-soname,libversions.so.1,--version-script,map",
    );
    for (name, bundled) in [("old", false), ("new", true)] {
        let source = format!("int {name}(void); int user(void) {{ return {name}(); }}");
        cc(
            path,
            "libuser.so",
            &source,
            "-shared -Wl,-soname,libuser.so libversions.so.1",
        );
        let source = "int user(void); int main(void) { return user(); }";
        cc(
            path,
            "program",
            source,
            "-Wl,--allow-shlib-undefined libuser.so",
        );
        let search = search_path(&[path.to_owned()]);
        let closure = closure(&object(path.join("program")), &[], &OLD, &search, &read);
        let library = closure
            .libraries
            .iter()
            .find(|l| l.names[0] == "libversions.so.1");
        let why = library.map(|library| library.despite_runtime.as_deref().unwrap());
        assert_eq!(
            why,
            bundled.then_some("`lib/libuser.so` needs `VERS_2.0` of it")
        );
        let provided = closure
            .provided
            .iter()
            .any(|p| p.row.soname == "libversions.so.1");
        assert_eq!(provided, !bundled, "{name}");
    }
}

#[test]
fn an_rpath_into_the_runtime_comes_before_what_is_bundled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    fs::write(path.join("map"), "VERS_2.0 { global: new; };\n").unwrap();
    let options = "-shared -Wl,-soname,libversions.so.1,--version-script,map";
    cc(
        path,
        "libversions.so.1",
        "int new(void) { return 0; }",
        options,
    );
    let cases = [
        (format!("{RPATH}/usr/lib64"), true),
        (format!("{RPATH}/nowhere:/usr//lib/../lib64/"), true),
        (format!("{RPATH}$ORIGIN/elsewhere:/$LIB"), true),
        (format!("{RUNPATH}/usr/lib64"), false),
        (format!("{RPATH}/usr/local/lib"), false),
        // The package's own directory is found first.
        (format!("{RPATH}$ORIGIN/../lib:/usr/lib64"), false),
        (String::new(), false),
    ];
    for (options, shadowed) in cases {
        let source = "int new(void); int main(void) { return new(); }";
        cc(
            path,
            "program",
            source,
            &format!("{options} libversions.so.1"),
        );
        let search = search_path(&[path.to_owned()]);
        let program = object(path.join("program"));
        let closure = closure(&program, &[], &OLD, &search, &read);
        assert_eq!(closure.libraries.len(), 1, "{options}");
        let verdict = would_start(&program, &closure, &OLD, HOST);
        let [problem] = verdict.problems.as_slice() else {
            assert!(!shadowed && verdict.problems.is_empty(), "{options}");
            continue;
        };
        assert!(shadowed, "{options}");
        assert_eq!(problem.file, "lib/libversions.so.1");
        let text = explain(&verdict.problems, &OLD, HOST);
        let rpath = program.image.rpath.unwrap().rsplit(':').next().unwrap();
        assert!(
            text.starts_with(&format!(
                "`lib/libversions.so.1` would not be loaded: `bootstrap` has `{rpath}` in its \
                 rpath, where `provided.test` has its own\n  found: `"
            )),
            "{text}"
        );
        assert!(text.contains("bundled because: `bootstrap` needs `VERS_2.0` of it\nhelp: "));
    }
}

/// A runtime with a `libuser.so` that needs its `libversions.so.1`, up to `VERS_1.0`.
const OLD_WITH_USER: Runtime = Runtime {
    name: "provided.test",
    rows: &[
        Row {
            soname: "libuser.so",
            versions: &[],
            ..OLD.rows[0]
        },
        OLD.rows[0],
        PROVIDED_AL2023.rows[0],
    ],
};

#[test]
fn a_newer_library_is_bundled_though_one_of_the_runtime_needs_it_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let map = "VERS_1.0 { global: old; local: *; };\nVERS_2.0 { global: new; } VERS_1.0;\n";
    fs::write(path.join("map"), map).unwrap();
    cc(
        path,
        "libversions.so.1",
        "int old(void) { return 0; } int new(void) { return 0; }",
        "-shared -Wl,-soname,libversions.so.1,--version-script,map",
    );
    cc(
        path,
        "libuser.so",
        "int old(void); int user(void) { return old(); }",
        "-shared -Wl,-soname,libuser.so libversions.so.1",
    );
    // As a C++ program that uses `_Float16`: libstdc++ needs libgcc_s, and comes first.
    cc(
        path,
        "program",
        "int user(void); int new(void); int main(void) { return user() + new(); }",
        "libuser.so libversions.so.1",
    );
    let search = search_path(&[path.to_owned()]);
    let program = object(path.join("program"));
    let closure = closure(&program, &[], &OLD_WITH_USER, &search, &read);
    let [library] = closure.libraries.as_slice() else {
        panic!("{:?}", closure.libraries)
    };
    assert_eq!(library.names, ["libversions.so.1"]);
    assert_eq!(library.needed_by, ["libuser.so", "bootstrap"]);
    assert_eq!(
        library.despite_runtime.as_deref(),
        Some("`bootstrap` needs `VERS_2.0` of it")
    );
    let provided: Vec<_> = closure.provided.iter().map(|p| p.row.soname).collect();
    assert_eq!(provided, ["libuser.so", "libc.so.6"]);
    let verdict = would_start(&program, &closure, &OLD_WITH_USER, HOST);
    assert_eq!(verdict, Verdict::default());
}

#[test]
fn what_may_be_opened_at_run_time_is_hinted_at() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let source = r#"
        #include <stdio.h>
        __asm__(".pushsection .note.dlopen, \"a\", %note\n.balign 4\n"
            ".4byte 4, 1f - 0f, 0x407c0c0a\n.asciz \"FDO\"\n"
            "0: .asciz \"[{\\\"soname\\\":[\\\"libnoted.so.1\\\"],\\\"feature\\\":\\\"notes\\\"}]\"\n1: .balign 4\n.popsection");
        int main(void) { puts("libopened.so.2"); puts("libm.so.6"); puts("/opt/libopened.so.2"); return 0; }
    "#;
    cc(path, "program", source, "");
    let program = object(path.join("program"));
    let known = |name: &str| PROVIDED_AL2023.row(name, HOST).is_some();
    let hints = dlopen::hints(&[("bootstrap", &program.image)], &known);
    let found: Vec<_> = hints
        .iter()
        .map(|h| (h.name.as_str(), h.declared, h.purpose.as_deref()))
        .collect();
    assert_eq!(
        found,
        [
            ("libnoted.so.1", true, Some("notes")),
            ("libopened.so.2", false, None)
        ]
    );
    assert_eq!(hints[1].files, BTreeSet::from(["bootstrap".to_owned()]));
}
