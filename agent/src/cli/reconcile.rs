//! `snowfence audit reconcile`: what Snowflake's history has and the trail has not.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use serde_json::json;

use super::audit::{ago, parse_age};
use super::{ConfigFile, Failure, Format, Output, ask, table};
use crate::admin::{AdminError, Answer, Request};
use crate::audit::iso_time;
use crate::reconcile::{Finding, LISTED, Report, Wanted};

#[derive(Args)]
pub(super) struct ReconcileArguments {
    #[command(flatten)]
    config: ConfigFile,
    /// Only what is newer, such as 2h or 7d; a day if it is not said
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    since: Option<Duration>,
    /// Only what is older
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    until: Option<Duration>,
    /// Only one of the covered users
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(arguments: &ReconcileArguments) -> Result<(), Failure> {
    let config = arguments.config.load()?;
    let wanted = Wanted {
        since: arguments.since.map(ago),
        until: arguments.until.map(ago),
        user: arguments.user.clone(),
    };
    let Answer::Reconciled(reports) = ask(&config, &Request::Reconcile(wanted))? else {
        return Err(Failure::Failed(AdminError::Unexpected.into()));
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    for report in &reports {
        match arguments.output.format {
            Format::Json => list(&mut out, report)?,
            Format::Text => tell(&mut out, report)?,
        }
    }
    out.flush()?;
    let failures: Vec<&str> = reports
        .iter()
        .filter(|report| !report.error.is_empty())
        .map(|report| report.account.as_str())
        .collect();
    if !failures.is_empty() {
        return Err(Failure::Failed(anyhow!("the trail could not be compared for {}", failures.join(", "))));
    }
    let (missing, logins) = reports
        .iter()
        .fold((0, 0), |(missing, logins), report| (missing + report.missing, logins + report.strange_logins));
    if missing + logins == 0 {
        return Ok(());
    }
    Err(Failure::Failed(anyhow!(
        "the trail lacks {missing} statements and {logins} logins that Snowflake has: somebody has a way around the agents"
    )))
}

/// A line for each finding, and one for the account.
fn list(out: &mut impl Write, report: &Report) -> io::Result<()> {
    for finding in &report.findings {
        let mut line = serde_json::to_value(finding).map_err(io::Error::from)?;
        line["account"] = json!(report.account);
        writeln!(out, "{line}")?;
    }
    for query in &report.not_in_history {
        writeln!(
            out,
            "{}",
            json!({ "finding": "not_in_history", "account": report.account, "query_id": query })
        )?;
    }
    let Report { account, error, from, until, statements, missing, logins, strange_logins, new, .. } = report;
    let summary = json!({
        "finding": "summary", "account": account, "error": error, "from": iso_time(*from), "until": iso_time(*until),
        "statements": statements, "missing": missing, "logins": logins, "strange_logins": strange_logins, "new": new,
    });
    writeln!(out, "{summary}")
}

fn tell(out: &mut impl Write, report: &Report) -> io::Result<()> {
    if !report.error.is_empty() {
        let error: String = table::harmless(&report.error).collect();
        return writeln!(out, "{}: {error}", report.account);
    }
    let Report { account, from, until, statements, missing, logins, strange_logins, .. } = report;
    let span = format!("from {} until {}", iso_time(*from), iso_time(*until));
    if report.begins_later {
        writeln!(
            out,
            "{account}: the trail begins at {}: nothing is said of what was before",
            iso_time(*from)
        )?;
    }
    if *missing == 0 {
        writeln!(out, "{account}: all {statements} statements {span} are in the trail")?;
    } else {
        writeln!(out, "{account}: the trail lacks {missing} of {statements} statements {span}")?;
    }
    if *strange_logins == 0 {
        writeln!(out, "{account}: all {logins} logins are an agent's")?;
    } else {
        writeln!(out, "{account}: {strange_logins} of {logins} logins are no agent's")?;
    }
    let headings = ["time", "user", "address", "client", "id", "what"].map(String::from);
    let rows: Vec<Vec<String>> = report.findings.iter().map(row).collect();
    if !rows.is_empty() {
        table::print(out, &headings, &rows)?;
    }
    if report.findings.len() >= LISTED {
        writeln!(out, "only the first {LISTED} are listed: the trail has an event for each")?;
    }
    let lacking = report.not_in_history.len();
    if lacking > 0 {
        let many = if lacking >= LISTED { "at least " } else { "" };
        writeln!(
            out,
            "note: Snowflake's history lacks {many}{lacking} queries of the trail, such as {}",
            report.not_in_history.first().map(|id| table::cut(id)).unwrap_or_default()
        )?;
    }
    Ok(())
}

fn row(finding: &Finding) -> Vec<String> {
    match finding {
        Finding::UnrecordedStatement(found) => {
            let guess = if found.by_time { "probably " } else { "" };
            vec![
                found.started.clone(),
                found.user.clone(),
                format!("{guess}{}", found.address),
                found.client.clone(),
                found.query_id.clone(),
                found.text.clone(),
            ]
        }
        Finding::UnrecordedLogin(found) => vec![
            found.time.clone(),
            found.user.clone(),
            found.address.clone(),
            found.client.clone(),
            found.event_id.clone(),
            format!("login by {}", found.factor),
        ],
    }
}
