//! `sandbox` and `demo`: built as the caller, run as root.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    build::{self, Binaries},
    privilege::Privilege,
    setup,
};

const WHY: &str = "the sandbox (network namespaces, control groups, kernel programs)";

#[derive(Args, Debug)]
pub struct Options {
    /// Leave the sandbox up after CMD, and say how to enter it and how to take it down.
    #[arg(long)]
    keep: bool,
    /// Run CMD as root of the pod's namespaces, with NET_ADMIN and NET_RAW.
    #[arg(long)]
    root: bool,
    /// The major version of the Python connector: 4 or 5.
    #[arg(long, default_value = "5", value_parser = ["4", "5"])]
    driver: String,
    /// A Cedar policy in place of the default one.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// A configuration in place of the default one.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Optimise the agent.
    #[arg(long)]
    release: bool,
    /// Run CMD in the pod of a sandbox that was kept, and leave it up.
    #[arg(long = "in", value_name = "ID", conflicts_with_all = ["keep", "root", "policy", "config", "down"])]
    enter: Option<String>,
    /// Take down a sandbox that was kept.
    #[arg(long, value_name = "ID", conflicts_with_all = ["keep", "root", "policy", "config", "program"])]
    down: Option<String>,
    /// The program to run, and its arguments.
    #[arg(last = true, value_name = "CMD", required_unless_present = "down")]
    program: Vec<OsString>,
}

#[derive(Args, Debug)]
pub struct DemoOptions {
    /// Optimise the agent.
    #[arg(long)]
    release: bool,
}

/// `cargo xtask sandbox`. Returns only when it failed: otherwise the sandbox takes this process's place.
pub fn run(root: &Path, options: Options) -> Result<ExitCode> {
    let mut arguments: Vec<OsString> = Vec::new();
    if let Some(id) = options.down {
        return become_sandbox(&prepare_only_sandbox(root)?, &["down".into(), id.into()]);
    }
    if let Some(id) = options.enter {
        arguments.extend(["enter".into(), id.into(), "--".into()]);
        arguments.extend(options.program);
        return become_sandbox(&prepare_only_sandbox(root)?, &arguments);
    }
    let binaries = prepare(root, build::Options { release: options.release })?;
    arguments.extend(["run".into(), "--driver".into(), options.driver.into()]);
    arguments.extend(["--binary".into(), binaries.agent.into()]);
    for (flag, given) in [("--keep", options.keep), ("--root", options.root)] {
        arguments.extend(given.then(|| flag.into()));
    }
    for (flag, path) in [("--policy", options.policy), ("--config", options.config)] {
        if let Some(path) = path {
            // The caller may read what root may not, on a network file system for example: fail here if it is not there.
            let path = std::path::absolute(&path)?;
            std::fs::metadata(&path).with_context(|| format!("find {}", path.display()))?;
            arguments.extend([flag.into(), path.into()]);
        }
    }
    arguments.push("--".into());
    arguments.extend(options.program);
    become_sandbox(&binaries.sandbox, &arguments)
}

/// `cargo xtask demo`. Returns only when it failed.
pub fn demo(root: &Path, options: &DemoOptions) -> Result<ExitCode> {
    let binaries = prepare(root, build::Options { release: options.release })?;
    become_sandbox(&binaries.sandbox, &["demo".into(), "--binary".into(), binaries.agent.into()])
}

/// `cargo xtask clean-sandboxes`. Returns only when it failed.
pub fn clean(root: &Path) -> Result<ExitCode> {
    become_sandbox(&prepare_only_sandbox(root)?, &["sweep".into()])
}

fn prepare(root: &Path, options: build::Options) -> Result<Binaries> {
    setup::packages()?;
    setup::kernel()?;
    // Asked for before the long steps, so that nobody has to wait for the question.
    Privilege::acquire(WHY)?;
    let binaries = build::all(root, options)?;
    setup::python(&binaries.sandbox)?;
    Ok(binaries)
}

fn prepare_only_sandbox(root: &Path) -> Result<PathBuf> {
    build::sandbox(root, build::Options::default())
}

fn become_sandbox(sandbox: &Path, arguments: &[OsString]) -> Result<ExitCode> {
    let privilege = Privilege::acquire(WHY)?;
    let error = privilege.command(sandbox, &setup::variables_for_root()).args(arguments).exec();
    bail!("start {}: {error}", sandbox.display())
}
