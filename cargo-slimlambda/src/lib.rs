//! `cargo slimlambda`: builds AWS Lambda packages that fit and are proven to start.
//!
//! The pipeline, top to bottom: Cargo builds ([`cargo`]), the ELF files are understood and checked ([`elf`]), placed
//! ([`plan`]), packed ([`pack`]), told of ([`report`]); [`sandbox`] runs what came out the way Lambda would.

mod archive;
pub mod assets;
pub mod cargo;
pub mod cli;
pub mod config;
pub mod elf;
pub mod error;
pub mod estimate;
pub mod event;
mod invoke;
pub mod limits;
pub mod output;
pub mod pack;
pub mod plan;
pub mod report;
pub mod sandbox;
pub mod tree;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use glob::Pattern;
use rayon::prelude::*;
use runtime_unpack::format::FILE_NAME;
use runtime_unpack::launch::Launch;
use typed_arena::Arena;

use assets::Asset;
use cargo::Artifact;
use cli::BuildArgs;
use config::Config;
use elf::abi::{self, Verdict};
use elf::closure::{Closure, Object};
use elf::image::{Image, ImageError, Machine};
use elf::needed::{self, SearchPath};
use elf::{dlopen, explain, runtime, strip};
use error::gate;
use estimate::Work;
use event::{Event, Sink};
use pack::archive::{Input, InputContent};
use pack::cache::Cache;
use plan::Place;
use report::Report;
use tree::{Bytes, Content, Item, LIBRARY_DIRECTORY, PROGRAM_DIRECTORY, Role, Strip};

/// Runs one command line.
///
/// # Errors
///
/// Whatever went wrong; [`error::exit_code`] knows the exit code.
pub fn run(cli: cli::Cli) -> anyhow::Result<()> {
    match &cli.command {
        cli::Command::Build(args) => {
            let screen = report::terminal::Screen::new(&args.output);
            let result = build(args, &|event| screen.event(event));
            match (&result, args.message_format) {
                (result, cli::MessageFormat::Json) => report::print(&report::json(result)?),
                (Ok(reports), _) => screen.reports(reports),
                (Err(_), _) => {}
            }
            result.map(drop)
        }
        cli::Command::Invoke(args) => invoke::invoke(args),
        cli::Command::Archive(args) => archive::archive(args),
    }
}

/// Builds and packs every binary that the arguments choose.
///
/// # Errors
///
/// Exit code 100 where a package would not start or not fit, Cargo's where the build fails.
pub fn build(args: &BuildArgs, sink: Sink<'_>) -> anyhow::Result<Vec<Report>> {
    if let Some(threads) = args.threads {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.into())
            .build();
        let args = BuildArgs {
            threads: None,
            ..args.clone()
        };
        return pool
            .context("failed to start threads")?
            .install(|| build(&args, sink));
    }
    let offline = args.cargo.offline || args.cargo.frozen;
    let cache = match args.no_cache {
        true => None,
        false => Cache::of_user()?,
    };
    let package = |metadata: Option<&_>, artifact: &Artifact, config: &Config, assets: &[Asset]| {
        let directory = cargo::output_directory(metadata, args, &artifact.name);
        let package = make(artifact, config, assets, offline, cache.as_ref(), sink)?;
        if let Some(cache) = &cache {
            cache.finish(sink);
        }
        let flat = args.flatten.as_ref() == Some(&artifact.name);
        output::write(package, &directory, args.output_format, flat)
    };

    if let Some(path) = &args.binary {
        let metadata = cargo::metadata_if_any(&args.choice)?;
        let current = match &metadata {
            Some(metadata) => cargo::current_package(metadata, &args.choice)?,
            None => None,
        };
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let config = config::load(metadata.as_ref(), current, name, &args.config)?;
        let artifact = cargo::given(
            path,
            cargo::target(&args.cargo, std::slice::from_ref(&config))?.as_deref(),
        )?;
        let assets = collect(&config)?;
        return Ok(vec![package(
            metadata.as_ref(),
            &artifact,
            &config,
            &assets,
        )?]);
    }

    let metadata = cargo::metadata(&args.choice)?;
    let selected = cargo::select(&metadata, &args.choice)?;
    if let Some(flatten) = &args.flatten
        && !selected.iter().any(|one| one.bin == flatten)
    {
        return Err(error::usage(format!(
            "`--flatten {flatten}` is none of the binaries to build\nhelp: give it the name of one"
        )));
    }
    // What is wrong with the configuration or the assets is said before Cargo spends minutes.
    let configs = selected
        .iter()
        .map(|one| config::load(Some(&metadata), Some(one.package), one.bin, &args.config))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let assets = configs
        .iter()
        .map(collect)
        .collect::<anyhow::Result<Vec<_>>>()?;
    let target = cargo::target(&args.cargo, &configs)?;
    let artifacts = cargo::build(args, &metadata, &selected, target.as_deref(), sink)?;
    let mut reports = Vec::new();
    for artifact in &artifacts {
        let chosen = selected.iter().position(|one| one.bin == artifact.name);
        let chosen = chosen.context("cargo built a binary that was not chosen")?;
        let report = package(Some(&metadata), artifact, &configs[chosen], &assets[chosen]);
        reports.push(match artifacts.len() {
            1 => report?,
            _ => report.with_context(|| format!("failed to package `{}`", artifact.name))?,
        });
    }
    Ok(reports)
}

