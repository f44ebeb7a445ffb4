use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor};

use divot_nn::ops::{conv2d_last, group_norm, silu};
use divot_nn::{
    CheckSizes, SizeError, check_depths, check_divides, check_even, check_widths, recompute,
};

use crate::attention::KeysValues;
use crate::resblock::conv3x3;
use crate::{
    Context, ResBlock, ResBlockConfig, SpatialTransformer, TemporalTransformer, TimestepMlp,
    TransformerConfig,
};

divot_nn::config! {
    /// Sizes of the video UNet.
    pub struct UnetConfig {
        /// Channels at the first level.
        pub model_channels: usize,
        /// Channels of each level, relative to those of the first.
        pub channel_mult: Vec<usize>,
        /// Width of the context.
        pub context_dim: usize,
    }
    defaults {
        /// Channels of the latents.
        pub in_channels, with_in_channels: usize = 4,
        /// Channels of the prediction.
        pub out_channels, with_out_channels: usize = 4,
        /// Residual blocks in each level on the way down. There is one more on the way up.
        pub num_res_blocks, with_num_res_blocks: usize = 2,
        /// Downsampling factors with attention.
        pub attention_resolutions, with_attention_resolutions: Vec<usize> = vec![1, 2, 4],
        /// Width of an attention head.
        pub head_dim, with_head_dim: usize = 64,
        /// Blocks in each transformer.
        pub transformer_depth, with_transformer_depth: usize = 1,
        /// Share of activations dropped in the residual blocks in training.
        pub dropout, with_dropout: f64 = 0.1,
        /// Frame stride that is assumed if none is given.
        pub default_fs, with_default_fs: f64 = 3.0,
        /// Groups of the group norms. They divide the channels of every level.
        pub groups, with_groups: usize = 32,
        /// Heads of the temporal transformer after the first convolution.
        pub init_attn_heads, with_init_attn_heads: usize = 8,
        /// Number of tokens of a shared context that use the first pair of keys and values. In
        /// DynamiCrafter, these are the 77 tokens of the text.
        pub primary_context, with_primary_context: usize = 77,
    }
}

/// The LVDM and DynamiCrafter video UNet with Divot's split context.
#[derive(Module, Debug)]
pub struct Unet {
    /// Condition on the timestep.
    pub time_embed: TimestepMlp,
    /// Condition on the frame stride.
    pub fs_embed: TimestepMlp,
    /// First convolution.
    pub conv_in: Conv2d,
    /// Temporal transformer after the first convolution.
    pub init_attn: TemporalTransformer,
    /// The way down.
    pub input_blocks: Vec<UnetBlock>,
    /// First residual block of the middle, with its transformers.
    pub middle: UnetBlock,
    /// Last residual block of the middle.
    pub middle_out: ResBlock,
    /// The way up. Each block also gets the output of its counterpart on the way down.
    pub output_blocks: Vec<UnetBlock>,
    /// Norm before the last convolution.
    pub norm_out: GroupNorm,
    /// Last convolution.
    pub conv_out: Conv2d,
    /// Frame stride that is assumed if none is given.
    pub default_fs: f64,
}

/// One block of the UNet: residual block, spatial transformer, temporal transformer and resampling, in
/// this order. A block has some of them.
#[derive(Module, Debug)]
pub struct UnetBlock {
    /// Residual block with temporal convolutions.
    pub res: Option<ResBlock>,
    /// Attention within a frame and to the context.
    pub spatial: Option<SpatialTransformer>,
    /// Attention over time.
    pub temporal: Option<TemporalTransformer>,
    /// Change of resolution.
    pub resample: Option<Resample>,
}

/// A change of resolution by two.
#[derive(Module, Debug)]
pub struct Resample {
    /// 3x3 convolution, with a stride on the way down.
    pub conv: Conv2d,
    /// Whether the size is doubled first (nearest neighbour).
    pub up: bool,
}

