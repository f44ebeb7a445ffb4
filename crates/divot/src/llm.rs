//! The language model with its text tokenizer: what it is asked, and what it answers.

use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::{Device, Tensor};
use divot_data::Video;
use divot_llm::gmm::SampleOptions;
use divot_llm::{
    Context, DivotLlm, DivotLlmConfig, FinishReason, LlmError, Projection, Prompt, Quantization,
    Rules, Shown, SpecialTokens, TextSampling, TextTokenizer,
};
use divot_nn::Noise;

use crate::Tokenizer;
use crate::checkpoint::{Checkpoint, Loading, Part, TEXT_TOKENIZER};
use crate::device;
use crate::error::{Error, Result};

/// Divot-LLM: reads video tokens to describe and answer, and draws those of videos that it is asked
/// for (paper, section 3.2).
#[derive(Debug)]
pub struct VideoLlm {
    /// Decoder, projections and mixture head.
    pub model: DivotLlm,
    /// The text tokenizer.
    pub text: TextTokenizer,
    /// Tokens that mark video in text.
    pub tokens: SpecialTokens,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Its tokens, special ones included.
    pub ids: Vec<u32>,
    /// How many tokens were read for it: the question's, with those of what is shown.
    pub prompt_tokens: usize,
    /// Whether it ended by itself, rather than for want of room or by the caller.
    pub complete: bool,
}

/// A clip that the model made.
#[derive(Debug, Clone)]
pub struct Scene {
    /// What it said before the clip.
    pub text: String,
    /// The tokens of the clip, `[1, 64, 256]`, in f32.
    pub features: Tensor<3>,
    /// Whether the model was made to start the clip, having said all it may or ended its text.
    pub forced: bool,
}

/// A story: scenes, and what was said after the last.
#[derive(Debug, Clone, Default)]
pub struct Story {
    /// Text and clip in turns.
    pub scenes: Vec<Scene>,
    /// Words after the last clip; empty where the story ends with it.
    pub ending: String,
    /// Why there is no more.
    pub end: StoryEnd,
}

/// Why a story ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StoryEnd {
    /// As many scenes as were asked for.
    #[default]
    Scenes,
    /// The model ended its text.
    Itself,
    /// The model's window has no room for another scene.
    Window,
    /// The caller stopped it.
    Caller,
}

/// How text and features are drawn.
#[derive(Debug, Clone)]
pub struct GenerationConfig {
    /// The text.
    pub text: TextSampling,
    /// The features.
    pub features: SampleOptions,
    /// Where both start.
    pub seed: u64,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self {
            text: TextSampling::new(),
            features: SampleOptions::new(),
            seed: 42,
        }
    }
}

impl GenerationConfig {
    /// Finds out whether anything can be drawn so, before any weights are read.
    ///
    /// # Errors
    /// The first option that is out of range.
    pub fn check(&self) -> Result<()> {
        self.text.check()?;
        for (option, value) in [
            ("var_scale", self.features.var_scale),
            ("the features' temperature", self.features.temperature),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::Option {
                    option,
                    value,
                    remedy: "a number that is not negative",
                });
            }
        }
        Ok(())
    }
}

impl VideoLlm {
    /// Loads the language model of a checkpoint that is best at `task`, see [`Task`].
    ///
    /// # Errors
    /// If there is none, or a file is missing, damaged, or does not fit the others.
    pub fn load(
        checkpoint: &mut Checkpoint<'_>,
        task: Task,
        quantization: Option<Quantization>,
    ) -> Result<Self> {
        let part = task.part(checkpoint.folder())?;
        Self::load_part(checkpoint, part, quantization)
    }

