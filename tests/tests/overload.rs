//! A workload that takes its whole share of the agent, and what each driver makes of having no more: it waits between its
//! tries, ends with an error of its own where there is no end to it, and nothing runs twice.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sandbox::process::Process;
use sandbox::{Environment, Pod, Sandbox, node, python};
use serde_json::{Value, json};

use common::{ADBC, NODE, RAW, client, eventually, journal, source};

const DEADLINE: Duration = Duration::from_mins(4);
/// How long a share is held for those who have the patience, and for those who have not.
const LONG: Duration = Duration::from_secs(12);
const LONGER: Duration = Duration::from_secs(45);

#[derive(Clone, Copy, PartialEq)]
enum Driver {
    Connector5,
    Connector4,
    Adbc,
    Node,
}

/// When a driver connects: before the share is used up, or only then.
#[derive(Clone, Copy, PartialEq)]
enum Connects {
    Before,
    Meanwhile,
}

/// Connections that have shaken hands and say nothing more: as many as there may be.
const CONNECTIONS: &str = r#"
import resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
held = []
def one():
    held.append(trust.wrap_socket(socket.create_connection((host, 443), 30), server_hostname=host))
while "rows" in attempt(one):
    pass
"#;

/// Requests whose bodies lack their last byte: two of 31 MiB, and smaller and smaller ones until there is no room for a
/// kilobyte. They are waited for as long as a body may take.
const MEMORY: &str = r#"
import socket
token, held = login(), []
def one(size):
    connection = trust.wrap_socket(socket.create_connection((host, 443), 30), server_hostname=host)
    head = f'POST /queries/v1/query-request?requestId={uuid.uuid4()} HTTP/1.1\r\nHost: {host}\r\n'
    head += f'Authorization: Snowflake Token="{token}"\r\nContent-Length: {size + 1}\r\n\r\n'
    held.append(connection)
    connection.sendall(head.encode() + b" " * size)
    time.sleep(0.05)
for size in (31 << 20, 31 << 20, *(1 << 10 + power for power in reversed(range(11)) for _ in "12")):
    # Who is refused need not listen to the end.
    attempt(lambda: one(size))
time.sleep(1)
"#;

/// Files that lack their last byte, as many as may be on their way at a time.
const UPLOADS: &str = r#"
import socket
answer = json.loads(ask(login(), "put file:///tmp/held.bin @~/held auto_compress=false"))
bearer, held = answer["data"]["stageInfo"]["creds"]["GCS_ACCESS_TOKEN"], []
for number in range(4):
    connection = trust.wrap_socket(socket.create_connection((host, 443), 30), server_hostname=host)
    head = f'PUT /snowfence/files/held{number}.bin HTTP/1.1\r\nHost: {host}\r\n'
    head += f'Authorization: Bearer {bearer}\r\nContent-Length: 2\r\n\r\nx'
    held.append(connection)
    connection.sendall(head.encode())
time.sleep(1)
"#;

