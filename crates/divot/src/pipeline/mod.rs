//! From a video or a prompt to files' contents: what the program and the examples do.
//!
//! A [`Pipeline`] checks everything that can be checked before weights are loaded. It has one network in
//! memory at a time, so that the largest decides how much memory a job takes.

mod event;
mod options;

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use divot_data::transform::resize;
use divot_data::{Clip, ClipReader, Frame, Video, metrics};
use divot_llm::{LlmError, Shown};

use crate::checkpoint::{Checkpoint, Part, WEIGHTS};
use crate::error::{Error, Result, one_line};
use crate::progress::{Progress, Step};
use crate::tokens::VideoTokens;
use crate::{
    Answer, Chat, Detokenizer, DetokenizerConfig, GenerationConfig, Guidance, OpenLlm, Scene,
    Story, StoryPart, Task, Tokenizer, TokenizerConfig, VideoLlm,
};

pub use event::{Event, Observer, Stage, ignore};
pub use options::{Clips, Decoding, Precision};

/// A clip to the tokenizer and back.
#[derive(Debug)]
pub struct Reconstruction {
    /// What went in.
    pub clip: Clip,
    /// `[1, tokens, width]`.
    pub tokens: Tensor<3>,
    /// What came out.
    pub frames: Vec<Frame>,
}

impl Reconstruction {
    /// The frames that went in, as large as those that came out.
    ///
    /// # Errors
    /// If there are no frames.
    pub fn originals(&self) -> Result<Vec<Frame>> {
        let sizes = self.frames.first().map(|frame| (frame.width, frame.height));
        let (width, height) = sizes.unwrap_or_default();
        let frames = self.clip.frames().iter();
        Ok(frames
            .map(|frame| resize(frame, width, height))
            .collect::<Result<_, _>>()?)
    }

    /// How alike what came out is to `originals`.
    ///
    /// # Errors
    /// If they are not as many frames of the same size.
    pub fn fidelity(&self, originals: &[Frame]) -> Result<Fidelity> {
        Ok(Fidelity {
            psnr: metrics::mean(originals, &self.frames, metrics::psnr)?,
            ssim: metrics::mean(originals, &self.frames, metrics::ssim).ok(),
        })
    }
}

/// How alike two clips are, averaged over their frames.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fidelity {
    /// Peak signal-to-noise ratio in decibels.
    pub psnr: f64,
    /// Structural similarity, at most 1. Frames below 11 pixels have none.
    pub ssim: Option<f64>,
}

impl fmt::Display for Fidelity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PSNR {:.2} dB, SSIM ", self.psnr)?;
        match self.ssim {
            Some(ssim) => write!(f, "{ssim:.4}"),
            None => f.write_str("not defined"),
        }
    }
}

/// A model's folder and how its networks are loaded and run.
#[derive(Debug, Clone)]
pub struct Pipeline {
    folder: PathBuf,
    device: Device,
    precision: Precision,
}

impl Pipeline {
    /// Finds a model's folder. Nothing is read yet.
    ///
    /// # Errors
    /// If there is no such folder.
    pub fn open(folder: impl Into<PathBuf>, device: &Device) -> Result<Self> {
        let folder = folder.into();
        if !folder.is_dir() {
            return Err(Error::config(
                &folder,
                "there is no model",
                "get one with `divot download`, or name another folder",
            ));
        }
        Ok(Self {
            folder,
            device: device.clone(),
            precision: Precision::default(),
        })
    }

