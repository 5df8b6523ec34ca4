//! The words for what would not start: problem → what was found against what there is, and what to do.

use std::fmt::Write as _;

use super::abi::{Fault, MissingVersion, Problem, Provider};
use super::image::Machine;
use super::needed::{Missing, Unresolved};
use super::runtime::{self, Runtime};

/// One message for all problems, of which there is at least one: the only problem's own, or a heading and the problems below it, then
/// each advice once.
pub fn explain(problems: &[Problem], runtime: &Runtime, machine: Machine) -> String {
    let mut text = String::new();
    if let [problem] = problems {
        text.push_str(&describe(problem, runtime));
    } else {
        let _ = write!(text, "the package would not start on `{}`", runtime.name);
        for problem in problems {
            let _ = write!(
                text,
                "\n  {}",
                describe(problem, runtime).replace('\n', "\n  ")
            );
        }
    }
    let mut advice: Vec<String> = Vec::new();
    for problem in problems {
        let help = help(problem, machine);
        if !advice.contains(&help) {
            advice.push(help);
        }
    }
    for help in advice {
        let _ = write!(text, "\nhelp: {help}");
    }
    text
}

fn describe(problem: &Problem, runtime: &Runtime) -> String {
    let Problem {
        file,
        path,
        fault,
        despite_runtime,
        pulled_in_by,
    } = problem;
    let mut text = match fault {
        Fault::Machine { found, wanted } => {
            format!(
                "`{file}` is for {found}, the package is for {wanted}\n  found: `{}`",
                path.display()
            )
        }
        Fault::NotExecutable { found } => {
            format!(
                "`{file}` is not a program but {found}\n  found: `{}`",
                path.display()
            )
        }
        Fault::Interpreter { found, wanted } => {
            format!(
                "`{file}` asks for the dynamic loader `{found}`, `{}` has `{wanted}`",
                runtime.name
            )
        }
        Fault::Shadowed(shadow) => {
            format!(
                "`{file}` would not be loaded: `{}` has `{}` in its rpath, where `{}` has its own",
                shadow.file, shadow.directory, runtime.name
            )
        }
        Fault::Versions {
            soname,
            missing,
            provider,
        } => describe_versions(file, soname, missing, provider, runtime),
        Fault::Symbols(symbols) => {
            format!(
                "`{file}` needs symbols that no library defines\n  symbols: {}",
                some(symbols)
            )
        }
        Fault::Library(unresolved) => unresolved.describe(),
    };
    if !matches!(fault, Fault::Library(_) | Fault::Machine { .. }) && file.starts_with("lib/") {
        let _ = write!(text, "\n  found: `{}`", path.display());
    }
    if let Some(why) = despite_runtime {
        let _ = write!(text, "\n  bundled because: {why}");
    }
    if let Some(by) = pulled_in_by {
        let _ = write!(text, "\n  pulled in by: {by}");
    }
    text
}

fn describe_versions(
    file: &str,
    soname: &str,
    missing: &[MissingVersion],
    provider: &Provider,
    runtime: &Runtime,
) -> String {
    let versions: Vec<&str> = missing.iter().rev().map(|m| m.version.as_str()).collect();
    let has = match provider {
        Provider::Runtime {
            newest: Some(newest),
        } => {
            format!("`{}` has up to `{newest}`", runtime.name)
        }
        Provider::Runtime { newest: None } => format!("`{}` does not have it", runtime.name),
        Provider::Bundled(path) => format!("the bundled `{}` does not define it", path.display()),
    };
    let mut text = format!("`{file}` needs {} of `{soname}`, {has}", some(&versions));
    let symbols: Vec<&str> = missing
        .iter()
        .rev()
        .flat_map(|m| m.symbols.iter().map(String::as_str))
        .collect();
    if !symbols.is_empty() {
        let _ = write!(text, "\n  symbols: {}", some(&symbols));
    }
    text
}

