#![doc = include_str!("../README.md")]

mod buckets;
mod cache;
pub mod checkpoint;
mod dry_run;
mod error;
mod export;
mod lock;
mod losses;
mod model;
pub mod objective;
mod optimizer;
mod parameters;
mod ranks;
mod recipe;
pub mod record;
mod run;
mod schedule;
mod start;
mod trainer;
mod validation;

pub use buckets::RankSettings;
pub use cache::{CacheOptions, CacheStatus, Cached, cache};
pub use checkpoint::Start;
pub use dry_run::{DryRun, Learning, Plan, dry_run, plan};
pub use error::{Error, Result};
pub use export::{Weights, export, export_released};
pub use losses::Losses;
pub use model::{Model, ModelConfig, Network};
pub use optimizer::{Optimizer, OptimizerConfig, gradient_norm};
pub use parameters::{Count, count};
pub use ranks::Ranks;
pub use recipe::{
    CheckpointSettings, DataSettings, ModelSettings, ObjectiveSettings, Precision, Recipe,
    Settings, ValidationSettings,
};

pub use run::{Event, RunOptions, run};
pub use schedule::{Decay, RateConfig};
pub use trainer::{StepReport, Trainer};
