//! Plans for making the released files from our parts.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use divot_llm::{DivotLlmConfig, LlmError, TextTokenizer};
use serde_json::json;

use super::schedule::schedule_buffers;
use super::sizes::sizes;
use crate::checkpoint::{CONFIG, Checkpoint, Part, TEXT_TOKENIZER, WEIGHTS};
use crate::convert::ReleasedConfig;
use crate::convert::decoder::DecoderConfig;
use crate::convert::llm::{is_decoder, released_name};
use crate::convert::names::{Network, Released};
use crate::convert::networks::{Piece, networks};
use crate::convert::plan::merge;
use crate::device;
use crate::error::{Error, Result};
use crate::weights::{
    ParamSpec, Source, SourceTensor, TensorSpec, WeightsError, module_layout, release_tensor,
};

/// What is written.
#[derive(Default)]
pub(super) struct Plan {
    /// The tensors of each file with weights.
    pub files: BTreeMap<String, Vec<Planned>>,
    /// Small files.
    pub texts: BTreeMap<PathBuf, Vec<u8>>,
    /// What the reader of the files should know.
    pub notes: Vec<String>,
}

/// A tensor of a released file.
pub(super) struct Planned {
    name: String,
    /// Our parameter, whose path is the released name.
    spec: ParamSpec,
    shape: Vec<usize>,
    dtype: DType,
    data: Data,
}

enum Data {
    /// One of our tensors.
    Stored(SourceTensor),
    /// W, A and B, from which W + scale · A B is computed.
    Merged(Box<[SourceTensor; 3]>, f64),
    /// Values that the released files have and ours do not.
    Made(Vec<f32>),
}

impl Planned {
    /// Returns a tensor that the released files have and ours do not.
    pub fn made(name: &str, shape: Vec<usize>, values: Vec<f32>) -> Self {
        let spec = ParamSpec {
            path: name.to_owned(),
            container: String::new(),
            shape: shape.clone(),
        };
        Self {
            name: name.to_owned(),
            spec,
            shape,
            dtype: DType::F32,
            data: Data::Made(values),
        }
    }

    /// Returns its entry in the file.
    pub fn spec(&self) -> TensorSpec {
        TensorSpec {
            name: self.name.clone(),
            shape: self.shape.clone(),
            dtype: self.dtype,
        }
    }

    /// Returns its size.
    pub fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.size()) as u64
    }

    /// Computes the tensor.
    pub fn read(&self) -> Result<TensorData, WeightsError> {
        let data = match &self.data {
            Data::Stored(tensor) => tensor.read()?,
            // Ours are transposed, so that A takes the place of B.
            Data::Merged(matrices, scale) => {
                let [base, a, b] = &**matrices;
                merge(base, b, a, *scale)?
            }
            Data::Made(values) => TensorData::new(values.clone(), self.spec.shape.clone()),
        };
        release_tensor(data, &self.spec, &self.shape, self.dtype).map_err(|error| {
            match &self.data {
                Data::Stored(tensor) => error.in_file(&tensor.file),
                Data::Merged(matrices, _) => error.in_file(&matrices[0].file),
                Data::Made(_) => error,
            }
        })
    }
}

/// The tensors of one of our parts that have no place in a released file yet.
struct Stored {
    path: PathBuf,
    tensors: BTreeMap<String, SourceTensor>,
    missing: Vec<String>,
}

impl Stored {
    fn open(model: &Path, part: Part) -> Result<Self> {
        let path = part.folder(model).join(WEIGHTS);
        let source = Source::open(&path)?;
        let tensors = source
            .tensors()
            .map(|tensor| (tensor.name.clone(), tensor.clone()));
        Ok(Self {
            tensors: tensors.collect(),
            path,
            missing: Vec::new(),
        })
    }

