//! The diffusion objective: stages 1 and 2 of the tokenizer's training (paper, section 3.1).

use std::ops::ControlFlow;

use burn::tensor::{DType, Device, Tensor};
use divot::data::dataset::Sample;
use divot::data::metrics;
use divot::unet::{Context, Denoiser, DiffusionBatch, diffusion_loss};
use divot::{GuidanceConfig, Noise, SamplingConfig, Tokenizer};

use super::stored::{Clean, Seen, shown, spread};
use super::{Draws, Objective, Prepared, Shown, Term};
use crate::error::Result;
use crate::model::{Model, Network};

/// The UNet predicts the noise that was added to a clip's latents, conditioned on the clip's tokens.
///
/// The latents are drawn from the autoencoder's distribution. A dropped condition is that of a mid-grey
/// clip, which the unconditional branch of guidance has when frames are decoded. A variational tokenizer's
/// tokens are drawn, and their divergence from the standard normal distribution is a term of the loss.
#[derive(Debug, Clone)]
pub struct Diffusion {
    /// What is denoised.
    pub noise: NoiseOptions,
    /// γ of the Min-SNR weights, if they are used.
    pub min_snr_gamma: Option<f64>,
    /// Weight of the divergence of a variational tokenizer's tokens; absent for any other tokenizer.
    pub kl_weight: Option<f64>,
    /// How clips are made for a person to see.
    pub show: ShowClips,
}

/// What is denoised.
#[derive(Debug, Clone, Default)]
pub struct NoiseOptions {
    /// Share of the samples whose condition is dropped. Released: 0.05 in stage 2.
    pub dropped: f64,
    /// How many of a clip's frames are denoised, evenly spread from the first to the last; absent for all. The
    /// tokenizer sees the whole clip. With 1, clips are images: the tokenizer sees the first frame alone, as five copies.
    pub frames: Option<usize>,
    /// The first timestep that is drawn, and the one after the last; absent for all. The more noise, the more has to
    /// come from the tokens.
    pub timesteps: Option<[usize; 2]>,
}

/// How clips are made for a person to see.
#[derive(Debug, Clone)]
pub struct ShowClips {
    /// The sampler.
    pub sampling: SamplingConfig,
    /// Its guidance.
    pub guidance: GuidanceConfig,
}

impl Objective for Diffusion {
    fn networks(&self) -> Vec<Network> {
        vec![Network::Tokenizer, Network::Detokenizer]
    }

    fn terms(&self) -> Vec<Term> {
        let term = |name, weight| Term { name, weight };
        let kl = self.kl_weight.map(|weight| term("kl", weight));
        [term("diffusion", 1.0)].into_iter().chain(kl).collect()
    }

    fn prepare(
        &self,
        model: &Model,
        _source: usize,
        samples: &[Sample],
        draws: &Draws,
    ) -> Result<Prepared> {
        let noisy = Noisy::draw(model, samples, draws, &self.noise)?;
        let device = noisy.clip.device();
        let seen = self.seen(samples, &device)?;
        Ok(self.prepared(model, seen, noisy, draws))
    }

    fn show(&self, model: &Model, _source: usize, samples: &[Sample]) -> Result<Shown> {
        let tokenizer = model.tokenizer();
        self.show
            .tokens(model, samples, self.noise.frames, |sample| {
                let device = model.detokenizer().unet.conv_in.weight.device();
                let seen = self.seen(std::slice::from_ref(sample), &device)?;
                Ok(seen.tokens(tokenizer))
            })
    }
}

impl Diffusion {
    fn seen(&self, samples: &[Sample], device: &Device) -> Result<Seen> {
        let seen = Seen::first(samples, self.kl_weight.is_some(), device)?;
        Ok(match self.noise.frames {
            Some(1) => seen.image(),
            _ => seen,
        })
    }

