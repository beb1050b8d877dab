//! A recorded session once more: to the driver that it was recorded from, which notices nothing, with neither Snowflake nor
//! an agent; and to people.

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use sandbox::{Credential, Environment, Pod, Sandbox, node};
use serde_json::Value;

use common::reader::Reader;
use common::{RAW, eventually, journal, node_program, source};

/// In a network where there is nothing but this, the account's name leads to the replay of its session: `$1` is what the
/// replay is told besides, the rest is the client.
const ALONE: &str = r#"
set -eu
more=$1; shift
ip link set lo up
printf '127.0.0.1 localhost %s\n' "$SNOWFLAKE_HOST" > "$REPLAY_FOLDER/hosts"
: > "$REPLAY_FOLDER/resolv.conf"
: > "$REPLAY_FOLDER/said"
mount --bind "$REPLAY_FOLDER/hosts" /etc/hosts
mount --bind "$REPLAY_FOLDER/resolv.conf" "$(readlink -f /etc/resolv.conf)"
"$REPLAY_BIN" replay "$REPLAY_SESSION" --identity "$REPLAY_IDENTITY" --journal "$REPLAY_JOURNAL" --format json \
    $more > "$REPLAY_FOLDER/said" 2> "$REPLAY_FOLDER/log" &
replay=$!
until [ -s "$REPLAY_FOLDER/said" ]; do kill -0 $replay; sleep 0.05; done
status=0
"$@" || status=$?
kill -TERM $replay
wait $replay
exit $status
"#;
const SERVE: &str = "--serve 127.0.0.1:443 --ca-out";
const PLAIN: &str = "--serve 127.0.0.1:8080 --plain";
/// What a replay's certificate is known to drivers by.
const TRUST: [&str; 3] = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"];

/// A session that is on record.
struct Recorded {
    sandbox: Sandbox,
    pod: Pod,
    reader: Reader,
    session: String,
    /// What its client printed.
    said: String,
}

/// What came of a replay.
struct Replayed {
    said: String,
    summary: Value,
    log: String,
}

impl Recorded {
    /// Has a client do its work once.
    fn new(driver: Environment, client: impl FnOnce(&Pod) -> Result<String>) -> Result<Self> {
        Self::with(driver, Credential::default(), client)
    }

    fn with(
        driver: Environment,
        credential: Credential,
        client: impl FnOnce(&Pod) -> Result<String>,
    ) -> Result<Self> {
        let reader = Reader::new()?;
        let mut sandbox = reader.sandbox("")?.driver(driver).credential(credential).start()?;
        let pod = sandbox.pod("reports")?.with("NODE_PATH", &node::modules()?.to_string_lossy());
        let said = client(&pod)?;
        let sessions = journal(&sandbox, "SELECT id FROM sessions")?;
        ensure!(sessions.len() == 1, "{sessions:?}");
        let session = sessions[0]["id"].as_str().context("a session")?.to_owned();
        let statements = journal(&sandbox, "SELECT id FROM statements")?.len();
        eventually("all of it is on record", || {
            let kept = journal(
                &sandbox,
                "SELECT DISTINCT statement FROM payloads WHERE statement IN (SELECT id FROM statements)",
            )?;
            Ok(kept.len() == statements)
        })?;
        Ok(Self { sandbox, pod, reader, session, said })
    }

    /// Answers a client with it, where there is nothing else.
    fn replayed(&self, more: &str, client: &[&str]) -> Result<Replayed> {
        let folder = PathBuf::from(&self.pod.environment()["HOME"]);
        let ca = folder.join("replay-ca.pem").display().to_string();
        let more = if more.ends_with("--ca-out") { format!("{more} {ca}") } else { more.to_owned() };
        let state = self.sandbox.agent_state();
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "sh", "-c", ALONE, "sh", &more]).args(client);
        command.env_clear().envs(self.pod.environment()).envs(TRUST.map(|variable| (variable, &ca)));
        command
            .env("REPLAY_BIN", self.sandbox.binary())
            .env("REPLAY_SESSION", &self.session)
            .env("REPLAY_IDENTITY", self.reader.identity_file(&self.sandbox)?)
            .env("REPLAY_JOURNAL", state.join("journal.db"))
            .env("REPLAY_FOLDER", &folder)
            .stdin(Stdio::null());
        let output = command.output().context("start a client alone")?;
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        let (said, log) = (read("said"), read("log"));
        ensure!(output.status.success(), "{}\n{said}{log}", String::from_utf8_lossy(&output.stderr));
        let summary = serde_json::from_str(said.lines().last().unwrap_or_default())?;
        Ok(Replayed { said: String::from_utf8(output.stdout)?, summary, log })
    }

    /// A driver prints the same, and asks for all that was recorded and for nothing else.
    fn is_repeated(&self, more: &str, client: &[&str]) -> Result<()> {
        let replayed = self.replayed(more, client)?;
        assert_eq!(without_request_ids(&replayed.said), without_request_ids(&self.said), "{}", replayed.log);
        let summary = &replayed.summary;
        assert_eq!(
            (&summary["unmatched"], &summary["never_asked"]),
            (&0.into(), &Value::Array(vec![])),
            "{summary} {}",
            replayed.log
        );
        Ok(())
    }

    fn python(&self) -> &str {
        &self.pod.environment()["SANDBOX_PYTHON"]
    }

    fn replay(&self, more: &[&str]) -> Result<String> {
        let identity = self.reader.identity_file(&self.sandbox)?;
        let arguments = ["replay", &self.session, "--identity", &identity];
        self.sandbox.snowfence(arguments.iter().chain(more))?.into_stdout()
    }
}

