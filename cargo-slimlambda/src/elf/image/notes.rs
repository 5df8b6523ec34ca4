//! The notes of a `PT_NOTE` segment, one after the other.

/// One note.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note<'a> {
    /// Who defines what the kind means; its last byte is usually NUL.
    pub owner: &'a [u8],
    /// `NT_*`.
    pub kind: u32,
    /// The contents.
    pub description: &'a [u8],
}

/// The notes in `bytes`, whose segment has the alignment `align`: they are padded to 4 or 8 bytes.
/// Ends at the first that is not all there.
pub(in super::super) fn notes(bytes: &[u8], align: u64) -> impl Iterator<Item = Note<'_>> {
    let align = if align == 8 { 8 } else { 4 };
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (note, next) = split(rest, align)?;
        rest = next;
        Some(note)
    })
}

/// The first note and what comes after it.
fn split(bytes: &[u8], align: usize) -> Option<(Note<'_>, &[u8])> {
    let word = |at: usize| {
        let bytes = bytes.get(at..at + 4)?;
        bytes.try_into().ok().map(u32::from_le_bytes)
    };
    let owner_size = usize::try_from(word(0)?).ok()?;
    let size = usize::try_from(word(4)?).ok()?;
    let kind = word(8)?;
    let owner = bytes.get(12..12usize.checked_add(owner_size)?)?;
    let start = (12 + owner_size).checked_next_multiple_of(align)?;
    let end = start.checked_add(size)?;
    let note = Note {
        owner,
        kind,
        description: bytes.get(start..end)?,
    };
    let next = end.checked_next_multiple_of(align)?;
    Some((note, bytes.get(next..).unwrap_or_default()))
}
