//! The scores of the next token after each token of a text, as JSON, for `xtask/peer/load_llm.py`.
//!
//! ```sh
//! cargo run --release -p xtask --example scores -- MODEL PART TEXT > scores.json
//! ```
//!
//! Special tokens in the text are found by their names.

use anyhow::{Context, Result};
use burn::tensor::DType;
use divot::checkpoint::{Checkpoint, Part};
use divot::{OpenLlm, device};
use divot_llm::Layout;
use serde_json::json;

fn main() -> Result<()> {
    let usage = "usage: scores MODEL PART TEXT";
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().context(usage);
    let (model, part, text) = (next()?, next()?, next()?);
    let part = Part::from_name(&part)
        .filter(|part| part.is_llm())
        .context("PART is no language model")?;

    let mut checkpoint = Checkpoint::new(model, &device::select("cpu")?);
    let llm = OpenLlm::open(&checkpoint, part)?.load(&mut checkpoint, None)?;
    let ids = llm.text.encode_with_special(&text)?;
    let decoder = &llm.model.llm;
    let embeds = decoder.embed_ids(&ids, DType::F32);
    let hidden = decoder.forward(embeds, &Layout::causal(1, ids.len()), None);
    let scores: Vec<f32> = decoder.logits(hidden).into_data().iter().collect();
    println!("{}", json!({ "text": text, "ids": ids, "scores": scores }));
    Ok(())
}
