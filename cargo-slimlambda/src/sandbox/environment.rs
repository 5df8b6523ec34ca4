//! The environment variables of the function: the documented ones and the user's, nothing else.
//!
//! Source: <https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html>.
//! `AWS_EXECUTION_ENV` and `_X_AMZN_TRACE_ID` are not there on purpose: OS-only runtimes do not have
//! them (the runtime client sets the latter from a header of each event).

use super::Options;
use crate::error::usage;
use crate::limits;
use anyhow::Result;
use std::path::Path;

/// Names that Lambda refuses to have set.
const RESERVED: &[&str] = &[
    "_HANDLER",
    "_X_AMZN_TRACE_ID",
    "AWS_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_DEFAULT_REGION",
    "AWS_EXECUTION_ENV",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_VERSION",
    "AWS_LAMBDA_INITIALIZATION_TYPE",
    "AWS_LAMBDA_LOG_GROUP_NAME",
    "AWS_LAMBDA_LOG_STREAM_NAME",
    "AWS_LAMBDA_RUNTIME_API",
    "AWS_REGION",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "LAMBDA_RUNTIME_DIR",
    "LAMBDA_TASK_ROOT",
];

/// The caller's variables that go through: whom the function's AWS calls are made as, and where.
const THROUGH: &[&str] = &[
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
];
const THROUGH_PREFIX: &str = "AWS_ENDPOINT_URL";

/// The region of the caller, or where AWS's own examples are.
pub fn region() -> String {
    ["AWS_REGION", "AWS_DEFAULT_REGION"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|region| !region.is_empty()))
        .unwrap_or_else(|| "us-east-1".to_owned())
}

/// Refuses what Lambda would not let a function have.
pub fn check(own: &[(String, String)]) -> Result<()> {
    for (name, value) in own {
        let mut letters = name.bytes();
        let starts = letters
            .next()
            .is_some_and(|byte| byte.is_ascii_alphabetic());
        if !starts || !letters.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            if !RESERVED.contains(&name.as_str()) {
                return Err(usage(format!(
                    "environment variable `{name}` does not match `[a-zA-Z]([a-zA-Z0-9_])+`"
                )));
            }
        } else if value.contains('\0') {
            return Err(usage(format!(
                "environment variable `{name}` contains a NUL"
            )));
        }
        if RESERVED.contains(&name.as_str()) {
            return Err(usage(format!(
                "environment variable `{name}` is reserved by Lambda\nhelp: credentials, region and \
                 `AWS_ENDPOINT_URL…` are taken from the environment of this command"
            )));
        }
    }
    let size: usize = own
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    let most = limits::ENVIRONMENT.value;
    if size as u64 > most {
        return Err(usage(format!(
            "environment variables of `{size}` bytes, where Lambda takes at most `{most}`"
        )));
    }
    Ok(())
}

/// The whole environment of the function's process, without the address of the Runtime API.
pub fn environment(options: &Options, task: &Path, opt: &Path) -> Vec<(String, String)> {
    let region = region();
    let (task, opt, runtime) = (task.display(), opt.display(), "/var/runtime");
    let name = &options.function_name;
    let mut all: Vec<(String, String)> = [
        ("_HANDLER", options.handler.clone()),
        ("AWS_DEFAULT_REGION", region.clone()),
        (
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
            options.memory_mib.to_string(),
        ),
        ("AWS_LAMBDA_FUNCTION_NAME", name.clone()),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST".to_owned()),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand".to_owned()),
        ("AWS_LAMBDA_LOG_GROUP_NAME", format!("/aws/lambda/{name}")),
        (
            "AWS_LAMBDA_LOG_STREAM_NAME",
            "local/[$LATEST]slimlambda".to_owned(),
        ),
        ("AWS_REGION", region),
        // Whether or not the function is traced; the address is what functions report
        // (<https://github.com/aws-observability/aws-otel-php/issues/4>). Nobody listens there.
        ("AWS_XRAY_CONTEXT_MISSING", "LOG_ERROR".to_owned()),
        ("AWS_XRAY_DAEMON_ADDRESS", "169.254.79.129:2000".to_owned()),
        ("LAMBDA_RUNTIME_DIR", runtime.to_owned()),
        ("LAMBDA_TASK_ROOT", task.to_string()),
        ("LANG", "en_US.UTF-8".to_owned()),
        (
            "LD_LIBRARY_PATH",
            format!("/lib64:/usr/lib64:{runtime}:{runtime}/lib:{task}:{task}/lib:{opt}/lib"),
        ),
        ("PATH", format!("/usr/local/bin:/usr/bin/:/bin:{opt}/bin")),
        ("SLIMLAMBDA_TRACE", "1".to_owned()),
        ("TZ", ":UTC".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    // None of those that matter is other than UTF-8; the caller may have others that are.
    let callers = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    all.extend(
        callers.filter(|(name, _)| {
            THROUGH.contains(&name.as_str()) || name.starts_with(THROUGH_PREFIX)
        }),
    );
    for (name, value) in &options.environment {
        all.retain(|(present, _)| present != name);
        all.push((name.clone(), value.clone()));
    }
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lambda_refuses_is_refused() {
        let one = |name: &str, value: &str| [(name.to_owned(), value.to_owned())];
        assert!(check(&one("LD_LIBRARY_PATH", "/var/task/lib")).is_ok());
        assert!(check(&one("AWS_ENDPOINT_URL", "http://127.0.0.1")).is_ok());
        for (name, value) in [
            ("AWS_REGION", "eu-west-1"),
            ("_HANDLER", "x"),
            ("A=B", "c"),
            ("", "c"),
            ("A", &"x".repeat(4096)),
        ] {
            assert!(check(&one(name, value)).is_err(), "{name}");
        }
    }
}
