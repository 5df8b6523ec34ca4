//! An order in which what is alike is near: two builds of one library, or a library and its Python module, share most of
//! their code, but a frame only remembers what is in it.
//!
//! Each run of bytes is sampled: windows whose hash has a certain property, which are the same windows wherever the bytes
//! are. A run that shares enough of them with an earlier run of another file is put behind that one.

use std::collections::HashMap;

use rayon::prelude::*;

/// Bytes of a window: three or four instructions.
const WINDOW: usize = 16;
/// One window of so many (a power of two) is a sample.
const SAMPLING: u32 = 64;
/// A run follows another if that has at least one of so many of its samples.
const ENOUGH: usize = 8;

/// The numbers of `runs`, each a file's number and bytes, in an order in which similar ones are neighbours.
pub fn order(runs: &[(usize, &[u8])]) -> Vec<usize> {
    let samples: Vec<Vec<u64>> = runs.par_iter().map(|(_, bytes)| samples(bytes)).collect();
    // Of each sample, the first run that has it.
    let mut holders: HashMap<u64, usize> = HashMap::new();
    let mut leaders: Vec<usize> = Vec::with_capacity(runs.len());
    for (number, (file, _)) in runs.iter().enumerate() {
        let mut votes: HashMap<usize, usize> = HashMap::new();
        for sample in &samples[number] {
            let holder = *holders.entry(*sample).or_insert(number);
            *votes
                .entry(leaders.get(holder).copied().unwrap_or(number))
                .or_default() += 1;
        }
        let best = votes
            .into_iter()
            .filter(|(leader, _)| runs[*leader].0 != *file)
            .max_by_key(|(leader, votes)| (*votes, std::cmp::Reverse(*leader)))
            .filter(|(_, votes)| votes * ENOUGH >= samples[number].len());
        leaders.push(best.map_or(number, |(leader, _)| leader));
    }
    let mut order: Vec<usize> = (0..runs.len()).collect();
    order.sort_by_key(|number| (leaders[*number], *number));
    order
}

/// Hashes of the windows that are samples, each once.
fn samples(bytes: &[u8]) -> Vec<u64> {
    let mut out: Vec<u64> = bytes
        .windows(WINDOW)
        .filter_map(|window| {
            let (low, high) = window.split_first_chunk::<8>()?;
            let high = u64::from_le_bytes(*high.first_chunk()?);
            let low = u64::from_le_bytes(*low);
            let hash = (low ^ high.rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let hash = (hash ^ hash >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
            (hash >> (64 - SAMPLING.ilog2()) == 0).then_some(hash ^ low)
        })
        .collect();
    out.sort_unstable();
    out.dedup();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that look random, always the same for a seed.
    fn noise(seed: u64, size: usize) -> Vec<u8> {
        let mut state = seed;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        std::iter::repeat_with(next).take(size).collect()
    }

    #[test]
    fn twins_become_neighbours() {
        let (a, b, c) = (noise(1, 40_000), noise(2, 40_000), noise(3, 40_000));
        // The same code elsewhere: shifted, with a change here and there.
        let mut twin = noise(4, 100);
        twin.extend(&a);
        twin.iter_mut().step_by(200).for_each(|byte| *byte ^= 1);
        let runs = [(0, &a[..]), (0, &b), (1, &c), (1, &twin)];
        assert_eq!(order(&runs), [0, 3, 1, 2]);
    }

    #[test]
    fn strangers_and_neighbours_of_one_file_stay_where_they_are() {
        let a = noise(1, 40_000);
        let runs = [(0, &a[..]), (0, &[][..]), (0, &a), (1, &noise(2, 40_000))];
        assert_eq!(order(&runs), [0, 1, 2, 3]);
    }
}
