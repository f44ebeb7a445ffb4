//! Compares the diffusion objective with its formula and contexts with plain attention, and tests networks
//! that compute in another type than that of their weights.

use burn::tensor::activation::softmax;
use burn::tensor::{DType, Device, Tensor};
use divot_nn::{CheckSizes, Noise};
use divot_unet::{
    Context, ContextAttention, DiffusionBatch, NoiseSchedule, NoiseScheduleConfig, Prediction,
    TransformerConfig, Unet, UnetConfig, VaeConfig, diffusion_loss,
};

fn unet(device: &Device) -> Unet {
    device.seed(1);
    UnetConfig::new(32, vec![1, 2], 8)
        .with_num_res_blocks(1)
        .with_attention_resolutions(vec![1])
        .with_head_dim(16)
        .with_dropout(0.0)
        .init(device)
}

fn number(x: Tensor<1>) -> f64 {
    f64::from(x.into_scalar::<f32>())
}

fn batch(device: &Device) -> DiffusionBatch {
    let mut noise = Noise::new(2);
    let shape = [2, 4, 2, 4, 4];
    DiffusionBatch {
        latents: noise.normal(shape, device),
        noise: noise.normal(shape, device),
        timesteps: vec![100, 900],
        context: noise.normal::<3>([2, 80, 8], device).into(),
    }
}

#[test]
fn the_objective_is_the_weighted_squared_error() {
    let device = Device::flex();
    let unet = unet(&device);
    for prediction in [Prediction::V, Prediction::Epsilon] {
        let config = NoiseScheduleConfig::new().with_prediction(prediction);
        let schedule = NoiseSchedule::new(&config);
        let mut sums = [0.0; 2];
        let DiffusionBatch {
            latents,
            noise,
            timesteps,
            context,
            ..
        } = batch(&device);
        let Context::Shared(context) = context else {
            unreachable!("the batch's context is shared")
        };
        for (clip, &t) in timesteps.iter().enumerate() {
            let of_clip = |x: &Tensor<5>| x.clone().narrow(0, clip, 1);
            let (z0, noise) = (of_clip(&latents), of_clip(&noise));
            let alpha = schedule.alphas_cumprod[t];
            let (signal, sigma) = (alpha.sqrt(), (1.0 - alpha).sqrt());
            let noisy = z0.clone() * signal + noise.clone() * sigma;
            let time = Tensor::<1>::from_floats([t as f32], &device);
            let found = unet.forward(noisy, time, context.clone().narrow(0, clip, 1), None);
            let target = match prediction {
                Prediction::V => noise * signal - z0 * sigma,
                Prediction::Epsilon => noise,
            };
            let error = number((found - target).square().sum());
            let snr = alpha / (1.0 - alpha);
            let weight = match prediction {
                Prediction::V => snr.min(5.0) / (snr + 1.0),
                Prediction::Epsilon => snr.min(5.0) / snr,
            };
            sums[0] += error;
            sums[1] += weight * error;
        }
        for (gamma, expected) in [None, Some(5.0)].into_iter().zip(sums) {
            let loss = diffusion_loss(&unet, &schedule, batch(&device), gamma);
            assert_eq!(loss.count, 2 * 4 * 2 * 4 * 4);
            let found = number(loss.sum);
            assert!((found / expected - 1.0).abs() < 1e-4, "{found} {expected}");
        }
    }
}

