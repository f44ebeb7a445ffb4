//! `divot convert`, and `cargo xtask convert-weights`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use divot::checkpoint::Part;
use divot::convert::{Job, Lora, ReleasedConfig, convert};
use divot::pipeline::Event;
use divot::weights::StoredType;
use serde_json::{Value, json};

use crate::interrupt;
use crate::output::Output;

/// Convert PyTorch checkpoints that are on this machine
#[derive(Args)]
#[command(
    long_about = long_about(),
    after_help = "\
Examples:
  divot convert --from pretrained --to models/divot --dtype f16
  divot convert --from model.ckpt --to models/start --part dynamicrafter
  divot convert --from Divot_tokenizer.bin --from open_clip_pytorch_model.bin \
      --to models/divot --part tokenizer
  divot convert --from checkpoint.pt --from Divot_pretrain/llm --from cvlm_mistral_instruct_tokenizer \
      --to models/divot --part llm --merge-lora"
)]
pub struct Arguments {
    /// Folder of the downloaded released files; with --part also files or sharded folders, with one --from
    /// for each
    #[arg(verbatim_doc_comment, long, value_name = "FROM", required = true)]
    from: Vec<PathBuf>,
    /// Folder of the converted model; each part becomes a folder in it
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    #[command(flatten)]
    stored: Stored,
    /// Parts to convert [default: all that are found]
    #[arg(long, value_name = "PART", value_parser = part_parser(|_| true))]
    part: Vec<Part>,
    /// JSON file with the sizes of the model [default: those of the released model]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Merge LoRA's matrices into a language model's weights: smaller and faster, but LoRA cannot be
    /// trained further
    #[arg(verbatim_doc_comment, long)]
    merge_lora: bool,
    /// LoRA's alpha, which checkpoints do not contain [default: the rank, as released]
    #[arg(long, value_name = "ALPHA", allow_negative_numbers = true)]
    lora_alpha: Option<f64>,
}

/// Options for the storage of converted weights.
#[derive(Args)]
pub(crate) struct Stored {
    /// Element type of the weights on disk; q8 rounds large ones to 8 bits, about half the size of f16, and q4 those of
    /// the language model to 4
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = stored_type())]
    dtype: StoredType,
}

/// Parses the name of an element type on disk.
pub(crate) fn stored_type() -> impl TypedValueParser<Value = StoredType> {
    PossibleValuesParser::new(StoredType::NAMES).try_map(|name| name.parse::<StoredType>())
}

/// Builds the long help text, which lists the released files of the catalogue.
fn long_about() -> String {
    let mut files: BTreeMap<&str, Vec<Part>> = BTreeMap::new();
    for part in Part::ALL {
        for release in part.releases() {
            files.entry(release.path).or_default().push(part);
        }
    }
    let mut text = "\
Convert PyTorch checkpoints that are here already

FROM holds the download as it was published:
"
    .to_owned();
    for (file, parts) in files {
        let names: Vec<&str> = parts.iter().copied().map(Part::name).collect();
        text += &format!("  {file:<59} {}\n", names.join(", "));
    }
    text += "Each file may be .bin, .safetensors, .pt, .pth or .ckpt, or a folder of shards.\n\nThe parts:\n";
    for part in Part::ALL {
        let needed = match Part::MODEL.contains(&part) {
            true => " (everyone needs it)",
            false => "",
        };
        text += &format!("  {:<20} {}{needed}\n", part.name(), part.about());
    }
    text
}

/// Parses the name of a part. Only parts that are `wanted` are accepted.
pub(crate) fn part_parser(wanted: fn(Part) -> bool) -> impl TypedValueParser<Value = Part> {
    let names = Part::ALL.into_iter().filter(|&part| wanted(part));
    PossibleValuesParser::new(names.map(Part::name))
        .try_map(|name| Part::from_name(&name).ok_or("no such part"))
}

/// Converts the requested parts and prints a report.
///
/// # Errors
/// If a file is missing, damaged or belongs to another model, if a file cannot be written, or if Ctrl-C
/// was pressed.
pub fn run(arguments: &Arguments) -> Result<()> {
    interrupt::handle()?;
    report(arguments, &mut Output::default())
}

/// Like [`run`], with the report in `output`.
pub(crate) fn report(arguments: &Arguments, output: &mut Output) -> Result<()> {
    let sizes = match &arguments.config {
        Some(path) => ReleasedConfig::read(path)?,
        None => ReleasedConfig::divot(),
    };
    if let Some(alpha) = arguments.lora_alpha
        && !(alpha.is_finite() && alpha > 0.0)
    {
        bail!("lora_alpha is {alpha}; use a number above 0");
    }
    let mut lacking = Vec::new();
    let mut jobs = match (&arguments.part[..], &arguments.from[..]) {
        ([], [from]) => {
            let found = Job::find(from)?;
            for (part, file) in &found.lacking {
                output.note(format!("no {part}: {} is missing", file.display()));
            }
            lacking = found.lacking;
            found.jobs
        }
        ([], _) => bail!("several --from need a --part"),
        (parts, from) => parts.iter().map(|&part| Job::of(part, from)).collect(),
    };
    for job in jobs.iter_mut().filter(|job| job.part.is_llm()) {
        let alpha = arguments.lora_alpha;
        job.lora = match arguments.merge_lora {
            true => Lora::Merge { alpha },
            false => Lora::Keep { alpha },
        };
    }
    convert_all(&jobs, &sizes, &arguments.to, &arguments.stored, output)?;
    ensure!(
        lacking.is_empty(),
        "the model is not complete without the parts above; add their files, or name the parts you want with --part"
    );
    Ok(())
}

/// Converts the parts one after another.
pub(crate) fn convert_all(
    jobs: &[Job],
    sizes: &ReleasedConfig,
    to: &Path,
    stored: &Stored,
    output: &mut Output,
) -> Result<()> {
    let mut done = Vec::new();
    let mut reports: Vec<Value> = Vec::new();
    for job in jobs {
        let report = output.timed("conversion", |output| {
            let report = convert(job, sizes, to, stored.dtype, |progress| {
                output.observe(Event::Progress(progress))
            });
            report.with_context(|| {
                let finished = match done.is_empty() {
                    true => String::new(),
                    false => format!(" (finished before it: {})", done.join(", ")),
                };
                format!("{} is not converted{finished}", job.part.name())
            })
        })?;
        done.push(job.part.name());
        output.line(&report)?;
        reports.push(json!({
            "part": report.part.name(),
            "folder": report.folder.to_string_lossy(),
            "tensors": report.converted,
            "parameters": report.parameters,
            "ignored": report.ignored,
            "narrowed": report.narrowed,
            "defaulted": report.defaulted,
            "fresh": report.fresh,
            "not_stored": report.not_stored,
        }));
    }
    output.set("to", to.to_string_lossy());
    output.set("parts", reports);
    Ok(())
}