    /// What [`prepare`](Objective::prepare) returns for given noise. `seen` is what the tokenizer's tokens are made of.
    /// `draws` are for a variational tokenizer's tokens.
    pub fn prepared(&self, model: &Model, mut seen: Seen, noisy: Noisy, draws: &Draws) -> Prepared {
        let variational = self.kl_weight.is_some();
        if noisy.any_dropped {
            seen = seen.keep(&noisy.kept, model.tokenizer());
        }
        // The divergence is per clip.
        let counts = [
            Some(noisy.count()),
            variational.then_some(noisy.timesteps.len()),
        ];
        let (draws, min_snr_gamma) = (*draws, self.min_snr_gamma);
        Prepared {
            counts: counts.into_iter().flatten().collect(),
            left_out: Vec::new(),
            losses: Box::new(move |model: &Model| {
                let tokenizer = model.tokenizer();
                let (tokens, kl) = match variational {
                    false => (seen.tokens(tokenizer), None),
                    true => {
                        let (tokens, kl) = draw(tokenizer, seen, &draws);
                        (tokens, Some(kl))
                    }
                };
                let context = model.detokenizer().context(tokens).into();
                let loss = noisy.loss(model, context, min_snr_gamma);
                [loss].into_iter().chain(kl).collect()
            }),
        }
    }
}

/// Tokens that a variational tokenizer draws, and the sum of their divergence from the standard normal
/// distribution.
fn draw(tokenizer: &Tokenizer, seen: Seen, draws: &Draws) -> (Tensor<3>, Tensor<1>) {
    let patches = seen.patches(tokenizer);
    let moments = tokenizer.resampler.distribution(patches);
    let moments = moments.expect("the tokenizer is variational");
    let [mean, logvar] = moments.map(|moment| moment.cast(DType::F32));
    let [batch, tokens, width] = mean.dims();
    let noise = (0..batch).map(|i| draws.other(i).normal([1, tokens, width], &mean.device()));
    let noise: Tensor<3> = Tensor::cat(noise.collect(), 0);
    let variance = logvar.clone().exp();
    let drawn = mean.clone() + variance.clone().sqrt() * noise;
    (drawn, (mean.square() + variance - 1.0 - logvar).sum() * 0.5)
}

/// Clips with the noise that is added to them.
#[derive(Debug)]
pub struct Noisy {
    /// The clips.
    pub clip: Clean,
    /// 0 where the condition is dropped, 1 elsewhere: `[batch, 1, 1]`.
    pub kept: Tensor<3>,
    /// Whether any condition is dropped.
    pub any_dropped: bool,
    /// A timestep for each clip.
    pub timesteps: Vec<usize>,
    /// Standard normal noise that the latents are drawn with, of their shape `[batch, channels, frames, h, w]`.
    pub posterior: Tensor<5>,
    /// Standard normal noise that is added to them, of the same shape.
    pub noise: Tensor<5>,
}

impl Noisy {
    /// Draws timesteps, noise, and which conditions are dropped.
    pub(super) fn draw(
        model: &Model,
        samples: &[Sample],
        draws: &Draws,
        options: &NoiseOptions,
    ) -> Result<Self> {
        let detokenizer = model.detokenizer();
        let device = detokenizer.unet.conv_in.weight.device();
        let channels = detokenizer.unet.conv_in.weight.dims()[1];
        let [height, width] = detokenizer.latent_size;
        let mut clip = Clean::first(samples, &device)?;
        if let Some(frames) = options.frames {
            clip = clip.spread(frames);
        }
        let shape = [1, channels, clip.frames(), height, width];
        let [start, end] = options
            .timesteps
            .unwrap_or([0, detokenizer.schedule.betas.len()]);

        let (mut timesteps, mut kept) = (Vec::new(), Vec::<f32>::new());
        let (mut posterior, mut noise) = (Vec::new(), Vec::new());
        for index in 0..samples.len() {
            let mut draw = draws.of(index);
            timesteps.push(start + (draw.uniform() * (end - start) as f64) as usize);
            kept.push(match draw.uniform() < options.dropped {
                true => 0.0,
                false => 1.0,
            });
            posterior.push(draw.normal(shape, &device));
            noise.push(draw.normal(shape, &device));
        }
        let any_dropped = kept.contains(&0.0);
        let kept = Tensor::<1>::from_floats(kept.as_slice(), &device);
        Ok(Self {
            clip,
            any_dropped,
            kept: kept.reshape([samples.len(), 1, 1]),
            timesteps,
            posterior: Tensor::cat(posterior, 0),
            noise: Tensor::cat(noise, 0),
        })
    }

