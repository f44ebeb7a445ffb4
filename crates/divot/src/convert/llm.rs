//! Conversion of the language model: the decoder with Mistral's names, merged or with LoRA under PEFT's
//! names; the projections, which the released code calls the agent; and the text tokenizer.

use std::path::{Path, PathBuf};

use divot_gmm::{GmmConfig, HeadConfig};
use divot_llm::{
    DivotLlmConfig, LlmError, LoraConfig, LoraTarget, MistralConfig, SpecialTokens, TextTokenizer,
};
use divot_nn::CheckSizes;
use serde::Deserialize;

use super::decoder::DecoderConfig;
use super::plan::{Origin, TensorPlan};
use super::{Job, Lora, ReleasedConfig};
use crate::checkpoint::{CONFIG, Part, TEXT_TOKENIZER};
use crate::device;
use crate::error::{Error, Result};
use crate::weights::{ParamSpec, Source, SourceTensor, WeightsError, holds_weights, module_layout};

/// New rows of the vocabulary are the mean of the old rows in the embedding table, and this factor times
/// the mean in the output head.
const HEAD_FACTOR: f64 = 3.0;

/// Remedy for tensors that do not fit each other.
const ONE_MODEL: &str = "give the files of one model";

/// The pieces of a language model that were found in the sources.
pub(super) struct Pieces {
    sources: Vec<Source>,
    config: MistralConfig,
    tokenizer: TextTokenizer,
    adapter: Option<AdapterConfig>,
}

/// The configuration that PEFT stores with an adapter.
#[derive(Deserialize)]
struct AdapterConfig {
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
}

/// Name of an adapter's configuration.
const ADAPTER_CONFIG: &str = "adapter_config.json";

impl AdapterConfig {
    fn read(path: &Path) -> Result<Self> {
        let refused = |problem: String| {
            Error::config(path, problem, "give the adapter's folder as PEFT saved it")
        };
        let text =
            std::fs::read(path).map_err(|error| refused(format!("cannot be read ({error})")))?;
        serde_json::from_slice(&text)
            .map_err(|error| refused(format!("does not say LoRA's alpha ({error})")))
    }

    /// Returns alpha. The product is scaled by alpha / rank.
    fn alpha(&self, rank: f64) -> f64 {
        match self.use_rslora {
            true => self.lora_alpha * rank.sqrt(),
            false => self.lora_alpha,
        }
    }
}

