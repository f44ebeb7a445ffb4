//! Conversion of the released PyTorch checkpoints into ours, tensor by tensor.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//!
//! use burn::tensor::FloatDType;
//! use divot::convert::{Job, ReleasedConfig, convert};
//!
//! # fn main() -> Result<(), divot::Error> {
//! let sizes = ReleasedConfig::divot();
//! for job in Job::find("pretrained".as_ref())?.jobs {
//!     let to = "models/divot".as_ref();
//!     let report = convert(&job, &sizes, to, FloatDType::F16, |_| ControlFlow::Continue(()))?;
//!     println!("{report}");
//! }
//! # Ok(())
//! # }
//! ```

mod llm;
mod names;
mod recipe;
mod released;

pub use released::ReleasedConfig;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, FloatDType};
use divot_llm::TextTokenizer;

use crate::checkpoint::{CONFIG, Checkpoint, Part, TOKENIZER, UNCONDITIONAL, WEIGHTS};
use crate::device;
use crate::error::{Error, Result};
use crate::unconditional;
use crate::weights::{
    ParamSpec, Source, TensorSpec, WeightsError, module_layout, write_safetensors,
};
use crate::{Tokenizer, one_line};
use names::{Network, Released};
use recipe::{Plan, Recipe};

/// Where the released files lie below the folder they were downloaded into.
const CLIP_FILE: &str = "CLIP-ViT-H-14-laion2B-s32B-b79K/open_clip_pytorch_model.bin";
const TOKENIZER_FILE: &str = "Divot_tokenizer_detokenizer/Divot_tokenizer.bin";
const DETOKENIZER_FILE: &str = "Divot_tokenizer_detokenizer/Divot_detokenizer_stage1.bin";
const ADAPTED_FILE: &str = "Divot_tokenizer_detokenizer/Divot_detokenizer_stage2.bin";
const TEXT_TOKENIZER: &str = "cvlm_mistral_instruct_tokenizer";

/// One part to convert: the files it comes from and the folder it goes to.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Which networks.
    pub target: Target,
    /// Files or folders with the tensors, in order of precedence; of a language model, its
    /// tokenizer's folder too.
    pub sources: Vec<PathBuf>,
    /// What becomes of LoRA's matrices, where there are any.
    pub lora: Lora,
}

/// What a conversion does with LoRA's matrices.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Lora {
    /// They stay apart, to be trained further. Alpha is not in a checkpoint; without it, it is the
    /// rank, as released.
    Keep {
        /// Their product counts alpha / rank times.
        alpha: Option<f64>,
    },
    /// They are folded into the weights.
    Merge {
        /// Their product counts alpha / rank times.
        alpha: Option<f64>,
    },
}

/// What can be converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// Vision tower, transformers and Perceiver.
    Tokenizer,
    /// Perceiver, UNet and autoencoder.
    Detokenizer,
    /// The de-tokenizer adapted to features that the language model samples.
    AdaptedDetokenizer,
    /// CLIP's text tower.
    Clip,
    /// DynamiCrafter, cut down to the de-tokenizer that training starts from.
    DynamiCrafter,
    /// The language model tuned for comprehension.
    Comprehension,
    /// The language model tuned for generation.
    Generation,
    /// The language model before tuning.
    Pretrained,
    /// Any other language model: one that was trained with or without LoRA.
    Llm,
    /// Mistral-7B with the vocabulary grown, which pre-training starts from.
    Mistral,
}

impl Target {
    /// Every target.
    pub const ALL: [Self; 10] = [
        Self::Tokenizer,
        Self::Detokenizer,
        Self::AdaptedDetokenizer,
        Self::Clip,
        Self::DynamiCrafter,
        Self::Comprehension,
        Self::Generation,
        Self::Pretrained,
        Self::Llm,
        Self::Mistral,
    ];

