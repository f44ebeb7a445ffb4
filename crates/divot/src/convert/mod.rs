//! Conversion of the released PyTorch checkpoints to ours, tensor by tensor, and back.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//!
//! use divot::convert::{Job, ReleasedConfig, convert};
//! use divot::weights::StoredType;
//!
//! # fn main() -> Result<(), divot::Error> {
//! let sizes = ReleasedConfig::divot();
//! for job in Job::find("pretrained".as_ref())?.jobs {
//!     let to = "models/divot".as_ref();
//!     let report = convert(&job, &sizes, to, StoredType::F16, |_| ControlFlow::Continue(()))?;
//!     println!("{report}");
//! }
//! # Ok(())
//! # }
//! ```

mod decoder;
mod export;
mod job;
mod llm;
mod names;
mod networks;
mod plan;
mod released;

pub use export::{Exported, export_released};
pub use job::{Found, Job, Lora};
pub use released::ReleasedConfig;

use std::collections::BTreeSet;
use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use divot_llm::TextTokenizer;

use crate::checkpoint::{Checkpoint, Part};
use crate::device;
use crate::error::Result;
use crate::progress::Progress;
use crate::weights::{Source, StoredType};
use plan::{Origin, TensorPlan};

/// The result of a conversion.
#[derive(Debug, Clone)]
pub struct Report {
    /// The part.
    pub part: Part,
    /// The folder that was written.
    pub folder: PathBuf,
    /// Number of converted tensors.
    pub converted: usize,
    /// Number of their parameters.
    pub parameters: usize,
    /// Tensors of the sources that the part does not need.
    pub ignored: Vec<String>,
    /// Parameters that have lost the input channels of an image's latents.
    pub narrowed: Vec<String>,
    /// Parameters that are missing in the source and were set to a value that has no effect.
    pub defaulted: Vec<String>,
    /// Parameters that were never released, which have initial values for training.
    pub fresh: Vec<String>,
    /// Why the tokens of a mid-grey clip are not stored with the video tokenizer, on one line. Guidance
    /// then computes them.
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
        list(f, "without the input channels of an image", &self.narrowed)?;
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

/// Converts one part into `to/<part>`, with elements of the type `stored`.
///
/// One tensor is in memory at a time. The part is written as by [`Checkpoint::save`]. Its folder appears,
/// and replaces an older one, when it is complete. With the video tokenizer, the tokens of a mid-grey clip
/// are stored.
///
/// `progress` is called for each tensor and may stop the conversion. Nothing is left behind then.
///
/// # Errors
/// If a source cannot be read, lacks a tensor, or has one of another shape or with values that `stored`
/// cannot represent; if `to` cannot be written; if another process wrote the same part in the meantime; if
/// `progress` stops it ([`Error::Stopped`](crate::Error::Stopped)).
pub fn convert(
    job: &Job,
    sizes: &ReleasedConfig,
    to: &Path,
    stored: impl Into<StoredType>,
    progress: impl FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<Report> {
    let (part, stored) = (job.part, stored.into());
    if part.is_llm() {
        let pieces = llm::Pieces::open(job)?;
        let (plans, config) = pieces.plan(job, sizes)?;
        let planned = Planned {
            part,
            sources: pieces.sources(),
            plans,
            config,
            text: Some(pieces.text_tokenizer()),
        };
        return planned.write(to, stored, progress);
    }
    let sources = job
        .sources
        .iter()
        .map(|path| Source::open(path))
        .collect::<Result<Vec<_>, _>>()?;
    let (networks, config) = match part {
        Part::DynamiCrafter => networks::dynamicrafter(&sizes.for_dynamicrafter(&sources)?),
        _ => networks::networks(part, sizes),
    };
    let planned = Planned {
        part,
        sources: &sources,
        plans: networks::plan(&networks, &sources, part)?,
        config,
        text: None,
    };
    planned.write(to, stored, progress)
}

/// The plan for a part, ready to be written.
struct Planned<'a> {
    part: Part,
    sources: &'a [Source],
    plans: Vec<TensorPlan<'a>>,
    config: String,
    text: Option<&'a TextTokenizer>,
}

impl Planned<'_> {
    fn write(
        &self,
        to: &Path,
        stored: StoredType,
        progress: impl FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Report> {
        let mut checkpoint = Checkpoint::new(to, &device::host()).with_progress(progress);
        let mut saving = checkpoint.saving(self.part, &self.config)?;
        if let Some(text) = self.text {
            saving.text_tokenizer(text)?;
        }
        let params: Vec<_> = self
            .plans
            .iter()
            .map(|plan| (plan.name.clone(), plan.spec.shape.clone()))
            .collect();
        let dtype = stored.before_storing();
        saving.params(&params, stored, |i| self.plans[i].read(dtype))?;
        let saved = saving.finish()?;

        let used: BTreeSet<&str> = self
            .plans
            .iter()
            .flat_map(|plan| plan.origin.sources())
            .map(|source| source.name.as_str())
            .collect();
        let names = |wanted: fn(&Origin<'_>) -> bool| {
            let plans = self.plans.iter().filter(|plan| wanted(&plan.origin));
            plans.map(|plan| plan.name.clone()).collect()
        };
        let tensors = self.sources.iter().flat_map(Source::tensors);
        Ok(Report {
            part: self.part,
            folder: saved.folder,
            converted: self.plans.len(),
            parameters: self
                .plans
                .iter()
                .map(|plan| plan.spec.shape.iter().product::<usize>())
                .sum(),
            ignored: tensors
                .filter(|tensor| !used.contains(tensor.name.as_str()))
                .map(|tensor| tensor.name.clone())
                .collect(),
            narrowed: names(|origin| matches!(origin, Origin::Narrow(_))),
            defaulted: names(|origin| matches!(origin, Origin::Zeros)),
            fresh: names(|origin| matches!(origin, Origin::Fresh { .. })),
            not_stored: saved.not_stored,
        })
    }
}
