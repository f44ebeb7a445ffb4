//! Files of weights: released checkpoints, their conversion, and our own checkpoint files.
//!
//! | part | what it does |
//! | --- | --- |
//! | [`Source`] | reads PyTorch and safetensors checkpoints, one tensor at a time |
//! | [`module_layout`], [`convert_tensor`] | describe a module's parameters, and convert a released tensor to one |
//! | [`write_safetensors`], [`SafetensorsWriter`] | write a safetensors file, one tensor at a time |
//! | [`write_pytorch`] | writes a state dict that `torch.load` reads, one tensor at a time |
//! | [`Weights`], [`load_module`] | fill modules from a `model.safetensors` |
//! | [`Saver`] | writes modules to a `model.safetensors` |
//! | [`StoredType`] | the element types that a `model.safetensors` may have: floats, or 8 or 4 bits with scales |
//!
//! At most one tensor is in memory besides the module that is being filled, so a checkpoint may be larger
//! than memory. Every error is a [`WeightsError`], whose message is one line with the file, the tensor, the
//! problem and the remedy.

mod callable;
mod eight_bits;
mod layout;
mod load;
mod new_file;
mod packed;
mod pickle;
mod pytorch;
mod pytorch_file;
mod safetensors;
mod save;
mod source;
mod stored;

pub use layout::{ParamPath, ParamSpec, convert_tensor, module_layout};
pub use load::{Weights, load_module};
pub use pytorch_file::write_pytorch;
pub use safetensors::{SafetensorsWriter, TensorSpec, write_safetensors};
pub use save::Saver;
pub use source::{Source, SourceTensor};
pub use stored::StoredType;

pub(crate) use layout::{check_shape, release_tensor};
pub(crate) use save::ParamWriter;
pub(crate) use source::holds_weights;

use std::io;
use std::path::{Path, PathBuf};

// Checkpoints are little-endian and Burn's `TensorData` is native-endian. Bytes are copied between them
// unchanged.
const _: () = assert!(
    cfg!(target_endian = "little"),
    "weights are read on little-endian machines only"
);

/// Why a checkpoint could not be read, converted, loaded or written.
///
/// The message is one line: the file, the tensor if there is one, the problem, and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The operating system refused to read or write a file.
    #[error("{}: cannot {action}: {source}; {remedy}", one_line(.path.display()))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The attempted action, to follow "cannot".
        action: &'static str,
        /// How to fix it.
        remedy: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
    /// A file is damaged, truncated, of another format, or incomplete.
    #[error("{}: {problem}; {remedy}", one_line(.path.display()))]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// How to fix it.
        remedy: String,
    },
    /// A pickle names a function that no checkpoint needs. The function was not called.
    #[error(
        "{}: refused: would run code ({callable}) when unpickled, nothing was run; do not open this file with PyTorch, and get the checkpoint from its publisher",
        one_line(.path.display())
    )]
    Refused {
        /// The file.
        path: PathBuf,
        /// The function, as `module.name`.
        callable: String,
    },
    /// A tensor is invalid: wrong shape or type, NaN, out of range, or damaged.
    #[error("{}tensor `{}` {problem}; {remedy}", file_prefix(.path), one_line(.tensor))]
    Tensor {
        /// The file, if known.
        path: Option<PathBuf>,
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it, to follow the tensor's name.
        problem: String,
        /// How to fix it.
        remedy: String,
    },
    /// The caller stopped the work. As a [`crate::Error`] it is [`crate::Error::Stopped`].
    #[error("stopped")]
    Stopped,
    /// Tensors that the module needs are not in the file.
    #[error(
        "{}: {} missing: {}; the file was written for another configuration or an older version: convert the weights again",
        one_line(.path.display()), count(names), some_names(names)
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// All of them, sorted.
        names: Vec<String>,
    },
    /// A checkpoint lacks tensors that the conversion needs.
    #[error(
        "{}: {} missing: {}; it is of another model or other sizes: check the part and the sizes, or download it again",
        one_line(.path.display()), count(names), some_names(names)
    )]
    Lacking {
        /// The file.
        path: PathBuf,
        /// All of them, sorted.
        names: Vec<String>,
    },
    /// The file contains tensors that no module used.
    #[error(
        "{}: {} that the model does not have: {}; the file was written for another configuration or a newer version: convert the weights again",
        one_line(.path.display()), count(names), some_names(names)
    )]
    Unexpected {
        /// The file.
        path: PathBuf,
        /// All of them, sorted.
        names: Vec<String>,
    },
}

impl WeightsError {
    /// Returns the error with `path` as the file of the tensor, if it has none yet.
    pub fn in_file(mut self, file: &Path) -> Self {
        if let Self::Tensor { path, .. } = &mut self {
            path.get_or_insert_with(|| file.to_path_buf());
        }
        self
    }

    fn file(path: &Path, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::File {
            path: path.to_path_buf(),
            problem: one_line(problem.into()),
            remedy: remedy.into(),
        }
    }

    fn tensor(tensor: &str, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Tensor {
            path: None,
            tensor: tensor.to_string(),
            problem: one_line(problem.into()),
            remedy: remedy.into(),
        }
    }

    /// Returns the error for a required entry that cannot be read as a tensor.
    pub(crate) fn unreadable(name: &str, what: &str) -> Self {
        let problem = format!("is {what}, which cannot be read");
        Self::tensor(
            name,
            problem,
            "save it in PyTorch as a plain tensor of f32, f16 or bf16",
        )
    }

    fn reading(path: &Path, source: io::Error) -> Self {
        let (action, remedy) = match source.kind() {
            io::ErrorKind::NotFound => ("find it", "check the path or download the file"),
            io::ErrorKind::PermissionDenied => ("read it", "make it readable"),
            _ => ("read it", "check the disk, or download the file again"),
        };
        Self::Io {
            path: path.to_path_buf(),
            action,
            remedy,
            source,
        }
    }

    fn writing(path: &Path, source: io::Error) -> Self {
        let remedy = match source.kind() {
            io::ErrorKind::NotFound => "create the folder first",
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "make the folder writable or choose another"
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "free some space or choose another disk"
            }
            _ => "check the disk or choose another folder",
        };
        Self::Io {
            path: path.to_path_buf(),
            action: "write it",
            remedy,
            source,
        }
    }
}

const DAMAGED: &str = "the file is damaged or incomplete: download it again";

/// Returns `text` on one line. Names and messages come from files and may contain anything.
fn one_line(text: impl ToString) -> String {
    text.to_string()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn file_prefix(path: &Option<PathBuf>) -> String {
    path.as_deref().map_or_else(String::new, |path| {
        format!("{}: ", one_line(path.display()))
    })
}

fn count(names: &[String]) -> String {
    match names.len() {
        1 => "1 tensor".to_string(),
        n => format!("{n} tensors"),
    }
}

/// Formats the first three names and the number of others.
fn some_names(names: &[String]) -> String {
    let shown: Vec<_> = names
        .iter()
        .take(3)
        .map(|name| format!("`{}`", one_line(name)))
        .collect();
    let more = match names.len().saturating_sub(3) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    shown.join(", ") + &more
}
