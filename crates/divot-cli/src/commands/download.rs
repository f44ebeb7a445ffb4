//! `divot download`

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use divot::convert::{Job, ReleasedConfig, Target};
use divot::hub::{Asset, Hub, Step};
use serde_json::json;

use super::convert::{Stored, convert_all};
use crate::files::check_folder;
use crate::interrupt;
use crate::output::{Output, size};

/// Download the released checkpoints and convert them
///
/// Without names it gets what turns videos into tokens and back: tokenizer, detokenizer and clip. To
/// describe videos add llm-comprehension, to generate them llm-generation and detokenizer-adapted; each
/// language model is a download of about 14 GiB.
///
/// Files go into the cache that other tools of the hub share, and are linked from there. A download that
/// was stopped goes on where it was. HF_ENDPOINT, HF_HUB_CACHE, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are
/// honoured.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  divot download
  divot download llm-comprehension --to models/divot
  divot download --offline --dtype f32"
)]
pub struct Arguments {
    /// Parts to get
    #[arg(value_enum, value_name = "PARTS", default_values_t = Asset::MODEL.map(PartName))]
    parts: Vec<PartName>,
    /// Folder of the converted model
    #[arg(long, value_name = "DIR", default_value = "models/divot")]
    to: PathBuf,
    /// Folder of the downloaded files
    #[arg(long, value_name = "DIR", default_value = "pretrained")]
    pretrained: PathBuf,
    #[command(flatten)]
    stored: Stored,
    /// Take what the cache has and ask nothing of the network
    #[arg(long)]
    offline: bool,
    /// Download and leave the conversion for `divot convert`
    #[arg(long)]
    no_convert: bool,
}

/// A part by its short name.
#[derive(Clone, Copy)]
struct PartName(Asset);

impl ValueEnum for PartName {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [PartName; Asset::ALL.len()] = {
            let mut all = [PartName(Asset::ALL[0]); Asset::ALL.len()];
            let mut i = 0;
            while i < all.len() {
                all[i] = PartName(Asset::ALL[i]);
                i += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()))
    }
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        let wanted: BTreeSet<Asset> = self.parts.iter().map(|part| part.0).collect();
        let mut assets = wanted.clone();
        // Converting them takes another part's files too.
        if assets.contains(&Asset::Tokenizer) {
            assets.insert(Asset::Clip);
        }
        if assets.contains(&Asset::Mistral) {
            assets.insert(Asset::TextTokenizer);
        }
        let mut hub = Hub::from_env()?;
        if self.offline {
            hub = hub.with_offline(true);
        }
        check_folder(&self.pretrained)?;
        if !self.no_convert {
            check_folder(&self.to)?;
        }

        let assets: Vec<Asset> = assets.into_iter().collect();
        let fetched = output.timed("download", |output| {
            let bar = output.bar("download", "{bytes}/{total_bytes}");
            let fetched = hub.download(&assets, &self.pretrained, |progress| {
                let step = match progress.step {
                    Step::Download => "download",
                    Step::Verify => "check",
                };
                bar.set_message(format!("{step} {}", progress.file));
                bar.set_length(progress.total);
                bar.set_position(progress.done);
                interrupt::flow()
            });
            bar.finish_and_clear();
            Ok(fetched?)
        })?;
        let bytes: u64 = fetched.iter().map(|file| file.size).sum();
        let downloaded: u64 = fetched.iter().map(|file| file.downloaded).sum();
        output.line(format!(
            "{} files, {}, {} of them downloaded now → {}",
            fetched.len(),
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
        let jobs: Vec<Job> = Target::ALL
            .into_iter()
            .filter(|target| wanted.iter().any(|asset| asset.name() == target.name()))
            .map(|target| Job::of(target, &[&self.pretrained]))
            .collect();
        let sizes = ReleasedConfig::divot();
        convert_all(&jobs, &sizes, &self.to, &self.stored, output)
    }
}
