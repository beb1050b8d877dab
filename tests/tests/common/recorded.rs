//! Sessions that are on record, and their replay where there is nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sandbox::{Credential, Environment, Pod, Sandbox, node, python, services};
use serde_json::Value;

use super::reader::Reader;
use super::{eventually, journal, source};

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
pub const SERVE: &str = "--serve 127.0.0.1:443 --ca-out";
pub const PLAIN: &str = "--serve 127.0.0.1:8080 --plain";
/// Where a replay is while its driver meets something in between.
const BEHIND: &str = "127.0.0.2";
/// What a replay's certificate is known to drivers by.
const TRUST: [&str; 3] = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"];
/// What a replay answers as often as it is asked, as it was answered last.
const HOUSEKEEPING: [&str; 6] = [
    "/session/v1/login-request",
    "/session/token-request",
    "/session/heartbeat",
    "/session",
    "/telemetry/send",
    "/telemetry/send/sessionless",
];

/// Headers that say when an answer was sent, and in which pieces.
const OF_PASSAGE: [&str; 3] = ["content-length", "date", "transfer-encoding"];

/// A session that is on record.
pub struct Recorded {
    pub sandbox: Sandbox,
    pub reader: Reader,
    pod: Pod,
    pub session: String,
    /// What its client printed.
    pub said: String,
}

/// What came of a replay.
pub struct Replayed {
    pub said: String,
    pub summary: Value,
    pub log: String,
}

/// Status, headers and body of an answer.
type Answer = (u64, Vec<(String, String)>, Vec<u8>);

impl Recorded {
    /// Has a client do its work once.
    pub fn new(driver: Environment, client: impl FnOnce(&Pod) -> Result<String>) -> Result<Self> {
        Self::with(driver, Credential::default(), client)
    }

    pub fn with(
        driver: Environment,
        credential: Credential,
        client: impl FnOnce(&Pod) -> Result<String>,
    ) -> Result<Self> {
        let reader = Reader::new()?;
        let sandbox = reader.sandbox("")?.credential(credential).start()?;
        Self::in_sandbox(sandbox, reader, driver, client)
    }

    /// In the same sandbox, another session.
    pub fn next(self, driver: Environment, client: impl FnOnce(&Pod) -> Result<String>) -> Result<Self> {
        Self::in_sandbox(self.sandbox, self.reader, driver, client)
    }

    fn in_sandbox(
        mut sandbox: Sandbox,
        reader: Reader,
        driver: Environment,
        client: impl FnOnce(&Pod) -> Result<String>,
    ) -> Result<Self> {
        python::prepare(&[driver], &|_| {})?;
        let before = journal(&sandbox, "SELECT id FROM sessions")?;
        let pod = sandbox.pod(&format!("reports-{}", before.len()))?;
        let pod = pod.with("NODE_PATH", &node::modules()?.to_string_lossy());
        let pod = pod.with("SANDBOX_PYTHON", &driver.python()?.to_string_lossy());
        let said = client(&pod)?;
        let mut sessions = journal(&sandbox, "SELECT id FROM sessions")?;
        sessions.retain(|session| !before.contains(session));
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
        Ok(Self { sandbox, reader, pod, session, said })
    }

