#![doc = include_str!("../README.md")]

mod activation;
mod attention;
mod transformer;

pub use activation::{Activation, geglu, quick_gelu};
pub use attention::{SelfAttention, SelfAttentionConfig, multi_head_attention};
pub use transformer::{Mlp, TransformerBlock, TransformerBlockConfig};
