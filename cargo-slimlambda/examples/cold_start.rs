//! What the launcher costs: `cargo run --release --example cold_start -- DIR [RUNS]`
//!
//! Packs DIR with a program that does nothing, and measures, interleaved, in a tmpfs: that program alone, a warm start
//! through the launcher, a cold start, and `cp -r` of the same tree. Medians with their spread.

use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cargo_slimlambda::cargo::launcher::launcher;
use cargo_slimlambda::config::Level;
use cargo_slimlambda::pack;
use cargo_slimlambda::pack::archive::{Input, InputContent};
use runtime_unpack::format::FILE_NAME;
use runtime_unpack::launch::{Base, Launch, Place};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let source = PathBuf::from(args.next().ok_or("which directory?")?);
    let runs: usize = match args.next() {
        Some(runs) => runs.to_string_lossy().parse()?,
        None => 21,
    };
    let work = tempfile::Builder::new()
        .prefix("cold-start-")
        .tempdir_in("/dev/shm")?;
    let (task, tmp) = (work.path().join("task"), work.path().join("tmp"));
    fs::create_dir(&task)?;
    fs::create_dir(&tmp)?;

    let bytes = launcher(std::env::consts::ARCH, false, &|_| {})?;
    let size = bytes.len();
    let files = files(&source)?;
    let started = Instant::now();
    let (archive, unpacked) = archive(&files)?;
    let packing = started.elapsed();
    let launcher = task.join("bootstrap");
    fs::write(&launcher, pack::pair(bytes, &archive.digest)?)?;
    fs::set_permissions(&launcher, fs::Permissions::from_mode(0o755))?;
    fs::write(task.join(FILE_NAME), &archive.bytes)?;

    let start = |program: &Path| -> Result<Duration, Box<dyn Error>> {
        let started = Instant::now();
        let status = Command::new(program)
            .env_clear()
            .env("SLIMLAMBDA_TMP", &tmp)
            .stdin(Stdio::null())
            .status()?;
        match status.success() {
            true => Ok(started.elapsed()),
            false => Err(format!("{} failed: {status}", program.display()).into()),
        }
    };
    let copy = work.path().join("copy");
    let (mut alone, mut warm, mut cold, mut cp) = (vec![], vec![], vec![], vec![]);
    for _ in 0..runs {
        fs::remove_dir_all(tmp.join("slimlambda")).or_else(missing)?;
        cold.push(start(&launcher)?);
        warm.push(start(&launcher)?);
        alone.push(start(Path::new("/bin/true"))?);
        fs::remove_dir_all(&copy).or_else(missing)?;
        let started = Instant::now();
        let copied = Command::new("cp")
            .arg("-r")
            .arg(&source)
            .arg(&copy)
            .status()?;
        cp.push(started.elapsed());
        assert!(copied.success(), "cp failed");
    }
    let rate = |times: &[Duration]| unpacked as f64 / 1e6 / median(times).as_secs_f64();
    let bytes = archive.bytes.len();
    println!("launcher     {size} bytes");
    println!(
        "tree         {} files, {unpacked} bytes → {bytes} packed in {:.1} s",
        files.len(),
        packing.as_secs_f64()
    );
    println!("exec alone   {}", told(&alone));
    println!(
        "warm start   {}   overhead {:.2} ms",
        told(&warm),
        (median(&warm).as_secs_f64() - median(&alone).as_secs_f64()) * 1e3
    );
    println!("cold start   {}   {:.0} MB/s", told(&cold), rate(&cold));
    println!("cp -r        {}   {:.0} MB/s", told(&cp), rate(&cp));
    println!(
        "ratio        {:.2} × cp -r",
        median(&cold).as_secs_f64() / median(&cp).as_secs_f64()
    );
    Ok(())
}

fn missing(error: std::io::Error) -> std::io::Result<()> {
    match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}

/// A path in the archive, and its bytes.
type File = (String, Vec<u8>);

fn files(root: &Path) -> Result<Vec<File>, Box<dyn Error>> {
    let (mut out, mut open) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else if entry.file_type()?.is_file() {
                let path = entry
                    .path()
                    .strip_prefix(root)?
                    .to_str()
                    .ok_or("not UTF-8")?
                    .to_string();
                out.push((format!("data/{path}"), fs::read(entry.path())?));
            }
        }
    }
    Ok(out)
}

fn archive(files: &[File]) -> Result<(pack::archive::Packed, u64), Box<dyn Error>> {
    let program = fs::read("/bin/true")?;
    let file = |path, bytes| Input {
        path,
        mode: 0o755,
        lazy: false,
        content: InputContent::File(bytes),
    };
    let mut inputs: Vec<Input<'_>> = files
        .iter()
        .map(|(path, bytes)| file(path, bytes))
        .collect();
    inputs.push(file("bin/true", &program));
    let launch = Launch {
        program: Some(Place {
            base: Base::Tree,
            path: "bin/true".into(),
        }),
        library_path: Vec::new(),
    };
    let archive = pack::archive::pack(&inputs, &launch, Level::default().zstd(), None, &|_| {})?;
    let unpacked = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    Ok((archive, unpacked))
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2]
}

fn told(times: &[Duration]) -> String {
    let ms = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1e3);
    format!(
        "{:8.2} ms ({:.2} to {:.2})",
        ms(Some(&median(times))),
        ms(times.iter().min()),
        ms(times.iter().max())
    )
}
