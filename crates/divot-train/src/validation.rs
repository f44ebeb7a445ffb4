//! Validation: the loss on samples that are held out, and what the model makes of them.

use std::ops::ControlFlow;

use divot::data::dataset::Sample;
use divot::data::sampling::{CLIP_FPS, CLIP_FRAMES};
use divot::data::{Frame, contact_sheet, encode_png};

use crate::checkpoint::State;
use crate::error::Result;
use crate::objective::Shown;
use crate::recipe::Recipe;
use crate::record::{self, Recorder, names};
use crate::run::{self, Event, RunOptions, warn};
use crate::trainer::Trainer;

/// Gap between the pictures of a sheet, in pixels.
const GAP: usize = 2;
/// Added to the seed for the set that is taken of the training data.
const SEED: u64 = 1 << 32;

/// The samples that the model is measured on, with the source of each batch.
pub(crate) fn set(recipe: &Recipe, options: &RunOptions) -> Result<Vec<(usize, Vec<Sample>)>> {
    let settings = &recipe.settings;
    let (data, seed) = match &settings.validation.data[..] {
        [] => (&settings.data[..], settings.seed ^ SEED),
        data => (data, settings.seed),
    };
    if settings.validation.every == 0 {
        return Ok(Vec::new());
    }
    let sources = run::sources(recipe, data, options.ranks.count())?;
    let loader = run::loader(sources, seed, 0, None, options)?;
    let batches = loader.take(settings.validation.batches);
    let batches = batches.map(|batch| batch.map(|batch| (batch.source, batch.samples)));
    let mut set: Vec<_> = batches.collect::<Result<_, _>>()?;
    // One batch at least of each source, however small its weight.
    for index in 0..data.len() {
        if set.iter().all(|(drawn, _)| *drawn != index) {
            let source = run::sources(recipe, &data[index..=index], options.ranks.count())?;
            let batch = run::loader(source, seed, 0, None, options)?.next();
            set.push((index, batch.expect("a loader never ends")?.samples));
        }
    }
    Ok(set)
}

/// Measures the loss on the validation set, of which something may fit the objective, and shows what the model makes of
/// some of it.
pub(crate) fn measure(
    trainer: &Trainer,
    set: &[(usize, Vec<Sample>)],
    state: &mut State,
    recorder: Option<&mut Recorder>,
    watch: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Option<f64>> {
    let losses = trainer.validate(set)?;
    if losses.is_empty() {
        let problem = "nothing of the validation set fits the objective, so that no checkpoint is the best one; look at its texts, or raise `max_length`";
        let _ = watch(Event::Warning(problem.to_owned()));
        return Ok(None);
    }
    let loss = losses.loss();
    if loss.is_finite() && state.best.is_none_or(|(best, _)| loss < best) {
        state.best = Some((loss, state.step));
    }
    let Some(recorder) = recorder else {
        return Ok(Some(loss));
    };
    let mut numbers = vec![(names::VALIDATION_LOSS.to_owned(), loss)];
    let named = |(name, value): (&str, f64)| (format!("{}{name}", record::VALIDATION), value);
    if losses.has_several() {
        numbers.extend(losses.terms().map(named));
    }
    let mut shown = Shown::default();
    for (index, (source, samples)) in set.iter().enumerate() {
        // One batch of each source.
        if set[..index].iter().any(|(before, _)| before == source) {
            continue;
        }
        match trainer.show(*source, samples) {
            Ok(more) => shown.add(more, *source),
            // What a model makes early on, or after a bad step, may be no numbers.
            Err(error) => {
                let _ = watch(Event::Warning(format!("no samples are shown: {error}")));
            }
        }
    }
    numbers.extend(shown.numbers.iter().copied().map(named));
    warn(recorder.scalars(state.step, &numbers), watch);
    for (name, text) in &shown.texts {
        warn(recorder.text(state.step, name, text), watch);
    }
    // Pictures that cannot be made stop no run.
    if let Err(error) = draw(&shown, state.step, recorder, watch) {
        let _ = watch(Event::Warning(format!("no samples are shown: {error}")));
    }
    Ok(Some(loss))
}

/// Draws what the model made: all frames on a sheet, and clips beside each other.
fn draw(
    shown: &Shown,
    step: usize,
    recorder: &mut Recorder,
    watch: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<()> {
    let rows: Vec<&[Frame]> = shown.samples.iter().flatten().map(Vec::as_slice).collect();
    if shown.clips && rows.iter().any(|row| row.len() > 1) {
        let clip = side_by_side(&shown.samples)?;
        let rate = clip.len() as f64 * CLIP_FPS / CLIP_FRAMES as f64;
        warn(recorder.animation(step, "samples", &clip, rate), watch);
    }
    if !rows.is_empty() {
        let png = encode_png(&contact_sheet(&rows, GAP)?)?;
        warn(recorder.sheet(step, "samples", &png), watch);
    }
    Ok(())
}

/// One clip of many: those of each sample beside each other, below those of the samples before.
fn side_by_side(samples: &[Vec<Vec<Frame>>]) -> Result<Vec<Frame>> {
    let lengths = samples.iter().flatten().map(Vec::len);
    let count = lengths.max().unwrap_or_default();
    let frame = |time: usize| {
        // Shorter clips wait for the longest in their last frame.
        let at = |clip: &Vec<Frame>| clip.get(time).or(clip.last()).cloned();
        let rows = samples.iter().map(|clips| clips.iter().filter_map(at));
        let rows: Vec<Vec<Frame>> = rows.map(Iterator::collect).collect();
        let rows: Vec<&[Frame]> = rows.iter().map(Vec::as_slice).collect();
        Ok(contact_sheet(&rows, GAP)?)
    };
    (0..count).map(frame).collect()
}
