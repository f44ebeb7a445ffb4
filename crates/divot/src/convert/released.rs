//! The sizes in the released system's configuration.

use std::path::Path;

use divot_nn::{CheckSizes, check_same};
use divot_resampler::{PerceiverResamplerConfig, VideoResamplerConfig};
use divot_unet::{NoiseScheduleConfig, UnetConfig, VaeConfig};
use divot_vit::{TextTowerConfig, VisionTowerConfig};
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::weights::Source;
use crate::{DetokenizerConfig, DynamiCrafterConfig, TokenizerConfig};

/// All sizes of a released checkpoint. The released files do not contain them.
#[derive(Debug, Clone)]
pub struct ReleasedConfig {
    /// The tokenizer with its vision tower.
    pub tokenizer: TokenizerConfig,
    /// The de-tokenizer.
    pub detokenizer: DetokenizerConfig,
    /// CLIP's text tower.
    pub text: TextTowerConfig,
}

/// The arguments, named as in the released system's configuration files.
#[derive(Deserialize)]
struct Arguments {
    vit: Vit,
    clip_embed: usize,
    text: Text,
    tok: Tok,
    proj: Proj,
    unet: Unet,
    vae: Vae,
    /// Frames, height, width.
    latent: Option<[usize; 3]>,
}

#[derive(Deserialize)]
struct Vit {
    image_size: usize,
    patch_size: usize,
    width: usize,
    layers: usize,
    head_width: usize,
    mlp_ratio: f64,
}

#[derive(Deserialize)]
struct Text {
    context_length: usize,
    vocab_size: usize,
    width: usize,
    heads: usize,
    layers: usize,
}

#[derive(Deserialize)]
struct Tok {
    num_frames: usize,
    input_dim: usize,
    hidden_size: usize,
    width: usize,
    temporal_depth: usize,
    pool_size: usize,
    use_norm: bool,
    transformer_depth: usize,
    resampler_depth: usize,
    down_num_tokens: usize,
    resampler_dim: usize,
}

#[derive(Deserialize)]
struct Proj {
    dim: usize,
    depth: usize,
    dim_head: usize,
    heads: usize,
    num_queries: usize,
    embedding_dim: usize,
    output_dim: usize,
}

#[derive(Deserialize)]
struct Unet {
    in_channels: usize,
    out_channels: usize,
    model_channels: usize,
    attention_resolutions: Vec<usize>,
    num_res_blocks: usize,
    channel_mult: Vec<usize>,
    dropout: f64,
    num_head_channels: usize,
    transformer_depth: usize,
    context_dim: usize,
    use_linear: bool,
    temporal_conv: bool,
    temporal_attention: bool,
    temporal_selfatt_only: bool,
    use_relative_position: bool,
    use_causal_attention: bool,
    addition_attention: bool,
    image_cross_attention: bool,
    default_fs: f64,
    fs_condition: bool,
}

#[derive(Deserialize)]
struct Vae {
    z_channels: usize,
    ch: usize,
    ch_mult: Vec<usize>,
    num_res_blocks: usize,
    attn_resolutions: Vec<usize>,
}

impl ReleasedConfig {
    /// The released model.
    pub fn divot() -> Self {
        Self {
            tokenizer: TokenizerConfig::divot(),
            detokenizer: DetokenizerConfig::divot(),
            text: TextTowerConfig::vit_h_14(),
        }
    }

    /// Reads sizes from a JSON file with the released system's arguments: `vit`, `clip_embed`, `text`,
    /// `tok`, `proj`, `unet`, `vae` and `latent`.
    ///
    /// # Errors
    /// If the file cannot be read, lacks an argument, or requests a variant of a network that was never
    /// released.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::config(
                path,
                format!("cannot be read ({error})"),
                "give a JSON file with the released system's arguments",
            )
        })?;
        let arguments: Arguments = serde_json::from_str(&text).map_err(|error| {
            Error::config(
                path,
                format!("does not give the model's sizes ({error})"),
                "give a JSON file with the released system's arguments",
            )
        })?;
        arguments.check().map_err(|problem| {
            Error::config(path, problem, "only the released variants can be converted")
        })?;
        let sizes = arguments.sizes();
        sizes
            .tokenizer
            .check_sizes()
            .and_then(|()| sizes.detokenizer.check_sizes())
            .and_then(|()| sizes.text.check_sizes())
            .and_then(|()| {
                check_same(
                    (
                        "the tokenizer's token_dim",
                        sizes.tokenizer.resampler.token_dim,
                    ),
                    (
                        "the de-tokenizer's input_dim",
                        sizes.detokenizer.resampler.input_dim,
                    ),
                )
            })
            .map_err(|error| {
                Error::config(
                    path,
                    format!("describes an invalid configuration ({error})"),
                    "give the arguments that the weights were trained with",
                )
            })?;
        Ok(sizes)
    }

    /// Returns the sizes of DynamiCrafter: those of the image Perceiver are read from the shapes of its
    /// tensors, and the others are these.
    pub(super) fn for_dynamicrafter(&self, sources: &[Source]) -> Result<DynamiCrafterConfig> {
        let refused = |problem: String| {
            Error::config(
                sources.first().map_or(Path::new(""), Source::path),
                problem,
                "give DynamiCrafter's own checkpoint",
            )
        };
        let shape = |name: &str| {
            sources
                .iter()
                .find_map(|source| super::names::find(source, name))
                .map(|tensor| tensor.shape.clone())
                .unwrap_or_default()
        };
        // The shapes do not determine the width of a head. It is the same as in Divot.
        let head_dim = self.detokenizer.resampler.head_dim;
        let (latents, proj_in, proj_out, to_q) = (
            shape("image_proj_model.latents"),
            shape("image_proj_model.proj_in.weight"),
            shape("image_proj_model.proj_out.weight"),
            shape("image_proj_model.layers.0.0.to_q.weight"),
        );
        let (&[1, queries, width], &[_, input], &[output, _], &[inner, _]) =
            (&latents[..], &proj_in[..], &proj_out[..], &to_q[..])
        else {
            return Err(refused(
                "has no DynamiCrafter image projection (`image_proj_model.latents` and others)"
                    .to_owned(),
            ));
        };
        // A layer that is missing between others is noticed later.
        let layer = |name: &str| -> Option<usize> {
            let (_, rest) = name.split_once("image_proj_model.layers.")?;
            rest.split('.').next()?.parse().ok()
        };
        let tensors = sources.iter().flat_map(Source::tensors);
        let last = tensors.filter_map(|tensor| layer(&tensor.name)).max();
        let image = PerceiverResamplerConfig::new(queries, input, width, output)
            .with_depth(last.map_or(0, |last| last.saturating_add(1)))
            .with_heads(inner / head_dim)
            .with_head_dim(head_dim);
        let Self {
            tokenizer,
            detokenizer,
            text,
        } = self.clone();
        let DetokenizerConfig { unet, vae, .. } = detokenizer;
        let sizes = DynamiCrafterConfig::new(tokenizer.vision, text, image, unet, vae);
        sizes
            .check_sizes()
            .map_err(|error| refused(format!("describes an invalid configuration ({error})")))?;
        Ok(sizes)
    }
}

