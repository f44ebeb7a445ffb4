//! Tensors of 8 bits in safetensors files.
//!
//! A tensor of 8 bits has its steps, as I8, under its own name and shape. Its scales, as F16, are the tensor
//! `NAME.scale`, whose first axis has an entry for 32 of the tensor's. A value is a step times its scale:
//! [`Rounded`] says which scale is whose. The file's metadata says that it has such tensors. Readers that do not
//! know this find a tensor of i8 where they expect floats, and say so.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Bytes, DType, TensorData, f16};
use divot_nn::{BLOCK, Rounded};

use super::layout::{CastProblem, cast, cast_slice};
use super::safetensors::Entry;
use super::{DAMAGED, WeightsError, packed};

/// What this encoding is called in metadata and to users.
pub(super) const NAME: &str = "q8";

/// The key of a file's metadata that names the encoding of its weights. Without it they are plain numbers.
pub(super) const ENCODING: &str = "divot_encoding";

/// Number of values that are restored at once.
const PIECE: usize = 1 << 22;

/// Fewer values than this save too little.
const FEWEST: usize = 1024;

/// Returns whether a parameter of this shape is rounded to 8 bits when it is stored.
///
/// Vectors are not, and neither is what has no whole block along the first axis. An odd number of bytes is not
/// written either, so that the elements of every tensor are aligned in the file, which other readers rely on.
pub(super) fn worthwhile(shape: &[usize]) -> bool {
    let values: usize = shape.iter().product();
    shape.len() >= 2 && shape[0] >= BLOCK && values >= FEWEST && values.is_multiple_of(2)
}

/// Returns the name of a tensor's scales.
pub(super) fn scales_name(name: &str) -> String {
    format!("{name}.scale")
}

/// Returns the shape of a tensor's scales.
pub(super) fn scales_shape(shape: &[usize]) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if let Some(first) = shape.first_mut() {
        *first = first.div_ceil(BLOCK);
    }
    shape
}

/// Says of each tensor how it is encoded: attaches scales to the tensors that they belong to, so that they are no
/// tensors of their own, and marks tensors that are packed.
pub(super) fn read_encoding(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &mut BTreeMap<String, Entry>,
) -> Result<(), WeightsError> {
    match metadata.get(ENCODING).map(String::as_str) {
        None => return Ok(()),
        Some(NAME | packed::NAME) => {}
        Some(other) => {
            let problem = format!("holds weights encoded as `{other}`, which this version cannot");
            let remedy = "use a newer version, or convert the weights again";
            return Err(WeightsError::file(path, problem, remedy));
        }
    }
    if metadata[ENCODING] == packed::NAME {
        packed::name_shapes(path, metadata, tensors)?;
    }
    let rounded = tensors
        .iter()
        .filter(|(_, entry)| entry.dtype == DType::I8)
        .map(|(name, _)| name.clone());
    for name in rounded.collect::<Vec<_>>() {
        let refused = |tensor: &str, problem: String| {
            Err(WeightsError::tensor(tensor, problem, DAMAGED).in_file(path))
        };
        let scales_name = scales_name(&name);
        let Some(scales) = tensors.remove(&scales_name) else {
            return refused(&name, format!("lacks its scales, `{scales_name}`"));
        };
        let Some(entry) = tensors.get_mut(&name) else {
            continue;
        };
        let expected = scales_shape(&entry.shape);
        if expected.is_empty() || scales.dtype != DType::F16 || scales.shape != expected {
            let problem = format!(
                "is {} {:?} where f16 {expected:?} is expected, the scales of `{name}`",
                scales.dtype.name(),
                scales.shape
            );
            return refused(&scales_name, problem);
        }
        entry.scales = Some(Box::new(scales));
    }
    Ok(())
}

/// Rounds a parameter in f32: its steps and scales.
pub(super) fn round(name: &str, data: &TensorData) -> Result<Vec<TensorData>, WeightsError> {
    let shape = data.shape().to_vec();
    let Ok(weights) = data.as_slice::<f32>() else {
        return Err(CastProblem::NotFloat(data.dtype()).into_error(name));
    };
    if let Some(index) = weights.iter().position(|x| x.abs() > Rounded::MAX) {
        let value = weights[index].into();
        let to = NAME;
        return Err(CastProblem::TooLarge { index, value, to }.into_error(name));
    }
    let Rounded { steps, scales } = Rounded::new(weights, weights.len() / shape[0]);
    let scales = TensorData::new(scales, scales_shape(&shape));
    let steps = TensorData::from_bytes(Bytes::from_bytes_vec(steps), shape, DType::I8);
    Ok(vec![steps, scales])
}

/// Reads scales from their bytes.
///
/// # Errors
/// If one is not finite.
pub(super) fn scales(name: &str, bytes: &[u8]) -> Result<Vec<f16>, WeightsError> {
    let bytes = cast_slice(bytes, DType::F16, DType::F16)
        .map_err(|problem| problem.into_error(&scales_name(name)))?;
    let (scales, _) = bytes.as_chunks();
    Ok(scales.iter().map(|raw| f16::from_le_bytes(*raw)).collect())
}

/// Returns the values of a tensor with `rows` entries along its first axis, in `dtype`.
///
/// # Errors
/// If a scale is not finite, or `dtype` cannot represent a value.
pub(super) fn restore(
    name: &str,
    rows: usize,
    steps: &[u8],
    scale_bytes: &[u8],
    dtype: DType,
) -> Result<Bytes, WeightsError> {
    let scales = scales(name, scale_bytes)?;
    let columns = steps.len() / rows.max(1);
    if columns == 0 {
        return Ok(Bytes::from_bytes_vec(Vec::new()));
    }
    // In pieces, because the values take more memory in f32 than in the end.
    let blocks = (PIECE / columns / BLOCK).max(1);
    let mut bytes = Vec::with_capacity(steps.len() * dtype.size());
    let pieces = steps.chunks(blocks * BLOCK * columns);
    for (i, (steps, scales)) in pieces.zip(scales.chunks(blocks * columns)).enumerate() {
        let weights = Bytes::from_elems(Rounded::restore(steps, scales, columns));
        let piece = cast(weights, DType::F32, dtype)
            .map_err(|problem| problem.after(i * blocks * BLOCK * columns).into_error(name))?;
        bytes.extend_from_slice(&piece);
    }
    Ok(Bytes::from_bytes_vec(bytes))
}
