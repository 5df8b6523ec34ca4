//! Functions to build, pack and run with the real program: small crates of the standard library alone, or with C beside it.
//!
//! They lie below Cargo's directory for test files and share one target directory, so that a second run of the suite compiles
//! little. Each test has a name of its own for its function, which is also where its package goes.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::project::{manifest, write};

/// Speaks the Runtime API, for a function's `mod runtime_api`.
pub const RUNTIME_API: &str = include_str!("function/runtime_api.rs");

/// A project with one function, and where its package goes.
pub struct Function {
    pub name: String,
    pub directory: PathBuf,
    pub lambda_dir: PathBuf,
}

/// What a command said and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A directory of these tests, by name.
pub fn shared(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("functions")
        .join(name)
}

/// A function whose handler is this Rust expression, `&str` → `Result<String, String>`.
pub fn function(name: &str, config: &str, handler: &str) -> Function {
    let main = format!("mod runtime_api;\n\nfn main() {{\n    runtime_api::run({handler})\n}}\n");
    project(
        name,
        &[
            (
                "Cargo.toml",
                &manifest(name, &format!("{config}\n[workspace]\n")),
            ),
            ("src/main.rs", &main),
            ("src/runtime_api.rs", RUNTIME_API),
        ],
    )
}

/// A project with these files. What is there already and the same is left alone, so that Cargo need not build it again.
pub fn project(name: &str, files: &[(&str, &str)]) -> Function {
    let function = Function {
        name: name.to_owned(),
        directory: shared("projects").join(name),
        lambda_dir: shared("lambda").join(name),
    };
    if function.lambda_dir.exists() {
        fs::remove_dir_all(&function.lambda_dir).unwrap();
    }
    for (path, text) in files {
        function.write(path, text);
    }
    function
}

impl Function {
    /// Puts a file into the project.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.directory.join(path);
        if fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
            write(&path, text);
        }
    }

    /// `cargo slimlambda build`, which must succeed.
    pub fn build(&self, args: &[&str]) -> Ran {
        let ran = self.try_build(args);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran
    }

    /// `cargo slimlambda build`.
    pub fn try_build(&self, args: &[&str]) -> Ran {
        let mut command = slimlambda(&self.directory, "build");
        command.arg("--offline").args(args);
        if !args.contains(&"--binary") {
            command.arg("--target-dir").arg(shared("target"));
        }
        if !args.contains(&"--lambda-dir") {
            command.arg("--lambda-dir").arg(&self.lambda_dir);
        }
        run(command, "")
    }

    /// `cargo slimlambda invoke`, which must succeed.
    pub fn invoke(&self, args: &[&str]) -> Ran {
        let ran = self.try_invoke(args, "");
        assert_eq!(ran.code, 0, "{}\n{}", ran.stdout, ran.stderr);
        ran
    }

    /// `cargo slimlambda invoke`.
    pub fn try_invoke(&self, args: &[&str], stdin: &str) -> Ran {
        let mut command = slimlambda(&self.directory, "invoke");
        command.args(args);
        if !args.contains(&"--lambda-dir") && !args.contains(&"--zip") {
            command.arg("--lambda-dir").arg(&self.lambda_dir);
        }
        run(command, stdin)
    }

    /// Path of an output.
    pub fn output(&self, path: &str) -> PathBuf {
        self.lambda_dir.join(&self.name).join(path)
    }

    /// The report of the last build.
    pub fn report(&self) -> serde_json::Value {
        let path = self
            .lambda_dir
            .join(format!(".slimlambda/{}.json", self.name));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    /// Where the last build placed a file, and why: `archive configured`.
    pub fn placed(&self, path: &str) -> String {
        let report = self.report();
        let files = report["files"].as_array().unwrap();
        let file = files.iter().find(|file| file["path"] == path);
        let file = file.unwrap_or_else(|| panic!("no `{path}` in {report:#}"));
        format!(
            "{} {}",
            file["place"].as_str().unwrap(),
            file["why"].as_str().unwrap()
        )
    }

    /// The names of the outputs, all files of the package's directory, sorted.
    pub fn outputs(&self) -> Vec<String> {
        let directory = self.lambda_dir.join(&self.name);
        let mut found = Vec::new();
        let mut todo = vec![directory.clone()];
        while let Some(next) = todo.pop() {
            for entry in fs::read_dir(next).into_iter().flatten() {
                let entry = entry.unwrap();
                match entry.file_type().unwrap().is_dir() {
                    true => todo.push(entry.path()),
                    false => found.push(entry.path()),
                }
            }
        }
        let mut names: Vec<String> = found
            .iter()
            .map(|path| {
                path.strip_prefix(&directory)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        names.sort();
        names
    }
}

/// The program in a directory, with nothing of the environment that changes what it does.
pub fn slimlambda(directory: &Path, command: &str) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_cargo-slimlambda"));
    program
        .args(["slimlambda", command])
        .current_dir(directory)
        .env("XDG_CACHE_HOME", shared("cache"))
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("CARGO_MANIFEST_DIR")
        .env_remove("RUSTFLAGS")
        .env_remove("CI");
    program
}

/// Runs a command to its end.
pub fn run(mut command: Command, stdin: &str) -> Ran {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Whoever does not read it may close it.
    _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// What is in a zip: mode, path, and a symlink's target.
pub fn listing(zip: &Path) -> Vec<String> {
    let mut zip = zip::ZipArchive::new(fs::File::open(zip).unwrap()).unwrap();
    (0..zip.len())
        .map(|n| {
            let mut file = zip.by_index(n).unwrap();
            let path = file.name().unwrap().into_owned();
            assert_eq!(
                file.last_modified(),
                Some(zip::DateTime::default()),
                "{path}"
            );
            let mut line = format!("{:o} {path}", file.unix_mode().unwrap());
            if file.is_symlink() {
                line.push_str(" -> ");
                std::io::Read::read_to_string(&mut file, &mut line).unwrap();
            }
            line
        })
        .collect()
}
