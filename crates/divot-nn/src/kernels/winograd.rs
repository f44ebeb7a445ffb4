//! Convolutions of three taps along each axis by minimal filtering, F(2, 3) (Winograd 1980; Lavin
//! and Gray 2015): two neighbouring results out of four inputs and four multiplications instead of
//! six, along two axes 2x2 results out of 4x4 inputs and 16 multiplications instead of 36.
//!
//! Inputs, weights and results are transformed along each axis, and between them there is one
//! matrix product for each of the 4 or 16 places of a tile. Larger tiles would need fewer
//! multiplications and lose digits; these lose none to speak of. An infinity makes NaN of whatever
//! else is made of its tile.

#![allow(clippy::needless_range_loop)]

use std::cell::Cell;
use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::product::{
    DEPTH, GROUP, Gather, LINE, MAX_PARTIAL, ROWS, SERIAL, Start, Target, TileWidth, Weights,
    ZEROS, add_parts, block, lines, vectors,
};
use super::simd::{self, Shared, uninit};
use crate::vectorised::arch;

/// Tiles that go by the weights together; each thread keeps them transformed, 16 floats for each
/// channel.
const TILES: usize = 12 * ROWS;
/// Tiles whose gradients are summed at once.
const GRADIENT_TILES: usize = 128;
/// Outputs for which another task transforms the input again.
const FEWEST_OUTPUTS: usize = 64;
/// Places of a tile along two axes.
const PLACES: usize = 16;

thread_local! {
    /// What a thread's tiles were transformed into last, and their products or gradients.
    static TRANSFORMED: Cell<[Vec<f32>; 2]> = const { Cell::new([Vec::new(), Vec::new()]) };
}

/// Which rows of the input a tile reads and which rows of the result it makes.
#[derive(Debug)]
pub(super) struct Tiles {
    /// 4 or 4x4 rows.
    pub from: Gather,
    /// 2 or 2x2 rows, of all tiles together each row of the result once.
    pub to: Gather,
}

/// The left operand: images, or clips, of rows of `channels` floats.
#[derive(Clone, Copy)]
pub(super) struct Images<'a> {
    pub data: &'a [f32],
    pub channels: usize,
    pub tiles: &'a Tiles,
}

impl Images<'_> {
    fn images(&self) -> usize {
        let size = self.tiles.from.source * self.channels;
        let images = self.data.len() / size;
        assert!(self.data.len() == images * size);
        images
    }

    /// Tiles of all images.
    fn count(&self) -> usize {
        let Tiles { from, to } = self.tiles;
        assert!(matches!((from.taps, to.taps), (4, 2) | (16, 4)) && from.period == to.period);
        self.images() * from.period
    }
}

/// Σ over taps and channels of images · weights, plus the bias. `reversed`: the last tap of the
/// weights comes first. None of the sizes may be 0.
pub(super) fn product(
    images: Images<'_>,
    weights: Weights<'_>,
    reversed: bool,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let arch = arch();
    let (n, channels, count) = (weights.outputs, images.channels, images.count());
    assert!(n * channels * count > 0);
    assert!(bias.is_none_or(|bias| bias.len() == n));
    let Tiles { from, to } = images.tiles;
    let serial = from.taps * count * channels * n < SERIAL;
    let width = arch.dispatch(TileWidth);
    let panels = n.div_ceil(width);
    let weights = &transformed(arch, weights, reversed, channels, from.taps);
    let weights = &weights[weights.as_ptr().align_offset(LINE * size_of::<f32>())..];
    uninit(images.images() * to.source * n, |out| {
        let out = Shared(out);
        let blocks = count.div_ceil(TILES);
        let size = count.div_ceil(blocks).next_multiple_of(ROWS);
        let blocks = count.div_ceil(size);
        let groups = match serial {
            true => 1,
            false => simd::tasks(blocks)
                .min((n / FEWEST_OUTPUTS).max(1))
                .min(panels),
        };
        let border = |group: usize| (group * panels / groups * width).min(n);
        simd::each(groups * blocks, serial, |i| {
            let (first, group) = (i / groups * size, i % groups);
            arch.dispatch(Forward {
                images,
                range: first..(first + size).min(count),
                weights,
                columns: border(group)..border(group + 1),
                outputs: n,
                bias,
                out,
            });
        });
    })
}

