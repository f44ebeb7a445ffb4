use burn::tensor::{DType, Tensor};

/// Sinusoidal embedding of timesteps (or of the frame stride), cosines before sines.
///
/// `timesteps`: `[batch]` → `[batch, width]` in float32; frequencies fall from 1 to almost 1/10000.
///
/// # Panics
/// If `width` is odd.
pub fn timestep_embedding(timesteps: Tensor<1>, width: usize) -> Tensor<2> {
    assert!(
        width.is_multiple_of(2),
        "timesteps embed into an even width, not {width}"
    );
    let half = width / 2;
    let frequencies: Vec<f32> = (0..half)
        .map(|i| (-(10_000f32.ln()) * i as f32 / half as f32).exp())
        .collect();
    let timesteps = timesteps.cast(DType::F32); // float16 cannot tell all of them apart
    let frequencies = Tensor::<1>::from_floats(frequencies.as_slice(), &timesteps.device());
    let angles = timesteps.unsqueeze_dim::<2>(1) * frequencies.unsqueeze_dim::<2>(0);
    Tensor::cat(vec![angles.clone().cos(), angles.sin()], 1)
}
