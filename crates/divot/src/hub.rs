//! Download of the released checkpoints from a model hub.
//!
//! Files are kept in the cache that every HuggingFace tool shares, and linked from a folder laid out
//! as [`Job::find`](crate::convert::Job::find) reads it:
//!
//! ```no_run
//! use std::ops::ControlFlow;
//!
//! use divot::hub::{Asset, Hub};
//!
//! # fn main() -> Result<(), divot::hub::HubError> {
//! let files = Hub::from_env()?.download(&Asset::MODEL, "pretrained".as_ref(), |progress| {
//!     println!("{}: {} of {} bytes", progress.file, progress.done, progress.total);
//!     ControlFlow::Continue(())
//! })?;
//! for file in files {
//!     println!("{}", file.path.display());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A download that was interrupted or stopped goes on where it was. What arrives is checked against
//! the hub's checksum: SHA-256 for large files, git's SHA-1 for small ones.
//!
//! | variable | meaning | default |
//! | --- | --- | --- |
//! | `HF_ENDPOINT` | the hub's address | `https://huggingface.co` |
//! | `HF_TOKEN` | who asks, for repositories that not everyone may read | the file `$HF_HOME/token` |
//! | `HF_HOME` | where HuggingFace tools keep their files | `~/.cache/huggingface` |
//! | `HF_HUB_CACHE` | the cache of downloads | `$HF_HOME/hub` |
//! | `HF_HUB_OFFLINE` | `1`: use the cache only | `0` |

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::path::{Component, Path, PathBuf};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use hf_hub::api::RepoInfo;
use hf_hub::{Cache, Repo};
use sha1::Sha1;
use sha2::Sha256;
use sha2::digest::{Digest, DynDigest};
use ureq::config::RedirectAuthHeaders;
use ureq::http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, ETAG, LOCATION, RANGE};
use ureq::http::{Response, StatusCode, Uri, header::CONTENT_LENGTH};
use ureq::typestate::WithoutBody;
use ureq::{Agent, Body, RequestBuilder};

const ENDPOINT: &str = "https://huggingface.co";
const DIVOT: &str = "TencentARC/Divot";
const CLIP: &str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K";
const MISTRAL: &str = "mistralai/Mistral-7B-Instruct-v0.1";

/// How many redirections within the hub are followed.
const REDIRECTIONS: usize = 5;
/// Bytes read at a time, between two calls of the progress callback.
const CHUNK: usize = 1 << 18;

/// A part of the release that can be downloaded by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Asset {
    /// The video tokenizer, without its vision tower, which is CLIP's.
    Tokenizer,
    /// The de-tokenizer.
    Detokenizer,
    /// The de-tokenizer adapted to features that the language model samples.
    AdaptedDetokenizer,
    /// OpenCLIP's ViT-H/14, both towers.
    Clip,
    /// The language model tuned to describe videos, with its text tokenizer.
    Comprehension,
    /// The language model tuned to generate videos, with its text tokenizer.
    Generation,
    /// The language model as pre-trained, with its text tokenizer.
    Pretrained,
    /// The text tokenizer of all three, alone.
    TextTokenizer,
    /// The language model that pre-training started from, which takes the same text tokenizer.
    Mistral,
}

/// Where an asset is published. A `*` in a name stands for anything.
struct Published {
    repository: &'static str,
    /// The folder of the layout that the repository is put into.
    folder: &'static str,
    /// Each of these must be there.
    needs: &'static [&'static str],
    /// What else is taken, if it is there.
    extras: &'static [&'static str],
}

impl Asset {
    /// Every asset.
    pub const ALL: [Self; 9] = [
        Self::Tokenizer,
        Self::Detokenizer,
        Self::AdaptedDetokenizer,
        Self::Clip,
        Self::Comprehension,
        Self::Generation,
        Self::Pretrained,
        Self::TextTokenizer,
        Self::Mistral,
    ];

    /// What turning videos into tokens and back takes.
    pub const MODEL: [Self; 3] = [Self::Tokenizer, Self::Detokenizer, Self::Clip];

