//! Complete tasks, from a video or a prompt to the contents of output files, as in the program and the
//! examples.
//!
//! A [`Pipeline`] checks everything that can be checked before weights are loaded. One network is in memory
//! at a time, so that the largest determines the memory of a task.

mod event;
mod many;
mod options;

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::{Device, FloatDType, Tensor};
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

/// The result of a reconstruction.
#[derive(Debug)]
pub struct Reconstruction {
    /// The original clip.
    pub clip: Clip,
    /// The tokens, `[1, tokens, width]`.
    pub tokens: Tensor<3>,
    /// The reconstructed frames.
    pub frames: Vec<Frame>,
}

impl Reconstruction {
    /// Returns the original frames in the size of the reconstructed ones.
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

    /// Computes how similar the reconstructed frames are to `originals`.
    ///
    /// # Errors
    /// If the numbers or the sizes of the frames differ.
    pub fn fidelity(&self, originals: &[Frame]) -> Result<Fidelity> {
        Ok(Fidelity {
            psnr: metrics::mean(originals, &self.frames, metrics::psnr)?,
            ssim: metrics::mean(originals, &self.frames, metrics::ssim).ok(),
        })
    }
}

/// Similarity of two clips, averaged over their frames.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fidelity {
    /// Peak signal-to-noise ratio in decibels.
    pub psnr: f64,
    /// Structural similarity, at most 1. `None` for frames with a side under 11 pixels.
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

/// A model's folder, with the options for loading and running its networks.
#[derive(Debug, Clone)]
pub struct Pipeline {
    folder: PathBuf,
    device: Device,
    precision: Precision,
    /// The folder if it is a temporary one.
    unpacked: Option<Arc<tempfile::TempDir>>,
}

