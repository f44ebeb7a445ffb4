//! The forward product.

use std::marker::PhantomData;
use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::tile::{ROWS, Start, Target, TileWidth, block, vectors};
use super::vector::vector_product;
use super::words::{Floats, Words};
use super::{DEPTH, GROUP, Gather, LINE, MIN_CHUNK, PANELS, Rows, SERIAL, Weights, ZEROS, lines};
#[cfg(target_arch = "x86_64")]
use super::{Pairs, pairs};
use crate::kernels::simd::{self, Shared, uninit};
use crate::vectorised::arch;

/// Computes the product of rows and weights, summed over taps and channels, plus the bias: `[m, outputs]`.
pub(crate) fn product(
    rows: Rows<'_>,
    weights: Weights<'_>,
    bias: Option<&[f32]>,
    m: usize,
) -> Vec<f32> {
    let n = weights.outputs;
    let channels = rows.channels;
    assert!(rows.data.len() >= m / rows.gather.period * rows.gather.source * channels);
    assert!(bias.is_none_or(|bias| bias.len() == n));
    if m * n * channels == 0 {
        return vec![0.0; m * n];
    }
    if m <= 2 && rows.gather.is_identity() && weights.output == 1 {
        return vector_product(rows, weights, bias, m);
    }
    #[cfg(target_arch = "x86_64")]
    if pairs::apply(weights.data) {
        let rounded = pairs::round(rows, m);
        let data = &rounded;
        return uninit(m * n, |out| {
            tasks::<Pairs>(Rows { data, ..rows }, weights, bias, m, Shared(out));
        });
    }
    uninit(m * n, |out| {
        tasks::<Floats>(rows, weights, bias, m, Shared(out));
    })
}

/// Runs the tasks of a product.
fn tasks<W: Words>(
    rows: Rows<'_>,
    weights: Weights<'_>,
    bias: Option<&[f32]>,
    m: usize,
    out: Shared,
) {
    let (n, multiplications) = (weights.outputs, m * rows.channels * rows.gather.taps);
    let width = arch().dispatch(TileWidth);
    let serial = multiplications * n < SERIAL;
    let panels = n.div_ceil(width);
    let (chunk, groups) = shares(m, panels, serial);
    let border = |group: usize| (group * panels / groups * width).min(n);
    simd::each(groups * m.div_ceil(chunk), serial, |i| {
        let (first, group) = (i / groups * chunk, i % groups);
        let mut panels = PANELS.take();
        W::run(Forward::<W> {
            rows,
            weights,
            bias,
            m: first..(first + chunk).min(m),
            columns: border(group)..border(group + 1),
            out,
            panels: &mut panels,
            words: PhantomData,
        });
        PANELS.set(panels);
    });
}

/// Splits a product into tasks. Returns the number of rows of a task, and the number of groups of panels.
/// Every thread gets the same number of tasks, and each packed panel is used for many rows.
fn shares(rows: usize, panels: usize, serial: bool) -> (usize, usize) {
    let least = panels.div_ceil(GROUP);
    if serial {
        return (rows, least);
    }
    let (tasks, threads) = (simd::tasks(1), rayon::current_num_threads());
    let most = (rows / MIN_CHUNK).clamp(1, tasks);
    let groups = tasks.div_ceil(most).max(least);
    let chunks = tasks.div_ceil(groups);
    // Split the rows evenly between threads. With few rows, split the panels instead.
    let (chunks, groups) = match most / threads {
        0 => (chunks.min(most), groups.next_multiple_of(threads)),
        times => (
            chunks.next_multiple_of(threads).min(times * threads),
            groups,
        ),
    };
    let chunk = rows.div_ceil(chunks).next_multiple_of(ROWS);
    (chunk, groups.min(panels))
}

/// A task of [`product`]: a range of rows by a few panels. The data of the rows are words.
struct Forward<'a, W> {
    rows: Rows<'a>,
    weights: Weights<'a>,
    bias: Option<&'a [f32]>,
    m: Range<usize>,
    columns: Range<usize>,
    out: Shared,
    panels: &'a mut Vec<f32>,
    words: PhantomData<W>,
}

impl<W: Words> WithSimd for Forward<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let widest = vectors::<S>() * S::F32_LANES;
        let n = self.weights.outputs;
        let columns = self.columns;
        let Rows {
            data,
            channels,
            gather,
        } = self.rows;
        let taps = gather.taps;
        let all = channels;
        let channels = all.div_ceil(W::CHANNELS);
        // As few blocks as possible, all of about the same depth. A kernel may have more taps than
        // `DEPTH`.
        let blocks = channels.div_ceil((DEPTH / taps).next_multiple_of(LINE).max(LINE));
        let depth = channels
            .div_ceil(blocks)
            .next_multiple_of(LINE)
            .min(channels);
        let padded = columns.len().next_multiple_of(S::F32_LANES);
        let panels = lines(self.panels, padded * taps * depth);
        let mut bias = vec![0.0; padded];
        if let Some(values) = self.bias {
            bias[..columns.len()].copy_from_slice(&values[columns.clone()]);
        }
        let mut left = vec![[ZEROS.as_ptr(); ROWS]; taps];
        for first in (0..channels).step_by(depth) {
            let depth = depth.min(channels - first);
            let words = first..first + depth;
            W::pack::<S>(
                &self.weights,
                all,
                taps,
                words,
                columns.clone(),
                widest,
                panels,
            );
            for m in self.m.clone().step_by(ROWS) {
                for r in 0..ROWS {
                    let (at, base) = gather.place((m + r).min(self.m.end - 1));
                    for tap in 0..taps {
                        left[tap][r] = match gather.table[at + tap] {
                            Gather::EDGE => ZEROS.as_ptr(),
                            row => {
                                let row = (base + row as usize) * channels + first;
                                data[row..][..depth].as_ptr()
                            }
                        };
                    }
                }
                for column in columns.clone().step_by(widest) {
                    let target = Target {
                        // SAFETY: the row begins within the result.
                        first: unsafe { self.out.0.add(m * n + column) },
                        stride: n,
                        rows: ROWS.min(self.m.end - m),
                        columns: (columns.end - column).min(widest),
                    };
                    let at = column - columns.start;
                    let start = match first {
                        0 => Start::Line(bias[at..].as_ptr()),
                        _ => Start::There,
                    };
                    let panel = panels[at * taps * depth..].as_ptr();
                    // SAFETY: the slices above have `depth` floats, and the panel has as many lines
                    // for each tap. No other task has this rectangle, and it was written for
                    // `first == 0`.
                    unsafe { block::<S, W>(simd, &left, 1, panel, depth, &target, start) };
                }
            }
        }
    }
}