    /// A short name, for command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokenizer => "tokenizer",
            Self::Detokenizer => "detokenizer",
            Self::AdaptedDetokenizer => "detokenizer-adapted",
            Self::Clip => "clip",
            Self::Comprehension => "llm-comprehension",
            Self::Generation => "llm-generation",
            Self::Pretrained => "llm-pretrained",
            Self::TextTokenizer => "text-tokenizer",
            Self::Mistral => "mistral",
        }
    }

    /// The repository that it is published in.
    pub fn repository(self) -> &'static str {
        self.published().repository
    }

    fn published(self) -> Published {
        let divot = |needs, extras| Published {
            repository: DIVOT,
            folder: "",
            needs,
            extras,
        };
        match self {
            Self::Tokenizer => divot(&["Divot_tokenizer_detokenizer/Divot_tokenizer.bin"], &[]),
            Self::Detokenizer => divot(
                &["Divot_tokenizer_detokenizer/Divot_detokenizer_stage1.bin"],
                &[],
            ),
            Self::AdaptedDetokenizer => divot(
                &["Divot_tokenizer_detokenizer/Divot_detokenizer_stage2.bin"],
                &[],
            ),
            Self::Comprehension => divot(
                &[
                    "Divot_sft_comp/llm/*",
                    "Divot_sft_comp/agent/pytorch_model.bin",
                    "cvlm_mistral_instruct_tokenizer/*",
                ],
                &["Divot_sft_comp/*"],
            ),
            Self::Generation => divot(
                &[
                    "Divot_sft_gen/llm/*",
                    "Divot_sft_gen/agent/pytorch_model.bin",
                    "cvlm_mistral_instruct_tokenizer/*",
                ],
                &["Divot_sft_gen/*"],
            ),
            Self::Pretrained => divot(
                &[
                    "Divot_pretrain/llm/*",
                    "Divot_pretrain/agent/pytorch_model.bin",
                    "cvlm_mistral_instruct_tokenizer/*",
                ],
                &["Divot_pretrain/*"],
            ),
            Self::TextTokenizer => divot(&["cvlm_mistral_instruct_tokenizer/*"], &[]),
            Self::Clip => Published {
                repository: CLIP,
                folder: "CLIP-ViT-H-14-laion2B-s32B-b79K",
                needs: &["open_clip_pytorch_model.bin"],
                extras: &[],
            },
            // The same weights are published as pickles too, which are left where they are.
            Self::Mistral => Published {
                repository: MISTRAL,
                folder: "Mistral-7B-Instruct-v0.1",
                needs: &["config.json", "tokenizer.*", "model*.safetensors"],
                extras: &[
                    "generation_config.json",
                    "tokenizer_config.json",
                    "special_tokens_map.json",
                    "model.safetensors.index.json",
                ],
            },
        }
    }
}

impl fmt::Display for Asset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a name fits a pattern with at most one `*`.
fn fits(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((start, end)) => name
            .strip_prefix(start)
            .is_some_and(|rest| rest.ends_with(end)),
    }
}

/// Why a download failed; each message is one line that names the file and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// There is no place for a cache.
    #[error("the home folder is not known; set HF_HOME to the folder that downloads are to go to")]
    NoHome,
    /// The hub's address is none.
    #[error(
        "{endpoint:?} is not a web address; set HF_ENDPOINT to one such as {ENDPOINT}, or unset it"
    )]
    Endpoint {
        /// What was given.
        endpoint: String,
    },
    /// The token has spaces or other characters that no token has.
    #[error("the token holds characters that no token has; set HF_TOKEN to one from your account")]
    Token,
    /// The hub knows no such repository, or does not show it.
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
        /// The file's name, perhaps with a `*` for anything.
        file: String,
    },
    /// Not everyone may read it.
    #[error(
        "{repository}: access refused (HTTP {status}); ask for access at {endpoint}/{repository}, then set HF_TOKEN to a token of that account"
    )]
    Denied {
        /// The repository's name.
        repository: String,
        /// The hub's address.
        endpoint: String,
        /// HTTP's status.
        status: u16,
    },
    /// The hub answered with another error.
    #[error("{file}: the hub failed (HTTP {status}); run again later, it goes on where it was")]
    Status {
        /// The repository and file.
        file: String,
        /// HTTP's status.
        status: u16,
    },
    /// The hub's answer makes no sense.
    #[error("{file}: the hub's answer {problem}; check that HF_ENDPOINT is a model hub")]
    Answer {
        /// The repository and file.
        file: String,
        /// What is wrong with it, to follow "answer".
        problem: String,
    },
    /// The hub did not answer at all.
    #[error(
        "{endpoint} cannot be reached ({problem}); check the network and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 to use what is in the cache"
    )]
    Unreachable {
        /// The hub's address.
        endpoint: String,
        /// What was wrong.
        problem: String,
    },
    /// The connection broke, again and again.
    #[error("{file}: the connection broke ({problem}); run again, it goes on where it was")]
    Interrupted {
        /// The repository and file.
        file: String,
        /// What was wrong.
        problem: String,
    },
    /// A file is not what the hub says it is. It was removed.
    #[error(
        "{file}: damaged ({size} bytes whose checksum is not {checksum}) and removed from the cache; run again to download it anew"
    )]
    Damaged {
        /// The repository and file.
        file: String,
        /// Its size in bytes.
        size: u64,
        /// The checksum that it should have.
        checksum: String,
    },
    /// Nothing may be asked of the network, and the cache lacks a file.
    #[error(
        "{file}: not in the cache {}; run once without --offline or HF_HUB_OFFLINE to download it, or set HF_HOME to the cache that has it", .cache.display()
    )]
    Offline {
        /// The repository, and the file where one is known.
        file: String,
        /// The cache.
        cache: PathBuf,
    },
    /// The disk is full, or would be.
    #[error("{}: no room for {file}{}; make room, or set HF_HOME to a folder on a larger disk, and run again", .folder.display(), room(*.needed, *.free))]
    Full {
        /// The repository and file, or what else is to be stored.
        file: String,
        /// The folder that it does not fit into.
        folder: PathBuf,
        /// Bytes to store, where it was known before.
        needed: Option<u64>,
        /// Bytes that are free, where it was known before.
        free: Option<u64>,
    },
    /// Another file is where a downloaded one should be.
    #[error(
        "{}: is not the file that {repository} publishes; move it away and run again", .path.display()
    )]
    InTheWay {
        /// The file.
        path: PathBuf,
        /// The repository.
        repository: String,
    },
    /// Another process is at it.
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
        /// What was being done, to follow "cannot".
        action: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
    /// The caller stopped the download. What has arrived is kept for the next time.
    #[error("stopped; run again, it goes on where it was")]
    Stopped,
}

