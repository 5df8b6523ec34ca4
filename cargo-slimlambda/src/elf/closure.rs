//! What a needed closure consists of: libraries to bundle, libraries of the runtime, what is missing.

use std::fmt;
use std::path::PathBuf;

use super::image::Image;
use super::runtime::Row;
use super::search::Found;

/// An ELF file with a name for messages.
#[derive(Debug, Clone)]
pub struct Object<'a> {
    /// What messages call it: its path in the package.
    pub label: String,
    /// Where it was found.
    pub path: PathBuf,
    /// The same without symlinks.
    pub real: PathBuf,
    /// What it says about itself.
    pub image: Image<'a>,
}

/// A library that goes into the package's `lib/`.
#[derive(Debug, Clone)]
pub struct Library<'a> {
    /// The file.
    pub object: Object<'a>,
    /// The names it must have in `lib/`: the first is the file's, the others are symlinks to it
    /// (as copies they would be loaded twice).
    pub names: Vec<String>,
    /// Labels of those that need it.
    pub needed_by: Vec<String>,
    /// The rule that found it.
    pub found: Found,
    /// Why it is bundled although the runtime has it.
    pub despite_runtime: Option<String>,
    /// What makes the loader take the runtime's copy all the same.
    pub shadowed: Option<Shadow>,
}

/// An rpath with a directory of the runtime's libraries in front of the package's: it precedes even
/// `LD_LIBRARY_PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shadow {
    /// Label of the file with the rpath.
    pub file: String,
    /// The directory, as it is written there.
    pub directory: String,
}

/// A library that the runtime brings along.
#[derive(Debug, Clone)]
pub struct Provided<'a> {
    /// What is known about it.
    pub row: &'static Row,
    /// Labels of those that need it.
    pub needed_by: Vec<String>,
    /// The build machine's own copy, if it has one: it tells what symbols such a library has.
    pub copy: Option<Object<'a>>,
}

/// A library that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unresolved {
    /// The name it is needed by.
    pub name: String,
    /// Labels of those that need it.
    pub needed_by: Vec<String>,
    /// What is wrong.
    pub why: Missing,
}

/// Why a library cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// No directory has it.
    NotFound {
        /// Directories in order, as they are written in the files or on the command line.
        searched: Vec<String>,
        /// Files of that name which the loader passes over, and why.
        passed_over: Vec<(PathBuf, String)>,
    },
    /// The loader would open this file, and stop there.
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It is needed by a path, and the loader looks there only. One with `$ORIGIN` could lead to where
    /// the package has it, but the plan may put the two files under different directories.
    ByPath,
    /// Part of glibc, hence never bundled, but not in the runtime.
    Glibc,
}

/// Two different files for one name; the loader takes the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The soname.
    pub soname: String,
    /// The file that is taken.
    pub taken: PathBuf,
    /// The other file.
    pub other: PathBuf,
    /// Who would rather have the other.
    pub needed_by: String,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Conflict {
            soname,
            taken,
            other,
            needed_by,
        } = self;
        let (taken, other) = (taken.display(), other.display());
        write!(
            f,
            "two different libraries with soname `{soname}`: `{taken}` and `{other}` (for \
             `{needed_by}`); the first is bundled, as the loader would take it for both"
        )
    }
}

/// Everything that the loader would load, by provider.
#[derive(Debug, Clone, Default)]
pub struct Closure<'a> {
    /// What goes into the package, in load order.
    pub libraries: Vec<Library<'a>>,
    /// What the runtime brings along, in load order.
    pub provided: Vec<Provided<'a>>,
    /// What nobody has. The package would not start.
    pub unresolved: Vec<Unresolved>,
    /// Worth a warning.
    pub conflicts: Vec<Conflict>,
}
