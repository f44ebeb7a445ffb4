//! The gradient of the weights.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::transform::{Read, along_each, of_inputs};
use super::{FEWEST_OUTPUTS, Images, PLACES, TRANSFORMED, Tiles};
use crate::kernels::product::{
    Floats, GROUP, LINE, MAX_PARTIAL, ROWS, SERIAL, Start, Target, TileWidth, ZEROS, add_parts,
    block, lines, vectors,
};
use crate::kernels::simd::{self, Shared, uninit};
use crate::vectorised::arch;

/// Maximum number of tiles whose gradients are summed at once.
const GRADIENT_TILES: usize = 128;

/// Computes the gradient of the weights of [`product`](super::product), `[outputs, channels, taps]`, where
/// `grad` is the gradient of its result. No size may be 0.
pub(crate) fn weight_gradient(images: Images<'_>, grad: &[f32], outputs: usize) -> Vec<f32> {
    let arch = arch();
    let (channels, count) = (images.channels, images.count());
    let Tiles { from, to } = images.tiles;
    assert!(outputs * channels * count > 0);
    assert!(grad.len() == images.images() * to.source * outputs);
    let places = from.taps;
    let size = places * outputs * channels;
    // A small gradient has few outputs and channels to share between threads. Split the tiles too. Each
    // part has its own sums.
    let parts = match size <= MAX_PARTIAL {
        true => (count / (2 * GRADIENT_TILES)).clamp(1, 8),
        false => 1,
    };
    let part = count.div_ceil(parts);
    let parts = count.div_ceil(part);
    let mut sums = uninit(parts * size, |out| {
        let out = Shared(out);
        let width = arch.dispatch(TileWidth);
        let panels = channels.div_ceil(width);
        let groups = panels.div_ceil(GROUP);
        let group = panels.div_ceil(groups) * width;
        let threads = rayon::current_num_threads();
        // Each split transforms the input again, so use as few as keep every thread busy.
        let splits = simd::tasks(groups * parts)
            .min(outputs / FEWEST_OUTPUTS)
            .max(threads.div_ceil(groups * parts));
        let chunk = outputs.div_ceil(splits).next_multiple_of(ROWS);
        let chunks = outputs.div_ceil(chunk);
        simd::each(parts * groups * chunks, count * size < SERIAL, |i| {
            let (index, i) = (i / (groups * chunks), i % (groups * chunks));
            let (first, column) = (i / groups * chunk, i % groups * group);
            arch.dispatch(Gradient {
                images,
                grad,
                outputs,
                range: index * part..(index * part + part).min(count),
                columns: column..(column + group).min(channels),
                made: first..(first + chunk).min(outputs),
                out: out.after(index * size),
            });
        });
    });
    add_parts(&mut sums, size);
    match places {
        4 => from_places::<1>(&sums, outputs, channels),
        _ => from_places::<2>(&sums, outputs, channels),
    }
}

/// Computes the gradient of the weights from that of the transformed weights,
/// `[places, outputs, channels]`.
fn from_places<const AXES: usize>(sums: &[f32], outputs: usize, channels: usize) -> Vec<f32> {
    let (places, taps) = (4usize.pow(AXES as u32), 3usize.pow(AXES as u32));
    simd::by_rows(
        outputs,
        channels * taps,
        #[inline(always)]
        |output, line| {
            for (channel, to) in line.chunks_exact_mut(taps).enumerate() {
                let mut u = [0.0; PLACES];
                for place in 0..places {
                    u[place] = sums[(place * outputs + output) * channels + channel];
                }
                let g = along_each::<_, AXES, 4, 3>(&u, 0.0, of_gradients);
                to.copy_from_slice(&g[..taps]);
            }
        },
    )
}

/// Computes the gradient of three weights along an axis from that of four places.
#[inline(always)]
fn of_gradients([a, b, c, d]: [f32; 4]) -> [f32; 3] {
    let even = 0.5 * (b + c);
    [a + even, 0.5 * (b - c), d + even]
}

