//! A run: the loop of training, and what it leaves in its folder.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use burn::tensor::Device;
use divot::data::dataset::{Batch, Loader, LoaderConfig, MixedSource, Source};
use divot::peak_device_memory;

use crate::cache;
use crate::checkpoint::{self, Start, State};
use crate::dry_run::plan;
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::parameters::is_below;
use crate::ranks::Ranks;
use crate::recipe::{DataSettings, Recipe};
use crate::record::{self, Ending, RecordError, Recorder, RunInfo, Status, names};
use crate::trainer::{StepReport, Trainer};
use crate::validation;

/// The run ends after so many steps in a row whose loss was not finite.
const MAX_NOT_FINITE: usize = 20;
/// The run ends after so many batches in a row of a source, and so many samples, of which none fits.
const MAX_FRUITLESS: [usize; 2] = [10, 100];

/// How a run is started.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Goes on from the newest checkpoint in the folder, if there is one.
    pub resume: bool,
    /// Goes on although the recipe changed.
    pub allow_changes: bool,
    /// Threads that read samples.
    pub workers: usize,
    /// The processes that train together.
    pub ranks: Ranks,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            resume: false,
            allow_changes: false,
            workers: 1,
            ranks: Ranks::default(),
        }
    }
}

/// What a run tells while it goes on.
#[derive(Debug)]
pub enum Event<'a> {
    /// The run goes on from the checkpoint of this step.
    Resumed(usize),
    /// A step was taken. The status is there where the recipe says that it is logged.
    Step(Option<&'a Status>),
    /// The loss on the validation set was measured.
    Validated(f64),
    /// Something that does not stop the run.
    Warning(String),
}

