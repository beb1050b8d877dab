//! A pod's own view of files, processes and privileges.
//!
//! Files are the machine's, as far as the user may read them, so that any program can be tried. What is the pod's own:
//! `/run` (empty but for the sandbox's public files and the pod's home), `/sys`, `/proc`, name resolution, and for root
//! also `/dev`. So nothing leads from a pod to control groups, to pinned programs, to the agent's secrets, to other
//! processes, or to disks.

use std::{
    env,
    fs::{self, File},
    io::ErrorKind,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt as _, symlink},
    },
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use rustix::{
    fs::CWD,
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_bind, mount_change,
        mount_remount, move_mount, open_tree,
    },
    thread::{
        CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities,
        set_no_new_privs,
    },
};
use serde::{Deserialize, Serialize};

use crate::state::make_public_folder;

/// What root may do in an ordinary container, and NET_ADMIN. MKNOD is left out, because what forbids device files
/// there, the device controller, is not in use here.
const CAPABILITIES_OF_ROOT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::AUDIT_WRITE)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::NET_ADMIN);
/// The kernel's own bound on a capability's number.
const MOST_CAPABILITIES: u32 = 64;
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Parts of /proc through which root could change the machine.
const DANGEROUS_IN_PROC: [&str; 5] = ["sys", "sysrq-trigger", "irq", "bus", "fs"];
/// How many links a link may lead through.
const LINKS: usize = 8;

/// The container of a pod.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Container {
    pub uid: u32,
    pub gid: u32,
    /// Stays root, with the capabilities of an ordinary container, NET_ADMIN and NET_RAW.
    pub root: bool,
    /// Files that take the place of the machine's, or appear in /run: from, to.
    pub files: Vec<(PathBuf, PathBuf)>,
}

impl Container {
    /// The files. To be called in a mount namespace of one's own.
    pub fn set_up_files(&self) -> Result<()> {
        // What the machine unmounts goes here too, nothing mounted here is seen by the machine.
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
            .context("part from /")?;
        let sources = self.files.iter().map(|(from, to)| Ok((tree(from)?, from.is_dir(), to)));
        let sources: Vec<(OwnedFd, bool, &PathBuf)> = sources.collect::<Result<_>>()?;
        let devices = self.root.then(|| DEVICES.map(|name| (name, tree(&Path::new("/dev").join(name)))));
        let terminals = tree(Path::new("/dev/pts"));
        self.open_working_directory()?;

        let restrictive = MountFlags::NOSUID | MountFlags::NODEV;
        fresh("tmpfs", "/run", restrictive)?;
        fresh("sysfs", "/sys", restrictive | MountFlags::NOEXEC | MountFlags::RDONLY)?;
        if let Some(devices) = devices {
            fresh("tmpfs", "/dev", MountFlags::NOSUID | MountFlags::NOEXEC)?;
            for (name, device) in devices {
                place(device?, false, &Path::new("/dev").join(name))?;
            }
            if let Ok(terminals) = terminals {
                place(terminals, true, Path::new("/dev/pts"))?;
                symlink("pts/ptmx", "/dev/ptmx").context("make /dev/ptmx")?;
            }
            fs::create_dir("/dev/shm").context("make /dev/shm")?;
            fresh("tmpfs", "/dev/shm", restrictive)?;
            for (target, link) in [("fd", "fd"), ("fd/0", "stdin"), ("fd/1", "stdout"), ("fd/2", "stderr")] {
                symlink(Path::new("/proc/self").join(target), Path::new("/dev").join(link))
                    .context("link /dev")?;
            }
        }
        for (source, folder, target) in sources {
            place(source, folder, target)?;
        }
        Ok(())
    }

    /// Makes the path of the working directory passable where the machine's user keeps others out of a folder above it.
    /// Python, for one, opens a script by its full path. Nothing else of the closed folder can be seen.
    fn open_working_directory(&self) -> Result<()> {
        let here = env::current_dir().context("find the working directory")?;
        let mut above: Vec<&Path> = here.ancestors().skip(1).collect();
        above.reverse();
        let Some(closed) = above.into_iter().find(|folder| !self.may_pass(folder)) else { return Ok(()) };
        let files = tree(&here)?;
        let closed = closed.to_str().with_context(|| format!("{} is not UTF-8", closed.display()))?;
        fresh("tmpfs", closed, MountFlags::NOSUID | MountFlags::NODEV)?;
        place(files, true, &here)
    }

    /// Whether the pod's user may pass through a folder, by its mode.
    fn may_pass(&self, folder: &Path) -> bool {
        let Ok(metadata) = fs::metadata(folder) else { return true };
        let bit = if self.root {
            return true;
        } else if metadata.uid() == self.uid {
            0o100
        } else if metadata.gid() == self.gid {
            0o010
        } else {
            0o001
        };
        metadata.mode() & bit != 0
    }

