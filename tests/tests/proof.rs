//! The trail proves that nobody changed it: to the agent's own program, and to another one that knows the documented format
//! alone.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sandbox::{Environment, Sandbox, configuration, network};
use serde_json::Value;

use common::objects::Objects;
use common::reader::{Reader, program};
use common::{RAW, client, eventually, journal};

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

#[test]
fn copies_that_nobody_can_remove_tell_what_was_cut_off() -> Result<()> {
    let objects = Objects::new()?;
    let place: toml::Value = toml::from_str(&objects.place("checkpoints"))?;
    let copying = Sandbox::builder()
        .configure(move |configuration| configuration::put(configuration, "audit", "checkpoints", place));
    let mut sandbox = copying.without_agent().start()?;
    let _store = objects.serve(&sandbox)?;
    sandbox.start_agent()?;
    let pod = sandbox.pod("reports")?;
    let last = "SELECT max(seq) AS seq FROM checkpoints WHERE last_seq >= (SELECT max(seq) FROM outcomes)";
    for _ in 0..2 {
        client(&pod, SESSION)?;
        eventually("what the session did is signed", || Ok(!journal(&sandbox, last)?[0]["seq"].is_null()))?;
    }
    let signed = journal(&sandbox, last)?[0]["seq"].as_i64().context("a checkpoint")?;
    eventually("the checkpoint is copied", || {
        let said: Value = serde_json::from_str(&sandbox.snowfence(["doctor", "--format", "json"])?.stdout)?;
        let sinks = said["agent"]["sinks"].as_array().context("sinks")?;
        let sink = sinks.iter().find(|sink| sink["name"] == "checkpoints").context("the sink")?;
        Ok(sink["delivered"].as_i64() >= Some(signed))
    })?;
    sandbox.stop_agent()?;
    let outside = network::outside(sandbox.id());
    let (own, key) = (sandbox.agent_state().join("journal.db"), key(&sandbox)?);
    let verify = |journal: &Path, copies: Option<&str>| -> Result<(bool, Value)> {
        let journal = text(journal);
        let arguments = ["audit", "verify", "--journal", &journal, "--key", &key, "--format", "json"];
        let said = network::inside(&outside, || sandbox.snowfence(arguments.into_iter().chain(copies)))?;
        Ok((said.succeeded(), serde_json::from_str(said.stdout.trim()).context(said.stderr)?))
    };
    let (good, said) = verify(&own, Some("--checkpoints"))?;
    assert!(good && said["copies"].as_u64() > Some(0), "{said}");

    let cut: String =
        ["sessions", "statements", "approvals", "running", "outcomes", "events", "payloads", "checkpoints"]
            .map(|table| format!("DELETE FROM {table} WHERE seq > (SELECT min(seq) FROM checkpoints);"))
            .concat();
    // The checkpoints go last: they say where to cut.
    let cut = changed(
        &sandbox,
        &format!("{cut} UPDATE journal SET last_seq = (SELECT min(seq) FROM checkpoints)"),
    )?;
    assert!(verify(&cut, None)?.0, "without the copies nobody can tell");
    let (good, said) = verify(&cut, Some("--checkpoints"))?;
    assert!(!good && said["problems"][0]["problem"] == "checkpoint_missing", "{said}");

    let refused = objects.by_owner(
        &sandbox,
        r#"
for version in bucket.object_versions.all():
    try:
        version.delete()
        print("deleted")
    except Exception as error:
        print("kept" if "AccessDenied" in str(error) else error)"#,
    )?;
    assert!(!refused.is_empty() && refused.lines().all(|line| line == "kept"), "{refused}");
    Ok(())
}

/// Statements of any text that a client can send, as it sent them.
const HOSTILE: &str = r#"
places = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
samples = [*range(0x300), *range(0x2000, 0x2100), *range(0xFF00, 0x10000), *places[::97], 0x10FFFF]
texts = ["".join(map(chr, samples)).replace("'", ""), chr(0), "a" + chr(0) + "b", chr(0x202E) + "gnp.exe" + chr(0x2066)]
texts += [chr(number) for number in [*range(32), *range(127, 160)]] + ["x" * 1_000_000, "\\" * 1000 + '"' * 1000]
statements = [f"select '{text}'" for text in texts]
statements.append("select 1 from " + ", ".join(f"t{number}" for number in range(100_000)))
token = login()
answers = [ask(token, sql) for sql in statements]
half = post("/queries/v1/query-request", dict(sqlText="LONE", sequenceId=1), token)
headers = {"Content-Type": "application/json", "Authorization": f'Snowflake Token="{token}"'}
lone = send("POST", f"/queries/v1/query-request?requestId={uuid.uuid4()}", headers, '{"sqlText": "select \\ud800", "sequenceId": 1}')
with open(os.environ["HOME"] + "/sent.json", "w") as file:
    json.dump(statements, file)
say(answers=[answer[:200] for answer in answers], lone=[lone[0], lone[2].decode()[:300]])
"#;

