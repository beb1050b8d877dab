//! `snowfence doctor`.

use std::io::{self, Write};

use anyhow::anyhow;
use serde_json::json;

use super::{ConfigFile, Failure, Format};
use crate::admin::{AdminError, Answer, Client, Request, Status};
use crate::app::State;
use crate::capture::doctor::{Examination, Finding, Health, examine};
use crate::config::Places;

pub(super) fn run(config: &ConfigFile, format: Format) -> Result<(), Failure> {
    // Also of use before there is a configuration.
    let places = if config.is_missing() { Places::default() } else { config.load()?.into() };
    let Examination { findings, cost } = examine(&places.cgroup, &places.bpffs);
    let socket = State(&places.state_dir).socket();
    let status = match Client::connect(&socket).and_then(|client| client.ask(&Request::Status)) {
        Ok(Answer::Status(status)) => Ok(Some(*status)),
        Ok(_) => Err(AdminError::Unexpected),
        Err(AdminError::NotRunning(_)) => Ok(None),
        Err(error) => Err(error),
    };
    let mut out = io::stdout().lock();
    match format {
        Format::Json => {
            let agent = match &status {
                Ok(status) => json!(status),
                Err(error) => json!({ "error": error.to_string() }),
            };
            writeln!(out, "{}", json!({ "findings": findings, "cost": cost, "agent": agent }))?;
        }
        Format::Text => {
            for finding in &findings {
                tell(&mut out, finding)?;
            }
            writeln!(out)?;
            match &status {
                Ok(Some(status)) => tell_of_agent(&mut out, status)?,
                Ok(None) => writeln!(out, "No agent is running with this configuration.")?,
                Err(error) => writeln!(out, "The agent does not answer: {error}")?,
            }
        }
    }
    let bad: Vec<&str> =
        findings.iter().filter(|finding| finding.state == Health::Bad).map(|finding| finding.check).collect();
    if !bad.is_empty() {
        return Err(Failure::Failed(anyhow!("the agent cannot work here: {}", bad.join(", "))));
    }
    match status {
        Ok(Some(Status { coverage, .. })) if coverage.failed > 0 || !coverage.unguarded.is_empty() => {
            Err(Failure::Failed(anyhow!("the agent does not cover everything: its log says why")))
        }
        _ => Ok(()),
    }
}

fn tell(out: &mut impl Write, finding: &Finding) -> io::Result<()> {
    let mark = match finding.state {
        Health::Good => "ok  ",
        Health::Weak => "weak",
        Health::Bad => "BAD ",
    };
    writeln!(out, "{mark}  {:18} {}", finding.check, finding.found)?;
    for (label, text) in [("weakens:", finding.weakens), ("to mend:", finding.mend)] {
        if !text.is_empty() {
            writeln!(out, "      {:18} {label} {text}", "")?;
        }
    }
    Ok(())
}

fn tell_of_agent(out: &mut impl Write, status: &Status) -> io::Result<()> {
    let Status { version, pid, node, endpoints, coverage, .. } = status;
    writeln!(out, "The agent {version} runs on {node} as process {pid}.")?;
    writeln!(
        out,
        "  endpoints:  {} declared, {} resolved, {} confirmed, {} learnt",
        endpoints.declared, endpoints.resolved, endpoints.confirmed, endpoints.learnt
    )?;
    let failed = match coverage.failed {
        0 => String::new(),
        failed => format!(", {failed} in which it cannot listen: the log says why"),
    };
    writeln!(out, "  namespaces: {}{failed}", coverage.namespaces)?;
    writeln!(out, "  scopes:     {} cgroups", coverage.scopes)?;
    let perimeter = match (coverage.perimeter, coverage.devices.as_slice()) {
        (false, _) => "off".to_owned(),
        (true, []) => "on no device".to_owned(),
        (true, devices) => format!("on {}", devices.join(", ")),
    };
    writeln!(out, "  perimeter:  {perimeter}")?;
    for device in &coverage.unguarded {
        writeln!(out, "              not on {device}")?;
    }
    Ok(())
}
