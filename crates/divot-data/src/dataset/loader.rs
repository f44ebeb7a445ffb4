//! Batches of samples, read ahead by threads.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chacha20::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use super::order::{Order, mix};
use super::sample::{Reason, Sample, Samples, Skip};
use crate::{Error, Result};

/// A source is given up after so many broken samples in a row.
const MAX_BROKEN: u64 = 200;

/// A source in a mixture.
pub struct MixedSource {
    /// Its name in errors and in the log.
    pub name: String,
    /// Its samples.
    pub samples: Box<dyn Samples>,
    /// How often a batch is of this source, in proportion to the others' weights.
    pub weight: f64,
    /// Samples of a batch, on each rank.
    pub batch: usize,
}

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
    /// Batches that may be read ahead.
    pub max_ahead: u64,
    /// Bytes of frames that may be read ahead. The next batch is read in any case.
    pub max_bytes: usize,
    /// The step whose batch comes first.
    pub first_step: u64,
    /// The file that broken samples are named in, a JSON object on each line.
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

/// An endless iterator over batches.
///
/// Which samples a step sees is a function of the seed and the step (FACTS: "Training data"): a source is
/// drawn in proportion to the weights, and its next samples follow in an order that is a function of the seed
/// and the epoch. So reading can start at any step. A broken sample is replaced by another of its source,
/// which is a function of its place.
pub struct Loader {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    waited: Duration,
}

struct Shared {
    sources: Vec<MixedSource>,
    orders: Vec<Order>,
    config: LoaderConfig,
    state: Mutex<State>,
    /// A sample was read, a batch was taken, or everything ends.
    changed: Condvar,
    skipped: Mutex<Skipped>,
}

struct State {
    /// The step that is taken next.
    taken: u64,
    /// The sample that is read next: its step and its place in the batch.
    next: (u64, usize),
    /// Batches of each source before the step that is read next.
    batches: Vec<u64>,
    pending: BTreeMap<u64, Pending>,
    bytes: usize,
    ended: bool,
}

/// A batch that is being read.
struct Pending {
    source: usize,
    /// Its number among the batches of its source.
    number: u64,
    samples: Vec<Option<Result<Sample>>>,
    missing: usize,
}

/// Broken samples that were met.
#[derive(Default)]
struct Skipped {
    seen: BTreeSet<(usize, usize)>,
    counts: BTreeMap<(usize, Reason), u64>,
    read: BTreeMap<usize, u64>,
    log: Option<File>,
    log_error: Option<String>,
}

impl Loader {
    /// Starts to read.
    ///
    /// # Errors
    /// If there is no source, or a weight, a batch or another number is out of range.
    pub fn new(sources: Vec<MixedSource>, config: LoaderConfig) -> Result<Self> {
        let wrong = |what: String| Err(Error::Argument(what));
        if sources.is_empty() || config.workers == 0 || config.rank >= config.ranks {
            return wrong(
                "a loader needs a source, a thread, and a rank below the number of ranks".into(),
            );
        }
        for source in &sources {
            let weighted = source.weight.is_finite() && source.weight > 0.0;
            if !weighted || source.batch == 0 || source.samples.is_empty() {
                return wrong(format!(
                    "{}: a source needs samples, a weight above 0 and a batch of at least 1",
                    source.name
                ));
            }
        }
        let orders = sources.iter().enumerate().map(|(number, source)| {
            Order::new(
                source.samples.groups(),
                mix(config.seed ^ mix(number as u64)),
            )
        });
        let mut shared = Shared {
            orders: orders.collect(),
            state: Mutex::new(State {
                taken: config.first_step,
                next: (config.first_step, 0),
                batches: vec![0; sources.len()],
                pending: BTreeMap::new(),
                bytes: 0,
                ended: false,
            }),
            changed: Condvar::new(),
            skipped: Mutex::default(),
            sources,
            config,
        };
        let mut batches = vec![0; shared.sources.len()];
        for step in 0..shared.config.first_step {
            batches[shared.source_of(step)] += 1;
        }
        lock(&shared.state).batches = batches;
        if let Some(path) = &shared.config.log {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let skipped = shared
                .skipped
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner);
            match file {
                Ok(file) => skipped.log = Some(file),
                Err(error) => skipped.log_error = Some(error.to_string()),
            }
        }
        let shared = Arc::new(shared);
        let workers = (0..shared.config.workers)
            .map(|_| {
                let shared = shared.clone();
                std::thread::spawn(move || shared.work())
            })
            .collect();
        Ok(Self {
            shared,
            workers,
            waited: Duration::ZERO,
        })
    }

    /// How long batches were waited for, since this was asked last.
    pub fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }

    /// How many broken samples were met, by source and reason. Each is counted once.
    pub fn skipped(&self) -> Vec<(String, Reason, u64)> {
        let skipped = lock(&self.shared.skipped);
        let counts = skipped.counts.iter();
        counts
            .map(|(&(source, reason), &count)| {
                (self.shared.sources[source].name.clone(), reason, count)
            })
            .collect()
    }

    /// Why the log cannot be written, told once.
    pub fn take_log_error(&self) -> Option<String> {
        lock(&self.shared.skipped).log_error.take()
    }
}

