use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use pulp::{Arch, Simd, WithSimd};

use super::product::{Packed, Strided, add_lines};
use super::simd::{self, LANES, Shared, exp, row_sum, uninit};
use super::{Kernel, tensor};

/// Queries whose scores are held at a time.
const QUERIES: usize = 24;
/// Queries with the same keys and values up to which these are read as they lie: packing them would
/// take longer.
const FEW: usize = 8;
/// Multiplications below which threads do not pay.
const SERIAL: usize = 1 << 19;

/// softmax(q·kᵀ / √width + mask)·v. Inputs: queries `[batch, heads, queries, width]`; keys and
/// values `[shared, kv_heads, keys, width]`, where consecutive batches and heads share those whose
/// number divides theirs; if there is one, a mask `[batch, 1, queries, keys]`. The result is
/// `[batch, heads, queries, width]` and lies as `[batch, queries, heads, width]`.
#[derive(Debug)]
pub(crate) struct Attention {
    /// Query i sees keys 0 to i only.
    pub causal: bool,
}

/// `[batch, heads, tokens, width]` with contiguous rows.
struct View<'a> {
    data: &'a [f32],
    size: [usize; 4],
    stride: [usize; 3],
}

/// The tensor itself, or a copy whose rows are contiguous.
fn with_rows(x: &FlexTensor) -> FlexTensor {
    let strides = x.layout().strides();
    let fits = strides[3] == 1 && strides.iter().all(|stride| *stride >= 0);
    if fits { x.clone() } else { x.to_contiguous() }
}

impl<'a> View<'a> {
    fn new(x: &'a FlexTensor) -> Self {
        let layout = x.layout();
        let (shape, strides) = (layout.shape(), layout.strides());
        Self {
            data: &x.storage()[layout.start_offset()..],
            size: [shape[0], shape[1], shape[2], shape[3]],
            stride: [0, 1, 2].map(|i| strides[i] as usize),
        }
    }

    /// The tokens of one head, from `first` on.
    #[inline(always)]
    fn tokens(&self, batch: usize, head: usize, first: usize) -> &'a [f32] {
        let [b, h, t] = self.stride;
        &self.data[batch * b + head * h + first * t..]
    }

    /// These tokens as a left operand.
    #[inline(always)]
    fn left(&self, batch: usize, head: usize, first: usize) -> Strided<'a> {
        Strided {
            data: self.tokens(batch, head, first),
            step: self.stride[2],
            stride: 1,
        }
    }
}

/// Queries, keys, values and mask, and which share which.
struct Problem<'a> {
    q: View<'a>,
    k: View<'a>,
    v: View<'a>,
    mask: Option<View<'a>>,
    causal: bool,
}

/// What a task keeps from one head to the next.
#[derive(Default)]
struct Scratch {
    keys: Packed,
    scores: Vec<f32>,
}

impl<'a> Problem<'a> {
    fn new(inputs: &'a [FlexTensor], causal: bool) -> Self {
        Self {
            q: View::new(&inputs[0]),
            k: View::new(&inputs[1]),
            v: View::new(&inputs[2]),
            mask: inputs.get(3).map(View::new),
            causal,
        }
    }

    /// Batches and heads that share keys and values.
    fn sharing(&self) -> [usize; 2] {
        [0, 1].map(|i| self.q.size[i] / self.k.size[i])
    }

    fn keys(&self) -> usize {
        self.k.size[2]
    }

    fn width(&self) -> usize {
        self.q.size[3]
    }

    fn serial(&self) -> bool {
        self.q.size.iter().product::<usize>() * self.keys() < SERIAL
    }

    /// The softmax of some queries' scores, `[queries, keys]`, into `scratch.scores`.
    #[inline(always)]
    fn weights<S: Simd>(
        &self,
        simd: S,
        batch: usize,
        head: usize,
        queries: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let keys = self.keys();
        let scores = &mut scratch.scores[..queries.len() * keys];
        let left = self.q.left(batch, head, queries.start);
        scratch
            .keys
            .multiply(simd, left, queries.len(), (scores, keys), false);
        let scale = 1.0 / (self.width() as f32).sqrt();
        for (query, row) in queries.zip(scores.chunks_mut(keys)) {
            self.softmax(batch, query, scale, row);
        }
    }