/// The assets; what is wrong with them is wrong with the configuration.
fn collect(config: &Config) -> anyhow::Result<Vec<Asset>> {
    assets::collect(&config.assets).map_err(|error| error::usage(format!("{error:#}")))
}

/// One function: binary → everything that goes to Lambda, and what there is to say about it.
fn make(
    artifact: &Artifact,
    config: &Config,
    assets: &[Asset],
    offline: bool,
    cache: Option<&Cache>,
    sink: Sink<'_>,
) -> anyhow::Result<output::Package> {
    let runtime = runtime(config.runtime);
    let arena = Arena::new();

    let program = program(artifact, &arena)?;
    let machine = program.image.machine;
    check_target(artifact, machine)?;
    sink(Event::Status {
        verb: "Checking",
        what: &format!(
            "{} would start on {} ({machine})",
            artifact.name, runtime.name
        ),
    });
    let search = SearchPath {
        library_path: config.library_path.clone(),
        link_paths: artifact.search_paths.clone(),
        system: needed::system_directories(machine),
    };
    let closure = needed::closure(&program, &config.libraries, runtime, &search, &|path| {
        read(path, &arena)
    });
    let verdict = would_start(&program, &closure, artifact, machine, runtime, sink)?;
    let hints = hints(&program, &closure, machine, runtime);

    let libraries = match closure.libraries.len() {
        0 => String::new(),
        1 => " and 1 library".to_string(),
        several => format!(" and {several} libraries"),
    };
    sink(Event::Status {
        verb: "Stripping",
        what: &format!("{}{libraries}", artifact.name),
    });
    let items = items(artifact, config, &program, &closure, assets, machine, sink)?;

    let plan = place(&items, config, sink).map_err(|error| {
        match error.downcast::<plan::DoesNotFit>() {
            Ok(error) => gate(error.0),
            Err(error) => error,
        }
    })?;
    for (item, _) in items.iter().zip(&plan.places).filter(|(item, (place, _))| {
        *place == Place::Package && item.role == Role::Asset && item.mode & 0o004 == 0
    }) {
        sink(Event::Warning(&format!(
            "`{}` has mode {:04o}: in the package it belongs to root, and the function's user cannot read it",
            item.dest, item.mode
        )));
    }
    let launcher = match plan.launcher {
        true => Some(cargo::launcher::launcher(machine.as_str(), offline, sink)?),
        false => None,
    };

    sink(Event::Status {
        verb: "Packing",
        what: &artifact.name,
    });
    let packed = pack::pack(
        &artifact.name,
        &items,
        &plan,
        launcher,
        config.level.zstd(),
        cache,
        sink,
    )?;
    if packed.unzipped >= limits::UNZIPPED.value {
        return Err(gate(format!(
            "the package does not fit: {} bytes unzipped, and Lambda takes less than {}",
            packed.unzipped,
            limits::UNZIPPED.value
        )));
    }
    let start = start(&packed)?;
    if let Some(warning) = estimate::warning(&start, config.memory) {
        sink(Event::Warning(&warning));
    }
    let report = report::report(&report::Facts {
        artifact,
        config,
        start: &start,
        runtime: runtime.name,
        machine,
        items: &items,
        plan: &plan,
        packed: &packed,
        closure: &closure,
        notes: verdict.notes,
        hints,
    });
    Ok(output::Package {
        files: packed.files,
        zip: packed.zip,
        report,
    })
}

