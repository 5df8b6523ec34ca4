//! Parse, run, print the error.

use std::io::IsTerminal;
use std::process::ExitCode;

use cargo_slimlambda::cli::{Cli, Color};
use cargo_slimlambda::error::{Stop, exit_code};
use cargo_slimlambda::sandbox::{STAGE2_ARG, child_main};

fn main() -> ExitCode {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|first| first == STAGE2_ARG)
    {
        return child_main();
    }
    let cli = match Cli::from_args(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let color = cli.color();
    let Err(error) = cargo_slimlambda::run(cli) else {
        return ExitCode::SUCCESS;
    };
    // These two have been told already: by Cargo, or as the function's own answer.
    if !matches!(error.downcast_ref(), Some(Stop::Cargo(_) | Stop::Function)) {
        print(&error, color);
    }
    exit_code(&error)
}

/// As Cargo prints an error: what failed, and why below it.
fn print(error: &anyhow::Error, color: Color) {
    let colored = match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    let (red, plain) = if colored {
        ("\x1b[1;31m", "\x1b[0m")
    } else {
        ("", "")
    };
    eprintln!("{red}error{plain}: {error}");
    for cause in error.chain().skip(1) {
        eprintln!(
            "\nCaused by:\n  {}",
            cause.to_string().replace('\n', "\n  ")
        );
    }
}
