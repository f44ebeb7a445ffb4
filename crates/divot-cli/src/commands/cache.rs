//! `divot cache`

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use divot::data::dataset::ElementType;
use divot_train::record::Printer;
use divot_train::{CacheOptions, Cached, Recipe, cache};

use crate::interrupt;
use crate::options;
use crate::output::{self, Output};

/// Compute what a recipe's frozen networks make of its clips, for training to read instead of frames
///
/// Each source of the recipe becomes a folder of safetensors shards. Ctrl-C or a crash loses the last shard at most:
/// the same command goes on.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Example:
  divot cache examples/recipes/stage1.toml --to caches/stage1
  divot train examples/recipes/stage1.toml \\
      --set 'data.0.source={format=\"cache\", path=\"caches/stage1/data-0\"}'"
)]
pub struct Arguments {
    /// The recipe, in TOML
    recipe: PathBuf,
    /// The folder for the shards
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
    /// Another value for a key of the recipe, such as data.0.source.path=clips
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
    /// How often each sample is stored, each time with other random clips
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    clips_per_sample: u16,
    /// Element type that numbers are stored in; f32 keeps what was computed
    #[arg(long, value_enum, default_value_t = Element::F32)]
    dtype: Element,
    /// About how large a shard is, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..))]
    shard_size: u16,
    /// Where to compute: auto, cpu, wgpu, vulkan or cuda, with :index for a certain one
    #[arg(long, default_value = "auto")]
    device: String,
    /// Threads that read samples
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    workers: u16,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Element {
    F32,
    F16,
    Bf16,
}

/// Makes a cache, and prints how far it is. Ctrl-C ends it after the last whole shard.
///
/// # Errors
/// Those of [`cache`].
pub fn follow_cache(
    recipe: &Recipe,
    folder: &Path,
    device: &Device,
    options: &CacheOptions,
) -> Result<Vec<Cached>> {
    let printer = Printer::new();
    // A log gets fewer lines than a terminal.
    let pause = Duration::from_secs(if io::stderr().is_terminal() { 1 } else { 30 });
    let mut shown: Option<Instant> = None;
    let made = cache(recipe, folder, device, options, &mut |status| {
        let due = shown.is_none_or(|shown| shown.elapsed() >= pause);
        if due || status.done == status.total {
            printer.show(status.to_string());
            shown = Some(Instant::now());
        }
        interrupt::flow()
    });
    printer.finish();
    Ok(made?)
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        let recipe = Recipe::read(&self.recipe, &self.changes)?;
        let device = options::select(&self.device)?;
        output.set_device(&device);
        let options = CacheOptions {
            clips_per_sample: self.clips_per_sample.into(),
            element: match self.dtype {
                Element::F32 => ElementType::F32,
                Element::F16 => ElementType::F16,
                Element::Bf16 => ElementType::Bf16,
            },
            shard_bytes: usize::from(self.shard_size) << 20,
            workers: self.workers.into(),
        };
        let made = follow_cache(&recipe, &self.to, &device, &options)?;
        output.line("in the recipe, or after --set:")?;
        for source in &made {
            let path = source.folder.to_string_lossy();
            output.line(format!(
                "  {}.source={{format=\"cache\", path={path:?}}}  ({})",
                source.key,
                output::plural(source.clips, "clip")
            ))?;
        }
        let folders = made.iter().map(|source| source.folder.to_string_lossy());
        output.set("folders", folders.collect::<Vec<_>>());
        let clips: usize = made.iter().map(|source| source.clips).sum();
        output.set("clips", clips);
        Ok(())
    }
}
