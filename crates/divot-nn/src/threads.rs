/// Makes the calling thread one of those that compute on the CPU, instead of one that waits for them:
/// small kernels end before a sleeping thread has woken up. For programs whose main thread runs the
/// networks, before anything else; later, when the threads are there, it does nothing.
///
/// The other threads are as many fewer: one that calls this and then leaves the networks to others
/// takes a thread from them.
pub fn compute_on_this_thread() {
    #[cfg(feature = "flex")]
    // An error means that the threads are there.
    let _ = rayon::ThreadPoolBuilder::new()
        .use_current_thread()
        .build_global();
}
