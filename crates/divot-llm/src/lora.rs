use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig, Initializer, Linear, LinearConfig};
use burn::tensor::Tensor;
use divot_nn::ops::linear;
use divot_nn::{CheckSizes, SizeError, check_widths};
use serde::{Deserialize, Serialize};

use crate::mistral::Mistral;
use crate::projection::Projection;

/// A projection of a decoder layer, under its released name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraTarget {
    /// Hidden states to queries.
    QProj,
    /// Hidden states to keys.
    KProj,
    /// Hidden states to values.
    VProj,
    /// Heads to hidden states.
    OProj,
    /// Hidden states to gates.
    GateProj,
    /// Hidden states to what is gated.
    UpProj,
    /// Back to hidden states.
    DownProj,
}

impl LoraTarget {
    /// Every projection of a layer.
    pub const ALL: [Self; 7] = [
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::OProj,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
    ];

    /// The released name.
    pub fn name(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OProj => "o_proj",
            Self::GateProj => "gate_proj",
            Self::UpProj => "up_proj",
            Self::DownProj => "down_proj",
        }
    }
}

/// What of a decoder is trained, and by how much: the released recipe by default.
#[derive(Config, Debug)]
pub struct LoraConfig {
    /// Width between the two thin matrices.
    #[config(default = 32)]
    pub rank: usize,
    /// Their product counts alpha / rank times.
    #[config(default = 32.0)]
    pub alpha: f64,
    /// Share of their input that is dropped in training.
    #[config(default = 0.05)]
    pub dropout: f64,
    /// Which projections have them.
    #[config(default = "LoraTarget::ALL.to_vec()")]
    pub targets: Vec<LoraTarget>,
    /// Whether the norms are trained in full.
    #[config(default = true)]
    pub train_norms: bool,
    /// Whether the embeddings and the output head are trained in full.
    #[config(default = true)]
    pub train_embeddings: bool,
}

impl CheckSizes for LoraConfig {
    fn check_sizes(&self) -> Result<(), SizeError> {
        check_widths(&[("rank", self.rank)])?;
        if !self.alpha.is_finite() || !(0.0..1.0).contains(&self.dropout) {
            return Err(SizeError::new(
                "alpha is not finite, or dropout is not from 0 to below 1",
            ));
        }
        Ok(())
    }
}

/// A frozen linear layer with low-rank adaptation: W x + alpha / rank · B A x.
#[derive(Module, Debug)]
pub struct LoraLinear {
    /// W, frozen.
    pub base: Linear,
    /// A, `[input]` → `[rank]`.
    pub lora_a: Linear,
    /// B, `[rank]` → `[output]`; zero at first.
    pub lora_b: Linear,
    /// Of the input of A.
    pub dropout: Dropout,
    /// alpha / rank.
    pub scale: f64,
}

impl LoraConfig {
    /// Adds the two matrices to a layer; the layer's function stays what it was until they are
    /// trained.
    pub fn init(&self, base: Linear) -> LoraLinear {
        // Asked without initialising a weight that is still to be loaded.
        let [input, output] = base.weight.lazy_shape().dims();
        let device = base.weight.lazy_device();
        let thin = |input, output, initializer| {
            LinearConfig::new(input, output)
                .with_bias(false)
                .with_initializer(initializer)
                .init(&device)
        };
        // Uniform within 1 / sqrt(input), as PEFT starts them.
        let uniform = Initializer::KaimingUniform {
            gain: 1.0 / 3f64.sqrt(),
            fan_out_only: false,
        };
        LoraLinear {
            base: base.no_grad(),
            lora_a: thin(input, self.rank, uniform),
            lora_b: thin(self.rank, output, Initializer::Zeros),
            dropout: DropoutConfig::new(self.dropout).init(),
            scale: self.alpha / self.rank as f64,
        }
    }
}

impl LoraLinear {
    /// `[batch, tokens, input]` → `[batch, tokens, output]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let low_rank = linear(&self.lora_a, self.dropout.forward(x.clone()));
        linear(&self.base, x) + linear(&self.lora_b, low_rank) * self.scale
    }

    /// The plain layer that computes the same.
    pub fn merge(self) -> Linear {
        let product = self.lora_a.weight.val().matmul(self.lora_b.weight.val());
        let weight = self.base.weight.val() + product * self.scale;
        Linear {
            weight: Param::from_tensor(weight.detach()),
            bias: self.base.bias,
        }
    }
}

impl Mistral {
    /// Adds LoRA to the projections that `config` names, and freezes all that it does not train.
    ///
    /// # Panics
    /// If the decoder is quantised: only float weights can be adapted.
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

    /// Folds every low-rank product into its weights.
    pub fn merge_lora(mut self) -> Self {
        for (_, slot) in self.layers.iter_mut().flat_map(|l| l.projections_mut()) {
            if let Projection::Lora(lora) = slot.clone() {
                *slot = Projection::Dense(lora.merge());
            }
        }
        self
    }
}