    /// The folder's name in a checkpoint.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokenizer => Part::Tokenizer.name(),
            Self::Detokenizer => Part::Detokenizer.name(),
            Self::AdaptedDetokenizer => Part::AdaptedDetokenizer.name(),
            Self::Clip => Part::Clip.name(),
            Self::DynamiCrafter => "dynamicrafter",
            Self::Comprehension => Part::Comprehension.name(),
            Self::Generation => Part::Generation.name(),
            Self::Pretrained => Part::Pretrained.name(),
            Self::Llm => Part::Llm.name(),
            Self::Mistral => Part::Mistral.name(),
        }
    }

    /// Whether it is a part of the released model that everyone needs.
    fn is_released(self) -> bool {
        matches!(self, Self::Tokenizer | Self::Detokenizer | Self::Clip)
    }

    /// The released files, relative to the folder they were downloaded into.
    fn files(self) -> &'static [&'static str] {
        match self {
            Self::Tokenizer => &[TOKENIZER_FILE, CLIP_FILE],
            Self::Detokenizer => &[DETOKENIZER_FILE],
            Self::AdaptedDetokenizer => &[ADAPTED_FILE],
            Self::Clip => &[CLIP_FILE],
            Self::DynamiCrafter => &["dynamicrafter_256_v1/model.ckpt"],
            Self::Comprehension => &[
                "Divot_sft_comp/llm",
                "Divot_sft_comp/agent/pytorch_model.bin",
                TEXT_TOKENIZER,
            ],
            Self::Generation => &[
                "Divot_sft_gen/llm",
                "Divot_sft_gen/agent/pytorch_model.bin",
                TEXT_TOKENIZER,
            ],
            Self::Pretrained => &[
                "Divot_pretrain/llm",
                "Divot_pretrain/agent/pytorch_model.bin",
                TEXT_TOKENIZER,
            ],
            // Only what is named is such a one.
            Self::Llm => &[],
            Self::Mistral => &[TEXT_TOKENIZER, "Mistral-7B-Instruct-v0.1"],
        }
    }

    /// Whether it is a language model.
    pub fn is_llm(self) -> bool {
        matches!(
            self,
            Self::Comprehension | Self::Generation | Self::Pretrained | Self::Llm | Self::Mistral
        )
    }
}

/// The parts of a download.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Parts that can be converted.
    pub jobs: Vec<Job>,
    /// Parts of the released model that cannot, and the file that each lacks.
    pub lacking: Vec<(Target, PathBuf)>,
}

impl Job {
    /// The parts whose released files are below `from`.
    ///
    /// # Errors
    /// If there are none.
    pub fn find(from: &Path) -> Result<Found> {
        if !from.is_dir() {
            return Err(Error::config(
                from,
                "is no folder",
                "give the one that the released files were downloaded into, or name a part and its files",
            ));
        }
        let mut found = Found {
            jobs: Vec::new(),
            lacking: Vec::new(),
        };
        for target in Target::ALL {
            if target.files().is_empty() {
                continue;
            }
            let sources = target.files().iter().map(|file| as_published(from, file));
            let job = Self {
                target,
                sources: sources.collect(),
                lora: Lora::Keep { alpha: None },
            };
            match job.sources.iter().find(|source| !source.exists()) {
                None => found.jobs.push(job),
                Some(file) if target.is_released() => found.lacking.push((target, file.clone())),
                Some(_) => {}
            }
        }
        if found.jobs.is_empty() {
            return Err(Error::config(
                from,
                "holds no released checkpoint that is known",
                format!(
                    "it should hold {TOKENIZER_FILE} and the like, or name a part and its files"
                ),
            ));
        }
        Ok(found)
    }

    /// One part from files, or from folders: sharded checkpoints, or downloads as published.
    pub fn of(target: Target, from: &[impl AsRef<Path>]) -> Self {
        let sources = from
            .iter()
            .map(AsRef::as_ref)
            .flat_map(|from| {
                let published: Vec<PathBuf> = target
                    .files()
                    .iter()
                    .map(|file| as_published(from, file))
                    .collect();
                let is_checkpoint = from.is_file()
                    || published.is_empty()
                    || (target.is_llm() && !published.iter().any(|file| file.exists()))
                    || (from.is_dir()
                        && !published.iter().any(|file| file.exists())
                        && Source::open(from).is_ok());
                if is_checkpoint {
                    vec![from.to_path_buf()]
                } else {
                    published
                }
            })
            .collect();
        Self {
            target,
            sources,
            lora: Lora::Keep { alpha: None },
        }
    }
}

/// A published file, or the same saved in another format: `.safetensors` and so on, or a folder of
/// that name with shards.
fn as_published(from: &Path, file: &str) -> PathBuf {
    let path = from.join(file);
    ["bin", "safetensors", "pt", "pth", "ckpt", ""]
        .iter()
        .map(|extension| path.with_extension(extension))
        .find(|candidate| candidate.exists())
        .unwrap_or(path)
}