    /// The softmax of a query's scores, which are scaled and masked first.
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

    /// One query's result, from keys and values as they lie; `scores` has room for one of each key.
    #[inline(always)]
    fn single(
        &self,
        [batch, head, query]: [usize; 3],
        [kv_batch, kv_head]: [usize; 2],
        scores: &mut [f32],
        out: &mut [f32],
    ) {
        let width = out.len();
        let (keys, key) = (self.k.tokens(kv_batch, kv_head, 0), self.k.stride[2]);
        let (values, value) = (self.v.tokens(kv_batch, kv_head, 0), self.v.stride[2]);
        let q = &self.q.tokens(batch, head, query)[..width];
        for (i, score) in scores.iter_mut().enumerate() {
            *score = row_sum(
                q,
                &keys[i * key..][..width],
                #[inline(always)]
                |q, k| q * k,
            );
        }
        self.softmax(batch, query, 1.0 / (width as f32).sqrt(), scores);
        out.fill(0.0);
        let line = |i: usize| &values[i * value..][..width];
        let (fours, rest) = scores.as_chunks::<4>();
        for (i, weights) in fours.iter().enumerate() {
            add_lines(out, *weights, [0, 1, 2, 3].map(|j| line(4 * i + j)));
        }
        for (i, weight) in (4 * fours.len()..).zip(rest) {
            for (out, value) in out.iter_mut().zip(line(i)) {
                *out += weight * value;
            }
        }
    }
}

/// Softmax in place.
#[inline(always)]
fn softmax(row: &mut [f32]) {
    let mut top = [f32::NEG_INFINITY; LANES];
    let (lines, rest) = row.as_chunks::<LANES>();
    for line in lines {
        for i in 0..LANES {
            top[i] = larger(top[i], line[i]);
        }
    }
    let mut top = simd::fold(top, larger);
    for x in rest {
        top = larger(top, *x);
    }
    for x in &mut *row {
        *x = exp(*x - top);
    }
    let sum = row_sum(
        row,
        row,
        #[inline(always)]
        |x, _| x,
    );
    let scale = 1.0 / sum;
    for x in row {
        *x *= scale;
    }
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// A range of the heads of all batches, those that share keys and values side by side.
struct Forward<'a> {
    problem: &'a Problem<'a>,
    range: Range<usize>,
    queries: Range<usize>,
    out: Shared,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let problem = self.problem;
        let [_, heads, tokens, width] = problem.q.size;
        let [batches, group] = problem.sharing();
        let (keys, kv_heads) = (problem.keys(), problem.k.size[1]);
        let mut scratch = Scratch::default();
        scratch.scores.resize(QUERIES * keys, 0.0);
        let mut values = Packed::default();
        let mut packed = usize::MAX;
        let few = tokens * batches * group <= FEW;
        for i in self.range {
            // i counts [shared, kv_heads, batches, group].
            let (shared, member) = (i / (batches * group), i % (batches * group));
            let (kv_batch, kv_head) = (shared / kv_heads, shared % kv_heads);
            let batch = kv_batch * batches + member / group;
            let head = kv_head * group + member % group;
            if few {
                for query in self.queries.clone() {
                    let start = ((batch * tokens + query) * heads + head) * width;
                    // SAFETY: this head's columns of this query, which no other task has.
                    let out = unsafe { self.out.slice(start, width) };
                    let (at, scores) = ([batch, head, query], &mut scratch.scores[..keys]);
                    problem.single(at, [kv_batch, kv_head], scores, out);
                }
                continue;
            }
            if packed != shared {
                packed = shared;
                let (k, v) = (&problem.k, &problem.v);
                let at = k.tokens(kv_batch, kv_head, 0);
                scratch.keys.fill::<S>(at, [width, keys], [1, k.stride[2]]);
                let at = v.tokens(kv_batch, kv_head, 0);
                values.fill::<S>(at, [keys, width], [v.stride[2], 1]);
            }
            for first in self.queries.clone().step_by(QUERIES) {
                let queries = first..(first + QUERIES).min(self.queries.end);
                let count = queries.len();
                problem.weights(simd, batch, head, queries, &mut scratch);
                let left = Strided {
                    data: &scratch.scores,
                    step: keys,
                    stride: 1,
                };
                let start = ((batch * tokens + first) * heads + head) * width;
                // SAFETY: rows of these queries, of which only this head's columns are written.
                let out = unsafe { self.out.slice(start, (count - 1) * heads * width + width) };
                values.multiply(simd, left, count, (out, heads * width), false);
            }
        }
    }
}

