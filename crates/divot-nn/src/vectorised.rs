use pulp::{Arch, Simd, WithSimd};

/// Runs `f` compiled for the vectors of this processor, which is found out at run time.
///
/// `f` and what it calls must be `#[inline(always)]`, or it is their plain version that runs:
/// closures too.
#[inline(always)]
pub fn vectorised(f: impl FnMut()) {
    struct Run<F>(F);

    impl<F: FnMut()> WithSimd for Run<F> {
        type Output = ();

        // Called as `FnMut`: as `FnOnce` it would go by a shim that is not inlined.
        #[inline(always)]
        fn with_simd<S: Simd>(mut self, _: S) {
            (self.0)();
        }
    }

    Arch::new().dispatch(Run(f));
}
