use burn::module::{Initializer, Module};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Tensor};
use divot_nn::ops::{linear, silu};
use divot_nn::{
    CheckSizes, LayerNorm, LayerNormConfig, Loss, Noise, SizeError, check_depths, check_even,
    check_widths, timestep_embedding,
};

use crate::diffusion::Diffusion;
use crate::{Prediction, SampleOptions, Schedule, TokenHead};

divot_nn::config! {
    /// Sizes of a [`DenoisingMlp`]; the defaults are those of "Autoregressive Image Generation without
    /// Vector Quantization", as far as it states them.
    #[derive(PartialEq)]
    pub struct DenoisingMlpConfig {
    }
    defaults {
        /// Width of a token.
        pub dim, with_dim: usize = 256,
        /// Width of the condition, which is the head's parameters for each token.
        pub cond_dim, with_cond_dim: usize = 1024,
        /// Width of the blocks.
        pub width, with_width: usize = 1024,
        /// Number of blocks.
        pub depth, with_depth: usize = 3,
        /// What the network predicts.
        pub prediction, with_prediction: Prediction = Prediction::Epsilon,
        /// How noise is added.
        pub schedule, with_schedule: Schedule = Schedule::Cosine,
        /// Timesteps of the schedule.
        pub train_steps, with_train_steps: usize = 1000,
        /// Number of timesteps that sampling visits, at most `train_steps`.
        pub sampling_steps, with_sampling_steps: usize = 100,
        /// Random timesteps per token in a loss. More of them make the gradient less noisy, and cost little
        /// because the network is small beside the language model.
        pub timesteps_per_token, with_timesteps_per_token: usize = 4,
        /// Width of a timestep's sinusoidal embedding; even.
        pub timestep_width, with_timestep_width: usize = 256,
    }
}

/// A residual block with an adaptive layer norm: x + gate·mlp(norm(x)·(1 + scale) + shift), where shift,
/// scale and gate come from a condition.
#[derive(Module, Debug)]
pub struct AdaLnBlock {
    /// Condition to shift, scale and gate side by side, `[width]` → `[3·width]`.
    pub modulation: Linear,
    /// Norm before the MLP.
    pub norm: LayerNorm,
    /// `[width]` → `[width]`.
    pub fc1: Linear,
    /// `[width]` → `[width]`, after a SiLU.
    pub fc2: Linear,
}

/// A small denoising MLP conditioned on each token's hidden state, from the paper's ablation (section 3.2
/// and figure 4b; ε- and v-prediction in table 8).
///
/// The network is that of "Autoregressive Image Generation without Vector Quantization" (MAR,
/// section 3): residual MLP blocks with adaptive layer norms. It predicts no variance. A sampling step
/// uses the variance of the forward process given the clean token.
#[derive(Module, Debug)]
pub struct DenoisingMlp {
    /// Noisy token in, `[dim]` → `[width]`.
    pub input: Linear,
    /// First layer of the timestep's MLP, `[timestep_width]` → `[width]`.
    pub timestep1: Linear,
    /// Second layer of the timestep's MLP, `[width]` → `[width]`, after a SiLU.
    pub timestep2: Linear,
    /// Condition in, `[cond_dim]` → `[width]`.
    pub condition: Linear,
    /// Blocks.
    pub blocks: Vec<AdaLnBlock>,
    /// Condition to shift and scale of the last norm side by side, `[width]` → `[2·width]`.
    pub modulation: Linear,
    /// Norm after the blocks.
    pub norm: LayerNorm,
    /// Prediction out, `[width]` → `[dim]`.
    pub output: Linear,
    #[module(skip)]
    config: DenoisingMlpConfig,
    #[module(skip)]
    diffusion: Diffusion,
}

impl CheckSizes for DenoisingMlpConfig {
    fn check_sizes(&self) -> Result<(), SizeError> {
        check_widths(&[
            ("token width", self.dim),
            ("condition width", self.cond_dim),
            ("denoiser width", self.width),
            ("train steps", self.train_steps),
            ("sampling steps", self.sampling_steps),
            ("timesteps per token", self.timesteps_per_token),
        ])?;
        check_depths(&[("denoiser depth", self.depth)])?;
        check_widths(&[("timestep width", self.timestep_width)])?;
        check_even("timestep width", self.timestep_width)?;
        if self.sampling_steps > self.train_steps {
            return Err(SizeError::new(format!(
                "{} sampling steps are more than the {} train steps",
                self.sampling_steps, self.train_steps
            )));
        }
        Ok(())
    }
}

