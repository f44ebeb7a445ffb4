//! Attention. The scores of a few queries are computed at a time, so they stay in the cache.

mod backward;
mod forward;
mod problem;
mod softmax;

use std::marker::PhantomData;
use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;

use super::simd::{self, Shared, uninit};
use super::{Kernel, as_type_of, tensor};
#[cfg(target_arch = "x86_64")]
use crate::kernels::product::Pairs;
use crate::kernels::product::{Floats, Words};
#[cfg(target_arch = "x86_64")]
use crate::switch::bf16_products;
use crate::vectorised::arch;
use backward::Backward;
use forward::Forward;
use problem::{Problem, View};
use softmax::QUERIES;

/// softmax(q·kᵀ / √width + mask)·v. The forward pass of many queries multiplies in bf16 if such products are on.
///
/// Inputs:
/// - queries: `[batch, heads, queries, width]`
/// - keys and values: `[shared, kv_heads, keys, width]`, where `shared` divides the batch and `kv_heads`
///   the heads: consecutive ones share keys and values. They are f32 or f16
/// - mask (optional): `[batch or 1, 1, queries, keys]`
///
/// The result is `[batch, heads, queries, width]`, in memory `[batch, queries, heads, width]`.
#[derive(Debug)]
pub(crate) struct Attention {
    /// Whether query i sees only keys 0 to i.
    pub causal: bool,
}

/// Computes the result of some heads and some of their queries.
fn run<W: Words>(problem: &Problem<'_>, range: Range<usize>, queries: Range<usize>, out: Shared) {
    W::run(Forward::<W> {
        problem,
        range,
        queries,
        out,
        words: PhantomData,
    });
}

/// Returns a tensor with contiguous rows. Copies only if the rows are not contiguous.
fn with_rows(x: &FlexTensor) -> FlexTensor {
    let strides = x.layout().strides();
    let fits = strides[3] == 1 && strides.iter().all(|stride| *stride >= 0);
    if fits { x.clone() } else { x.to_contiguous() }
}

/// Creates a tensor `[batch, heads, tokens, width]` from values in the order
/// `[batch, tokens, heads, width]`.
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
        // With a causal mask, count only the keys that each query sees.
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
            let out = Shared(out);
            let serial = problem.serial();
            // Heads that share keys are in one task if there are enough tasks for all threads. Few heads
            // are split along their queries. Many heads are grouped.
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
                let range = first..(first + step).min(total);
                let queries = part..(part + length).min(tokens);
                #[cfg(target_arch = "x86_64")]
                if bf16_products() {
                    return run::<Pairs>(&problem, range, queries, out);
                }
                run::<Floats>(&problem, range, queries, out);
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
        let of_keys = problem.k.size();
        let [shared, kv_heads, ..] = of_keys;
        let sizes = [problem.q.size, of_keys, of_keys];
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
            // SAFETY: the buffer has this capacity, and the tasks have written all of it.
            unsafe { buffer.set_len(size.iter().product()) };
            heads_inside(buffer, size)
        });
        let mut found: Vec<_> = found
            .zip(&inputs)
            .zip(wanted)
            .map(|((found, input), wanted)| wanted.then(|| as_type_of(input, found)))
            .collect();
        found.resize(inputs.len(), None);
        found
    }
}
