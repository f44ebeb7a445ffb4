//! Many requests.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::cache::Writer;
use super::client::{Client, Outcome, Trouble};
use super::request::{Encoded, Key};
use super::{Answer, Cache, Endpoint, EndpointError, Request, Usage};

/// The longest time between two calls of the callback, unless the iterator of jobs takes longer.
const TICK: Duration = Duration::from_millis(100);
/// Jobs that may be ahead of the one to be handed over next, for each request at a time.
const AHEAD: usize = 16;
/// The fewest jobs in a row without an answer that end a run.
const IN_A_ROW: usize = 8;

/// Why a job has no answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, thiserror::Error)]
#[error("no answer ({reason}; tries: {tries})")]
pub struct Failure {
    /// Number of requests that were sent for it.
    pub tries: u32,
    /// The last problem.
    pub reason: String,
}

/// What happens in a run.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<T> {
    /// A job has ended, in one way or the other. Jobs are handed over in their order.
    Done {
        /// What came with its request.
        job: T,
        /// The answer. A failed job is not in the cache, so the next run tries it again.
        result: Result<Answer, Failure>,
    },
    /// Nothing has ended for a tenth of a second: time to stop, or to show that the run lives.
    Waiting,
}

/// A run so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Jobs that were answered by a request.
    pub answered: usize,
    /// Jobs that were answered without one, by the cache or by the same request of another job.
    pub cached: usize,
    /// Jobs that failed.
    pub failed: usize,
    /// Requests of jobs that ended, retries included.
    pub requests: usize,
    /// The tokens that the endpoint counted in its replies, unusable ones included.
    pub usage: Usage,
    /// Replies in which it counted none.
    pub uncounted: usize,
}

impl Summary {
    /// Adds another run.
    pub fn add(&mut self, other: &Self) {
        self.answered += other.answered;
        self.cached += other.cached;
        self.failed += other.failed;
        self.requests += other.requests;
        self.usage.add(other.usage);
        self.uncounted += other.uncounted;
    }
}

/// Asks for the answers of `jobs` that `cache` lacks, and hands over all of them in the order of `jobs`, each with
/// what came with its request.
///
/// Jobs are drawn from the iterator on this thread, when there is room: at most two for each request at a time are
/// being asked for or waiting for it. `each` is called on this thread too, at the latest every tenth of a second
/// unless the iterator takes longer, with the state of the run. If it returns [`ControlFlow::Break`], the run ends
/// at once. What is being asked for then still goes to the cache if the answer comes while the program lives, and
/// the cache is in use until then.
///
/// The same request is sent once, even if several jobs have it. With a temperature above 0, several
/// answers need several seeds.
///
/// # Errors
/// [`EndpointError::Stopped`] if `each` ends it. Otherwise if no job can be answered: the key is refused, the
/// model unknown, the credit used up, or many jobs in a row (8, or two for each request at a time if that is more)
/// had no answer in spite of all retries. If the cache cannot be read or written.
pub fn run<T>(
    endpoint: &Endpoint,
    cache: &mut Cache,
    jobs: impl IntoIterator<Item = (T, Request)>,
    each: impl FnMut(Event<T>, &Summary) -> ControlFlow<()>,
) -> Result<Summary, EndpointError> {
    let mut run = Run {
        endpoint,
        cache,
        workers: Workers::start(endpoint, cache)?,
        slots: VecDeque::new(),
        handed_over: 0,
        asked: HashMap::new(),
        unanswered: 0,
        summary: Summary::default(),
        each,
        called: Instant::now(),
    };
    let mut jobs = jobs.into_iter();
    let mut is_exhausted = false;
    loop {
        run.hand_over()?;
        if is_exhausted && run.slots.is_empty() {
            run.workers.finish();
            return Ok(run.summary);
        }
        if !is_exhausted && run.has_room() {
            match jobs.next() {
                Some((job, request)) => run.begin(job, &request)?,
                None => is_exhausted = true,
            }
            while let Ok((key, outcome)) = run.workers.results.try_recv() {
                run.end(key, outcome)?;
            }
            continue;
        }
        match run.workers.results.recv_timeout(TICK) {
            Ok((key, outcome)) => run.end(key, outcome)?,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                run.workers.check();
            }
        }
    }
}

/// A job that was begun and not handed over.
struct Slot<T> {
    job: T,
    result: Option<Result<Answer, Failure>>,
}

struct Run<'a, T, F> {
    endpoint: &'a Endpoint,
    cache: &'a Cache,
    workers: Workers,
    slots: VecDeque<Slot<T>>,
    /// Number of jobs before the first slot.
    handed_over: usize,
    /// The jobs that wait for each request that was sent.
    asked: HashMap<Key, Vec<usize>>,
    /// Number of requests in a row that were left without an answer.
    unanswered: usize,
    summary: Summary,
    each: F,
    /// When `each` was called last.
    called: Instant,
}

