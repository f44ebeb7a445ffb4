//! The networks at work: clips to tokens and back, several at a time.

use std::ops::ControlFlow;

use anyhow::{Result, bail};
use burn::tensor::{DType, Shape, Tensor, TensorData};
use divot::checkpoint::Part;
use divot::{
    Detokenizer, DetokenizerConfig, Guidance, GuidanceConfig, Noise, OpenLlm, SamplingConfig, Task,
    Tokenizer, TokenizerConfig, VideoLlm,
};
use divot_data::{Clip, Frame, chw_to_clip};

use super::{Progress, Scoring};

/// Clips that a network works on at a time.
pub const AT_A_TIME: usize = 16;

/// Breaks if Ctrl-C was pressed.
pub fn flow() -> ControlFlow<()> {
    match divot_cli::interrupted() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

impl Scoring {
    /// Side of the frames that the tokenizer reads.
    pub fn read_side(&self) -> Result<usize> {
        let config: TokenizerConfig = self.pipeline.checkpoint().config(Part::Tokenizer)?;
        Ok(config.frame_size)
    }

    /// Side of the frames that a de-tokenizer makes.
    pub fn made_side(&self, part: Part) -> Result<usize> {
        let config: DetokenizerConfig = self.pipeline.checkpoint().config(part)?;
        let [height, width] = config.frame_size();
        if height != width {
            bail!(
                "the {part} makes frames of {width}x{height}, and clips of the world are square",
                part = part.name()
            );
        }
        Ok(width)
    }

    /// Side of the frames of a model that makes what it reads.
    pub fn side(&self) -> Result<usize> {
        let (read, made) = (self.read_side()?, self.made_side(Part::Detokenizer)?);
        if read != made {
            bail!(
                "the tokenizer reads frames of {read} pixels and the de-tokenizer makes {made}: they cannot be compared"
            );
        }
        Ok(read)
    }

    /// Loads the tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Ok(Tokenizer::load(&mut self.pipeline.checkpoint())?.0)
    }

    /// Loads a de-tokenizer, to decode as the options say.
    pub fn decoder(&self, part: Part) -> Result<Decoder> {
        let config = self.decoding.guidance;
        let guidance = match config.is_on() {
            true => guided(config, &self.grey()?),
            false => None,
        };
        Ok(Decoder {
            network: Detokenizer::load_part(&mut self.pipeline.checkpoint(), part)?.0,
            guidance,
            sampling: self.decoding.sampling.clone(),
        })
    }

    /// Loads the best language model for a task. Also returns its name.
    pub fn llm(&self, task: Task) -> Result<(VideoLlm, &'static str)> {
        let mut checkpoint = self.pipeline.checkpoint();
        let open = OpenLlm::best(&checkpoint, task)?;
        let part = open.part.name();
        let quantization = self.pipeline.precision().quantization;
        Ok((open.load(&mut checkpoint, quantization)?, part))
    }

    /// The tokens of a mid-grey clip, `[1, tokens, width]`.
    pub fn grey(&self) -> Result<Tensor<3>> {
        match self.pipeline.checkpoint().unconditional()? {
            Some(tokens) => Ok(tokens),
            None => Ok(self.tokenizer()?.unconditional()),
        }
    }

    /// Tokens of clips, `[clips, tokens, width]`.
    pub fn tokens(
        &self,
        clips: impl Iterator<Item = Result<Clip>>,
        count: usize,
    ) -> Result<Tensor<3>> {
        let tokens = self.tokenized(clips, count, Tokenizer::tokenize)?;
        Ok(Tensor::cat(tokens, 0))
    }

    /// What is read off each batch of clips, `[batch, 5, 3, height, width]`, with the tokenizer.
    pub fn tokenized<T>(
        &self,
        clips: impl Iterator<Item = Result<Clip>>,
        count: usize,
        read: impl Fn(&Tokenizer, Tensor<5>) -> T,
    ) -> Result<Vec<T>> {
        let tokenizer = self.tokenizer()?;
        let device = self.pipeline.device();
        let mut progress = self.progress("tokenizer", count);
        let mut clips = clips.peekable();
        let mut batches = Vec::new();
        while clips.peek().is_some() {
            let batch = clips.by_ref().take(AT_A_TIME);
            let batch = batch.map(|clip| Ok(clip?.sparse()));
            let batch = batch.collect::<Result<Vec<_>>>()?;
            let count = batch.len();
            batches.push(read(&tokenizer, stack(batch, device)));
            progress.advance(count)?;
        }
        Ok(batches)
    }
}

