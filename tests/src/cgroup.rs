//! Control groups of a sandbox. The cgroup v2 hierarchy is found, never assumed: on hybrid machines it is mounted
//! beside the old controllers.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long the kernel may take to end the processes of a control group.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Where cgroup v2 is mounted.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    find_cgroup2(&mounts).context(
        "no cgroup v2 hierarchy is mounted: mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified`, or boot \
         with systemd.unified_cgroup_hierarchy=1",
    )
}

/// The control group that the agent of sandbox `id` covers, as its configuration names it.
pub fn covered_name(id: &str) -> String {
    format!("/snowfence-{id}")
}

/// A control group, named by its folder.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The group that holds the agent and the pods of sandbox `id`.
    pub fn covered(id: &str) -> Result<Self> {
        Ok(Self { path: mount_point()?.join(format!("snowfence-{id}")) })
    }

    /// The group that holds the programs that stand for the outside world, and the supervisor.
    pub fn services(id: &str) -> Result<Self> {
        Ok(Self { path: mount_point()?.join(format!("snowfence-{id}-services")) })
    }

    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        Self { path: self.path.join(name) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn create(&self) -> Result<()> {
        fs::create_dir_all(&self.path)
            .with_context(|| format!("make the control group {}", self.path.display()))
    }

    /// The processes in this very group, without those of groups below.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        let listing = match fs::read_to_string(self.path.join("cgroup.procs")) {
            Ok(listing) => listing,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("list {}", self.path.display())),
        };
        // A zero stands for a process of another pid namespace, which has no number here.
        Ok(listing.lines().filter_map(|line| line.parse().ok().and_then(Pid::from_raw)).collect())
    }

    /// Ends every process in this group and below with SIGKILL, then removes the groups.
    pub fn remove(&self) -> Result<()> {
        let started = Instant::now();
        loop {
            if !self.path.exists() {
                return Ok(());
            }
            self.kill()?;
            match remove_tree(&self.path) {
                Ok(()) => return Ok(()),
                Err(error) if started.elapsed() > KILL_DEADLINE => {
                    return Err(error)
                        .with_context(|| format!("remove the control group {}", self.path.display()));
                }
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn kill(&self) -> Result<()> {
        match fs::write(self.path.join("cgroup.kill"), "1") {
            Ok(()) => Ok(()),
            // Kernels before 5.14 have no cgroup.kill.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
                self.kill_one_by_one()
            }
            Err(error) => bail!("end the processes of {}: {error}", self.path.display()),
        }
    }

    fn kill_one_by_one(&self) -> Result<()> {
        for child in folders(&self.path) {
            Self { path: child }.kill_one_by_one()?;
        }
        for pid in self.processes()? {
            // It may have ended by itself since it was listed.
            let _ = kill_process(pid, Signal::KILL);
        }
        Ok(())
    }
}

fn remove_tree(path: &Path) -> std::io::Result<()> {
    for child in folders(path) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// The mount point of the first cgroup2 file system in the text of a mountinfo file.
fn find_cgroup2(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        (file_system.split(' ').next()? == "cgroup2").then_some(())?;
        Some(PathBuf::from(unescape(mount.split(' ').nth(4)?)))
    })
}

/// mountinfo writes blanks and the like as a backslash and three octal digits.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        if let Some(byte) = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            plain.push(char::from(byte));
            plain.push_str(part.get(3..).unwrap_or_default());
        } else {
            plain.push('\\');
            plain.push_str(part);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_on_a_hybrid_and_on_a_unified_machine() {
        let hybrid = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
";
        assert_eq!(find_cgroup2(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let unified = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(find_cgroup2(unified), Some(PathBuf::from("/sys/fs/cgroup")));
    }

    #[test]
    fn a_machine_with_only_the_old_hierarchy_has_none() {
        assert_eq!(find_cgroup2("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), None);
        assert_eq!(find_cgroup2("nonsense\n\n - cgroup2"), None);
    }

    #[test]
    fn escaped_mount_points_are_read() {
        let line = "1 2 0:1 / /mnt/a\\040b\\x rw - cgroup2 none rw\n";
        assert_eq!(find_cgroup2(line), Some(PathBuf::from("/mnt/a b\\x")));
    }
}
