//! The diffusion objective: stages 1 and 2 of the tokenizer's training (paper, section 3.1).

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use divot::data::dataset::Sample;
use divot::data::metrics;
use divot::unet::{DiffusionBatch, diffusion_loss};
use divot::{GuidanceConfig, SamplingConfig};

use super::{Draws, Objective, Prepared, Shown, Term, dense, sparse};
use crate::error::Result;
use crate::model::{Model, Network};

/// The UNet predicts the noise that was added to a clip's latents, conditioned on the clip's tokens.
///
/// The latents are drawn from the autoencoder's distribution. A dropped condition is that of a mid-grey
/// clip, which the unconditional branch of guidance has when frames are decoded.
#[derive(Debug, Clone)]
pub struct Diffusion {
    /// Share of the samples whose condition is dropped. Released: 0.05 in stage 2.
    pub dropped: f64,
    /// γ of the Min-SNR weights, if they are used.
    pub min_snr_gamma: Option<f64>,
    /// How clips are made for a person to see.
    pub sampling: SamplingConfig,
    /// Guidance of those clips.
    pub guidance: GuidanceConfig,
}

impl Objective for Diffusion {
    fn networks(&self) -> Vec<Network> {
        vec![Network::Tokenizer, Network::Detokenizer]
    }

    fn terms(&self) -> Vec<Term> {
        vec![Term {
            name: "diffusion",
            weight: 1.0,
        }]
    }

    fn prepare(
        &self,
        model: &Model,
        _source: usize,
        samples: &[Sample],
        draws: &Draws,
    ) -> Result<Prepared> {
        let detokenizer = model.detokenizer();
        let device = detokenizer.unet.conv_in.weight.device();
        let channels = detokenizer.unet.conv_in.weight.dims()[1];
        let [height, width] = detokenizer.latent_size;
        let seen = sparse(samples, &device)?;
        let clip = dense(samples, &device)?;
        let shape = [1, channels, clip.dims()[2], height, width];
        let timesteps = detokenizer.schedule.betas.len() as f64;

        let mut batch = DiffusionDraws::default();
        for index in 0..samples.len() {
            let mut noise = draws.of(index);
            batch.timesteps.push((noise.uniform() * timesteps) as usize);
            let kept = noise.uniform() >= self.dropped;
            batch.kept.push(f32::from(u8::from(kept)));
            batch.posterior.push(noise.normal(shape, &device));
            batch.noise.push(noise.normal(shape, &device));
        }
        let kept = Tensor::<1>::from_floats(batch.kept.as_slice(), &device);
        let seen = seen * kept.reshape([samples.len(), 1, 1, 1, 1]);
        let posterior = Tensor::cat(batch.posterior, 0);
        let noise = Tensor::cat(batch.noise, 0);
        let timesteps = batch.timesteps;
        let min_snr_gamma = self.min_snr_gamma;
        Ok(Prepared {
            counts: vec![noise.shape().num_elements()],
            left_out: 0,
            losses: Box::new(move |model: &Model| {
                let detokenizer = model.detokenizer();
                let clip = clip.cast(detokenizer.dtype);
                let tokens = model.tokenizer().tokenize(seen);
                let batch = DiffusionBatch {
                    latents: detokenizer.vae.encode_clip(clip, Some(posterior)),
                    noise,
                    timesteps,
                    context: detokenizer.context(tokens).into(),
                    fs: None,
                };
                let unet = &detokenizer.unet;
                vec![diffusion_loss(unet, &detokenizer.schedule, batch, min_snr_gamma).sum]
            }),
        })
    }

    fn show(&self, model: &Model, samples: &[Sample]) -> Result<Shown> {
        let (tokenizer, detokenizer) = (model.tokenizer(), model.detokenizer());
        let guidance = self.guidance.is_on();
        let guidance = guidance.then(|| self.guidance.with_tokens(tokenizer.unconditional()));
        let mut shown = Shown::default();
        let mut psnr = 0.0;
        for (index, sample) in samples.iter().enumerate() {
            let device = detokenizer.unet.conv_in.weight.device();
            let tokens = tokenizer.tokenize(sparse(std::slice::from_ref(sample), &device)?);
            let given = sample.clips[0].frames().to_vec();
            let sampling = self.sampling.clone().with_frames(given.len());
            let go_on = |_| ControlFlow::Continue(());
            let made =
                detokenizer.frames(tokens, guidance.as_ref(), &sampling, index as u64, go_on)?;
            psnr += metrics::mean(&given, &made, metrics::psnr)?;
            shown.rows.extend([given, made]);
        }
        shown
            .numbers
            .push(("psnr", psnr / samples.len().max(1) as f64));
        Ok(shown)
    }
}

/// What is drawn for each sample.
#[derive(Default)]
struct DiffusionDraws {
    timesteps: Vec<usize>,
    kept: Vec<f32>,
    posterior: Vec<Tensor<5>>,
    noise: Vec<Tensor<5>>,
}
