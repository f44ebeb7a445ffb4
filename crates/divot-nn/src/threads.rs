/// Makes the calling thread one of the threads that compute on the CPU.
///
/// By default the calling thread sleeps while others compute, and small kernels end before a sleeping thread
/// has woken up. A program whose main thread runs the networks should call this before anything else. Once
/// the threads have been started, it does nothing.
///
/// The calling thread replaces one of the others. If it then leaves the networks to other threads, one
/// thread less computes.
pub fn compute_on_this_thread() {
    #[cfg(feature = "flex")]
    // An error means that the threads have been started before.
    let _ = rayon::ThreadPoolBuilder::new()
        .use_current_thread()
        .build_global();
}
