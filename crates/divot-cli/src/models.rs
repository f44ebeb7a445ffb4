//! Networks, one at a time: each is loaded, used and dropped, so that the largest is what counts.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::tensor::{Device, FloatDType, Tensor};
use divot::checkpoint::{Checkpoint, Part, TEXT_TOKENIZER, UNCONDITIONAL, WEIGHTS};
use divot::data::Frame;
use divot::gmm::HeadConfig;
use divot::language::{
    DivotLlmConfig, LlmError, Prompt, Quantization, SpecialTokens, TextTokenizer,
};
use divot::{
    Detokenizer, DetokenizerConfig, SamplingConfig, Task, Tokenizer, TokenizerConfig, VideoLlm,
    device,
};

use crate::interrupt::{self, Stopped};
use crate::output::Output;

/// A model's folder and how to load from it.
pub struct Models {
    folder: PathBuf,
    /// Where networks run.
    pub device: Device,
    dtype: Option<FloatDType>,
    quantization: Option<Quantization>,
}

impl Models {
    /// Finds the folder and the device.
    pub fn open(
        folder: &Path,
        device: &str,
        dtype: Option<FloatDType>,
        quantization: Option<Quantization>,
        output: &mut Output,
    ) -> Result<Self> {
        if !folder.is_dir() {
            bail!(
                "{}: there is no model; get one with `divot download --to {0}`, or name the folder of one with --model",
                folder.display()
            );
        }
        let device = device::select(device)?;
        output.set_device(&device);
        output.set("model", folder.to_string_lossy());
        Ok(Self {
            folder: folder.to_path_buf(),
            device,
            dtype,
            quantization,
        })
    }

    /// The tokenizer's sizes.
    pub fn tokenizer_config(&self) -> Result<TokenizerConfig> {
        Ok(self.checkpoint().config(Part::Tokenizer)?)
    }

    /// The de-tokenizer's sizes; of the adapted one, if there is one and `adapted` is wanted.
    pub fn detokenizer_config(&self, adapted: bool) -> Result<DetokenizerConfig> {
        let part = match adapted && Part::AdaptedDetokenizer.folder(&self.folder).is_dir() {
            true => Part::AdaptedDetokenizer,
            false => Part::Detokenizer,
        };
        Ok(self.checkpoint().config(part)?)
    }

    /// The language model that is best at a task, if the prompt fits it.
    fn check_prompt(
        &self,
        task: Task,
        prompt: impl FnOnce(&TextTokenizer, &SpecialTokens) -> Result<Prompt, LlmError>,
    ) -> Result<(Part, DivotLlmConfig)> {
        let part = task.part(&self.folder)?;
        let config: DivotLlmConfig = self.checkpoint().config(part)?;
        let path = part.folder(&self.folder).join(TEXT_TOKENIZER);
        let text = TextTokenizer::open(&path).map_err(LlmError::from)?;
        let tokens = SpecialTokens::of(&text, config.num_queries)?;
        let tokens = prompt(&text, &tokens)?.ids.len();
        let window = config.llm.max_position_embeddings;
        if tokens >= window {
            return Err(LlmError::TooLong { tokens, window }.into());
        }
        Ok((part, config))
    }

    /// The language model that is best at answering, if the prompt fits it, and it reads what the
    /// tokenizer writes.
    pub fn check_comprehension(
        &self,
        prompt: impl FnOnce(&TextTokenizer, &SpecialTokens) -> Result<Prompt, LlmError>,
    ) -> Result<Part> {
        let tokenizer = self.tokenizer_config()?.resampler;
        let (part, llm) = self.check_prompt(Task::Comprehension, prompt)?;
        let (tokens, width) = (llm.num_queries, token_dim(&llm));
        if (tokenizer.tokens, tokenizer.token_dim) != (tokens, width) {
            let error = LlmError::Features {
                found: vec![tokenizer.tokens, tokenizer.token_dim],
                tokens,
                width,
            };
            return Err(error).with_context(|| self.folder.display().to_string());
        }
        Ok(part)
    }

    /// The language model that is best at drawing, if the prompt fits it, and it fits the networks
    /// that turn what it draws into video.
    pub fn check_generation(
        &self,
        sampling: &SamplingConfig,
        prompt: impl FnOnce(&TextTokenizer, &SpecialTokens) -> Result<Prompt, LlmError>,
    ) -> Result<Part> {
        let (part, llm) = self.check_prompt(Task::Generation, prompt)?;
        if is_guided(sampling) && !self.unconditional_path().is_file() {
            self.tokenizer_config()?;
        }
        let expected = self.detokenizer_config(true)?.resampler.input_dim;
        let found = token_dim(&llm);
        if found != expected {
            let error = divot::Error::TokenWidth { found, expected };
            return Err(error).with_context(|| self.folder.display().to_string());
        }
        Ok(part)
    }

    /// Loads the tokenizer.
    pub fn tokenizer(&self, output: &mut Output) -> Result<Tokenizer> {
        self.load(output, |checkpoint| Ok(Tokenizer::load(checkpoint)?.0))
    }

