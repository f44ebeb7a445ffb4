//! Compares AdamW's kernels with Burn's optimiser.

#![cfg(all(feature = "flex", feature = "optim"))]

use burn::nn::{Linear, LinearConfig};
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor};
use divot_nn::Noise;
use divot_nn::optim::AdamWConfig;

/// Returns the parameters after a few training steps.
fn trained(mut optimizer: ModuleOptimizer, mut layer: Linear, device: &Device) -> Vec<f32> {
    let x: Tensor<2> = Noise::new(1).normal([9, 37], device);
    for _ in 0..7 {
        let loss = layer.forward(x.clone()).square().mean();
        let grads = GradientsParams::from_grads(loss.backward(), &layer);
        layer = optimizer.step(3e-3, layer, grads);
    }
    let [weight, bias] = [
        layer.weight.val().flatten::<1>(0, 1),
        layer.bias.expect("it has one").val(),
    ];
    let values = Tensor::cat(vec![weight, bias], 0).into_data();
    values.try_to_vec().expect("it is f32")
}

#[test]
fn steps_match_burn() {
    let device = &Device::default().autodiff();
    let layer = LinearConfig::new(37, 1013).init(device);
    let found = trained(AdamWConfig::new().init(), layer.clone(), device);
    let burns = burn::optim::AdamWConfig::new()
        .with_epsilon(1e-8)
        .with_weight_decay(0.01)
        .init();
    let expected = trained(burns, layer.clone(), device);
    let before: Vec<f32> = layer.weight.val().into_data().iter().collect();
    let moved = |a: &[f32], b: &[f32]| {
        let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
        squares.sum::<f64>().sqrt()
    };
    let way = moved(&expected[..before.len()], &before);
    assert!(way > 0.1, "training moved the weights by only {way}");
    let error = moved(&found, &expected);
    assert!(
        error < 1e-5 * way,
        "the error is {error} after a change of {way}"
    );
}
