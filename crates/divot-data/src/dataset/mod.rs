//! Training samples: where they are, in which order they are seen, and threads that read them ahead.
//!
//! A [`Source`] finds the samples of files in one [`Format`]. A [`Loader`] mixes sources and makes batches.

mod archive;
mod config;
mod lines;
mod loader;
mod media;
mod order;
mod ordered;
mod sample;
mod skipped;
mod source;
mod table;

pub use config::{Filter, Format, SourceConfig};
pub use loader::{Batch, Loader, LoaderConfig};
pub use order::Order;
pub use ordered::MixedSource;
pub use sample::{Medium, Reason, Sample, Samples, Skip, Text, Turn};
pub use source::Source;
