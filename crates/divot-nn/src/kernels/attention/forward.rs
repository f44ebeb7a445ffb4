//! The forward pass.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::problem::{Problem, Scratch};
use super::softmax::QUERIES;
use crate::kernels::product::{Packed, Strided};
use crate::kernels::simd::Shared;

/// With up to this number of queries for the same keys and values, packing does not pay off.
const FEW: usize = 8;

/// A range of the heads of all batches, and a range of their queries.
pub(super) struct Forward<'a> {
    pub problem: &'a Problem<'a>,
    /// Heads, numbered as in [`Problem::place`].
    pub range: Range<usize>,
    pub queries: Range<usize>,
    /// The result, `[batch, queries, heads, width]`.
    pub out: Shared,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let problem = self.problem;
        let [_, heads, tokens, width] = problem.q.size;
        let sharing: usize = problem.sharing().iter().product();
        let keys = problem.keys();
        let few = tokens * sharing <= FEW;
        let together = if few { 1 } else { QUERIES };
        let mut scratch = Scratch::default();
        scratch
            .scores
            .resize(together.min(self.queries.len()) * keys, 0.0);
        let mut packed = Packed::default();
        let [mut wide_keys, mut wide_values] = [Vec::new(), Vec::new()];
        let mut next = self.range.start;
        while next < self.range.end {
            let members = next..((next / sharing + 1) * sharing).min(self.range.end);
            let [_, kv] = problem.place(next);
            next = members.end;
            let k = problem.k.head(kv, &mut wide_keys);
            let v = problem.v.head(kv, &mut wide_values);
            if few {
                for i in members {
                    let [at, _] = problem.place(i);
                    for query in self.queries.clone() {
                        let start = ((at[0] * tokens + query) * heads + at[1]) * width;
                        // SAFETY: no other task has this head's columns of this query.
                        let out = unsafe { self.out.slice(start, width) };
                        problem.single(simd, at, [k, v], query, &mut scratch.scores, out);
                    }
                }
                continue;
            }
            packed.fill::<S>(v.data, [keys, width], [v.step, 1]);
            for first in self.queries.clone().step_by(QUERIES) {
                let queries = first..(first + QUERIES).min(self.queries.end);
                let (count, seen) = (queries.len(), problem.seen(&queries));
                for i in members.clone() {
                    let [at, _] = problem.place(i);
                    problem.weights(simd, at, k, queries.clone(), &mut scratch);
                    let left = Strided {
                        data: &scratch.scores,
                        step: 1,
                        stride: count,
                        depth: seen,
                    };
                    let start = ((at[0] * tokens + first) * heads + at[1]) * width;
                    let out = (self.out.after(start).0, heads * width);
                    // SAFETY: no other task has this head's columns of these queries.
                    unsafe { packed.multiply(simd, left, count, out, false) };
                }
            }
        }
    }
}
