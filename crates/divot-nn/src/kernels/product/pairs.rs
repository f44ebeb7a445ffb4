//! Products in bf16, with AVX512-BF16.

use std::ops::Range;

use burn::tensor::bf16;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::words::Words;
use super::{LINE, Rows, Values, Weights};
use crate::kernels::simd::{self, CHUNK, Shared, uninit};
use crate::switch::{bf16_products, bf16_training};
use crate::vectorised;

/// Returns whether a product with these weights is in bf16.
pub(crate) fn apply(weights: Values<'_>) -> bool {
    match weights {
        Values::Bf16(_) => bf16_products(),
        Values::F32(_) => bf16_training(),
        Values::F16(_) => false,
    }
}

/// Pairs of bf16, whose products are added in f32 (AVX512-BF16). The first channel is in the low half. A single last
/// channel is joined by a zero.
pub(crate) struct Pairs;

impl Words for Pairs {
    const CHANNELS: usize = 2;

    fn run(task: impl WithSimd<Output = ()>) {
        /// # Safety
        /// The processor has these instructions.
        #[target_feature(
            enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi1,bmi2,lzcnt,popcnt"
        )]
        unsafe fn with_bf16<T: WithSimd<Output = ()>>(simd: pulp::x86::V4, task: T) {
            task.with_simd(simd);
        }

        let simd = pulp::x86::V4::try_new().filter(|_| is_x86_feature_detected!("avx512bf16"));
        let simd = simd.expect("products in bf16 are only switched on with AVX512-BF16");
        // SAFETY: the instructions were found.
        unsafe { with_bf16(simd, task) };
    }

    #[inline(always)]
    unsafe fn multiply<S: Simd>(_: S, left: S::f32s, right: S::f32s, acc: S::f32s) -> S::f32s {
        use std::arch::x86_64::{__m512, __m512bh, _mm512_dpbf16_ps};
        use std::mem::transmute_copy;

        assert!(size_of::<S::f32s>() == size_of::<__m512>());
        // SAFETY: the vectors have this size, and the caller promises that the processor has the instruction.
        unsafe {
            let [left, right]: [__m512bh; 2] = [transmute_copy(&left), transmute_copy(&right)];
            transmute_copy(&_mm512_dpbf16_ps(transmute_copy(&acc), left, right))
        }
    }

    #[inline(always)]
    fn pack<S: Simd>(
        weights: &Weights<'_>,
        channels: usize,
        taps: usize,
        words: Range<usize>,
        columns: Range<usize>,
        widest: usize,
        panels: &mut [f32],
    ) {
        let depth = words.len();
        for first in columns.clone().step_by(widest) {
            let part = first..(first + widest).min(columns.end);
            let width = part.len().next_multiple_of(S::F32_LANES);
            let panel = &mut panels[(first - columns.start) * taps * depth..];
            // Whole lines, or one cache line at a time, so that only `LINE` outputs are read side by side.
            let step = if weights.output == 1 { width } else { LINE };
            for at in (0..width).step_by(step) {
                let end = (at + step).min(width);
                let filled = step.min(part.len().saturating_sub(at));
                for (i, word) in words.clone().enumerate() {
                    for tap in 0..taps {
                        let line = &mut panel[(tap * depth + i) * width..][at..end];
                        let (line, padding) = line.split_at_mut(filled);
                        padding.fill(0.0);
                        let low = tap * weights.tap
                            + 2 * word * weights.channel
                            + (part.start + at) * weights.output;
                        let high = (2 * word + 1 < channels).then_some(low + weights.channel);
                        match weights.data {
                            Values::F32(values) => {
                                join(line, values, low, high, weights.output, half);
                            }
                            Values::Bf16(values) => {
                                join(line, values, low, high, weights.output, bits);
                            }
                            Values::F16(_) => unreachable!("float16 has products in f32"),
                        }
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn join(line: &mut [f32], next: &[f32]) {
        for (low, high) in line.iter_mut().zip(next) {
            *low = pair(*low, *high);
        }
    }

    #[inline(always)]
    fn join_rows(rows: &mut [f32], channels: usize, stride: usize) {
        for row in rows.chunks_exact_mut(stride) {
            let mut first = 0;
            while first + 2 * LINE <= channels {
                let mut floats = [0.0; 2 * LINE];
                floats.copy_from_slice(&row[first..first + 2 * LINE]);
                let mut words = [0.0; LINE];
                for i in 0..LINE {
                    words[i] = pair(floats[2 * i], floats[2 * i + 1]);
                }
                row[first / 2..first / 2 + LINE].copy_from_slice(&words);
                first += 2 * LINE;
            }
            for i in first / 2..channels.div_ceil(2) {
                let high = if 2 * i + 1 < channels {
                    row[2 * i + 1]
                } else {
                    0.0
                };
                row[i] = pair(row[2 * i], high);
            }
        }
    }

    fn join_panels(
        panels: &mut [f32],
        places: usize,
        channels: usize,
        columns: usize,
        widest: usize,
    ) {
        let panels =
            panels[..places * channels * columns].par_chunks_mut(places * channels * widest);
        panels.for_each(|panel| {
            let width = panel.len() / (places * channels);
            let mut line = vec![0.0; width];
            vectorised(
                #[inline(always)]
                || {
                    for place in 0..places {
                        for i in 0..channels.div_ceil(2) {
                            let low = (place * channels + 2 * i) * width;
                            let to = (place * channels.div_ceil(2) + i) * width;
                            let (lows, rest) = panel[low..].split_at(width);
                            match 2 * i + 1 < channels {
                                true => {
                                    for ((word, low), high) in line.iter_mut().zip(lows).zip(rest) {
                                        *word = pair(*low, *high);
                                    }
                                }
                                false => {
                                    for (word, low) in line.iter_mut().zip(lows) {
                                        *word = pair(*low, 0.0);
                                    }
                                }
                            }
                            panel[to..to + width].copy_from_slice(&line);
                        }
                    }
                },
            );
        });
    }
}

/// Rounds a float to bf16: to the nearest, ties to even. NaN stays NaN.
#[inline(always)]
fn half(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    (if x.is_nan() {
        bits | 0x40_0000
    } else {
        rounded
    }) >> 16
}

#[inline(always)]
fn bits(x: bf16) -> u32 {
    x.to_bits().into()
}

/// Joins two floats, rounded to bf16.
#[inline(always)]
fn pair(low: f32, high: f32) -> f32 {
    f32::from_bits(half(low) | half(high) << 16)
}

/// Joins every `stride`-th value of two rows, which begin at `low` and `high`. A missing `high` is zero. `half` returns the bits
/// of a value in bf16.
#[inline(always)]
fn join<T: Copy>(
    line: &mut [f32],
    values: &[T],
    low: usize,
    high: Option<usize>,
    stride: usize,
    half: impl Fn(T) -> u32,
) {
    if line.is_empty() {
        return;
    }
    let lows = &values[low..];
    match (high, stride) {
        (None, _) => {
            for (n, to) in line.iter_mut().enumerate() {
                *to = f32::from_bits(half(lows[n * stride]));
            }
        }
        (Some(high), 1) => {
            for ((to, low), high) in line.iter_mut().zip(lows).zip(&values[high..]) {
                *to = f32::from_bits(half(*low) | half(*high) << 16);
            }
        }
        (Some(high), _) => {
            let highs = &values[high..];
            for (n, to) in line.iter_mut().enumerate() {
                *to = f32::from_bits(half(lows[n * stride]) | half(highs[n * stride]) << 16);
            }
        }
    }
}

/// Rounds the rows of a product with `m` rows to pairs.
pub(super) fn round(rows: Rows<'_>, m: usize) -> Vec<f32> {
    let words = rows.channels.div_ceil(2);
    let source = m / rows.gather.period * rows.gather.source;
    let step = (CHUNK / rows.channels).max(1);
    uninit(source * words, |out| {
        let out = Shared(out);
        simd::each(source.div_ceil(step), source < 2 * step, |i| {
            let range = i * step..(i * step + step).min(source);
            // SAFETY: no other task has these rows.
            let to = unsafe { out.slice(range.start * words, range.len() * words) };
            let from = &rows.data[range.start * rows.channels..range.end * rows.channels];
            vectorised(
                #[inline(always)]
                || round_rows(from, rows.channels, to),
            );
        });
    })
}

/// Rounds lines of `width` floats to pairs of neighbouring lines: `[lines / 2, width]`, rounded up.
pub(super) fn join_lines(lines: &[f32], width: usize) -> Vec<f32> {
    let words = (lines.len() / width).div_ceil(2);
    let step = (CHUNK / width).max(1);
    uninit(words * width, |out| {
        let out = Shared(out);
        simd::each(words.div_ceil(step), words < 2 * step, |i| {
            let range = i * step..(i * step + step).min(words);
            // SAFETY: no other task has these lines.
            let to = unsafe { out.slice(range.start * width, range.len() * width) };
            let from = &lines[range.start * 2 * width..];
            vectorised(
                #[inline(always)]
                || {
                    for (to, two) in to.chunks_exact_mut(width).zip(from.chunks(2 * width)) {
                        let (low, high) = two.split_at(width);
                        match high {
                            [] => to.iter_mut().zip(low).for_each(|(to, low)| {
                                *to = pair(*low, 0.0);
                            }),
                            high => {
                                for ((to, low), high) in to.iter_mut().zip(low).zip(high) {
                                    *to = pair(*low, *high);
                                }
                            }
                        }
                    }
                },
            );
        });
    })
}

/// Rounds rows of `channels` floats to pairs of bf16: `[rows, channels / 2]`, rounded up.
#[inline(always)]
fn round_rows(rows: &[f32], channels: usize, words: &mut [f32]) {
    let lines = words.chunks_exact_mut(channels.div_ceil(2));
    for (row, line) in rows.chunks_exact(channels).zip(lines) {
        let (pairs, rest) = row.as_chunks::<2>();
        for (word, [low, high]) in line.iter_mut().zip(pairs) {
            *word = pair(*low, *high);
        }
        if let ([last], Some(word)) = (rest, line.last_mut()) {
            *word = f32::from_bits(half(*last));
        }
    }
}
