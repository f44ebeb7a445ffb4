//! Stories of alternating text and clips.

use std::ops::ControlFlow;

use divot_llm::{Context, FinishReason, LlmError, Prompt};
use divot_nn::Noise;

use super::{GenerationConfig, Scene, VideoLlm};
use crate::error::{Error, Result};

/// A story: scenes, and the text after the last one.
#[derive(Debug, Clone, Default)]
pub struct Story {
    /// The scenes, each with its text and clip.
    pub scenes: Vec<Scene>,
    /// Text after the last clip. Empty if the story ends with a clip.
    pub ending: String,
    /// Why the story ended.
    pub end: StoryEnd,
}

/// Why a story ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StoryEnd {
    /// It has the requested number of scenes.
    #[default]
    Scenes,
    /// The model ended its text.
    Itself,
    /// The model's window has no room for another scene.
    Window,
}

/// A piece of a story that is being generated.
#[derive(Debug, Clone, Copy)]
pub enum StoryPart<'a> {
    /// More text.
    Text(&'a str),
    /// A new scene, with its number from 1.
    Scene(usize, &'a Scene),
}

impl VideoLlm {
    /// Generates a story of at most `scenes` clips, with text before each clip. Each clip is read again
    /// before the next one. The story ends early if the model ends its text.
    ///
    /// `prompt` comes from [`OpenLlm::instruction_prompt`](super::OpenLlm::instruction_prompt). `on_part`
    /// receives each piece of text and each scene, and may stop the story.
    ///
    /// # Errors
    /// If `scenes` is 0, an option is out of range, the window has no room for the first scene, or a value
    /// is not finite; [`Error::Stopped`] if `on_part` stops it.
    pub fn story(
        &self,
        prompt: &Prompt,
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
        let mut noise = Noise::new(config.seed);
        let mut context = self.context(prompt, config);
        self.model.read(&mut context, prompt, None)?;
        let mut story = Story::default();
        while story.scenes.len() < scenes {
            let turn = self.turn(&mut context, &mut story, config, &mut noise, &mut on_part);
            story.end = match turn {
                Ok(StoryEnd::Scenes) => continue,
                Ok(end) => end,
                // When the window is full, the story so far is kept.
                Err(Error::Llm(LlmError::TooLong { .. })) if !story.scenes.is_empty() => {
                    StoryEnd::Window
                }
                Err(error) => return Err(error),
            };
            break;
        }
        Ok(story)
    }

    /// Generates the next scene of a story. Returns [`StoryEnd::Scenes`] if another one may follow.
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
        let said = self.say_until_video(context, config, noise, &mut |text| {
            on_part(StoryPart::Text(text))
        })?;
        if said.end == FinishReason::Token(self.text.eos()) {
            story.ending = said.text;
            return Ok(StoryEnd::Itself);
        }
        let scene = self.draw_clip(context, said, config, noise)?;
        let number = story.scenes.len() + 1;
        let flow = on_part(StoryPart::Scene(number, &scene));
        story.scenes.push(scene);
        match flow {
            ControlFlow::Continue(()) => Ok(StoryEnd::Scenes),
            ControlFlow::Break(()) => Err(Error::Stopped),
        }
    }
}
