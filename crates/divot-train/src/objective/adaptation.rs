//! Adaptation of the de-tokenizer to the features that the language model draws (paper, section 3.3).

use divot::data::dataset::Sample;
use divot::gmm::SampleOptions;

use super::diffusion::{NoiseOptions, Noisy, ShowClips};
use super::stored::Seen;
use super::{Draws, Language, Objective, Prepared, Shown, Term};
use crate::error::Result;
use crate::model::{Model, Network};

/// The diffusion objective, conditioned on features that the frozen language model draws for the clip's
/// caption instead of the clip's own tokens. The tokenizer is frozen too: it gives the condition of a dropped
/// sample, and what an autoregressive language model reads.
pub struct Adaptation {
    /// How captions become rows: those of generation.
    pub language: Language,
    /// How features are drawn.
    pub features: SampleOptions,
    /// What is denoised.
    pub noise: NoiseOptions,
    /// γ of the Min-SNR weights, if they are used.
    pub min_snr_gamma: Option<f64>,
    /// How clips are made for a person to see.
    pub show: ShowClips,
}

impl Objective for Adaptation {
    fn networks(&self) -> Vec<Network> {
        vec![Network::Tokenizer, Network::Detokenizer, Network::Llm]
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
        source: usize,
        samples: &[Sample],
        draws: &Draws,
    ) -> Result<Prepared> {
        let (mut used, mut left_out) = (Vec::new(), Vec::new());
        for sample in samples {
            match self.language.misfit(source, sample) {
                None => used.push(sample.clone()),
                Some(problem) => left_out.push(problem),
            }
        }
        if used.is_empty() {
            return Ok(Prepared {
                counts: vec![0],
                left_out,
                losses: Box::new(|_| Vec::new()),
            });
        }
        let noisy = Noisy::draw(model, &used, draws, &self.noise)?;
        let rows: Vec<&Sample> = used.iter().collect();
        let noise = &mut draws.other(0);
        let drawn = self
            .language
            .draw(model, source, &rows, &self.features, noise)?;
        let mut tokens = Seen::Tokens(drawn.detach());
        if noisy.any_dropped {
            tokens = tokens.keep(&noisy.kept, model.tokenizer());
        }
        let tokens = tokens.tokens(model.tokenizer());
        let min_snr_gamma = self.min_snr_gamma;
        Ok(Prepared {
            counts: vec![noisy.count()],
            left_out,
            losses: Box::new(move |model| {
                let context = model.detokenizer().context(tokens).into();
                vec![noisy.loss(model, context, min_snr_gamma)]
            }),
        })
    }

    fn show(&self, model: &Model, source: usize, samples: &[Sample]) -> Result<Shown> {
        self.language
            .show_clips(model, source, samples, &self.show, &self.features)
    }
}
