//! The inner half: becomes the sandbox's init process and starts the function as Lambda does.
//!
//! It runs in a process of its own with a single thread, because only such a process may enter
//! user namespaces and fork freely. As init it reaps, watches memory, and ends everything when
//! the control socket closes. The file system stays while the function's process is started
//! anew, so that /tmp survives a crash as it does on Lambda.

use super::control::{Exit, FromInit, Isolation, Spec, ToInit, receive, send};
use super::memory::{self, Scope};
use super::{GID, UID, root, seccomp, sys};
use crate::limits;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::sys::statvfs::statvfs;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{
    Gid, Pid, Uid, chdir, dup2_stdin, execve, getgid, getppid, getuid, setgroups, setresgid,
    setresuid, setsid,
};
use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// How often memory and /tmp are looked at while the function runs, milliseconds.
const SAMPLE_MS: u16 = 5;

/// The inner half's whole life. Call it first thing in `main`, before any thread exists, when
/// the first argument is [`super::STAGE2_ARG`].
pub fn child_main() -> ExitCode {
    match live() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("slimlambda sandbox: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn live() -> Result<()> {
    let control = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .context("control socket")?;
    let null = File::open("/dev/null").context("failed to open `/dev/null`")?;
    dup2_stdin(&null).context("failed to replace stdin")?;
    let Some((spec, _)) = receive::<Spec>(control.as_fd())? else {
        return Ok(());
    };
    // Away from the terminal: an interrupt ends the outer half, and we then clean up after it.
    _ = setsid();
    let isolated = match isolate(&spec) {
        Ok(()) if spec.isolation == Isolation::Plain => {
            let result = serve(&spec, control.as_fd());
            tidy(&spec);
            return result;
        }
        Ok(()) => sys::fork().context("failed to fork into the PID namespace"),
        Err(error) => Err(error),
    };
    match isolated {
        Err(error) => send(control.as_fd(), &cannot(&error), None),
        Ok(None) => match root::enter(&spec) {
            Err(error) => send(control.as_fd(), &cannot(&error), None),
            Ok(()) => serve(&spec, control.as_fd()),
        },
        Ok(Some(init)) => {
            drop(control);
            while waitpid(init, None) == Err(Errno::EINTR) {}
            tidy(&spec);
            Ok(())
        }
    }
}

/// Removes the run's directory when the outer half is gone and cannot do it.
fn tidy(spec: &Spec) {
    if getppid() != Pid::from_raw(spec.parent) {
        _ = fs::remove_dir_all(&spec.work);
    }
}

fn cannot(error: &anyhow::Error) -> FromInit {
    FromInit::Cannot {
        reason: format!("{error:#}"),
    }
}

/// Enters the namespaces; the PID namespace holds from the next fork on.
fn isolate(spec: &Spec) -> Result<()> {
    let namespaces = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    match spec.isolation {
        Isolation::Namespaces => unshare(namespaces).context("namespaces"),
        Isolation::UserNamespace => {
            if getuid().is_root() {
                drop_ids()?;
                // Changing ids took our /proc/self from us.
                prctl::set_dumpable(true).context("dumpable")?;
            }
            if let Some(registration) = &spec.binfmt {
                user_namespace(0, 0)?;
                register(registration)?;
            }
            user_namespace(UID, GID)?;
            unshare(namespaces).context("namespaces in a user namespace")
        }
        Isolation::Plain => prctl::set_child_subreaper(true).context("subreaper"),
    }
}

/// Enters a user namespace in which the present user is `uid` and `gid`.
fn user_namespace(uid: u32, gid: u32) -> Result<()> {
    let (outer_uid, outer_gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER).context("user namespace")?;
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{uid} {outer_uid} 1")),
        ("gid_map", format!("{gid} {outer_gid} 1")),
    ] {
        fs::write(Path::new("/proc/self").join(file), text)
            .with_context(|| format!("write `{file}` of the user namespace"))?;
    }
    Ok(())
}

