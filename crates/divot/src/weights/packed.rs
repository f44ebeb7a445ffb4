//! Packed matrices in safetensors files.
//!
//! The weights of a language model's linear layers are stored as [`PackedLinear`] has them in memory, so that loading
//! only maps them: a tensor of bytes, `[panels, blocks, bytes]`, under the weight's own name. The file's metadata says
//! that it has such tensors, and how many outputs the padded ones have. The number of bytes of a block tells 8 bits
//! from 4.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Bytes, DType, TensorData, f16};
use divot_nn::{BLOCK, PANEL, PackedLinear, Quantization, SharedBytes};

use super::layout::{CastProblem, cast};
use super::safetensors::Entry;
use super::{DAMAGED, WeightsError};

/// What this encoding is called in metadata.
pub(super) const NAME: &str = "packed";

/// The key of the metadata with numbers of outputs.
pub(super) const OUTPUTS: &str = "divot_outputs";

/// The linear layers of a decoder's layer. Those with LoRA have other names, and are not packed.
const LAYERS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// Returns whether a parameter is packed when it is stored in few bits: the weight of a linear layer of a decoder.
pub(super) fn applies(name: &str, shape: &[usize]) -> bool {
    let linear = name.strip_suffix(".weight").is_some_and(|layer| {
        let within = layer.strip_prefix("llm.layers.");
        let within = within.and_then(|layer| layer.split_once('.'));
        layer == "llm.lm_head" || within.is_some_and(|(_, layer)| LAYERS.contains(&layer))
    });
    linear && shape.len() == 2 && shape[0] > 0 && shape[0].is_multiple_of(BLOCK) && shape[1] > 0
}

/// Returns the shape of a packed matrix `[input, output]` in a file.
pub(super) fn stored_shape(shape: [usize; 2], quantization: Quantization) -> Vec<usize> {
    let [input, output] = shape;
    let block = quantization.packed_bytes([BLOCK, 1]);
    vec![output.div_ceil(PANEL), input / BLOCK, block]
}

/// Returns the metadata of a file with these packed matrices: the numbers of outputs that 32 does not divide, by name,
/// in JSON.
pub(super) fn outputs(matrices: impl Iterator<Item = (String, usize)>) -> Option<String> {
    let padded: BTreeMap<_, _> = matrices.filter(|(_, n)| !n.is_multiple_of(PANEL)).collect();
    let json = serde_json::to_string(&padded).ok();
    json.filter(|_| !padded.is_empty())
}

/// Gives packed matrices the shapes of their parameters, `[input, output]`.
pub(super) fn name_shapes(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &mut BTreeMap<String, Entry>,
) -> Result<(), WeightsError> {
    let outputs = metadata.get(OUTPUTS).map_or("{}", String::as_str);
    let outputs: BTreeMap<String, usize> = serde_json::from_str(outputs).map_err(|error| {
        let problem = format!("has invalid metadata, `{OUTPUTS}` ({error})");
        WeightsError::file(path, problem, DAMAGED)
    })?;
    for (name, entry) in tensors {
        let (DType::U8, &[panels, blocks, bytes]) = (entry.dtype, &entry.shape[..]) else {
            continue;
        };
        let bits = [Quantization::Q8, Quantization::Q4];
        let found = bits
            .into_iter()
            .find(|bits| bytes == bits.packed_bytes([BLOCK, 1]));
        let output = outputs.get(name).copied().or(panels.checked_mul(PANEL));
        let fits = |output: usize| panels > 0 && blocks > 0 && output.div_ceil(PANEL) == panels;
        let (Some(bits), Some(output)) = (found, output.filter(|output| fits(*output))) else {
            let problem = format!("is no packed matrix, with the shape {:?}", entry.shape);
            return Err(WeightsError::tensor(name, problem, DAMAGED).in_file(path));
        };
        entry.packed = Some(bits);
        entry.shape = vec![blocks * BLOCK, output];
    }
    Ok(())
}

/// Packs a parameter in f32.
///
/// # Errors
/// If a value is too large for a scale in f16.
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
        // The scale that errs least may be a little larger than an eighth.
        Quantization::Q4 => 5.0,
    } * f16::MAX.to_f32();
    if let Some(index) = weights.iter().position(|x| x.abs() > largest) {
        let value = weights[index].into();
        let to = bits_name(quantization);
        return Err(CastProblem::TooLarge { index, value, to }.into_error(name));
    }
    let packed = PackedLinear::pack(weights, [input, output], quantization);
    let bytes = Bytes::from_bytes_vec(packed.packed().to_vec());
    let shape = stored_shape([input, output], quantization);
    Ok(TensorData::from_bytes(bytes, shape, DType::U8))
}

/// Returns what users call these bits.
pub(super) fn bits_name(quantization: Quantization) -> &'static str {
    match quantization {
        Quantization::Q8 => "q8",
        Quantization::Q4 => "q4",
    }
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

/// Returns the values of a matrix in `dtype`, from its stored bytes.
///
/// # Errors
/// If a scale is not finite, or `dtype` cannot represent a value.
pub(super) fn restore(
    name: &str,
    quantization: Quantization,
    bytes: SharedBytes,
    shape: &[usize],
    dtype: DType,
) -> Result<Bytes, WeightsError> {
    let &[input, output] = shape else {
        return Err(WeightsError::tensor(name, "is no matrix", DAMAGED));
    };
    let weights = layer(name, quantization, bytes, [input, output])?.weights();
    cast(Bytes::from_elems(weights), DType::F32, dtype).map_err(|problem| problem.into_error(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_layers_of_a_decoder_are_packed() {
        for (name, shape, packed) in [
            ("llm.layers.12.mlp.down_proj.weight", &[96, 64][..], true),
            ("llm.lm_head.weight", &[64, 33], true),
            ("llm.layers.0.mlp.down_proj.weight", &[48, 64], false),
            ("llm.layers.0.input_layernorm.gamma", &[64], false),
            (
                "llm.layers.0.self_attn.q_proj.lora_a.weight",
                &[64, 32],
                false,
            ),
            (
                "llm.layers.0.self_attn.q_proj.base.weight",
                &[64, 64],
                false,
            ),
            ("llm.embed_tokens.weight", &[64, 64], false),
            ("unet.layers.0.mlp.up_proj.weight", &[64, 64], false),
        ] {
            assert_eq!(applies(name, shape), packed, "{name}");
        }
    }
}
