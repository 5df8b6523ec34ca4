//! Needed closure: from `DT_NEEDED`, who provides each library, as the dynamic loader decides it.
//!
//! In comes the executable, the search path and a way to read files; out comes what must go into the
//! package's `lib/`, what the runtime brings along, and what nobody has. The loader's rules are kept
//! to the letter (breadth first, one object per soname, rpath and runpath differ, files for other
//! machines are passed over), so that what is bundled is what ran on the build machine.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

pub use super::closure::{
    Closure, Conflict, Library, Missing, Object, Provided, Shadow, Unresolved,
};
use super::image::{Image, ImageError};
use super::runtime::{self, Row, Runtime};
pub use super::search::{Found, SearchPath, system_directories};
use super::search::{Place, Seeker, places, shadow};

/// A file as it was read.
#[derive(Debug, Clone)]
pub struct File<'a> {
    /// The path without symlinks: the same for two names of one file.
    pub real: PathBuf,
    /// The contents.
    pub bytes: &'a [u8],
}

/// Reads a file; `NotFound` is an ordinary answer.
pub type Read<'r, 'a> = &'r dyn Fn(&Path) -> io::Result<File<'a>>;

/// What messages call those who need what the configuration lists.
const CONFIGURED: &str = "libraries";

/// Follows `DT_NEEDED` from `root`, then from each of `extra` (sonames, or paths where there is a
/// `/`), which are opened at run time.
///
/// A library that the runtime has is bundled all the same when some file of the package needs a newer
/// version of it and the build machine's copy has that version; glibc never is.
pub fn closure<'a>(
    root: &Object<'a>,
    extra: &[String],
    runtime: &Runtime,
    search: &SearchPath,
    read: Read<'_, 'a>,
) -> Closure<'a> {
    // Bundling one library can bring new needs, so this is repeated until a turn adds no row of the
    // runtime's table, of which there are few: it ends.
    let mut bundled: BTreeMap<String, String> = extra
        .iter()
        .filter(|name| runtime.row(name, root.image.machine).is_some())
        .map(|name| (name.clone(), format!("listed in `{CONFIGURED}`")))
        .collect();
    loop {
        let mut walk = Walk {
            root,
            runtime,
            search,
            read,
            bundled: &bundled,
            loaders: Vec::new(),
            closure: Closure::default(),
        };
        walk.follow(extra);
        let closure = walk.closure;
        let known = bundled.len();
        bundled.extend(needed_newer(root, &closure));
        if bundled.len() == known {
            return closure;
        }
    }
}

/// Provided libraries of which the package needs more than the runtime has and the build machine
/// could give it, with the reason.
fn needed_newer(root: &Object<'_>, closure: &Closure<'_>) -> BTreeMap<String, String> {
    let mut newer = BTreeMap::new();
    let objects = std::iter::once(root).chain(closure.libraries.iter().map(|l| &l.object));
    for object in objects {
        for need in object.image.version_needs.iter().filter(|need| !need.weak) {
            let provided = closure
                .provided
                .iter()
                .find(|provided| provided.row.soname == need.file && !runtime::is_glibc(need.file));
            let Some(Provided {
                row,
                copy: Some(copy),
                ..
            }) = provided
            else {
                continue;
            };
            if !row.has(need.version) && copy.image.version_definitions.contains(&need.version) {
                newer.entry(row.soname.to_owned()).or_insert_with(|| {
                    format!("`{}` needs `{}` of it", object.label, need.version)
                });
            }
        }
    }
    newer
}

struct Walk<'w, 'a> {
    root: &'w Object<'a>,
    runtime: &'w Runtime,
    search: &'w SearchPath,
    read: Read<'w, 'a>,
    /// Runtime libraries to bundle all the same, and why.
    bundled: &'w BTreeMap<String, String>,
    /// For each library: who it was loaded for, `None` being the executable.
    loaders: Vec<Option<usize>>,
    closure: Closure<'a>,
}

