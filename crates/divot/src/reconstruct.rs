use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::OnceLock;

use burn::tensor::{Device, Shape, Tensor, TensorData};
use divot_data::sampling::{CLIP_FRAMES, TOKENIZER_FRAMES};
use divot_data::transform::frame_to_chw;
use divot_data::{Frame, Video};
use divot_nn::check_same;
use divot_unet::SamplerStep;

use crate::checkpoint::{Checkpoint, Part};
use crate::error::{Error, Result};
use crate::{Detokenizer, DetokenizerConfig, SamplingConfig, Tokenizer};

/// A clip to the tokenizer and back through the de-tokenizer.
#[derive(Debug)]
pub struct Reconstructor {
    /// Video to tokens.
    pub tokenizer: Tokenizer,
    /// Tokens to video.
    pub detokenizer: Detokenizer,
    /// Tokens of an all-zero clip, once they are needed.
    unconditional: OnceLock<Tensor<3>>,
}

/// Sixteen frames of a video at 8 fps, cut to the model's square.
#[derive(Debug, Clone)]
pub struct Clip {
    frames: Vec<Frame>,
}

impl Clip {
    /// A clip of frames.
    ///
    /// # Errors
    /// If they are not 16 of one size.
    pub fn new(frames: Vec<Frame>) -> Result<Self> {
        let sizes: BTreeSet<_> = frames.iter().map(|f| (f.width, f.height)).collect();
        if frames.len() != CLIP_FRAMES || sizes.len() != 1 {
            let found = format!("{} of {} sizes", frames.len(), sizes.len());
            return Err(Error::Clip(found));
        }
        Ok(Self { frames })
    }

    /// All 16 frames.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// The five frames the tokenizer sees, as `[1, 5, 3, height, width]` in [-1, 1].
    pub fn sparse(&self, device: &Device) -> Tensor<5> {
        let Frame { width, height, .. } = self.frames[0];
        let values: Vec<f32> = TOKENIZER_FRAMES
            .iter()
            .flat_map(|&i| frame_to_chw(&self.frames[i]))
            .collect();
        let shape = Shape::new([1, TOKENIZER_FRAMES.len(), 3, height, width]);
        Tensor::from_data(TensorData::new(values, shape), device)
    }
}

impl Reconstructor {
    /// Loads both halves of a checkpoint.
    ///
    /// # Errors
    /// If a file is missing, damaged, or does not fit the configuration beside it.
    pub fn load(checkpoint: &mut Checkpoint<'_>) -> Result<Self> {
        let (tokenizer, config) = Tokenizer::load(checkpoint)?;
        let de: DetokenizerConfig = checkpoint.config(Part::Detokenizer)?;
        check_same(
            ("the tokenizer's token_dim", config.resampler.token_dim),
            ("the de-tokenizer's input_dim", de.resampler.input_dim),
        )
        .map_err(|error| {
            Error::config(
                checkpoint.folder(),
                format!("its parts are of different models ({error})"),
                "convert both from the same download",
            )
        })?;
        let (detokenizer, _) = Detokenizer::load(checkpoint)?;
        // What is stored and does not fit is computed, like what is not stored: the tokenizer is here.
        let unconditional = checkpoint.unconditional().ok().flatten();
        Ok(Self {
            tokenizer,
            detokenizer,
            unconditional: unconditional.map_or_else(OnceLock::new, OnceLock::from),
        })
    }

    /// Reads the clip of a video that starts at `start` seconds.
    ///
    /// # Errors
    /// If the video cannot be decoded, or `start` lies past its end.
    pub fn read_clip(&self, video: &Video, start: f64) -> Result<Clip> {
        self.tokenizer.read_clip(video, start)
    }

    /// Turns the tokens of one clip, `[1, 64, 256]`, into frames; the same seed draws the same noise.
    /// `None` if `on_step` stopped it.
    ///
    /// # Errors
    /// If a sampling option is out of range, or a number overflowed.
    pub fn detokenize(
        &self,
        tokens: Tensor<3>,
        sampling: &SamplingConfig,
        seed: u64,
        on_step: impl FnMut(SamplerStep) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Frame>>> {
        let unconditional = (sampling.guidance_scale != 1.0).then(|| self.unconditional());
        self.detokenizer
            .frames(tokens, unconditional, sampling, seed, on_step)
    }

    /// Tokens of an all-zero clip, stored or computed once.
    fn unconditional(&self) -> Tensor<3> {
        self.unconditional
            .get_or_init(|| self.tokenizer.unconditional())
            .clone()
    }
}
