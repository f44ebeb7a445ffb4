use burn::tensor::Device;

use crate::device::is_cpu;

/// Returns the peak memory of this process in bytes, if the system reports it (Linux).
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Returns the most memory in bytes that this process took of a device: of the machine itself for the CPU, of the
/// device's own otherwise. `None` where the system or the device does not report it.
pub fn peak_device_memory(device: &Device) -> Option<u64> {
    match is_cpu(device) {
        true => peak_memory(),
        // A device's allocator keeps what it once took.
        false => Some(
            device
                .clone()
                .without_autodiff()
                .memory_pool_usage()?
                .bytes_reserved,
        ),
    }
}

/// Returns the memory of this machine in bytes that is available without swapping, if the system reports it (Linux).
pub fn available_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
