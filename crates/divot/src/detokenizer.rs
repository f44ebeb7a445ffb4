use std::ops::ControlFlow;

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use divot_data::{Frame, chw_to_clip};
use divot_nn::{CheckSizes, Noise, SizeError, check_divides, check_same, check_widths};
use divot_resampler::{PerceiverResampler, PerceiverResamplerConfig};
use divot_unet::{
    Denoiser, NoiseSchedule, NoiseScheduleConfig, Sampler, SamplerConfig, SamplerStep, Solver,
    Spacing, Unet, UnetConfig, Vae, VaeConfig,
};

use crate::checkpoint::{Checkpoint, Part};
use crate::error::{Error, Result};

/// Sizes of the Divot de-tokenizer.
#[derive(Config, Debug)]
pub struct DetokenizerConfig {
    /// Perceiver that turns video tokens into the UNet's context.
    pub resampler: PerceiverResamplerConfig,
    /// The video UNet.
    pub unet: UnetConfig,
    /// The autoencoder.
    pub vae: VaeConfig,
    /// The noise schedule.
    pub schedule: NoiseScheduleConfig,
    /// Height and width of the latents.
    #[config(default = "[32, 32]")]
    pub latent_size: [usize; 2],
}

/// How tokens are turned into video; the defaults are the released ones.
#[derive(Config, Debug)]
pub struct SamplingConfig {
    /// Sampling steps; 15 to 20 of [`Solver::DpmSolverPlusPlus`] and [`Solver::UniPc`] stand for 50 of
    /// DDIM.
    #[config(default = 50)]
    pub steps: usize,
    /// How each step is made.
    #[config(default = "Solver::Ddim { eta: 1.0 }")]
    pub solver: Solver,
    /// Which timesteps are visited; the solver's own ([`Solver::spacing`]) where there are none.
    #[config(default = "None")]
    pub spacing: Option<Spacing>,
    /// Strength of classifier-free guidance; 1 is none and takes half the time.
    #[config(default = 7.5)]
    pub guidance_scale: f64,
    /// Share of the guided prediction that is rescaled to the conditional one's deviation.
    #[config(default = 0.7)]
    pub guidance_rescale: f64,
    /// Frame stride condition.
    #[config(default = 3.0)]
    pub fs: f64,
    /// Frames to make.
    #[config(default = 16)]
    pub frames: usize,
}

/// The Divot de-tokenizer: video tokens in, a clip out (paper, section 3.1.2).
#[derive(Module, Debug)]
pub struct Detokenizer {
    /// Perceiver that turns video tokens into the UNet's context.
    pub resampler: PerceiverResampler,
    /// The video UNet.
    pub unet: Unet,
    /// The autoencoder.
    pub vae: Vae,
    /// The noise schedule.
    #[module(skip)]
    pub schedule: NoiseSchedule,
    /// Height and width of the latents.
    pub latent_size: [usize; 2],
}

impl SamplingConfig {
    /// Finds out whether the released noise schedule can be sampled so, before any weights are read.
    /// Returns the number of steps that will be taken.
    ///
    /// # Errors
    /// If an option is out of range.
    pub fn check(&self) -> Result<usize> {
        let finite = |option, value: f64| match value.is_finite() {
            true => Ok(()),
            false => Err(Error::Option {
                option,
                value,
                remedy: "a finite number",
            }),
        };
        finite("the guidance scale", self.guidance_scale)?;
        finite("the frame stride", self.fs)?;
        if !(0.0..=1.0).contains(&self.guidance_rescale) {
            return Err(Error::Option {
                option: "the guidance rescale",
                value: self.guidance_rescale,
                remedy: "a number from 0 to 1",
            });
        }
        if self.frames == 0 {
            return Err(Error::Option {
                option: "the number of frames",
                value: 0.0,
                remedy: "at least 1",
            });
        }
        let sampler = self.sampler(&NoiseSchedule::new(&NoiseScheduleConfig::new()))?;
        Ok(sampler.steps())
    }

    fn sampler(&self, schedule: &NoiseSchedule) -> Result<Sampler> {
        Ok(SamplerConfig::new(self.steps)
            .with_solver(self.solver)
            .with_spacing(self.spacing)
            .init(schedule)?)
    }
}

impl DetokenizerConfig {
    /// The released de-tokenizer: 1599.5 M parameters.
    pub fn divot() -> Self {
        Self::new(
            PerceiverResamplerConfig::divot_context(),
            UnetConfig::divot(),
            VaeConfig::new(),
            NoiseScheduleConfig::new(),
        )
    }

    /// Height and width of decoded frames, in pixels.
    pub fn frame_size(&self) -> [usize; 2] {
        self.latent_size.map(|side| side * self.vae.downsampling())
    }

    /// Initialises the de-tokenizer with random weights.
    pub fn init(&self, device: &Device) -> Detokenizer {
        Detokenizer {
            resampler: self.resampler.init(device),
            unet: self.unet.init(device),
            vae: self.vae.init(device),
            schedule: NoiseSchedule::new(&self.schedule),
            latent_size: self.latent_size,
        }
    }
}

impl CheckSizes for DetokenizerConfig {
    fn check_sizes(&self) -> Result<(), SizeError> {
        self.resampler.check_sizes()?;
        self.unet.check_sizes()?;
        self.vae.check_sizes()?;
        self.schedule.check_sizes()?;
        check_same(
            ("the resampler's output_dim", self.resampler.output_dim),
            ("the UNet's context_dim", self.unet.context_dim),
        )?;
        check_same(
            (
                "the autoencoder's latent_channels",
                self.vae.latent_channels,
            ),
            ("the UNet's in_channels", self.unet.in_channels),
        )?;
        check_same(
            ("the UNet's in_channels", self.unet.in_channels),
            ("its out_channels", self.unet.out_channels),
        )?;
        for side in self.latent_size {
            check_widths(&[("latent_size", side)])?;
            check_divides(
                ("the UNet's downsampling", self.unet.downsampling()),
                ("latent_size", side),
            )?;
        }
        Ok(())
    }
}

