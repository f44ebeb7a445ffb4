//! Compares every fused kernel with the operations of Burn that it replaces: results and gradients, for
//! sizes that do not fill whole vectors, views that are not contiguous, and empty tensors.

#![cfg(feature = "flex")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig, Conv3d, Conv3dConfig};
use burn::nn::{
    DropoutConfig, GroupNorm, GroupNormConfig, Linear, LinearConfig, PaddingConfig2d,
    PaddingConfig3d, RmsNorm, RmsNormConfig,
};
use burn::tensor::{DType, Device, Tensor, TensorData};
use divot_nn::{
    LayerNorm, LayerNormConfig, Noise, PackedLinear, Quantization, attention, multi_head_attention,
    ops,
};

/// The kernels are switched on and off for the whole process, so only one test at a time may use the switch.
static SWITCH: Mutex<()> = Mutex::new(());

fn switch() -> MutexGuard<'static, ()> {
    SWITCH.lock().unwrap_or_else(PoisonError::into_inner)
}

fn device() -> Device {
    Device::default().autodiff()
}

fn random<const D: usize>(shape: [usize; D], seed: u64) -> Tensor<D> {
    Noise::new(seed).normal(shape, &device())
}

/// Returns the result of `f`, and the gradients of `inputs` for a random gradient of the result.
fn run<const D: usize, const E: usize, const N: usize>(
    inputs: &[Tensor<D>; N],
    f: &impl Fn([Tensor<D>; N]) -> Tensor<E>,
) -> Vec<Vec<f32>> {
    let inputs = inputs.clone().map(|x| x.detach().require_grad());
    let out = f(inputs.clone());
    let direction = random(out.dims(), 99);
    let grads = (out.clone() * direction).sum().backward();
    let values = |data: burn::tensor::TensorData| data.try_to_vec::<f32>().unwrap();
    let mut found = vec![values(out.into_data())];
    for input in &inputs {
        found.push(
            input
                .grad(&grads)
                .map_or_else(Vec::new, |g| values(g.into_data())),
        );
    }
    found
}

/// Asserts that `f` gives the same result and gradients with and without kernels.
fn same<const D: usize, const E: usize, const N: usize>(
    what: &str,
    inputs: [Tensor<D>; N],
    f: impl Fn([Tensor<D>; N]) -> Tensor<E>,
) {
    let _switch = switch();
    ops::enable_kernels(false);
    let plain = run(&inputs, &f);
    ops::enable_kernels(true);
    let fused = run(&inputs, &f);
    for (i, (plain, fused)) in plain.iter().zip(&fused).enumerate() {
        assert_eq!(plain.len(), fused.len(), "{what}: result {i}");
        let largest = plain.iter().fold(1e-3, |a: f32, b| a.max(b.abs()));
        for (j, (p, f)) in plain.iter().zip(fused).enumerate() {
            assert!(
                (p - f).abs() <= 2e-5 * largest,
                "{what}: result {i} differs at {j}: {p} and {f} (largest {largest})"
            );
        }
    }
}

#[test]
fn activations() {
    for size in [1, 5, 16, 70_000] {
        // From about −12 to 12, so that both tails are included.
        let x = random([size], 1) * 3.0;
        same("SiLU", [x.clone()], |[x]| ops::silu(x));
        same("GELU", [x.clone()], |[x]| ops::gelu(x));
        same("QuickGELU", [x], |[x]| ops::quick_gelu(x));
    }
    for [rows, width] in [[1, 2], [7, 10], [300, 258]] {
        same("GEGLU", [random([rows, width], 2)], |[x]| ops::geglu(x));
    }
    same("SiLU of a view", [random([40, 30], 3)], |[x]| {
        ops::silu(x.swap_dims(0, 1).narrow(0, 3, 20))
    });
    same("SiLU of nothing", [random([0, 4], 3)], |[x]| ops::silu(x));
}

