#![doc = include_str!("../README.md")]

pub mod checkpoint;
pub mod convert;
pub mod device;
mod error;
mod memory;
mod reconstruct;
mod tokenizer;
pub mod weights;

mod detokenizer;

pub use detokenizer::{Detokenizer, DetokenizerConfig, SamplingConfig};
pub use error::{Error, Result, one_line};
pub use memory::peak_memory;
pub use reconstruct::{Clip, Reconstructor};
pub use divot_nn::Noise;
pub use tokenizer::{Tokenizer, TokenizerConfig};

pub use {divot_data as data, divot_resampler as resampler, divot_unet as unet, divot_vit as vit};
