//! The objectives of the language model: next word, and the features of clips (paper, sections 3.2 and 3.3).

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use divot::Noise;
use divot::data::dataset::{self, Reason, Sample, Skip, Text};
use divot::gmm::{SampleOptions, TokenHead};
use divot::language::{
    Batch, Context, LlmError, Medium, Prompt, Rules, Sequence, SequenceBuilder, Shown as Clips,
    SpecialTokens, TextSampling, TextTokenizer, Turn,
};

use super::diffusion::ShowClips;
use super::instructions::{IMAGE_CAPTIONS, IMAGES, VIDEO_CAPTIONS, VIDEOS};
use super::stored::Seen;
use super::{Draws, Objective, Prepared, Shown, Term};
use crate::error::{Error, Result};
use crate::model::{Model, Network};

/// What is learned from the samples of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LanguageTask {
    /// Whether clips are read or predicted. Turns are always answered, stories always told, and texts continued.
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
    /// Whether a source has clips. Texts alone need no tokenizer.
    pub reads_clips: bool,
    /// What the cross-entropy counts for.
    pub text_weight: f64,
    /// What the head's loss counts for.
    pub head_weight: f64,
    /// How the clips of captions are made for a person to see, if the model has a de-tokenizer for it.
    pub show: Option<ShowClips>,
}

impl Language {
    /// Draws features of the clips that rows predict, `[clips, tokens, width]`.
    pub(super) fn draw(
        &self,
        model: &Model,
        source: usize,
        samples: &[&Sample],
        options: &SampleOptions,
        noise: &mut Noise,
    ) -> Result<Tensor<3>> {
        let batch = self.batch(model, source, samples, noise)?;
        let llm = model.llm();
        let params = llm.head_params(llm.hidden(&batch, model.dtype), &batch);
        let params = params.expect("the rows predict clips");
        Ok(llm.head.sample(params, options, noise))
    }

    /// Makes the first clip that the row of each sample predicts, if it predicts any.
    pub(super) fn show_clips(
        &self,
        model: &Model,
        source: usize,
        samples: &[Sample],
        show: &ShowClips,
        options: &SampleOptions,
    ) -> Result<Shown> {
        let predicts = |sample: &&Sample| {
            let row = self.row(self.tasks[source], sample, &mut Noise::new(0));
            row.is_ok_and(|row| !row.outputs.is_empty())
        };
        let fitting: Vec<Sample> = samples.iter().filter(predicts).cloned().collect();
        show.tokens(model, &fitting, None, |sample| {
            let clips = self.draw(model, source, &[sample], options, &mut Noise::new(0))?;
            Ok(clips.narrow(0, 0, 1))
        })
    }

    /// Why a sample has no row that predicts one clip, if it has none.
    pub(super) fn misfit(&self, source: usize, sample: &Sample) -> Option<Skip> {
        let problem = match self.row(self.tasks[source], sample, &mut Noise::new(0)) {
            Ok(row) if row.outputs.len() == self.tokens.features.len() => return None,
            Ok(_) => "its row does not predict one clip".to_owned(),
            Err(error) => error.to_string(),
        };
        Some(misfit(sample, problem))
    }