/// What a conversion did.
#[derive(Debug, Clone)]
pub struct Report {
    /// The part's name.
    pub part: &'static str,
    /// Where it was written.
    pub folder: PathBuf,
    /// Tensors converted.
    pub converted: usize,
    /// Numbers in them.
    pub parameters: usize,
    /// Tensors of the sources that the part has no use for.
    pub ignored: Vec<String>,
    /// Parameters that the source leaves out and that have a value that changes nothing.
    pub defaulted: Vec<String>,
    /// Parameters that nothing was released for, as training starts them.
    pub fresh: Vec<String>,
    /// Why the tokens of a mid-grey clip are not stored with a tokenizer, on one line; guidance then
    /// has them computed.
    pub not_stored: Option<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} tensors, {:.1} M parameters → {}",
            self.part,
            self.converted,
            self.parameters as f64 / 1e6,
            self.folder.display()
        )?;
        let list = |f: &mut fmt::Formatter<'_>, what: &str, names: &[String]| {
            if names.is_empty() {
                return Ok(());
            }
            write!(f, "\n  {what} {}: ", names.len())?;
            let shown = names.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
            let dots = if names.len() > 3 { ", …" } else { "" };
            write!(f, "{shown}{dots}")
        };
        list(f, "ignored", &self.ignored)?;
        list(f, "not in the source, left without effect", &self.defaulted)?;
        list(f, "not in the source, new for training", &self.fresh)?;
        if let Some(reason) = &self.not_stored {
            write!(
                f,
                "\n  the tokens of a grey clip are not stored, guidance will compute them: {reason}"
            )?;
        }
        Ok(())
    }
}

/// Progress of a conversion: tensors done and in all.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// The part's name.
    pub part: &'static str,
    /// Tensors done.
    pub done: usize,
    /// Tensors in all.
    pub total: usize,
}

/// Converts one part into `to/<part>`, as elements of `dtype`.
///
/// One tensor is in memory at a time. With a tokenizer the tokens of a mid-grey clip are stored, which
/// guidance needs ([`Checkpoint::unconditional`]): its network runs once on the CPU, a layer at a
/// time, over the weights as they were written. The part's folder appears when it is complete; an older one is
/// replaced then. `progress` is told about each tensor and may stop the conversion, which leaves
/// nothing behind.
///
/// # Errors
/// If a source cannot be read, lacks a tensor, or has one of another shape or with numbers that
/// `dtype` cannot hold; if `to` cannot be written; if `progress` stops it.
pub fn convert(
    job: &Job,
    sizes: &ReleasedConfig,
    to: &Path,
    dtype: FloatDType,
    progress: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Report> {
    let part = job.target.name();
    if job.target.is_llm() {
        let found = llm::Found::open(job)?;
        let (plans, config) = found.plan(job, sizes)?;
        let made = Made {
            sources: found.sources(),
            plans,
            config,
            tokenizer: Some(found.tokenizer()),
        };
        return write(part, to, dtype, made, progress);
    }
    let sources = job
        .sources
        .iter()
        .map(|path| Source::open(path))
        .collect::<Result<Vec<_>, _>>()?;
    let sizes = match job.target {
        Target::DynamiCrafter => &sizes.for_dynamicrafter(&sources)?,
        _ => sizes,
    };
    let (networks, config) = networks(job.target, sizes);
    let made = Made {
        sources: &sources,
        plans: plan(&networks, &sources, job.target)?,
        config,
        tokenizer: None,
    };
    write(part, to, dtype, made, progress)
}

/// A part that is ready to be written.
struct Made<'a> {
    sources: &'a [Source],
    plans: Vec<Plan<'a>>,
    config: String,
    tokenizer: Option<&'a TextTokenizer>,
}

