//! `cargo xtask parity`: compares every stage with the values of a parity fixture.

mod language;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, FloatDType, Gradients, Int, Tensor, TensorData};
use clap::Args;
use divot::checkpoint::{Checkpoint, Part};
use divot::convert::{Job, ReleasedConfig, convert};
use divot::weights::Source;
use divot::{
    Detokenizer, DetokenizerConfig, GuidanceConfig, SamplingConfig, Tokenizer, TokenizerConfig,
};
use divot_data::sampling::{comprehend_indices, reconstruct_indices, tokenizer_indices};
use divot_data::{Frame, Transform};
use divot_nn::ops::{bf16_products, enable_bf16_products};
use divot_train::objective::{
    Clean, Diffusion, Draws, NoiseOptions, Noisy, Prepared, Seen, ShowClips,
};
use divot_train::{Model, gradient_norm};
use divot_unet::{DdimConfig, Denoiser, NoiseSchedule, NoiseScheduleConfig, Spacing};
use divot_vit::{TextTowerConfig, normalize, preprocess};
use serde_json::Value;

/// Arguments of `parity`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  cargo xtask parity tests/fixture --only unet
  cargo run --release -p xtask --features wgpu -- parity tests/fixture --device wgpu")]
pub struct Arguments {
    /// Folder of the fixture
    #[arg(value_name = "DIR")]
    pub fixture: PathBuf,
    /// Check only the tensors whose names start with this prefix
    #[arg(long, value_name = "NAME")]
    pub only: Option<String>,
    /// Device to compute on: auto, cpu, wgpu, vulkan or cuda, with `:index` for a certain one
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Use Burn's operations only, without the fused CPU kernels
    #[arg(long)]
    pub no_kernels: bool,
}

