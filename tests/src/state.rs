//! What a sandbox leaves on the machine while it lives, who owns it, and how it is taken down by its id alone.
//!
//! The owner holds a shared lock on `owner`; the kernel releases it however the owner ends. A sandbox whose lock can be
//! had exclusively has no owner any more and is removed by [`sweep`].

use std::{
    fs::{self, File, Permissions},
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    fs::{FlockOperation, Mode, flock},
    process::umask,
};

use crate::{cgroup::Cgroup, network};

const RUN: &str = "/run";
const PREFIX: &str = "snowfence-sandbox-";
const BPFFS: &str = "/sys/fs/bpf";
/// Characters of a sandbox's id.
const ID_LENGTH: usize = 6;
/// How often a folder that others work in is tried to be removed.
const TRIES: u32 = 100;

/// The folders of one sandbox:
///
/// ```text
/// /run/snowfence-sandbox-<id>/
///   public/   what a pod may read: CAs, the agent's configuration, the upstream's log
///   logs/     what each process wrote, for people
///   secret/   0700: keys, the service's password, the agent's state, ClickHouse's data
///   pods/     each pod's home, resolv.conf and hosts
///   owner     locked while the sandbox has an owner
/// ```
#[derive(Clone, Debug)]
pub struct State {
    id: String,
    root: PathBuf,
}

impl State {
    /// Takes a new id and makes its folders. They are owned from the moment that they can be seen.
    pub fn claim() -> Result<(Self, Ownership)> {
        let staging = tempfile::Builder::new()
            .prefix(&format!(".{PREFIX}"))
            .rand_bytes(ID_LENGTH)
            .tempdir_in(RUN)
            .context("make the sandbox's folder in /run")?;
        fs::set_permissions(staging.path(), Permissions::from_mode(0o755))?;
        for folder in ["public", "logs", "pods"] {
            make_folder(&staging.path().join(folder), 0o755)?;
        }
        for folder in ["secret", "tmp"] {
            make_folder(&staging.path().join(folder), 0o700)?;
        }
        let ownership = Ownership::take(&staging.path().join("owner"))?;
        let name =
            staging.path().file_name().and_then(|name| name.to_str()).context("read the folder's name")?;
        let id = name.trim_start_matches('.').trim_start_matches(PREFIX).to_owned();
        let state = Self::named(id);
        fs::rename(staging.path(), &state.root).with_context(|| format!("make {}", state.root.display()))?;
        // The folder has another name now: there is nothing left for the guard to delete.
        let _ = staging.keep();
        Ok((state, ownership))
    }

    /// The sandbox that `id` names.
    pub fn open(id: &str) -> Result<Self> {
        ensure!(is_id(id), "{id:?} is no sandbox's id: it has {ID_LENGTH} letters and digits");
        let state = Self::named(id.to_owned());
        if !state.root.is_dir() {
            let others = ids()?;
            ensure!(!others.is_empty(), "there is no sandbox {id}, nor any other");
            bail!("there is no sandbox {id}; those that are up: {}", others.join(", "));
        }
        Ok(state)
    }

    fn named(id: String) -> Self {
        let root = Path::new(RUN).join(format!("{PREFIX}{id}"));
        Self { id, root }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn public(&self, name: &str) -> PathBuf {
        self.root.join("public").join(name)
    }

    pub fn secret(&self, name: &str) -> PathBuf {
        self.root.join("secret").join(name)
    }

    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Where what stands for the outside world keeps what it needs for a while: it goes with the sandbox.
    pub fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub fn pod(&self, name: &str) -> PathBuf {
        self.root.join("pods").join(name)
    }

    /// Where the agent pins its programs and maps.
    pub fn pins(&self) -> PathBuf {
        pins(&self.id)
    }

    /// Becomes one of the owners.
    pub fn own(&self) -> Result<Ownership> {
        Ownership::take(&self.root.join("owner"))
    }
}

/// Keeps a sandbox from being swept for as long as this value lives.
#[derive(Debug)]
pub struct Ownership {
    _locked: File,
}

impl Ownership {
    fn take(path: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .with_context(|| format!("open {}", path.display()))?;
        flock(&file, FlockOperation::NonBlockingLockShared)
            .with_context(|| format!("{} is being taken down", path.display()))?;
        Ok(Self { _locked: file })
    }
}

/// The ids of the sandboxes on this machine, whether they have an owner or not.
pub fn ids() -> Result<Vec<String>> {
    let mut found: Vec<String> = fs::read_dir(RUN)
        .context("list /run")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix(PREFIX).map(str::to_owned))
        .filter(|id| is_id(id))
        .collect();
    found.sort();
    Ok(found)
}

