//! What each kind of unpacking costs: `cargo run --release -p cargo-slimlambda --example speeds -- [DIR…]`
//!
//! Packs samples, unpacks them with the launcher (one thread, warm page cache, into a tmpfs) and fits the table `COSTS` of
//! `estimate.rs` to the CPU time that it takes; then shows how well the table, the new one and the one built in, tells the times.
//! CPU time, not the clock: it stays true on a machine that has other things to do. What each sample brings: noise is stored,
//! copies of it are only written once more, numbered lines compress to nearly nothing, source text is the text of this program's
//! dependencies, a DIR (without one, the Rust toolchain's programs) is unpacked as it is, and once more as data of no kind: with
//! its ELF files made unrecognisable.

use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cargo_slimlambda::cargo::launcher::launcher;
use cargo_slimlambda::config::Level;
use cargo_slimlambda::estimate::{self, COSTS, KINDS, Work};
use cargo_slimlambda::pack;
use cargo_slimlambda::pack::archive::{Input, InputContent};
use cargo_slimlambda::pack::cache::Cache;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use runtime_unpack::format::FILE_NAME;
use runtime_unpack::launch::{Base, Launch, Place};

/// Runs of each sample, of which the quickest counts: what disturbs a run only ever makes it longer.
const RUNS: usize = 7;
/// Bytes of a sample, about.
const SIZE: usize = 64 << 20;

/// A path in the archive, and its bytes.
type File = (String, Vec<u8>);

/// A sample and what was measured.
struct Sample {
    name: String,
    work: Work,
    /// Seconds of one core.
    measured: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut directories: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if directories.is_empty() {
        let said = Command::new("rustc")
            .args(["--print", "sysroot"])
            .output()?;
        directories.push(Path::new(String::from_utf8(said.stdout)?.trim()).join("bin"));
    }
    let mut samples = vec![
        measure("noise", vec![("noise".into(), noise(SIZE))])?,
        measure("copies of noise", copies())?,
        measure("small files", small_files())?,
        measure("numbered lines", vec![("lines".into(), lines())])?,
        measure("source text", vec![("text".into(), text()?)])?,
        measure("fp32 numbers", vec![("floats.npy".into(), floats())])?,
    ];
    for directory in &directories {
        let name = directory.display();
        let mut files = files(directory)?;
        samples.push(measure(&name.to_string(), files.clone())?);
        for (_, bytes) in files
            .iter_mut()
            .filter(|(_, bytes)| bytes.starts_with(b"\x7fELF"))
        {
            bytes[0] = 0;
        }
        samples.push(measure(&format!("{name}, as data"), files)?);
    }
    let costs = fit(&samples);

    println!("picoseconds a unit (built in → here):");
    for (cost, here) in COSTS.iter().zip(costs) {
        let rate = 1e6 / here.max(1e-3);
        println!(
            "  {:<12} {:>11} → {here:>11.0}  {:<36} {}",
            format!("{:?}", cost.kind),
            cost.picoseconds,
            cost.what,
            match cost.kind {
                estimate::Kind::Entries => format!("{rate:.3} million a second"),
                _ => format!("{rate:.0} MB/s"),
            }
        );
    }
    println!("\nCPU milliseconds: measured, by the table from here, by the built-in one");
    for sample in &samples {
        println!(
            "  {:>8.1} {:>8.1} {:>8.1}  {}",
            sample.measured * 1e3,
            predicted(&costs, sample) * 1e3,
            sample.work.cpu().as_secs_f64() * 1e3,
            sample.name
        );
    }
    Ok(())
}

/// Packs, and unpacks with the launcher.
fn measure(name: &str, files: Vec<File>) -> Result<Sample, Box<dyn Error>> {
    eprintln!("{name}: {} files", files.len());
    let directory = tempfile::Builder::new()
        .prefix("speeds-")
        .tempdir_in("/dev/shm")?;
    let (task, tmp) = (directory.path().join("task"), directory.path().join("tmp"));
    fs::create_dir(&task)?;
    fs::create_dir(&tmp)?;
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
    let (level, cache) = (Level::default().zstd(), Cache::of_user()?);
    let archive = pack::archive::pack(&inputs, &launch, level, cache.as_ref(), &|_| {})?;
    let work = Work::of(&estimate::read(&archive.bytes)?, |_| true);

    let bytes = launcher(std::env::consts::ARCH, false, &|_| {})?;
    let bootstrap = task.join("bootstrap");
    fs::write(&bootstrap, pack::pair(bytes, &archive.digest)?)?;
    fs::set_permissions(&bootstrap, fs::Permissions::from_mode(0o755))?;
    fs::write(task.join(FILE_NAME), &archive.bytes)?;
    let mut measured = f64::INFINITY;
    for _ in 0..RUNS {
        let cold = start(&bootstrap, &tmp)?;
        // The same without the unpacking.
        let warm = start(&bootstrap, &tmp)?;
        measured = measured.min(cold - warm);
        fs::remove_dir_all(tmp.join("slimlambda"))?;
    }
    Ok(Sample {
        name: name.to_string(),
        work,
        measured,
    })
}

