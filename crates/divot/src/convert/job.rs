//! Conversion jobs: a part and its source files.

use std::path::{Path, PathBuf};

use crate::checkpoint::Part;
use crate::error::{Error, Result};
use crate::weights::holds_weights;

/// The conversion of one part from its source files.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The part.
    pub part: Part,
    /// Files or folders with the tensors, in order of precedence. For a language model, also the folder of
    /// its text tokenizer.
    pub sources: Vec<PathBuf>,
    /// What happens to the matrices of LoRA, if there are any.
    pub lora: Lora,
}

/// What a conversion does with the matrices of LoRA.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Lora {
    /// They stay separate, for further training. A checkpoint does not contain alpha. Without it, alpha is
    /// the rank, as released.
    Keep {
        /// Their product is scaled by alpha / rank.
        alpha: Option<f64>,
    },
    /// They are merged into the weights.
    Merge {
        /// Their product is scaled by alpha / rank.
        alpha: Option<f64>,
    },
}

/// The parts that a download contains.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Parts that can be converted.
    pub jobs: Vec<Job>,
    /// Parts of the released model that cannot be converted, with the file that each lacks.
    pub lacking: Vec<(Part, PathBuf)>,
}

impl Job {
    /// Finds the parts whose released files are in `from`.
    ///
    /// # Errors
    /// If no part is found.
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

    /// Creates a job for one part from files or folders: sharded checkpoints, or downloads as published.
    pub fn of(part: Part, from: &[impl AsRef<Path>]) -> Self {
        let sources = from
            .iter()
            .map(AsRef::as_ref)
            .flat_map(|from| {
                let published = published(part, from);
                let is_download = published.iter().any(|file| file.exists());
                // A folder that is neither is taken for an incomplete download, so that the error names the
                // missing file, unless it looks like a checkpoint.
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

/// Returns the released files of a part in a folder of downloads.
fn published(part: Part, from: &Path) -> Vec<PathBuf> {
    let releases = part.releases();
    let paths = releases
        .iter()
        .map(|release| as_published(from, release.path));
    paths.collect()
}

/// Returns a published file, or the same file in another format: with `.safetensors` or another extension,
/// or a folder of that name with shards.
fn as_published(from: &Path, file: &str) -> PathBuf {
    let path = from.join(file);
    ["bin", "safetensors", "pt", "pth", "ckpt", ""]
        .iter()
        .map(|extension| path.with_extension(extension))
        .find(|candidate| candidate.exists())
        .unwrap_or(path)
}
