use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor};
use divot_nn::ops::{channels_first, channels_last, conv2d_last, group_norm};
use divot_nn::{
    CheckSizes, SizeError, check_depths, check_divides, check_widths, multi_head_attention,
    recompute,
};

use crate::resblock::conv3x3;
use crate::unet::double_size;

divot_nn::config! {
    /// Sizes of the KL autoencoder.
    pub struct VaeConfig {
    }
    defaults {
        /// Channels at the first level.
        pub channels, with_channels: usize = 128,
        /// Channels of each level, relative to those of the first.
        pub channel_mult, with_channel_mult: Vec<usize> = vec![1, 2, 4, 4],
        /// Residual blocks in each level of the encoder. There is one more in the decoder.
        pub num_res_blocks, with_num_res_blocks: usize = 2,
        /// Channels of the latents.
        pub latent_channels, with_latent_channels: usize = 4,
        /// Factor from the autoencoder's latents to the diffusion latents.
        pub scale_factor, with_scale_factor: f64 = 0.18215,
        /// Groups of the group norms. They divide the channels of every level.
        pub groups, with_groups: usize = 32,
        /// Side of the squares of pixels that are folded into channels before the encoder and unfolded after
        /// the decoder. Released: 1, which folds nothing. With 4, a small autoencoder learns faster.
        pub patch_size, with_patch_size: usize = 1,
    }
}

/// Frames of together so many pixels are encoded or decoded at a time.
const PIXELS: usize = 256 * 256;

/// Stable Diffusion's KL autoencoder: 83.7 M parameters with the default sizes.
///
/// Group norms have epsilon 1e-6. The middle has single-head attention. Downsampling pads only right and
/// bottom.
#[derive(Module, Debug)]
pub struct Vae {
    /// Images to moments.
    pub encoder: Encoder,
    /// Latents to images.
    pub decoder: Decoder,
    /// 1x1 convolution of the moments.
    pub quant_conv: Conv2d,
    /// 1x1 convolution of the latents.
    pub post_quant_conv: Conv2d,
    /// Factor from the autoencoder's latents to the diffusion latents.
    pub scale_factor: f64,
    /// Side of the squares of pixels that are folded into channels.
    pub patch_size: usize,
}

/// The diagonal Gaussian that the encoder returns.
#[derive(Debug, Clone)]
pub struct Gaussian {
    /// Mean, `[batch, latent_channels, height, width]`.
    pub mean: Tensor<4>,
    /// Logarithm of the variance, of the same shape, clamped to [-30, 20].
    pub logvar: Tensor<4>,
}

impl Gaussian {
    /// Returns a sample, from standard normal noise of the mean's shape.
    pub fn sample(self, noise: Tensor<4>) -> Tensor<4> {
        let noise = noise.cast(self.mean.dtype());
        self.mean + (self.logvar * 0.5).exp() * noise
    }
}

/// Images to moments.
#[derive(Module, Debug)]
pub struct Encoder {
    /// First convolution.
    pub conv_in: Conv2d,
    /// The levels, finest first.
    pub levels: Vec<Level>,
    /// The middle.
    pub middle: Middle,
    /// Norm before the last convolution.
    pub norm_out: GroupNorm,
    /// Last convolution.
    pub conv_out: Conv2d,
}

/// Latents to images.
#[derive(Module, Debug)]
pub struct Decoder {
    /// First convolution.
    pub conv_in: Conv2d,
    /// The middle.
    pub middle: Middle,
    /// The levels, coarsest first.
    pub levels: Vec<Level>,
    /// Norm before the last convolution.
    pub norm_out: GroupNorm,
    /// Last convolution.
    pub conv_out: Conv2d,
}

/// The residual blocks of one resolution, and the change to the next resolution.
#[derive(Module, Debug)]
pub struct Level {
    /// Residual blocks.
    pub blocks: Vec<VaeResBlock>,
    /// Convolution that changes the resolution. The last level has none.
    pub resample: Option<Conv2d>,
}

/// Residual block, attention, residual block.
#[derive(Module, Debug)]
pub struct Middle {
    /// First residual block.
    pub block1: VaeResBlock,
    /// Attention.
    pub attn: VaeAttention,
    /// Second residual block.
    pub block2: VaeResBlock,
}

/// Two convolutions with a residual connection.
#[derive(Module, Debug)]
pub struct VaeResBlock {
    /// Norm before the first convolution.
    pub norm1: GroupNorm,
    /// First convolution.
    pub conv1: Conv2d,
    /// Norm before the second convolution.
    pub norm2: GroupNorm,
    /// Second convolution.
    pub conv2: Conv2d,
    /// 1x1 convolution of the residual, if the number of channels changes.
    pub skip: Option<Conv2d>,
}

