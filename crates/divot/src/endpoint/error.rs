//! The errors of a run.

use std::io;
use std::path::{Path, PathBuf};

/// Why a run could not begin or had to end. Each message is one line that names the remedy. None holds the key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// The address is not that of an endpoint. It is not repeated, since it may hold a password.
    #[error(
        "the endpoint's address is not http://HOST/PATH or https://HOST/PATH without user, password and query; set OPENAI_BASE_URL to one such as http://localhost:8000/v1, and the key in OPENAI_API_KEY"
    )]
    Address,
    /// The model has no name.
    #[error("no model is named; give the name of one that the endpoint serves")]
    NoModel,
    /// The key has characters that no key has.
    #[error(
        "the endpoint's key is empty or holds characters that no key has; set OPENAI_API_KEY to one from your account"
    )]
    Key,
    /// The bytes are no PNG or JPEG image.
    #[error("an image for the endpoint is neither PNG nor JPEG ({problem}); encode it as one")]
    Image {
        /// What is wrong with it.
        problem: String,
    },
    /// The endpoint refuses the key.
    #[error(
        "{address} refuses the key (HTTP {status}); set OPENAI_API_KEY to one that may use {model}"
    )]
    Refused {
        /// The endpoint's address.
        address: String,
        /// The model's name.
        model: String,
        /// HTTP status: 401 or 403.
        status: u16,
    },
    /// The endpoint wants a key, and none is set.
    #[error("{address} wants a key (HTTP {status}); set OPENAI_API_KEY")]
    NoKey {
        /// The endpoint's address.
        address: String,
        /// HTTP status: 401 or 403.
        status: u16,
    },
    /// The account has no credit left.
    #[error(
        "{address} wants to be paid first ({problem}); add credit to the account and run again, it goes on where it was"
    )]
    NoCredit {
        /// The endpoint's address.
        address: String,
        /// What the endpoint says.
        problem: String,
    },
    /// There is no such model, or no endpoint at the address.
    #[error(
        "{address}/chat/completions knows no model {model:?} ({problem}); name one that it serves, and check that OPENAI_BASE_URL ends as its manual says, often in /v1"
    )]
    Unknown {
        /// The endpoint's address.
        address: String,
        /// The model's name.
        model: String,
        /// What the endpoint says.
        problem: String,
    },
    /// Many jobs in a row had no answer in spite of all retries.
    #[error(
        "{address} left {jobs} jobs in a row without an answer ({problem}); check that it runs and can be reached, and run again, it goes on where it was"
    )]
    Down {
        /// The endpoint's address.
        address: String,
        /// The number of jobs.
        jobs: usize,
        /// The last problem.
        problem: String,
    },
    /// Another program uses the cache.
    #[error(
        "{}: another program is using these answers; wait until it is done, or choose another file", .path.display()
    )]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The file is not a cache of answers.
    #[error(
        "{}: is no cache of answers; choose a file that does not exist yet", .path.display()
    )]
    NoCache {
        /// The file.
        path: PathBuf,
    },
    /// A line of the cache cannot be read.
    #[error(
        "{}: line {line} is damaged; delete that line, and its answer is asked for again", .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The number of the line, from 1.
        line: usize,
    },
    /// The operating system refused to read or write a file.
    #[error("{}: cannot {action}: {source}; choose a file that you may write to, on a disk with room", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The attempted action, to follow "cannot".
        action: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
    /// The operating system starts no more threads.
    #[error("no thread for the endpoint's requests: {0}; ask for fewer at a time")]
    Threads(io::Error),
    /// The caller stopped the run.
    #[error("stopped")]
    Stopped,
}

impl EndpointError {
    pub(super) fn io<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io {
            path: path.to_path_buf(),
            action,
            source,
        }
    }
}
