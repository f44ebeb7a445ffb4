use std::ops::ControlFlow;
use std::path::Path;

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
use crate::{Guidance, GuidanceConfig};

divot_nn::config! {
    /// Sizes of the Divot de-tokenizer, and how it is best used.
    pub struct DetokenizerConfig {
        /// Perceiver that converts video tokens to the UNet's context.
        pub resampler: PerceiverResamplerConfig,
        /// The video UNet.
        pub unet: UnetConfig,
        /// The autoencoder.
        pub vae: VaeConfig,
        /// The noise schedule.
        pub schedule: NoiseScheduleConfig,
    }
    defaults {
        /// Height and width of the latents.
        pub latent_size, with_latent_size: [usize; 2] = [32, 32],
        /// How tokens are decoded if nothing else is asked for.
        pub sampling, with_sampling: SamplingConfig = SamplingConfig::new(),
        /// Guidance if nothing else is asked for.
        pub guidance, with_guidance: GuidanceConfig = GuidanceConfig::new(),
    }
}

/// Options for decoding tokens to video. The defaults are the released ones.
#[derive(Config, Debug)]
pub struct SamplingConfig {
    /// Number of sampling steps. 15 to 20 steps of [`Solver::DpmSolverPlusPlus`] and [`Solver::UniPc`]
    /// correspond to 50 of DDIM.
    #[config(default = 50)]
    pub steps: usize,
    /// The solver of each step.
    #[config(default = "Solver::Ddim { eta: 1.0 }")]
    pub solver: Solver,
    /// Spacing of the timesteps. By default, that of the solver ([`Solver::spacing`]).
    #[config(default = "None")]
    pub spacing: Option<Spacing>,
    /// Frame stride condition.
    #[config(default = 3.0)]
    pub fs: f64,
    /// Number of frames.
    #[config(default = 16)]
    pub frames: usize,
}

/// The Divot de-tokenizer, which decodes video tokens to a clip (paper, section 3.1.2).
#[derive(Module, Debug)]
pub struct Detokenizer {
    /// Perceiver that converts video tokens to the UNet's context.
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
    /// The element type of computations. The weights may have another type.
    #[module(skip)]
    pub dtype: DType,
}

