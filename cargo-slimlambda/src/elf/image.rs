//! `&[u8]` → [`Image`]: segments, sections, dynamic table, versions, build-id.