impl Pipeline {
    /// Opens the folder of a model. Nothing is read yet.
    ///
    /// # Errors
    /// If the folder does not exist.
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
            unpacked: None,
        })
    }

    /// Opens divot-tiny, a small model of a synthetic world, which the program contains.
    ///
    /// It is written into a temporary folder. This is removed with the last clone of the pipeline.
    ///
    /// # Errors
    /// If the folder cannot be written.
    #[cfg(feature = "tiny")]
    pub fn tiny(device: &Device) -> Result<Self> {
        let parent = std::env::temp_dir();
        let unpacked = tempfile::Builder::new()
            .prefix("divot-tiny-")
            .tempdir_in(&parent)
            .and_then(|folder| divot_tiny::unpack(folder.path()).map(|()| folder))
            .map_err(|error| {
                let problem = format!("holds no copy of divot-tiny ({error})");
                Error::config(
                    &parent,
                    problem,
                    "free some space there, or set TMPDIR to another folder",
                )
            })?;
        let pipeline = Self::open(unpacked.path(), device)?;
        Ok(Self {
            unpacked: Some(Arc::new(unpacked)),
            ..pipeline
        })
    }

    /// Returns the first of the sample clips (MP4) that come with the model, in its folder `clips`.
    pub fn sample_clip(&self) -> Option<PathBuf> {
        let entries = std::fs::read_dir(self.folder.join("clips")).ok()?;
        let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let is_clip = |file: &PathBuf| file.extension().is_some_and(|found| found == "mp4");
        files.filter(is_clip).min()
    }

    /// Returns how the model's tokens are best decoded: what the de-tokenizer's configuration says, or the released
    /// settings.
    ///
    /// # Errors
    /// If the configuration is invalid.
    pub fn decoding(&self) -> Result<Decoding> {
        let part = match Part::Detokenizer.folder(&self.folder).is_dir() {
            true => Part::Detokenizer,
            false => Detokenizer::adapted_part(&self.folder),
        };
        if !part.folder(&self.folder).is_dir() {
            return Ok(Decoding::default());
        }
        let config: DetokenizerConfig = self.checkpoint().config(part)?;
        Ok(Decoding {
            sampling: config.sampling,
            guidance: config.guidance,
            ..Decoding::default()
        })
    }

    /// Sets the element type of weights in memory.
    ///
    /// On the CPU, bf16 also switches products in bf16 on for the whole process
    /// ([`enable_bf16_products`](divot_nn::ops::enable_bf16_products)), and any other type switches them off.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        let bf16 = precision.dtype == Some(FloatDType::BF16);
        divot_nn::ops::enable_bf16_products(bf16);
        self.precision = precision;
        self
    }

    /// Returns whether networks multiply in bf16: with weights in bf16 on a CPU that has such instructions. Otherwise
    /// the CPU keeps weights in bf16 and computes in f32.
    pub fn multiplies_in_bf16(&self) -> bool {
        let bf16 = self.precision.dtype == Some(FloatDType::BF16);
        crate::device::is_cpu(&self.device) && bf16 && divot_nn::ops::bf16_products()
    }

    /// Returns the model's name: divot-tiny, or the folder.
    pub fn name(&self) -> String {
        match self.unpacked {
            Some(_) => "divot-tiny".to_owned(),
            None => self.folder.to_string_lossy().into_owned(),
        }
    }

    /// Returns the folder of the model.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the device that networks run on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Returns the element type of weights in memory.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Returns the model's checkpoint, for loading single parts.
    pub fn checkpoint(&self) -> Checkpoint<'_> {
        let checkpoint = Checkpoint::new(&self.folder, &self.device);
        match self.precision.dtype {
            Some(dtype) => checkpoint.with_dtype(dtype),
            None => checkpoint,
        }
    }

    /// Returns a reader of clips for this model's tokenizer.
    ///
    /// # Errors
    /// If the tokenizer's configuration is missing or invalid.
    pub fn clip_reader(&self) -> Result<ClipReader> {
        Ok(self.tokenizer_config()?.clip_reader())
    }

    /// Checks that a video has these clips and returns their number. No weights are loaded.
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

    /// Tokenizes a video. The result includes the unconditional tokens.
    ///
    /// # Errors
    /// If the model or the video cannot be read, or the observer stops it.
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

    /// Decodes tokens to video, one clip at a time: `frames[clip][frame]`.
    ///
    /// # Errors
    /// If the model cannot be read, the tokens belong to another model, an option is out of range, a value
    /// is not finite, or the observer stops it.
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

    /// Reconstructs the clip that starts at `start` seconds: tokenizes it and decodes the tokens.
    ///
    /// # Errors
    /// If the model or the video cannot be read, an option is out of range, a value is not finite, or the
    /// observer stops it.
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

    /// Asks the best language model for comprehension a question about a video. The returned conversation
    /// continues with [`Chat::ask`].
    ///
    /// # Errors
    /// If the model or the video cannot be read, the question is empty or too long, an option is out of
    /// range, a value is not finite, or the observer stops it.
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

    /// Generates a clip from a caption.
    ///
    /// # Errors
    /// If the model cannot be read, the caption is empty or too long, an option is out of range, a value is
    /// not finite, or the observer stops it.
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

    /// Generates a story of at most `scenes` clips. Returns it with its frames: `frames[scene][frame]`.
    ///
    /// # Errors
    /// If the model cannot be read, the instruction is empty or too long, an option is out of range, a
    /// value is not finite, or the observer stops it.
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

    /// Opens the best language model for generation, and the de-tokenizer for its features.
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

    /// Checks that a de-tokenizer accepts tokens of this width.
    fn check_width(&self, part: Part, found: usize) -> Result<()> {
        let config: DetokenizerConfig = self.checkpoint().config(part)?;
        let expected = config.resampler.input_dim;
        match found == expected {
            true => Ok(()),
            false => Err(Error::TokenWidth { found, expected }),
        }
    }

    /// Checks the same for tokens from another part of the model.
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

    /// Checks that a language model accepts the tokenizer's features.
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

    /// Loads a network and reports the progress to the observer.
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
        let on_host = crate::device::is_cpu(&self.device);
        self.load(observer, |checkpoint| {
            let quantization = match self.precision {
                Precision {
                    dtype: None,
                    quantization: None,
                } if on_host && llm.config.lora.is_none() => {
                    checkpoint.loading(llm.part)?.packed_bits()
                }
                precision => precision.quantization,
            };
            llm.load(checkpoint, quantization)
        })
    }

    /// Returns the guidance for a de-tokenizer, if it is enabled. It uses the stored unconditional tokens,
    /// or loads the tokenizer to compute them.
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

    /// Returns the stored unconditional tokens if they belong to the weights beside them. Otherwise
    /// computes them.
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

    /// Decodes the tokens of clips to frames.
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

/// Tokenizes the clips of a video: `[clips, tokens, width]`.
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

/// Runs a stage and reports its time.
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
