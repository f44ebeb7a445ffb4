//! The left operand of a product with packed weights: rows of inputs, rounded to 8 bits.

use rayon::prelude::*;

use crate::rounding::BLOCK;
use crate::vectorised;

/// The last step on either side of zero.
const LAST_STEP: f32 = 127.0;

/// A product with fewer inputs than this rounds them on one thread.
const SERIAL: usize = 1 << 14;

/// Adding this to a number below 2^22 rounds it to the nearest integer, which is then in the lowest bits.
const ROUNDING: f32 = 12_582_912.0;

/// Rows of inputs, rounded to 8 bits in blocks of 32. The scale of a block is 1/127 of its largest magnitude.
pub(super) struct Inputs {
    /// Number of values of a row.
    pub width: usize,
    /// The steps, from -127 to 127: `[rows, width]`.
    pub steps: Vec<i8>,
    /// The scale of each block: `[rows, width / 32]`. It is NaN if a value of the block is not finite.
    pub scales: Vec<f32>,
    /// The sum of the steps of each block.
    pub sums: Vec<i32>,
}

impl Inputs {
    /// Rounds rows of `width` values.
    pub fn round(values: &[f32], width: usize) -> Self {
        let blocks = values.len() / BLOCK;
        let mut inputs = Self {
            width,
            steps: vec![0; values.len()],
            scales: vec![0.0; blocks],
            sums: vec![0; blocks],
        };
        let Self {
            steps,
            scales,
            sums,
            ..
        } = &mut inputs;
        if values.len() < SERIAL {
            vectorised(
                #[inline(always)]
                || round(values, steps, scales, sums),
            );
            return inputs;
        }
        values
            .par_chunks(width)
            .zip(steps.par_chunks_mut(width))
            .zip(scales.par_chunks_mut(width / BLOCK))
            .zip(sums.par_chunks_mut(width / BLOCK))
            .for_each(|(((values, steps), scales), sums)| {
                vectorised(
                    #[inline(always)]
                    || round(values, steps, scales, sums),
                );
            });
        inputs
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.steps.len() / self.width
    }
}

#[inline(always)]
fn round(values: &[f32], steps: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
    let blocks = values.as_chunks::<BLOCK>().0.iter();
    let steps = steps.as_chunks_mut::<BLOCK>().0.iter_mut();
    let kept = scales.iter_mut().zip(sums);
    for ((values, steps), (scale, sum)) in blocks.zip(steps).zip(kept) {
        let mut peaks = [0f32; BLOCK / 2];
        // Zero, or NaN if a value is not finite, which a maximum would hide.
        let mut poison = [0f32; BLOCK / 2];
        for i in 0..BLOCK / 2 {
            let (a, b) = (values[i], values[i + BLOCK / 2]);
            peaks[i] = a.abs().max(b.abs());
            poison[i] = a * 0.0 + b * 0.0;
        }
        let peak = peaks.iter().fold(0f32, |peak, x| peak.max(*x));
        let inverse = match peak > 0.0 {
            true => LAST_STEP / peak,
            false => 0.0,
        };
        // Below 3.7e-37 this is infinite. Such a block is too small to matter.
        let inverse = if inverse.is_finite() { inverse } else { 0.0 };
        let mut total = [0i32; BLOCK];
        for i in 0..BLOCK {
            let rounded = (values[i] * inverse + ROUNDING).to_bits();
            let step = rounded.wrapping_sub(ROUNDING.to_bits()) as i8;
            steps[i] = step;
            total[i] = i32::from(step);
        }
        *scale = peak / LAST_STEP + poison.iter().sum::<f32>();
        *sum = total.iter().sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Noise;

    #[test]
    fn steps_are_the_nearest_ones() {
        let mut noise = Noise::new(5);
        for (rows, size) in [(1, 1.0), (3, 1e-30), (700, 1e30)] {
            let width = 3 * BLOCK;
            let mut values: Vec<f32> = (0..rows * width)
                .map(|_| ((2.0 * noise.uniform() - 1.0) * size) as f32)
                .collect();
            values[..BLOCK].fill(0.0);
            let inputs = Inputs::round(&values, width);
            assert_eq!(inputs.rows(), rows);
            for (i, value) in values.iter().enumerate() {
                let scale = inputs.scales[i / BLOCK];
                let error = (f32::from(inputs.steps[i]) * scale - value).abs();
                assert!(error <= 0.50001 * scale, "{value}: {error}");
            }
            for (sum, steps) in inputs.sums.iter().zip(inputs.steps.chunks(BLOCK)) {
                assert_eq!(*sum, steps.iter().map(|step| i32::from(*step)).sum::<i32>());
            }
        }
    }

    #[test]
    fn values_that_are_not_finite_show() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![1.0; 3 * BLOCK];
            values[BLOCK + 7] = bad;
            let inputs = Inputs::round(&values, 3 * BLOCK);
            let finite = inputs.scales.iter().map(|scale| scale.is_finite());
            assert!(finite.eq([true, false, true]), "{bad}");
        }
    }
}