impl<T, F: FnMut(Event<T>, &Summary) -> ControlFlow<()>> Run<'_, T, F> {
    fn has_room(&self) -> bool {
        let parallel = self.endpoint.parallel;
        self.asked.len() < 2 * parallel && self.slots.len() < AHEAD * parallel
    }

    fn begin(&mut self, job: T, request: &Request) -> Result<(), EndpointError> {
        let request = request.encode(self.endpoint);
        let index = self.handed_over + self.slots.len();
        let mut result = None;
        if let Some(jobs) = self.asked.get_mut(&request.key) {
            jobs.push(index);
        } else if let Some(answer) = self.cache.get(&request.key)? {
            result = Some(Ok(answer));
        } else {
            self.asked.insert(request.key, vec![index]);
            self.workers.send(request);
        }
        self.slots.push_back(Slot { job, result });
        Ok(())
    }

    fn end(
        &mut self,
        key: Key,
        outcome: Result<Outcome, EndpointError>,
    ) -> Result<(), EndpointError> {
        let outcome = outcome?;
        self.summary.requests += outcome.tries as usize;
        self.summary.usage.add(outcome.usage);
        self.summary.uncounted += outcome.uncounted as usize;
        self.unanswered = match &outcome.result {
            Err(Trouble::Endpoint(_)) => self.unanswered + 1,
            _ => 0,
        };
        let mut result = match outcome.result {
            Ok(answer) => Ok(answer),
            Err(Trouble::All(error)) => return Err(error),
            Err(Trouble::Endpoint(Failure { reason, .. }))
                if self.unanswered >= IN_A_ROW.max(2 * self.endpoint.parallel) =>
            {
                return Err(EndpointError::Down {
                    address: self.endpoint.address.clone(),
                    jobs: self.unanswered,
                    problem: reason,
                });
            }
            Err(Trouble::Job(failure) | Trouble::Endpoint(failure)) => Err(failure),
        };
        for index in self.asked.remove(&key).unwrap_or_default() {
            self.slots[index - self.handed_over].result = Some(result.clone());
            if let Ok(answer) = &mut result {
                answer.cached = true; // for all but the first
            }
        }
        Ok(())
    }

    /// Hands over the jobs that have ended, up to the first that has not.
    fn hand_over(&mut self) -> Result<(), EndpointError> {
        while let Some(Slot {
            job,
            result: Some(result),
        }) = self.slots.pop_front_if(|slot| slot.result.is_some())
        {
            self.handed_over += 1;
            *match &result {
                Ok(answer) if answer.cached => &mut self.summary.cached,
                Ok(_) => &mut self.summary.answered,
                Err(_) => &mut self.summary.failed,
            } += 1;
            self.call(Event::Done { job, result })?;
        }
        if self.called.elapsed() >= TICK {
            self.call(Event::Waiting)?;
        }
        Ok(())
    }

    fn call(&mut self, event: Event<T>) -> Result<(), EndpointError> {
        self.called = Instant::now();
        match (self.each)(event, &self.summary) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(EndpointError::Stopped),
        }
    }
}

type Ended = (Key, Result<Outcome, EndpointError>);

/// The threads that send requests. If this is dropped, each ends after the reply that it is waiting for.
struct Workers {
    requests: Sender<Encoded>,
    results: Receiver<Ended>,
    stop: Stop,
    threads: Vec<JoinHandle<()>>,
}

/// Tells the threads to stop when it is dropped.
#[derive(Default)]
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Workers {
    fn start(endpoint: &Endpoint, cache: &Cache) -> Result<Self, EndpointError> {
        let client = Arc::new(Client::new(endpoint)?);
        let (requests, queue) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        let (ended, results) = mpsc::channel();
        let mut workers = Self {
            requests,
            results,
            stop: Stop::default(),
            threads: Vec::new(),
        };
        for _ in 0..endpoint.parallel {
            let (client, queue, ended) = (client.clone(), queue.clone(), ended.clone());
            let (writer, stop) = (cache.writer(), workers.stop.0.clone());
            let thread = thread::Builder::new()
                .name("endpoint".to_owned())
                .spawn(move || work(&client, &queue, &ended, &writer, &stop))
                .map_err(EndpointError::Threads)?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    fn send(&self, request: Encoded) {
        // The queue is there as long as a thread is, and `check` sees to threads that are not.
        let _ = self.requests.send(request);
    }

    /// Passes on the panic of a thread, whose job would be waited for forever.
    fn check(&mut self) {
        let ended = self.threads.iter().position(JoinHandle::is_finished);
        if let Some(Err(panic)) = ended.map(|index| self.threads.swap_remove(index).join()) {
            resume_unwind(panic);
        }
    }

    /// Waits for the end of the threads, which have nothing left to do, so that the cache is free again.
    fn finish(self) {
        drop(self.requests);
        for thread in self.threads {
            if let Err(panic) = thread.join() {
                resume_unwind(panic);
            }
        }
    }
}

fn work(
    client: &Client,
    queue: &Mutex<Receiver<Encoded>>,
    ended: &Sender<Ended>,
    writer: &Writer,
    stop: &AtomicBool,
) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(request) = next else { return };
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let Some(outcome) = client.ask(&request, stop) else {
            return;
        };
        let stored = match &outcome.result {
            Ok(answer) => writer.put(&request.key, answer),
            Err(_) => Ok(()),
        };
        if ended.send((request.key, stored.map(|()| outcome))).is_err() {
            return;
        }
    }
}