/// Single-head attention over all positions of an image, with 1x1 convolutions.
#[derive(Module, Debug)]
pub struct VaeAttention {
    /// Norm before the projections.
    pub norm: GroupNorm,
    /// Queries.
    pub q: Conv2d,
    /// Keys.
    pub k: Conv2d,
    /// Values.
    pub v: Conv2d,
    /// Back to channels.
    pub proj: Conv2d,
}

fn norm(channels: usize, groups: usize, device: &Device) -> GroupNorm {
    GroupNormConfig::new(groups, channels)
        .with_epsilon(1e-6)
        .init(device)
}

fn conv1x1(from: usize, to: usize, device: &Device) -> Conv2d {
    Conv2dConfig::new([from, to], [1, 1]).init(device)
}

impl VaeConfig {
    /// Returns the factor between the resolution of an image and that of its latents.
    pub fn downsampling(&self) -> usize {
        self.patch_size << (self.channel_mult.len() - 1)
    }

    /// Initialises the autoencoder.
    pub fn init(&self, device: &Device) -> Vae {
        let latent = self.latent_channels;
        Vae {
            encoder: self.encoder(device),
            decoder: self.decoder(device),
            quant_conv: conv1x1(2 * latent, 2 * latent, device),
            post_quant_conv: conv1x1(latent, latent, device),
            scale_factor: self.scale_factor,
            patch_size: self.patch_size,
        }
    }

    /// Channels of images whose squares are folded.
    fn image_channels(&self) -> usize {
        3 * self.patch_size * self.patch_size
    }

    fn encoder(&self, device: &Device) -> Encoder {
        let groups = self.groups;
        let last = self.channel_mult.len() - 1;
        let mut channels = self.channels;
        let mut levels = Vec::new();
        for (level, mult) in self.channel_mult.iter().enumerate() {
            let out = mult * self.channels;
            let blocks = blocks(self.num_res_blocks, [channels, out], groups, device);
            channels = out;
            levels.push(Level {
                blocks,
                resample: (level < last).then(|| {
                    Conv2dConfig::new([channels, channels], [3, 3])
                        .with_stride([2, 2])
                        .with_padding(PaddingConfig2d::Explicit(0, 0, 1, 1))
                        .init(device)
                }),
            });
        }
        Encoder {
            conv_in: conv3x3([self.image_channels(), self.channels], device),
            levels,
            middle: Middle::new(channels, groups, device),
            norm_out: norm(channels, groups, device),
            conv_out: conv3x3([channels, 2 * self.latent_channels], device),
        }
    }

    fn decoder(&self, device: &Device) -> Decoder {
        let groups = self.groups;
        let mut channels = self.channel_mult.last().copied().unwrap_or(1) * self.channels;
        let conv_in = conv3x3([self.latent_channels, channels], device);
        let middle = Middle::new(channels, groups, device);
        let mut levels = Vec::new();
        for (level, mult) in self.channel_mult.iter().enumerate().rev() {
            let out = mult * self.channels;
            let blocks = blocks(self.num_res_blocks + 1, [channels, out], groups, device);
            channels = out;
            levels.push(Level {
                blocks,
                resample: (level > 0).then(|| conv3x3([channels, channels], device)),
            });
        }
        Decoder {
            conv_in,
            middle,
            levels,
            norm_out: norm(channels, groups, device),
            conv_out: conv3x3([channels, self.image_channels()], device),
        }
    }
}

impl CheckSizes for VaeConfig {
    fn check_sizes(&self) -> Result<(), SizeError> {
        if !(1..=16).contains(&self.channel_mult.len()) {
            return Err(SizeError::new("channel_mult does not give 1 to 16 levels"));
        }
        check_widths(&[
            ("channels", self.channels),
            ("latent_channels", self.latent_channels),
            ("patch_size", self.patch_size),
            ("the channels of a square", self.image_channels()),
        ])?;
        check_depths(&[("num_res_blocks", self.num_res_blocks)])?;
        check_divides(("groups", self.groups), ("channels", self.channels))?;
        for mult in &self.channel_mult {
            check_widths(&[
                ("channel_mult", *mult),
                ("a level's channels", mult * self.channels),
            ])?;
        }
        if !(self.scale_factor.is_finite() && self.scale_factor > 0.0) {
            return Err(SizeError::new(format!(
                "scale_factor is {}, not above 0",
                self.scale_factor
            )));
        }
        Ok(())
    }
}

/// Initialises `count` residual blocks. The first one changes the channels.
fn blocks(
    count: usize,
    [from, to]: [usize; 2],
    groups: usize,
    device: &Device,
) -> Vec<VaeResBlock> {
    (0..count)
        .map(|i| VaeResBlock::new(if i == 0 { from } else { to }, to, groups, device))
        .collect()
}

