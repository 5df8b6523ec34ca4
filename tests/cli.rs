//! The command line: both ways to start, exit codes, what excludes what.

use std::process::{Command, Output};

use cargo_slimlambda::cli::{Cli, Command as Parsed, Compiler};
use cargo_slimlambda::config::{Level, Placement};

use crate::project::build_args;

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cargo-slimlambda"))
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn starts_as_a_cargo_subcommand_and_by_itself() {
    for args in [&["slimlambda", "build", "--help"][..], &["build", "--help"]] {
        let output = run(args);
        let help = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(help.contains("Usage: cargo slimlambda build"), "{help}");
    }
}

#[test]
fn every_help_has_an_example() {
    for args in [
        &["--help"][..],
        &["build", "--help"],
        &["build", "-h"],
        &["invoke", "--help"],
        &["archive", "--help"],
        &["archive", "pack", "--help"],
        &["archive", "list", "--help"],
        &["archive", "extract", "--help"],
        &["archive", "verify", "--help"],
        &["archive", "stat", "--help"],
    ] {
        let help = String::from_utf8(run(args).stdout).unwrap();
        assert!(help.contains("Example"), "{args:?}: {help}");
    }
}

#[test]
fn a_wrong_command_line_ends_with_2_and_says_what_is_right() {
    let cases: &[(&[&str], &str)] = &[
        (&["build", "--memory", "64"], "128..=10240"),
        (&["build", "--ephemeral-storage", "100"], "512..=10240"),
        (&["build", "--timeout", "901"], "1..=900"),
        (
            &["build", "--level", "23"],
            "`fast`, `balanced`, `best` or a number from 1 to 22",
        ),
        (
            &["build", "--placement", "outside"],
            "auto, inline, sideload",
        ),
        (&["build", "--runtime", "provided.al2"], "provided.al2023"),
        (
            &["build", "--release", "--profile", "dev"],
            "cannot be used with",
        ),
        (&["build", "--arm64", "--x86-64"], "cannot be used with"),
        (
            &["build", "--arm64", "--target", "x86_64-unknown-linux-gnu"],
            "cannot be used with",
        ),
        (
            &["build", "--binary", "f", "--features", "g"],
            "cannot be used with",
        ),
        (
            &["build", "--binary", "f", "--", "-Zx"],
            "cannot be used with",
        ),
        (&["build", "--relase"], "--release"),
        (&["invoke", "--env", "=x"], "KEY=VALUE"),
        (&["invoke", "--zip", "a.zip", "name"], "cannot be used with"),
        (&["archive", "pack", "x"], "--output <FILE>"),
        (
            &["archive", "pack", "x", "-o", "y", "--level", "0"],
            "1 to 22",
        ),
        (&["archive", "extract", "x", "--threads", "0"], "1..=1024"),
        (&["archive", "unpack", "x"], "unrecognized subcommand"),
        (&["buil"], "build"),
    ];
    for (args, says) in cases {
        let output = run(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(says), "{args:?}: {stderr}");
    }
}

#[test]
fn cargo_lambdas_words_are_understood() {
    let args = build_args(&[
        "-r",
        "-i",
        "config",
        "-l",
        "out",
        "-o",
        "zip",
        "-c",
        "cargo-zigbuild",
        "--flatten",
        "f",
    ]);
    assert_eq!(args.config.include, ["config"]);
    assert_eq!(args.cargo.compiler, Some(Compiler::CargoZigbuild));
    assert_eq!(args.flatten.as_deref(), Some("f"));

    let words = [
        "cargo-slimlambda",
        "invoke",
        "f",
        "--data-ascii",
        "{}",
        "--data-file",
        "a",
        "-F",
        "b",
    ];
    let Parsed::Invoke(args) = Cli::from_args(words.map(Into::into)).unwrap().command else {
        unreachable!()
    };
    assert_eq!(args.choice().bin, ["f"]);
    assert_eq!(args.data, ["{}"]);
    assert_eq!(args.event.len(), 2);
}

#[test]
fn values_reach_the_configuration() {
    let args = build_args(&[
        "--level",
        "7",
        "--placement",
        "inline",
        "--",
        "--config",
        "a=1",
    ]);
    assert_eq!(args.config.level, Some(Level::Number(7)));
    assert_eq!(args.config.placement, Some(Placement::Inline));
    assert_eq!(args.cargo.cargo_args, ["--config", "a=1"]);
}
