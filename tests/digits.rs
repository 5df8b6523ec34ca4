//! The main job: a function with ONNX Runtime linked dynamically, built, packed with a compressed sideload archive, started as Lambda
//! starts it, and reading real pictures. Its set-up takes the library from a PyPI wheel, so the first run needs the network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::function::{Ran, run, shared, slimlambda};

const NAME: &str = "digit-classifier";

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fixtures")
        .join(NAME)
}

/// Where the packages are, built once.
static PACKAGES: LazyLock<PathBuf> = LazyLock::new(|| {
    let packages = shared("digits/lambda");
    let mut command = slimlambda(&fixture(), "build");
    command
        .args(["--bin", NAME, "--locked", "--target-dir"])
        .arg(shared("digits/target"))
        .arg("--lambda-dir")
        .arg(&packages);
    let ran = run(command, "");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    packages
});

fn invoke(args: &[&str]) -> Ran {
    let mut command = slimlambda(&fixture(), "invoke");
    command
        .args([NAME, "--lambda-dir"])
        .arg(&*PACKAGES)
        .args(args);
    let ran = run(command, "");
    assert_eq!(ran.code, 0, "{}\n{}", ran.stdout, ran.stderr);
    ran
}

#[test]
fn a_picture_of_a_seven_is_read_cold_and_warm() {
    let event = "events/seven.json";
    let ran = invoke(&["--event", event, "--event", event]);
    let answers: Vec<Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), 2);
    for answer in answers {
        assert_eq!(answer["digit"], 7, "{}", ran.stdout);
    }
    assert!(
        ran.stderr.contains("Launcher") && ran.stderr.contains("unpacked"),
        "{}",
        ran.stderr
    );
    assert!(!ran.stderr.contains("Refused"), "{}", ran.stderr);
}

#[test]
fn held_out_pictures_are_read_in_lambda_as_outside() {
    let outside = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(fixture())
        .args([
            "run",
            "--quiet",
            "--release",
            "--locked",
            "--bin",
            "classify",
            "--target-dir",
        ])
        .arg(shared("digits/target"))
        .args(["--", "held-out"])
        .env_remove("CARGO_TARGET_DIR")
        .output()
        .unwrap();
    assert!(
        outside.status.success(),
        "{}",
        String::from_utf8_lossy(&outside.stderr)
    );
    let outside = String::from_utf8(outside.stdout).unwrap();
    let (outside, accuracy) = outside.trim_end().rsplit_once('\n').unwrap();
    let outside: Vec<&str> = outside.lines().collect();
    assert_eq!(outside.len(), 360);

    let events = tempfile::tempdir().unwrap();
    let mut args = Vec::new();
    for line in &outside {
        let name = line.split(' ').next().unwrap();
        let picture = fs::read(fixture().join("held-out").join(name)).unwrap();
        let event = events.path().join(name).with_extension("json");
        fs::write(&event, json!({ "image": base64(&picture) }).to_string()).unwrap();
        args.extend(["--event".to_owned(), event.to_str().unwrap().to_owned()]);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let inside = invoke(&args).stdout;

    let mut right = 0;
    assert_eq!(inside.lines().count(), outside.len());
    for (answer, line) in inside.lines().zip(&outside) {
        let answer: Value = serde_json::from_str(answer).unwrap();
        let name = line.split(' ').next().unwrap();
        let confidence = answer["confidence"].as_f64().unwrap();
        assert_eq!(format!("{name} {} {confidence:.4}", answer["digit"]), *line);
        right += usize::from(name.ends_with(&format!("-{}.png", answer["digit"])));
    }
    let percent = 100.0 * right as f64 / outside.len() as f64;
    assert_eq!(
        format!("accuracy: {right}/{} = {percent:.2} %", outside.len()),
        accuracy
    );
    // The accuracy stated is x86_64's.
    if cfg!(target_arch = "x86_64") {
        let readme = fs::read_to_string(fixture().join("README.md")).unwrap();
        assert!(readme.contains(accuracy), "{accuracy}");
    }
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0u32, |bits, n| {
            bits << 8 | u32::from(*chunk.get(n).unwrap_or(&0))
        });
        for n in 0..4 {
            match n <= chunk.len() {
                true => text.push(char::from(DIGITS[(bits >> (18 - 6 * n)) as usize & 63])),
                false => text.push('='),
            }
        }
    }
    text
}
