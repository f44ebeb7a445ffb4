#![doc = include_str!("../README.md")]

mod perceiver;
mod spatial_temporal;
mod temporal;
mod video;

pub use divot_nn::{CheckSizes, LayerNorm, SizeError, TransformerBlock};
pub use perceiver::{PerceiverLayer, PerceiverResampler, PerceiverResamplerConfig};
pub use spatial_temporal::{SpatialTemporalTransformer, SpatialTemporalTransformerConfig};
pub use temporal::{TemporalTransformer, TemporalTransformerConfig};
pub use video::{VideoResampler, VideoResamplerConfig};
