//! `cargo slimlambda`: builds AWS Lambda packages that fit and are proven to start.

pub mod assets;
pub mod cargo;
pub mod cli;
pub mod config;
pub mod elf;
pub mod error;
pub mod event;
pub mod limits;

/// Runs one command line.
pub fn run(args: cli::Cli) -> anyhow::Result<()> {
    match args.command {
        cli::Command::Build(_) => anyhow::bail!("`build` is not connected yet"),
        cli::Command::Invoke(_) => anyhow::bail!("`invoke` is not connected yet"),
    }
}