/// Writes a part as planned.
fn write(
    part: &'static str,
    to: &Path,
    dtype: FloatDType,
    made: Made<'_>,
    mut progress: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Report> {
    let Made {
        sources,
        plans,
        config,
        tokenizer,
    } = made;
    let used: BTreeSet<&str> = plans
        .iter()
        .flat_map(|plan| plan.recipe.sources())
        .map(|source| source.name.as_str())
        .collect();
    let new = |fresh: bool| {
        let is_so = move |plan: &&Plan<'_>| {
            plan.recipe.is_new() && matches!(plan.recipe, Recipe::Fresh { .. }) == fresh
        };
        plans
            .iter()
            .filter(is_so)
            .map(|plan| plan.name.clone())
            .collect()
    };
    let mut report = Report {
        part,
        folder: to.join(part),
        converted: plans.len(),
        parameters: plans
            .iter()
            .map(|plan| plan.spec.shape.iter().product::<usize>())
            .sum(),
        ignored: sources
            .iter()
            .flat_map(Source::tensors)
            .filter(|tensor| !used.contains(tensor.name.as_str()))
            .map(|tensor| tensor.name.clone())
            .collect(),
        defaulted: new(false),
        fresh: new(true),
        not_stored: None,
    };

    check_replaceable(&report.folder)?;
    let (hidden, new) = staging(to, part)?;
    let entries: Vec<TensorSpec> = plans
        .iter()
        .map(|plan| TensorSpec {
            name: plan.name.clone(),
            shape: plan.spec.shape.clone(),
            dtype: dtype.into(),
        })
        .collect();
    let metadata = BTreeMap::from([("format".to_owned(), "divot".to_owned())]);
    write_safetensors(&new.join(WEIGHTS), &entries, &metadata, |i| {
        let data = plans[i].read(dtype.into())?;
        let step = Progress {
            part,
            done: i + 1,
            total: plans.len(),
        };
        match progress(step) {
            ControlFlow::Continue(()) => Ok(data),
            ControlFlow::Break(()) => Err(WeightsError::Stopped),
        }
    })?;
    if let Some(tokenizer) = tokenizer {
        let saved = tokenizer.save(&new.join(TOKENIZER));
        saved.map_err(divot_llm::LlmError::from)?;
    }
    fs::write(new.join(CONFIG), config).map_err(|error| not_written(&report.folder, &error))?;
    if part == Part::Tokenizer.name() {
        let step = Progress {
            part,
            done: plans.len(),
            total: plans.len(),
        };
        report.not_stored = store_unconditional(hidden.path(), || progress(step))?;
    }
    put_in_place(&new, &report.folder, part)
        .map_err(|error| not_written(&report.folder, &error))?;
    Ok(report)
}

/// Stores the tokens of a mid-grey clip with the tokenizer of `checkpoint`, or says why that is not
/// possible.
///
/// # Errors
/// If they cannot be written, or `on_layer` stops it.
fn store_unconditional(
    checkpoint: &Path,
    on_layer: impl FnMut() -> ControlFlow<()>,
) -> Result<Option<String>> {
    // The same numbers wherever a conversion runs, as far as processors go.
    let cpu = match device::select("cpu") {
        Ok(cpu) => cpu,
        Err(error) => return Ok(Some(one_line(&error))),
    };
    let mut checkpoint = Checkpoint::new(checkpoint, &cpu);
    match Tokenizer::unconditional_by_layers(&mut checkpoint, on_layer) {
        Ok(tokens) => unconditional::store(&checkpoint, tokens),
        Err(Error::Weights(WeightsError::Stopped)) => Err(WeightsError::Stopped.into()),
        // Weights that cannot run are said so when they are loaded.
        Err(error) => Ok(Some(one_line(&error))),
    }
}

/// The networks of a part with their prefixes, and the part's sizes as JSON. No parameter is
/// initialised: only their names and shapes are wanted.
fn networks(target: Target, sizes: &ReleasedConfig) -> (Vec<(Network, Vec<ParamSpec>)>, String) {
    fn layout<M: Module>(network: Network, module: &M) -> (Network, Vec<ParamSpec>) {
        (network, module_layout(module))
    }
    fn json(config: &impl Config) -> String {
        serde_json::to_string_pretty(config).unwrap_or_default()
    }
    let device = Device::default();
    match target {
        Target::Tokenizer => {
            let module = sizes.tokenizer.init(&device);
            let networks = vec![
                layout(Network::Vision, &module.vision),
                layout(Network::VideoResampler, &module.resampler),
            ];
            (networks, json(&sizes.tokenizer))
        }
        Target::Detokenizer | Target::AdaptedDetokenizer | Target::DynamiCrafter => {
            let module = sizes.detokenizer.init(&device);
            let networks = vec![
                layout(Network::ContextResampler, &module.resampler),
                layout(Network::Unet, &module.unet),
                layout(Network::Vae, &module.vae),
            ];
            (networks, json(&sizes.detokenizer))
        }
        Target::Clip => {
            let module = sizes.text.init(&device);
            (vec![layout(Network::Text, &module)], json(&sizes.text))
        }
        _ => unreachable!("language models are planned by themselves"),
    }
}

