use std::ops::ControlFlow;

use burn::tensor::{Device, Shape, Tensor, TensorData};
use divot_data::sampling::{TOKENIZER_FRAMES, reconstruct_indices_from};
use divot_data::{Frame, Transform, Video, chw_to_clip};
use divot_unet::{DdimStep, NoiseSchedule};

use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::noise::Noise;
use crate::{Detokenizer, DetokenizerConfig, SamplingConfig, Tokenizer, TokenizerConfig};

/// A clip to the tokenizer and back through the de-tokenizer.
#[derive(Debug)]
pub struct Reconstructor {
    /// Video to tokens.
    pub tokenizer: Tokenizer,
    /// Tokens to video.
    pub detokenizer: Detokenizer,
    tokenizer_config: TokenizerConfig,
    detokenizer_config: DetokenizerConfig,
    schedule: NoiseSchedule,
}

/// Sixteen frames of a video at 8 fps, cut to the model's square.
#[derive(Debug, Clone)]
pub struct Clip {
    /// The frames.
    pub frames: Vec<Frame>,
}

impl Clip {
    /// The five frames the tokenizer sees, as `[1, 5, 3, height, width]` in [-1, 1].
    pub fn sparse(&self, device: &Device) -> Tensor<5> {
        let frames: Vec<&Frame> = TOKENIZER_FRAMES.iter().map(|&i| &self.frames[i]).collect();
        let [height, width] = [frames[0].height, frames[0].width];
        let values: Vec<f32> = frames
            .iter()
            .flat_map(|frame| divot_data::transform::frame_to_chw(frame))
            .collect();
        let shape = Shape::new([1, frames.len(), 3, height, width]);
        Tensor::from_data(TensorData::new(values, shape), device)
    }
}

impl Reconstructor {
    /// Loads both halves of a checkpoint.
    ///
    /// # Errors
    /// If a file is missing, damaged, or does not fit the configuration beside it.
    pub fn load(checkpoint: &mut Checkpoint<'_>) -> Result<Self> {
        let (tokenizer, tokenizer_config) = Tokenizer::load(checkpoint)?;
        let (detokenizer, detokenizer_config) = Detokenizer::load(checkpoint)?;
        Ok(Self {
            tokenizer,
            detokenizer,
            schedule: NoiseSchedule::new(&detokenizer_config.schedule),
            tokenizer_config,
            detokenizer_config,
        })
    }

    /// Reads the clip of a video that starts at `start` seconds.
    ///
    /// # Errors
    /// If the video cannot be decoded, or `start` lies past its end.
    pub fn read_clip(&self, video: &Video, start: f64) -> Result<Clip> {
        let info = video.info();
        let indices = reconstruct_indices_from(info.frames, info.fps, start)?;
        let transform = Transform {
            size: self.tokenizer_config.frame_size,
            ..Transform::default()
        };
        let frames = video
            .frames(&indices)?
            .iter()
            .map(|frame| transform.frame(frame))
            .collect::<Result<_, _>>()?;
        Ok(Clip { frames })
    }

    /// Height and width of the frames that come out, in pixels.
    pub fn frame_size(&self) -> [usize; 2] {
        self.detokenizer_config.frame_size()
    }

    /// Turns the tokens of one clip, `[1, 64, 256]`, into frames; the same seed gives the same
    /// frames. `None` if `on_step` stopped it.
    ///
    /// # Errors
    /// If the sampling options are out of range.
    pub fn detokenize(
        &self,
        tokens: Tensor<3>,
        sampling: &SamplingConfig,
        seed: u64,
        on_step: impl FnMut(DdimStep) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Frame>>> {
        let unconditional = self.tokenizer.unconditional(
            self.tokenizer_config.resampler.frames,
            self.tokenizer_config.frame_size,
        );
        let latents = self.detokenizer.sample(
            tokens,
            unconditional,
            &self.schedule,
            sampling,
            self.detokenizer_config.latent_size,
            &mut Noise::new(seed),
            on_step,
        )?;
        let Some(latents) = latents else {
            return Ok(None);
        };
        let video = self.detokenizer.decode(latents).squeeze_dim::<4>(0);
        let video = video.swap_dims(0, 1); // [frames, 3, height, width]
        let shape = video.dims();
        let values: Vec<f32> = video.into_data().iter::<f32>().collect();
        Ok(Some(chw_to_clip(&values, shape)?))
    }
}