impl UnetConfig {
    /// The released de-tokenizer's UNet: 1438.8 M parameters.
    pub fn divot() -> Self {
        Self::new(320, vec![1, 2, 4, 4], 1024)
    }

    /// Returns the factor between the resolution of the latents and that of the last level. Heights and
    /// widths of latents must be multiples of it.
    pub fn downsampling(&self) -> usize {
        1 << (self.channel_mult.len() - 1)
    }

    /// Initialises the network.
    pub fn init(&self, device: &Device) -> Unet {
        let embed_dim = 4 * self.model_channels;
        let mut channels = self.model_channels;
        let mut skips = vec![channels];
        let mut input_blocks = Vec::new();
        let mut factor = 1;
        for (level, mult) in self.channel_mult.iter().enumerate() {
            for _ in 0..self.num_res_blocks {
                let out = mult * self.model_channels;
                input_blocks.push(self.block(channels, out, factor, None, device));
                channels = out;
                skips.push(channels);
            }
            if level + 1 < self.channel_mult.len() {
                input_blocks.push(UnetBlock {
                    res: None,
                    spatial: None,
                    temporal: None,
                    resample: Some(Resample::down(channels, device)),
                });
                skips.push(channels);
                factor *= 2;
            }
        }

        let middle = UnetBlock {
            res: Some(self.res_block(channels, channels, device)),
            spatial: Some(self.spatial(channels, device)),
            temporal: Some(self.temporal(channels, device)),
            resample: None,
        };
        let middle_out = self.res_block(channels, channels, device);

        let mut output_blocks = Vec::new();
        for (level, mult) in self.channel_mult.iter().enumerate().rev() {
            for i in 0..=self.num_res_blocks {
                let out = mult * self.model_channels;
                let skip = skips.pop().unwrap_or_default();
                let up = (level > 0 && i == self.num_res_blocks).then(|| Resample::up(out, device));
                output_blocks.push(self.block(channels + skip, out, factor, up, device));
                channels = out;
            }
            factor /= 2;
        }

        let init_attn =
            TransformerConfig::new(self.model_channels, self.init_attn_heads, self.head_dim)
                .with_depth(self.transformer_depth)
                .with_groups(self.groups);
        Unet {
            time_embed: TimestepMlp::new(self.model_channels, embed_dim, device),
            fs_embed: TimestepMlp::new(self.model_channels, embed_dim, device),
            conv_in: conv3x3([self.in_channels, self.model_channels], device),
            init_attn: TemporalTransformer::new(&init_attn, device),
            input_blocks,
            middle,
            middle_out,
            output_blocks,
            norm_out: GroupNormConfig::new(self.groups, channels).init(device),
            conv_out: conv3x3([channels, self.out_channels], device),
            default_fs: self.default_fs,
        }
    }

    fn block(
        &self,
        channels_in: usize,
        channels_out: usize,
        factor: usize,
        resample: Option<Resample>,
        device: &Device,
    ) -> UnetBlock {
        let attention = self.attention_resolutions.contains(&factor);
        UnetBlock {
            res: Some(self.res_block(channels_in, channels_out, device)),
            spatial: attention.then(|| self.spatial(channels_out, device)),
            temporal: attention.then(|| self.temporal(channels_out, device)),
            resample,
        }
    }

    fn res_block(&self, channels_in: usize, channels_out: usize, device: &Device) -> ResBlock {
        ResBlockConfig::new(channels_in, channels_out, 4 * self.model_channels)
            .with_dropout(self.dropout)
            .with_groups(self.groups)
            .init(device)
    }

    fn transformer(&self, channels: usize) -> TransformerConfig {
        TransformerConfig::new(channels, channels / self.head_dim, self.head_dim)
            .with_depth(self.transformer_depth)
            .with_groups(self.groups)
            .with_primary_context(self.primary_context)
    }

    fn spatial(&self, channels: usize, device: &Device) -> SpatialTransformer {
        SpatialTransformer::new(&self.transformer(channels), self.context_dim, device)
    }