#[test]
fn activations_of_large_numbers() {
    let _switch = switch();
    let x = [-1e30, -200.0, -88.0, -30.0, 0.0, 30.0, 88.0, 200.0, 1e30];
    let x = Tensor::<1>::from_floats(x, &Device::default());
    for f in [ops::silu::<1>, ops::gelu::<1>, ops::quick_gelu::<1>] {
        let y = f(x.clone()).into_data().try_to_vec::<f32>().unwrap();
        for (x, y) in x
            .clone()
            .into_data()
            .try_to_vec::<f32>()
            .unwrap()
            .iter()
            .zip(y)
        {
            let expected = x.max(0.0);
            assert!(
                (y - expected).abs() <= 1e-6 * (1.0 + expected),
                "{x} gives {y}"
            );
        }
    }
}

fn linear_of(layer: &Linear, weight: Tensor<2>) -> Linear {
    let mut layer = layer.clone();
    layer.weight = layer.weight.map(|_| weight);
    layer
}

#[test]
fn linear() {
    let device = device();
    for [rows, from, to] in [
        [1, 3, 5],
        [2, 700, 515],
        [3, 8, 8],
        [37, 65, 130],
        [1700, 530, 70],
        // Several parts of the rows; several parts of a line; three blocks of the inner dimension with
        // uneven groups.
        [4500, 20, 30],
        [1, 66, 4200],
        [800, 1500, 330],
    ] {
        for bias in [true, false] {
            let layer = LinearConfig::new(from, to).with_bias(bias).init(&device);
            let x = random([rows, from], 4);
            let what = format!("linear {rows}x{from} to {to}, bias {bias}");
            let weight = random([from, to], 5);
            same(&what, [x, weight], |[x, w]| {
                ops::linear(&linear_of(&layer, w), x)
            });
        }
    }
    let layer = LinearConfig::new(6, 4).init(&device);
    same("linear of a view", [random([6, 20], 6)], |[x]| {
        ops::linear(&layer, x.swap_dims(0, 1))
    });
    same("linear of nothing", [random([0, 6], 6)], |[x]| {
        ops::linear(&layer, x)
    });
}

#[test]
fn weights_in_half_precision() {
    let _switch = switch();
    let device = device();
    for dtype in [DType::F16, DType::BF16] {
        for rows in [1, 40] {
            let layer: Linear = LinearConfig::new(70, 90).init(&device);
            let halved = |w: Tensor<2>| linear_of(&layer, w.cast(dtype));
            let what = format!("linear, {dtype:?} weights, {rows} rows");
            let inputs = [random([rows, 70], 31), random([70, 90], 32)];
            // As with the rounded weights in f32, except that the gradient of the weights is rounded too.
            let fused = run(&inputs, &|[x, w]| ops::linear(&halved(w), x));
            let rounded = run(&inputs, &|[x, w]| {
                ops::linear(&linear_of(&layer, w.cast(dtype).cast(DType::F32)), x)
            });
            for (i, (fused, rounded)) in fused.iter().zip(&rounded).enumerate() {
                let largest = rounded.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                let tolerance = if i == 2 { 4e-3 } else { 1e-6 } * largest;
                for (f, r) in fused.iter().zip(rounded) {
                    assert!((f - r).abs() <= tolerance, "{what}, {i}: {f} and {r}");
                }
            }
        }
        for (channels, size) in [(9, [5, 6]), (20, [16, 16])] {
            let conv: Conv2d = Conv2dConfig::new([channels, 20], [3, 3])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(&device);
            let mut halved = conv.clone();
            halved.weight = halved.weight.map(|w| w.cast(dtype));
            let mut rounded = conv.clone();
            rounded.weight = rounded.weight.map(|w| w.cast(dtype).cast(DType::F32));
            let x = random([2, size[0], size[1], channels], 33);
            let [a, b] =
                [halved, rounded].map(|conv| ops::conv2d_last(&conv, x.clone()).into_data());
            a.assert_eq(&b, true);
        }
    }
}

