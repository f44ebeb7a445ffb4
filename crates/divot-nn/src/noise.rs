//! Random numbers, drawn on the host so that a seed gives the same clip on every device.

use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
use chacha20::ChaCha12Rng;
use rand_core::SeedableRng;
use rand_distr::{Distribution, Open01, StandardNormal};

/// A seeded source of random numbers, the same on every machine.
#[derive(Debug)]
pub struct Noise(ChaCha12Rng);

impl Noise {
    /// Creates a source with this seed.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha12Rng::seed_from_u64(seed))
    }

    /// Starts where `key` says: different keys give independent numbers.
    ///
    /// Training draws everything by such keys (seed, step, use and so on), so that what is drawn does not
    /// depend on what was drawn before.
    pub fn keyed(key: [u64; 4]) -> Self {
        let mut seed = [0; 32];
        for (bytes, part) in seed.chunks_exact_mut(8).zip(key) {
            bytes.copy_from_slice(&part.to_le_bytes());
        }
        Self(ChaCha12Rng::from_seed(seed))
    }

    /// Draws one number, uniform in the open interval (0, 1).
    pub fn uniform(&mut self) -> f64 {
        Open01.sample(&mut self.0)
    }

    /// Draws a tensor of `shape` from the standard normal distribution, in f32.
    pub fn normal<const D: usize>(&mut self, shape: [usize; D], device: &Device) -> Tensor<D> {
        let count = shape.iter().product();
        let values: Vec<f32> = StandardNormal
            .sample_iter(&mut self.0)
            .take(count)
            .collect();
        let data = TensorData::new(values, Shape::new(shape));
        Tensor::from_data(data, (device, DType::F32))
    }
}
