//! Integer dot products with the instructions of different processors.

use burn::tensor::f16;

/// Vectors of a processor. A lane belongs to an output.
///
/// A vector of bytes has four bytes in each lane, which belong to four neighbouring inputs.
pub(super) trait Lanes: Copy {
    /// A vector of i32, or of bytes.
    type Ints: Copy;
    /// A vector of f32.
    type Floats: Copy;
    /// Number of lanes.
    const LANES: usize;
    /// Maximum number of rows of a tile of two vectors, so that it stays in registers.
    const ROWS: usize;

    /// Returns how much too large [`dot8`](Self::dot8) is, for a block of inputs of this sum.
    fn excess(sum: i32) -> i32;

    fn ints(value: i32) -> Self::Ints;
    fn floats(value: f32) -> Self::Floats;

    /// # Safety
    /// The bytes of a vector are readable.
    unsafe fn load(bytes: *const u8) -> Self::Ints;
    /// # Safety
    /// A value for each lane is readable.
    unsafe fn halves(values: *const f16) -> Self::Floats;
    /// # Safety
    /// A value for each lane is writable.
    unsafe fn store(values: *mut f32, vector: Self::Floats);

    /// Returns the low four bits of each byte.
    fn low(bytes: Self::Ints) -> Self::Ints;
    /// Returns the high four bits of each byte.
    fn high(bytes: Self::Ints) -> Self::Ints;
    /// Adds the product of weights from 0 to 15 with inputs from -127 to 127.
    fn dot4(sums: Self::Ints, weights: Self::Ints, inputs: Self::Ints) -> Self::Ints;
    /// Adds the product of weights from -127 to 127, stored with 128 added, with inputs from -127 to 127. The
    /// result may have an [`excess`](Self::excess).
    fn dot8(sums: Self::Ints, weights: Self::Ints, inputs: Self::Ints) -> Self::Ints;
    /// Returns `total + sums · scales · scale`.
    fn add_scaled(
        total: Self::Floats,
        sums: Self::Ints,
        scales: Self::Floats,
        scale: Self::Floats,
    ) -> Self::Floats;
}

/// Plain code for any processor.
#[derive(Clone, Copy)]
pub(super) struct Plain;

const PLAIN: usize = 8;

impl Lanes for Plain {
    type Ints = [i32; PLAIN];
    type Floats = [f32; PLAIN];
    const LANES: usize = PLAIN;
    const ROWS: usize = 2;

    #[inline(always)]
    fn excess(_: i32) -> i32 {
        0
    }

    #[inline(always)]
    fn ints(value: i32) -> Self::Ints {
        [value; PLAIN]
    }

    #[inline(always)]
    fn floats(value: f32) -> Self::Floats {
        [value; PLAIN]
    }

