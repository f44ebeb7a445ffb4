//! What is to be converted: a part and the files that it comes from.

use std::path::{Path, PathBuf};

use crate::checkpoint::Part;
use crate::error::{Error, Result};
use crate::weights::holds_weights;

/// One part to convert: the files it comes from and the folder it goes to.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The part.
    pub part: Part,
    /// Files or folders with the tensors, in order of precedence; for a language model, the folder of
    /// its text tokenizer too.
    pub sources: Vec<PathBuf>,
    /// What becomes of LoRA's matrices, where there are any.
    pub lora: Lora,
}

/// What a conversion does with LoRA's matrices.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Lora {
    /// They stay apart, to be trained further. Alpha is not in a checkpoint; without it, it is the
    /// rank, as released.
    Keep {
        /// Their product counts alpha / rank times.
        alpha: Option<f64>,
    },
    /// They are folded into the weights.
    Merge {
        /// Their product counts alpha / rank times.
        alpha: Option<f64>,
    },
}

/// The parts of a download.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Parts that can be converted.
    pub jobs: Vec<Job>,
    /// Parts of the released model that cannot, and the file that each lacks.
    pub lacking: Vec<(Part, PathBuf)>,
}

impl Job {
    /// The parts whose released files are below `from`.
    ///
    /// # Errors
    /// If there are none.
    pub fn find(from: &Path) -> Result<Found> {
        if !from.is_dir() {
            return Err(Error::config(
                from,
                "is not a folder",
                "give the folder that the released files were downloaded into, or name a part and its files",
            ));
        }
        let mut found = Found {
            jobs: Vec::new(),
            lacking: Vec::new(),
        };
        for part in Part::ALL {
            let sources = published(part, from);
            if sources.is_empty() {
                continue;
            }
            let job = Self {
                part,
                sources,
                lora: Lora::Keep { alpha: None },
            };
            match job.sources.iter().find(|source| !source.exists()) {
                None => found.jobs.push(job),
                Some(file) if Part::MODEL.contains(&part) => {
                    found.lacking.push((part, file.clone()));
                }
                Some(_) => {}
            }
        }
        if found.jobs.is_empty() {
            let wanted = Part::Tokenizer.releases()[0].path;
            return Err(Error::config(
                from,
                "holds no released checkpoint",
                format!("it should hold {wanted} and the like, or name a part and its files"),
            ));
        }
        Ok(found)
    }

    /// One part from files, or from folders: sharded checkpoints, or downloads as published.
    pub fn of(part: Part, from: &[impl AsRef<Path>]) -> Self {
        let sources = from
            .iter()
            .map(AsRef::as_ref)
            .flat_map(|from| {
                let published = published(part, from);
                let is_download = published.iter().any(|file| file.exists());
                // A folder that is neither is taken for an incomplete download, so that the missing
                // file is named, unless it looks like a checkpoint.
                let is_checkpoint = from.is_file()
                    || published.is_empty()
                    || (!is_download && (part.is_llm() || holds_weights(from)));
                match is_checkpoint {
                    true => vec![from.to_path_buf()],
                    false => published,
                }
            })
            .collect();
        Self {
            part,
            sources,
            lora: Lora::Keep { alpha: None },
        }
    }
}

/// The released files of a part below a folder of downloads.
fn published(part: Part, from: &Path) -> Vec<PathBuf> {
    let releases = part.releases();
    let paths = releases
        .iter()
        .map(|release| as_published(from, release.path));
    paths.collect()
}

/// A published file, or the same saved in another format: `.safetensors` and so on, or a folder of
/// that name with shards.
fn as_published(from: &Path, file: &str) -> PathBuf {
    let path = from.join(file);
    ["bin", "safetensors", "pt", "pth", "ckpt", ""]
        .iter()
        .map(|extension| path.with_extension(extension))
        .find(|candidate| candidate.exists())
        .unwrap_or(path)
}
