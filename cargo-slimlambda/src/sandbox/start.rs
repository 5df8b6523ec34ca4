//! Starts the inner half with the best isolation that this system allows.

use super::control::{FromInit, Isolation, Spec, receive, send};
use super::{Options, STAGE2_ARG};
use crate::event::{Event, Sink};
use anyhow::{Context, Result, anyhow, bail};
use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socketpair};
use nix::unistd::{Uid, getuid};
use std::io::PipeWriter;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command};

/// A standing sandbox.
pub struct Started {
    /// The inner half's process.
    pub child: Child,
    /// Our end of the control socket.
    pub control: OwnedFd,
    /// /tmp of the sandbox, where it was asked for.
    pub tmp: Option<OwnedFd>,
    /// What this isolation does not enforce.
    pub not_enforced: Vec<String>,
}

/// Takes the sandbox down when dropped, however its scope is left: the control socket's end makes
/// the inner half kill everything, and ends the threads that listen to it.
pub struct Teardown<'a>(pub &'a OwnedFd, pub &'a mut Child);

impl Drop for Teardown<'_> {
    fn drop(&mut self) {
        // Neither can fail in a way that leaves more to do: the other end is then gone already.
        _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
        _ = self.1.wait();
    }
}

/// Tries one isolation after the other; `spec` keeps the one that worked.
pub fn start(
    options: &Options,
    spec: &mut Spec,
    output: &PipeWriter,
    sink: Sink<'_>,
) -> Result<Started> {
    let mut reasons = Vec::new();
    for isolation in candidates(options, spec, getuid()) {
        spec.isolation = isolation;
        match attempt(options, spec, output)? {
            Attempt::Ready(child, control, tmp) => {
                let not_enforced = not_enforced(isolation, &reasons, getuid());
                if isolation == Isolation::Plain {
                    sink(Event::Warning(&format!(
                        "the function runs as a plain process; unlike on Lambda:\n  {}",
                        not_enforced.join("\n  ")
                    )));
                } else {
                    for reason in &reasons {
                        sink(Event::Note(&format!("this system does not allow {reason}")));
                    }
                }
                return Ok(Started {
                    child,
                    control,
                    tmp,
                    not_enforced,
                });
            }
            Attempt::Cannot(reason) => reasons.push(reason),
        }
    }
    if spec.rootfs.is_some() {
        reasons.push("plain processes: they cannot be shown another system's root".to_owned());
    }
    let help = match getuid().is_root() {
        true => "allow namespaces and mounts here (a container needs `--privileged`)",
        false => "run it as root",
    };
    // The host's fault, not the package's: no gate has failed.
    Err(anyhow!(
        "failed to build the sandbox\n  {}\nhelp: {help}",
        reasons.join("\n  ")
    ))
}

fn candidates(options: &Options, spec: &Spec, uid: Uid) -> Vec<Isolation> {
    use Isolation::{Namespaces, Plain, UserNamespace};
    let mut candidates = match options.isolation {
        Some(isolation) => vec![isolation],
        // An emulator is registered for a user namespace alone, never for the host.
        None if spec.binfmt.is_some() => vec![UserNamespace, Namespaces, Plain],
        None if uid.is_root() => vec![Namespaces, UserNamespace, Plain],
        None => vec![UserNamespace, Plain],
    };
    // Another system's root cannot be shown to a plain process.
    candidates.retain(|isolation| spec.rootfs.is_none() || *isolation != Plain);
    candidates
}

enum Attempt {
    Ready(Child, OwnedFd, Option<OwnedFd>),
    Cannot(String),
}

fn attempt(options: &Options, spec: &Spec, output: &PipeWriter) -> Result<Attempt> {
    let mut spec = spec.clone();
    match spec.isolation {
        Isolation::Plain => {
            let inside = spec.bootstrap.clone();
            if let Ok(rest) = inside.strip_prefix("/var/task") {
                spec.bootstrap = spec.task.join(rest);
            } else if let Ok(rest) = inside.strip_prefix("/opt") {
                spec.bootstrap = spec.opt.join(rest);
            }
            spec.share_tmp = false;
        }
        Isolation::Namespaces => spec.binfmt = None,
        Isolation::UserNamespace => {}
    }
    let (control, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .context("failed to create the control socket")?;
    let mut child = Command::new(&options.executable)
        .arg(STAGE2_ARG)
        .env_clear()
        .stdin(theirs)
        .stdout(output.try_clone().context("failed to share the output")?)
        .stderr(output.try_clone().context("failed to share the output")?)
        .spawn()
        .with_context(|| format!("failed to start `{}`", options.executable.display()))?;
    send(control.as_fd(), &spec, None)?;
    match receive::<FromInit>(control.as_fd())? {
        Some((FromInit::Ready, tmp)) => Ok(Attempt::Ready(child, control, tmp)),
        Some((FromInit::Cannot { reason }, _)) => {
            drop(control);
            child.wait().context("failed to wait for the sandbox")?;
            Ok(Attempt::Cannot(format!(
                "{}: {reason}",
                name(spec.isolation)
            )))
        }
        other => {
            drop(control);
            let status = child.wait().context("failed to wait for the sandbox")?;
            bail!("the sandbox ended before it stood ({status}): {other:?}")
        }
    }
}

fn name(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::Namespaces => "namespaces",
        Isolation::UserNamespace => "unprivileged user namespaces",
        Isolation::Plain => "plain processes",
    }
}

fn not_enforced(isolation: Isolation, reasons: &[String], uid: Uid) -> Vec<String> {
    let mut list: Vec<String> = Vec::new();
    match isolation {
        Isolation::Namespaces => {}
        Isolation::UserNamespace if uid.is_root() => {}
        Isolation::UserNamespace => {
            list.push(
                "file modes: directories of /var/task and /opt belong to the function, and the \
                 files of a package that is a directory"
                    .into(),
            );
        }
        Isolation::Plain => {
            list.extend([
                "file system: the whole host is visible, and its libraries can be found".into(),
                "/var/task and /opt: they are directories elsewhere, and can be written to".into(),
                "/tmp: it is the host's, without the configured size".into(),
                "/dev/shm: POSIX shared memory and semaphores work".into(),
                "processes: the host's are visible".into(),
            ]);
            if !uid.is_root() {
                list.push(format!("uid 993: the function runs as uid {uid}"));
                list.push("processes and threads: more than 1,024 can be started".into());
            }
        }
    }
    if isolation != Isolation::Namespaces && !list.is_empty() {
        list.extend(
            reasons
                .iter()
                .map(|reason| format!("because this failed: {reason}")),
        );
    }
    list
}
