//! Random numbers.

use chacha20::ChaCha8Rng;
use rand_core::Rng;

use crate::dataset::generator;

/// Draws numbers that are a function of a key.
pub(super) struct Draw(ChaCha8Rng);

impl Draw {
    /// Different keys give independent numbers.
    pub fn new(key: [u64; 4]) -> Self {
        Self(generator(key))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number from [0, 1).
    pub fn unit(&mut self) -> f32 {
        // An f32 holds 24 bits.
        (self.bits() >> 40) as f32 / (1 << 24) as f32
    }

    /// A number from [low, high).
    pub fn within(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// Whether something of this probability happens.
    pub fn chance(&mut self, probability: f64) -> bool {
        f64::from(self.unit()) < probability
    }

    /// A whole number below `count`, which is not 0.
    pub fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.bits()) * count as u128) >> 64) as usize
    }

    /// One of some things.
    pub fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Puts things into random order.
    pub fn shuffle<T>(&mut self, things: &mut [T]) {
        for last in (1..things.len()).rev() {
            things.swap(last, self.below(last + 1));
        }
    }

    /// Two independent numbers of mean 0 and variance 1, close to normal: sums of four uniform bytes.
    pub fn normals(&mut self) -> [f32; 2] {
        // Bytes have a variance of (256² - 1) / 12.
        const SCALE: f32 = 1.0 / 147.8;
        let bytes = self.bits().to_le_bytes();
        let sum = |bytes: &[u8]| bytes.iter().map(|&byte| f32::from(byte)).sum::<f32>();
        [&bytes[..4], &bytes[4..]].map(|bytes| (sum(bytes) - 510.0) * SCALE)
    }
}