#[test]
fn parameters() {
    // The gradients of the layers' own parameters, which `same` does not compare.
    let _switch = switch();
    let device = device();
    let linear: Linear = LinearConfig::new(20, 33).init(&device);
    let layer: LayerNorm = LayerNormConfig::new(33).init(&device);
    let rms: RmsNorm = RmsNormConfig::new(33).init(&device);
    let group: GroupNorm = GroupNormConfig::new(3, 33).init(&device);
    let conv: Conv2d = Conv2dConfig::new([33, 7], [3, 3])
        .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
        .init(&device);
    let temporal: Conv3d = Conv3dConfig::new([7, 5], [3, 1, 1])
        .with_padding(PaddingConfig3d::Explicit(1, 0, 0))
        .init(&device);
    let run = |on: bool| {
        ops::enable_kernels(on);
        let x = ops::linear(&linear, random([8, 5, 6, 20], 7));
        let x = ops::group_norm(&group, ops::rms_norm(&rms, layer.forward(x)), true);
        let x = ops::conv2d_last(&conv, x);
        let x = ops::temporal_conv(&temporal, x.reshape([2, 4, 5, 6, 7]));
        let grads = (x.clone() * random(x.dims(), 8)).sum().backward();
        let conv_bias = conv.bias.as_ref().unwrap();
        let temporal_bias = temporal.bias.as_ref().unwrap();
        let vectors = [
            linear.bias.as_ref().unwrap(),
            &layer.gamma,
            &layer.beta,
            &rms.gamma,
            group.gamma.as_ref().unwrap(),
            group.beta.as_ref().unwrap(),
            conv_bias,
            temporal_bias,
        ];
        let mut found: Vec<_> = vectors
            .map(|p| p.val().grad(&grads).unwrap().into_data())
            .into();
        found.push(linear.weight.val().grad(&grads).unwrap().into_data());
        found.push(conv.weight.val().grad(&grads).unwrap().into_data());
        found.push(temporal.weight.val().grad(&grads).unwrap().into_data());
        found
    };
    let (plain, fused) = (run(false), run(true));
    ops::enable_kernels(true);
    for (i, (plain, fused)) in plain.into_iter().zip(fused).enumerate() {
        let (plain, fused) = (
            plain.try_to_vec::<f32>().unwrap(),
            fused.try_to_vec::<f32>().unwrap(),
        );
        let largest = plain.iter().fold(0.0f32, |a, b| a.max(b.abs()));
        assert!(largest > 0.0, "parameter {i} has a gradient");
        for (p, f) in plain.iter().zip(&fused) {
            assert!(
                (p - f).abs() <= 5e-5 * largest,
                "parameter {i}: {p} and {f}"
            );
        }
    }
}

#[test]
fn norms() {
    let device = device();
    for [rows, width] in [[1, 1], [3, 7], [50, 320], [700, 130]] {
        let layer = LayerNormConfig::new(width).init(&device);
        let rms = RmsNormConfig::new(width).init(&device);
        // Far from zero, where a variance computed as E[x²] − E[x]² would lose precision.
        let x = random([rows, width], 9) + 30.0;
        if width > 1 {
            same("layer norm", [x.clone()], |[x]| layer.forward(x));
        }
        same("RMS norm", [x], |[x]| ops::rms_norm(&rms, x));
    }
    for [samples, positions, channels, groups] in [
        [1, 3, 4, 2],
        [2, 300, 96, 32],
        [5, 7, 33, 3],
        [1, 2000, 32, 32],
    ] {
        let norm: GroupNorm = GroupNormConfig::new(groups, channels).init(&device);
        let x = random([samples, positions, channels], 10);
        for silu in [false, true] {
            same("group norm", [x.clone()], |[x]| {
                ops::group_norm(&norm, x, silu)
            });
        }
    }
}

