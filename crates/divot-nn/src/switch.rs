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

static BF16: AtomicBool = AtomicBool::new(false);
static F32_WEIGHTS: AtomicBool = AtomicBool::new(false);

/// Switches products in bf16 on or off for the whole process. They are off by default.
///
/// When they are on, linear layers and convolutions whose weights are stored in bf16 round their inputs to bf16 too
/// and multiply pairs of them, with sums in f32. That is about twice as fast on processors with AVX512-BF16. Attention
/// does so too, whatever the weights, if more than eight queries share their keys. On other processors nothing changes:
/// weights are widened to f32. Products of one or two rows are always in f32. It needs the feature `flex`.
pub fn enable_bf16_products(on: bool) {
    BF16.store(on, Ordering::Relaxed);
    F32_WEIGHTS.store(false, Ordering::Relaxed);
}

/// The precision of products while networks are trained. When it is dropped, the precision before it returns.
#[derive(Debug)]
#[must_use = "the precision ends when it is dropped"]
pub struct TrainingPrecision {
    before: [bool; 2],
}

/// Computes the products of the whole process in bf16 or in f32 until the result is dropped.
///
/// Unlike [`enable_bf16_products`], weights in f32 are rounded too, for each product: they are those that learn. Their
/// gradients are summed in f32.
pub fn training_in_bf16(on: bool) -> TrainingPrecision {
    TrainingPrecision {
        before: [&BF16, &F32_WEIGHTS].map(|switch| switch.swap(on, Ordering::Relaxed)),
    }
}

impl Drop for TrainingPrecision {
    fn drop(&mut self) {
        for (switch, before) in [&BF16, &F32_WEIGHTS].into_iter().zip(self.before) {
            switch.store(before, Ordering::Relaxed);
        }
    }
}

/// Returns whether products in bf16 are switched on and this processor has them, within `DIVOT_VECTORS`.
pub fn bf16_products() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = || {
        matches!(crate::vectorised::arch(), pulp::Arch::V4(_))
            && is_x86_feature_detected!("avx512bf16")
    };
    #[cfg(not(target_arch = "x86_64"))]
    let has = || false;
    BF16.load(Ordering::Relaxed) && has()
}

/// Returns whether products with weights in f32 are in bf16 too.
#[cfg(all(feature = "flex", target_arch = "x86_64"))]
pub(crate) fn bf16_training() -> bool {
    F32_WEIGHTS.load(Ordering::Relaxed) && bf16_products()
}
