//! Products of one or two rows.

use super::{Rows, SERIAL, Values, Weights, add_parts};
use crate::kernels::simd::{self, Shared, uninit};
use crate::vectorised;

/// Maximum length of a line of weights that is multiplied at once. The sums and four lines of this length
/// fit into the first-level cache.
const MAX_LINE: usize = 4096;

/// Computes [`product`](super::product) for one or two rows. Reading the weights takes most of the time, so
/// each thread reads its part of them once and in order.
pub(crate) fn vector_product(
    rows: Rows<'_>,
    weights: Weights<'_>,
    bias: Option<&[f32]>,
    m: usize,
) -> Vec<f32> {
    let (n, channels) = (weights.outputs, rows.channels);
    // Whole lines of weights if possible.
    let width = n.min(MAX_LINE);
    let blocks = n.div_ceil(width);
    let depth = channels
        .div_ceil(simd::tasks(blocks))
        .next_multiple_of(4)
        .max(64);
    let parts = channels.div_ceil(depth);
    let mut sums = uninit(parts * m * n, |out| {
        let out = Shared(out);
        let task = |i: usize| {
            let (part, first) = (i / blocks, i % blocks * width);
            let columns = first..(first + width).min(n);
            let block = part * depth..(part * depth + depth).min(channels);
            vectorised(
                #[inline(always)]
                || {
                    let mut converted = vec![0.0; 4 * columns.len()];
                    for row in 0..m {
                        let start = (part * m + row) * n + columns.start;
                        // SAFETY: no other task has these columns of this part.
                        let out = unsafe { out.slice(start, columns.len()) };
                        match bias {
                            Some(bias) if part == 0 => out.copy_from_slice(&bias[columns.clone()]),
                            _ => out.fill(0.0),
                        }
                        let x = &rows.data[row * channels..(row + 1) * channels][block.clone()];
                        for (c, x) in x.chunks(4).enumerate() {
                            let first = (block.start + 4 * c) * weights.channel + columns.start;
                            let line = |i: usize| first + i * weights.channel;
                            match (weights.data, x) {
                                (Values::F32(values), &[a, b, c, d]) => {
                                    let line = |i| &values[line(i)..][..columns.len()];
                                    add_lines(out, [a, b, c, d], [0, 1, 2, 3].map(line));
                                }
                                (values, x) => {
                                    let mut factors = [0.0; 4];
                                    factors[..x.len()].copy_from_slice(x);
                                    let lines = converted.chunks_exact_mut(columns.len());
                                    for (i, to) in lines.take(x.len()).enumerate() {
                                        values.copy(line(i), to);
                                    }
                                    let line = |i| &converted[i * columns.len()..][..columns.len()];
                                    add_lines(out, factors, [0, 1, 2, 3].map(line));
                                }
                            }
                        }
                    }
                },
            );
        };
        simd::each(parts * blocks, m * n * channels < SERIAL, task);
    });
    add_parts(&mut sums, m * n);
    sums
}

/// Adds four lines, each times its factor, to `out`.
#[inline(always)]
fn add_lines(out: &mut [f32], factors: [f32; 4], [a, b, c, d]: [&[f32]; 4]) {
    for ((((out, a), b), c), d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        *out += (factors[0] * a + factors[1] * b) + (factors[2] * c + factors[3] * d);
    }
}
