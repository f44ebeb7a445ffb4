#![doc = include_str!("../README.md")]

use std::path::Path;

use include_dir::{Dir, include_dir};

static MODEL: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/model");

/// Writes the model into a folder that exists: a checkpoint, and sample clips in `clips`.
///
/// # Errors
/// If a file cannot be written.
pub fn unpack(folder: &Path) -> std::io::Result<()> {
    MODEL.extract(folder)
}
