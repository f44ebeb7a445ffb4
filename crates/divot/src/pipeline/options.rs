//! Options of a pipeline.

use burn::tensor::FloatDType;
use divot_llm::Quantization;

use crate::error::{Error, Result};
use crate::{GuidanceConfig, SamplingConfig};

/// Element type of weights in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Precision {
    /// Element type of all networks. The default is f32 on the CPU, and the stored
    /// type elsewhere.
    pub dtype: Option<FloatDType>,
    /// Quantisation of the language model's weights. Without it and `dtype`, layers that are stored packed in 8 or
    /// 4 bits stay so on the CPU.
    pub quantization: Option<Quantization>,
}

impl Precision {
    /// The names that [`FromStr`](std::str::FromStr) accepts. `q8` and `q4` affect language models only.
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
    /// Clips of two seconds that cover the whole video. A video with more clips than this number gives
    /// this many, spread evenly. The released system reads 20.
    AtMost(usize),
    /// One clip, which starts at this second.
    From(f64),
    /// The first frame, as an image.
    Image,
}

/// Options for decoding tokens to video.
#[derive(Debug, Clone)]
pub struct Decoding {
    /// Options of the sampler, and the number of frames.
    pub sampling: SamplingConfig,
    /// Classifier-free guidance.
    pub guidance: GuidanceConfig,
    /// Seed of the noise. It is the same for each clip.
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
    /// Checks the options. This needs no weights.
    ///
    /// # Errors
    /// The first option that is out of range.
    pub fn check(&self) -> Result<()> {
        self.sampling.check()?;
        self.guidance.check()
    }
}
