//! How much memory there is to take, before it is taken.

use crate::error::{Error, Result};
use std::path::Path;

/// Refuses to take `needed` bytes for `what` if the system has fewer. Where that is not known, nothing is
/// refused.
///
/// # Errors
/// [`Error::Memory`] with both numbers.
pub(crate) fn check(what: &str, needed: usize) -> Result<()> {
    match available() {
        Some(available) if needed as u64 > available => {
            Err(Error::Memory { what: what.to_string(), needed: needed as u64, available: Some(available) })
        }
        _ => Ok(()),
    }
}

/// Bytes that this process can still take: the least of what the machine has free (with swap), its control
/// group allows and its address space is limited to. `None` on systems that do not say.
pub(crate) fn available() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let of_machine = read("/proc/meminfo").and_then(|text| {
        Some(kilobytes(&text, "MemAvailable:")? + kilobytes(&text, "SwapFree:").unwrap_or(0))
    });
    let of_process = read("/proc/self/limits").and_then(|limits| {
        let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
        let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(limit.saturating_sub(kilobytes(&read("/proc/self/status")?, "VmSize:")?))
    });
    [of_machine, of_process, of_group()].into_iter().flatten().min()
}

/// What the control group (version 2) leaves. Pages of files count as used there, but are given back when
/// needed.
fn of_group() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    // In a container the group's own folder is often mounted as the root.
    let folder = [root.join(own), root.to_path_buf()].into_iter().find(|f| f.join("memory.max").exists())?;
    let number = |name: &str| std::fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let statistics = std::fs::read_to_string(folder.join("memory.stat")).ok()?;
    let of_files = ["inactive_file ", "active_file "].iter().filter_map(|key| {
        statistics.lines().find_map(|line| line.strip_prefix(key))?.trim().parse::<u64>().ok()
    });
    let used = number("memory.current")?.saturating_sub(of_files.sum());
    Some(number("memory.max")?.saturating_sub(used))
}

/// The bytes that a line `KEY  N kB` states.
fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(1024 * line.split_whitespace().next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_machine_has_is_refused_with_numbers() {
        assert!(check("a byte", 1).is_ok());
        assert_eq!(kilobytes("A:  1 kB\nMemAvailable:     12 kB\n", "MemAvailable:"), Some(12 << 10));
        if available().is_some() {
            let error = check("the plan", 1 << 60).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Memory);
            assert!(error.to_string().starts_with("the plan needs 1073741824.0 GiB of memory, "), "{error}");
        }
    }
}
