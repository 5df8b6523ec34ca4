//! The command line, as clap types.
//!
//! Cargo's flags keep Cargo's names and meaning, cargo-lambda's keep cargo-lambda's. What also has
//! a place in `Cargo.toml` is gathered in [`ConfigArgs`], which `config::load` lays over the file.

pub mod archive;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Effects, Styles};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, ValueHint};

use crate::config::{EPHEMERAL_STORAGE, Level, MEMORY, Placement, Runtime, TIMEOUT};

/// Cargo's own colours for help.
const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().effects(Effects::BOLD))
    .usage(AnsiColor::Green.on_default().effects(Effects::BOLD))
    .literal(AnsiColor::Cyan.on_default().effects(Effects::BOLD))
    .placeholder(AnsiColor::Cyan.on_default());

/// Build AWS Lambda packages that fit and are proven to start.
#[derive(Debug, Parser)]
#[command(
    name = "cargo-slimlambda",
    bin_name = "cargo slimlambda",
    version,
    styles = STYLES,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Example:\n  cargo slimlambda build && cargo slimlambda invoke --data '{}'"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build a function, check that it would start on Lambda, and pack it
    #[command(
        visible_alias = "b",
        after_help = "What is set in `[package.metadata.slimlambda]` need not be repeated here; \
                      a flag wins over it, and a flag that may be repeated adds to its list.\n\n\
                      Examples:\n  cargo slimlambda build --arm64 --include config\n  \
                      cargo slimlambda build --bin resize --features heif -- --config net.retry=5\n  \
                      cargo slimlambda build --binary dist/resize --library-path dist/lib"
    )]
    Build(Box<BuildArgs>),
    /// Run a package on this machine the way Lambda would
    #[command(
        after_help = "Examples:\n  cargo slimlambda invoke --event picture.json\n  \
                      cargo slimlambda invoke resize --data '{\"width\": 80}' --memory 512\n  \
                      cargo slimlambda invoke --zip bootstrap.zip --event first.json --event second.json"
    )]
    Invoke(Box<InvokeArgs>),
    /// Pack a directory into an archive; list, extract, verify and measure archives
    #[command(
        arg_required_else_help = true,
        after_help = "Examples:\n  cargo slimlambda archive pack models -o models.archive --level best\n  \
                      cargo slimlambda archive extract models.archive -C /tmp/models"
    )]
    Archive(archive::ArchiveArgs),
}

/// Which packages and binaries of a workspace are meant.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Selection")]
pub struct ChoiceArgs {
    /// Package with the function (see `cargo help pkgid`)
    #[arg(short, long, value_name = "SPEC")]
    pub package: Vec<String>,
    /// Binary of the function; without it, every binary of the chosen packages
    #[arg(long, value_name = "NAME")]
    pub bin: Vec<String>,
    /// All packages in the workspace
    #[arg(long, conflicts_with = "package")]
    pub workspace: bool,
    /// Path to Cargo.toml
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub manifest_path: Option<PathBuf>,
}

/// The function's own settings.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Function")]
pub struct LimitArgs {
    /// Memory of the function in MiB, 128 to 10240
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(range(MEMORY)))]
    pub memory: Option<u32>,
    /// Size of /tmp in MiB, 512 to 10240
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(range(EPHEMERAL_STORAGE)))]
    pub ephemeral_storage: Option<u32>,
    /// Longest time of one invoke in seconds, 1 to 900
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(range(TIMEOUT)))]
    pub timeout: Option<u32>,
}

/// clap takes ranges of `i64`.
fn range((low, high): (u32, u32)) -> std::ops::RangeInclusive<i64> {
    i64::from(low)..=i64::from(high)
}

