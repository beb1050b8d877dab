//! `cargo xtask bench`: built as the caller, run as root.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
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
    /// Statements in ClickHouse that questions are asked about.
    #[arg(long, default_value_t = 4_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    rows: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Measured {
    /// How many statements the journal takes, what that adds to one, and how fast it is signed, verified and delivered.
    Audit,
    /// What the kernel programs cost connections that are not to Snowflake.
    Capture,
    /// How long the questions of deploy/clickhouse.md take, and how much of the tables they read.
    Questions,
    /// What large results cost the agent's memory, and what keeping them as payloads costs.
    Results,
}

impl Measured {
    const ALL: [Self; 4] = [Self::Audit, Self::Capture, Self::Questions, Self::Results];

    fn name(self) -> &'static str {
        match self {
            Self::Audit => "audit",
            Self::Capture => "capture",
            Self::Questions => "questions",
            Self::Results => "results",
        }
    }

    fn pairs(self) -> u32 {
        match self {
            Self::Capture => 200,
            Self::Audit | Self::Questions | Self::Results => 20,
        }
    }
}

/// Measures, and prints the figures.
pub fn run(root: &Path, options: &Options) -> Result<ExitCode> {
    let all = options.what.map_or(Measured::ALL.to_vec(), |what| vec![what]);
    let (audit, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|what| matches!(what, Measured::Audit));
    if !audit.is_empty() {
        self::audit(root, options.json)?;
    }
    if others.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    setup::packages()?;
    setup::kernel()?;
    let privilege = Privilege::acquire(WHY)?;
    let release = Build { release: true };
    let agent = build::all(root, release)?.agent;
    let sandbox = build::sandbox(root, release)?;
    for what in others {
        let pairs = options.pairs.unwrap_or(what.pairs()).to_string();
        let mut command = privilege.command(&sandbox, &setup::variables_for_root());
        command
            .args(["bench", what.name(), "--pairs", &pairs, "--rows", &options.rows.to_string(), "--binary"])
            .arg(&agent);
        if options.json {
            command.arg("--json");
        }
        programs::run(&mut command)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The journal needs neither root nor a kernel of its own.
fn audit(root: &Path, json: bool) -> Result<()> {
    let sandbox = build::sandbox(root, Build { release: false })?;
    let interpreters = setup::python(&sandbox)?;
    let python = interpreters.get("clickhouse").context("find the Python of ClickHouse")?;
    let server = root.join("tests/python/clickhouse.py");
    let mut command = Command::new("cargo");
    command.args(["bench", "--quiet", "--package", "snowfence", "--bench", "audit"]).current_dir(root);
    command.env("SNOWFENCE_TEST_CLICKHOUSE", format!("{} {}", python.display(), server.display()));
    if json {
        command.args(["--", "--json"]);
    }
    programs::run(&mut command)
}
