//! Who is behind a connection, or an attempt at one.

use std::{fs, path::PathBuf};

use super::{cgroups::Cgroups, text};

/// A task and its cgroup, as the kernel attests them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Workload {
    /// Id of the cgroup (v2).
    pub cgroup_id: u64,
    /// Its path from the hierarchy's root, as in `/kubepods/…`.
    pub cgroup: String,
    /// Process id in the host's pid namespace; 0 where only the cgroup is known.
    pub pid: u32,
    pub uid: u32,
    /// Name of the task; the task itself may set it to anything.
    pub comm: String,
    /// What the process was running when it was looked at, as seen in its own mount namespace.
    pub executable: Option<PathBuf>,
}

impl Workload {
    /// Adds what only /proc and the cgroup tree know. None if the cgroup is gone: then there is no workload to name. Reads
    /// files.
    pub(super) fn find(
        cgroup_id: u64,
        pid: u32,
        uid: u32,
        comm: &[u8; 16],
        cgroups: &Cgroups,
    ) -> Option<Self> {
        if cgroup_id == 0 {
            return None;
        }
        Some(Self {
            cgroup_id,
            cgroup: cgroups.path(cgroup_id, pid)?,
            pid,
            uid,
            comm: text(comm),
            executable: (pid != 0).then(|| fs::read_link(format!("/proc/{pid}/exe")).ok()).flatten(),
        })
    }
}