    /// Sets the element type of weights in memory.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// The model's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The device that networks run on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The model's checkpoint, to load parts by hand.
    pub fn checkpoint(&self) -> Checkpoint<'_> {
        let checkpoint = Checkpoint::new(&self.folder, &self.device);
        match self.precision.dtype {
            Some(dtype) => checkpoint.with_dtype(dtype),
            None => checkpoint,
        }
    }

    /// Reads clips as this model's tokenizer wants them.
    ///
    /// # Errors
    /// If the tokenizer's configuration is missing or invalid.
    pub fn clip_reader(&self) -> Result<ClipReader> {
        Ok(self.tokenizer_config()?.clip_reader())
    }

    /// Checks that a video has such clips, and counts them. Nothing is loaded.
    ///
    /// # Errors
    /// If there are none, or the tokenizer's configuration is missing or invalid.
    pub fn check_clips(&self, video: &Video, clips: Clips) -> Result<usize> {
        let reader = self.clip_reader()?;
        Ok(match clips {
            Clips::AtMost(most) => reader.count(video, most)?,
            Clips::From(start) => reader.check_start(video, start).map(|()| 1)?,
            Clips::Image => 1,
        })
    }

    /// Turns a video into tokens, and stores the unconditional ones with them.
    ///
    /// # Errors
    /// If the model or the video cannot be read, or the observer stopped it.
    pub fn tokenize(
        &self,
        video: &Video,
        clips: Clips,
        observer: &mut Observer<'_>,
    ) -> Result<VideoTokens> {
        self.tokenizer_config()?;
        let tokenizer = self.load(observer, |checkpoint| Ok(Tokenizer::load(checkpoint)?.0))?;
        stage(Stage::Tokenizer, observer, |observer| {
            Ok(VideoTokens {
                tokens: tokenize(&tokenizer, video, clips, observer)?,
                unconditional: Some(self.unconditional_of(&tokenizer, observer)?),
            })
        })
    }

    /// Turns tokens into video, a clip at a time: `frames[clip][frame]`.
    ///
    /// # Errors
    /// If the model cannot be read, the tokens are of another model, an option is out of range, a number
    /// overflowed, or the observer stopped it.
    pub fn detokenize(
        &self,
        tokens: &VideoTokens,
        decoding: &Decoding,
        observer: &mut Observer<'_>,
    ) -> Result<Vec<Vec<Frame>>> {
        decoding.check()?;
        let part = Part::Detokenizer;
        let [_, _, found] = tokens.tokens.dims();
        self.check_width(part, found)?;
        let guidance = match (&tokens.unconditional, decoding.guidance.is_on()) {
            (Some(tokens), true) => Some(decoding.guidance.with_tokens(tokens.clone())),
            _ => self.guidance(part, decoding, observer)?,
        };
        let clips = (0..tokens.tokens.dims()[0])
            .map(|clip| tokens.tokens.clone().narrow(0, clip, 1))
            .collect();
        self.decode(part, clips, guidance.as_ref(), decoding, observer)
    }

    /// Takes the clip of a video that starts at `start` seconds to tokens and back.
    ///
    /// # Errors
    /// If the model or the video cannot be read, an option is out of range, a number overflowed, or the
    /// observer stopped it.
    pub fn reconstruct(
        &self,
        video: &Video,
        start: f64,
        decoding: &Decoding,
        observer: &mut Observer<'_>,
    ) -> Result<Reconstruction> {
        decoding.check()?;
        let part = Part::Detokenizer;
        let config = self.tokenizer_config()?;
        self.check_parts(part, config.resampler.output_size()[1])?;
        let clip = config.clip_reader().read(video, start)?;
        let tokenizer = self.load(observer, |checkpoint| Ok(Tokenizer::load(checkpoint)?.0))?;
        let (tokens, guidance) = stage(Stage::Tokenizer, observer, |observer| {
            let tokens = tokenizer.tokenize_clip(&clip);
            let guidance = match decoding.guidance.is_on() {
                true => {
                    let unconditional = self.unconditional_of(&tokenizer, observer)?;
                    Some(decoding.guidance.with_tokens(unconditional))
                }
                false => None,
            };
            Ok((tokens, guidance))
        })?;
        drop(tokenizer);
        let mut clips = self.decode(
            part,
            vec![tokens.clone()],
            guidance.as_ref(),
            decoding,
            observer,
        )?;
        Ok(Reconstruction {
            clip,
            tokens,
            frames: clips.remove(0),
        })
    }

    /// Asks the language model that is best at answering a question about a video. The conversation that
    /// comes with the answer goes on with [`Chat::ask`].
    ///
    /// # Errors
    /// If the model or the video cannot be read, the question is empty or too long, an option is out of
    /// range, a number overflowed, or the observer stopped it.
    pub fn describe(
        &self,
        video: &Video,
        clips: Clips,
        question: &str,
        config: &GenerationConfig,
        observer: &mut Observer<'_>,
    ) -> Result<(Chat, Answer)> {
        config.check()?;
        let llm = OpenLlm::best(&self.checkpoint(), Task::Comprehension)?;
        let shown = match (clips, self.check_clips(video, clips)?) {
            (Clips::Image, _) => Shown::Image,
            (_, count) => Shown::Video(count),
        };
        self.check_features(&llm)?;
        let prompt = llm.question_prompt(shown, question)?;

        let tokenizer = self.load(observer, |checkpoint| Ok(Tokenizer::load(checkpoint)?.0))?;
        let tokens = stage(Stage::Tokenizer, observer, |observer| {
            tokenize(&tokenizer, video, clips, observer)
        })?;
        drop(tokenizer);

        let llm = Arc::new(self.load_llm(llm, observer)?);
        let mut chat = Chat::new(llm, config.clone());
        let answer = stage(Stage::LanguageModel, observer, |observer| {
            chat.start(&prompt, Some(tokens), |text| observer(Event::Text(text)))
        })?;
        Ok((chat, answer))
    }

    /// Makes a clip from a caption.
    ///
    /// # Errors
    /// If the model cannot be read, the caption is empty or too long, an option is out of range, a number
    /// overflowed, or the observer stopped it.
    pub fn generate(
        &self,
        caption: &str,
        config: &GenerationConfig,
        decoding: &Decoding,
        observer: &mut Observer<'_>,
    ) -> Result<(Scene, Vec<Frame>)> {
        let (llm, part) = self.open_generation(config, decoding)?;
        let prompt = llm.generation_prompt(caption)?;
        let guidance = self.guidance(part, decoding, observer)?;
        let llm = self.load_llm(llm, observer)?;
        let scene = stage(Stage::LanguageModel, observer, |observer| {
            llm.generate(&prompt, config, |text| observer(Event::Text(text)))
        })?;
        drop(llm);
        let tokens = vec![scene.features.clone()];
        let mut clips = self.decode(part, tokens, guidance.as_ref(), decoding, observer)?;
        Ok((scene, clips.remove(0)))
    }

    /// Tells a story of at most `scenes` clips: `frames[scene][frame]` with it.
    ///
    /// # Errors
    /// If the model cannot be read, the instruction is empty or too long, an option is out of range, a
    /// number overflowed, or the observer stopped it.
    pub fn story(
        &self,
        instruction: &str,
        scenes: usize,
        config: &GenerationConfig,
        decoding: &Decoding,
        observer: &mut Observer<'_>,
    ) -> Result<(Story, Vec<Vec<Frame>>)> {
        let (llm, part) = self.open_generation(config, decoding)?;
        let prompt = llm.instruction_prompt(instruction)?;
        let guidance = self.guidance(part, decoding, observer)?;
        let llm = self.load_llm(llm, observer)?;
        let story = stage(Stage::LanguageModel, observer, |observer| {
            llm.story(&prompt, scenes, config, |part| match part {
                StoryPart::Text(text) => observer(Event::Text(text)),
                StoryPart::Scene(number, scene) => observer(Event::Scene(number, scene)),
            })
        })?;
        drop(llm);
        let tokens = story.scenes.iter().map(|scene| scene.features.clone());
        let clips = self.decode(
            part,
            tokens.collect(),
            guidance.as_ref(),
            decoding,
            observer,
        )?;
        Ok((story, clips))
    }

    fn tokenizer_config(&self) -> Result<TokenizerConfig> {
        self.checkpoint().config(Part::Tokenizer)
    }

    /// The language model that is best at drawing, and the de-tokenizer for what it draws.
    fn open_generation(
        &self,
        config: &GenerationConfig,
        decoding: &Decoding,
    ) -> Result<(OpenLlm, Part)> {
        config.check()?;
        decoding.check()?;
        let llm = OpenLlm::best(&self.checkpoint(), Task::Generation)?;
        let part = Detokenizer::adapted_part(&self.folder);
        self.check_parts(part, llm.config.head.token_dim())?;
        Ok((llm, part))
    }

    /// Checks that a de-tokenizer reads tokens of a width.
    fn check_width(&self, part: Part, found: usize) -> Result<()> {
        let config: DetokenizerConfig = self.checkpoint().config(part)?;
        let expected = config.resampler.input_dim;
        match found == expected {
            true => Ok(()),
            false => Err(Error::TokenWidth { found, expected }),
        }
    }

    /// The same for tokens that another part of the model makes.
    fn check_parts(&self, part: Part, found: usize) -> Result<()> {
        self.check_width(part, found).map_err(|error| match error {
            Error::TokenWidth { found, expected } => Error::config(
                &self.folder,
                format!(
                    "its parts are of different models: tokens of {found} values do not fit a de-tokenizer of {expected}"
                ),
                "convert all parts from the same download",
            ),
            error => error,
        })
    }

    /// Checks that a language model reads what the tokenizer writes.
    fn check_features(&self, llm: &OpenLlm) -> Result<()> {
        let found = self.tokenizer_config()?.resampler.output_size();
        let (tokens, width) = (llm.config.num_queries, llm.config.head.token_dim());
        match found == [tokens, width] {
            true => Ok(()),
            false => {
                let error = LlmError::Features {
                    found: found.to_vec(),
                    tokens,
                    width,
                };
                let remedy = "convert its parts from the same download";
                Err(Error::config(&self.folder, error.to_string(), remedy))
            }
        }
    }

    /// Loads a network, and lets the observer see how far that is.
    fn load<T>(
        &self,
        observer: &mut Observer<'_>,
        load: impl FnOnce(&mut Checkpoint<'_>) -> Result<T>,
    ) -> Result<T> {
        stage(Stage::Loading, observer, |observer| {
            let mut checkpoint = self
                .checkpoint()
                .with_progress(|progress| observer(Event::Progress(progress)));
            load(&mut checkpoint)
        })
    }

    fn load_llm(&self, llm: OpenLlm, observer: &mut Observer<'_>) -> Result<VideoLlm> {
        self.load(observer, |checkpoint| {
            llm.load(checkpoint, self.precision.quantization)
        })
    }

    /// Guidance for a de-tokenizer, if there is to be any: with the stored unconditional tokens, or with
    /// those of the tokenizer, which is loaded for it.
    fn guidance(
        &self,
        part: Part,
        decoding: &Decoding,
        observer: &mut Observer<'_>,
    ) -> Result<Option<Guidance>> {
        if !decoding.guidance.is_on() {
            return Ok(None);
        }
        let tokens = self.stored_or(observer, |observer| {
            let tokenizer = self.load(observer, |checkpoint| Ok(Tokenizer::load(checkpoint)?.0))?;
            stage(
                Stage::Tokenizer,
                observer,
                |_| Ok(tokenizer.unconditional()),
            )
        })?;
        self.check_parts(part, tokens.dims()[2])?;
        Ok(Some(decoding.guidance.with_tokens(tokens)))
    }

    fn unconditional_of(
        &self,
        tokenizer: &Tokenizer,
        observer: &mut Observer<'_>,
    ) -> Result<Tensor<3>> {
        self.stored_or(observer, |_| Ok(tokenizer.unconditional()))
    }

    /// The stored unconditional tokens if they belong to the weights beside them, or else computed ones.
    fn stored_or(
        &self,
        observer: &mut Observer<'_>,
        compute: impl FnOnce(&mut Observer<'_>) -> Result<Tensor<3>>,
    ) -> Result<Tensor<3>> {
        let weights = Part::Tokenizer.folder(&self.folder).join(WEIGHTS);
        match self.checkpoint().unconditional() {
            Ok(Some(tokens)) => Ok(tokens),
            Ok(None) => compute(observer),
            Err(error) if weights.is_file() => {
                let tokens = compute(observer)?;
                go_on(observer(Event::Remark(&format!(
                    "not used: {}",
                    one_line(&error)
                ))))?;
                Ok(tokens)
            }
            Err(error) => Err(error),
        }
    }

    /// Turns the tokens of clips into frames.
    fn decode(
        &self,
        part: Part,
        clips: Vec<Tensor<3>>,
        guidance: Option<&Guidance>,
        decoding: &Decoding,
        observer: &mut Observer<'_>,
    ) -> Result<Vec<Vec<Frame>>> {
        if clips.is_empty() {
            return Ok(Vec::new());
        }
        let detokenizer = self.load(observer, |checkpoint| {
            Ok(Detokenizer::load_part(checkpoint, part)?.0)
        })?;
        clips
            .into_iter()
            .map(|tokens| {
                stage(Stage::Detokenizer, observer, |observer| {
                    let (sampling, seed) = (&decoding.sampling, decoding.seed);
                    detokenizer.frames(tokens, guidance, sampling, seed, |step| {
                        observer(Event::Progress(Progress {
                            name: "steps",
                            step: Step::Sample,
                            done: step.done as u64,
                            total: step.total as u64,
                        }))
                    })
                })
            })
            .collect()
    }
}

/// Tokens of a video's clips, `[clips, tokens, width]`.
fn tokenize(
    tokenizer: &Tokenizer,
    video: &Video,
    clips: Clips,
    observer: &mut Observer<'_>,
) -> Result<Tensor<3>> {
    let reader = tokenizer.clip_reader();
    match clips {
        Clips::AtMost(most) => tokenizer.tokenize_video(video, most, |done, total| {
            observer(Event::Progress(Progress {
                name: "clips",
                step: Step::Tokenize,
                done: done as u64,
                total: total as u64,
            }))
        }),
        Clips::From(start) => Ok(tokenizer.tokenize_clip(&reader.read(video, start)?)),
        Clips::Image => Ok(tokenizer.tokenize_clip(&reader.image(video)?)),
    }
}

/// Does the work of a stage and says how long it took.
fn stage<T>(
    stage: Stage,
    observer: &mut Observer<'_>,
    work: impl FnOnce(&mut Observer<'_>) -> Result<T>,
) -> Result<T> {
    let started = Instant::now();
    let result = work(observer)?;
    go_on(observer(Event::Finished(stage, started.elapsed())))?;
    Ok(result)
}

fn go_on(flow: ControlFlow<()>) -> Result<()> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Stopped),
    }
}
