//! Common parts of all kernels: tasks on several threads, buffers that are not zeroed first, and `exp` and
//! `erf` in a form that the compiler vectorises.

use std::ops::Range;

use rayon::prelude::*;

use crate::vectorised;

pub(super) use crate::shared::{Shared, uninit};

/// Number of elements of a task of an element-wise kernel.
pub(super) const CHUNK: usize = 1 << 15;

/// Returns the number of parts into which to split each of `groups`, so that all threads stay busy until
/// the end.
pub(super) fn tasks(groups: usize) -> usize {
    (4 * rayon::current_num_threads()).div_ceil(groups)
}

/// Runs `count` tasks, numbered from 0. With `serial`, they run on this thread.
pub(super) fn each(count: usize, serial: bool, task: impl Fn(usize) + Send + Sync) {
    if serial || count == 1 {
        (0..count).for_each(task);
    } else {
        (0..count).into_par_iter().for_each(task);
    }
}

/// Creates a buffer of `len` floats. `f` is called with ranges of it, and must write each range.
#[inline(always)]
pub(super) fn by_chunks(
    len: usize,
    f: impl Fn(Range<usize>, &mut [f32]) + Copy + Send + Sync,
) -> Vec<f32> {
    uninit(len, |out| {
        let out = Shared(out);
        let tasks = len.div_ceil(CHUNK);
        each(tasks, tasks < 4, |i| {
            let range = i * CHUNK..(i * CHUNK + CHUNK).min(len);
            // SAFETY: no other task has this chunk.
            let out = unsafe { out.slice(range.start, range.len()) };
            vectorised(
                #[inline(always)]
                || f(range.clone(), &mut *out),
            );
        });
    })
}

/// Creates a buffer of `rows` rows of `width` floats. `f` is called with each row, and must write it.
#[inline(always)]
pub(super) fn by_rows(
    rows: usize,
    width: usize,
    f: impl Fn(usize, &mut [f32]) + Copy + Send + Sync,
) -> Vec<f32> {
    let step = (CHUNK / width.max(1)).max(1);
    uninit(rows * width, |out| {
        let out = Shared(out);
        let tasks = rows.div_ceil(step);
        each(tasks, tasks < 3, |i| {
            vectorised(
                #[inline(always)]
                || {
                    for row in i * step..(i * step + step).min(rows) {
                        // SAFETY: no other task has this row.
                        f(row, unsafe { out.slice(row * width, width) });
                    }
                },
            );
        });
    })
}

/// Number of partial sums of a row. The compiler keeps them in vectors.
pub(super) const LANES: usize = 16;

/// Folds all partial sums into one, halving their number each time.
#[inline(always)]
pub(super) fn fold(parts: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    // If the compiler saw this fold behind the loop that makes the parts, it would make them two at a time.
    let mut parts = std::hint::black_box(parts);
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            parts[i] = f(parts[i], parts[i + width]);
        }
        width /= 2;
    }
    parts[0]
}

/// Sums `f` over pairs of values from two rows.
#[inline(always)]
pub(super) fn row_sum(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    let (x_lines, x_rest) = x.as_chunks::<LANES>();
    let (y_lines, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in x_lines.iter().zip(y_lines) {
        for i in 0..LANES {
            sums[i] += f(x[i], y[i]);
        }
    }
    let mut sum = fold(
        sums,
        #[inline(always)]
        |a, b| a + b,
    );
    for (x, y) in x_rest.iter().zip(y_rest) {
        sum += f(*x, *y);
    }
    sum
}

/// Computes e^x, accurate to 2 units in the last place. It is 0 below −87.3, and constant above 88.37.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.336;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// 1.5 · 2²³. Adding it rounds to an integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(LOWEST, 88.37);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5e-1;
    let p = p * r * r + r + 1.0;
    let y =
        f32::from_bits((p.to_bits() as i32).wrapping_add((shifted.to_bits() << 23) as i32) as u32);
    // Masked scores must become exactly 0, not denormal numbers, whose multiplication takes a hundred times
    // as long on some processors.
    if x <= LOWEST { 0.0 } else { y }
}

/// Computes 1 / (1 + e^-x).
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Computes the error function, accurate to 3e-7, as the ratio of an odd and an even polynomial.
#[inline(always)]
pub(super) fn erf(x: f32) -> f32 {
    if x.abs() >= 4.0 {
        return 1f32.copysign(x);
    }
    let y = x * x;
    let p = -2.726_142_3e-10;
    let p = p * y + 2.770_681_4e-8;
    let p = p * y - 2.101_024e-6;
    let p = p * y - 5.692_506_4e-5;
    let p = p * y - 7.349_906_3e-4;
    let p = p * y - 2.954_6e-3;
    let p = p * y - 1.609_603_3e-2;
    let q = -1.456_607_2e-5;
    let q = q * y - 2.133_740_6e-4;
    let q = q * y - 1.682_827e-3;
    let q = q * y - 7.373_329e-3;
    let q = q * y - 1.426_473_9e-2;
    x * p / q
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn nothing_is_left_next_to_zero() {
        for x in [-87.4, -1e3, -1e9, f32::NEG_INFINITY] {
            assert_eq!(exp(x), 0.0);
        }
        assert!(exp(-87.3) >= f32::MIN_POSITIVE);
        assert!((exp(1.0) - std::f32::consts::E).abs() < 1e-6);
    }
}
