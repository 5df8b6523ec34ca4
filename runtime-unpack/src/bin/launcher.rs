//! The launcher that becomes `bootstrap`: one call, and what a program without a standard library must bring along.

#![no_std]
#![no_main]
#![allow(unsafe_code)] // the entry point and symbols that the linker looks for

extern crate alloc;

use core::ffi::{c_char, c_int};
use runtime_unpack::launch::{self, PAIRING_MARK, Pairing};
use runtime_unpack::sys;

#[global_allocator]
static MALLOC: sys::Malloc = sys::Malloc;

/// The build side finds the mark in the file and writes the digest behind it.
#[used]
static PAIRING: Pairing = Pairing {
    mark: PAIRING_MARK,
    digest: [0; 32],
};

// Rust's targets carry a static libc for self-contained linking; without std nobody else asks for it.
#[link(name = "c", kind = "static", modifiers = "-bundle")]
unsafe extern "C" {}

#[unsafe(no_mangle)]
extern "C" fn main(
    _: c_int,
    arguments: *const *const c_char,
    environment: *const *const c_char,
) -> c_int {
    // SAFETY: both are what the C runtime hands to `main`.
    let (arguments, environment) =
        unsafe { (sys::copy_strings(arguments), sys::copy_strings(environment)) };
    let Err(error) = launch::launch(
        &arguments,
        &environment,
        &sys::read_patched(&PAIRING).digest,
    );
    launch::say(&alloc::format!("slimlambda: error: {error}\n"));
    1
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let place = info.location().map_or(("?", 0), |l| (l.file(), l.line()));
    launch::say(&alloc::format!(
        "slimlambda: internal error at {}:{}: please report it\n",
        place.0,
        place.1
    ));
    sys::abort()
}

// Precompiled parts of Rust's core and alloc name these two for unwinding, which an aborting program never does.

#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    sys::abort()
}
