use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{DType, Device, Tensor};

/// Scaled dot-product attention over `heads` equal slices of the width.
///
/// # Shapes
/// - `query`: `[batch, queries, width]`
/// - `key`, `value`: `[batch, keys, width]`
/// - output: `[batch, queries, width]`
///
/// With `causal`, query i sees keys 0 to i only. Scores and softmax are in float32 whatever the
/// tensors are: in float16 the scores of wide heads overflow.
///
/// # Panics
/// If `heads` does not divide the width.
pub fn multi_head_attention(
    query: Tensor<3>,
    key: Tensor<3>,
    value: Tensor<3>,
    heads: usize,
    causal: bool,
) -> Tensor<3> {
    let [batch, queries, width] = query.dims();
    let split = |x: Tensor<3>| {
        let [batch, tokens, width] = x.dims();
        x.reshape([batch, tokens, heads, width / heads])
            .swap_dims(1, 2)
    };
    let options = AttentionModuleOptions {
        is_causal: causal,
        ..Default::default()
    };
    let dtype = query.dtype();
    let [query, key, value] = [query, key, value].map(|x| split(x.cast(DType::F32)));
    attention(query, key, value, None, None, options)
        .cast(dtype)
        .swap_dims(1, 2)
        .reshape([batch, queries, width])
}

/// Sizes of a [`SelfAttention`].
#[derive(Config, Debug)]
pub struct SelfAttentionConfig {
    /// Width of the tokens.
    pub width: usize,
    /// Number of heads; divides the width.
    pub heads: usize,
}

/// Multi-head self-attention with query, key and value in one projection.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// `[width]` → `[3·width]`: query, key and value side by side.
    pub qkv: Linear,
    /// `[width]` → `[width]`.
    pub proj: Linear,
    /// Number of heads.
    pub heads: usize,
}

impl SelfAttentionConfig {
    /// Initialises the layer.
    pub fn init(&self, device: &Device) -> SelfAttention {
        SelfAttention {
            qkv: LinearConfig::new(self.width, 3 * self.width).init(device),
            proj: LinearConfig::new(self.width, self.width).init(device),
            heads: self.heads,
        }
    }
}

impl SelfAttention {
    /// `[batch, tokens, width]` → `[batch, tokens, width]`; with `causal`, a token sees itself and
    /// the ones before it.
    pub fn forward(&self, x: Tensor<3>, causal: bool) -> Tensor<3> {
        let width = x.dims()[2];
        let qkv = self.qkv.forward(x);
        let [q, k, v] = [0, 1, 2].map(|part| qkv.clone().narrow(2, part * width, width));
        self.proj
            .forward(multi_head_attention(q, k, v, self.heads, causal))
    }
}
