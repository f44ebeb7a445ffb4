//! `divot export`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use divot::device;
use divot::pipeline::Event;
use divot::weights::StoredType;
use divot_train::{Weights, export, export_released};

use super::convert::stored_type;
use crate::output::Output;

/// Turn a training run's newest checkpoint into a model
///
/// The folder can then be given as --model. Frozen networks are taken from where the recipe says, and low-rank
/// adaptation is merged. An adapted de-tokenizer becomes detokenizer-adapted. A language model becomes
/// llm-comprehension or llm-generation if it learned only that, and llm-pretrained otherwise. So several runs can be
/// exported into one folder; parts of the same name are replaced. A vision tower or an autoencoder alone is no model:
/// train a stage that starts from it.
///
/// With --released, the folder has the released files' names instead, for the released Python code and for
/// `transformers`. `divot convert --from FOLDER --config FOLDER/config.json` turns it back.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  divot export outputs/stage2 --to models/mine
  divot export outputs/stage2 --to models/small --dtype q8
  divot export outputs/stage2/checkpoints/step-00012000 --to models/earlier
  divot reconstruct --model models/mine --input clip.mp4
  divot export outputs/stage2 --to released/mine --released"
)]
pub struct Arguments {
    /// The run's folder, or that of one of its checkpoints; with --released also that of a model
    run: PathBuf,
    /// The folder that is written
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
    /// Export the parameters as they were trained last, instead of their moving average
    #[arg(long)]
    last: bool,
    /// Element type of the weights on disk; q8 rounds large ones to 8 bits, about half the size of f16, and q4 those of
    /// the language model to 4
    #[arg(
        long,
        value_name = "TYPE",
        default_value = "f32",
        value_parser = stored_type(),
        conflicts_with = "released"
    )]
    dtype: StoredType,
    /// Write PyTorch's and `transformers`' files under the released names
    #[arg(long)]
    released: bool,
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        let weights = match self.last {
            true => Weights::Last,
            false => Weights::Best,
        };
        let device = device::select("cpu")?;
        let (key, written) = match self.released {
            false => (
                "folders",
                export(&self.run, &self.to, weights, self.dtype, &device)?,
            ),
            true => {
                let exported = output.timed("export", |output| {
                    Ok(export_released(
                        &self.run,
                        &self.to,
                        weights,
                        &device,
                        |progress| output.observe(Event::Progress(progress)),
                    )?)
                })?;
                for note in &exported.notes {
                    output.note(note);
                }
                output.set("notes", exported.notes);
                let files = exported.files.into_iter();
                (
                    "files",
                    files.map(|file| exported.folder.join(file)).collect(),
                )
            }
        };
        let written: Vec<String> = written
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        output.set(key, &written);
        for path in written {
            output.line(path)?;
        }
        Ok(())
    }
}
