//! The same question about many videos.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use divot_data::Video;
use divot_llm::Shown;

use super::{Clips, Event, Observer, Pipeline, Stage, go_on, stage, tokenize};
use crate::error::Result;
use crate::{Answer, Chat, GenerationConfig, OpenLlm, Task, Tokenizer};

/// Videos whose tokens are in memory at a time, between the tokenizer and the language model.
const AT_A_TIME: usize = 256;

impl Pipeline {
    /// Checks that [`describe_each`](Self::describe_each) has its networks. No weights are loaded.
    ///
    /// # Errors
    /// If the model has no tokenizer or language model, they do not fit, or the question is empty.
    pub fn check_describe(&self, question: &str, config: &GenerationConfig) -> Result<()> {
        config.check()?;
        let llm = OpenLlm::best(&self.checkpoint(), Task::Comprehension)?;
        self.check_features(&llm)?;
        llm.question_prompt(Shown::Video(1), question).map(drop)
    }

    /// Asks the same question about each of many videos, as [`describe`](Self::describe) does about one, in clips of two
    /// seconds, 20 at most. Networks are loaded once for 256 videos.
    ///
    /// `each` gets the number of a video and the answer, and may stop the work.
    ///
    /// # Errors
    /// Those of [`describe`](Self::describe). Answers before it were handed over.
    pub fn describe_each(
        &self,
        videos: &[impl AsRef<Path>],
        question: &str,
        config: &GenerationConfig,
        observer: &mut Observer<'_>,
        each: &mut dyn FnMut(usize, Answer) -> ControlFlow<()>,
    ) -> Result<()> {
        config.check()?;
        for (group, videos) in videos.chunks(AT_A_TIME).enumerate() {
            let llm = OpenLlm::best(&self.checkpoint(), Task::Comprehension)?;
            self.check_features(&llm)?;
            let tokenizer = self.load(observer, |checkpoint| Ok(Tokenizer::load(checkpoint)?.0))?;
            let mut shown = Vec::with_capacity(videos.len());
            for video in videos {
                let video = Video::open(video)?;
                let tokens = stage(Stage::Tokenizer, observer, |observer| {
                    tokenize(&tokenizer, &video, Clips::AtMost(20), observer)
                })?;
                let prompt = llm.question_prompt(Shown::Video(tokens.dims()[0]), question)?;
                shown.push((prompt, tokens));
            }
            drop(tokenizer);

            let llm = Arc::new(self.load_llm(llm, observer)?);
            for (number, (prompt, tokens)) in shown.into_iter().enumerate() {
                let answer = stage(Stage::LanguageModel, observer, |observer| {
                    let mut chat = Chat::new(llm.clone(), config.clone());
                    chat.start(&prompt, Some(tokens), |text| observer(Event::Text(text)))
                })?;
                go_on(each(group * AT_A_TIME + number, answer))?;
            }
        }
        Ok(())
    }
}