/// What connector 5 adds to an error: the identifier that it gave to its own request, each time another one.
fn without_request_ids(said: &str) -> String {
    let mut pieces = said.split("(request_id=");
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |text, piece| text + "(" + piece.split_once(',').map_or("", |(_, rest)| rest))
}

fn large(comment: &str) -> String {
    format!("select {comment} seq4() as n, 'row ' || seq4() as t from table(generator(rowcount => 60000))")
}

/// What a connector's client does: results inline and in parts, as Arrow and JSON, bound values, an error, a refusal.
fn connectors_work() -> String {
    source(&format!(
        r#"
connection = connect()
cursor = connection.cursor()
def digest(cursor):
    rows = cursor.fetchall()
    return [len(rows), sum(int(row[0]) for row in rows), rows[-1]]
say(**attempt(lambda: cursor.execute("select 'answered ' || %s as t, 1.50 as n", ("it's",)).fetchall()))
say(**attempt(lambda: cursor.execute("select 'again'").fetchall()))
say(**attempt(lambda: cursor.execute("select 'again'").fetchall()))
say(**attempt(lambda: digest(cursor.execute({arrow:?}))))
cursor.execute("alter session set python_connector_query_result_format = 'JSON'")
say(**attempt(lambda: digest(cursor.execute({json:?}))))
say(**attempt(lambda: cursor.execute("select * from no_such_table").fetchall()))
say(**attempt(lambda: cursor.execute("drop table customers").fetchall()))
connection.close()"#,
        arrow = large("/* arrow */"),
        json = large("/* json */"),
    ))
}

fn is_repeated_by_connector(driver: Environment) -> Result<()> {
    let work = connectors_work();
    let recorded = Recorded::new(driver, |pod| pod.python(&work)?.into_stdout())?;
    assert_eq!(recorded.said.lines().count(), 7, "{}", recorded.said);
    assert!(recorded.said.contains("Snowfence refused DROP TABLE"), "{}", recorded.said);
    recorded.is_repeated(SERVE, &[recorded.python(), "-c", &work])?;
    let elsewhere = r#"connect(host="127.0.0.1", port=8080, protocol="http")"#;
    recorded.is_repeated(
        PLAIN,
        &[recorded.python(), "-c", &work.replace("= connect()", &format!("= {elsewhere}"))],
    )
}

#[test]
fn connector_5_does_not_notice_that_it_is_answered_by_a_recording() -> Result<()> {
    is_repeated_by_connector(Environment::Connector5)
}

#[test]
fn connector_4_does_not_notice_that_it_is_answered_by_a_recording() -> Result<()> {
    is_repeated_by_connector(Environment::Connector4)
}

#[test]
fn node_does_not_notice_that_it_is_answered_by_a_recording() -> Result<()> {
    let work = node_program(&format!(
        r"
say(await attempt('select ? as t, 1.50 as n', ['bound']));
const rows = await run({:?});
say([rows.length, rows.reduce((sum, row) => sum + Number(row.N), 0), rows[rows.length - 1]]);
say(await attempt('select * from no_such_table'));
say(await attempt('drop table customers'));",
        large("")
    ));
    let recorded =
        Recorded::new(Environment::Connector5, |pod| pod.run(["node", "-e", &work])?.into_stdout())?;
    assert_eq!(recorded.said.lines().count(), 4, "{}", recorded.said);
    recorded.is_repeated(SERVE, &["node", "-e", &work])?;
    let elsewhere = work.replace("account: of", "accessUrl: 'http://127.0.0.1:8080', account: of");
    recorded.is_repeated(PLAIN, &["node", "-e", &elsewhere])
}

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
