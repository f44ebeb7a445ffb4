use burn::backend::flex::FlexTensor;

use super::norm::column_sums;
use super::product::{Gather, Rows, Values, Weights, product, weight_gradient};
use super::{Kernel, as_type_of, contiguous, floats, in_order, matrix, shape, tensor};

/// Linear layer: x · weight + bias, with `x` `[…, in]`, weight `[in, out]` and an optional bias `[out]`.
#[derive(Debug)]
pub(crate) struct Linear;

impl Kernel for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn multiplications(&self, inputs: &[FlexTensor]) -> f64 {
        let (rows, _) = matrix(&inputs[0]);
        (rows * inputs[1].layout().num_elements()) as f64
    }

    fn forward(&self, inputs: &[FlexTensor]) -> FlexTensor {
        let (x, weight) = (contiguous(&inputs[0]), in_order(&inputs[1]));
        let bias = inputs.get(2).map(contiguous);
        let (m, channels) = matrix(&x);
        let (expected, outputs) = matrix(&weight);
        assert_eq!(channels, expected, "widths of the input and of the weights");
        let rows = Rows {
            data: floats(&x),
            channels,
            gather: &Gather::identity(),
        };
        let weights = Weights {
            data: Values::of(&weight),
            outputs,
            tap: 0,
            channel: outputs,
            output: 1,
        };
        let values = product(rows, weights, bias.as_ref().map(floats), m);
        let mut shape = shape(&x);
        let last = shape.num_dims() - 1;
        shape[last] = outputs;
        tensor(values, shape)
    }

    fn backward(
        &self,
        inputs: &[FlexTensor],
        grad: FlexTensor,
        wanted: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let grad = contiguous(&grad);
        let (m, outputs) = matrix(&grad);
        let (x, weight) = (&inputs[0], &inputs[1]);
        let channels = matrix(x).1;
        let gather = Gather::identity();
        let rows = Rows {
            data: floats(&grad),
            channels: outputs,
            gather: &gather,
        };
        let to_x = wanted[0].then(|| {
            let weight = in_order(weight);
            let transposed = Weights {
                data: Values::of(&weight),
                outputs: channels,
                tap: 0,
                channel: 1,
                output: outputs,
            };
            tensor(product(rows, transposed, None, m), shape(x))
        });
        let to_weight = wanted[1].then(|| {
            let x = contiguous(x);
            let found = weight_gradient(rows, floats(&x), m, channels);
            as_type_of(weight, tensor(found, shape(weight)))
        });
        let mut found = vec![to_x, to_weight];
        if let Some(bias) = inputs.get(2) {
            found.push(wanted[2].then(|| tensor(column_sums(floats(&grad), outputs), shape(bias))));
        }
        found
    }
}
