//! The objectives of the language model: next word, and the features of clips (paper, sections 3.2 and 3.3).

use burn::tensor::{DType, Tensor};
use divot::Noise;
use divot::data::dataset::{self, Sample, Text};
use divot::language::{
    Batch, LlmError, Medium, Sequence, SequenceBuilder, Shown as Clips, SpecialTokens,
    TextTokenizer, Turn,
};

use super::instructions::{IMAGE_CAPTIONS, IMAGES, VIDEO_CAPTIONS, VIDEOS};
use super::stored::Seen;
use super::{Draws, Objective, Prepared, Shown, Term};
use crate::error::{Error, Result};
use crate::model::{Model, Network};

/// What is learned from the samples of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LanguageTask {
    /// Whether clips are read or predicted. Turns are always answered, and stories always told.
    pub kind: TaskKind,
    /// Whether rows begin with an instruction, one of several phrasings at random.
    pub instructions: bool,
    /// Largest number of tokens of a row.
    pub max_length: usize,
}

/// Whether clips are read or predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskKind {
    /// Clips are read, and the text is learned.
    Comprehension,
    /// The text is read, and the clip is learned.
    Generation,
}

/// The language model learns texts by cross-entropy and clips by the loss of its head.
///
/// With a frozen tokenizer this is pre-training and tuning. With a frozen language model it trains a
/// tokenizer by the captions of its clips (paper, table 6).
pub struct Language {
    /// The text tokenizer.
    pub text: TextTokenizer,
    /// The tokens that mark video in text.
    pub tokens: SpecialTokens,
    /// What is learned from each source, in their order.
    pub tasks: Vec<LanguageTask>,
    /// What the cross-entropy counts for.
    pub text_weight: f64,
    /// What the head's loss counts for.
    pub head_weight: f64,
}

impl Language {
    /// Whether a sample has a row that predicts one clip.
    pub(super) fn fits(&self, source: usize, sample: &Sample) -> bool {
        let row = self.row(self.tasks[source], sample, &mut Noise::new(0));
        row.is_ok_and(|row| row.outputs.len() == self.tokens.features.len())
    }

    /// The rows of samples, with the features of their clips.
    pub(super) fn batch(
        &self,
        model: &Model,
        source: usize,
        samples: &[&Sample],
        noise: &mut Noise,
    ) -> Result<Batch> {
        let rows = samples
            .iter()
            .map(|sample| self.row(self.tasks[source], sample, noise))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| Error::Model(error.into()))?;
        let clips: Vec<usize> = samples.iter().map(|sample| sample.clip_count()).collect();
        let device = model.llm().llm.norm.gamma.device();
        let features = Seen::all(samples, &device)?.tokens_by_clip(model.tokenizer());
        Ok(with_features(rows, &clips, &features))
    }

    /// The row of a sample.
    fn row(
        &self,
        task: LanguageTask,
        sample: &Sample,
        noise: &mut Noise,
    ) -> Result<Sequence, LlmError> {
        let builder = SequenceBuilder {
            text: &self.text,
            tokens: &self.tokens,
            max_length: task.max_length,
        };
        let (medium, clips) = match sample.medium {
            dataset::Medium::Video => (Medium::Video, Clips::Video(sample.clip_count())),
            dataset::Medium::Image => (Medium::Image, Clips::Image),
        };
        let mut one_of = |phrases: &[&'static str]| {
            let number = (noise.uniform() * phrases.len() as f64) as usize;
            task.instructions.then(|| phrases[number])
        };
        match (&sample.text, task.kind) {
            (Text::None, _) => Err(LlmError::Empty("caption")),
            (Text::Caption(caption), TaskKind::Comprehension) => {
                let instruction = one_of(match medium {
                    Medium::Video => &VIDEO_CAPTIONS,
                    Medium::Image => &IMAGE_CAPTIONS,
                });
                builder.caption(clips, instruction, caption)
            }
            (Text::Caption(caption), TaskKind::Generation) => {
                let instruction = one_of(match medium {
                    Medium::Video => &VIDEOS,
                    Medium::Image => &IMAGES,
                });
                builder.generation(medium, instruction, caption)
            }
            (Text::Turns(turns), _) => {
                let turns: Vec<Turn<'_>> = turns
                    .iter()
                    .map(|turn| Turn {
                        question: &turn.question,
                        answer: &turn.answer,
                    })
                    .collect();
                builder.answers(clips, &turns)
            }
            (
                Text::Story {
                    instruction,
                    scenes,
                    ending,
                },
                _,
            ) => {
                let scenes: Vec<&str> = scenes.iter().map(String::as_str).collect();
                builder.story(instruction.as_deref(), &scenes, ending)
            }
        }
    }
}

