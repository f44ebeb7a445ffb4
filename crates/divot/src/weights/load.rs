//! Reads our own checkpoint files: a `model.safetensors` with one network, or with several under prefixes.

use super::layout::{ParamPath, cast_slice, transpose, wrong_shape};
use super::safetensors::{Entry, SafetensorsFile};
use super::{WeightsError, eight_bits, module_layout, packed};
use crate::device::is_cpu;
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use divot_nn::{PackedLinear, Quantization, SharedBytes};
use memmap2::{Mmap, MmapOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, PoisonError};

/// An open `model.safetensors`, from which modules are filled.
///
/// ```no_run
/// # use burn::module::Module;
/// # use divot::weights::{Weights, WeightsError};
/// # fn load<U: Module, V: Module>(unet: U, vae: V, device: &burn::tensor::Device) -> Result<(), WeightsError> {
/// let mut weights = Weights::open("detokenizer/model.safetensors".as_ref())?;
/// let unet = weights.load("unet.", unet, device, None)?;
/// let vae = weights.load("vae.", vae, device, None)?;
/// weights.finish()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Weights {
    file: SafetensorsFile,
    used: BTreeSet<String>,
}

impl Weights {
    /// Opens a safetensors file and checks its header against its length. No tensor is read.
    ///
    /// # Errors
    ///
    /// If the file is missing, unreadable, truncated or not in the safetensors format.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let file = SafetensorsFile::open(path)?;
        if let Some((name, what)) = file.unreadable.first_key_value() {
            return Err(WeightsError::unreadable(name, what).in_file(path));
        }
        Ok(Self {
            file,
            used: BTreeSet::new(),
        })
    }

    /// Returns the file's metadata, by key.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.file.metadata
    }

    /// Returns the names of the file's tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.file.tensors.keys().map(String::as_str)
    }

    /// Returns the bits of the layers that are stored packed, if there are any.
    pub fn packed_bits(&self) -> Option<Quantization> {
        self.file.tensors.values().find_map(|entry| entry.packed)
    }

    /// Returns a fingerprint of these weights: a hash of the names, types and shapes of the tensors, and of
    /// 64 bytes from the middle of each, after `seed`.
    ///
    /// It reads little of the file, whatever its size. Training changes all values of the tensors that it
    /// trains, so other weights are detected. A manual change of a few values is not.
    ///
    /// # Errors
    ///
    /// If the file cannot be read.
    pub fn fingerprint(&self, seed: &[u8]) -> Result<u64, WeightsError> {
        let mut hash = Fnv::new();
        hash.add(seed);
        let tensors = self.file.tensors.iter();
        for (name, entry) in tensors.flat_map(|(name, entry)| {
            let scales = entry.scales.as_deref().map(|scales| (name, scales));
            [Some((name, entry)), scales].into_iter().flatten()
        }) {
            let kind = format!("{name}\n{}\n{:?}\n", entry.dtype.name(), entry.shape);
            hash.add(kind.as_bytes());
            let len = entry.len.min(64);
            let sample = Entry {
                offset: entry.offset + ((entry.len - len) / 2) as u64,
                len,
                ..entry.clone()
            };
            let sample = self.file.read(&sample);
            hash.add(&sample.map_err(|error| WeightsError::reading(&self.file.path, error))?);
        }
        Ok(hash.0)
    }

    /// Returns the size of the file's tensors in elements of `dtype`, or of the types that [`load`](Self::load)
    /// gives them without one, in bytes.
    pub fn bytes_as(&self, dtype: Option<FloatDType>) -> u64 {
        let entries = self.file.tensors.values();
        let bytes = entries.map(|entry| {
            let dtype = dtype.map_or(entry.read_type(), DType::from);
            entry.shape.iter().product::<usize>() * dtype.size()
        });
        bytes.sum::<usize>() as u64
    }

    /// Fills every float parameter of `module` from the tensor named `prefix` + its path (see
    /// [`ParamSpec::path`](super::ParamSpec::path)), on `device`.
    ///
    /// The elements have the type `dtype`, or that of the file. Tensors of few bits become floats: of `dtype`, or f16.
    /// Vectors are f32 on the CPU, which computes in f32.
    ///
    /// Parameters that are not initialised are replaced without initialising them. Each parameter keeps its
    /// id, whether it requires a gradient, and whether it is part of an autodiff graph, which depends on
    /// the module and not on `device`. Several modules may use the same tensors. Names, shapes and types
    /// are checked before the first tensor is read.
    ///
    /// Besides the module, one tensor is in memory at a time.
    ///
    /// # Errors
    ///
    /// If a tensor is missing, has another shape, is not floating point, or contains NaN, an infinity or a
    /// value outside the range of `dtype`; if the device does not support `dtype`.
    pub fn load<M: Module>(
        &mut self,
        prefix: &str,
        module: M,
        device: &Device,
        dtype: Option<FloatDType>,
    ) -> Result<M, WeightsError> {
        self.load_with(prefix, module, device, dtype, |_, _| {
            ControlFlow::Continue(())
        })
    }

    /// Like [`load`](Self::load), but calls `progress` after each tensor with the bytes read so far and
    /// those of the whole file. It may stop the loading.
    ///
    /// # Errors
    ///
    /// Those of [`load`](Self::load), or [`WeightsError::Stopped`].
    pub fn load_with<M: Module>(
        &mut self,
        prefix: &str,
        module: M,
        device: &Device,
        dtype: Option<FloatDType>,
        progress: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<M, WeightsError> {
        self.check(prefix, &module, device, dtype)?;
        // Moving costs nothing for uninitialised parameters, unless a clone shares them.
        let module = if module.devices().iter().all(|found| found == device) {
            module
        } else {
            module.to_device(device)
        };
        let mut loader = Loader {
            weights: self,
            prefix,
            dtype,
            place: ParamPath::default(),
            unsynced: 0,
            error: None,
            progress,
        };
        let module = module.map(&mut loader);
        match loader.error {
            None => Ok(module),
            Some(err) => Err(err),
        }
    }

    /// Returns a matrix in the bits in which it is stored, packed for the CPU: the weight `name` of a linear layer,
    /// `shape`d `[input, output]`. Returns `None` for a matrix of another type.
    ///
    /// A matrix that is stored packed stays in the file, which is mapped into memory as long as the layer exists. No
    /// other program may change or shorten the file in place until then, which would change the layer or end the
    /// process. Our own writers replace files. A matrix that is rounded to 8 bits is copied.
    ///
    /// `progress` is that of [`load_with`](Self::load_with).
    ///
    /// # Errors
    ///
    /// If the tensor has another shape, or a scale is not finite; [`WeightsError::Stopped`].
    ///
    /// # Panics
    ///
    /// If the number of inputs is not a multiple of 32.
    pub fn load_packed(
        &mut self,
        name: &str,
        shape: [usize; 2],
        quantization: Quantization,
        progress: impl FnOnce(u64, u64) -> ControlFlow<()>,
    ) -> Result<Option<PackedLinear>, WeightsError> {
        let Some(entry) = self.file.tensors.get(name) else {
            return Ok(None);
        };
        let located = |error: WeightsError| error.in_file(&self.file.path);
        let stored = match entry.scales {
            Some(_) => Some(Quantization::Q8),
            None => entry.packed,
        };
        if stored != Some(quantization) {
            return Ok(None);
        }
        if entry.shape != shape {
            return Err(located(wrong_shape(name, &shape, &entry.shape)));
        }
        let bytes = self.map(entry)?;
        let packed = match entry.scales.as_deref() {
            None => packed::layer(name, quantization, bytes.shared(), shape).map_err(located)?,
            Some(scales) => {
                let [input, output] = shape;
                let steps = transpose(&bytes, input, output, 1);
                let scales = eight_bits::scales(name, &self.map(scales)?).map_err(located)?;
                let column = |output: usize| scales[output..].iter().step_by(shape[1]).copied();
                let scales: Vec<_> = (0..output).flat_map(column).collect();
                PackedLinear::from_rounded(&steps, &scales, shape)
            }
        };
        self.used.insert(name.to_owned());
        let (done, total) = self.bytes();
        match progress(done, total) {
            ControlFlow::Continue(()) => Ok(Some(packed)),
            ControlFlow::Break(()) => Err(WeightsError::Stopped),
        }
    }

    /// Checks that every tensor of the file was used by a module.
    ///
    /// # Errors
    ///
    /// If tensors were not used.
    pub fn finish(self) -> Result<(), WeightsError> {
        let names: Vec<_> = self
            .file
            .tensors
            .into_keys()
            .filter(|name| !self.used.contains(name))
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        let path = self.file.path;
        Err(WeightsError::Unexpected { path, names })
    }

    /// Returns the bytes of the tensors that were used, and of all tensors.
    fn bytes(&self) -> (u64, u64) {
        self.file
            .tensors
            .iter()
            .fold((0, 0), |(done, total), (name, entry)| {
                let bytes = entry.bytes() as u64;
                let used = if self.used.contains(name) { bytes } else { 0 };
                (done + used, total + bytes)
            })
    }

    /// Checks everything that can be checked before a tensor is read.
    fn check<M: Module>(
        &self,
        prefix: &str,
        module: &M,
        device: &Device,
        dtype: Option<FloatDType>,
    ) -> Result<(), WeightsError> {
        let mut missing = Vec::new();
        let mut dtypes: Vec<DType> = dtype.map(DType::from).into_iter().collect();
        for spec in module_layout(module) {
            let name = format!("{prefix}{}", spec.path);
            let Some(entry) = self.file.tensors.get(&name) else {
                missing.push(name);
                continue;
            };
            if entry.shape != spec.shape {
                return Err(wrong_shape(&name, &spec.shape, &entry.shape).in_file(&self.file.path));
            }
            if dtype.is_none() && !dtypes.contains(&entry.read_type()) {
                dtypes.push(entry.read_type());
            }
        }
        if !missing.is_empty() {
            missing.sort();
            let path = self.file.path.clone();
            return Err(WeightsError::Missing {
                path,
                names: missing,
            });
        }
        if let Some(dtype) = dtypes
            .into_iter()
            .find(|&dtype| dtype.is_float() && !device.supports_dtype(dtype))
        {
            let problem = format!("{device:?} cannot compute in {}", dtype.name());
            let remedy = "load it as f32 or choose another device";
            return Err(WeightsError::file(&self.file.path, problem, remedy));
        }
        Ok(())
    }

    /// Reads and casts one tensor.
    fn read(&self, name: &str, dtype: Option<FloatDType>) -> Result<TensorData, WeightsError> {
        // `check` has found all names.
        let entry = self.file.tensors.get(name).cloned();
        let entry = entry.ok_or_else(|| WeightsError::Missing {
            path: self.file.path.clone(),
            names: vec![name.to_string()],
        })?;
        let dtype = dtype.map_or(entry.read_type(), DType::from);
        let stored = self.map(&entry)?;
        let bytes = match (&entry.scales, entry.packed) {
            (Some(scales), _) => {
                let scales = self.map(scales)?;
                eight_bits::restore(name, entry.shape[0], &stored, &scales, dtype)
            }
            (None, Some(bits)) => packed::restore(name, bits, stored.shared(), &entry.shape, dtype),
            (None, None) => {
                cast_slice(&stored, entry.dtype, dtype).map_err(|problem| problem.into_error(name))
            }
        }
        .map_err(|error| error.in_file(&self.file.path))?;
        Ok(TensorData::from_bytes(bytes, entry.shape, dtype))
    }

    /// Maps the bytes of one tensor.
    fn map(&self, entry: &Entry) -> Result<Mapped, WeightsError> {
        map(&self.file, entry).map_err(|err| WeightsError::reading(&self.file.path, err))
    }
}