#[test]
fn convolutions() {
    let device = device();
    for (size, channels, kernel, stride, padding) in [
        ([2, 5, 7], [3, 4], 3, 1, 1),
        ([1, 1, 1], [2, 2], 3, 1, 1),
        ([3, 8, 8], [70, 65], 3, 2, 1),
        ([2, 9, 6], [130, 20], 3, 1, 0),
        ([2, 6, 6], [5, 9], 1, 1, 0),
        ([2, 6, 8], [5, 9], 2, 2, 0),
        // One or two rows of the result or of the gradient, which read other rows than the first.
        ([1, 4, 2], [1, 5], 1, 2, 0),
        ([1, 2, 1], [4, 3], 1, 2, 0),
        ([4, 16, 16], [64, 64], 3, 1, 1),
        // Convolutions that run by tiles: cut off at the edges, with lines and panels that are not full,
        // in several parts, and with more channels than the depth of a panel.
        ([2, 15, 9], [20, 70], 3, 1, 1),
        ([8, 8, 9], [130, 20], 3, 1, 0),
        ([8, 7, 8], [33, 16], 3, 1, 2),
        ([9, 16, 16], [16, 23], 3, 1, 1),
        ([0, 16, 16], [16, 23], 3, 1, 1),
        ([4, 8, 8], [1420, 17], 3, 1, 1),
        // Patches, with more taps than the depth of a panel.
        ([2, 50, 25], [3, 20], 25, 25, 0),
    ] {
        let [n, height, width] = size;
        let conv: Conv2d = Conv2dConfig::new(channels, [kernel, kernel])
            .with_stride([stride, stride])
            .with_padding(PaddingConfig2d::Explicit(
                padding, padding, padding, padding,
            ))
            .init(&device);
        let what = format!("{kernel}x{kernel} of {size:?}, {channels:?}, stride {stride}");
        let x = random([n, height, width, channels[0]], 11);
        let weight = random([channels[1], channels[0], kernel, kernel], 12);
        same(&what, [x, weight], |[x, weight]| {
            let mut conv = conv.clone();
            conv.weight = conv.weight.map(|_| weight);
            ops::conv2d_last(&conv, x)
        });
    }
    for (size, [top, left, bottom, right]) in [
        ([2, 15, 14], [2, 0, 1, 2]),
        ([3, 14, 15], [0, 1, 0, 1]),
        ([9, 8, 7], [0, 0, 2, 1]),
    ] {
        let [n, height, width] = size;
        let conv: Conv2d = Conv2dConfig::new([28, 17], [3, 3])
            .with_padding(PaddingConfig2d::Explicit(top, left, bottom, right))
            .init(&device);
        let x = random([n, height, width, 28], 21);
        let weight = random([17, 28, 3, 3], 22);
        same(&format!("padded {size:?}"), [x, weight], |[x, weight]| {
            let mut conv = conv.clone();
            conv.weight = conv.weight.map(|_| weight);
            ops::conv2d_last(&conv, x)
        });
    }
    for (size, channels) in [
        ([2, 4, 3, 5], [6, 7]),
        ([1, 1, 2, 2], [3, 3]),
        ([1, 16, 8, 8], [32, 64]),
        ([3, 5, 4, 6], [17, 80]),
        ([1, 1, 9, 9], [16, 17]),
        ([2, 16, 6, 9], [33, 28]),
        ([0, 4, 8, 8], [33, 28]),
    ] {
        let [n, frames, height, width] = size;
        let conv: Conv3d = Conv3dConfig::new(channels, [3, 1, 1])
            .with_padding(PaddingConfig3d::Explicit(1, 0, 0))
            .init(&device);
        let x = random([n, frames, height, width, channels[0]], 13);
        let weight = random([channels[1], channels[0], 3, 1, 1], 14);
        same(
            &format!("temporal of {size:?}"),
            [x, weight],
            |[x, weight]| {
                let mut conv = conv.clone();
                conv.weight = conv.weight.map(|_| weight);
                ops::temporal_conv(&conv, x)
            },
        );
    }
}

/// Fewer multiplications must not cost precision. The root mean square error against sums in f64 is at most
/// twice that of Burn's operations.
#[test]
fn convolutions_by_tiles_are_as_exact() {
    let _switch = switch();
    let (size, channels) = (16, 192);
    let conv: Conv2d = Conv2dConfig::new([channels, 32], [3, 3])
        .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
        .with_bias(false)
        .init(&Device::default());
    let x = Noise::new(15).normal::<4>([1, size, size, channels], &Device::default());
    let values = |x: Tensor<4>| x.into_data().try_to_vec::<f32>().unwrap();
    let (inputs, weights) = (values(x.clone()), values(conv.weight.val()));
    let mut exact = Vec::new();
    for (y, x) in (0..size).flat_map(|y| (0..size).map(move |x| (y, x))) {
        for weights in weights.chunks(channels * 9) {
            let mut sum = 0.0f64;
            for (i, j) in (0..3).flat_map(|i| (0..3).map(move |j| (i, j))) {
                let (row, column) = ((y + i).wrapping_sub(1), (x + j).wrapping_sub(1));
                if row < size && column < size {
                    let pixel = &inputs[(row * size + column) * channels..][..channels];
                    for (c, x) in pixel.iter().enumerate() {
                        sum += f64::from(*x) * f64::from(weights[c * 9 + i * 3 + j]);
                    }
                }
            }
            exact.push(sum);
        }
    }
    let [plain, fused] = [false, true].map(|on| {
        ops::enable_kernels(on);
        let found = values(ops::conv2d_last(&conv, x.clone()));
        assert_eq!(found.len(), exact.len());
        let errors = found.iter().zip(&exact).map(|(f, e)| f64::from(*f) - e);
        (errors.map(|e| e * e).sum::<f64>() / exact.len() as f64).sqrt()
    });
    assert!(
        plain > 0.0 && fused < 2.0 * plain,
        "{fused:e} and {plain:e}"
    );
    println!("root mean square error: {fused:.2e} with kernels, {plain:.2e} without");
}

