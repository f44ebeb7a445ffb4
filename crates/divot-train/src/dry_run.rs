//! What a run would do, without doing it.

use std::time::Instant;

use burn::tensor::Device;
use divot::peak_memory;

use crate::error::Result;
use crate::parameters::{Count, count};
use crate::recipe::Recipe;
use crate::run::{self, RunOptions};
use crate::trainer::{StepReport, Trainer};

/// What a run would train, on what, and what a step takes.
#[derive(Debug, Clone)]
pub struct DryRun {
    /// Sources, and how many samples were found in each.
    pub sources: Vec<(String, usize)>,
    /// Parameters by part.
    pub parameters: Vec<Count>,
    /// The first step, which changes no file.
    pub report: StepReport,
    /// Seconds of a step, the reading of its samples not counted.
    pub seconds: f64,
    /// Seconds that reading the samples of a step took.
    pub reading: f64,
    /// The most memory that the process had, in bytes, where the system tells.
    pub memory: Option<u64>,
}

/// Takes two steps of a recipe and measures the second. Nothing is written.
///
/// # Errors
/// Those of [`run`](crate::run()).
pub fn dry_run(recipe: &Recipe, device: &Device, options: &RunOptions) -> Result<DryRun> {
    let settings = &recipe.settings;
    let sources = run::sources(recipe, &settings.data)?;
    let found = sources
        .iter()
        .map(|source| (source.name.clone(), source.samples.len()))
        .collect();
    let mut trainer = Trainer::new(recipe, device)?;
    let parameters = count(trainer.model());
    let mut loader = run::loader(sources, settings.seed, 0, None, options)?;
    let mut measured = None;
    for step in 0..2 {
        let started = Instant::now();
        let Some(batch) = loader.next() else { break };
        let batch = batch?;
        let reading = started.elapsed().as_secs_f64();
        let started = Instant::now();
        let report = trainer.step(step, batch.source, &batch.samples)?;
        measured = Some((report, started.elapsed().as_secs_f64(), reading));
    }
    let (report, seconds, reading) = measured.expect("a loader never ends");
    Ok(DryRun {
        sources: found,
        parameters,
        report,
        seconds,
        reading,
        memory: peak_memory(),
    })
}
