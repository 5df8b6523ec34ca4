//! What the two halves of the sandbox say to each other, as JSON over a packet socket.
//!
//! The outer half is the process that the user started; the inner half (`process`) is the same
//! executable again, started with [`super::STAGE2_ARG`], and becomes the sandbox's init process.
//! The socket's end is the signal to tear everything down: it comes however the outer half ends.

use super::sys;
use anyhow::{Context, Result};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Longest message, bytes; below the default send buffer of a Unix socket (212,992).
const MESSAGE_MAX: usize = 160 * 1024;

/// How far the function is kept apart from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// Mount, PID, IPC and UTS namespaces, set up as root.
    Namespaces,
    /// The same inside a user namespace that maps uid 993 to the caller.
    UserNamespace,
    /// A plain process: the system allows neither.
    Plain,
}

/// Everything the inner half needs to build the sandbox; sent first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    pub isolation: Isolation,
    /// The outer half's process id: when it is no longer our parent, `work` is removed.
    pub parent: i32,
    /// Private directory of this run on the host; holds an empty `root` to mount on.
    pub work: PathBuf,
    /// Becomes /var/task.
    pub task: PathBuf,
    /// Becomes /opt.
    pub opt: PathBuf,
    /// System root to use instead of the provided files.
    pub rootfs: Option<PathBuf>,
    /// Files to copy into the root: inside path, host path.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// Symlinks to make in the root: inside path, target.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Size of /tmp, bytes.
    pub tmp_size: u64,
    /// Memory limit, bytes.
    pub memory: u64,
    /// Cores that the function may see, where the host has them.
    pub cores: usize,
    /// A private binfmt_misc registration, for a foreign architecture.
    pub binfmt: Option<String>,
    /// The bootstrap's path as the function sees it.
    pub bootstrap: PathBuf,
    /// Hand out a descriptor of /tmp, so that it outlives the sandbox.
    pub share_tmp: bool,
}

/// Outer to inner.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToInit {
    /// Start the bootstrap with this environment.
    Start { environment: Vec<(String, String)> },
    /// Kill every process of the function.
    Kill,
}

/// How the function's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// It exited with this status.
    Status(i32),
    /// It was killed by this signal.
    Signal(i32),
}

/// Inner to outer.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromInit {
    /// The sandbox stands; with a descriptor of /tmp where that was asked for.
    Ready,
    /// This kind of isolation does not work here.
    Cannot { reason: String },
    /// The bootstrap is about to be executed; with the seccomp listener where the kernel has one.
    Started { filtered: bool },
    /// The bootstrap could not be executed.
    ExecFailed { errno: i32 },
    /// Setting up the function's process failed.
    Failed { message: String },
    /// All processes of the function are gone.
    Exited {
        exit: Exit,
        out_of_memory: bool,
        /// Highest memory seen, bytes, since the sandbox was built.
        peak_memory: u64,
        /// Highest use of /tmp seen, bytes.
        peak_tmp: Option<u64>,
    },
}

/// Sends one message, with a descriptor if one is given.
pub fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    fd: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let bytes = serde_json::to_vec(message).context("failed to encode a control message")?;
    anyhow::ensure!(
        bytes.len() <= MESSAGE_MAX,
        "control message of `{}` bytes",
        bytes.len()
    );
    let fds: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control: &[_] = if fds.is_empty() { &[] } else { &rights };
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(&bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .context("failed to send a control message")?;
    Ok(())
}

/// Receives one message; `None` when the other half is gone.
pub fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> Result<Option<(T, Option<OwnedFd>)>> {
    let mut buffer = vec![0; MESSAGE_MAX];
    let (length, fd) = match sys::receive(socket, &mut buffer) {
        Ok(received) => received,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(None),
        Err(error) => return Err(error).context("failed to receive a control message"),
    };
    if length == 0 {
        return Ok(None);
    }
    let message =
        serde_json::from_slice(&buffer[..length]).context("failed to decode a control message")?;
    Ok(Some((message, fd)))
}

impl Spec {
    /// The function's working directory, as it sees it.
    pub fn task_root(&self) -> &Path {
        match self.isolation {
            Isolation::Plain => &self.task,
            _ => Path::new("/var/task"),
        }
    }
}
