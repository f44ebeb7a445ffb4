//! Conversations about a video.

use std::ops::ControlFlow;
use std::sync::Arc;

use burn::tensor::Tensor;
use divot_llm::{Context, FinishReason, Prompt};
use divot_nn::Noise;

use super::{GenerationConfig, VideoLlm};
use crate::error::{Error, Result};

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// The text's tokens, special ones included.
    pub ids: Vec<u32>,
    /// Number of tokens that the model read before the answer, including those of clips.
    pub prompt_tokens: usize,
    /// Whether the model ended the answer itself, instead of reaching the limit of tokens.
    pub complete: bool,
}

/// A conversation. Each answer takes everything before it into account.
///
/// Weights are shared: one model serves many conversations.
#[derive(Debug)]
pub struct Chat {
    llm: Arc<VideoLlm>,
    context: Option<Context>,
    /// Tokens that were generated but not read yet.
    pending: Vec<u32>,
    noise: Noise,
    config: GenerationConfig,
}

impl Chat {
    /// Starts a conversation.
    pub fn new(llm: Arc<VideoLlm>, config: GenerationConfig) -> Self {
        Self {
            llm,
            context: None,
            pending: Vec::new(),
            noise: Noise::new(config.seed),
            config,
        }
    }

    /// Asks the first question, which shows something to the model
    /// ([`OpenLlm::question_prompt`](super::OpenLlm::question_prompt)).
    ///
    /// `features` are the tokens of the prompt's clips, `[clips, tokens, width]`. `on_text` receives the
    /// text that each token completes, and may stop the answer.
    ///
    /// # Errors
    /// If the conversation is too long, the features do not fit the prompt, an option is out of range, or a
    /// value is not finite; [`Error::Stopped`] if `on_text` stops it. The conversation does not change
    /// then.
    pub fn start(
        &mut self,
        prompt: &Prompt,
        features: Option<Tensor<3>>,
        on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer> {
        self.answer(prompt, features, on_text)
    }

    /// Asks a further question.
    ///
    /// # Errors
    /// If the question is empty, or those of [`start`](Self::start).
    pub fn ask(
        &mut self,
        question: &str,
        on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer> {
        let next = Prompt::follow_up(&self.llm.text, question)?;
        let prompt = Prompt {
            ids: self.pending.iter().copied().chain(next.ids).collect(),
            clips: Vec::new(),
        };
        self.answer(&prompt, None, on_text)
    }

    fn answer(
        &mut self,
        prompt: &Prompt,
        features: Option<Tensor<3>>,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer> {
        let llm = self.llm.clone();
        self.config.check()?;
        let mut context = match self.context.take() {
            Some(context) => context,
            None => llm.context(prompt, &self.config),
        };
        let before = context.len();
        let eos = llm.text.eos();
        let answered = llm
            .model
            .read(&mut context, prompt, features)
            .map_err(Error::from)
            .and_then(|()| {
                let sampling = &self.config.text;
                llm.say(
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
            // The next question starts with the end token.
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
