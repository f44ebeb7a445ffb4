use burn::tensor::{DType, Tensor};
use divot_nn::Loss;

use crate::{Context, NoiseSchedule, Prediction, Unet};

/// Clips to denoise, with the conditions of the network.
#[derive(Debug, Clone)]
pub struct DiffusionBatch {
    /// Clean latents, `[batch, channels, frames, height, width]`.
    pub latents: Tensor<5>,
    /// Standard normal noise of the same shape.
    pub noise: Tensor<5>,
    /// A timestep for each clip, less than the schedule's number of timesteps.
    pub timesteps: Vec<usize>,
    /// The context that the frames attend to.
    pub context: Context,
}

/// Computes the diffusion objective (paper, section 3.1.2): the squared error of the predicted v or ε,
/// depending on the schedule. Each number of the latents is a term of the loss.
///
/// The network computes in the element type of the context. The error is in f32.
///
/// With `min_snr_gamma` γ, each clip is weighted as in "Efficient Diffusion Training via Min-SNR Weighting
/// Strategy" (arXiv:2303.09556): min(SNR, γ) / (SNR + 1) for v, min(SNR, γ) / SNR for ε. At zero terminal
/// SNR the weight for v is 0.
///
/// # Panics
/// If the number of timesteps is not that of the clips, a timestep is out of range, or the shapes do not
/// match.
pub fn diffusion_loss(
    unet: &Unet,
    schedule: &NoiseSchedule,
    batch: DiffusionBatch,
    min_snr_gamma: Option<f64>,
) -> Loss {
    let DiffusionBatch {
        latents,
        noise,
        timesteps,
        context,
    } = batch;
    let count = latents.shape().num_elements();
    let device = latents.device();
    assert_eq!(
        timesteps.len(),
        latents.dims()[0],
        "a timestep for each clip"
    );
    let per_clip = |value: &dyn Fn(usize) -> f64| {
        let values: Vec<f32> = timesteps.iter().map(|&t| value(t) as f32).collect();
        Tensor::<1>::from_data(values.as_slice(), (&device, DType::F32))
    };

    let [latents, noise] = [latents, noise].map(|x| x.cast(DType::F32));
    let target = schedule.target(latents.clone(), noise.clone(), &timesteps);
    let noisy = schedule.add_noise(latents, noise, &timesteps);
    let noisy = noisy.cast(context.dtype());
    let prediction = unet.forward(noisy, per_clip(&|t| t as f64), context, None);
    let error = (prediction.cast(DType::F32) - target).square();
    let sum = match min_snr_gamma {
        None => error.sum(),
        Some(gamma) => {
            let weights = per_clip(&|t| schedule.min_snr_weight(t, gamma));
            (error * weights.reshape([timesteps.len(), 1, 1, 1, 1])).sum()
        }
    };
    Loss { sum, count }
}

impl NoiseSchedule {
    /// Returns the weight of a timestep under Min-SNR-γ, for the network's kind of prediction.
    fn min_snr_weight(&self, timestep: usize, gamma: f64) -> f64 {
        let alpha = self.alphas_cumprod[timestep];
        match self.prediction {
            // Both without dividing by an SNR of 0.
            Prediction::V => alpha.min(gamma * (1.0 - alpha)),
            Prediction::Epsilon => (gamma * (1.0 - alpha) / alpha).min(1.0),
        }
    }
}