/// The transformed weights in panels as wide as a tile of the product: panel after panel, place
/// after place, channel after channel, from the beginning of a cache line on.
fn transformed(
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
        // SAFETY: what is before and after them.
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

/// Applies `f` along the middle axis of `[before, N, after]`.
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

/// Applies `f` along each of one or two axes.
#[inline(always)]
fn along_each<V: Copy, const AXES: usize, const N: usize, const M: usize>(
    x: &[V; PLACES],
    zero: V,
    f: impl Fn([V; N]) -> [V; M] + Copy,
) -> [V; PLACES] {
    match AXES {
        1 => along(x, [1, 1], zero, f),
        _ => along(&along(x, [N, 1], zero, f), [1, M], zero, f),
    }
}

/// Transforms the weights of some channels to a panel's columns.
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
        // What is beyond the last output may hold anything.
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
                        // SAFETY: a line is as many vectors.
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
                        // SAFETY: the line is in the panel, and this task's.
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

/// A part of [`product`]: some tiles by a few panels.
struct Forward<'a> {
    images: Images<'a>,
    range: Range<usize>,
    weights: &'a [f32],
    columns: Range<usize>,
    outputs: usize,
    bias: Option<&'a [f32]>,
    out: Shared,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.images.tiles.from.taps {
            4 => self.run::<S, 1>(simd),
            _ => self.run::<S, 2>(simd),
        }
    }
}

impl Forward<'_> {
    #[inline(always)]
    fn run<S: Simd, const AXES: usize>(self, simd: S) {
        let places = 4usize.pow(AXES as u32);
        let widest = vectors::<S>() * S::F32_LANES;
        let (channels, count) = (self.images.channels, self.range.len());
        let stride = channels.next_multiple_of(LINE);
        let mut scratch = TRANSFORMED.take();
        let [inputs, products] = &mut scratch;
        let inputs = lines(inputs, places * count * stride);
        let products = lines(products, places * count * widest);
        let read = Read {
            data: self.images.data,
            channels,
            columns: 0..channels,
            gather: &self.images.tiles.from,
            tiles: self.range.clone(),
        };
        read.run::<S, AXES, 4>(
            simd,
            inputs,
            stride,
            #[inline(always)]
            |x| of_inputs(simd, x),
        );
        let blocks = channels.div_ceil(DEPTH);
        let depth = channels.div_ceil(blocks);
        for column in self.columns.clone().step_by(widest) {
            let columns = (self.outputs - column).min(widest);
            let width = columns.next_multiple_of(LINE.min(widest));
            let panel = &self.weights[column * places * channels..][..width * places * channels];
            for place in 0..places {
                for first in (0..channels).step_by(depth) {
                    let depth = depth.min(channels - first);
                    let panel = &panel[(place * channels + first) * width..][..depth * width];
                    for row in (0..count).step_by(ROWS) {
                        let mut left = [ZEROS.as_ptr(); ROWS];
                        for r in 0..ROWS {
                            let row = place * count + (row + r).min(count - 1);
                            left[r] = inputs[row * stride + first..][..depth].as_ptr();
                        }
                        let target = Target {
                            first: products[(place * count + row) * width..].as_mut_ptr(),
                            stride: width,
                            rows: ROWS.min(count - row),
                            columns: width,
                        };
                        let start = match first {
                            0 => Start::Line(ZEROS.as_ptr()),
                            _ => Start::There,
                        };
                        // SAFETY: the slices above are `depth` long, the panel as many lines; the
                        // products, as many as `lines` gave, are this thread's.
                        unsafe { block(simd, &[left], 1, panel.as_ptr(), depth, &target, start) };
                    }
                }
            }
            self.write::<S, AXES>(simd, products, column, columns, width);
        }
        TRANSFORMED.set(scratch);
    }

    /// The results of the tiles from a panel's `products`, `[places, tiles, width]`.
    #[inline(always)]
    fn write<S: Simd, const AXES: usize>(
        &self,
        simd: S,
        products: &[f32],
        column: usize,
        columns: usize,
        width: usize,
    ) {
        let zero = simd.splat_f32s(0.0);
        let (places, made) = (4usize.pow(AXES as u32), 2usize.pow(AXES as u32));
        let (to, count) = (&self.images.tiles.to, self.range.len());
        assert!(products.len() >= places * count * width);
        for (t, tile) in self.range.clone().enumerate() {
            let (at, base) = to.place(tile);
            for lane in (0..columns).step_by(S::F32_LANES) {
                let filled = S::F32_LANES.min(columns - lane);
                let mut m = [zero; PLACES];
                for place in 0..places {
                    let line = (place * count + t) * width + lane;
                    // SAFETY: the length was looked at above.
                    m[place] = unsafe {
                        products
                            .as_ptr()
                            .add(line)
                            .cast::<S::f32s>()
                            .read_unaligned()
                    };
                }
                let y = along_each::<_, AXES, 4, 2>(
                    &m,
                    zero,
                    #[inline(always)]
                    |[a, b, c, d]| {
                        [
                            simd.add_f32s(a, simd.add_f32s(b, c)),
                            simd.sub_f32s(simd.sub_f32s(b, c), d),
                        ]
                    },
                );
                let bias = match self.bias {
                    Some(bias) => simd.partial_load_f32s(&bias[column + lane..][..filled]),
                    None => zero,
                };
                for i in 0..made {
                    let row = to.table[at + i];
                    if row != Gather::EDGE {
                        let first = (base + row as usize) * self.outputs + column + lane;
                        // SAFETY: the part is within the result, and this task's.
                        let to = unsafe { self.out.slice(first, filled) };
                        simd.partial_store_f32s(to, simd.add_f32s(y[i], bias));
                    }
                }
            }
        }
    }
}

