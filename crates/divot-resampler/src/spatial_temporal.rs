use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{Device, Tensor};
use divot_nn::{LayerNorm, LayerNormConfig, TransformerBlock, TransformerBlockConfig};

/// Sizes of a [`SpatialTemporalTransformer`].
#[derive(Config, Debug)]
pub struct SpatialTemporalTransformerConfig {
    /// Number of frames.
    pub frames: usize,
    /// Number of positions in a frame.
    pub positions: usize,
    /// Width of the tokens, divisible by the number of heads.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Number of attention heads.
    #[config(default = 8)]
    pub heads: usize,
}

/// Attention between all pooled tokens of all frames.
///
/// The position of a token is the sum of a spatial and a temporal embedding. The pre-norm blocks have exact
/// GELU and epsilon 1e-6. The layer norm after them has epsilon 1e-5.
#[derive(Module, Debug)]
pub struct SpatialTemporalTransformer {
    /// `[positions, width]`.
    pub spatial_embedding: Param<Tensor<2>>,
    /// `[frames, width]`.
    pub temporal_embedding: Param<Tensor<2>>,
    /// The transformer.
    pub blocks: Vec<TransformerBlock>,
    /// Norm after the blocks.
    pub norm: LayerNorm,
}

impl SpatialTemporalTransformerConfig {
    /// Initialises the transformer. The tokens come from a layer norm. Much smaller embeddings are lost among them, and
    /// larger ones drown what differs between clips.
    pub fn init(&self, device: &Device) -> SpatialTemporalTransformer {
        let embedding = Initializer::Normal {
            mean: 0.0,
            std: 0.4,
        };
        let block = TransformerBlockConfig::new(self.width, self.heads).with_epsilon(1e-6);
        SpatialTemporalTransformer {
            spatial_embedding: embedding.init([self.positions, self.width], device),
            temporal_embedding: embedding.init([self.frames, self.width], device),
            blocks: (0..self.depth).map(|_| block.init(device)).collect(),
            norm: LayerNormConfig::new(self.width).init(device),
        }
    }
}

impl SpatialTemporalTransformer {
    /// Returns the positions of all tokens, `[frames·positions, width]`.
    pub(crate) fn positions(&self) -> Tensor<2> {
        let spatial = self.spatial_embedding.val().unsqueeze_dim::<3>(0);
        let temporal = self.temporal_embedding.val().unsqueeze_dim::<3>(1);
        (temporal + spatial).flatten(0, 1)
    }

    /// Applies the transformer to `[batch, frames·positions, width]`, frame by frame.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let positions = self.positions().cast(x.dtype());
        let x = x + positions.unsqueeze::<3>();
        let x = self
            .blocks
            .iter()
            .fold(x, |x, block| block.forward(x, false));
        self.norm.forward(x)
    }
}