/// Registers an emulator for this user namespace and those inside it, not for the host (Linux
/// 6.7). Only its uid 0 may; and the registration lasts as long as the mount.
fn register(registration: &str) -> Result<()> {
    const DIRECTORY: &str = "/proc/sys/fs/binfmt_misc";
    const NAME: Option<&str> = Some("binfmt_misc");
    unshare(CloneFlags::CLONE_NEWNS).context("mount namespace")?;
    mount(NAME, DIRECTORY, NAME, MsFlags::empty(), None::<&str>)
        .context("binfmt_misc of one's own")?;
    fs::write(Path::new(DIRECTORY).join("register"), registration).context("register the emulator")
}

fn drop_ids() -> Result<()> {
    let (uid, gid) = (Uid::from_raw(UID), Gid::from_raw(GID));
    setgroups(&[]).context("groups")?;
    setresgid(gid, gid, gid).context("gid")?;
    setresuid(uid, uid, uid).context("uid")
}

/// What init knows while it serves.
struct Init<'a> {
    spec: &'a Spec,
    control: BorrowedFd<'a>,
    scope: Scope,
    peak_memory: u64,
    peak_tmp: Option<u64>,
}

/// Starts, watches and kills the function on the outer half's word, until the socket closes.
fn serve(spec: &Spec, control: BorrowedFd<'_>) -> Result<()> {
    let scope = match spec.isolation {
        Isolation::Plain => Scope::Descendants,
        _ => Scope::Namespace,
    };
    let tmp = spec
        .share_tmp
        .then(|| File::open("/tmp"))
        .transpose()
        .context("open /tmp")?;
    send(control, &FromInit::Ready, tmp.as_ref().map(AsFd::as_fd))?;
    drop(tmp);
    let mut init = Init {
        spec,
        control,
        scope,
        peak_memory: 0,
        peak_tmp: None,
    };
    let mut function = None;
    loop {
        let timeout = function.map_or(PollTimeout::NONE, |_| PollTimeout::from(SAMPLE_MS));
        let mut fds = [PollFd::new(control, PollFlags::POLLIN)];
        let ready = match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => continue,
            other => other.context("poll")?,
        };
        let message = match ready {
            0 => None,
            _ => match receive::<ToInit>(control)? {
                Some((message, _)) => Some(message),
                None => {
                    kill_all(scope, None);
                    return Ok(());
                }
            },
        };
        function = match (message, function) {
            (None, Some(pid)) => init.watch(pid)?,
            (Some(ToInit::Start { environment }), None) => Some(init.start(&environment)?),
            (Some(ToInit::Kill), Some(pid)) => init.end(pid)?,
            // The function ended by itself in the meantime, which has been reported.
            (Some(ToInit::Kill), None) | (None, None) => None,
            (Some(ToInit::Start { .. }), Some(_)) => bail!("start while the function runs"),
        };
    }
}

impl Init<'_> {
    fn start(&self, environment: &[(String, String)]) -> Result<Pid> {
        if let Some(pid) = sys::fork().context("failed to fork")? {
            return Ok(pid);
        }
        let Err(error) = run_function(self.spec, self.control, environment);
        let message = FromInit::Failed {
            message: format!("{error:#}"),
        };
        _ = send(self.control, &message, None);
        std::process::exit(127);
    }

    /// Samples and reaps; gives the function's process back while it lives.
    fn watch(&mut self, pid: Pid) -> Result<Option<Pid>> {
        let memory = self.sample();
        if memory > self.spec.memory {
            return self.report(kill_all(self.scope, Some(pid)), true);
        }
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => return Ok(Some(pid)),
                Ok(status) if status.pid() == Some(pid) => {
                    kill_all(self.scope, None);
                    return self.report(exit_of(status), false);
                }
                Ok(_) => {}
                Err(error) => return Err(error).context("waitpid"),
            }
        }
    }

    fn end(&mut self, pid: Pid) -> Result<Option<Pid>> {
        self.sample();
        self.report(kill_all(self.scope, Some(pid)), false)
    }

    fn report(&self, exit: Option<Exit>, out_of_memory: bool) -> Result<Option<Pid>> {
        let message = FromInit::Exited {
            exit: exit.unwrap_or(Exit::Signal(Signal::SIGKILL as i32)),
            out_of_memory,
            peak_memory: self.peak_memory,
            peak_tmp: self.peak_tmp,
        };
        send(self.control, &message, None)?;
        Ok(None)
    }

    fn sample(&mut self) -> u64 {
        let memory = memory::resident(self.scope);
        self.peak_memory = self.peak_memory.max(memory);
        if self.scope == Scope::Namespace
            && let Ok(stat) = statvfs("/tmp")
        {
            let used = (stat.blocks() - stat.blocks_free()) * stat.fragment_size();
            self.peak_tmp = self.peak_tmp.max(Some(used));
        }
        memory
    }
}

