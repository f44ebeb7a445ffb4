//! Packed matrices in safetensors files.
//!
//! The weights of a language model's linear layers are stored as [`PackedLinear`] has them in memory, so that loading
//! only maps them: a tensor of bytes, `[panels, blocks, bytes]`, under the weight's own name. The file's metadata says
//! that it has such tensors. The number of bytes of a block tells 8 bits from 4.

use burn::tensor::{Bytes, DType, TensorData, f16};
use divot_nn::{BLOCK, PackedLinear, Quantization, SharedBytes};

use super::layout::CastProblem;
use super::safetensors::Entry;
use super::{DAMAGED, WeightsError};

/// What this encoding is called in metadata.
pub(super) const NAME: &str = "packed";

/// Returns whether a parameter is packed when it is stored in few bits: the weight of a linear layer of a decoder.
pub(super) fn applies(name: &str, shape: &[usize]) -> bool {
    let linear = name
        .strip_suffix(".weight")
        .is_some_and(|layer| layer == "llm.lm_head" || layer.starts_with("llm.layers."));
    linear && shape.len() == 2 && shape[0] > 0 && shape[0].is_multiple_of(BLOCK) && shape[1] > 0
}

/// Returns the shape of a packed matrix `[input, output]` in a file.
pub(super) fn stored_shape(shape: [usize; 2], quantization: Quantization) -> Vec<usize> {
    let block = quantization.packed_bytes([BLOCK, 1]);
    let blocks = shape[0] / BLOCK;
    let panels = quantization.packed_bytes(shape) / (blocks * block).max(1);
    vec![panels, blocks, block]
}

/// Returns the bits of a packed matrix, or `None` if an entry is none.
pub(super) fn quantization(entry: &Entry) -> Option<Quantization> {
    let [_, _, block] = entry.shape[..] else {
        return None;
    };
    [Quantization::Q8, Quantization::Q4]
        .into_iter()
        .find(|bits| entry.dtype == DType::U8 && block == bits.packed_bytes([BLOCK, 1]))
}

/// Packs a parameter in f32.
///
/// # Errors
/// If a value is not finite, or too large for a scale in f16.
pub(super) fn pack(
    name: &str,
    data: &TensorData,
    quantization: Quantization,
) -> Result<TensorData, WeightsError> {
    let (Ok(weights), &[input, output]) = (data.as_slice::<f32>(), &data.shape()[..]) else {
        return Err(CastProblem::NotFloat(data.dtype()).into_error(name));
    };
    let largest = match quantization {
        Quantization::Q8 => 127.0,
        Quantization::Q4 => 7.0,
    } * f16::MAX.to_f32();
    if let Some(index) = weights.iter().position(|x| x.is_nan() || x.abs() > largest) {
        let value = weights[index].into();
        let to = match quantization {
            Quantization::Q8 => "q8",
            Quantization::Q4 => "q4",
        };
        return Err(CastProblem::TooLarge { index, value, to }.into_error(name));
    }
    let packed = PackedLinear::pack(weights, [input, output], quantization);
    let bytes = Bytes::from_bytes_vec(packed.packed().to_vec());
    let shape = stored_shape([input, output], quantization);
    Ok(TensorData::from_bytes(bytes, shape, DType::U8))
}

/// Returns the layer of a matrix `[input, output]`, from its stored bytes.
///
/// # Errors
/// If a scale is not finite.
pub(super) fn layer(
    name: &str,
    quantization: Quantization,
    bytes: SharedBytes,
    shape: [usize; 2],
) -> Result<PackedLinear, WeightsError> {
    let packed = PackedLinear::from_packed(quantization, bytes, shape);
    match packed.scales_are_finite() {
        true => Ok(packed),
        false => Err(WeightsError::tensor(
            name,
            "has a scale that is not finite",
            DAMAGED,
        )),
    }
}
