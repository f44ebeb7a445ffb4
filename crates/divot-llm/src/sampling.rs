//! Selection of the next token by the decoder's scores.

use burn::config::Config;
use divot_nn::Noise;

use crate::error::LlmError;

/// Options of text generation. The defaults are the released settings.
#[derive(Config, Debug)]
pub struct TextSampling {
    /// Maximum number of new tokens.
    #[config(default = 256)]
    pub max_new_tokens: usize,
    /// Divisor of the scores. With 0, decoding is greedy and takes the highest score.
    #[config(default = 0.7)]
    pub temperature: f64,
    /// Number of highest scores to sample from. 0 means all. The released code uses its library's default.
    #[config(default = 50)]
    pub top_k: usize,
    /// Total probability of the most likely tokens to sample from.
    #[config(default = 0.5)]
    pub top_p: f64,
    /// Number of beams. With more than 1, a beam search is used, which has no randomness.
    #[config(default = 1)]
    pub beams: usize,
}

impl TextSampling {
    /// Options that always take the highest score.
    pub fn greedy() -> Self {
        Self::new().with_temperature(0.0)
    }

    /// Checks the ranges of all options.
    ///
    /// # Errors
    /// The first option that is out of range.
    pub fn check(&self) -> Result<(), LlmError> {
        let refuse = |option, value, remedy| {
            Err(LlmError::Option {
                option,
                value,
                remedy,
            })
        };
        if !(0.0..=100.0).contains(&self.temperature) {
            return refuse("temperature", self.temperature, "0 (greedy) to 100");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse("top_p", self.top_p, "above 0 and up to 1");
        }
        if !(1..=64).contains(&self.beams) {
            return refuse("beams", self.beams as f64, "1 to 64");
        }
        if self.max_new_tokens == 0 {
            return refuse("max_new_tokens", 0.0, "at least 1");
        }
        Ok(())
    }

    /// Selects a token by its score: temperature, then top-k, then top-p, then sampling.
    pub(crate) fn choose(&self, scores: &[f32], noise: &mut Noise) -> u32 {
        if self.temperature == 0.0 {
            return highest(scores);
        }
        let mut candidates: Vec<u32> = (0..scores.len() as u32).collect();
        let by_score = |a: &u32, b: &u32| {
            scores[*b as usize]
                .total_cmp(&scores[*a as usize])
                .then(a.cmp(b))
        };
        if (1..candidates.len()).contains(&self.top_k) {
            candidates.select_nth_unstable_by(self.top_k - 1, by_score);
            candidates.truncate(self.top_k);
        }
        candidates.sort_unstable_by(by_score);

        let top = scores[candidates[0] as usize];
        let weights: Vec<f64> = candidates
            .iter()
            .map(|&id| (f64::from(scores[id as usize] - top) / self.temperature).exp())
            .collect();
        // A token is kept if the more likely tokens have a total below top_p.
        let enough = self.top_p * weights.iter().sum::<f64>();
        let mut mass = 0.0;
        let kept = weights
            .iter()
            .take_while(|&&weight| {
                let stays = mass < enough;
                mass += weight;
                stays
            })
            .count();
        let total: f64 = weights[..kept].iter().sum();
        let mut left = noise.uniform() * total;
        let drawn = weights[..kept].iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        // Because of rounding, the drawn number may exceed the sum of the weights.
        candidates[drawn.unwrap_or(kept - 1)]
    }
}

/// Returns the first index of the highest score.
pub(crate) fn highest(scores: &[f32]) -> u32 {
    let mut best = 0;
    for (id, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = id;
        }
    }
    best as u32
}

/// The rule that keeps the tokens of a clip in order.
///
/// After `<frame>` and after each frame token, the next token of the clip gets the highest score.
/// Elsewhere the scores of all of these tokens except `<frame>` are set to 0, as in the released code.
#[derive(Debug, Clone)]
pub struct FrameOrder {
    ids: Vec<u32>,
}

