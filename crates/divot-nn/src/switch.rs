use std::sync::atomic::{AtomicBool, Ordering};

static ENABLED: AtomicBool = AtomicBool::new(true);

/// Switches the fused kernels on or off for the whole process. They are on by default. When they are
/// off, the same operations run on Burn alone, which shows whether a difference comes from a kernel.
pub fn enable_kernels(on: bool) {
    ENABLED.store(on, Ordering::Relaxed);
}

/// Returns whether the fused kernels are switched on.
pub fn kernels_enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}
