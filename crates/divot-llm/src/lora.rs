use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig, Initializer, Linear, LinearConfig};
use burn::tensor::Tensor;
use divot_nn::ops::{dropout, linear};
use divot_nn::{CheckSizes, SizeError, check_widths};
use serde::{Deserialize, Serialize};

/// A projection of a decoder layer. The variants have the released names.
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
    /// Hidden states to the values that are gated.
    UpProj,
    /// Gated values to hidden states.
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

    /// Returns the released name.
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

/// Which weights of a decoder are trained, and the sizes of LoRA. The defaults are the released ones.
#[derive(Config, Debug)]
pub struct LoraConfig {
    /// Rank of the low-rank matrices.
    #[config(default = 32)]
    pub rank: usize,
    /// Alpha. The product of the matrices is scaled by alpha / rank.
    #[config(default = 32.0)]
    pub alpha: f64,
    /// Dropout rate of the input of the matrices in training.
    #[config(default = 0.05)]
    pub dropout: f64,
    /// The projections that are adapted.
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
    /// B, `[rank]` → `[output]`. It is zero at first.
    pub lora_b: Linear,
    /// Dropout on the input of A.
    pub dropout: Dropout,
    /// alpha / rank.
    pub scale: f64,
}

impl LoraConfig {
    /// Adds the two matrices to a layer. The outputs stay the same until the matrices are trained.
    pub fn init(&self, base: Linear) -> LoraLinear {
        // The lazy shape, because the weight may not be loaded yet.
        let [input, output] = base.weight.lazy_shape().dims();
        let device = base.weight.lazy_device();
        let thin = |input, output, initializer| {
            LinearConfig::new(input, output)
                .with_bias(false)
                .with_initializer(initializer)
                .init(&device)
        };
        // Uniform within 1 / sqrt(input), as PEFT initialises them.
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
    /// Applies the layer: `[batch, tokens, input]` → `[batch, tokens, output]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let low_rank = linear(&self.lora_a, dropout(&self.dropout, x.clone()));
        linear(&self.base, x) + linear(&self.lora_b, low_rank) * self.scale
    }

    /// Adds the low-rank product to the weight.
    pub fn merge(self) -> Linear {
        let product = self.lora_a.weight.val().matmul(self.lora_b.weight.val());
        let weight = self.base.weight.val() + product * self.scale;
        Linear {
            weight: Param::from_tensor(weight.detach()),
            bias: self.base.bias,
        }
    }
}
