use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::{GroupNorm, GroupNormConfig, Initializer, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use divot_nn::ops::{geglu, group_norm, linear};
use divot_nn::{LayerNorm, LayerNormConfig, multi_head_attention, recompute};

use crate::Context;

/// Sizes of a [`SpatialTransformer`] or a [`TemporalTransformer`].
#[derive(Config, Debug)]
pub struct TransformerConfig {
    /// Channels of the feature map.
    pub channels: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Number of blocks.
    #[config(default = 1)]
    pub depth: usize,
    /// Groups of the group norm. They divide the channels.
    #[config(default = 32)]
    pub groups: usize,
    /// Number of tokens of a shared context that use the first pair of keys and values.
    #[config(default = 77)]
    pub primary_context: usize,
}

/// Attention of queries over a context, or over the queries themselves.
#[derive(Module, Debug)]
pub struct ContextAttention {
    /// Queries, without bias.
    pub to_q: Linear,
    /// Keys, without bias.
    pub to_k: Linear,
    /// Values, without bias.
    pub to_v: Linear,
    /// Heads back to the width.
    pub to_out: Linear,
    /// The second half of a split context.
    pub split: Option<SplitContext>,
    /// Number of heads.
    pub heads: usize,
}

/// Keys and values of the second part of a context. Their attention is added, scaled by tanh(alpha) + 1.
#[derive(Module, Debug)]
pub struct SplitContext {
    /// Keys, without bias.
    pub to_k: Linear,
    /// Values, without bias.
    pub to_v: Linear,
    /// A learned number, `[1]`.
    pub alpha: Param<Tensor<1>>,
    /// Number of tokens of a shared context that use the first pair of keys and values.
    pub primary_context: usize,
}

impl ContextAttention {
    /// Initialises attention for queries of `width`. `context` is the width of a split context. With
    /// `None`, it is self-attention.
    pub fn new(
        width: usize,
        context: Option<usize>,
        config: &TransformerConfig,
        device: &Device,
    ) -> Self {
        let inner = config.heads * config.head_dim;
        let linear = |from: usize| LinearConfig::new(from, inner).with_bias(false).init(device);
        let source = context.unwrap_or(width);
        Self {
            to_q: linear(width),
            to_k: linear(source),
            to_v: linear(source),
            to_out: LinearConfig::new(inner, width).init(device),
            split: context.map(|context| SplitContext {
                to_k: linear(context),
                to_v: linear(context),
                alpha: Initializer::Zeros.init([1], device),
                primary_context: config.primary_context,
            }),
            heads: config.heads,
        }
    }

    /// Computes the keys and values of the parts of a context. A shared context is split at
    /// [`TransformerConfig::primary_context`], a context per frame into text and frames.
    pub fn encode(&self, context: &Context) -> Vec<KeysValues> {
        let encode = |context: Tensor<3>, to_k: &Linear, to_v: &Linear| KeysValues {
            keys: linear(to_k, context.clone()),
            values: linear(to_v, context),
        };
        let (primary, rest) = match (context, &self.split) {
            (Context::Shared(context), Some(split))
                if context.dims()[1] > split.primary_context =>
            {
                let (tokens, primary) = (context.dims()[1], split.primary_context);
                let rest = context.clone().narrow(1, primary, tokens - primary);
                (context.clone().narrow(1, 0, primary), Some(rest))
            }
            (Context::Shared(context), _) => (context.clone(), None),
            (Context::PerFrame { text, frames }, _) => {
                (text.clone(), Some(frames.clone().flatten::<3>(0, 1)))
            }
        };
        let mut parts = vec![encode(primary, &self.to_k, &self.to_v)];
        if let (Some(split), Some(rest)) = (&self.split, rest) {
            parts.push(encode(rest, &split.to_k, &split.to_v));
        }
        parts
    }

    /// `x`: `[n, queries, width]`. `context` is the result of [`encode`](Self::encode), with a batch that
    /// divides n: consecutive rows of `x` share a context. Without a context, `x` attends to itself.
    pub fn forward(&self, x: Tensor<3>, context: Option<&[KeysValues]>) -> Tensor<3> {
        let own = context.is_none().then(|| self.encode(&x.clone().into()));
        let q = linear(&self.to_q, x);
        let mut parts = context
            .or(own.as_deref())
            .into_iter()
            .flatten()
            .map(|part| {
                let (keys, values) = (part.keys.clone(), part.values.clone());
                multi_head_attention(q.clone(), keys, values, self.heads, false)
            });
        let primary = parts.next().expect("a context has one or two parts");
        let out = match (&self.split, parts.next()) {
            (Some(split), Some(rest)) => {
                let scale = split.alpha.val().tanh() + 1.0;
                let scale = scale.cast(rest.dtype()).unsqueeze::<3>();
                primary + rest * scale
            }
            _ => primary,
        };
        linear(&self.to_out, out)
    }
}

/// Keys and values of a part of a context, `[batch, tokens, heads·head_dim]` each.
#[derive(Debug, Clone)]
pub struct KeysValues {
    keys: Tensor<3>,
    values: Tensor<3>,
}

/// Gated-GELU feed-forward layer, four times as wide inside.
#[derive(Module, Debug)]
pub struct FeedForward {
    /// To value and gate, side by side.
    pub fc1: Linear,
    /// Back to the width.
    pub fc2: Linear,
}

impl FeedForward {
    /// Initialises the layer.
    pub fn new(width: usize, device: &Device) -> Self {
        Self {
            fc1: LinearConfig::new(width, 8 * width).init(device),
            fc2: LinearConfig::new(4 * width, width).init(device),
        }
    }

    /// Applies the layer to `[n, tokens, width]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        linear(&self.fc2, geglu(linear(&self.fc1, x)))
    }
}

