//! The tokenizer without its Perceiver, as a variational one, and in half precision.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use divot_nn::Noise;
use divot_resampler::{PerceiverResampler, VideoResampler, VideoResamplerConfig};

fn config() -> VideoResamplerConfig {
    VideoResamplerConfig::new(12, 16, 24)
        .with_frames(2)
        .with_temporal_depth(1)
        .with_pool_size(2)
        .with_spatial_temporal_depth(1)
        .with_resampler_depth(1)
        .with_resampler_heads(2)
        .with_resampler_head_dim(8)
        .with_tokens(3)
        .with_token_dim(6)
}

fn patches(device: &Device) -> Tensor<4> {
    Noise::new(1).normal([2, 2, 9, 12], device)
}

fn largest<const D: usize>(x: Tensor<D>) -> f32 {
    x.abs().max().into_scalar::<f32>()
}

fn norm<const D: usize>(x: Tensor<D>) -> f32 {
    x.square().sum().sqrt().into_scalar::<f32>()
}

fn stages(resampler: &VideoResampler, patches: Tensor<4>) -> Tensor<3> {
    let pooled = resampler.pool(resampler.temporal(patches));
    resampler
        .spatial_temporal
        .forward(resampler.norm.forward(pooled))
}

#[test]
fn without_a_perceiver_the_tokens_keep_their_positions() {
    let device = Device::flex();
    let config = config().with_perceiver(false);
    let resampler = config.init(&device);
    let tokens = resampler.forward(patches(&device));
    assert_eq!(config.output_size(), [8, 16]);
    assert_eq!(tokens.dims(), [2, 8, 16]);
    let expected = stages(&resampler, patches(&device));
    assert_eq!(tokens.into_data(), expected.into_data());
    assert!(resampler.distribution(patches(&device)).is_none());
}

#[test]
fn a_variational_tokenizer_gives_mean_and_variance() {
    let device = Device::flex();
    let resampler = config().with_variational(true).init(&device);
    let [mean, logvar] = resampler.distribution(patches(&device)).unwrap();
    assert_eq!((mean.dims(), logvar.dims()), ([2, 3, 6], [2, 3, 6]));
    let perceiver = resampler.resampler.as_ref().unwrap();
    let expected = perceiver.forward(stages(&resampler, patches(&device)));
    assert_eq!(mean.clone().into_data(), expected.into_data());
    let layer = resampler.log_variance.as_ref().unwrap();
    assert!(largest(logvar - layer.forward(mean)) < 1e-5);
}

#[test]
fn bf16_patches_over_f32_weights() {
    let device = Device::flex().autodiff();
    device.seed(1);
    let resampler = config().init(&device);
    let run = |dtype: DType| {
        let tokens = resampler.forward(patches(&device).cast(dtype));
        assert_eq!(tokens.dtype(), dtype);
        let tokens = tokens.cast(DType::F32);
        let gradients = (tokens.clone() * Noise::new(2).normal([2, 3, 6], &device))
            .sum()
            .backward();
        let gradient = resampler.temporal.proj_in.weight.val().grad(&gradients);
        (tokens.inner(), gradient.expect("it is trained"))
    };
    let (half, full) = (run(DType::BF16), run(DType::F32));
    assert!(norm(half.0 - full.0.clone()) < 0.05 * norm(full.0));
    assert!(norm(half.1 - full.1.clone()) < 0.1 * norm(full.1));
}

#[test]
fn older_configurations_load() {
    let text = r#"{"input_dim": 12, "hidden_dim": 16, "temporal_width": 24}"#;
    let config = VideoResamplerConfig::load_binary(text.as_bytes()).unwrap();
    assert!(config.perceiver && !config.variational);
    assert_eq!(
        (config.resampler_heads, config.resampler_head_dim),
        (16, 64)
    );
}

/// A change at a position shows most in the token whose query starts there.
#[test]
fn queries_start_at_positions_of_their_own() {
    let device = Device::flex();
    device.seed(1);
    let (positions, tokens) = (32, 8);
    let resampler = VideoResamplerConfig::new(64, 64, 64)
        .with_frames(2)
        .with_temporal_depth(1)
        .with_pool_size(4)
        .with_spatial_temporal_depth(1)
        .with_resampler_depth(1)
        .with_resampler_heads(2)
        .with_resampler_head_dim(32)
        .with_tokens(tokens)
        .with_token_dim(16)
        .init(&device);
    let perceiver = resampler.resampler.as_ref().unwrap();
    let forward = |pooled| perceiver.forward(resampler.spatial_temporal.forward(pooled));
    // Neighbouring places of a clip are alike.
    let pooled: Tensor<3> = Noise::new(1).normal([1, positions, 64], &device) * 0.3;
    let before = forward(pooled.clone());
    let found = (0..tokens).filter(|&token| {
        let position = token * positions / tokens;
        let other: Tensor<3> = Noise::new(2).normal([1, 1, 64], &device) * 0.3;
        let places = [0..1, position..position + 1, 0..64];
        let changed = pooled.clone().slice_assign(places, other);
        let change = (forward(changed) - before.clone()).square().sum_dim(2);
        change.argmax(1).into_scalar::<i32>() as usize == token
    });
    assert!(found.count() >= 6);
}

/// Attention that is nearly even, or that a query gives to itself, would leave constants.
#[test]
fn what_differs_between_clips_reaches_new_tokens() {
    let device = Device::flex();
    device.seed(1);
    let width = 128;
    let resampler = VideoResamplerConfig::new(width, width, width)
        .with_temporal_depth(1)
        .with_temporal_heads(2)
        .with_pool_size(4)
        .with_spatial_temporal_depth(2)
        .with_spatial_temporal_heads(2)
        .with_resampler_depth(2)
        .with_resampler_heads(2)
        .with_tokens(32)
        .with_token_dim(16)
        .init(&device);
    let clips = 64;
    let patches: Tensor<4> = Noise::new(3).normal([clips, 5, 16, width], &device);
    let tokens = resampler.forward(patches);
    let constant = tokens.clone().mean_dim(0);
    let between = (tokens.clone() - constant)
        .square()
        .mean()
        .into_scalar::<f32>();
    let all = tokens.square().mean().into_scalar::<f32>();
    assert!(between > 0.2 * all, "{}", between / all);
}

#[test]
fn a_frozen_perceiver_stays_frozen_when_its_queries_are_placed() {
    let device = Device::flex().autodiff();
    let resampler = config().init(&device).resampler.unwrap();
    let positions: Tensor<2> = Noise::new(1).normal([8, 16], &device);
    let learns = |perceiver: PerceiverResampler| {
        let placed = perceiver.starting_at(positions.clone());
        let query = &placed.layers[0].to_q.weight;
        [placed.latents.is_require_grad(), query.is_require_grad()]
    };
    assert_eq!(learns(resampler.clone()), [true, true]);
    assert_eq!(learns(resampler.no_grad()), [false, false]);
}
