//! Options of commands that may ask a language model behind an endpoint.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use divot::endpoint::{Cache, Endpoint, EndpointError, Estimate, Prices, Summary, Usage};
use serde_json::json;

use crate::interrupt;
use crate::output::{Output, count};

/// Tokens that a reasoning model may think for an answer.
const THINKING: u32 = 4000;

/// Whom to ask, how, and at what price.
#[derive(Args)]
#[command(next_help_heading = "Endpoint")]
pub struct EndpointOptions {
    /// Ask this model of an OpenAI-compatible endpoint; OPENAI_API_KEY holds the key
    #[arg(long, value_name = "NAME")]
    language_model: Option<String>,
    /// Address of the endpoint, such as http://localhost:8000/v1 [default: OPENAI_BASE_URL, or OpenAI's]
    #[arg(long, value_name = "URL", requires = "language_model")]
    endpoint: Option<String>,
    /// The model thinks before it answers: let it write 4000 tokens more for each answer
    #[arg(long, requires = "language_model")]
    reasoning: bool,
    /// Requests at a time
    #[arg(long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    parallel: u16,
    /// How often a request is sent again that failed
    #[arg(long, value_name = "COUNT", default_value_t = 5)]
    retries: u32,
    /// Seconds that a request may take
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// Price of a million tokens that the model reads; with --output-price, the estimate includes the price
    #[arg(long, value_name = "PRICE", requires_all = ["language_model", "output_price"], value_parser = price)]
    input_price: Option<f64>,
    /// Price of a million tokens that the model writes
    #[arg(long, value_name = "PRICE", requires_all = ["language_model", "input_price"], value_parser = price)]
    output_price: Option<f64>,
    /// Say how many tokens are needed and what they cost, and ask nothing
    #[arg(long, requires = "language_model")]
    dry_run: bool,
}

fn price(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(price) if price.is_finite() && price >= 0.0 => Ok(price),
        _ => Err("a price is a number from 0, such as 0.15".to_owned()),
    }
}

impl EndpointOptions {
    /// Returns the endpoint, if a language model is named.
    ///
    /// # Errors
    /// If the address or the key cannot be used.
    pub fn endpoint(&self) -> Result<Option<Endpoint>> {
        let Some(model) = &self.language_model else {
            return Ok(None);
        };
        let endpoint = Endpoint::from_lookup(model, |name| match (name, &self.endpoint) {
            ("OPENAI_BASE_URL", Some(address)) => Some(address.clone()),
            _ => std::env::var(name).ok(),
        })?;
        Ok(Some(
            endpoint
                .with_parallel(self.parallel.into())
                .with_timeout(Duration::from_secs(self.timeout))
                .with_retries(self.retries, Duration::from_secs(1))
                .with_completion_limit(self.reasoning),
        ))
    }

    /// Returns the tokens that the model may think for an answer.
    pub fn thinking(&self) -> u32 {
        match self.reasoning {
            true => THINKING,
            false => 0,
        }
    }

    /// Returns whether only the cost is asked for.
    pub fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Opens the cache of answers. Where only the cost is asked for, no file is made.
    ///
    /// # Errors
    /// If it is in use, or is no cache.
    pub fn cache(&self, path: &Path) -> Result<Cache> {
        if self.dry_run && !path.exists() {
            let folder = tempfile::tempdir()?;
            return Ok(Cache::open(folder.path().join("answers.jsonl"))?);
        }
        Ok(Cache::open(path)?)
    }

    fn prices(&self) -> Option<Prices> {
        Some(Prices {
            input: self.input_price?,
            output: self.output_price?,
        })
    }

    /// Says tokens and their price: `about 12.0 K tokens to read and 1.0 K to write, at most 0.03`.
    fn cost(&self, usage: Usage) -> String {
        let [input, output] = [usage.input, usage.output].map(|tokens| count(tokens as usize));
        let tokens = format!("about {input} tokens to read and at most {output} to write");
        match self.prices() {
            Some(prices) => format!("{tokens}, for {}", money(prices.of(usage))),
            None => tokens,
        }
    }

    /// Says what a run will cost. `what` are the things that are asked for: `30 captions`.
    pub fn tell(&self, what: &str, estimate: &Estimate, output: &mut Output) {
        let cached = match estimate.cached {
            0 => String::new(),
            cached => format!(" ({cached} of them without a request)"),
        };
        output.note(format!("{what}{cached}: {}", self.cost(estimate.usage)));
        output.set("estimate", self.json(estimate.usage));
    }

    /// Says what runs have cost.
    pub fn tell_spent(&self, spent: &Summary, output: &mut Output) {
        let [input, written] =
            [spent.usage.input, spent.usage.output].map(|tokens| count(tokens as usize));
        let price = match self.prices() {
            Some(prices) => format!(", {}", money(prices.of(spent.usage))),
            None => String::new(),
        };
        let uncounted = match spent.uncounted {
            0 => String::new(),
            replies => format!("; the endpoint counted no tokens in {replies} of its replies"),
        };
        output.remark(format!(
            "{} requests, {input} tokens read and {written} written{price}{uncounted}",
            spent.requests
        ));
        output.set("requests", spent.requests);
        output.set("usage", self.json(spent.usage));
    }

    fn json(&self, usage: Usage) -> serde_json::Value {
        json!({
            "input_tokens": usage.input,
            "output_tokens": usage.output,
            "price": self.prices().map(|prices| prices.of(usage)),
        })
    }
}

fn money(price: f64) -> String {
    match price < 0.1 {
        true => format!("{price:.4}"),
        false => format!("{price:.2}"),
    }
}

/// Returns whether Ctrl-C stopped the work.
pub fn is_stopped(error: &anyhow::Error) -> bool {
    let endpoint = error.downcast_ref::<EndpointError>();
    let stopped = matches!(endpoint, Some(EndpointError::Stopped));
    let error = error.downcast_ref::<divot::Error>();
    interrupt::interrupted() && (stopped || error.is_some_and(divot::Error::is_stopped))
}
