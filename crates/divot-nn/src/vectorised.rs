use std::sync::OnceLock;

use pulp::{Arch, Simd, WithSimd};

/// Returns the vector instructions that kernels use: the widest of this processor, or those in the
/// environment variable `DIVOT_VECTORS`, `avx2` or `none`.
pub(crate) fn arch() -> Arch {
    static ARCH: OnceLock<Arch> = OnceLock::new();
    *ARCH.get_or_init(|| {
        let name = std::env::var("DIVOT_VECTORS").unwrap_or_default();
        let named = match name.as_str() {
            "" => return Arch::new(),
            "none" => Some(Arch::Scalar),
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            "avx2" => pulp::x86::V3::try_new().map(Arch::V3),
            _ => None,
        };
        named.unwrap_or_else(|| {
            eprintln!(
                "ignoring DIVOT_VECTORS={name}: use avx2, where the processor has it, or none"
            );
            Arch::new()
        })
    })
}

/// Runs `f`, compiled for the vector instructions of this processor, which are detected at run time.
///
/// `f` and all functions and closures that it calls must be `#[inline(always)]`. Functions that are not
/// inlined run without these instructions.
#[inline(always)]
pub fn vectorised(f: impl FnMut()) {
    struct Run<F>(F);

    impl<F: FnMut()> WithSimd for Run<F> {
        type Output = ();

        // `FnMut`, because calling an `FnOnce` goes through a shim that is not inlined.
        #[inline(always)]
        fn with_simd<S: Simd>(mut self, _: S) {
            (self.0)();
        }
    }

    arch().dispatch(Run(f));
}