impl Objective for Language {
    fn networks(&self) -> Vec<Network> {
        vec![Network::Tokenizer, Network::Llm]
    }

    fn terms(&self) -> Vec<Term> {
        let term = |name, weight| Term { name, weight };
        vec![
            term("text", self.text_weight),
            term("head", self.head_weight),
        ]
    }

    fn prepare(
        &self,
        model: &Model,
        source: usize,
        samples: &[Sample],
        draws: &Draws,
    ) -> Result<Prepared> {
        let device = model.llm().llm.norm.gamma.device();
        let mut rows = Vec::new();
        let mut used = Vec::new();
        for (index, sample) in samples.iter().enumerate() {
            match self.row(self.tasks[source], sample, &mut draws.of(index)) {
                Ok(row) => {
                    rows.push(row);
                    used.push(sample);
                }
                // A sample that does not fit is left out, as released.
                Err(LlmError::RowTooLong { .. } | LlmError::Empty(_)) => {}
                Err(error) => return Err(Error::Model(error.into())),
            }
        }
        let left_out = samples.len() - rows.len();
        let learned = rows
            .iter()
            .flat_map(|row| row.labels.iter().skip(1).flatten());
        let features = rows.iter().map(|row| row.outputs.len());
        let counts = vec![learned.count(), features.sum()];
        let seen = Seen::all(&used, &device)?;
        let clips: Vec<usize> = used.iter().map(|sample| sample.clip_count()).collect();
        // For a head that adds noise itself.
        let mut noise = draws.other(0);
        Ok(Prepared {
            counts,
            left_out,
            losses: Box::new(move |model: &Model| {
                let features = seen.tokens_by_clip(model.tokenizer());
                let batch = with_features(rows, &clips, &features);
                let losses = model.llm().forward(&batch, DType::F32, &mut noise);
                vec![losses.lm.sum, losses.head.sum]
            }),
        })
    }

    /// Measures nothing beside the losses: texts and clips are made by the exported model.
    fn show(&self, _model: &Model, _samples: &[Sample]) -> Result<Shown> {
        Ok(Shown::default())
    }
}

/// Rows with the features that they read and predict. `clips` says how many each row has.
fn with_features(rows: Vec<Sequence>, clips: &[usize], features: &Tensor<3>) -> Batch {
    Batch {
        inputs: select(&rows, clips, features, |row| !row.inputs.is_empty()),
        targets: select(&rows, clips, features, |row| !row.outputs.is_empty()),
        sequences: rows,
    }
}

/// Features of the clips of those rows that are `wanted`, or `None` if there are no such rows.
fn select(
    rows: &[Sequence],
    clips: &[usize],
    features: &Tensor<3>,
    wanted: impl Fn(&Sequence) -> bool,
) -> Option<Tensor<3>> {
    let mut found = Vec::new();
    let mut start = 0;
    for (row, &count) in rows.iter().zip(clips) {
        if wanted(row) {
            found.push(features.clone().narrow(0, start, count));
        }
        start += count;
    }
    (!found.is_empty()).then(|| Tensor::cat(found, 0))
}
