//! The inputs of an attention, and the attention weights of some queries.

use std::ops::Range;

use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::DType;
use half::f16;
use pulp::Simd;

use super::softmax::{softmax, softmax_of_columns};
use crate::kernels::product::{Packed, Strided, Words};

/// An attention with fewer multiplications than this runs on one thread.
const SERIAL: usize = 1 << 19;

/// A tensor `[batch, heads, tokens, width]` with contiguous rows.
pub(super) struct View<'a, E = f32> {
    data: &'a [E],
    pub size: [usize; 4],
    pub stride: [usize; 3],
}

impl<'a> View<'a> {
    pub fn new(x: &'a FlexTensor) -> Self {
        Self::of(x.storage(), x.layout())
    }
}

impl<'a, E> View<'a, E> {
    fn of(data: &'a [E], layout: &Layout) -> Self {
        let (shape, strides) = (layout.shape(), layout.strides());
        Self {
            data: &data[layout.start_offset()..],
            size: [shape[0], shape[1], shape[2], shape[3]],
            stride: [0, 1, 2].map(|i| strides[i] as usize),
        }
    }

    /// Returns the tokens of one head, from `first` on.
    #[inline(always)]
    pub fn tokens(&self, batch: usize, head: usize, first: usize) -> &'a [E] {
        let [b, h, t] = self.stride;
        &self.data[batch * b + head * h + first * t..]
    }
}

/// Keys or values, `[shared, kv_heads, keys, width]`.
pub(super) enum Lines<'a> {
    F32(View<'a>),
    F16(View<'a, f16>),
}

impl<'a> Lines<'a> {
    fn new(x: &'a FlexTensor) -> Self {
        match x.dtype() {
            DType::F16 => Self::F16(View::of(x.storage(), x.layout())),
            _ => Self::F32(View::new(x)),
        }
    }

    pub fn size(&self) -> [usize; 4] {
        match self {
            Self::F32(view) => view.size,
            Self::F16(view) => view.size,
        }
    }

    /// Returns all tokens of one head, one a line, as the left operand of a product. Those in f16 are widened
    /// into `buffer`.
    #[inline(always)]
    pub fn head<'b>(&'b self, [batch, head]: [usize; 2], buffer: &'b mut Vec<f32>) -> Strided<'b> {
        let [_, _, tokens, width] = self.size();
        let (data, step) = match self {
            Self::F32(view) => (view.tokens(batch, head, 0), view.stride[2]),
            Self::F16(view) => {
                let (data, step) = (view.tokens(batch, head, 0), view.stride[2]);
                buffer.resize(tokens * width, 0.0);
                for (i, wide) in buffer.chunks_exact_mut(width).enumerate() {
                    for (wide, half) in wide.iter_mut().zip(&data[i * step..][..width]) {
                        *wide = widen(*half);
                    }
                }
                (buffer.as_slice(), width)
            }
        };
        Strided {
            data,
            step,
            stride: 1,
            depth: width,
        }
    }
}

/// Converts an f16 to f32, in steps that the compiler vectorises.
#[inline(always)]
fn widen(half: f16) -> f32 {
    /// 2¹¹², the ratio of the smallest normal numbers of both.
    const SCALE: f32 = f32::from_bits(0x7780_0000);
    let bits = u32::from(half.to_bits());
    let magnitude = (bits & 0x7fff) << 13;
    let finite = (f32::from_bits(magnitude) * SCALE).to_bits();
    let widened = match magnitude < 0x7c00 << 13 {
        true => finite,
        // Infinity or NaN.
        false => magnitude | 0x7f80_0000,
    };
    f32::from_bits(widened | (bits & 0x8000) << 16)
}

/// The inputs of an attention.
pub(super) struct Problem<'a> {
    pub q: View<'a>,
    pub k: Lines<'a>,
    pub v: Lines<'a>,
    mask: Option<View<'a>>,
    causal: bool,
}

/// Buffers that a task reuses for each head.
#[derive(Default)]
pub(super) struct Scratch {
    queries: Packed,
    /// Queries in words.
    words: Vec<f32>,
    /// The scores of some queries, then their softmax, `[keys, queries]`.
    pub scores: Vec<f32>,
    /// The mask of some queries, `[keys, queries]`.
    mask: Vec<f32>,
    /// The batch and the queries that `mask` belongs to.
    masked: Option<(usize, Range<usize>)>,
}

