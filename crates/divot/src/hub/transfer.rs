//! Requests to the hub: the list of files, their checksums and sizes, and their contents.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::thread;
use std::time::Duration;

use hf_hub::Repo;
use hf_hub::api::RepoInfo;
use ureq::config::RedirectAuthHeaders;
use ureq::http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, LOCATION, RANGE,
};
use ureq::http::{Response, StatusCode, Uri};
use ureq::typestate::WithoutBody;
use ureq::{Agent, Body, RequestBuilder};

use super::cache::{Item, create_parent, length};
use super::checksum::accept;
use super::names::{escaped, is_inside, is_plain};
use super::{Hub, HubError};
use crate::progress::{Progress, Step, Watch};

/// Maximum number of redirections within the hub.
const REDIRECTIONS: usize = 5;
/// Number of bytes that are read between two calls of the progress callback.
pub(super) const CHUNK: usize = 1 << 18;

/// Reports progress to the caller, who may stop the work.
pub(super) fn tell(watch: &mut Watch<'_>, progress: Progress<'_>) -> Result<(), HubError> {
    match watch(progress) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(HubError::Stopped),
    }
}

/// A client of the hub.
pub(super) struct Client<'a> {
    pub hub: &'a Hub,
    agent: Agent,
    /// The address without a trailing slash.
    endpoint: &'a str,
    /// The address without its path.
    origin: String,
}

impl<'a> Client<'a> {
    pub fn new(hub: &'a Hub) -> Result<Self, HubError> {
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

    /// Returns the newest commit of a repository and the names of its files.
    pub fn list(
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
            name: repository,
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

    /// Returns the address of a file of a commit.
    fn url(&self, repository: &str, commit: &str, name: &str) -> String {
        format!(
            "{}/{repository}/resolve/{commit}/{}",
            self.endpoint,
            escaped(name)
        )
    }

    /// Returns the checksum and size of a file.
    ///
    /// The hub states them before it redirects to the contents. Therefore only redirections within the hub
    /// are followed.
    pub fn locate(
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
            name,
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

    /// Downloads a file into the cache and verifies it. Returns the number of downloaded bytes.
    pub fn fetch(&self, item: &Item, watch: &mut Watch<'_>) -> Result<u64, HubError> {
        let part = item.beside("part");
        create_parent(&part)?;
        let lock = item.beside("lock");
        // hf-hub uses the same lock and the same partial file.
        let lock = File::create(&lock).map_err(HubError::io("write it", &lock))?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(HubError::Busy { file: item.title() }),
            // Some network file systems do not support locks.
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

    /// Appends the missing rest of a partial file.
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
            // The server does not support ranges and sends the whole file.
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

    /// Retries until it succeeds, fails permanently, or fails too often without progress in `done`.
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
            // In short steps, so that a caller can stop the wait.
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

    /// Returns the error for an unsuccessful response.
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
            // The hub does not reveal whether a repository is private or does not exist.
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

fn one_line(text: &impl fmt::Display) -> String {
    text.to_string().replace(char::is_control, " ")
}
