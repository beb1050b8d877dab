//! Packages for clients in Node, installed once for each state of the lock file and reused by every run, in the same cache
//! as the Python environments.

use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};

use crate::{python, state};

const COMPLETE: &str = ".complete";
/// What npm needs.
const FILES: [&str; 2] = ["package.json", "package-lock.json"];

/// The folder of the installed packages, as NODE_PATH wants it. Fails when they were not installed yet.
pub fn modules() -> Result<PathBuf> {
    let folder = folder()?;
    ensure!(folder.join(COMPLETE).is_file(), "the packages for Node are not there: run `cargo xtask setup`");
    Ok(folder.join("node_modules"))
}

/// Installs the packages unless they are there. Another process that does so at the same time is waited for.
pub fn prepare(say: &dyn Fn(&str)) -> Result<()> {
    state::let_others_read();
    let folder = folder()?;
    if folder.join(COMPLETE).is_file() {
        return Ok(());
    }
    let parent = folder.parent().context("find the cache")?;
    state::make_public_folder(parent)?;
    let lock = File::create(parent.join("lock")).context("make a lock file")?;
    flock(&lock, FlockOperation::LockExclusive).context("wait for another set-up")?;
    if folder.join(COMPLETE).is_file() {
        return Ok(());
    }
    say(&format!("packages for Node: installing from {}", source().display()));
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
    for file in FILES {
        fs::copy(source().join(file), folder.join(file)).with_context(|| format!("copy {file}"))?;
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund"]).current_dir(&folder);
    python::run(&mut npm).context("install the packages for Node")?;
    fs::write(folder.join(COMPLETE), "").context("finish the packages for Node")
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("node")
}

fn folder() -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    for file in FILES {
        let path = source().join(file);
        fs::read(&path).with_context(|| format!("read {}", path.display()))?.hash(&mut hasher);
    }
    Ok(python::cache()?.join("node").join(format!("{:016x}", hasher.finish())))
}
