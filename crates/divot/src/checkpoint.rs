//! Checkpoints: a folder with one sub-folder a part, each `config.json` beside `model.safetensors`.

use std::path::{Path, PathBuf};

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, FloatDType};
use divot_nn::CheckSizes;

use crate::device;
use crate::error::{Error, Result};
use crate::memory::available_memory;
use crate::weights::Weights;

/// A part of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Vision tower, transformers and Perceiver: video to tokens.
    Tokenizer,
    /// Perceiver, UNet and autoencoder: tokens to video.
    Detokenizer,
    /// The de-tokenizer adapted to features that the language model samples.
    AdaptedDetokenizer,
    /// CLIP's text tower, for CLIP scores.
    Clip,
    /// The language model tuned for comprehension.
    Comprehension,
    /// The language model tuned for generation.
    Generation,
    /// The language model before tuning.
    Pretrained,
    /// A language model that was trained here.
    Llm,
    /// Where the language model's training starts.
    Mistral,
}

impl Part {
    /// Every part.
    pub const ALL: [Self; 9] = [
        Self::Tokenizer,
        Self::Detokenizer,
        Self::AdaptedDetokenizer,
        Self::Clip,
        Self::Comprehension,
        Self::Generation,
        Self::Pretrained,
        Self::Llm,
        Self::Mistral,
    ];

    /// Its folder's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokenizer => "tokenizer",
            Self::Detokenizer => "detokenizer",
            Self::AdaptedDetokenizer => "detokenizer-adapted",
            Self::Clip => "clip",
            Self::Comprehension => "llm-comprehension",
            Self::Generation => "llm-generation",
            Self::Pretrained => "llm-pretrained",
            Self::Llm => "llm",
            Self::Mistral => "mistral",
        }
    }

    /// Whether it is a language model.
    pub fn is_llm(self) -> bool {
        matches!(
            self,
            Self::Comprehension | Self::Generation | Self::Pretrained | Self::Llm | Self::Mistral
        )
    }

    /// Its folder in a checkpoint.
    pub fn folder(self, checkpoint: &Path) -> PathBuf {
        checkpoint.join(self.name())
    }
}

/// Name of the weights in a part's folder.
pub const WEIGHTS: &str = "model.safetensors";
/// Name of the sizes in a part's folder.
pub const CONFIG: &str = "config.json";
/// Name of the text tokenizer in a language model's folder.
pub const TOKENIZER: &str = "tokenizer.json";
/// Name of the tokens of a mid-grey clip in the tokenizer's folder.
pub const UNCONDITIONAL: &str = "unconditional.safetensors";

/// How far the loading of a part is, in bytes of its file.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// The part.
    pub part: Part,
    /// Bytes read.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// A checkpoint's folder and how to load from it.
pub struct Checkpoint<'a> {
    folder: PathBuf,
    device: Device,
    dtype: Option<FloatDType>,
    progress: Box<dyn FnMut(Progress) + 'a>,
}

impl<'a> Checkpoint<'a> {
    /// Parts below `folder`, to be loaded onto `device`: in f32 on the CPU, which is fastest there,
    /// and as stored elsewhere.
    pub fn new(folder: impl Into<PathBuf>, device: &Device) -> Self {
        Self {
            folder: folder.into(),
            dtype: device::is_cpu(device).then_some(FloatDType::F32),
            device: device.clone(),
            progress: Box::new(|_| {}),
        }
    }

    /// Casts the weights to `dtype` while they are loaded.
    pub fn with_dtype(mut self, dtype: FloatDType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// Calls `progress` after each tensor.
    pub fn with_progress(mut self, progress: impl FnMut(Progress) + 'a) -> Self {
        self.progress = Box::new(progress);
        self
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The device that weights are loaded onto.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Reads a part's sizes.
    ///
    /// # Errors
    /// If the file is missing or is not such a configuration.
    pub fn config<C: Config + CheckSizes>(&self, part: Part) -> Result<C> {
        let path = part.folder(&self.folder).join(CONFIG);
        let text = std::fs::read(&path).map_err(|error| {
            if self.folder.is_dir() {
                let remedy = "point --model at a folder that `convert-weights` or `divot convert` wrote";
                return Error::config(&path, format!("cannot be read ({error})"), remedy);
            }
            Error::config(
                &self.folder,
                "is no folder with a model",
                "get one: `divot download`, or `cargo xtask convert-weights --from pretrained --to FOLDER`",
            )
        })?;
        let refused = |problem: String| Error::config(&path, problem, "convert the weights again");
        let config = C::load_binary(&text)
            .map_err(|error| refused(format!("is not the configuration of this part ({error})")))?;
        config
            .check_sizes()
            .map_err(|error| refused(format!("describes no network that can be ({error})")))?;
        Ok(config)
    }

    /// Fills a module with a part's weights.
    ///
    /// # Errors
    /// If the file is missing or damaged, or a tensor is missing, unknown, misshapen or not a
    /// number.
    pub fn load<M: Module>(&mut self, part: Part, module: M) -> Result<M> {
        let mut loading = self.loading(part)?;
        let dtype = loading.dtype();
        loading.check_memory()?;
        let module = loading.fill("", module, dtype)?;
        loading.finish()?;
        Ok(module)
    }

    /// Opens a part's weights, to fill a network module by module.
    ///
    /// # Errors
    /// If the file is missing or damaged.
    pub fn loading(&mut self, part: Part) -> Result<Loading<'_, 'a>> {
        let weights = Weights::open(&part.folder(&self.folder).join(WEIGHTS))?;
        Ok(Loading {
            checkpoint: self,
            part,
            weights,
        })
    }
}

/// A part's weights on their way into a network.
pub struct Loading<'c, 'a> {
    checkpoint: &'c mut Checkpoint<'a>,
    part: Part,
    weights: Weights,
}

impl Loading<'_, '_> {
    /// The element type that the checkpoint is loaded in; `None` is as stored.
    pub fn dtype(&self) -> Option<FloatDType> {
        self.checkpoint.dtype
    }

    /// On the CPU, a network that does not fit ends the process without a word. Better a line before.
    fn check_memory(&self) -> Result<()> {
        let Checkpoint { device, dtype, .. } = &*self.checkpoint;
        let (true, Some(available)) = (device::is_cpu(device), available_memory()) else {
            return Ok(());
        };
        let needed = self.weights.bytes_as(*dtype);
        if needed <= available {
            return Ok(());
        }
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        Err(Error::config(
            &self.part.folder(&self.checkpoint.folder),
            format!(
                "takes {:.1} GiB of memory in this element type, and {:.1} GiB are free",
                gib(needed),
                gib(available)
            ),
            match self.part.is_llm() {
                true => "keep fewer bits (--dtype q8 or q4)",
                false => "load it in half precision (--dtype f16)",
            },
        ))
    }

    /// Fills a module from the tensors whose names are `prefix` and its paths.
    ///
    /// # Errors
    /// If a tensor is missing, misshapen or not a number.
    pub fn fill<M: Module>(
        &mut self,
        prefix: &str,
        module: M,
        dtype: Option<FloatDType>,
    ) -> Result<M> {
        let (part, checkpoint) = (self.part, &mut *self.checkpoint);
        let progress = &mut checkpoint.progress;
        let module =
            self.weights
                .load_with(prefix, module, &checkpoint.device, dtype, |done, total| {
                    progress(Progress { part, done, total })
                })?;
        Ok(module)
    }

    /// Makes sure that every tensor went into a module.
    ///
    /// # Errors
    /// Tensors that nothing asked for.
    pub fn finish(self) -> Result<()> {
        Ok(self.weights.finish()?)
    }
}
