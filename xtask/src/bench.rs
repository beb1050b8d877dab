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
    /// Pairs of each figure. Default: 200 of what takes microseconds, 20 of what takes seconds.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: Option<u32>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Measured {
    /// What the kernel programs cost connections that are not to Snowflake.
    Capture,
    /// What large results cost the agent's memory, and what keeping them as payloads costs.
    Results,
}

impl Measured {
    const ALL: [Self; 2] = [Self::Capture, Self::Results];

    fn name(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::Results => "results",
        }
    }

    fn pairs(self) -> u32 {
        match self {
            Self::Capture => 200,
            Self::Results => 20,
        }
    }
}

/// Measures, and prints the figures.
pub fn run(root: &Path, options: &Options) -> Result<ExitCode> {
    setup::packages()?;
    setup::kernel()?;
    let privilege = Privilege::acquire(WHY)?;
    let release = Build { release: true };
    let agent = build::all(root, release)?.agent;
    let sandbox = build::sandbox(root, release)?;
    let all = options.what.map_or(Measured::ALL.to_vec(), |what| vec![what]);
    for what in all {
        let pairs = options.pairs.unwrap_or(what.pairs()).to_string();
        let mut command = privilege.command(&sandbox, &setup::variables_for_root());
        command.args(["bench", what.name(), "--pairs", &pairs, "--binary"]).arg(&agent);
        if options.json {
            command.arg("--json");
        }
        programs::run(&mut command)?;
    }
    Ok(ExitCode::SUCCESS)
}
