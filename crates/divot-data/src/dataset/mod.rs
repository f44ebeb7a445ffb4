//! Training samples.

mod annotations;
mod archive;
mod config;
mod files;
mod media;
mod python;
mod records;
mod sample;
mod source;
mod table;

pub use config::{Columns, Filter, Format, SourceConfig};
pub use sample::{Medium, Reason, Sample, Samples, Skip, Text, Turn};
pub use source::Source;
