//! The launcher's zstd decoder against the reference, on frames that it made, and on frames made of anything.
#![no_main]

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use runtime_unpack::Error;
use runtime_unpack::format::{self, Codec, Frame, Stream};
use runtime_unpack::reader::decode_streams;
use zstd::zstd_safe::{self, CParameter, ParamSwitch};

fuzz_target!(|data: &[u8]| {
    // As it is: what frames of the corpus become.
    if let Ok(Some(size)) = zstd_safe::get_frame_content_size(data)
        && size <= 1 << 20
    {
        agree(data, size as usize);
    }
    let _ = made(&mut Unstructured::new(data));
});

/// A frame that the reference makes of the input, whole and then changed.
fn made(input: &mut Unstructured<'_>) -> Result<()> {
    let mut compressor = zstd::bulk::Compressor::new(input.int_in_range(-3..=22)?).unwrap();
    let mut set = |parameter| compressor.set_parameter(parameter).unwrap();
    if input.arbitrary()? {
        set(CParameter::WindowLog(input.int_in_range(10..=18)?));
    }
    if input.arbitrary()? {
        set(CParameter::TargetCBlockSize(
            input.int_in_range(1340..=5_000)?,
        ));
    }
    set(CParameter::LiteralCompressionMode(*input.choose(&[
        ParamSwitch::Auto,
        ParamSwitch::Enable,
        ParamSwitch::Disable,
    ])?));
    let mut changes = Vec::new();
    for _ in 0..input.int_in_range(0..=4)? {
        changes.push(input.arbitrary::<(u16, u8)>()?);
    }
    let repeat = input.int_in_range(1..=20)?;
    let content = input.bytes(input.len())?.repeat(repeat);
    let mut frame = compressor.compress(&content).unwrap();
    assert!(
        ours(&frame, content.len()).as_ref() == Ok(&content),
        "a good frame is refused"
    );
    for (at, byte) in changes {
        let at = usize::from(at) % frame.len();
        frame[at] ^= byte;
    }
    agree(&frame, content.len());
    Ok(())
}

/// Both give the same, or one of them refuses for a reason that we know (tests/decoder.rs says which).
fn agree(frame: &[u8], size: usize) {
    let reference = zstd::bulk::decompress(frame, size);
    match (ours(frame, size), reference) {
        (Ok(ours), Ok(reference)) => {
            assert!(ours == reference, "the same frame is read differently")
        }
        (Ok(_), Err(why)) => assert_eq!(why.to_string(), "Data corruption detected"),
        (Err(_), _) => {}
    }
}

fn ours(packed: &[u8], size: usize) -> std::result::Result<Vec<u8>, &'static str> {
    let frame = Frame {
        streams: 1,
        digest: format::digest(packed),
    };
    let stream = Stream {
        number: 0,
        codec: Codec::Zstd,
        packed: packed.len() as u32,
        unpacked: size as u32,
    };
    let mut out = Vec::new();
    match decode_streams(0, &frame, &[stream], packed, &mut out) {
        Ok(()) => Ok(out[..size].to_vec()),
        Err(Error::Corrupt { why, .. }) => Err(why),
        Err(other) => panic!("{other}"),
    }
}