impl SamplingConfig {
    /// Checks the options against the released noise schedule. This needs no weights. Returns the number of
    /// steps that will be taken.
    ///
    /// # Errors
    /// If an option is out of range.
    pub fn check(&self) -> Result<usize> {
        if !self.fs.is_finite() {
            return Err(Error::Option {
                option: "the frame stride",
                value: self.fs,
                remedy: "a finite number",
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

    /// Returns the height and width of decoded frames, in pixels.
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
            dtype: DType::F32,
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
    /// Loads [`Part::Detokenizer`], which decodes the features of the tokenizer.
    ///
    /// # Errors
    /// If a file is missing, damaged, or does not fit the configuration beside it.
    pub fn load(checkpoint: &mut Checkpoint<'_>) -> Result<(Self, DetokenizerConfig)> {
        Self::load_part(checkpoint, Part::Detokenizer)
    }

    /// Returns the part that decodes features sampled by a language model: the adapted de-tokenizer, or the
    /// plain one if the checkpoint has no adapted one.
    pub fn adapted_part(checkpoint: &Path) -> Part {
        let adapted = Part::AdaptedDetokenizer;
        match adapted.folder(checkpoint).is_dir() {
            true => adapted,
            false => Part::Detokenizer,
        }
    }

    /// Loads the given de-tokenizer.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    pub fn load_part(
        checkpoint: &mut Checkpoint<'_>,
        part: Part,
    ) -> Result<(Self, DetokenizerConfig)> {
        let config: DetokenizerConfig = checkpoint.config(part)?;
        let module = config.init(checkpoint.device());
        let mut detokenizer = checkpoint.load(part, module)?;
        let weights = detokenizer.resampler.norm_out.gamma.val().dtype();
        detokenizer.dtype = checkpoint.compute_dtype(weights);
        Ok((detokenizer, config))
    }

    /// Decodes the tokens of one clip, `[1, tokens, width]`, to frames. The same seed gives the same noise.
    /// `on_step` is called for each step and may stop the sampling.
    ///
    /// # Errors
    /// If the tokens do not have the model's width, a sampling option is out of range, or a value is not
    /// finite; [`Error::Stopped`] if `on_step` stops it.
    pub fn frames(
        &self,
        tokens: Tensor<3>,
        guidance: Option<&Guidance>,
        sampling: &SamplingConfig,
        seed: u64,
        on_step: impl FnMut(SamplerStep) -> ControlFlow<()>,
    ) -> Result<Vec<Frame>> {
        let mut noise = Noise::new(seed);
        let latents = self.sample(tokens, guidance, sampling, &mut noise, on_step)?;
        self.decode_frames(latents)
    }

    /// Decodes the latents of one clip, `[1, channels, frames, height, width]`, to frames.
    ///
    /// # Errors
    /// If a value is not finite.
    pub fn decode_frames(&self, latents: Tensor<5>) -> Result<Vec<Frame>> {
        let video = self.decode(latents).squeeze_dim::<4>(0);
        let video = video.swap_dims(0, 1); // [frames, 3, height, width]
        let shape = video.dims();
        let values: Vec<f32> = video.into_data().iter::<f32>().collect();
        if values.iter().any(|value| value.is_nan()) {
            return Err(Error::NotFinite(self.dtype.name()));
        }
        Ok(chw_to_clip(&values, shape)?)
    }

    /// Returns the width of the tokens.
    pub fn token_dim(&self) -> usize {
        self.resampler.proj_in.weight.lazy_shape().dims::<2>()[0]
    }

    /// Computes the UNet's context from video tokens: `[batch, 64, 256]` → `[batch, 125, 1024]`.
    pub fn context(&self, tokens: Tensor<3>) -> Tensor<3> {
        self.resampler.forward(tokens.cast(self.dtype))
    }

    /// Samples latents from video tokens.
    ///
    /// `tokens`: `[batch, tokens, width]`. Without `guidance`, only the conditional branch is computed.
    /// `on_step` is called for each step and may stop the sampling.
    ///
    /// Returns `[batch, channels, frames, height, width]`.
    ///
    /// # Errors
    /// If the tokens do not have the model's width, or an option is out of range; [`Error::Stopped`] if
    /// `on_step` stops it.
    pub fn sample(
        &self,
        tokens: Tensor<3>,
        guidance: Option<&Guidance>,
        sampling: &SamplingConfig,
        noise: &mut Noise,
        on_step: impl FnMut(SamplerStep) -> ControlFlow<()>,
    ) -> Result<Tensor<5>> {
        let batch = tokens.dims()[0];
        let mut denoiser = Denoiser::new(&self.unet, self.checked_context(tokens)?, sampling.fs);
        if let Some(guidance) = guidance {
            let context = self.checked_context(guidance.tokens.clone())?;
            denoiser = denoiser.with_guidance(context, guidance.scale, guidance.rescale);
        }
        self.denoise(&denoiser, batch, sampling, noise, on_step)
    }

    /// Samples the latents of a batch of clips with any [`Denoiser`] of the UNet, which has its condition.
    ///
    /// Returns `[batch, channels, frames, height, width]`.
    ///
    /// # Errors
    /// If an option is out of range; [`Error::Stopped`] if `on_step` stops it.
    pub fn denoise(
        &self,
        denoiser: &Denoiser<'_>,
        batch: usize,
        sampling: &SamplingConfig,
        noise: &mut Noise,
        on_step: impl FnMut(SamplerStep) -> ControlFlow<()>,
    ) -> Result<Tensor<5>> {
        sampling.check()?;
        let sampler = sampling.sampler(&self.schedule)?;
        let device = self.unet.conv_in.weight.device();
        let [height, width] = self.latent_size;
        let channels = self.unet.conv_in.weight.dims()[1];
        let shape = [batch, channels, sampling.frames, height, width];
        let start = noise.normal(shape, &device);
        let latents = sampler.sample(
            start,
            |latents, timestep| denoiser.predict(latents, timestep),
            |_| noise.normal(shape, &device),
            on_step,
        );
        Ok(latents?)
    }

    /// Computes the context of tokens, after checking that their width is that of the model.
    fn checked_context(&self, tokens: Tensor<3>) -> Result<Tensor<3>> {
        let (found, expected) = (tokens.dims()[2], self.token_dim());
        match found == expected {
            true => Ok(self.context(tokens)),
            false => Err(Error::TokenWidth { found, expected }),
        }
    }

    /// Decodes latents to frames: `[batch, 4, frames, height, width]` → `[batch, 3, frames, height, width]`
    /// in pixels, RGB clamped to [-1, 1], in f32.
    pub fn decode(&self, latents: Tensor<5>) -> Tensor<5> {
        self.vae
            .decode_clip(latents.cast(self.dtype))
            .cast(DType::F32)
            .clamp(-1.0, 1.0)
    }
}
