//! The trail proves that nobody changed it: to the agent's own program, and to another one that knows the documented format
//! alone.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sandbox::{Environment, Sandbox, network};
use serde_json::Value;

use common::reader::{Reader, program};
use common::{client, eventually, journal};

/// What a session of a pod is made of.
const SESSION: &str = r#"
cursor = connect().cursor()
for number in range(3):
    cursor.execute(f"select {number}, 'naïve 🐉 \\u0001'").fetchall()
say(**attempt(lambda: cursor.execute("drop table customers")))"#;

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn sandbox() -> Result<Sandbox> {
    Reader::new()?.sandbox("")?.start()
}

fn key(sandbox: &Sandbox) -> Result<String> {
    Ok(sandbox.snowfence(["audit", "key"])?.into_stdout()?.trim().to_owned())
}

/// What both programs say of a trail: how many records are proven, and what is wrong.
struct Verdicts {
    own: Value,
    other: Value,
}

impl Verdicts {
    fn problems(&self) -> Vec<String> {
        let problems = self.own["problems"].as_array().cloned().unwrap_or_default();
        problems.iter().map(ToString::to_string).collect()
    }

    fn other_problems(&self) -> String {
        self.other["wrong"].to_string()
    }
}

fn verify(sandbox: &Sandbox, kind: &str, file: &Path, key: &str) -> Result<Verdicts> {
    let option = format!("--{kind}");
    let arguments = ["audit", "verify", &option, &text(file), "--key", key, "--format", "json"];
    let own = sandbox.snowfence(arguments)?;
    let value: Value = serde_json::from_str(own.stdout.trim()).with_context(|| own.stderr.clone())?;
    ensure!(own.succeeded() == (value["good"] == true), "the exit code says otherwise: {value}");
    let other = serde_json::from_str(&program("proof.py", &[kind, &text(file), key])?)?;
    Ok(Verdicts { own: value, other })
}

/// A copy of the journal, changed.
fn changed(sandbox: &Sandbox, sql: &str) -> Result<PathBuf> {
    let folder = sandbox.agent_state().join("copies");
    fs::create_dir_all(&folder)?;
    let copy = folder.join("journal.db");
    let source = "import sqlite3, sys\n\
        source, copy, sql = sys.argv[1:]\n\
        journal = sqlite3.connect(copy)\n\
        sqlite3.connect(source).backup(journal)\n\
        journal.executescript(sql)\n\
        assert journal.total_changes > 0, 'nothing was changed'\n\
        journal.commit()";
    let _ = fs::remove_file(&copy);
    let journal = sandbox.agent_state().join("journal.db");
    let python = Environment::Payloads.python()?;
    let output = std::process::Command::new(python)
        .args(["-c", source, &text(&journal), &text(&copy), sql])
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(copy)
}

#[test]
fn two_programs_prove_a_trail_and_find_what_was_changed() -> Result<()> {
    let mut sandbox = sandbox()?;
    let pod = sandbox.pod("reports")?;
    client(&pod, SESSION)?;
    sandbox.kill_agent()?;
    sandbox.start_agent()?;
    client(&pod, SESSION)?;
    sandbox.replace_agent()?;
    client(&pod, SESSION)?;
    sandbox.stop_agent()?;
    let key = key(&sandbox)?;
    let journal_file = sandbox.agent_state().join("journal.db");

    let verdicts = verify(&sandbox, "journal", &journal_file, &key)?;
    assert_eq!(verdicts.problems(), Vec::<String>::new());
    assert_eq!(verdicts.other_problems(), "[]");
    assert_eq!(verdicts.own["verified"], verdicts.other["proven"]);
    assert_eq!(verdicts.own["unsigned"], 0, "the last ones are signed at the end: {}", verdicts.own);
    let statements = &journal(&sandbox, "SELECT count(*) AS n FROM statements")?[0]["n"];
    assert!(statements.as_u64() >= Some(12), "{statements}");

    for (sql, found, other) in [
        ("UPDATE statements SET sql = 'select 1' WHERE sql LIKE 'drop%'", "changed", "was changed"),
        ("UPDATE events SET detail = detail || ' '", "changed", "was changed"),
        ("DELETE FROM outcomes WHERE status = 'refused'", "missing", "is missing"),
        ("UPDATE checkpoints SET time = time - 1 WHERE number = 2", "checkpoint_forged", "is forged"),
        ("DELETE FROM checkpoints WHERE number = 1", "checkpoint_missing", "out of its order"),
    ] {
        let verdicts = verify(&sandbox, "journal", &changed(&sandbox, sql)?, &key)?;
        assert!(verdicts.problems().iter().any(|problem| problem.contains(found)), "{sql}: {}", verdicts.own);
        assert!(verdicts.other_problems().contains(other), "{sql}: {}", verdicts.other);
    }
    let strange = verify(&sandbox, "journal", &journal_file, &"ab".repeat(32))?;
    assert!(strange.problems()[0].contains("another_key"), "{:?}", strange.problems());
    let shown = sandbox.snowfence(["audit", "verify"])?.into_stdout()?;
    assert!(
        shown.contains("records of sandbox are as they were signed") && !shown.contains("nobody has said"),
        "{shown}"
    );
    Ok(())
}