impl Pieces {
    /// Finds the weights, the decoder's `config.json` and the text tokenizer in a job's files and folders.
    /// One folder may contain all three.
    pub fn open(job: &Job) -> Result<Self> {
        let mut sources = Vec::new();
        let mut config = None;
        let mut tokenizer = None;
        let mut adapter = None;
        for path in &job.sources {
            let is_tokenizer = [TEXT_TOKENIZER, "tokenizer.model"]
                .iter()
                .any(|name| path.join(name).is_file());
            if is_tokenizer && tokenizer.is_none() {
                tokenizer = Some(TextTokenizer::open(path).map_err(LlmError::from)?);
            }
            // In the folder, or beside the file if the source is a training checkpoint.
            let beside = |name: &str| match path.is_dir() {
                true => path.join(name),
                false => path.with_file_name(name),
            };
            let own = beside(CONFIG);
            if adapter.is_none() && beside(ADAPTER_CONFIG).is_file() {
                adapter = Some(AdapterConfig::read(&beside(ADAPTER_CONFIG))?);
            }
            if config.is_none() && own.is_file() {
                config = Some(DecoderConfig::read(&own)?);
            }
            match Source::open(path) {
                Ok(source) => sources.push(source),
                // The folder of a tokenizer, or of a decoder from which only the sizes are needed.
                Err(_) if path.is_dir() && !holds_weights(path) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let first = job.sources.first().map_or(Path::new(""), PathBuf::as_path);
        let config = config.ok_or_else(|| {
            Error::config(
                first,
                "has no config.json with the decoder's sizes",
                "add the folder of the decoder that it was trained from to the sources",
            )
        })?;
        let mut tokenizer = tokenizer.ok_or_else(|| {
            Error::config(
                first,
                "has no text tokenizer beside it",
                "add the folder with its tokenizer.json or tokenizer.model (cvlm_mistral_instruct_tokenizer) to the sources",
            )
        })?;
        if job.part == Part::Mistral {
            tokenizer.add_divot_tokens().map_err(LlmError::from)?;
        }
        Ok(Self {
            sources,
            config,
            tokenizer,
            adapter,
        })
    }

    /// Returns the files of the tensors.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// Returns the text tokenizer, which is saved with the weights.
    pub fn text_tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// Finds the source of every parameter. Returns also the sizes as JSON.
    pub fn plan(&self, job: &Job, sizes: &ReleasedConfig) -> Result<(Vec<TensorPlan<'_>>, String)> {
        let grows = job.part == Part::Mistral;
        let num_queries = sizes.tokenizer.resampler.tokens;
        SpecialTokens::of(&self.tokenizer, num_queries)?;

        let table = self.decoder_tensor("model.embed_tokens.weight");
        let rows = table.and_then(|table| table.shape.first()).copied();
        let rows = rows.unwrap_or(self.config.vocab_size);
        let tokens = self.tokenizer.vocab_size();
        if tokens > rows && !grows {
            return Err(LlmError::Vocabulary { tokens, rows }.into());
        }
        let decoder = MistralConfig {
            vocab_size: rows.max(tokens),
            ..self.config.clone()
        };
        let config = DivotLlmConfig::new(decoder, self.head(sizes)?)
            .with_num_queries(num_queries)
            .with_lora(match job.lora {
                Lora::Merge { .. } => None,
                Lora::Keep { alpha } => self.lora(alpha)?,
            });
        if matches!(job.lora, Lora::Merge { .. }) && self.lora(None)?.is_none() {
            return Err(self.refused(
                "holds no LoRA to merge",
                "convert it without merging, or add the checkpoint that holds the LoRA to the sources",
            ));
        }
        config.check_sizes().map_err(|error| {
            self.refused(
                format!("describes an invalid configuration ({error})"),
                "give the files of one model",
            )
        })?;

        let layout = module_layout(&config.init(&device::host()));
        let mut missing = Vec::new();
        let mut plans = Vec::new();
        for (index, spec) in layout.into_iter().enumerate() {
            let wanted = released_name(&spec.path);
            match self.origin(job, &spec, &wanted, index)? {
                Some(origin) => plans.push(TensorPlan {
                    name: spec.path.clone(),
                    spec: ParamSpec {
                        path: wanted,
                        ..spec
                    },
                    origin,
                }),
                None => {
                    if let Some((source, what)) = self.unreadable(&wanted) {
                        let error = WeightsError::unreadable(&wanted, what);
                        return Err(error.in_file(source.path()).into());
                    }
                    missing.push(wanted);
                }
            }
        }
        if !missing.is_empty() {
            missing.sort();
            return Err(Error::Weights(WeightsError::Lacking {
                path: self.path().to_path_buf(),
                names: missing,
            }));
        }
        let used: Vec<&str> = plans
            .iter()
            .flat_map(|plan| plan.origin.sources())
            .map(|source| source.name.as_str())
            .collect();
        let all = self.sources.iter().flat_map(Source::tensors);
        if let Some(lost) = all
            .map(|tensor| tensor.name.as_str())
            .find(|name| name.contains(".lora_") && !used.contains(name))
        {
            return Err(self.refused(
                format!("has `{lost}`, which would be lost"),
                "give a checkpoint with one adapter, the default, whose matrices come in pairs",
            ));
        }
        let json = serde_json::to_string_pretty(&config).unwrap_or_default();
        Ok((plans, json))
    }

    fn origin<'a>(
        &'a self,
        job: &Job,
        spec: &ParamSpec,
        wanted: &str,
        index: usize,
    ) -> Result<Option<Origin<'a>>> {
        let start = job.part == Part::Mistral;
        let Some(stem) = wanted
            .strip_suffix(".weight")
            .filter(|_| is_decoder(wanted))
        else {
            return Ok(match self.find(wanted) {
                Some(source) => Some(Origin::Copy(source)),
                // Training starts with projections that are initialised as in PyTorch.
                None if start => Some(Origin::Fresh {
                    bound: 1.0 / (self.fan_in(wanted, spec) as f64).sqrt(),
                    seed: index as u64,
                }),
                None => None,
            });
        };
        let Some(source) = self.decoder_tensor(wanted) else {
            return Ok(None);
        };
        if start && (stem == "model.embed_tokens" || stem == "lm_head") {
            let &[rows, _] = &source.shape[..] else {
                return Err(self.refused(format!("`{}` is no table", source.name), ONE_MODEL));
            };
            return Ok(Some(Origin::Grown {
                table: source,
                rows: self.tokenizer.vocab_size().max(rows),
                factor: if stem == "lm_head" { HEAD_FACTOR } else { 1.0 },
            }));
        }
        if let Lora::Merge { alpha } = job.lora
            && let (Some(a), Some(b)) = (
                self.decoder_tensor(&format!("{stem}.lora_A.weight")),
                self.decoder_tensor(&format!("{stem}.lora_B.weight")),
            )
        {
            let fit = match (&a.shape[..], &b.shape[..], &source.shape[..]) {
                (&[rank, input], &[output, other], base) => {
                    rank > 0 && rank == other && base == [output, input]
                }
                _ => false,
            };
            if !fit {
                return Err(self.refused(
                    format!(
                        "has LoRA of {:?} and {:?} for `{}` of {:?}, whose product does not fit",
                        b.shape, a.shape, source.name, source.shape
                    ),
                    ONE_MODEL,
                ));
            }
            let rank = a.shape[0] as f64;
            return Ok(Some(Origin::Merged {
                base: source,
                a,
                b,
                scale: self.alpha(alpha, rank) / rank,
            }));
        }
        Ok(Some(Origin::Copy(source)))
    }

