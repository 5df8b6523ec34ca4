//! The only unsafe code: threads, clocks and `exec`, straight from libc so that the launcher needs no standard library.

#![allow(unsafe_code)]

use alloc::ffi::CString;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::{c_char, c_void};
use core::ptr;
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::thread::sched_getaffinity;

/// Cores that this process may run on, at least 1.
pub(crate) fn cores() -> usize {
    sched_getaffinity(None)
        .map_or(1, |set| set.count() as usize)
        .max(1)
}

/// Microseconds on a clock that never goes back. libc's, because rustix's own way to the vDSO begins with a `prctl`, and
/// Lambda refuses those.
pub(crate) fn now_us() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes the timespec that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000
}

/// What an error number means, in the C library's words (`Errno` has none without the standard library).
pub(crate) fn describe(errno: Errno) -> String {
    let mut text = [0u8; 128];
    // SAFETY: writes at most as many bytes as it is told are there.
    unsafe { libc::strerror_r(errno.raw_os_error(), text.as_mut_ptr().cast(), text.len()) };
    let text = text.split(|b| *b == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// Sleeps; a signal may cut it short.
pub(crate) fn sleep_ms(ms: u32) {
    let time = libc::timespec {
        tv_sec: (ms / 1000).into(),
        tv_nsec: i64::from(ms % 1000) * 1_000_000,
    };
    // SAFETY: reads the timespec that it is given.
    unsafe { libc::nanosleep(&time, ptr::null_mut()) };
}

/// Writes to standard error, once.
pub(crate) fn write_stderr(bytes: &[u8]) -> Result<usize, Errno> {
    // SAFETY: the descriptor is used for this one call; if it is closed, the call fails with EBADF.
    rustix::io::write(unsafe { BorrowedFd::borrow_raw(2) }, bytes)
}

struct Task<'f, F, R> {
    body: &'f F,
    number: usize,
    result: Option<R>,
}

/// Joins its threads however it goes out of scope: they borrow from the frame that owns it.
struct Joins(Vec<libc::pthread_t>);

impl Drop for Joins {
    fn drop(&mut self) {
        for thread in self.0.drain(..) {
            // SAFETY: each handle comes from a successful pthread_create and is joined once, here.
            unsafe { libc::pthread_join(thread, ptr::null_mut()) };
        }
    }
}

/// Runs `body(0)` to `body(threads - 1)` at once, the first on this thread, and collects the answers.
///
/// Where the system refuses a thread, its answer is missing: `body` must be of the kind that takes work from a common
/// queue, so that fewer threads do the same.
pub(crate) fn parallel<R: Send, F: Fn(usize) -> R + Sync>(threads: usize, body: F) -> Vec<R> {
    extern "C" fn run<R, F: Fn(usize) -> R>(task: *mut c_void) -> *mut c_void {
        // SAFETY: the pointer is to a live `Task<F, R>` that only this thread touches until it is joined.
        let task = unsafe { &mut *task.cast::<Task<'_, F, R>>() };
        task.result = Some((task.body)(task.number));
        ptr::null_mut()
    }

    let mut tasks: Vec<Task<'_, F, R>> = (0..threads)
        .map(|number| Task {
            body: &body,
            number,
            result: None,
        })
        .collect();
    if let Some((first, others)) = tasks.split_first_mut() {
        let mut joins = Joins(Vec::with_capacity(others.len()));
        for task in others {
            let mut thread = core::mem::MaybeUninit::uninit();
            // SAFETY: default attributes; `run` matches the task's type; the task outlives the thread, because
            // `joins` is dropped (and so joins) before `tasks` is touched again.
            let refused = unsafe {
                libc::pthread_create(
                    thread.as_mut_ptr(),
                    ptr::null(),
                    run::<R, F>,
                    ptr::from_mut(task).cast(),
                )
            };
            if refused != 0 {
                break;
            }
            // SAFETY: pthread_create succeeded, so it has written the handle.
            joins.0.push(unsafe { thread.assume_init() });
        }
        first.result = Some(body(0));
    }
    tasks.into_iter().filter_map(|task| task.result).collect()
}

/// Becomes another program; returns only if that fails.
pub(crate) fn exec(program: &[u8], arguments: &[CString], environment: &[CString]) -> Errno {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings
            .iter()
            .map(|s| s.as_ptr())
            .chain([ptr::null()])
            .collect()
    };
    let Ok(program) = CString::new(program) else {
        return Errno::INVAL;
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: all three are NUL-terminated strings or null-terminated arrays of such, alive until the call returns.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    // SAFETY: errno of this thread, just set by the failed execve.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

/// Copies a null-terminated array of C strings, as `main` gets them.
///
/// # Safety
/// `strings` must be null or such an array.
#[cfg(feature = "launcher")]
pub unsafe fn copy_strings(strings: *const *const c_char) -> Vec<CString> {
    let mut out = Vec::new();
    let mut at = strings;
    // SAFETY: every element up to the null is readable, by the caller's promise.
    while !at.is_null() && !unsafe { *at }.is_null() {
        // SAFETY: a non-null element is a NUL-terminated string.
        out.push(unsafe { core::ffi::CStr::from_ptr(*at) }.into());
        // SAFETY: the array goes on at least to its null.
        at = unsafe { at.add(1) };
    }
    out
}

/// Reads a static that is patched after linking, which the compiler must not assume to know.
#[cfg(feature = "launcher")]
pub fn read_patched<T: Copy>(value: &'static T) -> T {
    // SAFETY: a reference is valid for reads.
    unsafe { ptr::read_volatile(value) }
}

/// libc's allocator as the global one.
#[cfg(feature = "launcher")]
pub struct Malloc;

// SAFETY: malloc and posix_memalign give what `GlobalAlloc` asks for, and free takes both.
#[cfg(feature = "launcher")]
unsafe impl core::alloc::GlobalAlloc for Malloc {
    unsafe fn alloc(&self, layout: core::alloc::Layout) -> *mut u8 {
        if layout.align() <= 16 {
            // SAFETY: any size may be asked for; 16 is malloc's alignment on 64-bit Linux.
            return unsafe { libc::malloc(layout.size()) }.cast();
        }
        let mut out = ptr::null_mut();
        // SAFETY: alignments are powers of two, and more than a pointer's size here.
        match unsafe { libc::posix_memalign(&mut out, layout.align(), layout.size()) } {
            0 => out.cast(),
            _ => ptr::null_mut(),
        }
    }

    unsafe fn alloc_zeroed(&self, layout: core::alloc::Layout) -> *mut u8 {
        if layout.align() <= 16 {
            // SAFETY: as for malloc; fresh pages are zero already, so large buffers cost nothing here.
            return unsafe { libc::calloc(1, layout.size()) }.cast();
        }
        // SAFETY: same contract.
        let out = unsafe { self.alloc(layout) };
        if !out.is_null() {
            // SAFETY: just allocated with this size.
            unsafe { ptr::write_bytes(out, 0, layout.size()) };
        }
        out
    }

    unsafe fn dealloc(&self, pointer: *mut u8, _: core::alloc::Layout) {
        // SAFETY: the caller hands back what `alloc` gave.
        unsafe { libc::free(pointer.cast()) }
    }
}

/// Ends the process at once, without destructors, with SIGABRT.
#[cfg(feature = "launcher")]
pub fn abort() -> ! {
    // SAFETY: no preconditions.
    unsafe { libc::abort() }
}