/// Self-attention, attention to the context (or self-attention again), and a feed-forward layer. Each has a
/// norm before it and a residual connection.
#[derive(Module, Debug)]
pub struct TransformerBlock {
    /// Norm before the self-attention.
    pub norm1: LayerNorm,
    /// Self-attention.
    pub attn1: ContextAttention,
    /// Norm before the second attention.
    pub norm2: LayerNorm,
    /// Attention to the context, or a second self-attention.
    pub attn2: ContextAttention,
    /// Norm before the feed-forward layer.
    pub norm3: LayerNorm,
    /// Feed-forward layer.
    pub ff: FeedForward,
}

impl TransformerBlock {
    fn new(
        width: usize,
        context: Option<usize>,
        config: &TransformerConfig,
        device: &Device,
    ) -> Self {
        let norm = LayerNormConfig::new(width);
        Self {
            norm1: norm.init(device),
            attn1: ContextAttention::new(width, None, config, device),
            norm2: norm.init(device),
            attn2: ContextAttention::new(width, context, config, device),
            norm3: norm.init(device),
            ff: FeedForward::new(width, device),
        }
    }

    fn forward(&self, x: Tensor<3>, context: Option<&[KeysValues]>) -> Tensor<3> {
        let x = x.clone() + self.attn1.forward(self.norm1.forward(x), None);
        let x = x.clone() + self.attn2.forward(self.norm2.forward(x), context);
        x.clone() + self.ff.forward(self.norm3.forward(x))
    }
}

/// Attention within each frame, and of each position to the context of the clip.
#[derive(Module, Debug)]
pub struct SpatialTransformer {
    /// Group norm with epsilon 1e-6.
    pub norm: GroupNorm,
    /// Channels to the width of the heads.
    pub proj_in: Linear,
    /// The blocks.
    pub blocks: Vec<TransformerBlock>,
    /// Back to channels.
    pub proj_out: Linear,
}

impl SpatialTransformer {
    /// Initialises the transformer. `context_dim` is the width of the context.
    pub fn new(config: &TransformerConfig, context_dim: usize, device: &Device) -> Self {
        let inner = config.heads * config.head_dim;
        Self {
            norm: GroupNormConfig::new(config.groups, config.channels)
                .with_epsilon(1e-6)
                .init(device),
            proj_in: LinearConfig::new(config.channels, inner).init(device),
            blocks: (0..config.depth)
                .map(|_| TransformerBlock::new(inner, Some(context_dim), config, device))
                .collect(),
            proj_out: LinearConfig::new(inner, config.channels).init(device),
        }
    }

    /// Computes the keys and values of the context for each block.
    pub fn encode(&self, context: &Context) -> Vec<Vec<KeysValues>> {
        let blocks = self.blocks.iter();
        blocks.map(|block| block.attn2.encode(context)).collect()
    }

    /// Applies the transformer to `x`, `[batch·frames, height, width, channels]`. `context` is the result
    /// of
    /// [`encode`](Self::encode).
    pub fn forward(&self, x: Tensor<4>, context: &[Vec<KeysValues>]) -> Tensor<4> {
        let size @ [n, height, width, channels] = x.dims();
        let tokens = x.clone().reshape([n, height * width, channels]);
        let tokens = linear(&self.proj_in, group_norm(&self.norm, tokens, false));
        let tokens = self
            .blocks
            .iter()
            .zip(context)
            .fold(tokens, |h, (block, context)| {
                block.forward(h, Some(context))
            });
        x + linear(&self.proj_out, tokens).reshape(size)
    }
}

/// Attention of each position over time.
#[derive(Module, Debug)]
pub struct TemporalTransformer {
    /// Group norm over frames, height and width, with epsilon 1e-6.
    pub norm: GroupNorm,
    /// Channels to the width of the heads.
    pub proj_in: Linear,
    /// The blocks. Both of their attentions are self-attention.
    pub blocks: Vec<TransformerBlock>,
    /// Back to channels.
    pub proj_out: Linear,
}

impl TemporalTransformer {
    /// Initialises the transformer.
    pub fn new(config: &TransformerConfig, device: &Device) -> Self {
        let inner = config.heads * config.head_dim;
        Self {
            norm: GroupNormConfig::new(config.groups, config.channels)
                .with_epsilon(1e-6)
                .init(device),
            proj_in: LinearConfig::new(config.channels, inner).init(device),
            blocks: (0..config.depth)
                .map(|_| TransformerBlock::new(inner, None, config, device))
                .collect(),
            proj_out: LinearConfig::new(inner, config.channels).init(device),
        }
    }

    /// Applies the transformer to `x`, `[batch·frames, height, width, channels]`.
    pub fn forward(&self, x: Tensor<4>, batch: usize) -> Tensor<4> {
        recompute(self, x, move |transformer, x| transformer.compute(x, batch))
    }

    fn compute(&self, x: Tensor<4>, batch: usize) -> Tensor<4> {
        let size @ [n, height, width, channels] = x.dims();
        let (frames, positions) = (n / batch, height * width);
        let clip = x.clone().reshape([batch, frames * positions, channels]);
        let tokens = group_norm(&self.norm, clip, false)
            .reshape([batch, frames, positions, channels])
            .swap_dims(1, 2)
            .reshape([batch * positions, frames, channels]);
        let tokens = self
            .blocks
            .iter()
            .fold(linear(&self.proj_in, tokens), |h, block| {
                block.forward(h, None)
            });
        let h = linear(&self.proj_out, tokens)
            .reshape([batch, positions, frames, channels])
            .swap_dims(1, 2)
            .reshape(size);
        x + h
    }
}