/// Finds the source of every parameter, before anything is read.
fn plan<'a>(
    networks: &[(Network, Vec<ParamSpec>)],
    sources: &'a [Source],
    target: Target,
) -> Result<Vec<Plan<'a>>> {
    let mut plans = Vec::new();
    let mut missing = Vec::new();
    for (network, layout) in networks {
        let released = Released::new(*network, layout);
        for spec in layout {
            let ours = spec.path.as_str();
            let wanted = released.name(ours);
            let source = sources
                .iter()
                .find_map(|source| names::find(source, &wanted));
            // DynamiCrafter's smaller models have no alpha: zero gives their factor of one.
            if source.is_none() && !(target == Target::DynamiCrafter && ours.ends_with(".alpha")) {
                missing.push(wanted.clone());
            }
            let name = format!("{}{}", network.prefix(), spec.path);
            // What goes wrong is said of the tensor as the source calls it.
            let mut spec = ParamSpec {
                path: source.map_or(wanted, |source| source.name.clone()),
                ..spec.clone()
            };
            if released.is_plain_matrix(ours) {
                // Stored as [input, output] already, unlike a PyTorch linear layer.
                spec.container = String::new();
            }
            let narrow = target == Target::DynamiCrafter
                && *network == Network::Unet
                && ours == "conv_in.weight"
                && source.is_some_and(|source| source.shape.get(1) > spec.shape.get(1));
            let recipe = match source {
                None => Recipe::Zeros,
                Some(source) if narrow => Recipe::Narrow(source),
                Some(source) => Recipe::Copy(source),
            };
            plans.push(Plan { name, spec, recipe });
        }
    }
    if !missing.is_empty() {
        missing.sort();
        let path = sources.first().map_or(Path::new(""), Source::path);
        return Err(Error::Weights(WeightsError::Lacking {
            path: path.to_path_buf(),
            names: missing,
        }));
    }
    Ok(plans)
}

/// A folder that holds more than a conversion is not replaced.
fn check_replaceable(folder: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    let foreign = entries
        .flatten()
        .map(|entry| entry.file_name())
        .find(|name| {
            ![CONFIG, WEIGHTS, TOKENIZER, UNCONDITIONAL]
                .iter()
                .any(|known| name == known)
        });
    match foreign {
        None => Ok(()),
        Some(name) => Err(Error::config(
            folder,
            format!(
                "holds `{}`, which is not of a conversion",
                name.to_string_lossy()
            ),
            "move it away or choose another folder",
        )),
    }
}

/// A folder beside the target, so that the last step is a rename. It is removed if that step is not
/// reached.
fn staging(to: &Path, part: &str) -> Result<(tempfile::TempDir, PathBuf)> {
    let make = || {
        fs::create_dir_all(to)?;
        let hidden = tempfile::Builder::new()
            .prefix(&format!(".{part}-"))
            .tempdir_in(to)?;
        // One that only its owner may read is no folder to end up with.
        let folder = hidden.path().join(part);
        fs::create_dir(&folder)?;
        Ok((hidden, folder))
    };
    make().map_err(|error| not_written(to, &error))
}

/// Renames the new folder into place. An older one steps aside to `.<part>.old` meanwhile, and comes
/// back if that fails.
fn put_in_place(new: &Path, folder: &Path, part: &str) -> std::io::Result<()> {
    if !folder.exists() {
        return fs::rename(new, folder);
    }
    let aside = folder.with_file_name(format!(".{part}.old"));
    if aside.exists() {
        fs::remove_dir_all(&aside)?;
    }
    fs::rename(folder, &aside)?;
    if let Err(error) = fs::rename(new, folder) {
        fs::rename(&aside, folder)?;
        return Err(error);
    }
    fs::remove_dir_all(&aside)
}

fn not_written(path: &Path, error: &std::io::Error) -> Error {
    Error::config(
        path,
        format!("cannot be written ({error})"),
        "choose a folder with room that you may write to",
    )
}
