//! The processes that train together. Each computes a part of every batch on a device of its own.
//!
//! Parameters are divided into buckets, and buckets among the ranks that own them. Gradients of a bucket are gathered
//! by its owner, which adds them in the order of ranks, so that the sum is the same each time. The owner sends back
//! either the sum, or the parameters that it has updated with it (ZeRO-1).

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

#[cfg(not(feature = "mpi"))]
use crate::error::Error;
use crate::error::Result;

/// The processes of a run. By default, there is one.
#[derive(Clone, Default)]
pub struct Ranks(Option<Rc<Several>>);

struct Several {
    processes: Box<dyn Processes>,
    /// Time in which processes exchanged values, or waited for each other.
    spent: Cell<Duration>,
}

impl Several {
    fn timed<T>(&self, exchange: impl FnOnce(&dyn Processes) -> T) -> T {
        let started = Instant::now();
        let result = exchange(&*self.processes);
        self.spent.set(self.spent.get() + started.elapsed());
        result
    }
}

/// How many processes were started together, by the variables that their launcher set.
fn started(variable: impl Fn(&str) -> Option<String>) -> usize {
    let number = |name: &str| variable(name)?.parse::<usize>().ok();
    // `mpirun` of Open MPI; MPICH and its kin; `srun --mpi=pmix`. Slurm's number alone is also there without MPI.
    let slurm = || variable("PMIX_RANK").and_then(|_| number("SLURM_STEP_NUM_TASKS"));
    let counts = number("OMPI_COMM_WORLD_SIZE").or_else(|| number("PMI_SIZE"));
    counts.or_else(slurm).unwrap_or(1)
}

/// What processes do together. Every one of them calls the same functions in the same order.
trait Processes {
    fn rank(&self) -> usize;
    fn count(&self) -> usize;
    /// Number of this process among those of its machine, and how many these are.
    fn local(&self) -> [usize; 2];
    /// What each process gives, one after the other.
    fn gather_all(&self, given: &[f64]) -> Vec<f64>;
    /// What each process gives, one after the other, for the owner only.
    fn gather(&self, owner: usize, given: &[u8]) -> Option<Vec<u8>>;
    fn broadcast(&self, owner: usize, bytes: &mut [u8]);
    /// Ends all processes.
    fn abort(&self) -> !;
}

impl Ranks {
    /// The processes that `mpirun` or Slurm started, this one among them. Alone, if neither did.
    ///
    /// # Errors
    /// If there are others, and this program was built without the feature `mpi`.
    pub fn start() -> Result<Self> {
        match started(|name| std::env::var(name).ok()) {
            0 | 1 => Ok(Self::default()),
            count => Self::several(count),
        }
    }

    #[cfg(feature = "mpi")]
    fn several(_count: usize) -> Result<Self> {
        let world = mpi::World::start()?;
        Ok(Self(Some(Rc::new(Several {
            processes: Box::new(world),
            spent: Cell::default(),
        }))))
    }

    #[cfg(not(feature = "mpi"))]
    fn several(count: usize) -> Result<Self> {
        Err(Error::Ranks(format!(
            "{count} processes were started, and this program trains alone; build it with the feature `mpi`"
        )))
    }

    /// Number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.0
            .as_ref()
            .map_or(0, |several| several.processes.rank())
    }

    /// Number of processes.
    pub fn count(&self) -> usize {
        self.0
            .as_ref()
            .map_or(1, |several| several.processes.count())
    }

    /// Whether this process writes files and tells how far the run is.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Number of this process among those of its machine, and how many these are.
    pub fn local(&self) -> [usize; 2] {
        self.0
            .as_ref()
            .map_or([0, 1], |several| several.processes.local())
    }

    /// How long values were exchanged, or others waited for, since this was asked last.
    pub(crate) fn take_spent(&self) -> Duration {
        let several = self.0.as_ref();
        several.map_or(Duration::ZERO, |several| several.spent.take())
    }

    /// Adds what each process gives, in the order of ranks.
    pub(crate) fn sum(&self, values: &mut [f64]) {
        let Some(several) = &self.0 else { return };
        let all = several.timed(|processes| processes.gather_all(values));
        let count = values.len();
        for (index, value) in values.iter_mut().enumerate() {
            *value = all.iter().skip(index).step_by(count.max(1)).sum();
        }
    }

    /// Whether any process says so.
    pub(crate) fn any(&self, said: bool) -> bool {
        let mut count = [f64::from(u8::from(said))];
        self.sum(&mut count);
        count[0] > 0.0
    }

    /// Waits for all.
    pub(crate) fn wait(&self) {
        self.any(false);
    }

    /// Adds the values of all processes for the `owner`, in the order of ranks. The values of the others stay as they
    /// are. With `rounded`, they are sent in bf16, and added in f32.
    pub(crate) fn sum_at(&self, owner: usize, values: &mut [f32], rounded: bool) {
        let Some(several) = &self.0 else { return };
        let width = if rounded { 2 } else { 4 };
        let given: Vec<u8> = match rounded {
            true => values
                .iter()
                .flat_map(|value| burn::tensor::bf16::from_f32(*value).to_le_bytes())
                .collect(),
            false => values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        };
        let Some(all) = several.timed(|processes| processes.gather(owner, &given)) else {
            return;
        };
        values.fill(0.0);
        for part in all.chunks_exact(given.len().max(1)) {
            for (value, bytes) in values.iter_mut().zip(part.chunks_exact(width)) {
                *value += match *bytes {
                    [a, b] => burn::tensor::bf16::from_le_bytes([a, b]).to_f32(),
                    [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                    _ => 0.0,
                };
            }
        }
    }

    /// Sends the owner's values to all.
    pub(crate) fn share(&self, owner: usize, values: &mut [f32]) {
        let Some(several) = &self.0 else { return };
        let mut bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        several.timed(|processes| processes.broadcast(owner, &mut bytes));
        for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
            *value = f32::from_le_bytes(*bytes);
        }
    }

    /// Ends all processes if there are others, which would wait for this one forever.
    pub fn abort(&self) {
        if let Some(several) = &self.0 {
            several.processes.abort();
        }
    }
}

impl fmt::Debug for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.count())
    }
}

#[cfg(feature = "mpi")]
mod mpi;

#[cfg(test)]
mod tests {
    use super::started;

    #[test]
    fn launchers_say_how_many_they_started() {
        for (variables, count) in [
            (&[][..], 1),
            (&[("OMPI_COMM_WORLD_SIZE", "4")], 4),
            (&[("PMI_SIZE", "3")], 3),
            (&[("PMIX_RANK", "0"), ("SLURM_STEP_NUM_TASKS", "8")], 8),
            // `mpirun` within a job of one task.
            (
                &[
                    ("OMPI_COMM_WORLD_SIZE", "4"),
                    ("PMIX_RANK", "0"),
                    ("SLURM_STEP_NUM_TASKS", "1"),
                ],
                4,
            ),
            // A shell of Slurm's, without MPI.
            (&[("SLURM_STEP_NUM_TASKS", "8")], 1),
        ] {
            let variable = |name: &str| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            assert_eq!(started(variable), count, "{variables:?}");
        }
    }
}
