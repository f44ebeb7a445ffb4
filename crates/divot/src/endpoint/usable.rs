//! Many requests whose answers have to be of use.

use std::ops::ControlFlow;

use super::{Answer, Cache, Endpoint, EndpointError, Event, Failure, Request, Summary, run};

/// How often a run asks a question whose answers are of no use.
const TRIES: u32 = 3;

/// What happens while questions are asked.
#[derive(Debug)]
#[non_exhaustive]
pub enum Asked<J, T> {
    /// A job has ended.
    Done {
        /// The job.
        job: J,
        /// What its answer was read as, and whether no request was needed for it. Otherwise, why there is nothing.
        result: Result<(T, bool), Failure>,
    },
    /// Nothing has ended for a tenth of a second: time to stop, or to show that the run lives.
    Waiting,
}

/// Returns what the cache's answer to a request reads as: the first of use, which [`ask`] takes without a request.
///
/// # Errors
/// If the cache cannot be read.
pub fn known<T>(
    endpoint: &Endpoint,
    cache: &Cache,
    request: &Request,
    read: impl Fn(&Answer) -> Result<T, String>,
) -> Result<Option<T>, EndpointError> {
    let mut asked = request.clone();
    let mut round = 0;
    while let Some(answer) = cache.get(&asked.encode(endpoint).key)? {
        if let Ok(value) = read(&answer) {
            return Ok(Some(value));
        }
        round += 1;
        asked = request.clone().seed(round);
    }
    Ok(None)
}

/// Asks for the answers of many jobs as [`run`] does, and again for those that `read` finds of no use: with another
/// seed, because the cache has the answer to the same request. A run asks for a job three times at most; answers of the
/// cache do not count, so that the next run asks again.
///
/// `request` makes a job's request. Its errors end the run, and so do those of [`run`]. `read` says in a few words what
/// is wrong with an answer. `each` is called as that of [`run`]; jobs come in their order, except that those that are
/// asked again come last. The summary counts requests and tokens of all rounds, and each job once.
///
/// # Errors
/// Those of `request` and of [`run`].
pub fn ask<J, T, E: From<EndpointError>>(
    endpoint: &Endpoint,
    cache: &mut Cache,
    jobs: impl IntoIterator<Item = J>,
    mut request: impl FnMut(&J) -> Result<Request, E>,
    read: impl Fn(&Answer) -> Result<T, String>,
    mut each: impl FnMut(Asked<J, T>) -> ControlFlow<()>,
) -> Result<Summary, E> {
    let mut total = Summary::default();
    // Jobs of a round, and how often this run has asked for each of them in vain.
    let mut jobs = jobs.into_iter().map(|job| (job, 0));
    let mut again: Vec<(J, u32)> = Vec::new();
    for round in 0.. {
        let mut earlier = std::mem::take(&mut again).into_iter();
        if round > 0 && earlier.len() == 0 {
            break;
        }
        let asked: &mut dyn Iterator<Item = (J, u32)> = match round {
            0 => &mut jobs,
            _ => &mut earlier,
        };
        let mut failed = None;
        let requests = asked.map_while(|(job, tries)| match request(&job) {
            Ok(request) if round == 0 => Some(((job, tries), request)),
            Ok(request) => Some(((job, tries), request.seed(round))),
            Err(error) => {
                failed = Some(error);
                None
            }
        });
        let (mut answered, mut cached, mut without) = (0, 0, 0);
        let summary = run(endpoint, cache, requests, |event, _| {
            let ((job, tries), result) = match event {
                Event::Waiting => return each(Asked::Waiting),
                Event::Done { job, result } => (job, result),
            };
            let result = match result.map(|answer| (read(&answer), answer.cached)) {
                Ok((Err(reason), is_cached)) => {
                    let tries = tries + u32::from(!is_cached);
                    if tries < TRIES {
                        again.push((job, tries));
                        return ControlFlow::Continue(());
                    }
                    Err(Failure { tries, reason })
                }
                Ok((Ok(value), is_cached)) => Ok((value, is_cached)),
                Err(failure) => Err(failure),
            };
            *match &result {
                Ok((_, true)) => &mut cached,
                Ok((_, false)) => &mut answered,
                Err(_) => &mut without,
            } += 1;
            each(Asked::Done { job, result })
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        total.add(&Summary {
            answered,
            cached,
            failed: without,
            ..summary
        });
    }
    Ok(total)
}
