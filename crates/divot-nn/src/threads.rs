use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use burn::tensor::Device;
use rayon::Yield;

/// Makes the calling thread one of the threads that compute on the CPU.
///
/// By default, the calling thread sleeps while others compute, and small kernels end before a sleeping
/// thread has woken up. A program whose main thread runs the networks should call this first. After the
/// threads have started, it does nothing.
///
/// The calling thread replaces one of the others. If other threads run the networks instead, one thread
/// less computes.
pub fn compute_on_this_thread() {
    #[cfg(feature = "flex")]
    // An error means that the threads have started already.
    let _ = rayon::ThreadPoolBuilder::new()
        .use_current_thread()
        .build_global();
}

/// Runs `f`, which computes on `device` in many short kernels, while no thread of the CPU backend falls asleep.
///
/// A thread without work falls asleep after some 20 µs, and takes longer than many kernels to wake up. Until `f`
/// returns, the threads look for work all the time instead, and yield to other programs whenever they find none.
///
/// With another device, or without the feature `flex`, this only runs `f`.
pub fn awake<T>(device: &Device, f: impl FnOnce() -> T) -> T {
    #[cfg(feature = "flex")]
    let on_cpu = crate::kernels::on_flex(device);
    #[cfg(not(feature = "flex"))]
    let on_cpu = {
        let _ = device;
        false
    };
    match on_cpu {
        true => without_sleep(f),
        false => f(),
    }
}

/// Whether [`awake`] is at work. One caller at a time keeps the threads awake; others only run.
static ACTIVE: AtomicBool = AtomicBool::new(false);

/// Number of threads that have not come to the last task that keeps them awake. While there is one, there is no other
/// such task, so that they do not pile up in the queue of a thread that never looks.
static EXPECTED: AtomicUsize = AtomicUsize::new(0);

fn without_sleep<T>(f: impl FnOnce() -> T) -> T {
    struct Done(Arc<AtomicBool>);

    impl Drop for Done {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
            ACTIVE.store(false, Ordering::Release);
        }
    }

    let threads = rayon::current_num_threads();
    let busy = || EXPECTED.load(Ordering::Acquire) > 0 || ACTIVE.swap(true, Ordering::AcqRel);
    if threads == 1 || busy() {
        return f();
    }
    let done = Done(Arc::default());
    EXPECTED.store(threads, Ordering::Release);
    let (seen, caller) = (done.0.clone(), rayon::current_thread_index());
    rayon::spawn_broadcast(move |thread| {
        EXPECTED.fetch_sub(1, Ordering::AcqRel);
        // The caller looks into its queue while it waits for others.
        if caller == Some(thread.index()) {
            return;
        }
        while !seen.load(Ordering::Acquire) {
            if rayon::yield_now() != Some(Yield::Executed) {
                std::thread::yield_now();
            }
        }
    });
    f()
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    #[test]
    fn threads_that_stay_awake_work_and_stop() {
        for callers in [1, 3] {
            std::thread::scope(|scope| {
                for _ in 0..callers {
                    scope.spawn(|| {
                        for _ in 0..50 {
                            let sum = without_sleep(|| {
                                let sum = || (0..1000u64).into_par_iter().sum::<u64>();
                                without_sleep(sum) + sum()
                            });
                            assert_eq!(sum, 999_000);
                        }
                    });
                }
            });
        }
        let panicked = std::panic::catch_unwind(|| without_sleep(|| panic!("on purpose")));
        assert!(panicked.is_err());
        // All threads are free again: each has to come here.
        rayon::broadcast(|_| ());
        // From a thread that computes.
        assert_eq!(
            rayon::broadcast(|_| without_sleep(|| 1))
                .iter()
                .sum::<usize>(),
            rayon::current_num_threads()
        );
    }
}
