//! Linear layers with weights of 8 or 4 bits.
//!
//! On a GPU these are Burn's quantised tensors. On the CPU, Burn 0.22 stores every value of such a tensor
//! in a byte, and converts the whole matrix to f32 for each product, on one thread. [`PackedLinear`] keeps
//! the weights packed there, rounds the inputs to 8 bits, and multiplies in integers.

#![allow(unsafe_code)]

mod inputs;
mod lanes;
mod matrix;
mod product;

use std::ops::Range;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::quantization::{QuantScheme, QuantValue, ScaleDtype};
use burn::tensor::{DType, Tensor, TensorData, f16};
use serde::{Deserialize, Serialize};

use crate::profile::{self, Pass};
use crate::rounding::{BLOCK, block_scale, nearest_step};
use crate::vectorised;
use inputs::Inputs;
use matrix::Matrix;
use product::{Instructions, product};

pub use matrix::{PANEL, SharedBytes};

/// Number of bits of a quantised weight.
///
/// Blocks of 32 values share a scale in f16, so on the CPU a weight takes 8.5 or 4.5 bits. A block is
/// neighbouring inputs of one output on the CPU, and neighbouring outputs of one input on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Quantization {
    /// 8 bits: 255 steps.
    Q8,
    /// 4 bits: 15 steps on a GPU. On the CPU 16, with the scale that errs least.
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

/// A linear layer without bias, with quantised weights packed in host memory, for inference only.
///
/// The inputs are rounded to 8 bits, in blocks of 32 with a scale each, and multiplied with the packed weights in
/// integers. That changes results by about half a percent of their size (root mean square, normal inputs). Sums of blocks are in f32.
///
/// A result is NaN if one of its inputs is not finite.
#[derive(Module, Debug)]
pub struct PackedLinear {
    #[module(skip)]
    matrix: Arc<Matrix>,
}

impl PackedLinear {
    /// Quantises and packs the weights of a layer. They must be finite.
    ///
    /// # Panics
    /// If the number of inputs is not a multiple of 32, or the layer has a bias.
    pub fn new(linear: Linear, quantization: Quantization) -> Self {
        assert!(linear.bias.is_none(), "a packed layer has no bias");
        let weight = linear.weight.val();
        let [input, output] = weight.dims();
        assert_whole_blocks(input);
        Self::of(Matrix::pack(quantization, [input, output], |outputs| {
            let slab = weight.clone().narrow(1, outputs.start, outputs.len());
            let slab = slab.cast(DType::F32).into_data();
            let slab = slab.as_slice::<f32>().expect("it was cast to f32");
            quantization.round_columns(slab, outputs.len(), 0..outputs.len())
        }))
    }

    /// Quantises and packs weights in f32, `[input, output]`. They must be finite.
    ///
    /// # Panics
    /// If the number of inputs is not a multiple of 32, or the length does not fit.
    pub fn pack(weights: &[f32], shape: [usize; 2], quantization: Quantization) -> Self {
        assert_whole_blocks(shape[0]);
        assert_eq!(weights.len(), shape[0] * shape[1], "weights of {shape:?}");
        Self::of(Matrix::pack(quantization, shape, |outputs| {
            quantization.round_columns(weights, shape[1], outputs)
        }))
    }

    fn of(matrix: Matrix) -> Self {
        Self {
            matrix: Arc::new(matrix),
        }
    }