/// What may also be said in `[package.metadata.slimlambda]`.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Packing")]
pub struct ConfigArgs {
    /// File or directory to put into the package at the same path, or at another with `DEST:PATH`
    #[arg(short, long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub include: Vec<String>,
    /// Ship files as they are (`inline`), in the compressed archive (`sideload`), or decide by size
    #[arg(long, value_name = "WHERE")]
    pub placement: Option<Placement>,
    /// How hard to compress: `fast`, `balanced`, `best`, or zstd's 1 to 22 [default: balanced]
    #[arg(long, value_name = "LEVEL")]
    pub level: Option<Level>,
    /// Directory with libraries that the function needs; searched first
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub library_path: Vec<PathBuf>,
    /// Library to bundle though nothing is linked to it (one opened with `dlopen`)
    #[arg(long, value_name = "NAME|PATH")]
    pub library: Vec<String>,
    /// Ship the binary and the libraries with all their symbols
    #[arg(long)]
    pub no_strip: bool,
    /// Lambda runtime to build for [default: provided.al2023]
    #[arg(long, value_name = "NAME")]
    pub runtime: Option<Runtime>,
    /// Memory, /tmp, timeout.
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// `cargo slimlambda build`.
#[derive(Debug, Clone, Args)]
pub struct BuildArgs {
    /// Format of messages; `json` prints the report as JSON on stdout
    #[arg(long, value_name = "FMT", default_value = "human")]
    pub message_format: MessageFormat,
    /// Verbosity and colour.
    #[command(flatten)]
    pub output: OutputArgs,
    /// Leave only `bootstrap.zip` (`zip`) or only the package's files (`binary`) [default: both]
    #[arg(short, long, value_name = "FORMAT")]
    pub output_format: Option<OutputFormat>,
    /// Directory for the packages [default: `lambda` in the target directory]
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub lambda_dir: Option<PathBuf>,
    /// Put this binary's package into the lambda directory itself
    #[arg(long, value_name = "NAME")]
    pub flatten: Option<String>,
    /// Pack this binary instead of building one
    #[arg(
        long,
        value_name = "PATH",
        value_hint = ValueHint::FilePath,
        conflicts_with_all = [
            "package", "bin", "workspace", "profile", "release", "features", "all_features",
            "no_default_features", "target_dir", "jobs", "compiler", "cargo_args",
        ]
    )]
    pub binary: Option<PathBuf>,
    /// Threads that pack [default: one per core]; the result is the same with any number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Compress everything anew, and keep nothing for the next build
    #[arg(long)]
    pub no_cache: bool,
    /// Packages and binaries.
    #[command(flatten)]
    pub choice: ChoiceArgs,
    /// What is laid over the configuration file.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// What Cargo is told.
    #[command(flatten)]
    pub cargo: CargoArgs,
}

/// What is handed on to Cargo.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Compilation")]
pub struct CargoArgs {
    /// Build with this profile [default: release]
    #[arg(long, value_name = "PROFILE", conflicts_with = "release")]
    pub profile: Option<String>,
    /// Build with the release profile, which is the default
    #[arg(short, long)]
    pub release: bool,
    /// Space or comma separated list of features to activate
    #[arg(short = 'F', long, value_name = "FEATURES")]
    pub features: Vec<String>,
    /// Activate all available features
    #[arg(long)]
    pub all_features: bool,
    /// Do not activate the `default` feature
    #[arg(long)]
    pub no_default_features: bool,
    /// Build for the target triple
    #[arg(long, value_name = "TRIPLE", conflicts_with_all = ["arm64", "x86_64"])]
    pub target: Option<String>,
    /// Shortcut for `--target aarch64-unknown-linux-gnu`
    #[arg(long, conflicts_with = "x86_64")]
    pub arm64: bool,
    /// Shortcut for `--target x86_64-unknown-linux-gnu`
    #[arg(long = "x86-64")]
    pub x86_64: bool,
    /// Directory for all generated artifacts
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub target_dir: Option<PathBuf>,
    /// What links the function for another architecture or an older glibc [default: cargo]
    #[arg(short, long, value_name = "NAME")]
    pub compiler: Option<Compiler>,
    /// Number of parallel jobs of Cargo
    #[arg(short, long, value_name = "N", allow_negative_numbers = true)]
    pub jobs: Option<String>,
    /// Assert that `Cargo.lock` will remain unchanged
    #[arg(long)]
    pub locked: bool,
    /// Run without accessing the network
    #[arg(long)]
    pub offline: bool,
    /// Equivalent to specifying both --locked and --offline
    #[arg(long)]
    pub frozen: bool,
    /// Further arguments for `cargo build`
    #[arg(last = true, value_name = "CARGO_ARGS")]
    pub cargo_args: Vec<OsString>,
}

