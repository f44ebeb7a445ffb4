use burn::config::Config;
use burn::tensor::Tensor;

/// What a denoising network predicts.
///
/// The network sees x = `signal`·x₀ + `sigma`·ε, where x₀ is clean, ε is standard normal noise,
/// `signal` is sqrt(ᾱ) and `sigma` is sqrt(1 − ᾱ).
#[derive(Config, Debug, Copy, PartialEq, Eq)]
pub enum Prediction {
    /// v = `signal`·ε − `sigma`·x₀ ("Progressive Distillation for Fast Sampling of Diffusion Models",
    /// arXiv:2202.00512, appendix D).
    V,
    /// The noise ε.
    Epsilon,
}

impl Prediction {
    /// Returns the target of the network.
    ///
    /// `clean` is x₀ and `noise` is ε, both of one shape; `signal` and `sigma` broadcast to it.
    pub fn target<const D: usize>(
        self,
        clean: Tensor<D>,
        noise: Tensor<D>,
        signal: Tensor<D>,
        sigma: Tensor<D>,
    ) -> Tensor<D> {
        match self {
            Self::V => noise * signal - clean * sigma,
            Self::Epsilon => noise,
        }
    }

    /// Returns the estimate of x₀ from `noisy`, which is x, and the prediction for it, of the same shape.
    ///
    /// At pure noise, where `signal` is 0, ε does not determine x₀.
    pub fn clean<const D: usize>(
        self,
        noisy: Tensor<D>,
        prediction: Tensor<D>,
        signal: f32,
        sigma: f32,
    ) -> Tensor<D> {
        match self {
            Self::V => noisy * signal - prediction * sigma,
            Self::Epsilon => (noisy - prediction * sigma) / signal,
        }
    }

    /// Returns the estimate of ε. The arguments are those of [`clean`](Self::clean).
    pub fn noise<const D: usize>(
        self,
        noisy: Tensor<D>,
        prediction: Tensor<D>,
        signal: f32,
        sigma: f32,
    ) -> Tensor<D> {
        match self {
            Self::V => prediction * signal + noisy * sigma,
            Self::Epsilon => prediction,
        }
    }
}
