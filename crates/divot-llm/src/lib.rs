#![doc = include_str!("../README.md")]

mod cache;
mod error;
mod generate;
mod layout;
mod lora;
mod mask;
mod mistral;
mod model;
mod projection;
mod prompt;
mod rotary;
mod sampling;
mod sequence;
pub mod tokenizer;
mod training;

pub use cache::KvCache;
pub use divot_gmm as gmm;
pub use divot_nn::{Loss, PackedLinear, Quantization};
pub use error::LlmError;
pub use generate::{Context, FinishReason, Generated, Rules};
pub use layout::{Layout, Role};
pub use lora::{LoraConfig, LoraLinear, LoraTarget};
pub use mistral::{Attention, DecoderLayer, Mistral, MistralConfig, SwiGlu};
pub use model::{DivotLlm, DivotLlmConfig, FeatureProjection, QueryMechanism};
pub use projection::Projection;
pub use prompt::{Medium, Prompt, Shown, SpecialTokens};
pub use sampling::{FrameOrder, TextSampling};
pub use sequence::{Sequence, SequenceBuilder, Turn};
pub use tokenizer::TextTokenizer;
pub use training::{Batch, Losses};
