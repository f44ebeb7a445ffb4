use burn::config::Config;
use divot_nn::{CheckSizes, SizeError};
use divot_resampler::PerceiverResamplerConfig;
use divot_unet::{UnetConfig, VaeConfig};
use divot_vit::{TextTowerConfig, VisionTowerConfig};

/// Sizes of [`Part::DynamiCrafter`](crate::checkpoint::Part::DynamiCrafter), where stage 0 of training starts
/// (paper, section 3.1.3; FACTS: "Where stage 0 starts").
///
/// The weights of each network have the name of its field in front. The UNet has lost the input channels of
/// the conditional image's latents. Divot has no such image.
#[derive(Config, Debug)]
pub struct DynamiCrafterConfig {
    /// OpenCLIP's vision tower, whose tokens the image Perceiver reads.
    pub vision: VisionTowerConfig,
    /// OpenCLIP's text tower.
    pub text: TextTowerConfig,
    /// The image Perceiver. It has 16 queries for each of 16 frames.
    pub image: PerceiverResamplerConfig,
    /// The video UNet.
    pub unet: UnetConfig,
    /// The autoencoder.
    pub vae: VaeConfig,
}

impl CheckSizes for DynamiCrafterConfig {
    /// Checks the networks one by one. Training checks that they fit together.
    fn check_sizes(&self) -> Result<(), SizeError> {
        self.vision.check_sizes()?;
        self.text.check_sizes()?;
        self.image.check_sizes()?;
        self.unet.check_sizes()?;
        self.vae.check_sizes()
    }
}
