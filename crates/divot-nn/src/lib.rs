#![doc = include_str!("../README.md")]

mod activation;
mod attention;
mod check;
mod config;
mod embedding;
#[cfg(feature = "flex")]
mod kernels;
mod loss;
mod noise;
mod norm;
pub mod ops;
#[cfg(feature = "optim")]
pub mod optim;
mod packed;
mod prediction;
pub mod profile;
mod recompute;
mod recycler;
mod rounding;
mod shared;
mod stopped;
mod switch;
mod threads;
mod transformer;
mod vectorised;
mod windows;

pub use activation::Activation;
pub use attention::{SelfAttention, SelfAttentionConfig, attention, multi_head_attention};
pub use check::{
    CheckSizes, SizeError, check_depths, check_divides, check_even, check_same, check_widths,
};
pub use embedding::timestep_embedding;
pub use loss::Loss;
pub use noise::Noise;
pub use norm::{LayerNorm, LayerNormConfig};
pub use packed::{PANEL, PackedLinear, Quantization, SharedBytes};
pub use prediction::Prediction;
pub use recompute::{Inputs, TensorMapper, recompute};
pub use recycler::Recycler;
pub use rounding::{BLOCK, Rounded};
pub use stopped::Stopped;
pub use threads::{awake, compute_on_this_thread};
pub use transformer::{Mlp, TransformerBlock, TransformerBlockConfig};
pub use vectorised::vectorised;
