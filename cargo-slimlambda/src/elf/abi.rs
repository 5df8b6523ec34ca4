//! Would it start? The dynamic loader's checks, made at build time against the runtime's table.
//!
//! In come the executable and its needed closure; out come the reasons why the loader would refuse
//! them on Lambda: a file for another machine, an interpreter or a library that is not there, a symbol
//! version that a library does not have, a symbol that nobody defines. What cannot be decided here
//! (the runtime has the library, this machine has no copy of it to look into) is a note.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use object::read::archive::ArchiveFile;
use object::{Object as _, ObjectSymbol as _};

use super::closure::{Closure, Library, Object, Shadow, Unresolved};
use super::explain::some;
use super::identify;
use super::image::{FileType, Machine};
use super::runtime::{self, Row, Runtime};

/// What there is to say about a package's chances.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Reasons why it would not start; none: it would.
    pub problems: Vec<Problem>,
    /// What could not be decided.
    pub notes: Vec<String>,
}

/// A reason why a package would not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Path in the package of the file that is to blame, or that needs what is not there.
    pub file: String,
    /// Where that file came from.
    pub path: PathBuf,
    /// What is wrong.
    pub fault: Fault,
    /// Why the file is bundled although the runtime has a library of that name.
    pub despite_runtime: Option<String>,
    /// What brought it into the executable, in words, as far as [`attribute`] could tell.
    pub pulled_in_by: Option<String>,
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It is for another machine.
    Machine {
        /// What it is for.
        found: Machine,
        /// What the package is for.
        wanted: Machine,
    },
    /// It is to be started, and is no program.
    NotExecutable {
        /// What it is.
        found: &'static str,
    },
    /// It asks for a dynamic loader that the runtime does not have.
    Interpreter {
        /// What it asks for.
        found: String,
        /// What there is.
        wanted: &'static str,
    },
    /// It is bundled, but the loader would take the runtime's.
    Shadowed(Shadow),
    /// It needs symbol versions that the library does not define.
    Versions {
        /// The library.
        soname: String,
        /// What is missing, oldest first.
        missing: Vec<MissingVersion>,
        /// Who was asked.
        provider: Provider,
    },
    /// It needs symbols that no file defines.
    Symbols(Vec<String>),
    /// It needs a library that cannot be had.
    Library(Unresolved),
}

/// A symbol version that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingVersion {
    /// Its name, as in `GLIBC_2.36`.
    pub version: String,
    /// The symbols wanted in it; none when the version itself is the point.
    pub symbols: Vec<String>,
}

/// Who provides a library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provider {
    /// The runtime, whose newest version of the family is this.
    Runtime {
        /// Newest version of the same family, if the library has such a family at all.
        newest: Option<String>,
    },
    /// The package: this very file.
    Bundled(PathBuf),
}

/// Checks everything that the loader checks.
pub fn would_start(
    root: &Object<'_>,
    closure: &Closure<'_>,
    runtime: &Runtime,
    machine: Machine,
) -> Verdict {
    let objects: Vec<&Object<'_>> = std::iter::once(root)
        .chain(closure.libraries.iter().map(|l| &l.object))
        .collect();
    let mut verdict = Verdict::default();
    for object in &objects {
        if object.image.machine != machine {
            let fault = Fault::Machine {
                found: object.image.machine,
                wanted: machine,
            };
            verdict.problems.push(problem(object, fault));
        }
    }
    if !verdict.problems.is_empty() {
        // Everything else would follow from that.
        return verdict;
    }
    if !root.image.is_executable() {
        let found = match root.image.file_type {
            FileType::Other => "a relocatable object or a core dump",
            _ => "a shared library",
        };
        let fault = Fault::NotExecutable { found };
        verdict.problems.push(problem(root, fault));
        return verdict;
    }
    if identify::is_upx(&root.image) {
        verdict.notes.push(format!(
            "`{}` is packed with UPX, which hides what it needs: nothing of that could be checked",
            root.label
        ));
    }
    let interpreters = runtime::interpreters(machine);
    if let Some(found) = root.image.interpreter
        && !interpreters.contains(&found)
    {
        let fault = Fault::Interpreter {
            found: found.to_owned(),
            wanted: interpreters[0],
        };
        verdict.problems.push(problem(root, fault));
        if found.contains("ld-musl") {
            // What is linked against musl has nothing to do with the runtime's libraries.
            return verdict;
        }
    }
    for unresolved in &closure.unresolved {
        let needer = |object: &&&Object<'_>| unresolved.needed_by.contains(&object.label);
        let object = objects.iter().find(needer).unwrap_or(&root);
        verdict
            .problems
            .push(problem(object, Fault::Library(unresolved.clone())));
    }
    for library in &closure.libraries {
        if let Some(shadow) = &library.shadowed {
            let fault = Fault::Shadowed(shadow.clone());
            verdict.problems.push(problem(&library.object, fault));
        }
    }
    for object in &objects {
        check_versions(object, closure, runtime, &mut verdict);
    }
    check_symbols(&objects, closure, &mut verdict);
    for problem in &mut verdict.problems {
        let library = closure.libraries.iter();
        let library = library.filter(|library| library.object.label == problem.file);
        problem.despite_runtime = library.filter_map(|l| l.despite_runtime.clone()).next();
    }
    verdict
}