    /// Loads a certain part.
    ///
    /// With `quantization`, the decoder's weights keep 8 or 4 bits: a matrix at a time is read
    /// and packed, so that no more than the packed model and one matrix are in memory.
    ///
    /// # Errors
    /// If a file is missing, damaged, or does not fit the others.
    pub fn load_part(
        checkpoint: &mut Checkpoint<'_>,
        part: Part,
        quantization: Option<Quantization>,
    ) -> Result<Self> {
        let config: DivotLlmConfig = checkpoint.config(part)?;
        let path = part.folder(checkpoint.folder()).join(TEXT_TOKENIZER);
        let text = TextTokenizer::open(&path).map_err(LlmError::from)?;
        let tokens = SpecialTokens::of(&text, config.num_queries)?;
        if text.vocab_size() > config.llm.vocab_size {
            return Err(Error::config(
                &path,
                LlmError::Vocabulary {
                    tokens: text.vocab_size(),
                    rows: config.llm.vocab_size,
                }
                .to_string(),
                "the files in this folder belong together",
            ));
        }
        if quantization.is_some() && config.lora.is_some() {
            return Err(Error::config(
                &part.folder(checkpoint.folder()),
                "has LoRA beside its weights, which then cannot keep fewer bits",
                "merge it: convert the checkpoint again with --merge-lora",
            ));
        }
        let module = config.init(checkpoint.device());
        let model = match quantization {
            None => checkpoint.load(part, module)?,
            Some(quantization) => load_quantized(checkpoint, part, module, quantization)?,
        };
        Ok(Self {
            model,
            text,
            tokens,
        })
    }

    /// Answers a question about a video, of which at most `max_clips` clips are shown, or about an image,
    /// which is a video of one frame.
    ///
    /// # Errors
    /// If the video cannot be decoded, or those of [`Chat::ask`].
    pub fn describe(
        &self,
        tokenizer: &Tokenizer,
        video: &Video,
        max_clips: usize,
        question: &str,
        config: GenerationConfig,
    ) -> Result<Answer> {
        let go_on = |_, _| ControlFlow::Continue(());
        let (shown, features) = match video.info().frames {
            1 => (Shown::Image, Some(tokenizer.tokenize_image(video)?)),
            _ => {
                let features = tokenizer.tokenize_video(video, max_clips, go_on)?;
                let clips = features.as_ref().map_or(0, |features| features.dims()[0]);
                (Shown::Video(clips), features)
            }
        };
        self.chat(shown, features, config)
            .ask(question, |_| ControlFlow::Continue(()))
    }

