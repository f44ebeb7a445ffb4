//! The optimiser against `torch.optim.AdamW`, run by `xtask/peer/adamw.py`.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use divot_train::{Decay, Optimizer, OptimizerConfig, RateConfig, gradient_norm};
use serde::Deserialize;

#[derive(Module, Debug)]
struct Net {
    linear: Linear,
    norm: LayerNorm,
    queries: Param<Tensor<2>>,
}

#[derive(Deserialize)]
struct Expected {
    norms: Vec<f64>,
    parameters: BTreeMap<String, Vec<f32>>,
}

fn sines<const D: usize>(shape: [usize; D], phase: f64, device: &Device) -> Tensor<D> {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count)
        .map(|i| (phase + 0.7 * i as f64).sin() as f32)
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn net(device: &Device) -> Net {
    let param = |tensor: Tensor<1>| Param::from_tensor(tensor);
    let mut linear = LinearConfig::new(4, 3).init(device);
    linear.weight = Param::from_tensor(sines([4, 3], 0.0, device));
    linear.bias = Some(param(sines([3], 1.0, device)));
    let mut norm = LayerNormConfig::new(3).with_bias(false).init(device);
    norm.gamma = param(sines([3], 2.0, device));
    let queries = Param::from_tensor(sines([2, 3], 3.0, device));
    Net {
        linear,
        norm,
        queries,
    }
}

/// A loss whose gradients are the sines.
fn loss(net: &Net, step: usize, device: &Device) -> Tensor<1> {
    let scale = if step.is_multiple_of(2) { 10.0 } else { 0.1 };
    let phase = |index: usize| (2 * step + index) as f64;
    let bias = net.linear.bias.as_ref().expect("the layer has one");
    let parts = [
        (net.linear.weight.val() * sines([4, 3], phase(0), device)).sum(),
        (bias.val() * sines([3], phase(1), device)).sum(),
        (net.norm.gamma.val() * sines([3], phase(2), device)).sum(),
        (net.queries.val() * sines([2, 3], phase(3), device)).sum(),
    ];
    Tensor::cat(parts.to_vec(), 0).sum() * scale
}

#[test]
fn steps_are_those_of_pytorch() {
    let device = Device::default().autodiff();
    let expected: Expected =
        serde_json::from_str(include_str!("data/adamw.json")).expect("the peer's numbers");
    let rate = RateConfig {
        peak: 0.05,
        warmup: 3,
        decay: Decay::Cosine,
        floor: 0.1,
    };
    let mut optimizer = Optimizer::new(&OptimizerConfig {
        weight_decay: 0.3,
        ..OptimizerConfig::default()
    });
    let mut net = net(&device);
    let steps = expected.norms.len();
    for (step, expected) in expected.norms.iter().enumerate() {
        let gradients = loss(&net, step, &device).backward();
        let gradients = GradientsParams::from_grads(gradients, &net);
        let norm = gradient_norm(&net, &gradients);
        assert!(
            (norm / expected - 1.0).abs() < 1e-6,
            "{norm}, not {expected}"
        );
        net = optimizer.step(rate.at(step, steps), net, gradients, norm);
    }

    let Net {
        linear,
        norm,
        queries,
    } = net;
    let bias = linear.bias.expect("the layer has one");
    let found = [
        ("linear.weight", linear.weight.val().into_data()),
        ("linear.bias", bias.val().into_data()),
        ("norm.gamma", norm.gamma.val().into_data()),
        ("queries", queries.val().into_data()),
    ];
    for (name, values) in found {
        let expected = &expected.parameters[name];
        assert_eq!(values.shape().num_elements(), expected.len());
        for (found, expected) in values.iter::<f32>().zip(expected) {
            assert!(
                (found - expected).abs() < 1e-5,
                "{name}: {found}, not {expected}"
            );
        }
    }
}
