//! What the scenarios share: how a client connects, and waiting for what comes a little later.

#![allow(dead_code, reason = "each scenario file uses its own part of this")]

pub mod curl;
pub mod objects;
pub mod reader;
pub mod recorded;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use sandbox::process::Process;
use sandbox::services::Service;
use sandbox::{Environment, Pod, Sandbox, network};
use serde_json::Value;

/// Python that every client begins with. `connect` is what the connector's manual shows; `attempt` prints how a
/// statement ended.
const PRELUDE: &str = r#"
import atexit, json, os, sys, time, warnings
warnings.simplefilter("ignore")

# The last to run at the end, after the connector's own: threads of its core have been seen to fall over what comes then.
@atexit.register
def leave():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if hasattr(sys, "last_value") else 0)

def connect(**more):
    import snowflake.connector
    options = dict(
        account=os.environ["SNOWFLAKE_ACCOUNT"], user=os.environ["SNOWFLAKE_USER"],
        authenticator="oauth", token=os.environ["SNOWFLAKE_TOKEN"],
        database=os.environ["SNOWFLAKE_DATABASE"], schema=os.environ["SNOWFLAKE_SCHEMA"],
    )
    options.update(more)
    return snowflake.connector.connect(**options)

def attempt(action):
    try:
        return dict(rows=action())
    except Exception as error:
        return dict(error=type(error).__name__, errno=getattr(error, "errno", None),
                    sqlstate=getattr(error, "sqlstate", None), message=str(error))

def say(**facts):
    print(json.dumps(facts, default=str), flush=True)
"#;

/// Shakes hands with `address` by the rules of nobody but itself, and says whose certificate it met.
pub const HANDSHAKE: &str = r#"
import socket, ssl
def handshake(address, name, family=socket.AF_INET):
    context = ssl._create_unverified_context()
    with socket.socket(family, socket.SOCK_STREAM) as plain:
        plain.settimeout(20)
        plain.connect(address)
        peer = plain.getpeername()[:2]
        with context.wrap_socket(plain, server_hostname=name) as tls:
            der = tls.getpeercert(True)
    return dict(peer=peer, internal=b"Snowfence internal CA" in der)

def address(variable):
    host, port = os.environ[variable].rsplit(":", 1)
    return host.strip("[]"), int(port)
host = os.environ["SNOWFLAKE_HOST"]
"#;

/// Speaks the protocol by itself. `ask` sends a statement, `fetch` asks for a part.
pub const RAW: &str = r#"
import gzip, http.client, ssl, urllib.parse, urllib.request, uuid
host = os.environ["SNOWFLAKE_HOST"]
trust = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])

def send(method, target, headers, body=None):
    connection = http.client.HTTPSConnection(host, context=trust, timeout=60)
    connection.request(method, target, body, headers)
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()

def post(path, data, token):
    headers = {"Content-Type": "application/json", "Authorization": f'Snowflake Token="{token}"'}
    target = f"{path}?requestId={uuid.uuid4()}"
    return send("POST", target, headers, json.dumps(data))[2].decode()

def login():
    data = dict(ACCOUNT_NAME="acme", LOGIN_NAME="x", AUTHENTICATOR="OAUTH", TOKEN=os.environ["SNOWFLAKE_TOKEN"])
    return json.loads(post("/session/v1/login-request", dict(data=data), "None"))["data"]["token"]

def ask(token, sql):
    return post("/queries/v1/query-request", dict(sqlText=sql, asyncExec=False, sequenceId=1), token)

def fetch(url, headers):
    status, headers, body = send("GET", urllib.parse.urlsplit(url).path, headers)
    if headers.get("Content-Encoding", headers.get("content-encoding")) == "gzip":
        body = gzip.decompress(body)
    return status, body
"#;

/// What the SDK's manual shows, with promises in the place of callbacks. `say` prints a JSON value a line.
pub const NODE: &str = r"
const [snowflake, crypto, fs] = ['snowflake-sdk', 'crypto', 'fs'].map(require);
snowflake.configure({ logLevel: 'OFF', additionalLogToConsole: false });
const of = process.env;
const connection = snowflake.createConnection({
  account: of.SNOWFLAKE_ACCOUNT, username: of.SNOWFLAKE_USER, authenticator: 'OAUTH', token: of.SNOWFLAKE_TOKEN,
  database: of.SNOWFLAKE_DATABASE, schema: of.SNOWFLAKE_SCHEMA,
});
const connect = () => new Promise((done, fail) => connection.connect((error) => (error ? fail(error) : done())));
const close = () => new Promise((done) => connection.destroy(done));
const run = (sqlText, binds) => new Promise((done, fail) => connection.execute({
  sqlText, binds, complete: (error, statement, rows) => (error ? fail(error) : done(rows)),
}));
const say = (value) => console.log(JSON.stringify(value));
const attempt = async (sql, binds) => {
  try { return { rows: await run(sql, binds) }; }
  catch (error) { return { error: error.name, code: error.code, state: error.sqlState, message: error.message }; }
};
";