impl HubError {
    /// Whether trying again at once may help.
    fn may_pass(&self) -> bool {
        match self {
            Self::Interrupted { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..),
            _ => false,
        }
    }

    fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
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

/// The numbers of [`HubError::Full`], as far as they are known.
fn room(needed: Option<u64>, free: Option<u64>) -> String {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    match (needed, free) {
        (Some(needed), Some(free)) => {
            format!(" ({:.1} GiB, {:.1} GiB free)", gib(needed), gib(free))
        }
        _ => String::new(),
    }
}

/// What is being done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// It is being downloaded.
    Download,
    /// Its checksum is being computed.
    Verify,
}

/// Progress of one file.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The file's name in its repository.
    pub file: &'a str,
    /// What is being done to it.
    pub step: Step,
    /// Bytes done, with those of an earlier run.
    pub done: u64,
    /// Bytes in all; none while the hub is asked once more which files it has.
    pub total: u64,
}

/// A file that is where it was wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The repository that it is from.
    pub repository: &'static str,
    /// Its name there.
    pub file: String,
    /// Where it lies now.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// How many of them this run downloaded.
    pub downloaded: u64,
}

/// The caller's progress callback.
type Watch<'a> = dyn FnMut(Progress<'_>) -> ControlFlow<()> + 'a;

/// Tells the caller, who may stop.
fn tell(watch: &mut Watch<'_>, progress: Progress<'_>) -> Result<(), HubError> {
    match watch(progress) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(HubError::Stopped),
    }
}

/// A model hub and the cache of what was downloaded from it.
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
    /// The public hub, asked without a token, with `cache` as the cache.
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

    /// The hub and cache that the environment variables and the token file name.
    ///
    /// # Errors
    /// If no variable names a cache and there is no home folder.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    /// As [`from_env`](Self::from_env), with the variables looked up elsewhere. An empty one counts as
    /// not set.
    ///
    /// # Errors
    /// If no variable names a cache and there is no home folder.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let lookup = |name| lookup(name).filter(|value| !value.trim().is_empty());
        let home = lookup("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(std::env::home_dir()?.join(".cache/huggingface")));
        let standard = home.map(|home| Cache::new(home.join("hub")));
        let cache = lookup("HF_HUB_CACHE")
            .map(PathBuf::from)
            .or_else(|| Some(standard.as_ref()?.path().clone()))
            .ok_or(HubError::NoHome)?;
        let mut hub = Self::new(cache);
        hub.endpoint = lookup("HF_ENDPOINT").unwrap_or(hub.endpoint);
        hub.token = lookup("HF_TOKEN")
            .map(|token| token.trim().to_owned())
            .or_else(|| standard?.token());
        hub.offline = lookup("HF_HUB_OFFLINE").is_some_and(|value| {
            let value = value.trim().to_ascii_lowercase();
            ["1", "on", "yes", "true"].contains(&value.as_str())
        });
        Ok(hub)
    }

    /// Another hub's address.
    pub fn with_endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = endpoint.into();
        self
    }

    /// Another cache.
    pub fn with_cache(mut self, cache: impl Into<PathBuf>) -> Self {
        self.cache = Cache::new(cache.into());
        self
    }

    /// The token to ask with, if any.
    pub fn with_token(mut self, token: Option<String>) -> Self {
        self.token = token;
        self
    }

    /// Whether the cache must do.
    pub fn with_offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// How often what failed is tried again without a byte having arrived (4 by default), and how long
    /// to wait before the first time (one second); the wait doubles with each.
    pub fn with_retries(mut self, retries: u32, wait: Duration) -> Self {
        self.retries = retries;
        self.wait = wait;
        self
    }

    /// How long a connection may be silent before it counts as broken (30 seconds by default).
    pub fn with_timeout(mut self, silence: Duration) -> Self {
        self.silence = silence;
        self
    }

    /// The hub's address.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The cache's folder.
    pub fn cache(&self) -> &Path {
        self.cache.path()
    }

    /// Whether nothing is asked of the network.
    pub fn is_offline(&self) -> bool {
        self.offline
    }

    /// Downloads the files of `assets` that the cache does not have, and links all of them from `to` in
    /// the layout that [`convert::Job::find`](crate::convert::Job::find) reads.
    ///
    /// Where links cannot be made they are copies. `progress` may stop the download; what has arrived
    /// by then is kept, and the next call goes on from there. A file that lies in `to` already is left
    /// there, if it is the one published.
    ///
    /// # Errors
    /// If a repository or a file is not there or may not be read; if the connection breaks and stays
    /// broken; if a file does not have the checksum that the hub states; if a file cannot be stored;
    /// if `progress` stops it. When offline: if the cache lacks a file.
    pub fn download(
        &self,
        assets: &[Asset],
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

        let mut by_repository: BTreeMap<&str, BTreeSet<Asset>> = BTreeMap::new();
        for asset in assets {
            by_repository
                .entry(asset.repository())
                .or_default()
                .insert(*asset);
        }
        let mut files = Vec::new();
        for (repository, assets) in by_repository {
            run.find(repository, &assets, watch, &mut files)?;
        }
        run.check_room(&files)?;
        files
            .into_iter()
            .map(|file| run.obtain(file, watch))
            .collect()
    }
}