fn problem(object: &Object<'_>, fault: Fault) -> Problem {
    Problem {
        file: object.label.clone(),
        path: object.path.clone(),
        fault,
        despite_runtime: None,
        pulled_in_by: None,
    }
}

/// The loader refuses a file when a library that it needs defines versions, but not the one it needs.
fn check_versions(
    object: &Object<'_>,
    closure: &Closure<'_>,
    runtime: &Runtime,
    verdict: &mut Verdict,
) {
    // By library; within it by version, in the order of the file.
    let mut missing: BTreeMap<&str, (Provider, Vec<MissingVersion>)> = BTreeMap::new();
    for need in object.image.version_needs.iter().filter(|need| !need.weak) {
        let provider = if let Some(library) = bundled(closure, need.file) {
            let defined = &library.object.image.version_definitions;
            if defined.is_empty() || defined.contains(&need.version) {
                continue;
            }
            Provider::Bundled(library.object.path.clone())
        } else if let Some(row) = runtime.row(need.file, object.image.machine) {
            if row.has(need.version) {
                continue;
            }
            Provider::Runtime {
                newest: row.newest(need.version),
            }
        } else {
            // Unresolved, which has been said.
            continue;
        };
        let symbols = object
            .image
            .symbols
            .iter()
            .filter(|symbol| {
                symbol.undefined
                    && symbol.version == Some(need.version)
                    && symbol.version_file == Some(need.file)
            })
            .map(|symbol| symbol.name.to_owned())
            .collect();
        let version = MissingVersion {
            version: need.version.to_owned(),
            symbols,
        };
        missing
            .entry(need.file)
            .or_insert((provider, Vec::new()))
            .1
            .push(version);
    }
    for (soname, (provider, mut missing)) in missing {
        missing.sort_by(|a, b| {
            runtime::is_newer(&a.version, &b.version)
                .cmp(&runtime::is_newer(&b.version, &a.version))
        });
        let soname = soname.to_owned();
        verdict.problems.push(problem(
            object,
            Fault::Versions {
                soname,
                missing,
                provider,
            },
        ));
    }
}

/// The names that are defined, each with the versions it is defined in. Copies of the runtime's
/// libraries count as far as the runtime has the version.
fn definitions<'a>(
    objects: &[&Object<'a>],
    closure: &Closure<'a>,
) -> HashMap<&'a str, Vec<Option<&'a str>>> {
    let bundled = objects.iter().map(|object| (*object, None));
    let provided = closure.provided.iter();
    let copies = provided.filter_map(|p| Some((p.copy.as_ref()?, Some(p.row))));
    let mut defined: HashMap<&str, Vec<Option<&str>>> = HashMap::new();
    for (object, row) in bundled.chain(copies) {
        for symbol in object.image.symbols.iter().filter(|s| !s.undefined) {
            let there = |version| row.is_none_or(|row: &Row| row.has(version));
            if symbol.version.is_none_or(there) {
                defined.entry(symbol.name).or_default().push(symbol.version);
            }
        }
    }
    defined
}

