//! The backward pass.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::problem::{Problem, Scratch, View};
use super::softmax::{QUERIES, softmax_slopes};
use crate::kernels::product::{Floats, Packed, Strided};
use crate::kernels::simd::Shared;

/// A range of the heads of keys and values, and all queries that share them.
pub(super) struct Backward<'a> {
    pub problem: &'a Problem<'a>,
    /// Gradient of the result.
    pub grad: &'a View<'a>,
    /// Heads of keys and values, of all batches.
    pub shared: Range<usize>,
    /// Gradients of queries, keys and values, each `[batch, tokens, heads, width]`.
    pub to: [Shared; 3],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let problem = self.problem;
        let [_, heads, tokens, width] = problem.q.size;
        let sharing: usize = problem.sharing().iter().product();
        let (keys, kv_heads) = (problem.keys(), problem.k.size()[1]);
        let scale = 1.0 / (width as f32).sqrt();

        let size = QUERIES.min(tokens) * keys;
        let mut scratch = Scratch::default();
        scratch.scores.resize(size, 0.0);
        let mut slopes = vec![0.0; size];
        let [mut packed_keys, mut packed] = [0, 1].map(|_| Packed::default());
        let [mut to_k, mut to_v] = [0, 1].map(|_| vec![0.0; keys * width]);
        let [mut wide_keys, mut wide_values] = [Vec::new(), Vec::new()];
        for shared in self.shared {
            let [_, kv] = problem.place(shared * sharing);
            let k = problem.k.head(kv, &mut wide_keys);
            let v = problem.v.head(kv, &mut wide_values);
            packed_keys.fill::<S>(k.data, [keys, width], [k.step, 1]);
            to_k.fill(0.0);
            to_v.fill(0.0);
            for first in (0..tokens).step_by(QUERIES) {
                let queries = first..(first + QUERIES).min(tokens);
                let (count, seen) = (queries.len(), problem.seen(&queries));
                for member in 0..sharing {
                    let [at, _] = problem.place(shared * sharing + member);
                    let [batch, head] = at;
                    problem.weights::<S, Floats>(simd, at, k, queries.clone(), &mut scratch);
                    let weights = &scratch.scores[..seen * count];
                    let slopes = &mut slopes[..seen * count];

                    let grad = self.grad.tokens(batch, head, first);
                    let grad_step = self.grad.stride[2];
                    packed.fill::<S>(grad, [width, count], [1, grad_step]);
                    // SAFETY: `slopes` has a line of `count` floats for each key.
                    unsafe {
                        let to = (slopes.as_mut_ptr(), count);
                        packed.multiply::<S, Floats>(simd, v, seen, to, false);
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
                    // SAFETY: no other task has this head's columns of these queries. `to_k` and
                    // `to_v` are `[keys, width]` and local.
                    unsafe {
                        packed_keys.multiply::<S, Floats>(
                            simd,
                            of_queries(slopes),
                            count,
                            to_q,
                            false,
                        );
                        packed.fill::<S>(grad, [count, width], [grad_step, 1]);
                        packed.multiply::<S, Floats>(simd, of_keys(weights), seen, to_v, true);
                        let at = problem.q.tokens(batch, head, first);
                        packed.fill::<S>(at, [count, width], [problem.q.stride[2], 1]);
                        packed.multiply::<S, Floats>(simd, of_keys(slopes), seen, to_k, true);
                    }
                }
            }
            for (to, from) in self.to[1..].iter().zip([&to_k, &to_v]) {
                for (key, from) in from.chunks(width).enumerate() {
                    let start = ((kv[0] * keys + key) * kv_heads + kv[1]) * width;
                    // SAFETY: no other task has this head's columns of this row.
                    unsafe { to.slice(start, width) }.copy_from_slice(from);
                }
            }
        }
    }
}
