//! The forward pass.

use std::marker::PhantomData;
use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::problem::{Problem, Scratch};
use super::softmax::QUERIES;
use crate::kernels::product::{Packed, Strided, Words};
use crate::kernels::simd::Shared;

/// With up to this number of queries for the same keys and values, packing does not pay off.
const FEW: usize = 8;

/// A range of the heads of all batches, and a range of their queries. Products of many queries are those of words `W`.
pub(super) struct Forward<'a, W> {
    pub problem: &'a Problem<'a>,
    /// Heads, numbered as in [`Problem::place`].
    pub range: Range<usize>,
    pub queries: Range<usize>,
    /// The result, `[batch, queries, heads, width]`.
    pub out: Shared,
    pub words: PhantomData<W>,
}

impl<W: Words> WithSimd for Forward<'_, W> {
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
        let [mut key_words, mut value_words] = [Vec::new(), Vec::new()];
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
            let k = k.rows_in_words::<W>(keys, &mut key_words);
            let v = v.lines_in_words::<W>(keys, &mut value_words);
            let lines = keys.div_ceil(W::CHANNELS);
            packed.fill::<S>(v.data, [lines, width], [v.step, 1]);
            for first in self.queries.clone().step_by(QUERIES) {
                let queries = first..(first + QUERIES).min(self.queries.end);
                let (count, seen) = (queries.len(), problem.seen(&queries));
                for i in members.clone() {
                    let [at, _] = problem.place(i);
                    problem.weights::<S, W>(simd, at, k, queries.clone(), &mut scratch);
                    W::join_panels(&mut scratch.scores, 1, seen, count, count);
                    let left = Strided {
                        data: &scratch.scores,
                        step: 1,
                        stride: count,
                        depth: seen.div_ceil(W::CHANNELS),
                    };
                    let start = ((at[0] * tokens + first) * heads + at[1]) * width;
                    let out = (self.out.after(start).0, heads * width);
                    // SAFETY: no other task has this head's columns of these queries. The instructions are those of
                    // the words.
                    unsafe { packed.multiply::<S, W>(simd, left, count, out, false) };
                }
            }
        }
    }
}
