//! Checkpoints. A checkpoint is a folder with one sub-folder for each part, which holds `config.json` and
//! `model.safetensors`.
//!
//! The folder of a language model also holds its text tokenizer (`tokenizer.json`). That of the video
//! tokenizer also holds the tokens of a mid-grey clip (`unconditional.safetensors`).

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::config::Config;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{DType, Device, FloatDType};
use divot_nn::{CheckSizes, PackedLinear, Quantization};

use crate::device;
use crate::error::{Error, Result};
use crate::memory::available_memory;
use crate::progress::{Progress, Step, Watch};
use crate::weights::{StoredType, Weights};

pub use crate::parts::{CONFIG, Part, Release, TEXT_TOKENIZER, UNCONDITIONAL, WEIGHTS};

/// The folder of a checkpoint, with the options for loading and saving its parts.
pub struct Checkpoint<'a> {
    folder: PathBuf,
    device: Device,
    dtype: Option<FloatDType>,
    pub(crate) stored: StoredType,
    pub(crate) progress: Box<Watch<'a>>,
}

/// A part that was saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Its folder.
    pub folder: PathBuf,
    /// Why the tokens of a mid-grey clip are not stored with a video tokenizer, on one line. Guidance then
    /// computes them.
    pub not_stored: Option<String>,
}

impl<'a> Checkpoint<'a> {
    /// Creates a checkpoint of the parts in `folder`. The folder is created when a part is saved.
    ///
    /// Weights are loaded onto `device`. On the CPU they are loaded in f32, which is the fastest there.
    /// Elsewhere they keep the stored element type, or are f16 if they are stored in 8 or 4 bits.
    ///
    /// Weights are saved in f32.
    pub fn new(folder: impl Into<PathBuf>, device: &Device) -> Self {
        Self {
            folder: folder.into(),
            dtype: device::is_cpu(device).then_some(FloatDType::F32),
            device: device.clone(),
            stored: StoredType::F32,
            progress: Box::new(|_| ControlFlow::Continue(())),
        }
    }

    /// Casts weights to `dtype` (f32, f16 or bf16) when they are loaded.
    pub fn with_dtype(mut self, dtype: FloatDType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// Saves weights in the element type `stored`.
    pub fn with_stored_type(mut self, stored: StoredType) -> Self {
        self.stored = stored;
        self
    }

    /// Calls `progress` after each tensor. It may stop the work, with the error [`Error::Stopped`].
    pub fn with_progress(
        mut self,
        progress: impl FnMut(Progress<'_>) -> ControlFlow<()> + 'a,
    ) -> Self {
        self.progress = Box::new(progress);
        self
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the device that weights are loaded onto.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Returns the element type in which a network computes if its weights have the type `weights`. It is
    /// f32 on the CPU, and that of the weights elsewhere.
    pub fn compute_dtype(&self, weights: DType) -> DType {
        match device::is_cpu(&self.device) {
            true => DType::F32,
            false => weights,
        }
    }

    /// Reads the configuration of a part.
    ///
    /// # Errors
    /// If the file is missing, is not a configuration of this type, or is invalid.
    pub fn config<C: Config + CheckSizes>(&self, part: Part) -> Result<C> {
        let path = part.folder(&self.folder).join(CONFIG);
        let text = std::fs::read(&path).map_err(|error| {
            if self.folder.is_dir() {
                let remedy =
                    "name a folder with a converted model, or download or convert this part";
                return Error::config(&path, format!("cannot be read ({error})"), remedy);
            }
            Error::config(
                &self.folder,
                "there is no folder with a model",
                "get one: `divot download`, or convert the released files (`divot convert`, `cargo xtask convert-weights`)",
            )
        })?;
        let refused = |problem: String| Error::config(&path, problem, "convert the weights again");
        let config = C::load_binary(&text)
            .map_err(|error| refused(format!("is not the configuration of this part ({error})")))?;
        config
            .check_sizes()
            .map_err(|error| refused(format!("describes an invalid configuration ({error})")))?;
        Ok(config)
    }

    /// Fills a module with the weights of a part.
    ///
    /// # Errors
    /// If the file is missing or damaged; if a tensor is missing, unknown, of another shape, or contains
    /// NaN or an infinity; if the weights do not fit into memory; if the progress callback stops it.
    pub fn load<M: Module>(&mut self, part: Part, module: M) -> Result<M> {
        let mut loading = self.loading(part)?;
        let dtype = loading.dtype();
        loading.check_memory()?;
        let module = loading.fill("", module, dtype)?;
        loading.finish()?;
        Ok(module)
    }

    /// Opens the weights of a part, to fill a network module by module.
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

/// The weights of a part, which are loaded module by module.
pub struct Loading<'c, 'a> {
    checkpoint: &'c mut Checkpoint<'a>,
    part: Part,
    weights: Weights,
}

impl Loading<'_, '_> {
    /// Returns the element type in which weights are loaded, or `None` for the stored type.
    pub fn dtype(&self) -> Option<FloatDType> {
        self.checkpoint.dtype
    }

    /// Returns the bits of the layers that are stored packed, if there are any.
    pub fn packed_bits(&self) -> Option<Quantization> {
        self.weights.packed_bits()
    }

    /// Returns an error if the weights do not fit into the CPU's memory. Otherwise the system would kill
    /// the process without a message.
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
                true => "load it quantised to 8 or 4 bits (q8, q4)",
                false => "load it in half precision (f16)",
            },
        ))
    }

    /// Fills a module from the tensors named `prefix` + the paths of its parameters.
    ///
    /// # Errors
    /// If a tensor is missing, of another shape, or contains NaN or an infinity; if the progress callback
    /// stops it.
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
                    progress(Progress {
                        name: part.name(),
                        step: Step::Load,
                        done,
                        total,
                    })
                })?;
        Ok(module)
    }

    /// Packs the weight of a linear layer for the CPU as it is stored, if it is stored in these bits
    /// ([`Weights::load_packed`]). The tensor is named `prefix` + `weight`.
    ///
    /// # Errors
    /// If the tensor has another shape, or is damaged; if the progress callback stops it.
    pub fn packed(
        &mut self,
        prefix: &str,
        linear: &Linear,
        quantization: Quantization,
    ) -> Result<Option<PackedLinear>> {
        let (part, progress) = (self.part, &mut self.checkpoint.progress);
        let name = format!("{prefix}weight");
        let shape = linear.weight.lazy_shape().dims();
        let packed = self
            .weights
            .load_packed(&name, shape, quantization, |done, total| {
                progress(Progress {
                    name: part.name(),
                    step: Step::Load,
                    done,
                    total,
                })
            });
        Ok(packed?)
    }

    /// Checks that every tensor was used by a module.
    ///
    /// # Errors
    /// If tensors were not used.
    pub fn finish(self) -> Result<()> {
        Ok(self.weights.finish()?)
    }
}
