//! The ends of a run that callers tell apart, each with its exit code.
//!
//! Everything else is an `anyhow::Error` and ends with 101.

use std::process::ExitCode;

/// A run that ended for a reason with an exit code of its own.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// The package would not start, would not fit, or is over budget: exit 100.
    #[error("{0}")]
    Gate(String),
    /// The command line or the configuration makes no sense: exit 2.
    #[error("{0}")]
    Usage(String),
    /// Cargo failed and has already said why: its own exit code, nothing printed.
    #[error("cargo exited with {0}")]
    Cargo(i32),
    /// The invoked function answered with an error, which is printed already: exit 1.
    #[error("the function failed")]
    Function,
}

/// Shorthand for an `anyhow::Error` that ends with exit code 100.
pub fn gate(message: impl Into<String>) -> anyhow::Error {
    Stop::Gate(message.into()).into()
}

/// Shorthand for an `anyhow::Error` that ends with exit code 2.
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    Stop::Usage(message.into()).into()
}

/// The process exit code for an error that reached `main`.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(exit_status(error))
}

/// The same as a number.
pub fn exit_status(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Stop>() {
        Some(Stop::Gate(_)) => 100,
        Some(Stop::Usage(_)) => 2,
        Some(Stop::Cargo(code)) => u8::try_from(*code).unwrap_or(101),
        Some(Stop::Function) => 1,
        None => 101,
    }
}
