use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::{Embedding, EmbeddingConfig, Initializer, Linear, LinearConfig};
use burn::tensor::{DType, Device, Int, Tensor};
use divot_nn::ops::linear;
use divot_nn::{
    CheckSizes, LayerNorm, LayerNormConfig, SizeError, TransformerBlock, TransformerBlockConfig,
    check_depths, check_divides, check_widths,
};

/// Sizes of OpenCLIP's text tower.
#[derive(Config, Debug)]
pub struct TextTowerConfig {
    /// Number of token positions.
    pub context_length: usize,
    /// Number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the tokens.
    pub width: usize,
    /// Number of transformer blocks.
    pub layers: usize,
    /// Number of attention heads. It divides the width.
    pub heads: usize,
    /// Width of the joint space of images and texts.
    pub embed_dim: usize,
}

/// OpenCLIP's text transformer: causal attention, pooled at the end-of-text token.
#[derive(Module, Debug)]
pub struct TextTower {
    /// `[vocab_size, width]`.
    pub token_embedding: Embedding,
    /// `[context_length, width]`.
    pub positional_embedding: Param<Tensor<2>>,
    /// The transformer.
    pub blocks: Vec<TransformerBlock>,
    /// Norm after the blocks.
    pub ln_final: LayerNorm,
    /// Pooled token to the joint space, without bias.
    pub proj: Linear,
    /// Logarithm of the factor of the similarities, a single number.
    pub logit_scale: Param<Tensor<1>>,
}

impl TextTowerConfig {
    /// The text tower of OpenCLIP's ViT-H/14.
    pub fn vit_h_14() -> Self {
        Self::new(77, 49_408, 1024, 24, 16, 1024)
    }

    /// Initialises the tower.
    pub fn init(&self, device: &Device) -> TextTower {
        let block = TransformerBlockConfig::new(self.width, self.heads);
        TextTower {
            token_embedding: EmbeddingConfig::new(self.vocab_size, self.width)
                .with_initializer(Initializer::Normal {
                    mean: 0.0,
                    std: 0.02,
                })
                .init(device),
            positional_embedding: Initializer::Normal {
                mean: 0.0,
                std: 0.01,
            }
            .init([self.context_length, self.width], device),
            blocks: (0..self.layers).map(|_| block.init(device)).collect(),
            ln_final: LayerNormConfig::new(self.width).init(device),
            proj: LinearConfig::new(self.width, self.embed_dim)
                .with_bias(false)
                .init(device),
            logit_scale: Initializer::Constant {
                value: (1.0f64 / 0.07).ln(),
            }
            .init([1], device),
        }
    }
}

impl CheckSizes for TextTowerConfig {
    fn check_sizes(&self) -> Result<(), SizeError> {
        check_widths(&[
            ("context_length", self.context_length),
            ("vocab_size", self.vocab_size),
            ("width", self.width),
            ("embed_dim", self.embed_dim),
        ])?;
        check_depths(&[("layers", self.layers)])?;
        check_divides(("heads", self.heads), ("width", self.width))
    }
}

impl TextTower {
    /// Computes the features of texts in the joint space, in `dtype`.
    ///
    /// `ids`: `[batch, context_length]`, from [`BpeTokenizer`](crate::BpeTokenizer). The end-of-text token
    /// has the highest id, and the feature is that of its first position. Returns `[batch, embed_dim]`, not
    /// yet [normalised](crate::normalize).
    pub fn text_features(&self, ids: Tensor<2, Int>, dtype: DType) -> Tensor<2> {
        let x = self.states(&ids, self.blocks.len(), dtype);
        let [batch, _, width] = x.dims();
        let end_of_text = ids.argmax(1).reshape([batch, 1, 1]);
        let pooled = x
            .gather(1, end_of_text.expand([batch, 1, width]))
            .squeeze_dim::<2>(1);
        linear(&self.proj, pooled)
    }

    /// Computes the states of all tokens after the last but one block, through the final norm, in `dtype`.
    /// DynamiCrafter's UNet attends to them.
    ///
    /// `ids`: `[batch, context_length]`. Returns `[batch, context_length, width]`.
    pub fn penultimate_states(&self, ids: Tensor<2, Int>, dtype: DType) -> Tensor<3> {
        self.states(&ids, self.blocks.len().saturating_sub(1), dtype)
    }

    /// Computes the states after the first `blocks` blocks, through the final norm.
    fn states(&self, ids: &Tensor<2, Int>, blocks: usize, dtype: DType) -> Tensor<3> {
        let tokens = ids.dims()[1];
        let position = self.positional_embedding.val().narrow(0, 0, tokens);
        let position = position.cast(dtype).unsqueeze::<3>();
        let x = self.token_embedding.forward(ids.clone()).cast(dtype) + position;
        let blocks = self.blocks.iter().take(blocks);
        let x = blocks.fold(x, |x, block| block.forward(x, true));
        self.ln_final.forward(x)
    }
}
