//! Every objective learns, and its loss does not depend on how a batch is divided.

mod common;

use burn::tensor::Device;
use common::{recipe, samples};
use divot_train::Trainer;

const RATE: &str = "rate = { peak = 3e-3, warmup = 0, decay = \"constant\" }";

fn head(objective: &str, frozen: &str) -> String {
    format!(
        "steps = 1000\nbatch = 4\nfrozen = {frozen}\n{RATE}\n\
         objective = {objective}\n[[data]]\nsource = {{ format = \"videos\", path = \"clips\" }}\n"
    )
}

fn diffusion() -> String {
    head(
        "{ kind = \"diffusion\", dropped = 0.1 }",
        "[\"tokenizer.vision\", \"detokenizer.vae\"]",
    )
}

/// The first and the last loss of `steps` steps on one batch with the same noise.
fn learn(head: &str, steps: usize) -> [f64; 2] {
    let recipe = recipe(head, &[]).expect("a valid recipe");
    let mut trainer = Trainer::new(&recipe, &Device::default()).expect("a model");
    let batch = samples(4, 32);
    let losses: Vec<f64> = (0..steps)
        .map(|_| {
            let report = trainer.step(0, 0, &batch).expect("a step");
            assert!(report.learned);
            report.loss
        })
        .collect();
    [losses[0], losses[steps - 1]]
}

#[test]
fn diffusion_learns() {
    let [first, last] = learn(&diffusion(), 20);
    assert!(last < first / 2.0, "{first} → {last}");
}

#[test]
fn the_autoencoder_learns() {
    let [first, last] = learn(&head("{ kind = \"autoencoder\" }", "[]"), 30);
    assert!(last < first / 2.0, "{first} → {last}");
}

#[test]
fn contrast_learns() {
    let [first, last] = learn(&head("{ kind = \"contrastive\" }", "[]"), 20);
    assert!(last < first / 2.0, "{first} → {last}");
}
