//! How long the questions of `deploy/clickhouse.md` take, and how much they read, by the ClickHouse engine alone.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::Plan;
use crate::python::{self, Environment};

/// The bench. Prints its result.
pub fn run(plan: &Plan) -> Result<()> {
    python::prepare(&[Environment::ClickHouse], &plan.say)?;
    let binary = match &plan.binary {
        Some(binary) => binary.clone(),
        None => std::env::current_exe().context("find this program")?.with_file_name("snowfence"),
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = tempfile::tempdir().context("make a folder for the DDL")?;
    let schema = folder.path().join("schema.sql");
    let example = root.join("deploy/examples/snowfence.toml");
    let printed = Command::new(&binary)
        .args(["schema", "print", "--config"])
        .arg(&example)
        .output()
        .with_context(|| format!("run {}", binary.display()))?;
    ensure!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    fs::write(&schema, &printed.stdout).context("write the DDL")?;
    (plan.say)(&format!("{} statements, and the questions about them", plan.rows));
    let script: PathBuf = python::programs().join("questions.py");
    let mut command = Command::new(Environment::ClickHouse.python()?);
    command.arg(script).arg("--schema").arg(&schema).arg("--guide").arg(root.join("deploy/clickhouse.md"));
    command.args(["--rows", &plan.rows.to_string()]);
    if plan.json {
        command.arg("--json");
    }
    let status = command.status().context("run the questions")?;
    ensure!(status.success(), "the questions ended with {status}");
    Ok(())
}