/// How much is said, and how.
#[derive(Debug, Clone, Default, Args)]
pub struct OutputArgs {
    /// Use verbose output (-vv very verbose)
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
    /// Print errors and warnings only
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Coloring
    #[arg(long, value_name = "WHEN")]
    pub color: Option<Color>,
}

/// `cargo slimlambda invoke`.
#[derive(Debug, Clone, Args)]
pub struct InvokeArgs {
    /// Binary whose package is run, as `--bin`
    #[arg(conflicts_with = "bin")]
    pub name: Option<String>,
    /// File with an event, `-` for stdin; each further one is a warm invoke
    #[arg(long, short = 'F', visible_alias = "data-file", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub event: Vec<PathBuf>,
    /// Event as JSON text; these come after those of `--event` [default: one event, `{}`]
    #[arg(long, short = 'A', visible_alias = "data-ascii", value_name = "JSON")]
    pub data: Vec<String>,
    /// Format of messages; `json` prints answers and phases as one JSON document on stdout
    #[arg(long, value_name = "FMT", default_value = "human")]
    pub message_format: InvokeFormat,
    /// Verbosity and colour.
    #[command(flatten)]
    pub output: OutputArgs,
    /// Run this deployment package
    #[arg(
        long,
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        conflicts_with_all = ["name", "package", "bin", "workspace", "lambda_dir"]
    )]
    pub zip: Option<PathBuf>,
    /// Directory with the packages [default: `lambda` in the target directory]
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub lambda_dir: Option<PathBuf>,
    /// Layer to unpack into /opt, in this order
    #[arg(long, value_name = "ZIP", value_hint = ValueHint::FilePath)]
    pub layer: Vec<PathBuf>,
    /// Environment variable of the function
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub env: Vec<(String, String)>,
    /// Directory that the function sees as `/` [default: this system's]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub rootfs: Option<PathBuf>,
    /// Leave the execution environment's directories for looking inside
    #[arg(long)]
    pub keep: bool,
    /// Packages and binaries.
    #[command(flatten)]
    pub choice: ChoiceArgs,
    /// Memory, /tmp, timeout.
    #[command(flatten)]
    pub limits: LimitArgs,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_string(), value.to_string())),
        _ => Err("expected `KEY=VALUE`".to_string()),
    }
}

/// `--message-format` of `build`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum MessageFormat {
    /// Text for people.
    #[default]
    Human,
    /// As `human`, with the compiler's diagnostics on one line each.
    Short,
    /// The report as JSON on stdout.
    Json,
}

/// `--message-format` of `invoke`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum InvokeFormat {
    /// The answer on stdout, phases on stderr.
    #[default]
    Human,
    /// One JSON document on stdout.
    Json,
}

/// What a build leaves in the output directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// The package's files as they are.
    Binary,
    /// The deployment package.
    Zip,
}

/// What compiles and links the function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Compiler {
    /// `cargo build`.
    #[default]
    Cargo,
    /// `cargo zigbuild`.
    #[value(alias = "cargo_zigbuild")]
    CargoZigbuild,
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Even into a file.
    Always,
    /// Not at all.
    Never,
}

impl Cli {
    /// Parses a command line, the program's name included, however it was started: Cargo runs
    /// `cargo-slimlambda slimlambda build` for `cargo slimlambda build`.
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
        let mut args: Vec<OsString> = args.into_iter().collect();
        if args.get(1).is_some_and(|first| first == "slimlambda") {
            args.remove(1);
        }
        Cli::try_parse_from(args)
    }

    /// When this run may use colour.
    pub fn color(&self) -> Color {
        match &self.command {
            Command::Build(args) => args.output.color,
            Command::Invoke(args) => args.output.color,
            Command::Archive(args) => args.output().color,
        }
        .unwrap_or_default()
    }
}

impl InvokeArgs {
    /// The choice with the positional name counted as `--bin`.
    pub fn choice(&self) -> ChoiceArgs {
        let mut choice = self.choice.clone();
        choice.bin.extend(self.name.clone());
        choice
    }
}
