//! What a Lambda runtime brings along: one row of data per library, each with its source.
//!
//! A row says which sonames are there and up to which symbol versions. Only what is certain has a
//! row; everything else is bundled. The versions are those the runtime *began* with: functions may be
//! pinned to an old runtime version, so a later update of Amazon Linux raises nothing here. glibc and
//! its family are never bundled, whether or not they have a row: a second libc in a process is fatal.

use super::image::Machine;

/// A Lambda runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Runtime {
    /// AWS's own name for it.
    pub name: &'static str,
    /// The libraries that are certain to be there.
    pub rows: &'static [Row],
}

/// A library that a runtime has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The name programs need it by.
    pub soname: &'static str,
    /// The RPM package it belongs to.
    pub package: &'static str,
    /// Where it exists.
    pub machines: &'static [Machine],
    /// The symbol versions it defines.
    pub versions: &'static [Versions],
    /// Where this is known from.
    pub source: &'static str,
}

/// A family of symbol versions, such as `GLIBC_2.2.5` … `GLIBC_2.34`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// What the names begin with, `_` included.
    pub prefix: &'static str,
    /// The newest numbered one.
    pub newest: &'static str,
    /// Names without a number.
    pub others: &'static [&'static str],
}

const BOTH: &[Machine] = &[Machine::X86_64, Machine::Aarch64];
const X86_64: &[Machine] = &[Machine::X86_64];
const AARCH64: &[Machine] = &[Machine::Aarch64];

/// glibc 2.34. `GLIBC_ABI_DT_RELR` came with 2.36 and the other `GLIBC_ABI_*` later still;
/// `GLIBC_PRIVATE` exists but belongs to glibc alone (its symbols change from build to build).
const GLIBC_2_34: &[Versions] = &[Versions {
    prefix: "GLIBC_",
    newest: "2.34",
    others: &[],
}];

/// `ldd --version` in the runtime's own image says 2.34, as AL2023's user guide does:
/// <https://docs.aws.amazon.com/linux/al2023/ug/core-glibc.html>.
const GLIBC_SOURCE: &str = "https://github.com/aws/aws-lambda-builders/pull/752";

/// The runtime's image is built on AL2023-minimal, whose package manager (microdnf, on libdnf) is
/// C++; that functions find this very libstdc++, of GCC 11, shows in what fails with newer ones.
const GCC_SOURCE: &str = "https://github.com/amazonlinux/container-images/issues/132";

const fn glibc(soname: &'static str, machines: &'static [Machine]) -> Row {
    Row {
        soname,
        package: "glibc",
        machines,
        versions: GLIBC_2_34,
        source: GLIBC_SOURCE,
    }
}

