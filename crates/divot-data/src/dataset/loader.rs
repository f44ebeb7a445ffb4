//! Batches of samples, read ahead by threads.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::order::Mixture;
use super::ordered::{MixedSource, OrderedSource, lock};
use super::sample::{Reason, Sample, Skip};
use super::skipped::Skipped;
use crate::{Error, Result};

/// The largest batch.
const MAX_BATCH: usize = 1 << 16;

/// How batches are made.
#[derive(Debug, Clone)]
pub struct LoaderConfig {
    /// Seed of the order and of what is random in the samples.
    pub seed: u64,
    /// Number of this process among `ranks`, from 0.
    pub rank: usize,
    /// Number of processes that share the samples.
    pub ranks: usize,
    /// Threads that read samples.
    pub workers: usize,
    /// Batches that may be read ahead. The next batch is read in any case.
    pub max_ahead: usize,
    /// Bytes of frames, or of what was made of them, that may be read ahead, besides those of the next batch and of the sample that each
    /// thread is at.
    pub max_bytes: usize,
    /// The step whose batch comes first.
    pub first_step: u64,
    /// The file that broken samples are named in, a JSON object on each line. Samples that it names already
    /// are counted and not named again. Each rank needs its own.
    pub log: Option<PathBuf>,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            rank: 0,
            ranks: 1,
            workers: 2,
            max_ahead: 4,
            max_bytes: 1 << 30,
            first_step: 0,
            log: None,
        }
    }
}

/// The samples of a step, all of one source.
#[derive(Debug)]
pub struct Batch {
    /// The step.
    pub step: u64,
    /// Number of the source.
    pub source: usize,
    /// The epoch of the source that the last sample is of.
    pub epoch: u64,
    /// The samples, in order.
    pub samples: Vec<Sample>,
}

/// An endless iterator over batches, which ends after an error.
///
/// Which samples a step sees is a function of the seed and the step, so reading can start at any step: a
/// source is drawn in proportion to the weights (FACTS: "Training data"), and its next samples follow in its
/// [`Order`](super::Order). A broken sample is replaced by another of its source, which is a function of its
/// position. What is random in a sample is a function of its position, too. The number of threads changes
/// nothing.
///
/// With several ranks, a step's samples are those of one rank with a batch of all ranks' size: rank 0 has the
/// first of them, rank 1 the next and so on.
///
/// A fixed validation set is the first batches of a loader with another seed, or with other sources:
/// `loader.take(n)`.
///
/// Dropping a loader waits until each thread is done with the sample that it is at.
pub struct Loader {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    waited: Duration,
}

struct Shared {
    config: LoaderConfig,
    mixture: Mixture,
    sources: Vec<OrderedSource>,
    state: Mutex<State>,
    /// A sample was read, a batch was taken, or everything ends.
    changed: Condvar,
    skipped: Mutex<Skipped>,
}

struct State {
    /// The step that is taken next.
    step: u64,
    /// The batches from that step on. Only of the last one, samples may be left to be read.
    ahead: VecDeque<Pending>,
    /// How many batches of each source came before the first that is not in `ahead`.
    batches: Vec<u64>,
    /// Bytes of the frames in `ahead`.
    bytes: usize,
    ended: bool,
}

/// A batch that is being read.
struct Pending {
    source: usize,
    /// Position of its first sample.
    position: u64,
    samples: Vec<Option<Sample>>,
    /// Samples that a thread has read or is at.
    begun: usize,
    read: usize,
    error: Option<Error>,
}

/// A sample that is to be read.
struct Task {
    step: u64,
    place: usize,
    source: usize,
    position: u64,
}