    #[inline(always)]
    unsafe fn load(bytes: *const u8) -> Self::Ints {
        // SAFETY: as the caller promises.
        unsafe { bytes.cast::<[i32; PLAIN]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn halves(values: *const f16) -> Self::Floats {
        // SAFETY: as the caller promises.
        let halves = unsafe { values.cast::<[f16; PLAIN]>().read_unaligned() };
        let mut floats = [0.0; PLAIN];
        for i in 0..PLAIN {
            floats[i] = halves[i].to_f32();
        }
        floats
    }

    #[inline(always)]
    unsafe fn store(values: *mut f32, vector: Self::Floats) {
        // SAFETY: as the caller promises.
        unsafe { values.cast::<[f32; PLAIN]>().write_unaligned(vector) };
    }

    #[inline(always)]
    fn low(mut bytes: Self::Ints) -> Self::Ints {
        for lane in &mut bytes {
            *lane &= 0x0f0f_0f0f;
        }
        bytes
    }

    #[inline(always)]
    fn high(mut bytes: Self::Ints) -> Self::Ints {
        for lane in &mut bytes {
            *lane = *lane >> 4 & 0x0f0f_0f0f;
        }
        bytes
    }

    #[inline(always)]
    fn dot4(mut sums: Self::Ints, weights: Self::Ints, inputs: Self::Ints) -> Self::Ints {
        for i in 0..PLAIN {
            let (weights, inputs) = (weights[i].to_le_bytes(), inputs[i].to_le_bytes());
            for j in 0..4 {
                sums[i] += i32::from(weights[j]) * i32::from(inputs[j] as i8);
            }
        }
        sums
    }

    #[inline(always)]
    fn dot8(mut sums: Self::Ints, weights: Self::Ints, inputs: Self::Ints) -> Self::Ints {
        for i in 0..PLAIN {
            let (weights, inputs) = (weights[i].to_le_bytes(), inputs[i].to_le_bytes());
            for j in 0..4 {
                sums[i] += (i32::from(weights[j]) - 128) * i32::from(inputs[j] as i8);
            }
        }
        sums
    }

    #[inline(always)]
    fn add_scaled(
        mut total: Self::Floats,
        sums: Self::Ints,
        scales: Self::Floats,
        scale: Self::Floats,
    ) -> Self::Floats {
        for i in 0..PLAIN {
            total[i] += sums[i] as f32 * (scales[i] * scale[i]);
        }
        total
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    //! The intrinsics below are called in functions that are compiled for their processor, into which
    //! everything here is inlined.

    use std::arch::x86_64::*;

    use super::{Lanes, f16};

    /// AVX-512 with VNNI.
    #[derive(Clone, Copy)]
    pub struct Avx512Vnni;

    impl Lanes for Avx512Vnni {
        type Ints = __m512i;
        type Floats = __m512;
        const LANES: usize = 16;
        const ROWS: usize = 6;

        #[inline(always)]
        fn excess(sum: i32) -> i32 {
            128 * sum
        }

        #[inline(always)]
        fn ints(value: i32) -> __m512i {
            // SAFETY: this runs only on processors that have the instruction, and so below.
            unsafe { _mm512_set1_epi32(value) }
        }

        #[inline(always)]
        fn floats(value: f32) -> __m512 {
            // SAFETY: as above.
            unsafe { _mm512_set1_ps(value) }
        }

        #[inline(always)]
        unsafe fn load(bytes: *const u8) -> __m512i {
            // SAFETY: as above, and as the caller promises.
            unsafe { _mm512_loadu_si512(bytes.cast()) }
        }

        #[inline(always)]
        unsafe fn halves(values: *const f16) -> __m512 {
            // SAFETY: as above, and as the caller promises.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(values.cast())) }
        }

        #[inline(always)]
        unsafe fn store(values: *mut f32, vector: __m512) {
            // SAFETY: as above, and as the caller promises.
            unsafe { _mm512_storeu_ps(values, vector) };
        }

        #[inline(always)]
        fn low(bytes: __m512i) -> __m512i {
            // SAFETY: as above.
            unsafe { _mm512_and_si512(bytes, _mm512_set1_epi8(15)) }
        }

        #[inline(always)]
        fn high(bytes: __m512i) -> __m512i {
            // SAFETY: as above.
            unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), _mm512_set1_epi8(15)) }
        }

        #[inline(always)]
        fn dot4(sums: __m512i, weights: __m512i, inputs: __m512i) -> __m512i {
            // SAFETY: as above.
            unsafe { _mm512_dpbusd_epi32(sums, weights, inputs) }
        }

        #[inline(always)]
        fn dot8(sums: __m512i, weights: __m512i, inputs: __m512i) -> __m512i {
            Self::dot4(sums, weights, inputs)
        }

        #[inline(always)]
        fn add_scaled(total: __m512, sums: __m512i, scales: __m512, scale: __m512) -> __m512 {
            // SAFETY: as above.
            unsafe {
                let sums = _mm512_cvtepi32_ps(sums);
                _mm512_fmadd_ps(sums, _mm512_mul_ps(scales, scale), total)
            }
        }
    }