/// Every symbol that must be there is defined by someone.
fn check_symbols(objects: &[&Object<'_>], closure: &Closure<'_>, verdict: &mut Verdict) {
    if !closure.unresolved.is_empty() {
        // Symbols of the missing libraries would be named one by one.
        return;
    }
    let defined = definitions(objects, closure);
    let unseen = closure.provided.iter().filter(|p| p.copy.is_none());
    let unseen: Vec<&str> = unseen.map(|p| p.row.soname).collect();
    for object in objects {
        let mut nobody = BTreeSet::new();
        for symbol in object
            .image
            .symbols
            .iter()
            .filter(|s| s.undefined && !s.weak)
        {
            // A library of the runtime that has the version has the symbol: the linker saw to that.
            // Where a library does not have the version, that has been said.
            let settled = symbol.version_file.is_some_and(|file| {
                closure.provided.iter().any(|p| p.row.soname == file)
                    || lacks_version(closure, file, symbol.version)
            });
            // A definition without a version satisfies any reference, as does any definition a
            // reference without a version. (The loader is stricter with the latter only where all
            // definitions are old ones kept for old programs, which none links to by accident.)
            let found = defined.get(symbol.name).is_some_and(|versions| {
                let fits = |version: &Option<&str>| version.is_none() || *version == symbol.version;
                symbol.version.is_none() || versions.iter().any(fits)
            });
            if !settled && !found {
                nobody.insert(symbol.name.to_owned());
            }
        }
        if nobody.is_empty() {
            continue;
        }
        let nobody: Vec<String> = nobody.into_iter().collect();
        if unseen.is_empty() {
            let fault = Fault::Symbols(nobody);
            verdict.problems.push(problem(object, fault));
        } else {
            verdict.notes.push(format!(
                "could not tell whether the runtime defines {} for `{}`: this machine has no copy \
                 of {} for {} to look into",
                some(&nobody),
                object.label,
                some(&unseen),
                object.image.machine,
            ));
        }
    }
}

/// Whether a bundled library defines versions, but not this one.
fn lacks_version(closure: &Closure<'_>, soname: &str, version: Option<&str>) -> bool {
    bundled(closure, soname).is_some_and(|library| {
        let defined = &library.object.image.version_definitions;
        !defined.is_empty() && version.is_some_and(|version| !defined.contains(&version))
    })
}

fn bundled<'c, 'a>(closure: &'c Closure<'a>, soname: &str) -> Option<&'c Library<'a>> {
    closure.libraries.iter().find(|library| {
        library.names.iter().any(|name| name == soname)
            || library.object.image.soname == Some(soname)
    })
}

/// Which crates a symbol came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Users {
    /// Crates with object code that refers to it.
    pub crates: Vec<String>,
    /// Crates that hold LLVM bitcode only (LTO), which was not looked into, or cannot be read.
    pub not_visible: Vec<String>,
}

/// Looks for crates whose object code refers to one of `symbols`. `rlibs` are `.rlib` or `.a` files,
/// each with the name (and version) of its crate. That one cannot be read is no error: this explains a
/// problem that is proven already.
pub fn crates_using(symbols: &[String], rlibs: &[(String, PathBuf)]) -> Users {
    let mut users = Users::default();
    for (name, path) in rlibs {
        let bytes = std::fs::read(path).unwrap_or_default();
        let Ok(archive) = ArchiveFile::parse(&*bytes) else {
            users.not_visible.push(name.clone());
            continue;
        };
        let (mut uses, mut objects, mut bitcode) = (false, false, false);
        for member in archive.members().map_while(Result::ok) {
            let Ok(data) = member.data(&*bytes) else {
                continue;
            };
            if data.starts_with(b"BC\xC0\xDE") || data.starts_with(b"\xDE\xC0\x17\x0B") {
                bitcode = true;
            } else if let Ok(file) = object::File::parse(data)
                // The crate's metadata is wrapped into an object file, too.
                && member.name() != b"lib.rmeta"
            {
                objects = true;
                uses |= file.symbols().any(|symbol| {
                    symbol.is_undefined()
                        && symbol
                            .name()
                            .is_ok_and(|name| symbols.iter().any(|wanted| wanted == name))
                });
            }
        }
        if uses {
            users.crates.push(name.clone());
        } else if bitcode && !objects {
            users.not_visible.push(name.clone());
        }
    }
    users
}

/// Says for each problem of the executable which crates brought it in. Neither the executable's own
/// objects nor the standard library are among `rlibs`: they are what is left where no crate is found.
pub fn attribute(problems: &mut [Problem], root: &Object<'_>, rlibs: &[(String, PathBuf)]) {
    for problem in problems
        .iter_mut()
        .filter(|problem| problem.file == root.label)
    {
        let symbols: Vec<String> = match &problem.fault {
            Fault::Versions { missing, .. } => missing
                .iter()
                .flat_map(|missing| missing.symbols.clone())
                .collect(),
            Fault::Symbols(symbols) => symbols.clone(),
            _ => continue,
        };
        if symbols.is_empty() {
            continue;
        }
        let users = crates_using(&symbols, rlibs);
        problem.pulled_in_by = match (&*users.crates, &*users.not_visible) {
            _ if rlibs.is_empty() => None,
            ([], []) => Some("the binary itself or the standard library".to_owned()),
            ([], hidden) => Some(format!("not visible with LTO, as in {}", some(hidden))),
            (crates, _) => Some(some(crates)),
        };
    }
}
