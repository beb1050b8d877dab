//! JDBC and ODBC, which need a machine of their own: what they say is replayed from transcripts (`transcripts/`), byte for
//! byte as far as it is known. Each transcript tells what the driver must be told, what of it arrives at Snowflake, and
//! what is recorded; and on which facts it rests.

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sandbox::{Sandbox, python, services};
use serde_json::{Value, json};

use common::{attend, eventually, journal, requests_of_agent};

const DRIVERS: [&str; 2] = ["jdbc", "odbc"];
const DEADLINE: Duration = Duration::from_mins(3);
/// What the tokens begin with that the agent gives to clients.
const OURS: &str = "snowfence:";

#[test]
fn they_connect_read_and_close() -> Result<()> {
    both("connect")
}

#[test]
fn a_drop_is_refused_as_snowflake_would() -> Result<()> {
    both("refusal")
}

#[test]
fn an_error_of_snowflakes_comes_as_it_is() -> Result<()> {
    both("error")
}

#[test]
fn an_expired_session_is_renewed() -> Result<()> {
    both("renewal")
}

#[test]
fn a_closed_session_is_gone() -> Result<()> {
    both("gone")
}

#[test]
fn a_session_is_kept_alive_and_telemetry_stays() -> Result<()> {
    both("heartbeat")
}

#[test]
fn an_asynchronous_statement_is_watched_and_read() -> Result<()> {
    both("asynchronous")
}

#[test]
fn a_slow_result_is_asked_for_until_it_is_there() -> Result<()> {
    both("slow")
}

#[test]
fn a_running_statement_is_aborted() -> Result<()> {
    both("abort")
}

#[test]
fn a_repeated_request_runs_once() -> Result<()> {
    both("retry")
}

#[test]
fn a_large_result_comes_in_parts() -> Result<()> {
    both("parts")
}

#[test]
fn files_go_to_a_stage_and_back() -> Result<()> {
    both("files")
}

#[test]
fn jdbc_speaks_without_gzip_too() -> Result<()> {
    replay(&mut sandbox()?, "jdbc", "plain")
}

fn both(name: &str) -> Result<()> {
    let mut sandbox = sandbox()?;
    DRIVERS.into_iter().try_for_each(|driver| replay(&mut sandbox, driver, name))
}

fn sandbox() -> Result<Sandbox> {
    Sandbox::builder().policy(concat!(env!("CARGO_MANIFEST_DIR"), "/policies/no-drop.cedar")).start()
}

/// Replays a driver's transcript from a pod of its name, and compares what is recorded.
fn replay(sandbox: &mut Sandbox, driver: &str, name: &str) -> Result<()> {
    let path = format!("{}/transcripts/{driver}/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let transcript: Value =
        serde_json::from_str(&fs::read_to_string(&path)?).with_context(|| path.clone())?;
    let pod = sandbox.pod(driver)?;
    let player = python::programs().join("transcript.py");
    let words = [&pod.environment()["SANDBOX_PYTHON"], player.to_str().context("a path in UTF-8")?, &path];
    let mut process = pod.start("transcript", words)?;
    attend(sandbox, &pod, &mut process, DEADLINE)?;

    let expected = transcript["records"].as_array().context("records")?;
    let query =
        format!("SELECT sql, verdict, status FROM trail WHERE cgroup LIKE '%/pods/{driver}' ORDER BY seq");
    let mut recorded = Vec::new();
    eventually("the end of each statement is recorded", || {
        recorded = journal(sandbox, &query)?;
        Ok(recorded.len() >= expected.len() && recorded.iter().all(|row| row["status"] != "open"))
    })?;
    let recorded: Vec<Value> = recorded
        .iter()
        .map(|row| {
            json!([without_ids(row["sql"].as_str().unwrap_or_default()), row["verdict"], row["status"]])
        })
        .collect();
    ensure!(&recorded == expected, "{path}: recorded is {recorded:?}, not {expected:?}");

    let arrived = requests_of_agent(sandbox, |line| line["headers"]["host"] == services::ACCOUNT_HOST)?;
    let arrived = serde_json::to_string(&arrived)?;
    for secret in [OURS, &pod.environment()["SNOWFLAKE_TOKEN"]] {
        ensure!(!arrived.contains(secret), "{path}: a token of the client's went to Snowflake");
    }
    ensure!(!sandbox.agent_log()?.contains("panicked"), "{path}: the agent panicked");
    Ok(())
}

/// A text in which `<id>` stands for each quoted id of a query.
fn without_ids(sql: &str) -> String {
    let is_id =
        |word: &str| word.len() == 36 && word.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    let words: Vec<&str> = sql.split('\'').map(|word| if is_id(word) { "<id>" } else { word }).collect();
    words.join("'")
}

/// A transcript that rests on nothing, or a driver's request that none of them replays, is of no use.
#[test]
fn every_transcript_says_on_what_it_rests() -> Result<()> {
    for driver in DRIVERS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("transcripts").join(driver);
        let requests: Value = serde_json::from_str(&fs::read_to_string(folder.join("driver.json"))?)?;
        let requests = requests["requests"].as_object().context("requests")?;
        let mut done = Vec::new();
        for entry in fs::read_dir(&folder)?.flatten().filter(|entry| entry.file_name() != "driver.json") {
            let transcript: Value = serde_json::from_str(&fs::read_to_string(entry.path())?)?;
            let facts = transcript["rests on"].as_array().context("rests on")?;
            ensure!(!facts.is_empty() && transcript["tells"].is_string(), "{}", entry.path().display());
            let steps = transcript["steps"].as_array().context("steps")?;
            done.extend(steps.iter().filter_map(|step| step["do"].as_str().map(ToOwned::to_owned)));
        }
        for (name, request) in requests {
            ensure!(request["rests on"].is_string(), "{driver}: {name} rests on nothing");
            ensure!(done.contains(name), "{driver}: {name} is replayed nowhere");
        }
    }
    Ok(())
}