/// What ADBC's manual shows, up to the connection: `connect`.
pub const ADBC: &str = r#"
import json, os
import adbc_driver_snowflake.dbapi as snowflake
def connect():
    of = os.environ
    options = {
        "account": of["SNOWFLAKE_ACCOUNT"], "auth_type": "auth_oauth", "client_option.auth_token": of["SNOWFLAKE_TOKEN"],
        "db": of["SNOWFLAKE_DATABASE"], "schema": of["SNOWFLAKE_SCHEMA"],
    }
    options = {f"adbc.snowflake.sql.{name}": value for name, value in options.items()}
    return snowflake.connect(db_kwargs={"username": of["SNOWFLAKE_USER"], **options})
"#;

/// Runs Python after the prelude; what it says comes back as one JSON value a line.
pub fn client(pod: &Pod, source: &str) -> Result<Vec<Value>> {
    let output = pod.python(&format!("{PRELUDE}\n{source}"))?.into_stdout()?;
    output.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Runs JavaScript between connecting and closing; what it says comes back as one JSON value a line.
pub fn by_node(pod: &Pod, source: &str) -> Result<Vec<Value>> {
    let output = pod.run(["node", "-e", &node_program(source)])?.into_stdout()?;
    output.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// The program that [`by_node`] runs.
pub fn node_program(source: &str) -> String {
    format!("{NODE}\n(async () => {{ await connect();\n{source}\nawait close(); }})();")
}

/// The same source as [`client`] runs, for a program that goes on by itself.
pub fn source(source: &str) -> String {
    format!("{PRELUDE}\n{source}")
}

/// A process that does not outlive the test.
pub struct Ended(pub Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs Python in a network namespace, with the machine's own interpreter and files; returns when it says that it is ready.
pub fn serve(namespace: &Path, source: &str, folder: Option<&Path>) -> Result<Ended> {
    let namespace = format!("--net={}", namespace.display());
    ready(Command::new("nsenter").args([&namespace, "/usr/bin/python3", "-c", source]).args(folder))
}

/// Starts a server; returns when it says that it is ready.
pub fn ready(command: &mut Command) -> Result<Ended> {
    let mut server = Ended(command.stdout(Stdio::piped()).spawn()?);
    let mut ready = [0; 5];
    server.0.stdout.as_mut().context("a process whose output is read")?.read_exact(&mut ready)?;
    Ok(server)
}

/// Waits for the end of a program in a pod, and does what it asks for in between, by a file `please` in its home.
pub fn attend(sandbox: &mut Sandbox, pod: &Pod, process: &mut Process, deadline: Duration) -> Result<()> {
    let wish = Path::new(&pod.environment()["HOME"]).join("please");
    let began = Instant::now();
    while process.runs()? {
        ensure!(began.elapsed() < deadline, "it does not end:\n{}", process.output()?);
        match fs::read_to_string(&wish).as_deref() {
            Ok("expire") => sandbox.signal_service(Service::Upstream, Signal::USR1)?,
            Ok("restart") => {
                sandbox.kill_agent()?;
                sandbox.start_agent()?;
            }
            // It is being written.
            Ok("") | Err(_) => {
                sleep(Duration::from_millis(50));
                continue;
            }
            Ok(other) => bail!("nobody knows what {other} is"),
        }
        fs::remove_file(&wish)?;
    }
    let ended = process.wait(Duration::ZERO)?.context("it has ended")?;
    ensure!(ended.success(), "it ended with {ended}:\n{}", process.last_words());
    Ok(())
}

/// A server that is not Snowflake's: it echoes over TLS. Its files go into the folder that it is given.
pub const FOREIGN_SERVER: &str = r#"
import socket, ssl, subprocess, sys, threading
folder = sys.argv[1]
subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=www.example.com",
                "-addext", "subjectAltName=DNS:www.example.com", "-days", "2",
                "-keyout", folder + "/key.pem", "-out", folder + "/certificate.pem"], check=True, capture_output=True)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(folder + "/certificate.pem", folder + "/key.pem")
def serve(plain):
    try:
        with context.wrap_socket(plain, server_side=True) as tls:
            while received := tls.recv(65536):
                tls.sendall(received)
    except OSError:
        pass
listener = socket.create_server(("10.77.1.4", 443))
print("ready", flush=True)
while True:
    plain, _ = listener.accept()
    threading.Thread(target=serve, args=(plain,), daemon=True).start()
"#;

/// Its client, which says whether its TLS came through untouched, and how much came back.
pub const ECHO: &str = r#"
import socket, ssl
def echo():
    context = ssl._create_unverified_context()
    with socket.create_connection(("10.77.1.4", 443), 20) as plain:
        with context.wrap_socket(plain, server_hostname="www.example.com") as tls:
            certificate = tls.getpeercert(True)
            tls.sendall(b"x" * 100_000)
            received = 0
            while received < 100_000:
                received += len(tls.recv(65536))
    return [b"www.example.com" in certificate, b"Snowfence" in certificate, received]
say(**attempt(echo))
"#;

/// Waits until something holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !holds()? {
        ensure!(began.elapsed() < Duration::from_mins(1), "{what}: not within a minute");
        sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// The requests among what arrived that are meant, of which none is from anybody but the agent.
pub fn requests_of_agent(sandbox: &Sandbox, is_meant: impl Fn(&Value) -> bool) -> Result<Vec<Value>> {
    let arrived = sandbox.upstream_log()?.into_iter();
    let requests: Vec<Value> = arrived.filter(|line| line["event"] == "request" && is_meant(line)).collect();
    for request in &requests {
        let peer = request["peer"].as_str().context("a peer")?;
        ensure!(peer.starts_with(&format!("{}:", network::NODE)), "{peer} is not the agent");
    }
    Ok(requests)
}

/// The statements that arrived at Snowflake, in their order.
pub fn arrived(sandbox: &Sandbox) -> Result<Vec<String>> {
    let log = sandbox.upstream_log()?;
    Ok(log.iter().filter_map(|line| line["sql"].as_str().map(ToOwned::to_owned)).collect())
}

/// Rows of a question to the journal.
pub fn journal(sandbox: &Sandbox, sql: &str) -> Result<Vec<Value>> {
    let output = sandbox.snowfence(["audit", "query", "--format", "json", sql])?.into_stdout()?;
    output.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// A metric of the agent, which listens for that at 127.0.0.1:9464.
pub fn metric(sandbox: &Sandbox, name: &str) -> Result<String> {
    let metrics = network::inside(&network::node(sandbox.id()), || {
        Ok(ureq::get("http://127.0.0.1:9464/metrics").call()?.body_mut().read_to_string()?)
    })?;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.with_context(|| format!("{name} is not in\n{metrics}"))?.to_owned())
}

/// The kinds of the events in the journal, each once.
pub fn events(sandbox: &Sandbox) -> Result<Vec<String>> {
    let rows = journal(sandbox, "SELECT DISTINCT kind FROM events ORDER BY kind")?;
    Ok(rows.iter().filter_map(|row| row["kind"].as_str().map(ToOwned::to_owned)).collect())
}

/// Waits until ClickHouse has what the journal has, and checks that it has nothing twice.
pub fn delivered_once(sandbox: &Sandbox) -> Result<()> {
    for table in ["sessions", "statements", "approvals", "outcomes", "events"] {
        let seqs = |rows: Vec<Value>| -> Vec<i64> {
            rows.iter()
                .filter_map(|row| row["seq"].as_i64().or_else(|| row["seq"].as_str()?.parse().ok()))
                .collect()
        };
        let question = format!("SELECT seq FROM {table} ORDER BY seq");
        eventually(&format!("ClickHouse has the {table}"), || {
            let there = sandbox.clickhouse_rows(&format!("SELECT seq FROM snowfence.{table} ORDER BY seq"));
            let here = seqs(journal(sandbox, &question)?);
            Ok(there.is_ok_and(|there| seqs(there) == here))
        })?;
    }
    Ok(())
}

/// Checks each event of a file by the published schema of OCSF.
pub fn check_ocsf(path: &Path) -> Result<()> {
    let mut command = Command::new(Environment::Ocsf.python()?);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/python/ocsf.py")).arg(path);
    let output = command.output().context("start the checker")?;
    ensure!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    Ok(())
}
