use std::cell::OnceCell;

use burn::tensor::{DType, Tensor};

use crate::{Context, Unet, UnetContext};

/// Applies classifier-free guidance with rescale.
///
/// The guided prediction is v = v_u + scale·(v_c − v_u). The result is a mix of 1 − rescale parts of v and
/// rescale parts of v rescaled to the standard deviation of v_c ("Common diffusion noise schedules and
/// sample steps are flawed", arXiv:2305.08891, section 3.4). Deviations are over everything except the
/// batch. All shapes are `[batch, channels, frames, height, width]`.
pub fn guide(
    conditional: Tensor<5>,
    unconditional: Tensor<5>,
    guidance_scale: f64,
    guidance_rescale: f64,
) -> Tensor<5> {
    let guided = unconditional.clone() + (conditional.clone() - unconditional) * guidance_scale;
    if guidance_rescale == 0.0 {
        return guided;
    }
    let factor = std_per_clip(conditional) / std_per_clip(guided.clone());
    guided * (factor * guidance_rescale + (1.0 - guidance_rescale))
}

/// Computes the standard deviation (unbiased) of each clip: `[batch, …]` → `[batch, 1, 1, 1, 1]`.
fn std_per_clip(x: Tensor<5>) -> Tensor<5> {
    let batch = x.dims()[0];
    x.reshape([batch as i32, -1])
        .var(1)
        .sqrt()
        .reshape([batch, 1, 1, 1, 1])
}

/// A UNet with its conditions for a batch of clips, for use by a sampler. The network computes in the
/// element type of the context.
#[derive(Debug)]
pub struct Denoiser<'a> {
    unet: &'a Unet,
    context: Context,
    /// Context of the unconditional branch, with guidance scale and rescale.
    guidance: Option<(Context, f64, f64)>,
    /// Encoded context of both branches, after the first prediction.
    encoded: OnceCell<UnetContext>,
    fs: f64,
}

impl<'a> Denoiser<'a> {
    /// Creates a denoiser without guidance. `context` is a [`Context`], or `[batch, tokens, context_dim]`
    /// for all frames. `fs` is the frame stride.
    pub fn new(unet: &'a Unet, context: impl Into<Context>, fs: f64) -> Self {
        Self {
            unet,
            context: context.into(),
            guidance: None,
            encoded: OnceCell::new(),
            fs,
        }
    }

    /// Adds classifier-free guidance away from `unconditional`, `[1 or batch, tokens, context_dim]`.
    ///
    /// The released system uses the context of an all-zero clip for it, not zeros.
    pub fn with_guidance(
        mut self,
        unconditional: impl Into<Context>,
        guidance_scale: f64,
        guidance_rescale: f64,
    ) -> Self {
        self.guidance = Some((unconditional.into(), guidance_scale, guidance_rescale));
        self
    }

    /// Computes the network's prediction for `latents`, `[batch, channels, frames, height, width]`, at
    /// `timestep`, with guidance if it is set. Both branches run as one batch.
    ///
    /// The prediction has the element type of the latents, even if the network computes in another type.
    pub fn predict(&self, latents: Tensor<5>, timestep: usize) -> Tensor<5> {
        let Some((_, scale, rescale)) = &self.guidance else {
            return self.forward(latents, timestep);
        };
        let batch = latents.dims()[0];
        let both = self.forward(Tensor::cat(vec![latents.clone(), latents], 0), timestep);
        let conditional = both.clone().narrow(0, 0, batch);
        let unconditional = both.narrow(0, batch, batch);
        guide(conditional, unconditional, *scale, *rescale)
    }

    fn encoded(&self) -> &UnetContext {
        self.encoded.get_or_init(|| {
            let mut context = self.context.clone();
            if let Some((unconditional, ..)) = &self.guidance {
                context = context.followed_by(unconditional.clone().cast(self.context.dtype()));
            }
            self.unet.encode_context(&context)
        })
    }

    fn forward(&self, latents: Tensor<5>, timestep: usize) -> Tensor<5> {
        let batch = latents.dims()[0];
        let dtype = latents.dtype();
        let constant = |value: f64| {
            let options = (&latents.device(), DType::F32);
            Tensor::<1>::full([batch], value, options)
        };
        let (timesteps, fs) = (constant(timestep as f64), constant(self.fs));
        let latents = latents.cast(self.context.dtype());
        self.unet
            .forward_encoded(latents, timesteps, self.encoded(), Some(fs))
            .cast(dtype)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    /// Two clips of two numbers each, so that means and deviations can be computed by hand.
    #[test]
    fn guided_and_rescaled_by_hand() {
        let device = Device::default();
        let clip = |values: [f32; 4]| Tensor::<1>::from_floats(values, &device);
        let shape = [2, 1, 1, 1, 2];
        let conditional = clip([1.0, 3.0, 0.0, 4.0]).reshape(shape);
        let unconditional = clip([0.0, 0.0, 1.0, 1.0]).reshape(shape);
        let numbers = |x: Tensor<5>| x.into_data().iter::<f32>().collect::<Vec<_>>();

        // u + 2 (c - u)
        let guided = guide(conditional.clone(), unconditional.clone(), 2.0, 0.0);
        assert_eq!(numbers(guided), [2.0, 6.0, -1.0, 7.0]);

        // The deviation of each clip is twice that of the conditional prediction, so half of it is halved.
        let rescaled = guide(conditional, unconditional, 2.0, 0.5);
        for (ours, by_hand) in numbers(rescaled).iter().zip([1.5, 4.5, -0.75, 5.25]) {
            assert!((ours - by_hand).abs() < 1e-5, "{ours} is not {by_hand}");
        }
    }
}