/// Trains by a recipe. Everything is written below `folder`.
///
/// A run that was stopped or killed goes on as if it had not been: its losses and weights are the same to the
/// bit, on the CPU with any number of threads. First weights and dropout are drawn by the device, whose generator
/// the process shares: runs of one process take their steps one after the other, and nothing else of it should
/// draw from the device meanwhile.
///
/// `watch` is told what happens. When it breaks, the run saves a checkpoint and ends in [`Error::Stopped`].
///
/// # Errors
/// If the folder holds another run, the recipe does not fit the data or the weights, or a checkpoint cannot
/// be written. The last checkpoint stands.
pub fn run(
    recipe: &Recipe,
    folder: &Path,
    device: &Device,
    options: &RunOptions,
    watch: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<State> {
    let settings = &recipe.settings;
    let ranks = &options.ranks;
    // The first rank writes all files but the other ranks' lists of broken samples.
    let _lock = ranks.is_first().then(|| Lock::new(folder)).transpose()?;
    if ranks.is_first() {
        checkpoint::clean(folder);
    }
    ranks.wait();
    check_starts(recipe, folder)?;
    let resumed = resumable(recipe, folder, device, options)?;
    let moments_of = match settings.ranks.shard_optimizer {
        true => ranks.count(),
        false => 1,
    };
    let [_, processes] = ranks.local();
    plan(recipe, device, ranks.count())?.check_memory(device, moments_of, processes)?;
    // Before another process takes its memory.
    ranks.wait();
    let (trainer, mut state) = match &resumed {
        None => (Trainer::new(recipe, device)?, State::default()),
        Some(checkpoint) => {
            let trainer = Trainer::again(recipe, device)?;
            cache::check(recipe, trainer.model())?;
            let state = checkpoint.state()?;
            check_read(&trainer, &state, folder, options)?;
            let _ = watch(Event::Resumed(state.step));
            (trainer, state)
        }
    };
    let mut trainer = trainer.with_ranks(ranks)?;
    if let Some(checkpoint) = &resumed {
        trainer = trainer.resume(checkpoint)?;
        let stayed = state.read.is_empty() || state.read == *trainer.read();
        state.best = state
            .best
            .filter(|_| stayed && compares(recipe, &state.recipe));
    }
    state = State {
        seed: settings.seed,
        start: recipe.start.clone(),
        recipe: recipe.text.clone(),
        recipe_hash: checkpoint::recipe_hash(&recipe.text),
        precision: Some(settings.precision.on(device)),
        read: trainer.read().clone(),
        ..state
    };
    let log = folder.join(match ranks.rank() {
        0 => "skipped.jsonl".to_owned(),
        rank => format!("skipped-{rank}.jsonl"),
    });
    let data = sources(recipe, &settings.data, ranks.count())?;
    if state.step == 0 && log.exists() {
        // Of a try that was ended before its first checkpoint.
        fs::remove_file(&log).map_err(|error| Error::io(&log, error))?;
    }
    let mut loader = loader(data, settings.seed, state.step, Some(&log), options)?;
    let validation = validation::set(recipe, options)?;
    let recorder = || Recorder::open(folder, recipe.info(), state.step);
    let mut recorder = ranks.is_first().then(recorder).transpose()?;

    let mut interval = Interval::new(&state);
    // Batches of each source in a row, and their samples, of which none fits.
    let mut fruitless = vec![[0; 2]; settings.data.len()];
    let mut steps = || -> Result<()> {
        while state.step < settings.steps {
            let Some(batch) = loader.next() else { break };
            let Batch {
                source, samples, ..
            } = batch?;
            let report = trainer.step(state.step, source, &samples)?;
            for skip in &report.misfits {
                loader.leave_out(source, skip);
            }
            let count = samples.len() * ranks.count();
            state.count(&report, count);
            let [batches, samples] = fruitless[source];
            fruitless[source] = match report.losses.is_empty() {
                true => [batches + 1, samples + count],
                false => [0; 2],
            };
            let [batches, samples] = fruitless[source];
            if batches >= MAX_FRUITLESS[0] && samples >= MAX_FRUITLESS[1] {
                let last = report.misfits.last();
                return Err(Error::NothingFits {
                    source_name: settings.data[source].source.name(),
                    batches,
                    problem: last
                        .map(|skip| format!("{}: {}", skip.key, skip.message))
                        .unwrap_or_default(),
                });
            }

            let step = state.step;
            let last = step == settings.steps;
            let due = |every: usize| every > 0 && (last || step.is_multiple_of(every));
            let log = due(settings.log_every);
            if log {
                let mut numbers = interval.numbers(&report, &mut loader, &state, device, ranks);
                numbers.extend(state.take_unlogged(&report));
                interval = Interval::new(&state);
                if let Some(recorder) = &mut recorder {
                    warn(recorder.scalars(step, &numbers), watch);
                }
                if let Some(error) = loader.take_log_error() {
                    let _ = watch(Event::Warning(error.to_string()));
                }
            }
            if state.not_finite_in_a_row >= MAX_NOT_FINITE {
                let steps = MAX_NOT_FINITE;
                return Err(Error::NotFinite { step, steps });
            }
            if due(settings.validation.every) {
                let recorder = recorder.as_mut();
                if let Some(loss) =
                    validation::measure(&trainer, &validation, &mut state, recorder, watch)?
                {
                    let _ = watch(Event::Validated(loss));
                }
            }
            let status = recorder.as_ref().filter(|_| log).map(Recorder::status);
            let stop = ranks.any(watch(Event::Step(status)).is_break());
            let best = state.best.is_some_and(|(_, best)| best == step);
            if due(settings.checkpoints.every) || best || stop {
                trainer.save(folder, &state)?;
            }
            if stop {
                return Err(Error::Stopped);
            }
        }
        Ok(())
    };
    let result = steps();
    let ending = match &result {
        Ok(()) => Ending::Finished,
        Err(Error::Stopped) => Ending::Stopped,
        Err(error) => Ending::Failed(error.to_string()),
    };
    if let Some(recorder) = recorder {
        warn(recorder.finish(&ending), watch);
    }
    result.map(|()| state)
}

/// Passes on what went wrong with the record, which stops no run.
pub(crate) fn warn(
    problem: Option<RecordError>,
    watch: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) {
    if let Some(problem) = problem {
        let _ = watch(Event::Warning(problem.to_string()));
    }
}

/// When numbers were logged.
struct Interval {
    since: Instant,
    /// How many samples had been read.
    samples: u64,
}

impl Interval {
    fn new(state: &State) -> Self {
        Self {
            since: Instant::now(),
            samples: state.samples,
        }
    }

    /// The numbers that are logged after a step, without the losses.
    fn numbers(
        &self,
        report: &StepReport,
        loader: &mut Loader,
        state: &State,
        device: &Device,
        ranks: &Ranks,
    ) -> Vec<(String, f64)> {
        let seconds = self.since.elapsed().as_secs_f64().max(1e-9);
        let samples = state.samples - self.samples;
        let waited = loader.take_waited().as_secs_f64();
        let mut numbers = vec![
            (names::RATE.to_owned(), report.rate),
            (names::GRADIENT_NORM.to_owned(), report.gradient_norm),
            (
                names::SAMPLES_PER_SECOND.to_owned(),
                samples as f64 / seconds,
            ),
            (names::DATA_WAIT.to_owned(), (waited / seconds).min(1.0)),
        ];
        if ranks.count() > 1 {
            let spent = ranks.take_spent().as_secs_f64();
            numbers.push((names::COMMUNICATION.to_owned(), (spent / seconds).min(1.0)));
        }
        if let Some(bytes) = peak_device_memory(device) {
            numbers.push((names::MEMORY.to_owned(), bytes as f64));
        }
        for (source, reason, count) in loader.skipped() {
            let name = format!("{}{source}: {reason}", record::SKIPPED);
            numbers.push((name, count as f64));
        }
        if state.not_finite > 0 {
            let name = format!("{}steps not finite", record::SKIPPED);
            numbers.push((name, state.not_finite as f64));
        }
        numbers
    }
}

/// Opens the sources of a recipe, whose batches so many ranks share.
pub(crate) fn sources(
    recipe: &Recipe,
    data: &[DataSettings],
    ranks: usize,
) -> Result<Vec<MixedSource>> {
    let reader = recipe.model.tokenizer.clip_reader();
    data.iter()
        .map(|data| {
            Ok(MixedSource {
                name: data.source.name(),
                samples: Box::new(Source::open(&data.source, &reader)?),
                weight: data.weight,
                batch: data.batch.unwrap_or(recipe.settings.batch) / ranks,
            })
        })
        .collect()
}

/// Reads batches of sources. Broken samples are named in `log`.
pub(crate) fn loader(
    sources: Vec<MixedSource>,
    seed: u64,
    first_step: usize,
    log: Option<&Path>,
    options: &RunOptions,
) -> Result<Loader> {
    let config = LoaderConfig {
        seed,
        rank: options.ranks.rank(),
        ranks: options.ranks.count(),
        workers: options.workers,
        first_step: first_step as u64,
        log: log.map(Path::to_path_buf),
        ..LoaderConfig::default()
    };
    Ok(Loader::new(sources, config)?)
}

/// Refuses parts that start from the run's own folder: whoever starts from the run would look there for ever.
fn check_starts(recipe: &Recipe, folder: &Path) -> Result<()> {
    let own = folder.canonicalize();
    let own = own.map_err(|error| Error::io(folder, error))?;
    for Start { part, folder } in &recipe.start {
        if let Some(folder) = folder
            && folder.canonicalize().is_ok_and(|folder| folder == own)
        {
            return Err(Error::Setting {
                setting: format!("model.start.{part:?}"),
                problem: format!(
                    "{} is the run's own folder; resume the run, or name another folder",
                    folder.display()
                ),
            });
        }
    }
    Ok(())
}

/// The checkpoint that a run goes on from.
///
/// # Errors
/// If there is one and the run is to start anew, or the recipe changed and that is not allowed.
fn resumable(
    recipe: &Recipe,
    folder: &Path,
    device: &Device,
    options: &RunOptions,
) -> Result<Option<checkpoint::Checkpoint>> {
    let Some(newest) = checkpoint::newest(folder)? else {
        return Ok(None);
    };
    if !options.resume {
        return Err(Error::run(
            folder,
            format!("holds a run that got to step {}", newest.step),
            "resume it, or choose another folder",
        ));
    }
    let state = newest.state()?;
    let changed = recipe.differences(&state.recipe).into_iter();
    let mut changed: Vec<String> = changed
        .map(|(key, before, now)| format!("`{key}` was {before} and is {now}"))
        .collect();
    let now = recipe.settings.precision.on(device);
    if !changed
        .iter()
        .any(|change| change.starts_with("`precision`"))
        && let Some(before) = state.precision.filter(|before| *before != now)
    {
        let [before, now] = [before, now].map(|precision| format!("{precision:?}").to_lowercase());
        changed.push(format!(
            "`precision` was {before}, and this device has {now}"
        ));
    }
    if changed.is_empty() || options.allow_changes {
        return Ok(Some(newest));
    }
    Err(Error::run(
        folder,
        format!(
            "something changed since its checkpoint: {}",
            changed.join(", ")
        ),
        "resume with what it was started with, or allow the changes (`--allow-changes`)",
    ))
}

/// Refuses runs that frozen parts came from and that went on: their parts are not in the checkpoint.
fn check_read(trainer: &Trainer, state: &State, folder: &Path, options: &RunOptions) -> Result<()> {
    let moved = trainer.read().iter().find_map(|(run, now)| {
        let before = state.read.get(run)?;
        (before != now).then_some((run, before, now))
    });
    match moved {
        Some((run, before, now)) if !options.allow_changes => Err(Error::run(
            folder,
            format!(
                "has frozen parts of step {before} of {}, which is now at step {now}",
                run.display()
            ),
            "start anew, or allow the change (`--allow-changes`)",
        )),
        _ => Ok(()),
    }
}

/// Settings that validation losses depend on, with those below them.
const COMPARED: [&str; 8] = [
    "objective",
    "validation.data",
    "validation.batches",
    "data",
    "seed",
    "batch",
    "model.text_tokenizer",
    "model.start",
];

/// Whether validation losses of a recipe compare with those of an older one.
fn compares(recipe: &Recipe, older: &str) -> bool {
    let mut changed = recipe.differences(older).into_iter();
    !changed.any(|(changed, ..)| COMPARED.iter().any(|key| is_below(&changed, key)))
}

impl State {
    /// Counts a step.
    fn count(&mut self, report: &StepReport, samples: usize) {
        self.step += 1;
        self.samples += samples as u64;
        match report.learned {
            true => {
                self.not_finite_in_a_row = 0;
                self.unlogged.add(&report.losses);
            }
            false => {
                self.not_finite += 1;
                self.not_finite_in_a_row += 1;
            }
        }
    }

    /// The means of the losses since they were logged last, if there are any. If no step since then changed the
    /// parameters, they are those of the last one.
    fn take_unlogged(&mut self, report: &StepReport) -> Vec<(String, f64)> {
        let losses = match std::mem::take(&mut self.unlogged) {
            losses if losses.is_empty() => report.losses.clone(),
            losses => losses,
        };
        if losses.is_empty() {
            return Vec::new();
        }
        let mut numbers = vec![(names::LOSS.to_owned(), losses.loss())];
        if losses.has_several() {
            let terms = losses.terms();
            numbers.extend(terms.map(|(name, mean)| (format!("train/{name}"), mean)));
        }
        numbers
    }
}

impl Recipe {
    /// What the run's page says of it.
    fn info(&self) -> RunInfo {
        RunInfo {
            name: self.name.clone(),
            steps: self.settings.steps,
            settings: self.values(),
        }
    }
}
