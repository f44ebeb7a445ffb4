//! The objective of the KL autoencoder.

use burn::module::Param;
use burn::tensor::{DType, Tensor};
use divot::data::dataset::Sample;
use divot::data::{chw_to_frame, metrics};
use divot::unet::Vae;
use serde::Deserialize;

use super::{Draws, Finish, Objective, Prepared, Shown, Term, dense};
use crate::error::Result;
use crate::model::{Model, Network};

/// Images are encoded, drawn from the encoder's Gaussian, and decoded again ("High-Resolution Image
/// Synthesis with Latent Diffusion Models", arXiv:2112.10752, appendix G).
///
/// Its perceptual and adversarial terms are left out: they need a network that was trained on labelled
/// images and a discriminator. Decoded images are softer without them.
///
/// Nothing of this says how large latents are, and diffusion wants a variance of 1 after the scale factor. After the
/// last step, the encoder's last convolution and the decoder's first are therefore scaled by what latents of the last
/// batch measure.
#[derive(Debug, Clone, PartialEq)]
pub struct Autoencoder {
    /// Random frames that are taken of each clip.
    pub frames: usize,
    /// The error between pixels.
    pub error: PixelError,
    /// Weight of the divergence from the standard normal distribution.
    pub kl_weight: f64,
}

/// How two pixels are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PixelError {
    /// The absolute difference.
    L1,
    /// The squared difference.
    L2,
}

impl Objective for Autoencoder {
    fn networks(&self) -> Vec<Network> {
        vec![Network::Vae]
    }

    fn terms(&self) -> Vec<Term> {
        let term = |name, weight| Term { name, weight };
        vec![term("pixels", 1.0), term("kl", self.kl_weight)]
    }

    fn prepare(
        &self,
        model: &Model,
        _source: usize,
        samples: &[Sample],
        draws: &Draws,
    ) -> Result<Prepared> {
        let vae = model.vae();
        let device = vae.quant_conv.weight.device();
        let channels = vae.post_quant_conv.weight.dims()[0];
        let clips = dense(samples, &device)?;
        let [batch, _, frames, height, width] = clips.dims();
        let count = self.frames.min(frames);
        let side = vae.downsampling();
        let shape = [count, channels, height / side, width / side];

        let mut images = Vec::with_capacity(batch);
        let mut posterior = Vec::with_capacity(batch);
        for (index, clip) in clips.split(1, 0).into_iter().enumerate() {
            let mut noise = draws.of(index);
            let clip = clip.squeeze_dim::<4>(0).swap_dims(0, 1);
            for _ in 0..count {
                let frame = (noise.uniform() * frames as f64) as usize;
                images.push(clip.clone().narrow(0, frame, 1));
            }
            posterior.push(noise.normal(shape, &device));
        }
        let images: Tensor<4> = Tensor::cat(images, 0);
        let posterior = Tensor::cat(posterior, 0);
        let pixels = images.shape().num_elements();
        let error = self.error;
        Ok(Prepared {
            // Both are per number of the images; in the paper, both are per image.
            counts: vec![pixels, pixels],
            left_out: Vec::new(),
            losses: Box::new(move |model: &Model| {
                let vae = model.vae();
                let moments = vae.encode(images.clone().cast(model.dtype));
                let decoded = vae.decode(moments.clone().sample(posterior));
                let difference = (decoded.cast(DType::F32) - images).abs();
                let pixels = match error {
                    PixelError::L1 => difference.sum(),
                    PixelError::L2 => difference.square().sum(),
                };
                let [mean, logvar] =
                    [moments.mean, moments.logvar].map(|moment| moment.cast(DType::F32));
                let kl = (mean.square() + logvar.clone().exp() - 1.0 - logvar).sum() * 0.5;
                vec![pixels, kl]
            }),
        })
    }

    /// Scales the latents, so that their mean square is 1 after the scale factor, unless they are held by what is frozen.
    fn finish(&self, learned: &Model, model: &Model, samples: &[Sample]) -> Result<Option<Finish>> {
        let Vae {
            quant_conv,
            post_quant_conv,
            ..
        } = learned.vae();
        let mut scaled = [&quant_conv.weight, &post_quant_conv.weight].into_iter();
        if !scaled.all(|weight| weight.is_require_grad()) {
            return Ok(None);
        }
        let vae = model.vae();
        let device = vae.quant_conv.weight.device();
        let mut sum = 0.0;
        for sample in samples {
            let clip = dense(std::slice::from_ref(sample), &device)?;
            let frames = clip.squeeze_dim::<4>(0).swap_dims(0, 1);
            let moments = vae.encode(frames.cast(model.dtype));
            let [mean, logvar] = [moments.mean, moments.logvar].map(|part| part.cast(DType::F32));
            let square = (mean.square() + logvar.exp()).mean();
            sum += square.into_scalar::<f64>();
        }
        let root = (sum / samples.len() as f64).sqrt();
        let factor = 1.0 / (vae.scale_factor * root);
        if !(factor.is_finite() && factor > 0.0) {
            return Ok(None);
        }
        Ok(Some(Box::new(move |mut model: Model| {
            model.vae = model.vae.map(|vae| scale_latents(vae, factor));
            model
        })))
    }

    fn show(&self, model: &Model, _source: usize, samples: &[Sample]) -> Result<Shown> {
        let vae = model.vae();
        let device = vae.quant_conv.weight.device();
        let mut shown = Shown::default();
        let (mut given, mut made) = (Vec::new(), Vec::new());
        for sample in samples {
            // The first frame of each clip is enough to judge by.
            let clip = dense(std::slice::from_ref(sample), &device)?;
            let image = clip.narrow(2, 0, 1).squeeze_dim::<4>(2);
            let [_, _, height, width] = image.dims();
            let decoded = vae
                .decode(vae.encode(image.cast(model.dtype)).mean)
                .cast(DType::F32);
            let values: Vec<f32> = decoded.clamp(-1.0, 1.0).into_data().iter().collect();
            made.push(chw_to_frame(&values, height, width)?);
            given.push(sample.clips[0].frames()[0].clone());
        }
        let psnr = metrics::mean(&given, &made, metrics::psnr)?;
        shown.numbers.push(("psnr", psnr));
        shown.samples = vec![vec![given, made]];
        Ok(shown)
    }
}

/// Multiplies the latents by a factor, and divides by it where they are decoded.
fn scale_latents(mut vae: Vae, factor: f64) -> Vae {
    let channels = vae.post_quant_conv.weight.dims()[0];
    let conv = &mut vae.quant_conv;
    conv.weight = change(conv.weight.clone(), |weight| {
        let mean = weight.clone().narrow(0, 0, channels) * factor;
        weight.slice_assign(0..channels, mean)
    });
    conv.bias = conv.bias.take().map(|bias| {
        change(bias, |bias| {
            let mean = bias.clone().narrow(0, 0, channels) * factor;
            let logvar = bias.narrow(0, channels, channels) + 2.0 * factor.ln();
            Tensor::cat(vec![mean, logvar], 0)
        })
    });
    let conv = &mut vae.post_quant_conv;
    conv.weight = change(conv.weight.clone(), |weight| weight / factor);
    vae
}

/// Changes a parameter's values, which are learned on as before.
fn change<const D: usize>(
    param: Param<Tensor<D>>,
    change: impl FnOnce(Tensor<D>) -> Tensor<D>,
) -> Param<Tensor<D>> {
    param.map(|values| {
        let learned = values.is_require_grad();
        change(values.detach()).detach().set_require_grad(learned)
    })
}