fn help(problem: &Problem, machine: Machine) -> String {
    let glibc = format!("--compiler cargo-zigbuild --target {machine}-unknown-linux-gnu.2.34");
    let library = problem.file.starts_with("lib/");
    match &problem.fault {
        Fault::Machine { wanted, .. } if library => {
            format!("put a directory with its {wanted} build first with `--library-path`")
        }
        Fault::Machine { wanted, .. } => {
            let flag = match wanted {
                Machine::X86_64 => "--x86-64",
                Machine::Aarch64 => "--arm64",
            };
            format!("build it for {wanted} with `{flag}`")
        }
        Fault::NotExecutable { .. } => {
            "give `--binary` a linked executable; Lambda starts a program, it does not load a library"
                .to_owned()
        }
        Fault::Interpreter { found, .. } if found.contains("ld-musl") => {
            "link musl statically (`-C target-feature=+crt-static`), or build for a `-gnu` target"
                .to_owned()
        }
        Fault::Interpreter { .. } => {
            "link without `--dynamic-linker`, or set it with `patchelf --set-interpreter`"
                .to_owned()
        }
        Fault::Shadowed(shadow) => {
            format!(
                "link `{}` with `-Wl,--enable-new-dtags`, or take it out with `patchelf \
                 --remove-rpath`",
                shadow.file
            )
        }
        Fault::Versions {
            soname, missing, ..
        } if runtime::is_glibc(soname) => {
            let only = |name: &str| missing.iter().all(|missing| missing.version == name);
            if only("GLIBC_ABI_DT_RELR") {
                "link with `-z nopack-relative-relocs`".to_owned()
            } else if only("GLIBC_PRIVATE") {
                "such symbols change with every build of glibc: use a library that does without"
                    .to_owned()
            } else if problem.despite_runtime.is_some() {
                format!(
                    "the runtime's own is too old: build what needs it with GCC 11 or older, with \
                     `{glibc}`, or on Amazon Linux 2023"
                )
            } else if library {
                format!(
                    "use a `{}` made for glibc 2.34 or older (`manylinux_2_34`), or build it on \
                     Amazon Linux 2023",
                    problem.file.trim_start_matches("lib/")
                )
            } else {
                format!("build against an older glibc with `{glibc}`, or on Amazon Linux 2023")
            }
        }
        Fault::Versions {
            soname,
            provider: Provider::Runtime { .. },
            ..
        } => format!(
            "put a directory with a newer `{soname}` first with `--library-path`, and it is bundled"
        ),
        Fault::Versions { soname, .. } => {
            format!("put a directory with the right `{soname}` first with `--library-path`")
        }
        Fault::Symbols(_) => {
            "link the library that defines them, or add it to `libraries` in the configuration"
                .to_owned()
        }
        Fault::Library(unresolved) => unresolved.help(),
    }
}

impl Unresolved {
    fn describe(&self) -> String {
        let mut text = match &self.why {
            Missing::Glibc => format!(
                "needed library `{}` belongs to glibc and is not in the runtime; it cannot be \
                 bundled without the rest of glibc",
                self.name
            ),
            Missing::ByPath if self.name.contains('$') => {
                format!(
                    "needed library `{}` is needed by a path that starts from the file, and on \
                     Lambda files need not lie beside each other as they do here",
                    self.name
                )
            }
            Missing::ByPath => {
                format!(
                    "needed library `{}` is needed by its path, which Lambda does not have",
                    self.name
                )
            }
            _ => format!("failed to resolve needed library `{}`", self.name),
        };
        let _ = write!(text, "\n  needed by: {}", all(&self.needed_by));
        match &self.why {
            Missing::NotFound {
                searched,
                passed_over,
            } => {
                let nowhere = searched.is_empty();
                let places = if nowhere {
                    "nowhere".to_owned()
                } else {
                    all(searched)
                };
                let _ = write!(text, "\n  searched: {places}");
                for (path, reason) in passed_over {
                    let _ = write!(text, "\n  passed over: `{}`: {reason}", path.display());
                }
            }
            Missing::Unusable { path, reason } => {
                let _ = write!(text, "\n  found: `{}`: {reason}", path.display());
            }
            Missing::ByPath | Missing::Glibc => {}
        }
        text
    }

    fn help(&self) -> String {
        match &self.why {
            Missing::NotFound { .. } => "add its directory with `--library-path`".to_owned(),
            Missing::Unusable { path, .. } if path.to_string_lossy() == self.name => {
                "correct the path in `libraries`".to_owned()
            }
            Missing::Unusable { .. } => {
                "put the directory of the right file first with `--library-path`".to_owned()
            }
            Missing::ByPath => format!(
                "give the library a soname (`-Wl,-soname,…`) and link it with `-l`, or \
                 `patchelf --replace-needed '{}' NAME`",
                self.name
            ),
            Missing::Glibc => "do without it: Lambda's glibc is used as it is".to_owned(),
        }
    }
}

/// The message of a single library, help included.
impl std::fmt::Display for Unresolved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\nhelp: {}", self.describe(), self.help())
    }
}

fn all<T: AsRef<str>>(items: &[T]) -> String {
    items
        .iter()
        .map(|item| format!("`{}`", item.as_ref()))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Up to five of them, then how many more.
pub(super) fn some<T: AsRef<str>>(items: &[T]) -> String {
    const SHOWN: usize = 5;
    match items.len().saturating_sub(SHOWN) {
        0 => all(items),
        more => format!("{} and {more} more", all(&items[..SHOWN])),
    }
}
