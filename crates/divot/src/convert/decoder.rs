//! The sizes of a decoder in its `config.json`, as `transformers` reads and writes it.

use std::path::Path;

use divot_llm::{MistralConfig, TextTokenizer};
use divot_nn::CheckSizes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// The sizes of a decoder.
#[derive(Deserialize, Serialize)]
pub(super) struct DecoderConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: Option<usize>,
    rope_theta: Option<f64>,
    #[serde(skip_serializing)]
    rope_scaling: Option<Value>,
    sliding_window: Option<usize>,
    rms_norm_eps: f64,
    max_position_embeddings: usize,
    hidden_act: Option<String>,
    tie_word_embeddings: Option<bool>,
}

impl DecoderConfig {
    /// Reads the sizes from a `config.json`.
    pub fn read(path: &Path) -> Result<MistralConfig> {
        let refused = |problem: String| {
            Error::config(
                path,
                problem,
                "give the folder of a Mistral decoder, with the config.json it was saved with",
            )
        };
        let text =
            std::fs::read(path).map_err(|error| refused(format!("cannot be read ({error})")))?;
        let config: Self = serde_json::from_slice(&text)
            .map_err(|error| refused(format!("does not give a decoder's sizes ({error})")))?;
        config.mistral().map_err(refused)
    }

    fn mistral(self) -> Result<MistralConfig, String> {
        if self.hidden_act.as_deref().unwrap_or("silu") != "silu" {
            return Err("has another activation than Mistral's silu".to_owned());
        }
        if self.tie_word_embeddings == Some(true) {
            return Err(
                "ties its output head to its embeddings, which Mistral does not".to_owned(),
            );
        }
        if self.rope_scaling.is_some_and(|scaling| !scaling.is_null()) {
            return Err("scales its rotary positions, which Mistral does not".to_owned());
        }
        let config = MistralConfig::new(
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.num_hidden_layers,
            self.num_attention_heads,
            self.num_key_value_heads,
        )
        .with_rope_theta(self.rope_theta.unwrap_or(10_000.0))
        .with_sliding_window(self.sliding_window)
        .with_rms_norm_eps(self.rms_norm_eps)
        .with_max_position_embeddings(self.max_position_embeddings);
        config
            .check_sizes()
            .map_err(|error| format!("describes an invalid configuration ({error})"))?;
        match self.head_dim {
            Some(head_dim) if head_dim != config.head_dim() => Err(format!(
                "has heads of {head_dim}, which are not hidden_size / num_attention_heads"
            )),
            _ => Ok(config),
        }
    }

    /// Returns the `config.json` of a decoder whose weights have elements of `dtype`, by PyTorch's name.
    pub fn json(config: &MistralConfig, text: &TextTokenizer, dtype: &str) -> String {
        let sizes = Self {
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: config.num_key_value_heads,
            head_dim: Some(config.head_dim()),
            rope_theta: Some(config.rope_theta),
            rope_scaling: None,
            sliding_window: config.sliding_window,
            rms_norm_eps: config.rms_norm_eps,
            max_position_embeddings: config.max_position_embeddings,
            hidden_act: Some("silu".to_owned()),
            tie_word_embeddings: Some(false),
        };
        let mut json = json!({
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "bos_token_id": text.bos(),
            "eos_token_id": text.eos(),
            "torch_dtype": dtype,
            "use_cache": true,
        });
        // Structs of numbers and texts always serialise.
        if let (Value::Object(json), Ok(Value::Object(sizes))) =
            (&mut json, serde_json::to_value(sizes))
        {
            json.extend(sizes);
        }
        format!("{json:#}")
    }
}