/// A file of a repository and its places.
struct Item {
    repository: &'static str,
    name: String,
    commit: String,
    /// The checksum, by which the cache calls it.
    etag: String,
    size: u64,
    /// Its contents in the cache.
    blob: PathBuf,
    /// Its name in the cache, a link to the contents.
    pointer: PathBuf,
    /// Its place in the layout.
    path: PathBuf,
}

impl Item {
    /// What errors call it.
    fn title(&self) -> String {
        format!("{}/{}", self.repository, self.name)
    }

    /// The file in the cache, complete. Where links cannot be made, tools keep the contents under the
    /// file's name instead.
    fn stored(&self) -> Option<&Path> {
        [&self.blob, &self.pointer]
            .into_iter()
            .find(|path| path.is_file())
            .map(PathBuf::as_path)
    }

    /// A file beside the contents, named as hf-hub names them.
    fn beside(&self, extension: &str) -> PathBuf {
        let mut path = OsString::from(&self.blob);
        path.push(".");
        path.push(extension);
        path.into()
    }

    fn progress(&self, step: Step, done: u64) -> Progress<'_> {
        Progress {
            file: &self.name,
            step,
            done,
            total: self.size,
        }
    }
}

/// One call of [`Hub::download`].
struct Run<'a> {
    /// None when offline.
    client: Option<Client<'a>>,
    cache: Cache,
    to: &'a Path,
}

impl Run<'_> {
    /// Adds the files that `assets` consist of.
    fn find(
        &self,
        repository: &'static str,
        assets: &BTreeSet<Asset>,
        watch: &mut Watch<'_>,
        items: &mut Vec<Item>,
    ) -> Result<(), HubError> {
        let (commit, names) = match &self.client {
            Some(client) => client.list(repository, watch)?,
            None => self.listed(repository)?,
        };
        let mut wanted = BTreeMap::new();
        for asset in assets {
            let published = asset.published();
            for pattern in published.needs.iter().chain(published.extras) {
                let mut fitting = names.iter().filter(|name| fits(name, pattern)).peekable();
                if fitting.peek().is_none() && published.needs.contains(pattern) {
                    return Err(self.lacks(repository, pattern));
                }
                wanted.extend(fitting.map(|name| (name, Path::new(published.folder).join(name))));
            }
        }
        if self.client.is_some() {
            self.remember(repository, &commit, &names)?;
        }
        let cached = self.cache.model(repository.to_owned());
        for (name, path) in wanted {
            let pointer = cached.pointer_path(&commit).join(name);
            let (etag, size) = match &self.client {
                Some(client) => client.locate(repository, &commit, name, watch)?,
                None => identify(&pointer).ok_or_else(|| self.lacks(repository, name))?,
            };
            items.push(Item {
                repository,
                name: name.clone(),
                commit: commit.clone(),
                blob: cached.blob_path(&etag),
                etag,
                size,
                pointer,
                path: self.to.join(path),
            });
        }
        Ok(())
    }

    fn lacks(&self, repository: &str, file: &str) -> HubError {
        match self.client {
            Some(_) => HubError::NoFile {
                repository: repository.to_owned(),
                file: file.to_owned(),
            },
            None => HubError::Offline {
                file: format!("{repository}/{file}"),
                cache: self.cache.path().clone(),
            },
        }
    }

    /// Where the names of a repository's files are kept for a time without a network.
    fn listing(&self, repository: &str, commit: &str) -> PathBuf {
        let folder = Repo::model(repository.to_owned()).folder_name();
        self.cache.path().join(folder).join("files").join(commit)
    }

    fn remember(&self, repository: &str, commit: &str, names: &[String]) -> Result<(), HubError> {
        let path = self.listing(repository, commit);
        create_parent(&path)?;
        fs::write(&path, names.join("\n")).map_err(HubError::io("write it", &path))
    }

    /// A repository's commit and files, as the cache remembers them. A cache that another tool filled
    /// has no list: then they are the files that are there.
    fn listed(&self, repository: &str) -> Result<(String, Vec<String>), HubError> {
        let cached = Repo::model(repository.to_owned()).folder_name();
        let head = self.cache.path().join(cached).join("refs/main");
        let commit = fs::read_to_string(head)
            .ok()
            .map(|commit| commit.trim().to_owned())
            .filter(|commit| is_plain(commit))
            .ok_or_else(|| HubError::Offline {
                file: repository.to_owned(),
                cache: self.cache.path().clone(),
            })?;
        let names = match fs::read_to_string(self.listing(repository, &commit)) {
            Ok(names) => names.lines().map(str::to_owned).collect(),
            Err(_) => {
                let snapshot = self
                    .cache
                    .model(repository.to_owned())
                    .pointer_path(&commit);
                let mut names = Vec::new();
                collect_files(&snapshot, "", &mut names);
                names
            }
        };
        let names = names.into_iter().filter(|name| is_inside(name)).collect();
        Ok((commit, names))
    }

    /// Refuses what the disk has no room for before any of it is downloaded.
    fn check_room(&self, items: &[Item]) -> Result<(), HubError> {
        let Some(client) = &self.client else {
            return Ok(());
        };
        let missing: Vec<&Item> = items
            .iter()
            .filter(|item| item.stored().is_none() && !is_regular(&item.path))
            .collect();
        let needed: u64 = missing
            .iter()
            .map(|item| item.size.saturating_sub(length(&item.beside("part"))))
            .fold(0, u64::saturating_add);
        match free_space(self.cache.path()) {
            Some(free) if needed > free => Err(HubError::Full {
                file: match missing[..] {
                    [item] => item.title(),
                    _ => format!("{} files of {}", missing.len(), client.hub.endpoint),
                },
                folder: self.cache.path().clone(),
                needed: Some(needed),
                free: Some(free),
            }),
            _ => Ok(()),
        }
    }

    /// Puts one file in its place: downloaded, checked and linked.
    fn obtain(&self, item: Item, watch: &mut Watch<'_>) -> Result<Fetched, HubError> {
        let mut downloaded = 0;
        if is_regular(&item.path) {
            if !verify(&item, &item.path, watch)? {
                return Err(HubError::InTheWay {
                    path: item.path,
                    repository: item.repository.to_owned(),
                });
            }
        } else {
            match (item.stored(), &self.client) {
                (Some(stored), _) => accept(&item, stored, watch)?,
                (None, Some(client)) => downloaded = client.fetch(&item, watch)?,
                (None, None) => return Err(self.lacks(item.repository, &item.name)),
            }
            self.link(&item)?;
        }
        Ok(Fetched {
            repository: item.repository,
            file: item.name,
            path: item.path,
            size: item.size,
            downloaded,
        })
    }

    /// Makes the cache's name for the file and its place in the layout.
    fn link(&self, item: &Item) -> Result<(), HubError> {
        if !item.pointer.exists() {
            // Relative, so that the whole cache can be moved.
            let up = Path::new(&item.name).components().count() + 1;
            let mut target: PathBuf = std::iter::repeat_n("..", up).collect();
            target.push("blobs");
            target.push(&item.etag);
            place(&item.pointer, &target, &item.blob)?;
        }
        if self.client.is_some() {
            let cached = self.cache.model(item.repository.to_owned());
            cached
                .create_ref(&item.commit)
                .map_err(HubError::io("write it", self.cache.path()))?;
        }
        let same = |a: &Path, b: &Path| {
            fs::canonicalize(a).is_ok_and(|a| fs::canonicalize(b).is_ok_and(|b| a == b))
        };
        if same(&item.path, &item.pointer) {
            return Ok(());
        }
        place(
            &item.path,
            &item.pointer,
            item.stored().unwrap_or(&item.blob),
        )
    }
}

