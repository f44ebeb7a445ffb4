//! What a run would do, without doing it.

use std::time::Instant;

use burn::tensor::{DType, Device};
use divot::data::dataset::MixedSource;
use divot::device::is_cpu;
use divot::{available_memory, peak_device_memory};

use crate::error::{Error, Result};
use crate::parameters::{Count, count, freeze};
use crate::recipe::{Recipe, Settings};
use crate::run::{self, RunOptions};
use crate::trainer::{StepReport, Trainer};

/// What a run would train.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Parameters by part.
    pub parameters: Vec<Count>,
    /// Memory that the parameters and what learns them take.
    pub learning: Learning,
}

/// What a step of a run takes, and on what data.
#[derive(Debug, Clone)]
pub struct DryRun {
    /// A step with each source.
    pub sources: Vec<SourceRun>,
    /// Seconds of a step, the reading of its samples not counted: the mean over sources by their weights.
    pub seconds: f64,
    /// Seconds that a step waited for its samples, as such a mean.
    pub reading: f64,
    /// The most memory that was taken of the device, in bytes, where it tells. What it exceeds [`Plan::learning`] by are
    /// activations, and on the CPU the program and the samples.
    pub memory: Option<u64>,
}

/// A step with samples of one source.
#[derive(Debug, Clone)]
pub struct SourceRun {
    /// Its name.
    pub name: String,
    /// How many samples were found in it.
    pub samples: usize,
    /// How many of its files, records and lines were passed over, and why the first was.
    pub passed_over: (usize, Option<String>),
    /// The step, which changes no file.
    pub report: StepReport,
    /// Seconds of the step, the reading of its samples not counted.
    pub seconds: f64,
    /// Seconds that reading its samples took.
    pub reading: f64,
}

/// Memory of a model that learns, in bytes, without activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Learning {
    /// All parameters, in the types that they are kept in.
    pub parameters: u64,
    /// A gradient for each trained parameter and each micro-batch that is computed at the same time, and their sum where
    /// there are more.
    pub gradients: u64,
    /// Two moments of each.
    pub moments: u64,
    /// The moving average of each, if there is one.
    pub average: u64,
}

impl Learning {
    fn of(settings: &Settings, parameters: &[Count], device: &Device, ranks: usize) -> Self {
        let sum =
            |numbers: fn(&Count) -> usize| parameters.iter().map(numbers).sum::<usize>() as u64;
        let (all, trained) = (sum(|part| part.all), sum(|part| part.trained));
        let size = |dtype: DType| dtype.size() as u64;
        let trained_bytes = trained * size(DType::F32);
        let batches = settings.data.iter();
        let batches = batches.map(|data| data.batch.unwrap_or(settings.batch));
        let most = batches.max().unwrap_or(settings.batch);
        let micro_batches = most.div_ceil(ranks).div_ceil(settings.micro_batch());
        let at_once = if is_cpu(device) { settings.at_once } else { 1 };
        let gradients = match micro_batches <= at_once {
            true => micro_batches,
            false => 1 + at_once,
        };
        Self {
            parameters: trained_bytes + (all - trained) * size(settings.precision.frozen(device)),
            gradients: gradients as u64 * trained_bytes,
            moments: 2 * trained_bytes,
            average: match settings.average {
                Some(_) => trained_bytes,
                None => 0,
            },
        }
    }

    /// All of it.
    pub fn sum(&self) -> u64 {
        self.parameters + self.gradients + self.moments + self.average
    }
}

impl Plan {
    /// Checks that what is planned fits in the memory of the CPU, without activations. Otherwise the system would end
    /// the process without a message. The optimiser's moments may be divided among ranks, of which so many `processes` share
    /// the memory.
    ///
    /// # Errors
    /// If it does not fit.
    pub fn check_memory(&self, device: &Device, moments_of: usize, processes: usize) -> Result<()> {
        let (true, Some(available)) = (is_cpu(device), available_memory()) else {
            return Ok(());
        };
        let moments = self.learning.moments;
        let needed = self.learning.sum() - moments + moments / moments_of.max(1) as u64;
        let needed = needed * processes as u64;
        match needed <= available {
            true => Ok(()),
            false => Err(Error::Memory { needed, available }),
        }
    }
}

/// Counts what a recipe trains on so many ranks, without its weights: no memory is taken for them.
///
/// # Errors
/// If the recipe's objective does not fit its model.
pub fn plan(recipe: &Recipe, device: &Device, ranks: usize) -> Result<Plan> {
    let objective = recipe.objective()?;
    let device = device.clone().autodiff();
    let model = recipe.model.init(&objective.networks(), &device);
    let parameters = count(&freeze(model, &recipe.settings.frozen));
    Ok(Plan {
        learning: Learning::of(&recipe.settings, &parameters, &device, ranks),
        parameters,
    })
}

/// Takes two steps of a recipe with each source, and measures the second. Nothing is written.
///
/// # Errors
/// Those of [`run`](crate::run()).
pub fn dry_run(recipe: &Recipe, device: &Device, options: &RunOptions) -> Result<DryRun> {
    let settings = &recipe.settings;
    let sources = run::sources(recipe, &settings.data, 1)?;
    plan(recipe, device, 1)?.check_memory(device, 1, 1)?;
    let mut trainer = Trainer::new(recipe, device)?;
    let mut found = Vec::new();
    let (mut seconds, mut reading, mut weights) = (0.0, 0.0, 0.0);
    for (index, source) in sources.into_iter().enumerate() {
        let weight = source.weight;
        let step = SourceRun::measure(&mut trainer, index, source, settings.seed, options)?;
        seconds += weight * step.seconds;
        reading += weight * step.reading;
        weights += weight;
        found.push(step);
    }
    Ok(DryRun {
        sources: found,
        seconds: seconds / weights,
        reading: reading / weights,
        memory: peak_device_memory(device),
    })
}

impl SourceRun {
    /// Takes two steps with a source.
    fn measure(
        trainer: &mut Trainer,
        index: usize,
        source: MixedSource,
        seed: u64,
        options: &RunOptions,
    ) -> Result<Self> {
        let name = source.name.clone();
        let samples = source.samples.len();
        let passed_over = source.samples.passed_over();
        let first = passed_over.first();
        let first = first.map(|skip| format!("{}: {}", skip.key, skip.message));
        let passed_over = (passed_over.len(), first);
        let mut loader = run::loader(vec![source], seed, 0, None, options)?;
        let mut measured = None;
        for step in 0..2 {
            let started = Instant::now();
            let Some(batch) = loader.next() else { break };
            let batch = batch?;
            let reading = started.elapsed().as_secs_f64();
            let started = Instant::now();
            let report = trainer.step(step, index, &batch.samples)?;
            measured = Some((report, started.elapsed().as_secs_f64(), reading));
        }
        let (report, seconds, reading) = measured.expect("a loader never ends");
        Ok(Self {
            name,
            samples,
            passed_over,
            report,
            seconds,
            reading,
        })
    }
}
