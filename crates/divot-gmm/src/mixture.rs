use std::f64::consts::TAU;

use burn::module::Module;
use burn::tensor::activation::{log_softmax, softmax, softplus};
use burn::tensor::{DType, Int, Tensor, TensorData};
use divot_nn::{CheckSizes, Loss, Noise, SizeError, check_widths};

use crate::{Draw, SampleOptions, TokenHead};

/// The smallest variance, as released.
const MIN_VARIANCE: f64 = 1e-5;

divot_nn::config! {
    /// Sizes of a [`Gmm`].
    #[derive(PartialEq)]
    pub struct GmmConfig {
    }
    defaults {
        /// Number of components, k. The paper uses 16 (appendix A.2).
        pub num_components, with_num_components: usize = 16,
        /// Width of a token, d.
        pub dim, with_dim: usize = 256,
    }
}

/// The Gaussian mixture head (paper, section 3.2 and figure 4c): 2kd + k parameters per token are a mixture
/// of k diagonal Gaussians over the token.
///
/// The parameters are k·d means, then k·d raw variances, then k logits, as released. The d numbers of a
/// component are contiguous.
#[derive(Module, Debug)]
pub struct Gmm {
    /// Number of components k.
    pub num_components: usize,
    /// Width of a token, d.
    pub dim: usize,
}

/// One mixture of diagonal Gaussians per token, in f32.
#[derive(Debug, Clone)]
pub struct GaussianMixture {
    /// Means, `[batch, tokens, components, dim]`.
    pub means: Tensor<4>,
    /// Variances, `[batch, tokens, components, dim]`, above 0.
    pub variances: Tensor<4>,
    /// Logarithms of the components' probabilities up to a constant,
    /// `[batch, tokens, components]`.
    pub logits: Tensor<3>,
}

impl CheckSizes for GmmConfig {
    fn check_sizes(&self) -> Result<(), SizeError> {
        check_widths(&[
            ("number of mixture components", self.num_components),
            ("token width", self.dim),
        ])
    }
}

impl GmmConfig {
    /// Initialises the head, which has no weights.
    pub fn init(&self) -> Gmm {
        Gmm {
            num_components: self.num_components,
            dim: self.dim,
        }
    }
}

impl Gmm {
    /// Returns the mixtures of `params`, `[batch, tokens, 2kd + k]`.
    ///
    /// The variances are max(softplus(raw), 1e-5) · `var_scale`. The scale is 1 in training.
    ///
    /// # Panics
    /// If the last axis has another size.
    pub fn mixture(&self, params: Tensor<3>, var_scale: f64) -> GaussianMixture {
        let [batch, tokens, params_dim] = params.dims();
        assert_eq!(params_dim, self.params_dim(), "parameters of a mixture");
        let (k, d) = (self.num_components, self.dim);
        let params = params.cast(DType::F32);
        let components = |start| {
            let part = params.clone().narrow(2, start, k * d);
            part.reshape([batch, tokens, k, d])
        };
        GaussianMixture {
            means: components(0),
            variances: softplus(components(k * d), 1.0).clamp_min(MIN_VARIANCE) * var_scale,
            logits: params.clone().narrow(2, 2 * k * d, k),
        }
    }
}

impl GaussianMixture {
    /// Computes the negative log-likelihood of each token of `targets`, `[batch, tokens, dim]`, in nats
    /// divided by dim.
    ///
    /// # Panics
    /// If the targets have another shape.
    pub fn nll(&self, targets: Tensor<3>) -> Loss {
        let [batch, tokens, _, dim] = self.means.dims();
        // Other shapes might broadcast.
        assert_eq!(targets.dims(), [batch, tokens, dim], "targets of a mixture");
        let targets = targets.cast(DType::F32).unsqueeze_dim::<4>(2);
        let squares = (targets - self.means.clone()).square() / self.variances.clone();
        let log_normal = (squares + self.variances.clone().log())
            .sum_dim(3)
            .squeeze_dim::<3>(3)
            .add_scalar(dim as f64 * TAU.ln())
            .mul_scalar(-0.5);
        let joint = log_softmax(self.logits.clone(), 2) + log_normal;
        // Subtract the largest term, because every exponential would be 0 far from the means.
        let largest = joint.clone().detach().max_dim(2);
        let log_likelihood = (joint - largest.clone()).exp().sum_dim(2).log() + largest;
        Loss {
            sum: log_likelihood.sum() / -(dim as f64),
            count: batch * tokens,
        }
    }

    /// Returns the means of the mixtures, `[batch, tokens, dim]`.
    pub fn expected(&self) -> Tensor<3> {
        self.add_up(self.means.clone())
    }

    /// Draws one sample per token, `[batch, tokens, dim]`: a component by its probability, then a sample
    /// from it.
    pub fn sample(&self, noise: &mut Noise) -> Tensor<3> {
        let [batch, tokens, _, dim] = self.means.dims();
        let component = self
            .draw_components(noise)
            .unsqueeze_dim::<4>(3)
            .repeat_dim(3, dim);
        let of_component = |x: &Tensor<4>| {
            let x = x.clone().gather(2, component.clone());
            x.squeeze_dim::<3>(2)
        };
        let noise = noise.normal([batch, tokens, dim], &self.means.device());
        of_component(&self.means) + of_component(&self.variances).sqrt() * noise
    }

    /// Draws a sample from every component and sums them, weighted by their probabilities,
    /// `[batch, tokens, dim]`.
    ///
    /// This is not a sample of the mixture. It has the same mean, but stays close to it.
    pub fn sample_weighted(&self, noise: &mut Noise) -> Tensor<3> {
        let noise = noise.normal(self.means.dims(), &self.means.device());
        self.add_up(self.means.clone() + self.variances.clone().sqrt() * noise)
    }

    /// Draws the component of each token, `[batch, tokens, 1]`.
    fn draw_components(&self, noise: &mut Noise) -> Tensor<3, Int> {
        // The index of the largest logit plus Gumbel noise has the distribution of the softmax. The
        // randomness comes from the host, and nothing is read back from the device.
        let shape = self.logits.dims();
        let gumbel: Vec<f32> = (0..shape.iter().product())
            .map(|_| -(-noise.uniform().ln()).ln() as f32)
            .collect();
        let gumbel = Tensor::<3>::from_data(
            TensorData::new(gumbel, shape),
            (&self.logits.device(), DType::F32),
        );
        (self.logits.clone() + gumbel).argmax(2)
    }

    /// Sums over components, weighted by their probabilities: `[batch, tokens, components, dim]` →
    /// `[batch, tokens, dim]`.
    fn add_up(&self, x: Tensor<4>) -> Tensor<3> {
        let weights = softmax(self.logits.clone(), 2).unsqueeze_dim::<4>(3);
        (x * weights).sum_dim(2).squeeze_dim(2)
    }
}

impl TokenHead for Gmm {
    fn params_dim(&self) -> usize {
        (2 * self.dim + 1) * self.num_components
    }

    fn dim(&self) -> usize {
        self.dim
    }

    /// Computes [`GaussianMixture::nll`] of the unscaled mixture.
    fn loss(&self, params: Tensor<3>, targets: Tensor<3>, _noise: &mut Noise) -> Loss {
        self.mixture(params, 1.0).nll(targets)
    }

    fn sample(&self, params: Tensor<3>, options: &SampleOptions, noise: &mut Noise) -> Tensor<3> {
        let mixture = self.mixture(params, options.var_scale);
        match options.draw {
            Draw::Component => mixture.sample(noise),
            Draw::Weighted => mixture.sample_weighted(noise),
            Draw::Expected => mixture.expected(),
        }
    }
}
