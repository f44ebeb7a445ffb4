//! A run: the loop of training, and what it leaves in its folder.

use std::fs::{self, File, TryLockError};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::Device;
use divot::data::dataset::{Batch, Loader, LoaderConfig, Sample};
use divot::data::{contact_sheet, write_png};
use divot::peak_memory;

use crate::checkpoint::{self, State};
use crate::error::{Error, Result};
use crate::recipe::Recipe;
use crate::record::Recorder;
use crate::trainer::Trainer;

/// The run ends after so many steps in a row whose loss was not finite.
const MAX_NOT_FINITE: usize = 20;
/// Gap between the pictures of a sheet, in pixels.
const GAP: usize = 2;

/// How a run is started.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Goes on from the newest checkpoint in the folder, if there is one.
    pub resume: bool,
    /// Goes on although the recipe changed.
    pub allow_changes: bool,
    /// Threads that read samples.
    pub workers: usize,
}

/// What a run tells while it goes on.
#[derive(Debug, Clone, PartialEq)]
pub enum Event<'a> {
    /// The run goes on from a checkpoint of this step.
    Resumed(usize),
    /// A step was taken.
    Step {
        /// Steps that are done, and all of them.
        steps: [usize; 2],
        /// A line about it, if it is time for one.
        line: Option<&'a str>,
    },
    /// Something that does not stop the run.
    Warning(&'a str),
}

/// Trains by a recipe. Everything is written below `folder`.
///
/// `watch` is told what happens. When it breaks, the run saves a checkpoint and ends in [`Error::Stopped`].
///
/// # Errors
/// If the folder holds another run, the recipe does not fit the data or the weights, or a checkpoint cannot
/// be written.
pub fn run(
    recipe: &Recipe,
    folder: &Path,
    device: &Device,
    options: &RunOptions,
    watch: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<State> {
    let settings = &recipe.settings;
    let _lock = lock(folder)?;
    checkpoint::clean(folder);
    let mut state = State::new(recipe);
    let mut trainer = Trainer::new(recipe, device)?;
    if let Some(newest) = resumable(recipe, folder, options)? {
        state = State {
            recipe: recipe.text.clone(),
            ..newest.state()?
        };
        trainer = trainer.resume(&newest)?;
        let _ = watch(Event::Resumed(state.step));
    }
    write(&folder.join("recipe.toml"), &recipe.text)?;
    let mut recorder = Recorder::open(folder, &recipe.name, &recipe.text, state.step)?;
    let validation = validation_set(recipe, options)?;

    let mut started = Instant::now();
    for batch in loader(recipe, folder, state.step, options)? {
        if state.step >= settings.steps {
            break;
        }
        let Batch { samples, .. } = batch?;
        let report = trainer.step(state.step, &samples)?;
        state.step += 1;
        state.samples += samples.len() as u64;
        state.seconds += started.elapsed().as_secs_f64();
        started = Instant::now();
        match report.learned {
            true => state.not_finite_in_a_row = 0,
            false => {
                state.not_finite += 1;
                state.not_finite_in_a_row += 1;
            }
        }

        let last = state.step == settings.steps;
        let due = |every: usize| every > 0 && (last || state.step.is_multiple_of(every));
        let line = due(settings.log_every).then(|| recorder.step(&state, settings.steps, &report));
        let flow = watch(Event::Step {
            steps: [state.step, settings.steps],
            line: line.as_deref(),
        });
        if state.not_finite_in_a_row >= MAX_NOT_FINITE {
            return Err(Error::NotFinite {
                step: state.step,
                steps: MAX_NOT_FINITE,
            });
        }
        if due(settings.validation.every) {
            validate(&trainer, &validation, &mut state, folder, &mut recorder, watch)?;
        }
        if due(settings.checkpoints.every) || flow.is_break() {
            checkpoint::save(folder, &trainer.contents(&state), settings.checkpoints.keep)?;
        }
        if flow.is_break() {
            recorder.finish("stopped");
            return Err(Error::Stopped);
        }
    }
    recorder.finish("finished");
    Ok(state)
}

/// Measures the loss on the validation set and shows what the model makes of some of it.
fn validate(
    trainer: &Trainer,
    set: &[Vec<Sample>],
    state: &mut State,
    folder: &Path,
    recorder: &mut Recorder,
) -> Result<()> {
    let (loss, mut numbers) = trainer.validate(set)?;
    let shown = trainer.show(set.first().map_or(&[], |batch| batch))?;
    if loss.is_finite() && state.best.is_none_or(|(best, _)| loss < best) {
        state.best = Some((loss, state.step));
    }
    numbers.push(("loss", loss));
    numbers.extend(shown.numbers);
    recorder.validation(state.step, &numbers);
    for (name, text) in &shown.texts {
        recorder.text(state.step, name, text);
    }
    if !shown.rows.is_empty() {
        let rows: Vec<&[_]> = shown.rows.iter().map(Vec::as_slice).collect();
        let samples = folder.join("samples");
        fs::create_dir_all(&samples).map_err(|error| Error::io(&samples, error))?;
        let path = samples.join(format!("step-{:08}.png", state.step));
        write_png(&path, &contact_sheet(&rows, GAP)?)?;
        recorder.sheet(state.step, &path);
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
    let changed = recipe.differences(&newest.state()?.recipe);
    if changed.is_empty() || options.allow_changes {
        return Ok(Some(newest));
    }
    let changed: Vec<String> = changed
        .into_iter()
        .map(|(key, before, now)| format!("`{key}` was {before} and is {now}"))
        .collect();
    Err(Error::run(
        folder,
        format!("was trained with another recipe: {}", changed.join(", ")),
        "resume with the recipe that it was started with, or allow the changes",
    ))
}

/// Makes sure that no other process works in a run's folder.
fn lock(folder: &Path) -> Result<File> {
    fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
    let path = folder.join(".lock");
    let file = File::create(&path).map_err(|error| Error::io(&path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::run(
            folder,
            "is in use by another process",
            "wait for it, or choose another folder",
        )),
        Err(TryLockError::Error(error)) => Err(Error::io(&path, error)),
    }
}

impl State {
    fn new(recipe: &Recipe) -> Self {
        Self {
            step: 0,
            samples: 0,
            not_finite: 0,
            not_finite_in_a_row: 0,
            best: None,
            seconds: 0.0,
            recipe: recipe.text.clone(),
        }
    }
}
