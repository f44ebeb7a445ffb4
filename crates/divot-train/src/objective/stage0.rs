//! Stage 0: the UNet learns to make video from a text and an image, as DynamiCrafter does, but without the
//! image's latents beside the noise (paper, section 3.1.3; FACTS: "Where stage 0 starts").

use burn::tensor::{Int, Tensor};
use divot::data::dataset::Sample;
use divot::unet::Context;
use divot::vit::{BpeTokenizer, preprocess};

use super::batch;
use super::diffusion::{NoiseOptions, Noisy, ShowClips};
use super::stored::Clean;
use super::{Draws, Objective, Prepared, Shown, Term, captions, text_ids};
use crate::error::{Error, Result};
use crate::model::{Model, Network};

/// The context is 77 states of the text tower from its last but one block, and for each frame 16 tokens that
/// the image Perceiver reads off a random frame of the clip.
///
/// One number r is drawn for each sample. The text is replaced by the empty one where r is below twice
/// `dropped`, and the image by a mid-grey one where r is from once to three times `dropped`. The released
/// training has 0.05. The frame stride is the UNet's default, which is that of clips at 8 frames per second.
#[derive(Debug)]
pub struct Stage0 {
    text: BpeTokenizer,
    /// Share of the samples that lose their text only, of those that lose their image only, and of those that lose
    /// both.
    pub dropped: f64,
    /// γ of the Min-SNR weights, if they are used.
    pub min_snr_gamma: Option<f64>,
    /// How clips are made for a person to see.
    pub show: ShowClips,
}

impl Stage0 {
    /// Number of tokens of CLIP's vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.text.vocab_size()
    }

    /// The objective with CLIP's own text tokenizer.
    pub fn new(dropped: f64, min_snr_gamma: Option<f64>, show: ShowClips) -> Self {
        Self {
            text: BpeTokenizer::clip().expect("the vocabulary comes with the crate"),
            dropped,
            min_snr_gamma,
            show,
        }
    }

    /// Computes the context of texts and of as many images, each for a clip of so many frames.
    ///
    /// `images`: `[batch, 3, height, width]`, RGB in [-1, 1]. The tokens of the image are
    /// `[batch, frames, tokens, context_dim]`.
    pub fn context(
        &self,
        model: &Model,
        texts: &[&str],
        images: Tensor<4>,
        frames: usize,
    ) -> Context {
        let ids = text_ids(&self.text, model, texts, &images.device());
        context(model, ids, images, frames)
    }
}

impl Objective for Stage0 {
    fn networks(&self) -> Vec<Network> {
        vec![
            Network::Detokenizer,
            Network::Vision,
            Network::Text,
            Network::Image,
        ]
    }

    fn terms(&self) -> Vec<Term> {
        vec![Term {
            name: "diffusion",
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
        // Conditions are dropped here, text and image apart.
        let noisy = Noisy::draw(model, samples, draws, &NoiseOptions::default())?;
        let Clean::Frames(clips) = &noisy.clip else {
            let key = samples.first().map_or("", |sample| &sample.key);
            let problem = "was stored without its frames, one of which is the condition here";
            return Err(Error::run(
                key.as_ref(),
                problem,
                "give frames to this objective",
            ));
        };
        let clips = clips.clone();
        let frames = clips.dims()[2];
        let mut texts = captions(samples)?;
        let mut images = Vec::with_capacity(samples.len());
        for (index, text) in texts.iter_mut().enumerate() {
            let mut draw = draws.other(index);
            let (share, frame) = (draw.uniform(), (draw.uniform() * frames as f64) as usize);
            if share < 2.0 * self.dropped {
                *text = "";
            }
            let clip = clips.clone().narrow(0, index, 1);
            let image = clip.narrow(2, frame, 1).squeeze_dim::<4>(2);
            let dropped = (self.dropped..3.0 * self.dropped).contains(&share);
            images.push(match dropped {
                true => image.zeros_like(),
                false => image,
            });
        }
        let images: Tensor<4> = Tensor::cat(images, 0);
        let ids = text_ids(&self.text, model, &texts, &images.device());
        let min_snr_gamma = self.min_snr_gamma;
        Ok(Prepared {
            counts: vec![noisy.count()],
            left_out: Vec::new(),
            losses: Box::new(move |model: &Model| {
                let context = context(model, ids, images, frames);
                vec![noisy.loss(model, context, min_snr_gamma)]
            }),
        })
    }

    /// Makes clips of their captions and first frames.
    fn show(&self, model: &Model, _source: usize, samples: &[Sample]) -> Result<Shown> {
        let device = model.detokenizer().unet.conv_in.weight.device();
        self.show.clips(model, samples, None, |sample, frames| {
            let (text, image) = match sample {
                Some(sample) => {
                    let sample = std::slice::from_ref(sample);
                    let clip = batch::dense(sample, &device)?;
                    (captions(sample)?[0], clip.narrow(2, 0, 1).squeeze_dim(2))
                }
                None => {
                    let size = model.vision_size();
                    ("", Tensor::zeros([1, 3, size, size], &device))
                }
            };
            Ok(self.context(model, &[text], image, frames))
        })
    }
}

/// The context of texts, `[batch, tokens]`, and images, `[batch, 3, height, width]` in [-1, 1].
fn context(model: &Model, ids: Tensor<2, Int>, images: Tensor<4>, frames: usize) -> Context {
    let text = model.text().penultimate_states(ids, model.dtype);
    let images = preprocess(images, model.vision_size()).cast(model.dtype);
    let tokens = model.image().forward(model.vision().tokens(images));
    let [batch, count, width] = tokens.dims();
    Context::PerFrame {
        text,
        frames: tokens.reshape([batch, frames, count / frames, width]),
    }
}
