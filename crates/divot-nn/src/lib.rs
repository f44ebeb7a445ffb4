#![doc = include_str!("../README.md")]

mod activation;
mod attention;
mod check;
mod embedding;
mod noise;
mod transformer;

pub use activation::{Activation, geglu, quick_gelu};
pub use attention::{SelfAttention, SelfAttentionConfig, multi_head_attention};
pub use check::{CheckSizes, SizeError, check_depths, check_divides, check_same, check_widths};
pub use embedding::timestep_embedding;
pub use noise::Noise;
pub use transformer::{Mlp, TransformerBlock, TransformerBlockConfig};