    /// Takes a tensor, whose shape is checked. `None` is an error at the end.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Option<SourceTensor>> {
        let Some(tensor) = self.tensors.remove(name) else {
            self.missing.push(name.to_owned());
            return Ok(None);
        };
        match tensor.shape == shape && tensor.dtype.is_float() {
            true => Ok(Some(tensor)),
            false => Err(Error::config(
                &self.path,
                format!(
                    "holds `{name}` of {:?} where floats of {shape:?} are expected",
                    tensor.shape
                ),
                "the files in this folder belong together",
            )),
        }
    }

    fn finish(self) -> Result<()> {
        let Self {
            path,
            tensors,
            mut missing,
        } = self;
        if !missing.is_empty() {
            missing.sort();
            return Err(Error::Weights(WeightsError::Missing {
                path,
                names: missing,
            }));
        }
        match tensors.is_empty() {
            true => Ok(()),
            false => Err(Error::Weights(WeightsError::Unexpected {
                path,
                names: tensors.into_keys().collect(),
            })),
        }
    }
}

impl Plan {
    /// Finds the parts of a model and the places of their tensors. No tensor is read.
    pub fn of(model: &Path) -> Result<Self> {
        let mut plan = Self::default();
        let mut networks = Vec::new();
        let mut llms: Vec<(Part, DivotLlmConfig)> = Vec::new();
        let checkpoint = Checkpoint::new(model, &device::host());
        for part in Part::ALL {
            if !part.folder(model).join(CONFIG).exists() {
                continue;
            }
            match part {
                Part::Mistral | Part::DynamiCrafter => plan.notes.push(format!(
                    "{part} is left out: it was made for training, and has no released form"
                )),
                _ if part.is_llm() => llms.push((part, checkpoint.config(part)?)),
                _ => networks.push(part),
            }
        }
        if networks.is_empty() && llms.is_empty() {
            return Err(Error::config(
                model,
                "holds no part of a model that has a released form",
                "name the folder of a converted or exported model",
            ));
        }
        let sizes = sizes(&checkpoint, &networks, &llms)?;
        let own = sizes.own_values();
        plan.notes.extend(own.into_iter().map(|value| {
            format!("{value}, which is a constant in the released code: change it there")
        }));
        plan.text(CONFIG.into(), sizes.json().into_bytes());
        for part in networks {
            plan.networks(model, part, &sizes)?;
        }
        for (part, config) in &llms {
            plan.llm(model, *part, config)?;
        }
        plan.open_clip();
        Ok(plan)
    }

    fn text(&mut self, path: PathBuf, contents: Vec<u8>) {
        self.texts.insert(path, contents);
    }

    /// Plans every part but language models.
    fn networks(&mut self, model: &Path, part: Part, sizes: &ReleasedConfig) -> Result<()> {
        let mut stored = Stored::open(model, part)?;
        let releases = part.releases();
        for piece in networks(part, sizes).0 {
            let Piece {
                network, layout, ..
            } = piece;
            let released = Released::new(network, &layout);
            let release = match network {
                Network::Vision | Network::Text => releases.last(),
                _ => releases.first(),
            };
            let file = release.map(|release| release.path).unwrap_or_default();
            let tensors = self.files.entry(file.to_owned()).or_default();
            for ours in &layout {
                let name = format!("{}{}", piece.ours, ours.path);
                let Some(tensor) = stored.take(&name, &ours.shape)? else {
                    continue;
                };
                let spec = released.spec(ours);
                tensors.push(Planned {
                    name: spec.path.clone(),
                    spec,
                    shape: released.shape(ours),
                    dtype: tensor.dtype,
                    data: Data::Stored(tensor),
                });
            }
            if network == Network::Unet {
                tensors.extend(schedule_buffers(&sizes.detokenizer.schedule));
            }
        }
        stored.finish()
    }

