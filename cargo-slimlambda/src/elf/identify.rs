//! What an ELF file is beyond its headers: packers that hide what it needs.

use super::image::{Image, slice};

/// Whether UPX packed it: UPX writes its magic number right behind the program headers, 4 bytes in.
/// What the file needs is then hidden in compressed data.
pub fn is_upx(image: &Image<'_>) -> bool {
    let (start, size) = image.program_headers();
    slice(image.bytes, start + size, 64)
        .is_some_and(|bytes| bytes.windows(4).any(|window| window == b"UPX!"))
}
