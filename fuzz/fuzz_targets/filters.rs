//! Decoders on streams of anything: bytes of the right size or an error, the same whatever is in the buffers around.
#![no_main]

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use runtime_unpack::filter::{self, Decoder, Filter, Malformed, PADDING, Piece, STREAMS, Scratch};

fuzz_target!(|data: &[u8]| {
    let _ = fuzz(&mut Unstructured::new(data));
});

fn fuzz(input: &mut Unstructured<'_>) -> Result<()> {
    let mut pieces = Vec::new();
    for _ in 0..input.int_in_range(1..=5)? {
        let filter = Filter::from_byte(input.int_in_range(0..=7)?).unwrap_or(Filter::Arm64);
        let piece = Piece {
            blob: input.int_in_range(0..=1)?,
            filter,
            param: match filter {
                Filter::Plain | Filter::Planes => input.int_in_range(0..=0x1_ff22)?,
                _ => input.arbitrary()?,
            },
        };
        let size = match input.ratio(1, 30)? {
            true => input.int_in_range(0..=300_000)?,
            false => input.int_in_range(0..=300)?,
        };
        pieces.push((piece, size));
    }
    let mut streams: Vec<(u8, Vec<u8>)> = Vec::new();
    let encodable = pieces
        .iter()
        .all(|(piece, _)| piece.filter.takes(piece.param));
    if encodable && input.arbitrary()? {
        // What the encoder makes of something, changed here and there.
        let mut contents = Vec::new();
        for (piece, size) in &mut pieces {
            *size = input.int_in_range(0..=input.len().min(400))?;
            contents.push((*piece, input.bytes(*size)?));
        }
        streams = filter::encode(contents.into_iter());
        for _ in 0..input.int_in_range(0..=6)? {
            if streams.is_empty() {
                break;
            }
            let number = input.choose_index(streams.len())?;
            let stream = &mut streams[number].1;
            let at = input.int_in_range(0..=stream.len())?;
            match (input.int_in_range(0..=2)?, stream.get_mut(at)) {
                (0, Some(byte)) => *byte = input.arbitrary()?,
                (1, Some(_)) => drop(stream.remove(at)),
                _ => stream.insert(at, input.arbitrary()?),
            }
        }
    } else {
        let mut number = 0;
        while number < STREAMS && !input.is_empty() {
            let size = input.int_in_range(0..=input.len().min(200))?;
            streams.push((number, input.bytes(size)?.to_vec()));
            number += input.int_in_range(1..=12)?;
        }
    }
    let mut scratch = Scratch::default();
    let first = decode(&pieces, &streams, 0, &mut scratch);
    assert_eq!(first, decode(&pieces, &streams, 0xff, &mut scratch));
    Ok(())
}

fn decode(
    pieces: &[(Piece, usize)],
    streams: &[(u8, Vec<u8>)],
    padding: u8,
    scratch: &mut Scratch,
) -> std::result::Result<Vec<Vec<u8>>, Malformed> {
    let mut buffer: Vec<u8> = streams
        .iter()
        .flat_map(|(_, bytes)| bytes.clone())
        .collect();
    buffer.resize(buffer.len() + PADDING, padding);
    let sizes = streams.iter().map(|(number, bytes)| (*number, bytes.len()));
    let mut decoder = Decoder::new(&buffer, sizes)?;
    let mut out = Vec::new();
    for (piece, size) in pieces {
        let bytes = decoder.piece(piece, *size, scratch)?;
        assert_eq!(bytes.len(), *size);
        out.push(bytes.to_vec());
    }
    decoder.finish()?;
    Ok(out)
}