/// Some heads of keys and values, and all queries that share them.
struct Backward<'a> {
    problem: &'a Problem<'a>,
    grad: &'a View<'a>,
    shared: Range<usize>,
    to: [Shared; 3],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let problem = self.problem;
        let [_, heads, tokens, width] = problem.q.size;
        let [batches, group] = problem.sharing();
        let (keys, kv_heads) = (problem.keys(), problem.k.size[1]);
        let scale = 1.0 / (width as f32).sqrt();
        let (k, v) = (&problem.k, &problem.v);

        let mut scratch = Scratch::default();
        scratch.scores.resize(QUERIES * keys, 0.0);
        let mut slopes = vec![0.0; QUERIES * keys];
        let [mut values, mut back, mut rows] = [0, 1, 2].map(|_| Packed::default());
        let [mut to_k, mut to_v] = [0, 1].map(|_| vec![0.0; keys * width]);
        for shared in self.shared {
            let (kv_batch, kv_head) = (shared / kv_heads, shared % kv_heads);
            let (keys_at, values_at) = (
                k.tokens(kv_batch, kv_head, 0),
                v.tokens(kv_batch, kv_head, 0),
            );
            scratch
                .keys
                .fill::<S>(keys_at, [width, keys], [1, k.stride[2]]);
            back.fill::<S>(keys_at, [keys, width], [k.stride[2], 1]);
            values.fill::<S>(values_at, [width, keys], [1, v.stride[2]]);

            to_k.fill(0.0);
            to_v.fill(0.0);
            for member in 0..batches * group {
                let batch = kv_batch * batches + member / group;
                let head = kv_head * group + member % group;
                for first in (0..tokens).step_by(QUERIES) {
                    let queries = first..(first + QUERIES).min(tokens);
                    let count = queries.len();
                    problem.weights(simd, batch, head, queries, &mut scratch);
                    let grad = self.grad.left(batch, head, first);
                    values.multiply(simd, grad, count, (&mut slopes, keys), false);
                    let weights = scratch.scores.chunks(keys).take(count);
                    for (weights, slopes) in weights.zip(slopes.chunks_mut(keys)) {
                        let mean: f32 = row_sum(
                            weights,
                            slopes,
                            #[inline(always)]
                            |a, b| a * b,
                        );
                        for (slope, weight) in slopes.iter_mut().zip(weights) {
                            *slope = (*slope - mean) * weight * scale;
                        }
                    }
                    let left = |data, step, stride| Strided { data, step, stride };

                    let start = ((batch * tokens + first) * heads + head) * width;
                    // SAFETY: rows of these queries, of which only this head's columns are written.
                    let to_q =
                        unsafe { self.to[0].slice(start, (count - 1) * heads * width + width) };
                    back.multiply(
                        simd,
                        left(&slopes, keys, 1),
                        count,
                        (to_q, heads * width),
                        false,
                    );

                    let q = &problem.q;
                    rows.fill::<S>(
                        q.tokens(batch, head, first),
                        [count, width],
                        [q.stride[2], 1],
                    );
                    rows.multiply(simd, left(&slopes, 1, keys), keys, (&mut to_k, width), true);
                    rows.fill::<S>(grad.data, [count, width], [grad.step, 1]);
                    rows.multiply(
                        simd,
                        left(&scratch.scores, 1, keys),
                        keys,
                        (&mut to_v, width),
                        true,
                    );
                }
            }
            for (to, from) in self.to[1..].iter().zip([&to_k, &to_v]) {
                for (key, from) in from.chunks(width).enumerate() {
                    let start = ((kv_batch * keys + key) * kv_heads + kv_head) * width;
                    // SAFETY: this head's columns of this row, which no other task has.
                    unsafe { to.slice(start, width) }.copy_from_slice(from);
                }
            }
        }
    }
}

