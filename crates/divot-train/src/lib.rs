#![doc = include_str!("../README.md")]

pub mod checkpoint;
mod error;
mod model;
pub mod objective;
mod optimizer;
mod parameters;
mod recipe;

mod schedule;
mod trainer;

pub use error::{Error, Result};
pub use model::{Model, ModelConfig, Network, Start};
pub use optimizer::{Optimizer, OptimizerConfig, gradient_norm};
pub use parameters::{Count, count};
pub use recipe::{
    CheckpointSettings, ModelSettings, ObjectiveSettings, Recipe, Settings, ValidationSettings,
};

pub use schedule::{Decay, RateConfig};
pub use trainer::{StepReport, Trainer};
