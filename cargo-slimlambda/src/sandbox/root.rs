//! The file system that the function sees, built by the inner half in a mount namespace.
//!
//! A tmpfs becomes the root, is filled with what the runtime provides (or with the directories of
//! another system root), gets /var/task, /opt, /tmp, /proc and /dev, and is made read-only. All of
//! it lives in the namespace alone and goes away with its last process.

use super::control::Spec;
use super::{GID, UID, provided};
use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{chdir, pivot_root};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Top-level names that another system root does not decide.
const OURS: &[&str] = &["dev", "opt", "proc", "run", "sys", "tmp", "var"];

/// Device nodes of the function, bound from the host.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom"];

/// Size of the root's own tmpfs: the provided libraries are copied there.
const ROOT_SIZE: &str = "mode=755,size=512m";

const NONE: Option<&str> = None;

/// Builds the root and moves this process into it.
pub fn enter(spec: &Spec) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("mount namespace")?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .context("private mounts")?;
    let root = spec.work.join("root");
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), &root, Some("tmpfs"), plain, Some(ROOT_SIZE)).context("tmpfs root")?;

    for directory in ["var/task", "opt", "tmp", "proc", "dev"] {
        create(&root.join(directory))?;
    }
    match &spec.rootfs {
        Some(tree) => bind_tree(tree, &root)?,
        None => fill(spec, &root)?,
    }
    bind_read_only(&spec.task, &root.join("var/task"))?;
    bind_read_only(&spec.opt, &root.join("opt"))?;
    let tmp = format!("mode=700,uid={UID},gid={GID},size={}", spec.tmp_size);
    mount(
        Some("tmpfs"),
        &root.join("tmp"),
        Some("tmpfs"),
        plain,
        Some(tmp.as_str()),
    )
    .context("tmpfs /tmp")?;
    mount(
        Some("proc"),
        &root.join("proc"),
        Some("proc"),
        plain | MsFlags::MS_NOEXEC,
        NONE,
    )
    .context("/proc")?;
    devices(&root.join("dev"))?;

    chdir(&root).context("enter the root")?;
    pivot_root(".", ".").context("pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH).context("leave the host's root")?;
    chdir("/").context("enter the root")?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(NONE, "/", NONE, read_only | plain, NONE).context("read-only root")?;
    nix::unistd::sethostname("localhost").context("host name")?;
    Ok(())
}

fn create(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("create `{}`", directory.display()))
}

/// Copies the provided files and makes the links.
fn fill(spec: &Spec, root: &Path) -> Result<()> {
    for (inside, host) in &spec.files {
        let inside = root.join(inside);
        inside.parent().map_or(Ok(()), create)?;
        fs::copy(host, &inside).with_context(|| format!("copy `{}`", host.display()))?;
    }
    for (inside, text) in provided::TEXTS {
        let inside = root.join(inside);
        inside.parent().map_or(Ok(()), create)?;
        fs::write(&inside, text).with_context(|| format!("write `{}`", inside.display()))?;
    }
    for (inside, target) in &spec.links {
        let inside = root.join(inside);
        inside.parent().map_or(Ok(()), create)?;
        symlink(target, &inside).with_context(|| format!("link `{}`", inside.display()))?;
    }
    Ok(())
}

/// Shows another system's directories, read-only, without writing to that system.
fn bind_tree(tree: &Path, root: &Path) -> Result<()> {
    let mut entries = list(tree)?;
    entries.retain(|path| !OURS.iter().any(|ours| path.ends_with(ours)));
    let var = tree.join("var");
    if var.is_dir() {
        entries.extend(
            list(&var)?
                .into_iter()
                .filter(|path| !path.ends_with("task")),
        );
    }
    for path in entries {
        let inside = root.join(path.strip_prefix(tree).unwrap_or(&path));
        let kind = fs::symlink_metadata(&path)?.file_type();
        if kind.is_symlink() {
            symlink(fs::read_link(&path)?, &inside)?;
        } else if kind.is_dir() {
            create(&inside)?;
            bind_read_only(&path, &inside)?;
        }
    }
    Ok(())
}

fn list(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).and_then(|entries| {
        entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect()
    });
    entries.with_context(|| format!("read `{}`", directory.display()))
}

fn bind(host: &Path, inside: &Path) -> Result<()> {
    mount(
        Some(host),
        inside,
        NONE,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        NONE,
    )
    .with_context(|| format!("bind `{}`", host.display()))
}

fn bind_read_only(host: &Path, inside: &Path) -> Result<()> {
    bind(host, inside)?;
    // In a user namespace, flags that the host has set may not be taken away: keep them.
    let host_flags = statvfs(inside)
        .with_context(|| format!("stat `{}`", host.display()))?
        .flags();
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    flags |= MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    for (on_host, kept) in [
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        if host_flags.contains(on_host) {
            flags |= kept;
        }
    }
    mount(NONE, inside, NONE, flags, NONE)
        .with_context(|| format!("make `{}` read-only", host.display()))
}

/// /dev without shared memory: POSIX shared memory and semaphores fail on Lambda.
fn devices(dev: &Path) -> Result<()> {
    for name in DEVICES {
        let inside = dev.join(name);
        fs::File::create(&inside).with_context(|| format!("create `/dev/{name}`"))?;
        bind(&Path::new("/dev").join(name), &inside)?;
    }
    for (name, target) in [
        ("fd", "fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
    ] {
        symlink(Path::new("/proc/self").join(target), dev.join(name))
            .with_context(|| format!("link `/dev/{name}`"))?;
    }
    Ok(())
}
