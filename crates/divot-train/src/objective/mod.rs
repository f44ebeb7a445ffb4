//! Objectives: what a stage of training makes smaller.

mod adaptation;
mod autoencoder;
mod batch;
mod contrastive;
mod diffusion;
mod instructions;
mod joint;
mod language;
mod stage0;
mod stored;

use burn::tensor::{Device, Int, Tensor, TensorData};
use divot::Noise;
use divot::data::Frame;
use divot::data::dataset::{Sample, Skip, Text};
use divot::vit::BpeTokenizer;

use crate::error::{Error, Result};
use crate::model::{Model, Network};

pub use adaptation::Adaptation;
pub use autoencoder::{Autoencoder, PixelError};
pub(crate) use batch::stack;
pub use batch::{dense, sparse};
pub use contrastive::Contrastive;
pub use diffusion::{Diffusion, NoiseOptions, Noisy, ShowClips};
pub use instructions::instructions;
pub use joint::Joint;
pub use language::{Language, LanguageTask, TaskKind};
pub use stage0::Stage0;
pub use stored::{Clean, Seen};
pub(crate) use stored::{LOGVAR, MEAN, PATCHES, TOKENS};

/// A term of the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Term {
    /// Its name in the log.
    pub name: &'static str,
    /// What it counts for in the sum.
    pub weight: f64,
}

/// Sums of the loss's terms, each `[1]` in f32, with the gradients.
pub type Sums = Vec<Tensor<1>>;

/// A micro-batch that is ready to be learned from.
pub struct Prepared {
    /// How many numbers each term sums over. Known before the sums, so that micro-batches average rightly.
    pub counts: Vec<usize>,
    /// The samples that do not fit the objective, and why.
    pub left_out: Vec<Skip>,
    /// Computes the terms' sums. Not called if all samples are left out.
    pub losses: Box<dyn FnOnce(&Model) -> Sums + Send>,
}

impl Prepared {
    /// Whether there is anything to learn from.
    pub fn has_terms(&self) -> bool {
        self.counts.iter().any(|&count| count > 0)
    }
}

/// What a stage of training makes smaller.
///
/// All that is random comes from [`Draws`], which know the step and the sample's place in the batch. So a
/// loss is the same however a run was interrupted, and that of most objectives however its batch is divided: only
/// adaptation and heads that add noise draw it for a micro-batch.
pub trait Objective {
    /// The networks that take part.
    fn networks(&self) -> Vec<Network>;

    /// The terms of the loss.
    fn terms(&self) -> Vec<Term>;

    /// Moves samples of a source to the model's device and draws what is random.
    ///
    /// # Errors
    /// If the samples do not fit the objective.
    fn prepare(
        &self,
        model: &Model,
        source: usize,
        samples: &[Sample],
        draws: &Draws,
    ) -> Result<Prepared>;

    /// What is done to the model that was `learned` after the last step, and to its moving average. It is measured with
    /// `model`, on the samples of that step. Most objectives leave the model as it is.
    ///
    /// # Errors
    /// If the samples do not fit the objective.
    fn finish(
        &self,
        _learned: &Model,
        _model: &Model,
        _samples: &[Sample],
    ) -> Result<Option<Finish>> {
        Ok(None)
    }

    /// Lets the model do what it learns, with samples of a source that are shown to a person.
    ///
    /// # Errors
    /// If the samples do not fit the objective.
    fn show(&self, model: &Model, source: usize, samples: &[Sample]) -> Result<Shown>;
}

/// A change of a model.
pub type Finish = Box<dyn Fn(Model) -> Model>;

/// What a model made of some samples.
#[derive(Debug, Default)]
pub struct Shown {
    /// Rows of a contact sheet, of each sample: what was given, if there is such a thing, over what was made.
    pub samples: Vec<Vec<Vec<Frame>>>,
    /// Whether each row is a clip, and not a frame of each of several samples.
    pub clips: bool,
    /// Measurements, by name.
    pub numbers: Vec<(&'static str, f64)>,
    /// Texts, by name.
    pub texts: Vec<(String, String)>,
}

impl Shown {
    /// Adds what was made of samples of another source. Texts of all but the first are named after it, and a number
    /// that is there stays.
    pub(crate) fn add(&mut self, more: Self, source: usize) {
        self.samples.extend(more.samples);
        self.clips |= more.clips;
        for (name, number) in more.numbers {
            if self.numbers.iter().all(|(known, _)| *known != name) {
                self.numbers.push((name, number));
            }
        }
        let texts = more.texts.into_iter();
        self.texts.extend(texts.map(|(name, text)| match source {
            0 => (name, text),
            source => (format!("{name}, source {source}"), text),
        }));
    }
}

/// Sources of randomness for the samples of a step: functions of the seed, the step and the sample's place
/// in the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draws {
    /// Seed of the run.
    pub seed: u64,
    /// The step, or what stands for one.
    pub step: u64,
    /// Place of the first sample in the batch of all micro-batches and ranks.
    pub first: u64,
}

impl Draws {
    /// Draws of the `index`-th sample of the micro-batch.
    pub fn of(&self, index: usize) -> Noise {
        Noise::keyed([self.seed, self.step, self.first + index as u64, 0])
    }

    /// More draws of it, for another use.
    pub fn other(&self, index: usize) -> Noise {
        Noise::keyed([self.seed, self.step, self.first + index as u64, 1])
    }
}

/// The ids of texts for the model's text tower, `[texts, context_length]`.
fn text_ids(
    tokenizer: &BpeTokenizer,
    model: &Model,
    texts: &[&str],
    device: &Device,
) -> Tensor<2, Int> {
    let length = model.text().positional_embedding.dims()[0];
    let ids = tokenizer.encode_batch(texts, length);
    let ids = ids.expect("the context length was checked with the sizes");
    let data = TensorData::new(ids.concat(), [texts.len(), length]);
    Tensor::from_data(data, device)
}

/// The captions of samples.
///
/// # Errors
/// If a sample has none.
fn captions(samples: &[Sample]) -> Result<Vec<&str>> {
    let captions = samples.iter().map(|sample| match &sample.text {
        Text::Caption(text) => Ok(text.as_str()),
        _ => Err(Error::run(
            sample.key.as_ref(),
            "has no caption",
            "give sources of captions to this objective",
        )),
    });
    captions.collect()
}
