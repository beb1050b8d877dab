//! Paths of cgroups by their ids.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// How many paths are remembered. Ids are never given twice, so an entry never becomes wrong.
const CAPACITY: usize = 16_384;

pub(super) struct Cgroups {
    root: PathBuf,
    paths: Mutex<HashMap<u64, String>>,
}

impl Cgroups {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, paths: Mutex::default() }
    }

    /// The path, from the hierarchy's root, of the cgroup with this id, which process `pid` was in a moment ago. None if
    /// there is no such cgroup any more. Reads files.
    pub(super) fn path(&self, id: u64, pid: u32) -> Option<String> {
        if let Some(path) = self.paths.lock().unwrap_or_else(PoisonError::into_inner).get(&id) {
            return Some(path.clone());
        }
        let path = self.of_process(id, pid).or_else(|| self.search(id))?;
        let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        if paths.len() >= CAPACITY {
            paths.clear();
        }
        paths.insert(id, path.clone());
        Some(path)
    }

    /// The path of a cgroup's directory, from the hierarchy's root.
    pub(super) fn path_of(&self, directory: &Path) -> PathBuf {
        Path::new("/").join(directory.strip_prefix(&self.root).unwrap_or(directory))
    }

    /// The directory of a cgroup, by its path from the hierarchy's root.
    pub(super) fn directory_of(&self, path: &str) -> PathBuf {
        self.root.join(path.strip_prefix('/').unwrap_or(path))
    }

    /// The cgroup that the process is in now, if it is the one that is looked for.
    fn of_process(&self, id: u64, pid: u32) -> Option<String> {
        let memberships = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = memberships.lines().find_map(|line| line.strip_prefix("0::"))?;
        // In a cgroup namespace of our own this is another cgroup or none: the id tells.
        (fs::metadata(self.directory_of(path)).ok()?.ino() == id).then(|| path.to_owned())
    }

    /// Walks the hierarchy.
    fn search(&self, id: u64) -> Option<String> {
        if fs::metadata(&self.root).ok()?.ino() == id {
            return Some("/".to_owned());
        }
        let found = directories(&self.root).find(|(_, inode)| *inode == id)?.0;
        Some(self.path_of(&found).to_string_lossy().into_owned())
    }
}

/// Process ids in a cgroup and all below it. Those that vanish meanwhile are left out.
pub(super) fn processes(cgroup: &Path) -> impl Iterator<Item = u32> {
    processes_by_cgroup(cgroup).flat_map(|(_, processes)| processes)
}

/// The same by the directories of their cgroups.
pub(super) fn processes_by_cgroup(cgroup: &Path) -> impl Iterator<Item = (PathBuf, Vec<u32>)> {
    let below = directories(cgroup).map(|(directory, _)| directory);
    std::iter::once(cgroup.to_owned()).chain(below).map(|directory| {
        // A threaded cgroup does not list processes.
        let list = fs::read_to_string(directory.join("cgroup.procs"))
            .or_else(|_| fs::read_to_string(directory.join("cgroup.threads")))
            .unwrap_or_default();
        let processes = list.lines().filter_map(|line| line.parse().ok()).collect();
        (directory, processes)
    })
}

/// The deepest directory that both are in, or are.
pub(super) fn common(one: &Path, other: &Path) -> PathBuf {
    one.components()
        .zip(other.components())
        .take_while(|(one, other)| one == other)
        .map(|(one, _)| one)
        .collect()
}

/// The directories in this one, with their inode numbers.
pub(super) fn children(directory: &Path) -> impl Iterator<Item = (PathBuf, u64)> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| (entry.path(), entry.ino()))
}

/// All directories below this one, with their inode numbers.
fn directories(root: &Path) -> impl Iterator<Item = (PathBuf, u64)> {
    let mut waiting = vec![root.to_owned()];
    std::iter::from_fn(move || {
        let directory = waiting.pop()?;
        let children: Vec<(PathBuf, u64)> = children(&directory).collect();
        waiting.extend(children.iter().map(|(path, _)| path.clone()));
        Some(children)
    })
    .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_by_id_whoever_the_process_is() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("kubepods/burstable/pod 1");
        fs::create_dir_all(&deep).unwrap();
        let cgroups = Cgroups::new(root.path().to_owned());
        let id = fs::metadata(&deep).unwrap().ino();
        assert_eq!(cgroups.path(id, 0).as_deref(), Some("/kubepods/burstable/pod 1"));
        assert_eq!(cgroups.path(fs::metadata(root.path()).unwrap().ino(), 0).as_deref(), Some("/"));
        assert_eq!(cgroups.path(u64::MAX, 0), None);
        fs::remove_dir(&deep).unwrap();
        assert_eq!(cgroups.path(id, 0).as_deref(), Some("/kubepods/burstable/pod 1"), "remembered");
    }

    #[test]
    fn processes_are_those_of_the_whole_subtree() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::create_dir_all(root.path().join("c")).unwrap();
        fs::write(root.path().join("cgroup.procs"), "1\n2\n").unwrap();
        fs::write(root.path().join("a/b/cgroup.procs"), "30\n").unwrap();
        fs::write(root.path().join("c/cgroup.threads"), "400\n").unwrap();
        let mut found: Vec<u32> = processes(root.path()).collect();
        found.sort_unstable();
        assert_eq!(found, [1, 2, 30, 400]);
    }

    #[test]
    fn cgroups_have_an_ancestor_in_common() {
        let common = |one: &str, other: &str| common(Path::new(one), Path::new(other)).display().to_string();
        assert_eq!(common("/pods/a/x", "/pods/a/y"), "/pods/a");
        assert_eq!(common("/pods/a", "/pods/a/y"), "/pods/a");
        assert_eq!(common("/pods/a", "/pods/ab"), "/pods");
        assert_eq!(common("/a", "/b"), "/");
    }
}