impl<'a> Walk<'_, 'a> {
    fn follow(&mut self, extra: &[String]) {
        for name in self.root.image.needed.clone() {
            self.resolve(name, None, None);
        }
        let mut next = self.follow_libraries(0);
        for name in extra {
            if name.contains('/') {
                self.add_path(name);
            } else {
                self.resolve(name, None, Some(CONFIGURED));
            }
            next = self.follow_libraries(next);
        }
    }

    /// What the libraries from `next` on need, and those then added, and so on.
    fn follow_libraries(&mut self, mut next: usize) -> usize {
        while let Some(library) = self.closure.libraries.get(next) {
            for name in library.object.image.needed.clone() {
                self.resolve(name, Some(next), None);
            }
            next += 1;
        }
        next
    }

    /// Finds one name for the needer (`None`: the executable), who may go by another name.
    fn resolve(&mut self, name: &str, needer: Option<usize>, alias: Option<&str>) {
        let label = alias.unwrap_or(&self.object(needer).label).to_owned();
        if let Some(index) = self.loaded(name) {
            self.note_conflict(name, needer, index, &label);
            add(&mut self.closure.libraries[index].needed_by, &label);
            return;
        }
        let (directory, plain) = name.rsplit_once('/').unwrap_or(("", name));
        let from_runtime = directory.is_empty()
            || ["/lib64", "/usr/lib64", "/lib", "/usr/lib"].contains(&directory);
        let row = self
            .runtime
            .row(plain, self.root.image.machine)
            .filter(|_| from_runtime);
        if let Some(row) = row
            && (!self.bundled.contains_key(row.soname) || runtime::is_glibc(row.soname))
        {
            return self.provide(row, needer, label);
        }
        if self.is_musl() && (plain == "libc.so" || plain.starts_with("libc.musl-")) {
            // The interpreter is that library; it is what is wrong, and reported as such.
            return;
        }
        if runtime::is_glibc(plain) {
            return self.missing(name, label, Missing::Glibc);
        }
        if name.contains('/') {
            return self.missing(name, label, Missing::ByPath);
        }
        match self.search(name, needer) {
            Ok((file, found)) => self.load(file, name, needer, label, found),
            Err(why) => match row {
                Some(row) => self.provide(row, needer, label),
                None => self.missing(name, label, why),
            },
        }
    }

    /// A file that the configuration names.
    fn add_path(&mut self, path: &str) {
        let object = match self.open_path(path) {
            Ok(object) => object,
            Err(why) => return self.missing(path, CONFIGURED.to_owned(), why),
        };
        let file_name = object.path.file_name().unwrap_or_default();
        let file_name = file_name.to_string_lossy().into_owned();
        let name = object.image.soname.unwrap_or(&file_name).to_owned();
        if runtime::is_glibc(&name) {
            return self.missing(path, CONFIGURED.to_owned(), Missing::Glibc);
        }
        if let Some(index) = self.loaded(&name) {
            if self.closure.libraries[index].object.real != object.real {
                self.push_conflict(&name, index, &object, CONFIGURED);
            }
        } else {
            let object = Object {
                label: format!("lib/{name}"),
                ..object
            };
            self.load(object, &name, None, CONFIGURED.to_owned(), Found::Path);
        }
        let Some(index) = self.loaded(&name) else {
            return;
        };
        // Those who open it may use either name.
        add(&mut self.closure.libraries[index].names, &file_name);
        add(&mut self.closure.libraries[index].needed_by, CONFIGURED);
        // The package's directory comes before the runtime's.
        let provided = &mut self.closure.provided;
        if let Some(at) = provided.iter().position(|p| p.row.soname == name) {
            let needed_by = provided.remove(at).needed_by;
            self.closure.libraries[index].needed_by.extend(needed_by);
        }
    }

    fn open_path(&self, path: &str) -> Result<Object<'a>, Missing> {
        let unusable = |reason: String| Missing::Unusable {
            path: PathBuf::from(path),
            reason,
        };
        let file = (self.read)(Path::new(path)).map_err(|error| unusable(error.to_string()))?;
        let image = Image::parse(file.bytes).map_err(|error| unusable(error.to_string()))?;
        Ok(Object {
            label: path.to_owned(),
            path: PathBuf::from(path),
            real: file.real,
            image,
        })
    }

    fn load(
        &mut self,
        object: Object<'a>,
        name: &str,
        needer: Option<usize>,
        label: String,
        found: Found,
    ) {
        let same_file = |library: &&mut Library<'_>| library.object.real == object.real;
        if let Some(library) = self.closure.libraries.iter_mut().find(same_file) {
            add(&mut library.names, name);
            add(&mut library.needed_by, &label);
            return;
        }
        if let Some(soname) = object.image.soname
            && let Some(index) = self.loaded(soname)
        {
            self.push_conflict(soname, index, &object, &label);
        }
        let of_runtime = self.runtime.row(name, self.root.image.machine).is_some();
        let shadowed = match of_runtime {
            true => shadow(&self.chain(needer)),
            false => None,
        };
        self.loaders.push(needer);
        self.closure.libraries.push(Library {
            object,
            names: vec![name.to_owned()],
            needed_by: vec![label],
            found,
            despite_runtime: self.bundled.get(name).cloned(),
            shadowed,
        });
    }

    /// Takes a library from the runtime, and with it those of the runtime that it needs in turn.
    fn provide(&mut self, row: &'static Row, needer: Option<usize>, label: String) {
        if let Some(provided) = self.closure.provided.iter_mut().find(|p| p.row == row) {
            return add(&mut provided.needed_by, &label);
        }
        let copy = self.search(row.soname, needer).ok().map(|(copy, _)| copy);
        let needed = copy.as_ref().map(|copy| copy.image.needed.clone());
        self.closure.provided.push(Provided {
            row,
            needed_by: vec![label],
            copy,
        });
        for name in needed.unwrap_or_default() {
            // The copy may need what the runtime's own does not: the table has the last word.
            if self.runtime.row(name, self.root.image.machine).is_some() {
                self.resolve(name, needer, Some(row.soname));
            }
        }
    }

    fn missing(&mut self, name: &str, label: String, why: Missing) {
        let Some(known) = self.closure.unresolved.iter_mut().find(|u| u.name == name) else {
            let unresolved = Unresolved {
                name: name.to_owned(),
                needed_by: vec![label],
                why,
            };
            return self.closure.unresolved.push(unresolved);
        };
        add(&mut known.needed_by, &label);
        if let (
            Missing::NotFound {
                searched,
                passed_over,
            },
            Missing::NotFound {
                searched: more,
                passed_over: others,
            },
        ) = (&mut known.why, why)
        {
            more.iter().for_each(|place| add(searched, place));
            passed_over.extend(others);
            passed_over.dedup();
        }
    }

    /// Tries the places for a name in order, as the loader does: a file for another machine is passed over,
    /// any other bad file is the end.
    fn search(&self, name: &str, needer: Option<usize>) -> Result<(Object<'a>, Found), Missing> {
        let mut searched = Vec::new();
        let mut passed_over = Vec::new();
        for Place {
            found,
            said,
            directory,
        } in places(&self.chain(needer), self.search)
        {
            add(&mut searched, &said);
            let path = directory.join(name);
            let file = match (self.read)(&path) {
                Ok(file) => file,
                Err(error) => {
                    if !matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                    ) {
                        passed_over.push((path, error.to_string()));
                    }
                    continue;
                }
            };
            match Image::parse(file.bytes) {
                Ok(image) if image.machine == self.root.image.machine => {
                    let label = format!("lib/{name}");
                    let real = file.real;
                    let object = Object {
                        label,
                        path,
                        real,
                        image,
                    };
                    return Ok((object, found));
                }
                Ok(image) => passed_over.push((path, format!("it is for {}", image.machine))),
                Err(error @ (ImageError::Class32 | ImageError::Machine(_))) => {
                    passed_over.push((path, format!("it is {error}")));
                }
                Err(error) => {
                    let reason = error.to_string();
                    return Err(Missing::Unusable { path, reason });
                }
            }
        }
        passed_over.dedup();
        Err(Missing::NotFound {
            searched,
            passed_over,
        })
    }

    /// The needer, who it was loaded for, and so on up to the executable.
    fn chain(&self, needer: Option<usize>) -> Vec<Seeker<'_, 'a>> {
        let mut chain = Vec::new();
        let mut next = needer;
        while let Some(index) = next {
            let object = self.object(next);
            let origin = object.path.parent().unwrap_or(Path::new("/"));
            chain.push(Seeker {
                label: &object.label,
                origin,
                image: &object.image,
            });
            next = self.loaders[index];
        }
        // The executable's $ORIGIN comes from /proc/self/exe, where symlinks are resolved.
        let origin = self.root.real.parent().unwrap_or(Path::new("/"));
        chain.push(Seeker {
            label: &self.root.label,
            origin,
            image: &self.root.image,
        });
        chain
    }

    fn object(&self, index: Option<usize>) -> &Object<'a> {
        index.map_or(self.root, |index| &self.closure.libraries[index].object)
    }

    /// The library that is already loaded under a name, or has it as its soname.
    fn loaded(&self, name: &str) -> Option<usize> {
        self.closure.libraries.iter().position(|library| {
            library.names.iter().any(|known| known == name)
                || library.object.image.soname == Some(name)
        })
    }

    /// Whether this needer, left alone, would get another file than the one loaded.
    fn note_conflict(&mut self, name: &str, needer: Option<usize>, index: usize, label: &str) {
        if !name.contains('/')
            && let Ok((other, _)) = self.search(name, needer)
            && other.real != self.closure.libraries[index].object.real
        {
            self.push_conflict(name, index, &other, label);
        }
    }

    fn push_conflict(&mut self, soname: &str, taken: usize, other: &Object<'a>, label: &str) {
        let taken = &self.closure.libraries[taken].object;
        if taken.image.bytes == other.image.bytes {
            return;
        }
        let conflict = Conflict {
            soname: soname.to_owned(),
            taken: taken.path.clone(),
            other: other.path.clone(),
            needed_by: label.to_owned(),
        };
        if !self.closure.conflicts.contains(&conflict) {
            self.closure.conflicts.push(conflict);
        }
    }

    fn is_musl(&self) -> bool {
        self.root
            .image
            .interpreter
            .is_some_and(|path| path.contains("ld-musl"))
    }
}

fn add(list: &mut Vec<String>, item: &str) {
    if !list.iter().any(|known| known == item) {
        list.push(item.to_owned());
    }
}