    /// Plans a language model.
    fn llm(&mut self, model: &Path, part: Part, config: &DivotLlmConfig) -> Result<()> {
        let folder = part.folder(model);
        let mut stored = Stored::open(model, part)?;
        let named = match part {
            Part::Llm => Part::Pretrained,
            part => part,
        };
        let [decoder, agent, text] = &named.releases()[..] else {
            unreachable!("a language model has three releases");
        };
        let weights = format!("{}/{WEIGHTS}", decoder.path);
        if self.files.contains_key(&weights) {
            return Err(Error::config(
                &folder,
                format!("is a second model for {}", decoder.path),
                "export it from a folder of its own",
            ));
        }
        let (mut tensors, mut projections) = (Vec::new(), Vec::new());
        let layout = module_layout(&config.init(&device::host()));
        let shapes: BTreeMap<&str, &[usize]> = layout
            .iter()
            .map(|spec| (spec.path.as_str(), &spec.shape[..]))
            .collect();
        for ours in &layout {
            if ours.path.contains(".lora_") {
                continue;
            }
            let Some(tensor) = stored.take(&ours.path, &ours.shape)? else {
                continue;
            };
            let dtype = tensor.dtype;
            let data = match (ours.path.strip_suffix(".base.weight"), &config.lora) {
                (Some(stem), Some(lora)) => {
                    let mut matrix = |name: &str| {
                        let name = format!("{stem}.{name}.weight");
                        let shape = shapes.get(name.as_str()).copied().unwrap_or_default();
                        stored.take(&name, shape)
                    };
                    let (Some(a), Some(b)) = (matrix("lora_a")?, matrix("lora_b")?) else {
                        continue;
                    };
                    let scale = lora.alpha / lora.rank as f64;
                    Data::Merged(Box::new([tensor, a, b]), scale)
                }
                _ => Data::Stored(tensor),
            };
            let spec = ParamSpec {
                path: released_name(&ours.path),
                ..ours.clone()
            };
            let planned = Planned {
                name: spec.path.clone(),
                shape: spec.pytorch_shape(),
                spec,
                dtype,
                data,
            };
            match is_decoder(&planned.name) {
                true => tensors.push(planned),
                false => projections.push(planned),
            }
        }
        stored.finish()?;
        let dtype = match tensors.first().map(|tensor| tensor.dtype) {
            Some(DType::F16) => "float16",
            Some(DType::BF16) => "bfloat16",
            _ => "float32",
        };
        self.files.insert(weights, tensors);
        self.files.insert(agent.path.to_owned(), projections);

        let path = folder.join(TEXT_TOKENIZER);
        let tokenizer = TextTokenizer::open(&path).map_err(LlmError::from)?;
        let json = DecoderConfig::json(&config.llm, &tokenizer, dtype);
        self.text(Path::new(decoder.path).join(CONFIG), json.into_bytes());
        let json = json!({
            "bos_token_id": tokenizer.bos(),
            "eos_token_id": tokenizer.eos(),
        });
        let file = Path::new(decoder.path).join("generation_config.json");
        self.text(file, format!("{json:#}").into_bytes());
        self.text_tokenizer(&path, text.path.as_ref())
    }

    /// Plans the files of the text tokenizer, which all language models share.
    fn text_tokenizer(&mut self, from: &Path, to: &Path) -> Result<()> {
        let bytes = fs::read(from).map_err(|error| {
            Error::config(
                from,
                format!("cannot be read ({error})"),
                "make it readable",
            )
        })?;
        let file = to.join(TEXT_TOKENIZER);
        if self.texts.get(&file).is_some_and(|other| *other != bytes) {
            return Err(Error::config(
                from,
                "is another text tokenizer than that of the other language model",
                "export each language model from a folder of its own",
            ));
        }
        self.text(file, bytes);
        let json = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "clean_up_tokenization_spaces": false,
        });
        let json = format!("{json:#}").into_bytes();
        self.text(to.join("tokenizer_config.json"), json);
        Ok(())
    }

    /// Notes whether OpenCLIP's file lacks one of its two towers.
    fn open_clip(&mut self) {
        let path = Part::Clip.releases()[0].path;
        let Some(tensors) = self.files.get(path) else {
            return;
        };
        let vision = |tensor: &Planned| tensor.name.starts_with("visual.");
        let (has_vision, has_text) = (tensors.iter().any(vision), !tensors.iter().all(vision));
        let lacking = match (has_vision, has_text) {
            (true, true) => return,
            (true, false) => "text",
            _ => "vision",
        };
        self.notes.push(format!(
            "{path} has no {lacking} tower: load it with strict=False"
        ));
    }
}