    /// Packs weights that are [`Rounded`](crate::Rounded), as they are. Steps and scales are those of the
    /// transposed matrix: `[output, input]` and `[output, input / 32]`.
    ///
    /// # Panics
    /// If the number of inputs is not a multiple of 32, or the lengths do not fit.
    pub fn from_rounded(steps: &[u8], scales: &[f16], [input, output]: [usize; 2]) -> Self {
        assert_whole_blocks(input);
        assert_eq!(steps.len(), input * output, "a step for each weight");
        assert_eq!(scales.len() * BLOCK, steps.len(), "a scale for each block");
        Self::of(Matrix::pack(Quantization::Q8, [input, output], |outputs| {
            let blocks = outputs.start * input / BLOCK..outputs.end * input / BLOCK;
            let steps = &steps.as_chunks::<BLOCK>().0[blocks.clone()];
            let of_block = |(steps, scale): (&[u8; BLOCK], &f16)| (steps.map(|x| x as i8), *scale);
            steps.iter().zip(&scales[blocks]).map(of_block).collect()
        }))
    }

    /// Takes a matrix `[input, output]` that is packed already, see [`packed`](Self::packed).
    ///
    /// # Panics
    /// If the number of inputs is not a multiple of 32, or the length is not
    /// [`packed_bytes`](Quantization::packed_bytes).
    pub fn from_packed(
        quantization: Quantization,
        bytes: SharedBytes,
        [input, output]: [usize; 2],
    ) -> Self {
        assert_whole_blocks(input);
        let expected = quantization.packed_bytes([input, output]);
        assert_eq!(bytes.len(), expected, "bytes of packed weights");
        Self::of(Matrix {
            quantization,
            input,
            output,
            bytes,
        })
    }

    /// Returns the packed weights: `[panels of 32 outputs, blocks of 32 inputs, bytes]`. The last panel is padded.
    ///
    /// A block starts with the scale of each output, in f16. Groups of 128 bytes follow, four for each output. With
    /// 8 bits, a group holds the steps of four neighbouring inputs, with 128 added. With 4 bits, it holds those of
    /// four inputs of the first half of the block in the low bits, and those of the inputs 16 further in the high
    /// bits, with 8 added.
    pub fn packed(&self) -> &SharedBytes {
        &self.matrix.bytes
    }

    /// Returns the weights, `[input, output]`, in f32.
    pub fn weights(&self) -> Vec<f32> {
        self.matrix.restore()
    }

    /// Returns whether all scales are finite. Otherwise the packed weights are damaged.
    pub fn scales_are_finite(&self) -> bool {
        self.matrix.scales_are_finite()
    }

    /// Returns the size of the packed weights, in bytes.
    pub fn bytes(&self) -> usize {
        self.matrix.bytes.len()
    }

    /// Applies the layer: `[batch, tokens, input]` → `[batch, tokens, output]`.
    ///
    /// # Panics
    /// If the width of `x` is not that of the layer.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, tokens, width] = x.dims();
        let (dtype, device) = (x.dtype(), x.device());
        assert_eq!(
            width, self.matrix.input,
            "widths of the input and of the layer"
        );
        let x = x.cast(DType::F32).into_data();
        let x = x.as_slice().expect("it was cast to f32");
        let multiplications = || (x.len() * self.matrix.output) as f64;
        let y = profile::timed("packed linear", Pass::Forward, multiplications, || {
            let inputs = Inputs::round(x, self.matrix.input);
            product(&inputs, &self.matrix, Instructions::best())
        });
        let y = TensorData::new(y, [batch, tokens, self.matrix.output]);
        Tensor::<3>::from_data(y, (&device, DType::F32)).cast(dtype)
    }
}

impl Quantization {
    /// Rounds the blocks of some columns of a matrix with rows of `width` values, column by column.
    fn round_columns(
        self,
        values: &[f32],
        width: usize,
        columns: Range<usize>,
    ) -> Vec<([i8; BLOCK], f16)> {
        let blocks = values.len() / width / BLOCK;
        let mut rounded = vec![([0; BLOCK], f16::ZERO); columns.len() * blocks];
        vectorised(
            #[inline(always)]
            || {
                for (block, rows) in values.chunks_exact(BLOCK * width).enumerate() {
                    for (i, column) in columns.clone().enumerate() {
                        let mut values = [0.0; BLOCK];
                        for (value, row) in values.iter_mut().zip(rows.chunks_exact(width)) {
                            *value = row[column];
                        }
                        rounded[i * blocks + block] = self.round(&values);
                    }
                }
            },
        );
        rounded
    }

