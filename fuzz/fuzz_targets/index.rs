//! Header and index from anything: an archive whose every part can be asked for, or an error.
#![no_main]

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use runtime_unpack::format::{
    self, BLOB_SIZE, ENTRY_SIZE, FRAME_SIZE, HEADER_SIZE, Header, PIECE_SIZE, STREAM_SIZE,
};
use runtime_unpack::reader::{self, Archive};

fuzz_target!(|data: &[u8]| {
    if let Some((header, index)) = data.split_first_chunk::<HEADER_SIZE>()
        && let Ok(header) = reader::read_header(header)
    {
        let packed = &index[..index.len().min(header.index_packed as usize)];
        if let Ok(archive) = reader::read_index(header, packed, data.len() as u64) {
            ask(&archive);
        }
    }
    let _ = assembled(&mut Unstructured::new(data));
});

/// Records from the input, in an index whose sizes and digests fit: what no blind change would get right.
fn assembled(input: &mut Unstructured<'_>) -> Result<()> {
    let [entries, blobs, pieces, frames, streams] = {
        let mut counts = [0u32; 5];
        for count in &mut counts {
            *count = input.int_in_range(0..=9)?;
        }
        counts
    };
    let launch_size = input.int_in_range(0..=5)?;
    let changes: [u32; 4] = input.arbitrary()?;
    let mut index = Vec::new();
    let mut table = |count: u32, size: usize| -> Result<std::ops::Range<usize>> {
        let bytes = input.bytes(count as usize * size)?;
        let start = index.len();
        index.extend_from_slice(bytes);
        Ok(start..index.len())
    };
    table(entries, ENTRY_SIZE)?;
    let blob_records = table(blobs, BLOB_SIZE)?;
    table(pieces, PIECE_SIZE)?;
    let frame_records = table(frames, FRAME_SIZE)?;
    let stream_records = table(streams, STREAM_SIZE)?;
    table(launch_size, 1)?;
    index.extend(input.bytes(input.len())?);

    let u32_at = |at: usize| u32::from_le_bytes(index[at..at + 4].try_into().unwrap());
    let sizes = |offset: usize| {
        let records = stream_records.clone().step_by(STREAM_SIZE);
        records
            .map(move |at| u64::from(u32_at(at + offset)))
            .collect::<Vec<_>>()
    };
    let (packed_sizes, unpacked_sizes) = (sizes(0), sizes(4));
    let mut largest = 0;
    let mut rest = &unpacked_sizes[..];
    for at in frame_records.step_by(FRAME_SIZE) {
        let (own, others) = rest.split_at(rest.len().min(u32_at(at) as usize));
        largest = own.iter().sum::<u64>().max(largest);
        rest = others;
    }
    let content = blob_records
        .step_by(BLOB_SIZE)
        .map(|at| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32);
    let content_size = content.fold(0, u64::wrapping_add);
    let packed = zstd::bulk::compress(&index, 1).unwrap();
    let mut header = Header {
        index_packed: packed.len() as u64,
        index_unpacked: index.len() as u64,
        frames_packed: packed_sizes.iter().sum(),
        content_size,
        entries,
        blobs,
        pieces,
        frames,
        streams,
        frame_limit: largest as u32,
        launch_size,
        index_digest: format::digest(&packed),
    };
    // Now and then one of the sums is wrong.
    if changes[0].is_multiple_of(32) {
        header.content_size ^= u64::from(changes[1]);
        header.frames_packed ^= u64::from(changes[2]);
        header.frame_limit ^= changes[3];
    }
    let Ok(header) = reader::read_header(&header.encode()) else {
        return Ok(());
    };
    let whole = HEADER_SIZE as u64 + header.index_packed + header.frames_packed;
    if let Ok(archive) = reader::read_index(header, &packed, whole) {
        assert_eq!(archive.digest(), header.digest());
        ask(&archive);
    }
    Ok(())
}

/// Everything that those who have an archive ask it for, and that it adds up.
fn ask(archive: &Archive) {
    let header = archive.header();
    for (number, entry) in archive.entries().enumerate() {
        assert_eq!(archive.find(entry.path), Some(number));
        assert_eq!(format::path_fault(entry.path), None);
    }
    assert!(archive.launch().len() == header.launch_size as usize);
    let mut at = HEADER_SIZE as u64 + header.index_packed;
    for frame in 0..archive.frames().len() {
        let range = archive.frame_range(frame);
        assert_eq!(range.start, at);
        at = range.end;
        let (packed, unpacked) = archive.frame_sizes(frame);
        assert_eq!(packed, range.end - range.start);
        assert!(unpacked <= header.frame_limit.into());
        assert!(!archive.streams(frame).is_empty());
    }
    assert_eq!(
        at,
        HEADER_SIZE as u64 + header.index_packed + header.frames_packed
    );
    let mut sizes = vec![0; archive.blobs().len()];
    for (_, piece) in archive.pieces() {
        assert_eq!(piece.offset, sizes[piece.blob as usize]);
        sizes[piece.blob as usize] += u64::from(piece.size);
    }
    assert!(
        sizes
            .iter()
            .zip(archive.blobs())
            .all(|(size, blob)| *size == blob.size)
    );
    for pieces in archive.frame_pieces() {
        assert!(pieces.is_sorted_by_key(|piece| (piece.blob, piece.filter.is_derived())));
    }
}