/// Amazon Linux 2023, OS only.
pub const PROVIDED_AL2023: Runtime = Runtime {
    name: "provided.al2023",
    rows: &[
        glibc("libc.so.6", BOTH),
        glibc("libm.so.6", BOTH),
        glibc("libdl.so.2", BOTH),
        glibc("libpthread.so.0", BOTH),
        glibc("librt.so.1", BOTH),
        glibc("libresolv.so.2", BOTH),
        glibc("libutil.so.1", BOTH),
        glibc("libanl.so.1", BOTH),
        glibc("libBrokenLocale.so.1", BOTH),
        // AArch64 has had a libmvec since glibc 2.38 only.
        glibc("libmvec.so.1", X86_64),
        glibc("ld-linux-x86-64.so.2", X86_64),
        glibc("ld-linux-aarch64.so.1", AARCH64),
        // Every Rust program linked against glibc needs libgcc_s, and runs on this runtime. Of the
        // version maps in libgcc/config, x86 went from GCC_7.0.0 straight to GCC_12.0.0, AArch64
        // has a GCC_11.0.
        Row {
            soname: "libgcc_s.so.1",
            package: "libgcc",
            machines: X86_64,
            versions: &[Versions {
                prefix: "GCC_",
                newest: "7.0.0",
                others: &[],
            }],
            source: GCC_SOURCE,
        },
        Row {
            soname: "libgcc_s.so.1",
            package: "libgcc",
            machines: AARCH64,
            versions: &[Versions {
                prefix: "GCC_",
                newest: "11.0",
                others: &[],
            }],
            source: GCC_SOURCE,
        },
        // GCC 11: https://gcc.gnu.org/onlinedocs/libstdc++/manual/abi.html. CXXABI_FLOAT128 is for
        // machines where __float128 is not long double.
        Row {
            soname: "libstdc++.so.6",
            package: "libstdc++",
            machines: X86_64,
            versions: &[
                Versions {
                    prefix: "GLIBCXX_",
                    newest: "3.4.29",
                    others: &[],
                },
                Versions {
                    prefix: "CXXABI_",
                    newest: "1.3.13",
                    others: &["CXXABI_TM_1", "CXXABI_FLOAT128"],
                },
            ],
            source: GCC_SOURCE,
        },
        Row {
            soname: "libstdc++.so.6",
            package: "libstdc++",
            machines: AARCH64,
            versions: &[
                Versions {
                    prefix: "GLIBCXX_",
                    newest: "3.4.29",
                    others: &[],
                },
                Versions {
                    prefix: "CXXABI_",
                    newest: "1.3.13",
                    others: &["CXXABI_TM_1"],
                },
            ],
            source: GCC_SOURCE,
        },
    ],
};

impl Runtime {
    /// The row of a library, if the runtime has it.
    pub fn row(&self, soname: &str, machine: Machine) -> Option<&'static Row> {
        self.rows
            .iter()
            .find(|row| row.soname == soname && row.machines.contains(&machine))
    }
}

impl Row {
    /// Whether the library defines a symbol version.
    pub fn has(&self, version: &str) -> bool {
        self.versions.iter().any(|family| {
            family.others.contains(&version)
                || numbers(version, family.prefix)
                    .is_some_and(|wanted| Some(wanted) <= numbers(family.newest, ""))
        })
    }

    /// The newest version of the family that `version` belongs to, as it is written in full.
    pub fn newest(&self, version: &str) -> Option<String> {
        let family = self
            .versions
            .iter()
            .find(|family| version.starts_with(family.prefix))?;
        Some(format!("{}{}", family.prefix, family.newest))
    }
}

/// Where Amazon Linux 2023 has its libraries, on both architectures; the first is a symlink to the
/// other. `/usr/lib` is for 32-bit ones. It is built with Fedora's macros, here `%{_libdir}`:
/// <https://docs.fedoraproject.org/en-US/packaging-guidelines/RPMMacros/>.
pub const LIBRARY_DIRECTORIES: [&str; 2] = ["/lib64", "/usr/lib64"];

/// The paths at which the runtime has its dynamic loader; the first is what linkers write into
/// `PT_INTERP`, the other is the same file (`/lib64` and `/lib` are symlinks into `/usr`).
pub fn interpreters(machine: Machine) -> [&'static str; 2] {
    match machine {
        Machine::X86_64 => [
            "/lib64/ld-linux-x86-64.so.2",
            "/usr/lib64/ld-linux-x86-64.so.2",
        ],
        Machine::Aarch64 => [
            "/lib/ld-linux-aarch64.so.1",
            "/usr/lib/ld-linux-aarch64.so.1",
        ],
    }
}

/// Whether a soname is glibc's own: such a library works with exactly one build of libc.so.6 and
/// is therefore never bundled.
pub fn is_glibc(soname: &str) -> bool {
    const NAMES: &[&str] = &[
        "libc.so.6",
        "libm.so.6",
        "libdl.so.2",
        "libpthread.so.0",
        "librt.so.1",
        "libresolv.so.2",
        "libutil.so.1",
        "libanl.so.1",
        "libBrokenLocale.so.1",
        "libmvec.so.1",
        "libthread_db.so.1",
        "libc_malloc_debug.so.0",
    ];
    NAMES.contains(&soname) || soname.starts_with("ld-linux") || soname.starts_with("libnss_")
}

