use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::silu;
use burn::tensor::{DType, Device, Tensor};

/// Sinusoidal embedding of timesteps (or of the frame stride), cosines before sines.
///
/// `timesteps`: `[batch]` → `[batch, width]` in float32; frequencies fall from 1 to almost 1/10000.
///
/// # Panics
/// If `width` is odd.
pub fn timestep_embedding(timesteps: Tensor<1>, width: usize) -> Tensor<2> {
    assert!(
        width.is_multiple_of(2),
        "timesteps embed into an even width, not {width}"
    );
    let half = width / 2;
    let frequencies: Vec<f32> = (0..half)
        .map(|i| (-(10_000f32.ln()) * i as f32 / half as f32).exp())
        .collect();
    let timesteps = timesteps.cast(DType::F32); // float16 cannot tell all of them apart
    let frequencies = Tensor::<1>::from_floats(frequencies.as_slice(), &timesteps.device());
    let angles = timesteps.unsqueeze_dim::<2>(1) * frequencies.unsqueeze_dim::<2>(0);
    Tensor::cat(vec![angles.clone().cos(), angles.sin()], 1)
}

/// Linear, SiLU, linear: what makes an embedding of a number into a condition of the UNet.
#[derive(Module, Debug)]
pub struct TimestepMlp {
    /// Into the hidden width.
    pub fc1: Linear,
    /// Between hidden widths.
    pub fc2: Linear,
}

impl TimestepMlp {
    /// Initialises the layers.
    pub fn new(width: usize, hidden: usize, device: &Device) -> Self {
        Self {
            fc1: LinearConfig::new(width, hidden).init(device),
            fc2: LinearConfig::new(hidden, hidden).init(device),
        }
    }

    /// `[batch]` numbers → `[batch, hidden]`, in the dtype of the weights.
    pub fn forward(&self, numbers: Tensor<1>) -> Tensor<2> {
        let weight = self.fc1.weight.val();
        let embedding = timestep_embedding(numbers, weight.dims()[0]).cast(weight.dtype());
        self.fc2.forward(silu(self.fc1.forward(embedding)))
    }
}
