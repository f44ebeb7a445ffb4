//! The transforms of inputs and weights.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::PLACES;
use crate::kernels::product::{Gather, LINE, SERIAL, TileWidth, Weights};
use crate::kernels::simd::{self, Shared, uninit};

/// Transforms the weights and packs them into panels as wide as a tile of the product: panel after panel,
/// place after place, channel after channel. The panels begin at the first cache line of the buffer.
pub(super) fn transformed(
    arch: Arch,
    weights: Weights<'_>,
    reversed: bool,
    channels: usize,
    places: usize,
) -> Vec<f32> {
    let width = arch.dispatch(TileWidth);
    let padded = weights.outputs.next_multiple_of(LINE.min(width));
    let size = places * channels * padded;
    uninit(size + LINE, |out| {
        let start = out.align_offset(LINE * size_of::<f32>());
        let out = Shared(out);
        // SAFETY: both slices are within the buffer: the padding before and after the panels.
        unsafe {
            out.slice(0, start).fill(0.0);
            out.slice(start + size, LINE - start).fill(0.0);
        }
        let panels = weights.outputs.div_ceil(width);
        let chunk = channels.div_ceil(simd::tasks(panels));
        let chunks = channels.div_ceil(chunk);
        simd::each(panels * chunks, size < SERIAL / 8, |i| {
            let (first, column) = (i % chunks * chunk, i / chunks * width);
            arch.dispatch(Transform {
                weights,
                reversed,
                channels,
                places,
                range: first..(first + chunk).min(channels),
                column,
                width: (padded - column).min(width),
                out: out.after(start + column * places * channels),
            });
        });
    })
}

/// Applies `f` along the middle axis of `[before, N, after]`, which becomes `[before, M, after]`.
#[inline(always)]
fn along<V: Copy, const N: usize, const M: usize>(
    x: &[V; PLACES],
    [before, after]: [usize; 2],
    zero: V,
    f: impl Fn([V; N]) -> [V; M],
) -> [V; PLACES] {
    let mut y = [zero; PLACES];
    for b in 0..before {
        for a in 0..after {
            let mut line = [zero; N];
            for i in 0..N {
                line[i] = x[(b * N + i) * after + a];
            }
            let line = f(line);
            for i in 0..M {
                y[(b * M + i) * after + a] = line[i];
            }
        }
    }
    y
}

/// Applies `f` along each of the one or two axes.
#[inline(always)]
pub(super) fn along_each<V: Copy, const AXES: usize, const N: usize, const M: usize>(
    x: &[V; PLACES],
    zero: V,
    f: impl Fn([V; N]) -> [V; M] + Copy,
) -> [V; PLACES] {
    match AXES {
        1 => along(x, [1, 1], zero, f),
        _ => along(&along(x, [N, 1], zero, f), [1, M], zero, f),
    }
}

/// A task of [`transformed`]: the weights of a range of channels, in a panel's columns.
struct Transform<'a> {
    weights: Weights<'a>,
    reversed: bool,
    channels: usize,
    places: usize,
    range: Range<usize>,
    column: usize,
    width: usize,
    out: Shared,
}

impl WithSimd for Transform<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.places {
            4 => self.run::<S, 1>(simd),
            _ => self.run::<S, 2>(simd),
        }
    }
}

