//! The system calls that Lambda's seccomp filter refuses, refused here too, and named.
//!
//! The filter hands a refused call to a listener in the outer half, which notes it and answers
//! EPERM as Lambda does. Where the kernel has no listeners (before 5.0, or inside another filter
//! that already has one) the filter answers by itself and the report says that calls go unnamed.

use super::report::RefusedCall;
use super::sys::{self, Listener};
use nix::libc::{self, sock_filter};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

/// When a call of the table is refused.
#[derive(Debug, Clone, Copy)]
enum When {
    Always,
    /// The first argument has one of these bits set.
    FirstArgument(u32),
}

/// One row of what Lambda refuses.
struct Refusal {
    number: libc::c_long,
    name: &'static str,
    when: When,
    errno: i32,
    /// Where the row comes from, kept with it.
    #[cfg_attr(not(test), allow(dead_code))]
    source: &'static str,
}

const NAMESPACE_FLAGS: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u32;

const fn always(number: libc::c_long, name: &'static str, source: &'static str) -> Refusal {
    Refusal {
        number,
        name,
        when: When::Always,
        errno: libc::EPERM,
        source,
    }
}

/// What is refused. Reports name single uses; that a whole call is refused is then an inference,
/// marked so.
const REFUSED: &[Refusal] = &[
    always(
        libc::SYS_fallocate,
        "fallocate",
        "polars 17946, realm-core 4957",
    ),
    always(
        libc::SYS_prctl,
        "prctl",
        "PR_SET_NAME: ClickHouse 29378; PR_SET_PDEATHSIG: terraform-exec 172; \
         PR_SET_NO_NEW_PRIVS: chromedp 1074; the call as a whole: inference",
    ),
    always(
        libc::SYS_seccomp,
        "seccomp",
        "no filters of one's own: chromedp 1074; the call: inference",
    ),
    always(
        libc::SYS_unshare,
        "unshare",
        "no user namespaces: cypress-lambda-example 2",
    ),
    always(libc::SYS_setns, "setns", "as unshare: inference"),
    always(libc::SYS_mount, "mount", "no capabilities: inference"),
    always(libc::SYS_umount2, "umount2", "no capabilities: inference"),
    always(
        libc::SYS_pivot_root,
        "pivot_root",
        "no capabilities: inference",
    ),
    Refusal {
        number: libc::SYS_clone,
        name: "clone",
        when: When::FirstArgument(NAMESPACE_FLAGS),
        errno: libc::EPERM,
        source: "no user namespaces: cypress-lambda-example 2",
    },
    // Its flags are in memory, where a filter cannot look; every C library then takes clone.
    Refusal {
        number: libc::SYS_clone3,
        name: "clone3",
        when: When::Always,
        errno: libc::ENOSYS,
        source: "container runtimes do the same",
    },
];

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xC000_003E; // linux/audit.h: EM_X86_64 | 64 bit | little endian
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xC000_00B7; // linux/audit.h: EM_AARCH64 | 64 bit | little endian

/// x86-64's x32 calls have this bit; on other architectures no call number reaches it.
const X32_BIT: u32 = 0x4000_0000;

// Offsets in `struct seccomp_data`: number, architecture, low half of the first argument.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

const fn load(offset: u32) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

const fn give(action: u32) -> sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, action)
}

const fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

const fn jump(kind: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        code: (libc::BPF_JMP | kind | libc::BPF_K) as u16,
        jt,
        jf,
        k,
    }
}

fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number.unsigned_abs()
}

/// The filter as a BPF program.
fn program(listener: Listener) -> Vec<sock_filter> {
    let mut program = vec![
        load(ARCHITECTURE),
        jump(libc::BPF_JEQ, AUDIT_ARCH, 1, 0),
        give(errno(libc::ENOSYS)),
        load(NUMBER),
        jump(libc::BPF_JGE, X32_BIT, 0, 1),
        give(errno(libc::ENOSYS)),
    ];
    for refusal in REFUSED {
        let number = u32::try_from(refusal.number).expect("system call numbers are small");
        let action = match listener {
            Listener::Wanted if refusal.errno == libc::EPERM => libc::SECCOMP_RET_USER_NOTIF,
            _ => errno(refusal.errno),
        };
        match refusal.when {
            When::Always => program.extend([jump(libc::BPF_JEQ, number, 0, 1), give(action)]),
            When::FirstArgument(mask) => program.extend([
                jump(libc::BPF_JEQ, number, 0, 4),
                load(FIRST_ARGUMENT),
                jump(libc::BPF_JSET, mask, 0, 1),
                give(action),
                give(libc::SECCOMP_RET_ALLOW),
            ]),
        }
    }
    program.push(give(libc::SECCOMP_RET_ALLOW));
    program
}