/// Guidance with the tokens of a mid-grey clip, if it is on.
pub fn guided(config: GuidanceConfig, grey: &Tensor<3>) -> Option<Guidance> {
    config.is_on().then(|| config.with_tokens(grey.clone()))
}

/// A de-tokenizer, and how it decodes.
pub struct Decoder {
    network: Detokenizer,
    /// Guidance, if it is on.
    pub guidance: Option<Guidance>,
    /// The sampler and its steps.
    pub sampling: SamplingConfig,
}

impl Decoder {
    /// Decodes the tokens of clips, `[clips, tokens, width]`, and hands each clip over with its place.
    ///
    /// # Errors
    /// If a value is not finite, Ctrl-C was pressed, or `each` fails.
    pub fn decode(
        &self,
        tokens: &Tensor<3>,
        seed: u64,
        progress: &mut Progress<'_>,
        mut each: impl FnMut(usize, Vec<Frame>) -> Result<()>,
    ) -> Result<()> {
        let count = tokens.dims()[0];
        for start in (0..count).step_by(AT_A_TIME) {
            let batch = tokens
                .clone()
                .narrow(0, start, AT_A_TIME.min(count - start));
            let mut noise = Noise::keyed([seed, start as u64, 0, 0]);
            let guidance = self.guidance.as_ref();
            let latents =
                self.network
                    .sample(batch, guidance, &self.sampling, &mut noise, |_| flow())?;
            let clips = self.frames(latents)?;
            let count = clips.len();
            for (place, clip) in clips.into_iter().enumerate() {
                each(start + place, clip)?;
            }
            progress.advance(count)?;
        }
        Ok(())
    }

    /// What the autoencoder alone makes of clips.
    ///
    /// # Errors
    /// If a value is not finite.
    pub fn autoencoded(&self, clips: &[Clip]) -> Result<Vec<Vec<Frame>>> {
        let device = self.network.unet.conv_in.weight.device();
        let clips = stack(clips.iter().map(Clip::dense).collect(), &device);
        let clips = clips.swap_dims(1, 2).cast(self.network.dtype);
        self.frames(self.network.vae.encode_clip(clips, None))
    }

    /// Decodes latents, `[clips, channels, frames, height, width]`.
    fn frames(&self, latents: Tensor<5>) -> Result<Vec<Vec<Frame>>> {
        let video = self.network.decode(latents).swap_dims(1, 2);
        let [_, count, channels, height, width] = video.dims();
        let shape = [count, channels, height, width];
        let values: Vec<f32> = video.into_data().iter::<f32>().collect();
        if values.iter().any(|value| value.is_nan()) {
            return Err(divot::Error::NotFinite(self.network.dtype.name()).into());
        }
        let clips = values.chunks(shape.iter().product());
        clips
            .map(|values| Ok(chw_to_clip(values, shape)?))
            .collect()
    }
}

/// Frames of clips of one size, each `[frames, 3, height, width]`, as `[clips, frames, 3, height, width]`.
fn stack(clips: Vec<(Vec<f32>, [usize; 4])>, device: &burn::tensor::Device) -> Tensor<5> {
    let [frames, channels, height, width] = clips.first().map_or([0; 4], |(_, shape)| *shape);
    let shape = Shape::new([clips.len(), frames, channels, height, width]);
    let values: Vec<f32> = clips.into_iter().flat_map(|(values, _)| values).collect();
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}
