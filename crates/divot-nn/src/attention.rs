use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, DType, Device, Tensor};

#[cfg(feature = "flex")]
use crate::kernels::{self, Cost};
use crate::ops::linear;

/// Scaled dot-product attention, softmax(q·kᵀ / √head_dim + mask)·v.
///
/// # Shapes
/// - `query`: `[batch, heads, queries, head_dim]`
/// - `key`, `value`: `[shared, key_heads, keys, head_dim]`, where `shared` divides the batch and
///   `key_heads` the heads: consecutive ones share keys and values
/// - `mask`: `[batch or 1, 1, queries, keys]`, added to the scores, f32
/// - output: `[batch, heads, queries, head_dim]`
///
/// With `causal`, query i sees only keys 0 to i, however many of each there are. Scores and softmax are
/// computed in f32 for every element type, because scores of wide heads overflow in f16. The output has
/// the type of the query, which may differ from that of keys and values.
pub fn attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: Option<Tensor<4>>,
    causal: bool,
) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if kernels::apply(&query) && [&key, &value].iter().all(|x| reads(x)) {
        let kernel = kernels::attention::Attention { causal };
        let [query, key, value] = [query, key, value].map(Tensor::into_dispatch);
        return match mask {
            Some(mask) => kernels::run(
                kernel,
                Cost::High,
                [query, key, value, mask.into_dispatch()],
            ),
            None => kernels::run(kernel, Cost::High, [query, key, value]),
        };
    }
    let [batch, heads, queries, head_dim] = query.dims();
    let keys = key.dims()[2];
    let triangle = causal.then(|| {
        let device = query.device();
        let hidden = Tensor::<2, Bool>::tril_mask([queries, keys], 0, &device);
        let open = Tensor::<2>::zeros([queries, keys], (&device, DType::F32));
        open.mask_fill(hidden, f32::NEG_INFINITY).unsqueeze::<4>()
    });
    let mask = match (mask, triangle) {
        (Some(mask), Some(triangle)) => Some(mask + triangle),
        (mask, triangle) => mask.or(triangle),
    };
    let dtype = query.dtype();
    let [key, value] = [key, value].map(|x| share(x, batch, heads));
    let [query, key, value] = [query, key, value].map(|x| x.cast(DType::F32));
    // Burn 0.22's own attention multiplies in float16 on GPUs with tensor cores, whatever the type.
    let query = query * (head_dim as f64).powf(-0.5);
    let scores = query.matmul(key.swap_dims(2, 3));
    let scores = match mask {
        Some(mask) => scores + mask,
        None => scores,
    };
    softmax(scores, 3).matmul(value).cast(dtype)
}

/// Returns whether the kernel reads these keys or values.
#[cfg(feature = "flex")]
fn reads(x: &Tensor<4>) -> bool {
    kernels::apply(x) || (x.dtype() == DType::F16 && kernels::on_flex(&x.device()))
}

/// Repeats each batch and each head in place, up to `batch` and `heads`.
///
/// The batch is repeated with tokens before heads, as a projection leaves them. In the other order, Burn
/// 0.22 computes a wrong gradient on wgpu, which the parity check of a training step shows.
fn share(x: Tensor<4>, batch: usize, heads: usize) -> Tensor<4> {
    let x = repeat(x.swap_dims(1, 2), 0, batch);
    repeat(x, 2, heads).swap_dims(1, 2)
}

/// Repeats each entry of an axis in place, up to `count` entries.
fn repeat(x: Tensor<4>, axis: usize, count: usize) -> Tensor<4> {
    let mut shape = x.dims();
    if shape[axis] == count {
        return x;
    }
    let x = x.unsqueeze_dim::<5>(axis + 1);
    let mut repeated = x.dims();
    repeated[axis + 1] = count / shape[axis];
    shape[axis] = count;
    x.expand(repeated).reshape(shape)
}

/// [`attention`] over `heads` equal slices of the width.
///
/// # Shapes
/// - `query`: `[batch, queries, width]`
/// - `key`, `value`: `[shared, keys, width]`, where `shared` divides the batch
/// - output: `[batch, queries, width]`
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
    let size = query.dims();
    let [query, key, value] = [query, key, value].map(|x| {
        let [batch, tokens, width] = x.dims();
        x.reshape([batch, tokens, heads, width / heads])
            .swap_dims(1, 2)
    });
    attention(query, key, value, None, causal)
        .swap_dims(1, 2)
        .reshape(size)
}

/// Sizes of a [`SelfAttention`].
#[derive(Config, Debug)]
pub struct SelfAttentionConfig {
    /// Width of the tokens.
    pub width: usize,
    /// Number of heads. It divides the width.
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
    /// Applies the layer: `[batch, tokens, width]` → `[batch, tokens, width]`. With `causal`, a token sees
    /// itself and the tokens before it.
    pub fn forward(&self, x: Tensor<3>, causal: bool) -> Tensor<3> {
        let [batch, tokens, width] = x.dims();
        let qkv = linear(&self.qkv, x)
            .reshape([batch, tokens, 3 * self.heads, width / self.heads])
            .swap_dims(1, 2);
        let [q, k, v] = [0, 1, 2].map(|part| qkv.clone().narrow(1, part * self.heads, self.heads));
        let heads = attention(q, k, v, None, causal).swap_dims(1, 2);
        linear(&self.proj, heads.reshape([batch, tokens, width]))
    }
}
