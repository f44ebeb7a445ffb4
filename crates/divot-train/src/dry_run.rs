//! What a run would do, without doing it.

use std::time::Instant;

use burn::tensor::Device;
use divot::peak_device_memory;

use crate::error::Result;
use crate::model::Model;
use crate::parameters::{Count, bytes, count};
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
    /// Memory that the parameters and what learns them take, in bytes.
    pub learning: Learning,
    /// The most memory that was taken of the device, in bytes, where it tells. What it exceeds `learning` by are
    /// activations, and on the CPU the program and the samples.
    pub memory: Option<u64>,
}

/// Memory of a model that learns, in bytes, without activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Learning {
    /// All parameters, in the types that they are kept in.
    pub parameters: u64,
    /// A gradient for each trained parameter.
    pub gradients: u64,
    /// Two moments of each.
    pub moments: u64,
    /// The moving average of each, if there is one.
    pub average: u64,
}

impl Learning {
    fn of(model: &Model, average: bool) -> Self {
        let (parameters, trained) = bytes(model);
        Self {
            parameters,
            gradients: trained,
            moments: 2 * trained,
            average: if average { trained } else { 0 },
        }
    }

    /// All of it.
    pub fn sum(&self) -> u64 {
        self.parameters + self.gradients + self.moments + self.average
    }
}

/// Takes two steps of a recipe and measures the second. Nothing is written.
///
/// # Errors
/// Those of [`run`](crate::run()).
pub fn dry_run(recipe: &Recipe, device: &Device, options: &RunOptions) -> Result<DryRun> {
    let settings = &recipe.settings;
    let sources = run::sources(recipe, &settings.data, 1)?;
    let found = sources
        .iter()
        .map(|source| (source.name.clone(), source.samples.len()))
        .collect();
    let mut trainer = Trainer::new(recipe, device)?;
    let parameters = count(trainer.model());
    let learning = Learning::of(trainer.model(), settings.average.is_some());
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
        learning,
        memory: peak_device_memory(device),
    })
}
