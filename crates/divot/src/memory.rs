use std::path::Path;

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

/// Returns the memory in bytes that this process may take without swapping, if the system reports it (Linux): what this
/// machine has left, or the control group (version 2) of a container or a job if that is less.
pub fn available_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let left = group.and_then(|group| left_of_group(Path::new("/sys/fs/cgroup"), group));
    Some(left.unwrap_or(u64::MAX).min(kib * 1024))
}

/// What a control group (version 2) and those that it lies in leave, if any has a limit.
fn left_of_group(root: &Path, group: &str) -> Option<u64> {
    let left = |folder: &Path| {
        let read = |name| std::fs::read_to_string(folder.join(name)).ok();
        let number = |text: &str| text.trim().parse::<u64>().ok();
        // No limit is the word `max`.
        let limit = number(&read("memory.max")?)?;
        let used = number(&read("memory.current")?)?;
        // What the system keeps of files, and can drop.
        let stat = read("memory.stat").unwrap_or_default();
        let lines = stat.lines().filter_map(|line| line.split_once(' '));
        let kept = ["active_file", "inactive_file", "slab_reclaimable"];
        let kept = lines.filter(|(name, _)| kept.contains(name));
        let kept: u64 = kept.filter_map(|(_, bytes)| number(bytes)).sum();
        Some(limit.saturating_sub(used.saturating_sub(kept)))
    };
    let folder = root.join(group);
    let folders = folder
        .ancestors()
        .take_while(|folder| folder.starts_with(root));
    folders.filter_map(left).min()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_smallest_group_counts() {
        let root = tempfile::tempdir().expect("a folder");
        let job = root.path().join("slurm/job");
        fs::create_dir_all(&job).expect("a folder");
        assert_eq!(left_of_group(root.path(), "slurm/job"), None);
        let write = |folder: &Path, limit: &str, used: u64| {
            fs::write(folder.join("memory.max"), limit).expect("a file");
            fs::write(folder.join("memory.current"), format!("{used}\n")).expect("a file");
        };
        write(&job, "max\n", 10);
        assert_eq!(left_of_group(root.path(), "slurm/job"), None);
        write(&root.path().join("slurm"), "1000\n", 700);
        assert_eq!(left_of_group(root.path(), "slurm/job"), Some(300));
        write(&job, "500\n", 400);
        let stat = "anon 1\ninactive_file 100\nactive_file 40\nslab_reclaimable 10\n";
        fs::write(job.join("memory.stat"), stat).expect("a file");
        assert_eq!(left_of_group(root.path(), "slurm/job"), Some(250));
        assert_eq!(left_of_group(root.path(), "slurm"), Some(300));
    }
}
