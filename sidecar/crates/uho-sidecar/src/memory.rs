//! How much memory the process holds, how much it may, and the circuit breaker between the two.
//!
//! Above 80 % of the limit new jobs are refused, while those under way go on to their end; at 70 % or
//! less new ones are taken again. The gap keeps the breaker from opening and closing with each buffer.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

const OPENS_PERCENT: u64 = 80;
const CLOSES_PERCENT: u64 = 70;

/// What version 1 of control groups writes when there is no limit is its largest page count; nothing
/// real is above this.
const NO_LIMIT_ABOVE: u64 = 1 << 60;

/// Resident memory of this process in bytes; none where the system does not tell.
pub(crate) fn resident_bytes() -> Option<u64> {
    // A kernel file in memory: reading it never waits for a disk.
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// The memory limit of this process's control group in bytes, of either version; none without one.
pub(crate) fn control_group_limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    limit_below(Path::new("/sys/fs/cgroup"), &groups)
}

/// The least limit of the groups that `groups` (`/proc/self/cgroup`) names, and of those above them.
fn limit_below(root: &Path, groups: &str) -> Option<u64> {
    groups
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let is_memory = controllers.split(',').any(|name| name == "memory");
            match (controllers.is_empty(), is_memory) {
                (true, _) => Some((root.to_owned(), "memory.max", path)),
                (_, true) => Some((root.join("memory"), "memory.limit_in_bytes", path)),
                _ => None,
            }
        })
        .filter_map(|(mount, file, path)| least_of_ancestors(&mount, file, path))
        .min()
}

fn least_of_ancestors(mount: &Path, file: &str, path: &str) -> Option<u64> {
    // Inside a container the path may be the host's: what is not there counts for nothing, and the
    // mount itself is then the container's group.
    let mut folder: PathBuf = mount.join(path.trim_start_matches('/'));
    let mut least = None;
    loop {
        let limit = std::fs::read_to_string(folder.join(file))
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
            .filter(|limit| *limit < NO_LIMIT_ABOVE);
        least = match (least, limit) {
            (Some(least), Some(limit)) => Some(limit.min(least)),
            (least, limit) => least.or(limit),
        };
        if folder == mount || !folder.pop() {
            return least;
        }
    }
}

/// Refuses new jobs while too much memory is held.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    limit: Option<u64>,
    open: AtomicBool,
}

/// Why the breaker is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryShort {
    /// Resident memory, in bytes.
    pub(crate) resident: u64,
    /// The limit, in bytes.
    pub(crate) limit: u64,
}

impl Breaker {
    /// Without a limit it never opens.
    pub(crate) fn new(limit: Option<u64>) -> Self {
        Self {
            limit,
            open: AtomicBool::new(false),
        }
    }

    /// The limit in bytes.
    pub(crate) fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Opens or closes by what is held now, in bytes, and says why it is open.
    pub(crate) fn check(&self, resident: Option<u64>) -> Result<(), MemoryShort> {
        let (Some(limit), Some(resident)) = (self.limit, resident) else {
            return Ok(());
        };
        let was_open = self.open.load(Ordering::Relaxed);
        let bound = if was_open {
            CLOSES_PERCENT
        } else {
            OPENS_PERCENT
        };
        let is_open = u128::from(resident) * 100 > u128::from(limit) * u128::from(bound);
        self.open.store(is_open, Ordering::Relaxed);
        if is_open != was_open {
            tracing::warn!(resident, limit, is_open, "memory breaker");
        }
        if is_open {
            return Err(MemoryShort { resident, limit });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Breaker, MemoryShort, limit_below, resident_bytes};

    #[test]
    fn it_opens_above_eighty_percent_and_closes_at_seventy() {
        let breaker = Breaker::new(Some(1_000));
        let short = |resident| {
            Err(MemoryShort {
                resident,
                limit: 1_000,
            })
        };
        for (resident, expected) in [
            (800, Ok(())),
            (801, short(801)),
            (701, short(701)),
            (700, Ok(())),
            (750, Ok(())),
        ] {
            assert_eq!(breaker.check(Some(resident)), expected, "{resident}");
        }
        assert_eq!(breaker.check(None), Ok(()));
        assert_eq!(Breaker::new(None).check(Some(u64::MAX)), Ok(()));
        assert!(resident_bytes().unwrap() > 0);
    }

    #[test]
    fn the_least_limit_of_a_group_and_those_above_it_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let file = root.path().join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        };
        write("a/memory.max", "400\n");
        write("a/b/memory.max", "max\n");
        assert_eq!(limit_below(root.path(), "0::/a/b\n"), Some(400));
        // In a container the path is often the host's, and the mount is the container's own group.
        write("memory.max", "900\n");
        assert_eq!(limit_below(root.path(), "0::/host/path\n"), Some(900));
        assert_eq!(limit_below(root.path(), "0::/a/b\n"), Some(400));
        write("memory/docker/memory.limit_in_bytes", "300\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        let first = "5:cpu,memory:/docker\n4:cpu:/docker\n";
        assert_eq!(limit_below(root.path(), first), Some(300));
        assert_eq!(limit_below(root.path(), "4:memory:/other\n"), None);
        assert_eq!(limit_below(root.path(), "nonsense"), None);
    }
}
