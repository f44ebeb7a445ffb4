use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Tensor};
use divot_nn::ops::{linear, silu};
use divot_nn::timestep_embedding;

/// Linear, SiLU, linear: converts the embedding of a number to a condition of the UNet.
#[derive(Module, Debug)]
pub struct TimestepMlp {
    /// To the hidden width.
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

    /// Embeds `[batch]` numbers as `[batch, hidden]`, computed in `dtype`.
    pub fn forward(&self, numbers: Tensor<1>, dtype: DType) -> Tensor<2> {
        let [width, _] = self.fc1.weight.dims();
        let embedding = timestep_embedding(numbers, width).cast(dtype);
        linear(&self.fc2, silu(linear(&self.fc1, embedding)))
    }
}
