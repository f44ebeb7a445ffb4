//! Softmax of rows and of columns, and its gradient.

use crate::kernels::simd::{self, LANES, exp, row_sum};

/// Number of queries whose scores are computed at a time. The scores are laid out as a line of queries for
/// each key. Keys are then read in order, and no sum runs within a vector.
pub(super) const QUERIES: usize = 64;

/// Computes the softmax of a row, in place.
#[inline(always)]
pub(super) fn softmax(row: &mut [f32]) {
    let mut top = [f32::NEG_INFINITY; LANES];
    let (lines, rest) = row.as_chunks::<LANES>();
    for line in lines {
        for i in 0..LANES {
            top[i] = larger(top[i], line[i]);
        }
    }
    let mut top = simd::fold(top, larger);
    for x in rest {
        top = larger(top, *x);
    }
    for x in &mut *row {
        *x = exp(*x - top);
    }
    let sum = row_sum(
        row,
        row,
        #[inline(always)]
        |x, _| x,
    );
    let scale = 1.0 / sum;
    for x in row {
        *x *= scale;
    }
}

/// Computes the softmax of each column times `scale`, in place. `lines` are lines of `count` floats.
#[inline(always)]
pub(super) fn softmax_of_columns(lines: &mut [f32], count: usize, scale: f32) {
    let (mut top, mut sum) = ([f32::NEG_INFINITY; QUERIES], [0.0; QUERIES]);
    let (top, sum) = (&mut top[..count], &mut sum[..count]);
    for line in lines.chunks_exact(count) {
        for (top, x) in top.iter_mut().zip(line) {
            *top = larger(*top, *x);
        }
    }
    for line in lines.chunks_exact_mut(count) {
        for ((x, top), sum) in line.iter_mut().zip(&*top).zip(&mut *sum) {
            *x = exp((*x - top) * scale);
            *sum += *x;
        }
    }
    for sum in &mut *sum {
        *sum = 1.0 / *sum;
    }
    for line in lines.chunks_exact_mut(count) {
        for (x, scale) in line.iter_mut().zip(&*sum) {
            *x *= scale;
        }
    }
}

/// Returns the larger of two numbers. `f32::max` takes more instructions, to handle NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Computes the gradient of [`softmax_of_columns`]. Converts the gradients of the attention weights,
/// `slopes`, to those of the scores, in place. Both are lines of `count` queries.
#[inline(always)]
pub(super) fn softmax_slopes(weights: &[f32], slopes: &mut [f32], count: usize, scale: f32) {
    let mut mean = [0.0; QUERIES];
    let mean = &mut mean[..count];
    for (weights, slopes) in weights.chunks_exact(count).zip(slopes.chunks_exact(count)) {
        for ((mean, weight), slope) in mean.iter_mut().zip(weights).zip(slopes) {
            *mean += weight * slope;
        }
    }
    let lines = slopes.chunks_exact_mut(count);
    for (weights, slopes) in weights.chunks_exact(count).zip(lines) {
        for ((slope, weight), mean) in slopes.iter_mut().zip(weights).zip(&*mean) {
            *slope = (*slope - mean) * weight * scale;
        }
    }
}
