use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::module::adaptive_avg_pool2d;
use burn::tensor::{Device, Tensor};

use divot_nn::ops::linear;
use divot_nn::{
    CheckSizes, LayerNorm, LayerNormConfig, SizeError, check_depths, check_divides, check_widths,
};

use crate::{
    PerceiverResampler, PerceiverResamplerConfig, SpatialTemporalTransformer,
    SpatialTemporalTransformerConfig, TemporalTransformer, TemporalTransformerConfig,
};

divot_nn::config! {
    /// Sizes of a [`VideoResampler`].
    pub struct VideoResamplerConfig {
        /// Width of the ViT's tokens.
        pub input_dim: usize,
        /// Width of the tokens after the temporal transformer.
        pub hidden_dim: usize,
        /// Width inside the temporal transformer.
        pub temporal_width: usize,
    }
    defaults {
        /// Number of frames.
        pub frames, with_frames: usize = 5,
        /// Blocks of the temporal transformer.
        pub temporal_depth, with_temporal_depth: usize = 6,
        /// Heads of the temporal transformer.
        pub temporal_heads, with_temporal_heads: usize = 12,
        /// Height and width of the pooled grid.
        pub pool_size, with_pool_size: usize = 5,
        /// Blocks of the spatial-temporal transformer.
        pub spatial_temporal_depth, with_spatial_temporal_depth: usize = 4,
        /// Heads of the spatial-temporal transformer.
        pub spatial_temporal_heads, with_spatial_temporal_heads: usize = 8,
        /// Layers of the Perceiver Resampler.
        pub resampler_depth, with_resampler_depth: usize = 6,
        /// Heads of the Perceiver Resampler.
        pub resampler_heads, with_resampler_heads: usize = 16,
        /// Width of a head of the Perceiver Resampler.
        pub resampler_head_dim, with_resampler_head_dim: usize = 64,
        /// Number of video tokens.
        pub tokens, with_tokens: usize = 64,
        /// Width of a video token.
        pub token_dim, with_token_dim: usize = 256,
        /// Whether the tokens come from the Perceiver Resampler. Without it, they are the patch-position
        /// dependent features of the spatial-temporal transformer (paper, section 4.3, question 1, and
        /// table 8): `frames`·`pool_size`² tokens of width `hidden_dim`.
        pub perceiver, with_perceiver: bool = true,
        /// Whether the tokenizer is variational: each number of a token has a mean and a variance (paper,
        /// section 4.3, question 1).
        pub variational, with_variational: bool = false,
    }
}

/// The networks of the Divot tokenizer after its ViT.
#[derive(Module, Debug)]
pub struct VideoResampler {
    /// Fuses each position over time.
    pub temporal: TemporalTransformer,
    /// Norm of the pooled tokens, epsilon 1e-6.
    pub norm: LayerNorm,
    /// Fuses all pooled tokens.
    pub spatial_temporal: SpatialTemporalTransformer,
    /// Reduces them to the video tokens. Without it, the fused tokens are the result.
    pub resampler: Option<PerceiverResampler>,
    /// From the mean of each token to the logarithm of its variance. Only a variational tokenizer has it.
    pub log_variance: Option<Linear>,
    /// Height and width of the pooled grid.
    pub pool_size: usize,
}

impl VideoResamplerConfig {
    /// The released tokenizer: 64 tokens of width 256 (171.6 M parameters without the ViT).
    pub fn divot() -> Self {
        Self::new(1280, 1024, 768)
    }

    /// Returns the number of output tokens, and their width.
    pub fn output_size(&self) -> [usize; 2] {
        match self.perceiver {
            true => [self.tokens, self.token_dim],
            false => [self.frames * self.pool_size.pow(2), self.hidden_dim],
        }
    }

    /// Initialises the network.
    pub fn init(&self, device: &Device) -> VideoResampler {
        let spatial_temporal = SpatialTemporalTransformerConfig::new(
            self.frames,
            self.pool_size.pow(2),
            self.hidden_dim,
            self.spatial_temporal_depth,
        )
        .with_heads(self.spatial_temporal_heads)
        .init(device);
        VideoResampler {
            temporal: TemporalTransformerConfig::new(
                self.frames,
                self.input_dim,
                self.temporal_width,
                self.hidden_dim,
                self.temporal_depth,
            )
            .with_heads(self.temporal_heads)
            .init(device),
            norm: LayerNormConfig::new(self.hidden_dim)
                .with_epsilon(1e-6)
                .init(device),
            resampler: self.perceiver.then(|| {
                PerceiverResamplerConfig::new(
                    self.tokens,
                    self.hidden_dim,
                    self.hidden_dim,
                    self.token_dim,
                )
                .with_depth(self.resampler_depth)
                .with_heads(self.resampler_heads)
                .with_head_dim(self.resampler_head_dim)
                .init(device)
                .starting_at(spatial_temporal.positions())
            }),
            spatial_temporal,
            log_variance: self.variational.then(|| {
                let [_, width] = self.output_size();
                LinearConfig::new(width, width).init(device)
            }),
            pool_size: self.pool_size,
        }
    }
}