/// What speaks to the hub.
struct Client<'a> {
    hub: &'a Hub,
    agent: Agent,
    /// The address without a slash at its end.
    endpoint: &'a str,
    /// The address without its path.
    origin: String,
}

impl<'a> Client<'a> {
    fn new(hub: &'a Hub) -> Result<Self, HubError> {
        let endpoint = hub.endpoint.trim().trim_end_matches('/');
        let origin = endpoint
            .parse::<Uri>()
            .ok()
            .filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")))
            .filter(|uri| uri.query().is_none())
            .and_then(|uri| Some(format!("{}://{}", uri.scheme_str()?, uri.authority()?)))
            .ok_or_else(|| HubError::Endpoint {
                endpoint: hub.endpoint.clone(),
            })?;
        if let Some(token) = &hub.token
            && !token.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err(HubError::Token);
        }
        let silence = Some(hub.silence);
        let agent = Agent::config_builder()
            .user_agent(concat!("divot/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_resolve(silence)
            .timeout_connect(silence)
            .timeout_recv_response(silence)
            .timeout_per_read(silence)
            .build()
            .into();
        Ok(Self {
            hub,
            agent,
            endpoint,
            origin,
        })
    }

    fn call(
        &self,
        request: RequestBuilder<WithoutBody>,
    ) -> Result<Response<Body>, Box<ureq::Error>> {
        // Sizes and ranges are those of the file, not of a compressed form.
        let request = request.header(ACCEPT_ENCODING, "identity");
        let request = match &self.hub.token {
            Some(token) => request.header(AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        };
        request.call().map_err(Box::new)
    }

    /// The newest commit of a repository and the names of its files.
    fn list(
        &self,
        repository: &str,
        watch: &mut Watch<'_>,
    ) -> Result<(String, Vec<String>), HubError> {
        let url = format!(
            "{}/api/{}",
            self.endpoint,
            Repo::model(repository.to_owned()).api_url()
        );
        let waiting = Progress {
            file: repository,
            step: Step::Download,
            done: 0,
            total: 0,
        };
        let odd = |problem: &str| HubError::Answer {
            file: repository.to_owned(),
            problem: problem.to_owned(),
        };
        self.patiently(
            waiting,
            watch,
            || 0,
            |_| {
                let mut response =
                    self.call(self.agent.get(&url))
                        .map_err(|error| HubError::Unreachable {
                            endpoint: self.endpoint.to_owned(),
                            problem: one_line(&error),
                        })?;
                if !response.status().is_success() {
                    return Err(self.refusal(repository, None, &response));
                }
                let info: RepoInfo =
                    response
                        .body_mut()
                        .read_json()
                        .map_err(|error| match error {
                            ureq::Error::Json(_) => odd("is no description of a repository"),
                            error => interrupted(repository, &error),
                        })?;
                if !is_plain(&info.sha) {
                    return Err(odd("names no commit"));
                }
                let names = info.siblings.into_iter().map(|file| file.rfilename);
                Ok((info.sha, names.filter(|name| is_inside(name)).collect()))
            },
        )
    }

    /// Where a file of a commit is.
    fn url(&self, repository: &str, commit: &str, name: &str) -> String {
        format!(
            "{}/{repository}/resolve/{commit}/{}",
            self.endpoint,
            escaped(name)
        )
    }

    /// A file's checksum and size.
    ///
    /// The hub states them before it redirects to where the contents are, hence no redirection is
    /// followed but those within the hub.
    fn locate(
        &self,
        repository: &str,
        commit: &str,
        name: &str,
        watch: &mut Watch<'_>,
    ) -> Result<(String, u64), HubError> {
        let title = format!("{repository}/{name}");
        let odd = |problem: &str| HubError::Answer {
            file: title.clone(),
            problem: problem.to_owned(),
        };
        let waiting = Progress {
            file: name,
            step: Step::Download,
            done: 0,
            total: 0,
        };
        self.patiently(
            waiting,
            watch,
            || 0,
            |_| {
                let mut url = self.url(repository, commit, name);
                for _ in 0..=REDIRECTIONS {
                    let request = self.agent.head(&url).config().max_redirects(0).build();
                    let response = self
                        .call(request)
                        .map_err(|error| interrupted(&title, &error))?;
                    let header = |name: &str| response.headers().get(name)?.to_str().ok();
                    let status = response.status();
                    if !status.is_success() && !status.is_redirection() {
                        return Err(self.refusal(repository, Some(name), &response));
                    }
                    let linked = header("x-linked-etag");
                    let within = header(LOCATION.as_str())
                        .filter(|to| to.starts_with('/') && !to.starts_with("//"));
                    if let (true, None, Some(path)) = (status.is_redirection(), linked, within) {
                        url = format!("{}{path}", self.origin);
                        continue;
                    }
                    let etag = linked
                        .or_else(|| header(ETAG.as_str()))
                        .map(|etag| etag.trim_start_matches("W/").trim_matches('"'))
                        .filter(|etag| is_plain(etag))
                        .ok_or_else(|| odd("states no checksum"))?;
                    let size = header("x-linked-size")
                        .or_else(|| header(CONTENT_LENGTH.as_str()).filter(|_| status.is_success()))
                        .and_then(|size| size.parse().ok())
                        .ok_or_else(|| odd("states no size"))?;
                    return Ok((etag.to_owned(), size));
                }
                Err(odd("redirects in a circle"))
            },
        )
    }

    /// Downloads a file into the cache and checks it. Gives the bytes that were downloaded.
    fn fetch(&self, item: &Item, watch: &mut Watch<'_>) -> Result<u64, HubError> {
        let part = item.beside("part");
        create_parent(&part)?;
        let lock = item.beside("lock");
        // hf-hub takes the same lock and leaves the same partial file.
        let lock = File::create(&lock).map_err(HubError::io("write it", &lock))?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(HubError::Busy { file: item.title() }),
            // Some network file systems have no locks.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&part)
            .map_err(HubError::io("write it", &part))?;
        let mut downloaded = 0;
        self.patiently(
            item.progress(Step::Download, length(&part)),
            watch,
            || length(&part),
            |watch| self.transfer(item, &mut file, &mut downloaded, watch),
        )?;
        file.sync_all().map_err(HubError::io("write it", &part))?;
        accept(item, &part, watch)?;
        fs::rename(&part, &item.blob).map_err(HubError::io("rename it", &part))?;
        Ok(downloaded)
    }

    /// Appends what a partial file lacks.
    fn transfer(
        &self,
        item: &Item,
        file: &mut File,
        downloaded: &mut u64,
        watch: &mut Watch<'_>,
    ) -> Result<(), HubError> {
        let stored = |error: io::Error| match HubError::io("write it", &item.blob)(error) {
            HubError::Full {
                folder,
                needed,
                free,
                ..
            } => HubError::Full {
                file: item.title(),
                folder,
                needed,
                free,
            },
            error => error,
        };
        let mut done = file.metadata().map_err(stored)?.len();
        if done > item.size {
            file.set_len(0).map_err(stored)?;
            done = 0;
        }
        if done == item.size {
            return Ok(());
        }
        let mut request = self
            .agent
            .get(self.url(item.repository, &item.commit, &item.name));
        if done > 0 {
            request = request.header(RANGE, format!("bytes={done}-"));
        }
        let response = self
            .call(request)
            .map_err(|error| interrupted(&item.title(), &error))?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE);
                let expected = format!("bytes {done}-");
                if !range.is_some_and(|range| range.as_bytes().starts_with(expected.as_bytes())) {
                    return Err(HubError::Answer {
                        file: item.title(),
                        problem: "is another range of it than was asked for".to_owned(),
                    });
                }
            }
            // The whole file, from a server that knows no ranges.
            StatusCode::OK if done > 0 => {
                file.set_len(0).map_err(stored)?;
                done = 0;
            }
            StatusCode::OK => {}
            _ => return Err(self.refusal(item.repository, Some(&item.name), &response)),
        }
        let mut body = response.into_body().into_reader().take(item.size - done);
        let mut chunk = vec![0; CHUNK];
        loop {
            tell(watch, item.progress(Step::Download, done))?;
            let read = match body.read(&mut chunk) {
                Ok(0) if done == item.size => return Ok(()),
                Ok(0) => return Err(interrupted(&item.title(), &"the end is missing")),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(interrupted(&item.title(), &error)),
            };
            file.write_all(&chunk[..read]).map_err(stored)?;
            done += read as u64;
            *downloaded += read as u64;
        }
    }

    /// Tries until it succeeds, or fails for good, or fails too often without `done` having grown.
    fn patiently<T>(
        &self,
        mut waiting: Progress<'_>,
        watch: &mut Watch<'_>,
        done: impl Fn() -> u64,
        mut attempt: impl FnMut(&mut Watch<'_>) -> Result<T, HubError>,
    ) -> Result<T, HubError> {
        let mut failures = 0;
        loop {
            let before = done();
            let error = match attempt(watch) {
                Err(error) if error.may_pass() => error,
                result => return result,
            };
            waiting.done = done();
            failures = if waiting.done > before {
                1
            } else {
                failures + 1
            };
            if failures > self.hub.retries {
                return Err(error);
            }
            // In slices, so that a caller who wants to stop does not wait with us.
            let doublings = 2u32.saturating_pow(failures - 1);
            let mut wait = self.hub.wait.saturating_mul(doublings);
            while !wait.is_zero() {
                tell(watch, waiting)?;
                let slice = wait.min(Duration::from_millis(100));
                thread::sleep(slice);
                wait -= slice;
            }
        }
    }

    /// What an answer other than success means.
    fn refusal(&self, repository: &str, file: Option<&str>, response: &Response<Body>) -> HubError {
        let code = response.headers().get("x-error-code");
        let unknown = code.is_some_and(|code| code == "RepoNotFound");
        let status = response.status().as_u16();
        let repository = repository.to_owned();
        let endpoint = self.endpoint.to_owned();
        match (status, file) {
            (404, Some(file)) if !unknown => HubError::NoFile {
                repository,
                file: file.to_owned(),
            },
            // The hub does not tell strangers whether a repository is private or none.
            (404, _) => HubError::NoRepository {
                repository,
                endpoint,
            },
            (401 | 403, _) if unknown => HubError::NoRepository {
                repository,
                endpoint,
            },
            (401 | 403, _) => HubError::Denied {
                repository,
                endpoint,
                status,
            },
            _ => HubError::Status {
                file: match file {
                    Some(file) => format!("{repository}/{file}"),
                    None => repository,
                },
                status,
            },
        }
    }
}

