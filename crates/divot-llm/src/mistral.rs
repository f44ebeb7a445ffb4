//! The Mistral decoder: grouped-query attention with rotary positions and a sliding window, SwiGLU, and RMS
//! norms.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use divot_nn::ops::{rms_norm, silu};
use divot_nn::{
    CheckSizes, SizeError, attention, awake, check_depths, check_divides, check_widths, recompute,
};

use crate::cache::{KvCache, LayerCache};
use crate::layout::{Layout, Place};
use crate::lora::LoraConfig;
use crate::mask::{Mask, attention_mask};
use crate::projection::Projection;
use crate::rotary::{Angles, Rotary};

/// Sizes of a [`Mistral`], under the names of the released `config.json`.
#[derive(Config, Debug)]
pub struct MistralConfig {
    /// Rows of the embedding table and of the output head.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of query heads. It divides the width.
    pub num_attention_heads: usize,
    /// Number of key and value heads. It divides the number of query heads.
    pub num_key_value_heads: usize,
    /// Base of the rotary frequencies.
    #[config(default = 10000.0)]
    pub rope_theta: f64,
    /// Number of positions back that a token sees, including itself. Unlimited if `None`.
    #[config(default = "Some(4096)")]
    pub sliding_window: Option<usize>,
    /// Epsilon of the RMS norms.
    #[config(default = 1e-5)]
    pub rms_norm_eps: f64,
    /// Longest sequence, in tokens.
    #[config(default = 32768)]
    pub max_position_embeddings: usize,
}

impl MistralConfig {
    /// Mistral-7B-Instruct-v0.1 with the extended vocabulary of the released Divot-LLM.
    pub fn mistral_7b() -> Self {
        Self::new(32_262, 4096, 14_336, 32, 32, 8)
    }

    /// Returns the width of a head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Initialises the decoder.
    pub fn init(&self, device: &Device) -> Mistral {
        Mistral {
            embed_tokens: self.init_embedding(device),
            layers: (0..self.num_hidden_layers)
                .map(|_| self.init_layer(device))
                .collect(),
            norm: self.init_norm(device),
            lm_head: self.init_projection(self.hidden_size, self.vocab_size, device),
            rotary: Rotary::new(self.head_dim(), self.rope_theta),
            sliding_window: self.sliding_window,
        }
    }

    pub(crate) fn init_embedding(&self, device: &Device) -> Embedding {
        EmbeddingConfig::new(self.vocab_size, self.hidden_size).init(device)
    }

    pub(crate) fn init_norm(&self, device: &Device) -> RmsNorm {
        RmsNormConfig::new(self.hidden_size)
            .with_epsilon(self.rms_norm_eps)
            .init(device)
    }

    pub(crate) fn init_projection(
        &self,
        input: usize,
        output: usize,
        device: &Device,
    ) -> Projection {
        let linear: Linear = LinearConfig::new(input, output)
            .with_bias(false)
            .init(device);
        Projection::Dense(linear)
    }

    pub(crate) fn init_layer(&self, device: &Device) -> DecoderLayer {
        let projection = |input, output| self.init_projection(input, output, device);
        let keys = self.num_key_value_heads * self.head_dim();
        DecoderLayer {
            input_layernorm: self.init_norm(device),
            self_attn: Attention {
                q_proj: projection(self.hidden_size, self.hidden_size),
                k_proj: projection(self.hidden_size, keys),
                v_proj: projection(self.hidden_size, keys),
                o_proj: projection(self.hidden_size, self.hidden_size),
                heads: self.num_attention_heads,
                key_value_heads: self.num_key_value_heads,
            },
            post_attention_layernorm: self.init_norm(device),
            mlp: SwiGlu {
                gate_proj: projection(self.hidden_size, self.intermediate_size),
                up_proj: projection(self.hidden_size, self.intermediate_size),
                down_proj: projection(self.intermediate_size, self.hidden_size),
            },
        }
    }
}

impl CheckSizes for MistralConfig {
    fn check_sizes(&self) -> Result<(), SizeError> {
        // A vocabulary may be larger than the limit of widths.
        if !(1..=1 << 24).contains(&self.vocab_size) {
            return Err(SizeError::new(format!("vocab_size is {}", self.vocab_size)));
        }
        check_widths(&[
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
        ])?;
        check_depths(&[("num_hidden_layers", self.num_hidden_layers)])?;
        check_divides(
            ("num_attention_heads", self.num_attention_heads),
            ("hidden_size", self.hidden_size),
        )?;
        check_divides(
            ("num_key_value_heads", self.num_key_value_heads),
            ("num_attention_heads", self.num_attention_heads),
        )?;
        if self.head_dim() % 2 == 1 {
            return Err(SizeError::new(format!(
                "the width of a head is odd ({}), but rotary positions rotate pairs",
                self.head_dim()
            )));
        }
        if self.sliding_window == Some(0) || self.max_position_embeddings == 0 {
            return Err(SizeError::new(
                "sliding_window and max_position_embeddings cannot be 0",
            ));
        }
        let positive = |value: f64| value.is_finite() && value > 0.0;
        if !positive(self.rope_theta) || !positive(self.rms_norm_eps) {
            return Err(SizeError::new(
                "rope_theta and rms_norm_eps must be above 0",
            ));
        }
        Ok(())
    }
}