    /// Starts a conversation about a video, an image or nothing.
    ///
    /// `features` are the tokens of the clips that are shown, `[clips, 64, 256]`.
    pub fn chat(
        &self,
        shown: Shown,
        features: Option<Tensor<3>>,
        config: GenerationConfig,
    ) -> Chat<'_> {
        Chat {
            llm: self,
            shown,
            features,
            context: None,
            pending: Vec::new(),
            noise: Noise::new(config.seed),
            config,
        }
    }

    /// Makes a clip of a caption.
    ///
    /// The model may say something before it; `on_text` is told after each token, with what text that
    /// completes, and may stop it. `None` if it did.
    ///
    /// # Errors
    /// If the caption is empty or too long, an option is out of range, or a number overflowed.
    pub fn generate(
        &self,
        caption: &str,
        config: &GenerationConfig,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Option<Scene>> {
        config.check()?;
        let prompt = Prompt::generation(&self.text, caption)?;
        let mut noise = Noise::new(config.seed);
        let mut context = self.context(&prompt, config);
        self.model.read(&mut context, &prompt, None)?;
        let said = self.say(&mut context, config, &mut noise, &mut on_text)?;
        if said.end == FinishReason::Caller {
            return Ok(None);
        }
        self.scene(&mut context, said, config, &mut noise).map(Some)
    }

    /// Tells a story of at most `scenes` clips: text and clip in turns, each clip read again before
    /// the next. It ends by itself when the model ends its text.
    ///
    /// # Errors
    /// If the instruction is empty or too long, no scene was asked for, an option is out of range, or a
    /// number overflowed.
    pub fn story(
        &self,
        instruction: &str,
        scenes: usize,
        config: &GenerationConfig,
        mut on_part: impl FnMut(StoryPart<'_>) -> ControlFlow<()>,
    ) -> Result<Story> {
        if scenes == 0 {
            return Err(LlmError::Option {
                option: "scenes",
                value: 0.0,
                remedy: "at least 1",
            }
            .into());
        }
        config.check()?;
        let prompt = Prompt::instruction(&self.text, instruction)?;
        let mut noise = Noise::new(config.seed);
        let mut context = self.context(&prompt, config);
        self.model.read(&mut context, &prompt, None)?;
        let mut story = Story::default();
        while story.scenes.len() < scenes {
            let turn = self.turn(&mut context, &mut story, config, &mut noise, &mut on_part);
            story.end = match turn {
                Ok(StoryEnd::Scenes) => continue,
                Ok(end) => end,
                // What was told so far is not lost for want of room.
                Err(Error::Llm(LlmError::TooLong { .. })) if !story.scenes.is_empty() => {
                    StoryEnd::Window
                }
                Err(error) => return Err(error),
            };
            break;
        }
        Ok(story)
    }

    /// The next scene of a story: [`StoryEnd::Scenes`] if there is one and there may be another.
    fn turn(
        &self,
        context: &mut Context,
        story: &mut Story,
        config: &GenerationConfig,
        noise: &mut Noise,
        on_part: &mut impl FnMut(StoryPart<'_>) -> ControlFlow<()>,
    ) -> Result<StoryEnd> {
        if let Some(last) = story.scenes.last() {
            let clip = Prompt::clip_features(&self.tokens);
            let features = last.features.clone();
            self.model.read(context, &clip, Some(features))?;
        }
        let said = self.say(context, config, noise, &mut |text| {
            on_part(StoryPart::Text(text))
        })?;
        match said.end {
            FinishReason::Caller => return Ok(StoryEnd::Caller),
            FinishReason::Token(id) if id == self.text.eos() => {
                story.ending = said.text;
                return Ok(StoryEnd::Itself);
            }
            _ => {}
        }
        let scene = self.scene(context, said, config, noise)?;
        let number = story.scenes.len() + 1;
        let flow = on_part(StoryPart::Scene(number, &scene));
        story.scenes.push(scene);
        Ok(match flow {
            ControlFlow::Continue(()) => StoryEnd::Scenes,
            ControlFlow::Break(()) => StoryEnd::Caller,
        })
    }

    /// Room for the prompt, an answer and a clip.
    fn context(&self, prompt: &Prompt, config: &GenerationConfig) -> Context {
        let clip = self.tokens.features.len() + 4;
        // A longer answer makes its own room when it comes to it.
        let answer = config.text.max_new_tokens.min(256);
        let positions = prompt.ids.len() + answer + clip;
        Context::new(&self.model.llm, positions.min(self.model.window()))
    }

    /// Lets the model talk until it starts a video or ends.
    fn say(
        &self,
        context: &mut Context,
        config: &GenerationConfig,
        noise: &mut Noise,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Said> {
        let stop = [self.tokens.video, self.text.eos()];
        self.speak(context, &config.text, &stop, noise, on_text)
    }

    fn speak(
        &self,
        context: &mut Context,
        sampling: &TextSampling,
        stop: &[u32],
        noise: &mut Noise,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Said> {
        let order = self.tokens.order();
        let rules = Rules {
            sampling,
            stop,
            order: Some(&order),
            window: self.model.window(),
        };
        let mut stream = self.text.stream(true);
        let mut failed = None;
        let generated =
            self.model
                .llm
                .generate(context, rules, noise, |id| match stream.push(id) {
                    Ok(text) if text.is_empty() => ControlFlow::Continue(()),
                    Ok(text) => on_text(&text),
                    Err(error) => {
                        failed = Some(error);
                        ControlFlow::Break(())
                    }
                })?;
        if let Some(error) = failed {
            return Err(LlmError::from(error).into());
        }
        let rest = stream.finish();
        if !rest.is_empty() {
            // The text has ended, there is nothing left to stop.
            let _ = on_text(&rest);
        }
        let text = self.text.decode(&generated.ids, true);
        Ok(Said {
            text: text.map_err(LlmError::from)?,
            ids: generated.ids,
            end: generated.end,
        })
    }

    /// Draws the clip that follows what was said. A model that did not start a video by itself is made
    /// to.
    fn scene(
        &self,
        context: &mut Context,
        said: Said,
        config: &GenerationConfig,
        noise: &mut Noise,
    ) -> Result<Scene> {
        // What was generated last is not part of the context yet.
        let forced = said.end != FinishReason::Token(self.tokens.video);
        let mut ids: Vec<u32> = said.ids.last().copied().into_iter().collect();
        if forced {
            // A text that has ended goes on as if it had not.
            ids.retain(|&id| id != self.text.eos());
            ids.push(self.tokens.video);
        }
        ids.push(self.tokens.clip);
        let start = Prompt {
            ids,
            clips: Vec::new(),
        };
        self.model.read(context, &start, None)?;
        let features =
            self.model
                .predict_clip(context, &self.tokens.features, &config.features, noise)?;
        let finite = features.clone().is_finite().all().into_scalar::<bool>();
        if !finite {
            let dtype = self.model.llm.norm.gamma.val().dtype();
            return Err(LlmError::NotFinite(dtype.name()).into());
        }
        Ok(Scene {
            text: said.text.trim().to_owned(),
            features,
            forced,
        })
    }
}

/// What a story consists of, as it is told.
#[derive(Debug, Clone, Copy)]
pub enum StoryPart<'a> {
    /// More text.
    Text(&'a str),
    /// The scene of that number, from 1, was drawn.
    Scene(usize, &'a Scene),
}

struct Said {
    text: String,
    ids: Vec<u32>,
    end: FinishReason,
}

/// What a language model is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Describing and answering.
    Comprehension,
    /// Making clips and stories.
    Generation,
}

impl Task {
    /// The parts that can do it, the best first.
    pub fn parts(self) -> [Part; 4] {
        match self {
            Self::Comprehension => [
                Part::Comprehension,
                Part::Llm,
                Part::Generation,
                Part::Pretrained,
            ],
            Self::Generation => [
                Part::Generation,
                Part::Llm,
                Part::Pretrained,
                Part::Comprehension,
            ],
        }
    }

    /// The best part for it that a checkpoint's folder holds.
    ///
    /// # Errors
    /// If it holds no language model.
    pub fn part(self, checkpoint: &Path) -> Result<Part> {
        self.parts()
            .into_iter()
            .find(|part| part.folder(checkpoint).is_dir())
            .ok_or_else(|| {
                Error::config(
                    checkpoint,
                    "holds no language model",
                    match self {
                        Task::Comprehension => "get one: `divot download llm-comprehension`, or convert one",
                        Task::Generation => {
                            "get one: `divot download llm-generation detokenizer-adapted`, or convert one"
                        }
                    },
                )
            })
    }
}

/// A conversation, each question of which is answered with what was said before in mind.
#[derive(Debug)]
pub struct Chat<'a> {
    llm: &'a VideoLlm,
    shown: Shown,
    features: Option<Tensor<3>>,
    context: Option<Context>,
    /// Tokens that were said and are not read yet.
    pending: Vec<u32>,
    noise: Noise,
    config: GenerationConfig,
}

impl Chat<'_> {
    /// Asks a question; `on_text` is told after each token, with what text that completes, and may stop
    /// the answer.
    ///
    /// A question that fails leaves the conversation as it was.
    ///
    /// # Errors
    /// If the question is empty, the conversation too long, an option out of range, or a number
    /// overflowed.
    pub fn ask(
        &mut self,
        question: &str,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer> {
        let llm = self.llm;
        self.config.check()?;
        let (prompt, features) = match &self.context {
            None => (
                Prompt::question(&llm.text, &llm.tokens, self.shown, question)?,
                self.features.clone(),
            ),
            Some(_) => {
                let next = Prompt::follow_up(&llm.text, question)?;
                let ids = self.pending.iter().copied().chain(next.ids).collect();
                let clips = Vec::new();
                (Prompt { ids, clips }, None)
            }
        };
        let mut context = match self.context.take() {
            Some(context) => context,
            None => llm.context(&prompt, &self.config),
        };
        let before = context.len();
        let eos = llm.text.eos();
        let answered = llm
            .model
            .read(&mut context, &prompt, features)
            .map_err(Error::from)
            .and_then(|()| {
                let sampling = &self.config.text;
                llm.speak(
                    &mut context,
                    sampling,
                    &[eos],
                    &mut self.noise,
                    &mut on_text,
                )
            });
        let said = match answered {
            Ok(said) => said,
            Err(error) => {
                if before > 0 {
                    context.truncate(before);
                    self.context = Some(context);
                }
                return Err(error);
            }
        };
        self.pending = match said.end {
            // The next question starts with it.
            FinishReason::Token(_) => Vec::new(),
            _ => said.ids.last().copied().into_iter().collect(),
        };
        self.context = Some(context);
        Ok(Answer {
            prompt_tokens: prompt.ids.len(),
            text: said.text.trim().to_owned(),
            complete: said.end == FinishReason::Token(eos),
            ids: said.ids,
        })
    }
}

/// Reads and packs the decoder a matrix at a time. Embeddings stay as stored; on the CPU all else that
/// is not packed is in f32, as are the products of what is.
fn load_quantized(
    checkpoint: &mut Checkpoint<'_>,
    part: Part,
    mut model: DivotLlm,
    quantization: Quantization,
) -> Result<DivotLlm> {
    let device: Device = checkpoint.device().clone();
    let on_host = device::is_cpu(&device);
    let mut loading = checkpoint.loading(part)?;
    let dtype = loading.dtype();
    let quantize = |loading: &mut Loading<'_, '_>, prefix: &str, slot: &mut Projection| {
        // As stored on its way to being packed, which takes the least memory.
        let dtype = match slot.can_quantize(on_host) {
            true => None,
            false => dtype,
        };
        let weights = loading.fill(prefix, slot.clone(), dtype)?;
        *slot = weights.quantize(quantization, on_host);
        Ok::<_, Error>(())
    };
    for (i, layer) in model.llm.layers.iter_mut().enumerate() {
        let prefix = format!("llm.layers.{i}");
        for (name, slot) in layer.projections_mut() {
            quantize(&mut loading, &format!("{prefix}.{name}."), slot)?;
        }
        for (name, norm) in [
            ("input_layernorm", &mut layer.input_layernorm),
            (
                "post_attention_layernorm",
                &mut layer.post_attention_layernorm,
            ),
        ] {
            *norm = loading.fill(&format!("{prefix}.{name}."), norm.clone(), dtype)?;
        }
    }
    quantize(&mut loading, "llm.lm_head.", &mut model.llm.lm_head)?;
    model.llm.embed_tokens = loading.fill("llm.embed_tokens.", model.llm.embed_tokens, None)?;
    model.llm.norm = loading.fill("llm.norm.", model.llm.norm, dtype)?;
    model.input_proj = loading.fill("input_proj.", model.input_proj, dtype)?;
    model.output_proj = loading.fill("output_proj.", model.output_proj, dtype)?;
    model.head = loading.fill("head.", model.head, dtype)?;
    loading.finish()?;
    Ok(model)
}
