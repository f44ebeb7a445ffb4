//! Our side of the works that PyTorch runs too.

use anyhow::{Result, ensure};
use burn::module::{Module, ModuleMapper, Param};
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use divot::resampler::{PerceiverResampler, PerceiverResamplerConfig, VideoResamplerConfig};
use divot::{DetokenizerConfig, Noise, Tokenizer, TokenizerConfig};
use divot_llm::{Context, Mistral, MistralConfig};
use divot_nn::optim::AdamWConfig;
use divot_unet::{
    DdimConfig, Denoiser, DiffusionBatch, NoiseSchedule, NoiseScheduleConfig, Unet, UnetConfig,
    Vae, diffusion_loss,
};
use divot_vit::VisionTowerConfig;

use super::language::{Dtype, generate, in_type, prompt};
use super::{Work, training};

/// A network with its inputs.
pub struct Ready {
    /// Number of parameters of all networks, including frozen ones.
    pub parameters: usize,
    /// Runs the work. The result is a number that depends on the whole output.
    pub run: Box<dyn FnMut() -> Result<f32>>,
    /// A smaller run that is enough to warm up, if there is one.
    pub warm_up: Option<Box<dyn FnMut() -> Result<f32>>>,
}

impl Ready {
    pub fn new(parameters: usize, run: impl FnMut() -> Result<f32> + 'static) -> Self {
        Self {
            parameters,
            run: Box::new(run),
            warm_up: None,
        }
    }
}

/// Number of positions of the language model's prompt, and of its cache.
const PROMPT: usize = 512;
const ROOM: usize = 2048;

/// Builds the networks and inputs of a work. For a training step, the device tracks gradients. The sizes are
/// those of `xtask/peer/peer.py`.
pub fn build(work: Work, device: &Device, weights: Dtype) -> Result<Ready> {
    let dtype = weights.float().unwrap_or(FloatDType::F32);
    divot_nn::ops::enable_bf16_products(weights == Dtype::Bf16);
    let mut inputs = Inputs {
        noise: Noise::new(0),
        device: device.clone(),
        dtype,
    };
    Ok(match work {
        Work::Tokenizer => {
            let mut module = cast(TokenizerConfig::divot().init(device), dtype);
            module.dtype = computed(device, dtype);
            let clip = inputs.video();
            Ready::new(module.num_params(), move || {
                total(module.tokenize(clip.clone()))
            })
        }
        Work::Unet => {
            let module = cast(DetokenizerConfig::divot().unet.init(device), dtype);
            let latents = inputs.normal([1, 4, 16, 32, 32]);
            let context = inputs.normal([1, 125, 1024]);
            let timestep = inputs.full(1, 500.0);
            Ready::new(module.num_params(), move || {
                let (latents, timestep) = (latents.clone(), timestep.clone());
                total(module.forward(latents, timestep, context.clone(), None))
            })
        }
        Work::VaeEncode => {
            let clip = inputs.normal([1, 3, 16, 256, 256]).clamp(-1.0, 1.0);
            by_frame(vae(device, dtype), clip, |vae, clip| {
                vae.encode_clip(clip, None)
            })
        }
        Work::VaeDecode => {
            let latents = inputs.normal([1, 4, 16, 32, 32]);
            by_frame(vae(device, dtype), latents, Vae::decode_clip)
        }
        Work::GuidedStep => guided_step(device, dtype, &mut inputs)?,
        Work::LlmPrompt => {
            let (decoder, parameters) = decoder(device, weights);
            let computed = computed(device, dtype);
            let ids = prompt(PROMPT);
            Ready::new(parameters, move || {
                let mut context = Context::new(&decoder, ROOM, computed);
                context.read(&decoder, decoder.embed_ids(&ids, computed), 0);
                Ok(generate(&decoder, &mut context, 1)?[0] as f32)
            })
        }
        Work::LlmToken => token_by_token(decoder(device, weights), computed(device, dtype))?,
        Work::TrainSmall => train_small(inputs),
        Work::TrainMid => train_mid(inputs),
        Work::TrainStage1 => training::stage1(device)?,
        Work::TrainLlm => training::llm(device)?,
        Work::Llm
        | Work::LlmLoad
        | Work::LlmCache
        | Work::Perplexity
        | Work::Data
        | Work::DataMemory => {
            unreachable!("PyTorch takes no turns in these")
        }
    })
}

