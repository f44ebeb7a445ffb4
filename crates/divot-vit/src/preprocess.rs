use burn::tensor::module::{conv2d, interpolate};
use burn::tensor::ops::{ConvOptions, InterpolateMode, InterpolateOptions, PadMode};
use burn::tensor::{Device, Tensor};

/// Mean of CLIP's training images, per RGB channel, of values in [0, 1].
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of CLIP's training images, per RGB channel.
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Converts frames to images for the vision tower, on the tensor's own device.
///
/// `frames`: `[batch, 3, height, width]`, RGB in [-1, 1]. If the image becomes smaller, a Gaussian blur
/// first prevents aliasing. Then the image is resized (bicubic) to `size` × `size` with corners aligned,
/// scaled to [0, 1], and normalised with CLIP's mean and standard deviation. Returns
/// `[batch, 3, size, size]`. Differentiable.
pub fn preprocess(frames: Tensor<4>, size: usize) -> Tensor<4> {
    let (device, dtype) = (frames.device(), frames.dtype());
    let images = interpolate(
        antialias(frames, size),
        InterpolateOptions::new(InterpolateMode::Bicubic)
            .with_align_corners(true)
            .with_output_size([size, size]),
    );
    let per_channel = |values: [f32; 3]| {
        Tensor::<1>::from_floats(values, &device)
            .reshape([1, 3, 1, 1])
            .cast(dtype)
    };
    ((images + 1.0) / 2.0 - per_channel(CLIP_MEAN)) / per_channel(CLIP_STD)
}

/// Blurs frequencies that bicubic interpolation would alias. sigma is (factor − 1)/2, at least 0.001. The
/// width of the kernel is the odd number at or above max(4 sigma, 3). Borders are reflected.
fn antialias(frames: Tensor<4>, size: usize) -> Tensor<4> {
    let [_, _, height, width] = frames.dims();
    let factors = [height, width].map(|side| side as f64 / size as f64);
    if factors.iter().all(|&factor| factor <= 1.0) {
        return frames;
    }
    let device = frames.device();
    let [vertical, horizontal] = factors.map(gaussian_kernel);
    let [rows, columns] = [vertical.len(), horizontal.len()];
    let padded = frames.pad(
        (columns / 2, columns / 2, rows / 2, rows / 2),
        PadMode::Reflect,
    );
    let blurred = blur(padded, &vertical, [rows, 1], &device);
    blur(blurred, &horizontal, [1, columns], &device)
}

fn gaussian_kernel(factor: f64) -> Vec<f32> {
    let sigma = ((factor - 1.0) / 2.0).max(0.001);
    let mut size = (4.0 * sigma).max(3.0) as usize;
    if size.is_multiple_of(2) {
        size += 1;
    }
    let centre = (size / 2) as f64;
    let weights: Vec<f64> = (0..size)
        .map(|i| (-(i as f64 - centre).powi(2) / (2.0 * sigma * sigma)).exp())
        .collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| (w / total) as f32).collect()
}

/// Blurs along one axis, with the same kernel for each of the three channels.
fn blur(
    frames: Tensor<4>,
    kernel: &[f32],
    [rows, columns]: [usize; 2],
    device: &Device,
) -> Tensor<4> {
    let weight = Tensor::<1>::from_floats(kernel, device)
        .reshape([1, 1, rows, columns])
        .repeat_dim(0, 3)
        .cast(frames.dtype());
    conv2d(
        frames,
        weight,
        None,
        ConvOptions::new([1, 1], [0, 0], [1, 1], 3),
    )
}
