//! The forward convolution.

use std::marker::PhantomData;
use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::transform::{Read, along_each, of_inputs, transformed};
use super::{FEWEST_OUTPUTS, Images, PLACES, TILES, TRANSFORMED, Tiles};
use crate::kernels::product::{
    DEPTH, Floats, Gather, LINE, ROWS, SERIAL, Start, Target, TileWidth, Weights, Words, ZEROS,
    block, lines, vectors,
};
#[cfg(target_arch = "x86_64")]
use crate::kernels::product::{Pairs, pairs};
use crate::kernels::simd::{self, Shared, uninit};
use crate::vectorised::arch;

/// Computes the product of images and weights, summed over taps and channels, plus the bias: one row of
/// `weights.outputs` floats for each row of the result. With `reversed`, the taps of the weights are in
/// reverse order. No size may be 0.
pub(crate) fn product(
    images: Images<'_>,
    weights: Weights<'_>,
    reversed: bool,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    #[cfg(target_arch = "x86_64")]
    if pairs::apply(weights.data) {
        return in_words::<Pairs>(images, weights, reversed, bias);
    }
    in_words::<Floats>(images, weights, reversed, bias)
}

/// Computes [`product`] with these words.
fn in_words<W: Words>(
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
    let mut weights = transformed(arch, weights, reversed, channels, from.taps);
    let start = weights.as_ptr().align_offset(LINE * size_of::<f32>());
    let weights = &mut weights[start..];
    let padded = n.next_multiple_of(LINE.min(width));
    W::join_panels(weights, from.taps, channels, padded, width);
    let weights = &*weights;
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
            W::run(Forward::<W> {
                images,
                range: first..(first + size).min(count),
                weights,
                columns: border(group)..border(group + 1),
                outputs: n,
                bias,
                out,
                words: PhantomData,
            });
        });
    })
}

/// A task of [`product`]: a range of tiles by a few panels.
struct Forward<'a, W> {
    images: Images<'a>,
    range: Range<usize>,
    weights: &'a [f32],
    columns: Range<usize>,
    outputs: usize,
    bias: Option<&'a [f32]>,
    out: Shared,
    words: PhantomData<W>,
}

impl<W: Words> WithSimd for Forward<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.images.tiles.from.taps {
            4 => self.run::<S, 1>(simd),
            _ => self.run::<S, 2>(simd),
        }
    }
}

impl<W: Words> Forward<'_, W> {
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
        // From here on, the depth is in words.
        let all = channels;
        let channels = all.div_ceil(W::CHANNELS);
        W::join_rows(&mut inputs[..places * count * stride], all, stride);
        let blocks = channels.div_ceil(DEPTH);
        let depth = channels.div_ceil(blocks);
        for column in self.columns.clone().step_by(widest) {
            let columns = (self.outputs - column).min(widest);
            let width = columns.next_multiple_of(LINE.min(widest));
            let panel = &self.weights[column * places * all..][..width * places * channels];
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
                        // SAFETY: the slices above have `depth` floats, and the panel as many lines.
                        // The products are this thread's, and are within what `lines` returned.
                        unsafe {
                            block::<S, W>(simd, &[left], 1, panel.as_ptr(), depth, &target, start)
                        };
                    }
                }
            }
            self.write::<S, AXES>(simd, products, column, columns, width);
        }
        TRANSFORMED.set(scratch);
    }

    /// Transforms a panel's `products`, `[places, tiles, width]`, and writes the results.
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
                    // SAFETY: the length is asserted above.
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
                        // SAFETY: the slice is within the result, and no other task has it.
                        let to = unsafe { self.out.slice(first, filled) };
                        simd.partial_store_f32s(to, simd.add_f32s(y[i], bias));
                    }
                }
            }
        }
    }
}
