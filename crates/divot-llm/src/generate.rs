//! Text, token by token.

use std::ops::ControlFlow;

use burn::tensor::{Int, Tensor, TensorData};
use divot_nn::Noise;

use crate::cache::KvCache;
use crate::error::LlmError;
use crate::mask::Role;
use crate::mistral::Mistral;
use crate::sampling::{FrameOrder, TextSampling};

/// Positions of a prompt that go through the decoder at once: bounds the memory of long ones.
const CHUNK: usize = 512;

/// Why a text ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// This token was generated, of those to stop at.
    Token(u32),
    /// As many tokens as were allowed, or as the window has room for.
    Length,
    /// The caller wanted no more.
    Caller,
}

/// Generated tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// Their ids, with the one that ended it.
    pub ids: Vec<u32>,
    /// Why there are no more.
    pub end: FinishReason,
}

/// What a prompt left behind, to be continued: keys and values, and the last hidden state.
#[derive(Debug)]
pub struct Context {
    cache: KvCache,
    /// Hidden state of the last position, `[1, 1, hidden]`.
    hidden: Option<Tensor<3>>,
    /// The last token.
    last: u32,
}

impl Context {
    /// Nothing yet; room is made for `positions` at first.
    pub fn new(model: &Mistral, positions: usize) -> Self {
        Self {
            cache: KvCache::new(model.layers.len(), positions),
            hidden: None,
            last: 0,
        }
    }

    /// Positions so far.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Whether there is nothing yet.
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    /// Positions that there is memory for.
    pub fn capacity(&self) -> usize {
        self.cache.capacity()
    }

    /// Forgets all but the first `len` positions, and all but one of a search's beams. What comes next
    /// must be read before text can be generated.
    pub fn truncate(&mut self, len: usize) {
        self.cache.select(&[0]);
        self.cache.truncate(len);
        self.hidden = None;
    }

    /// Reads tokens: `embeds` are `[1, tokens, hidden]`, `last` is the last one's id.
    pub fn read(&mut self, model: &Mistral, embeds: Tensor<3>, last: u32) {
        let tokens = embeds.dims()[1];
        for start in (0..tokens).step_by(CHUNK) {
            let chunk = CHUNK.min(tokens - start);
            let hidden = model.forward(
                embeds.clone().narrow(1, start, chunk),
                &[vec![Role::Causal; chunk]],
                Some(&mut self.cache),
            );
            self.hidden = Some(hidden.narrow(1, chunk - 1, 1));
        }
        self.last = last;
    }

    /// Reads positions with roles of their own and returns their hidden states, `[1, tokens, hidden]`.
    pub fn read_with(&mut self, model: &Mistral, embeds: Tensor<3>, roles: Vec<Role>) -> Tensor<3> {
        self.hidden = None;
        model.forward(embeds, &[roles], Some(&mut self.cache))
    }

    /// Hidden state after the last position that was read, `[1, 1, hidden]`.
    pub fn hidden(&self) -> Option<&Tensor<3>> {
        self.hidden.as_ref()
    }
}

/// How [`Mistral::generate`] chooses and when it stops.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// How a token is chosen.
    pub sampling: &'a TextSampling,
    /// Tokens that end the text.
    pub stop: &'a [u32],
    /// Keeps frame tokens in order.
    pub order: Option<&'a FrameOrder>,
    /// Positions that the model has.
    pub window: usize,
}

