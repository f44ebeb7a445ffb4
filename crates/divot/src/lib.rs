#![doc = include_str!("../README.md")]

#[cfg(feature = "endpoint")]
pub mod annotate;
pub mod checkpoint;
pub mod convert;
mod detokenizer;
pub mod device;
mod dynamicrafter;
#[cfg(feature = "endpoint")]
pub mod endpoint;
mod error;
mod guidance;
#[cfg(feature = "hub")]
pub mod hub;
mod llm;
mod memory;
mod parts;
pub mod pipeline;
mod progress;
mod save;
mod staging;
mod tokenizer;
pub mod tokens;
mod transnet;
mod unconditional;
pub mod weights;

pub use detokenizer::{Detokenizer, DetokenizerConfig, SamplingConfig};
pub use divot_nn::{Noise, Recycler, compute_on_this_thread};
pub use dynamicrafter::DynamiCrafterConfig;
pub use error::{Error, Result, one_line};
pub use guidance::{Guidance, GuidanceConfig};
pub use llm::{
    Answer, Chat, GenerationConfig, OpenLlm, Scene, Story, StoryEnd, StoryPart, Task, VideoLlm,
};
pub use memory::{available_memory, peak_device_memory, peak_memory};
pub use pipeline::Pipeline;
pub use progress::{Progress, Step};
pub use tokenizer::{Tokenizer, TokenizerConfig};
pub use transnet::TransNet;

pub use {
    divot_data as data, divot_gmm as gmm, divot_llm as language, divot_resampler as resampler,
    divot_unet as unet, divot_vit as vit,
};