    /// Rounds a block of weights: its steps and its scale.
    #[inline(always)]
    fn round(self, block: &[f32; BLOCK]) -> ([i8; BLOCK], f16) {
        match self {
            Self::Q8 => round_8(block),
            Self::Q4 => round_4(block),
        }
    }
}

/// Rounds by Burn's scheme: steps from -127 to 127, of which the largest magnitude becomes the last.
#[inline(always)]
fn round_8(block: &[f32; BLOCK]) -> ([i8; BLOCK], f16) {
    let peak = block
        .iter()
        .fold(0f32, |peak, weight| peak.max(weight.abs()));
    let scale = block_scale(peak, 127.0);
    let steps = block.map(|weight| nearest_step(weight, 1.0 / scale, 127.0));
    (steps, f16::from_f32(scale))
}

/// Rounds to steps from -8 to 7. Of a few scales, it takes the one with the least sum of squared errors.
///
/// The weight of the largest magnitude is about -8 steps, so that a scale may be negative. For each choice of steps,
/// the scale is the least-squares one.
#[inline(always)]
fn round_4(block: &[f32; BLOCK]) -> ([i8; BLOCK], f16) {
    let mut peak = 0f32;
    for &weight in block {
        if weight.abs() > peak.abs() {
            peak = weight;
        }
    }
    if peak == 0.0 {
        return ([0; BLOCK], f16::ZERO);
    }
    let mut best = (f32::NEG_INFINITY, [0f32; BLOCK], 0f32);
    for tenth in -9..=9 {
        let inverse = -(8.0 + 0.1 * tenth as f32) / peak;
        let mut steps = [0f32; BLOCK];
        let (mut products, mut squares) = ([0f32; BLOCK], [0f32; BLOCK]);
        for i in 0..BLOCK {
            let step = (block[i] * inverse).clamp(-8.0, 7.0).round_ties_even();
            steps[i] = step;
            products[i] = block[i] * step;
            squares[i] = step * step;
        }
        let (product, square): (f32, f32) = (products.iter().sum(), squares.iter().sum());
        // The squared error is that of zeros less this.
        let explained = product * product / square;
        if explained > best.0 {
            best = (explained, steps, product / square);
        }
    }
    let (_, steps, scale) = best;
    (steps.map(|step| step as i8), f16::from_f32(scale))
}

#[cfg(test)]
mod tests {
    use burn::tensor::quantization::QuantizedBytes;
    use burn::tensor::{Device, Distribution};

    use super::*;
    use crate::{Noise, Rounded};

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
        let restored_floats = Rounded::restore(&steps, &scales, output);
        let restored = TensorData::new(restored_floats.clone(), [input, output]);
        let restored = Tensor::from_data(restored, &Device::flex());

