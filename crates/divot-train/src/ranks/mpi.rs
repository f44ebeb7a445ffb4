//! Processes over MPI.

use mpi::Threading;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};

use super::Processes;
use crate::error::{Error, Result};

/// All processes that were started together.
pub(super) struct World {
    all: SimpleCommunicator,
    local: [usize; 2],
    /// Ends MPI when it is dropped.
    _universe: Universe,
}

impl World {
    pub(super) fn start() -> Result<Self> {
        // Other threads read samples and compute.
        let (universe, _) =
            mpi::initialize_with_threading(Threading::Funneled).ok_or_else(|| {
                Error::Ranks("MPI has been started before in this process".to_owned())
            })?;
        let all = universe.world();
        let machine = all.split_shared(all.rank());
        Ok(Self {
            local: [machine.rank() as usize, machine.size() as usize],
            all,
            _universe: universe,
        })
    }
}

impl Processes for World {
    fn rank(&self) -> usize {
        self.all.rank() as usize
    }

    fn count(&self) -> usize {
        self.all.size() as usize
    }

    fn local(&self) -> [usize; 2] {
        self.local
    }

    fn gather_all(&self, given: &[f64]) -> Vec<f64> {
        let mut all = vec![0.0; given.len() * self.count()];
        self.all.all_gather_into(given, &mut all[..]);
        all
    }

    fn gather(&self, owner: usize, given: &[u8]) -> Option<Vec<u8>> {
        let root = self.all.process_at_rank(owner as i32);
        if owner != self.rank() {
            root.gather_into(given);
            return None;
        }
        let mut all = vec![0; given.len() * self.count()];
        root.gather_into_root(given, &mut all[..]);
        Some(all)
    }

    fn broadcast(&self, owner: usize, bytes: &mut [u8]) {
        self.all.process_at_rank(owner as i32).broadcast_into(bytes);
    }

    fn abort(&self) -> ! {
        self.all.abort(1)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // MPI's regular end waits for all processes, and these wait for this one.
        if std::thread::panicking() {
            self.abort();
        }
    }
}