/// A Mistral decoder with its embedding table and output head.
#[derive(Module, Debug)]
pub struct Mistral {
    /// Token ids to hidden states.
    pub embed_tokens: Embedding,
    /// The layers, first to last.
    pub layers: Vec<DecoderLayer>,
    /// The norm after the last layer.
    pub norm: RmsNorm,
    /// Hidden states to scores of tokens.
    pub lm_head: Projection,
    pub(crate) rotary: Rotary,
    pub(crate) sliding_window: Option<usize>,
}

impl Mistral {
    /// Embeds token ids: `[batch, tokens]` → `[batch, tokens, hidden]`.
    ///
    /// The decoder computes in the type of its embeddings, `dtype`. Its weights may have another type.
    pub fn embed(&self, ids: Tensor<2, Int>, dtype: DType) -> Tensor<3> {
        self.embed_tokens.forward(ids).cast(dtype)
    }

    /// Embeds one row of ids like [`embed`](Self::embed): `[1, tokens, hidden]`.
    pub fn embed_ids(&self, ids: &[u32], dtype: DType) -> Tensor<3> {
        let data = TensorData::new(ids.iter().map(|&id| id as i32).collect(), [1, ids.len()]);
        let device = self.norm.gamma.device();
        self.embed(Tensor::<2, Int>::from_data(data, &device), dtype)
    }

    /// Computes the hidden states after the final norm.
    ///
    /// # Arguments
    /// - `embeds`: `[batch, tokens, hidden]`.
    /// - `layout`: roles and positions of the tokens. A block of queries must be complete.
    /// - `cache`: keys and values of the tokens before these. Those of these tokens are added.
    ///
    /// Returns `[batch, tokens, hidden]`, in the type of `embeds`.
    ///
    /// # Panics
    /// If the layout or the cache has another batch size, or the layout another number of tokens.
    pub fn forward(
        &self,
        embeds: Tensor<3>,
        layout: &Layout,
        mut cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let [batch, tokens, _] = embeds.dims();
        assert_eq!(layout.dims(), [batch, tokens], "the layout of other tokens");
        let device = embeds.device();
        let past = cache.as_ref().map_or(0, |cache| cache.len());
        let places = layout.places(past);
        let position = |row: &Vec<_>| row.iter().map(|place: &Place| place.position).collect();
        let positions: Vec<Vec<usize>> = places.iter().map(position).collect();
        let mask = |places: &[_]| attention_mask(places, past, self.sliding_window, &device);
        let mask = match &mut cache {
            Some(cache) => {
                cache.push_places(places);
                mask(cache.places())
            }
            None => mask(&places),
        };
        let angles = self.rotary.angles(&positions, &device);
        awake(&device, || {
            let hidden = match cache {
                Some(cache) => {
                    let layers = self.layers.iter().zip(cache.layers_mut());
                    layers.fold(embeds, |hidden, (layer, cache)| {
                        layer.forward(hidden, &angles, &mask, cache)
                    })
                }
                None => self.layers.iter().fold(embeds, |hidden, layer| {
                    let inputs = (hidden, angles.clone(), mask.clone());
                    recompute(layer, inputs, |layer, (hidden, angles, mask)| {
                        layer.forward(hidden, &angles, &mask, &mut LayerCache::default())
                    })
                }),
            };
            rms_norm(&self.norm, hidden)
        })
    }

    /// Computes the scores of the next token: `[batch, tokens, hidden]` → `[batch, tokens, vocabulary]`, in
    /// f32.
    pub fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.lm_head.forward(hidden).cast(DType::F32)
    }
}

