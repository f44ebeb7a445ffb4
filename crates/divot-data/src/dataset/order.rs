//! The order of samples: a function of the seed, the epoch and the position, without a list in memory.

use std::ops::Range;

/// Groups whose samples are mixed with each other. Two archives stay unpacked at a time.
const WINDOW: usize = 2;

/// The order in which the samples of a source are seen. Each is seen once an epoch.
///
/// Groups (archives) come in random order, two at a time, and the samples of the two are mixed.
#[derive(Debug, Clone)]
pub struct Order {
    groups: Vec<Range<usize>>,
    len: usize,
    seed: u64,
}

impl Order {
    /// An order of the samples in `groups`, which follow each other.
    pub fn new(groups: Vec<Range<usize>>, seed: u64) -> Self {
        Self {
            len: groups.iter().map(Range::len).sum(),
            groups,
            seed,
        }
    }

    /// The epoch of a position, counted from the beginning of training, and the sample that stands there.
    ///
    /// # Panics
    /// If there are no samples.
    pub fn at(&self, position: u64) -> (u64, usize) {
        let len = self.len as u64;
        let (epoch, place) = (position / len, position % len);
        let key = mix(self.seed ^ mix(epoch));
        let count = self.groups.len();
        let groups = Permutation::new(count as u64, key);
        let mut left = place as usize;
        for (number, start) in (0..count).step_by(WINDOW).enumerate() {
            let window = (start..count.min(start + WINDOW)).map(|i| groups.at(i as u64) as usize);
            let window: Vec<&Range<usize>> = window.map(|i| &self.groups[i]).collect();
            let size: usize = window.iter().map(|group| group.len()).sum();
            if left >= size {
                left -= size;
                continue;
            }
            let inside = Permutation::new(size as u64, mix(key ^ (number as u64 + 1)));
            let mut left = inside.at(left as u64) as usize;
            for group in window {
                if left < group.len() {
                    return (epoch, group.start + left);
                }
                left -= group.len();
            }
        }
        unreachable!("the place is below the number of samples")
    }
}

/// A random permutation of the numbers below `len`.
///
/// A Feistel network permutes the numbers of an even count of bits; a number that falls outside goes through
/// it again ("Ciphers with Arbitrary Finite Domains", Black and Rogaway, 2002).
#[derive(Debug, Clone, Copy)]
struct Permutation {
    len: u64,
    half: u32,
    key: u64,
}

const ROUNDS: u64 = 4;

impl Permutation {
    fn new(len: u64, key: u64) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Self {
            len,
            half: bits.div_ceil(2).max(1),
            key,
        }
    }

    fn at(&self, index: u64) -> u64 {
        let mut value = index;
        loop {
            value = self.shuffled(value);
            if value < self.len {
                return value;
            }
        }
    }

    fn shuffled(&self, value: u64) -> u64 {
        let mask = (1 << self.half) - 1;
        let (mut left, mut right) = (value >> self.half, value & mask);
        for round in 0..ROUNDS {
            let scrambled = mix(self.key ^ mix(right ^ (round << 56))) & mask;
            (left, right) = (right, left ^ scrambled);
        }
        (left << self.half) | right
    }
}

/// Turns a number into one that looks random: the last step of SplitMix64.
pub(super) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sample_comes_once_an_epoch() {
        for len in [1, 2, 3, 7, 64, 65, 1000] {
            let order = Order::new(vec![0..len], 5);
            for epoch in 0..3 {
                let start = epoch * len as u64;
                let mut seen: Vec<usize> = (0..len as u64)
                    .map(|place| order.at(start + place))
                    .inspect(|&(found, _)| assert_eq!(found, epoch))
                    .map(|(_, index)| index)
                    .collect();
                seen.sort_unstable();
                assert!(seen.iter().copied().eq(0..len), "{len}");
            }
        }
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let first: Vec<_> = (0..100)
            .map(|p| Order::new(vec![0..100], 1).at(p).1)
            .collect();
        let next: Vec<_> = (100..200)
            .map(|p| Order::new(vec![0..100], 1).at(p).1)
            .collect();
        let other: Vec<_> = (0..100)
            .map(|p| Order::new(vec![0..100], 2).at(p).1)
            .collect();
        assert_ne!(first, next);
        assert_ne!(first, other);
        assert!(!first.is_sorted());
        // No sample tends to stay near its place: the mean distance of a shuffle is a third.
        let distance: usize = first.iter().enumerate().map(|(i, &s)| i.abs_diff(s)).sum();
        assert!((20..47).contains(&(distance / 100)), "{distance}");
    }

    #[test]
    fn at_most_two_groups_are_open_at_a_time() {
        let groups: Vec<_> = [0..10, 10..15, 15..40, 40..41, 41..60].into();
        let order = Order::new(groups.clone(), 9);
        let seen: Vec<usize> = (0..60).map(|place| order.at(place).1).collect();
        let group = |sample: usize| groups.iter().position(|g| g.contains(&sample)).unwrap();
        let mut finished = Vec::new();
        let mut open: Vec<usize> = Vec::new();
        for (place, &sample) in seen.iter().enumerate() {
            let group = group(sample);
            assert!(!finished.contains(&group));
            if !open.contains(&group) {
                open.push(group);
            }
            assert!(open.len() <= WINDOW);
            open.retain(|&g| {
                let left = seen[place + 1..].iter().any(|s| groups[g].contains(s));
                if !left {
                    finished.push(g);
                }
                left
            });
        }
        let mut sorted = seen;
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..60));
    }
}
