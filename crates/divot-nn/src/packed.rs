//! Linear layers with weights of 8 or 4 bits.
//!
//! On a GPU these are Burn's quantised tensors. On the CPU, Burn 0.22 stores every value of such a tensor
//! in a byte, and converts the whole matrix to f32 for each product, on one thread. [`PackedLinear`] keeps
//! the weights packed there and multiplies the packed values directly.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::quantization::{QuantScheme, QuantValue, ScaleDtype};
use burn::tensor::{DType, Device, Tensor, TensorData, f16};
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::rounding::{BLOCK, block_scale, nearest_step};
use crate::vectorised;

/// Number of bits of a quantised weight.
///
/// Blocks of 32 values share a scale in f16, so on the CPU a weight takes 8.5 or 4.5 bits. A block is
/// neighbouring inputs of one output on the CPU, and neighbouring outputs of one input on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Quantization {
    /// 8 bits: 255 steps.
    Q8,
    /// 4 bits: 15 steps.
    Q4,
}

impl Quantization {
    fn scheme(self) -> QuantScheme {
        QuantScheme::default()
            .with_value(match self {
                Self::Q8 => QuantValue::Q8S,
                Self::Q4 => QuantValue::Q4S,
            })
            .per_block([BLOCK as u8], ScaleDtype::F16)
    }

    /// Quantises a layer with Burn's own tensors, for a GPU. The weight is frozen.
    ///
    /// # Panics
    /// If the number of outputs is not a multiple of 32.
    pub fn quantize(self, linear: Linear) -> Linear {
        let weight = linear.weight.val();
        assert_whole_blocks(weight.dims()[1]);
        let weight = weight.quantize_dynamic(&self.scheme());
        Linear {
            weight: Param::from_tensor(weight).set_require_grad(false),
            bias: linear.bias,
        }
    }

    /// Returns whether a layer can be quantised, which is the case if its width along the blocks is a
    /// multiple of 32. That is the number of inputs for [`PackedLinear`] (`on_host`), and of outputs for
    /// [`quantize`](Self::quantize).
    pub fn fits(linear: &Linear, on_host: bool) -> bool {
        let [input, output] = linear.weight.lazy_shape().dims();
        let along = if on_host { input } else { output };
        along.is_multiple_of(BLOCK)
    }
}

fn assert_whole_blocks(width: usize) {
    assert!(
        width.is_multiple_of(BLOCK),
        "blocks of {BLOCK} do not divide a width of {width}"
    );
}

/// A linear layer without bias, with quantised weights packed in host memory. It computes in f32, for
/// inference only.
#[derive(Module, Debug)]
pub struct PackedLinear {
    #[module(skip)]
    matrix: Arc<Matrix>,
}

/// A quantised matrix `[output, input]`, row by row.
struct Matrix {
    quantization: Quantization,
    input: usize,
    output: usize,
    /// The values. With 8 bits, each has a byte. With 4 bits, the second half of a block is in the high
    /// bits of the bytes of the first half.
    values: Vec<u8>,
    /// The scale of each block.
    scales: Vec<f16>,
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?} [{}, {}]",
            self.quantization, self.output, self.input
        )
    }
}

/// Half a block: the number of values that are computed at once.
const LANES: usize = BLOCK / 2;

/// Number of outputs that are quantised at once, or unpacked at once for a product with many rows. It
/// limits the memory.
const SLAB: usize = 512;

/// Number of outputs computed side by side.
const TOGETHER: usize = 4;

/// Products with up to this number of input rows read the packed values once for each row. Larger products
/// unpack the weights.
const FEW_ROWS: usize = 8;

