//! What each client can do, scenario by scenario, and the table of it: `tests/CLIENTS.md`.
//!
//! A client's program lies in `tests/clients` and tries the scenarios one by one. What it cannot do has a reason in the
//! table. With SNOWFENCE_UPDATE=1 the table is written, otherwise this fails where it says something else.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use sandbox::client_table::Table;
use sandbox::{Credential, Environment, Sandbox, node};
use serde_json::Value;

use common::{arrived, attend, journal};

const SCENARIOS: [&str; 22] = [
    "connect",
    "a small result",
    "a large result, in parts",
    "an empty result",
    "every type",
    "NULLs",
    "Unicode",
    "write",
    "transaction",
    "binds",
    "describe",
    "several statements in one text",
    "asynchronous",
    CANCEL,
    "an error of Snowflake's",
    "a refusal, once",
    "going on after a refusal",
    RENEWED,
    "the agent restarts",
    "several sessions at once",
    "100 sessions at once",
    "files: PUT and GET",
];

/// As the columns are ordered.
#[derive(Clone, Copy)]
enum Client {
    Connector5,
    Connector4,
    Snowpark,
    SqlAlchemy,
    Adbc,
    Node,
    Cli,
    Curl,
}

const CLIENTS: usize = 8;
const RENEWED: &str = "the session is renewed";
/// What every client has refused, once.
const REFUSED: &str = "drop table customers";
const CANCEL: &str = "cancel";
/// What every client that can cancel begins, and cancels.
const CANCELLED: &str = "system$wait(300)";
/// The CLI alone takes three minutes, most of it to start each time.
const DEADLINE: Duration = Duration::from_mins(12);
const INTRODUCTION: &str = "\
# What clients do behind Snowfence

Each cell is tried by a program of that client with default settings ([`clients/`](clients)) in the sandbox, against the
emulated Snowflake; values, exceptions and codes are compared, not only that it runs. Written by
`SNOWFENCE_UPDATE=1` and the test `scenarios`; every other run of it fails where this table says something else.

";

#[test]
fn connector_5() -> Result<()> {
    tries_all(Client::Connector5)
}

#[test]
fn connector_4() -> Result<()> {
    tries_all(Client::Connector4)
}

#[test]
fn snowpark() -> Result<()> {
    tries_all(Client::Snowpark)
}

#[test]
fn sqlalchemy() -> Result<()> {
    tries_all(Client::SqlAlchemy)
}

#[test]
fn adbc() -> Result<()> {
    tries_all(Client::Adbc)
}

#[test]
fn node_sdk() -> Result<()> {
    tries_all(Client::Node)
}

#[test]
fn cli() -> Result<()> {
    tries_all(Client::Cli)
}

#[test]
fn curl() -> Result<()> {
    tries_all(Client::Curl)
}

impl Client {
    fn program(self) -> &'static str {
        match self {
            Self::Connector5 | Self::Connector4 => "by_connector.py",
            Self::Snowpark => "by_snowpark.py",
            Self::SqlAlchemy => "by_sqlalchemy.py",
            Self::Adbc => "by_adbc.py",
            Self::Node => "by_node.js",
            Self::Cli => "by_cli.py",
            Self::Curl => "by_curl.py",
        }
    }

    fn environment(self) -> Environment {
        match self {
            Self::Connector4 => Environment::Connector4,
            Self::Snowpark => Environment::Snowpark,
            Self::SqlAlchemy => Environment::SqlAlchemy,
            Self::Adbc => Environment::Adbc,
            Self::Cli => Environment::Cli,
            Self::Connector5 | Self::Node | Self::Curl => Environment::Connector5,
        }
    }
}

fn tries_all(client: Client) -> Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    // With a password there is no SQL API.
    let credential = if matches!(client, Client::Curl) { Credential::KeyPair } else { Credential::default() };
    let mut sandbox = Sandbox::builder()
        .driver(client.environment())
        .credential(credential)
        .policy(here.join("policies/no-drop.cedar"))
        .start()?;
    let said = said_by(client, &mut sandbox, &here.join("clients").join(client.program()))?;

    let (mut title, mut outcomes, mut failures) = (String::new(), BTreeMap::new(), Vec::new());
    for line in &said {
        let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
        match (text("client"), text("failure")) {
            (name, _) if !name.is_empty() => title = name,
            (_, failure) if !failure.is_empty() => failures.push(format!("{}: {failure}", text("scenario"))),
            _ => drop(outcomes.insert(text("scenario"), text("outcome"))),
        }
    }
    let missing = SCENARIOS.iter().filter(|name| !outcomes.contains_key(**name) && failures.is_empty());
    failures.extend(missing.map(|name| format!("{name}: it was not tried")).collect::<Vec<_>>());
    ensure!(failures.is_empty(), "{}", failures.join("\n"));

    let refused =
        journal(&sandbox, &format!("SELECT verdict FROM statements WHERE lower(sql) LIKE '%{REFUSED}%'"))?;
    ensure!(refused.len() == 1 && refused[0]["verdict"] == "deny", "it was refused once: {refused:?}");
    ensure!(arrived(&sandbox)?.iter().all(|sql| !sql.to_lowercase().contains(REFUSED)), "it went through");
    ensure!(!sandbox.agent_log()?.contains("panicked"), "the agent panicked");
    if outcomes.get(CANCEL).is_some_and(|outcome| outcome == "✓") {
        was_cancelled(&sandbox)?;
    }
    if outcomes.get(RENEWED).is_some_and(|outcome| outcome == "✓") {
        let log = sandbox.upstream_log()?;
        ensure!(log.iter().any(|line| line["path"] == "/session/token-request"), "no session was renewed");
    }

    let outcome_of = |scenario: &&str| outcomes.remove(*scenario).unwrap_or_default();
    let column: Vec<String> = [title].into_iter().chain(SCENARIOS.iter().map(outcome_of)).collect();
    ensure!(outcomes.is_empty(), "there are no such scenarios: {outcomes:?}");
    compare(client, column)
}

