//! This crate's own source text, from which `cargo slimlambda` builds launchers with the user's toolchain.

/// Path (relative to the crate's root) and text of every file that a launcher is built from.
pub const SOURCE: &[(&str, &str)] = &[
    ("Cargo.toml", include_str!("../launcher.toml")),
    ("Cargo.lock", include_str!("../launcher.lock")),
    ("src/bin/launcher.rs", include_str!("bin/launcher.rs")),
    ("src/error.rs", include_str!("error.rs")),
    ("src/filter/arm64.rs", include_str!("filter/arm64.rs")),
    ("src/filter/eh_frame.rs", include_str!("filter/eh_frame.rs")),
    ("src/filter/mod.rs", include_str!("filter/mod.rs")),
    ("src/filter/planes.rs", include_str!("filter/planes.rs")),
    ("src/filter/values.rs", include_str!("filter/values.rs")),
    ("src/filter/x86.rs", include_str!("filter/x86.rs")),
    ("src/format.rs", include_str!("format.rs")),
    ("src/fs.rs", include_str!("fs.rs")),
    ("src/launch.rs", include_str!("launch.rs")),
    ("src/lib.rs", include_str!("lib.rs")),
    ("src/reader.rs", include_str!("reader.rs")),
    ("src/source.rs", include_str!("source.rs")),
    ("src/store.rs", include_str!("store.rs")),
    ("src/sys.rs", include_str!("sys.rs")),
    ("src/unpack.rs", include_str!("unpack.rs")),
];
