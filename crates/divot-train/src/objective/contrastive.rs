//! CLIP's objective, for models that do not start from OpenCLIP.

use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor};
use divot::data::dataset::Sample;
use divot::vit::{BpeTokenizer, normalize, preprocess};

use super::{Draws, Objective, Prepared, Shown, Term, captions, dense, text_ids};
use crate::error::Result;
use crate::model::{Model, Network};

/// The largest scale of the scores, as in CLIP.
const MAX_SCALE: f64 = 100.0;

/// Each image is to be told from the other images of its batch by its text, and each text by its image
/// ("Learning Transferable Visual Models From Natural Language Supervision", arXiv:2103.00020, figure 3).
///
/// The image is a random frame of the clip.
#[derive(Debug)]
pub struct Contrastive {
    text: BpeTokenizer,
}

impl Contrastive {
    /// Number of tokens of CLIP's vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.text.vocab_size()
    }

    /// The objective with CLIP's own text tokenizer.
    pub fn new() -> Self {
        Self {
            text: BpeTokenizer::clip().expect("the vocabulary comes with the crate"),
        }
    }

    /// Images, `[batch, 3, height, width]` in [-1, 1], and the ids of their texts, `[batch, tokens]`.
    fn pairs(
        &self,
        model: &Model,
        samples: &[Sample],
        frame: impl Fn(usize, usize) -> usize,
    ) -> Result<(Tensor<4>, Tensor<2, Int>)> {
        let device = model.vision().class_embedding.device();
        let clips = dense(samples, &device)?;
        let frames = clips.dims()[2];
        let images = clips.split(1, 0).into_iter().enumerate();
        let images = images
            .map(|(index, clip)| {
                let frame = clip.narrow(2, frame(index, frames), 1);
                frame.squeeze_dim::<4>(2)
            })
            .collect();
        let images: Tensor<4> = Tensor::cat(images, 0);

        let ids = text_ids(&self.text, model, &captions(samples)?, &device);
        Ok((images, ids))
    }
}

impl Default for Contrastive {
    fn default() -> Self {
        Self::new()
    }
}

/// Scores of every image, `[batch, batch]`, with every text, before they are scaled.
fn scores(model: &Model, images: Tensor<4>, ids: Tensor<2, Int>) -> Tensor<2> {
    let side = model.vision_size();
    let images = preprocess(images, side).cast(model.dtype);
    let images = model.vision().image_features(images);
    let texts = model.text().text_features(ids, model.dtype);
    let [images, texts] = [images, texts].map(|features| normalize(features.cast(DType::F32)));
    images.matmul(texts.transpose())
}

impl Objective for Contrastive {
    fn networks(&self) -> Vec<Network> {
        vec![Network::Vision, Network::Text]
    }

    fn terms(&self) -> Vec<Term> {
        vec![Term {
            name: "contrastive",
            weight: 1.0,
        }]
    }

    fn prepare(
        &self,
        model: &Model,
        _source: usize,
        samples: &[Sample],
        draws: &Draws,
    ) -> Result<Prepared> {
        let frame = |index, frames| (draws.of(index).uniform() * frames as f64) as usize;
        let (images, ids) = self.pairs(model, samples, frame)?;
        let count = samples.len();
        Ok(Prepared {
            counts: vec![count],
            left_out: Vec::new(),
            losses: Box::new(move |model: &Model| {
                let scale = model.text().logit_scale.val().exp().clamp_max(MAX_SCALE);
                let scores = scores(model, images, ids) * scale.unsqueeze::<2>();
                let right: Tensor<2> = Tensor::eye(count, &scores.device());
                let by_image = log_softmax(scores.clone(), 1) * right.clone();
                let by_text = log_softmax(scores, 0) * right;
                vec![(by_image + by_text).sum() * -0.5]
            }),
        })
    }

    /// Measures how many images of the batch have the highest score with their own text.
    fn show(&self, model: &Model, _source: usize, samples: &[Sample]) -> Result<Shown> {
        let (images, ids) = self.pairs(model, samples, |_, _| 0)?;
        let best = scores(model, images, ids).argmax(1).into_data();
        let right = best.iter::<i64>().enumerate();
        let right = right.filter(|&(index, best)| index as i64 == best).count();
        let share = right as f64 / samples.len().max(1) as f64;
        Ok(Shown {
            numbers: vec![("retrieval", share)],
            ..Shown::default()
        })
    }
}