fn runtime(runtime: config::Runtime) -> &'static runtime::Runtime {
    match runtime {
        config::Runtime::ProvidedAl2023 => &runtime::PROVIDED_AL2023,
    }
}

fn read<'a>(path: &Path, arena: &'a Arena<Bytes>) -> std::io::Result<needed::File<'a>> {
    let real = path.canonicalize()?;
    if !real.is_file() {
        return Err(std::io::ErrorKind::NotFound.into());
    }
    let bytes = Bytes::map(&real).map_err(std::io::Error::other)?;
    Ok(needed::File {
        real,
        bytes: arena.alloc(bytes),
    })
}

/// The function's binary, which must be an ELF file for a machine that Lambda has.
fn program<'a>(artifact: &Artifact, arena: &'a Arena<Bytes>) -> anyhow::Result<Object<'a>> {
    let path = &artifact.executable;
    let file = read(path, arena).with_context(|| format!("failed to read `{}`", path.display()))?;
    let image = Image::parse(file.bytes).map_err(|error| {
        let help = match &error {
            ImageError::NotElf(_) | ImageError::Machine(_) | ImageError::Class32 | ImageError::BigEndian => {
                "\nhelp: Lambda runs 64-bit Linux programs: build for `x86_64-unknown-linux-gnu` (`--x86-64`) or `aarch64-unknown-linux-gnu` (`--arm64`)"
            }
            _ => "\nhelp: build it again; the file is damaged",
        };
        gate(format!("`{}` would not start on Lambda: {error}{help}", path.display()))
    })?;
    Ok(Object {
        label: artifact.name.clone(),
        path: path.clone(),
        real: file.real,
        image,
    })
}

fn check_target(artifact: &Artifact, machine: Machine) -> anyhow::Result<()> {
    let Some(target) = &artifact.target else {
        return Ok(());
    };
    if target.starts_with(machine.as_str()) {
        return Ok(());
    }
    Err(gate(format!(
        "`{}` is for {machine}, the package is for {target}\nhelp: give the target that it was built for (`--arm64` or `--x86-64`), or build it for {target}",
        artifact.executable.display()
    )))
}

fn would_start(
    program: &Object<'_>,
    closure: &Closure<'_>,
    artifact: &Artifact,
    machine: Machine,
    runtime: &runtime::Runtime,
    sink: Sink<'_>,
) -> anyhow::Result<Verdict> {
    let mut verdict = abi::would_start(program, closure, runtime, machine);
    if !verdict.problems.is_empty() {
        abi::attribute(&mut verdict.problems, program, &artifact.rlibs);
        return Err(gate(explain::explain(&verdict.problems, runtime, machine)));
    }
    for conflict in &closure.conflicts {
        sink(Event::Warning(&conflict.to_string()));
    }
    Ok(verdict)
}