/// The bytes of a tensor. An empty map is not possible.
struct Mapped(Option<Mmap>);

impl std::ops::Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl Mapped {
    /// Keeps the map. All pages are read at once, which takes less time than one after the other.
    fn shared(self) -> SharedBytes {
        let Some(map) = self.0 else {
            return SharedBytes::new(Arc::new([]), 0..0);
        };
        // After an error they are read when they are needed.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::PopulateRead);
        let range = 0..map.len();
        SharedBytes::new(Arc::new(map), range)
    }
}

/// FNV-1a in 64 bits, which is the same in every version and on every machine.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

/// Maps the bytes of one tensor.
///
/// Not the whole file, because the pages of a map count as resident memory until it is dropped. With the
/// whole file mapped, loading would take twice the size of the model.
#[allow(unsafe_code)]
fn map(file: &SafetensorsFile, entry: &Entry) -> io::Result<Mapped> {
    if entry.len == 0 {
        return Ok(Mapped(None));
    }
    let handle = file.file.lock().unwrap_or_else(PoisonError::into_inner);
    // The header was checked against the file's length when the file was opened. If the file has shrunk
    // since then, accessing its pages would end the process, so return an error instead.
    if handle.metadata()?.len() < entry.offset + entry.len as u64 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // SAFETY: the map is read-only. If another process writes to the file in the meantime, the bytes are arbitrary,
    // but any bytes are valid elements. Our own writers replace files and never change them.
    let map = unsafe {
        MmapOptions::new()
            .offset(entry.offset)
            .len(entry.len)
            .map(&*handle)
    };
    Ok(Mapped(Some(map?)))
}

