//! The commands, one per file.

pub mod cache;
pub mod completions;
pub mod convert;
pub mod data;
pub mod describe;
pub mod detokenize;
pub mod download;
pub mod export;
pub mod generate;
pub mod info;
pub mod reconstruct;
pub mod story;
pub mod tokenize;
pub mod train;
pub mod world;
