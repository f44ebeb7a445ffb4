#![doc = include_str!("../README.md")]

mod attention;
mod context;
mod ddim;
mod embedding;
mod guidance;
mod multistep;
mod objective;
mod resblock;
mod sampler;
mod schedule;
mod unet;
mod vae;

pub use attention::{
    ContextAttention, FeedForward, KeysValues, SpatialTransformer, SplitContext,
    TemporalTransformer, TransformerBlock, TransformerConfig,
};
pub use context::Context;
pub use ddim::{Ddim, DdimConfig};
pub use divot_nn::{
    CheckSizes, LayerNorm, Loss, Prediction, SizeError, Stopped, timestep_embedding,
};
pub use embedding::TimestepMlp;
pub use guidance::{Denoiser, guide};
pub use multistep::Multistep;
pub use objective::{DiffusionBatch, diffusion_loss};
pub use resblock::{ResBlock, ResBlockConfig, TemporalConv, TemporalConvLayer};
pub use sampler::{Sampler, SamplerConfig, SamplerError, SamplerStep, Solver, Spacing};
pub use schedule::{NoiseSchedule, NoiseScheduleConfig};
pub use unet::{Resample, Unet, UnetBlock, UnetConfig, UnetContext};
pub use vae::{
    Decoder, Encoder, Gaussian, Level, Middle, Vae, VaeAttention, VaeConfig, VaeResBlock,
};
