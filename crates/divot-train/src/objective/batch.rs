//! Samples as tensors.

use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
use divot::data::Clip;
use divot::data::dataset::Sample;

use crate::error::{Error, Result};

/// The frames that the tokenizer sees of each sample's first clip, in [-1, 1]: `[batch, 5, 3, height,
/// width]`.
///
/// # Errors
/// If a sample has no clip, or clips differ in size.
pub fn sparse(samples: &[Sample], device: &Device) -> Result<Tensor<5>> {
    let clips = samples.iter();
    stack(
        clips.map(|sample| (&*sample.key, sample.clips.first().map(Clip::sparse))),
        device,
    )
}

/// All frames of each sample's first clip, in [-1, 1]: `[batch, 3, frames, height, width]`.
///
/// # Errors
/// If a sample has no clip, or clips differ in size.
pub fn dense(samples: &[Sample], device: &Device) -> Result<Tensor<5>> {
    let clips = samples.iter();
    let clips = clips.map(|sample| (&*sample.key, sample.clips.first().map(Clip::dense)));
    Ok(stack(clips, device)?.swap_dims(1, 2))
}

/// The frames that the tokenizer sees of every clip of every sample, in [-1, 1]: `[clips, 5, 3, height,
/// width]`.
///
/// # Errors
/// If clips differ in size.
pub(super) fn clips(samples: &[&Sample], device: &Device) -> Result<Tensor<5>> {
    let clips = samples
        .iter()
        .flat_map(|sample| sample.clips.iter().map(|clip| (&*sample.key, clip)));
    stack(clips.map(|(key, clip)| (key, Some(clip.sparse()))), device)
}

/// Frames of named clips, `[clips, frames, 3, height, width]`.
pub(crate) fn stack<'a>(
    clips: impl Iterator<Item = (&'a str, Option<(Vec<f32>, [usize; 4])>)>,
    device: &Device,
) -> Result<Tensor<5>> {
    let mut values = Vec::new();
    let mut size = None;
    let mut count = 0;
    for (key, frames) in clips {
        let unfit = |problem: &str| {
            let remedy = "give clips of one size to this objective";
            Error::run(key.as_ref(), problem, remedy)
        };
        let (frames, shape) = frames.ok_or_else(|| unfit("has no clip"))?;
        if *size.get_or_insert(shape) != shape {
            return Err(unfit("differs in size from the clip before it"));
        }
        values.extend(frames);
        count += 1;
    }
    let [frames, channels, height, width] = size.unwrap_or_default();
    let shape = Shape::new([count, frames, channels, height, width]);
    let data = TensorData::new(values, shape);
    Ok(Tensor::from_data(data, (device, DType::F32)))
}
