use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor};
use divot_nn::ops::{gelu, linear};
use divot_nn::{
    CheckSizes, LayerNorm, LayerNormConfig, SizeError, check_depths, check_widths,
    multi_head_attention, recompute,
};

/// Attention score of a query and the position that it starts at.
const SCORE: f64 = 13.0;

/// Sizes of a [`PerceiverResampler`].
#[derive(Config, Debug)]
pub struct PerceiverResamplerConfig {
    /// Number of learned queries, which is the number of output tokens.
    pub queries: usize,
    /// Width of the input tokens.
    pub input_dim: usize,
    /// Width of the latents.
    pub width: usize,
    /// Width of the output tokens.
    pub output_dim: usize,
    /// Number of layers.
    #[config(default = 6)]
    pub depth: usize,
    /// Number of attention heads.
    #[config(default = 16)]
    pub heads: usize,
    /// Width of a head.
    #[config(default = 64)]
    pub head_dim: usize,
    /// Ratio of the width of the feed-forward layers to that of the latents.
    #[config(default = 4)]
    pub mlp_ratio: usize,
}

/// Perceiver Resampler: a fixed number of learned queries attend to any number of tokens.
///
/// Attention and feed-forward layers have no biases.
#[derive(Module, Debug)]
pub struct PerceiverResampler {
    /// The learned queries, `[1, queries, width]`.
    pub latents: Param<Tensor<3>>,
    /// Input width to the width of the latents.
    pub proj_in: Linear,
    /// The layers.
    pub layers: Vec<PerceiverLayer>,
    /// Width of the latents to the output width.
    pub proj_out: Linear,
    /// Norm of the output tokens.
    pub norm_out: LayerNorm,
}

/// Cross-attention from the latents to inputs and latents, then a feed-forward layer.
#[derive(Module, Debug)]
pub struct PerceiverLayer {
    /// Norm of the inputs.
    pub norm_inputs: LayerNorm,
    /// Norm of the latents.
    pub norm_latents: LayerNorm,
    /// Latents to queries.
    pub to_q: Linear,
    /// Inputs and latents to keys and values, side by side.
    pub to_kv: Linear,
    /// Heads to latents.
    pub to_out: Linear,
    /// Norm before the feed-forward layer.
    pub norm_mlp: LayerNorm,
    /// To the hidden width.
    pub fc1: Linear,
    /// Back to the width of the latents.
    pub fc2: Linear,
    /// Number of heads.
    pub heads: usize,
}

impl PerceiverResamplerConfig {
    /// The Perceiver of the released de-tokenizer: 64 tokens of width 256 become a context of 125 tokens of
    /// width 1024 (77.0 M parameters).
    pub fn divot_context() -> Self {
        Self::new(125, 256, 1024, 1024)
    }

    /// Initialises the resampler.
    pub fn init(&self, device: &Device) -> PerceiverResampler {
        PerceiverResampler {
            latents: Initializer::Normal {
                mean: 0.0,
                std: (self.width as f64).powf(-0.5),
            }
            .init([1, self.queries, self.width], device),
            proj_in: LinearConfig::new(self.input_dim, self.width).init(device),
            layers: (0..self.depth).map(|_| self.layer(device)).collect(),
            proj_out: LinearConfig::new(self.width, self.output_dim).init(device),
            norm_out: LayerNormConfig::new(self.output_dim).init(device),
        }
    }

    fn layer(&self, device: &Device) -> PerceiverLayer {
        let norm = LayerNormConfig::new(self.width);
        let inner = self.heads * self.head_dim;
        let hidden = self.width * self.mlp_ratio;
        let linear =
            |from: usize, to: usize| LinearConfig::new(from, to).with_bias(false).init(device);
        // Attention scores have a deviation of 3 at first. Attention that is nearly even gives every query the mean of
        // the inputs, in which nothing has a place.
        let sharp = Initializer::Normal {
            mean: 0.0,
            std: (27.0 / self.width as f64).sqrt(),
        };
        PerceiverLayer {
            norm_inputs: norm.init(device),
            norm_latents: norm.init(device),
            to_q: LinearConfig::new(self.width, inner)
                .with_bias(false)
                .with_initializer(sharp)
                .init(device),
            to_kv: linear(self.width, 2 * inner),
            to_out: linear(inner, self.width),
            norm_mlp: norm.init(device),
            fc1: linear(self.width, hidden),
            fc2: linear(hidden, self.width),
            heads: self.heads,
        }
    }
}