    /// The rows of samples, with the features of their clips.
    fn batch(
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
            (Text::Plain(text), _) => builder.plain(text),
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

/// Tokens of a text that is shown, at most.
const SHOWN_TOKENS: usize = 64;

impl Objective for Language {
    fn networks(&self) -> Vec<Network> {
        let mut networks = vec![Network::Llm];
        if self.reads_clips {
            networks.push(Network::Tokenizer);
        }
        if self.show.is_some() {
            networks.push(Network::Detokenizer);
        }
        networks
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
        let mut left_out = Vec::new();
        for (index, sample) in samples.iter().enumerate() {
            match self.row(self.tasks[source], sample, &mut draws.of(index)) {
                Ok(row) => {
                    rows.push(row);
                    used.push(sample);
                }
                // A sample that does not fit is left out, as released.
                Err(error @ (LlmError::RowTooLong { .. } | LlmError::Empty(_))) => {
                    left_out.push(misfit(sample, error.to_string()));
                }
                Err(error) => return Err(Error::Model(error.into())),
            }
        }
        let clips: Vec<usize> = used.iter().map(|sample| sample.clip_count()).collect();
        let seen = match clips.iter().sum() {
            0 => None,
            _ => Some(Seen::all(&used, &device)?),
        };
        let features = move |model: &Model| {
            let seen = seen.expect("asked for where there are clips");
            seen.tokens_by_clip(model.tokenizer())
        };
        Ok(Prepared {
            left_out,
            ..Self::prepared(rows, clips, features, draws.other(0))
        })
    }

    /// Lets the model continue each row where its learned text begins, and make the clips of captions, and the
    /// first ones of stories, if it has a de-tokenizer.
    fn show(&self, model: &Model, source: usize, samples: &[Sample]) -> Result<Shown> {
        let mut shown = Shown::default();
        for sample in samples {
            let Ok(row) = self.row(self.tasks[source], sample, &mut Noise::new(0)) else {
                continue;
            };
            let Some(first) = row.labels.iter().position(Option::is_some) else {
                continue;
            };
            let (given, learned) = (&row.ids[..first], row.labels[first..].iter());
            let expected: Vec<u32> = learned.map_while(|label| *label).collect();
            let clips = row.inputs.chunks(self.tokens.features.len());
            let clips = clips.map(|clip| clip[0]).filter(|&start| start < first);
            let prompt = Prompt {
                ids: given.to_vec(),
                clips: clips.collect(),
            };
            let made = self.continued(model, &prompt, sample)?;
            let [given, expected, made] = [given, &expected, &made].map(|ids| self.decoded(ids));
            let [given, expected, made] = [given?, expected?, made?];
            shown.texts.push((
                sample.key.to_string(),
                format!("given: {given}\nlearned: {expected}\nmade: {made}"),
            ));
        }
        if let Some(show) = &self.show {
            let options = SampleOptions::new();
            match self.show_clips(model, source, samples, show, &options) {
                // A caption has many right clips, so that their distance from one of them tells nothing.
                Ok(clips) => (shown.samples, shown.clips) = (clips.samples, clips.clips),
                // The texts are shown nevertheless.
                Err(error) => shown.texts.push(("clips".to_owned(), error.to_string())),
            }
        }
        Ok(shown)
    }
}

impl Language {
    /// What [`prepare`](Objective::prepare) returns for rows. `clips` says how many clips each has, `features`
    /// gives the tokens of all of them if there are any, `[clips, tokens, width]`, and `noise` is for a head that
    /// adds noise itself.
    pub fn prepared(
        rows: Vec<Sequence>,
        clips: Vec<usize>,
        features: impl FnOnce(&Model) -> Tensor<3> + Send + 'static,
        mut noise: Noise,
    ) -> Prepared {
        let learned = rows
            .iter()
            .flat_map(|row| row.labels.iter().skip(1).flatten());
        let predicted = rows.iter().map(|row| row.outputs.len());
        let counts = vec![learned.count(), predicted.sum()];
        Prepared {
            counts,
            left_out: Vec::new(),
            losses: Box::new(move |model: &Model| {
                let batch = match clips.iter().sum() {
                    0 => texts(rows),
                    _ => with_features(rows, &clips, &features(model)),
                };
                let losses = model.llm().forward(&batch, model.dtype, &mut noise);
                vec![losses.lm.sum, losses.head.sum]
            }),
        }
    }

    /// The tokens with the highest scores after a prompt, which shows the sample's first clips.
    fn continued(&self, model: &Model, prompt: &Prompt, sample: &Sample) -> Result<Vec<u32>> {
        let llm = model.llm();
        let device = llm.llm.norm.gamma.device();
        let features = match prompt.clips.len() {
            0 => None,
            count => {
                let seen = Seen::all(&[sample], &device)?;
                Some(seen.tokens_by_clip(model.tokenizer()).narrow(0, 0, count))
            }
        };
        let sampling = TextSampling::greedy().with_max_new_tokens(SHOWN_TOKENS);
        let order = self.tokens.order();
        let rules = Rules {
            sampling: &sampling,
            stop: &[self.text.eos(), self.tokens.video],
            order: Some(&order),
            window: llm.window(),
        };
        let positions = (prompt.ids.len() + SHOWN_TOKENS).min(llm.window());
        let mut context = Context::new(&llm.llm, positions, model.dtype);
        let failed = |error: LlmError| Error::Model(error.into());
        llm.read(&mut context, prompt, features).map_err(failed)?;
        let made = llm
            .llm
            .generate(&mut context, rules, &mut Noise::new(0), |_| {
                ControlFlow::Continue(())
            })
            .map_err(failed)?;
        Ok(made.ids)
    }

    /// The text of tokens, without the special ones.
    fn decoded(&self, ids: &[u32]) -> Result<String> {
        let text = self.text.decode(ids, true);
        text.map_err(|error| Error::Model(LlmError::from(error).into()))
    }
}

/// A sample that does not fit, and why.
fn misfit(sample: &Sample, problem: String) -> Skip {
    Skip {
        key: sample.key.clone(),
        reason: Reason::DoesNotFit,
        message: problem,
    }
}

/// Rows without clips.
fn texts(rows: Vec<Sequence>) -> Batch {
    Batch {
        inputs: None,
        targets: None,
        sequences: rows,
    }
}

/// Rows with the features that they read and predict. `clips` says how many each row has.
fn with_features(rows: Vec<Sequence>, clips: &[usize], features: &Tensor<3>) -> Batch {
    Batch {
        inputs: select(&rows, clips, features, |row| &row.inputs),
        targets: select(&rows, clips, features, |row| &row.outputs),
        sequences: rows,
    }
}

/// Features of the clips that rows have at these `places`: of a clip, as many as it has tokens. Of a sample of several
/// clips, a row may have the first ones only. `None` if no row has any.
fn select(
    rows: &[Sequence],
    clips: &[usize],
    features: &Tensor<3>,
    places: impl Fn(&Sequence) -> &[usize],
) -> Option<Tensor<3>> {
    let mut found = Vec::new();
    let mut start = 0;
    for (row, &count) in rows.iter().zip(clips) {
        let had = places(row).len() / features.dims()[1];
        if had > 0 {
            found.push(features.clone().narrow(0, start, had));
        }
        start += count;
    }
    (!found.is_empty()).then(|| Tensor::cat(found, 0))
}