/// A task of [`weight_gradient`]: a range of outputs by a range of channels, summed over a range of tiles.
struct Gradient<'a> {
    images: Images<'a>,
    grad: &'a [f32],
    outputs: usize,
    range: Range<usize>,
    columns: Range<usize>,
    made: Range<usize>,
    out: Shared,
}

impl WithSimd for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.images.tiles.from.taps {
            4 => self.run::<S, 1>(simd),
            _ => self.run::<S, 2>(simd),
        }
    }
}

impl Gradient<'_> {
    #[inline(always)]
    fn run<S: Simd, const AXES: usize>(self, simd: S) {
        let places = 4usize.pow(AXES as u32);
        let widest = vectors::<S>() * S::F32_LANES;
        let zero = simd.splat_f32s(0.0);
        let Images {
            data,
            channels,
            tiles,
        } = self.images;
        let outputs = self.outputs;
        // An odd number of cache lines, so that a column spreads over all sets of the cache.
        let stride = (self.made.len().div_ceil(LINE) | 1) * LINE;
        let mut scratch = TRANSFORMED.take();
        let [inputs, grads] = &mut scratch;
        // `block` expects panels of whole vectors.
        let panel_of = |columns: usize| columns.next_multiple_of(S::F32_LANES);
        let inputs = lines(
            inputs,
            places * GRADIENT_TILES * panel_of(self.columns.len()),
        );
        let grads = lines(grads, places * GRADIENT_TILES * stride);
        for first in self.range.clone().step_by(GRADIENT_TILES) {
            let some = first..(first + GRADIENT_TILES).min(self.range.end);
            let count = some.len();
            let panel = |column: usize| column..(column + widest).min(self.columns.end);
            for column in self.columns.clone().step_by(widest) {
                let columns = panel(column);
                let width = panel_of(columns.len());
                let read = Read {
                    data,
                    channels,
                    columns,
                    gather: &tiles.from,
                    tiles: some.clone(),
                };
                let to = &mut inputs[(column - self.columns.start) * places * count..];
                read.run::<S, AXES, 4>(
                    simd,
                    to,
                    width,
                    #[inline(always)]
                    |x| of_inputs(simd, x),
                );
            }
            let read = Read {
                data: self.grad,
                channels: outputs,
                columns: self.made.clone(),
                gather: &tiles.to,
                tiles: some,
            };
            read.run::<S, AXES, 2>(
                simd,
                grads,
                stride,
                #[inline(always)]
                |[a, b]| {
                    [
                        a,
                        simd.add_f32s(a, b),
                        simd.sub_f32s(a, b),
                        simd.sub_f32s(zero, b),
                    ]
                },
            );
            let start = match first == self.range.start {
                true => Start::Line(ZEROS.as_ptr()),
                false => Start::There,
            };
            for place in 0..places {
                let grads = &grads[place * count * stride..][..count * stride];
                for row in self.made.clone().step_by(ROWS) {
                    let mut left = [grads.as_ptr(); ROWS];
                    for r in 0..ROWS {
                        let row = (row + r).min(self.made.end - 1) - self.made.start;
                        left[r] = grads[row..].as_ptr();
                    }
                    for column in self.columns.clone().step_by(widest) {
                        let columns = panel(column).len();
                        let width = panel_of(columns);
                        let at = (column - self.columns.start) * places + place * width;
                        let panel = inputs[at * count..][..width * count].as_ptr();
                        let target = Target {
                            // SAFETY: the row begins within the result.
                            first: unsafe {
                                let row = place * outputs + row;
                                self.out.0.add(row * channels + column)
                            },
                            stride: channels,
                            rows: ROWS.min(self.made.end - row),
                            columns,
                        };
                        // SAFETY: `left` begins in the first of `count` lines, and the panel has as
                        // many. No other task has this rectangle, and it was written for the first
                        // tiles.
                        unsafe {
                            block::<S, Floats>(simd, &[left], stride, panel, count, &target, start)
                        };
                    }
                }
            }
        }
        TRANSFORMED.set(scratch);
    }
}