        let transposed_steps = (0..output).flat_map(|o| (0..input).map(move |i| i * output + o));
        let transposed_scales =
            (0..output).flat_map(|o| (0..input / BLOCK).map(move |i| i * output + o));
        let steps: Vec<u8> = transposed_steps.map(|i| steps[i]).collect();
        let scales: Vec<f16> = transposed_scales.map(|i| scales[i]).collect();
        let taken = PackedLinear::from_rounded(&steps, &scales, [input, output]);
        assert_eq!(taken.weights(), restored_floats);
        // Rounding what is rounded changes nothing.
        for again in [packed(weights), packed(restored)] {
            assert!(**again.packed() == **taken.packed());
        }
    }

    #[test]
    fn eight_bits_are_burns() {
        let weights = Tensor::<2>::random(
            [24, 3 * BLOCK],
            Distribution::Normal(0.0, 0.02),
            &Device::flex(),
        );
        let data = weights
            .clone()
            .quantize_dynamic(&Quantization::Q8.scheme())
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
        for (i, block) in floats.as_chunks::<BLOCK>().0.iter().enumerate() {
            let (steps, scale) = Quantization::Q8.round(block);
            assert_eq!(steps, values[i * BLOCK..][..BLOCK]);
            assert_eq!(scale.to_f32(), decoded.block[i]);
        }
    }

    #[test]
    fn four_bits_err_less_than_rounding_to_the_largest() {
        let mut noise = Noise::new(11);
        let (mut ours, mut plain) = (0.0, 0.0);
        for _ in 0..2000 {
            let block = [(); BLOCK].map(|()| noise.uniform() as f32 + noise.uniform() as f32 - 1.0);
            let peak = block.iter().fold(0f32, |peak, x| peak.max(x.abs()));
            let (steps, scale) = Quantization::Q4.round(&block);
            assert!(steps.iter().all(|step| (-8..8).contains(step)));
            for (step, x) in steps.iter().zip(block) {
                ours += (f32::from(*step) * scale.to_f32() - x).powi(2);
                plain += ((x / peak * 7.0).round() * peak / 7.0 - x).powi(2);
            }
        }
        assert!(ours < 0.75 * plain, "{ours} and {plain}");
        assert_eq!(
            Quantization::Q4.round(&[0.0; BLOCK]),
            ([0; BLOCK], f16::ZERO)
        );
        let tiny = Quantization::Q4.round(&[f32::MIN_POSITIVE; BLOCK]);
        assert_eq!(tiny.1, f16::ZERO);
    }

    /// With scales of 1 and few blocks, f32 holds every sum exactly.
    #[test]
    fn products_are_exact_with_all_instructions() {
        let mut noise = Noise::new(7);
        for (quantization, least, most) in
            [(Quantization::Q8, -127, 127), (Quantization::Q4, -8, 7)]
        {
            for (input, output) in [(32, 1), (96, 16), (64, 40), (160, 129), (1024, 300)] {
                let mut between = |least: i64, most: i64, extreme: bool| match extreme {
                    true if noise.uniform() < 0.5 => least as i8,
                    true => most as i8,
                    false => (least + ((most - least + 1) as f64 * noise.uniform()) as i64) as i8,
                };
                let weights: Vec<i8> = (0..input * output)
                    .map(|i| between(least, most, i / input % 2 == 0))
                    .collect();
                let matrix = Matrix::pack(quantization, [input, output], |outputs| {
                    let of = &weights[outputs.start * input..outputs.end * input];
                    let blocks = of.as_chunks().0.iter();
                    blocks.map(|steps| (*steps, f16::ONE)).collect()
                });
                for rows in [1, 2, 3, 5, 6, 13, 150] {
                    let steps: Vec<i8> = (0..rows * input)
                        .map(|i| between(-127, 127, i / input % 3 == 0))
                        .collect();
                    let sums = steps.as_chunks::<BLOCK>().0.iter();
                    let sums = sums.map(|block| block.iter().map(|x| i32::from(*x)).sum());
                    let inputs = Inputs {
                        width: input,
                        scales: vec![1.0; steps.len() / BLOCK],
                        sums: sums.collect(),
                        steps: steps.clone(),
                    };
                    let expected: Vec<f32> = steps
                        .chunks(input)
                        .flat_map(|x| weights.chunks(input).map(move |w| (x, w)))
                        .map(|(x, w)| {
                            let products =
                                x.iter().zip(w).map(|(x, w)| i64::from(*x) * i64::from(*w));
                            products.sum::<i64>() as f32
                        })
                        .collect();
                    for instructions in Instructions::all() {
                        let found = product(&inputs, &matrix, instructions);
                        assert!(
                            found == expected,
                            "{quantization:?}, {instructions:?}: {rows} rows, {input} to {output}"
                        );
                    }
                }
            }
        }
    }
}