impl Iterator for Loader {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let started = Instant::now();
        let mut state = lock(&self.shared.state);
        let step = state.taken;
        while state
            .pending
            .get(&step)
            .is_none_or(|pending| pending.missing > 0)
        {
            let changed = self.shared.changed.wait(state);
            state = changed.unwrap_or_else(PoisonError::into_inner);
        }
        self.waited += started.elapsed();
        let pending = state.pending.remove(&step)?;
        state.taken += 1;
        let samples: Result<Vec<Sample>> = pending.samples.into_iter().flatten().collect();
        if let Ok(samples) = &samples {
            state.bytes -= samples.iter().map(bytes).sum::<usize>();
        }
        drop(state);
        self.shared.changed.notify_all();
        Some(samples.map(|samples| Batch {
            step,
            source: pending.source,
            epoch: {
                let last = self
                    .shared
                    .position(pending.source, pending.number, samples.len() - 1);
                self.shared.orders[pending.source].at(last).0
            },
            samples,
        }))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        lock(&self.shared.state).ended = true;
        self.shared.changed.notify_all();
        for worker in self.workers.drain(..) {
            // It catches its own panics.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Reads samples until everything ends.
    fn work(&self) {
        while let Some((step, place, source, number)) = self.claim() {
            let sample = self.sample(source, self.position(source, number, place));
            let mut state = lock(&self.state);
            if let Ok(sample) = &sample {
                state.bytes += bytes(sample);
            }
            if let Some(pending) = state.pending.get_mut(&step) {
                pending.samples[place] = Some(sample);
                pending.missing -= 1;
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    /// The next sample that is to be read, when there is room for it: step, place in the batch, source, and
    /// the batch's number among those of its source. `None` in the end.
    fn claim(&self) -> Option<(u64, usize, usize, u64)> {
        let mut state = lock(&self.state);
        loop {
            if state.ended {
                return None;
            }
            let (step, place) = state.next;
            let room =
                step < state.taken + self.config.max_ahead && state.bytes < self.config.max_bytes;
            if step == state.taken || room {
                if place == 0 {
                    let source = self.source_of(step);
                    let batch = self.sources[source].batch;
                    let number = state.batches[source];
                    state.batches[source] += 1;
                    state.pending.insert(
                        step,
                        Pending {
                            source,
                            number,
                            samples: (0..batch).map(|_| None).collect(),
                            missing: batch,
                        },
                    );
                }
                let pending = &state.pending[&step];
                let (source, number) = (pending.source, pending.number);
                state.next = match place + 1 < self.sources[source].batch {
                    true => (step, place + 1),
                    false => (step + 1, 0),
                };
                return Some((step, place, source, number));
            }
            let changed = self.changed.wait(state);
            state = changed.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The source that a step is of.
    fn source_of(&self, step: u64) -> usize {
        let total: f64 = self.sources.iter().map(|source| source.weight).sum();
        let mut left = total * uniform(&mut self.rng([step, u64::MAX, 0]));
        for (number, source) in self.sources.iter().enumerate() {
            left -= source.weight;
            if left < 0.0 {
                return number;
            }
        }
        self.sources.len() - 1
    }

    /// The position of a sample in the order of its source.
    fn position(&self, source: usize, number: u64, place: usize) -> u64 {
        let LoaderConfig { rank, ranks, .. } = self.config;
        let batch = self.sources[source].batch as u64;
        number * batch * ranks as u64 + rank as u64 * batch + place as u64
    }

    /// Random numbers, as a function of the seed and of what they are for.
    fn rng(&self, [a, b, c]: [u64; 3]) -> ChaCha8Rng {
        let mut seed = [0; 32];
        for (bytes, part) in seed.chunks_exact_mut(8).zip([self.config.seed, a, b, c]) {
            bytes.copy_from_slice(&part.to_le_bytes());
        }
        ChaCha8Rng::from_seed(seed)
    }

    /// Reads the sample at a position, or one that stands for it.
    fn sample(&self, source: usize, position: u64) -> Result<Sample> {
        let MixedSource { name, samples, .. } = &self.sources[source];
        let mut first = None;
        for attempt in 0..MAX_BROKEN {
            let mut rng = self.rng([source as u64, position, attempt]);
            let index = match attempt {
                0 => self.orders[source].at(position).1,
                _ => (uniform(&mut rng) * samples.len() as f64) as usize,
            };
            let read = catch_unwind(AssertUnwindSafe(|| {
                samples.read(index, &mut || uniform(&mut rng))
            }));
            let skip = match read {
                Ok(Ok(sample)) => {
                    *lock(&self.skipped).read.entry(source).or_default() += 1;
                    return Ok(sample);
                }
                Ok(Err(skip)) => skip,
                Err(_) => Skip {
                    key: format!("sample {index}"),
                    reason: Reason::Panicked,
                    message: "reading it panicked, which is a bug".to_owned(),
                },
            };
            lock(&self.skipped).add(name, source, index, &skip);
            first.get_or_insert(skip);
            if lock(&self.state).ended {
                break;
            }
        }
        let first = first.map_or_else(String::new, |skip| {
            format!("{}: {}", skip.key, skip.message)
        });
        let skipped = lock(&self.skipped);
        let good = skipped.read.get(&source).copied().unwrap_or_default();
        let counts = skipped
            .counts
            .range((source, Reason::Malformed)..(source + 1, Reason::Malformed));
        let counts = counts.map(|((_, reason), count)| format!("{count} {reason}"));
        Err(Error::Argument(format!(
            "{name}: {MAX_BROKEN} samples in a row could not be used ({}; {good} could), the first one: \
             {first}; mend the source or relax its filter",
            counts.collect::<Vec<_>>().join(", ")
        )))
    }
}

impl Skipped {
    /// Counts and logs a broken sample, if it is met for the first time.
    fn add(&mut self, name: &str, source: usize, index: usize, skip: &Skip) {
        if !self.seen.insert((source, index)) {
            return;
        }
        *self.counts.entry((source, skip.reason)).or_default() += 1;
        let Some(log) = &mut self.log else { return };
        let line = serde_json::json!({
            "source": name,
            "sample": skip.key,
            "reason": skip.reason.name(),
            "message": skip.message,
        });
        if let Err(error) = writeln!(log, "{line}") {
            self.log = None;
            self.log_error = Some(error.to_string());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number from [0, 1).
fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Bytes of a sample's frames.
fn bytes(sample: &Sample) -> usize {
    let clips = sample.clips.iter();
    let frames = clips.flat_map(|clip| clip.frames());
    frames.map(|frame| frame.rgb.len()).sum()
}