#[test]
fn hostile_texts_are_everywhere_what_was_sent() -> Result<()> {
    let reader = Reader::new()?;
    let mut sandbox = reader.sandbox("")?.start()?;
    let pod = sandbox.pod("hostile")?;
    let said = client(&pod, &format!("{RAW}{HOSTILE}"))?;
    let sent = fs::read_to_string(Path::new(&pod.environment()["HOME"]).join("sent.json"))?;
    let sent: Vec<String> = serde_json::from_str(&sent)?;
    let sqls = |rows: Vec<Value>| -> Vec<String> {
        rows.iter()
            .filter_map(|row| Some(row["sql"].as_str()?.to_owned()))
            .filter(|sql| sql != "LONE")
            .collect()
    };
    let same = |place: &str, found: Vec<String>| {
        for (sent, found) in sent.iter().zip(&found) {
            assert!(sent == found, "{place}: {:?} became {:?}", shown(sent), shown(found));
        }
        assert_eq!(found.len(), sent.len(), "{place}");
    };
    let lone = &said[0]["lone"];
    assert!(lone[1].as_str().unwrap_or_default().contains("success\":false") || lone[0] != 200, "{lone}");
    same("journal", sqls(journal(&sandbox, "SELECT sql FROM statements ORDER BY seq")?));
    let question = "SELECT sql FROM snowfence.statements ORDER BY seq";
    eventually("ClickHouse has them", || {
        Ok(sqls(sandbox.clickhouse_rows(question).unwrap_or_default()).len() == sent.len())
    })?;
    same("ClickHouse", sqls(sandbox.clickhouse_rows(question)?));
    let counts = "SELECT max(json_array_length(objects)) AS objects FROM statements";
    let there = "SELECT max(length(objects)) AS objects FROM snowfence.statements";
    let most = [
        journal(&sandbox, counts)?[0]["objects"].clone(),
        sandbox.clickhouse_rows(there)?[0]["objects"].clone(),
    ];
    assert_eq!(most, [1000, 1000], "of a hundred thousand objects so many are named");

    let tail = sandbox.snowfence(["audit", "tail", "-n", "1000", "--format", "json"])?.into_stdout()?;
    assert!(tail.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    let text = sandbox.snowfence(["audit", "tail", "-n", "1000"])?.into_stdout()?;
    let table = sandbox.snowfence(["audit", "query", "SELECT sql FROM statements"])?.into_stdout()?;
    for printed in [&text, &table] {
        let control = printed.chars().find(|printed| printed.is_control() && *printed != '\n');
        assert_eq!(control, None, "nothing may steer a terminal");
    }

    let session = &journal(&sandbox, "SELECT id FROM sessions")?[0]["id"];
    let session = session.as_str().context("a session")?;
    let identity = reader.identity_file(&sandbox)?;
    let shown =
        sandbox.snowfence(["audit", "show", session, "-i", &identity, "--whole", "--format", "json"])?;
    let asked = shown.into_stdout()?.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let asked = asked.iter().filter_map(|payload| {
        let asked: Value = serde_json::from_str(payload["request"]["body"].as_str()?).ok()?;
        Some(Value::from_iter([("sql", asked["sqlText"].as_str()?)]))
    });
    same(
        "show",
        sqls(asked.collect()).into_iter().filter(|sql| !sql.starts_with("select \u{fffd}")).collect(),
    );
    sandbox.snowfence(["audit", "show", session, "-i", &identity, "--whole"])?.into_stdout()?;
    let file = text_of(&sandbox, "session.jsonl");
    sandbox.snowfence(["audit", "export", session, "--to", &file])?.into_stdout()?;
    let replayed = sandbox.snowfence(["replay", session, "--identity", &identity, "--format", "json"])?;
    assert!(replayed.into_stdout()?.contains("gnp.exe"));

    let status = fs::read_to_string(format!("/proc/{}/status", agent(&sandbox)?))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    let peak: u64 = peak.context("the peak of its memory")?.parse()?;
    assert!(peak < 512 * 1024, "{peak} KiB");
    sandbox.stop_agent()?;
    let key = key(&sandbox)?;
    for (kind, file) in
        [("journal", sandbox.agent_state().join("journal.db")), ("export", PathBuf::from(&file))]
    {
        let verdicts = verify(&sandbox, kind, &file, &key)?;
        assert_eq!((verdicts.problems(), verdicts.other_problems()), (vec![], "[]".to_owned()), "{kind}");
        assert_eq!(verdicts.own["verified"], verdicts.other["proven"], "{kind}");
    }
    let there = ["audit", "verify", "--clickhouse", "--key", &key];
    let said = network::inside(&network::outside(sandbox.id()), || sandbox.snowfence(there))?;
    assert!(said.succeeded(), "{}{}", said.stdout, said.stderr);
    Ok(())
}

fn shown(text: &str) -> String {
    text.chars().take(200).collect()
}

fn text_of(sandbox: &Sandbox, name: &str) -> String {
    text(&sandbox.agent_state().join(name))
}

/// The agent itself: its launcher has become it.
fn agent(sandbox: &Sandbox) -> Result<u32> {
    sandbox.agent_pid().context("the agent runs")
}
