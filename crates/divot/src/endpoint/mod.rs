//! Answers from a language model behind an OpenAI-compatible endpoint, by the thousand.
//!
//! An [`Endpoint`] says whom to ask, a [`Request`] what, and [`run`] asks: several requests at a time, failures
//! retried, each answer kept in a [`Cache`] the moment it arrives. A run that ends early, however it ends, goes
//! on where it was, and no answer is paid twice. [`estimate`] says beforehand what a run will cost. [`ask`] asks again
//! where an answer is of no use.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//!
//! use divot::endpoint::{Cache, Endpoint, Event, Image, Prices, Request, estimate, run};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let endpoint = Endpoint::from_env("gpt-4o-mini")?.with_parallel(16);
//! let mut cache = Cache::open("captions.cache.jsonl")?;
//! let jobs = || {
//!     ["a.png", "b.png"].into_iter().map(|path| {
//!         let image = Image::new(std::fs::read(path).unwrap_or_default()).unwrap();
//!         (path, Request::new(200).text("What happens here?").image(image))
//!     })
//! };
//!
//! let prices = Prices { input: 0.15, output: 0.60 }; // for a million tokens
//! let expected = estimate(&endpoint, &cache, jobs().map(|(_, request)| request), |_| Ok(()))?;
//! println!("about {:.2}", prices.of(expected.usage));
//!
//! let summary = run(&endpoint, &mut cache, jobs(), |event, _so_far| {
//!     match event {
//!         Event::Done { job, result: Ok(answer) } => println!("{job}: {}", answer.text),
//!         Event::Done { job, result: Err(failure) } => eprintln!("{job}: {failure}"),
//!         _ => {}
//!     }
//!     ControlFlow::Continue(()) // Break stops it
//! })?;
//! println!("paid: {:.2}", prices.of(summary.usage));
//! # Ok(())
//! # }
//! ```
//!
//! Requests are `POST {address}/chat/completions`, over HTTP or HTTPS. The variables `ALL_PROXY`, `HTTPS_PROXY`,
//! `HTTP_PROXY` and `NO_PROXY` are respected. The key is in no error, no log and no cache.
//!
//! | the endpoint | what is done |
//! | --- | --- |
//! | answers 408, 409, 429 or 5xx, or with something unusable; breaks the connection; is silent too long | the request is retried, with growing waits, or as `Retry-After` says |
//! | answers another 4xx | this job has failed, the others go on |
//! | answers 401, 402, 403, 404, 405 or a redirection; has no credit left | the run ends |
//! | leaves many jobs in a row without an answer, in spite of retries | the run ends |

mod batch;
mod cache;
mod client;
mod cost;
mod error;
mod reply;
mod request;
mod usable;

pub use batch::{Event, Failure, Summary, run};
pub use cache::Cache;
pub use cost::{Estimate, Prices, Usage, estimate};
pub use error::EndpointError;
pub use reply::Answer;
pub use request::{Format, Image, Request};
pub use usable::{Asked, ask, known};

use std::fmt;
use std::time::Duration;

use ureq::http::Uri;

/// The address that is asked if none is given.
const ADDRESS: &str = "https://api.openai.com/v1";
/// The most requests at a time.
const MOST_PARALLEL: usize = 256;

/// An OpenAI-compatible endpoint, a model there, and how patiently it is asked.
#[derive(Clone)]
pub struct Endpoint {
    address: String,
    model: String,
    key: Option<String>,
    timeout: Duration,
    parallel: usize,
    retries: u32,
    wait: Duration,
    completion_limit: bool,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("address", &self.address)
            .field("model", &self.model)
            .field("key", &self.key.as_ref().map(|_| "…"))
            .field("timeout", &self.timeout)
            .field("parallel", &self.parallel)
            .field("retries", &self.retries)
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Creates an endpoint without a key. `address` is all before `/chat/completions`, for example
    /// `http://localhost:8000/v1`.
    ///
    /// # Errors
    /// If the address is not one of HTTP or HTTPS, or holds a user, a password or a query; if the model has no
    /// name.
    pub fn new(address: &str, model: &str) -> Result<Self, EndpointError> {
        let address = address.trim().trim_end_matches('/');
        let address = address.strip_suffix("/chat/completions").unwrap_or(address);
        let is_plain = address.parse::<Uri>().is_ok_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.query().is_none()
                && uri.authority().is_some_and(|it| !it.as_str().contains('@'))
        });
        if !is_plain || address.contains('#') {
            return Err(EndpointError::Address);
        }
        let model = model.trim();
        if model.is_empty() {
            return Err(EndpointError::NoModel);
        }
        Ok(Self {
            address: address.to_owned(),
            model: model.to_owned(),
            key: None,
            timeout: Duration::from_secs(300),
            parallel: 8,
            retries: 5,
            wait: Duration::from_secs(1),
            completion_limit: false,
        })
    }

    /// Creates an endpoint with the address in `OPENAI_BASE_URL` (OpenAI's own if unset) and the key in
    /// `OPENAI_API_KEY`.
    ///
    /// # Errors
    /// As [`new`](Self::new) and [`with_key`](Self::with_key).
    pub fn from_env(model: &str) -> Result<Self, EndpointError> {
        Self::from_lookup(model, |name| std::env::var(name).ok())
    }

    /// Like [`from_env`](Self::from_env), but with another lookup of variables. An empty variable counts as
    /// unset.
    ///
    /// # Errors
    /// As [`new`](Self::new) and [`with_key`](Self::with_key).
    pub fn from_lookup(
        model: &str,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, EndpointError> {
        let get = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
        let address = get("OPENAI_BASE_URL");
        Self::new(address.as_deref().unwrap_or(ADDRESS), model)?.with_key(get("OPENAI_API_KEY"))
    }

    /// Sets the key, which is sent as a bearer token. Local servers need none.
    ///
    /// # Errors
    /// If the key has spaces or other characters that no key has.
    pub fn with_key(mut self, key: Option<String>) -> Result<Self, EndpointError> {
        self.key = key.map(|key| key.trim().to_owned());
        match &self.key {
            Some(key) if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Err(EndpointError::Key)
            }
            _ => Ok(self),
        }
    }

    /// Sets how long a request may take from the first byte sent to the last byte received (5 minutes by
    /// default).
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the number of requests at a time (8 by default, 256 at most).
    pub fn with_parallel(mut self, parallel: usize) -> Self {
        self.parallel = parallel.clamp(1, MOST_PARALLEL);
        self
    }

    /// Sets how often a request is retried (5 times by default), and the wait before the first retry (one
    /// second).
    ///
    /// The wait doubles each time, up to a minute, and up to half of it is taken off by chance, so that
    /// requests that failed together do not come back together. If the endpoint names a longer wait in
    /// `Retry-After` (in seconds), that counts, up to five minutes.
    pub fn with_retries(mut self, retries: u32, wait: Duration) -> Self {
        self.retries = retries;
        self.wait = wait;
        self
    }

    /// Sets whether the limit of an answer's length is sent as `max_completion_tokens`, which OpenAI's
    /// reasoning models ask for, instead of `max_tokens` (the default), which all others know.
    pub fn with_completion_limit(mut self, completion_limit: bool) -> Self {
        self.completion_limit = completion_limit;
        self
    }

    /// Returns the address, without a slash at the end.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the model's name.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Returns the number of requests at a time.
    pub fn parallel(&self) -> usize {
        self.parallel
    }
}
