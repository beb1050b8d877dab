//! `snowfence endpoints`.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::anyhow;
use clap::Subcommand;

use super::{ConfigFile, Failure, Format, Output, ask, table};
use crate::admin::{AdminError, Answer, Client, Request, SyncedAccount};
use crate::app::{self, State};
use crate::capture::{self, Endpoint, EndpointClass};
use crate::config::Config;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Print the addresses that are captured, with where each came from and when it goes
    #[command(
        after_help = "Where an address comes from:\n  declared   capture.networks\n  resolved   a name of the configuration, of an account, or that Snowflake told\n  confirmed  what a workload was told by DNS, or did; the server there proved to be Snowflake's\n  learnt     likewise, not proved: connections there are only looked at\n\nExamples:\n  sudo snowfence endpoints list\n  sudo snowfence endpoints list --format json | jq -r .network"
    )]
    List {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        output: Output,
    },
    /// Ask Snowflake by which hosts the accounts are reached (SYSTEM$ALLOWLIST), and capture those that are Snowflake's
    #[command(
        after_help = "The running agent asks, with the credential of the first rule that is for the account; the\nstatement is in the trail. What it learns is kept for its next start.\n\nExample:\n  sudo snowfence endpoints sync"
    )]
    Sync {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        output: Output,
    },
}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::List { config, output } => list(&config.load()?, output.format),
        Command::Sync { config, output } => sync(&config.load()?, output.format),
    }
}

fn list(config: &Config, format: Format) -> Result<(), Failure> {
    let endpoints = match Client::connect(&State(&config.agent.state_dir).socket()) {
        Ok(client) => match client.ask(&Request::Endpoints).map_err(failed)? {
            Answer::Endpoints(endpoints) => endpoints,
            _ => return Err(failed(AdminError::Unexpected)),
        },
        // What is pinned stays in force without an agent.
        Err(AdminError::NotRunning(_)) => capture::pinned_endpoints(&app::capture_settings(config))
            .map_err(|error| Failure::Failed(error.into()))?,
        Err(error) => return Err(failed(error)),
    };
    let mut out = io::stdout().lock();
    if format == Format::Json {
        for endpoint in endpoints {
            writeln!(out, "{}", serde_json::to_string(&endpoint).map_err(io::Error::from)?)?;
        }
        return Ok(());
    }
    let headings = ["network", "from", "name", "learnt", "goes"].map(String::from);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let rows: Vec<Vec<String>> = endpoints.iter().map(|endpoint| row(endpoint, now)).collect();
    table::print(&mut out, &headings, &rows)?;
    Ok(())
}

fn row(endpoint: &Endpoint, now: u64) -> Vec<String> {
    let class = match endpoint.class {
        EndpointClass::Declared => "declared",
        EndpointClass::Resolved => "resolved",
        EndpointClass::Confirmed => "confirmed",
        EndpointClass::Learnt => "learnt",
    };
    let goes = match endpoint.expires {
        Some(expires) => format!("in {}", span(expires.saturating_sub(now))),
        None if endpoint.class == EndpointClass::Resolved => "an hour after its last answer".to_owned(),
        None => "never".to_owned(),
    };
    let learnt = format!("{} ago", span(now.saturating_sub(endpoint.learnt)));
    vec![endpoint.network.to_string(), class.to_owned(), endpoint.name.clone(), learnt, goes]
}

/// A time for people.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

fn sync(config: &Config, format: Format) -> Result<(), Failure> {
    let Answer::Synced(accounts) = ask(config, &Request::SyncEndpoints)? else {
        return Err(failed(AdminError::Unexpected));
    };
    let mut out = io::stdout().lock();
    for account in &accounts {
        if format == Format::Json {
            writeln!(out, "{}", serde_json::to_string(account).map_err(io::Error::from)?)?;
        } else {
            tell(&mut out, account)?;
        }
    }
    let failures: Vec<&str> = accounts
        .iter()
        .filter(|account| !account.error.is_empty())
        .map(|account| account.account.as_str())
        .collect();
    if failures.is_empty() {
        return Ok(());
    }
    Err(Failure::Failed(anyhow!("Snowflake could not be asked about {}", failures.join(", "))))
}

fn tell(out: &mut impl Write, account: &SyncedAccount) -> io::Result<()> {
    if !account.error.is_empty() {
        return writeln!(out, "{}: {}", account.account, table::harmless(&account.error).collect::<String>());
    }
    writeln!(out, "{}: {} names are captured", account.account, account.captured.len())?;
    for name in &account.captured {
        writeln!(out, "  {}", table::cut(name))?;
    }
    if !account.others.is_empty() {
        writeln!(out, "  not captured, for they are under none of capture.suffixes, or not on port 443:")?;
        for host in &account.others {
            let line = format!("{}:{} ({})", host.host, host.port, host.kind);
            writeln!(out, "  {}", table::cut(&line))?;
        }
    }
    Ok(())
}

fn failed(error: AdminError) -> Failure {
    Failure::Failed(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_for_people() {
        let spans = [5, 59, 60, 3599, 3600, 90_000, 200_000].map(span);
        assert_eq!(spans, ["5 s", "59 s", "1 min", "59 min", "1 h", "25 h", "2 d"]);
    }

    #[test]
    fn a_row_says_where_an_address_came_from() {
        let endpoint = Endpoint {
            network: "10.0.0.1/32".parse().unwrap(),
            class: EndpointClass::Learnt,
            name: "acme.snowflakecomputing.com".into(),
            learnt: 1000,
            expires: Some(4600),
        };
        assert_eq!(
            row(&endpoint, 1060),
            ["10.0.0.1/32", "learnt", "acme.snowflakecomputing.com", "1 min ago", "in 59 min"]
        );
    }
}