impl DenoisingMlpConfig {
    /// Initialises the head. The modulations and the last layer start at zero, which makes the first
    /// prediction zero.
    pub fn init(&self, device: &Device) -> DenoisingMlp {
        let width = self.width;
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        let zero = |from, to| {
            LinearConfig::new(from, to)
                .with_initializer(Initializer::Zeros)
                .init(device)
        };
        let norm = LayerNormConfig::new(width).with_epsilon(1e-6);
        DenoisingMlp {
            input: linear(self.dim, width),
            timestep1: linear(self.timestep_width, width),
            timestep2: linear(width, width),
            condition: linear(self.cond_dim, width),
            blocks: (0..self.depth)
                .map(|_| AdaLnBlock {
                    modulation: zero(width, 3 * width),
                    norm: norm.init(device),
                    fc1: linear(width, width),
                    fc2: linear(width, width),
                })
                .collect(),
            modulation: zero(width, 2 * width),
            norm: norm.init(device),
            output: zero(width, self.dim),
            diffusion: Diffusion::new(self.schedule, self.train_steps, self.prediction),
            config: self.clone(),
        }
    }
}

impl AdaLnBlock {
    /// Applies the block: `x`, `condition`: `[rows, width]` → `[rows, width]`.
    pub fn forward(&self, x: Tensor<2>, condition: Tensor<2>) -> Tensor<2> {
        let [shift, scale, gate] = split(linear(&self.modulation, condition));
        let hidden = self.norm.forward(x.clone()) * (scale + 1.0) + shift;
        x + gate * linear(&self.fc2, silu(linear(&self.fc1, hidden)))
    }
}

impl DenoisingMlp {
    /// Predicts ε or v, `[rows, dim]` in f32, computed in the type of the condition.
    ///
    /// # Arguments
    /// - `x`: noisy tokens, `[rows, dim]`.
    /// - `timesteps`: `[rows]`, or `[1]` if it is the same for all.
    /// - `condition`: `[rows, cond_dim]`.
    pub fn forward(&self, x: Tensor<2>, timesteps: Tensor<1>, condition: Tensor<2>) -> Tensor<2> {
        let dtype = condition.dtype();
        let time = timestep_embedding(timesteps, self.config.timestep_width).cast(dtype);
        let time = linear(&self.timestep2, silu(linear(&self.timestep1, time)));
        let condition = silu(time + linear(&self.condition, condition));
        let mut x = linear(&self.input, x.cast(dtype));
        for block in &self.blocks {
            x = block.forward(x, condition.clone());
        }
        let [shift, scale] = split(linear(&self.modulation, condition));
        let x = self.norm.forward(x) * (scale + 1.0) + shift;
        linear(&self.output, x).cast(DType::F32)
    }
}

/// Splits the last axis into N equal parts.
fn split<const N: usize>(x: Tensor<2>) -> [Tensor<2>; N] {
    let width = x.dims()[1] / N;
    std::array::from_fn(|part| x.clone().narrow(1, part * width, width))
}

impl TokenHead for DenoisingMlp {
    fn params_dim(&self) -> usize {
        self.config.cond_dim
    }

    fn dim(&self) -> usize {
        self.config.dim
    }

    /// Computes the squared error of the prediction for each token, averaged over its random timesteps and
    /// its width.
    fn loss(&self, params: Tensor<3>, targets: Tensor<3>, noise: &mut Noise) -> Loss {
        let [batch, tokens, _] = params.dims();
        assert_eq!(
            targets.dims(),
            [batch, tokens, self.dim()],
            "targets of a denoiser"
        );
        let repeats = self.config.timesteps_per_token;
        let rows = |x: Tensor<3>| x.flatten::<2>(0, 1).repeat_dim(0, repeats);
        let condition = rows(params);
        let mean = self
            .diffusion
            .loss(rows(targets.cast(DType::F32)), noise, |x, timesteps| {
                self.forward(x, timesteps, condition)
            });
        let count = batch * tokens;
        Loss {
            sum: mean * count as f64,
            count,
        }
    }

    fn sample(&self, params: Tensor<3>, options: &SampleOptions, noise: &mut Noise) -> Tensor<3> {
        let [batch, tokens, _] = params.dims();
        let device = params.device();
        let condition = params.flatten::<2>(0, 1);
        let sample = self.diffusion.sample(
            [batch * tokens, self.dim()],
            &device,
            self.config.sampling_steps,
            options.temperature,
            noise,
            |x, timestep| {
                let options = (&device, DType::F32);
                let timestep = Tensor::from_data([timestep as f32], options);
                self.forward(x, timestep, condition.clone())
            },
        );
        sample.reshape([batch, tokens, self.dim()])
    }
}
