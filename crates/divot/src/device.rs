//! Choice of the device at run time: `auto`, `cpu`, `wgpu`, `cuda` or `vulkan`, with an index where
//! there are several (`cuda:1`).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Device, Tensor};

/// Why a device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No such device.
    #[error(
        "device `{0}` is not known; use auto, cpu, wgpu, vulkan or cuda, with `:index` for a certain one"
    )]
    Unknown(String),
    /// The program was built without it.
    #[error("device `{device}` is not in this build; build with the feature `{feature}`")]
    NotBuilt {
        /// What was asked for.
        device: String,
        /// The cargo feature it needs.
        feature: &'static str,
    },
    /// The program could use it, but the machine does not have it.
    #[error("device `{device}` is not there ({problem}); {remedy}")]
    NotThere {
        /// What was asked for.
        device: String,
        /// What the driver said.
        problem: String,
        /// What to do.
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
            Self::Cuda => "install NVIDIA's driver and CUDA 12 libraries or use the device `cpu`",
        }
    }

    /// The device, which the backend opens when it is first used.
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

/// Finds a device by name: `cpu`, `wgpu`, `vulkan`, `cuda`, each with `:index` for a certain one, or
/// `auto` for the first of CUDA, WebGPU and CPU that is built in and works.
///
/// The device is tried once, so that what comes back works.
///
/// # Errors
/// If the name is unknown, the program was built without the device, or it is not there.
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

/// A GPU that computes beats the CPU; a software driver does not.
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
        // Built for GPUs only: let the first of them say what is missing.
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

/// Whether a device is the CPU backend.
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

/// What to call a device: `cpu`, or its kind and the name that its driver gives.
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

/// Has compiled kernels kept for the next run, as what `autotune` found is anyway. A program that set
/// CubeCL's configuration before has decided for itself.
#[cfg(feature = "tuned")]
fn keep_compiled_kernels() {
    use burn::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
    let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
    config.compilation.cache = true;
    CubeClRuntimeConfig::try_set(config);
}

/// Computes 1 + 1 there. Backends panic where a driver is missing, on threads of their own too:
/// nothing of that may reach the user but one line, which is the first panic's.
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
        Ok(Err(error)) => error,
        Err(_) => first_panic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .unwrap_or_default(),
    };
    // No more than a line of it, and no more than fits one.
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