/// Maximum amount of host memory that waits for its upload to a device, in bytes.
const MAX_UNSYNCED: usize = 256 << 20;

struct Loader<'a, P> {
    weights: &'a mut Weights,
    prefix: &'a str,
    dtype: Option<FloatDType>,
    place: ParamPath,
    unsynced: usize,
    /// The first error. Nothing is read after it.
    error: Option<WeightsError>,
    progress: P,
}

impl<P: FnMut(u64, u64) -> ControlFlow<()>> ModuleMapper for Loader<'_, P> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.place.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.place.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_some() {
            return param;
        }
        let name = format!("{}{}", self.prefix, self.place.path());
        // The parameter's own device, which also determines whether it is part of an autodiff graph.
        let device = param.lazy_device();
        // The CPU computes in f32, whatever type the matrices are stored in. The operations take the type
        // to compute in from the vectors (of norms, biases).
        let dtype = match D == 1 && is_cpu(&device) {
            true => Some(FloatDType::F32),
            false => self.dtype,
        };
        let data = match self.weights.read(&name, dtype) {
            Ok(data) => data,
            Err(err) => {
                self.error = Some(err);
                return param;
            }
        };
        self.weights.used.insert(name);
        let (done, total) = self.weights.bytes();
        if (self.progress)(done, total).is_break() {
            self.error = Some(WeightsError::Stopped);
            return param;
        }

        let dtype = data.dtype();
        // Devices upload data asynchronously. Without synchronising now and then, the whole model would
        // wait in host memory.
        self.unsynced += data.as_bytes().len();
        if self.unsynced > MAX_UNSYNCED {
            self.unsynced = 0;
            if let Err(err) = device.sync() {
                let problem = format!("the device failed while it was loaded ({err:?})");
                let path = &self.weights.file.path;
                let remedy = "free some of the device's memory or choose another device";
                self.error = Some(WeightsError::file(path, problem, remedy));
                return param;
            }
        }
        let tensor = device
            .memory_persistent_allocations(data, |data| Tensor::from_data(data, (&device, dtype)));
        let id = param.id;
        param.transform_for_load(tensor, id)
    }
}

/// Fills `module` from a file that contains nothing else: [`Weights::open`], [`Weights::load`] without a
/// prefix, [`Weights::finish`].
///
/// # Errors
///
/// Those of these three functions.
pub fn load_module<M: Module>(
    module: M,
    file: &Path,
    dtype: Option<FloatDType>,
    device: &Device,
) -> Result<M, WeightsError> {
    let mut weights = Weights::open(file)?;
    let module = weights.load("", module, device, dtype)?;
    weights.finish()?;
    Ok(module)
}
