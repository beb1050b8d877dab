//! The agent with the kernel programs inside, and the binary of the sandbox.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use clap::Args;

use crate::{ebpf, programs};

#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Options {
    /// Optimise the agent.
    #[arg(long)]
    pub release: bool,
}

impl Options {
    /// The folder of the profile below the target folder.
    fn profile(self) -> &'static str {
        if self.release { "release" } else { "debug" }
    }
}

/// Builds the kernel programs and the agent.
pub fn run(root: &Path, options: Options) -> Result<()> {
    ebpf::build_programs(root)?;
    let mut command = programs::cargo(root);
    command.args(["build", "--locked", "--package", "snowfence"]);
    if options.release {
        command.arg("--release");
    }
    programs::run(&mut command)
}

/// What the sandbox needs: its own binary, and the agent's.
#[derive(Debug)]
pub struct Binaries {
    pub sandbox: PathBuf,
    pub agent: PathBuf,
}

/// Builds both. Nothing goes to standard output.
pub fn all(root: &Path, options: Options) -> Result<Binaries> {
    // In a process of its own, so that what any part of the build prints can be led elsewhere.
    let mut command = Command::new(env::current_exe().context("find this program's own path")?);
    command.arg("build").current_dir(root);
    if options.release {
        command.arg("--release");
    }
    programs::run(&mut command).context("build the agent")?;
    Ok(Binaries {
        sandbox: sandbox(root, Options::default())?,
        agent: programs::target(root)?.join(options.profile()).join("snowfence"),
    })
}

/// Builds the sandbox's binary alone.
pub fn sandbox(root: &Path, options: Options) -> Result<PathBuf> {
    let mut command = programs::cargo(root);
    command.args(["build", "--locked", "--package", "snowfence-tests", "--bins"]);
    if options.release {
        command.arg("--release");
    }
    programs::run(&mut command)?;
    Ok(programs::target(root)?.join(options.profile()).join("snowfence-sandbox"))
}
