//! A source whose samples are read by their positions, and what happens where one is broken.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::order::{Order, mix, uniform};
use super::sample::{Reason, Sample, Samples, Skip};
use super::skipped::Skipped;
use crate::{Error, Result};

/// A source that never yielded a sample is given up after so many broken ones in a row.
const MAX_BROKEN: u64 = 200;
/// A source that yielded samples before is given up after so many: its files are gone, for example.
const MAX_BROKEN_LATER: u64 = 10_000;

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

/// A source with its order.
pub(super) struct OrderedSource {
    pub source: MixedSource,
    pub order: Order,
    number: u64,
    seed: u64,
    /// Whether a sample could be used.
    yielded: AtomicBool,
}

impl OrderedSource {
    /// The `number`-th source of a loader. `yielded` says that samples of it were used before.
    pub fn new(source: MixedSource, number: u64, seed: u64, yielded: bool) -> Result<Self> {
        let order = order(&*source.samples, number, seed);
        if order.is_empty() {
            let wrong = format!("{}: holds no samples; leave it out", source.name);
            return Err(Error::Argument(wrong));
        }
        Ok(Self {
            source,
            order,
            number,
            seed,
            yielded: AtomicBool::new(yielded),
        })
    }

    /// Reads the sample at a position, or one that stands in for it, unless `stopped` says that it is not
    /// wanted any more.
    pub fn read(
        &self,
        position: u64,
        skipped: &Mutex<Skipped>,
        stopped: impl Fn() -> bool,
    ) -> Result<Sample> {
        let mut first = None;
        let mut attempt = 0;
        loop {
            let index = self.order.sample(position, attempt);
            // What is random in a stand-in is what it has at its own position.
            let place = self.order.position(index, self.order.epoch(position));
            let key = [self.seed, self.number, place, 0];
            let skip = match read(&*self.source.samples, index, key) {
                Ok(sample) => {
                    self.yielded.store(true, Ordering::Relaxed);
                    return Ok(sample);
                }
                Err(skip) => skip,
            };
            lock(skipped).add(&self.source.name, Some(index), &skip);
            let first = first.get_or_insert(skip);
            attempt += 1;
            let limit = match self.yielded.load(Ordering::Relaxed) {
                false => MAX_BROKEN,
                true => MAX_BROKEN_LATER,
            };
            if attempt >= limit || stopped() {
                return Err(self.nothing(attempt, first, &lock(skipped)));
            }
        }
    }

    /// The error for a source that yields nothing.
    fn nothing(&self, broken: u64, first: &Skip, skipped: &Skipped) -> Error {
        let name = &self.source.name;
        let counts = skipped.counts().filter(|(source, ..)| source == name);
        let counts = counts.map(|(_, reason, count)| format!("{count} {reason}"));
        Error::Argument(format!(
            "{name}: {broken} samples in a row cannot be used (left out so far: {}); the first is {}: {}; \
             mend the source, or relax its filter",
            counts.collect::<Vec<_>>().join(", "),
            first.key,
            first.message
        ))
    }
}

/// The samples of a source by their numbers, each with what is random in it as a [`Loader`](super::Loader) has it in
/// a certain epoch.
pub struct EpochReader {
    samples: Box<dyn Samples>,
    order: Order,
    number: u64,
    seed: u64,
}

impl EpochReader {
    /// Samples as the loader with this `seed` has them if they are its `number`-th source.
    pub fn new(samples: Box<dyn Samples>, number: usize, seed: u64) -> Self {
        let number = number as u64;
        Self {
            order: order(&*samples, number, seed),
            samples,
            number,
            seed,
        }
    }

    /// The samples.
    pub fn samples(&self) -> &dyn Samples {
        &*self.samples
    }

    /// Reads a sample as it is in an epoch, from 0.
    ///
    /// # Errors
    /// Why it is left out.
    ///
    /// # Panics
    /// If there is no such sample.
    pub fn read(&self, index: usize, epoch: u64) -> Result<Sample, Skip> {
        let position = self.order.position(index, epoch);
        read(&*self.samples, index, [self.seed, self.number, position, 0])
    }
}

/// The order of the `number`-th source of a loader.
fn order(samples: &dyn Samples, number: u64, seed: u64) -> Order {
    Order::new(samples.groups(), mix(seed ^ mix(number)))
}

/// Reads a sample. What is random is a function of the key.
fn read(samples: &dyn Samples, index: usize, key: [u64; 4]) -> Result<Sample, Skip> {
    let mut uniform = uniform(key);
    let read = || samples.read(index, &mut uniform);
    let read = catch_unwind(AssertUnwindSafe(read));
    read.unwrap_or_else(|panic| Err(panicked(index, &*panic)))
}

fn panicked(index: usize, panic: &(dyn Any + Send)) -> Skip {
    let said = panic.downcast_ref::<&str>().copied();
    let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let said = said.unwrap_or("without a message").lines();
    Skip {
        key: format!("sample {index}"),
        reason: Reason::Panicked,
        message: format!(
            "a bug of the reader: {}",
            said.collect::<Vec<_>>().join(" ")
        ),
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
