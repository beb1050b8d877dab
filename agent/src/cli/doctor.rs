//! `snowfence doctor`.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use anyhow::anyhow;
use serde::Serialize;
use serde_json::json;

use super::{ConfigFile, Failure, Format, table};
use crate::admin::{AdminError, Answer, Client, Request, Status};
use crate::app::State;
use crate::audit::payload::ArchiveStatus;
use crate::audit::query::{Limits, query};
use crate::audit::{AuditError, delivery};
use crate::capture::doctor::{Examination, Finding, Health, examine};
use crate::config::Places;
use crate::tls::trust::TRUST;

/// The last handshakes of today that failed: which workloads do not know the CA.
const FAILED_HANDSHAKES: &str = "
    SELECT strftime('%Y-%m-%dT%H:%M:%SZ', time / 1000000, 'unixepoch'), coalesce(cgroup, ''), account, detail
    FROM events WHERE kind = 'handshake_failed' AND time > (unixepoch() - 86400) * 1000000
    ORDER BY time DESC LIMIT 5";
/// The rest of what there is to say does not wait for a journal that is in trouble.
const JOURNAL_DEADLINE: Duration = Duration::from_secs(5);

/// A client that ended its handshake with the agent.
#[derive(Serialize)]
struct FailedHandshake {
    time: String,
    cgroup: String,
    account: String,
    detail: String,
}

pub(super) fn run(config: &ConfigFile, format: Format) -> Result<(), Failure> {
    // Also of use before there is a configuration.
    let places = if config.is_missing() { Places::default() } else { config.load()?.into() };
    let Examination { findings, cost } = examine(&places.cgroup, &places.bpffs);
    let state = State(&places.state_dir);
    let failed = failed_handshakes(&state.journal());
    let socket = state.socket();
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
            let failed = match &failed {
                Ok(failed) => json!(failed),
                Err(error) => json!({ "error": error.to_string() }),
            };
            let all = json!({
                "findings": findings, "cost": cost, "agent": agent, "trust": TRUST, "failed_handshakes": failed,
            });
            writeln!(out, "{all}")?;
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
            writeln!(out)?;
            tell_of_trust(&mut out, &failed)?;
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

fn tell_of_trust(out: &mut impl Write, failed: &Result<Vec<FailedHandshake>, AuditError>) -> io::Result<()> {
    writeln!(out, "Clients take the internal CA (`snowfence ca print`) by")?;
    for trust in &TRUST {
        writeln!(out, "  {}: {}", trust.client, trust.setting)?;
    }
    match failed {
        Ok(failed) if failed.is_empty() => return Ok(()),
        Ok(_) => writeln!(out, "Handshakes that failed of late (events `handshake_failed` in the trail):")?,
        Err(error) => return writeln!(out, "Whether handshakes failed of late cannot be told: {error}"),
    }
    for FailedHandshake { time, cgroup, account, detail } in failed.iter().flatten() {
        let [cgroup, account, detail] =
            [cgroup, account, detail].map(|text| table::harmless(text).collect::<String>());
        writeln!(out, "  {time}  {cgroup}  {account}  {detail}")?;
    }
    Ok(())
}

/// None where there is no journal yet.
fn failed_handshakes(journal: &Path) -> Result<Vec<FailedHandshake>, AuditError> {
    let mut failed = Vec::new();
    if !journal.exists() {
        return Ok(failed);
    }
    let limits = Limits { time: JOURNAL_DEADLINE, ..Limits::default() };
    query(journal, FAILED_HANDSHAKES, &limits, |_, cells| {
        if let [time, cgroup, account, detail] = cells.as_slice() {
            let [time, cgroup, account, detail] = [time, cgroup, account, detail].map(ToString::to_string);
            failed.push(FailedHandshake { time, cgroup, account, detail });
        }
        ControlFlow::Continue(())
    })?;
    Ok(failed)
}

fn tell_of_agent(out: &mut impl Write, status: &Status) -> io::Result<()> {
    let Status { version, pid, node, endpoints, coverage, sinks, archive, .. } = status;
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
    for sink in sinks {
        let delivery::Status { name, delivered, pending, given_up, error, .. } = sink;
        let given_up = match given_up {
            0 => String::new(),
            given_up => format!(", {given_up} given up"),
        };
        writeln!(out, "  sink {name}: {delivered} records delivered, {pending} pending{given_up}")?;
        if let Some(error) = error {
            writeln!(out, "              {}", table::harmless(error).collect::<String>())?;
        }
    }
    if let Some(ArchiveStatus { pending_bytes, archived_bytes, error, .. }) = archive {
        let mebibytes = |bytes: &u64| bytes.div_ceil(1 << 20);
        writeln!(
            out,
            "  archive:    {} MiB of payloads archived, {} MiB pending",
            mebibytes(archived_bytes),
            mebibytes(pending_bytes)
        )?;
        if let Some(error) = error {
            writeln!(out, "              {}", table::harmless(error).collect::<String>())?;
        }
    }
    Ok(())
}