impl Arguments {
    /// Checks that arguments which change the structure of a network have their released values.
    fn check(&self) -> Result<(), String> {
        let unet = &self.unet;
        let fixed = [
            ("tok.use_norm", self.tok.use_norm, true),
            ("unet.use_linear", unet.use_linear, true),
            ("unet.temporal_conv", unet.temporal_conv, true),
            ("unet.temporal_attention", unet.temporal_attention, true),
            (
                "unet.temporal_selfatt_only",
                unet.temporal_selfatt_only,
                true,
            ),
            (
                "unet.use_relative_position",
                unet.use_relative_position,
                false,
            ),
            (
                "unet.use_causal_attention",
                unet.use_causal_attention,
                false,
            ),
            ("unet.addition_attention", unet.addition_attention, true),
            (
                "unet.image_cross_attention",
                unet.image_cross_attention,
                true,
            ),
            ("unet.fs_condition", unet.fs_condition, true),
        ];
        if let Some((name, found, released)) =
            fixed.iter().find(|(_, found, released)| found != released)
        {
            return Err(format!("says {name} = {found}, released is {released}"));
        }
        if !self.vae.attn_resolutions.is_empty() {
            return Err("asks for attention outside the middle of the autoencoder".to_owned());
        }
        // The other sizes are checked in our own configuration. This one is a divisor before that.
        if self.vit.head_width == 0 {
            return Err("says vit.head_width = 0".to_owned());
        }
        Ok(())
    }

    fn sizes(self) -> ReleasedConfig {
        let Self {
            vit,
            clip_embed,
            text,
            tok,
            proj,
            unet,
            vae,
            latent,
        } = self;
        let vision = VisionTowerConfig::new(
            vit.image_size,
            vit.patch_size,
            vit.width,
            vit.layers,
            vit.width / vit.head_width,
            clip_embed,
        )
        .with_mlp_ratio(vit.mlp_ratio);
        let resampler = VideoResamplerConfig::new(tok.input_dim, tok.hidden_size, tok.width)
            .with_frames(tok.num_frames)
            .with_temporal_depth(tok.temporal_depth)
            .with_pool_size(tok.pool_size)
            .with_spatial_temporal_depth(tok.transformer_depth)
            .with_resampler_depth(tok.resampler_depth)
            .with_tokens(tok.down_num_tokens)
            .with_token_dim(tok.resampler_dim);
        let context = PerceiverResamplerConfig::new(
            proj.num_queries,
            proj.embedding_dim,
            proj.dim,
            proj.output_dim,
        )
        .with_depth(proj.depth)
        .with_heads(proj.heads)
        .with_head_dim(proj.dim_head);
        let unet = UnetConfig::new(unet.model_channels, unet.channel_mult, unet.context_dim)
            .with_in_channels(unet.in_channels)
            .with_out_channels(unet.out_channels)
            .with_num_res_blocks(unet.num_res_blocks)
            .with_attention_resolutions(unet.attention_resolutions)
            .with_head_dim(unet.num_head_channels)
            .with_transformer_depth(unet.transformer_depth)
            .with_dropout(unet.dropout)
            .with_default_fs(unet.default_fs);
        let vae = VaeConfig::new()
            .with_channels(vae.ch)
            .with_channel_mult(vae.ch_mult)
            .with_num_res_blocks(vae.num_res_blocks)
            .with_latent_channels(vae.z_channels);
        let mut detokenizer =
            DetokenizerConfig::new(context, unet, vae, NoiseScheduleConfig::new());
        if let Some([_, height, width]) = latent {
            detokenizer.latent_size = [height, width];
        }
        ReleasedConfig {
            tokenizer: TokenizerConfig::new(vision, resampler),
            detokenizer,
            text: TextTowerConfig::new(
                text.context_length,
                text.vocab_size,
                text.width,
                text.layers,
                text.heads,
                clip_embed,
            ),
        }
    }
}
