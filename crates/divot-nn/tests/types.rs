//! Operations whose input and weights have different element types: they compute in f32 or in the type
//! of the input, and return the type of the input.

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig, Conv3d, Conv3dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, Linear, LinearConfig, PaddingConfig3d};
use burn::nn::{RmsNorm, RmsNormConfig};
use burn::tensor::{DType, Device, Gradients, Tensor};
use divot_nn::ops::{conv2d_last, group_norm, linear, rms_norm, temporal_conv};
use divot_nn::{LayerNorm, LayerNormConfig, Noise, attention};

#[derive(Module, Debug)]
struct Layers {
    layer_norm: LayerNorm,
    rms_norm: RmsNorm,
    group_norm: GroupNorm,
    linear: Linear,
    conv: Conv2d,
    temporal: Conv3d,
}

impl Layers {
    fn new(device: &Device) -> Self {
        Self {
            layer_norm: LayerNormConfig::new(8).init(device),
            rms_norm: RmsNormConfig::new(8).init(device),
            group_norm: GroupNormConfig::new(2, 8).init(device),
            linear: LinearConfig::new(8, 8).init(device),
            conv: Conv2dConfig::new([8, 8], [1, 1]).init(device),
            temporal: Conv3dConfig::new([8, 8], [3, 1, 1])
                .with_padding(PaddingConfig3d::Explicit(1, 0, 0))
                .init(device),
        }
    }

    /// Applies each operation to a `[2, 3, 4, 8]` tensor. Returns the names of the operations with their
    /// results.
    fn apply(&self, x: Tensor<4>) -> [(&'static str, Tensor<4>); 7] {
        let clip = x.clone().unsqueeze_dim::<5>(0);
        let keys = x.clone() / 100.0;
        [
            ("layer norm", self.layer_norm.forward(x.clone())),
            ("rms norm", rms_norm(&self.rms_norm, x.clone())),
            ("group norm", group_norm(&self.group_norm, x.clone(), true)),
            ("linear", linear(&self.linear, x.clone())),
            ("convolution", conv2d_last(&self.conv, x.clone())),
            (
                "temporal convolution",
                temporal_conv(&self.temporal, clip).squeeze_dim(0),
            ),
            ("attention", attention(keys.clone(), keys, x, None, false)),
        ]
    }
}

struct Cast(DType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| tensor.cast(self.0))
    }
}

fn largest<const D: usize>(x: Tensor<D>) -> f32 {
    x.abs().max().into_scalar::<f32>()
}

#[test]
fn input_and_weights_of_different_types() {
    let device = Device::flex();
    device.seed(1);
    let layers = Layers::new(&device);
    // Squares of these numbers do not fit into f16.
    let x = Noise::new(2).normal::<4>([2, 3, 4, 8], &device) * 100.0 + 300.0;
    for half in [DType::BF16, DType::F16] {
        let weights = layers.clone().map(&mut Cast(half));
        // The same values in f32, so that only the computation differs.
        let x = x.clone().cast(half).cast(DType::F32);
        let same = weights.clone().map(&mut Cast(DType::F32));
        let expected = same.apply(x.clone());
        let limit = if half == DType::F16 { 5e-3 } else { 3e-2 };
        for (case, layers, input, limit) in [
            ("half weights", &weights, DType::F32, 1e-5),
            ("half input", &same, half, limit),
        ] {
            let found = layers.apply(x.clone().cast(input));
            for ((name, found), (_, expected)) in found.into_iter().zip(expected.clone()) {
                assert_eq!(found.dtype(), input, "{name}, {case}");
                let size = largest(expected.clone());
                let error = largest(found.cast(DType::F32) - expected);
                assert!(
                    error <= limit * size,
                    "{name}, {case}, {half:?}: {error} of {size}"
                );
            }
        }
    }
}

/// f32 weights get f32 gradients from a bf16 computation, close to those of an f32 computation.
#[test]
fn gradients_through_half_inputs() {
    fn of<const D: usize>(x: &Param<Tensor<D>>, gradients: &Gradients) -> Tensor<1> {
        let gradient = x.grad(gradients).expect("it is trained");
        assert_eq!(gradient.dtype(), DType::F32);
        gradient.flatten(0, D - 1)
    }
    let device = Device::flex().autodiff();
    device.seed(1);
    let layers = Layers::new(&device);
    let run = |dtype: DType| {
        let x = Noise::new(2).normal::<4>([2, 3, 4, 8], &device).cast(dtype);
        let weights = Noise::new(3).normal::<4>([2, 3, 4, 8], &device);
        let outputs = layers.apply(x).map(|(_, y)| y.cast(DType::F32));
        let loss = Tensor::cat(outputs.to_vec(), 0) * weights.repeat_dim(0, 7);
        let gradients = loss.sum().backward();
        [
            of(&layers.layer_norm.gamma, &gradients),
            of(&layers.rms_norm.gamma, &gradients),
            of(layers.group_norm.gamma.as_ref().unwrap(), &gradients),
            of(&layers.linear.weight, &gradients),
            of(&layers.conv.weight, &gradients),
            of(&layers.temporal.weight, &gradients),
        ]
    };
    for (half, full) in run(DType::BF16).into_iter().zip(run(DType::F32)) {
        let (error, size) = (largest(half - full.clone()), largest(full));
        assert!(error < 0.03 * size, "{error} of {size}");
    }
}

/// The squares of such inputs are above what f16 can hold.
#[test]
fn layer_norm_of_large_halves() {
    let device = Device::default();
    let x = Noise::new(0).normal([4, 8], &device) * 1e3;
    let expected = LayerNormConfig::new(8).init(&device).forward(x.clone());
    let norm = LayerNormConfig::new(8).init(&device);
    for weights in [DType::F16, DType::F32] {
        let norm = norm.clone().map(&mut Cast(weights));
        let normalised = norm.forward(x.clone().cast(DType::F16));
        assert_eq!(normalised.dtype(), DType::F16);
        let error = (normalised.cast(DType::F32) - expected.clone()).abs();
        assert!(largest(error) < 5e-3);
    }
}