/// Attention with one head: softmax(q·kᵀ / √d)·v.
fn plain(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Tensor<3> {
    let width = q.dims()[2] as f64;
    softmax(q.matmul(k.swap_dims(1, 2)) / width.sqrt(), 2).matmul(v)
}

#[test]
fn each_frame_attends_to_the_text_and_its_own_tokens() {
    let device = Device::flex();
    let config = TransformerConfig::new(32, 1, 16);
    let mut attention = ContextAttention::new(32, Some(8), &config, &device);
    let split = attention.split.as_mut().unwrap();
    split.alpha = split.alpha.clone().map(|alpha| alpha + 0.3);
    let mut noise = Noise::new(3);
    let (batch, frames) = (2, 3);
    let x = noise.normal::<3>([batch * frames, 6, 32], &device);
    let text = noise.normal::<3>([batch, 5, 8], &device);
    let own = noise.normal::<4>([batch, frames, 4, 8], &device);
    let context = attention.encode(&Context::PerFrame {
        text: text.clone(),
        frames: own.clone(),
    });
    let found = attention.forward(x.clone(), Some(&context));

    let split = attention.split.as_ref().unwrap();
    let rows = (0..batch * frames).map(|row| {
        let (clip, frame) = (row / frames, row % frames);
        let q = attention.to_q.forward(x.clone().narrow(0, row, 1));
        let text = text.clone().narrow(0, clip, 1);
        let own = own.clone().narrow(0, clip, 1).narrow(1, frame, 1);
        let own = own.squeeze_dim::<3>(1);
        let first = plain(
            q.clone(),
            attention.to_k.forward(text.clone()),
            attention.to_v.forward(text),
        );
        let second = plain(q, split.to_k.forward(own.clone()), split.to_v.forward(own));
        attention
            .to_out
            .forward(first + second * (0.3f64.tanh() + 1.0))
    });
    let expected = Tensor::cat(rows.collect(), 0);
    let error = number((found - expected).abs().max());
    assert!(error < 1e-5, "{error}");
}

/// If all frames have the same tokens, a context per frame equals the shared context, split at the same
/// place.
#[test]
fn a_context_that_is_the_same_for_each_frame_is_the_shared_one() {
    let device = Device::flex();
    let unet = unet(&device);
    let DiffusionBatch {
        latents, context, ..
    } = batch(&device);
    let Context::Shared(shared) = context else {
        unreachable!("the batch's context is shared")
    };
    let per_frame = Context::PerFrame {
        text: shared.clone().narrow(1, 0, 77),
        frames: shared
            .clone()
            .narrow(1, 77, 3)
            .unsqueeze_dim::<4>(1)
            .repeat_dim(1, 2),
    };
    let time = Tensor::<1>::from_floats([100.0, 900.0], &device);
    let a = unet.forward(latents.clone(), time.clone(), shared, None);
    let b = unet.forward(latents, time, per_frame, None);
    let error = number((a.clone() - b).abs().max());
    assert!(error < 1e-5 * number(a.abs().max()), "{error}");
}

#[test]
#[should_panic(expected = "frames of the context")]
fn a_context_for_other_frames_is_refused() {
    let device = Device::flex();
    let context = Context::PerFrame {
        text: Tensor::zeros([1, 5, 8], &device),
        frames: Tensor::zeros([1, 2, 4, 8], &device),
    };
    let latents = Tensor::zeros([1, 4, 4, 4, 4], &device);
    unet(&device).forward(latents, Tensor::zeros([1], &device), context, None);
}

#[test]
fn bf16_latents_over_f32_weights() {
    let device = Device::flex().autodiff();
    let unet = unet(&device);
    let schedule = NoiseSchedule::new(&NoiseScheduleConfig::new());
    let run = |dtype: DType| {
        let mut batch = batch(&device);
        batch.context = batch.context.cast(dtype);
        let loss = diffusion_loss(&unet, &schedule, batch, None).mean();
        let gradients = loss.backward();
        let gradient = |x: Tensor<4>| {
            let gradient = x.grad(&gradients).expect("it is trained");
            assert_eq!(gradient.dtype(), DType::F32);
            number(gradient.square().sum().sqrt())
        };
        [
            number(loss.inner()),
            gradient(unet.conv_in.weight.val()),
            gradient(unet.middle_out.conv1.weight.val()),
        ]
    };
    let (half, full) = (run(DType::BF16), run(DType::F32));
    for (half, full) in half.iter().zip(full) {
        assert!((half / full - 1.0).abs() < 0.05, "{half} {full}");
    }
}

#[test]
fn the_autoencoder_in_bf16_over_f32_weights() {
    let device = Device::flex().autodiff();
    device.seed(4);
    let vae = VaeConfig::new()
        .with_channels(32)
        .with_channel_mult(vec![1, 2])
        .with_num_res_blocks(1)
        .init(&device);
    let run = |dtype: DType| {
        let images = Noise::new(5).normal::<4>([1, 3, 8, 8], &device).cast(dtype);
        let decoded = vae.decode(vae.encode(images).mean);
        assert_eq!(decoded.dtype(), dtype);
        let loss = decoded.cast(DType::F32).square().mean();
        let gradient = vae.encoder.conv_in.weight.val().grad(&loss.backward());
        let gradient = gradient.expect("it is trained");
        [number(loss.inner()), number(gradient.square().sum().sqrt())]
    };
    let (half, full) = (run(DType::BF16), run(DType::F32));
    for (half, full) in half.iter().zip(full) {
        assert!((half / full - 1.0).abs() < 0.05, "{half} {full}");
    }
}

/// A `config.json` without a field that was added later gets the field's default.
#[test]
fn older_configurations_load() {
    use burn::config::Config;
    let text = r#"{"model_channels": 32, "channel_mult": [1, 2], "context_dim": 8}"#;
    let config = UnetConfig::load_binary(text.as_bytes()).unwrap();
    let found = (
        config.groups,
        config.init_attn_heads,
        config.primary_context,
    );
    assert_eq!(found, (32, 8, 77));
    assert_eq!(VaeConfig::load_binary(b"{}").unwrap().groups, 32);
}

/// With one group, an odd number of channels would pass all other checks.
#[test]
fn the_first_level_may_be_wider_than_the_first_convolution() {
    let device = Device::default();
    let config = UnetConfig::new(32, vec![2, 3], 8)
        .with_num_res_blocks(1)
        .with_attention_resolutions(vec![1, 2])
        .with_head_dim(16)
        .with_primary_context(2);
    config.check_sizes().expect("a valid configuration");
    let latents = Noise::new(1).normal([1, 4, 2, 4, 4], &device);
    let context: Tensor<3> = Noise::new(2).normal([1, 4, 8], &device);
    let timesteps = Tensor::from_floats([3.0], &device);
    let predicted = config
        .init(&device)
        .forward(latents, timesteps, context, None);
    assert_eq!(predicted.dims(), [1, 4, 2, 4, 4]);
}

#[test]
fn timesteps_embed_into_an_even_width() {
    let config = UnetConfig::new(3, vec![1], 8)
        .with_groups(1)
        .with_head_dim(1);
    let error = config.check_sizes().unwrap_err().to_string();
    assert_eq!(error, "model_channels is 3, an odd number");
}
