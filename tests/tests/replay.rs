//! A recorded session once more: to a client that looks at every byte, with neither Snowflake nor an agent; and to people.

mod common;

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sandbox::{Credential, Environment, Pod};
use serde_json::Value;

use common::reader::Reader;
use common::recorded::{PLAIN, Recorded, SERVE, connectors_work, large};
use common::{RAW, journal, source};

/// Says of each answer what it was: status, headers, and the digest of its body.
const DIGESTS: &str = r#"
import hashlib
def said(answer):
    status, headers, body = answer
    headers = sorted([name.lower(), value] for name, value in headers.items() if name.lower() != "date")
    say(status=status, headers=headers, sha256=hashlib.sha256(body).hexdigest(), length=len(body))
    return body
def headers(token): return {"Content-Type": "application/json", "Authorization": f'Snowflake Token="{token}"'}
def query(token, sql):
    body = gzip.compress(json.dumps(dict(sqlText=sql, sequenceId=1, querySubmissionTime=time.time())).encode())
    return said(send("POST", f"/queries/v1/query-request?requestId={uuid.uuid4()}", headers(token), body))
"#;

fn raw_work() -> String {
    source(&format!(
        r#"{RAW}{DIGESTS}
token = login()
query(token, "select 'small'")
large = json.loads(query(token, {:?}))["data"]
for chunk in large["chunks"]:
    said(send("GET", urllib.parse.urlsplit(chunk["url"]).path, large["chunkHeaders"]))
query(token, "select * from no_such_table")
query(token, "select system$wait(1)")
query(token, "drop table customers")"#,
        large("")
    ))
}