    /// Implements [`Lanes`] with 256 bits. The products differ.
    macro_rules! avx2 {
        ($name:ident, $dot4:expr, $dot8:expr, $excess:expr) => {
            impl Lanes for $name {
                type Ints = __m256i;
                type Floats = __m256;
                const LANES: usize = 8;
                const ROWS: usize = 2;

                #[inline(always)]
                fn excess(sum: i32) -> i32 {
                    $excess * sum
                }

                #[inline(always)]
                fn ints(value: i32) -> __m256i {
                    // SAFETY: this runs only on processors that have the instruction, and so below.
                    unsafe { _mm256_set1_epi32(value) }
                }

                #[inline(always)]
                fn floats(value: f32) -> __m256 {
                    // SAFETY: as above.
                    unsafe { _mm256_set1_ps(value) }
                }

                #[inline(always)]
                unsafe fn load(bytes: *const u8) -> __m256i {
                    // SAFETY: as above, and as the caller promises.
                    unsafe { _mm256_loadu_si256(bytes.cast()) }
                }

                #[inline(always)]
                unsafe fn halves(values: *const f16) -> __m256 {
                    // SAFETY: as above, and as the caller promises.
                    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(values.cast())) }
                }

                #[inline(always)]
                unsafe fn store(values: *mut f32, vector: __m256) {
                    // SAFETY: as above, and as the caller promises.
                    unsafe { _mm256_storeu_ps(values, vector) };
                }

                #[inline(always)]
                fn low(bytes: __m256i) -> __m256i {
                    // SAFETY: as above.
                    unsafe { _mm256_and_si256(bytes, _mm256_set1_epi8(15)) }
                }

                #[inline(always)]
                fn high(bytes: __m256i) -> __m256i {
                    // SAFETY: as above.
                    unsafe { _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), _mm256_set1_epi8(15)) }
                }

                #[inline(always)]
                fn dot4(sums: __m256i, weights: __m256i, inputs: __m256i) -> __m256i {
                    // SAFETY: as above.
                    unsafe { $dot4(sums, weights, inputs) }
                }

                #[inline(always)]
                fn dot8(sums: __m256i, weights: __m256i, inputs: __m256i) -> __m256i {
                    // SAFETY: as above.
                    unsafe { $dot8(sums, weights, inputs) }
                }

                #[inline(always)]
                fn add_scaled(
                    total: __m256,
                    sums: __m256i,
                    scales: __m256,
                    scale: __m256,
                ) -> __m256 {
                    // SAFETY: as above.
                    unsafe {
                        let sums = _mm256_cvtepi32_ps(sums);
                        _mm256_fmadd_ps(sums, _mm256_mul_ps(scales, scale), total)
                    }
                }
            }
        };
    }

    /// 256 bits with AVX-VNNI.
    #[derive(Clone, Copy)]
    pub struct AvxVnni;
    avx2!(
        AvxVnni,
        _mm256_dpbusd_avx_epi32,
        _mm256_dpbusd_avx_epi32,
        128
    );

    /// AVX2.
    #[derive(Clone, Copy)]
    pub struct Avx2;
    avx2!(Avx2, dot_pairs, dot_signs, 0);

    /// Adds products of unsigned and signed bytes. The sum of two neighbours must fit into 16 bits.
    ///
    /// # Safety
    /// The processor has AVX2.
    #[inline(always)]
    unsafe fn dot_pairs(sums: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
        // SAFETY: as the caller promises.
        unsafe {
            let pairs = _mm256_maddubs_epi16(unsigned, signed);
            _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    /// The weights' signs go to the inputs, so that two neighbours fit into 16 bits: 2 · 127 · 127.
    ///
    /// # Safety
    /// The processor has AVX2.
    #[inline(always)]
    unsafe fn dot_signs(sums: __m256i, weights: __m256i, inputs: __m256i) -> __m256i {
        // SAFETY: as the caller promises.
        unsafe {
            let weights = _mm256_xor_si256(weights, _mm256_set1_epi8(-128));
            let signed = _mm256_sign_epi8(inputs, weights);
            dot_pairs(sums, _mm256_abs_epi8(weights), signed)
        }
    }
}
