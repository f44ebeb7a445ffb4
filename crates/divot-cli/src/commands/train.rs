//! `divot train`

use std::path::{Path, PathBuf};

use anyhow::Result;
use burn::tensor::Device;
use clap::Args;
use divot::device;
use divot_train::checkpoint::State;
use divot_train::record::{Printer, line};
use divot_train::{Event, Ranks, Recipe, RunOptions, dry_run, plan, run};

use crate::options;
use crate::output::{self, Output};
use crate::{complain, interrupt, is_saved};

/// Train a model by a recipe
///
/// Everything is written below one folder: checkpoints, metrics.jsonl, TensorBoard's event files, sheets of
/// samples, and report.html, a page with all of it. Ctrl-C saves a checkpoint and ends the run, and so does SIGTERM.
///
/// If `mpirun` or Slurm starts several of it, they train together, each with its part of every batch. This needs a
/// program that was built with the feature `mpi`.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Example:
  divot train examples/recipes/stage1.toml --set data.0.source.path=clips
  divot train examples/recipes/stage1.toml --set data.0.source.path=clips --resume
  mpirun -n 8 divot train examples/recipes/stage1.toml --set data.0.source.path=clips --device cuda"
)]
pub struct Arguments {
    /// The recipe, in TOML
    recipe: PathBuf,
    /// Folder of the run [default: outputs/ and the recipe's name]
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Another value for a key of the recipe, such as rate.peak=1e-5
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
    /// Go on from the newest checkpoint
    #[arg(long)]
    resume: bool,
    /// Go on although the recipe changed
    #[arg(long, visible_alias = "allow")]
    allow_changes: bool,
    /// Show what would be trained, on what, and how long a step takes; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Where to compute: auto, cpu, wgpu, vulkan or cuda, with :index for a certain one
    #[arg(long, default_value = "auto")]
    device: String,
    /// Threads that read samples
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    workers: u16,
}

