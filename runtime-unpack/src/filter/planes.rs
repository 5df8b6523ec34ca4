//! Arrays of numbers, each byte of a number in a plane of its own.
//!
//! In a table of records or a tensor of floats, like stands at equal distances: first bytes with first bytes. A plane
//! at a time, the compressor sees it. Fields that count up are stored as differences first; 32-bit floats are turned by one
//! bit, so that a plane has the exponent and nothing else: what is left of a trained tensor's mantissas is noise, and stored.
//!
//! Source: ZipNN, arXiv 2411.05239, for the floats.

use super::Malformed;
#[cfg(feature = "pack")]
use alloc::vec::Vec;

/// How an array is laid out, as a piece's parameter: bytes per record, and what is done to its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of a record, 1 to [`MAX_STRIDE`].
    pub stride: usize,
    /// Bit n: the n-th 4 bytes of a record are a number, stored as the difference to the record before.
    pub differences: u8,
    /// Whether each 2 or 4 bytes are a float with an 8-bit exponent, to be turned by one bit.
    pub floats: bool,
}

/// Longest record.
pub const MAX_STRIDE: usize = 32;

impl Layout {
    /// The parameter that says so.
    pub const fn param(self) -> u32 {
        self.stride as u32 | (self.differences as u32) << 8 | (self.floats as u32) << 16
    }

    /// What the parameter says, if that is possible.
    pub const fn from_param(param: u32) -> Option<Layout> {
        let layout = Layout {
            stride: param as u8 as usize,
            differences: (param >> 8) as u8,
            floats: param >> 16 == 1,
        };
        let fits = layout.stride >= 1
            && layout.stride <= MAX_STRIDE
            && param >> 17 == 0
            && (layout.differences as usize) < 1 << (layout.stride / 4)
            && (!layout.floats || layout.stride == 2 || layout.stride == 4);
        if fits { Some(layout) } else { None }
    }
}

/// Puts planes together again as `out`. `take` gives so many bytes of a stream: tables are in one, plane after plane, and of
/// floats each plane has its own. What is left of a record at the end comes last, from the first.
pub(super) fn decode<'p>(
    layout: Layout,
    mut take: impl FnMut(usize, usize) -> Result<&'p [u8], Malformed>,
    out: &mut [u8],
) -> Result<(), Malformed> {
    let Layout { stride, floats, .. } = layout;
    let count = out.len() / stride;
    let mut planes: [&[u8]; MAX_STRIDE] = [&[]; MAX_STRIDE];
    for (n, plane) in planes[..stride].iter_mut().enumerate() {
        *plane = take(if floats { n } else { 0 }, count)?;
    }
    let rest = out.len() - count * stride;
    out[count * stride..].copy_from_slice(take(0, rest)?);
    match stride {
        2 => interleave::<2>(&planes, out),
        4 => interleave::<4>(&planes, out),
        8 => interleave::<8>(&planes, out),
        24 => interleave::<24>(&planes, out),
        _ => {
            for (column, plane) in planes[..stride].iter().enumerate() {
                for (record, byte) in out.chunks_exact_mut(stride).zip(*plane) {
                    record[column] = *byte;
                }
            }
        }
    }
    if floats {
        match stride {
            2 => turn::<2>(out),
            _ => turn::<4>(out),
        }
    }
    for column in (0..8).filter(|n| layout.differences >> n & 1 == 1) {
        let mut last = 0u32;
        for record in out.chunks_exact_mut(stride) {
            let field = &mut record[column * 4..column * 4 + 4];
            last = last.wrapping_add(u32::from_le_bytes([field[0], field[1], field[2], field[3]]));
            field.copy_from_slice(&last.to_le_bytes());
        }
    }
    Ok(())
}

fn interleave<const N: usize>(planes: &[&[u8]; MAX_STRIDE], out: &mut [u8]) {
    let records = out.as_chunks_mut::<N>().0;
    let columns: [&[u8]; N] = core::array::from_fn(|n| &planes[n][..records.len()]);
    for (at, record) in records.iter_mut().enumerate() {
        for (byte, column) in record.iter_mut().zip(&columns) {
            *byte = column[at];
        }
    }
}

/// The sign from the lowest bit to the highest: undoes what put the exponent into a byte of its own.
fn turn<const N: usize>(numbers: &mut [u8]) {
    for number in numbers.as_chunks_mut::<N>().0 {
        match N {
            2 => {
                let turned = u16::from_le_bytes([number[0], number[1]]).rotate_right(1);
                number.copy_from_slice(&turned.to_le_bytes()[..N]);
            }
            _ => {
                let bytes = [number[0], number[1], number[2], number[3]];
                let turned = u32::from_le_bytes(bytes).rotate_right(1);
                number.copy_from_slice(&turned.to_le_bytes()[..N]);
            }
        }
    }
}

/// Takes an array apart and hands each plane to `put`, in the order in which they are taken.
#[cfg(feature = "pack")]
pub(super) fn encode(layout: Layout, array: &[u8], mut put: impl FnMut(usize, &[u8])) {
    let Layout { stride, floats, .. } = layout;
    let mut array = array.to_vec();
    for column in (0..8).filter(|n| layout.differences >> n & 1 == 1) {
        let mut last = 0u32;
        for record in array.chunks_exact_mut(stride) {
            let field = &mut record[column * 4..column * 4 + 4];
            let value = u32::from_le_bytes([field[0], field[1], field[2], field[3]]);
            field.copy_from_slice(&value.wrapping_sub(last).to_le_bytes());
            last = value;
        }
    }
    if floats && stride == 2 {
        for number in array.as_chunks_mut::<2>().0 {
            *number = u16::from_le_bytes(*number).rotate_left(1).to_le_bytes();
        }
    } else if floats {
        for number in array.as_chunks_mut::<4>().0 {
            *number = u32::from_le_bytes(*number).rotate_left(1).to_le_bytes();
        }
    }
    let (body, rest) = array.split_at(array.len() / stride * stride);
    for column in 0..stride {
        let plane: Vec<u8> = body.iter().skip(column).step_by(stride).copied().collect();
        put(if floats { column } else { 0 }, &plane);
    }
    put(0, rest);
}