/// Runs the requested sections. Returns false if any tensor fails.
pub fn run(arguments: &Arguments) -> Result<bool> {
    divot_nn::ops::enable_kernels(!arguments.no_kernels);
    let device = divot::device::select(&arguments.device)?;
    let parity = Parity::open(&arguments.fixture, arguments.only.clone(), device)?;
    type Section = (&'static str, fn(&Parity) -> Result<()>);
    let sections: [Section; 15] = [
        ("preprocess", Parity::preprocess),
        ("clip", Parity::clip),
        ("tokenizer", Parity::tokenizer),
        ("detokenizer", Parity::detokenizer),
        ("unet", Parity::unet),
        ("vae", Parity::vae),
        ("schedule", Parity::schedule),
        ("ddim", Parity::ddim),
        ("train", Parity::train),
        ("gmm", Parity::gmm),
        ("llm", Parity::llm),
        ("agent_comp", Parity::agent_comp),
        ("agent_gen", Parity::agent_gen),
        ("comprehend", Parity::comprehend),
        ("lora", Parity::lora),
    ];
    for (name, section) in sections {
        if parity.wants_section(name) && parity.has_section(name) {
            section(&parity).with_context(|| format!("section {name}"))?;
        }
    }
    let networks = ["tokenizer", "unet", "vae"];
    let whole = networks.iter().all(|section| parity.has_section(section));
    if parity.wants_section("bf16") && whole && !arguments.no_kernels {
        parity.bf16()?;
    }
    if parity.wants_section("frames") {
        parity.sampling()?;
    }
    if parity.wants_section("prompts") {
        parity.prompts()?;
    }
    let names: Vec<&str> = sections.iter().map(|(name, _)| *name).collect();
    Ok(parity.finish(&names))
}

/// Limits of the relative error in float32.
#[derive(Clone, Copy)]
struct Limits {
    networks: f64,
    /// Gradients and their norms.
    gradients: f64,
    /// The sampling loop, which amplifies errors.
    sampling: f64,
}

const ON_CPU: Limits = Limits {
    networks: 1e-4,
    gradients: 1e-4,
    sampling: 1e-3,
};
/// On devices that may reorder or fuse operations.
const ON_GPU: Limits = Limits {
    networks: 1e-3,
    gradients: 1e-3,
    sampling: 1e-3,
};
/// On CUDA, where products of f32 may be computed in TF32.
const IN_TF32: Limits = Limits {
    networks: 5e-3,
    gradients: 2e-2,
    sampling: 2e-2,
};
/// Limit with weights and products in bf16, and on CUDA activations too.
const BF16_LIMIT: f64 = 3e-2;
/// Limit for images. When bytes are resized, rounding may change a few pixels by one level.
const IMAGE_LIMIT: f64 = 4e-3;

struct Parity {
    dir: PathBuf,
    io: Source,
    arguments: Value,
    device: Device,
    limits: Limits,
    only: Option<String>,
    /// The converted checkpoint. It is removed at the end.
    models: tempfile::TempDir,
    tally: RefCell<Tally>,
}

#[derive(Default)]
struct Tally {
    seen: BTreeSet<String>,
    passed: usize,
    failed: usize,
}

impl Parity {
    fn open(dir: &Path, only: Option<String>, device: Device) -> Result<Self> {
        ensure!(
            dir.join("io.safetensors").is_file(),
            "{}: is not a parity fixture (no io.safetensors); name the folder of one",
            dir.display()
        );
        let io = Source::open(&dir.join("io.safetensors"))?;
        let text = std::fs::read_to_string(dir.join("config.json"))
            .with_context(|| format!("{}: config.json cannot be read", dir.display()))?;
        let sizes = ReleasedConfig::read(&dir.join("config.json"))?;
        let models = tempfile::tempdir().context("a temporary folder cannot be made")?;
        for job in Job::find(&dir.join("pretrained"))?.jobs {
            convert(&job, &sizes, models.path(), FloatDType::F32, |_| {
                ControlFlow::Continue(())
            })?;
        }
        let limits = match () {
            () if divot::device::is_cpu(&device) => ON_CPU,
            () if divot::device::is_cuda(&device) => IN_TF32,
            () => ON_GPU,
        };
        Ok(Self {
            dir: dir.to_path_buf(),
            io,
            arguments: serde_json::from_str(&text)?,
            device,
            limits,
            only,
            models,
            tally: RefCell::default(),
        })
    }

    fn wants_section(&self, section: &str) -> bool {
        self.only.as_ref().is_none_or(|only| {
            section.starts_with(only.as_str()) || only.split('/').next() == Some(section)
        })
    }

    /// Returns whether the fixture has a section. Fixtures at full size leave out the language model.
    fn has_section(&self, section: &str) -> bool {
        let prefix = format!("{section}/");
        self.io
            .tensors()
            .any(|tensor| tensor.name.starts_with(&prefix))
    }

    fn wants(&self, name: &str) -> bool {
        self.only
            .as_ref()
            .is_none_or(|only| name.starts_with(only.as_str()))
    }

    fn number(&self, group: &str, name: &str) -> Result<f64> {
        self.arguments[group][name]
            .as_f64()
            .with_context(|| format!("config.json: {group}.{name} is not a number"))
    }

    fn data(&self, name: &str) -> Result<TensorData> {
        self.tally.borrow_mut().seen.insert(name.to_owned());
        let tensor = self
            .io
            .get(name)
            .with_context(|| format!("io.safetensors: `{name}` is missing"))?;
        Ok(tensor.read()?)
    }

    fn tensor<const D: usize>(&self, name: &str) -> Result<Tensor<D>> {
        self.tensor_on(name, &self.device)
    }

    fn tensor_on<const D: usize>(&self, name: &str, device: &Device) -> Result<Tensor<D>> {
        let data = self.data(name)?;
        let rank = data.shape().num_dims();
        ensure!(
            rank == D,
            "io.safetensors: `{name}` has {rank} axes, not {D}"
        );
        Ok(Tensor::from_data(data, device))
    }

    fn integers(&self, name: &str) -> Result<Vec<i64>> {
        Ok(self.data(name)?.iter::<i64>().collect())
    }

    /// Reads integers as floats, for embedding.
    fn floats_of_integers(&self, name: &str) -> Result<Tensor<1>> {
        let values: Vec<f32> = self.integers(name)?.iter().map(|&i| i as f32).collect();
        Ok(Tensor::from_floats(values.as_slice(), &self.device))
    }

    /// Prints a line and counts it.
    fn report(&self, name: &str, shape: &[usize], error: f64, limit: f64) {
        // NaN fails.
        let pass = error <= limit;
        println!(
            "{name:42} {:24} {error:>9.2e} {limit:>9.0e}  {}",
            format!("{shape:?}"),
            if pass { "pass" } else { "FAIL" }
        );
        let mut tally = self.tally.borrow_mut();
        tally.passed += usize::from(pass);
        tally.failed += usize::from(!pass);
    }

    /// Compares with the fixture's tensor of this name: ‖ours − theirs‖ / ‖theirs‖.
    fn compare<const D: usize>(&self, name: &str, ours: Tensor<D>, limit: f64) -> Result<()> {
        self.compare_data(name, ours.into_data(), limit)
    }

    /// Like [`compare`](Self::compare), for a tensor that appears in several lines.
    fn compare_as<const D: usize>(
        &self,
        theirs: &str,
        name: &str,
        ours: Tensor<D>,
        limit: f64,
    ) -> Result<()> {
        self.compare_with(theirs, name, ours.into_data(), limit)
    }

    fn compare_data(&self, name: &str, ours: TensorData, limit: f64) -> Result<()> {
        self.compare_with(name, name, ours, limit)
    }

    fn compare_with(&self, theirs: &str, name: &str, ours: TensorData, limit: f64) -> Result<()> {
        let theirs = self.data(theirs)?;
        self.compare_pair(name, ours, theirs, limit)
    }

    fn compare_pair(
        &self,
        name: &str,
        ours: TensorData,
        theirs: TensorData,
        limit: f64,
    ) -> Result<()> {
        if !self.wants(name) {
            return Ok(());
        }
        let shape: Vec<usize> = theirs.shape().iter().copied().collect();
        let found: Vec<usize> = ours.shape().iter().copied().collect();
        ensure!(
            found == shape || (shape.is_empty() && found == [1]),
            "`{name}` has shape {found:?} here and {shape:?} in the fixture"
        );
        let (mut difference, mut norm) = (0.0, 0.0);
        for (ours, theirs) in ours.iter::<f64>().zip(theirs.iter::<f64>()) {
            difference += (ours - theirs).powi(2);
            norm += theirs * theirs;
        }
        let error = if norm > 0.0 {
            (difference / norm).sqrt()
        } else {
            difference.sqrt()
        };
        self.report(name, &shape, error, limit);
        Ok(())
    }

    /// Compares values with a tensor of the same number of elements.
    fn compare_values(&self, name: &str, ours: Vec<f64>, limit: f64) -> Result<()> {
        let shape: Vec<usize> = self.data(name)?.shape().iter().copied().collect();
        ensure!(
            shape.iter().product::<usize>() == ours.len(),
            "`{name}` has {} numbers here and shape {shape:?} in the fixture",
            ours.len()
        );
        self.compare_data(name, TensorData::new(ours, shape), limit)
    }

    /// Returns the input frames of the tokenizer, `[frames, 3, 256, 256]`. Small fixtures do not store them.
    /// They are then computed from the frames of the video.
    fn frames(&self, device: &Device) -> Result<Tensor<4>> {
        if self.io.get("preprocess/dc_256").is_some() {
            return self.tensor_on("preprocess/dc_256", device);
        }
        let (values, shape) = Transform::default().clip(&self.video_frames()?)?;
        Ok(Tensor::from_data(TensorData::new(values, shape), device))
    }

    /// Returns the original frames of the video.
    fn video_frames(&self) -> Result<Vec<Frame>> {
        let pixels = self.data("preprocess/frames_u8")?;
        let [_, height, width, _] = pixels.shape().dims();
        let bytes: Vec<u8> = pixels.iter::<u8>().collect();
        Ok(bytes
            .chunks_exact(height * width * 3)
            .map(|frame| Frame::new(width, height, frame.to_vec()))
            .collect::<Result<_, _>>()?)
    }

    fn checkpoint(&self) -> Checkpoint<'_> {
        Checkpoint::new(self.models.path(), &self.device)
    }

    fn load_tokenizer(&self) -> Result<(Tokenizer, TokenizerConfig)> {
        Ok(Tokenizer::load(&mut self.checkpoint())?)
    }

    fn load_detokenizer(&self) -> Result<(Detokenizer, DetokenizerConfig)> {
        Ok(Detokenizer::load(&mut self.checkpoint())?)
    }

    fn preprocess(&self) -> Result<()> {
        let frames = self.video_frames()?;
        for (name, frames, keep_aspect) in [
            ("preprocess/dc_256", &frames[..], true),
            ("preprocess/dc_256_fixed", &frames[..1], false),
        ] {
            if self.io.get(name).is_some() {
                let size = self.data(name)?.shape()[2];
                let (values, shape) = Transform { size, keep_aspect }.clip(frames)?;
                self.compare_data(name, TensorData::new(values, shape), IMAGE_LIMIT)?;
            }
        }

        let first = self.frames(&self.device)?.narrow(0, 0, 1);
        let image_size = self.number("vit", "image_size")? as usize;
        self.compare(
            "preprocess/clip_224",
            preprocess(first, image_size),
            self.limits.networks,
        )
    }

    fn clip(&self) -> Result<()> {
        let mut checkpoint = self.checkpoint();
        let config: TextTowerConfig = checkpoint.config(Part::Clip)?;
        let text = checkpoint.load(Part::Clip, config.init(&self.device))?;
        let data = self.data("clip/text_ids")?;
        let ids = Tensor::<2, Int>::from_data(data, &self.device);
        self.compare(
            "clip/text_features",
            normalize(text.text_features(ids, DType::F32)),
            self.limits.networks,
        )?;

        let (tokenizer, config) = self.load_tokenizer()?;
        let images = preprocess(self.frames(&self.device)?, config.vision.image_size);
        self.compare(
            "clip/image_features",
            normalize(tokenizer.vision.image_features(images)),
            self.limits.networks,
        )
    }

    fn tokenizer(&self) -> Result<()> {
        let (tokenizer, config) = self.load_tokenizer()?;
        let frames = self.frames(&self.device)?.unsqueeze_dim::<5>(0);
        let images = preprocess(frames.clone().squeeze_dim::<4>(0), config.vision.image_size);
        self.compare(
            "tokenizer/vit_tokens",
            tokenizer.vision.tokens(images),
            self.limits.networks,
        )?;
        let patches = tokenizer.patch_tokens(frames.clone());
        let temporal = tokenizer.resampler.temporal(patches).squeeze_dim::<3>(0);
        self.compare("tokenizer/temporal", temporal, self.limits.networks)?;
        self.compare(
            "tokenizer/tokens",
            tokenizer.tokenize(frames),
            self.limits.networks,
        )?;
        self.compare(
            "tokenizer/tokens_zeros",
            tokenizer.unconditional(),
            self.limits.networks,
        )
    }

    fn detokenizer(&self) -> Result<()> {
        let (detokenizer, _) = self.load_detokenizer()?;
        for (tokens, context) in [
            ("tokenizer/tokens", "detokenizer/context"),
            ("tokenizer/tokens_zeros", "detokenizer/uncond_context"),
        ] {
            let ours = detokenizer.context(self.tensor(tokens)?);
            self.compare(context, ours, self.limits.networks)?;
        }
        Ok(())
    }

    fn unet(&self) -> Result<()> {
        let (detokenizer, _) = self.load_detokenizer()?;
        let x = self.tensor::<5>("unet/x")?;
        let timesteps = self.floats_of_integers("unet/timesteps")?;
        let context = self.tensor::<3>("unet/context")?;
        for (name, fs) in [
            ("unet/out", Some(self.floats_of_integers("unet/fs")?)),
            ("unet/out_default_fs", None),
        ] {
            let out = detokenizer
                .unet
                .forward(x.clone(), timesteps.clone(), context.clone(), fs);
            self.compare(name, out, self.limits.networks)?;
        }
        Ok(())
    }

    fn vae(&self) -> Result<()> {
        let (detokenizer, _) = self.load_detokenizer()?;
        let moments = detokenizer.vae.encode(self.tensor("vae/image")?);
        self.compare("vae/mean", moments.mean, self.limits.networks)?;
        self.compare("vae/logvar", moments.logvar, self.limits.networks)?;
        let decoded = detokenizer.vae.decode(self.tensor("vae/z")?);
        self.compare("vae/decoded", decoded, self.limits.networks)
    }

    /// Compares networks with weights in bf16 on a CPU that multiplies in bf16, and on CUDA.
    fn bf16(&self) -> Result<()> {
        enable_bf16_products(true);
        let multiplies = match divot::device::is_cpu(&self.device) {
            true => bf16_products(),
            false => divot::device::is_cuda(&self.device),
        };
        let compared = match multiplies {
            true => self.compare_in_bf16(),
            false => Ok(()),
        };
        enable_bf16_products(false);
        compared
    }

    fn compare_in_bf16(&self) -> Result<()> {
        let mut checkpoint = self.checkpoint().with_dtype(FloatDType::BF16);
        let (tokenizer, _) = Tokenizer::load(&mut checkpoint)?;
        let (detokenizer, _) = Detokenizer::load(&mut checkpoint)?;
        let compare = |name: &str, ours: TensorData| {
            let ours = ours.convert_dtype(DType::F32);
            self.compare_with(name, &format!("bf16/{name}"), ours, BF16_LIMIT)
        };
        // Activations stay in f32 on the CPU.
        let activations = detokenizer.dtype;
        let frames = self.frames(&self.device)?.unsqueeze_dim::<5>(0);
        let tokens = tokenizer.tokenize(frames);
        compare("tokenizer/tokens", tokens.into_data())?;
        let x = self.tensor::<5>("unet/x")?.cast(activations);
        let timesteps = self.floats_of_integers("unet/timesteps")?;
        let context = self.tensor::<3>("unet/context")?;
        let fs = Some(self.floats_of_integers("unet/fs")?);
        let out = detokenizer.unet.forward(x, timesteps, context, fs);
        compare("unet/out", out.into_data())?;
        let z = self.tensor::<4>("vae/z")?.cast(activations);
        compare("vae/decoded", detokenizer.vae.decode(z).into_data())
    }

    fn schedule(&self) -> Result<()> {
        let schedule = NoiseSchedule::new(&NoiseScheduleConfig::new());
        self.compare_values("schedule/betas", schedule.betas.clone(), ON_CPU.networks)?;
        self.compare_values(
            "schedule/alphas_cumprod",
            schedule.alphas_cumprod.clone(),
            ON_CPU.networks,
        )?;
        let tables: Vec<String> = self
            .io
            .tensors()
            .filter_map(|tensor| {
                let table = tensor.name.strip_prefix("schedule/")?;
                Some(table.strip_suffix("/timesteps")?.to_owned())
            })
            .collect();
        for table in tables {
            let (spacing, steps) = table.rsplit_once('_').context("a table without steps")?;
            let spacing = match spacing {
                "uniform" => Spacing::Uniform,
                _ => Spacing::UniformTrailing,
            };
            let ddim = DdimConfig::new(steps.parse()?)
                .with_spacing(spacing)
                .init(&schedule)?;
            let floats = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect();
            let timesteps = ddim.timesteps.iter().map(|&t| t as f64).collect();
            for (name, ours, limit) in [
                ("timesteps", timesteps, 0.0),
                ("alphas", floats(&ddim.alphas), ON_CPU.networks),
                ("alphas_prev", floats(&ddim.alphas_prev), ON_CPU.networks),
                ("sigmas", floats(&ddim.sigmas), ON_CPU.networks),
            ] {
                self.compare_values(&format!("schedule/{table}/{name}"), ours, limit)?;
            }
        }
        Ok(())
    }

    fn ddim(&self) -> Result<()> {
        let (detokenizer, config) = self.load_detokenizer()?;
        let denoiser = Denoiser::new(
            &detokenizer.unet,
            self.tensor("detokenizer/context")?,
            self.number("guidance", "fs")?,
        )
        .with_guidance(
            self.tensor("detokenizer/uncond_context")?,
            self.number("guidance", "scale")?,
            self.number("guidance", "rescale")?,
        );
        let steps = self.arguments["ddim"]
            .as_u64()
            .context("config.json: ddim")?;
        let schedule = NoiseSchedule::new(&config.schedule);
        let ddim = DdimConfig::new(steps as usize)
            .with_eta(self.number("guidance", "eta")?)
            .init(&schedule)?;
        let noises = self.tensor::<6>("ddim/noises")?;
        let mut estimates = Vec::new();
        let samples = ddim
            .sample(
                self.tensor("ddim/x_T")?,
                |latents, timestep| denoiser.predict(latents, timestep),
                |step| noises.clone().narrow(0, step, 1).squeeze_dim::<5>(0),
                |step| {
                    estimates.push(step.pred_x0);
                    ControlFlow::Continue(())
                },
            )
            .context("the sampling stopped early")?;
        let limit = self.limits.sampling;
        self.compare("ddim/pred_x0", Tensor::stack::<6>(estimates, 0), limit)?;
        self.compare("ddim/samples", samples.clone(), limit)?;
        self.compare("ddim/decoded", detokenizer.vae.decode_clip(samples), limit)
    }

    /// Compares the joint objective of the paper's first stage, and its gradients.
    fn train(&self) -> Result<()> {
        let device = self.device.clone().autodiff();
        let mut checkpoint = Checkpoint::new(self.models.path(), &device);
        let (mut tokenizer, _) = Tokenizer::load(&mut checkpoint)?;
        tokenizer.vision = tokenizer.vision.no_grad();
        let mut config: DetokenizerConfig = checkpoint.config(Part::Detokenizer)?;
        // The fixture was computed in evaluation mode, with one frame stride for all clips.
        config.unet.dropout = 0.0;
        config.unet.default_fs = self.number("guidance", "fs")?;
        let detokenizer = checkpoint.load(Part::Detokenizer, config.init(&device))?;

        let z0 = self.tensor_on::<5>("train/z0", &device)?;
        let noise = self.tensor_on::<5>("train/eps", &device)?;
        let timesteps: Vec<usize> = self
            .integers("train/t")?
            .iter()
            .map(|&t| t as usize)
            .collect();
        let schedule = NoiseSchedule::new(&config.schedule);
        let target = schedule.target(z0.clone(), noise.clone(), &timesteps);
        self.compare("train/v", target, self.limits.networks)?;

        let batch = timesteps.len();
        let frames = self.frames(&device)?.unsqueeze_dim::<5>(0);
        let [_, count, channels, height, width] = frames.dims();
        let frames = frames.expand([batch, count, channels, height, width]);
        // Latents that are drawn with no noise are the means.
        let mean = z0 / detokenizer.vae.scale_factor;
        let noisy = Noisy {
            clip: Clean::Moments([mean.clone(), mean.zeros_like()]),
            kept: Tensor::ones([batch, 1, 1], &device),
            any_dropped: false,
            timesteps,
            posterior: mean.zeros_like(),
            noise,
        };
        let objective = Diffusion {
            noise: NoiseOptions::default(),
            min_snr_gamma: None,
            kl_weight: None,
            show: ShowClips {
                sampling: SamplingConfig::new(),
                guidance: GuidanceConfig::new(),
            },
        };
        let draws = Draws {
            seed: 0,
            step: 0,
            first: 0,
        };
        let model = Model {
            tokenizer: Some(tokenizer),
            detokenizer: Some(detokenizer),
            ..Model::default()
        };
        let prepared = objective.prepared(&model, Seen::Frames(frames), noisy, &draws);
        let [loss] = means(prepared, &model)?;
        self.compare("train/loss", loss.clone(), self.limits.networks)?;

        let mut gradients = loss.backward();
        let (tokenizer, detokenizer) = (model.tokenizer(), model.detokenizer());
        let perceiver = tokenizer.resampler.resampler.as_ref();
        let latents = perceiver
            .context("the tokenizer has no Perceiver")?
            .latents
            .val();
        let gradient = latents
            .grad(&gradients)
            .context("the learned queries have no gradient")?;
        self.compare(
            "train/grad_resampler_latents",
            gradient,
            self.limits.gradients,
        )?;
        for (name, norm) in [
            ("unet", norm(&detokenizer.unet, &mut gradients)),
            ("proj", norm(&detokenizer.resampler, &mut gradients)),
            ("tokenizer", norm(&tokenizer.resampler, &mut gradients)),
        ] {
            self.compare_values(
                &format!("train/grad_norm_{name}"),
                vec![norm],
                self.limits.gradients,
            )?;
        }
        ensure!(
            norm(&tokenizer.vision, &mut gradients) == 0.0,
            "the frozen vision tower has gradients"
        );
        Ok(())
    }

    /// Compares which frames are read from videos of different lengths and rates.
    fn sampling(&self) -> Result<()> {
        let path = self.dir.join("frames.json");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("{}: cannot be read", path.display()))?;
        let cases: Vec<Value> = serde_json::from_str(&text)?;
        for case in cases {
            let (frames, fps) = (
                case["frames"].as_u64().context("frames.json: frames")? as usize,
                case["fps"].as_f64().context("frames.json: fps")?,
            );
            let reconstruct = tokenizer_indices(&reconstruct_indices(frames, fps)?);
            let comprehend: Vec<_> =
                comprehend_indices(frames, fps, divot_data::sampling::MAX_CLIPS)?
                    .iter()
                    .map(tokenizer_indices)
                    .collect();
            for (name, ours, theirs) in [
                (
                    "reconstruct",
                    serde_json::json!(reconstruct),
                    &case["reconstruct"],
                ),
                (
                    "comprehend",
                    serde_json::json!(comprehend),
                    &case["comprehend"],
                ),
            ] {
                let wrong = f64::from(u8::from(ours != *theirs));
                self.report(&format!("frames/{frames}@{fps}/{name}"), &[], wrong, 0.0);
            }
        }
        Ok(())
    }

    /// Prints what was not compared. Returns false if anything failed.
    fn finish(&self, sections: &[&str]) -> bool {
        let tally = self.tally.borrow();
        let mut not_covered = BTreeSet::new();
        let mut unused = Vec::new();
        for tensor in self.io.tensors() {
            let section = tensor.name.split('/').next().unwrap_or_default();
            if !sections.contains(&section) {
                not_covered.insert(section);
            } else if !tally.seen.contains(&tensor.name) && self.only.is_none() {
                unused.push(&tensor.name);
            }
        }
        for name in &unused {
            println!("{name:42} neither compared nor used                     FAIL");
        }
        for section in not_covered {
            println!("{section}/*: not covered");
        }
        let failed = tally.failed + unused.len();
        println!(
            "{} passed, {failed} failed, on {}",
            tally.passed,
            divot::device::name(&self.device)
        );
        if tally.passed == 0
            && let Some(only) = &self.only
        {
            println!("nothing that is covered has a name that starts with `{only}`");
        }
        failed == 0 && tally.passed > 0
    }
}

/// Takes the gradients of a module, and returns their norm.
fn norm<M: Module>(module: &M, gradients: &mut Gradients) -> f64 {
    gradient_norm(module, &GradientsParams::from_module(gradients, module))
}

/// The means of an objective's terms.
fn means<const TERMS: usize>(prepared: Prepared, model: &Model) -> Result<[Tensor<1>; TERMS]> {
    let Prepared { counts, losses, .. } = prepared;
    let sums = losses(model).into_iter().zip(counts);
    // A term of no numbers is 0.
    let mean = |(sum, count): (Tensor<1>, usize)| sum / count.max(1) as f64;
    let means: Vec<Tensor<1>> = sums.map(mean).collect();
    let found = means.len();
    let means = means.try_into();
    means.map_err(|_| anyhow!("{found} terms where {TERMS} were expected"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_projects_own_fixture() {
        for no_kernels in [true, false] {
            let arguments = Arguments {
                fixture: Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixture"),
                only: None,
                device: "cpu".to_owned(),
                no_kernels,
            };
            let passed = run(&arguments).unwrap();
            assert!(
                passed,
                "a tensor is out of its limit (no kernels: {no_kernels})"
            );
        }
    }
}