/// Draws random inputs.
struct Inputs {
    noise: Noise,
    device: Device,
    dtype: FloatDType,
}

impl Inputs {
    fn normal<const D: usize>(&mut self, shape: [usize; D]) -> Tensor<D> {
        let values = self.noise.normal(shape, &self.device);
        match divot::device::is_cpu(&self.device) {
            true => values,
            false => values.cast(self.dtype),
        }
    }

    fn full(&self, count: usize, value: f64) -> Tensor<1> {
        Tensor::full([count], value, (&self.device, DType::F32))
    }

    /// Draws five frames, in f32 as the tokenizer takes them.
    fn video(&mut self) -> Tensor<5> {
        let video = self.noise.normal([1, 5, 3, 256, 256], &self.device);
        video.clamp(-1.0, 1.0)
    }
}

/// Waits for a result and returns its sum.
fn total<const D: usize>(result: Tensor<D>) -> Result<f32> {
    Ok(result.cast(FloatDType::F32).sum().into_scalar::<f32>())
}

/// Returns the type that a language model computes in: f32 on the CPU, otherwise that of its weights.
fn computed(device: &Device, dtype: FloatDType) -> DType {
    match divot::device::is_cpu(device) {
        true => DType::F32,
        false => dtype.into(),
    }
}

/// Casts a module as loading does: the CPU stores matrices in `dtype`, and everything else in f32.
pub fn cast<M: Module>(module: M, dtype: FloatDType) -> M {
    struct Cast(FloatDType);
    impl ModuleMapper for Cast {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            match D == 1 && divot::device::is_cpu(&param.val().device()) {
                true => param,
                false => param.map(|tensor| tensor.cast(self.0)),
            }
        }
    }
    match dtype {
        // Modules are initialised in f32.
        FloatDType::F32 => module,
        dtype => module.map(&mut Cast(dtype)),
    }
}

fn vae(device: &Device, dtype: FloatDType) -> Vae {
    cast(DetokenizerConfig::divot().vae.init(device), dtype)
}

/// Runs the autoencoder in either direction, frame by frame. One frame warms up.
fn by_frame(vae: Vae, clip: Tensor<5>, go: fn(&Vae, Tensor<5>) -> Tensor<5>) -> Ready {
    let vae = std::rc::Rc::new(vae);
    let (first, one) = (vae.clone(), clip.clone().narrow(2, 0, 1));
    let parameters = vae.num_params();
    Ready {
        warm_up: Some(Box::new(move || total(go(&first, one.clone())))),
        ..Ready::new(parameters, move || total(go(&vae, clip.clone())))
    }
}

/// One step of DDIM with guidance, with the released settings.
fn guided_step(device: &Device, dtype: FloatDType, inputs: &mut Inputs) -> Result<Ready> {
    let unet = cast(DetokenizerConfig::divot().unet.init(device), dtype);
    let contexts = [(); 2].map(|()| inputs.normal([1, 125, 1024]));
    let [start, noise] = [(); 2].map(|()| inputs.noise.normal([1, 4, 16, 32, 32], device));
    let ddim = DdimConfig::new(1).init(&NoiseSchedule::new(&NoiseScheduleConfig::new()))?;
    Ok(Ready::new(unet.num_params(), move || {
        let [context, unconditional] = contexts.clone();
        let denoiser = Denoiser::new(&unet, context, 3.0).with_guidance(unconditional, 7.5, 0.7);
        let latents = ddim.sample(
            start.clone(),
            |latents, timestep| denoiser.predict(latents, timestep),
            |_| noise.clone(),
            |_| std::ops::ControlFlow::Continue(()),
        );
        total(latents.expect("nothing stops it"))
    }))
}

