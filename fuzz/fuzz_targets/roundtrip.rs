//! What filters take apart they put together again.
#![no_main]

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use runtime_unpack::filter::{self, Decoder, Filter, PADDING, Piece, STREAMS, Scratch};

fuzz_target!(|data: &[u8]| {
    let _ = fuzz(&mut Unstructured::new(data));
});

fn fuzz(input: &mut Unstructured<'_>) -> Result<()> {
    let mut pieces: Vec<(Piece, &[u8], u32)> = Vec::new();
    for _ in 0..input.int_in_range(1..=4)? {
        let filter = match Filter::from_byte(input.int_in_range(0..=7)?) {
            None | Some(Filter::Hole | Filter::EhFrameHdr) => Filter::EhFrame,
            Some(filter) => filter,
        };
        let mut param = match filter {
            Filter::Plain | Filter::Planes => input.int_in_range(0..=0x1_ff22)?,
            _ => input.arbitrary()?,
        };
        if !filter.takes(param) {
            param = 1;
        }
        let piece = Piece {
            blob: input.int_in_range(0..=1)?,
            filter,
            param,
        };
        let repeat = if input.ratio(1, 8)? {
            input.int_in_range(1..=9)?
        } else {
            1
        };
        let size = input.int_in_range(0..=input.len().min(4_000))?;
        pieces.push((piece, input.bytes(size)?, repeat));
    }
    let pieces: Vec<(Piece, Vec<u8>)> = pieces
        .into_iter()
        .map(|(piece, bytes, repeat)| (piece, bytes.repeat(repeat as usize)))
        .collect();
    let streams = filter::encode(pieces.iter().map(|(piece, bytes)| (*piece, &bytes[..])));
    assert!(streams.is_sorted_by(|a, b| a.0 < b.0));
    assert!(
        streams
            .iter()
            .all(|(number, s)| *number < STREAMS && !s.is_empty())
    );
    let mut buffer: Vec<u8> = streams
        .iter()
        .flat_map(|(_, bytes)| bytes.clone())
        .collect();
    let (before, after) = (
        pieces.iter().map(|(_, b)| b.len()).sum::<usize>(),
        buffer.len(),
    );
    assert!(after <= before * 4 + 200, "{before} bytes became {after}");
    buffer.resize(buffer.len() + PADDING, 0x55);
    let mut decoder = Decoder::new(&buffer, streams.iter().map(|(n, s)| (*n, s.len()))).unwrap();
    let mut scratch = Scratch::default();
    for (piece, bytes) in &pieces {
        let out = decoder
            .piece(piece, bytes.len(), &mut scratch)
            .expect("it decodes");
        assert!(out == &bytes[..], "{piece:?}");
    }
    decoder.finish().expect("every stream is used up");
    Ok(())
}
