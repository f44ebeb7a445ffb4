//! Text generation, token by token.

use std::ops::ControlFlow;

use burn::tensor::{DType, Int, Tensor, TensorData};
use divot_nn::{Noise, Stopped};

use crate::cache::KvCache;
use crate::error::LlmError;
use crate::layout::Layout;
use crate::mistral::Mistral;
use crate::sampling::{FrameOrder, TextSampling};

/// Number of positions of a prompt that are read at once. It limits the memory for a long prompt.
const CHUNK: usize = 512;

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// This stop token was generated.
    Token(u32),
    /// The limit on new tokens or the model's window was reached.
    Length,
}

/// Generated tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The ids, including the stop token.
    pub ids: Vec<u32>,
    /// Why generation ended.
    pub end: FinishReason,
}

/// The state of a decoder after the tokens it has read: keys, values and the last hidden state.
#[derive(Debug)]
pub struct Context {
    cache: KvCache,
    /// The type that the decoder computes in.
    dtype: DType,
    /// Hidden state of the last position, `[1, 1, hidden]`.
    hidden: Option<Tensor<3>>,
    /// The last token.
    last: u32,
}

impl Context {
    /// Creates an empty context with room for `positions`. It grows when needed.
    ///
    /// The decoder computes in `dtype`, whatever type its weights have.
    pub fn new(model: &Mistral, positions: usize, dtype: DType) -> Self {
        Self {
            cache: KvCache::new(model.layers.len(), positions),
            dtype,
            hidden: None,
            last: 0,
        }
    }

    /// Remembers keys and values in this type ([`KvCache::with_dtype`]).
    pub fn with_cache_dtype(mut self, dtype: DType) -> Self {
        self.cache = self.cache.with_dtype(dtype);
        self
    }

    /// Returns the type that the decoder computes in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Returns the number of positions that were read.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Returns whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    /// Returns the number of positions that fit before the cache grows.
    pub fn capacity(&self) -> usize {
        self.cache.capacity()
    }

    /// Removes all positions except the first `len`, and all beams of a search except the first. Something
    /// must be read before text can be generated again.
    pub fn truncate(&mut self, len: usize) {
        self.cache.select(&[0]);
        self.cache.truncate(len);
        self.hidden = None;
    }

    /// Reads tokens. `embeds` are `[1, tokens, hidden]`, in the context's type. `last` is the id of the
    /// last token.
    pub fn read(&mut self, model: &Mistral, embeds: Tensor<3>, last: u32) {
        let tokens = embeds.dims()[1];
        for start in (0..tokens).step_by(CHUNK) {
            let chunk = CHUNK.min(tokens - start);
            let hidden = model.forward(
                embeds.clone().narrow(1, start, chunk),
                &Layout::causal(1, chunk),
                Some(&mut self.cache),
            );
            self.hidden = Some(hidden.narrow(1, chunk - 1, 1));
        }
        self.last = last;
    }

    /// Reads tokens with the given layout and returns their hidden states, `[1, tokens, hidden]`.
    pub fn read_with(&mut self, model: &Mistral, embeds: Tensor<3>, layout: &Layout) -> Tensor<3> {
        self.hidden = None;
        model.forward(embeds, layout, Some(&mut self.cache))
    }

    /// Returns the hidden state of the last position that was read, `[1, 1, hidden]`.
    pub fn hidden(&self) -> Option<&Tensor<3>> {
        self.hidden.as_ref()
    }
}

/// How [`Mistral::generate`] selects tokens, and when it stops.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// How tokens are selected.
    pub sampling: &'a TextSampling,
    /// Tokens that end the text.
    pub stop: &'a [u32],
    /// The rule that keeps frame tokens in order.
    pub order: Option<&'a FrameOrder>,
    /// Number of positions of the model.
    pub window: usize,
}

impl Mistral {
    /// Continues a context with text. The last generated token is not read into the context.
    ///
    /// `on_token` receives each token and may stop the generation. A beam search calls it at the end.
    ///
    /// # Errors
    /// If an option is out of range, the context leaves no room, or a score is NaN.
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
            let generated = self.beam_search(context, rules, most)?;
            for &id in &generated.ids {
                if on_token(id).is_break() {
                    return Err(Stopped.into());
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
            if on_token(id).is_break() {
                return Err(Stopped.into());
            }
            let end = if rules.stop.contains(&id) {
                Some(FinishReason::Token(id))
            } else if ids.len() == most {
                Some(FinishReason::Length)
            } else {
                None
            };
            if let Some(end) = end {
                return Ok(Generated { ids, end });
            }
            context.read(self, self.embed_ids(&[id], context.dtype), id);
        }
    }

    /// Computes the scores of the next token of each row.
    fn scores(&self, hidden: Option<Tensor<3>>) -> Result<Vec<Vec<f32>>, LlmError> {
        let hidden = hidden.expect("something was read before");
        let dtype = hidden.dtype();
        let logits = self.logits(hidden);
        let vocabulary = logits.dims()[2];
        let scores: Vec<f32> = logits.into_data().iter().collect();
        if !scores.iter().all(|score| score.is_finite()) {
            return Err(LlmError::NotFinite(dtype.name()));
        }
        Ok(scores
            .chunks_exact(vocabulary)
            .map(<[f32]>::to_vec)
            .collect())
    }

    /// Returns the text with the highest mean log-probability that a beam search finds.
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
            // Enough for all beams that may end here and all that may continue.
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
            let embeds = self.embed(Tensor::<2, Int>::from_data(data, &device), context.dtype);
            let layout = Layout::causal(alive.len(), 1);
            hidden = Some(self.forward(embeds, &layout, Some(&mut context.cache)));
        }
        // Beams that the limit cut off compete with those that ended.
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

        // Return to one row, and read the best beam.
        context.truncate(start);
        if let [read @ .., _] = &best.ids[..]
            && let Some(&last) = read.last()
        {
            context.read(self, self.embed_ids(read, context.dtype), last);
        }
        Ok(best)
    }
}

fn log_sum_exp(scores: &[f32]) -> f64 {
    let top = f64::from(scores.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = scores.iter().map(|&s| (f64::from(s) - top).exp()).sum();
    top + sum.ln()
}