/// One statement began at Snowflake, was ended there because the client asked for just that, and is on record so.
fn was_cancelled(sandbox: &Sandbox) -> Result<()> {
    let recorded = journal(
        sandbox,
        &format!(
            "SELECT verdict, request_id, query_id, status, code
             FROM statements LEFT JOIN outcomes ON outcomes.statement = statements.id
             WHERE sql LIKE '%{CANCELLED}%'"
        ),
    )?;
    let [one] = recorded.as_slice() else { bail!("it ran once: {recorded:?}") };
    let of = |column: &str| one[column].as_str().unwrap_or_default().to_owned();
    let said = ["verdict", "status", "code"].map(of);
    ensure!(said == ["allow", "failed", "000604"], "it was cancelled: {one}");
    let (request, query) = (of("request_id"), of("query_id"));
    let log = sandbox.upstream_log()?;
    let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    let began: Vec<usize> = (0..log.len()).filter(|at| text(&log[*at], "sql").contains(CANCELLED)).collect();
    let aborts = |line: &Value| {
        let path = text(line, "path");
        match path.strip_suffix("/abort-request").or_else(|| path.strip_suffix("/cancel")) {
            Some("/queries/v1") => line["body"]["requestId"] == *request,
            Some(of_query) => of_query.ends_with(&format!("/{query}")),
            None => text(line, "sql").to_lowercase().contains(&format!("system$cancel_query('{query}')")),
        }
    };
    let aborted: Vec<usize> = (0..log.len()).filter(|at| aborts(&log[*at])).collect();
    ensure!(
        matches!((began.as_slice(), aborted.as_slice()), ([began], [aborted]) if began < aborted),
        "it began once and was aborted once: {began:?} {aborted:?}"
    );
    ensure!(log[began[0]]["executed"] == true, "it did not run: {}", log[began[0]]);
    Ok(())
}

/// Runs a client's program to its end, and does what it asks for in between. What it says is one JSON value a line.
fn said_by(client: Client, sandbox: &mut Sandbox, program: &Path) -> Result<Vec<Value>> {
    let mut pod = sandbox.pod("client")?;
    if matches!(client, Client::Node) {
        pod = pod.with("NODE_PATH", &node::modules()?.to_string_lossy());
    }
    let interpreter = match client {
        Client::Node => "node",
        _ => &pod.environment()["SANDBOX_PYTHON"],
    };
    let mut process = pod.start("scenarios", [interpreter, &program.to_string_lossy()])?;
    attend(sandbox, &pod, &mut process, DEADLINE)?;
    let output = process.output()?;
    let said = output.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned()));
    said.collect()
}

/// Compares a column with what is checked in, or puts it there.
fn compare(client: Client, column: Vec<String>) -> Result<()> {
    static FILE: Mutex<()> = Mutex::new(());
    let _file = FILE.lock().unwrap_or_else(PoisonError::into_inner);
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("CLIENTS.md");
    let mut table = Table::read(&fs::read_to_string(&path).unwrap_or_default());
    if env::var_os("SNOWFENCE_UPDATE").is_some() {
        table.scenarios = SCENARIOS.map(ToOwned::to_owned).to_vec();
        table.columns.resize(CLIENTS, Vec::new());
        table.columns[client as usize] = column;
        return Ok(fs::write(&path, format!("{INTRODUCTION}{}", table.markdown()))?);
    }
    ensure!(table.scenarios == SCENARIOS, "{} has other scenarios: SNOWFENCE_UPDATE=1", path.display());
    let known = table.columns.get(client as usize).map_or(&[][..], Vec::as_slice);
    let rows = ["client"].iter().chain(&SCENARIOS).zip(&column).enumerate();
    let changed: Vec<String> = rows
        .filter(|(row, (_, outcome))| known.get(*row) != Some(outcome))
        .map(|(row, (name, outcome))| format!("{name}: {outcome:?}, not {:?}", known.get(row)))
        .collect();
    let path = path.display();
    ensure!(changed.is_empty(), "{path} says something else (SNOWFENCE_UPDATE=1):\n{}", changed.join("\n"));
    Ok(())
}