/// Sessions that stay open, until there may be no more. Their tokens are in a file.
const SESSIONS: &str = r#"
from concurrent.futures import ThreadPoolExecutor
body = json.dumps(dict(data=dict(ACCOUNT_NAME="acme", LOGIN_NAME="x", AUTHENTICATOR="OAUTH", TOKEN=os.environ["SNOWFLAKE_TOKEN"])))
def open_all(_):
    connection, tokens = http.client.HTTPSConnection(host, context=trust, timeout=60), []
    while True:
        connection.request("POST", "/session/v1/login-request", body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        if not answer["success"]:
            return tokens
        tokens.append(answer["data"]["token"])
with ThreadPoolExecutor(4) as pool:
    tokens = sum(pool.map(open_all, range(4)), [])
json.dump(tokens, open(os.environ["HOME"] + "/tokens", "w"))
"#;

#[test]
fn connections_with_connector_5() -> Result<()> {
    has_no_connections(Driver::Connector5)
}

#[test]
fn connections_with_connector_4() -> Result<()> {
    has_no_connections(Driver::Connector4)
}

#[test]
fn connections_with_adbc() -> Result<()> {
    has_no_connections(Driver::Adbc)
}

#[test]
fn connections_with_the_node_sdk() -> Result<()> {
    has_no_connections(Driver::Node)
}

#[test]
fn memory_with_connector_5() -> Result<()> {
    has_no_memory(Driver::Connector5)
}

#[test]
fn memory_with_connector_4() -> Result<()> {
    has_no_memory(Driver::Connector4)
}

#[test]
fn memory_with_adbc() -> Result<()> {
    has_no_memory(Driver::Adbc)
}

#[test]
fn memory_with_the_node_sdk() -> Result<()> {
    has_no_memory(Driver::Node)
}

#[test]
fn uploads_with_connector_5() -> Result<()> {
    uploads_when_it_may(Driver::Connector5)
}

#[test]
fn uploads_with_connector_4() -> Result<()> {
    uploads_when_it_may(Driver::Connector4)
}

#[test]
fn uploads_with_adbc() -> Result<()> {
    uploads_when_it_may(Driver::Adbc)
}

#[test]
fn uploads_with_the_node_sdk() -> Result<()> {
    uploads_when_it_may(Driver::Node)
}

#[test]
fn sessions_with_every_driver() -> Result<()> {
    const TOO_MANY: &str = "there are too many sessions open";
    let drivers = [Driver::Connector5, Driver::Connector4, Driver::Adbc, Driver::Node];
    python::prepare(&drivers.map(Driver::environment), &|_| {})?;
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("reports")?;
    let logins = |sandbox: &Sandbox| -> Result<usize> {
        let log = sandbox.upstream_log()?;
        Ok(log.iter().filter(|line| line["path"] == "/session/v1/login-request").count())
    };
    hold(&pod, SESSIONS)?.kill()?;
    let (opened, began) = (logins(&sandbox)?, count(&sandbox, "login_refused", TOO_MANY)?);
    for (number, driver) in drivers.into_iter().enumerate() {
        let mut program = driver.start(&pod, Connects::Meanwhile, &["select 1"])?;
        go(&pod)?;
        let said = said(&mut program)?;
        let message = said[0]["message"].as_str().unwrap_or_default();
        assert!(message.contains("Snowfence refused this login") && message.contains(TOO_MANY), "{said:?}");
        assert_eq!(count(&sandbox, "login_refused", TOO_MANY)?, began + number + 1, "it asks once: {said:?}");
    }
    assert_eq!(logins(&sandbox)?, opened, "Snowflake is not asked for sessions that nobody will have");
    client(
        &pod,
        &format!(
            r#"{RAW}
for token in json.load(open(os.environ["HOME"] + "/tokens"))[:10]:
    send("POST", "/session?delete=true", {{"Authorization": f'Snowflake Token="{{token}}"'}}, "{{}}")"#
        ),
    )?;
    for driver in drivers {
        let said = said(&mut driver.start(&pod, Connects::Meanwhile, &["select 1"])?)?;
        assert!(said[0]["rows"].is_array(), "{said:?}");
    }
    Ok(())
}

impl Driver {
    fn environment(self) -> Environment {
        match self {
            Self::Connector4 => Environment::Connector4,
            Self::Adbc => Environment::Adbc,
            Self::Connector5 | Self::Node => Environment::Connector5,
        }
    }

    /// A program that says that it is ready, goes on when it may, and says how each statement ended.
    fn start(self, pod: &Pod, connects: Connects, statements: &[&str]) -> Result<Process> {
        let statements = json!(statements).to_string();
        let (waits_first, waits_then) = match connects {
            Connects::Before => ("", "waits()"),
            Connects::Meanwhile => ("waits()", ""),
        };
        let mut process = if self == Self::Node {
            let [first, then] = [waits_first, waits_then].map(|waits| waits.replace("waits", "await waits"));
            let program = format!(
                "{NODE}
const waits = async () => {{
  say({{ ready: true }});
  while (!fs.existsSync(`${{of.HOME}}/go`)) await new Promise((done) => setTimeout(done, 50));
}};
(async () => {{
  {first}
  try {{ await connect(); }}
  catch (error) {{ say({{ error: error.name, message: error.message }}); process.exit(); }}
  {then}
  for (const sql of {statements}) say(await attempt(sql));
  process.exit();
}})();"
            );
            let pod = pod.clone().with("NODE_PATH", &node::modules()?.to_string_lossy());
            pod.start("driver", ["node", "-e", &program])?
        } else {
            let own = match self {
                Self::Adbc => ADBC.replace("**options})", "**options}, autocommit=True)"),
                _ => String::new(),
            };
            let program = source(&format!(
                r#"{own}
def waits():
    say(ready=True)
    while not os.path.exists(os.environ["HOME"] + "/go"):
        time.sleep(0.05)
def run(sql):
    cursor.execute(sql)
    return cursor.fetchall()
{waits_first}
connected = attempt(lambda: globals().update(connection=connect()))
if "error" in connected:
    say(**connected)
    os._exit(0)
cursor = connection.cursor()
{waits_then}
for sql in json.loads('''{statements}'''):
    say(**attempt(lambda: run(sql)))
# Nothing is left to be done.
os._exit(0)
"#
            ));
            let python = self.environment().python()?;
            pod.start("driver", [&*python.to_string_lossy(), "-c", &program])?
        };
        process.wait_for_ready_line(Duration::from_mins(1))?;
        Ok(process)
    }
}

/// Connector 5.x gives up after six tries in some seconds; the others go on.
fn has_no_connections(driver: Driver) -> Result<()> {
    let patience = ["Connection reset by peer"];
    is_refused_for_a_while(driver, CONNECTIONS, Connects::Meanwhile, "too many connections", &patience)
}

fn has_no_memory(driver: Driver) -> Result<()> {
    let patience = ["max attempts", "503"];
    is_refused_for_a_while(driver, MEMORY, Connects::Before, "too many large requests", &patience)
}

/// Tries a statement while the share is used up: first until it was refused twice, then for longer.
fn is_refused_for_a_while(
    driver: Driver,
    holder: &str,
    connects: Connects,
    detail: &str,
    patience: &[&str],
) -> Result<()> {
    let mut sandbox = Sandbox::builder().driver(driver.environment()).start()?;
    let pod = sandbox.pod("reports")?;
    client(&pod, &format!("{RAW}\nask(login(), 'create table analytics.public.written (a int)')"))?;
    for is_long in [false, true] {
        let insert = format!("insert into written values (1) /* {is_long} */");
        let mut program = driver.start(&pod, connects, &[&insert, "select 1"])?;
        let mut held = hold(&pod, holder)?;
        let refused = || count(&sandbox, "share_used_up", detail);
        let before = refused()?;
        go(&pod)?;
        eventually("it is refused, and tries again", || Ok(refused()? >= before + 2))?;
        let began = Instant::now();
        let most = if driver == Driver::Connector5 { LONGER } else { LONG };
        while is_long && began.elapsed() < most && program.runs()? && program.output()?.lines().count() < 2 {
            sleep(Duration::from_millis(200));
        }
        let (times, seconds) = (refused()? - before, began.elapsed().as_secs());
        held.kill()?;
        let said = said(&mut program)?;
        // At the very most ten at first, and then two a second.
        ensure!(times as u64 <= 10 + 2 * seconds, "refused {times} times in {seconds} s: {said:?}");
        let gave_up = said[0]["error"].is_string();
        ensure!(!gave_up || (is_long && driver == Driver::Connector5), "it gave up: {said:?}");
        let log = sandbox.upstream_log()?;
        let ran = log.iter().filter(|line| line["sql"] == *insert).count();
        let recorded =
            journal(&sandbox, &format!("SELECT verdict FROM statements WHERE sql LIKE '%* {is_long} *%'"))?;
        assert_eq!((ran, recorded.len()), if gave_up { (0, 0) } else { (1, 1) }, "{said:?}");
        let message = said[0]["message"].as_str().unwrap_or_default();
        ensure!(!gave_up || patience.iter().all(|words| message.contains(words)), "{said:?}");
        if connects == Connects::Before {
            assert!(said[1]["rows"].is_array(), "the session is usable: {said:?}");
        }
        fs::remove_file(gate(&pod))?;
    }
    Ok(())
}

/// A file waits for its turn for half a minute; then the driver is told to try again, and does.
fn uploads_when_it_may(driver: Driver) -> Result<()> {
    let mut sandbox = Sandbox::builder().driver(driver.environment()).start()?;
    let pod = sandbox.pod("reports")?;
    let file = Path::new(&pod.environment()["HOME"]).join("data.bin");
    fs::write(&file, "a file")?;
    let put = format!("put file://{} @~/up auto_compress=false", file.display());
    let mut program = driver.start(&pod, Connects::Before, &[&put, "select 1"])?;
    let mut held = hold(&pod, UPLOADS)?;
    go(&pod)?;
    let refused = || count(&sandbox, "transfer_failed", "too many files at once");
    eventually("its turn does not come", || Ok(refused()? > 0))?;
    assert_eq!(count(&sandbox, "file_uploaded", "data.bin")?, 0);
    held.kill()?;
    let said = said(&mut program)?;
    assert!(said.len() == 2 && said.iter().all(|one| one["error"].is_null()), "{said:?}");
    // Of which the client has made whole blocks.
    assert_eq!((refused()?, count(&sandbox, "file_uploaded", "data.bin: 16 bytes")?), (1, 1), "{said:?}");
    Ok(())
}

/// What holds the share until it is killed.
fn hold(pod: &Pod, program: &str) -> Result<Process> {
    let program = source(&format!("{RAW}\n{program}\nsay(ready=True)\ntime.sleep(600)"));
    let mut holder = pod.start("holder", [&pod.environment()["SANDBOX_PYTHON"], "-c", &program])?;
    holder.wait_for_ready_line(Duration::from_mins(2))?;
    Ok(holder)
}

/// The file that lets a program go on.
fn gate(pod: &Pod) -> PathBuf {
    Path::new(&pod.environment()["HOME"]).join("go")
}

fn go(pod: &Pod) -> Result<()> {
    Ok(fs::write(gate(pod), "")?)
}

/// What a driver said, when it has ended.
fn said(driver: &mut Process) -> Result<Vec<Value>> {
    let ended = driver.wait(DEADLINE)?;
    let output = driver.output()?;
    ensure!(ended.is_some_and(|ended| ended.success()), "{output}\n{}", driver.last_words());
    let lines = output.lines().skip(1);
    lines.map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// How many events of a kind say so.
fn count(sandbox: &Sandbox, kind: &str, detail: &str) -> Result<usize> {
    let of_kind = format!("SELECT id FROM events WHERE kind = '{kind}' AND detail LIKE '%{detail}%'");
    Ok(journal(sandbox, &of_kind)?.len())
}