    /// How many numbers the loss sums over.
    pub(super) fn count(&self) -> usize {
        self.noise.shape().num_elements()
    }

    /// The sum of the loss, `[1]`, of clips with this context.
    pub(super) fn loss(
        self,
        model: &Model,
        context: Context,
        min_snr_gamma: Option<f64>,
    ) -> Tensor<1> {
        let detokenizer = model.detokenizer();
        let batch = DiffusionBatch {
            latents: self.clip.latents(detokenizer, self.posterior),
            noise: self.noise,
            timesteps: self.timesteps,
            context: context.cast(detokenizer.dtype),
        };
        let unet = &detokenizer.unet;
        diffusion_loss(unet, &detokenizer.schedule, batch, min_snr_gamma).sum
    }
}

impl ShowClips {
    /// Decodes the tokens of samples, and compares the clips with what they are of. Of each clip, so many `frames` are
    /// shown, or all.
    pub(super) fn tokens(
        &self,
        model: &Model,
        samples: &[Sample],
        frames: Option<usize>,
        tokens: impl Fn(&Sample) -> Result<Tensor<3>>,
    ) -> Result<Shown> {
        self.clips(model, samples, frames, |sample, _| {
            let tokens = match sample {
                Some(sample) => tokens(sample)?,
                None => model.tokenizer().unconditional(),
            };
            Ok(model.detokenizer().context(tokens).into())
        })
    }

    /// Makes clips by the condition that samples give, and compares them with what the samples are of: their frames, or
    /// what the autoencoder makes of stored latents. Of each clip, so many `frames` are shown, or all.
    ///
    /// `context` gives the UNet's context for a sample's clip of so many frames, and without a sample the unconditional
    /// one.
    pub(super) fn clips(
        &self,
        model: &Model,
        samples: &[Sample],
        frames: Option<usize>,
        context: impl Fn(Option<&Sample>, usize) -> Result<Context>,
    ) -> Result<Shown> {
        let detokenizer = model.detokenizer();
        let mut found = Shown {
            clips: true,
            ..Shown::default()
        };
        let (mut psnr, mut compared) = (0.0, 0);
        let mut name = "psnr";
        for (index, sample) in samples.iter().enumerate() {
            let given = shown(sample, detokenizer)?.map(|(given, decoded)| {
                name = if decoded { "psnr_decoded" } else { "psnr" };
                match frames {
                    Some(frames) => spread(frames, given.len())
                        .map(|index| given[index].clone())
                        .collect(),
                    None => given,
                }
            });
            let mut sampling = self.sampling.clone();
            if let Some(given) = &given {
                sampling = sampling.with_frames(given.len());
            }
            let dtype = detokenizer.dtype;
            let conditional = context(Some(sample), sampling.frames)?.cast(dtype);
            let mut denoiser = Denoiser::new(&detokenizer.unet, conditional, sampling.fs);
            if self.guidance.is_on() {
                let GuidanceConfig { scale, rescale } = self.guidance;
                let unconditional = context(None, sampling.frames)?.cast(dtype);
                denoiser = denoiser.with_guidance(unconditional, scale, rescale);
            }
            let noise = &mut Noise::new(index as u64);
            let go_on = |_| ControlFlow::Continue(());
            let latents = detokenizer.denoise(&denoiser, 1, &sampling, noise, go_on)?;
            let made = detokenizer.decode_frames(latents)?;
            if let Some(given) = given {
                psnr += metrics::mean(&given, &made, metrics::psnr)?;
                compared += 1;
                found.samples.push(vec![given, made]);
            } else {
                found.samples.push(vec![made]);
            }
        }
        if compared > 0 {
            found.numbers.push((name, psnr / f64::from(compared)));
        }
        Ok(found)
    }
}
