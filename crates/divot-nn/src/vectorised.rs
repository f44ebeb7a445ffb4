use std::sync::OnceLock;

use pulp::{Arch, Simd, WithSimd};

/// The vectors that kernels use: the widest that this processor has, or those that the environment
/// variable `DIVOT_VECTORS` names, `avx2` or `none`.
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
            eprintln!("DIVOT_VECTORS={name} is not there: it may be avx2, or none; ignored");
            Arch::new()
        })
    })
}

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

    arch().dispatch(Run(f));
}
