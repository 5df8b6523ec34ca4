//! Sequences of 32-bit values, such as the targets of calls, as tokens of a dictionary.
//!
//! A frame's most frequent values take one byte each, the next ones two, the rest four bytes in a stream of their own. So
//! a value that comes back costs what one letter of text costs, and the compressor finds repeated sequences of values
//! where it would have found repeated bytes.
//!
//! The dictionary is [`ONE`] values at most, then the two-byte ones in ascending order, cut into equal rows: the first
//! byte then tells roughly how large the value is, which is worth something to the compressor.

use super::{Malformed, Reader};
use alloc::vec::Vec;

/// Tokens below this stand for themselves.
pub(super) const ONE: usize = 224;
/// Tokens from [`ONE`] to below this are followed by a second byte; this one by two, which number the words behind.
pub(super) const THREE: u8 = 253;
/// What follows is not in the dictionary, and not even what it is a dictionary of.
pub(super) const RAW: u8 = 254;
/// What follows is not in the dictionary.
pub(super) const ESCAPE: u8 = 255;
/// Most words of two bytes.
pub(super) const TWO: usize = (THREE as usize - ONE) * 256;
/// Most words of three.
#[cfg(feature = "pack")]
pub(super) const MAX_THREE: usize = 1 << 16;

/// Words in a row of the two-byte part.
pub(super) fn rows(two: usize) -> usize {
    two.div_ceil(THREE as usize - ONE).max(1)
}

/// Reads the numbers of a dictionary's words, by the bytes that their tokens have.
pub(super) fn read_counts(dictionary: &mut Reader<'_>) -> Result<[usize; 3], Malformed> {
    let mut next = || dictionary.u16().map(usize::from);
    let (one, two, three) = (next()?, next()?, next()?);
    if one > ONE || two > TWO || (two > 0 && one < ONE) || (three > 0 && two < TWO) {
        return Err(Malformed);
    }
    Ok([one, two, three])
}

/// Takes the dictionary of one sequence from `dictionary`: the numbers of its two parts, then their words. Gives the number of
/// rows as well.
pub(super) fn words(dictionary: &mut Reader<'_>) -> Result<(Vec<u32>, usize), Malformed> {
    let [one, two, three] = read_counts(dictionary)?;
    if three > 0 {
        return Err(Malformed);
    }
    let mut words = Vec::with_capacity(one + two);
    for _ in 0..one {
        words.push(dictionary.u32()?);
    }
    let mut last = 0u32;
    for _ in 0..two {
        last = last.wrapping_add(dictionary.u32()?);
        words.push(last);
    }
    Ok((words, rows(two)))
}

/// Undoes [`zigzag`].
pub(super) fn unzigzag(value: u32) -> u32 {
    (value >> 1) ^ (value & 1).wrapping_neg()
}

/// A signed number as an unsigned one, small where that is near zero.
#[cfg(feature = "pack")]
pub(super) fn zigzag(value: u32) -> u32 {
    (value << 1) ^ ((value as i32) >> 31) as u32
}

/// Gives the values back.
#[derive(Debug, Default)]
pub(super) struct Values {
    words: Vec<u32>,
    rows: usize,
    tokens: usize,
    misses: usize,
}

impl Values {
    /// Takes the dictionary from `dictionary`.
    pub(super) fn new(
        dictionary: &mut Reader<'_>,
        tokens: usize,
        misses: usize,
    ) -> Result<Self, Malformed> {
        let (words, rows) = words(dictionary)?;
        Ok(Values {
            words,
            rows,
            tokens,
            misses,
        })
    }

    #[inline(always)]
    pub(super) fn next(&mut self, buffer: &[u8]) -> Result<u32, Malformed> {
        let [first, second] = *buffer
            .get(self.tokens..)
            .and_then(|b| b.first_chunk())
            .ok_or(Malformed)?;
        if first >= THREE {
            if first != ESCAPE {
                return Err(Malformed);
            }
            self.tokens += 1;
            let value = buffer
                .get(self.misses..)
                .and_then(|b| b.first_chunk())
                .ok_or(Malformed)?;
            self.misses += 4;
            return Ok(u32::from_be_bytes(*value));
        }
        let two = usize::from(first) >= ONE;
        let row = usize::from(first).wrapping_sub(ONE).wrapping_mul(self.rows);
        let long = ONE.wrapping_add(row).wrapping_add(second.into());
        let number = if two { long } else { first.into() };
        self.tokens += 1 + usize::from(two);
        self.words.get(number).copied().ok_or(Malformed)
    }

    /// How far tokens and misses were read.
    pub(super) fn ends(&self) -> [usize; 2] {
        [self.tokens, self.misses]
    }
}

/// The words of a dictionary, by the bytes that their tokens have: the most frequent, then, each in order, the others that
/// occur often enough to pay for their place.
#[cfg(feature = "pack")]
pub(super) fn dictionary<T: Ord + Copy>(
    counts: impl Iterator<Item = (T, u32)>,
    three: usize,
) -> [Vec<T>; 3] {
    const LEAST: u32 = 3;
    let mut counts: Vec<(T, u32)> = counts.filter(|(_, n)| *n >= LEAST).collect();
    counts.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    counts.truncate(ONE + TWO + three);
    let mut one: Vec<T> = counts.into_iter().map(|(word, _)| word).collect();
    let mut two = one.split_off(one.len().min(ONE));
    let mut three = two.split_off(two.len().min(TWO));
    two.sort_unstable();
    three.sort_unstable();
    [one, two, three]
}

/// The bytes of a word's token, and how many there are.
#[cfg(feature = "pack")]
pub(super) fn token(number: usize, rows: usize) -> ([u8; 3], usize) {
    match number {
        ..ONE => ([number as u8, 0, 0], 1),
        _ => match number - ONE {
            rest if rest < rows * (THREE as usize - ONE) => {
                ([(ONE + rest / rows) as u8, (rest % rows) as u8, 0], 2)
            }
            rest => {
                let [high, low] = ((rest - TWO) as u16).to_be_bytes();
                ([THREE, high, low], 3)
            }
        },
    }
}

/// Encodes `values`; gives dictionary, tokens and misses.
#[cfg(feature = "pack")]
pub(super) fn encode(values: &[u32], dictionary_out: &mut Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    use super::Map;
    let mut counts: Map<u32, u32> = Map::default();
    for value in values {
        *counts.entry(*value).or_default() += 1;
    }
    let [one, two, three] = dictionary(counts.into_iter(), 0);
    for words in [&one, &two, &three] {
        dictionary_out.extend((words.len() as u16).to_be_bytes());
    }
    dictionary_out.extend(one.iter().flat_map(|v| v.to_be_bytes()));
    let mut last = 0u32;
    for value in &two {
        dictionary_out.extend(value.wrapping_sub(last).to_be_bytes());
        last = *value;
    }
    let rows = rows(two.len());
    let numbers: Map<u32, usize> = one
        .iter()
        .chain(&two)
        .enumerate()
        .map(|(number, value)| (*value, number))
        .collect();
    let (mut tokens, mut misses) = (Vec::new(), Vec::new());
    for value in values {
        match numbers.get(value) {
            None => {
                tokens.push(ESCAPE);
                misses.extend(value.to_be_bytes());
            }
            Some(number) => {
                let (token, size) = token(*number, rows);
                tokens.extend_from_slice(&token[..size]);
            }
        }
    }
    (tokens, misses)
}