/// Some channels of some rows of tiles, to be transformed.
struct Read<'a> {
    data: &'a [f32],
    channels: usize,
    columns: Range<usize>,
    gather: &'a Gather,
    tiles: Range<usize>,
}

impl Read<'_> {
    /// Writes `[places, tiles, columns]`, lines of `stride` floats, with `f` along each axis.
    #[inline(always)]
    fn run<S: Simd, const AXES: usize, const N: usize>(
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
                        // SAFETY: the vector is in the row.
                        x[i] =
                            unsafe { row.as_ptr().add(column).cast::<S::f32s>().read_unaligned() };
                    } else if column < row.len() {
                        x[i] = simd.partial_load_f32s(&row[column..]);
                    }
                }
                let y = along_each::<_, AXES, N, 4>(&x, zero, f);
                for place in 0..places {
                    let line = (place * count + t) * stride + column;
                    // SAFETY: the lengths were looked at above.
                    unsafe {
                        let line = to.as_mut_ptr().add(line).cast::<S::f32s>();
                        line.write_unaligned(y[place]);
                    }
                }
            }
        }
    }
}

/// Transforms four inputs.
#[inline(always)]
fn of_inputs<S: Simd>(simd: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 4] {
    [
        simd.sub_f32s(a, c),
        simd.add_f32s(b, c),
        simd.sub_f32s(c, b),
        simd.sub_f32s(b, d),
    ]
}

/// The gradient of the weights of [`product`], `[outputs, channels, taps]`; `grad` is that of its
/// result. None of the sizes may be 0.
pub(super) fn weight_gradient(images: Images<'_>, grad: &[f32], outputs: usize) -> Vec<f32> {
    let arch = arch();
    let (channels, count) = (images.channels, images.count());
    let Tiles { from, to } = images.tiles;
    assert!(outputs * channels * count > 0);
    assert!(grad.len() == images.images() * to.source * outputs);
    let places = from.taps;
    let size = places * outputs * channels;
    // Where there is little to share out but tiles, tasks take some of these, and sums of their own.
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
        // Each transforms the input again: few, as long as every thread has one.
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

/// The gradient of the weights from that of the transformed ones, `[places, outputs, channels]`.
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

/// The gradient of three weights from that of four places.
#[inline(always)]
fn of_gradients([a, b, c, d]: [f32; 4]) -> [f32; 3] {
    let even = 0.5 * (b + c);
    [a + even, 0.5 * (b - c), d + even]
}

/// A part of [`weight_gradient`]: some outputs by some channels, summed over some tiles.
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
        // An odd number of cache lines: an even one would have columns share few of their places.
        let stride = (self.made.len().div_ceil(LINE) | 1) * LINE;
        let mut scratch = TRANSFORMED.take();
        let [inputs, grads] = &mut scratch;
        // As wide as `block` takes it to be.
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
                        // SAFETY: `left` begins in the first of `count` lines, of which the panel
                        // has as many; the rectangle is this task's, and was written for the first
                        // tiles.
                        unsafe { block(simd, &[left], stride, panel, count, &target, start) };
                    }
                }
            }
        }
        TRANSFORMED.set(scratch);
    }
}