/// Libraries that may be opened at run time, besides those that are in the package or the runtime anyway.
fn hints(
    program: &Object<'_>,
    closure: &Closure<'_>,
    machine: Machine,
    runtime: &runtime::Runtime,
) -> Vec<dlopen::Hint> {
    let bundled = closure
        .libraries
        .iter()
        .map(|library| (library.object.label.as_str(), &library.object.image));
    let files: Vec<(&str, &Image<'_>)> = std::iter::once((program.label.as_str(), &program.image))
        .chain(bundled)
        .collect();
    let known = |name: &str| {
        runtime.row(name, machine).is_some()
            || runtime::is_glibc(name)
            || closure
                .libraries
                .iter()
                .any(|library| library.names.iter().any(|known| known == name))
    };
    dlopen::hints(&files, &known)
}

/// Every file of the package: the binary and its libraries, stripped, and the assets.
fn items(
    artifact: &Artifact,
    config: &Config,
    program: &Object<'_>,
    closure: &Closure<'_>,
    assets: &[Asset],
    machine: Machine,
    sink: Sink<'_>,
) -> anyhow::Result<Vec<Item>> {
    let exclude = config
        .strip_exclude
        .iter()
        .map(|glob| {
            Pattern::new(glob).with_context(|| format!("`{glob}` in `strip.exclude` is not a glob"))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let wanted = |name: &str| config.strip && !exclude.iter().any(|glob| glob.matches(name));
    let binary = (
        format!("{PROGRAM_DIRECTORY}/{}", artifact.name),
        Role::Binary,
        program,
    );
    let libraries = closure.libraries.iter().map(|library| {
        let name = library
            .names
            .first()
            .map_or(library.object.label.as_str(), String::as_str);
        (
            format!("{LIBRARY_DIRECTORY}/{name}"),
            Role::Library,
            &library.object,
        )
    });
    let jobs: Vec<_> = std::iter::once(binary).chain(libraries).collect();
    let mut items = jobs
        .into_par_iter()
        .map(|(dest, role, object)| {
            let name = dest.rsplit('/').next().unwrap_or(&dest);
            let (bytes, strip) = stripped(object, wanted(name))?;
            let size = object.image.bytes.len() as u64;
            Ok(item(
                dest,
                role,
                Content::File(bytes),
                size,
                strip,
                object,
                config,
            ))
        })
        .collect::<anyhow::Result<Vec<Item>>>()?;
    // A second name must be a symlink: the loader takes a copy for another library.
    for library in &closure.libraries {
        for alias in library.names.iter().skip(1) {
            let dest = format!("{LIBRARY_DIRECTORY}/{alias}");
            let target = Content::Symlink(library.names[0].clone());
            let size = target.size();
            items.push(item(
                dest,
                Role::Library,
                target,
                size,
                Strip::Not,
                &library.object,
                config,
            ));
        }
    }
    for item in &items {
        if let Strip::Refused(why) = &item.strip {
            sink(Event::Warning(&format!(
                "`{}` is shipped unstripped: {why}",
                item.source.display()
            )));
        }
    }
    for asset in assets {
        items.push(asset_item(asset, machine, sink)?);
    }
    items.sort_by(|a, b| a.dest.cmp(&b.dest));
    if let Some(pair) = items.windows(2).find(|pair| pair[0].dest == pair[1].dest) {
        bail!(
            "two files want to be `{}` in the package\n  first: `{}`\n  second: `{}`\nhelp: give the asset another `dest`",
            pair[0].dest,
            pair[0].source.display(),
            pair[1].source.display()
        );
    }
    Ok(items)
}

fn item(
    dest: String,
    role: Role,
    content: Content,
    original_size: u64,
    strip: Strip,
    object: &Object<'_>,
    config: &Config,
) -> Item {
    let mode = if matches!(content, Content::File(_)) {
        0o755
    } else {
        0o777
    };
    Item {
        dest,
        role,
        mode,
        content,
        original_size,
        strip,
        placement: config.placement,
        lazy: false,
        source: object.path.clone(),
        asset: None,
    }
}

fn stripped(object: &Object<'_>, wanted: bool) -> anyhow::Result<(Bytes, Strip)> {
    let strip = match wanted.then(|| strip::strip(&object.image)) {
        Some(strip::Stripped::Smaller(bytes)) => return Ok((Bytes::Owned(bytes), Strip::Stripped)),
        Some(strip::Stripped::Unchanged(
            strip::Reason::AlreadyStripped | strip::Reason::NothingToGain,
        )) => Strip::AlreadyStripped,
        Some(strip::Stripped::Unchanged(strip::Reason::Dangerous(why))) => Strip::Refused(why),
        None => Strip::Not,
    };
    Ok((Bytes::map(&object.real)?, strip))
}

/// An asset as it is. One that is an ELF file for another machine cannot be meant, so it is warned of.
fn asset_item(asset: &Asset, machine: Machine, sink: Sink<'_>) -> anyhow::Result<Item> {
    let content = match &asset.kind {
        assets::Kind::File { .. } => Content::File(Bytes::map(&asset.source)?),
        assets::Kind::Symlink { target } => Content::Symlink(target.clone()),
    };
    if let Content::File(bytes) = &content
        && let Ok(image) = Image::parse(bytes)
        && image.machine != machine
    {
        sink(Event::Warning(&format!(
            "asset `{}` is an ELF file for {}, the package is for {machine}",
            asset.dest, image.machine
        )));
    }
    let original_size = content.size();
    Ok(Item {
        dest: asset.dest.clone(),
        role: Role::Asset,
        mode: asset.mode,
        content,
        original_size,
        strip: Strip::Not,
        placement: asset.placement,
        lazy: asset.lazy,
        source: asset.source.clone(),
        asset: Some(asset.spec),
    })
}

/// Measures what planning needs to know, and plans.
fn place(items: &[Item], config: &Config, sink: Sink<'_>) -> anyhow::Result<plan::Plan> {
    let all: u64 = items.iter().map(Item::size).sum();
    // Compressing to see what it would win costs seconds; where all fits as it is, nobody asks.
    let measure = all + pack::LAUNCHER_SIZE >= limits::UNZIPPED.value;
    if measure {
        sink(Event::Status {
            verb: "Measuring",
            what: &format!("what {all} bytes would pack to"),
        });
    }
    let unit = |number: usize| {
        items[number]
            .asset
            .map_or(number, |asset| items.len() + asset)
    };
    let mut candidates: Vec<plan::Candidate> = items
        .iter()
        .enumerate()
        .map(|(number, item)| plan::Candidate {
            dest: item.dest.clone(),
            size: item.size(),
            packed: item.size(),
            cost: Duration::ZERO,
            placement: item.placement,
            lazy: item.lazy,
            library: item.role == Role::Library,
            unit: unit(number),
            follows: tree::pointed_at(items, number),
        })
        .collect();
    if measure {
        let mut units: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (number, item) in items.iter().enumerate() {
            // A symlink goes where its target goes, whatever that costs.
            if let Content::File(_) = item.content {
                units.entry(unit(number)).or_default().push(number);
            }
        }
        for files in units.values() {
            for (number, packed, cost) in measured(items, files)? {
                (candidates[number].packed, candidates[number].cost) = (packed, cost);
            }
        }
    }
    let budget = plan::Budget {
        launcher: pack::LAUNCHER_SIZE,
        ephemeral_storage: config.ephemeral_storage,
    };
    Ok(plan::plan(&candidates, budget)?)
}

/// What files that go to one place would take packed together, quickly measured at a low level, and what unpacking would cost:
/// for each its bytes and its share of the time.
fn measured(items: &[Item], files: &[usize]) -> anyhow::Result<Vec<(usize, u64, Duration)>> {
    const LEVEL: i32 = 3;
    let inputs: Vec<Input<'_>> = files
        .iter()
        .map(|number| Input {
            path: &items[*number].dest,
            mode: items[*number].mode,
            lazy: false,
            content: InputContent::File(items[*number].bytes()),
        })
        .collect();
    let packed = pack::archive::pack(&inputs, &Launch::default(), LEVEL, None, &|_| {})?;
    let cost = Work::of(&estimate::read(&packed.bytes)?, |_| true)
        .cpu()
        .as_nanos();
    let total: u64 = files.iter().map(|number| items[*number].size()).sum();
    let shares = files
        .iter()
        .zip(packed.packed_sizes)
        .map(|(number, packed)| {
            let size = items[*number].size();
            let share = cost * u128::from(size) / u128::from(total.max(1));
            (
                *number,
                packed.min(size),
                Duration::from_nanos(share as u64),
            )
        });
    Ok(shares.collect())
}

/// What the launcher has to do before the function starts.
fn start(packed: &pack::Packed) -> anyhow::Result<Work> {
    let archive = packed.files.iter().find(|file| file.path == FILE_NAME);
    match archive.map(|file| &file.content) {
        Some(pack::FileContent::File(bytes)) => {
            let archive = estimate::read(bytes)?;
            Ok(Work::of(&archive, |entry| !archive.entry(entry).lazy))
        }
        _ => Ok(Work::default()),
    }
}
