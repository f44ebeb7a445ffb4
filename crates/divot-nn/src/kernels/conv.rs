use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;

use super::norm::column_sums;
use super::product::{Gather, Rows, Values, Weights, product, weight_gradient};
use super::winograd::{self, Images, Tiles};
use super::{Kernel, as_type_of, contiguous, floats, in_order, simd, tensor};

/// Minimum number of input channels and of output channels for which [`winograd`] is faster.
const FEWEST_CHANNELS: usize = 16;
/// Minimum number of tiles for which [`winograd`] is faster.
const FEWEST_TILES: usize = 64;

/// A convolution with channels last: input `[n, …positions, in]`, weights `[out, in, …kernel]` and an
/// optional bias `[out]`.
#[derive(Debug)]
pub(crate) struct Conv {
    axes: Vec<Axis>,
    /// Sizes of the remaining axes. The kernel has a single tap along them.
    area: Vec<usize>,
}

/// A convolution along one axis.
#[derive(Debug, Clone, Copy)]
struct Axis {
    /// Size of the input.
    from: usize,
    /// Size of the result.
    to: usize,
    taps: usize,
    stride: usize,
    /// Padding before the first position.
    padding: usize,
}

impl Conv {
    /// Creates a convolution over height and width. `from` is the size of the input, and `padding` that
    /// before and after each axis.
    pub fn spatial(
        from: [usize; 2],
        kernel: [usize; 2],
        stride: [usize; 2],
        padding: [[usize; 2]; 2],
    ) -> Self {
        let axis = |i: usize| Axis {
            from: from[i],
            to: (from[i] + padding[i][0] + padding[i][1] - kernel[i]) / stride[i] + 1,
            taps: kernel[i],
            stride: stride[i],
            padding: padding[i][0],
        };
        Self {
            axes: vec![axis(0), axis(1)],
            area: Vec::new(),
        }
    }

    /// Creates a convolution over frames, with `kernel` taps and padding that keeps the number of frames.
    /// `positions` is the size of a frame.
    pub fn temporal(frames: usize, positions: &[usize], kernel: usize) -> Self {
        Self {
            axes: vec![Axis {
                from: frames,
                to: frames,
                taps: kernel,
                stride: 1,
                padding: kernel / 2,
            }],
            area: positions.to_vec(),
        }
    }

    fn gather(&self) -> Gather {
        self.gathered(|axis| Gather::axis(axis.from, axis.to, axis.taps, axis.stride, axis.padding))
    }

    /// Returns the tiles of this convolution, if [`winograd`] is faster.
    fn tiles(&self, [rows, channels, outputs]: [usize; 3]) -> Option<Tiles> {
        // `turned` wraps around if the padding is wider than the kernel.
        let three = |axis: &Axis| axis.taps == 3 && axis.stride == 1 && axis.padding < 3;
        let tile = |axis: &Axis| axis.to.div_ceil(2);
        let count = rows / self.positions(|axis| axis.to).max(1) * self.positions(tile);
        let fits = self.axes.iter().all(three)
            && channels.min(outputs) >= FEWEST_CHANNELS
            && count >= FEWEST_TILES;
        fits.then(|| Tiles {
            from: self.gathered(|axis| Gather::axis(axis.from, tile(axis), 4, 2, axis.padding)),
            to: self.gathered(|axis| Gather::axis(axis.to, tile(axis), 2, 2, 0)),
        })
    }

    /// Returns the convolution that computes the gradient of the input, with its taps in reverse order.
    fn turned(&self) -> Self {
        let turn = |axis: &Axis| Axis {
            from: axis.to,
            to: axis.from,
            padding: (axis.taps - 1).wrapping_sub(axis.padding),
            ..*axis
        };
        Self {
            axes: self.axes.iter().map(turn).collect(),
            area: self.area.clone(),
        }
    }

    /// Combines the gathers that `f` returns for each axis, and all positions of `area`.
    fn gathered(&self, f: impl Fn(&Axis) -> Gather) -> Gather {
        let area = self.area.iter().product();
        let axes = self.axes.iter().map(f);
        axes.rfold(Gather::axis(area, area, 1, 1, 0), |inner, axis| {
            axis.within(&inner)
        })
    }