impl FrameOrder {
    /// Creates the rule from the ids of `<frame>`, the frame tokens and `</frame>`, in this order.
    pub fn new(ids: Vec<u32>) -> Self {
        Self { ids }
    }

    /// Changes the scores of the token after `last`.
    pub fn apply(&self, last: u32, scores: &mut [f32]) {
        let place = self.ids.iter().position(|&id| id == last);
        match place.and_then(|place| self.ids.get(place + 1)) {
            Some(&next) => {
                let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                scores[next as usize] = highest + 10.0;
            }
            None => {
                for &id in &self.ids[1..] {
                    scores[id as usize] = 0.0;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(sampling: &TextSampling, scores: &[f32], draws: usize) -> Vec<f64> {
        let mut noise = Noise::new(1);
        let mut counts = vec![0.0; scores.len()];
        for _ in 0..draws {
            counts[sampling.choose(scores, &mut noise) as usize] += 1.0 / draws as f64;
        }
        counts
    }

    fn assert_near(found: &[f64], expected: &[f64], draws: usize) {
        for (found, p) in found.iter().zip(expected) {
            let error = 4.0 * (p * (1.0 - p) / draws as f64).sqrt() + 1e-9;
            assert!((found - p).abs() <= error, "{found} is not {p} ± {error}");
        }
    }

    /// Scores whose softmax is [0.4, 0.1, 0.2, 0.3].
    fn scores() -> Vec<f32> {
        [0.4f32, 0.1, 0.2, 0.3].map(f32::ln).to_vec()
    }

    fn open() -> TextSampling {
        TextSampling::new()
            .with_temperature(1.0)
            .with_top_k(0)
            .with_top_p(1.0)
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let found = frequencies(&open(), &scores(), 20_000);
        assert_near(&found, &[0.4, 0.1, 0.2, 0.3], 20_000);
    }

    #[test]
    fn temperature_sharpens() {
        let squares = [0.16, 0.01, 0.04, 0.09].map(|p| p / 0.3);
        let found = frequencies(&open().with_temperature(0.5), &scores(), 20_000);
        assert_near(&found, &squares, 20_000);
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let two = [0.4 / 0.7, 0.0, 0.0, 0.3 / 0.7];
        assert_near(
            &frequencies(&open().with_top_k(2), &scores(), 20_000),
            &two,
            20_000,
        );
        // 0.4 is less than 0.5, so the second token stays. With it, 0.5 is exceeded without the third.
        assert_near(
            &frequencies(&open().with_top_p(0.5), &scores(), 20_000),
            &two,
            20_000,
        );
        let one = [1.0, 0.0, 0.0, 0.0];
        assert_near(
            &frequencies(&open().with_top_p(1e-9), &scores(), 100),
            &one,
            100,
        );
    }

    #[test]
    fn greedy_takes_the_first_of_the_highest() {
        let scores = [1.0, 3.0, 3.0, -1.0];
        assert_eq!(
            TextSampling::greedy().choose(&scores, &mut Noise::new(0)),
            1
        );
    }

    #[test]
    fn frames_come_in_order() {
        let order = FrameOrder::new(vec![5, 2, 7, 1]);
        let after = |last| {
            let mut scores = vec![1.0; 8];
            order.apply(last, &mut scores);
            scores
        };
        assert_eq!(highest(&after(5)), 2);
        assert_eq!(highest(&after(2)), 7);
        assert_eq!(highest(&after(7)), 1);
        // After the end and in text, only a new frame may start.
        for last in [1, 0] {
            assert_eq!(after(last), [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
        }
    }

    #[test]
    fn options_out_of_range_are_refused() {
        for sampling in [
            open().with_temperature(f64::NAN),
            open().with_temperature(-1.0),
            open().with_top_p(0.0),
            open().with_top_p(1.5),
            open().with_beams(0),
            open().with_max_new_tokens(0),
        ] {
            assert!(sampling.check().is_err(), "{sampling:?}");
        }
        assert!(TextSampling::new().check().is_ok());
    }
}