fn exit_of(status: WaitStatus) -> Option<Exit> {
    match status {
        WaitStatus::Exited(_, code) => Some(Exit::Status(code)),
        WaitStatus::Signaled(_, signal, _) => Some(Exit::Signal(signal as i32)),
        _ => None,
    }
}

/// Kills until no child is left; gives how `function` ended.
fn kill_all(scope: Scope, function: Option<Pid>) -> Option<Exit> {
    let mut exit = None;
    loop {
        for pid in memory::processes(scope) {
            _ = kill(pid, Signal::SIGKILL);
        }
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => break,
                Ok(status) if status.pid() == function => exit = exit_of(status),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return exit,
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Turns this process into the function's.
fn run_function(
    spec: &Spec,
    control: BorrowedFd<'_>,
    environment: &[(String, String)],
) -> Result<Infallible> {
    let privileged = getuid().is_root();
    setsid().context("session")?;
    chdir(spec.task_root()).context("working directory")?;
    umask(Mode::from_bits_truncate(0o022));
    let most = limits::DESCRIPTORS.value;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("descriptors")?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).context("core size")?;
    // Counted per user: without a user of its own, the function would share the caller's count.
    if privileged || spec.isolation != Isolation::Plain {
        setrlimit(Resource::RLIMIT_NPROC, most, most).context("processes")?;
    }
    show_cores(spec.cores).context("CPU affinity")?;
    if privileged {
        drop_ids()?;
    }
    prctl::set_pdeathsig(Signal::SIGKILL).context("death signal")?;
    prctl::set_no_new_privs().context("no_new_privs")?;
    sys::default_sigpipe();
    sys::close_on_exec_from(3).context("close_range")?;

    let bootstrap = CString::new(spec.bootstrap.as_os_str().as_encoded_bytes())?;
    let environment = environment
        .iter()
        .map(|(name, value)| CString::new(format!("{name}={value}")))
        .collect::<Result<Vec<_>, _>>()
        .context("environment")?;
    let listener: Option<OwnedFd> = seccomp::install().context("seccomp filter")?;
    let started = FromInit::Started {
        filtered: listener.is_some(),
    };
    send(control, &started, listener.as_ref().map(AsFd::as_fd))?;
    drop(listener);
    let Err(errno) = execve(&bootstrap, &[&bootstrap], &environment);
    send(
        control,
        &FromInit::ExecFailed {
            errno: errno as i32,
        },
        None,
    )?;
    std::process::exit(127);
}

/// Leaves this thread, and whatever it becomes, no more than `most` of the cores that it has. The
/// number of threads that programs and libraries start comes from here.
fn show_cores(most: usize) -> nix::Result<()> {
    let this = Pid::from_raw(0);
    let present = sched_getaffinity(this)?;
    let mut shown = CpuSet::new();
    for core in (0..CpuSet::count())
        .filter(|core| present.is_set(*core) == Ok(true))
        .take(most)
    {
        shown.set(core)?;
    }
    sched_setaffinity(this, &shown)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn no_more_cores_are_shown_than_lambda_has() {
        let cores = || std::thread::available_parallelism().unwrap().get();
        for most in [1, 6] {
            // A thread of its own, because it does not get the cores back.
            std::thread::spawn(move || {
                let before = cores();
                show_cores(most).unwrap();
                assert_eq!(cores(), before.min(most));
            })
            .join()
            .unwrap();
        }
    }
}