impl Vae {
    /// Returns the factor between the resolution of an image and that of its latents.
    pub fn downsampling(&self) -> usize {
        let levels = self.encoder.levels.iter();
        self.patch_size << levels.filter(|level| level.resample.is_some()).count()
    }

    /// Computes the distribution of the latents, without the scale factor.
    ///
    /// `images`: `[batch, 3, height, width]`, RGB in [-1, 1]. Height and width are multiples of
    /// [`VaeConfig::downsampling`], d. Returns `[batch, latent_channels, height/d, width/d]`.
    pub fn encode(&self, images: Tensor<4>) -> Gaussian {
        let moments = self.encoder.forward(fold(images, self.patch_size));
        let moments = channels_first(conv2d_last(&self.quant_conv, moments));
        let channels = moments.dims()[1] / 2;
        Gaussian {
            mean: moments.clone().narrow(1, 0, channels),
            logvar: moments.narrow(1, channels, channels).clamp(-30.0, 20.0),
        }
    }

    /// Decodes latents without the scale factor to images: `[batch, latent_channels, h, w]` →
    /// `[batch, 3, h·d, w·d]`, RGB in about [-1, 1].
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        let latents = conv2d_last(&self.post_quant_conv, channels_last(latents));
        unfold(self.decoder.forward(latents), self.patch_size)
    }

    /// Computes the diffusion latents of a clip: the mean of each frame's distribution, or a sample with
    /// `noise`, times the scale factor.
    ///
    /// `clip`: `[batch, 3, frames, height, width]`, RGB in [-1, 1]. Returns
    /// `[batch, latent_channels, frames, height/d, width/d]`. `noise` has the shape of the result.
    pub fn encode_clip(&self, clip: Tensor<5>, noise: Option<Tensor<5>>) -> Tensor<5> {
        let batch = clip.dims()[0];
        let moments = self.encode_frames(clip);
        let latents = match noise {
            Some(noise) => moments.sample(to_frames(noise)),
            None => moments.mean,
        };
        to_clip(latents * self.scale_factor, batch)
    }

    /// Encodes the frames of a clip. Memory holds the activations of as many as are encoded at a time.
    fn encode_frames(&self, clip: Tensor<5>) -> Gaussian {
        let [_, _, _, height, width] = clip.dims();
        let frames = to_frames(clip).split(at_a_time(height * width), 0);
        let moments = frames.into_iter().map(|frames| {
            let Gaussian { mean, logvar } = self.encode(frames);
            (mean, logvar)
        });
        let (means, logvars) = moments.unzip();
        Gaussian {
            mean: Tensor::cat(means, 0),
            logvar: Tensor::cat(logvars, 0),
        }
    }

    /// Computes the distribution of the latents of a clip's frames, without the scale factor.
    ///
    /// `clip`: `[batch, 3, frames, height, width]`, RGB in [-1, 1]. Returns mean and logarithm of the variance,
    /// `[batch, latent_channels, frames, height/d, width/d]` each.
    pub fn clip_moments(&self, clip: Tensor<5>) -> [Tensor<5>; 2] {
        let batch = clip.dims()[0];
        let Gaussian { mean, logvar } = self.encode_frames(clip);
        [mean, logvar].map(|frames| to_clip(frames, batch))
    }

    /// Draws the diffusion latents of a clip from the distribution that [`clip_moments`](Self::clip_moments) gives, as
    /// [`encode_clip`](Self::encode_clip) does. All shapes are those of the moments.
    pub fn draw_latents(&self, moments: [Tensor<5>; 2], noise: Tensor<5>) -> Tensor<5> {
        let batch = noise.dims()[0];
        let [mean, logvar] = moments.map(to_frames);
        let latents = Gaussian { mean, logvar }.sample(to_frames(noise));
        to_clip(latents * self.scale_factor, batch)
    }

    /// Decodes the diffusion latents of a clip: `[batch, latent_channels, frames, h, w]` →
    /// `[batch, 3, frames, h·d, w·d]`, RGB in about [-1, 1]. Memory holds the activations of one frame of
    /// 256 x 256 pixels, or of as many smaller ones.
    pub fn decode_clip(&self, latents: Tensor<5>) -> Tensor<5> {
        let [batch, _, _, height, width] = latents.dims();
        let count = at_a_time(height * width * self.downsampling().pow(2));
        let frames = to_frames(latents / self.scale_factor);
        let images = frames
            .split(count, 0)
            .into_iter()
            .map(|frames| self.decode(frames))
            .collect();
        to_clip(Tensor::cat(images, 0), batch)
    }
}

