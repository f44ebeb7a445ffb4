//! Maps the names of our parameters to the released names.

use regex::{Captures, Regex};

use crate::weights::{ParamSpec, Source, SourceTensor};

/// A network with released names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    Vision,
    Text,
    VideoResampler,
    Perceiver,
    Unet,
    Vae,
}

impl Network {
    /// Returns patterns and their replacements, in the order in which they are applied.
    fn rules(self) -> Vec<(&'static str, &'static str)> {
        match self {
            Self::Vision => [
                &[
                    (r"^patch_embed\.", "conv1."),
                    (r"^proj\.weight$", "proj"),
                    (r"^blocks\.", "transformer.resblocks."),
                ],
                OPEN_CLIP_BLOCK,
                &[(r"^", "visual.")],
            ]
            .concat(),
            Self::Text => [
                &[
                    (r"^proj\.weight$", "text_projection"),
                    (r"^blocks\.", "transformer.resblocks."),
                ][..],
                OPEN_CLIP_BLOCK,
            ]
            .concat(),
            Self::VideoResampler => [
                &[
                    (
                        r"^temporal\.blocks\.",
                        "temporal_encoder.transformer.resblocks.",
                    ),
                    (r"^temporal\.norm\.", "temporal_encoder.ln_final."),
                    (r"^temporal\.proj_in\.", "temporal_encoder.input_proj."),
                    (r"^temporal\.proj_out\.", "temporal_encoder.output_proj."),
                    (r"^temporal\.", "temporal_encoder."),
                    (
                        r"^spatial_temporal\.spatial_embedding",
                        "image_proj_model.pos_embed_spatial",
                    ),
                    (
                        r"^spatial_temporal\.temporal_embedding",
                        "image_proj_model.pos_embed_temporal",
                    ),
                    (r"^spatial_temporal\.", "image_proj_model."),
                    (r"^resampler\.", "image_proj_model.down_sampler."),
                ],
                PERCEIVER,
                OPEN_CLIP_BLOCK,
            ]
            .concat(),
            Self::Perceiver => [PERCEIVER, &[(r"^", "image_proj_model.")]].concat(),
            Self::Unet => UNET.to_vec(),
            Self::Vae => VAE.to_vec(),
        }
    }
}

/// OpenCLIP's names of blocks. The temporal transformer uses them too, the spatial-temporal one does not.
const OPEN_CLIP_BLOCK: &[(&str, &str)] = &[
    (r"(resblocks\.\d+)\.norm1\.", "$1.ln_1."),
    (r"(resblocks\.\d+)\.norm2\.", "$1.ln_2."),
    (r"(resblocks\.\d+)\.attn\.qkv\.", "$1.attn.in_proj_"),
    (r"(resblocks\.\d+)\.attn\.proj\.", "$1.attn.out_proj."),
    (r"(resblocks\.\d+)\.mlp\.fc1\.", "$1.mlp.c_fc."),
    (r"(resblocks\.\d+)\.mlp\.fc2\.", "$1.mlp.c_proj."),
];

const PERCEIVER: &[(&str, &str)] = &[
    (r"(layers\.\d+)\.norm_inputs\.", "$1.0.norm1."),
    (r"(layers\.\d+)\.norm_latents\.", "$1.0.norm2."),
    (r"(layers\.\d+)\.(to_q|to_kv|to_out)\.", "$1.0.$2."),
    (r"(layers\.\d+)\.norm_mlp\.", "$1.1.0."),
    (r"(layers\.\d+)\.fc1\.", "$1.1.1."),
    (r"(layers\.\d+)\.fc2\.", "$1.1.3."),
];

