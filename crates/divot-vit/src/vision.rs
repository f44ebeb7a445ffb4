use std::convert::Infallible;

use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use divot_nn::ops::{channels_last, conv2d_last, linear};
use divot_nn::{
    CheckSizes, LayerNorm, LayerNormConfig, SizeError, TransformerBlock, TransformerBlockConfig,
    check_depths, check_divides, check_widths,
};

/// Sizes of OpenCLIP's vision tower.
#[derive(Config, Debug)]
pub struct VisionTowerConfig {
    /// Height and width of the input image, in pixels.
    pub image_size: usize,
    /// Height and width of a patch, in pixels. It divides the image size.
    pub patch_size: usize,
    /// Width of the tokens.
    pub width: usize,
    /// Number of transformer blocks.
    pub layers: usize,
    /// Number of attention heads. It divides the width.
    pub heads: usize,
    /// Width of the joint space of images and texts.
    pub embed_dim: usize,
    /// Ratio of the width of the feed-forward layers to that of the tokens.
    #[config(default = 4.0)]
    pub mlp_ratio: f64,
}

/// OpenCLIP's vision transformer.
///
/// It has exact GELU, layer norms with epsilon 1e-5, and a norm before the first block.
#[derive(Module, Debug)]
pub struct VisionTower {
    /// Patches to tokens, without bias.
    pub patch_embed: Conv2d,
    /// The class token, `[width]`.
    pub class_embedding: Param<Tensor<1>>,
    /// `[1 + patches, width]`, the class token's first.
    pub positional_embedding: Param<Tensor<2>>,
    /// Norm before the blocks.
    pub ln_pre: LayerNorm,
    /// The transformer.
    pub blocks: Vec<TransformerBlock>,
    /// Norm of the class token after the blocks.
    pub ln_post: LayerNorm,
    /// Class token to the joint space, without bias.
    pub proj: Linear,
}

impl VisionTowerConfig {
    /// The released tokenizer's ViT-H/14: 632.1 M parameters.
    pub fn vit_h_14() -> Self {
        Self::new(224, 14, 1280, 32, 16, 1024)
    }

    /// Returns the number of patches in an image.
    pub fn patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    /// Initialises the tower.
    ///
    /// Positions start larger than patches. The layer norm before the blocks would otherwise make light and dark patches
    /// of a colour the same.
    pub fn init(&self, device: &Device) -> VisionTower {
        let position = Initializer::Normal {
            mean: 0.0,
            std: 1.0,
        };
        let embedding = Initializer::Normal {
            mean: 0.0,
            std: (self.width as f64).powf(-0.5),
        };
        let block =
            TransformerBlockConfig::new(self.width, self.heads).with_mlp_ratio(self.mlp_ratio);
        let norm = LayerNormConfig::new(self.width);
        VisionTower {
            patch_embed: Conv2dConfig::new([3, self.width], [self.patch_size; 2])
                .with_stride([self.patch_size; 2])
                .with_bias(false)
                .init(device),
            class_embedding: embedding.init([self.width], device),
            positional_embedding: position.init([1 + self.patches(), self.width], device),
            ln_pre: norm.init(device),
            blocks: (0..self.layers).map(|_| block.init(device)).collect(),
            ln_post: norm.init(device),
            proj: LinearConfig::new(self.width, self.embed_dim)
                .with_bias(false)
                .init(device),
        }
    }
}

impl CheckSizes for VisionTowerConfig {
    fn check_sizes(&self) -> Result<(), SizeError> {
        check_widths(&[
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
            ("width", self.width),
            ("embed_dim", self.embed_dim),
        ])?;
        check_depths(&[("layers", self.layers)])?;
        check_divides(
            ("patch_size", self.patch_size),
            ("image_size", self.image_size),
        )?;
        check_divides(("heads", self.heads), ("width", self.width))?;
        check_widths(&[(
            "width x mlp_ratio",
            (self.width as f64 * self.mlp_ratio) as usize,
        )])
    }
}

impl VisionTower {
    /// Computes every token after the last block, without norm or projection.
    ///
    /// `images`: `[batch, 3, image_size, image_size]`, from [`preprocess`](crate::preprocess). Returns
    /// `[batch, 1 + patches, width]`, the class token first.
    pub fn tokens(&self, images: Tensor<4>) -> Tensor<3> {
        let blocks = self.blocks.iter().cloned().map(Ok::<_, Infallible>);
        match self.tokens_by(images, blocks) {
            Ok(tokens) => tokens,
        }
    }

    /// Computes [`tokens`](Self::tokens) with blocks that are passed one at a time, for a tower that is
    /// larger than memory. Its own blocks are not used.
    ///
    /// # Errors
    /// The first of `blocks`.
    pub fn tokens_by<E>(
        &self,
        images: Tensor<4>,
        mut blocks: impl Iterator<Item = Result<TransformerBlock, E>>,
    ) -> Result<Tensor<3>, E> {
        blocks.try_fold(self.embed(images), |x, block| Ok(block?.forward(x, false)))
    }

    /// Computes the input of the first block: patches and class token with their positions, after the norm.
    ///
    /// `[batch, 3, image_size, image_size]` → `[batch, 1 + patches, width]`, the class token first.
    pub fn embed(&self, images: Tensor<4>) -> Tensor<3> {
        let batch = images.dims()[0];
        let patches = conv2d_last(&self.patch_embed, channels_last(images)).flatten::<3>(1, 2);
        let class = self.class_embedding.val().cast(patches.dtype());
        let width = class.dims()[0];
        let class = class.reshape([1, 1, width]).expand([batch, 1, width]);
        let position = self.positional_embedding.val().cast(patches.dtype());
        let x = Tensor::cat(vec![class, patches], 1) + position.unsqueeze::<3>();
        self.ln_pre.forward(x)
    }

    /// Computes the patch tokens after the last block, which the Divot tokenizer uses.
    ///
    /// `[batch, 3, image_size, image_size]` → `[batch, patches, width]`.
    pub fn patch_tokens(&self, images: Tensor<4>) -> Tensor<3> {
        let tokens = self.tokens(images);
        let patches = tokens.dims()[1] - 1;
        tokens.narrow(1, 1, patches)
    }

    /// Computes the feature of an image in the joint space: the class token after norm and projection.
    ///
    /// `[batch, 3, image_size, image_size]` → `[batch, embed_dim]`, not yet
    /// [normalised](crate::normalize).
    pub fn image_features(&self, images: Tensor<4>) -> Tensor<2> {
        let class = self.tokens(images).narrow(1, 0, 1).squeeze_dim::<2>(1);
        linear(&self.proj, self.ln_post.forward(class))
    }
}
