#![doc = include_str!("../README.md")]

mod cache;
mod error;
mod generate;
mod lora;
mod mask;
mod mistral;
mod model;
mod projection;
mod prompt;
mod rotary;
mod sampling;
pub mod tokenizer;

pub use cache::KvCache;
pub use divot_gmm as gmm;
pub use divot_nn::{Loss, PackedLinear, Quantization};
pub use error::LlmError;
pub use generate::{Context, FinishReason, Generated, Rules};
pub use lora::{LoraConfig, LoraLinear, LoraTarget};
pub use mask::Role;
pub use mistral::{Attention, DecoderLayer, Mistral, MistralConfig, SwiGlu};
pub use model::{
    Batch, DivotLlm, DivotLlmConfig, FeatureProjection, Losses, QueryMechanism, Sequence,
};
pub use projection::Projection;
pub use prompt::{Prompt, Shown, SpecialTokens};
pub use sampling::{FrameOrder, TextSampling};
pub use tokenizer::TextTokenizer;
