//! What the host must offer: privileges, cgroup v2, a BPF file system that nobody else uses.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::FlockOperation,
    mount::MountFlags,
    thread::{CapabilitySet, capabilities},
};

use super::CaptureError;

/// The mounted root of the cgroup v2 hierarchy.
pub(super) fn cgroup_root() -> Result<PathBuf, CaptureError> {
    let mounts =
        fs::read_to_string("/proc/self/mountinfo").map_err(CaptureError::io("read /proc/self/mountinfo"))?;
    // Every cgroup but the hierarchy's root has a type. A container's own mount shows only its own part.
    cgroup2_mounts(&mounts)
        .into_iter()
        .find(|mount| !mount.join("cgroup.type").exists())
        .ok_or(CaptureError::NoCgroup2)
}

/// The covered cgroup.
pub(super) struct Covered {
    pub(super) directory: PathBuf,
    pub(super) id: u64,
    /// How many levels below the root it is.
    pub(super) level: u32,
}

impl Covered {
    pub(super) fn find(root: &Path, cgroup: &Path) -> Result<Self, CaptureError> {
        let below = cgroup.strip_prefix("/").unwrap_or(cgroup);
        let directory = root.join(below);
        match fs::metadata(&directory) {
            // The id of a cgroup is the inode number of its directory.
            Ok(metadata) if metadata.is_dir() => {
                let level = u32::try_from(below.components().count()).unwrap_or(u32::MAX);
                Ok(Self { directory, id: metadata.ino(), level })
            }
            _ => Err(CaptureError::CgroupMissing { path: directory }),
        }
    }
}

/// Refuses what lacks the rights to load programs, enter namespaces and look at other processes.
pub fn require_capabilities() -> Result<(), CaptureError> {
    let effective = capabilities(None)
        .map_err(io::Error::from)
        .map_err(CaptureError::io("read my capabilities"))?
        .effective;
    let needed = [
        (CapabilitySet::BPF, "CAP_BPF"),
        (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
        (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
        (CapabilitySet::SYS_PTRACE, "CAP_SYS_PTRACE"),
    ];
    let missing: Vec<&str> = needed
        .iter()
        .filter(|(capability, _)| !effective.contains(*capability))
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(CaptureError::Capabilities { missing: missing.join(", ") }) }
}

/// Makes the directory for the pins, on a BPF file system that is mounted where there is none.
pub(super) fn prepare_bpffs(bpffs: &Path) -> Result<(), CaptureError> {
    let parent = bpffs.parent().unwrap_or(bpffs);
    if !parent.exists() {
        fs::create_dir_all(parent).map_err(CaptureError::io(format!("create {}", parent.display())))?;
    }
    if !is_bpffs(parent)? {
        rustix::mount::mount(
            "bpf",
            parent,
            "bpf",
            MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV,
            None,
        )
        .map_err(|error| CaptureError::BpffsMount { path: parent.to_owned(), source: error.into() })?;
    }
    match rustix::fs::mkdir(bpffs, rustix::fs::Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(CaptureError::io(format!("create {}", bpffs.display()))(error.into())),
    }
}

/// The exclusive right to the pins, held as long as this value lives. The lock is on the directory of the pins itself:
/// whoever sees the same pins, from whichever container, sees the same lock.
#[derive(Debug)]
pub(super) struct Lock {
    directory: File,
}

impl Lock {
    /// The same right once more, for another process. It ends with the last of them.
    pub(super) fn share(&self) -> io::Result<OwnedFd> {
        self.directory.as_fd().try_clone_to_owned()
    }
}

/// A lock that another process shares.
pub(super) fn shared(lock: OwnedFd) -> Lock {
    Lock { directory: lock.into() }
}

/// Takes the lock, or nothing if somebody has it.
pub(super) fn lock(bpffs: &Path) -> Result<Option<Lock>, CaptureError> {
    let failed = || CaptureError::io(format!("lock {}", bpffs.display()));
    let directory = File::open(bpffs).map_err(failed())?;
    match rustix::fs::flock(directory.as_fd(), FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(failed()(error.into())),
    }
    // A detach may have removed the directory between opening and locking it.
    let locked = directory.metadata().map_err(failed())?.ino();
    let current = fs::metadata(bpffs).map_err(failed())?.ino();
    if locked == current {
        Ok(Some(Lock { directory }))
    } else {
        Err(failed()(io::Error::other("it was removed just now, try again")))
    }
}

pub(super) fn is_bpffs(path: &Path) -> Result<bool, CaptureError> {
    const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
    let status = rustix::fs::statfs(path)
        .map_err(|error| CaptureError::io(format!("examine {}", path.display()))(error.into()))?;
    Ok(status.f_type as i64 == BPF_FS_MAGIC)
}

fn cgroup2_mounts(mountinfo: &str) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (mount, system) = line.split_once(" - ")?;
            let point = mount.split(' ').nth(4)?;
            (system.split(' ').next()? == "cgroup2").then(|| PathBuf::from(unescape(point)))
        })
        .collect()
}

/// Undoes mountinfo's octal escapes of blanks, line ends and backslashes.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_cgroup2_wherever_it_is_mounted() {
        let mounts = "24 1 0:22 / /sys rw - sysfs sysfs rw\n\
            30 24 0:26 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n\
            31 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            32 24 0:26 /../.. /host\\040root/cgroup rw shared:1 master:2 - cgroup2 none rw\n\
            broken line\n";
        assert_eq!(
            cgroup2_mounts(mounts),
            [PathBuf::from("/sys/fs/cgroup/unified"), PathBuf::from("/host root/cgroup")]
        );
        assert!(cgroup2_mounts("").is_empty());
    }

    #[test]
    fn a_missing_cgroup_is_named() {
        let error = Covered::find(Path::new("/proc"), Path::new("/no/such")).err().unwrap();
        assert!(error.to_string().starts_with("the covered cgroup /proc/no/such does not exist"), "{error}");
    }

    #[test]
    fn a_second_lock_is_refused_until_the_first_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let first = lock(directory.path()).unwrap();
        assert!(first.is_some());
        assert!(lock(directory.path()).unwrap().is_none());
        drop(first);
        assert!(lock(directory.path()).unwrap().is_some());
    }
}