impl Mistral {
    /// Continues a context. Its last token is read when there is more to come: it is not part of the
    /// context yet.
    ///
    /// `on_token` is told about each token and may stop; those of a beam search come all at the end.
    ///
    /// # Errors
    /// If an option is out of range, the context leaves no room, or a score is no number.
    ///
    /// # Panics
    /// If nothing was read into the context.
    pub fn generate(
        &self,
        context: &mut Context,
        rules: Rules<'_>,
        noise: &mut Noise,
        mut on_token: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generated, LlmError> {
        rules.sampling.check()?;
        let room = rules.window.saturating_sub(context.len());
        if room == 0 {
            return Err(LlmError::TooLong {
                tokens: context.len(),
                window: rules.window,
            });
        }
        let most = rules.sampling.max_new_tokens.min(room);
        if rules.sampling.beams > 1 {
            let mut generated = self.beam_search(context, rules, most)?;
            for &id in &generated.ids {
                if on_token(id).is_break() {
                    generated.end = FinishReason::Caller;
                    break;
                }
            }
            return Ok(generated);
        }
        let mut ids = Vec::new();
        loop {
            let mut scores = self.scores(context.hidden.clone())?.remove(0);
            if let Some(order) = rules.order {
                order.apply(context.last, &mut scores);
            }
            let id = rules.sampling.choose(&scores, noise);
            ids.push(id);
            let end = if on_token(id).is_break() {
                Some(FinishReason::Caller)
            } else if rules.stop.contains(&id) {
                Some(FinishReason::Token(id))
            } else if ids.len() == most {
                Some(FinishReason::Length)
            } else {
                None
            };
            if let Some(end) = end {
                return Ok(Generated { ids, end });
            }
            context.read(self, self.embed_ids(&[id]), id);
        }
    }

    /// Embeds one row of ids: `[1, tokens, hidden]`.
    pub fn embed_ids(&self, ids: &[u32]) -> Tensor<3> {
        let data = TensorData::new(ids.iter().map(|&id| id as i32).collect(), [1, ids.len()]);
        let device = self.norm.gamma.device();
        self.embed(Tensor::<2, Int>::from_data(data, &device))
    }

    /// Scores of the next token of each row.
    fn scores(&self, hidden: Option<Tensor<3>>) -> Result<Vec<Vec<f32>>, LlmError> {
        let hidden = hidden.expect("something was read before");
        let logits = self.logits(hidden);
        let vocabulary = logits.dims()[2];
        let scores: Vec<f32> = logits.into_data().iter().collect();
        if !scores.iter().all(|score| score.is_finite()) {
            return Err(LlmError::NotFinite(self.norm.gamma.val().dtype().name()));
        }
        Ok(scores
            .chunks_exact(vocabulary)
            .map(<[f32]>::to_vec)
            .collect())
    }

    /// The text of the highest mean log-probability that a search with a few beams finds.
    fn beam_search(
        &self,
        context: &mut Context,
        rules: Rules<'_>,
        most: usize,
    ) -> Result<Generated, LlmError> {
        struct Beam {
            ids: Vec<u32>,
            score: f64,
        }
        let beams = rules.sampling.beams;
        let start = context.len();
        let mean = |score: f64, ids: &[u32]| score / ids.len() as f64;

        let mut alive = vec![Beam {
            ids: Vec::new(),
            score: 0.0,
        }];
        let mut finished: Vec<(f64, Generated)> = Vec::new();
        let mut hidden = context.hidden.clone();
        for length in 1..=most {
            let mut next: Vec<(usize, u32, f64)> = Vec::new();
            for (row, (beam, mut scores)) in
                alive.iter().zip(self.scores(hidden.take())?).enumerate()
            {
                if let Some(order) = rules.order {
                    order.apply(
                        beam.ids.last().copied().unwrap_or(context.last),
                        &mut scores,
                    );
                }
                let total = log_sum_exp(&scores);
                next.extend(
                    scores.iter().enumerate().map(|(id, score)| {
                        (row, id as u32, beam.score + f64::from(*score) - total)
                    }),
                );
            }
            // As many as there can be beams that end here and beams that go on.
            let wanted = (2 * beams).min(next.len());
            next.select_nth_unstable_by(wanted - 1, |a, b| b.2.total_cmp(&a.2));
            next.truncate(wanted);
            next.sort_by(|a, b| b.2.total_cmp(&a.2));

            let mut rows = Vec::new();
            let mut going = Vec::new();
            for (rank, (row, id, score)) in next.into_iter().enumerate() {
                let mut ids = alive[row].ids.clone();
                ids.push(id);
                if rules.stop.contains(&id) {
                    if rank < beams {
                        let end = FinishReason::Token(id);
                        finished.push((mean(score, &ids), Generated { ids, end }));
                    }
                } else if going.len() < beams {
                    rows.push(row);
                    going.push(Beam { ids, score });
                }
            }
            alive = going;
            finished.sort_by(|a, b| b.0.total_cmp(&a.0));
            finished.truncate(beams);
            let hopeless = finished.len() == beams
                && alive
                    .iter()
                    .all(|beam| mean(beam.score, &beam.ids) <= finished[beams - 1].0);
            if alive.is_empty() || hopeless || length == most {
                break;
            }
            context.cache.select(&rows);
            let last: Vec<i32> = alive
                .iter()
                .map(|beam| beam.ids[length - 1] as i32)
                .collect();
            let data = TensorData::new(last, [alive.len(), 1]);
            let device = self.norm.gamma.device();
            let embeds = self.embed(Tensor::<2, Int>::from_data(data, &device));
            let roles = vec![vec![Role::Causal]; alive.len()];
            hidden = Some(self.forward(embeds, &roles, Some(&mut context.cache)));
        }
        // Beams that go on count as long as none of those that ended is better.
        finished.extend(alive.into_iter().map(|beam| {
            let end = FinishReason::Length;
            (
                mean(beam.score, &beam.ids),
                Generated { ids: beam.ids, end },
            )
        }));
        let best = finished
            .into_iter()
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, generated)| generated)
            .unwrap_or(Generated {
                ids: Vec::new(),
                end: FinishReason::Length,
            });

        // One row again, which has read what the best beam says.
        context.truncate(start);
        if let [read @ .., _] = &best.ids[..]
            && let Some(&last) = read.last()
        {
            context.read(self, self.embed_ids(read), last);
        }
        Ok(best)
    }
}

fn log_sum_exp(scores: &[f32]) -> f64 {
    let top = f64::from(scores.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = scores.iter().map(|&s| (f64::from(s) - top).exp()).sum();
    top + sum.ln()
}
