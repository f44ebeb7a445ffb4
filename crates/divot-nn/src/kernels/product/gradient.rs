//! The gradient of the weights of a product.

use std::marker::PhantomData;
use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::tile::MAX_WIDTH;
use super::{
    Floats, GROUP, Gather, MAX_PARTIAL, MIN_CHUNK, PANELS, ROWS, Rows, SERIAL, Start, Target,
    TileWidth, Words, ZEROS, add_parts, block, lines, vectors,
};
#[cfg(target_arch = "x86_64")]
use super::{Pairs, pairs};
use crate::kernels::simd::{self, Shared, uninit};
#[cfg(target_arch = "x86_64")]
use crate::switch::bf16_training;
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
    #[cfg(target_arch = "x86_64")]
    if bf16_training() {
        return in_words::<Pairs>(rows, &pairs::join_lines(grad, outputs), m, outputs);
    }
    in_words::<Floats>(rows, grad, m, outputs)
}

/// Computes [`weight_gradient`] with these words, of neighbouring rows. `grad` is `[words, outputs]`.
fn in_words<W: Words>(rows: Rows<'_>, grad: &[f32], m: usize, outputs: usize) -> Vec<f32> {
    let (channels, taps) = (rows.channels, rows.gather.taps);
    let words = m.div_ceil(W::CHANNELS);
    let size = taps * outputs * channels;
    let serial = m * size < SERIAL;
    // A small gradient has few tiles to share between threads. Split the rows too. Each part has its own
    // sums.
    let parts = match size <= MAX_PARTIAL {
        true => (m / (4 * MIN_CHUNK / 3)).clamp(1, 8),
        false => 1,
    };
    let part = words.div_ceil(parts);
    let parts = words.div_ceil(part);
    let mut sums = uninit(parts * size, |out| {
        let out = Shared(out);
        let width = arch().dispatch(TileWidth);
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
            let words_from = part_index * part;
            let mut packed = PANELS.take();
            W::run(Transposed::<W> {
                rows,
                grad,
                m,
                words: words_from..(words_from + part).min(words),
                kind: PhantomData,
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
struct Transposed<'a, W> {
    rows: Rows<'a>,
    grad: &'a [f32],
    /// Number of rows.
    m: usize,
    /// The rows of this task.
    words: Range<usize>,
    kind: PhantomData<W>,
    panels: Range<usize>,
    outputs: Range<usize>,
    stride: usize,
    out: Shared,
    packed: &'a mut Vec<f32>,
}

impl<W: Words> WithSimd for Transposed<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let widest = vectors::<S>() * S::F32_LANES;
        let channels = self.rows.channels;
        let panels = channels.div_ceil(widest);
        let area = TRANSPOSED_DEPTH * widest;
        let packed = lines(self.packed, self.panels.len() * area);
        // The tap of a panel, its first channel and its number of channels.
        let place = |panel: usize| {
            let column = panel % panels * widest;
            (panel / panels, column, (channels - column).min(widest))
        };
        for first in self.words.clone().step_by(TRANSPOSED_DEPTH) {
            let depth = TRANSPOSED_DEPTH.min(self.words.end - first);
            for (panel, packed) in self.panels.clone().zip(packed.chunks_exact_mut(area)) {
                let (tap, column, columns) = place(panel);
                let width = columns.next_multiple_of(S::F32_LANES);
                for (word, line) in (first..).zip(packed.chunks_exact_mut(width).take(depth)) {
                    let (line, padding) = line.split_at_mut(columns);
                    let m = W::CHANNELS * word;
                    copy(self.rows, m, tap, column, line);
                    if W::CHANNELS == 2 {
                        let mut next = [0.0; MAX_WIDTH];
                        if m + 1 < self.m {
                            copy(self.rows, m + 1, tap, column, &mut next[..columns]);
                        }
                        W::join(line, &next[..columns]);
                    }
                    padding.fill(0.0);
                }
            }
            let start = match first == self.words.start {
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
                        block::<S, W>(simd, &[left], stride, panel, depth, &target, start);
                    }
                }
            }
        }
    }
}

/// Copies a part of row `m` of a tap, from channel `first` on.
#[inline(always)]
fn copy(rows: Rows<'_>, m: usize, tap: usize, first: usize, line: &mut [f32]) {
    let (at, base) = rows.gather.place(m);
    match rows.gather.table[at + tap] {
        Gather::EDGE => line.fill(0.0),
        row => {
            let row = (base + row as usize) * rows.channels + first;
            line.copy_from_slice(&rows.data[row..row + line.len()]);
        }
    }
}