impl Mistral {
    /// Adds LoRA to the projections that `config` names, and freezes all weights that are not trained.
    ///
    /// # Panics
    /// If the decoder is quantised. Only float weights can be adapted.
    pub fn with_lora(mut self, config: &LoraConfig) -> Self {
        for (name, slot) in self.layers.iter_mut().flat_map(|l| l.projections_mut()) {
            let wanted = config.targets.iter().any(|t| name.ends_with(t.name()));
            *slot = match slot.clone() {
                Projection::Dense(linear) if wanted => Projection::Lora(config.init(linear)),
                Projection::Packed(_) => panic!("{name} is quantised and cannot be adapted"),
                other => other.no_grad(),
            };
        }
        if !config.train_norms {
            self.norm = self.norm.no_grad();
            for layer in &mut self.layers {
                layer.input_layernorm = layer.input_layernorm.clone().no_grad();
                layer.post_attention_layernorm = layer.post_attention_layernorm.clone().no_grad();
            }
        }
        if !config.train_embeddings {
            self.embed_tokens = self.embed_tokens.no_grad();
            self.lm_head = self.lm_head.no_grad();
        }
        self
    }

    /// Adds every low-rank product to its weight.
    pub fn merge_lora(mut self) -> Self {
        for (_, slot) in self.layers.iter_mut().flat_map(|l| l.projections_mut()) {
            if let Projection::Lora(lora) = slot.clone() {
                *slot = Projection::Dense(lora.merge());
            }
        }
        self
    }
}

/// Attention and a feed-forward layer, each with a norm before it and a residual connection.
#[derive(Module, Debug)]
pub struct DecoderLayer {
    /// The norm before attention.
    pub input_layernorm: RmsNorm,
    /// Causal self-attention.
    pub self_attn: Attention,
    /// The norm before the feed-forward layer.
    pub post_attention_layernorm: RmsNorm,
    /// The feed-forward layer.
    pub mlp: SwiGlu,
}

impl DecoderLayer {
    /// Returns the projections with their names in the layer.
    pub fn projections_mut(&mut self) -> [(&'static str, &mut Projection); 7] {
        let (attention, mlp) = (&mut self.self_attn, &mut self.mlp);
        [
            ("self_attn.q_proj", &mut attention.q_proj),
            ("self_attn.k_proj", &mut attention.k_proj),
            ("self_attn.v_proj", &mut attention.v_proj),
            ("self_attn.o_proj", &mut attention.o_proj),
            ("mlp.gate_proj", &mut mlp.gate_proj),
            ("mlp.up_proj", &mut mlp.up_proj),
            ("mlp.down_proj", &mut mlp.down_proj),
        ]
    }

    fn forward(
        &self,
        x: Tensor<3>,
        angles: &Angles,
        mask: &Mask,
        cache: &mut LayerCache,
    ) -> Tensor<3> {
        let normed = rms_norm(&self.input_layernorm, x.clone());
        let x = x + self.self_attn.forward(normed, angles, mask, cache);
        let normed = rms_norm(&self.post_attention_layernorm, x.clone());
        x + self.mlp.forward(normed)
    }
}

/// Grouped-query self-attention: several query heads share one head of keys and values.
#[derive(Module, Debug)]
pub struct Attention {
    /// Hidden states to queries.
    pub q_proj: Projection,
    /// Hidden states to keys.
    pub k_proj: Projection,
    /// Hidden states to values.
    pub v_proj: Projection,
    /// Heads to hidden states.
    pub o_proj: Projection,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads.
    pub key_value_heads: usize,
}

impl Attention {
    fn forward(
        &self,
        x: Tensor<3>,
        angles: &Angles,
        mask: &Mask,
        cache: &mut LayerCache,
    ) -> Tensor<3> {
        let [batch, tokens, width] = x.dims();
        let head_dim = width / self.heads;
        let split = |x: Tensor<3>, heads: usize| {
            x.reshape([batch, tokens, heads, head_dim]).swap_dims(1, 2)
        };
        let queries = split(self.q_proj.forward(x.clone()), self.heads);
        let keys = split(self.k_proj.forward(x.clone()), self.key_value_heads);
        let values = split(self.v_proj.forward(x), self.key_value_heads);
        let queries = angles.rotate(queries);
        let (keys, values) = cache.push(angles.rotate(keys), values);
        let heads = attention(queries, keys, values, mask.added.clone(), mask.causal);
        self.o_proj
            .forward(heads.swap_dims(1, 2).reshape([batch, tokens, width]))
    }
}

/// The gated feed-forward layer: down(silu(gate(x)) · up(x)).
#[derive(Module, Debug)]
pub struct SwiGlu {
    /// Hidden states to gates.
    pub gate_proj: Projection,
    /// Hidden states to the values that are gated.
    pub up_proj: Projection,
    /// Gated values to hidden states.
    pub down_proj: Projection,
}

impl SwiGlu {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gate = silu(self.gate_proj.forward(x.clone()));
        self.down_proj.forward(gate * self.up_proj.forward(x))
    }
}