#[test]
fn every_byte_of_a_replay_is_as_it_was() -> Result<()> {
    let work = raw_work();
    let recorded = Recorded::new(Environment::Connector5, |pod| pod.python(&work)?.into_stdout())?;
    assert!(recorded.said.lines().count() >= 5, "{}", recorded.said);
    recorded.is_repeated(SERVE, &[recorded.python(), "-c", &work])?;
    let waiting = source(&format!(
        r#"{RAW}
token, began = login(), time.monotonic()
ask(token, "select system$wait(1)")
say(as_long_as_it_was=time.monotonic() - began >= 1)"#
    ));
    let timed = recorded.replayed(&format!("--timing {SERVE}"), &[recorded.python(), "-c", &waiting])?;
    assert_eq!(timed.said.trim(), r#"{"as_long_as_it_was": true}"#);

    // What is not in it is told so, with what comes next; and it asks for less than there is.
    let other = source(&format!(
        r#"{RAW}
token = login()
ask(token, "select 'small'")
again, never = (json.loads(ask(token, sql)) for sql in ("select 'small'", "select 'never recorded'"))
status, body = fetch("https://x/snowfence/parts/nothing", {{}})
say(again=again, never=never, status=status, unknown=send("GET", "/nothing", {{}})[0])"#
    ));
    let replayed = recorded.replayed(SERVE, &[recorded.python(), "-c", &other])?;
    let said: Value = serde_json::from_str(&replayed.said)?;
    for refused in ["again", "never"] {
        assert_eq!(said[refused]["success"], false, "{said}");
    }
    let message = said["never"]["message"].as_str().context("a message")?;
    assert!(
        message.contains("select 'never recorded'") && message.contains("from table(generator"),
        "{message}"
    );
    assert_eq!((&said["status"], &said["unknown"]), (&422.into(), &404.into()));
    assert_eq!((&replayed.summary["answered"], &replayed.summary["unmatched"]), (&2.into(), &4.into()));
    let never: Vec<&str> = replayed.summary["never_asked"]
        .as_array()
        .context("a list")?
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert!(never.contains(&"drop table customers") && never.len() >= 4, "{never:?}");
    assert!(replayed.log.contains("never recorded"), "{}", replayed.log);

    // Elsewhere, the addresses of parts are.
    let elsewhere = source(&format!(
        r#"{RAW}
def send(method, target, headers, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=60)
    connection.request(method, target, body, headers)
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()
data = json.loads(ask(login(), {:?}))["data"]
url = data["chunks"][0]["url"]
say(url=url.split("/snowfence/")[0], rows=fetch(url, data["chunkHeaders"])[1].count(b"row "))"#,
        large("")
    ));
    let by_tls = |name: &str| {
        elsewhere.replace(
            r#"HTTPConnection("127.0.0.1", 8080"#,
            &format!(r#"HTTPSConnection("{name}", 8080, context=trust"#),
        )
    };
    for (more, work, url) in [
        (PLAIN, elsewhere.clone(), "http://127.0.0.1:8080"),
        ("--serve 127.0.0.1:8080 --ca-out", by_tls("127.0.0.1"), "https://127.0.0.1:8080"),
        ("--serve 127.0.0.1:8080 --ca-out", by_tls("localhost"), "https://localhost:8080"),
    ] {
        let replayed = recorded.replayed(more, &[recorded.python(), "-c", &work])?;
        let said: Value = serde_json::from_str(&replayed.said)?;
        assert_eq!(said["url"], url);
        assert!(said["rows"].as_u64() > Some(1000), "{said}");
    }
    Ok(())
}

/// Plays on a terminal of its own: reads until something is there, then presses keys.
const TERMINAL: &str = r#"
import os, pty, select, signal, subprocess, sys, termios
ours, theirs = pty.openpty()
before = termios.tcgetattr(theirs)
def begin():
    return subprocess.Popen(sys.argv[1:], stdin=theirs, stdout=theirs)
def until(words):
    seen = ""
    while words not in seen:
        ready, _, _ = select.select([ours], [], [], 60)
        assert ready, (words, seen)
        seen += os.read(ours, 65536).decode(errors="replace")
    return seen
def press(keys):
    os.write(ours, keys.encode())
player = begin()
until("playing")
assert termios.tcgetattr(theirs) != before
press(" ")
until("paused")
press("+")
until("×0.02")
press("n")
assert "] " in until("paused")
press("/nothing of the kind\r")
until("nothing like nothing of the kind comes")
press("/DROP table\r")
found = until("steps passed over")
# It may have come with it.
"paused" in found or until("paused")
press("q")
assert player.wait(60) == 0
assert termios.tcgetattr(theirs) == before
player = begin()
until("playing")
player.send_signal(signal.SIGTERM)
assert player.wait(60) == 128 + signal.SIGTERM
assert termios.tcgetattr(theirs) == before
"#;

#[test]
fn what_has_no_login_is_answered_by_a_recording_too() -> Result<()> {
    let work = source(&format!(
        r#"{RAW}{DIGESTS}
bearer = {{"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "reports/1.0",
          "Authorization": "Bearer " + os.environ["SNOWFLAKE_TOKEN"], "X-Snowflake-Authorization-Token-Type": "OAUTH"}}
def api(method, path, body=None):
    answer = said(send(method, path, bearer, body and json.dumps(body)))
    return json.loads(gzip.decompress(answer) if answer[:2] == bytes([0x1f, 0x8b]) else answer)
def submit(sql): return api("POST", f"/api/v2/statements?requestId={{uuid.uuid4()}}", dict(statement=sql))
handle = submit({:?})["statementHandle"]
api("GET", f"/api/v2/statements/{{handle}}?partition=1")
submit("drop table customers")
api("GET", "/api/v2/databases")
api("DELETE", "/api/v2/databases/analytics/schemas/public/tables/customers")"#,
        large("")
    ));
    let client = |pod: &Pod| pod.python(&work)?.into_stdout();
    let recorded = Recorded::with(Environment::Connector5, Credential::KeyPair, client)?;
    let statuses: Vec<Value> = recorded.said.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let statuses: Vec<&Value> = statuses.iter().map(|said| &said["status"]).collect();
    assert_eq!(statuses, [200, 200, 422, 200, 403], "{}", recorded.said);
    recorded.is_repeated(SERVE, &[recorded.python(), "-c", &work])?;
    let text = recorded.replay(&["--rows", "1"])?;
    for line in
        ["← api_statement  succeeded, 60000 rows", "← api_result", "deny (destructive-denied)", "row 0"]
    {
        assert!(text.contains(line), "{line}: {text}");
    }
    Ok(())
}

#[test]
fn an_exported_session_is_replayed_like_the_one_in_the_journal() -> Result<()> {
    let work = connectors_work();
    let recorded = Recorded::new(Environment::Connector5, |pod| pod.python(&work)?.into_stdout())?;
    let sandbox = &recorded.sandbox;
    let file = sandbox.agent_state().join("session.jsonl").display().to_string();
    sandbox.snowfence(["audit", "export", &recorded.session, "--to", &file])?.into_stdout()?;
    let key = sandbox.snowfence(["audit", "key"])?.into_stdout()?;
    let identity = recorded.reader.identity_file(sandbox)?;
    let replay = ["replay", "--export", &file, "--key", key.trim(), "--identity", &identity];
    for more in [&["--rows", "2"][..], &["--format", "json"]] {
        let exported = sandbox.snowfence(replay.iter().chain(more))?.into_stdout()?;
        assert_eq!(exported, recorded.replay(more)?);
    }
    fs::write(&file, fs::read_to_string(&file)?.replacen("select 'again'", "select 'agaim'", 1))?;
    let changed = sandbox.snowfence(replay)?;
    assert!(!changed.succeeded() && changed.stderr.contains("not what was signed"), "{}", changed.stderr);
    Ok(())
}

#[test]
fn people_see_a_session_as_its_client_saw_it() -> Result<()> {
    let work = connectors_work();
    let recorded = Recorded::new(Environment::Connector5, |pod| pod.python(&work)?.into_stdout())?;
    let looks = "SELECT detail FROM events WHERE kind = 'payloads_read'";
    assert_eq!(journal(&recorded.sandbox, looks)?.len(), 0);
    let text = recorded.replay(&["--rows", "2"])?;
    let seen = journal(&recorded.sandbox, looks)?;
    assert!(
        seen.len() == 1 && seen[0]["detail"].as_str().is_some_and(|it| it.contains(&recorded.session)),
        "{seen:?}"
    );
    for line in [
        "← login  HTTP 200",
        "allow (reads-allowed)",
        "           answered it's  1.50",
        "           0  row 0",
        "           1  row 1",
        "           … [more rows: --rows shows them]",
        "deny (destructive-denied)",
        "           003001: ",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(text.find("select 'again'") < text.find("drop table customers"), "{text}");
    assert!(!text.contains('\u{1b}'), "nothing steers a terminal");

    let lines = recorded.replay(&["--format", "json", "--rows", "1"])?;
    let steps: Vec<Value> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let times: Vec<i64> = steps.iter().filter_map(|step| step["at_us"].as_i64()).collect();
    assert!(times.len() == steps.len() && times.is_sorted(), "{times:?}");
    let refused = steps.iter().find(|step| step["status"] == "refused").context("a refusal")?;
    assert_eq!(refused["code"], "003001", "{refused}");
    let parts: Vec<&Value> =
        steps.iter().filter(|step| step["operation"] == "part" && step["what"] == "answer").collect();
    assert!(parts.len() >= 2, "{lines}");
    assert!(
        parts
            .iter()
            .all(|part| part["table"]["rows"][0][1].as_str().is_some_and(|it| it.starts_with("row "))),
        "{parts:?}"
    );

    // On a terminal somebody plays it, and the terminal is as before, however that ends.
    let mut player = Command::new("/usr/bin/python3");
    player.args(["-c", TERMINAL]).arg(recorded.sandbox.binary()).args(["replay", &recorded.session]);
    player.args(["--identity", &recorded.reader.identity_file(&recorded.sandbox)?, "--speed", "0.01"]);
    player.arg("--config").arg(recorded.sandbox.configuration());
    let ended = player.output()?;
    ensure!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));

    let stranger = Reader::new()?.identity_file(&recorded.sandbox)?;
    let refused = recorded.sandbox.snowfence(["replay", &recorded.session, "-i", &stranger])?;
    assert!(
        refused.stdout.contains("none of the identities") && !refused.stdout.contains("answered it"),
        "{}",
        refused.stdout
    );
    Ok(())
}