/// Trains by a recipe, and prints how far it is. Ctrl-C saves a checkpoint and ends the run. Of several ranks, the first
/// prints.
///
/// # Errors
/// Those of [`run`].
pub fn follow(
    recipe: &Recipe,
    folder: &Path,
    device: &Device,
    options: &RunOptions,
) -> Result<State> {
    if !options.ranks.is_first() {
        let quiet = |_: Event<'_>| interrupt::flow();
        return Ok(run(recipe, folder, device, options, &mut { quiet })?);
    }
    let printer = Printer::new();
    printer.note(&format!(
        "{}: {} steps on {}{}, into {}",
        recipe.name,
        recipe.settings.steps,
        match options.ranks.count() {
            1 => String::new(),
            count => format!("{count} ranks, the first on "),
        },
        device::name(device),
        folder.display()
    ));
    for remark in recipe.remarks() {
        printer.note(&remark);
    }
    let state = run(recipe, folder, device, options, &mut |event| {
        match event {
            Event::Resumed(step) => printer.note(&format!("goes on from step {step}")),
            Event::Step(Some(status)) => printer.show(line(status)),
            Event::Step(None) => {}
            Event::Validated(loss) => printer.note(&format!("validation loss {loss:.5}")),
            Event::Warning(warning) => printer.note(&format!("warning: {warning}")),
        }
        interrupt::flow()
    });
    printer.finish();
    Ok(state?)
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        let recipe = Recipe::read(&self.recipe, &self.changes)?;
        let ranks = Ranks::start()?;
        let result = self.train(&recipe, &ranks, output);
        match &result {
            Err(error) if ranks.count() > 1 && !is_saved(error) => {
                let error = divot::one_line(error.as_ref());
                complain(&format!("rank {}: error: {error}", ranks.rank()));
                ranks.abort();
            }
            _ => {}
        }
        result
    }

    fn train(&self, recipe: &Recipe, ranks: &Ranks, output: &mut Output) -> Result<()> {
        let device = options::select(&self.device_of(ranks))?;
        let folder = match &self.output {
            Some(folder) => folder.clone(),
            None => PathBuf::from("outputs").join(&recipe.name),
        };
        let options = RunOptions {
            resume: self.resume,
            allow_changes: self.allow_changes,
            workers: self.workers.into(),
            ranks: ranks.clone(),
        };
        if self.dry_run && !ranks.is_first() {
            output.set_json(false);
            return Ok(());
        }
        if self.dry_run {
            return self.dry_run(recipe, &device, &options, output);
        }
        output.set_device(&device);
        let state = follow(recipe, &folder, &device, &options)?;
        if !ranks.is_first() {
            // The first rank speaks for all.
            output.set_json(false);
            return Ok(());
        }
        output.set("folder", folder.to_string_lossy());
        output.set("steps", state.step);
        output.line(format!(
            "{} steps; checkpoints and report.html are in {}",
            state.step,
            folder.display()
        ))
    }

    /// The name of a rank's device: each has a GPU of its own.
    fn device_of(&self, ranks: &Ranks) -> String {
        match (ranks.local(), &self.device[..]) {
            ([_, 1], device) | (_, device @ ("auto" | "cpu")) => device.to_owned(),
            (_, device) if device.contains(':') => device.to_owned(),
            ([local, _], device) => format!("{device}:{local}"),
        }
    }

    /// Shows what a run would do.
    fn dry_run(
        &self,
        recipe: &Recipe,
        device: &Device,
        options: &RunOptions,
        output: &mut Output,
    ) -> Result<()> {
        // First what is known without the weights, which may not fit in memory.
        let plan = plan(recipe, device, 1)?;
        let millions = |count: usize| format!("{:.2} M", count as f64 / 1e6);
        let gib = |bytes: u64| format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30));
        output.line("parameters")?;
        let (mut all, mut trained) = (0, 0);
        for part in &plan.parameters {
            all += part.all;
            trained += part.trained;
            output.line(format!(
                "  {}: {}, {} trained",
                part.part,
                millions(part.all),
                millions(part.trained)
            ))?;
        }
        output.line(format!(
            "  together: {}, {} trained",
            millions(all),
            millions(trained)
        ))?;
        let learning = plan.learning;
        output.line("memory")?;
        for (name, bytes) in [
            ("parameters", learning.parameters),
            ("gradients", learning.gradients),
            ("the optimiser's moments", learning.moments),
            ("moving average", learning.average),
            ("together", learning.sum()),
        ] {
            output.line(format!("  {name}: {}", gib(bytes)))?;
        }
        output.set("learning_bytes", learning.sum());

        let found = dry_run(recipe, device, options)?;
        if let Some(memory) = found.memory {
            let rest = memory.saturating_sub(learning.sum());
            output.line(format!("  activations and all else: {}", gib(rest)))?;
            output.line(format!("  the most at a time: {}", gib(memory)))?;
            output.set("memory_bytes", memory);
        }
        output.line("data")?;
        for source in &found.sources {
            output.line(format!(
                "  {}: {}, a step {:.2} s, {:.2} s of waiting for data",
                source.name,
                output::plural(source.samples, "sample"),
                source.seconds,
                source.reading
            ))?;
            if let (count, Some(first)) = &source.passed_over {
                output.line(format!("    {count} passed over, first {first}"))?;
            }
            if let Some(misfit) = source.report.misfits.first() {
                output.line(format!(
                    "    {} of the step left out, first {}: {}",
                    source.report.left_out, misfit.key, misfit.message
                ))?;
            }
        }
        let steps = recipe.settings.steps;
        output.line(format!(
            "a step: {:.2} s and {:.2} s of waiting for data; {steps} steps in about {:.1} h",
            found.seconds,
            found.reading,
            steps as f64 * (found.seconds + found.reading) / 3600.0
        ))?;
        for remark in recipe.remarks() {
            output.line(remark)?;
        }
        output.set("parameters", all);
        output.set("trained", trained);
        output.set("seconds_per_step", found.seconds);
        Ok(())
    }
}
