//! The gradient of the weights of a product.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::{
    Floats, GROUP, Gather, MAX_PARTIAL, MIN_CHUNK, PANELS, ROWS, Rows, SERIAL, Start, Target,
    TileWidth, ZEROS, add_parts, block, lines, vectors,
};
use crate::kernels::simd::{self, Shared, uninit};
use crate::vectorised::arch;

/// Maximum inner dimension of a packed panel for the gradient. The left operand is read along its columns,
/// so each step uses another cache line.
const TRANSPOSED_DEPTH: usize = 128;

/// Computes the gradient of the weights of [`product`](super::product): gradᵀ · rows,
/// `[taps, outputs, channels]`, where `grad` is `[m, outputs]`.
pub(crate) fn weight_gradient(rows: Rows<'_>, grad: &[f32], m: usize, outputs: usize) -> Vec<f32> {
    let (channels, taps) = (rows.channels, rows.gather.taps);
    assert!(grad.len() == m * outputs);
    assert!(rows.data.len() >= m / rows.gather.period * rows.gather.source * channels);
    if m * outputs * channels == 0 {
        return vec![0.0; taps * outputs * channels];
    }
    let size = taps * outputs * channels;
    let serial = m * size < SERIAL;
    // A small gradient has few tiles to share between threads. Split the rows too. Each part has its own
    // sums.
    let parts = match size <= MAX_PARTIAL {
        true => (m / (4 * MIN_CHUNK / 3)).clamp(1, 8),
        false => 1,
    };
    let part = m.div_ceil(parts);
    let parts = m.div_ceil(part);
    let mut sums = uninit(parts * size, |out| {
        let out = Shared(out);
        let arch = arch();
        let width = arch.dispatch(TileWidth);
        let panels = taps * channels.div_ceil(width);
        let groups = panels.div_ceil(GROUP);
        let group = panels.div_ceil(groups);
        let threads = rayon::current_num_threads();
        let splits = match (serial, groups * parts % threads) {
            (true, _) => 1,
            (_, 0) => simd::tasks(groups * parts),
            _ => simd::tasks(groups * parts).next_multiple_of(threads),
        };
        let chunk = outputs.div_ceil(splits).next_multiple_of(ROWS);
        let chunks = outputs.div_ceil(chunk);
        let task = |i: usize| {
            let (part_index, i) = (i / (groups * chunks), i % (groups * chunks));
            let (first, i) = (i / groups * chunk, i % groups * group);
            let rows_from = part_index * part;
            let mut packed = PANELS.take();
            arch.dispatch(Transposed {
                rows,
                grad,
                m: rows_from..(rows_from + part).min(m),
                panels: i..(i + group).min(panels),
                outputs: first..(first + chunk).min(outputs),
                stride: outputs,
                out: out.after(part_index * size),
                packed: &mut packed,
            });
            PANELS.set(packed);
        };
        simd::each(parts * groups * chunks, serial, task);
    });
    add_parts(&mut sums, size);
    sums
}

/// A task of [`weight_gradient`]: a range of outputs by a few panels, summed over a range of rows. A panel
/// is one tap and some of its channels.
struct Transposed<'a> {
    rows: Rows<'a>,
    grad: &'a [f32],
    m: Range<usize>,
    panels: Range<usize>,
    outputs: Range<usize>,
    stride: usize,
    out: Shared,
    packed: &'a mut Vec<f32>,
}

impl WithSimd for Transposed<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let widest = vectors::<S>() * S::F32_LANES;
        let Rows {
            data,
            channels,
            gather,
        } = self.rows;
        let panels = channels.div_ceil(widest);
        let area = TRANSPOSED_DEPTH * widest;
        let packed = lines(self.packed, self.panels.len() * area);
        // The tap of a panel, its first channel and its number of channels.
        let place = |panel: usize| {
            let column = panel % panels * widest;
            (panel / panels, column, (channels - column).min(widest))
        };
        for first in self.m.clone().step_by(TRANSPOSED_DEPTH) {
            let depth = TRANSPOSED_DEPTH.min(self.m.end - first);
            for (panel, packed) in self.panels.clone().zip(packed.chunks_exact_mut(area)) {
                let (tap, column, columns) = place(panel);
                let width = columns.next_multiple_of(S::F32_LANES);
                for (m, line) in (first..).zip(packed.chunks_exact_mut(width).take(depth)) {
                    let (at, base) = gather.place(m);
                    let (line, padding) = line.split_at_mut(columns);
                    match gather.table[at + tap] {
                        Gather::EDGE => line.fill(0.0),
                        row => {
                            let row = (base + row as usize) * channels + column;
                            line.copy_from_slice(&data[row..row + columns]);
                        }
                    }
                    padding.fill(0.0);
                }
            }
            let start = match first == self.m.start {
                true => Start::Line(ZEROS.as_ptr()),
                false => Start::There,
            };
            let grad = &self.grad[first * self.stride..(first + depth) * self.stride];
            for output in self.outputs.clone().step_by(ROWS) {
                let mut left = [grad.as_ptr(); ROWS];
                for r in 0..ROWS {
                    left[r] = grad[(output + r).min(self.outputs.end - 1)..].as_ptr();
                }
                for (panel, packed) in self.panels.clone().zip(packed.chunks_exact(area)) {
                    let (tap, column, columns) = place(panel);
                    let target = Target {
                        // SAFETY: the row begins within the result.
                        first: unsafe {
                            let row = tap * self.stride + output;
                            self.out.0.add(row * channels + column)
                        },
                        stride: channels,
                        rows: ROWS.min(self.outputs.end - output),
                        columns,
                    };
                    // SAFETY: `left` begins in the first of `depth` rows of `stride` floats. No other
                    // task has this rectangle, and it was written for the first rows.
                    unsafe {
                        let (stride, panel) = (self.stride, packed.as_ptr());
                        block::<S, Floats>(simd, &[left], stride, panel, depth, &target, start);
                    }
                }
            }
        }
    }
}