#[test]
fn an_exported_session_carries_its_proof() -> Result<()> {
    let mut sandbox = sandbox()?;
    let (pod, other) = (sandbox.pod("reports")?, sandbox.pod("others")?);
    client(&pod, SESSION)?;
    client(&other, "say(**attempt(lambda: connect().cursor().execute(\"select 'theirs'\").fetchall()))")?;
    client(&pod, SESSION)?;
    let sessions = journal(&sandbox, "SELECT DISTINCT session FROM statements ORDER BY seq")?;
    ensure!(sessions.len() == 3, "{sessions:?}");
    let session = sessions[0]["session"].as_str().context("a session")?;
    let file = sandbox.agent_state().join("session.jsonl");
    let said = sandbox.snowfence(["audit", "export", session, "--to", &text(&file)])?.into_stdout()?;
    assert!(!said.contains("not signed"), "{said}");

    let key = key(&sandbox)?;
    let verdicts = verify(&sandbox, "export", &file, &key)?;
    assert_eq!((verdicts.problems(), verdicts.other_problems()), (vec![], "[]".to_owned()));
    assert_eq!(verdicts.own["verified"], verdicts.other["proven"]);
    assert_eq!(verdicts.own["payloads"], verdicts.other["payloads"]);
    let records = journal(
        &sandbox,
        &format!(
            "SELECT (SELECT count(*) FROM statements WHERE session = '{session}') AS statements,
                    (SELECT count(*) FROM payloads WHERE session = '{session}') AS payloads"
        ),
    )?;
    assert_eq!((&verdicts.own["payloads"], &verdicts.own["open"]), (&records[0]["payloads"], &0.into()));
    assert!(records[0]["statements"].as_u64() >= Some(4), "{records:?}");
    let content = fs::read_to_string(&file)?;
    assert!(!content.contains("theirs"), "it holds what is another session's");

    eventually("ClickHouse proves what it has", || {
        let arguments = ["audit", "verify", "--clickhouse", "--key", &key, "--format", "json"];
        let said = network::inside(&network::outside(sandbox.id()), || sandbox.snowfence(arguments))?;
        let report: Value = serde_json::from_str(said.stdout.trim()).unwrap_or_default();
        Ok(said.succeeded() && report["verified"].as_u64() >= verdicts.own["verified"].as_u64())
    })?;

    fs::write(&file, content.replacen("drop table customers", "drop table customerz", 1))?;
    let verdicts = verify(&sandbox, "export", &file, &key)?;
    assert!(verdicts.problems().iter().any(|problem| problem.contains("changed")), "{}", verdicts.own);
    assert!(verdicts.other_problems().contains("was changed"), "{}", verdicts.other);

    let none = sandbox.snowfence(["audit", "export", "0199f3a1-7c1e-7d0a-9b1e-5d2f0c4e8a11", "--to", "-"])?;
    assert!(!none.succeeded() && none.stderr.contains("knows no session"), "{}", none.stderr);
    Ok(())
}
