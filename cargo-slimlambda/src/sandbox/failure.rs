//! How a start or an event fails, and the words that Lambda has for it.

use super::control::Exit;
use super::report::InitOutcome;
use crate::limits;
use serde_json::{Value, json};
use std::time::Duration;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Failure {
    /// The process ended by itself.
    Exited(Exit),
    /// It was killed for its memory.
    OutOfMemory,
    /// It was not done in time.
    TimedOut,
    /// It said so itself.
    Reported {
        error_type: Option<String>,
        body: Vec<u8>,
    },
    /// Its answer is too large.
    TooLarge,
    /// The bootstrap is missing or cannot be executed.
    InvalidEntrypoint(String),
}

impl Failure {
    /// `errorType`.
    pub fn error_type(&self) -> String {
        let fixed = match self {
            Self::Exited(_) => "Runtime.ExitError",
            Self::OutOfMemory => "Runtime.OutOfMemory",
            Self::TimedOut => "Sandbox.Timedout",
            Self::TooLarge => "Function.ResponseSizeTooLarge",
            Self::InvalidEntrypoint(_) => "Runtime.InvalidEntrypoint",
            Self::Reported { error_type, body } => {
                let body: Value = serde_json::from_slice(body).unwrap_or_default();
                let own = body
                    .get("errorType")
                    .and_then(Value::as_str)
                    .map(str::to_owned);
                return own
                    .or_else(|| error_type.clone())
                    .unwrap_or("Function.Unknown".to_owned());
            }
        };
        fixed.to_owned()
    }

    /// What the caller of the function gets.
    pub fn payload(self, request_id: &str, timeout: Duration) -> Vec<u8> {
        let error_type = self.error_type();
        let message = match self {
            Self::Reported { body, .. } => return body,
            Self::Exited(Exit::Status(0)) => "Runtime exited without providing a reason".to_owned(),
            Self::Exited(Exit::Status(status)) => {
                format!("Runtime exited with error: exit status {status}")
            }
            Self::Exited(Exit::Signal(signal)) => {
                format!("Runtime exited with error: signal: {}", signal_name(signal))
            }
            Self::OutOfMemory => "Runtime exited with error: signal: killed".to_owned(),
            Self::TimedOut => format!("Task timed out after {:.2} seconds", timeout.as_secs_f64()),
            Self::TooLarge => format!(
                "Response payload size exceeded maximum allowed payload size ({} bytes).",
                limits::RESPONSE.value
            ),
            Self::InvalidEntrypoint(message) => message,
        };
        let message = format!("RequestId: {request_id} Error: {message}");
        json!({ "errorType": error_type, "errorMessage": message })
            .to_string()
            .into_bytes()
    }

    /// The same for the report of a start.
    pub fn outcome(&self) -> InitOutcome {
        match self {
            Self::Exited(_) => InitOutcome::Exited,
            Self::OutOfMemory => InitOutcome::OutOfMemory,
            Self::TimedOut => InitOutcome::TimedOut,
            Self::Reported { .. } | Self::TooLarge => InitOutcome::Error,
            Self::InvalidEntrypoint(_) => InitOutcome::InvalidEntrypoint,
        }
    }
}

/// The signal in the words of Lambda's own supervisor, which is written in Go.
fn signal_name(signal: i32) -> String {
    let name = match signal {
        4 => "illegal instruction",
        5 => "trace/breakpoint trap",
        6 => "aborted",
        7 => "bus error",
        8 => "floating point exception",
        9 => "killed",
        11 => "segmentation fault",
        13 => "broken pipe",
        15 => "terminated",
        31 => "bad system call",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn failures_speak_lambdas_words() {
        let cases = [
            (
                Failure::Exited(Exit::Status(3)),
                "Runtime exited with error: exit status 3",
            ),
            (
                Failure::Exited(Exit::Status(0)),
                "Runtime exited without providing a reason",
            ),
            (
                Failure::Exited(Exit::Signal(11)),
                "Runtime exited with error: signal: segmentation fault",
            ),
            (Failure::TimedOut, "Task timed out after 3.00 seconds"),
        ];
        for (failure, message) in cases {
            let payload = failure.payload("id", Duration::from_secs(3));
            let payload: Value = serde_json::from_slice(&payload).unwrap();
            assert_eq!(
                payload["errorMessage"],
                format!("RequestId: id Error: {message}")
            );
        }
    }

    #[test]
    fn a_functions_own_error_goes_through_as_it_is() {
        let body = br#"{"errorType":"Own","errorMessage":"m"}"#.to_vec();
        let failure = Failure::Reported {
            error_type: Some("Header".to_owned()),
            body: body.clone(),
        };
        assert_eq!(failure.error_type(), "Own");
        assert_eq!(failure.payload("id", Duration::from_secs(1)), body);
    }
}
