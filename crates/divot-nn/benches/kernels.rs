//! Measures every fused kernel and the operations of Burn that it replaces: the forward passes at shapes of
//! the released networks, and both passes of training at small shapes.

use std::time::Duration;

use burn::nn::conv::{Conv2d, Conv2dConfig, Conv3d, Conv3dConfig};
use burn::nn::{
    GroupNorm, GroupNormConfig, Linear, LinearConfig, PaddingConfig2d, PaddingConfig3d, RmsNorm,
    RmsNormConfig,
};
use burn::optim::Optimizer;
use burn::tensor::{Device, Tensor};
use criterion::{Criterion, SamplingMode};
use divot_nn::optim::AdamWConfig;
use divot_nn::{LayerNormConfig, Noise, Recycler, attention, ops};

// As in the programs. Without it, many benchmarks would measure how fast the system maps pages.
#[global_allocator]
static ALLOCATOR: Recycler = Recycler;

fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Noise::new(0).normal(shape, device)
}

/// Measures `run` with kernels and without.
fn compare<T>(criterion: &mut Criterion, name: &str, mut run: impl FnMut() -> T) {
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat);
    for (with, on) in [("kernel", true), ("burn", false)] {
        ops::enable_kernels(on);
        group.bench_function(with, |bencher| bencher.iter(&mut run));
    }
    group.finish();
}

/// Measures a function of one tensor.
fn unary<const D: usize, const E: usize>(
    criterion: &mut Criterion,
    name: &str,
    shape: [usize; D],
    f: impl Fn(Tensor<D>) -> Tensor<E>,
) {
    let x = random(shape, &Device::default());
    compare(criterion, name, || f(x.clone()));
}

fn conv3x3(channels: usize, device: &Device) -> Conv2d {
    Conv2dConfig::new([channels, channels], [3, 3])
        .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
        .init(device)
}

fn products(criterion: &mut Criterion) {
    let device = &Device::default();
    let linear: Linear = LinearConfig::new(320, 2560).init(device);
    unary(criterion, "linear 16384x320 to 2560", [16384, 320], |x| {
        ops::linear(&linear, x)
    });
    let linear: Linear = LinearConfig::new(2048, 5632).init(device);
    unary(
        criterion,
        "linear, one row of 2048 to 5632",
        [1, 2048],
        |x| ops::linear(&linear, x),
    );
    for size @ [_, _, _, channels] in [[16, 32, 32, 320], [16, 8, 8, 1280]] {
        let conv = conv3x3(channels, device);
        let [n, height, width, _] = size;
        let name = format!("conv 3x3 {n}x{height}x{width}x{channels}");
        unary(criterion, &name, size, |x| ops::conv2d_last(&conv, x));
    }
    let conv: Conv3d = Conv3dConfig::new([320, 320], [3, 1, 1])
        .with_padding(PaddingConfig3d::Explicit(1, 0, 0))
        .init(device);
    let size = [1, 16, 32, 32, 320];
    unary(criterion, "temporal conv 1x16x32x32x320", size, |x| {
        ops::temporal_conv(&conv, x)
    });
}

fn attentions(criterion: &mut Criterion) {
    let device = &Device::default();
    for (what, size, keys, causal) in [
        ("of frames", [16, 5, 1024, 64], [16, 5, 1024, 64], false),
        ("among frames", [1024, 5, 16, 64], [1024, 5, 16, 64], false),
        (
            "to one context for all frames",
            [16, 5, 1024, 64],
            [1, 5, 125, 64],
            false,
        ),
        ("of a prompt", [1, 32, 512, 64], [1, 4, 512, 64], true),
        ("of a token", [1, 32, 1, 64], [1, 4, 512, 64], false),
    ] {
        let [batch, heads, queries, width] = size;
        let name = format!("attention {what} {batch}x{heads}x{queries}x{width}");
        let keys = random(keys, device);
        unary(criterion, &name, size, |x| {
            attention(x, keys.clone(), keys.clone(), None, causal)
        });
    }
    let mask = random([16, 1, 320, 320], device);
    unary(
        criterion,
        "attention, mask 16x5x320x64",
        [16, 5, 320, 64],
        |x| attention(x.clone(), x.clone(), x, Some(mask.clone()), false),
    );
}

fn activations_and_norms(criterion: &mut Criterion) {
    let device = &Device::default();
    unary(criterion, "SiLU 16384x320", [16384, 320], ops::silu);
    unary(criterion, "GELU 16384x320", [16384, 320], ops::gelu);
    unary(
        criterion,
        "QuickGELU 16384x320",
        [16384, 320],
        ops::quick_gelu,
    );
    unary(criterion, "GEGLU 16384x2560", [16384, 2560], ops::geglu);
    let group: GroupNorm = GroupNormConfig::new(32, 320).init(device);
    for (name, silu) in [
        ("group norm 16x32x32x320", false),
        ("group norm, SiLU 16x32x32x320", true),
    ] {
        unary(criterion, name, [16, 32, 32, 320], |x| {
            ops::group_norm(&group, x, silu)
        });
    }
    let layer = LayerNormConfig::new(1024).init(device);
    unary(criterion, "layer norm 5120x1024", [5120, 1024], |x| {
        layer.forward(x)
    });
    let rms: RmsNorm = RmsNormConfig::new(4096).init(device);
    unary(criterion, "RMS norm 512x4096", [512, 4096], |x| {
        ops::rms_norm(&rms, x)
    });
}

/// Measures the forward and the backward pass, with gradients of the parameters.
fn train<const D: usize, const E: usize>(
    criterion: &mut Criterion,
    name: &str,
    shape: [usize; D],
    f: impl Fn(Tensor<D>) -> Tensor<E>,
) {
    let x = random(shape, &Device::default().autodiff()).require_grad();
    compare(criterion, name, || f(x.clone()).sum().backward());
}

fn training(criterion: &mut Criterion) {
    let device = &Device::default().autodiff();
    let linear: Linear = LinearConfig::new(32, 256).init(device);
    train(criterion, "train linear 8192x32 to 256", [8192, 32], |x| {
        ops::linear(&linear, x)
    });
    let conv = conv3x3(32, device);
    let size = [128, 8, 8, 32];
    train(criterion, "train conv 3x3 128x8x8x32", size, |x| {
        ops::conv2d_last(&conv, x)
    });
    let size = [128, 1, 64, 32];
    train(criterion, "train attention 128x1x64x32", size, |x| {
        attention(x.clone(), x.clone(), x, None, false)
    });
    optimiser(criterion);
}

/// Measures a step of AdamW for one matrix.
fn optimiser(criterion: &mut Criterion) {
    let device = &Device::default();
    let [weight, grad] = [(); 2].map(|()| random::<2>([1280, 1280], device));
    let optimiser = AdamWConfig::new().build();
    let (weight, state) = optimiser.step(1e-4, weight, grad.clone(), None);
    compare(criterion, "AdamW 1280x1280", || {
        optimiser.step(1e-4, weight.clone(), grad.clone(), state.clone())
    });
}

fn main() {
    // Few and short samples: the slowest functions take most of a second each.
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    products(&mut criterion);
    attentions(&mut criterion);
    activations_and_norms(&mut criterion);
    training(&mut criterion);
    criterion.final_summary();
}
