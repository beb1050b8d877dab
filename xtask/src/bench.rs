//! `cargo xtask bench`: built as the caller, run as root.

use std::{path::Path, process::ExitCode};

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::{
    build::{self, Options as Build},
    privilege::Privilege,
    programs, setup,
};

const WHY: &str = "the bench (network namespaces, control groups, kernel programs)";

#[derive(Args, Debug)]
pub struct Options {
    /// What to measure. Default: everything.
    what: Option<Measured>,
    /// Pairs of each figure.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Measured {
    /// What the kernel programs cost connections that are not to Snowflake.
    Capture,
}

/// Measures, and prints the figures.
pub fn run(root: &Path, options: &Options) -> Result<ExitCode> {
    setup::packages()?;
    setup::kernel()?;
    let privilege = Privilege::acquire(WHY)?;
    // What is measured is the client and the kernel: the agent has nothing to do meanwhile.
    let agent = build::all(root, Build::default())?.agent;
    let sandbox = build::sandbox(root, Build { release: true })?;
    let Measured::Capture = options.what.unwrap_or(Measured::Capture);
    let mut command = privilege.command(&sandbox, &setup::variables_for_root());
    command.args(["bench", "capture", "--pairs", &options.pairs.to_string(), "--binary"]).arg(agent);
    if options.json {
        command.arg("--json");
    }
    programs::run(&mut command).map(|()| ExitCode::SUCCESS)
}
