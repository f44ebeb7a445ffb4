//! States of the text tower before its last block, and towers in half precision over f32 weights.

use burn::tensor::{DType, Device, Int, Tensor};
use divot_nn::Noise;
use divot_vit::{TextTowerConfig, VisionTowerConfig};

fn largest<const D: usize>(x: Tensor<D>) -> f32 {
    x.abs().max().into_scalar::<f32>()
}

#[test]
fn penultimate_states_skip_the_last_block() {
    let device = Device::flex();
    let tower = TextTowerConfig::new(5, 11, 16, 3, 2, 8).init(&device);
    let ids = Tensor::<2, Int>::from_data([[9, 1, 4, 10, 0], [9, 10, 0, 0, 0]], &device);
    let found = tower.penultimate_states(ids.clone(), DType::F32);
    let position = tower.positional_embedding.val().unsqueeze::<3>();
    let mut x = tower.token_embedding.forward(ids) + position;
    for block in &tower.blocks[..2] {
        x = block.forward(x, true);
    }
    let without_last = tower.ln_final.forward(x.clone());
    let all = tower.ln_final.forward(tower.blocks[2].forward(x, true));
    assert_eq!(found.dims(), [2, 5, 16]);
    assert_eq!(found.clone().into_data(), without_last.into_data());
    assert!(largest(found - all) > 1e-3);
}

#[test]
fn bf16_over_f32_weights() {
    let device = Device::flex().autodiff();
    device.seed(1);
    let text = TextTowerConfig::new(5, 11, 16, 2, 2, 8).init(&device);
    let vision = VisionTowerConfig::new(8, 4, 16, 2, 2, 8).init(&device);
    let run = |dtype: DType| {
        let ids = Tensor::<2, Int>::from_data([[9, 1, 4, 10, 0]], &device);
        let images = Noise::new(1).normal::<4>([1, 3, 8, 8], &device).cast(dtype);
        let features = [
            text.text_features(ids, dtype),
            vision.image_features(images),
        ];
        let features = Tensor::cat(features.to_vec(), 0);
        assert_eq!(features.dtype(), dtype);
        let features = features.cast(DType::F32);
        let gradients = (features.clone() * Noise::new(2).normal([2, 8], &device))
            .sum()
            .backward();
        let gradient = |x: Tensor<2>| x.grad(&gradients).expect("it is trained");
        [
            features.inner(),
            gradient(text.token_embedding.weight.val()),
            gradient(vision.blocks[0].mlp.fc1.weight.val()),
        ]
    };
    let (half, full) = (run(DType::BF16), run(DType::F32));
    for (half, full) in half.into_iter().zip(full) {
        assert!(largest(half - full.clone()) < 0.08 * largest(full));
    }
}

/// The layer norm before the blocks would make them the same if positions started small.
#[test]
fn a_new_tower_tells_light_from_dark() {
    let device = Device::flex();
    device.seed(1);
    let tower = VisionTowerConfig::new(32, 8, 64, 2, 2, 8).init(&device);
    let tokens = |level: f32| tower.patch_tokens(Tensor::<4>::full([1, 3, 32, 32], level, &device));
    let [dark, light] = [1.0, 2.0].map(tokens);
    let apart = (light - dark.clone()).square().mean() / dark.square().mean();
    let apart = apart.into_scalar::<f32>().sqrt();
    assert!(apart > 0.2, "{apart}");
}
