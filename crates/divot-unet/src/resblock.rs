use burn::config::Config;
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig, Conv3d, Conv3dConfig};
use burn::nn::{
    Dropout, DropoutConfig, GroupNorm, GroupNormConfig, Linear, LinearConfig, PaddingConfig2d,
    PaddingConfig3d,
};
use burn::tensor::{Device, Tensor};
use divot_nn::ops::{conv2d_last, dropout, group_norm, linear, temporal_conv};
use divot_nn::recompute;

pub(crate) fn conv3x3(channels: [usize; 2], device: &Device) -> Conv2d {
    Conv2dConfig::new(channels, [3, 3])
        .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
        .init(device)
}

/// Sizes of a [`ResBlock`].
#[derive(Config, Debug)]
pub struct ResBlockConfig {
    /// Input channels.
    pub channels_in: usize,
    /// Output channels.
    pub channels_out: usize,
    /// Width of the time embedding.
    pub embed_dim: usize,
    /// Share of activations dropped in training, before the second convolution and in the
    /// temporal convolutions.
    #[config(default = 0.0)]
    pub dropout: f64,
    /// Whether a temporal convolution block follows.
    #[config(default = true)]
    pub temporal_conv: bool,
    /// Groups of the group norms. They divide the channels.
    #[config(default = 32)]
    pub groups: usize,
}

/// A spatial residual block, conditioned on the time embedding, and the temporal convolutions after it.
/// Group norms have epsilon 1e-5.
#[derive(Module, Debug)]
pub struct ResBlock {
    /// Norm before the first convolution.
    pub norm1: GroupNorm,
    /// First convolution.
    pub conv1: Conv2d,
    /// Time embedding to a shift per channel.
    pub embed: Linear,
    /// Norm before the second convolution.
    pub norm2: GroupNorm,
    /// Second convolution.
    pub conv2: Conv2d,
    /// 1x1 convolution of the residual, if the number of channels changes.
    pub skip: Option<Conv2d>,
    /// The temporal convolutions.
    pub temporal: Option<TemporalConv>,
    /// Dropout before the second convolution.
    pub dropout: Dropout,
}

impl ResBlockConfig {
    /// Initialises the block.
    pub fn init(&self, device: &Device) -> ResBlock {
        let (from, to) = (self.channels_in, self.channels_out);
        ResBlock {
            norm1: GroupNormConfig::new(self.groups, from).init(device),
            conv1: conv3x3([from, to], device),
            embed: LinearConfig::new(self.embed_dim, to).init(device),
            norm2: GroupNormConfig::new(self.groups, to).init(device),
            conv2: conv3x3([to, to], device),
            skip: (from != to).then(|| Conv2dConfig::new([from, to], [1, 1]).init(device)),
            temporal: self
                .temporal_conv
                .then(|| TemporalConv::new(to, self.groups, self.dropout, device)),
            dropout: DropoutConfig::new(self.dropout).init(),
        }
    }
}

impl ResBlock {
    /// `x`: `[batch·frames, height, width, channels_in]`. `embedding`: `[batch, embed_dim]` after its SiLU,
    /// one for all frames of a clip. Returns `[batch·frames, height, width, channels_out]`.
    pub fn forward(&self, x: Tensor<4>, embedding: Tensor<2>) -> Tensor<4> {
        recompute(self, (x, embedding), |block, (x, embedding)| {
            block.compute(x, embedding)
        })
    }

    fn compute(&self, x: Tensor<4>, embedding: Tensor<2>) -> Tensor<4> {
        let batch = embedding.dims()[0];
        let shift = linear(&self.embed, embedding).unsqueeze_dim::<3>(1);

        let h = conv2d_last(&self.conv1, group_norm(&self.norm1, x.clone(), true));
        let [n, height, width, channels] = h.dims();
        let clip = [batch, n / batch * height * width, channels];
        let h = (h.reshape(clip) + shift).reshape([n, height, width, channels]);
        let h = dropout(&self.dropout, group_norm(&self.norm2, h, true));
        let h = conv2d_last(&self.conv2, h);
        let x = match &self.skip {
            Some(skip) => conv2d_last(skip, x),
            None => x,
        };
        let x = x + h;
        match &self.temporal {
            Some(temporal) => temporal.forward(x, batch),
            None => x,
        }
    }
}

/// Four convolutions over time (kernel 3x1x1) with a residual connection.
#[derive(Module, Debug)]
pub struct TemporalConv {
    /// Norm, SiLU (dropout from the second on) and convolution, four times.
    pub layers: Vec<TemporalConvLayer>,
    /// Dropout before every convolution except the first.
    pub dropout: Dropout,
}

/// Group norm and the convolution over time after it.
#[derive(Module, Debug)]
pub struct TemporalConvLayer {
    /// Norm over frames, height and width, with epsilon 1e-5.
    pub norm: GroupNorm,
    /// Convolution over time.
    pub conv: Conv3d,
}

impl TemporalConv {
    /// Initialises the four convolutions. `groups` are those of the group norms.
    pub fn new(channels: usize, groups: usize, dropout: f64, device: &Device) -> Self {
        let layer = || TemporalConvLayer {
            norm: GroupNormConfig::new(groups, channels).init(device),
            conv: Conv3dConfig::new([channels, channels], [3, 1, 1])
                .with_padding(PaddingConfig3d::Explicit(1, 0, 0))
                .init(device),
        };
        Self {
            layers: (0..4).map(|_| layer()).collect(),
            dropout: DropoutConfig::new(dropout).init(),
        }
    }

    /// Applies the convolutions to `[batch·frames, height, width, channels]`.
    pub fn forward(&self, x: Tensor<4>, batch: usize) -> Tensor<4> {
        let size @ [n, height, width, channels] = x.dims();
        let clip = x
            .clone()
            .reshape([batch, n / batch, height, width, channels]);
        let mut h = clip;
        for (i, layer) in self.layers.iter().enumerate() {
            h = group_norm(&layer.norm, h, true);
            if i > 0 {
                h = dropout(&self.dropout, h);
            }
            h = temporal_conv(&layer.conv, h);
        }
        x + h.reshape(size)
    }
}
