//! The command line of `cargo slimlambda archive`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};

use super::OutputArgs;
use crate::config::Level;

/// `cargo slimlambda archive`.
#[derive(Debug, Clone, Args)]
pub struct ArchiveArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ArchiveCommand,
}

/// The subcommands.
#[derive(Debug, Clone, Subcommand)]
pub enum ArchiveCommand {
    /// Pack a directory into an archive
    #[command(
        after_help = "Everything below DIR is packed: files and their permission bits, symlinks, empty directories. What an archive \
                      cannot hold (devices, sockets, symlinks that leave DIR) is an error, nothing is left out.\n\n\
                      Example:\n  cargo slimlambda archive pack models -o models.archive --level best"
    )]
    Pack(PackArgs),
    /// List what is in an archive
    #[command(
        visible_alias = "ls",
        after_help = "Columns: permissions, size, bytes in the archive, path. What a file takes in the archive is its share of the frames that \
                      hold it; of several equal files the first takes all.\n\n\
                      Example:\n  cargo slimlambda archive list slimlambda.archive"
    )]
    List(ReadArgs),
    /// Extract an archive, or parts of it, into a directory
    #[command(
        visible_alias = "x",
        after_help = "Nothing that exists is overwritten, and nothing extracted, unless `--force` is given: then files and symlinks are replaced; \
                      directories never are, what is extracted joins what is in them. Files appear by rename and whole; when \
                      extracting fails, the directory is as it was. Symlinks in the directory are not followed. Permissions are the \
                      archive's, whatever the umask.\n\n\
                      Examples:\n  cargo slimlambda archive extract slimlambda.archive -C /tmp/tree\n  \
                      cargo slimlambda archive extract slimlambda.archive models lib/libfoo.so.1"
    )]
    Extract(ExtractArgs),
    /// Check every digest of an archive without writing anything
    #[command(
        after_help = "Header, index, every frame and every file are decoded and compared with their digests. Ends with 100 and the names of the \
                      damaged files if one differs.\n\n\
                      Example:\n  cargo slimlambda archive verify slimlambda.archive"
    )]
    Verify(VerifyArgs),
    /// Show how an archive is packed: totals, codecs, frames
    #[command(after_help = "Example:\n  cargo slimlambda archive stat slimlambda.archive")]
    Stat(ReadArgs),
}

/// `cargo slimlambda archive pack`.
#[derive(Debug, Clone, Args)]
pub struct PackArgs {
    /// Directory to pack; its own name is not part of the paths
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
    /// File to write; it appears when it is complete
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    /// How hard to compress: `fast`, `balanced`, `best`, or zstd's 1 to 22 [default: balanced]
    #[arg(long, value_name = "LEVEL")]
    pub level: Option<Level>,
    /// Compress everything anew, and keep nothing for the next time
    #[arg(long)]
    pub no_cache: bool,
    /// Threads and messages.
    #[command(flatten)]
    pub work: WorkArgs,
}

/// `cargo slimlambda archive list` and `stat`.
#[derive(Debug, Clone, Args)]
pub struct ReadArgs {
    /// The archive
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Messages.
    #[command(flatten)]
    pub messages: MessageArgs,
}

/// `cargo slimlambda archive extract`.
#[derive(Debug, Clone, Args)]
pub struct ExtractArgs {
    /// The archive
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Entries to extract, a directory with all below it [default: all]
    #[arg(value_name = "PATH")]
    pub paths: Vec<String>,
    /// Directory to extract into; made if it is missing
    #[arg(short = 'C', long, value_name = "DIR", default_value = ".", value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
    /// Replace files and symlinks that exist
    #[arg(short, long)]
    pub force: bool,
    /// Threads and messages.
    #[command(flatten)]
    pub work: WorkArgs,
}

/// `cargo slimlambda archive verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// The archive
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Threads and messages.
    #[command(flatten)]
    pub work: WorkArgs,
}

/// What every subcommand that computes has.
#[derive(Debug, Clone, Args)]
pub struct WorkArgs {
    /// Threads [default: one per core]; the result is the same with any number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Messages.
    #[command(flatten)]
    pub messages: MessageArgs,
}

/// What every subcommand has.
#[derive(Debug, Clone, Args)]
pub struct MessageArgs {
    /// Format of the answer; `json` prints one JSON document
    #[arg(
        long,
        alias = "output-format",
        value_name = "FMT",
        default_value = "human"
    )]
    pub message_format: ArchiveFormat,
    /// Verbosity and colour.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `--message-format` of `archive`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ArchiveFormat {
    /// Text for people.
    #[default]
    Human,
    /// One JSON document.
    Json,
}

impl ArchiveArgs {
    /// How the answer is given.
    pub fn messages(&self) -> &MessageArgs {
        match &self.command {
            ArchiveCommand::Pack(args) => &args.work.messages,
            ArchiveCommand::Extract(args) => &args.work.messages,
            ArchiveCommand::Verify(args) => &args.work.messages,
            ArchiveCommand::List(args) | ArchiveCommand::Stat(args) => &args.messages,
        }
    }

    /// Verbosity and colour.
    pub fn output(&self) -> &OutputArgs {
        &self.messages().output
    }
}