fn interrupted(file: &str, problem: &impl fmt::Display) -> HubError {
    HubError::Interrupted {
        file: file.to_owned(),
        problem: one_line(problem),
    }
}

/// Keeps a file of the cache only if it is what the hub says it is.
fn accept(item: &Item, path: &Path, watch: &mut Watch<'_>) -> Result<(), HubError> {
    if verify(item, path, watch)? {
        return Ok(());
    }
    let size = length(path);
    fs::remove_file(path).map_err(HubError::io("remove it", path))?;
    Err(HubError::Damaged {
        file: item.title(),
        size,
        checksum: item.etag.clone(),
    })
}

/// Whether the file at `path` has the checksum that names the item. It is remembered beside the
/// contents, so that a file is not read again until its size or time of change is another.
fn verify(item: &Item, path: &Path, watch: &mut Watch<'_>) -> Result<bool, HubError> {
    if length(path) != item.size {
        return Ok(false);
    }
    // Other servers than the hub may call a file anything.
    let Some(mut hasher) = hasher(&item.etag, item.size) else {
        return Ok(true);
    };
    let marker = item.beside("verified");
    let stamp = stamp(path);
    let known = fs::read_to_string(&marker).unwrap_or_default();
    if stamp.is_some() && known.lines().any(|line| Some(line) == stamp.as_deref()) {
        return Ok(true);
    }
    let read = |error| HubError::io("read it", path)(error);
    let mut file = File::open(path).map_err(read)?;
    let mut chunk = vec![0; CHUNK];
    let mut done = 0;
    loop {
        tell(watch, item.progress(Step::Verify, done))?;
        match file.read(&mut chunk).map_err(read)? {
            0 => break,
            read => {
                hasher.update(&chunk[..read]);
                done += read as u64;
            }
        }
    }
    let sum = hasher.finalize();
    let sum: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    if sum != item.etag {
        return Ok(false);
    }
    // Without the marker the file is read again next time: no reason to fail.
    if let Some(stamp) = stamp
        && create_parent(&marker).is_ok()
    {
        let _ = fs::write(&marker, format!("{known}{stamp}\n"));
    }
    Ok(true)
}