impl PackedLinear {
    /// Quantises and packs the weights of a layer.
    ///
    /// # Panics
    /// If the number of inputs is not a multiple of 32, or the layer has a bias.
    pub fn new(linear: Linear, quantization: Quantization) -> Self {
        assert!(linear.bias.is_none(), "a packed layer has no bias");
        let weight = linear.weight.val();
        let [input, output] = weight.dims();
        assert_whole_blocks(input);
        let mut matrix = Matrix {
            quantization,
            input,
            output,
            values: Vec::with_capacity(output * quantization.bytes(input)),
            scales: Vec::with_capacity(output * input / BLOCK),
        };
        let slabs: Vec<(Vec<u8>, Vec<f16>)> = (0..output)
            .step_by(SLAB)
            .collect::<Vec<_>>()
            .into_par_iter()
            .map(|start| {
                let slab = weight.clone().narrow(1, start, SLAB.min(output - start));
                let rows = slab.transpose().cast(DType::F32).into_data();
                let rows = rows.as_slice().expect("it was cast to f32");
                let mut packed = (Vec::new(), Vec::new());
                vectorised(
                    #[inline(always)]
                    || packed = quantization.pack(rows),
                );
                packed
            })
            .collect();
        for (values, scales) in slabs {
            matrix.values.extend(values);
            matrix.scales.extend(scales);
        }
        Self {
            matrix: Arc::new(matrix),
        }
    }

    /// Packs weights that are [`Rounded`](crate::Rounded), as they are. Steps and scales are those of the
    /// transposed matrix: `[output, input]` and `[output, input / 32]`.
    ///
    /// # Panics
    /// If the number of inputs is not a multiple of 32, or the lengths do not fit.
    pub fn from_rounded(steps: Vec<u8>, scales: Vec<f16>, [input, output]: [usize; 2]) -> Self {
        assert_whole_blocks(input);
        assert_eq!(steps.len(), input * output, "a step for each weight");
        assert_eq!(scales.len() * BLOCK, steps.len(), "a scale for each block");
        Self {
            matrix: Arc::new(Matrix {
                quantization: Quantization::Q8,
                input,
                output,
                values: steps,
                scales,
            }),
        }
    }

    /// Returns the size of the packed weights in host memory, in bytes.
    pub fn bytes(&self) -> usize {
        self.matrix.values.len() + 2 * self.matrix.scales.len()
    }

    /// Applies the layer: `[batch, tokens, input]` → `[batch, tokens, output]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, tokens, _] = x.dims();
        let (dtype, device) = (x.dtype(), x.device());
        let x = x.cast(DType::F32);
        let y = if batch * tokens <= FEW_ROWS {
            let rows = x.into_data();
            let y = self
                .matrix
                .multiply(rows.as_slice().expect("it was cast to f32"));
            let shape = [batch, tokens, self.matrix.output];
            Tensor::from_data(TensorData::new(y, shape), (&device, DType::F32))
        } else {
            let slabs = (0..self.matrix.output).step_by(SLAB).map(|start| {
                let slab = self.matrix.unpack(start, &device);
                x.clone().matmul(slab.transpose().unsqueeze())
            });
            Tensor::cat(slabs.collect(), 2)
        };
        y.cast(dtype)
    }
}

impl Quantization {
    /// Returns the size of this number of values, in bytes.
    fn bytes(self, values: usize) -> usize {
        match self {
            Self::Q8 => values,
            Self::Q4 => values / 2,
        }
    }

    /// Quantises whole blocks to values and scales with Burn's scheme.
    #[inline(always)]
    fn pack(self, weights: &[f32]) -> (Vec<u8>, Vec<f16>) {
        let (_, last_step) = self.scheme().value.range();
        let mut values = Vec::with_capacity(self.bytes(weights.len()));
        let mut scales = Vec::with_capacity(weights.len() / BLOCK);
        for block in weights.chunks_exact(BLOCK) {
            let peak = block
                .iter()
                .fold(0f32, |peak, weight| peak.max(weight.abs()));
            let scale = block_scale(peak, last_step);
            let inverse = 1.0 / scale;
            let steps = block
                .iter()
                .map(|weight| nearest_step(*weight, inverse, last_step));
            match self {
                Self::Q8 => values.extend(steps.map(|step| step as u8)),
                Self::Q4 => {
                    let mut nibbles = [0; BLOCK];
                    for (nibble, step) in nibbles.iter_mut().zip(steps) {
                        *nibble = (step + 8) as u8;
                    }
                    values.extend((0..LANES).map(|i| nibbles[i] | nibbles[i + LANES] << 4));
                }
            }
            scales.push(f16::from_f32(scale));
        }
        (values, scales)
    }

