//! What an ELF file is beyond its headers: packers that hide what it needs.

use super::image::Image;

/// Whether UPX packed it. Its magic number stands a few bytes behind the program headers, which are
/// few; what the file needs is then hidden in compressed data.
pub fn is_upx(image: &Image<'_>) -> bool {
    let head = &image.bytes[..image.bytes.len().min(1024)];
    image.needed.is_empty() && head.windows(4).any(|window| window == b"UPX!")
}
