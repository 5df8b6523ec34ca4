//! The sandbox's only `unsafe`: fork, the seccomp filter and its listener, received descriptors.
//!
//! Everything else goes through safe wrappers of `nix`. One operation a block.

#![allow(unsafe_code)] // Linux offers these only as raw system calls.

use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::{ForkResult, Pid};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Forks. `None` in the child. Refused when this process runs more than one thread.
pub fn fork() -> io::Result<Option<Pid>> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("fork in a process with several threads"));
    }
    // SAFETY: the child may run any code because no other thread exists that could hold a lock.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Marks every descriptor from `first` upwards to be closed at exec.
pub fn close_on_exec_from(first: libc::c_uint) -> io::Result<()> {
    // SAFETY: close_range takes three integers; with this flag it closes nothing now.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Gives SIGPIPE its default action back: Rust programs ignore it, and exec would inherit that.
pub fn default_sigpipe() {
    // SAFETY: the default action installs no handler, so nothing of ours runs in signal context.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Whether a filter's refused calls are answered by a listener or by the kernel alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// Ask for a listener descriptor.
    Wanted,
    /// The filter answers by itself.
    None,
}

/// Installs a seccomp filter on this thread, which must have no_new_privs set.
pub fn install_filter(
    program: &[libc::sock_filter],
    listener: Listener,
) -> io::Result<Option<OwnedFd>> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut(),
    };
    let flags = match listener {
        Listener::Wanted => libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
        Listener::None => 0,
    };
    // SAFETY: `program` describes a live slice of exactly `len` instructions, which the kernel
    // only reads and copies before it returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    if listener == Listener::None {
        return Ok(None);
    }
    let fd = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: with NEW_LISTENER the call returns a new descriptor that nobody else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Takes the next refused call from a listener; blocks until there is one.
pub fn next_notification(listener: BorrowedFd<'_>) -> io::Result<libc::seccomp_notif> {
    let mut notification = MaybeUninit::<libc::seccomp_notif>::zeroed();
    // SAFETY: the ioctl's number encodes the size of the structure it fills, which is the one
    // passed; the kernel wants it zeroed, and it is.
    let result = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_RECV,
            notification.as_mut_ptr(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all-zero bytes are a valid value of this structure of integers, filled or not.
    Ok(unsafe { notification.assume_init() })
}

/// Answers a refused call with an error number.
pub fn refuse(listener: BorrowedFd<'_>, id: u64, errno: i32) -> io::Result<()> {
    let answer = libc::seccomp_notif_resp {
        id,
        val: 0,
        error: -errno,
        flags: 0,
    };
    // SAFETY: the kernel reads the structure whose size the ioctl's number encodes.
    let result = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_SEND,
            &raw const answer,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Receives one message of a packet socket, with a descriptor if one came along.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = nix::cmsg_space!(RawFd);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = loop {
        let result = recvmsg::<()>(
            socket.as_raw_fd(),
            &mut slices,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        );
        match result {
            Err(nix::errno::Errno::EINTR) => {}
            other => break other?,
        }
    };
    if message
        .flags
        .intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC)
    {
        return Err(io::Error::other("control message was cut short"));
    }
    let mut received = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel has just installed this descriptor for us alone.
                received = Some(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    Ok((message.bytes, received))
}