    /// Returns the values `i` and `i + LANES` of a block.
    #[inline(always)]
    fn pair(self, block: &[u8], i: usize) -> (f32, f32) {
        match self {
            Self::Q8 => (f32::from(block[i] as i8), f32::from(block[i + LANES] as i8)),
            Self::Q4 => {
                let (low, high) = (block[i] & 15, block[i] >> 4);
                (f32::from(low as i8 - 8), f32::from(high as i8 - 8))
            }
        }
    }
}

/// Computes the products of a few packed rows, each with its scales, with a row of inputs. A block has
/// `BYTES` bytes. Sums are separate for each lane and sizes are constant, so that the compiler vectorises
/// the loops. Reading several rows side by side hides the latency of memory.
#[inline(always)]
fn dots<const BYTES: usize>(
    quantization: Quantization,
    rows: [(&[u8], &[f32]); TOGETHER],
    x: &[f32],
) -> [f32; TOGETHER] {
    let x = x.as_chunks::<BLOCK>().0;
    let rows = rows.map(|(values, scales)| {
        let values = values.as_chunks::<BYTES>().0;
        (&values[..x.len()], &scales[..x.len()])
    });
    let mut sums = [[0f32; LANES]; TOGETHER];
    for (block, x) in x.iter().enumerate() {
        for ((values, scales), sums) in rows.iter().zip(&mut sums) {
            let (values, scale) = (&values[block], scales[block]);
            for i in 0..LANES {
                let (low, high) = quantization.pair(values, i);
                sums[i] += scale * (low * x[i] + high * x[i + LANES]);
            }
        }
    }
    sums.map(|sums| sums.iter().sum())
}

impl Matrix {
    /// Returns the values and scales of an output.
    fn row(&self, output: usize) -> (&[u8], &[f16]) {
        let bytes = self.quantization.bytes(self.input);
        let blocks = self.input / BLOCK;
        (
            &self.values[output * bytes..][..bytes],
            &self.scales[output * blocks..][..blocks],
        )
    }

    /// Unpacks up to [`SLAB`] rows from `start` on, in f32.
    fn unpack(&self, start: usize, device: &Device) -> Tensor<2> {
        let rows = SLAB.min(self.output - start);
        let mut weights = vec![0f32; rows * self.input];
        weights
            .par_chunks_exact_mut(self.input)
            .enumerate()
            .for_each(|(i, weights)| {
                vectorised(
                    #[inline(always)]
                    || {
                        let (values, scales) = self.row(start + i);
                        let bytes = self.quantization.bytes(BLOCK);
                        let blocks = weights
                            .chunks_exact_mut(BLOCK)
                            .zip(values.chunks_exact(bytes));
                        for ((weights, values), scale) in blocks.zip(scales) {
                            let scale = scale.to_f32();
                            for i in 0..LANES {
                                let (low, high) = self.quantization.pair(values, i);
                                weights[i] = low * scale;
                                weights[i + LANES] = high * scale;
                            }
                        }
                    },
                )
            });
        let data = TensorData::new(weights, [rows, self.input]);
        Tensor::from_data(data, (device, DType::F32))
    }

    /// Multiplies without unpacking the matrix: `[rows, input]` → `[rows, output]`.
    fn multiply(&self, x: &[f32]) -> Vec<f32> {
        let rows = x.len() / self.input;
        // Computed as [output, rows], because threads share the outputs.
        let mut columns = vec![0f32; self.output * rows];
        let outputs = self
            .output
            .div_ceil(4 * rayon::current_num_threads())
            .max(TOGETHER);
        columns
            .par_chunks_mut(outputs * rows)
            .enumerate()
            .for_each(|(chunk, columns)| {
                vectorised(
                    #[inline(always)]
                    || self.multiply_some(chunk * outputs, x, columns),
                );
            });
        if rows == 1 {
            return columns;
        }
        (0..rows)
            .flat_map(|row| columns.iter().skip(row).step_by(rows).copied())
            .collect()
    }

