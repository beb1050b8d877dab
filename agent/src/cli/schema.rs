//! `snowfence schema`: the tables, views and roles in ClickHouse.

use std::io::{self, Write};

use anyhow::anyhow;
use clap::{Args, Subcommand};
use serde_json::json;

use super::{ConfigFile, Failure, Format, Output, table};
use crate::app;
use crate::audit::clickhouse::{self, Report, Settings};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Print the DDL, for those who let no agent run any; sends nothing
    #[command(
        after_help = "It can be applied to any earlier version, and again. Set `audit.clickhouse.apply_schema = false` where it is\napplied by hand.\n\nExamples:\n  snowfence schema print --with-roles > snowfence.sql\n  snowfence schema print | clickhouse-client --multiquery"
    )]
    Print(Changes),
    /// Create what is missing in ClickHouse, bring an earlier version up to this one, set the retention
    #[command(
        after_help = "It can be interrupted, run again, and run by several nodes at once. The agent does the same by itself, but for\nroles, unless `audit.clickhouse.apply_schema` is false.\n\nExamples:\n  sudo snowfence schema apply\n  sudo snowfence schema apply --with-roles"
    )]
    Apply(Changes),
    /// Say which version ClickHouse has, what is missing and what differs
    #[command(
        after_help = "Ends with 1 if anything is missing or differs.\n\nExamples:\n  sudo snowfence schema status\n  sudo snowfence schema status --format json | jq .findings"
    )]
    Status {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Args)]
pub(super) struct Changes {
    #[command(flatten)]
    config: ConfigFile,
    /// Also the roles snowfence_writer, snowfence_auditor and snowfence_investigator: needs the right to create roles
    #[arg(long)]
    with_roles: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Print(changes) => print(&changes),
        Command::Apply(changes) => apply(&changes),
        Command::Status { config, output } => status(&config, output.format),
    }
}

fn print(changes: &Changes) -> Result<(), Failure> {
    let config = changes.config.load()?;
    let target = config.clickhouse.as_ref().ok_or_else(missing)?;
    let statements = clickhouse::print(&app::clickhouse_without_password(target), changes.with_roles)?;
    let mut out = io::stdout().lock();
    for statement in statements {
        match changes.output.format {
            Format::Text => writeln!(out, "{statement};\n")?,
            Format::Json => writeln!(out, "{}", json!({ "statement": statement }))?,
        }
    }
    Ok(())
}

fn apply(changes: &Changes) -> Result<(), Failure> {
    let settings = settings(&changes.config)?;
    let format = changes.output.format;
    let say = |step: &str| {
        let line = match format {
            Format::Text => step.to_owned(),
            Format::Json => json!({ "applied": step }).to_string(),
        };
        // Whoever no longer reads has still asked for it.
        let _ = writeln!(io::stdout(), "{line}");
    };
    runtime()?.block_on(clickhouse::apply(&settings, changes.with_roles, say))?;
    if format == Format::Text {
        writeln!(io::stdout(), "The schema is up to date.")?;
    }
    Ok(())
}

fn status(config: &ConfigFile, format: Format) -> Result<(), Failure> {
    let report = runtime()?.block_on(clickhouse::status(&settings(config)?))?;
    let mut out = io::stdout().lock();
    match format {
        Format::Json => writeln!(out, "{}", as_json(&report))?,
        Format::Text => as_text(&mut out, &report)?,
    }
    if report.version == report.known && report.findings.is_empty() {
        return Ok(());
    }
    Err(Failure::Failed(anyhow!("ClickHouse does not have all of the schema: run `snowfence schema apply`")))
}

fn as_json(report: &Report) -> serde_json::Value {
    let migrations = report.migrations.iter().map(|migration| {
        json!({ "version": migration.version, "name": migration.name, "time": migration.time, "by": migration.by })
    });
    let findings = report.findings.iter().map(
        |finding| json!({ "object": finding.object, "expected": finding.expected, "found": finding.found }),
    );
    json!({
        "version": report.version,
        "known": report.known,
        "migrations": migrations.collect::<Vec<_>>(),
        "findings": findings.collect::<Vec<_>>(),
    })
}

fn as_text(out: &mut impl Write, report: &Report) -> io::Result<()> {
    writeln!(out, "ClickHouse has schema {}; this program's is {}.", report.version, report.known)?;
    let rows: Vec<Vec<String>> = report
        .migrations
        .iter()
        .map(|migration| {
            let time = migration.time.clone().unwrap_or_else(|| "not applied".to_owned());
            vec![migration.version.to_string(), migration.name.clone(), time]
        })
        .collect();
    table::print(out, &["version", "name", "applied (UTC)"].map(String::from), &rows)?;
    if report.findings.is_empty() {
        return writeln!(out, "Nothing is missing, and nothing differs.");
    }
    let rows: Vec<Vec<String>> = report
        .findings
        .iter()
        .map(|finding| {
            let found = if finding.found.is_empty() { "nothing" } else { &finding.found };
            vec![finding.object.clone(), finding.expected.clone(), found.to_owned()]
        })
        .collect();
    table::print(out, &["object", "expected", "found"].map(String::from), &rows)
}

pub(super) fn settings(config: &ConfigFile) -> Result<Settings, Failure> {
    let config = config.load()?;
    app::clickhouse_settings(&config).map_err(|error| Failure::Usage(error.into()))?.ok_or_else(missing)
}

fn missing() -> Failure {
    Failure::Usage(anyhow!("the configuration has no [audit.clickhouse]"))
}

pub(super) fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