impl CheckSizes for VideoResamplerConfig {
    fn check_sizes(&self) -> Result<(), SizeError> {
        check_widths(&[
            ("input_dim", self.input_dim),
            ("hidden_dim", self.hidden_dim),
            ("temporal_width", self.temporal_width),
            ("frames", self.frames),
            ("pool_size", self.pool_size),
            ("resampler_heads", self.resampler_heads),
            ("resampler_head_dim", self.resampler_head_dim),
            ("tokens", self.tokens),
            ("token_dim", self.token_dim),
        ])?;
        check_depths(&[
            ("temporal_depth", self.temporal_depth),
            ("spatial_temporal_depth", self.spatial_temporal_depth),
            ("resampler_depth", self.resampler_depth),
        ])?;
        check_divides(
            ("temporal_heads", self.temporal_heads),
            ("temporal_width", self.temporal_width),
        )?;
        check_divides(
            ("spatial_temporal_heads", self.spatial_temporal_heads),
            ("hidden_dim", self.hidden_dim),
        )
    }
}

impl VideoResampler {
    /// Computes the video tokens of clips.
    ///
    /// `patches`: `[batch, frames, patches, input_dim]`, where the patches are a square grid, row by row.
    /// Returns `[batch, tokens, token_dim]`, with the sizes of [`VideoResamplerConfig::output_size`]. For a
    /// variational tokenizer these are the means.
    ///
    /// # Panics
    /// If the number of patches is not a square.
    pub fn forward(&self, patches: Tensor<4>) -> Tensor<3> {
        let pooled = self.norm.forward(self.pool(self.temporal(patches)));
        let tokens = self.spatial_temporal.forward(pooled);
        match &self.resampler {
            Some(resampler) => resampler.forward(tokens),
            None => tokens,
        }
    }

    /// Computes means and log-variances of the video tokens, each with the shape of the result of
    /// [`forward`](Self::forward). Log-variances are clamped to [-30, 20]. Returns `None` if the tokenizer is
    /// not variational.
    ///
    /// # Panics
    /// If the number of patches is not a square.
    pub fn distribution(&self, patches: Tensor<4>) -> Option<[Tensor<3>; 2]> {
        let log_variance = self.log_variance.as_ref()?;
        let mean = self.forward(patches);
        let logvar = linear(log_variance, mean.clone()).clamp(-30.0, 20.0);
        Some([mean, logvar])
    }

    /// Applies the temporal transformer to every position: `[batch, frames, patches, input_dim]` →
    /// `[batch, patches, frames, hidden_dim]`.
    pub fn temporal(&self, patches: Tensor<4>) -> Tensor<4> {
        let [batch, frames, positions, width] = patches.dims();
        let x = patches
            .swap_dims(1, 2)
            .reshape([batch * positions, frames, width]);
        let x = self.temporal.forward(x);
        let hidden = x.dims()[2];
        x.reshape([batch, positions, frames, hidden])
    }

    /// Averages the grid of each frame down to `pool_size` × `pool_size`:
    /// `[batch, patches, frames, hidden_dim]` → `[batch, frames·pool_size², hidden_dim]`.
    ///
    /// # Panics
    /// If the number of patches is not a square.
    pub fn pool(&self, x: Tensor<4>) -> Tensor<3> {
        let [batch, positions, frames, hidden] = x.dims();
        let side = positions.isqrt();
        assert_eq!(side * side, positions, "the patches form a square grid");
        let grid = x
            .permute([0, 2, 3, 1])
            .reshape([batch * frames, hidden, side, side]);
        adaptive_avg_pool2d(grid, [self.pool_size; 2])
            .reshape([batch, frames, hidden, self.pool_size.pow(2)])
            .swap_dims(2, 3)
            .reshape([batch, frames * self.pool_size.pow(2), hidden])
    }
}
