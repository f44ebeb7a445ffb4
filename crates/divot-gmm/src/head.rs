use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use divot_nn::{CheckSizes, Loss, Noise, SizeError};

use crate::{DenoisingMlp, DenoisingMlpConfig, Gmm, GmmConfig, Regression, RegressionConfig};

/// A head that converts a language model's outputs to continuous tokens (paper, section 3.2 and figure 4).
///
/// The model projects each hidden state to `params_dim` parameters, which the head interprets. Losses and
/// samples are in f32 for every element type of the parameters.
pub trait TokenHead {
    /// Returns the number of parameters per token: the width of the projection before the head.
    fn params_dim(&self) -> usize;

    /// Returns the width of a token.
    fn dim(&self) -> usize;

    /// Computes the training loss. Its terms are the tokens.
    ///
    /// # Arguments
    /// - `params`: `[batch, tokens, params_dim]`.
    /// - `targets`: the true tokens, `[batch, tokens, dim]`.
    /// - `noise`: random numbers, for heads whose loss needs them.
    ///
    /// # Panics
    /// If the shapes differ from these.
    fn loss(&self, params: Tensor<3>, targets: Tensor<3>, noise: &mut Noise) -> Loss;

    /// Samples tokens from their parameters, `[batch, tokens, params_dim]` → `[batch, tokens, dim]`.
    ///
    /// # Panics
    /// If the parameters have another shape.
    fn sample(&self, params: Tensor<3>, options: &SampleOptions, noise: &mut Noise) -> Tensor<3>;
}

/// How a mixture is converted to a token.
#[derive(Config, Debug, Copy, PartialEq, Eq)]
pub enum Draw {
    /// A sample from one component, which is drawn by its probability: a sample of the mixture.
    Component,
    /// The sum of a sample from every component, weighted by their probabilities.
    Weighted,
    /// The mean of the mixture, without randomness.
    Expected,
}

/// Options of sampling. Each head uses only its own fields.
#[derive(Config, Debug, PartialEq)]
pub struct SampleOptions {
    /// Mixture: factor of the variances. 0.1 is released. 1 samples the fitted mixture.
    #[config(default = 0.1)]
    pub var_scale: f64,
    /// Mixture: how it is converted to a token.
    #[config(default = "Draw::Component")]
    pub draw: Draw,
    /// Denoising MLP: factor of the noise that is added in each step.
    #[config(default = 1.0)]
    pub temperature: f64,
}

/// The kind of head and its sizes: the paper's mixture, or an alternative of its ablation (table 8).
#[derive(Config, Debug, PartialEq)]
pub enum HeadConfig {
    /// A mixture of Gaussians, as released.
    Gmm(GmmConfig),
    /// Regression with the mean squared error.
    Regression(RegressionConfig),
    /// A denoising MLP.
    Denoising(DenoisingMlpConfig),
}

/// The head of a [`HeadConfig`].
#[derive(Module, Debug)]
// A model has only one head, and Burn's `Module` is not implemented for boxes.
#[allow(clippy::large_enum_variant)]
pub enum Head {
    /// A mixture of Gaussians, as released.
    Gmm(Gmm),
    /// Regression with the mean squared error.
    Regression(Regression),
    /// A denoising MLP.
    Denoising(DenoisingMlp),
}

impl HeadConfig {
    /// Returns the width of a token.
    pub fn token_dim(&self) -> usize {
        match self {
            Self::Gmm(config) => config.dim,
            Self::Regression(config) => config.dim,
            Self::Denoising(config) => config.dim,
        }
    }

    /// Returns the head for tokens of another width.
    pub fn with_token_dim(&self, dim: usize) -> Self {
        match self.clone() {
            Self::Gmm(config) => Self::Gmm(config.with_dim(dim)),
            Self::Regression(config) => Self::Regression(config.with_dim(dim)),
            Self::Denoising(config) => Self::Denoising(config.with_dim(dim)),
        }
    }

    /// Initialises the head.
    pub fn init(&self, device: &Device) -> Head {
        match self {
            Self::Gmm(config) => Head::Gmm(config.init()),
            Self::Regression(config) => Head::Regression(config.init()),
            Self::Denoising(config) => Head::Denoising(config.init(device)),
        }
    }
}

impl CheckSizes for HeadConfig {
    fn check_sizes(&self) -> Result<(), SizeError> {
        match self {
            Self::Gmm(config) => config.check_sizes(),
            Self::Regression(config) => config.check_sizes(),
            Self::Denoising(config) => config.check_sizes(),
        }
    }
}

impl Head {
    fn as_dyn(&self) -> &dyn TokenHead {
        match self {
            Self::Gmm(head) => head,
            Self::Regression(head) => head,
            Self::Denoising(head) => head,
        }
    }
}

impl TokenHead for Head {
    fn params_dim(&self) -> usize {
        self.as_dyn().params_dim()
    }

    fn dim(&self) -> usize {
        self.as_dyn().dim()
    }

    fn loss(&self, params: Tensor<3>, targets: Tensor<3>, noise: &mut Noise) -> Loss {
        self.as_dyn().loss(params, targets, noise)
    }

    fn sample(&self, params: Tensor<3>, options: &SampleOptions, noise: &mut Noise) -> Tensor<3> {
        self.as_dyn().sample(params, options, noise)
    }
}
