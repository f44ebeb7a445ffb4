//! The order of samples: a function of the seed and the position, without a list of samples in memory.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use chacha20::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// Groups whose samples are mixed with each other: two archives stay unpacked at a time.
const WINDOW: usize = 2;
/// How many stand-ins for a broken sample are of its own window.
const NEAR: u64 = 8;

/// The order in which the samples of a source are seen.
///
/// A position counts samples from the beginning of training; each sample is seen once an epoch. Groups
/// (archives) come in random order, two at a time, and the samples of the two are mixed. With a single group
/// all samples are mixed.
#[derive(Debug)]
pub struct Order {
    groups: Vec<Range<usize>>,
    len: u64,
    seed: u64,
    /// The epoch that was asked for last.
    latest: Mutex<Arc<Epoch>>,
}

/// The order of groups in an epoch.
#[derive(Debug)]
struct Epoch {
    number: u64,
    key: u64,
    groups: Permutation,
    /// The place in the epoch at which each window starts.
    starts: Vec<u64>,
}

impl Order {
    /// An order of the samples in `groups`, which begin at sample 0 and follow each other.
    pub fn new(mut groups: Vec<Range<usize>>, seed: u64) -> Self {
        groups.retain(|group| !group.is_empty());
        Self {
            len: groups.iter().map(|group| group.len() as u64).sum(),
            latest: Mutex::new(Arc::new(Epoch::new(0, &groups, seed))),
            groups,
            seed,
        }
    }

    /// How many samples an epoch has.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The epoch of a position, from 0.
    ///
    /// # Panics
    /// If there are no samples.
    pub fn epoch(&self, position: u64) -> u64 {
        position / self.len
    }

    /// The sample that stands at a position. `attempt` is 0 for the sample itself, and counts the stand-ins
    /// for it where it is broken, which are drawn anew each time.
    ///
    /// The first stand-ins are of the same window, whose archives are at hand; the others of anywhere.
    ///
    /// # Panics
    /// If there are no samples.
    pub fn sample(&self, position: u64, attempt: u64) -> usize {
        let drawn = |below: u64| {
            let drawn = uniform([self.seed, u64::MAX, position, attempt])();
            (drawn * below as f64) as u64
        };
        if attempt > NEAR {
            return drawn(self.len) as usize;
        }
        let epoch = self.plan(self.epoch(position));
        let place = position % self.len;
        let number = epoch.starts.partition_point(|&start| start <= place) - 1;
        let start = epoch.starts[number];
        let end = epoch.starts.get(number + 1).unwrap_or(&self.len);
        let size = end - start;
        let mut left = match attempt {
            0 => Permutation::new(size, mix(epoch.key ^ (number as u64 + 1))).at(place - start),
            _ => drawn(size),
        } as usize;
        for group in epoch.window(number, &self.groups) {
            if left < group.len() {
                return group.start + left;
            }
            left -= group.len();
        }
        unreachable!("a window is as long as its groups")
    }

    /// The position at which a sample stands in an epoch.
    ///
    /// # Panics
    /// If there is no such sample.
    pub fn position(&self, sample: usize, epoch: u64) -> u64 {
        let plan = self.plan(epoch);
        let group = self.groups.partition_point(|group| group.end <= sample);
        let number = plan.groups.place(group as u64) as usize / WINDOW;
        let mut left = sample - self.groups[group].start;
        let window = plan.window(number, &self.groups);
        left += window
            .take_while(|other| !other.contains(&sample))
            .map(Range::len)
            .sum::<usize>();
        let start = plan.starts[number];
        let end = plan.starts.get(number + 1).unwrap_or(&self.len);
        let samples = Permutation::new(end - start, mix(plan.key ^ (number as u64 + 1)));
        epoch * self.len + start + samples.place(left as u64)
    }

    fn plan(&self, number: u64) -> Arc<Epoch> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.number != number {
            *latest = Arc::new(Epoch::new(number, &self.groups, self.seed));
        }
        latest.clone()
    }
}

impl Epoch {
    fn new(number: u64, groups: &[Range<usize>], seed: u64) -> Self {
        let key = mix(seed ^ mix(number));
        let mut epoch = Self {
            number,
            key,
            groups: Permutation::new(groups.len() as u64, key),
            starts: Vec::new(),
        };
        let mut start = 0;
        for number in 0..groups.len().div_ceil(WINDOW) {
            epoch.starts.push(start);
            let lengths = epoch.window(number, groups).map(Range::len);
            start += lengths.sum::<usize>() as u64;
        }
        epoch
    }

