//! Selects a device by name at run time: `auto`, `cpu`, `wgpu`, `cuda` or `vulkan`. An index selects
//! one of several (`cuda:1`).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Device, Tensor};

/// Why a device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The name is not that of a device.
    #[error(
        "device `{0}` is not known; use auto, cpu, wgpu, vulkan or cuda, with `:index` for a certain one"
    )]
    Unknown(String),
    /// The program was built without support for the device.
    #[error("device `{device}` is not in this build; build with the feature `{feature}`")]
    NotBuilt {
        /// The requested device.
        device: String,
        /// The cargo feature that adds it.
        feature: &'static str,
    },
    /// The program supports the device, but the machine does not have it.
    #[error("device `{device}` is not there ({problem}); {remedy}")]
    NotThere {
        /// The requested device.
        device: String,
        /// The message of the driver.
        problem: String,
        /// How the user can fix it.
        remedy: &'static str,
    },
}

/// A kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Cpu,
    Wgpu,
    Vulkan,
    Cuda,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Wgpu => "wgpu",
            Self::Vulkan => "vulkan",
            Self::Cuda => "cuda",
        }
    }

    fn built(self) -> bool {
        match self {
            Self::Cpu => cfg!(feature = "cpu"),
            Self::Wgpu => cfg!(feature = "wgpu"),
            Self::Vulkan => cfg!(feature = "vulkan"),
            Self::Cuda => cfg!(feature = "cuda"),
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::Cpu => "use another device",
            Self::Wgpu | Self::Vulkan => {
                "install a graphics driver (on Debian `mesa-vulkan-drivers`) or use the device `cpu`"
            }
            Self::Cuda => "install NVIDIA's driver or use the device `cpu`",
        }
    }

    /// Returns the device. The backend opens it on first use.
    #[allow(unused_variables, reason = "an index means nothing to the CPU")]
    fn device(self, index: Option<usize>) -> Option<Device> {
        match self {
            #[cfg(feature = "cpu")]
            Self::Cpu => Some(Device::flex()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => Some(Device::wgpu(gpu(index))),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => Some(Device::vulkan(gpu(index))),
            #[cfg(feature = "cuda")]
            Self::Cuda => Some(Device::cuda(index.unwrap_or(0))),
            #[allow(unreachable_patterns, reason = "every feature may be on")]
            _ => None,
        }
    }
}

#[cfg(any(feature = "wgpu", feature = "vulkan"))]
fn gpu(index: Option<usize>) -> burn::tensor::DeviceKind {
    match index {
        Some(index) => burn::tensor::DeviceKind::DiscreteGpu(index),
        None => burn::tensor::DeviceKind::DefaultDevice,
    }
}

/// Selects a device by name.
///
/// The name is `cpu`, `wgpu`, `vulkan` or `cuda`. The names of GPUs accept an index (`cuda:1`). `auto`
/// selects the first of CUDA, WebGPU and CPU that is built in and works.
///
/// A GPU runs a small computation first, so that a returned device works.
///
/// # Errors
/// If the name is unknown, the program was built without the device, or the machine does not have it.
pub fn select(name: &str) -> Result<Device, DeviceError> {
    if name == "auto" {
        return auto();
    }
    let (kind, index) = match name.split_once(':') {
        Some((kind, index)) => (kind, Some(index)),
        None => (name, None),
    };
    let unknown = || DeviceError::Unknown(name.to_owned());
    let kind = [Kind::Cpu, Kind::Wgpu, Kind::Vulkan, Kind::Cuda]
        .into_iter()
        .find(|known| known.name() == kind)
        .ok_or_else(unknown)?;
    let index = match index {
        Some(_) if kind == Kind::Cpu => return Err(unknown()),
        Some(index) => Some(index.parse().map_err(|_| unknown())?),
        None => None,
    };
    open(kind, index, name)
}

/// Returns the device for work that needs no GPU, such as conversion: the CPU, or the default device of a build
/// without it.
pub fn host() -> Device {
    #[cfg(feature = "cpu")]
    let host = Device::flex();
    #[cfg(not(feature = "cpu"))]
    let host = Device::default();
    host
}

/// Selects a GPU that works, otherwise the CPU. GPUs that a driver emulates in software are skipped.
fn auto() -> Result<Device, DeviceError> {
    for kind in [Kind::Cuda, Kind::Wgpu] {
        if kind.built()
            && let Ok(device) = open(kind, None, kind.name())
            && !is_software(&device)
        {
            return Ok(device);
        }
    }
    match open(Kind::Cpu, None, "cpu") {
        // Built for GPUs only: return the error of the first one.
        Err(DeviceError::NotBuilt { .. }) => {
            let gpu = [Kind::Cuda, Kind::Wgpu, Kind::Vulkan]
                .into_iter()
                .find(|kind| kind.built())
                .unwrap_or(Kind::Cpu);
            open(gpu, None, gpu.name())
        }
        other => other,
    }
}

/// Returns whether a device is the CPU backend.
pub fn is_cpu(device: &Device) -> bool {
    #[cfg(feature = "cpu")]
    let is_cpu = device.clone().without_autodiff() == Device::flex();
    #[cfg(not(feature = "cpu"))]
    let is_cpu = {
        let _ = device;
        false
    };
    is_cpu
}

