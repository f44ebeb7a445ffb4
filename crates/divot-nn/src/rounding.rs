//! Rounding of weights to few bits, in blocks of values that share a scale.

use burn::tensor::f16;
use burn::tensor::quantization::ScaleDtype;
use rayon::prelude::*;

use crate::vectorised;

/// Number of values that share a scale.
pub const BLOCK: usize = 32;

/// The last of the steps of 8 bits on either side of zero.
const LAST_STEP: f32 = 127.0;

/// Returns the scale of a block whose largest magnitude is `peak`, by Burn's scheme: `peak` becomes the last
/// step, and the scale is rounded up to f16, so that no value is beyond the last step. It is never zero, so
/// that its reciprocal is finite.
#[inline(always)]
pub(crate) fn block_scale(peak: f32, last_step: f32) -> f32 {
    ScaleDtype::F16
        .round_up(peak / last_step)
        .max(f32::MIN_POSITIVE)
}

/// Returns the step that is nearest to a weight.
#[inline(always)]
pub(crate) fn nearest_step(weight: f32, inverse_scale: f32, last_step: f32) -> i8 {
    (weight * inverse_scale)
        .round()
        .clamp(-last_step, last_step) as i8
}

/// A tensor rounded to 8 bits: each value is a step from -127 to 127, times the scale of its block.
///
/// A block is 32 neighbours along the first axis. If 32 does not divide that axis, the last blocks are
/// shorter. Steps and scales are those of a [`PackedLinear`](crate::PackedLinear) of 8 bits, whose blocks are the
/// same values of a linear layer's weights, `[input, output]`.
///
/// The error of a value is at most half its block's scale, which is 1/127 of the block's largest magnitude,
/// rounded up to f16.
#[derive(Debug, Clone, PartialEq)]
pub struct Rounded {
    /// The steps, as the bytes of `i8`, in the order of the tensor.
    pub steps: Vec<u8>,
    /// The scales, in the order of a tensor whose first axis has an entry for each block.
    pub scales: Vec<f16>,
}

impl Rounded {
    /// The largest magnitude that can be rounded.
    pub const MAX: f32 = LAST_STEP * 65504.0;

    /// Rounds a tensor, given as a matrix of `columns`: the product of all axes but the first. Values must not be
    /// larger than [`MAX`](Self::MAX).
    ///
    /// # Panics
    /// If there are no columns.
    pub fn new(weights: &[f32], columns: usize) -> Self {
        let rows = weights.len() / columns;
        let mut steps = vec![0; weights.len()];
        let mut scales = vec![f16::ZERO; rows.div_ceil(BLOCK) * columns];
        weights
            .par_chunks(BLOCK * columns)
            .zip(steps.par_chunks_mut(BLOCK * columns))
            .zip(scales.par_chunks_mut(columns))
            .for_each(|((weights, steps), scales)| {
                let mut peaks = vec![0f32; columns];
                vectorised(
                    #[inline(always)]
                    || round(weights, &mut peaks, scales, steps),
                );
            });
        Self { steps, scales }
    }

    /// Returns the values of steps and scales. They are exact in f32.
    ///
    /// # Panics
    /// If there are no columns.
    pub fn restore(steps: &[u8], scales: &[f16], columns: usize) -> Vec<f32> {
        let mut weights = vec![0f32; steps.len()];
        weights
            .par_chunks_mut(BLOCK * columns)
            .zip(steps.par_chunks(BLOCK * columns))
            .zip(scales.par_chunks(columns))
            .for_each(|((weights, steps), scales)| {
                let scales: Vec<f32> = scales.iter().map(|scale| scale.to_f32()).collect();
                vectorised(
                    #[inline(always)]
                    || {
                        let rows = weights.chunks_exact_mut(columns);
                        for (weights, steps) in rows.zip(steps.chunks_exact(columns)) {
                            for ((weight, step), scale) in
                                weights.iter_mut().zip(steps).zip(&scales)
                            {
                                *weight = f32::from(*step as i8) * scale;
                            }
                        }
                    },
                );
            });
        weights
    }
}

/// Rounds a row of blocks, of up to 32 rows. `peaks` is zero, and as long as `scales`.
#[inline(always)]
fn round(weights: &[f32], peaks: &mut [f32], scales: &mut [f16], steps: &mut [u8]) {
    let columns = scales.len();
    for weights in weights.chunks_exact(columns) {
        for (peak, weight) in peaks.iter_mut().zip(weights) {
            *peak = peak.max(weight.abs());
        }
    }
    for (peak, scale) in peaks.iter_mut().zip(scales) {
        let rounded = block_scale(*peak, LAST_STEP);
        *scale = f16::from_f32(rounded);
        *peak = 1.0 / rounded;
    }
    let inverse_scales = &*peaks;
    let rows = weights.chunks_exact(columns);
    for (weights, steps) in rows.zip(steps.chunks_exact_mut(columns)) {
        for ((step, weight), inverse_scale) in steps.iter_mut().zip(weights).zip(inverse_scales) {
            *step = nearest_step(*weight, *inverse_scale, LAST_STEP) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Noise;

    #[test]
    fn errors_stay_within_half_a_step_of_the_block() {
        let mut noise = Noise::new(3);
        for (rows, columns, size) in [(64, 5, 0.02), (75, 3, 300.0), (7, 1, 1e-5), (33, 8, 1e-9)] {
            let weights: Vec<f32> = (0..rows * columns)
                .map(|_| ((2.0 * noise.uniform() - 1.0) * size) as f32)
                .collect();
            let Rounded { steps, scales } = Rounded::new(&weights, columns);
            assert_eq!(steps.len(), weights.len());
            assert_eq!(scales.len(), rows.div_ceil(BLOCK) * columns);
            let restored = Rounded::restore(&steps, &scales, columns);
            for (i, (weight, restored)) in weights.iter().zip(&restored).enumerate() {
                let block = i / columns / BLOCK * columns + i % columns;
                let scale = scales[block].to_f32();
                let error = (weight - restored).abs();
                assert!(error <= scale * 0.50001, "{weight} became {restored}");
                // The scale is no larger than the block needs, up to a step of f16.
                let peak = (0..BLOCK)
                    .map(|row| (i / columns / BLOCK * BLOCK + row) * columns + i % columns)
                    .filter_map(|i| weights.get(i))
                    .fold(0f32, |peak, weight| peak.max(weight.abs()));
                let needed = peak / LAST_STEP;
                assert!(
                    scale >= needed && scale <= needed * 1.001 + 6e-8,
                    "{scale} for {needed}"
                );
            }
        }
    }

    #[test]
    fn zeros_stay_zero_and_the_largest_values_are_finite() {
        let weights = [0.0, Rounded::MAX, 0.0, -Rounded::MAX];
        let Rounded { steps, scales } = Rounded::new(&weights, 2);
        assert_eq!(scales, [f16::ZERO, f16::MAX]);
        assert_eq!(Rounded::restore(&steps, &scales, 2), weights);
        let empty = Rounded::new(&[], 3);
        assert!(empty.steps.is_empty() && empty.scales.is_empty());
    }
}
