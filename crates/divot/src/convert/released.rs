//! The sizes in the released system's configuration.

use std::path::Path;

use divot_data::sampling::CLIP_FRAMES;
use divot_nn::{CheckSizes, check_same};
use divot_resampler::{PerceiverResamplerConfig, VideoResamplerConfig};
use divot_unet::{NoiseScheduleConfig, UnetConfig, VaeConfig};
use divot_vit::{TextTowerConfig, VisionTowerConfig};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::weights::Source;
use crate::{DetokenizerConfig, DynamiCrafterConfig, TokenizerConfig};

/// All sizes of a released checkpoint. The released files do not contain them.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct ReleasedConfig {
    /// The tokenizer with its vision tower.
    pub tokenizer: TokenizerConfig,
    /// The de-tokenizer.
    pub detokenizer: DetokenizerConfig,
    /// CLIP's text tower.
    pub text: TextTowerConfig,
}

/// The arguments, named as in the released system's configuration files.
#[derive(Deserialize, Serialize)]
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
    /// Where a model of ours has other values than the released system's constants: the fields of
    /// [`ReleasedConfig`] with these values.
    #[serde(default)]
    divot: Map<String, Value>,
}

/// The key of [`Arguments::divot`]. Every exported file has it.
pub(super) const OWN: &str = "divot";

#[derive(Deserialize, Serialize)]
struct Vit {
    image_size: usize,
    patch_size: usize,
    width: usize,
    layers: usize,
    head_width: usize,
    mlp_ratio: f64,
}

#[derive(Deserialize, Serialize)]
struct Text {
    context_length: usize,
    vocab_size: usize,
    width: usize,
    heads: usize,
    layers: usize,
}

#[derive(Deserialize, Serialize)]
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

#[derive(Deserialize, Serialize)]
struct Proj {
    dim: usize,
    depth: usize,
    dim_head: usize,
    heads: usize,
    num_queries: usize,
    embedding_dim: usize,
    output_dim: usize,
}

#[derive(Deserialize, Serialize)]
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

#[derive(Deserialize, Serialize)]
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
    /// `tok`, `proj`, `unet`, `vae` and `latent`. `divot` may hold values that are constants in the released
    /// system.
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
        let sizes = arguments.sizes().map_err(|problem| {
            Error::config(path, problem, "correct `divot`, or export the model again")
        })?;
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

    /// Returns the sizes as JSON, which [`read`](Self::read) reads.
    pub(super) fn json(&self) -> String {
        let arguments = Arguments::of(self);
        // Structs of numbers and texts always serialise.
        serde_json::to_string_pretty(&arguments).unwrap_or_default()
    }

    /// Lists the values that the released system has as constants, and others: `tokenizer.frame_size is 64
    /// instead of 256`.
    pub(super) fn own_values(&self) -> Vec<String> {
        fn list(path: &str, own: &Value, released: &Value, found: &mut Vec<String>) {
            match own {
                Value::Object(fields) => {
                    for (name, own) in fields {
                        let path = match path {
                            "" => name.clone(),
                            path => format!("{path}.{name}"),
                        };
                        list(&path, own, &released[name], found);
                    }
                }
                own => found.push(format!("{path} is {own} instead of {released}")),
            }
        }
        let Arguments { divot, .. } = Arguments::of(self);
        let mut found = Vec::new();
        list(
            "",
            &divot.into(),
            &tree(&Arguments::of(self).released()),
            &mut found,
        );
        found
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

    /// Returns the sizes.
    fn sizes(mut self) -> Result<ReleasedConfig, String> {
        let own = std::mem::take(&mut self.divot);
        let mut sizes = tree(&self.released());
        overlay(&mut sizes, &own.into(), "divot")?;
        serde_json::from_value(sizes)
            .map_err(|error| format!("has another kind of value ({error})"))
    }

    /// Returns the arguments of these sizes.
    fn of(sizes: &ReleasedConfig) -> Self {
        let ReleasedConfig {
            tokenizer,
            detokenizer,
            text,
        } = sizes;
        let (vision, resampler) = (&tokenizer.vision, &tokenizer.resampler);
        let (context, unet, vae) = (&detokenizer.resampler, &detokenizer.unet, &detokenizer.vae);
        let [height, width] = detokenizer.latent_size;
        let mut arguments = Self {
            vit: Vit {
                image_size: vision.image_size,
                patch_size: vision.patch_size,
                width: vision.width,
                layers: vision.layers,
                head_width: vision.width / vision.heads,
                mlp_ratio: vision.mlp_ratio,
            },
            clip_embed: vision.embed_dim,
            text: Text {
                context_length: text.context_length,
                vocab_size: text.vocab_size,
                width: text.width,
                heads: text.heads,
                layers: text.layers,
            },
            tok: Tok {
                num_frames: resampler.frames,
                input_dim: resampler.input_dim,
                hidden_size: resampler.hidden_dim,
                width: resampler.temporal_width,
                temporal_depth: resampler.temporal_depth,
                pool_size: resampler.pool_size,
                use_norm: true,
                transformer_depth: resampler.spatial_temporal_depth,
                resampler_depth: resampler.resampler_depth,
                down_num_tokens: resampler.tokens,
                resampler_dim: resampler.token_dim,
            },
            proj: Proj {
                dim: context.width,
                depth: context.depth,
                dim_head: context.head_dim,
                heads: context.heads,
                num_queries: context.queries,
                embedding_dim: context.input_dim,
                output_dim: context.output_dim,
            },
            unet: Unet {
                in_channels: unet.in_channels,
                out_channels: unet.out_channels,
                model_channels: unet.model_channels,
                attention_resolutions: unet.attention_resolutions.clone(),
                num_res_blocks: unet.num_res_blocks,
                channel_mult: unet.channel_mult.clone(),
                dropout: unet.dropout,
                num_head_channels: unet.head_dim,
                transformer_depth: unet.transformer_depth,
                context_dim: unet.context_dim,
                use_linear: true,
                temporal_conv: true,
                temporal_attention: true,
                temporal_selfatt_only: true,
                use_relative_position: false,
                use_causal_attention: false,
                addition_attention: true,
                image_cross_attention: true,
                default_fs: unet.default_fs,
                fs_condition: true,
            },
            vae: Vae {
                z_channels: vae.latent_channels,
                ch: vae.channels,
                ch_mult: vae.channel_mult.clone(),
                num_res_blocks: vae.num_res_blocks,
                attn_resolutions: Vec::new(),
            },
            latent: Some([CLIP_FRAMES, height, width]),
            divot: Map::new(),
        };
        if let Some(Value::Object(own)) = difference(&tree(sizes), &tree(&arguments.released())) {
            arguments.divot = own;
        }
        arguments
    }

    /// Returns the sizes that the released system has with these arguments.
    fn released(&self) -> ReleasedConfig {
        let Self {
            vit,
            clip_embed,
            text,
            tok,
            proj,
            unet,
            vae,
            latent,
            divot: _,
        } = self;
        let vision = VisionTowerConfig::new(
            vit.image_size,
            vit.patch_size,
            vit.width,
            vit.layers,
            vit.width / vit.head_width,
            *clip_embed,
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
        let unet = UnetConfig::new(
            unet.model_channels,
            unet.channel_mult.clone(),
            unet.context_dim,
        )
        .with_in_channels(unet.in_channels)
        .with_out_channels(unet.out_channels)
        .with_num_res_blocks(unet.num_res_blocks)
        .with_attention_resolutions(unet.attention_resolutions.clone())
        .with_head_dim(unet.num_head_channels)
        .with_transformer_depth(unet.transformer_depth)
        .with_dropout(unet.dropout)
        .with_default_fs(unet.default_fs);
        let vae = VaeConfig::new()
            .with_channels(vae.ch)
            .with_channel_mult(vae.ch_mult.clone())
            .with_num_res_blocks(vae.num_res_blocks)
            .with_latent_channels(vae.z_channels);
        let mut detokenizer =
            DetokenizerConfig::new(context, unet, vae, NoiseScheduleConfig::new());
        if let Some([_, height, width]) = *latent {
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
                *clip_embed,
            ),
        }
    }
}

