//! Classifier-free guidance.

use burn::config::Config;
use burn::tensor::Tensor;

use crate::error::{Error, Result};

/// Strength of classifier-free guidance. The defaults are the released ones.
#[derive(Config, Debug, Copy)]
pub struct GuidanceConfig {
    /// Guidance scale. 1 means no guidance, which takes half the time.
    #[config(default = 7.5)]
    pub scale: f64,
    /// Share of the guided prediction, 0 to 1, that is rescaled to the standard deviation of the
    /// conditional prediction.
    #[config(default = 0.7)]
    pub rescale: f64,
}

impl GuidanceConfig {
    /// Returns whether guidance is used. It needs unconditional tokens.
    pub fn is_on(&self) -> bool {
        self.scale != 1.0
    }

    /// Checks the options.
    ///
    /// # Errors
    /// The first option that is out of range.
    pub fn check(&self) -> Result<()> {
        if !self.scale.is_finite() {
            return Err(Error::Option {
                option: "the guidance scale",
                value: self.scale,
                remedy: "a finite number",
            });
        }
        if !(0.0..=1.0).contains(&self.rescale) {
            return Err(Error::Option {
                option: "the guidance rescale",
                value: self.rescale,
                remedy: "a number from 0 to 1",
            });
        }
        Ok(())
    }

    /// Creates the guidance with these unconditional tokens.
    pub fn with_tokens(self, tokens: Tensor<3>) -> Guidance {
        Guidance {
            tokens,
            scale: self.scale,
            rescale: self.rescale,
        }
    }
}

/// Classifier-free guidance: v = v_u + scale · (v_c − v_u), which is then rescaled.
#[derive(Debug, Clone)]
pub struct Guidance {
    /// The unconditional tokens, `[1, tokens, width]`: those of an all-zero (mid-grey) clip
    /// ([`Tokenizer::unconditional`](crate::Tokenizer::unconditional)).
    pub tokens: Tensor<3>,
    /// Guidance scale.
    pub scale: f64,
    /// Share of the guided prediction that is rescaled to the standard deviation of the conditional
    /// prediction.
    pub rescale: f64,
}
