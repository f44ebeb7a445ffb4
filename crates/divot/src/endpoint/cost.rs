//! What a run costs.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::request::Piece;
use super::{Answer, Cache, Endpoint, EndpointError, Request, known};

/// Characters of a token, as a rule of thumb for English.
const CHARACTERS: u64 = 4;
/// Tokens around each message.
const AROUND_MESSAGE: u64 = 4;

/// Numbers of tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens that the model reads: texts and images.
    pub input: u64,
    /// Tokens that the model writes.
    pub output: u64,
}

impl Usage {
    pub(super) fn add(&mut self, other: Self) {
        self.input = self.input.saturating_add(other.input);
        self.output = self.output.saturating_add(other.output);
    }
}

/// Prices for a million tokens, in any currency.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Prices {
    /// For tokens that the model reads.
    pub input: f64,
    /// For tokens that the model writes.
    pub output: f64,
}

impl Prices {
    /// Returns the price of these tokens, in the currency of the prices.
    pub fn of(&self, usage: Usage) -> f64 {
        (usage.input as f64 * self.input + usage.output as f64 * self.output) / 1e6
    }
}

/// What a run will need.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Jobs in all.
    pub jobs: usize,
    /// Jobs that need no request: their answers are in the cache, or another job of the run is the same.
    pub cached: usize,
    /// Tokens of the others.
    pub usage: Usage,
}

impl Estimate {
    /// Adds what another run will need.
    pub fn add(&mut self, other: &Self) {
        self.jobs += other.jobs;
        self.cached += other.cached;
        self.usage.add(other.usage);
    }
}

/// Estimates the tokens of those jobs for which the cache has no answer of use ([`known`]).
///
/// - Text: a token for four characters, and four around each message.
/// - Images: as OpenAI counts them for GPT-4o. The image is made to fit 2048 × 2048 and then a shorter side of 768;
///   each tile of 512 × 512 that is begun has 170 tokens, and the image 85. A frame of 256 × 256 has 255. Models
///   differ widely here.
/// - Answers: the largest number that the requests allow, so it is too large rather than too small.
///
/// Requests that are sent again after an answer of no use come on top.
///
/// # Errors
/// If the cache cannot be read.
pub fn estimate<T>(
    endpoint: &Endpoint,
    cache: &Cache,
    jobs: impl IntoIterator<Item = Request>,
    read: impl Fn(&Answer) -> Result<T, String>,
) -> Result<Estimate, EndpointError> {
    let mut estimate = Estimate::default();
    let mut seen = HashSet::new();
    for request in jobs {
        estimate.jobs += 1;
        let is_new = seen.insert(request.encode(endpoint).key);
        if !is_new || known(endpoint, cache, &request, &read)?.is_some() {
            estimate.cached += 1;
        } else {
            estimate.usage.add(tokens(&request));
        }
    }
    Ok(estimate)
}

fn tokens(request: &Request) -> Usage {
    let text = |text: &str| (text.chars().count() as u64).div_ceil(CHARACTERS);
    let system = request
        .system
        .iter()
        .map(|system| text(system) + AROUND_MESSAGE);
    let user = request.user.iter().map(|piece| match piece {
        Piece::Text(it) => text(it),
        Piece::Image(image) => image_tokens(image.size()),
    });
    Usage {
        input: system.chain(user).sum::<u64>() + AROUND_MESSAGE,
        output: u64::from(request.max_tokens),
    }
}

fn image_tokens((width, height): (u32, u32)) -> u64 {
    let (width, height) = (f64::from(width.max(1)), f64::from(height.max(1)));
    let fit = (2048.0 / width.max(height)).min(1.0);
    let scale = fit * (768.0 / (fit * width.min(height))).min(1.0);
    let tiles = |side: f64| (side * scale / 512.0).ceil().max(1.0) as u64;
    85 + 170 * tiles(width) * tiles(height)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of OpenAI's guide, and a small frame.
    #[test]
    fn images_count_by_tiles() {
        assert_eq!(image_tokens((1024, 1024)), 765);
        assert_eq!(image_tokens((2048, 4096)), 1105);
        assert_eq!(image_tokens((256, 256)), 255);
        assert_eq!(image_tokens((512, 513)), 425);
    }

    #[test]
    fn text_is_a_token_for_four_characters() {
        let request = Request::new(50).system("é".repeat(8)).text("a".repeat(9));
        let expected = Usage {
            input: 2 + 4 + 3 + 4,
            output: 50,
        };
        assert_eq!(tokens(&request), expected);
        let prices = Prices {
            input: 2.0,
            output: 10.0,
        };
        let usage = Usage {
            input: 1_000_000,
            output: 500_000,
        };
        assert_eq!(prices.of(usage), 7.0);
    }
}
