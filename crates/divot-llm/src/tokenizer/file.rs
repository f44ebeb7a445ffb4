//! Reads the files of a tokenizer.

use std::io;
use std::path::Path;

use super::error::{DAMAGED, Result, TokenizerError};

/// Reads a JSON file. Returns `None` if it does not exist.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if !path.exists() {
        return Ok(None);
    }
    serde_json::from_slice(&read(path)?)
        .map(Some)
        .map_err(|error| {
            TokenizerError::file(path, format!("cannot be understood: {error}"), DAMAGED)
        })
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| {
        let (action, remedy) = match source.kind() {
            io::ErrorKind::NotFound => ("find it", "check the path or download the file"),
            io::ErrorKind::PermissionDenied => ("read it", "make it readable"),
            _ => ("read it", "check the disk, or download the file again"),
        };
        TokenizerError::Io {
            path: path.to_path_buf(),
            action,
            remedy,
            source,
        }
    })
}
