//! `divot download`

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use divot::checkpoint::Part;
use divot::convert::{Job, ReleasedConfig};
use divot::hub::Hub;
use divot::pipeline::Event;
use serde_json::json;

use super::convert::{Stored, convert_all, part_parser};
use crate::files::check_folder;
use crate::output::{Output, plural, size};

/// Download the released checkpoints and convert them
#[derive(Args)]
#[command(
    long_about = long_about(),
    after_help = "\
Examples:
  divot download
  divot download llm-comprehension --to models/divot
  divot download --offline --dtype f32"
)]
pub struct Arguments {
    /// Parts to download
    #[arg(
        value_name = "PARTS",
        value_parser = part_parser(is_published),
        default_values_t = Part::MODEL,
        hide_possible_values = true
    )]
    parts: Vec<Part>,
    /// Folder of the converted model
    #[arg(long, value_name = "DIR", default_value = "models/divot")]
    to: PathBuf,
    /// Folder of the downloaded files
    #[arg(long, value_name = "DIR", default_value = "pretrained")]
    pretrained: PathBuf,
    #[command(flatten)]
    stored: Stored,
    /// Use only the cache, without a network
    #[arg(long)]
    offline: bool,
    /// Download only, and leave the conversion to `divot convert`
    #[arg(long)]
    no_convert: bool,
}

/// Builds the long help text, with a line for each part of the catalogue.
fn long_about() -> String {
    let mut text = "\
Download the released checkpoints and convert them

Without names it gets what turns videos into tokens and back: tokenizer, detokenizer and clip. The parts:
"
    .to_owned();
    for part in Part::ALL.into_iter().filter(|&part| is_published(part)) {
        let mebibytes: u64 = part.releases().iter().map(|it| it.mebibytes).sum();
        let (name, gib) = (part.name(), mebibytes as f64 / 1024.0);
        text += &format!("  {name:<20} {gib:>4.1} GiB  {}\n", part.about());
    }
    text += "
A file that several parts are made from is downloaded once.

Files go into the cache that other tools of the hub share, and are linked from there. A download that was
stopped goes on where it was. The environment variables are those of huggingface_hub: HF_ENDPOINT,
HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME, HF_TOKEN, HF_HUB_OFFLINE and others.";
    text
}

fn is_published(part: Part) -> bool {
    !part.releases().is_empty()
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        let parts: BTreeSet<Part> = self.parts.iter().copied().collect();
        let parts: Vec<Part> = parts.into_iter().collect();
        let mut hub = Hub::from_env()?;
        if self.offline {
            hub = hub.with_offline(true);
        }
        check_folder(&self.pretrained)?;
        if !self.no_convert {
            check_folder(&self.to)?;
        }

        let fetched = output.timed("download", |output| {
            let fetched = hub.download(&parts, &self.pretrained, |progress| {
                output.observe(Event::Progress(progress))
            });
            Ok(fetched.map_err(divot::Error::from)?)
        })?;
        let bytes: u64 = fetched.iter().map(|file| file.size).sum();
        let downloaded: u64 = fetched.iter().map(|file| file.downloaded).sum();
        output.line(format!(
            "{}, {}, {} of them downloaded now → {}",
            plural(fetched.len(), "file"),
            size(bytes),
            size(downloaded),
            self.pretrained.display()
        ))?;
        let files: Vec<_> = fetched
            .iter()
            .map(|file| {
                json!({
                    "repository": file.repository,
                    "file": file.file,
                    "path": file.path.to_string_lossy(),
                    "bytes": file.size,
                    "downloaded": file.downloaded,
                })
            })
            .collect();
        output.set("files", files);
        if self.no_convert {
            return Ok(());
        }
        let jobs: Vec<Job> = parts
            .into_iter()
            .map(|part| Job::of(part, &[&self.pretrained]))
            .collect();
        let sizes = ReleasedConfig::divot();
        convert_all(&jobs, &sizes, &self.to, &self.stored, output)
    }
}