impl Loader {
    /// Starts to read.
    ///
    /// A log that cannot be read or written is no error; see [`Loader::take_log_error`].
    ///
    /// # Errors
    /// If there is no source, a source is empty, or a weight, a batch or another number is out of range.
    pub fn new(sources: Vec<MixedSource>, config: LoaderConfig) -> Result<Self> {
        check(&sources, &config)?;
        let weights = sources.iter().map(|source| source.weight);
        let mixture = Mixture::new(weights, config.seed);
        let mut batches = vec![0; sources.len()];
        for step in 0..config.first_step {
            batches[mixture.source(step)] += 1;
        }
        let mut skipped = Skipped::new(config.log.as_deref());
        for source in &sources {
            for skip in source.samples.passed_over() {
                skipped.add(&source.name, None, skip);
            }
        }
        let ordered = |(number, source)| {
            let yielded = batches[number] > 0;
            OrderedSource::new(source, number as u64, config.seed, yielded)
        };
        let sources = sources.into_iter().enumerate().map(ordered);
        let sources = sources.collect::<Result<_>>()?;
        let shared = Arc::new(Shared {
            mixture,
            sources,
            state: Mutex::new(State {
                step: config.first_step,
                ahead: VecDeque::new(),
                batches,
                bytes: 0,
                ended: false,
            }),
            changed: Condvar::new(),
            skipped: Mutex::new(skipped),
            config,
        });
        let mut loader = Self {
            shared,
            workers: Vec::new(),
            waited: Duration::ZERO,
        };
        for _ in 0..loader.shared.config.workers {
            let shared = loader.shared.clone();
            let worker = thread::Builder::new().spawn(move || shared.work());
            let refused = |error| {
                Error::Argument(format!(
                    "a thread that reads samples could not be started ({error}); ask for fewer"
                ))
            };
            loader.workers.push(worker.map_err(refused)?);
        }
        Ok(loader)
    }

    /// How long batches were waited for, since this was asked last.
    pub fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }

    /// Counts and names a sample that was read, of the source of that number, and cannot be used.
    pub fn leave_out(&self, source: usize, skip: &Skip) {
        let name = &self.shared.sources[source].source.name;
        lock(&self.shared.skipped).add(name, None, skip);
    }

    /// How many broken samples were met, by source and reason. Each is counted once, and so are those that
    /// the log named before.
    pub fn skipped(&self) -> Vec<(String, Reason, u64)> {
        let skipped = lock(&self.shared.skipped);
        let counts = skipped.counts();
        counts
            .map(|(source, reason, count)| (source.to_owned(), reason, count))
            .collect()
    }

    /// Why the log is not written any more, told once.
    pub fn take_log_error(&self) -> Option<Error> {
        lock(&self.shared.skipped).take_problem()
    }
}

fn check(sources: &[MixedSource], config: &LoaderConfig) -> Result<()> {
    let wrong = |what: String| Err(Error::Argument(what));
    if sources.is_empty() {
        return wrong("there is no source to read samples of; name one".into());
    }
    if config.workers == 0 {
        return wrong("0 threads read no samples; ask for at least 1".into());
    }
    let LoaderConfig { rank, ranks, .. } = config;
    if rank >= ranks {
        return wrong(format!(
            "there is no rank {rank} of {ranks}; ranks count from 0"
        ));
    }
    for source in sources {
        let MixedSource {
            name,
            weight,
            batch,
            ..
        } = source;
        if !(weight.is_finite() && *weight > 0.0) {
            return wrong(format!(
                "{name}: a weight of {weight}; give one above 0, or leave the source out"
            ));
        }
        if !(1..=MAX_BATCH).contains(batch) {
            return wrong(format!(
                "{name}: a batch of {batch} samples; give 1 to {MAX_BATCH}"
            ));
        }
    }
    match sources.iter().map(|source| source.weight).sum::<f64>() {
        sum if sum.is_finite() => Ok(()),
        _ => wrong("the weights of the sources are too large to be added; divide them".into()),
    }
}