impl<'a> Problem<'a> {
    pub fn new(inputs: &'a [FlexTensor], causal: bool) -> Self {
        let q = View::new(&inputs[0]);
        let [k, v] = [1, 2].map(|i| Lines::new(&inputs[i]));
        let mask = inputs.get(3).map(View::new);
        let [batch, heads, queries, width] = q.size;
        let [shared, kv_heads, keys, key_width] = k.size();
        assert!(
            v.size() == k.size() && key_width == width,
            "keys and values {:?} and {:?} of queries {:?}",
            k.size(),
            v.size(),
            q.size
        );
        // Zero divides only zero.
        let divides = |of: usize, all: usize| of == all || all.checked_rem(of) == Some(0);
        assert!(
            divides(shared, batch) && divides(kv_heads, heads),
            "{shared}x{kv_heads} heads of keys for {batch}x{heads} of queries"
        );
        if let Some(mask) = &mask {
            let [masks, one, rows, columns] = mask.size;
            assert!(
                (masks == 1 || masks == batch) && [one, rows, columns] == [1, queries, keys],
                "a mask {:?} of {batch}x{queries}x{keys} scores",
                mask.size
            );
        }
        Self {
            q,
            k,
            v,
            mask,
            causal,
        }
    }

    /// Returns whether there are no queries or no keys.
    pub fn is_empty(&self) -> bool {
        self.q.size.contains(&0) || self.keys() == 0
    }

    /// Returns how many batches and how many heads share the same keys and values.
    #[inline(always)]
    pub fn sharing(&self) -> [usize; 2] {
        [0, 1].map(|i| self.q.size[i] / self.k.size()[i])
    }

    /// Returns batch and head of queries number `i`, and batch and head of their keys and values. Numbers
    /// run through `[shared, kv_heads, batches, heads]`, where the last two are those of
    /// [`sharing`](Self::sharing). Neighbours share keys and values.
    #[inline(always)]
    pub fn place(&self, i: usize) -> [[usize; 2]; 2] {
        let [batches, group] = self.sharing();
        let (shared, member) = (i / (batches * group), i % (batches * group));
        let kv_heads = self.k.size()[1];
        let [kv_batch, kv_head] = [shared / kv_heads, shared % kv_heads];
        let batch = kv_batch * batches + member / group;
        let head = kv_head * group + member % group;
        [[batch, head], [kv_batch, kv_head]]
    }

    #[inline(always)]
    pub fn keys(&self) -> usize {
        self.k.size()[2]
    }

    #[inline(always)]
    fn width(&self) -> usize {
        self.q.size[3]
    }

    /// Returns whether the whole attention runs on one thread.
    pub fn serial(&self) -> bool {
        self.q.size.iter().product::<usize>() * self.keys() < SERIAL
    }

    /// Returns the number of keys that the last query of a range sees.
    #[inline(always)]
    pub fn seen(&self, queries: &Range<usize>) -> usize {
        match self.causal {
            true => queries.end.min(self.keys()),
            false => self.keys(),
        }
    }

    /// Writes the attention weights of some queries to their keys, which are words, into `scratch.scores`,
    /// `[keys seen, queries]`, as floats.
    #[inline(always)]
    pub fn weights<S: Simd, W: Words>(
        &self,
        simd: S,
        [batch, head]: [usize; 2],
        keys: Strided<'_>,
        queries: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let (first, count, seen) = (queries.start, queries.len(), self.seen(&queries));
        let width = self.width();
        let rows = Strided {
            data: self.q.tokens(batch, head, first),
            step: self.q.stride[2],
            stride: 1,
            depth: width,
        };
        let rows = rows.rows_in_words::<W>(count, &mut scratch.words);
        let size = [rows.depth, count];
        scratch.queries.fill::<S>(rows.data, size, [1, rows.step]);
        let scores = &mut scratch.scores[..seen * count];
        // SAFETY: `scores` has a line of `count` floats for each key. This runs with the instructions for the words.
        unsafe {
            let to = (scores.as_mut_ptr(), count);
            scratch
                .queries
                .multiply::<S, W>(simd, keys, seen, to, false);
        }
        let mut scale = 1.0 / (width as f32).sqrt();
        if let Some(mask) = &self.mask {
            let batch = batch.min(mask.size[0] - 1);
            let of = Some((batch, queries.clone()));
            if scratch.masked != of {
                scratch.mask.resize(seen * count, 0.0);
                for query in queries {
                    let line = mask.tokens(batch, 0, query);
                    let column = scratch.mask[query - first..].iter_mut().step_by(count);
                    for (to, mask) in column.zip(line) {
                        *to = *mask;
                    }
                }
                scratch.masked = of;
            }
            for (x, mask) in scores.iter_mut().zip(&scratch.mask) {
                *x = *x * scale + mask;
            }
            scale = 1.0;
        }
        if self.causal {
            for (key, line) in scores.chunks_mut(count).enumerate().skip(first + 1) {
                line[..key - first].fill(f32::NEG_INFINITY);
            }
        }
        softmax_of_columns(scores, count, scale);
    }