    /// Returns alpha of LoRA: the requested one, that of PEFT's configuration, or the rank, as released.
    fn alpha(&self, asked: Option<f64>, rank: f64) -> f64 {
        asked
            .or_else(|| Some(self.adapter.as_ref()?.alpha(rank)))
            .unwrap_or(rank)
    }

    fn path(&self) -> &Path {
        self.sources.first().map_or(Path::new(""), Source::path)
    }

    fn refused(&self, problem: impl Into<String>, remedy: &str) -> Error {
        Error::config(self.path(), problem, remedy)
    }

    /// Returns the number of inputs of the linear layer in a projection to which a parameter belongs.
    fn fan_in(&self, wanted: &str, spec: &ParamSpec) -> usize {
        let hidden = self.config.hidden_size;
        match spec.shape[..] {
            [input, _] => input,
            // A bias. The first layer of a projection has the input of the projection.
            [width] if wanted.contains("proj.2") => width,
            _ if wanted.starts_with("input") => GmmConfig::new().dim,
            _ => hidden,
        }
    }

    /// Returns the mixture that matches the width of the output projection, or the released mixture if
    /// there is no such projection yet.
    fn head(&self, sizes: &ReleasedConfig) -> Result<HeadConfig> {
        let shape = |name: &str| self.find(name).map(|tensor| tensor.shape.clone());
        let (Some(input), Some(output)) = (
            shape("input_resampler.proj.0.weight"),
            shape("output_resampler.proj.2.weight"),
        ) else {
            let dim = sizes.tokenizer.resampler.token_dim;
            return Ok(HeadConfig::Gmm(GmmConfig::new().with_dim(dim)));
        };
        let (dim, width) = (
            input.last().copied().unwrap_or(0),
            output.first().copied().unwrap_or(0),
        );
        // k means and variances of `dim` values each, and k weights.
        if dim == 0 || width == 0 || width % (2 * dim + 1) != 0 {
            return Err(self.refused(
                format!("has an output projection of {width}, which holds no mixture over {dim}"),
                "give the agent's file of the same model",
            ));
        }
        let head = GmmConfig::new()
            .with_dim(dim)
            .with_num_components(width / (2 * dim + 1));
        Ok(HeadConfig::Gmm(head))
    }