#[test]
fn dropout_drops_as_often_as_it_says_and_its_gradient_the_same() {
    let _switch = switch();
    let x = random([300, 1000], 3);
    for rate in [0.05, 0.5] {
        let layer = DropoutConfig::new(rate).init();
        let drop = |[x]: [Tensor<2>; 1]| ops::dropout(&layer, x);
        let values = x.to_data().try_to_vec::<f32>().unwrap();
        let direction = random(x.dims(), 99).into_data();
        let direction = direction.try_to_vec::<f32>().unwrap();
        let [[out, grad], [other, _]] =
            [(); 2].map(|()| <[_; 2]>::try_from(run(std::array::from_ref(&x), &drop)).unwrap());
        let scale = 1.0 / (1.0 - rate as f32);
        for i in 0..values.len() {
            let factor = if out[i] == 0.0 { 0.0 } else { scale };
            assert_eq!(out[i], values[i] * factor);
            assert_eq!(grad[i], direction[i] * factor);
        }
        // Of 300,000 elements, and of those next to each other in a row or a column.
        let dropped = |i: usize| f64::from(u8::from(out[i] == 0.0));
        let share =
            |count: usize, f: &dyn Fn(usize) -> f64| (0..count).map(f).sum::<f64>() / count as f64;
        let close = |found: f64, wanted: f64| (found - wanted).abs() < 0.004;
        assert!(close(share(300_000, &dropped), rate));
        for step in [1, 2, 8, 16, 1000] {
            let both = share(290_000, &|i| dropped(i) * dropped(i + step));
            assert!(close(both, rate * rate), "{step}: {both}");
        }
        let again = share(300_000, &|i| {
            dropped(i) * f64::from(u8::from(other[i] == 0.0))
        });
        assert!(close(again, rate * rate), "another draw: {again}");
    }
    // Nothing is dropped where nothing learns.
    let layer = DropoutConfig::new(0.5).init();
    let x = x.inner();
    assert_eq!(ops::dropout(&layer, x.clone()).into_data(), x.into_data());
}