/// The hub calls large files by their SHA-256, and others by the SHA-1 that git gives them.
fn hasher(etag: &str, size: u64) -> Option<Box<dyn DynDigest>> {
    if !etag
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    {
        return None;
    }
    match etag.len() {
        64 => Some(Box::new(Sha256::new())),
        40 => Some(Box::new(Sha1::new_with_prefix(format!("blob {size}\0")))),
        _ => None,
    }
}

/// A file's size and time of change.
fn stamp(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok()?;
    let time = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(format!("{} {}", metadata.len(), time.as_nanos()))
}

/// The checksum and size of a file in the cache.
fn identify(pointer: &Path) -> Option<(String, u64)> {
    let blob = fs::canonicalize(pointer).ok()?;
    let etag = blob.file_name()?.to_str()?.to_owned();
    let metadata = fs::metadata(&blob).ok()?;
    metadata.is_file().then_some((etag, metadata.len()))
}

/// Makes `at` a link to `target`, or where there are no links another name or a copy of `source`.
fn place(at: &Path, target: &Path, source: &Path) -> Result<(), HubError> {
    create_parent(at)?;
    if at.is_symlink() {
        fs::remove_file(at).map_err(HubError::io("replace it", at))?;
    }
    symlink(target, at)
        .or_else(|_| hard_link_or_copy(source, at))
        .map_err(HubError::io("write it", at))
}