/// CPU seconds that a start takes.
fn start(bootstrap: &Path, tmp: &Path) -> Result<f64, Box<dyn Error>> {
    let used = || -> nix::Result<f64> {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        Ok((usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6)
    };
    let before = used()?;
    let status = Command::new(bootstrap)
        .env_clear()
        .env("SLIMLAMBDA_TMP", tmp)
        .env("SLIMLAMBDA_THREADS", "1")
        .stdin(Stdio::null())
        .status()?;
    match status.success() {
        true => Ok(used()? - before),
        false => Err(format!("{} failed: {status}", bootstrap.display()).into()),
    }
}

fn predicted(costs: &[f64; KINDS], sample: &Sample) -> f64 {
    let amounts = COSTS
        .iter()
        .map(|cost| sample.work.amount(cost.kind) as f64);
    amounts
        .zip(costs)
        .map(|(amount, cost)| amount * cost)
        .sum::<f64>()
        / 1e12
}

/// Least squares of the relative errors, no cost below zero: one cost after the other is set to its best, many times over. What
/// the samples do not tell apart stays near what it was.
fn fit(samples: &[Sample]) -> [f64; KINDS] {
    /// What a cost's relative change counts, against a sample's relative error.
    const INERTIA: f64 = 1e-2;
    let mut costs = COSTS.map(|cost| cost.picoseconds as f64);
    for _ in 0..20_000 {
        for kind in 0..KINDS {
            let was = COSTS[kind].picoseconds as f64;
            let (mut above, mut below) = (INERTIA / was, INERTIA / was / was);
            for sample in samples {
                let share = sample.work.amount(COSTS[kind].kind) as f64 / 1e12 / sample.measured;
                let rest = predicted(&costs, sample) / sample.measured - share * costs[kind];
                above += share * (1.0 - rest);
                below += share * share;
            }
            costs[kind] = (above / below).max(0.0);
        }
    }
    costs
}

/// Numbers of no pattern, the same each time.
fn random() -> impl FnMut() -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

fn noise(size: usize) -> Vec<u8> {
    let mut random = random();
    (0..size / 8).flat_map(|_| random().to_le_bytes()).collect()
}

fn copies() -> Vec<File> {
    let noise = noise(SIZE / 4);
    (0..8)
        .map(|n| (format!("copy{n}"), noise.clone()))
        .collect()
}

fn small_files() -> Vec<File> {
    let mut random = random();
    let mut file = |n| (format!("{}/{n}", n % 100), random().to_le_bytes().to_vec());
    (0..20_000).map(&mut file).collect()
}

fn lines() -> Vec<u8> {
    let lines =
        (0..).flat_map(|n: u64| format!("request {n} took {} ms\n", n * 7919 % 1000).into_bytes());
    lines.take(SIZE).collect()
}

/// All sources of the dependencies, as one text.
fn text() -> Result<Vec<u8>, Box<dyn Error>> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let files = files(&home.ok_or("no `HOME`")?.join("registry/src"))?;
    let sources = files.into_iter().filter(|(path, _)| path.ends_with(".rs"));
    Ok(sources.flat_map(|(_, bytes)| bytes).take(SIZE).collect())
}

/// Numbers as a trained model has them, as NumPy writes them.
fn floats() -> Vec<u8> {
    let mut random = random();
    let mut out = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    let shape = format!(
        "{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}",
        SIZE / 4
    );
    out.extend(format!("{shape:<117}\n").bytes());
    out.extend((0..SIZE / 4).flat_map(|_| {
        let uniform = |bits: u64| (bits & 0xffff) as f32 / 65_536.0 - 0.5;
        let bits = random();
        let sum: f32 = (0..4).map(|n| uniform(bits >> (16 * n))).sum();
        (sum * 0.05).to_le_bytes()
    }));
    out
}

/// A directory's files in the order of their paths, until they are enough.
fn files(root: &Path) -> Result<Vec<File>, Box<dyn Error>> {
    let (mut paths, mut open) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else if entry.file_type()?.is_file() {
                paths.push(entry.path());
            }
        }
    }
    paths.sort();
    let (mut out, mut size) = (Vec::new(), 0);
    for path in paths {
        let bytes = fs::read(&path)?;
        let name = path.strip_prefix(root)?.to_str().ok_or("not UTF-8")?;
        size += bytes.len();
        out.push((format!("data/{name}"), bytes));
        if size > 2 * SIZE {
            break;
        }
    }
    Ok(out)
}
