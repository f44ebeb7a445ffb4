//! Download of the released checkpoints from a model hub.
//!
//! Files are stored in the cache that all HuggingFace tools share. A folder with the layout of
//! [`Job::find`](crate::convert::Job::find) links to them:
//!
//! ```no_run
//! use std::ops::ControlFlow;
//!
//! use divot::checkpoint::Part;
//! use divot::hub::Hub;
//!
//! # fn main() -> Result<(), divot::hub::HubError> {
//! let files = Hub::from_env()?.download(&Part::MODEL, "pretrained".as_ref(), |progress| {
//!     println!("{}: {} of {} bytes", progress.name, progress.done, progress.total);
//!     ControlFlow::Continue(())
//! })?;
//! for file in files {
//!     println!("{}", file.path.display());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! An interrupted or stopped download is resumed. Received files are verified with the hub's checksum:
//! SHA-256 for large files, git's SHA-1 for small ones.
//!
//! The environment variables are those of `huggingface_hub`. If several are set, the first one counts:
//!
//! | what | variables | default |
//! | --- | --- | --- |
//! | the hub's address | `HF_ENDPOINT` | `https://huggingface.co` |
//! | the cache of downloads | `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE` | `hub` in the next folder |
//! | the folder of the tools' files | `HF_HOME`, `huggingface` in `XDG_CACHE_HOME` | `~/.cache/huggingface` |
//! | the token, for restricted repositories | `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, the file `HF_TOKEN_PATH` | the file `token` in that folder |
//! | `1`: use the cache only | `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE` | `0` |

mod cache;
mod checksum;
mod environment;
mod error;
mod names;
mod transfer;

pub use error::HubError;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::Cache;

use crate::checkpoint::{Part, Release};
use crate::progress::{Progress, Watch};
use cache::Run;
use transfer::Client;

/// The address of the public hub.
const ENDPOINT: &str = "https://huggingface.co";

/// A file that was downloaded or existed already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Its repository.
    pub repository: &'static str,
    /// Its name in the repository.
    pub file: String,
    /// Its path.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Number of bytes that this run downloaded.
    pub downloaded: u64,
}

/// A model hub with a cache of downloads.
#[derive(Clone)]
pub struct Hub {
    endpoint: String,
    cache: Cache,
    token: Option<String>,
    offline: bool,
    retries: u32,
    wait: Duration,
    silence: Duration,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("endpoint", &self.endpoint)
            .field("cache", self.cache.path())
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl Hub {
    /// Creates the public hub without a token, with this cache.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: ENDPOINT.to_owned(),
            cache: Cache::new(cache.into()),
            token: None,
            offline: false,
            retries: 4,
            wait: Duration::from_secs(1),
            silence: Duration::from_secs(30),
        }
    }

    /// Sets the address of the hub.
    pub fn with_endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = endpoint.into();
        self
    }

    /// Sets the cache.
    pub fn with_cache(mut self, cache: impl Into<PathBuf>) -> Self {
        self.cache = Cache::new(cache.into());
        self
    }

    /// Sets the token.
    pub fn with_token(mut self, token: Option<String>) -> Self {
        self.token = token;
        self
    }

    /// Sets whether only the cache is used.
    pub fn with_offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// Sets how often a failed request is retried if no data arrived (4 times by default), and the wait
    /// before the first retry (one second). The wait doubles each time.
    pub fn with_retries(mut self, retries: u32, wait: Duration) -> Self {
        self.retries = retries;
        self.wait = wait;
        self
    }

    /// Sets how long a connection may be silent before it counts as broken (30 seconds by default).
    pub fn with_timeout(mut self, silence: Duration) -> Self {
        self.silence = silence;
        self
    }

    /// Returns the address of the hub.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Returns the folder of the cache.
    pub fn cache(&self) -> &Path {
        self.cache.path()
    }

    /// Returns whether the network is not used.
    pub fn is_offline(&self) -> bool {
        self.offline
    }

    /// Downloads the released files of `parts` ([`Part::releases`]) that the cache lacks. Links all of them
    /// from `to`, in the layout that [`convert::Job::find`](crate::convert::Job::find) reads.
    ///
    /// If links are not possible, files are copied. A published file that is already in `to` stays there.
    /// `progress` may stop the download. The received data is kept, and the next call continues from there.
    ///
    /// # Errors
    /// If a repository or a file does not exist or is restricted; if the connection breaks and retries
    /// fail; if a file does not have the hub's checksum; if a file cannot be stored; if `progress` stops
    /// it. When offline: if the cache lacks a file.
    pub fn download(
        &self,
        parts: &[Part],
        to: &Path,
        mut progress: impl FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Fetched>, HubError> {
        let watch: &mut Watch<'_> = &mut progress;
        let cache = std::path::absolute(self.cache.path())
            .map_err(HubError::io("find the cache", self.cache.path()))?;
        let run = Run {
            client: if self.offline {
                None
            } else {
                Some(Client::new(self)?)
            },
            cache: Cache::new(cache),
            to,
        };

        let mut by_repository: BTreeMap<&str, Vec<Release>> = BTreeMap::new();
        for release in parts.iter().flat_map(|part| part.releases()) {
            let releases = by_repository.entry(release.repository).or_default();
            releases.push(release);
        }
        let mut files = Vec::new();
        for (repository, releases) in by_repository {
            run.find(repository, &releases, watch, &mut files)?;
        }
        run.check_room(&files)?;
        files
            .into_iter()
            .map(|file| run.obtain(file, watch))
            .collect()
    }
}
