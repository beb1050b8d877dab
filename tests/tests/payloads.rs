//! What clients asked and were answered is kept whole, encrypted, before they get it; and read again by another program,
//! by the documented format alone.

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sandbox::{Credential, Environment, Sandbox, network};
use serde_json::{Value, json};

use common::objects::Objects;
use common::reader::{Reader, program};
use common::{RAW, client, eventually, journal};

fn body(payload: &Value, key: &str) -> Result<Vec<u8>> {
    Ok(STANDARD.decode(payload[key].as_str().context("a body")?)?)
}

fn of<'p>(payloads: &'p [Value], operation: &str) -> Vec<&'p Value> {
    payloads.iter().filter(|payload| payload["operation"] == operation).collect()
}

/// Whether a file below a folder has these bytes in it.
fn any_file_has(folder: &Path, words: &str) -> Result<bool> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let found = if path.is_dir() {
            any_file_has(&path, words)?
        } else if path.is_file() {
            fs::read(&path)?.windows(words.len()).any(|window| window == words.as_bytes())
        } else {
            false
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

#[test]
fn what_a_client_was_answered_is_kept_byte_for_byte() -> Result<()> {
    let reader = Reader::new()?;
    let mut sandbox = reader.sandbox("")?.start()?;
    let pod = sandbox.pod("reports")?;
    let said = client(
        &pod,
        &format!(
            r#"{RAW}
import base64
def kept(bytes): return base64.b64encode(bytes).decode()
token = login()
headers = {{"Content-Type": "application/json", "Authorization": f'Snowflake Token="{{token}}"'}}
def query(sql):
    body = gzip.compress(json.dumps(dict(sqlText=sql, sequenceId=1)).encode())
    return send("POST", f"/queries/v1/query-request?requestId={{uuid.uuid4()}}", headers, body)[2]
small = query("select 'answered-' || 'with-this' as t")
large = json.loads(query("select seq4() as n, 'row ' || seq4() as t from table(generator(rowcount => 60000))"))["data"]
part = send("GET", urllib.parse.urlsplit(large["chunks"][0]["url"]).path, large["chunkHeaders"])[2]
refused = query("drop table customers")
say(token=token, small=kept(small), part=kept(part), refused=kept(refused))"#
        ),
    )?;
    eventually("all of it is on record", || Ok(reader.read(&sandbox)?.len() == 5))?;
    let payloads = reader.read(&sandbox)?;
    let (queries, parts) = (of(&payloads, "query"), of(&payloads, "part"));
    assert_eq!((queries.len(), parts.len(), of(&payloads, "login").len()), (3, 1, 1));
    for (payload, key) in [(queries[0], "small"), (parts[0], "part"), (queries[2], "refused")] {
        assert!(payload["answer_body"] == said[0][key], "{key}: {}", payload["answer"]);
        assert_eq!(payload["ending"], "complete");
    }
    let asked: Value = serde_json::from_slice(&body(queries[0], "request_body")?)?;
    assert_eq!(asked["sqlText"], "select 'answered-' || 'with-this' as t");
    assert!(parts[0]["pieces"].as_array().is_some_and(|pieces| !pieces.is_empty()), "{}", parts[0]["pieces"]);

    let query = &journal(&sandbox, "SELECT query_id FROM trail WHERE sql LIKE '%generator%'")?[0]["query_id"];
    assert_eq!(&parts[0]["query_id"], query, "a part belongs to its query");

    // Each belongs to the session, and those with a statement to it.
    let trail = journal(&sandbox, "SELECT id, session FROM trail ORDER BY time")?;
    for (row, payload) in trail.iter().zip(&queries) {
        assert_eq!((&row["id"], &row["session"]), (&payload["statement"], &payload["session"]));
    }
    assert!(payloads.iter().all(|payload| payload["session"] == trail[0]["session"]));

    // The host cannot read them back, and tokens are in no request.
    let state = sandbox.agent_state();
    assert!(!any_file_has(&state, "answered-with-this")?, "an answer lies there in plain");
    let requests: Vec<String> = payloads.iter().map(|payload| payload["request"].to_string()).collect();
    let token = said[0]["token"].as_str().context("a token")?;
    assert!(!requests.iter().any(|request| request.contains(token)), "{requests:?}");
    assert_eq!(body(of(&payloads, "login")[0], "request_body")?, b"", "a login carries the caller's token");

    // ClickHouse knows where they are.
    eventually("ClickHouse has them", || {
        let rows =
            sandbox.clickhouse_rows("SELECT operation, ending FROM snowfence.payloads FINAL ORDER BY seq")?;
        Ok(rows.len() == 5 && rows.iter().all(|row| row["ending"] == "complete"))
    })
}

#[test]
fn what_is_asked_for_again_takes_its_room_once() -> Result<()> {
    let reader = Reader::new()?;
    let mut sandbox = reader.sandbox("")?.set("metrics", "listen", "127.0.0.1:9464").start()?;
    let (pod, other) = (sandbox.pod("reports")?, sandbox.pod("others")?);
    let script = format!(
        r#"{RAW}
import hashlib
data = json.loads(ask(login(), "select /* a part of 3 MiB */ 1"))["data"]
path = urllib.parse.urlsplit(data["chunks"][-1]["url"]).path
for _ in range(int(os.environ.get("TIMES", "1"))):
    say(got=hashlib.sha256(send("GET", path, data["chunkHeaders"])[2]).hexdigest())"#
    );
    let first = client(&pod, &format!("import os\nos.environ['TIMES'] = '2'\n{script}"))?;
    let second = client(&other, &script)?;
    assert!(first[0] == first[1] && first[0] == second[0], "{first:?} {second:?}");
    let parts = "SELECT id, session, answer_bytes, sealed_bytes, ending FROM payloads
                 WHERE operation = 'part' ORDER BY seq";
    eventually("all of it is on record", || Ok(journal(&sandbox, parts)?.len() == 3))?;
    let rows = journal(&sandbox, parts)?;
    let number = |row: &Value, key: &str| row[key].as_u64().unwrap_or_default();
    assert!(rows.iter().all(|row| number(row, "answer_bytes") == 3 << 20), "{rows:?}");
    assert!(number(&rows[0], "sealed_bytes") > 3 << 20, "{rows:?}");
    for row in &rows[1..] {
        // A block that came too slowly was cut, and is another one.
        assert!(number(row, "sealed_bytes") < 3 << 19, "{rows:?}");
    }
    let saved: u64 = common::metric(&sandbox, "snowfence_spool_deduplicated_bytes_total")?.parse()?;
    assert!(saved > 3 << 20, "{saved}");

    // By another program.
    let payloads = reader.read(&sandbox)?;
    let kept = of(&payloads, "part");
    assert_eq!(kept.len(), 3);
    assert!(kept.iter().all(|it| it["answer_body"] == kept[0]["answer_body"]), "the same bodies");
    assert_eq!(body(kept[2], "answer_body")?.len(), 3 << 20);
    for payload in &kept {
        let pieces = payload["pieces"].as_array().context("pieces")?;
        assert!(pieces.iter().all(|piece| piece[0].as_u64() > Some(0)), "each has its time: {pieces:?}");
    }
    // By the agent's own.
    let identity = reader.identity_file(&sandbox)?;
    for row in &rows {
        let session = row["session"].as_str().context("a session")?;
        let shown = sandbox.snowfence(["audit", "show", session, "--identity", &identity])?.into_stdout()?;
        assert!(shown.contains("3145728 bytes") && !shown.contains("not what the record"), "{shown}");
    }
    // From an export of the session that wrote nothing of it.
    let session = rows[2]["session"].as_str().context("a session")?;
    let file = sandbox.agent_state().join("session.jsonl").display().to_string();
    sandbox.snowfence(["audit", "export", session, "--to", &file])?.into_stdout()?;
    let key = sandbox.snowfence(["audit", "key"])?.into_stdout()?.trim().to_owned();
    let verify = ["audit", "verify", "--export", &file, "--key", &key, "--format", "json"];
    let own: Value = serde_json::from_str(sandbox.snowfence(verify)?.into_stdout()?.trim())?;
    assert_eq!((&own["good"], &own["incomplete"]), (&json!(true), &json!(0)), "{own}");
    let said: Value = serde_json::from_str(&program("proof.py", &["export", &file, &key])?)?;
    assert_eq!((&said["wrong"], &said["payloads"]), (&json!([]), &own["payloads"]), "{said}");
    assert!(fs::metadata(&file)?.len() > 3 << 20, "it has all of the answer");
    let replayed =
        sandbox.snowfence(["replay", "--export", &file, "--identity", &identity])?.into_stdout()?;
    assert!(replayed.contains("a part of 3 MiB"), "{replayed}");
    Ok(())
}

#[test]
fn files_of_stages_are_kept_where_it_is_asked_for() -> Result<()> {
    let reader = Reader::new()?;
    let everything = concat!(env!("CARGO_MANIFEST_DIR"), "/policies/everything.cedar");
    let kept_with = |settings: &str| -> Result<Sandbox> {
        let builder = reader.sandbox(settings)?.driver(Environment::Connector5).policy(everything);
        let mut sandbox = builder.start()?;
        let pod = sandbox.pod("loader")?;
        let said = client(
            &pod,
            r#"
import hashlib, tempfile
work = tempfile.mkdtemp()
cursor = connect().cursor()
for name, content in [("small", b"who read this " * 20_000), ("large", os.urandom(3 << 20))]:
    with open(f"{work}/{name}", "wb") as file:
        file.write(content)
    cursor.execute(f"put 'file://{work}/{name}' '@~/in' auto_compress=false /* unencrypted */")
    cursor.execute(f"get '@~/in/{name}' 'file://{tempfile.mkdtemp(dir=work)}' /* unencrypted */")
say(done=True)"#,
        )?;
        ensure!(said.len() == 1, "{said:?}");
        let moved = "SELECT 1 FROM events WHERE kind IN ('file_uploaded', 'file_downloaded')";
        eventually("all files are on record", || Ok(journal(&sandbox, moved)?.len() == 4))?;
        Ok(sandbox)
    };
    let hashes = kept_with("")?;
    let payloads = reader.read(&hashes)?;
    assert_eq!((of(&payloads, "upload").len(), of(&payloads, "download").len()), (0, 0));
    drop(hashes);

    let sandbox = kept_with("files = \"keep\"\nanswer_mebibytes = 1")?;
    eventually("all of it is on record", || Ok(of(&reader.read(&sandbox)?, "download").len() == 2))?;
    let payloads = reader.read(&sandbox)?;
    let (uploads, downloads) = (of(&payloads, "upload"), of(&payloads, "download"));
    assert_eq!(uploads.len(), 2);
    let small = b"who read this ".repeat(20_000);
    assert!(body(uploads[0], "request_body")? == small && body(downloads[0], "answer_body")? == small);
    assert_eq!((&uploads[0]["ending"], &downloads[0]["ending"]), (&json!("complete"), &json!("complete")));
    assert!(uploads[1]["request_body"] == downloads[1]["answer_body"], "the first of it");
    assert_eq!(body(uploads[1], "request_body")?.len(), 1 << 20);
    assert_eq!((&uploads[1]["ending"], &downloads[1]["ending"]), (&json!("truncated"), &json!("truncated")));

    let rows = journal(
        &sandbox,
        "SELECT t.session = p.session AND t.query_id = p.query_id AS belongs, t.sql, t.id, p.operation,
                p.request_bytes + p.answer_bytes > 3000000 AS is_large
         FROM payloads p JOIN trail t ON t.id = p.statement
         WHERE p.operation IN ('upload', 'download') ORDER BY p.time",
    )?;
    assert_eq!(rows.len(), 4, "{rows:?}");
    for (row, (verb, is_large)) in rows.iter().zip([("put", 0), ("get", 0), ("put", 1), ("get", 1)]) {
        assert!(row["sql"].as_str().is_some_and(|sql| sql.starts_with(verb)), "{row}");
        assert_eq!((&row["belongs"], &row["is_large"]), (&json!(1), &json!(is_large)), "{row}");
    }
    let identity = reader.identity_file(&sandbox)?;
    let statement = rows[0]["id"].as_str().context("a statement")?;
    let shown = sandbox.snowfence(["audit", "show", statement, "--identity", &identity])?.into_stdout()?;
    assert!(shown.contains("→ PUT") && shown.contains("who read this"), "{shown}");
    let session = payloads[0]["session"].as_str().context("a session")?;
    let replayed = sandbox.snowfence(["replay", session, "--identity", &identity])?.into_stdout()?;
    assert!(replayed.contains("put 'file://"), "{replayed}");
    Ok(())
}

#[test]
fn the_security_team_sees_what_was_answered_and_that_it_looked() -> Result<()> {
    let reader = Reader::new()?;
    let mut sandbox = reader.sandbox("")?.start()?;
    let pod = sandbox.pod("reports")?;
    client(
        &pod,
        "say(**attempt(lambda: connect().cursor().execute(\"select 'seen ' || 'later' as t\").fetchall()))",
    )?;
    let trail = journal(&sandbox, "SELECT id, session, query_id FROM trail")?;
    let row = trail.first().context("a statement")?;
    let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let identity = reader.identity_file(&sandbox)?;
    for (key, name) in [("session", "login"), ("id", "query"), ("query_id", "query")] {
        let shown =
            sandbox.snowfence(["audit", "show", &text(key), "--identity", &identity])?.into_stdout()?;
        assert!(shown.contains(name) && shown.contains("→ POST"), "{key}: {shown}");
    }
    let json = sandbox.snowfence(["audit", "show", &text("id"), "-i", &identity, "--format", "json"])?;
    let said: Value = serde_json::from_str(json.into_stdout()?.trim())?;
    assert!(said["request"]["body"].as_str().is_some_and(|body| body.contains("seen ")), "{said}");

    let stranger = Reader::new()?.identity_file(&sandbox)?;
    let refused = sandbox.snowfence(["audit", "show", &text("id"), "-i", &stranger])?;
    assert!(!refused.succeeded() && refused.stdout.contains("none of the identities"), "{}", refused.stdout);
    assert!(!refused.stdout.contains("seen"), "{}", refused.stdout);
    let nothing = sandbox.snowfence(["audit", "show", "no-such-id", "-i", &identity])?;
    assert!(!nothing.succeeded() && nothing.stderr.contains("knows no payloads"), "{}", nothing.stderr);

    let looks = "SELECT detail FROM events WHERE kind = 'payloads_read' ORDER BY seq";
    let seen = journal(&sandbox, looks)?;
    assert_eq!(seen.len(), 5, "{seen:?}");
    assert!(seen[0]["detail"].as_str().is_some_and(|it| it.contains(&text("session"))), "{seen:?}");
    sandbox.stop_agent()?;
    sandbox
        .snowfence(["audit", "show", &text("id"), "-i", &reader.identity_file(&sandbox)?])?
        .into_stdout()?;
    assert_eq!(journal(&sandbox, looks)?.len(), 6, "without an agent too");
    Ok(())
}

#[test]
fn the_words_of_a_language_model_are_kept_as_they_came() -> Result<()> {
    let reader = Reader::new()?;
    let mut sandbox = reader.sandbox("")?.credential(Credential::KeyPair).start()?;
    let pod = sandbox.pod("reports")?;
    let ask = |words: &str| -> Result<String> {
        let messages = json!([{ "role": "user", "content": words }]);
        let body = json!({ "model": "mistral-large2", "messages": messages, "stream": true }).to_string();
        let script = r#"curl -sS -N -H 'Accept: text/event-stream, application/json' -H 'Content-Type: application/json' \
            -H "Authorization: Bearer $SNOWFLAKE_TOKEN" -d "$1" "https://$SNOWFLAKE_HOST/api/v2/cortex/inference:complete""#;
        Ok(pod.run(["sh", "-c", script, "sh", &body])?.stdout)
    };
    let whole = ask("one two three four five six seven eight nine ten")?;
    assert!(whole.contains("[DONE]"), "{whole}");
    let broken = ask("please break off here and now")?;
    eventually("both are on record", || Ok(of(&reader.read(&sandbox)?, "rest").len() == 2))?;
    let payloads = reader.read(&sandbox)?;
    let kept = of(&payloads, "rest");
    assert_eq!(String::from_utf8(body(kept[0], "answer_body")?)?, whole);
    assert!(String::from_utf8(body(kept[0], "request_body")?)?.contains("seven"), "the prompt");
    let times: Vec<u64> = kept[0]["pieces"]
        .as_array()
        .context("pieces")?
        .iter()
        .filter_map(|piece| piece[0].as_u64())
        .collect();
    assert!(
        times.len() >= 5 && times[times.len() - 1] - times[0] > 500_000,
        "they kept their time: {times:?}"
    );
    assert_eq!(kept[1]["ending"], "broken", "{}", kept[1]["end"]);
    assert!(String::from_utf8(body(kept[1], "answer_body")?)?.starts_with(&broken), "{broken}");
    Ok(())
}

#[test]
fn what_was_on_its_way_when_the_agent_was_killed_is_kept_as_far_as_it_went() -> Result<()> {
    let reader = Reader::new()?;
    let mut sandbox = reader.sandbox("")?.start()?;
    let pod = sandbox.pod("reports")?;
    let source = common::source(&format!(
        r#"{RAW}
data = json.loads(ask(login(), "select /* a part of 64 MiB */ 1"))["data"]
connection = http.client.HTTPSConnection(host, context=trust, timeout=60)
connection.request("GET", urllib.parse.urlsplit(data["chunks"][-1]["url"]).path, headers=data["chunkHeaders"])
answer = connection.getresponse()
got = len(answer.read(4 << 20))
open(os.environ["HOME"] + "/got", "w").write(str(got))
time.sleep(600)"#
    ));
    let mut process =
        pod.start("reader", ["sh", "-c", "exec \"$SANDBOX_PYTHON\" -c \"$1\"", "sh", &source])?;
    let got = Path::new(&pod.environment()["HOME"]).join("got");
    eventually("it has some of it", || {
        ensure!(process.runs()?, "it ended:\n{}", process.output()?);
        Ok(fs::read_to_string(&got).is_ok_and(|got| !got.is_empty()))
    })?;
    let got: usize = fs::read_to_string(&got)?.parse()?;
    sandbox.kill_agent()?;
    sandbox.start_agent()?;
    let payloads = reader.read(&sandbox)?;
    let lost: Vec<&Value> = payloads.iter().filter(|payload| payload["ending"] == "lost").collect();
    assert_eq!(lost.len(), 1, "{:?}", payloads.iter().map(|it| &it["ending"]).collect::<Vec<_>>());
    let kept = body(lost[0], "answer_body")?.len();
    assert!(kept >= got, "the client has {got} bytes of which {kept} are kept");
    sandbox.kill_agent()?;
    sandbox.start_agent()?;
    assert_eq!(reader.read(&sandbox)?.len(), payloads.len(), "it is found once");
    Ok(())
}

#[test]
fn an_upgrade_keeps_what_both_agents_pass_on() -> Result<()> {
    let reader = Reader::new()?;
    let mut sandbox = reader.sandbox("")?.start()?;
    let pod = sandbox.pod("reports")?;
    let source = common::source(
        r#"
cursor = connect().cursor()
cursor.execute("select 'before'").fetchall()
open(os.environ["HOME"] + "/before", "w").write("done")
# Under way while the agent is replaced.
cursor.execute("select system$wait(6)").fetchall()
cursor.execute("select 'after'").fetchall()"#,
    );
    let mut process =
        pod.start("reader", ["sh", "-c", "exec \"$SANDBOX_PYTHON\" -c \"$1\"", "sh", &source])?;
    let before = Path::new(&pod.environment()["HOME"]).join("before");
    eventually("it has begun", || {
        ensure!(process.runs()?, "it ended:\n{}", process.output()?);
        Ok(before.exists())
    })?;
    sandbox.replace_agent()?;
    let ended = process.wait(Duration::from_mins(1))?.context("it ends")?;
    ensure!(ended.success(), "{}", process.last_words());
    let asked = |payload: &&Value| {
        let body = body(payload, "request_body").unwrap_or_default();
        serde_json::from_slice::<Value>(&body).unwrap_or_default()["sqlText"].clone()
    };
    eventually("all of it is on record", || {
        let payloads = reader.read(&sandbox)?;
        let queries = of(&payloads, "query");
        let texts: Vec<Value> = queries.iter().map(asked).collect();
        let runs: Vec<&Value> = queries.iter().map(|payload| &payload["run"]).collect();
        Ok(texts.len() == 3
            && texts[2] == "select 'after'"
            && runs[0] != runs[2]
            && payloads.iter().all(|payload| payload["ending"] == "complete"))
    })
}

#[test]
fn what_has_left_the_host_is_in_the_archive_as_it_was() -> Result<()> {
    let (reader, objects) = (Reader::new()?, Objects::new()?);
    let settings = format!("archive_seconds = 1\n[archive]\n{}", objects.place("payloads/eu"));
    let mut sandbox = reader.sandbox(&settings)?.without_agent().start()?;
    let _store = objects.serve(&sandbox)?;
    objects.fail("503 SlowDown")?;
    sandbox.start_agent()?;
    let pod = sandbox.pod("reports")?;
    client(
        &pod,
        &format!(
            r#"{RAW}
data = json.loads(ask(login(), "select /* a part of 64 MiB */ 'seen ' || 'later' as t"))["data"]
connection = http.client.HTTPSConnection(host, context=trust, timeout=60)
connection.request("GET", urllib.parse.urlsplit(data["chunks"][-1]["url"]).path, headers=data["chunkHeaders"])
say(bytes=len(connection.getresponse().read(12 << 20)))"#
        ),
    )?;
    let archive = || -> Result<Value> {
        let said: Value = serde_json::from_str(&sandbox.snowfence(["doctor", "--format", "json"])?.stdout)?;
        Ok(said["agent"]["archive"].clone())
    };
    eventually("the agent says that its archive is full", || {
        let said = archive()?;
        Ok(said["error"].as_str().is_some_and(|error| error.contains("SlowDown")) && said["errors"] != 0)
    })?;
    objects.recover()?;
    eventually("the archive takes payloads again", || Ok(archive()?["archived_bytes"] != 0))?;
    eventually("all of it is archived", || {
        let said = archive()?;
        Ok(said["error"].is_null() && said["pending_bytes"] == 0)
    })?;
    assert!(objects.requests().contains("?partNumber=2&"), "what is long goes in parts");

    // By another program, from what was downloaded.
    let before = reader.read(&sandbox)?;
    let (state, spool) = (sandbox.agent_state(), sandbox.agent_state().join("spool"));
    let copy = tempfile::tempdir_in(&state)?;
    objects.download(&sandbox, "payloads/eu", copy.path())?;
    assert_eq!(reader.read_from(&sandbox, copy.path())?, before);

    // By the agent's own, when nothing is left here.
    for run in fs::read_dir(&spool)? {
        for file in fs::read_dir(run?.path())? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "segment") {
                assert!(path.with_extension("archived").exists(), "{}", path.display());
                fs::remove_file(path)?;
            }
        }
    }
    let identity = reader.identity_file(&sandbox)?;
    let session = before[0]["session"].as_str().context("a session")?;
    let outside = network::outside(sandbox.id());
    let run = |words: &[&str]| network::inside(&outside, || sandbox.snowfence(words))?.into_stdout();
    let shown = run(&["audit", "show", session, "--identity", &identity])?;
    assert!(shown.contains("seen ") && !shown.contains("no longer"), "{shown}");
    let replayed = run(&["replay", session, "--identity", &identity])?;
    assert!(replayed.contains("a part of 64 MiB"), "{replayed}");
    // By ClickHouse too, which needs no journal.
    eventually("ClickHouse has the same", || {
        Ok(network::inside(&outside, || {
            sandbox.snowfence(["replay", session, "--identity", &identity, "--clickhouse"])
        })?
        .stdout
            == replayed)
    })?;
    let shown_there = run(&["audit", "show", session, "--identity", &identity, "--clickhouse"])?;
    assert_eq!(shown_there, shown);
    let file = state.join("session.jsonl").display().to_string();
    run(&["audit", "export", session, "--to", &file])?;
    let verified = run(&["audit", "verify", "--export", &file, "--format", "json"])?;
    let verified: Value = serde_json::from_str(verified.trim())?;
    assert_eq!((&verified["good"], &verified["incomplete"]), (&json!(true), &json!(0)), "{verified}");
    assert_eq!(verified["payloads"], before.len());
    Ok(())
}

