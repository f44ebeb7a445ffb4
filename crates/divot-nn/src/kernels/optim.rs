use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use super::simd::by_chunks;
use super::{Cost, Kernel, contiguous, floats, run, shape, tensor};

/// Updates a moment: β · moment + (1 − β) · gradient, or with the gradient squared.
pub(crate) fn moment<const D: usize>(
    moment: Tensor<D>,
    grad: Tensor<D>,
    beta: f32,
    square: bool,
) -> Tensor<D> {
    let inputs = [moment.into_dispatch(), grad.into_dispatch()];
    run(Moment { beta, square }, Cost::High, inputs)
}

/// Computes the parameter after a step: keep · parameter − rate · m̂ / (√v̂ + epsilon).
///
/// `inputs` are the parameter and its first and second moment, m and v. `settled` are the bias corrections
/// that the moments are divided by, 1 − βᵗ.
pub(crate) fn update<const D: usize>(
    inputs: [Tensor<D>; 3],
    settled: [f32; 2],
    epsilon: f32,
    rate: f32,
    keep: f32,
) -> Tensor<D> {
    let kernel = Update {
        scales: settled.map(|settled| 1.0 / settled),
        epsilon,
        rate,
        keep,
    };
    run(kernel, Cost::High, inputs.map(Tensor::into_dispatch))
}

#[derive(Debug)]
struct Moment {
    beta: f32,
    square: bool,
}

impl Kernel for Moment {
    fn name(&self) -> &'static str {
        "optimiser"
    }

    fn forward(&self, inputs: &[FlexTensor]) -> FlexTensor {
        let [moment, grad] = [0, 1].map(|i| contiguous(&inputs[i]));
        let (moments, grads) = (floats(&moment), floats(&grad));
        let (beta, square) = (self.beta, self.square);
        let values = by_chunks(
            moments.len(),
            #[inline(always)]
            |range, out| {
                let inputs = moments[range.clone()].iter().zip(&grads[range]);
                for (out, (moment, grad)) in out.iter_mut().zip(inputs) {
                    let grad = if square { grad * grad } else { *grad };
                    *out = moment * beta + grad * (1.0 - beta);
                }
            },
        );
        tensor(values, shape(&moment))
    }

    fn backward(&self, _: &[FlexTensor], _: FlexTensor, _: &[bool]) -> Vec<Option<FlexTensor>> {
        unreachable!("an optimiser's step is not recorded in a graph")
    }
}

#[derive(Debug)]
struct Update {
    scales: [f32; 2],
    epsilon: f32,
    rate: f32,
    keep: f32,
}

impl Kernel for Update {
    fn name(&self) -> &'static str {
        "optimiser"
    }

    fn forward(&self, inputs: &[FlexTensor]) -> FlexTensor {
        let [parameter, first, second] = [0, 1, 2].map(|i| contiguous(&inputs[i]));
        let [parameters, firsts, seconds] = [&parameter, &first, &second].map(floats);
        let Self {
            scales,
            epsilon,
            rate,
            keep,
        } = *self;
        let values = by_chunks(
            parameters.len(),
            #[inline(always)]
            |range, out| {
                let moments = firsts[range.clone()].iter().zip(&seconds[range.clone()]);
                let inputs = parameters[range].iter().zip(moments);
                for (out, (parameter, (first, second))) in out.iter_mut().zip(inputs) {
                    let step = first * scales[0] / ((second * scales[1]).sqrt() + epsilon);
                    *out = parameter * keep - rate * step;
                }
            },
        );
        tensor(values, shape(&parameter))
    }

    fn backward(&self, _: &[FlexTensor], _: FlexTensor, _: &[bool]) -> Vec<Option<FlexTensor>> {
        unreachable!("an optimiser's step is not recorded in a graph")
    }
}