    fn temporal(&self, channels: usize, device: &Device) -> TemporalTransformer {
        TemporalTransformer::new(&self.transformer(channels), device)
    }
}

impl CheckSizes for UnetConfig {
    fn check_sizes(&self) -> Result<(), SizeError> {
        if !(1..=16).contains(&self.channel_mult.len()) {
            return Err(SizeError::new("channel_mult does not give 1 to 16 levels"));
        }
        check_widths(&[
            ("model_channels", self.model_channels),
            ("context_dim", self.context_dim),
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("head_dim", self.head_dim),
            ("init_attn_heads", self.init_attn_heads),
            ("primary_context", self.primary_context),
        ])?;
        check_depths(&[
            ("num_res_blocks", self.num_res_blocks),
            ("transformer_depth", self.transformer_depth),
        ])?;
        check_divides(
            ("groups", self.groups),
            ("model_channels", self.model_channels),
        )?;
        check_even("model_channels", self.model_channels)?;
        for mult in &self.channel_mult {
            check_widths(&[("channel_mult", *mult)])?;
            let channels = ("a level's channels", mult * self.model_channels);
            check_widths(&[channels])?;
            check_divides(("head_dim", self.head_dim), channels)?;
            check_divides(("groups", self.groups), channels)?;
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(SizeError::new(format!(
                "dropout is {}, not from 0 to below 1",
                self.dropout
            )));
        }
        Ok(())
    }
}

impl Unet {
    /// Computes the keys and values of all attention to a context. They are the same at all timesteps, so a
    /// sampler computes them once. They have the element type of the context, which must be that of the
    /// latents.
    pub fn encode_context(&self, context: &Context) -> UnetContext {
        let middle = std::iter::once(&self.middle);
        let blocks = self
            .input_blocks
            .iter()
            .chain(middle)
            .chain(&self.output_blocks);
        let spatial = blocks.filter_map(|block| block.spatial.as_ref());
        UnetContext {
            blocks: spatial.map(|spatial| spatial.encode(context)).collect(),
            frames: context.frames(),
        }
    }

    /// Predicts v (or ε, as trained) of noisy latents, computed in the type of the latents.
    ///
    /// # Arguments
    /// - `latents`: `[batch, in_channels, frames, height, width]`. Height and width are multiples of
    ///   [`UnetConfig::downsampling`].
    /// - `timesteps`: `[batch]`, 0 to 999.
    /// - `context`: what the frames attend to. `[batch, tokens, context_dim]` is shared by all frames.
    /// - `fs`: `[batch]`, the frame stride. The default is that of the configuration.
    ///
    /// Returns `[batch, out_channels, frames, height, width]`.
    ///
    /// # Panics
    /// If a context per frame has another number of frames than the latents.
    pub fn forward(
        &self,
        latents: Tensor<5>,
        timesteps: Tensor<1>,
        context: impl Into<Context>,
        fs: Option<Tensor<1>>,
    ) -> Tensor<5> {
        let context = context.into().cast(latents.dtype());
        let frames = context.frames();
        self.run(latents, timesteps, frames, fs, |spatial, x| {
            recompute(spatial, (x, context.clone()), |spatial, (x, context)| {
                spatial.forward(x, &spatial.encode(&context))
            })
        })
    }

    /// Like [`forward`](Self::forward), with a context that is already encoded.
    ///
    /// # Panics
    /// Those of [`forward`](Self::forward).
    pub fn forward_encoded(
        &self,
        latents: Tensor<5>,
        timesteps: Tensor<1>,
        context: &UnetContext,
        fs: Option<Tensor<1>>,
    ) -> Tensor<5> {
        let mut blocks = context.blocks.iter();
        self.run(latents, timesteps, context.frames, fs, |spatial, x| {
            spatial.forward(x, blocks.next().expect("one for each transformer"))
        })
    }