impl Iterator for Loader {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let started = Instant::now();
        let mut state = lock(&self.shared.state);
        while !state.ended && !state.ahead.front().is_some_and(Pending::is_done) {
            let changed = self.shared.changed.wait(state);
            state = changed.unwrap_or_else(PoisonError::into_inner);
        }
        self.waited += started.elapsed();
        if state.ended {
            return None;
        }
        let pending = state.ahead.pop_front()?;
        let step = state.step;
        state.step += 1;
        state.bytes -= pending.samples.iter().flatten().map(bytes).sum::<usize>();
        state.ended = pending.error.is_some();
        drop(state);
        self.shared.changed.notify_all();
        if let Some(error) = pending.error {
            return Some(Err(error));
        }
        let last = pending.position + pending.samples.len() as u64 - 1;
        Some(Ok(Batch {
            step,
            source: pending.source,
            epoch: self.shared.sources[pending.source].order.epoch(last),
            samples: pending.samples.into_iter().flatten().collect(),
        }))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        lock(&self.shared.state).ended = true;
        self.shared.changed.notify_all();
        for worker in self.workers.drain(..) {
            // Panics of readers were caught.
            let _ = worker.join();
        }
    }
}

impl Pending {
    fn is_done(&self) -> bool {
        self.read == self.samples.len() || self.error.is_some()
    }
}

impl State {
    /// Adds a sample that was read, or why there is none.
    fn add(&mut self, task: &Task, sample: Result<Sample>) {
        // The batch is gone if another of its samples was an error.
        let Some(number) = task.step.checked_sub(self.step) else {
            return;
        };
        let Some(pending) = self.ahead.get_mut(number as usize) else {
            return;
        };
        match sample {
            Ok(sample) => {
                self.bytes += bytes(&sample);
                pending.samples[task.place] = Some(sample);
                pending.read += 1;
            }
            Err(error) => pending.error = Some(error),
        }
    }
}

impl Shared {
    /// Reads samples until everything ends.
    fn work(&self) {
        while let Some(task) = self.next_task() {
            let stopped = || lock(&self.state).ended;
            let sample = self.sources[task.source].read(task.position, &self.skipped, stopped);
            lock(&self.state).add(&task, sample);
            self.changed.notify_all();
        }
    }

    /// The next sample that is to be read, once there is room for it. `None` in the end.
    fn next_task(&self) -> Option<Task> {
        let mut state = lock(&self.state);
        loop {
            if state.ended {
                return None;
            }
            let last = state.ahead.back();
            let in_last = last.is_some_and(|batch| batch.begun < batch.samples.len());
            let batches = state.ahead.len() + usize::from(!in_last);
            let LoaderConfig {
                max_ahead,
                max_bytes,
                ..
            } = self.config;
            if batches == 1 || batches <= max_ahead && state.bytes < max_bytes {
                if !in_last {
                    let pending = self.pending(&mut state);
                    state.ahead.push_back(pending);
                }
                let step = state.step + batches as u64 - 1;
                let pending = state.ahead.back_mut()?;
                pending.begun += 1;
                let place = pending.begun - 1;
                return Some(Task {
                    step,
                    place,
                    source: pending.source,
                    position: pending.position + place as u64,
                });
            }
            let changed = self.changed.wait(state);
            state = changed.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The batch after the last one of `state`.
    fn pending(&self, state: &mut State) -> Pending {
        let source = self.mixture.source(state.step + state.ahead.len() as u64);
        let number = state.batches[source];
        state.batches[source] += 1;
        let batch = self.sources[source].source.batch;
        let LoaderConfig { rank, ranks, .. } = self.config;
        Pending {
            source,
            position: (number * ranks as u64 + rank as u64) * batch as u64,
            samples: (0..batch).map(|_| None).collect(),
            begun: 0,
            read: 0,
            error: None,
        }
    }
}

/// Bytes of a sample's frames, or of what was made of them.
fn bytes(sample: &Sample) -> usize {
    let frames = sample.clips.iter().flat_map(|clip| clip.frames());
    let frames: usize = frames.map(|frame| frame.rgb.len()).sum();
    let arrays = sample
        .stored
        .iter()
        .flat_map(|stored| stored.arrays.values());
    let arrays: usize = arrays.map(|array| size_of_val(&array.values[..])).sum();
    frames + arrays
}