impl CheckSizes for PerceiverResamplerConfig {
    fn check_sizes(&self) -> Result<(), SizeError> {
        check_widths(&[
            ("queries", self.queries),
            ("input_dim", self.input_dim),
            ("width", self.width),
            ("output_dim", self.output_dim),
            ("heads", self.heads),
            ("head_dim", self.head_dim),
            ("mlp_ratio", self.mlp_ratio),
        ])?;
        check_depths(&[("depth", self.depth)])
    }
}

impl PerceiverResampler {
    /// Lets each query of a new Perceiver start at an input of its own, spread evenly over them. Their `positions`,
    /// `[inputs, input_dim]`, are what tells the inputs apart in every clip.
    ///
    /// Without this, every query starts with a mixture of all inputs, in which nothing has a place.
    pub fn starting_at(mut self, positions: Tensor<2>) -> Self {
        let [_, queries, width] = self.latents.dims();
        let inputs = positions.dims()[0];
        let chosen: Vec<_> = (0..queries).map(|query| query * inputs / queries).collect();
        let chosen = Tensor::<1, Int>::from_ints(chosen.as_slice(), &positions.device());
        let starts = linear(&self.proj_in, positions.select(0, chosen));
        let size = starts.clone().square().mean_dim(1).sqrt() * (width as f64).sqrt();
        // The score of a query and an input is the similarity of their norms. Latents are keys, too, and both signs keep
        // a query from its own.
        self.latents = with_value(self.latents, (starts / size).neg().unsqueeze());
        if let Some(layer) = self.layers.first_mut() {
            let inner = layer.to_q.weight.dims()[1];
            let sharpness = SCORE * 3.0 / ((inner / layer.heads) as f64).sqrt();
            let keys = layer.to_kv.weight.val().narrow(1, 0, inner);
            layer.to_q.weight = with_value(layer.to_q.weight.clone(), keys * -sharpness);
        }
        self
    }

    /// Applies the resampler: `[batch, tokens, input_dim]` → `[batch, queries, output_dim]`.
    pub fn forward(&self, inputs: Tensor<3>) -> Tensor<3> {
        let batch = inputs.dims()[0];
        let latents = self.latents.val();
        let [_, queries, width] = latents.dims();
        let latents = latents.cast(inputs.dtype()).expand([batch, queries, width]);
        let inputs = linear(&self.proj_in, inputs);
        let latents = self.layers.iter().fold(latents, |latents, layer| {
            layer.forward(inputs.clone(), latents)
        });
        self.norm_out.forward(linear(&self.proj_out, latents))
    }
}

/// The parameter with another value. It is trained if it was.
fn with_value<const D: usize>(param: Param<Tensor<D>>, value: Tensor<D>) -> Param<Tensor<D>> {
    param.map(|old| value.detach().set_require_grad(old.is_require_grad()))
}

impl PerceiverLayer {
    /// Updates the latents. `inputs`: `[batch, tokens, width]`. `latents` and the result:
    /// `[batch, queries, width]`.
    pub fn forward(&self, inputs: Tensor<3>, latents: Tensor<3>) -> Tensor<3> {
        recompute(self, (inputs, latents), |layer, (inputs, latents)| {
            let latents = latents.clone() + layer.attention(inputs, latents);
            let hidden = layer.norm_mlp.forward(latents.clone());
            latents + linear(&layer.fc2, gelu(linear(&layer.fc1, hidden)))
        })
    }

    fn attention(&self, inputs: Tensor<3>, latents: Tensor<3>) -> Tensor<3> {
        let inputs = self.norm_inputs.forward(inputs);
        let latents = self.norm_latents.forward(latents);
        let q = linear(&self.to_q, latents.clone());
        let inner = q.dims()[2];
        let kv = linear(&self.to_kv, Tensor::cat(vec![inputs, latents], 1));
        let k = kv.clone().narrow(2, 0, inner);
        let v = kv.narrow(2, inner, inner);
        linear(
            &self.to_out,
            multi_head_attention(q, k, v, self.heads, false),
        )
    }
}
