//! Random numbers, drawn on the host so that a seed gives the same clip on every device.

use burn::tensor::{Device, Shape, Tensor, TensorData};
use chacha20::ChaCha12Rng;
use rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

/// A seeded source of standard normal noise, the same on every machine.
#[derive(Debug)]
pub struct Noise(ChaCha12Rng);

impl Noise {
    /// Starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha12Rng::seed_from_u64(seed))
    }

    /// Draws a tensor of `shape`, in f32.
    pub fn normal<const D: usize>(&mut self, shape: [usize; D], device: &Device) -> Tensor<D> {
        let count = shape.iter().product();
        let values: Vec<f32> = StandardNormal
            .sample_iter(&mut self.0)
            .take(count)
            .collect();
        Tensor::from_data(TensorData::new(values, Shape::new(shape)), device)
    }
}
