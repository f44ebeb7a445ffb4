//! The networks of every part except language models, and the sources of their parameters.

use std::path::Path;

use burn::config::Config;
use burn::module::Module;
use burn::tensor::Device;

use super::ReleasedConfig;
use super::names::{self, Network, Released};
use super::plan::{Origin, TensorPlan};
use crate::checkpoint::Part;
use crate::error::{Error, Result};
use crate::weights::{ParamSpec, Source, WeightsError, module_layout};

/// Returns the parameters of each network of a part, and the part's configuration as JSON. Only names and
/// shapes are read. No parameter is initialised.
pub(super) fn networks(
    part: Part,
    sizes: &ReleasedConfig,
) -> (Vec<(Network, Vec<ParamSpec>)>, String) {
    fn layout<M: Module>(network: Network, module: &M) -> (Network, Vec<ParamSpec>) {
        (network, module_layout(module))
    }
    fn json(config: &impl Config) -> String {
        serde_json::to_string_pretty(config).unwrap_or_default()
    }
    let device = Device::default();
    match part {
        Part::Tokenizer => {
            let module = sizes.tokenizer.init(&device);
            let networks = vec![
                layout(Network::Vision, &module.vision),
                layout(Network::VideoResampler, &module.resampler),
            ];
            (networks, json(&sizes.tokenizer))
        }
        Part::Detokenizer | Part::AdaptedDetokenizer | Part::DynamiCrafter => {
            let module = sizes.detokenizer.init(&device);
            let networks = vec![
                layout(Network::ContextResampler, &module.resampler),
                layout(Network::Unet, &module.unet),
                layout(Network::Vae, &module.vae),
            ];
            (networks, json(&sizes.detokenizer))
        }
        Part::Clip => {
            let module = sizes.text.init(&device);
            (vec![layout(Network::Text, &module)], json(&sizes.text))
        }
        _ => unreachable!("language models are planned by themselves"),
    }
}

/// Finds the source of every parameter before any tensor is read.
pub(super) fn plan<'a>(
    networks: &[(Network, Vec<ParamSpec>)],
    sources: &'a [Source],
    part: Part,
) -> Result<Vec<TensorPlan<'a>>> {
    let mut plans = Vec::new();
    let mut missing = Vec::new();
    for (network, layout) in networks {
        let released = Released::new(*network, layout);
        for spec in layout {
            let ours = spec.path.as_str();
            let name = format!("{}{ours}", network.prefix());
            let mut spec = released.spec(spec);
            let wanted = spec.path.clone();
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
            // DynamiCrafter's smaller models have no alpha. Zero gives their factor of one.
            if source.is_none() && !(part == Part::DynamiCrafter && ours.ends_with(".alpha")) {
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