/// Takes down every sandbox whose owners are gone, and returns their ids.
pub fn sweep() -> Result<Vec<String>> {
    let mut swept = Vec::new();
    for id in ids()? {
        let Ok(owner) = File::open(State::named(id.clone()).root.join("owner")) else { continue };
        // Held while the sandbox is removed, so that two sweepers never work on the same one.
        if flock(&owner, FlockOperation::NonBlockingLockExclusive).is_ok() {
            remove(&id)?;
            swept.push(id);
        }
    }
    Ok(swept)
}

/// Takes down all that carries this id: processes, control groups, namespaces, pins, files. Goes on after a failure and
/// reports all of them; the folder in /run goes last, and only if nothing is left that it would lead to.
pub fn remove(id: &str) -> Result<()> {
    ensure!(is_id(id), "{id:?} is no sandbox's id");
    let mut failures: Vec<String> = Vec::new();
    let mut note = |done: Result<()>| failures.extend(done.err().map(|error| format!("{error:#}")));
    note(Cgroup::covered(id).and_then(|group| group.remove()));
    note(Cgroup::services(id).and_then(|group| group.remove()));
    note(network::remove(id));
    note(remove_folder(&pins(id)));
    if failures.is_empty() {
        remove_folder(&State::named(id.to_owned()).root)?;
    }
    ensure!(failures.is_empty(), "sandbox {id} could not be taken down whole: {}", failures.join("; "));
    Ok(())
}

/// A folder of that mode, whatever the umask says.
pub fn make_folder(path: &Path, mode: u32) -> Result<()> {
    fs::DirBuilder::new()
        .mode(mode)
        .create(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .with_context(|| format!("make {}", path.display()))
}

/// A folder for everybody to read, and so is every folder on the way to it that is not there yet.
pub fn make_public_folder(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_public_folder(parent)?;
    }
    match make_folder(path, 0o755) {
        // Somebody else was faster.
        Err(_) if path.is_dir() => Ok(()),
        done => done,
    }
}

/// From now on, whatever umask this process was started with, others may read the files that it makes: a pod's user is
/// not this one. What is secret lies in folders that are closed.
pub fn let_others_read() {
    umask(Mode::WGRP | Mode::WOTH);
}

fn pins(id: &str) -> PathBuf {
    Path::new(BPFFS).join(format!("snowfence-{id}"))
}

fn is_id(text: &str) -> bool {
    text.len() == ID_LENGTH && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Removes a folder with all that is in it. Somebody may be removing it, or a process that just died adding to it, at
/// the same time.
fn remove_folder(path: &Path) -> Result<()> {
    let mut tries = 0;
    loop {
        tries += 1;
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() == ErrorKind::NotFound && !path.exists() => return Ok(()),
            Err(error)
                if tries < TRIES
                    && matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {}
            done => return done.with_context(|| format!("remove {}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_are_ids() {
        assert!(is_id("a1B2c3"));
        for wrong in ["", "a1B2c", "a1B2c3d", "../etc", "a b2c3", "a/b2c3"] {
            assert!(!is_id(wrong), "{wrong:?}");
            assert!(remove(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_sandbox_that_does_not_exist_is_named() {
        let error = State::open("zzzzzz").unwrap_err().to_string();
        assert!(error.starts_with("there is no sandbox zzzzzz"), "{error}");
    }

    #[test]
    fn folders_on_the_way_are_public() {
        let home = tempfile::tempdir().unwrap();
        let cache = home.path().join("cache/snowfence");
        make_public_folder(&cache).unwrap();
        make_public_folder(&cache).unwrap();
        for folder in [&cache, cache.parent().unwrap()] {
            assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o755);
        }
    }

    #[test]
    fn a_folder_is_gone_whoever_removes_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        for number in 0..200 {
            fs::create_dir_all(path.join(number.to_string()).join("deep")).unwrap();
        }
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| remove_folder(&path).unwrap());
            }
        });
        assert!(!path.exists());
        remove_folder(&path).unwrap();
    }

    #[test]
    fn a_lock_can_be_shared_and_keeps_sweepers_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("owner");
        let first = Ownership::take(&path).unwrap();
        let second = Ownership::take(&path).unwrap();
        let sweeper = File::open(&path).unwrap();
        drop(first);
        assert!(flock(&sweeper, FlockOperation::NonBlockingLockExclusive).is_err());
        drop(second);
        assert!(flock(&sweeper, FlockOperation::NonBlockingLockExclusive).is_ok());
        assert!(Ownership::take(&path).is_err());
    }
}
