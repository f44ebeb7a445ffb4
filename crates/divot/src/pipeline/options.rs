//! What a pipeline is asked for.

use burn::tensor::FloatDType;
use divot_llm::Quantization;

use crate::error::{Error, Result};
use crate::{GuidanceConfig, SamplingConfig};

/// What element type weights have in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Precision {
    /// Element type of all networks. Without one it is f32 on the CPU, which computes in it, and the
    /// stored one elsewhere.
    pub dtype: Option<FloatDType>,
    /// Bits that the language model's weights keep.
    pub quantization: Option<Quantization>,
}

impl Precision {
    /// The names that [`FromStr`](std::str::FromStr) knows. `q8` and `q4` concern language models only.
    pub const NAMES: [&str; 6] = ["auto", "f32", "f16", "bf16", "q8", "q4"];
}

impl std::str::FromStr for Precision {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let dtype = |dtype| Self {
            dtype: Some(dtype),
            ..Self::default()
        };
        let quantized = |quantization| Self {
            quantization: Some(quantization),
            ..Self::default()
        };
        match name {
            "auto" => Ok(Self::default()),
            "f32" => Ok(dtype(FloatDType::F32)),
            "f16" => Ok(dtype(FloatDType::F16)),
            "bf16" => Ok(dtype(FloatDType::BF16)),
            "q8" => Ok(quantized(Quantization::Q8)),
            "q4" => Ok(quantized(Quantization::Q4)),
            _ => Err(Error::Precision(name.to_owned())),
        }
    }
}

/// Which clips of a video are tokenized.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Clips {
    /// The whole video in clips of two seconds. A video of more than that many gives so many, spread
    /// evenly; the released system reads 20.
    AtMost(usize),
    /// One clip, from that second on.
    From(f64),
    /// The first frame, as an image.
    Image,
}

/// How tokens are turned into video.
#[derive(Debug, Clone)]
pub struct Decoding {
    /// Sampler and frames.
    pub sampling: SamplingConfig,
    /// Classifier-free guidance.
    pub guidance: GuidanceConfig,
    /// Seed of the noise. Each clip starts from it.
    pub seed: u64,
}

impl Default for Decoding {
    /// The released settings.
    fn default() -> Self {
        Self {
            sampling: SamplingConfig::new(),
            guidance: GuidanceConfig::new(),
            seed: 42,
        }
    }
}

impl Decoding {
    /// Checks the options. No weights are needed for it.
    ///
    /// # Errors
    /// The first option that is out of range.
    pub fn check(&self) -> Result<()> {
        self.sampling.check()?;
        self.guidance.check()
    }
}
