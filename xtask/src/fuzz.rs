//! Coverage-guided fuzzing, by libFuzzer: as `cargo fuzz` does it, with the stable compiler and without a sanitizer.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

/// What makes the compiler tell libFuzzer where a run has been.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks";
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Of one input, in bytes: what can go wrong does with short ones too.
const LONGEST: usize = 4096;

#[derive(Debug, Args)]
pub struct Options {
    /// What to fuzz. Default: each in turn.
    target: Option<Target>,
    /// For how long, each.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    /// Method, path and query string of a request.
    Request,
    /// Snowflake's answers, and what of them is rewritten.
    Answer,
    /// The body of a query.
    Query,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Answer => "answer",
            Self::Query => "query",
        }
    }
}

pub fn run(root: &Path, options: &Options) -> Result<ExitCode> {
    let built = Command::new("cargo")
        .current_dir(root)
        .args(["build", "--release", "-p", "snowfence-fuzz", "--features", "libfuzzer", "--bins"])
        .args(["--target", TARGET, "--target-dir", "target/fuzz"])
        .args(["--config", "profile.release.lto=false", "--config", "profile.release.opt-level=1"])
        .env("RUSTFLAGS", FLAGS)
        .status()
        .context("run cargo")?;
    ensure!(built.success(), "the fuzzers cannot be built");
    let all = [Target::Request, Target::Answer, Target::Query];
    for target in all.into_iter().filter(|target| options.target.is_none_or(|wanted| wanted == *target)) {
        let name = target.name();
        // New inputs go to the first folder; a failure is shown, and kept beside it.
        let found = root.join("target/fuzz/found").join(name);
        std::fs::create_dir_all(&found).with_context(|| format!("make {}", found.display()))?;
        let fuzzed =
            Command::new(root.join("target/fuzz").join(TARGET).join("release").join(format!("fuzz-{name}")))
                .arg(&found)
                .arg(root.join("agent/fuzz/corpus").join(name))
                .arg(format!("-max_total_time={}", options.seconds))
                .arg(format!("-max_len={LONGEST}"))
                .arg(format!("-artifact_prefix={}/failure-", found.display()))
                .args(["-timeout=10", "-print_final_stats=1", "-verbosity=0"])
                .status()
                .with_context(|| format!("run fuzz-{name}"))?;
        if !fuzzed.success() {
            eprintln!(
                "the input that failed: {}/failure-*; put it into agent/fuzz/corpus/{name} when mended",
                found.display()
            );
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}