/// `[batch, heads, tokens, width]` that lies as `[batch, tokens, heads, width]`.
fn heads_inside(values: Vec<f32>, [batch, heads, tokens, width]: [usize; 4]) -> FlexTensor {
    tensor(values, Shape::from([batch, tokens, heads, width])).transpose(1, 2)
}

impl Kernel for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn multiplications(&self, inputs: &[FlexTensor]) -> f64 {
        let keys = inputs[1].layout().shape()[2];
        (2 * keys * inputs[0].layout().num_elements()) as f64
    }

    fn forward(&self, inputs: &[FlexTensor]) -> FlexTensor {
        let inputs: Vec<FlexTensor> = inputs.iter().map(with_rows).collect();
        let problem = Problem::new(&inputs, self.causal);
        let size = problem.q.size;
        let [batch, heads, tokens, _] = size;
        let total = batch * heads;
        let values = uninit(size.iter().product(), |out| {
            let (arch, out) = (Arch::new(), Shared(out));
            let serial = problem.serial();
            // Those that share keys stay together where that is enough for all threads. Few of them
            // are split along their queries, many are taken some at a time.
            let sharing: usize = problem.sharing().iter().product();
            let groups = total / sharing;
            let (parts, step) = if serial {
                (1, total)
            } else {
                let parts = simd::tasks(groups).min(tokens.div_ceil(4 * QUERIES));
                let pieces = simd::tasks(groups * parts);
                let together = (groups * parts / (4 * simd::tasks(1))).max(1);
                (parts, sharing.div_ceil(pieces) * together)
            };
            let length = tokens.div_ceil(parts).next_multiple_of(QUERIES);
            let parts = tokens.div_ceil(length);
            simd::each(total.div_ceil(step) * parts, serial, |i| {
                let (first, part) = (i / parts * step, i % parts * length);
                arch.dispatch(Forward {
                    problem: &problem,
                    range: first..(first + step).min(total),
                    queries: part..(part + length).min(tokens),
                    out,
                });
            });
        });
        heads_inside(values, size)
    }

    fn backward(
        &self,
        inputs: &[FlexTensor],
        grad: FlexTensor,
        wanted: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let inputs: Vec<FlexTensor> = inputs.iter().map(with_rows).collect();
        let problem = Problem::new(&inputs, self.causal);
        let grad = with_rows(&grad);
        let grad = View::new(&grad);
        let [shared, kv_heads, ..] = problem.k.size;
        let sizes = [problem.q.size, problem.k.size, problem.k.size];
        let mut buffers: [Vec<f32>; 3] =
            sizes.map(|size| Vec::with_capacity(size.iter().product()));
        let to = buffers.each_mut().map(|buffer| Shared(buffer.as_mut_ptr()));
        let arch = Arch::new();
        let total = shared * kv_heads;
        let step = total.div_ceil(4 * simd::tasks(1));
        simd::each(total.div_ceil(step), problem.serial(), |i| {
            arch.dispatch(Backward {
                problem: &problem,
                grad: &grad,
                shared: i * step..(i * step + step).min(total),
                to,
            });
        });
        let found = buffers.into_iter().zip(sizes).map(|(mut buffer, size)| {
            // SAFETY: the tasks have written all of it.
            unsafe { buffer.set_len(size.iter().product()) };
            heads_inside(buffer, size)
        });
        let mut found: Vec<_> = found
            .zip(wanted)
            .map(|(found, wanted)| wanted.then_some(found))
            .collect();
        found.resize(inputs.len(), None);
        found
    }
}