impl Transform<'_> {
    #[inline(always)]
    fn run<S: Simd, const AXES: usize>(self, simd: S) {
        let zero = simd.splat_f32s(0.0);
        let half = simd.splat_f32s(0.5);
        let weights = self.weights;
        let taps = 3usize.pow(AXES as u32);
        // The values beyond the last output are never used.
        let mut read = [[0.0f32; LINE]; 9];
        for at in (0..self.width).step_by(LINE) {
            let filled = LINE
                .min(self.width - at)
                .min(weights.outputs - self.column - at);
            for channel in self.range.clone() {
                let first = channel * weights.channel + (self.column + at) * weights.output;
                for tap in 0..taps {
                    let from = if self.reversed { taps - 1 - tap } else { tap };
                    let line = &mut read[tap][..filled];
                    let first = first + from * weights.tap;
                    weights.data.gather(first, weights.output, line);
                }
                for lane in (0..LINE.min(self.width - at)).step_by(S::F32_LANES) {
                    let mut g = [zero; PLACES];
                    for tap in 0..taps {
                        // SAFETY: a line has `LINE` floats, which make whole vectors.
                        g[tap] = unsafe {
                            read[tap]
                                .as_ptr()
                                .add(lane)
                                .cast::<S::f32s>()
                                .read_unaligned()
                        };
                    }
                    let u = along_each::<_, AXES, 3, 4>(
                        &g,
                        zero,
                        #[inline(always)]
                        |[a, b, c]| {
                            let even = simd.mul_f32s(half, simd.add_f32s(a, c));
                            let odd = simd.mul_f32s(half, b);
                            [a, simd.add_f32s(even, odd), simd.sub_f32s(even, odd), c]
                        },
                    );
                    for place in 0..4usize.pow(AXES as u32) {
                        let line = (place * self.channels + channel) * self.width + at + lane;
                        // SAFETY: the line is in the panel, and no other task has it.
                        unsafe {
                            let line = self.out.0.add(line).cast::<S::f32s>();
                            line.write_unaligned(u[place]);
                        }
                    }
                }
            }
        }
    }
}

/// Reads a range of channels of a range of tiles, and transforms them.
pub(super) struct Read<'a> {
    pub data: &'a [f32],
    pub channels: usize,
    pub columns: Range<usize>,
    pub gather: &'a Gather,
    pub tiles: Range<usize>,
}

impl Read<'_> {
    /// Applies `f` along each axis and writes `[places, tiles, columns]`, in lines of `stride` floats.
    #[inline(always)]
    pub fn run<S: Simd, const AXES: usize, const N: usize>(
        self,
        simd: S,
        to: &mut [f32],
        stride: usize,
        f: impl Fn([S::f32s; N]) -> [S::f32s; 4] + Copy,
    ) {
        let zero = simd.splat_f32s(0.0);
        let (from, places) = (N.pow(AXES as u32), 4usize.pow(AXES as u32));
        let (width, count) = (self.columns.len(), self.tiles.len());
        assert!(width.next_multiple_of(S::F32_LANES) <= stride);
        assert!(to.len() >= places * count * stride);
        for (t, tile) in self.tiles.enumerate() {
            let (at, base) = self.gather.place(tile);
            let mut rows: [&[f32]; PLACES] = [&[]; PLACES];
            for i in 0..from {
                let row = self.gather.table[at + i];
                if row != Gather::EDGE {
                    let row = (base + row as usize) * self.channels;
                    rows[i] = &self.data[row..][self.columns.clone()];
                }
            }
            for column in (0..width).step_by(S::F32_LANES) {
                let mut x = [zero; PLACES];
                for i in 0..from {
                    let row = rows[i];
                    if column + S::F32_LANES <= row.len() {
                        // SAFETY: the vector is within the row.
                        x[i] =
                            unsafe { row.as_ptr().add(column).cast::<S::f32s>().read_unaligned() };
                    } else if column < row.len() {
                        x[i] = simd.partial_load_f32s(&row[column..]);
                    }
                }
                let y = along_each::<_, AXES, N, 4>(&x, zero, f);
                for place in 0..places {
                    let line = (place * count + t) * stride + column;
                    // SAFETY: the lengths are asserted above.
                    unsafe {
                        let line = to.as_mut_ptr().add(line).cast::<S::f32s>();
                        line.write_unaligned(y[place]);
                    }
                }
            }
        }
    }
}

/// Transforms four inputs along an axis.
#[inline(always)]
pub(super) fn of_inputs<S: Simd>(simd: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 4] {
    [
        simd.sub_f32s(a, c),
        simd.add_f32s(b, c),
        simd.sub_f32s(c, b),
        simd.sub_f32s(b, d),
    ]
}
