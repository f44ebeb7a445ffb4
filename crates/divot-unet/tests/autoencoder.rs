//! The autoencoder with folded pixels, and with several frames at a time.

use burn::tensor::{Device, Tensor, Tolerance};
use divot_nn::{CheckSizes, Noise};
use divot_unet::VaeConfig;

fn small() -> VaeConfig {
    VaeConfig::new()
        .with_channels(32)
        .with_channel_mult(vec![1, 2])
        .with_num_res_blocks(1)
}

#[test]
fn squares_are_folded_in_place() {
    let device = Device::flex();
    device.seed(1);
    let config = VaeConfig::new()
        .with_channels(32)
        .with_channel_mult(vec![1])
        .with_num_res_blocks(1)
        .with_patch_size(4);
    config.check_sizes().expect("valid sizes");
    assert_eq!(config.downsampling(), 4);
    let vae = config.init(&device);
    assert_eq!(vae.downsampling(), 4);
    assert_eq!(vae.encoder.conv_in.weight.dims(), [32, 48, 3, 3]);

    let images: Tensor<4> = Noise::new(2).normal([2, 3, 8, 12], &device);
    let moments = vae.encode(images);
    assert_eq!(moments.mean.dims(), [2, 4, 2, 3]);
    let decoded = vae.decode(moments.mean);
    assert_eq!(decoded.dims(), [2, 3, 8, 12]);

    // The last convolution's channels are red, green and blue squares, row by row.
    let mut constant = vae;
    let bias: Tensor<1> = Tensor::arange(0..48, &device).float();
    let conv = &mut constant.decoder.conv_out;
    conv.weight = conv.weight.clone().map(|weight| weight.zeros_like());
    conv.bias = conv.bias.clone().map(|old| old.map(|_| bias.clone()));
    let image = constant.decode(Tensor::zeros([1, 4, 1, 1], &device));
    image
        .into_data()
        .assert_eq(&bias.reshape([1, 3, 4, 4]).into_data(), true);
}

#[test]
fn frames_together_are_as_frames_alone() {
    let device = Device::flex();
    device.seed(3);
    let vae = small().init(&device);
    let mut noise = Noise::new(4);
    let clip: Tensor<5> = noise.normal([2, 3, 3, 16, 16], &device);
    let posterior: Tensor<5> = noise.normal([2, 4, 3, 8, 8], &device);
    let latents = vae.encode_clip(clip.clone(), Some(posterior.clone()));
    let decoded = vae.decode_clip(latents.clone());
    for (batch, frame) in [(0, 0), (1, 2)] {
        let one = |x: &Tensor<5>| -> Tensor<4> {
            let x = x.clone().narrow(0, batch, 1).narrow(2, frame, 1);
            x.squeeze_dim(2)
        };
        let alone = vae.encode(one(&clip)).sample(one(&posterior));
        let close = |a: Tensor<4>, b: Tensor<4>| {
            let tolerance = Tolerance::<f32>::absolute(1e-5);
            a.into_data().assert_approx_eq(&b.into_data(), tolerance);
        };
        close(one(&latents), alone.clone() * vae.scale_factor);
        close(one(&decoded), vae.decode(alone));
    }
}
