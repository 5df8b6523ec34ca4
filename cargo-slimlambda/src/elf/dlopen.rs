//! Hints at libraries that are opened at run time, which no dynamic table names.
//!
//! Two sources: `.note.dlopen`, where a file says it itself, and strings that look like sonames.
//! Neither makes a package fail; `libraries` in the configuration bundles what is really opened.

use std::collections::{BTreeMap, BTreeSet};

use super::image::{Image, Note};

/// `PT_LOAD` (gABI, "Program Header").
const PT_LOAD: u32 = 1;
/// Note type of <https://systemd.io/ELF_DLOPEN_METADATA>; its owner is `FDO`.
const NT_FDO_DLOPEN: u32 = 0x407c_0c0a;

/// A library that files of the package may open.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hint {
    /// The name it would be opened by.
    pub name: String,
    /// The files that say so, sorted.
    pub files: BTreeSet<String>,
    /// What it is for, if a note says that.
    pub purpose: Option<String>,
    /// Declared in a note rather than found as a string.
    pub declared: bool,
}

/// Hints in `files` (each with its name for messages), sorted by name, without those for which
/// `known` holds (what is in the closure or in the runtime).
pub fn hints(files: &[(&str, &Image<'_>)], known: &dyn Fn(&str) -> bool) -> Vec<Hint> {
    let mut hints: BTreeMap<String, Hint> = BTreeMap::new();
    let mut note = |name: &str, file: &str, purpose: Option<String>, declared: bool| {
        if known(name) {
            return;
        }
        let hint = hints.entry(name.to_owned()).or_insert_with(|| Hint {
            name: name.to_owned(),
            files: BTreeSet::new(),
            purpose: None,
            declared: false,
        });
        hint.files.insert(file.to_owned());
        hint.declared |= declared;
        hint.purpose = hint.purpose.take().or(purpose);
    };
    for (file, image) in files {
        for (soname, purpose) in declared(image.notes()) {
            note(&soname, file, purpose, true);
        }
        for segment in image
            .segments
            .iter()
            .filter(|segment| segment.kind == PT_LOAD)
        {
            for name in sonames(image.segment_bytes(segment)) {
                if image.soname != Some(name) {
                    note(name, file, None, false);
                }
            }
        }
    }
    hints.into_values().collect()
}

/// Whole strings of the form `lib….so` or `lib….so.1.2`: nothing that could be part of a file name
/// stands before or after them.
fn sonames(bytes: &[u8]) -> impl Iterator<Item = &str> {
    let in_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"_+.-".contains(byte);
    let dots = bytes
        .windows(3)
        .enumerate()
        .filter(|(_, window)| window == b".so");
    dots.filter_map(move |(dot, _)| {
        // File names have 255 bytes at most.
        let before = bytes[..dot]
            .iter()
            .rev()
            .take(255)
            .take_while(|byte| in_name(byte))
            .count();
        let start = dot - before;
        let mut end = dot + 3;
        while let Some((b'.', rest)) = bytes[end..].split_first() {
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            if digits == 0 {
                break;
            }
            end += 1 + digits;
        }
        let name = &bytes[start..end];
        let whole = !bytes.get(end).is_some_and(in_name);
        let named = name.starts_with(b"lib") && before > 3 && name.len() <= 255;
        if whole && named {
            std::str::from_utf8(name).ok()
        } else {
            None
        }
    })
}

/// The sonames in `.note.dlopen` notes, each with what it is for. What does not parse is no hint.
fn declared<'a>(notes: impl Iterator<Item = Note<'a>>) -> Vec<(String, Option<String>)> {
    let mut found = Vec::new();
    for note in notes {
        if note.kind != NT_FDO_DLOPEN || note.owner != b"FDO\0" {
            continue;
        }
        let text = note
            .description
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default();
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(text) else {
            continue;
        };
        let entries = value
            .as_array()
            .map_or(std::slice::from_ref(&value), Vec::as_slice);
        for entry in entries {
            let word = |key: &str| entry.get(key).and_then(|value| value.as_str());
            let purpose = word("description").or(word("feature")).map(str::to_owned);
            // The first version of the specification had one soname, the present one has a list.
            let Some(soname) = entry.get("soname") else {
                continue;
            };
            let sonames = soname
                .as_array()
                .map_or(std::slice::from_ref(soname), Vec::as_slice);
            found.extend(
                sonames
                    .iter()
                    .filter_map(|soname| soname.as_str())
                    .map(|soname| (soname.to_owned(), purpose.clone())),
            );
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::image::notes;
    use super::*;

    #[test]
    fn only_whole_sonames_are_hints() {
        let cases: &[(&[u8], &[&str])] = &[
            (b"\0libcuda.so.1\0", &["libcuda.so.1"]),
            (b"\0libfoo-2.1_x++.so\0", &["libfoo-2.1_x++.so"]),
            (b"/usr/lib/libGL.so.1.7.0 and", &["libGL.so.1.7.0"]),
            (
                b"dlopen(\"liba.so\") or 'libb.so.2'",
                &["liba.so", "libb.so.2"],
            ),
            (
                b"\0mylib.so\0lib.so\0libx.sox\0libx.so.a\0libx.so.1a\0lib%s.so\0",
                &[],
            ),
            (b"libx.so.", &[]),
            (b"libx.so.1", &["libx.so.1"]),
            (b".so", &[]),
        ];
        for (bytes, expected) in cases {
            let found: Vec<&str> = sonames(bytes).collect();
            assert_eq!(found, *expected, "{}", String::from_utf8_lossy(bytes));
        }
    }

    fn note(json: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [
            4,
            u32::try_from(json.len()).unwrap_or_default(),
            NT_FDO_DLOPEN,
        ] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(b"FDO\0");
        bytes.extend(json);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn notes_are_read_in_both_forms_and_bad_ones_ignored() {
        let mut bytes = note(br#"[{"soname":["liba.so.2","liba.so.1"],"feature":"a"}]"#);
        bytes.extend(note(b"{not json"));
        bytes.extend(note(
            b"{\"soname\":\"libb.so.1\",\"description\":\"for b\"}\0",
        ));
        let found = declared(notes(&bytes, 4));
        let expected = [
            ("liba.so.2", "a"),
            ("liba.so.1", "a"),
            ("libb.so.1", "for b"),
        ]
        .map(|(name, purpose)| (name.to_owned(), Some(purpose.to_owned())));
        assert_eq!(found, expected);
        // A size that goes past the end, however large.
        for size in [100, u32::MAX] {
            bytes[4..8].copy_from_slice(&size.to_le_bytes());
            assert!(declared(notes(&bytes[..20], 4)).is_empty());
        }
    }
}