    /// Scales and masks the scores of one query, and converts them to attention weights in place.
    #[inline(always)]
    fn softmax(&self, batch: usize, query: usize, scale: f32, row: &mut [f32]) {
        let keys = row.len();
        let (seen, hidden) = row.split_at_mut(if self.causal {
            (query + 1).min(keys)
        } else {
            keys
        });
        match &self.mask {
            None => {
                for x in &mut *seen {
                    *x *= scale;
                }
            }
            Some(mask) => {
                let batch = batch.min(mask.size[0] - 1);
                let mask = mask.tokens(batch, 0, query);
                for (x, mask) in seen.iter_mut().zip(mask) {
                    *x = *x * scale + mask;
                }
            }
        }
        softmax(seen);
        hidden.fill(0.0);
    }

    /// Computes the result of one query without packing its keys or values. `scores` is a buffer with one
    /// float for each key.
    #[inline(always)]
    pub fn single<S: Simd>(
        &self,
        simd: S,
        [batch, head]: [usize; 2],
        [keys, values]: [Strided<'_>; 2],
        query: usize,
        scores: &mut [f32],
        out: &mut [f32],
    ) {
        let width = out.len();
        let (keys, key) = (keys.data, keys.step);
        let (values, value) = (values.data, values.step);
        let q = &self.q.tokens(batch, head, query)[..width];
        let (q, q_rest) = S::as_simd_f32s(q);
        for (i, score) in scores.iter_mut().enumerate() {
            let (k, k_rest) = S::as_simd_f32s(&keys[i * key..][..width]);
            let mut sum = simd.splat_f32s(0.0);
            for (q, k) in q.iter().zip(k) {
                sum = simd.mul_add_e_f32s(*q, *k, sum);
            }
            *score = simd.reduce_sum_f32s(sum);
            for (q, k) in q_rest.iter().zip(k_rest) {
                *score += q * k;
            }
        }
        self.softmax(batch, query, 1.0 / (width as f32).sqrt(), scores);
        let (vectors, rest) = S::as_mut_simd_f32s(out);
        let done = vectors.len() * S::F32_LANES;
        let (fours, others) = vectors.as_chunks_mut::<4>();
        for (n, sums) in fours.iter_mut().enumerate() {
            let from = |i: usize| &values[i * value + 4 * n * S::F32_LANES..];
            weighted_sum::<S, 4>(simd, scores, from, sums);
        }
        for (n, sum) in (4 * fours.len()..).zip(others) {
            let from = |i: usize| &values[i * value + n * S::F32_LANES..];
            weighted_sum::<S, 1>(simd, scores, from, std::array::from_mut(sum));
        }
        for (column, out) in (done..).zip(rest) {
            let weighted = scores.iter().enumerate();
            *out = weighted
                .map(|(i, weight)| weight * values[i * value + column])
                .sum();
        }
    }
}

/// Writes `Σᵢ weights[i] · line(i)` to `sums`, where a line has at least as many values as `sums`.
#[inline(always)]
fn weighted_sum<'a, S: Simd, const V: usize>(
    simd: S,
    weights: &[f32],
    line: impl Fn(usize) -> &'a [f32],
    sums: &mut [S::f32s; V],
) {
    let mut totals = [simd.splat_f32s(0.0); V];
    for (i, weight) in weights.iter().enumerate() {
        let weight = simd.splat_f32s(*weight);
        let (line, _) = S::as_simd_f32s(&line(i)[..V * S::F32_LANES]);
        for v in 0..V {
            totals[v] = simd.mul_add_e_f32s(weight, line[v], totals[v]);
        }
    }
    *sums = totals;
}

#[cfg(test)]
mod tests {
    use super::widen;
    use half::f16;

    #[test]
    fn every_f16_is_widened() {
        for half in (0..=u16::MAX).map(f16::from_bits) {
            let (found, expected) = (widen(half), half.to_f32());
            assert!(found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()));
        }
    }
}
