#![doc = include_str!("../README.md")]

mod denoising;
mod diffusion;
mod head;
mod mixture;
mod regression;

pub use denoising::{AdaLnBlock, DenoisingMlp, DenoisingMlpConfig};
pub use diffusion::Schedule;
pub use divot_nn::{CheckSizes, LayerNorm, Loss, Noise, Prediction, SizeError};
pub use head::{Draw, Head, HeadConfig, SampleOptions, TokenHead};
pub use mixture::{GaussianMixture, Gmm, GmmConfig};
pub use regression::{Regression, RegressionConfig};