/// Installs the filter on this thread for good; gives the listener where the kernel has one.
pub fn install() -> io::Result<Option<OwnedFd>> {
    match sys::install_filter(&program(Listener::Wanted), Listener::Wanted) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EBUSY)) => {
            sys::install_filter(&program(Listener::None), Listener::None)
        }
        other => other,
    }
}

/// Refused calls by (call, detail, process), counted.
pub type Refused = Mutex<BTreeMap<(String, String, String), u64>>;

/// Answers a listener until the last process under its filter is gone.
pub fn supervise(listener: &OwnedFd, refused: &Refused) {
    loop {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        let happened = fds[0].revents().unwrap_or(PollFlags::empty());
        if !happened.contains(PollFlags::POLLIN) {
            return;
        }
        // The caller may have been killed in between: then there is nothing to answer.
        let Ok(notification) = sys::next_notification(listener.as_fd()) else {
            continue;
        };
        let data = notification.data;
        let name = REFUSED
            .iter()
            .find(|refusal| refusal.number == libc::c_long::from(data.nr))
            .map_or_else(|| data.nr.to_string(), |refusal| refusal.name.to_owned());
        let process = std::fs::read_to_string(format!("/proc/{}/comm", notification.pid))
            .map_or_else(|_| "?".to_owned(), |comm| comm.trim_end().to_owned());
        let detail = detail(&name, data.args[0]);
        *refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry((name, detail, process))
            .or_default() += 1;
        _ = sys::refuse(listener.as_fd(), notification.id, libc::EPERM);
    }
}

/// The refused calls as the report lists them.
pub fn list(refused: Refused) -> Vec<RefusedCall> {
    let counted = refused.into_inner().unwrap_or_else(PoisonError::into_inner);
    let row = |((name, detail, process), count)| RefusedCall {
        name,
        detail,
        process,
        count,
    };
    counted.into_iter().map(row).collect()
}

/// What a call wanted, where its first argument says so.
fn detail(name: &str, argument: u64) -> String {
    const OPTIONS: &[(u64, &str)] = &[
        (libc::PR_SET_PDEATHSIG as u64, "PR_SET_PDEATHSIG"),
        (libc::PR_SET_DUMPABLE as u64, "PR_SET_DUMPABLE"),
        (libc::PR_SET_NAME as u64, "PR_SET_NAME"),
        (libc::PR_GET_NAME as u64, "PR_GET_NAME"),
        (libc::PR_SET_SECCOMP as u64, "PR_SET_SECCOMP"),
        (libc::PR_CAPBSET_READ as u64, "PR_CAPBSET_READ"),
        (libc::PR_CAPBSET_DROP as u64, "PR_CAPBSET_DROP"),
        (
            libc::PR_SET_CHILD_SUBREAPER as u64,
            "PR_SET_CHILD_SUBREAPER",
        ),
        (libc::PR_SET_NO_NEW_PRIVS as u64, "PR_SET_NO_NEW_PRIVS"),
        (libc::PR_SET_VMA as u64, "PR_SET_VMA"),
        (libc::PR_SET_PTRACER as u64, "PR_SET_PTRACER"),
    ];
    if name != "prctl" {
        return String::new();
    }
    let known = OPTIONS.iter().find(|(option, _)| *option == argument);
    known.map_or_else(
        || format!("option {argument}"),
        |(_, name)| (*name).to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_a_source_and_its_own_number() {
        let mut numbers: Vec<_> = REFUSED.iter().map(|refusal| refusal.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), REFUSED.len());
        assert!(REFUSED.iter().all(|refusal| !refusal.source.is_empty()));
    }

    #[test]
    fn prctl_is_named_by_its_option() {
        assert_eq!(detail("prctl", 1), "PR_SET_PDEATHSIG");
        assert_eq!(detail("prctl", 9999), "option 9999");
        assert_eq!(detail("fallocate", 1), "");
    }
}
