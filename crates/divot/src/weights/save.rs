//! Writes our own checkpoint files, which [`Weights`](super::Weights) reads.

use super::{SafetensorsWriter, StoredType, WeightsError, module_layout};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, TensorData};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Writes a file of parameters, one at a time, in the order of its header.
///
/// It is a [`SafetensorsWriter`] for parameters instead of tensors: a parameter that is stored in 8 bits is two
/// tensors.
pub(crate) struct ParamWriter {
    writer: SafetensorsWriter,
    stored: StoredType,
    /// Names of those that are not written yet.
    names: std::vec::IntoIter<String>,
}

impl ParamWriter {
    /// Writes the header of a file at `path` with the parameters `params`, names and shapes, in their order.
    ///
    /// # Errors
    ///
    /// Those of [`SafetensorsWriter::create`].
    pub fn create(
        path: &Path,
        params: &[(String, Vec<usize>)],
        stored: StoredType,
        mut metadata: BTreeMap<String, String>,
    ) -> Result<Self, WeightsError> {
        stored.describe(params, &mut metadata);
        let specs: Vec<_> = params
            .iter()
            .flat_map(|(name, shape)| stored.specs(name, shape))
            .collect();
        let names: Vec<_> = params.iter().map(|(name, _)| name.clone()).collect();
        Ok(Self {
            writer: SafetensorsWriter::create(path, &specs, &metadata)?,
            stored,
            names: names.into_iter(),
        })
    }

    /// Writes the next parameter, from elements of any float type.
    ///
    /// # Errors
    ///
    /// If a value is not finite, or cannot be stored in this type, and those of [`SafetensorsWriter::write`].
    pub fn write(&mut self, data: TensorData) -> Result<(), WeightsError> {
        let name = self.names.next().unwrap_or_default();
        for data in self.stored.encode(&name, data)? {
            self.writer.write(&data)?;
        }
        Ok(())
    }

    /// Returns the bytes that were written, and of all tensors.
    pub fn bytes(&self) -> (u64, u64) {
        self.writer.bytes()
    }

    /// Flushes everything to the disk and renames the file.
    ///
    /// # Errors
    ///
    /// Those of [`SafetensorsWriter::finish`].
    pub fn finish(self) -> Result<(), WeightsError> {
        self.writer.finish()
    }
}

/// Writes modules to a `model.safetensors` that [`Weights`](super::Weights) reads.
///
/// A parameter that is not initialised is initialised only while it is written, so a random model of any
/// size can be saved. Modules are taken by value for this reason: a clone would keep those parameters in
/// memory.
pub struct Saver<'a> {
    path: PathBuf,
    stored: StoredType,
    metadata: BTreeMap<String, String>,
    params: Vec<(String, Vec<usize>)>,
    modules: Vec<WriteModule<'a>>,
}

/// Writes one module's parameters.
type WriteModule<'a> = Box<dyn FnOnce(&mut Writing<'_>) + 'a>;

impl<'a> Saver<'a> {
    /// Prepares a file at `path` with elements of the type `stored`. Nothing is written before
    /// [`finish`](Self::finish).
    pub fn new(path: impl Into<PathBuf>, stored: impl Into<StoredType>) -> Self {
        Self {
            path: path.into(),
            stored: stored.into(),
            metadata: BTreeMap::new(),
            params: Vec::new(),
            modules: Vec::new(),
        }
    }

    /// Adds an entry to the file's metadata, which [`Weights::metadata`](super::Weights::metadata) returns.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Adds the float parameters of `module` under `prefix` + their paths.
    pub fn add<M: Module + 'a>(mut self, prefix: &str, module: M) -> Self {
        let params = module_layout(&module).into_iter();
        self.params
            .extend(params.map(|spec| (format!("{prefix}{}", spec.path), spec.shape)));
        self.modules.push(Box::new(move |writing| {
            module.map(writing);
        }));
        self
    }

    /// Writes the file, one tensor at a time, and moves it to its path when it is complete.
    ///
    /// # Errors
    ///
    /// If two parameters have the same name, a parameter contains NaN, an infinity or a value that the stored type
    /// cannot represent, the folder cannot be written, or the disk is full. Nothing is left behind then.
    pub fn finish(self) -> Result<(), WeightsError> {
        self.finish_with(|_, _| ControlFlow::Continue(()))
    }

    /// Like [`finish`](Self::finish), but calls `progress` after each tensor with the bytes written so far
    /// and those of all tensors. It may stop the writing.
    ///
    /// # Errors
    ///
    /// Those of [`finish`](Self::finish), or [`WeightsError::Stopped`].
    pub fn finish_with(
        self,
        mut progress: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<(), WeightsError> {
        let mut writing = Writing {
            writer: ParamWriter::create(&self.path, &self.params, self.stored, self.metadata)?,
            error: None,
            progress: &mut progress,
        };
        for module in self.modules {
            module(&mut writing);
        }
        match writing.error {
            None => writing.writer.finish(),
            Some(err) => Err(err.in_file(&self.path)),
        }
    }
}

/// Writes parameters in the order of the layout, which is the order of any visit.
struct Writing<'p> {
    writer: ParamWriter,
    error: Option<WeightsError>,
    progress: &'p mut dyn FnMut(u64, u64) -> ControlFlow<()>,
}

impl Writing<'_> {
    fn write(&mut self, data: TensorData) -> Result<(), WeightsError> {
        self.writer.write(data)?;
        let (done, total) = self.writer.bytes();
        match (self.progress)(done, total) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(WeightsError::Stopped),
        }
    }
}

impl ModuleMapper for Writing<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_none() {
            let data = param.transform_for_save().into_value().into_data();
            self.error = self.write(data).err();
        }
        // A placeholder that takes no memory. Its module is dropped at once.
        let shape = param.lazy_shape();
        let size = shape.clone();
        Param::uninitialized(
            param.id,
            move |device, _| Tensor::zeros(size, device),
            param.lazy_device(),
            false,
            shape,
        )
    }
}