    /// Runs the network. `spatial` applies a spatial transformer with its part of the context.
    fn run(
        &self,
        latents: Tensor<5>,
        timesteps: Tensor<1>,
        context_frames: Option<usize>,
        fs: Option<Tensor<1>>,
        mut spatial: impl FnMut(&SpatialTransformer, Tensor<4>) -> Tensor<4>,
    ) -> Tensor<5> {
        let [batch, channels, frames, height, width] = latents.dims();
        if let Some(expected) = context_frames {
            assert_eq!(expected, frames, "frames of the context and of the latents");
        }
        let fs = fs.unwrap_or_else(|| timesteps.zeros_like() + self.default_fs);
        let dtype = latents.dtype();
        let embedding =
            self.time_embed.forward(timesteps, dtype) + self.fs_embed.forward(fs, dtype);
        let embedding = silu(embedding);

        // Channels last from here to the end, so no layer has to transpose.
        let x = latents
            .permute([0, 2, 3, 4, 1])
            .reshape([batch * frames, height, width, channels]);
        let mut x = self.init_attn.forward(conv2d_last(&self.conv_in, x), batch);

        let mut skips = vec![x.clone()];
        for block in &self.input_blocks {
            x = block.forward(x, embedding.clone(), &mut spatial);
            skips.push(x.clone());
        }
        x = self.middle.forward(x, embedding.clone(), &mut spatial);
        x = self.middle_out.forward(x, embedding.clone());
        for block in &self.output_blocks {
            let skip = skips
                .pop()
                .expect("a block up for each output on the way down");
            let x_and_skip = Tensor::cat(vec![x, skip], 3);
            x = block.forward(x_and_skip, embedding.clone(), &mut spatial);
        }

        let x = conv2d_last(&self.conv_out, group_norm(&self.norm_out, x, true));
        let channels = x.dims()[3];
        x.reshape([batch, frames, height, width, channels])
            .permute([0, 4, 1, 2, 3])
    }
}

/// An encoded context, see [`Unet::encode_context`].
#[derive(Debug, Clone)]
pub struct UnetContext {
    /// For each spatial transformer of the UNet: the parts for each block of the transformer.
    blocks: Vec<Vec<Vec<KeysValues>>>,
    /// Number of frames, if each has its own tokens.
    frames: Option<usize>,
}

impl UnetBlock {
    fn forward(
        &self,
        mut x: Tensor<4>,
        embedding: Tensor<2>,
        mut spatial: impl FnMut(&SpatialTransformer, Tensor<4>) -> Tensor<4>,
    ) -> Tensor<4> {
        let batch = embedding.dims()[0];
        if let Some(res) = &self.res {
            x = res.forward(x, embedding);
        }
        if let Some(transformer) = &self.spatial {
            x = spatial(transformer, x);
        }
        if let Some(temporal) = &self.temporal {
            x = temporal.forward(x, batch);
        }
        match &self.resample {
            Some(resample) => resample.forward(x),
            None => x,
        }
    }
}

impl Resample {
    fn down(channels: usize, device: &Device) -> Self {
        Self {
            conv: Conv2dConfig::new([channels, channels], [3, 3])
                .with_stride([2, 2])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(device),
            up: false,
        }
    }

    fn up(channels: usize, device: &Device) -> Self {
        Self {
            conv: conv3x3([channels, channels], device),
            up: true,
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        conv2d_last(&self.conv, if self.up { double_size(x) } else { x })
    }
}

/// Doubles height and width, nearest neighbour: `[n, height, width, channels]` →
/// `[n, 2·height, 2·width, channels]`.
pub(crate) fn double_size(x: Tensor<4>) -> Tensor<4> {
    let [n, height, width, channels] = x.dims();
    x.reshape([n, height, 1, width, 1, channels])
        .expand([n, height, 2, width, 2, channels])
        .reshape([n, 2 * height, 2 * width, channels])
}