#[test]
fn what_cannot_be_kept_is_not_let_through() -> Result<()> {
    let reader = Reader::new()?;
    let mut sandbox = reader.sandbox("spool_mebibytes = 64")?.start()?;
    let pod = sandbox.pod("reports")?;
    let said = client(
        &pod,
        &format!(
            r#"{RAW}
token = login()
data = json.loads(ask(token, "select /* a part of 128 MiB */ 1"))["data"]
connection = http.client.HTTPSConnection(host, context=trust, timeout=60)
connection.request("GET", urllib.parse.urlsplit(data["chunks"][-1]["url"]).path, headers=data["chunkHeaders"])
answer, length = connection.getresponse(), 0
promised = int(answer.headers["Content-Length"])
try:
    while piece := answer.read(1 << 20):
        length += len(piece)
except OSError:
    pass
headers = {{"Content-Type": "application/json", "Authorization": f'Snowflake Token="{{token}}"'}}
body = json.dumps(dict(sqlText="select 'never run'", sequenceId=1))
status, _, refused = send("POST", f"/queries/v1/query-request?requestId={{uuid.uuid4()}}", headers, body)
say(length=length, promised=promised, status=status, refused=refused.decode())"#
        ),
    )?;
    let said = &said[0];
    assert_eq!(said["promised"], 128 << 20, "{said}");
    assert!(said["length"].as_u64() < said["promised"].as_u64(), "half an answer is no whole one: {said}");
    let message = said["refused"].as_str().unwrap_or_default();
    assert!(message.contains("cannot keep"), "{said}");
    assert!(!common::arrived(&sandbox)?.iter().any(|sql| sql.contains("never run")));
    let refused = journal(&sandbox, "SELECT status, message FROM trail WHERE sql LIKE '%never run%'")?;
    assert!(refused.len() == 1 && refused[0]["status"] == "refused", "{refused:?}");
    let events = journal(&sandbox, "SELECT detail FROM events WHERE kind = 'payload_not_kept'")?;
    assert!(
        events.iter().all(|event| event["detail"].as_str().is_some_and(|it| it.contains("full"))),
        "{events:?}"
    );
    assert!(!events.is_empty());
    Ok(())
}