    /// Returns the number of positions of an image or clip, where `f` returns the size of an axis.
    fn positions(&self, f: impl Fn(&Axis) -> usize) -> usize {
        self.axes
            .iter()
            .map(f)
            .chain(self.area.iter().copied())
            .product()
    }

    fn taps(&self) -> usize {
        self.axes.iter().map(|axis| axis.taps).product()
    }

    /// Returns the number of rows of the result, of input channels and of output channels.
    fn sizes(&self, x: &FlexTensor, weight: &FlexTensor) -> [usize; 3] {
        let (x, weight) = (x.layout().shape(), weight.layout().shape());
        let (outputs, channels) = (weight[0], weight[1]);
        let width = x[x.num_dims() - 1];
        assert_eq!(width, channels, "channels of the input and of the weights");
        let source = self.positions(|axis| axis.from) * channels;
        let clips = x.num_elements() / source.max(1);
        [clips * self.positions(|axis| axis.to), channels, outputs]
    }
}

impl Kernel for Conv {
    fn name(&self) -> &'static str {
        "convolution"
    }

    /// Returns the multiplications of the direct convolution, even if [`winograd`] needs fewer.
    fn multiplications(&self, inputs: &[FlexTensor]) -> f64 {
        let [rows, channels, outputs] = self.sizes(&inputs[0], &inputs[1]);
        (rows * channels * outputs * self.taps()) as f64
    }

    fn forward(&self, inputs: &[FlexTensor]) -> FlexTensor {
        let (x, weight) = (contiguous(&inputs[0]), in_order(&inputs[1]));
        let bias = inputs.get(2).map(contiguous);
        let bias = bias.as_ref().map(floats);
        let sizes @ [rows, channels, outputs] = self.sizes(&x, &weight);
        let weights = Weights {
            data: Values::of(&weight),
            outputs,
            tap: 1,
            channel: self.taps(),
            output: channels * self.taps(),
        };
        let values = match self.tiles(sizes) {
            Some(tiles) => {
                let images = Images {
                    data: floats(&x),
                    channels,
                    tiles: &tiles,
                };
                winograd::product(images, weights, false, bias)
            }
            None => {
                let gather = &self.gather();
                let data = floats(&x);
                let x = Rows {
                    data,
                    channels,
                    gather,
                };
                product(x, weights, bias, rows)
            }
        };
        let mut shape = vec![rows / self.positions(|axis| axis.to)];
        shape.extend(self.axes.iter().map(|axis| axis.to));
        shape.extend(&self.area);
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
        let [m, channels, outputs] = self.sizes(x, weight);
        let taps = self.taps();
        let to_x = wanted[0].then(|| {
            let weight = in_order(weight);
            let transposed = Weights {
                data: Values::of(&weight),
                outputs: channels,
                tap: 1,
                channel: channels * taps,
                output: taps,
            };
            let rows = m / self.positions(|axis| axis.to) * self.positions(|axis| axis.from);
            let data = floats(&grad);
            let values = match self.turned().tiles([rows, outputs, channels]) {
                Some(tiles) => {
                    let images = Images {
                        data,
                        channels: outputs,
                        tiles: &tiles,
                    };
                    winograd::product(images, transposed, true, None)
                }
                None => {
                    let gather = &self.gather().inverse();
                    let grad = Rows {
                        data,
                        channels: outputs,
                        gather,
                    };
                    product(grad, transposed, None, rows)
                }
            };
            tensor(values, super::shape(x))
        });
        let to_weight = wanted[1].then(|| {
            let x = contiguous(x);
            let (data, grad) = (floats(&x), floats(&grad));
            let values = match self.tiles([m, channels, outputs]) {
                Some(tiles) => {
                    let images = Images {
                        data,
                        channels,
                        tiles: &tiles,
                    };
                    winograd::weight_gradient(images, grad, outputs)
                }
                None => {
                    let gather = &self.gather();
                    let x = Rows {
                        data,
                        channels,
                        gather,
                    };
                    let found = weight_gradient(x, grad, m, outputs);
                    // From [taps, out, in] to [out, in, taps].
                    simd::by_rows(
                        outputs,
                        channels * taps,
                        #[inline(always)]
                        |output, line| {
                            for (channel, to) in line.chunks_exact_mut(taps).enumerate() {
                                for (tap, to) in to.iter_mut().enumerate() {
                                    *to = found[(tap * outputs + output) * channels + channel];
                                }
                            }
                        },
                    )
                }
            };
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