    /// Returns the LoRA configuration if the files contain LoRA.
    fn lora(&self, alpha: Option<f64>) -> Result<Option<LoraConfig>> {
        let matrix = |target: LoraTarget| {
            let group = match target {
                LoraTarget::GateProj | LoraTarget::UpProj | LoraTarget::DownProj => "mlp",
                _ => "self_attn",
            };
            let stem = format!("model.layers.0.{group}.{}", target.name());
            self.decoder_tensor(&format!("{stem}.lora_A.weight"))
        };
        let targets: Vec<LoraTarget> = LoraTarget::ALL
            .into_iter()
            .filter(|&target| matrix(target).is_some())
            .collect();
        let Some(a) = targets.first().and_then(|&target| matrix(target)) else {
            return Ok(None);
        };
        let &[rank, _] = &a.shape[..] else {
            return Err(self.refused(format!("`{}` is no matrix", a.name), ONE_MODEL));
        };
        Ok(Some(
            LoraConfig::new()
                .with_rank(rank)
                .with_alpha(self.alpha(alpha, rank as f64))
                .with_targets(targets),
        ))
    }

    /// Finds a tensor of the decoder, by Mistral's name or by the name that PEFT or the agent derives from
    /// it. A tensor that PEFT trained in full takes precedence over its original.
    fn decoder_tensor(&self, name: &str) -> Option<&SourceTensor> {
        let names: Vec<String> = decoder_names(name).collect();
        self.sources.iter().find_map(|source| {
            let mut names = names.iter();
            names.find_map(|name| super::names::find(source, name))
        })
    }

    /// Finds an unreadable tensor of this name, or of the name that PEFT or the agent derives from it.
    fn unreadable(&self, name: &str) -> Option<(&Source, &str)> {
        let names = std::iter::once(name.to_owned()).chain(decoder_names(name));
        let mut names = names.into_iter();
        names.find_map(|name| super::names::unreadable(&self.sources, &name))
    }

    fn find(&self, name: &str) -> Option<&SourceTensor> {
        self.sources
            .iter()
            .find_map(|source| super::names::find(source, name))
    }
}

/// Returns the possible names of a decoder's tensor, in order of precedence.
fn decoder_names(name: &str) -> impl Iterator<Item = String> {
    let forms = ["modules_to_save.default.", "", "default.", "base_layer."];
    let prefixes = ["", "llm.", "base_model.model.", "llm.base_model.model."];
    let stem = name.strip_suffix(".weight").map(str::to_owned);
    stem.into_iter().flat_map(move |stem| {
        forms.into_iter().flat_map(move |form| {
            let stem = stem.clone();
            prefixes
                .into_iter()
                .map(move |prefix| format!("{prefix}{stem}.{form}weight"))
        })
    })
}

/// Returns whether a released tensor is the decoder's. The others are the agent's.
pub(super) fn is_decoder(released: &str) -> bool {
    !released.contains("put_resampler.")
}

/// Returns the released name of one of our parameters.
pub(super) fn released_name(path: &str) -> String {
    let name = match path.strip_suffix("gamma") {
        Some(stem) => format!("{stem}weight"),
        None => path.to_owned(),
    };
    for (ours, theirs) in [
        ("input_proj.fc1.", "input_resampler.proj.0."),
        ("input_proj.fc2.", "input_resampler.proj.2."),
        ("output_proj.fc1.", "output_resampler.proj.0."),
        ("output_proj.fc2.", "output_resampler.proj.2."),
    ] {
        if let Some(rest) = name.strip_prefix(ours) {
            return format!("{theirs}{rest}");
        }
    }
    let name = name.strip_prefix("llm.").unwrap_or(&name);
    let name = name
        .replace(".base.weight", ".weight")
        .replace(".lora_a.weight", ".lora_A.weight")
        .replace(".lora_b.weight", ".lora_B.weight");
    match name.starts_with("lm_head.") {
        true => name,
        false => format!("model.{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_names() {
        for (ours, theirs) in [
            ("llm.embed_tokens.weight", "model.embed_tokens.weight"),
            ("llm.lm_head.weight", "lm_head.weight"),
            ("llm.norm.gamma", "model.norm.weight"),
            (
                "llm.layers.3.self_attn.q_proj.base.weight",
                "model.layers.3.self_attn.q_proj.weight",
            ),
            (
                "llm.layers.3.mlp.up_proj.lora_b.weight",
                "model.layers.3.mlp.up_proj.lora_B.weight",
            ),
            ("input_proj.fc2.bias", "input_resampler.proj.2.bias"),
        ] {
            assert_eq!(released_name(ours), theirs);
        }
    }
}
