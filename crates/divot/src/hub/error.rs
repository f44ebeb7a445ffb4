//! The errors of a download.

use std::io;
use std::path::{Path, PathBuf};

use super::ENDPOINT;

/// Why a download failed. Each message is one line that names the file and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// No folder for the cache is known.
    #[error("the home folder is not known; set HF_HOME to the folder that downloads are to go to")]
    NoHome,
    /// The hub's address is not a web address.
    #[error(
        "{endpoint:?} is not a web address; set HF_ENDPOINT to one such as {ENDPOINT}, or unset it"
    )]
    Endpoint {
        /// The given address.
        endpoint: String,
    },
    /// The token has spaces or other characters that no token contains.
    #[error("the token holds characters that no token has; set HF_TOKEN to one from your account")]
    Token,
    /// The repository does not exist, or is not visible.
    #[error(
        "{repository}: there is no such repository at {endpoint}; check HF_ENDPOINT, and set HF_TOKEN if it is private"
    )]
    NoRepository {
        /// Its name.
        repository: String,
        /// The hub's address.
        endpoint: String,
    },
    /// A repository lacks a file.
    #[error(
        "{repository}: has no {file}; check HF_ENDPOINT, or download what else is wanted without it"
    )]
    NoFile {
        /// The repository's name.
        repository: String,
        /// The file's name. A `*` stands for any characters.
        file: String,
    },
    /// Access to the repository is restricted.
    #[error(
        "{repository}: access refused (HTTP {status}); ask for access at {endpoint}/{repository}, then set HF_TOKEN to a token of that account"
    )]
    Denied {
        /// The repository's name.
        repository: String,
        /// The hub's address.
        endpoint: String,
        /// HTTP status.
        status: u16,
    },
    /// The hub answered with another error.
    #[error("{file}: the hub failed (HTTP {status}); run again later, it goes on where it was")]
    Status {
        /// The repository and file.
        file: String,
        /// HTTP status.
        status: u16,
    },
    /// The answer is not that of a model hub.
    #[error("{file}: the hub's answer {problem}; check that HF_ENDPOINT is a model hub")]
    Answer {
        /// The repository and file.
        file: String,
        /// What is wrong with it, to follow "answer".
        problem: String,
    },
    /// The hub did not answer.
    #[error(
        "{endpoint} cannot be reached ({problem}); check the network and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 to use what is in the cache"
    )]
    Unreachable {
        /// The hub's address.
        endpoint: String,
        /// The problem.
        problem: String,
    },
    /// The connection broke repeatedly.
    #[error("{file}: the connection broke ({problem}); run again, it goes on where it was")]
    Interrupted {
        /// The repository and file.
        file: String,
        /// The problem.
        problem: String,
    },
    /// A file does not match the hub's checksum. It was removed.
    #[error(
        "{file}: damaged ({size} bytes whose checksum is not {checksum}) and removed from the cache; run again to download it anew"
    )]
    Damaged {
        /// The repository and file.
        file: String,
        /// Its size in bytes.
        size: u64,
        /// The expected checksum.
        checksum: String,
    },
    /// The network may not be used, and the cache lacks a file.
    #[error(
        "{file}: not in the cache {}; go online once to download it (unset HF_HUB_OFFLINE), or set HF_HOME to the cache that has it", .cache.display()
    )]
    Offline {
        /// The repository, and the file if known.
        file: String,
        /// The cache.
        cache: PathBuf,
    },
    /// The disk is full, or would be full.
    #[error("{}: no room for {file}{}; make room, or set HF_HOME to a folder on a larger disk, and run again", .folder.display(), room(*.needed, *.free))]
    Full {
        /// The repository and file, or a description of the data.
        file: String,
        /// The folder that it does not fit into.
        folder: PathBuf,
        /// Number of bytes to store, if known.
        needed: Option<u64>,
        /// Number of free bytes, if known.
        free: Option<u64>,
    },
    /// Another file is at the path of a downloaded file.
    #[error(
        "{}: is not the file that {repository} publishes; move it away and run again", .path.display()
    )]
    InTheWay {
        /// The file.
        path: PathBuf,
        /// The repository.
        repository: String,
    },
    /// Another process is downloading the file.
    #[error("{file}: another program is downloading it; wait until it is done and run again")]
    Busy {
        /// The repository and file.
        file: String,
    },
    /// The operating system refused to read or write a file.
    #[error("{}: cannot {action}: {source}; choose a folder that you may write to (HF_HOME for the cache)", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The attempted action, to follow "cannot".
        action: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
    /// The caller stopped the download. The received data is kept for the next download.
    #[error("stopped; run again, it goes on where it was")]
    Stopped,
}

impl HubError {
    /// Returns whether an immediate retry may help.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Interrupted { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..),
            _ => false,
        }
    }

    pub(super) fn io<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full {
                file: path.file_name().unwrap_or_default().display().to_string(),
                folder: path.parent().unwrap_or(path).to_path_buf(),
                needed: None,
                free: None,
            },
            _ => Self::Io {
                path: path.to_path_buf(),
                action,
                source,
            },
        }
    }
}

/// Formats the numbers of [`HubError::Full`], if known.
fn room(needed: Option<u64>, free: Option<u64>) -> String {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    match (needed, free) {
        (Some(needed), Some(free)) => {
            format!(" ({:.1} GiB, {:.1} GiB free)", gib(needed), gib(free))
        }
        _ => String::new(),
    }
}