#[test]
fn attention_and_its_gradients() {
    // [batch, heads, queries], [batch, heads, keys] of keys and values, width
    for ([batch, heads, queries], [shared, key_heads, keys], width) in [
        ([1, 1, 1], [1, 1, 1], 1),
        ([2, 3, 5], [2, 3, 7], 4),
        ([4, 2, 50], [2, 2, 77], 33),
        ([2, 8, 30], [2, 2, 30], 64),
        ([6, 4, 16], [6, 4, 16], 32),
        ([1, 2, 200], [1, 2, 131], 80),
        ([4, 4, 150], [2, 2, 150], 24),
    ] {
        let q = random([batch, heads, queries, width], 15);
        let [k, v] = [16, 17].map(|seed| random([shared, key_heads, keys, width], seed));
        let what = format!("attention {batch}x{heads}x{queries}x{keys}x{width}");
        same(&what, [q.clone(), k.clone(), v.clone()], |[q, k, v]| {
            attention(q, k, v, None, false)
        });
        same(&what, [q.clone(), k.clone(), v.clone()], |[q, k, v]| {
            attention(q, k, v, None, true)
        });
        for (masks, causal) in [(batch, false), (1, true)] {
            let mask = random([masks, 1, queries, keys], 18);
            same(&what, [q.clone(), k.clone(), v.clone()], |[q, k, v]| {
                attention(q, k, v, Some(mask.clone()), causal)
            });
        }
    }
    for sizes in [[[2, 3, 0, 4], [2, 3, 5, 4]], [[0, 3, 9, 4], [0, 3, 5, 4]]] {
        let inputs = sizes.map(|size| random(size, 15));
        same("attention of nothing", inputs, |[q, k]| {
            attention(q, k.clone(), k, None, false)
        });
    }
    // Keys and values that a cache stores in f16 are those that f16 can hold.
    let switched = switch();
    for (queries, keys, width) in [(1, 300, 33), (2, 7, 4), (70, 131, 80)] {
        let q = random([2, 4, queries, width], 15);
        let [k, v] = [16, 17].map(|seed| random([2, 2, keys + 1, width], seed).cast(DType::F16));
        let [k, v] = [k, v].map(|x| x.narrow(2, 1, keys));
        let wide = [&k, &v].map(|x| x.clone().cast(DType::F32));
        let [half, full] = [[k, v], wide].map(|[k, v]| attention(q.clone(), k, v, None, true));
        half.into_data().assert_eq(&full.into_data(), true);
    }
    drop(switched);
    same("attention of views", [random([2, 9, 3, 8], 19)], |[x]| {
        let [q, k, v] = [0, 1, 2].map(|part| x.clone().narrow(2, part, 1).swap_dims(1, 2));
        attention(q, k, v, None, true)
    });
}

#[test]
fn the_switch_switches() {
    let _switch = switch();
    assert!(ops::kernels_enabled());
    ops::enable_kernels(false);
    assert!(!ops::kernels_enabled());
    ops::enable_kernels(true);
}

/// A layer for each kind of kernel.
#[derive(Module, Debug)]
struct Layers {
    linear: Linear,
    layer: LayerNorm,
    rms: RmsNorm,
    group: GroupNorm,
    conv: Conv2d,
}

impl Layers {
    /// Uses results twice and norms one after the other. `frozen` is not tracked.
    fn forward(&self, x: Tensor<4>, frozen: Tensor<4>) -> Tensor<3> {
        let first = self.layer.forward(x + ops::silu(frozen.clone()));
        let wide = ops::linear(&self.linear, ops::gelu(first.clone()));
        let normed = ops::group_norm(&self.group, ops::rms_norm(&self.rms, wide.clone()), true);
        let seen = ops::conv2d_last(&self.conv, normed + wide.clone()) + first.clone();
        let [q, k, v] = [first, seen, ops::geglu(wide)].map(|x| x.reshape([2, 20, 16]));
        let out = multi_head_attention(q, k.clone(), v, 2, false) + self.layer.forward(k);
        out.clone()
            * ops::quick_gelu(ops::rms_norm(
                &self.rms,
                Tensor::cat(vec![out, frozen.reshape([2, 20, 16])], 2),
            ))
            .narrow(2, 5, 16)
    }
}

/// Copies parameters to a device. `Module::fork` does not, for devices that differ in checkpointing only.
struct Onto<'a>(&'a Device);

impl ModuleMapper for Onto<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        Param::from_data(param.val().into_data(), self.0)
    }
}

