//! The language model with its text tokenizer.

mod chat;
mod load;
mod story;

use std::ops::ControlFlow;

use burn::tensor::{DType, Tensor};
use divot_llm::gmm::SampleOptions;
use divot_llm::{
    Context, DivotLlm, FinishReason, LlmError, Prompt, Rules, SpecialTokens, TextSampling,
    TextTokenizer,
};
use divot_nn::Noise;

use crate::error::{Error, Result};

pub use chat::{Answer, Chat};
pub use load::{OpenLlm, Task};
pub use story::{Story, StoryEnd, StoryPart};

/// Divot-LLM: reads video tokens to describe and to answer, and draws video tokens to make videos
/// (paper, section 3.2).
#[derive(Debug)]
pub struct VideoLlm {
    /// Decoder, projections and mixture head.
    pub model: DivotLlm,
    /// The text tokenizer.
    pub text: TextTokenizer,
    /// The tokens that mark video in text.
    pub tokens: SpecialTokens,
    /// The type that the model computes in.
    pub dtype: DType,
}

/// A clip drawn by the model.
#[derive(Debug, Clone)]
pub struct Scene {
    /// What the model said before the clip.
    pub text: String,
    /// The tokens of the clip, `[1, tokens, width]`, in f32.
    pub features: Tensor<3>,
    /// Whether the clip was started for the model, which had used up its tokens or ended its text.
    pub forced: bool,
}

/// How text and features are drawn.
#[derive(Debug, Clone)]
pub struct GenerationConfig {
    /// How text is drawn.
    pub text: TextSampling,
    /// How features are drawn.
    pub features: SampleOptions,
    /// Seed of both.
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
    /// Checks the options. No weights are needed for it.
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
    /// Draws the clip that a prompt asks for ([`OpenLlm::generation_prompt`]).
    ///
    /// The model may say something first. `on_text` gets the text that each token completes, and may
    /// stop the generation.
    ///
    /// # Errors
    /// If an option is out of range, the window is too short, or a number overflowed;
    /// [`Error::Stopped`] if `on_text` stopped it.
    pub fn generate(
        &self,
        prompt: &Prompt,
        config: &GenerationConfig,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Scene> {
        config.check()?;
        let mut noise = Noise::new(config.seed);
        let mut context = self.context(prompt, config);
        self.model.read(&mut context, prompt, None)?;
        let said = self.say_until_video(&mut context, config, &mut noise, &mut on_text)?;
        self.draw_clip(&mut context, said, config, &mut noise)
    }

    /// A context with room for the prompt, an answer and a clip.
    fn context(&self, prompt: &Prompt, config: &GenerationConfig) -> Context {
        let clip = self.tokens.features.len() + 4;
        // A longer answer makes its own room when it comes to it.
        let answer = config.text.max_new_tokens.min(256);
        let positions = prompt.ids.len() + answer + clip;
        let positions = positions.min(self.model.window());
        Context::new(&self.model.llm, positions, self.dtype)
    }

    /// Generates text until the model starts a video or ends its text.
    fn say_until_video(
        &self,
        context: &mut Context,
        config: &GenerationConfig,
        noise: &mut Noise,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Said> {
        let stop = [self.tokens.video, self.text.eos()];
        self.say(context, &config.text, &stop, noise, on_text)
    }

    /// Generates text until one of the tokens `stop`.
    fn say(
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
                });
        if let Some(error) = failed {
            return Err(LlmError::from(error).into());
        }
        let generated = generated?;
        let rest = stream.finish();
        if !rest.is_empty() {
            // The text has ended, so there is nothing left to stop.
            let _ = on_text(&rest);
        }
        let text = self.text.decode(&generated.ids, true);
        Ok(Said {
            text: text.map_err(LlmError::from)?,
            ids: generated.ids,
            end: generated.end,
        })
    }

    /// Draws the clip that follows what was said. If the model did not start a video by itself, one is
    /// started for it.
    fn draw_clip(
        &self,
        context: &mut Context,
        said: Said,
        config: &GenerationConfig,
        noise: &mut Noise,
    ) -> Result<Scene> {
        // The last generated token is not part of the context yet.
        let forced = said.end != FinishReason::Token(self.tokens.video);
        let mut ids: Vec<u32> = said.ids.last().copied().into_iter().collect();
        if forced {
            // The end token is dropped, so that the text goes on.
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
            return Err(LlmError::NotFinite(self.dtype.name()).into());
        }
        Ok(Scene {
            text: said.text.trim().to_owned(),
            features,
            forced,
        })
    }
}

/// What the model said.
struct Said {
    text: String,
    ids: Vec<u32>,
    end: FinishReason,
}