impl Detokenizer {
    /// Loads the part of that name, which decodes the tokenizer's features.
    ///
    /// # Errors
    /// If a file is missing, damaged, or does not fit the configuration beside it.
    pub fn load(checkpoint: &mut Checkpoint<'_>) -> Result<(Self, DetokenizerConfig)> {
        Self::load_part(checkpoint, Part::Detokenizer)
    }

    /// Loads the one that was adapted to features which a language model draws, or the plain one
    /// where there is none.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    pub fn load_adapted(checkpoint: &mut Checkpoint<'_>) -> Result<(Self, DetokenizerConfig)> {
        let adapted = Part::AdaptedDetokenizer;
        let part = match adapted.folder(checkpoint.folder()).is_dir() {
            true => adapted,
            false => Part::Detokenizer,
        };
        Self::load_part(checkpoint, part)
    }

    fn load_part(checkpoint: &mut Checkpoint<'_>, part: Part) -> Result<(Self, DetokenizerConfig)> {
        let config: DetokenizerConfig = checkpoint.config(part)?;
        let module = config.init(checkpoint.device());
        Ok((checkpoint.load(part, module)?, config))
    }

    /// Turns the tokens of one clip, `[1, 64, 256]`, into frames; the same seed draws the same noise.
    /// `None` if `on_step` stopped it.
    ///
    /// `unconditional` is what [`sample`](Self::sample) takes.
    ///
    /// # Errors
    /// If the tokens are not as wide as the model's, a sampling option is out of range, or a number
    /// overflowed.
    pub fn frames(
        &self,
        tokens: Tensor<3>,
        unconditional: Option<Tensor<3>>,
        sampling: &SamplingConfig,
        seed: u64,
        on_step: impl FnMut(SamplerStep) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Frame>>> {
        let mut noise = Noise::new(seed);
        let latents = self.sample(tokens, unconditional, sampling, &mut noise, on_step)?;
        let Some(latents) = latents else {
            return Ok(None);
        };
        let video = self.decode(latents).squeeze_dim::<4>(0);
        let video = video.swap_dims(0, 1); // [frames, 3, height, width]
        let shape = video.dims();
        let values: Vec<f32> = video.into_data().iter::<f32>().collect();
        if values.iter().any(|value| value.is_nan()) {
            return Err(Error::NotFinite(self.dtype().name()));
        }
        Ok(Some(chw_to_clip(&values, shape)?))
    }

    /// Width of the tokens that are decoded.
    pub fn token_dim(&self) -> usize {
        self.resampler.proj_in.weight.lazy_shape().dims::<2>()[0]
    }

    /// The UNet's context of video tokens: `[batch, 64, 256]` → `[batch, 125, 1024]`.
    pub fn context(&self, tokens: Tensor<3>) -> Tensor<3> {
        self.resampler.forward(tokens.cast(self.dtype()))
    }

    /// The type that is computed in: f32 on the CPU, where norms stay in f32.
    fn dtype(&self) -> DType {
        self.resampler.norm_out.gamma.val().dtype()
    }

    /// Samples latents from video tokens.
    ///
    /// # Arguments
    /// - `tokens`: `[batch, 64, 256]`.
    /// - `unconditional`: `[1, 64, 256]`, the tokens of an all-zero clip; without them there is no
    ///   guidance.
    /// - `on_step`: told about each step; may stop the sampling.
    ///
    /// Returns `[batch, 4, frames, height, width]`, or `None` if stopped.
    ///
    /// # Errors
    /// If the tokens are not as wide as the model's, or an option is out of range.
    pub fn sample(
        &self,
        tokens: Tensor<3>,
        unconditional: Option<Tensor<3>>,
        sampling: &SamplingConfig,
        noise: &mut Noise,
        on_step: impl FnMut(SamplerStep) -> ControlFlow<()>,
    ) -> Result<Option<Tensor<5>>> {
        sampling.check()?;
        let expected = self.token_dim();
        for tokens in [Some(&tokens), unconditional.as_ref()]
            .into_iter()
            .flatten()
        {
            let [_, _, found] = tokens.dims();
            if found != expected {
                return Err(Error::TokenWidth { found, expected });
            }
        }
        let sampler = sampling.sampler(&self.schedule)?;
        let device = tokens.device();
        let [height, width] = self.latent_size;
        let channels = self.unet.conv_in.weight.dims()[1];
        let shape = [tokens.dims()[0], channels, sampling.frames, height, width];

        let mut denoiser = Denoiser::new(&self.unet, self.context(tokens), sampling.fs);
        if let Some(unconditional) = unconditional {
            denoiser = denoiser.with_guidance(
                self.context(unconditional),
                sampling.guidance_scale,
                sampling.guidance_rescale,
            );
        }
        let start = noise.normal(shape, &device);
        Ok(sampler.sample(
            start,
            |latents, timestep| denoiser.predict(latents, timestep),
            |_| noise.normal(shape, &device),
            on_step,
        ))
    }

    /// Frames of latents: `[batch, 4, frames, height, width]` → `[batch, 3, frames, height, width]`
    /// in pixels, RGB clamped to [-1, 1], in f32.
    pub fn decode(&self, latents: Tensor<5>) -> Tensor<5> {
        self.vae
            .decode_clip(latents.cast(self.dtype()))
            .cast(DType::F32)
            .clamp(-1.0, 1.0)
    }
}
