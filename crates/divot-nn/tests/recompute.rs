//! Blocks that are computed again in the backward pass give the same gradients.
#![cfg(feature = "flex")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Gradients, Tensor};
use divot_nn::ops::{dropout, linear};
use divot_nn::{TransformerBlock, TransformerBlockConfig, recompute};

/// A device that keeps every result, and one that computes blocks again.
fn devices() -> [Device; 2] {
    let kept = Device::default().autodiff();
    [kept.clone(), kept.gradient_checkpointing()]
}

struct Drawn;

impl ModuleVisitor for Drawn {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        param.val();
    }
}

/// The gradients of the parameters, in order.
fn of_parameters<M: Module>(module: &M, gradients: &Gradients) -> Vec<f32> {
    struct Found<'a>(&'a Gradients, Vec<f32>);
    impl ModuleVisitor for Found<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let grad = param.val().grad(self.0).expect("every parameter has one");
            self.1.extend(grad.into_data().iter::<f32>());
        }
    }
    let mut found = Found(gradients, Vec::new());
    module.visit(&mut found);
    found.1
}

fn assert_close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= 1e-5 * largest, "{a} {b}");
    }
}

#[test]
fn gradients_are_those_of_results_that_are_kept() {
    let [kept, again] = devices().map(|device| {
        device.seed(1);
        let block: TransformerBlock = TransformerBlockConfig::new(16, 2).init(&device);
        // Weights are drawn where they are first used. Here they are drawn in one order.
        block.visit(&mut Drawn);
        let x = Tensor::<3>::random([2, 5, 16], Distribution::Default, &device).require_grad();
        // The second use adds to the gradients of the first.
        let y = block.forward(block.forward(x.clone() * 2.0, true), false);
        let gradients = y.square().sum().backward();
        let of_input = x.grad(&gradients).expect("it has one").into_data();
        let of_input: Vec<f32> = of_input.iter().collect();
        (of_input, of_parameters(&block, &gradients))
    });
    assert!(kept.0.iter().any(|grad| *grad != 0.0));
    assert_close(&kept.0, &again.0);
    assert_close(&kept.1, &again.1);
}

/// A linear layer that counts how often it is computed.
fn counted(
    layer: &Linear,
    inputs: (Tensor<2>, Option<Tensor<2>>),
    runs: &Arc<AtomicUsize>,
) -> Tensor<2> {
    let runs = runs.clone();
    recompute(layer, inputs, move |layer, (x, shift)| {
        runs.fetch_add(1, Ordering::Relaxed);
        let y = linear(layer, x);
        match shift {
            Some(shift) => y * shift,
            None => y,
        }
    })
}

#[test]
fn a_block_runs_again_only_where_it_has_to() {
    for (device, expected) in devices().iter().zip([1, 2]) {
        let layer = LinearConfig::new(3, 3).init(device);
        let x = Tensor::<2>::ones([2, 3], device);
        let runs = Arc::new(AtomicUsize::new(0));
        // Without a gradient at its inputs, a block keeps what it needs.
        let y = counted(&layer, (x.clone(), None), &runs);
        y.sum().backward();
        assert_eq!(runs.swap(0, Ordering::Relaxed), 1);

        let shift = Tensor::<2>::full([2, 3], 3.0, device);
        let x = x.require_grad();
        let y = counted(&layer, (x.clone(), Some(shift)), &runs);
        let gradients = y.sum().backward();
        assert_eq!(runs.load(Ordering::Relaxed), expected);
        let weight = layer.weight.grad(&gradients).expect("it is trained");
        assert_eq!(weight.into_data().iter::<f32>().next(), Some(6.0));
        assert!(x.grad(&gradients).is_some());
    }
}

#[test]
fn frozen_blocks_pass_gradients_on() {
    for device in devices() {
        let layer = LinearConfig::new(3, 3).init(&device).no_grad();
        let x = Tensor::<2>::ones([2, 3], &device).require_grad();
        let runs = Arc::default();
        let gradients = counted(&layer, (x.clone(), None), &runs).sum().backward();
        let expected: Vec<f32> = layer.weight.val().sum_dim(1).into_data().iter().collect();
        let found: Vec<f32> = x
            .grad(&gradients)
            .expect("it has one")
            .into_data()
            .iter()
            .collect();
        assert_close(&expected, &found[..3]);
        assert!(layer.weight.grad(&gradients).is_none());
    }
}

#[derive(Module, Debug)]
struct Drop {
    dropout: Dropout,
}

#[test]
fn dropout_draws_the_same_numbers_again() {
    let [_, device] = devices();
    device.seed(3);
    let drop = Drop {
        dropout: DropoutConfig::new(0.5).init(),
    };
    let twice = |x| {
        recompute(&drop, x, |drop: &Drop, x| {
            dropout(&drop.dropout, dropout(&drop.dropout, x))
        })
    };
    let values = |tensor: Tensor<2>| tensor.into_data().iter().collect::<Vec<f32>>();
    let x = Tensor::<2>::ones([8, 64], &device).require_grad();
    let [first, second] = [twice(x.clone()), twice(x.clone())];
    let [a, b] = [&first, &second].map(|y| values(y.clone()));
    let kept = a.iter().filter(|y| **y != 0.0).count();
    assert!((64..192).contains(&kept), "{kept} of 512");
    // The gradient of an input of one is the output.
    let gradients = (first * 2.0 + second).sum().backward();
    let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| 2.0 * a + b).collect();
    assert_close(&expected, &values(x.grad(&gradients).expect("it has one")));
    // What is drawn after the backward pass is drawn anew.
    let [c, d] = [(); 2].map(|()| values(twice(x.clone())));
    let drawn = [a, b, c, d];
    for (i, one) in drawn.iter().enumerate() {
        assert!(drawn[..i].iter().all(|other| other != one), "{i}");
    }
}

#[test]
fn an_input_may_be_ignored() {
    let [_, device] = devices();
    let layer = LinearConfig::new(3, 3).init(&device);
    let [x, ignored] = [(); 2].map(|()| Tensor::<2>::ones([2, 3], &device).require_grad());
    // Not a leaf: its own backward pass needs a gradient.
    let inputs = (x, ignored.clone() * 2.0);
    let y = recompute(&layer, inputs, |layer: &Linear, (x, _)| linear(layer, x));
    let gradients = y.sum().backward();
    let grad = ignored.grad(&gradients).expect("it is registered");
    assert!(grad.into_data().iter::<f32>().all(|grad| grad == 0.0));
    assert!(layer.weight.grad(&gradients).is_some());
}