    /// Loads the de-tokenizer; the adapted one, if there is one and `adapted` is wanted.
    pub fn detokenizer(&self, adapted: bool, output: &mut Output) -> Result<Detokenizer> {
        self.load(output, |checkpoint| {
            let loaded = match adapted {
                true => Detokenizer::load_adapted(checkpoint),
                false => Detokenizer::load(checkpoint),
            };
            Ok(loaded?.0)
        })
    }

    /// Loads a language model.
    pub fn llm(&self, part: Part, output: &mut Output) -> Result<VideoLlm> {
        let quantization = self.quantization;
        output.set("llm", part.name());
        self.load(output, |checkpoint| {
            VideoLlm::load_part(checkpoint, part, quantization)
        })
    }

    /// Tokens of a mid-grey clip, which guidance needs: those stored with the tokenizer, or its own,
    /// for which it is loaded. They fit the de-tokenizer; the adapted one, if there is one and
    /// `adapted` is wanted.
    pub fn unconditional(
        &self,
        sampling: &SamplingConfig,
        adapted: bool,
        output: &mut Output,
    ) -> Result<Option<Tensor<3>>> {
        if !is_guided(sampling) {
            return Ok(None);
        }
        let tokens = self.stored_or(output, |output| {
            let tokenizer = self.tokenizer(output)?;
            output.timed("tokenizer", |_| Ok(tokenizer.unconditional()))
        })?;
        let expected = self.detokenizer_config(adapted)?.resampler.input_dim;
        let [_, _, found] = tokens.dims();
        if found != expected {
            let error = divot::Error::TokenWidth { found, expected };
            return Err(error).with_context(|| self.unconditional_path().display().to_string());
        }
        Ok(Some(tokens))
    }

    /// The same of a tokenizer that is loaded.
    pub fn unconditional_of(
        &self,
        tokenizer: &Tokenizer,
        output: &mut Output,
    ) -> Result<Tensor<3>> {
        self.stored_or(output, |_| Ok(tokenizer.unconditional()))
    }

    /// What is stored, if it fits the weights beside it, or else what is computed.
    fn stored_or(
        &self,
        output: &mut Output,
        compute: impl FnOnce(&mut Output) -> Result<Tensor<3>>,
    ) -> Result<Tensor<3>> {
        let weights = Part::Tokenizer.folder(&self.folder).join(WEIGHTS);
        match self.checkpoint().unconditional() {
            Ok(Some(tokens)) => Ok(tokens),
            Ok(None) => compute(output),
            Err(error) if weights.is_file() => {
                let tokens = compute(output)?;
                output.note(format!("not used: {}", divot::one_line(&error)));
                Ok(tokens)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn unconditional_path(&self) -> PathBuf {
        Part::Tokenizer.folder(&self.folder).join(UNCONDITIONAL)
    }

    fn checkpoint(&self) -> Checkpoint<'_> {
        let checkpoint = Checkpoint::new(&self.folder, &self.device);
        match self.dtype {
            Some(dtype) => checkpoint.with_dtype(dtype),
            None => checkpoint,
        }
    }

    fn load<T>(
        &self,
        output: &mut Output,
        load: impl FnOnce(&mut Checkpoint<'_>) -> divot::Result<T>,
    ) -> Result<T> {
        output.timed("loading", |output| {
            let bar = output.bar("weights", "{bytes}/{total_bytes}");
            let mut checkpoint = self.checkpoint().with_progress(|progress| {
                bar.set_message(progress.name.to_owned());
                bar.set_length(progress.total);
                bar.set_position(progress.done);
                interrupt::flow()
            });
            let loaded = load(&mut checkpoint);
            bar.finish_and_clear();
            interrupt::check()?;
            Ok(loaded?)
        })
    }
}

/// Width of the tokens that a language model reads and writes.
fn token_dim(llm: &DivotLlmConfig) -> usize {
    match &llm.head {
        HeadConfig::Gmm(head) => head.dim,
        HeadConfig::Regression(head) => head.dim,
        HeadConfig::Denoising(head) => head.dim,
    }
}

/// Whether sampling needs the tokens of a mid-grey clip.
pub fn is_guided(sampling: &SamplingConfig) -> bool {
    sampling.guidance_scale != 1.0
}

/// Turns the tokens of one clip into frames.
pub fn decode(
    detokenizer: &Detokenizer,
    tokens: Tensor<3>,
    unconditional: Option<&Tensor<3>>,
    sampling: &SamplingConfig,
    seed: u64,
    output: &mut Output,
) -> Result<Vec<Frame>> {
    output.timed("de-tokenizer", |output| {
        let bar = output.bar("steps", "{pos}/{len}");
        let unconditional = unconditional.filter(|_| is_guided(sampling)).cloned();
        let frames = detokenizer.frames(tokens, unconditional, sampling, seed, |step| {
            bar.set_length(step.total as u64);
            bar.set_position(step.done as u64);
            interrupt::flow()
        });
        bar.finish_and_clear();
        let frames = frames?.ok_or(Stopped)?;
        interrupt::check()?;
        Ok(frames)
    })
}