fn tree(sizes: &ReleasedConfig) -> Value {
    // Structs of numbers and texts always serialise.
    serde_json::to_value(sizes).unwrap_or_default()
}

/// Returns the part of `own` that differs from `released`.
fn difference(own: &Value, released: &Value) -> Option<Value> {
    match (own, released) {
        (Value::Object(fields), Value::Object(_)) => {
            let fields: Map<String, Value> = fields
                .iter()
                .filter_map(|(name, own)| Some((name.clone(), difference(own, &released[name])?)))
                .collect();
            (!fields.is_empty()).then(|| fields.into())
        }
        _ => (own != released).then(|| own.clone()),
    }
}

/// Puts `own` over `sizes`.
fn overlay(sizes: &mut Value, own: &Value, path: &str) -> Result<(), String> {
    match (sizes, own) {
        (Value::Object(sizes), Value::Object(own)) => own.iter().try_for_each(|(name, own)| {
            let path = format!("{path}.{name}");
            let size = sizes
                .get_mut(name)
                .ok_or_else(|| format!("says {path}, which is no size"))?;
            overlay(size, own, &path)
        }),
        (size, own) => {
            *size = own.clone();
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_they_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.json");
        let mut own = ReleasedConfig::divot();
        own.tokenizer.frame_size = 64;
        own.tokenizer.resampler.temporal_heads = 16;
        own.detokenizer.schedule.prediction = divot_nn::Prediction::Epsilon;
        let listed = [
            "detokenizer.schedule.prediction is \"Epsilon\" instead of \"V\"",
            "tokenizer.frame_size is 64 instead of 256",
            "tokenizer.resampler.temporal_heads is 16 instead of 12",
        ];
        for (sizes, values) in [(ReleasedConfig::divot(), &[][..]), (own, &listed)] {
            let mut found = sizes.own_values();
            found.sort();
            assert_eq!(found, values);
            std::fs::write(&path, sizes.json()).expect("a file");
            let read = ReleasedConfig::read(&path).expect("sizes");
            assert_eq!(tree(&read), tree(&sizes));
        }
        let wrong = ReleasedConfig::divot().json().replace(
            "\"divot\": {}",
            "\"divot\": {\"tokenizer\": {\"frames_size\": 64}}",
        );
        std::fs::write(&path, wrong).expect("a file");
        let error = ReleasedConfig::read(&path).expect_err("no such size");
        assert!(
            error
                .to_string()
                .contains("says divot.tokenizer.frames_size"),
            "{error}"
        );
    }
}
