use burn::module::Module;
use burn::tensor::{DType, Tensor};
use divot_nn::{CheckSizes, Loss, Noise, SizeError, check_widths};

use crate::{SampleOptions, TokenHead};

divot_nn::config! {
    /// Sizes of a [`Regression`].
    #[derive(PartialEq)]
    pub struct RegressionConfig {
    }
    defaults {
        /// Width of a token.
        pub dim, with_dim: usize = 256,
    }
}

/// Regression of the tokens with the mean squared error, from the paper's ablation (section 3.2 and figure
/// 4a). The parameters are the token.
#[derive(Module, Debug)]
pub struct Regression {
    /// Width of a token.
    pub dim: usize,
}

impl CheckSizes for RegressionConfig {
    fn check_sizes(&self) -> Result<(), SizeError> {
        check_widths(&[("token width", self.dim)])
    }
}

impl RegressionConfig {
    /// Initialises the head, which has no weights.
    pub fn init(&self) -> Regression {
        Regression { dim: self.dim }
    }
}

impl TokenHead for Regression {
    fn params_dim(&self) -> usize {
        self.dim
    }

    fn dim(&self) -> usize {
        self.dim
    }

    /// Computes the squared error of each token, averaged over its width.
    fn loss(&self, params: Tensor<3>, targets: Tensor<3>, _noise: &mut Noise) -> Loss {
        let [batch, tokens, _] = params.dims();
        let shape = [batch, tokens, self.dim];
        assert_eq!(params.dims(), shape, "parameters of a regression");
        assert_eq!(targets.dims(), shape, "targets of a regression");
        let difference = params.cast(DType::F32) - targets.cast(DType::F32);
        Loss {
            sum: difference.square().sum() / self.dim as f64,
            count: batch * tokens,
        }
    }

    /// Returns the parameters themselves. A regression has no randomness.
    fn sample(&self, params: Tensor<3>, _options: &SampleOptions, _noise: &mut Noise) -> Tensor<3> {
        assert_eq!(params.dims()[2], self.dim, "parameters of a regression");
        params.cast(DType::F32)
    }
}