#[test]
fn gradients_are_the_same_with_checkpointing() {
    let _switch = switch();
    let plain = device();
    let layers = Layers {
        linear: LinearConfig::new(16, 32).init(&plain),
        layer: LayerNormConfig::new(16).init(&plain),
        rms: RmsNormConfig::new(32).init(&plain),
        group: GroupNormConfig::new(4, 32).init(&plain),
        conv: Conv2dConfig::new([32, 16], [3, 3])
            .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
            .init(&plain),
    };
    let run = |device: &Device| {
        let layers = layers.clone().map(&mut Onto(device));
        let [x, frozen] = [20, 21].map(|seed| Noise::new(seed).normal([2, 4, 5, 16], device));
        let x = x.require_grad();
        let out = layers.forward(x.clone(), frozen);
        let grads = (out.clone() * Noise::new(22).normal(out.dims(), device))
            .sum()
            .backward();
        let values = |data: burn::tensor::TensorData| data.try_to_vec::<f32>().unwrap();
        let bias = |param: &Option<Param<Tensor<1>>>| {
            values(
                param
                    .as_ref()
                    .unwrap()
                    .val()
                    .grad(&grads)
                    .unwrap()
                    .into_data(),
            )
        };
        [
            values(x.grad(&grads).unwrap().into_data()),
            values(layers.linear.weight.val().grad(&grads).unwrap().into_data()),
            values(layers.conv.weight.val().grad(&grads).unwrap().into_data()),
            values(layers.layer.gamma.val().grad(&grads).unwrap().into_data()),
            values(layers.rms.gamma.val().grad(&grads).unwrap().into_data()),
            bias(&layers.linear.bias),
            bias(&layers.conv.bias),
            bias(&layers.group.beta),
        ]
    };
    let checkpointing = plain.clone().gradient_checkpointing();
    for (i, (kept, again)) in run(&plain).iter().zip(&run(&checkpointing)).enumerate() {
        assert!(kept.iter().any(|x| *x != 0.0), "gradient {i} is zero");
        assert_eq!(kept, again, "gradient {i}");
    }
}

/// Inputs are rounded to 8 bits, so results differ by a fraction of a percent.
#[test]
fn packed_linear_layers() {
    for quantization in [Quantization::Q8, Quantization::Q4] {
        for (rows, input, output) in [(1, 32, 1), (4, 96, 33), (70, 256, 300)] {
            let device = Device::default();
            let random = |shape: [usize; 2], seed| Noise::new(seed).normal::<2>(shape, &device);
            let weight = Param::from_tensor(random([input, output], 1));
            let packed = PackedLinear::new(Linear { weight, bias: None }, quantization);
            let x = random([rows, input], 2).unsqueeze::<3>();
            let weight = TensorData::new(packed.weights(), [input, output]);
            let weight = Tensor::<2>::from_data(weight, &device);
            let expected = x.clone().matmul(weight.unsqueeze());
            let error = (packed.forward(x) - expected.clone()).square().sum().sqrt();
            let error = (error / expected.square().sum().sqrt()).into_scalar::<f32>();
            assert!(error < 3e-2, "{quantization:?}, {rows} rows: {error}");
        }
    }
}

