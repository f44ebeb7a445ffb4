//! Diffusion, and a language model that reads the same tokens.

use divot::data::dataset::{Sample, Skip, Text};

use super::{Diffusion, Draws, Language, Objective, Prepared, Shown, Term};
use crate::error::Result;
use crate::model::{Model, Network};

/// The tokens of a clip are what the UNet rebuilds it from, and what a language model reads to tell its text. The paper
/// trains tokenizers by either alone (table 6). Diffusion keeps what a clip looks like, and is slow to learn what few
/// pixels decide; text asks for it, and lets tokens forget the rest.
///
/// Samples without text, or whose text does not fit, are denoised only, and the latter are reported. Of several clips,
/// the UNet rebuilds the first. Of a variational tokenizer, the language model reads the means.
pub struct Joint {
    /// What the UNet loses.
    pub diffusion: Diffusion,
    /// What the language model loses.
    pub language: Language,
}

impl Objective for Joint {
    fn networks(&self) -> Vec<Network> {
        vec![Network::Tokenizer, Network::Detokenizer, Network::Llm]
    }

    fn terms(&self) -> Vec<Term> {
        [self.diffusion.terms(), self.language.terms()].concat()
    }

    fn prepare(
        &self,
        model: &Model,
        source: usize,
        samples: &[Sample],
        draws: &Draws,
    ) -> Result<Prepared> {
        let diffusion = self.diffusion.prepare(model, source, samples, draws)?;
        // Phrases are drawn apart from timesteps.
        let draws = Draws {
            seed: !draws.seed,
            ..*draws
        };
        let language = self.language.prepare(model, source, samples, &draws)?;
        let texts = samples.iter().filter(|sample| sample.text != Text::None);
        let misfit = texts.filter_map(|sample| {
            let mut misfits = language.left_out.iter();
            let skip = misfits.find(|skip| skip.key == sample.key)?.clone();
            let message = format!(
                "its clip is denoised, and its text not learned: {}",
                skip.message
            );
            Some(Skip { message, ..skip })
        });
        Ok(Prepared {
            counts: [&diffusion.counts[..], &language.counts].concat(),
            left_out: misfit.collect(),
            losses: Box::new(move |model| {
                let mut sums = (diffusion.losses)(model);
                let terms = language.counts.len();
                sums.extend(match language.has_terms() {
                    true => (language.losses)(model),
                    false => vec![sums[0].zeros_like(); terms],
                });
                sums
            }),
        })
    }

    /// Shows clips and texts.
    fn show(&self, model: &Model, source: usize, samples: &[Sample]) -> Result<Shown> {
        let mut shown = self.diffusion.show(model, source, samples)?;
        shown.add(self.language.show(model, source, samples)?, 0);
        Ok(shown)
    }
}