    /// Processes and privileges. To be called by the first process of a pid namespace, after the files.
    pub fn set_up_processes(&self) -> Result<()> {
        fresh("proc", "/proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC)?;
        if !self.root {
            return set_no_new_privs(true).context("forbid new privileges");
        }
        for name in DANGEROUS_IN_PROC {
            let path = Path::new("/proc").join(name);
            if path.exists() {
                mount_bind(&path, &path).with_context(|| format!("bind {}", path.display()))?;
                let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
                mount_remount(&path, flags, "").with_context(|| format!("protect {}", path.display()))?;
            }
        }
        drop_capabilities()
    }
}

fn drop_capabilities() -> Result<()> {
    for number in 0..MOST_CAPABILITIES {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if CAPABILITIES_OF_ROOT.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Past the last capability that this kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => bail!("drop capability {number}: {error}"),
        }
    }
    let sets = CapabilitySets {
        effective: CAPABILITIES_OF_ROOT,
        permitted: CAPABILITIES_OF_ROOT,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).context("drop capabilities")
}

fn fresh(kind: &str, target: &str, flags: MountFlags) -> Result<()> {
    let options = (kind == "tmpfs").then_some(c"mode=0755");
    mount(kind, target, kind, flags, options).with_context(|| format!("mount {kind} on {target}"))
}

/// A handle on the files at `path`, which stays valid when something else is mounted over them.
fn tree(path: &Path) -> Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, path, flags).with_context(|| format!("open {}", path.display()))
}

/// Mounts `source` at `target`, which is made where it is missing.
fn place(source: OwnedFd, folder: bool, target: &Path) -> Result<()> {
    let target = follow(target)?;
    if !target.exists() {
        let parent = if folder { Some(target.as_path()) } else { target.parent() };
        parent.map_or(Ok(()), make_public_folder)?;
        if !folder {
            File::create(&target).with_context(|| format!("make {}", target.display()))?;
        }
    }
    move_mount(source, "", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .with_context(|| format!("mount on {}", target.display()))
}

/// Where a link leads, also one that leads nowhere: /etc/resolv.conf often points into /run, which is empty here.
fn follow(path: &Path) -> Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = normal(&path.parent().unwrap_or(Path::new("/")).join(target)),
            Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::NotFound) => {
                return Ok(path);
            }
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        }
    }
    bail!("{} is a link that never ends", path.display())
}

/// Without `.` and `..`, read as text.
fn normal(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut normal, component| {
        match component {
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir => {}
            other => normal.push(other),
        }
        normal
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn root_in_a_pod_may_not_touch_the_machine() {
        for forbidden in [
            CapabilitySet::SYS_ADMIN,
            CapabilitySet::BPF,
            CapabilitySet::SYS_PTRACE,
            CapabilitySet::SYS_MODULE,
            CapabilitySet::SYS_RAWIO,
            CapabilitySet::MKNOD,
            CapabilitySet::DAC_READ_SEARCH,
            CapabilitySet::PERFMON,
        ] {
            assert!(!CAPABILITIES_OF_ROOT.intersects(forbidden), "{forbidden:?}");
        }
        assert!(CAPABILITIES_OF_ROOT.contains(CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW));
    }

    #[test]
    fn folders_are_passable_by_their_mode() {
        let folder = tempfile::tempdir().unwrap();
        let owner = fs::metadata(folder.path()).unwrap();
        let container = |uid, gid, root| Container { uid, gid, root, files: Vec::new() };
        let (uid, gid) = (owner.uid(), owner.gid());
        for (mode, by_owner, by_group, by_others) in [
            (0o700, true, false, false),
            (0o750, true, true, false),
            (0o755, true, true, true),
            (0o001, false, false, true),
        ] {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(container(uid, gid, false).may_pass(folder.path()), by_owner, "{mode:o}");
            assert_eq!(container(uid + 1, gid, false).may_pass(folder.path()), by_group, "{mode:o}");
            assert_eq!(container(uid + 1, gid + 1, false).may_pass(folder.path()), by_others, "{mode:o}");
            assert!(container(uid, gid, true).may_pass(folder.path()), "{mode:o}");
        }
    }

    #[test]
    fn links_are_followed_to_where_they_would_lead() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("etc/resolv.conf");
        fs::create_dir(folder.path().join("etc")).unwrap();
        symlink("../run/resolve/stub.conf", &link).unwrap();
        assert_eq!(follow(&link).unwrap(), folder.path().join("run/resolve/stub.conf"));
        let plain = folder.path().join("hosts");
        assert_eq!(follow(&plain).unwrap(), plain);
        let round = folder.path().join("round");
        symlink("round", &round).unwrap();
        assert!(follow(&round).is_err());
    }
}