/// How many frames of so many pixels are encoded or decoded at a time.
fn at_a_time(pixels: usize) -> usize {
    (PIXELS / pixels.max(1)).max(1)
}

/// Folds squares of pixels into channels: `[n, 3, height, width]` → `[n, height/side, width/side, 3·side²]`.
fn fold(images: Tensor<4>, side: usize) -> Tensor<4> {
    if side == 1 {
        return channels_last(images);
    }
    let [n, channels, height, width] = images.dims();
    let [rows, columns] = [height / side, width / side];
    images
        .reshape([n, channels, rows, side, columns, side])
        .permute([0, 2, 4, 1, 3, 5])
        .reshape([n, rows, columns, channels * side * side])
}

/// The inverse of [`fold`].
fn unfold(x: Tensor<4>, side: usize) -> Tensor<4> {
    if side == 1 {
        return channels_first(x);
    }
    let [n, rows, columns, folded] = x.dims();
    let channels = folded / (side * side);
    x.reshape([n, rows, columns, channels, side, side])
        .permute([0, 3, 1, 4, 2, 5])
        .reshape([n, channels, rows * side, columns * side])
}

/// Reshapes `[batch, channels, frames, height, width]` to `[batch·frames, channels, height, width]`.
fn to_frames(clip: Tensor<5>) -> Tensor<4> {
    let [batch, channels, frames, height, width] = clip.dims();
    clip.swap_dims(1, 2)
        .reshape([batch * frames, channels, height, width])
}

/// Reshapes `[batch·frames, channels, height, width]` to `[batch, channels, frames, height, width]`.
fn to_clip(frames: Tensor<4>, batch: usize) -> Tensor<5> {
    let [n, channels, height, width] = frames.dims();
    frames
        .reshape([batch, n / batch, channels, height, width])
        .swap_dims(1, 2)
}

impl Encoder {
    /// Encodes `[batch, height, width, channels]` to `[batch, height/d, width/d, 2·latent_channels]`.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<4> {
        let mut x = conv2d_last(&self.conv_in, images);
        for level in &self.levels {
            x = level.blocks.iter().fold(x, |x, block| block.forward(x));
            if let Some(conv) = &level.resample {
                x = conv2d_last(conv, x);
            }
        }
        let x = self.middle.forward(x);
        conv2d_last(&self.conv_out, group_norm(&self.norm_out, x, true))
    }
}

impl Decoder {
    /// Decodes `[batch, h, w, latent_channels]` to `[batch, h·d, w·d, channels]`.
    pub fn forward(&self, latents: Tensor<4>) -> Tensor<4> {
        let mut x = self.middle.forward(conv2d_last(&self.conv_in, latents));
        for level in &self.levels {
            x = level.blocks.iter().fold(x, |x, block| block.forward(x));
            if let Some(conv) = &level.resample {
                x = conv2d_last(conv, double_size(x));
            }
        }
        conv2d_last(&self.conv_out, group_norm(&self.norm_out, x, true))
    }
}

impl Middle {
    fn new(channels: usize, groups: usize, device: &Device) -> Self {
        Self {
            block1: VaeResBlock::new(channels, channels, groups, device),
            attn: VaeAttention {
                norm: norm(channels, groups, device),
                q: conv1x1(channels, channels, device),
                k: conv1x1(channels, channels, device),
                v: conv1x1(channels, channels, device),
                proj: conv1x1(channels, channels, device),
            },
            block2: VaeResBlock::new(channels, channels, groups, device),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.block2
            .forward(self.attn.forward(self.block1.forward(x)))
    }
}

impl VaeResBlock {
    fn new(from: usize, to: usize, groups: usize, device: &Device) -> Self {
        Self {
            norm1: norm(from, groups, device),
            conv1: conv3x3([from, to], device),
            norm2: norm(to, groups, device),
            conv2: conv3x3([to, to], device),
            skip: (from != to).then(|| conv1x1(from, to, device)),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        recompute(self, x, |block, x| {
            let h = conv2d_last(&block.conv1, group_norm(&block.norm1, x.clone(), true));
            let h = conv2d_last(&block.conv2, group_norm(&block.norm2, h, true));
            match &block.skip {
                Some(skip) => conv2d_last(skip, x) + h,
                None => x + h,
            }
        })
    }
}

impl VaeAttention {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        recompute(self, x, |layer, x| {
            let size @ [batch, height, width, channels] = x.dims();
            let h = group_norm(&layer.norm, x.clone(), false);
            let [q, k, v] = [&layer.q, &layer.k, &layer.v].map(|conv| {
                conv2d_last(conv, h.clone()).reshape([batch, height * width, channels])
            });
            let h = multi_head_attention(q, k, v, 1, false).reshape(size);
            x + conv2d_last(&layer.proj, h)
        })
    }
}
