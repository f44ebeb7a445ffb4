//! The networks of every part except language models, and the sources of their parameters.

use std::path::Path;

use burn::config::Config;
use burn::module::Module;

use super::ReleasedConfig;
use super::names::{self, Network, Released};
use super::plan::{Origin, TensorPlan};
use crate::DynamiCrafterConfig;
use crate::checkpoint::Part;
use crate::device;
use crate::error::{Error, Result};
use crate::weights::{ParamSpec, Source, WeightsError, module_layout};

/// A network of a part.
pub(super) struct Piece {
    pub network: Network,
    /// Its parameters.
    pub layout: Vec<ParamSpec>,
    /// What is in front of their names in the part.
    pub ours: &'static str,
    /// What is in front of their released names.
    theirs: &'static str,
}

impl Piece {
    fn new<M: Module>(network: Network, module: &M, ours: &'static str) -> Self {
        Self {
            network,
            layout: module_layout(module),
            ours,
            theirs: "",
        }
    }

    fn released_below(self, theirs: &'static str) -> Self {
        Self { theirs, ..self }
    }
}

/// Returns the networks of a part, and the part's configuration as JSON. Only names and shapes are read. No
/// parameter is initialised.
pub(super) fn networks(part: Part, sizes: &ReleasedConfig) -> (Vec<Piece>, String) {
    let device = device::host();
    match part {
        Part::Tokenizer => {
            let module = sizes.tokenizer.init(&device);
            let pieces = vec![
                Piece::new(Network::Vision, &module.vision, "vision."),
                Piece::new(Network::VideoResampler, &module.resampler, "resampler."),
            ];
            (pieces, json(&sizes.tokenizer))
        }
        Part::Detokenizer | Part::AdaptedDetokenizer => {
            let module = sizes.detokenizer.init(&device);
            let pieces = vec![
                Piece::new(Network::Perceiver, &module.resampler, "resampler."),
                Piece::new(Network::Unet, &module.unet, "unet."),
                Piece::new(Network::Vae, &module.vae, "vae."),
            ];
            (pieces, json(&sizes.detokenizer))
        }
        Part::Clip => {
            let module = sizes.text.init(&device);
            let pieces = vec![Piece::new(Network::Text, &module, "")];
            (pieces, json(&sizes.text))
        }
        _ => unreachable!("the other parts are planned by themselves"),
    }
}

/// Returns the networks of [`Part::DynamiCrafter`], and its configuration as JSON.
pub(super) fn dynamicrafter(sizes: &DynamiCrafterConfig) -> (Vec<Piece>, String) {
    let device = device::host();
    let vision = Piece::new(Network::Vision, &sizes.vision.init(&device), "vision.");
    let text = Piece::new(Network::Text, &sizes.text.init(&device), "text.");
    let pieces = vec![
        vision.released_below("embedder.model."),
        text.released_below("cond_stage_model.model."),
        Piece::new(Network::Perceiver, &sizes.image.init(&device), "image."),
        Piece::new(Network::Unet, &sizes.unet.init(&device), "unet."),
        Piece::new(Network::Vae, &sizes.vae.init(&device), "vae."),
    ];
    (pieces, json(sizes))
}

fn json(config: &impl Config) -> String {
    serde_json::to_string_pretty(config).unwrap_or_default()
}

/// How the names of the factors end that the second part of a split context has.
const ALPHA: &str = ".alpha";

/// Finds the source of every parameter before any tensor is read.
pub(super) fn plan<'a>(
    networks: &[Piece],
    sources: &'a [Source],
    part: Part,
) -> Result<Vec<TensorPlan<'a>>> {
    let mut plans = Vec::new();
    let mut missing = Vec::new();
    let mut tensors = sources.iter().flat_map(Source::tensors);
    // The smallest model of DynamiCrafter has no alpha at all. Zero gives its factor of one.
    let without_alpha =
        part == Part::DynamiCrafter && !tensors.any(|tensor| tensor.name.ends_with(ALPHA));
    for Piece {
        network,
        layout,
        ours: prefix,
        theirs,
    } in networks
    {
        let released = Released::new(*network, layout);
        for spec in layout {
            let ours = spec.path.as_str();
            let name = format!("{prefix}{ours}");
            let mut spec = released.spec(spec);
            let wanted = format!("{theirs}{}", spec.path);
            let source = sources
                .iter()
                .find_map(|source| names::find(source, &wanted));
            if source.is_none()
                && let Some((source, what)) = names::unreadable(sources, &wanted)
            {
                return Err(WeightsError::unreadable(&wanted, what)
                    .in_file(source.path())
                    .into());
            }
            if source.is_none() && !(without_alpha && wanted.ends_with(ALPHA)) {
                missing.push(wanted.clone());
            }
            // Messages use the tensor's name in the source.
            if let Some(source) = source {
                spec.path.clone_from(&source.name);
            }
            let narrow = part == Part::DynamiCrafter
                && *network == Network::Unet
                && ours == "conv_in.weight"
                && source.is_some_and(|source| source.shape.get(1) > spec.shape.get(1));
            let origin = match source {
                None => Origin::Zeros,
                Some(source) if narrow => Origin::Narrow(source),
                Some(source) => Origin::Copy(source),
            };
            plans.push(TensorPlan { name, spec, origin });
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