const UNET: &[(&str, &str)] = &[
    // Residual blocks. The released names misspell their temporal convolutions.
    (r"\.temporal\.layers\.0\.norm\.", ".temopral_conv.conv1.0."),
    (r"\.temporal\.layers\.0\.conv\.", ".temopral_conv.conv1.2."),
    (
        r"\.temporal\.layers\.(\d+)\.norm\.",
        ".temopral_conv.conv{$1+1}.0.",
    ),
    (
        r"\.temporal\.layers\.(\d+)\.conv\.",
        ".temopral_conv.conv{$1+1}.3.",
    ),
    (r"(res|middle_out)\.norm1\.", "$1.in_layers.0."),
    (r"(res|middle_out)\.conv1\.", "$1.in_layers.2."),
    (r"(res|middle_out)\.embed\.", "$1.emb_layers.1."),
    (r"(res|middle_out)\.norm2\.", "$1.out_layers.0."),
    (r"(res|middle_out)\.conv2\.", "$1.out_layers.3."),
    (r"(res|middle_out)\.skip\.", "$1.skip_connection."),
    // Transformers.
    (r"\.blocks\.", ".transformer_blocks."),
    (r"\.to_out\.", ".to_out.0."),
    (r"\.split\.(to_k|to_v)\.", ".${1}_ip."),
    (r"\.split\.alpha", ".alpha"),
    (r"\.ff\.fc1\.", ".ff.net.0.proj."),
    (r"\.ff\.fc2\.", ".ff.net.2."),
    // Positions in the network.
    (r"^time_embed\.fc1\.", "time_embed.0."),
    (r"^time_embed\.fc2\.", "time_embed.2."),
    (r"^fs_embed\.fc1\.", "fps_embedding.0."),
    (r"^fs_embed\.fc2\.", "fps_embedding.2."),
    (r"^norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"^init_attn\.", "init_attn.0."),
    (
        r"^input_blocks\.(\d+)\.resample\.conv\.",
        "input_blocks.{$1+1}.0.op.",
    ),
    (
        r"^input_blocks\.(\d+)\.(res|spatial|temporal)\.",
        "input_blocks.{$1+1}.$2.",
    ),
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^middle\.", "middle_block."),
    (r"^middle_out\.", "middle_block.3."),
    (r"block(s\.[^.]+)?\.res\.", "block$1.0."),
    (r"block(s\.[^.]+)?\.spatial\.", "block$1.1."),
    (r"block(s\.[^.]+)?\.temporal\.", "block$1.2."),
    (r"^", "diffusion_model."),
];

const VAE: &[(&str, &str)] = &[
    (
        r"^encoder\.levels\.(\d+)\.blocks\.",
        "encoder.down.$1.block.",
    ),
    (
        r"^encoder\.levels\.(\d+)\.resample\.",
        "encoder.down.$1.downsample.conv.",
    ),
    (
        r"^decoder\.levels\.(\d+)\.blocks\.",
        "decoder.up.{last-$1}.block.",
    ),
    (
        r"^decoder\.levels\.(\d+)\.resample\.",
        "decoder.up.{last-$1}.upsample.conv.",
    ),
    (r"\.middle\.block(\d)\.", ".mid.block_$1."),
    (r"\.middle\.attn\.proj\.", ".mid.attn_1.proj_out."),
    (r"\.middle\.attn\.", ".mid.attn_1."),
    (r"\.skip\.", ".nin_shortcut."),
    (r"^", "first_stage_model."),
];

/// Maps the names of one network's parameters.
pub(super) struct Released {
    network: Network,
    rules: Vec<(Regex, &'static str)>,
    sums: Regex,
    /// Index of the last level. The decoder of the autoencoder counts down from it.
    last_level: usize,
    /// Output blocks with transformers. In these, the upsampling is two positions later.
    with_attention: Vec<String>,
}

impl Released {
    pub fn new(network: Network, layout: &[ParamSpec]) -> Self {
        let rules = network
            .rules()
            .into_iter()
            .map(|(pattern, to)| (regex(pattern), to))
            .collect();
        let level = |path: &str| {
            path.strip_prefix("decoder.levels.")?
                .split('.')
                .next()?
                .parse()
                .ok()
        };
        let with_attention = layout
            .iter()
            .filter_map(|spec| Some(spec.path.split_once(".spatial.")?.0.to_owned()))
            .collect();
        Self {
            network,
            rules,
            sums: regex(r"\{(\d+|last)([+-])(\d+)\}"),
            last_level: layout
                .iter()
                .filter_map(|spec| level(&spec.path))
                .max()
                .unwrap_or(0),
            with_attention,
        }
    }

    /// Returns the released name of our parameter.
    pub fn name(&self, path: &str) -> String {
        let mut name = path
            .strip_suffix("gamma")
            .map(|stem| format!("{stem}weight"))
            .or_else(|| path.strip_suffix("beta").map(|stem| format!("{stem}bias")))
            .unwrap_or_else(|| path.to_owned());
        if let Some((block, rest)) = path.split_once(".resample.")
            && block.starts_with("output_blocks.")
        {
            let place = if self.with_attention.iter().any(|with| with == block) {
                3
            } else {
                1
            };
            name = format!("{block}.{place}.{rest}");
        }
        for (pattern, to) in &self.rules {
            name = pattern.replace(&name, *to).into_owned();
        }
        self.sums
            .replace_all(&name, |captures: &Captures<'_>| self.sum(captures))
            .into_owned()
    }

    /// Evaluates `{1+1}` and `{last-1}`, because blocks and levels are not all counted from the same end.
    fn sum(&self, captures: &Captures<'_>) -> String {
        let left = captures[1].parse().unwrap_or(self.last_level);
        let right: usize = captures[3].parse().unwrap_or(0);
        let sum = match &captures[2] {
            "+" => left + right,
            _ => left.saturating_sub(right),
        };
        sum.to_string()
    }

    /// Returns our parameter with its released name as the path.
    pub fn spec(&self, ours: &ParamSpec) -> ParamSpec {
        // CLIP's projections are bare `[input, output]` matrices instead of a linear layer's.
        let is_plain_matrix =
            matches!(self.network, Network::Vision | Network::Text) && ours.path == "proj.weight";
        ParamSpec {
            path: self.name(&ours.path),
            container: match is_plain_matrix {
                true => String::new(),
                false => ours.container.clone(),
            },
            shape: ours.shape.clone(),
        }
    }

    /// Returns the shape of the released tensor. Conversion takes it with other axes of length one too.
    pub fn shape(&self, ours: &ParamSpec) -> Vec<usize> {
        let mut shape = self.spec(ours).pytorch_shape();
        let path = ours.path.as_str();
        match self.network {
            // Convolutions over time of one tap.
            Network::Unet if path.starts_with("init_attn.proj_") && shape.len() == 2 => {
                shape.push(1);
            }
            Network::Unet if path.ends_with(".alpha") => shape.clear(),
            Network::Text if path == "logit_scale" => shape.clear(),
            _ => {}
        }
        shape
    }
}

/// Finds the tensor of this name, or of this name inside Lightning's `model`.
pub(super) fn find<'a>(source: &'a Source, name: &str) -> Option<&'a SourceTensor> {
    source
        .get(name)
        .or_else(|| source.get(&format!("model.{name}")))
}

/// Finds an entry of this name that cannot be read as a tensor.
pub(super) fn unreadable<'a>(sources: &'a [Source], name: &str) -> Option<(&'a Source, &'a str)> {
    sources.iter().find_map(|source| {
        let what = source
            .unreadable(name)
            .or_else(|| source.unreadable(&format!("model.{name}")));
        Some((source, what?))
    })
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("patterns are constant")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(network: Network, path: &str) -> String {
        let spec = |path: &str| ParamSpec {
            path: path.to_owned(),
            container: String::new(),
            shape: vec![1],
        };
        let layout = [
            spec("decoder.levels.3.blocks.0.conv1.weight"),
            spec("output_blocks.5.spatial.norm.gamma"),
        ];
        Released::new(network, &layout).name(path)
    }

    #[test]
    fn released_names() {
        for (network, ours, theirs) in [
            (
                Network::Vision,
                "blocks.3.attn.qkv.weight",
                "visual.transformer.resblocks.3.attn.in_proj_weight",
            ),
            (
                Network::VideoResampler,
                "spatial_temporal.blocks.1.norm1.gamma",
                "image_proj_model.blocks.1.norm1.weight",
            ),
            (
                Network::VideoResampler,
                "temporal.blocks.1.norm1.beta",
                "temporal_encoder.transformer.resblocks.1.ln_1.bias",
            ),
            (Network::VideoResampler, "norm.gamma", "norm.weight"),
            (
                Network::Unet,
                "input_blocks.0.res.temporal.layers.2.conv.weight",
                "diffusion_model.input_blocks.1.0.temopral_conv.conv3.3.weight",
            ),
            (
                Network::Unet,
                "input_blocks.9.spatial.blocks.0.attn2.split.to_k.weight",
                "diffusion_model.input_blocks.10.1.transformer_blocks.0.attn2.to_k_ip.weight",
            ),
            (
                Network::Unet,
                "output_blocks.2.resample.conv.bias",
                "diffusion_model.output_blocks.2.1.conv.bias",
            ),
            (
                Network::Unet,
                "output_blocks.5.resample.conv.bias",
                "diffusion_model.output_blocks.5.3.conv.bias",
            ),
            (
                Network::Unet,
                "middle_out.norm1.gamma",
                "diffusion_model.middle_block.3.in_layers.0.weight",
            ),
            (
                Network::Unet,
                "middle.temporal.proj_in.weight",
                "diffusion_model.middle_block.2.proj_in.weight",
            ),
            (
                Network::Vae,
                "decoder.levels.0.resample.weight",
                "first_stage_model.decoder.up.3.upsample.conv.weight",
            ),
        ] {
            assert_eq!(name(network, ours), theirs);
        }
    }
}
