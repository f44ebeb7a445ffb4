use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;

use super::norm::column_sums;
use super::product::{Gather, Rows, Values, Weights, product, weight_gradient};
use super::{Kernel, as_type_of, contiguous, floats, in_order, tensor};

/// A convolution with channels last: `[n, …positions, in]`, weights `[out, in, …kernel]` and, if
/// there is one, a bias `[out]`.
#[derive(Debug)]
pub(crate) struct Conv {
    gather: Gather,
    /// Positions of the result.
    to: Vec<usize>,
}

impl Conv {
    /// Over height and width of `from`; `padding` is what is added before and after each.
    pub fn spatial(
        from: [usize; 2],
        kernel: [usize; 2],
        stride: [usize; 2],
        padding: [[usize; 2]; 2],
    ) -> Self {
        let size = |i: usize| (from[i] + padding[i][0] + padding[i][1] - kernel[i]) / stride[i] + 1;
        let [height, width] = [size(0), size(1)];
        let mut table = Vec::with_capacity(height * width * kernel[0] * kernel[1]);
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            for (i, j) in (0..kernel[0]).flat_map(|i| (0..kernel[1]).map(move |j| (i, j))) {
                let row = (y * stride[0] + i).wrapping_sub(padding[0][0]);
                let column = (x * stride[1] + j).wrapping_sub(padding[1][0]);
                table.push(if row < from[0] && column < from[1] {
                    (row * from[1] + column) as u32
                } else {
                    Gather::EDGE
                });
            }
        }
        Self {
            gather: Gather {
                table,
                taps: kernel[0] * kernel[1],
                period: height * width,
                source: from[0] * from[1],
            },
            to: vec![height, width],
        }
    }

    /// Over frames, `kernel` of them, as many results as frames; `positions` are those of a frame.
    pub fn temporal(frames: usize, positions: &[usize], kernel: usize) -> Self {
        let area: usize = positions.iter().product();
        let mut table = Vec::with_capacity(frames * area * kernel);
        for (frame, position) in (0..frames).flat_map(|f| (0..area).map(move |p| (f, p))) {
            for tap in 0..kernel {
                let from = (frame + tap).wrapping_sub(kernel / 2);
                table.push(if from < frames {
                    (from * area + position) as u32
                } else {
                    Gather::EDGE
                });
            }
        }
        Self {
            gather: Gather {
                table,
                taps: kernel,
                period: frames * area,
                source: frames * area,
            },
            to: [&[frames], positions].concat(),
        }
    }

    /// Rows of the result, channels in, channels out.
    fn sizes(&self, x: &FlexTensor, weight: &FlexTensor) -> (usize, usize, usize) {
        let (x, weight) = (x.layout().shape(), weight.layout().shape());
        let (outputs, channels) = (weight[0], weight[1]);
        let width = x[x.num_dims() - 1];
        assert_eq!(width, channels, "channels of the input and of the weights");
        let clips = x.num_elements() / (self.gather.source * channels).max(1);
        (clips * self.gather.period, channels, outputs)
    }
}

impl Kernel for Conv {
    fn name(&self) -> &'static str {
        "convolution"
    }

    fn multiplications(&self, inputs: &[FlexTensor]) -> f64 {
        let (rows, channels, outputs) = self.sizes(&inputs[0], &inputs[1]);
        (rows * channels * outputs * self.gather.taps) as f64
    }

    fn forward(&self, inputs: &[FlexTensor]) -> FlexTensor {
        let (x, weight) = (contiguous(&inputs[0]), in_order(&inputs[1]));
        let bias = inputs.get(2).map(contiguous);
        let (m, channels, outputs) = self.sizes(&x, &weight);
        let rows = Rows {
            data: floats(&x),
            channels,
            gather: &self.gather,
        };
        let weights = Weights {
            data: Values::of(&weight),
            outputs,
            tap: 1,
            channel: self.gather.taps,
            output: channels * self.gather.taps,
        };
        let values = product(rows, weights, bias.as_ref().map(floats), m);
        let mut shape = vec![m / self.gather.period];
        shape.extend(&self.to);
        shape.push(outputs);
        tensor(values, Shape::from(shape))
    }

    fn backward(
        &self,
        inputs: &[FlexTensor],
        grad: FlexTensor,
        wanted: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let grad = contiguous(&grad);
        let (x, weight) = (&inputs[0], &inputs[1]);
        let (m, channels, outputs) = self.sizes(x, weight);
        let taps = self.gather.taps;
        let to_x = wanted[0].then(|| {
            let weight = in_order(weight);
            let rows = Rows {
                data: floats(&grad),
                channels: outputs,
                gather: &self.gather.inverse(),
            };
            let transposed = Weights {
                data: Values::of(&weight),
                outputs: channels,
                tap: 1,
                channel: channels * taps,
                output: taps,
            };
            let values = product(
                rows,
                transposed,
                None,
                m / self.gather.period * self.gather.source,
            );
            tensor(values, super::shape(x))
        });
        let to_weight = wanted[1].then(|| {
            let x = contiguous(x);
            let rows = Rows {
                data: floats(&x),
                channels,
                gather: &self.gather,
            };
            let found = weight_gradient(rows, floats(&grad), m, outputs);
            // From [taps, out, in] to [out, in, taps].
            let mut values = Vec::with_capacity(found.len());
            for i in 0..outputs * channels {
                values.extend((0..taps).map(|tap| found[tap * outputs * channels + i]));
            }
            as_type_of(weight, tensor(values, super::shape(weight)))
        });
        let mut found = vec![to_x, to_weight];
        if let Some(bias) = inputs.get(2) {
            let sums = || tensor(column_sums(floats(&grad), outputs), super::shape(bias));
            found.push(wanted[2].then(sums));
        }
        found
    }
}
