//! Parse, run, print the error.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|first| first == cargo_slimlambda::sandbox::STAGE2_ARG)
    {
        return cargo_slimlambda::sandbox::child_main();
    }
    ExitCode::SUCCESS
}