/// `GLIBC_2.2.5` without its prefix → `[2, 2, 5]`; nothing when anything but numbers follows.
fn numbers(version: &str, prefix: &str) -> Option<Vec<u32>> {
    version
        .strip_prefix(prefix)?
        .split('.')
        .map(|part| part.parse().ok())
        .collect()
}

/// Whether one symbol version is newer than another of its family; names without a number are
/// taken for newer than any number.
pub fn is_newer(version: &str, than: &str) -> bool {
    let key = |text: &str| {
        let number = text
            .rsplit_once('_')
            .and_then(|(_, number)| numbers(number, ""));
        (number.is_none(), number)
    };
    key(version) > key(than)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let cases = [
            ("libc.so.6", Machine::X86_64, "GLIBC_2.2.5", true),
            ("libc.so.6", Machine::X86_64, "GLIBC_2.34", true),
            ("libc.so.6", Machine::X86_64, "GLIBC_2.35", false),
            ("libc.so.6", Machine::X86_64, "GLIBC_2.100", false),
            ("libc.so.6", Machine::X86_64, "GLIBC_ABI_DT_RELR", false),
            ("libc.so.6", Machine::X86_64, "GLIBC_ABI_GNU2_TLS", false),
            ("libc.so.6", Machine::X86_64, "GLIBC_PRIVATE", false),
            ("libstdc++.so.6", Machine::X86_64, "GLIBCXX_3.4", true),
            ("libstdc++.so.6", Machine::X86_64, "GLIBCXX_3.4.9", true),
            ("libstdc++.so.6", Machine::X86_64, "GLIBCXX_3.4.29", true),
            ("libstdc++.so.6", Machine::X86_64, "GLIBCXX_3.4.30", false),
            ("libstdc++.so.6", Machine::X86_64, "CXXABI_1.3.13", true),
            ("libstdc++.so.6", Machine::X86_64, "CXXABI_1.3.14", false),
            ("libstdc++.so.6", Machine::X86_64, "CXXABI_TM_1", true),
            ("libstdc++.so.6", Machine::X86_64, "CXXABI_FLOAT128", true),
            ("libstdc++.so.6", Machine::Aarch64, "CXXABI_FLOAT128", false),
            ("libgcc_s.so.1", Machine::X86_64, "GCC_4.2.0", true),
            ("libgcc_s.so.1", Machine::X86_64, "GCC_12.0.0", false),
            ("libgcc_s.so.1", Machine::Aarch64, "GCC_11.0", true),
            ("libgcc_s.so.1", Machine::Aarch64, "GCC_14.0.0", false),
        ];
        for (soname, machine, version, expected) in cases {
            let row = PROVIDED_AL2023.row(soname, machine).expect(soname);
            assert_eq!(row.has(version), expected, "{soname} {machine} {version}");
        }
    }

    #[test]
    fn rows_are_per_machine_and_glibc_is_a_family() {
        assert!(
            PROVIDED_AL2023
                .row("libmvec.so.1", Machine::X86_64)
                .is_some()
        );
        assert!(
            PROVIDED_AL2023
                .row("libmvec.so.1", Machine::Aarch64)
                .is_none()
        );
        assert!(
            PROVIDED_AL2023
                .row("libssl.so.3", Machine::X86_64)
                .is_none()
        );
        assert!(is_glibc("libmvec.so.1") && is_glibc("libnss_db.so.2"));
        assert!(!is_glibc("libnss3.so") && !is_glibc("libc.so") && !is_glibc("libgcc_s.so.1"));
    }

    #[test]
    fn newer_means_by_number_and_names_come_last() {
        assert!(is_newer("GLIBC_2.36", "GLIBC_2.4"));
        assert!(!is_newer("GLIBC_2.2.5", "GLIBC_2.3"));
        assert!(is_newer("GLIBC_ABI_DT_RELR", "GLIBC_2.40"));
    }
}
