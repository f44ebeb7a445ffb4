use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use pulp::{Simd, WithSimd};

use super::product::{Packed, Strided, add_lines};
use super::simd::{self, LANES, Shared, exp, row_sum, uninit};
use super::{Kernel, tensor};
use crate::vectorised::arch;

/// Queries whose scores are held at a time, a line of them for each key: sums over keys then need
/// no sums within a vector, and keys are read as they lie.
const QUERIES: usize = 64;
/// Queries with the same keys and values up to which a walk through these is all the work, and
/// packing anything would take longer.
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

    /// All tokens of one head as a left operand.
    #[inline(always)]
    fn left(&self, [batch, head]: [usize; 2]) -> Strided<'a> {
        Strided {
            data: self.tokens(batch, head, 0),
            step: self.stride[2],
            stride: 1,
            depth: self.size[3],
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
    queries: Packed,
    scores: Vec<f32>,
    /// The mask of some queries of a batch, `[keys, queries]`, and of which.
    mask: Vec<f32>,
    masked: Option<(usize, Range<usize>)>,
}

impl<'a> Problem<'a> {
    fn new(inputs: &'a [FlexTensor], causal: bool) -> Self {
        let [q, k, v] = [0, 1, 2].map(|i| View::new(&inputs[i]));
        let mask = inputs.get(3).map(View::new);
        let [batch, heads, queries, width] = q.size;
        let [shared, kv_heads, keys, key_width] = k.size;
        assert!(
            v.size == k.size && key_width == width,
            "keys and values {:?} and {:?} of queries {:?}",
            k.size,
            v.size,
            q.size
        );
        // Where there are none, none share.
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

    /// Whether there is nothing to see, or nobody.
    fn is_empty(&self) -> bool {
        self.q.size.contains(&0) || self.keys() == 0
    }

    /// Batches and heads that share keys and values.
    fn sharing(&self) -> [usize; 2] {
        [0, 1].map(|i| self.q.size[i] / self.k.size[i])
    }

    /// Batch and head of queries, and those of their keys and values. Counted are `[shared, kv_heads,
    /// batches, heads]`, the last two those that [share](Self::sharing): neighbours share.
    #[inline(always)]
    fn place(&self, i: usize) -> [[usize; 2]; 2] {
        let [batches, group] = self.sharing();
        let (shared, member) = (i / (batches * group), i % (batches * group));
        let kv_heads = self.k.size[1];
        let [kv_batch, kv_head] = [shared / kv_heads, shared % kv_heads];
        let batch = kv_batch * batches + member / group;
        let head = kv_head * group + member % group;
        [[batch, head], [kv_batch, kv_head]]
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

    /// How many keys the last of some queries sees.
    fn seen(&self, queries: &Range<usize>) -> usize {
        match self.causal {
            true => queries.end.min(self.keys()),
            false => self.keys(),
        }
    }

    /// The softmax of some queries' scores over the keys, `[keys seen, queries]`, into
    /// `scratch.scores`.
    #[inline(always)]
    fn weights<S: Simd>(
        &self,
        simd: S,
        [batch, head]: [usize; 2],
        kv: [usize; 2],
        queries: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let (first, count, seen) = (queries.start, queries.len(), self.seen(&queries));
        let width = self.width();
        scratch.queries.fill::<S>(
            self.q.tokens(batch, head, first),
            [width, count],
            [1, self.q.stride[2]],
        );
        let scores = &mut scratch.scores[..seen * count];
        let keys = self.k.left(kv);
        // SAFETY: the scores are this task's, a line of `count` for each key.
        unsafe {
            let to = (scores.as_mut_ptr(), count);
            scratch.queries.multiply(simd, keys, seen, to, false);
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
        [batch, head]: [usize; 2],
        [kv_batch, kv_head]: [usize; 2],
        query: usize,
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

/// Softmax of each column of lines of `count` floats, times `scale`, in place.
#[inline(always)]
fn softmax_of_columns(lines: &mut [f32], count: usize, scale: f32) {
    let (mut top, mut sum) = ([f32::NEG_INFINITY; QUERIES], [0.0; QUERIES]);
    let (top, sum) = (&mut top[..count], &mut sum[..count]);
    for line in lines.chunks_exact(count) {
        for (top, x) in top.iter_mut().zip(line) {
            *top = larger(*top, *x);
        }
    }
    for line in lines.chunks_exact_mut(count) {
        for ((x, top), sum) in line.iter_mut().zip(&*top).zip(&mut *sum) {
            *x = exp((*x - top) * scale);
            *sum += *x;
        }
    }
    for sum in &mut *sum {
        *sum = 1.0 / *sum;
    }
    for line in lines.chunks_exact_mut(count) {
        for (x, scale) in line.iter_mut().zip(&*sum) {
            *x *= scale;
        }
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
        let sharing: usize = problem.sharing().iter().product();
        let keys = problem.keys();
        if tokens * sharing <= FEW {
            let mut scores = vec![0.0; keys];
            for i in self.range {
                let [at, kv] = problem.place(i);
                for query in self.queries.clone() {
                    let start = ((at[0] * tokens + query) * heads + at[1]) * width;
                    // SAFETY: this head's columns of this query, which no other task has.
                    let out = unsafe { self.out.slice(start, width) };
                    problem.single(at, kv, query, &mut scores, out);
                }
            }
            return;
        }
        let mut scratch = Scratch::default();
        scratch
            .scores
            .resize(QUERIES.min(self.queries.len()) * keys, 0.0);
        let mut values = Packed::default();
        let mut next = self.range.start;
        while next < self.range.end {
            let members = next..((next / sharing + 1) * sharing).min(self.range.end);
            let [_, kv] = problem.place(next);
            next = members.end;
            let v = &problem.v;
            let at = v.tokens(kv[0], kv[1], 0);
            values.fill::<S>(at, [keys, width], [v.stride[2], 1]);
            for first in self.queries.clone().step_by(QUERIES) {
                let queries = first..(first + QUERIES).min(self.queries.end);
                let (count, seen) = (queries.len(), problem.seen(&queries));
                for i in members.clone() {
                    let [at, _] = problem.place(i);
                    problem.weights(simd, at, kv, queries.clone(), &mut scratch);
                    let left = Strided {
                        data: &scratch.scores,
                        step: 1,
                        stride: count,
                        depth: seen,
                    };
                    let start = ((at[0] * tokens + first) * heads + at[1]) * width;
                    let out = (self.out.after(start).0, heads * width);
                    // SAFETY: this head's columns of these queries, which no other task has.
                    unsafe { values.multiply(simd, left, count, out, false) };
                }
            }
        }
    }
}

/// From the gradients of weights, those of the scores that they are the softmax of, in place. Both are
/// lines of `count` queries.
#[inline(always)]
fn softmax_slopes(weights: &[f32], slopes: &mut [f32], count: usize, scale: f32) {
    let mut mean = [0.0; QUERIES];
    let mean = &mut mean[..count];
    for (weights, slopes) in weights.chunks_exact(count).zip(slopes.chunks_exact(count)) {
        for ((mean, weight), slope) in mean.iter_mut().zip(weights).zip(slopes) {
            *mean += weight * slope;
        }
    }
    let lines = slopes.chunks_exact_mut(count);
    for (weights, slopes) in weights.chunks_exact(count).zip(lines) {
        for ((slope, weight), mean) in slopes.iter_mut().zip(weights).zip(&*mean) {
            *slope = (*slope - mean) * weight * scale;
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
        let sharing: usize = problem.sharing().iter().product();
        let (keys, kv_heads) = (problem.keys(), problem.k.size[1]);
        let scale = 1.0 / (width as f32).sqrt();

        let size = QUERIES.min(tokens) * keys;
        let mut scratch = Scratch::default();
        scratch.scores.resize(size, 0.0);
        let mut slopes = vec![0.0; size];
        let [mut packed_keys, mut packed] = [0, 1].map(|_| Packed::default());
        let [mut to_k, mut to_v] = [0, 1].map(|_| vec![0.0; keys * width]);
        for shared in self.shared {
            let [_, kv] = problem.place(shared * sharing);
            let at = problem.k.tokens(kv[0], kv[1], 0);
            packed_keys.fill::<S>(at, [keys, width], [problem.k.stride[2], 1]);
            to_k.fill(0.0);
            to_v.fill(0.0);
            for first in (0..tokens).step_by(QUERIES) {
                let queries = first..(first + QUERIES).min(tokens);
                let (count, seen) = (queries.len(), problem.seen(&queries));
                for member in 0..sharing {
                    let [at, _] = problem.place(shared * sharing + member);
                    let [batch, head] = at;
                    problem.weights(simd, at, kv, queries.clone(), &mut scratch);
                    let weights = &scratch.scores[..seen * count];
                    let slopes = &mut slopes[..seen * count];

                    let grad = self.grad.tokens(batch, head, first);
                    let grad_step = self.grad.stride[2];
                    packed.fill::<S>(grad, [width, count], [1, grad_step]);
                    let values = problem.v.left(kv);
                    // SAFETY: a line of `count` for each key, this task's own.
                    unsafe {
                        let to = (slopes.as_mut_ptr(), count);
                        packed.multiply(simd, values, seen, to, false);
                    }
                    softmax_slopes(weights, slopes, count, scale);
                    let of_queries = |data| Strided {
                        data,
                        step: 1,
                        stride: count,
                        depth: seen,
                    };
                    let of_keys = |data| Strided {
                        data,
                        step: count,
                        stride: 1,
                        depth: count,
                    };

                    let start = ((batch * tokens + first) * heads + head) * width;
                    let to_q = (self.to[0].after(start).0, heads * width);
                    let [to_k, to_v] = [&mut to_k, &mut to_v].map(|to| (to.as_mut_ptr(), width));
                    // SAFETY: this head's columns of these queries, which no other task has, and
                    // `[keys, width]` of this task's own.
                    unsafe {
                        packed_keys.multiply(simd, of_queries(slopes), count, to_q, false);
                        packed.fill::<S>(grad, [count, width], [grad_step, 1]);
                        packed.multiply(simd, of_keys(weights), seen, to_v, true);
                        let at = problem.q.tokens(batch, head, first);
                        packed.fill::<S>(at, [count, width], [problem.q.stride[2], 1]);
                        packed.multiply(simd, of_keys(slopes), seen, to_k, true);
                    }
                }
            }
            for (to, from) in self.to[1..].iter().zip([&to_k, &to_v]) {
                for (key, from) in from.chunks(width).enumerate() {
                    let start = ((kv[0] * keys + key) * kv_heads + kv[1]) * width;
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
        let (q, k) = (inputs[0].layout().shape(), inputs[1].layout().shape());
        let (queries, keys) = (q[2], k[2]);
        // Of each query, the keys that it sees.
        let scores = match self.causal {
            true => (0..queries).map(|query| (query + 1).min(keys)).sum(),
            false => queries * keys,
        };
        (2 * q[0] * q[1] * scores * q[3]) as f64
    }

    fn forward(&self, inputs: &[FlexTensor]) -> FlexTensor {
        let inputs: Vec<FlexTensor> = inputs.iter().map(with_rows).collect();
        let problem = Problem::new(&inputs, self.causal);
        let size = problem.q.size;
        if problem.is_empty() {
            return heads_inside(vec![0.0; size.iter().product()], size);
        }
        let [batch, heads, tokens, _] = size;
        let total = batch * heads;
        let values = uninit(size.iter().product(), |out| {
            let (arch, out) = (arch(), Shared(out));
            let serial = problem.serial();
            // Those that share keys stay together where that is enough for all threads. Few of them
            // are split along their queries, many are taken some at a time.
            let sharing: usize = problem.sharing().iter().product();
            let groups = total / sharing;
            let (parts, step) = if serial {
                (1, total)
            } else {
                let parts = simd::tasks(groups).min(tokens.div_ceil(2 * QUERIES));
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
        if problem.is_empty() {
            let zeros = |size: [usize; 4]| heads_inside(vec![0.0; size.iter().product()], size);
            return (0..inputs.len())
                .map(|i| (i < 3 && wanted[i]).then(|| zeros(sizes[i])))
                .collect();
        }
        let mut buffers: [Vec<f32>; 3] =
            sizes.map(|size| Vec::with_capacity(size.iter().product()));
        let to = buffers.each_mut().map(|buffer| Shared(buffer.as_mut_ptr()));
        let arch = arch();
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
