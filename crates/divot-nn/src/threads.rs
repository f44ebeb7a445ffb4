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