    /// The groups of a window.
    fn window<'a>(
        &self,
        number: usize,
        groups: &'a [Range<usize>],
    ) -> impl Iterator<Item = &'a Range<usize>> {
        let places = number * WINDOW..groups.len().min((number + 1) * WINDOW);
        places.map(|place| &groups[self.groups.at(place as u64) as usize])
    }
}

/// Which source each step is of: one is drawn in proportion to its weight (FACTS: "Training data").
#[derive(Debug)]
pub(super) struct Mixture {
    seed: u64,
    /// Sums of the weights up to and with each source.
    sums: Vec<f64>,
}

impl Mixture {
    pub fn new(weights: impl Iterator<Item = f64>, seed: u64) -> Self {
        let mut sum = 0.0;
        let sums = weights.map(|weight| {
            sum += weight;
            sum
        });
        Self {
            sums: sums.collect(),
            seed,
        }
    }

    /// The source of a step.
    pub fn source(&self, step: u64) -> usize {
        let last = self.sums.len() - 1;
        let drawn = uniform([self.seed, u64::MAX, step, 0])() * self.sums[last];
        self.sums.partition_point(|&sum| sum <= drawn).min(last)
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

/// With 4 rounds some of the permutations of 3 to 16 numbers come several times as often as others.
const ROUNDS: u64 = 12;

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

    /// The index that `at` takes to `value`.
    fn place(&self, value: u64) -> u64 {
        let mut index = value;
        loop {
            index = self.unshuffled(index);
            if index < self.len {
                return index;
            }
        }
    }

    fn shuffled(&self, value: u64) -> u64 {
        let (mut left, mut right) = (value >> self.half, value & self.mask());
        for round in 0..ROUNDS {
            (left, right) = (right, left ^ self.scrambled(right, round));
        }
        (left << self.half) | right
    }

    fn unshuffled(&self, value: u64) -> u64 {
        let (mut left, mut right) = (value >> self.half, value & self.mask());
        for round in (0..ROUNDS).rev() {
            (left, right) = (right ^ self.scrambled(left, round), left);
        }
        (left << self.half) | right
    }

    fn scrambled(&self, half: u64, round: u64) -> u64 {
        mix(self.key ^ mix(half ^ (round << 56))) & self.mask()
    }

    fn mask(&self) -> u64 {
        (1 << self.half) - 1
    }
}

/// Turns a number into one that looks random: the last step of SplitMix64.
pub(super) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A generator of random numbers. Different keys give independent numbers.
pub(crate) fn generator(key: [u64; 4]) -> ChaCha8Rng {
    let mut seed = [0; 32];
    for (bytes, part) in seed.chunks_exact_mut(8).zip(key) {
        bytes.copy_from_slice(&part.to_le_bytes());
    }
    ChaCha8Rng::from_seed(seed)
}

/// Draws numbers from [0, 1). Different keys give independent numbers.
pub(super) fn uniform(key: [u64; 4]) -> impl FnMut() -> f64 {
    let mut rng = generator(key);
    // An f64 holds 53 bits.
    move || (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
// Groups are ranges.
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    /// `count` groups that follow each other, of 1 to 40 samples.
    fn groups(count: u64) -> Vec<Range<usize>> {
        let mut start = 0;
        let group = |number| {
            start += 1 + (mix(number) % 40) as usize;
            start
        };
        let ends: Vec<usize> = (0..count).map(group).collect();
        let starts = std::iter::once(0).chain(ends.iter().copied());
        starts.zip(&ends).map(|(start, &end)| start..end).collect()
    }

    fn epoch(order: &Order, number: u64) -> Vec<usize> {
        let positions = number * order.len()..(number + 1) * order.len();
        positions
            .inspect(|&position| assert_eq!(order.epoch(position), number))
            .map(|position| order.sample(position, 0))
            .collect()
    }

    #[test]
    fn each_sample_comes_once_an_epoch() {
        let single = [1, 2, 3, 7, 64, 65, 1000, 4097].map(|len| vec![0..len]);
        let several = [1, 2, 3, 4, 9, 50].map(groups);
        for groups in single.into_iter().chain(several) {
            let order = Order::new(groups, 5);
            for number in [0, 1, 2, 1_000_000_007] {
                let mut seen = epoch(&order, number);
                for (place, &sample) in seen.iter().enumerate() {
                    let position = number * order.len() + place as u64;
                    assert_eq!(order.position(sample, number), position);
                }
                seen.sort_unstable();
                assert!(seen.into_iter().eq(0..order.len() as usize));
            }
        }
    }

    #[test]
    fn ten_million_samples_need_no_list() {
        let order = Order::new(vec![0..10_000_000], 3);
        let mut seen: Vec<usize> = (0..100_000).map(|p| order.sample(p * 97, 0)).collect();
        // They are spread evenly.
        let low = seen.iter().filter(|&&sample| sample < 1_000_000).count();
        assert!((9_500..10_500).contains(&low), "{low}");
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 100_000);
        assert!(seen[99_999] < 10_000_000);
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let order = |seed| Order::new(vec![0..100], seed);
        let first = epoch(&order(1), 0);
        assert_ne!(first, epoch(&order(1), 1));
        assert_ne!(first, epoch(&order(2), 0));
        assert_eq!(first, epoch(&order(1), 0));
        assert!(!first.is_sorted());
        // No sample tends to stay near its place: the mean distance of a shuffle is a third.
        let distance: usize = first.iter().enumerate().map(|(i, &s)| i.abs_diff(s)).sum();
        assert!((20..47).contains(&(distance / 100)), "{distance}");
    }

    #[test]
    fn small_permutations_are_equally_likely() {
        // Chi-square per degree of freedom is about 1, with a deviation of at most sqrt(2 / 5).
        const KEYS: u64 = 60_000;
        for len in [3, 5, 8] {
            let mut counts = vec![0f64; len * len];
            for key in 0..KEYS {
                let permutation = Permutation::new(len as u64, mix(key));
                counts[permutation.at(0) as usize * len + permutation.at(1) as usize] += 1.0;
            }
            let pairs = len * (len - 1);
            let expected = KEYS as f64 / pairs as f64;
            let apart = (0..len * len).filter(|i| i / len != i % len);
            let chi: f64 = apart
                .map(|i| (counts[i] - expected).powi(2) / expected)
                .sum();
            assert!(chi / ((pairs - 1) as f64) < 3.0, "{len}: {chi}");
        }
    }

    #[test]
    fn at_most_two_groups_are_open_at_a_time() {
        let groups = groups(25);
        let order = Order::new(groups.clone(), 9);
        let seen = epoch(&order, 4);
        let group = |sample: usize| groups.partition_point(|group| group.end <= sample);
        let mut changes = 0;
        let mut open: Vec<usize> = Vec::new();
        for (place, &sample) in seen.iter().enumerate() {
            if !open.contains(&group(sample)) {
                open.push(group(sample));
            }
            assert!(open.len() <= WINDOW);
            open.retain(|&open| seen[place + 1..].iter().any(|&s| group(s) == open));
            changes += usize::from(place > 0 && group(sample) != group(seen[place - 1]));
        }
        // The two are mixed: one after the other, there would be 24 changes.
        assert!(changes > 100, "{changes}");
    }

    #[test]
    fn stand_ins_are_near_at_first_and_anywhere_later() {
        let groups = groups(25);
        let order = Order::new(groups.clone(), 9);
        let len = order.len();
        let window = |position: u64| {
            let epoch = order.plan(order.epoch(position));
            let number = epoch.starts.partition_point(|&s| s <= position % len) - 1;
            epoch.window(number, &groups).cloned().collect::<Vec<_>>()
        };
        for position in [0, 17, len - 1, len, 5 * len + 40] {
            let near = |attempt| {
                let sample = order.sample(position, attempt);
                window(position).iter().any(|group| group.contains(&sample))
            };
            assert!((0..=NEAR).all(near));
            let far = (NEAR + 1..200).filter(|&attempt| !near(attempt)).count();
            assert!(far > 100, "{far}");
        }
    }

    #[test]
    fn sources_are_drawn_in_proportion() {
        const STEPS: u64 = 40_000;
        let weights = [1.3, 1.0, 0.3, 0.3];
        let mixture = Mixture::new(weights.into_iter(), 7);
        let mut counts = [0f64; 4];
        for step in 0..STEPS {
            counts[mixture.source(step)] += 1.0;
        }
        for (count, weight) in counts.into_iter().zip(weights) {
            let share = weight / 2.9;
            let deviation = (share * (1.0 - share) * STEPS as f64).sqrt();
            assert!((count - share * STEPS as f64).abs() < 4.0 * deviation);
        }
        let other = Mixture::new(weights.into_iter(), 8);
        let same = (0..1000).filter(|&step| mixture.source(step) == other.source(step));
        assert!((200..600).contains(&same.count()));
    }
}