/// A decoder of 1.1 B parameters in Mistral's proportions, and its number of parameters.
fn decoder(device: &Device, weights: Dtype) -> (Mistral, usize) {
    let decoder = MistralConfig::new(32_000, 2048, 5632, 22, 32, 4).init(device);
    let parameters = decoder.num_params();
    (in_type(decoder, weights), parameters)
}

/// Each run is one token after the prompt and the tokens before it.
fn token_by_token((decoder, parameters): (Mistral, usize), computed: DType) -> Result<Ready> {
    let mut context = Context::new(&decoder, ROOM, computed);
    context.read(&decoder, decoder.embed_ids(&prompt(PROMPT), computed), 0);
    let mut last = generate(&decoder, &mut context, 1)?;
    Ok(Ready::new(parameters, move || {
        context.read(&decoder, decoder.embed_ids(&last, computed), last[0]);
        last = generate(&decoder, &mut context, 1)?;
        Ok(last[0] as f32)
    }))
}

/// Training steps: the loss `loss_of` the module, its gradients, and AdamW.
fn training<M: Module + 'static>(
    module: M,
    device: Device,
    mut loss_of: impl FnMut(&M) -> Tensor<1> + 'static,
) -> Ready {
    let mut optimizer: ModuleOptimizer = AdamWConfig::new().init();
    let parameters = module.num_params();
    let mut learning = Some(module);
    Ready::new(parameters, move || {
        let module = learning.take().expect("it is put back");
        let loss = loss_of(&module);
        let gradients = GradientsParams::from_grads(loss.backward(), &module);
        learning = Some(optimizer.step(1e-4, module, gradients));
        device.sync()?;
        total(loss.inner())
    })
}

fn train_small(mut inputs: Inputs) -> Ready {
    let unet = UnetConfig::new(32, vec![1, 2], 64)
        .with_num_res_blocks(1)
        .with_attention_resolutions(vec![1, 2])
        .with_head_dim(32)
        .with_dropout(0.0)
        .init(&inputs.device);
    let schedule = NoiseSchedule::new(&NoiseScheduleConfig::new());
    let [latents, noise] = [(); 2].map(|()| inputs.normal([8, 4, 16, 8, 8]));
    let batch = DiffusionBatch {
        latents,
        noise,
        timesteps: vec![500; 8],
        context: inputs.normal::<3>([8, 125, 64]).into(),
    };
    training(unet, inputs.device, move |unet: &Unet| {
        diffusion_loss(unet, &schedule, batch.clone(), None).mean()
    })
}

/// The networks that are trained together in the paper's first stage.
#[derive(Module, Debug)]
struct Joint {
    tokenizer: Tokenizer,
    perceiver: PerceiverResampler,
    unet: Unet,
}

/// The released proportions at less than a third of the width. The vision tower is frozen, as in every stage
/// of training.
fn train_mid(mut inputs: Inputs) -> Ready {
    let device = &inputs.device;
    let mut tokenizer = TokenizerConfig::new(
        VisionTowerConfig::new(224, 16, 384, 12, 6, 384),
        VideoResamplerConfig::new(384, 320, 240)
            .with_temporal_depth(3)
            .with_spatial_temporal_depth(2)
            .with_resampler_depth(3)
            .with_token_dim(96),
    )
    .init(device);
    tokenizer.vision = tokenizer.vision.no_grad();
    let joint = Joint {
        tokenizer,
        perceiver: PerceiverResamplerConfig::new(125, 96, 320, 1024)
            .with_depth(3)
            .with_heads(8)
            .init(device),
        unet: UnetConfig::new(96, vec![1, 2, 4], 1024)
            .with_head_dim(32)
            .with_dropout(0.0)
            .init(device),
    };
    let schedule = NoiseSchedule::new(&NoiseScheduleConfig::new());
    let [clean, noise] = [(); 2].map(|()| inputs.normal([1, 4, 16, 16, 16]));
    let video = inputs.video();
    training(joint, inputs.device, move |joint: &Joint| {
        let tokens = joint.tokenizer.tokenize(video.clone());
        let batch = DiffusionBatch {
            latents: clean.clone(),
            noise: noise.clone(),
            timesteps: vec![500],
            context: joint.perceiver.forward(tokens).into(),
        };
        diffusion_loss(&joint.unet, &schedule, batch, None).mean()
    })
}

