//! Training samples.

mod sample;

pub use sample::{Medium, Reason, Sample, Samples, Skip, Text, Turn};
