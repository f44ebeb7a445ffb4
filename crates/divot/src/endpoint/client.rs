//! One request, and its retries.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use ureq::{Agent, Body, http::Response};

use super::batch::Failure;
use super::reply::{self, Answer, Unusable, error_in, one_line, repeatable};
use super::request::Encoded;
use super::{Endpoint, EndpointError, Usage};

/// The largest reply that is read, in bytes.
const LARGEST_REPLY: u64 = 8 << 20;
/// The most that is read of an error's body, in bytes.
const LARGEST_ERROR: u64 = 1 << 16;
/// The longest time to make a connection.
const CONNECT: Duration = Duration::from_secs(30);
/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The longest wait that an endpoint may ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(300);
/// How long a wait lasts before it is seen that the run has ended.
const SLICE: Duration = Duration::from_millis(50);

/// How a request ended, after all its tries.
pub(super) struct Outcome {
    pub result: Result<Answer, Trouble>,
    pub tries: u32,
    /// What all tries cost.
    pub usage: Usage,
    /// Tries with a reply that cost something unknown.
    pub uncounted: u32,
}

/// Why a request has no answer.
pub(super) enum Trouble {
    /// This request cannot be answered.
    Job(Failure),
    /// The endpoint did not answer this request. It might have, and might answer others.
    Endpoint(Failure),
    /// No request can be answered.
    All(EndpointError),
}

/// Why a try has no answer.
enum Problem {
    /// Another try may help, at the earliest after this wait.
    Passing(String, Option<Duration>),
    Job(String),
    All(EndpointError),
}

/// Sends requests to an endpoint.
pub(super) struct Client {
    endpoint: Endpoint,
    url: String,
    authorization: Option<HeaderValue>,
    agent: Agent,
}

