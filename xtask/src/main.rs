//! `cargo xtask …`: everything that cargo alone cannot do.

mod bench;
mod build;
mod ebpf;
mod fuzz;
mod kernels;
mod pages;
mod privilege;
mod programs;
mod sandbox;
mod setup;
mod test;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

/// Build, set-up, sandbox, demo, tests and benches of Snowfence.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = pages::XTASK)]
struct Arguments {
    #[command(subcommand)]
    job: Job,
}

#[derive(Debug, Subcommand)]
enum Job {
    /// Build the kernel programs, and the agent with them inside.
    #[command(after_help = pages::BUILD)]
    Build(build::Options),
    /// Install what the other jobs need on this machine.
    #[command(after_help = pages::SETUP)]
    Setup,
    /// Run any program behind the agent, in a network of its own.
    #[command(after_help = pages::SANDBOX)]
    Sandbox(sandbox::Options),
    /// Run the main job on real input, and tell the story.
    #[command(after_help = pages::DEMO)]
    Demo(sandbox::DemoOptions),
    /// Check formatting, lints, unit tests, and the whole system.
    #[command(after_help = pages::TEST)]
    Test(test::Options),
    /// Measure what Snowfence costs.
    #[command(after_help = pages::BENCH)]
    Bench(bench::Options),
    /// Look for input that the agent does not take well.
    #[command(after_help = pages::FUZZ)]
    Fuzz(fuzz::Options),
    /// Take down sandboxes whose owner was killed.
    CleanSandboxes,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    let root = root()?;
    match arguments.job {
        Job::Build(options) => build::run(&root, options).map(|()| ExitCode::SUCCESS),
        Job::Setup => setup::run(&root).map(|()| ExitCode::SUCCESS),
        Job::Sandbox(options) => sandbox::run(&root, options),
        Job::Demo(options) => sandbox::demo(&root, &options),
        Job::Test(options) => test::run(&root, &options),
        Job::Bench(options) => bench::run(&root, &options),
        Job::Fuzz(options) => fuzz::run(&root, &options),
        Job::CleanSandboxes => sandbox::clean(&root),
    }
}

/// The root of the workspace.
fn root() -> Result<PathBuf> {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    Ok(own.parent().context("find the root of the workspace")?.to_owned())
}