/// Returns whether a device is a CUDA GPU. Products of f32 may be computed in TF32 there, with ten bits after the
/// first; `wgpu` computes them in f32 on the same GPU.
pub fn is_cuda(device: &Device) -> bool {
    #[cfg(feature = "cuda")]
    let is_cuda = device
        .identity()
        .is_some_and(|identity| identity.fingerprint.starts_with("ptx"));
    #[cfg(not(feature = "cuda"))]
    let is_cuda = {
        let _ = device;
        false
    };
    is_cuda
}

/// Returns whether nothing that was learnt about the kernels of any GPU is stored, so that this one spends minutes on
/// compiling and trying them. It is false for the CPU, and in builds that store nothing.
pub fn is_new(device: &Device) -> bool {
    #[cfg(feature = "tuned")]
    let is_new = !is_cpu(device)
        && !burn::cubecl::environment::namespaces()
            .iter()
            .any(|stored| stored.namespace.starts_with("autotune/") && stored.entries > 0);
    #[cfg(not(feature = "tuned"))]
    let is_new = {
        let _ = device;
        false
    };
    is_new
}

/// Returns the name of a device: `cpu`, or the name that its driver reports.
pub fn name(device: &Device) -> String {
    if is_cpu(device) {
        return "cpu".to_owned();
    }
    #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "cuda"))]
    if let Some(identity) = device.identity() {
        return identity.name;
    }
    format!("{device:?}")
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn is_software(device: &Device) -> bool {
    device.identity().is_some_and(|identity| {
        let name = identity.name.to_lowercase();
        ["llvmpipe", "lavapipe", "swiftshader", "software"]
            .iter()
            .any(|software| name.contains(software))
    })
}

#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
fn is_software(_device: &Device) -> bool {
    false
}

fn open(kind: Kind, index: Option<usize>, name: &str) -> Result<Device, DeviceError> {
    let device = kind.device(index).ok_or_else(|| DeviceError::NotBuilt {
        device: name.to_owned(),
        feature: kind.name(),
    })?;
    if kind != Kind::Cpu {
        #[cfg(feature = "tuned")]
        keep_compiled_kernels();
        try_out(&device).map_err(|problem| DeviceError::NotThere {
            device: name.to_owned(),
            problem,
            remedy: kind.remedy(),
        })?;
    }
    Ok(device)
}

/// Caches compiled kernels for the next run. The results of `autotune` are cached by default.
///
/// Does nothing if the program has set CubeCL's configuration already.
#[cfg(feature = "tuned")]
fn keep_compiled_kernels() {
    configure(|_| {});
}

#[cfg(feature = "tuned")]
fn configure(change: impl FnOnce(&mut burn::cubecl::config::CubeClRuntimeConfig)) {
    use burn::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
    let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
    config.compilation.cache = true;
    change(&mut config);
    CubeClRuntimeConfig::try_set(config);
}

/// Makes GPUs print the time of each kernel, and a table of them whenever one is waited for ([`Device::sync`]). Kernels
/// then run one by one. It must be called before the first device is selected. Returns whether the build can do it.
pub fn profile_kernels() -> bool {
    #[cfg(feature = "tuned")]
    configure(|config| {
        config.profiling.logger.level = burn::cubecl::config::profiling::ProfilingLogLevel::Basic;
        config.profiling.logger.stdout = true;
    });
    cfg!(feature = "tuned")
}

/// Computes 1 + 1 on the device.
///
/// Backends panic when a driver is missing, also on their own threads. The panic messages are hidden.
/// The error is one line, from the first panic.
fn try_out(device: &Device) -> Result<(), String> {
    let first_panic = Arc::new(Mutex::new(None));
    let hook = std::panic::take_hook();
    std::panic::set_hook({
        let first_panic = Arc::clone(&first_panic);
        Box::new(move |panic| {
            let mut first = first_panic.lock().unwrap_or_else(PoisonError::into_inner);
            if first.is_none() {
                *first = panic.payload_as_str().map(str::to_owned);
            }
        })
    });
    let sum = catch_unwind(AssertUnwindSafe(|| {
        let one = Tensor::<1>::ones([1], device);
        (one.clone() + one)
            .try_into_scalar::<f32>()
            .map_err(|error| error.to_string())
    }));
    std::panic::set_hook(hook);
    let problem = match sum {
        Ok(Ok(2.0)) => return Ok(()),
        Ok(Ok(sum)) => format!("1 + 1 gives {sum} there"),
        // A panic on a thread of the backend says more than the error that follows from it.
        failed => first_panic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .or(failed.ok().and_then(Result::err))
            .unwrap_or_default(),
    };
    // Keep one line of at most 160 characters.
    let line = problem.lines().map(str::trim).find(|line| !line.is_empty());
    Err(line.unwrap_or("no driver").chars().take(160).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(feature = "cpu")]
    fn the_cpu_is_always_there() {
        assert!(select("cpu").is_ok());
        assert!(select("auto").is_ok());
    }

    #[test]
    fn names_that_are_not_devices() {
        for name in ["gpu", "cuda:x", "cuda:-1", "cpu:0", ""] {
            let error = select(name).unwrap_err();
            assert_eq!(error, DeviceError::Unknown(name.to_owned()));
        }
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_device_that_is_not_built_names_its_feature() {
        let error = select("cuda:1").unwrap_err().to_string();
        assert_eq!(
            error,
            "device `cuda:1` is not in this build; build with the feature `cuda`"
        );
    }
}