/// Runs a work on a GPU, which prints the time of each kernel, after that of the warm-up.
pub fn profile_gpu(work: Work, device: &Device, dtype: Dtype) -> Result<()> {
    // Another thread prints, and says nothing when it has.
    let printed = || std::thread::sleep(std::time::Duration::from_secs(2));
    let mut ready = build(work, device, dtype)?;
    for _ in 0..2 {
        ready.warm_up.as_mut().unwrap_or(&mut ready.run)()?;
    }
    device.sync()?;
    printed();
    println!("\n{}, one run:", work.name());
    (ready.run)()?;
    device.sync()?;
    printed();
    Ok(())
}

/// Runs a work on the CPU and prints the time of each kernel.
pub fn profile(work: Work, device: &Device, dtype: Dtype) -> Result<()> {
    let mut ready = build(work, device, dtype)?;
    // Two runs, because the allocator learns in them which sizes are needed again.
    for _ in 0..2 {
        ready.warm_up.as_mut().unwrap_or(&mut ready.run)()?;
    }
    divot_nn::profile::start();
    let started = std::time::Instant::now();
    (ready.run)()?;
    let total = started.elapsed().as_secs_f64();
    let rows = divot_nn::profile::take();
    #[cfg(feature = "cpu")]
    println!(
        "{}: {total:.3} s; the processor's peak: {:.0} GFLOP/s\n",
        work.name(),
        2e-9 * divot_nn::profile::peak()
    );
    println!("| kernel | pass | calls | ms | of the time | GFLOP | GFLOP/s |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let mut rest = total;
    for row in rows {
        rest -= row.seconds;
        let gflop = 2e-9 * row.multiplications;
        let (work, speed) = match gflop > 0.0 {
            true => (format!("{gflop:.1}"), format!("{:.0}", gflop / row.seconds)),
            false => Default::default(),
        };
        let (kernel, pass) = (row.kernel, format!("{:?}", row.pass).to_lowercase());
        let (ms, share) = (1e3 * row.seconds, 100.0 * row.seconds / total);
        println!(
            "| {kernel} | {pass} | {} | {ms:.1} | {share:.0} % | {work} | {speed} |",
            row.calls
        );
    }
    let (ms, share) = (1e3 * rest, 100.0 * rest / total);
    println!("| the rest | | | {ms:.1} | {share:.0} % | | |\n");
    Ok(())
}

/// Serves a work to [`turns`](super::turns): answers each line of standard input with a line.
pub fn serve(work: Work, device: &Device, dtype: Dtype) -> Result<()> {
    let mut ready = build(work, device, dtype)?;
    let timed = |run: &mut dyn FnMut() -> Result<f32>| -> Result<f64> {
        let started = std::time::Instant::now();
        let sum = run()?;
        ensure!(!sum.is_nan(), "the result is NaN");
        Ok(started.elapsed().as_secs_f64())
    };
    // Initialises the weights. On a GPU, this also compiles the kernels.
    timed(ready.warm_up.as_mut().unwrap_or(&mut ready.run))?;
    println!(
        "{}",
        serde_json::json!({
            "ready": true,
            "parameters": ready.parameters,
            "device": divot::device::name(device),
        })
    );
    for line in std::io::stdin().lines() {
        let answer = match line?.trim() {
            "run" => serde_json::json!({"seconds": timed(&mut ready.run)?}),
            "peak" => serde_json::json!({"peak_bytes": peak(device)}),
            other => anyhow::bail!("`{other}` is neither run nor peak"),
        };
        println!("{answer}");
    }
    Ok(())
}

/// Returns the peak memory of the process. On a GPU, it is the memory reserved there, none of which is freed
/// before the end.
fn peak(device: &Device) -> Option<u64> {
    match divot::device::is_cpu(device) {
        true => divot::peak_memory(),
        false => device.memory_pool_usage().map(|usage| usage.bytes_reserved),
    }
}
