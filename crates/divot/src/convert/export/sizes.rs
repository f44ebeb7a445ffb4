//! The sizes of an exported model.

use divot_gmm::HeadConfig;
use divot_llm::{DivotLlmConfig, QueryMechanism};

use crate::checkpoint::{Checkpoint, Part};
use crate::convert::ReleasedConfig;
use crate::error::{Error, Result};

/// Returns the sizes of a model. Those of absent parts are the released ones, as far as they fit the others.
pub(super) fn sizes(
    checkpoint: &Checkpoint<'_>,
    networks: &[Part],
    llms: &[(Part, DivotLlmConfig)],
) -> Result<ReleasedConfig> {
    let model = checkpoint.folder();
    let never = |part: Part, what: &str| {
        Err(Error::config(
            &part.folder(model),
            format!("{what}, for which the released files have no form"),
            "export a model of the released kind",
        ))
    };
    let mut sizes = ReleasedConfig::divot();
    let mut token: Option<[usize; 2]> = None;
    for (part, config) in llms {
        let HeadConfig::Gmm(head) = &config.head else {
            return never(*part, "predicts features by another head than a mixture");
        };
        if config.query_mechanism != QueryMechanism::Bidirectional {
            return never(
                *part,
                "predicts features by queries that do not see each other",
            );
        }
        token.get_or_insert([config.num_queries, head.dim]);
    }
    let mut detokenizer = None;
    for &part in networks {
        match part {
            Part::Tokenizer => {
                sizes.tokenizer = checkpoint.config(part)?;
                let resampler = &sizes.tokenizer.resampler;
                if !resampler.perceiver {
                    return never(part, "has tokens that depend on the position of patches");
                }
                if resampler.variational {
                    return never(part, "is variational");
                }
            }
            Part::Clip => sizes.text = checkpoint.config(part)?,
            _ => {
                sizes.detokenizer = checkpoint.config(part)?;
                let json = serde_json::to_value(&sizes.detokenizer).unwrap_or_default();
                if detokenizer.get_or_insert(json.clone()) != &json {
                    return Err(Error::config(
                        &part.folder(model),
                        "has other sizes than the other de-tokenizer",
                        "export it from a folder of its own",
                    ));
                }
            }
        }
    }
    let has = |part| networks.contains(&part);
    if !has(Part::Tokenizer) {
        let resampler = &mut sizes.tokenizer.resampler;
        match token {
            Some(token) => [resampler.tokens, resampler.token_dim] = token,
            None => resampler.token_dim = sizes.detokenizer.resampler.input_dim,
        }
    }
    if detokenizer.is_none() {
        sizes.detokenizer.resampler.input_dim = sizes.tokenizer.resampler.token_dim;
    }
    match (has(Part::Tokenizer), has(Part::Clip)) {
        (true, false) => sizes.text.embed_dim = sizes.tokenizer.vision.embed_dim,
        (false, true) => sizes.tokenizer.vision.embed_dim = sizes.text.embed_dim,
        _ => {}
    }
    Ok(sizes)
}
