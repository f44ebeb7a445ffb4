//! Measures the time of the fused CPU kernels.
//!
//! ```
//! divot_nn::profile::start();
//! // … networks run …
//! for row in divot_nn::profile::take() {
//!     println!("{} {:?}: {} times, {:.3} s", row.kernel, row.pass, row.calls, row.seconds);
//! }
//! ```

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A pass of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pass {
    /// Computes the result.
    Forward,
    /// Computes the gradients.
    Backward,
}

/// All calls of one kind of kernel in one pass.
#[derive(Debug, Clone)]
pub struct Row {
    /// Kind of kernel: `linear`, `packed linear`, `convolution`, `attention`, `norm`, `activation` or `optimiser`.
    pub kernel: &'static str,
    /// The pass.
    pub pass: Pass,
    /// Number of calls.
    pub calls: usize,
    /// Total wall time, in seconds.
    pub seconds: f64,
    /// Number of multiply-adds in the matrix products that define the kernel. 0 for kernels without
    /// products.
    pub multiplications: f64,
}

type Rows = BTreeMap<(&'static str, Pass), Row>;

/// The profile that is being recorded.
static ROWS: Mutex<Option<Rows>> = Mutex::new(None);

fn rows() -> MutexGuard<'static, Option<Rows>> {
    ROWS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a profile of the whole process.
pub fn start() {
    *rows() = Some(Rows::new());
}

/// Stops the profile and returns its measurements since [`start`]. The result is empty if none was started. Without
/// the feature `flex`, only packed linear layers are measured.
pub fn take() -> Vec<Row> {
    rows()
        .take()
        .into_iter()
        .flat_map(Rows::into_values)
        .collect()
}

/// Measures the number of multiply-adds per second of all threads together, the upper bound for products.
/// This takes a quarter of a second.
#[cfg(feature = "flex")]
pub fn peak() -> f64 {
    use std::time::Instant;

    use pulp::{Simd, WithSimd};

    use crate::vectorised::arch;

    /// Number of independent chains of multiply-adds, more than a processor executes at once.
    const CHAINS: usize = 12;
    const STEPS: usize = 1 << 16;

    struct Chains;

    impl WithSimd for Chains {
        type Output = f64;

        #[inline(always)]
        #[allow(clippy::needless_range_loop)]
        fn with_simd<S: Simd>(self, simd: S) -> f64 {
            let [x, y] = [0.999, 0.001].map(|x| simd.splat_f32s(x));
            let mut chains = [y; CHAINS];
            let (started, mut rounds) = (Instant::now(), 0);
            while started.elapsed().as_secs_f64() < 0.25 {
                for _ in 0..STEPS {
                    for i in 0..CHAINS {
                        chains[i] = simd.mul_add_e_f32s(chains[i], x, y);
                    }
                }
                rounds += 1;
            }
            let seconds = started.elapsed().as_secs_f64();
            std::hint::black_box(chains.map(|chain| simd.reduce_sum_f32s(chain)));
            (rounds * STEPS * CHAINS * S::F32_LANES) as f64 / seconds
        }
    }

    rayon::broadcast(|_| arch().dispatch(Chains))
        .into_iter()
        .sum()
}

/// Runs a pass of a kernel, and measures it if a profile is being recorded.
pub(crate) fn timed<T>(
    kernel: &'static str,
    pass: Pass,
    multiplications: impl FnOnce() -> f64,
    run: impl FnOnce() -> T,
) -> T {
    if rows().is_none() {
        return run();
    }
    let started = std::time::Instant::now();
    let result = run();
    let seconds = started.elapsed().as_secs_f64();
    if let Some(rows) = &mut *rows() {
        let row = rows.entry((kernel, pass)).or_insert(Row {
            kernel,
            pass,
            calls: 0,
            seconds: 0.0,
            multiplications: 0.0,
        });
        row.calls += 1;
        row.seconds += seconds;
        row.multiplications += multiplications();
    }
    result
}
