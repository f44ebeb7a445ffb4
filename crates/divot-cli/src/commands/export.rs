//! `divot export`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use divot::device;
use divot_train::{Weights, export};

use crate::output::Output;

/// Turn a training run's newest checkpoint into a model
///
/// The folder can then be given as --model. Frozen networks are taken from where the recipe says, and low-rank
/// adaptation is merged. A vision tower or an autoencoder alone is no model: train a stage that starts from it.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Example:
  divot export outputs/stage2 --to models/mine
  divot reconstruct --model models/mine --input clip.mp4"
)]
pub struct Arguments {
    /// The run's folder
    run: PathBuf,
    /// The model's folder
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
    /// Export the parameters as they were trained last, instead of their moving average
    #[arg(long)]
    last: bool,
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        let weights = match self.last {
            true => Weights::Last,
            false => Weights::Best,
        };
        let folders = export(&self.run, &self.to, weights, &device::select("cpu")?)?;
        let folders = folders.iter().map(|folder| folder.display().to_string());
        let folders: Vec<String> = folders.collect();
        output.set("folders", folders.clone());
        for folder in folders {
            output.line(folder)?;
        }
        Ok(())
    }
}