impl Client {
    pub fn new(endpoint: &Endpoint) -> Result<Self, EndpointError> {
        let authorization = match &endpoint.key {
            None => None,
            Some(key) => {
                let mut value = HeaderValue::try_from(format!("Bearer {key}"))
                    .map_err(|_| EndpointError::Key)?;
                value.set_sensitive(true); // and so not in ureq's log
                Some(value)
            }
        };
        let agent = Agent::config_builder()
            .user_agent(concat!("divot/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // A redirected POST would become a GET.
            .max_redirects(0)
            .max_idle_connections(endpoint.parallel)
            .max_idle_connections_per_host(endpoint.parallel)
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_global(Some(endpoint.timeout))
            .build()
            .into();
        Ok(Self {
            url: format!("{}/chat/completions", endpoint.address),
            authorization,
            agent,
            endpoint: endpoint.clone(),
        })
    }

    /// Asks until there is an answer, or no hope of one. Returns `None` if `stop` ended a wait.
    pub fn ask(&self, request: &Encoded, stop: &AtomicBool) -> Option<Outcome> {
        let mut outcome = Outcome {
            result: Err(Trouble::Job(Failure::default())),
            tries: 0,
            usage: Usage::default(),
            uncounted: 0,
        };
        loop {
            outcome.tries += 1;
            let tries = outcome.tries;
            let failed = |reason| Failure { tries, reason };
            let trouble = match self.attempt(request, &mut outcome) {
                Ok(answer) => {
                    outcome.result = Ok(answer);
                    return Some(outcome);
                }
                Err(Problem::Passing(_, after)) if tries <= self.endpoint.retries => {
                    self.wait(tries, after, stop)?;
                    continue;
                }
                Err(Problem::Passing(reason, _)) => Trouble::Endpoint(failed(reason)),
                Err(Problem::Job(reason)) => Trouble::Job(failed(reason)),
                Err(Problem::All(error)) => Trouble::All(error),
            };
            outcome.result = Err(trouble);
            return Some(outcome);
        }
    }

    /// Waits before the next try. Returns `None` as soon as `stop` is set.
    fn wait(&self, tries: u32, after: Option<Duration>, stop: &AtomicBool) -> Option<()> {
        let doublings = 2u32.saturating_pow(tries - 1);
        let longest = self
            .endpoint
            .wait
            .saturating_mul(doublings)
            .min(LONGEST_WAIT);
        let chance = RandomState::new().hash_one(tries) as f64 / u64::MAX as f64;
        let wait = longest.mul_f64(1.0 - chance / 2.0);
        let mut left = wait.max(after.unwrap_or_default().min(LONGEST_ASKED));
        while !left.is_zero() {
            if stop.load(Ordering::Relaxed) {
                return None;
            }
            let slice = left.min(SLICE);
            thread::sleep(slice);
            left -= slice;
        }
        (!stop.load(Ordering::Relaxed)).then_some(())
    }

    fn attempt(&self, request: &Encoded, outcome: &mut Outcome) -> Result<Answer, Problem> {
        let mut call = self
            .agent
            .post(&self.url)
            .header(CONTENT_TYPE, "application/json");
        if let Some(authorization) = &self.authorization {
            call = call.header(AUTHORIZATION, authorization);
        }
        let mut response = call
            .send(&request.body[..])
            .map_err(|error| self.broken(&error))?;
        if response.status().as_u16() != 200 {
            return Err(self.refusal(&mut response));
        }
        let body = response
            .body_mut()
            .with_config()
            .limit(LARGEST_REPLY)
            .read_to_vec();
        let read = match &body {
            Ok(body) => reply::read(body, request.is_json),
            Err(error) => {
                outcome.uncounted += 1;
                return Err(self.broken(error));
            }
        };
        let usage = match &read {
            Ok(answer) => answer.usage,
            Err(unusable) => unusable.usage,
        };
        match usage {
            Some(usage) => outcome.usage.add(usage),
            None => outcome.uncounted += 1,
        }
        read.map_err(
            |Unusable {
                 reason, may_pass, ..
             }| {
                let reason = self.repeatable(&reason);
                match may_pass {
                    true => Problem::Passing(reason, None),
                    false => Problem::Job(reason),
                }
            },
        )
    }

    fn broken(&self, error: &ureq::Error) -> Problem {
        let error = one_line(&error.to_string());
        let reason = format!("the connection failed: {error}");
        Problem::Passing(self.repeatable(&reason), None)
    }

    /// Returns what a reply without status 200 means.
    fn refusal(&self, response: &mut Response<Body>) -> Problem {
        let status = response.status().as_u16();
        let after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|after| after.to_str().ok()?.trim().parse().ok())
            .filter(|seconds: &f64| *seconds > 0.0)
            .map(|seconds| Duration::from_secs_f64(seconds.min(LONGEST_ASKED.as_secs_f64())));
        let body = response
            .body_mut()
            .with_config()
            .limit(LARGEST_ERROR)
            .read_to_vec();
        let (message, code) = error_in(&body.unwrap_or_default());
        let reason = match message {
            Some(message) => format!("HTTP {status}: {}", self.repeatable(&message)),
            None => format!("HTTP {status}"),
        };
        let address = self.endpoint.address.clone();
        let model = self.endpoint.model.clone();
        match status {
            401 | 403 if self.authorization.is_none() => {
                Problem::All(EndpointError::NoKey { address, status })
            }
            // What is said about a key may hold parts of it.
            401 | 403 => Problem::All(EndpointError::Refused {
                address,
                model,
                status,
            }),
            402 => Problem::All(EndpointError::NoCredit {
                address,
                problem: reason,
            }),
            // OpenAI's way to say so.
            429 if code.as_deref() == Some("insufficient_quota") => {
                Problem::All(EndpointError::NoCredit {
                    address,
                    problem: reason,
                })
            }
            300..=399 => Problem::All(EndpointError::Unknown {
                address,
                model,
                problem: format!("HTTP {status}, a redirection"),
            }),
            404 | 405 => Problem::All(EndpointError::Unknown {
                address,
                model,
                problem: reason,
            }),
            408 | 409 | 429 | 500..=599 => Problem::Passing(reason, after),
            400..=499 => Problem::Job(reason),
            _ => Problem::Passing(reason, after),
        }
    }

    fn repeatable(&self, message: &str) -> String {
        repeatable(message, self.endpoint.key.as_deref())
    }
}