    /// Answers a client with it, where there is nothing else.
    pub fn replayed(&self, more: &str, client: &[&str]) -> Result<Replayed> {
        let folder = self.folder();
        let ca = self.replays_ca();
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
    pub fn is_repeated(&self, more: &str, client: &[&str]) -> Result<()> {
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

    /// The same, and what the driver gets is, byte for byte, what the trail says by its documented format alone.
    pub fn is_repeated_byte_for_byte(&self, client: &[&str]) -> Result<()> {
        let files = services::certificate_files(self.sandbox.state());
        let [trusted, certificate, key] =
            [files.authority, files.certificate, files.key].map(|path| path.display().to_string());
        let exchanges = self.folder().join("exchanges").display().to_string();
        let program = python::programs().join("tap.py").display().to_string();
        let (host, ca) = (&self.pod.environment()["SNOWFLAKE_HOST"], self.replays_ca());
        let tap =
            ["/usr/bin/python3", &program, "127.0.0.1", BEHIND, host, &ca, &certificate, &key, &exchanges];
        let trust = TRUST.map(|variable| format!("{variable}={trusted}"));
        let client: Vec<&str> = tap
            .into_iter()
            .chain(["env"])
            .chain(trust.iter().map(String::as_str))
            .chain(client.iter().copied())
            .collect();
        self.is_repeated(&format!("--serve {BEHIND}:443 --ca-out"), &client)?;

        let payloads = self.reader.read(&self.sandbox)?.into_iter();
        let payloads: Vec<Value> = payloads.filter(|payload| payload["session"] == *self.session).collect();
        let recorded =
            answers(payloads.iter().map(|it| (&it["request"], &it["answer"], &it["answer_body"])))?;
        let lines = fs::read_to_string(exchanges)?;
        let lines: Vec<Value> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let given = answers(lines.iter().map(|it| (it, it, &it["body"])))?;
        ensure!(lines.len() > 1, "{lines:?}");
        for asked in recorded.keys().chain(given.keys()) {
            let [recorded, given] =
                [&recorded, &given].map(|all| all.get(asked).map_or(&[][..], Vec::as_slice));
            let only = |these: &[Answer], those: &[Answer]| {
                let of =
                    |(status, headers, body): &Answer| format!("{status} {headers:?} {} bytes", body.len());
                these.iter().filter(|one| !those.contains(one)).map(of).collect::<Vec<_>>().join("\n")
            };
            let is_the_same = if HOUSEKEEPING.contains(&asked.1.as_str()) {
                recorded.is_empty() || given.iter().all(|answer| recorded.contains(answer))
            } else {
                recorded == given
            };
            let (here, there) = (only(given, recorded), only(recorded, given));
            ensure!(is_the_same, "{asked:?}: given\n{here}\nand recorded\n{there}");
        }
        Ok(())
    }

    fn folder(&self) -> PathBuf {
        PathBuf::from(&self.pod.environment()["HOME"])
    }

    fn replays_ca(&self) -> String {
        self.folder().join("replay-ca.pem").display().to_string()
    }

    pub fn python(&self) -> &str {
        &self.pod.environment()["SANDBOX_PYTHON"]
    }

    pub fn replay(&self, more: &[&str]) -> Result<String> {
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

/// What was answered to each method and path, in an order of its own.
fn answers<'a>(
    exchanges: impl Iterator<Item = (&'a Value, &'a Value, &'a Value)>,
) -> Result<BTreeMap<(String, String), Vec<Answer>>> {
    let mut all = BTreeMap::<_, Vec<Answer>>::new();
    for (request, answer, body) in exchanges {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let path = text(&request["target"]).split('?').next().unwrap_or_default().to_owned();
        let Some(status) = answer["status"].as_u64() else { continue };
        let headers: Vec<(String, String)> = serde_json::from_value(answer["headers"].clone())?;
        let mut headers: Vec<_> =
            headers.into_iter().filter(|(name, _)| !OF_PASSAGE.contains(&name.as_str())).collect();
        headers.sort();
        let body = without_tokens(BASE64.decode(text(body))?);
        all.entry((text(&request["method"]), path)).or_default().push((status, headers, body));
    }
    for answers in all.values_mut() {
        answers.sort();
    }
    Ok(all)
}

/// Tokens are new ones each time.
fn without_tokens(body: Vec<u8>) -> Vec<u8> {
    let (Ok(json), Ok(text)) = (serde_json::from_slice::<Value>(&body), str::from_utf8(&body)) else {
        return body;
    };
    let tokens = ["token", "sessionToken", "masterToken"].map(|name| json["data"][name].as_str());
    tokens.into_iter().flatten().fold(text.to_owned(), |text, token| text.replace(token, "")).into_bytes()
}

pub fn large(comment: &str) -> String {
    format!("select {comment} seq4() as n, 'row ' || seq4() as t from table(generator(rowcount => 60000))")
}

/// What a connector's client does: results inline and in parts, as Arrow and JSON, bound values, a description, a query that runs
/// by itself, an error, a refusal.
pub fn connectors_work() -> String {
    source(&format!(
        r#"
connection = connect()
cursor = connection.cursor()
def digest(cursor):
    rows = cursor.fetchall()
    return [len(rows), sum(int(row[0]) for row in rows), rows[-1]]
def by_itself(sql):
    query = cursor.execute_async(sql)["queryId"]
    while connection.is_still_running(connection.get_query_status_throw_if_error(query)):
        time.sleep(0.1)
    cursor.get_results_from_sfqid(query)
    return cursor.fetchall()
say(**attempt(lambda: cursor.execute("select 'answered ' || %s as t, 1.50 as n", ("it's",)).fetchall()))
say(**attempt(lambda: cursor.execute("select 'again'").fetchall()))
say(**attempt(lambda: cursor.execute("select 'again'").fetchall()))
say(**attempt(lambda: digest(cursor.execute({arrow:?}))))
cursor.execute("alter session set python_connector_query_result_format = 'JSON'")
say(**attempt(lambda: digest(cursor.execute({json:?}))))
say(**attempt(lambda: [column.name for column in cursor.describe("select id, name, credit from customers")]))
say(**attempt(lambda: by_itself("select system$wait(1)")))
say(**attempt(lambda: cursor.execute("select * from no_such_table").fetchall()))
say(**attempt(lambda: cursor.execute("drop table customers").fetchall()))
connection.close()"#,
        arrow = large("/* arrow */"),
        json = large("/* json */"),
    ))
}