#[cfg(unix)]
fn symlink(target: &Path, at: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, at)
}

#[cfg(windows)]
fn symlink(target: &Path, at: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, at)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The last step of a copy is a rename, so that half a copy is never taken for the file.
fn hard_link_or_copy(source: &Path, at: &Path) -> io::Result<()> {
    fs::hard_link(source, at).or_else(|_| {
        let mut copy = OsString::from(at);
        copy.push(".part");
        fs::copy(source, &copy)?;
        fs::rename(&copy, at)
    })
}

fn create_parent(path: &Path) -> Result<(), HubError> {
    match path.parent() {
        None => Ok(()),
        Some(folder) => fs::create_dir_all(folder).map_err(HubError::io("create it", folder)),
    }
}

/// The names of all files below a folder, with slashes.
fn collect_files(folder: &Path, prefix: &str, names: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let name = format!("{prefix}{name}");
        if entry.path().is_dir() {
            collect_files(&entry.path(), &format!("{name}/"), names);
        } else {
            names.push(name);
        }
    }
}

/// Whether something other than a link is there.
fn is_regular(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_symlink())
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Bytes that may be stored in a folder, or in the one that it will be created in.
#[cfg(unix)]
fn free_space(folder: &Path) -> Option<u64> {
    let folder = folder.ancestors().find(|folder| folder.is_dir())?;
    let disk = rustix::fs::statvfs(folder).ok()?;
    disk.f_bavail.checked_mul(disk.f_frsize)
}

#[cfg(not(unix))]
fn free_space(_: &Path) -> Option<u64> {
    None
}

/// Whether it can be a file's name by itself.
fn is_plain(name: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=128).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(known)
}

/// Whether a name stays inside the folder that it is put into.
fn is_inside(name: &str) -> bool {
    let odd = |c: char| c.is_control() || c == '\\' || c == ':';
    let mut components = Path::new(name).components();
    !name.is_empty()
        && !name.contains(odd)
        && components.all(|component| matches!(component, Component::Normal(_)))
}

/// A file's name as a URL has it.
fn escaped(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

fn one_line(text: &impl fmt::Display) -> String {
    text.to_string().replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_have_one_star() {
        assert!(fits("tokenizer.model", "tokenizer.*"));
        assert!(fits("llm/a/b.bin", "llm/*"));
        assert!(fits("model-1.safetensors", "model*.safetensors"));
        assert!(!fits("consolidated.safetensors", "model*.safetensors"));
        assert!(!fits("config.json.md", "config.json"));
    }

    #[test]
    fn names_stay_inside() {
        for name in ["a.bin", "a/b c.bin", "..a"] {
            assert!(is_inside(name), "{name}");
        }
        for name in ["", "/a", "../a", "a/../../b", "a\\b", "C:a", "a\nb"] {
            assert!(!is_inside(name), "{name:?}");
        }
        assert!(!is_plain(".."));
        assert!(!is_plain("a/b"));
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(escaped("a b/ü#.bin"), "a%20b/%C3%BC%23.bin");
    }

    /// Linking fails across file systems, which is where copies are for.
    #[test]
    fn without_links_there_are_copies() {
        let here = tempfile::tempdir().unwrap();
        let source = here.path().join("source");
        fs::write(&source, "contents").unwrap();
        let mut places = vec![here.path().join("at")];
        let other = tempfile::tempdir_in("/dev/shm");
        places.extend(other.iter().map(|other| other.path().join("at")));
        for at in places {
            hard_link_or_copy(&source, &at).unwrap();
            assert_eq!(fs::read_to_string(&at).unwrap(), "contents");
            assert!(!at.is_symlink());
        }
    }
}