/// With weights in bf16, products round their inputs to bf16 where the processor has such products. Elsewhere they
/// are exact for these weights.
#[test]
fn products_in_bf16() {
    let _switch = switch();
    let device = Device::default();
    let random = |shape: [usize; 2], seed| Noise::new(seed).normal::<2>(shape, &device);
    let check = |what: &str, exact: Vec<f32>, run: &dyn Fn() -> Vec<f32>| {
        let error = |found: Vec<f32>| {
            let pairs = found.iter().zip(&exact);
            let squares: f32 = pairs.map(|(a, b)| (a - b).powi(2)).sum();
            (squares / exact.iter().map(|x| x * x).sum::<f32>()).sqrt()
        };
        assert!(error(run()) < 1e-5, "{what}");
        ops::enable_bf16_products(true);
        let (found, rounds) = (error(run()), ops::bf16_products());
        ops::enable_bf16_products(false);
        match rounds {
            true => assert!(found > 1e-5 && found < 8e-3, "{what}: {found}"),
            false => assert!(found < 1e-5, "{what}: {found}"),
        }
    };
    for (rows, input, output) in [(3, 1, 1), (7, 33, 70), (300, 1500, 130)] {
        let weight = random([input, output], 1).cast(DType::BF16);
        let bias = random([1, output], 3).squeeze_dim::<1>(0);
        let x = random([rows, input], 2);
        let exact = x.clone().matmul(weight.clone().cast(DType::F32)) + bias.clone().unsqueeze();
        let layer = Linear {
            weight: Param::from_tensor(weight),
            bias: Some(Param::from_tensor(bias)),
        };
        let run = || ops::linear(&layer, x.clone()).into_data().iter().collect();
        let what = format!("{rows} rows, {input} to {output}");
        check(&what, exact.into_data().iter().collect(), &run);
    }
    for (queries, keys, width) in [(9, 7, 4), (70, 131, 33), (300, 64, 80)] {
        let inputs = [(queries, 1), (keys, 2), (keys, 3)].map(|(tokens, seed)| {
            let x = random([6 * tokens, width], seed);
            x.reshape([2, 3, tokens, width])
        });
        for causal in [false, true] {
            let run = || {
                let [q, k, v] = inputs.clone();
                let heads = attention(q, k, v, None, causal);
                heads.into_data().iter().collect()
            };
            let what = format!("attention of {queries} to {keys}, {width} wide");
            check(&what, run(), &run);
        }
    }
    // Direct, and by Winograd's algorithm.
    for (channels, outputs, size, kernel) in [
        (5, 7, 9, 3),
        (33, 70, 24, 3),
        (40, 24, 8, 1),
        (16, 130, 17, 3),
    ] {
        let conv = Conv2dConfig::new([channels, outputs], [kernel, kernel])
            .with_padding(PaddingConfig2d::Explicit(
                kernel / 2,
                kernel / 2,
                kernel / 2,
                kernel / 2,
            ))
            .init(&device);
        let conv = Conv2d {
            weight: conv.weight.map(|weight| weight.cast(DType::BF16)),
            ..conv
        };
        let x = random([2 * size * size, channels], 2).reshape([2, size, size, channels]);
        let wide = Conv2d {
            weight: conv.weight.clone().map(|weight| weight.cast(DType::F32)),
            ..conv.clone()
        };
        let exact = wide
            .forward(x.clone().permute([0, 3, 1, 2]))
            .permute([0, 2, 3, 1]);
        let run = || {
            ops::conv2d_last(&conv, x.clone())
                .into_data()
                .iter()
                .collect()
        };
        let what = format!("{channels} to {outputs} channels, {size} wide, {kernel} taps");
        check(&what, exact.into_data().iter().collect(), &run);
    }
}

/// While training, products round weights in f32 as well, of the gradients too.
#[test]
fn training_in_bf16() {
    fn check<const D: usize, const E: usize>(
        what: &str,
        inputs: [Tensor<D>; 2],
        f: impl Fn([Tensor<D>; 2]) -> Tensor<E>,
    ) {
        let exact = run(&inputs, &f);
        let precision = ops::training_in_bf16(true);
        let (found, rounds) = (run(&inputs, &f), ops::bf16_products());
        drop(precision);
        assert!(!ops::bf16_products());
        for (i, (exact, found)) in exact.iter().zip(found).enumerate() {
            let pairs = found.iter().zip(exact);
            let squares: f32 = pairs.map(|(a, b)| (a - b).powi(2)).sum();
            let error = (squares / exact.iter().map(|x| x * x).sum::<f32>()).sqrt();
            let expected = match rounds {
                // Winograd's gradient of weights is in f32.
                true if i == 2 => 0.0..8e-3,
                true => 1e-5..8e-3,
                false => 0.0..1e-5,
            };
            assert!(expected.contains(&error), "{what}, result {i}: {error}");
        }
    }
    let _switch = switch();
    let device = device();
    for [rows, from, to] in [[3, 1, 1], [7, 33, 70], [301, 150, 131], [4501, 20, 30]] {
        let layer = LinearConfig::new(from, to).init(&device);
        let inputs = [random([rows, from], 4), random([from, to], 5)];
        check(
            &format!("linear {rows}x{from} to {to}"),
            inputs,
            |[x, w]| ops::linear(&linear_of(&layer, w), x),
        );
    }
    for (channels, outputs, size, kernel) in [(5, 7, 9, 3), (33, 70, 24, 3), (40, 24, 8, 1)] {
        let layer = Conv2dConfig::new([channels, outputs], [kernel, kernel]).init(&device);
        let inputs = [
            random([2, size, size, channels], 6),
            random([outputs, channels, kernel, kernel], 7),
        ];
        let what = format!("{channels} to {outputs} channels, {size} wide, {kernel} taps");
        check(&what, inputs, |[x, w]| {
            let conv = Conv2d {
                weight: layer.weight.clone().map(|_| w),
                ..layer.clone()
            };
            ops::conv2d_last(&conv, x)
        });
    }
}