    /// Computes the outputs from `first` on, `[outputs, rows]`. Outputs computed side by side are far
    /// apart, so that each reads a long run of memory, which the processor prefetches.
    #[inline(always)]
    fn multiply_some(&self, first: usize, x: &[f32], columns: &mut [f32]) {
        let (rows, blocks) = (x.len() / self.input, self.input / BLOCK);
        let outputs = columns.len() / rows;
        let quarter = outputs.div_ceil(TOGETHER);
        let mut scales = vec![0f32; TOGETHER * blocks];
        for i in 0..quarter {
            let outputs = [0, 1, 2, 3].map(|j| (i + j * quarter).min(outputs - 1));
            let packed = outputs.map(|output| self.row(first + output));
            for (scales, (_, halves)) in scales.chunks_exact_mut(blocks).zip(packed) {
                halves.convert_to_f32_slice(scales);
            }
            let side = [0, 1, 2, 3].map(|j| (packed[j].0, &scales[j * blocks..(j + 1) * blocks]));
            for (row, x) in x.chunks_exact(self.input).enumerate() {
                // Matched outside of the loops, so that these are compiled for each variant.
                let found = match self.quantization {
                    Quantization::Q8 => dots::<BLOCK>(Quantization::Q8, side, x),
                    Quantization::Q4 => dots::<LANES>(Quantization::Q4, side, x),
                };
                for (output, found) in outputs.iter().zip(found) {
                    columns[output * rows + row] = found;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Distribution;
    use burn::tensor::quantization::QuantizedBytes;

    use super::*;
    use crate::Rounded;

    #[test]
    fn rounded_weights_are_what_packing_makes_of_them() {
        let (input, output) = (3 * BLOCK, 40);
        let weights = Tensor::<2>::random(
            [input, output],
            Distribution::Normal(0.0, 0.02),
            &Device::flex(),
        );
        let floats: Vec<f32> = weights.to_data().iter().collect();
        let Rounded { steps, scales } = Rounded::new(&floats, output);
        let packed = |weights| {
            let weight = Param::from_tensor(weights);
            PackedLinear::new(Linear { weight, bias: None }, Quantization::Q8)
        };
        let restored = Rounded::restore(&steps, &scales, output);
        let restored = TensorData::new(restored, [input, output]);
        let restored = Tensor::from_data(restored, &Device::flex());

        let transposed_steps = (0..output).flat_map(|o| (0..input).map(move |i| i * output + o));
        let transposed_scales =
            (0..output).flat_map(|o| (0..input / BLOCK).map(move |i| i * output + o));
        let taken = PackedLinear::from_rounded(
            transposed_steps.map(|i| steps[i]).collect(),
            transposed_scales.map(|i| scales[i]).collect(),
            [input, output],
        );
        // Rounding what is rounded changes nothing.
        for again in [packed(weights), packed(restored)] {
            assert_eq!(again.matrix.values, taken.matrix.values);
            assert_eq!(again.matrix.scales, taken.matrix.scales);
        }
    }

    #[test]
    fn steps_and_scales_are_burns() {
        let weights = Tensor::<2>::random(
            [24, 3 * BLOCK],
            Distribution::Normal(0.0, 0.02),
            &Device::flex(),
        );
        for quantization in [Quantization::Q8, Quantization::Q4] {
            let data = weights
                .clone()
                .quantize_dynamic(&quantization.scheme())
                .into_data();
            let DType::QFloat(scheme) = data.dtype() else {
                panic!("not quantised")
            };
            let shape = data.shape().clone();
            let bytes = data.into_bytes();
            let burns = QuantizedBytes {
                shape,
                bytes,
                scheme,
            };
            let (values, decoded) = burns.into_vec_i8();

            let floats: Vec<f32> = weights.to_data().iter().collect();
            let (packed, scales) = quantization.pack(&floats);
            let scales: Vec<f32> = scales.iter().map(|scale| scale.to_f32()).collect();
            assert_eq!(scales, decoded.block);
            let bytes = quantization.bytes(BLOCK);
            for (block, values) in packed.chunks_exact(bytes).zip(values.chunks_exact(BLOCK)) {
                for i in 0..LANES {
                    let expected = (f32::from(values[i]), f32::from(values[i + LANES]));
                    assert_eq!(quantization.pair(block, i), expected);
                }
            }
        }
    }
}
