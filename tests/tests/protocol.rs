//! The protocol's edges: what is malformed, oversized, unknown or somebody else's ends in a clean error and a record.

mod common;

use anyhow::Result;
use sandbox::services::Claims;
use sandbox::{Environment, Sandbox};

use common::{arrived, client, events, eventually, journal};

/// HTTP by hand, over TLS that trusts the internal CA.
const HTTP: &str = r#"
import gzip, http.client, socket, ssl, uuid
host = os.environ["SNOWFLAKE_HOST"]
trust = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])

def request(method, path, body=None, token=None, **headers):
    connection = http.client.HTTPSConnection(host, context=trust, timeout=60)
    if token:
        headers["Authorization"] = f'Snowflake Token="{token}"'
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    return dict(status=answer.status, body=json.loads(text))

def raw(text):
    with trust.wrap_socket(socket.create_connection((host, 443), 30), server_hostname=host) as stream:
        stream.sendall(text.replace("\n", "\r\n").encode())
        return stream.recv(4000).decode()

def login():
    return login_with(os.environ["SNOWFLAKE_TOKEN"])

def login_with(secret):
    data = dict(data=dict(AUTHENTICATOR="OAUTH", TOKEN=secret))
    return request("POST", "/session/v1/login-request", json.dumps(data))["body"]["data"]["token"]

def query(token, body, request_id=None, **headers):
    target = f"/queries/v1/query-request?requestId={request_id or uuid.uuid4()}"
    return request("POST", target, body, token, **headers)
"#;

#[test]
fn malformed_and_oversized_requests_end_in_a_clean_error_and_a_record() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("agent")?;
    let said = client(
        &pod,
        &format!(
            r#"{HTTP}
token = login()
say(**query(token, json.dumps(dict(sqlText="select 1"))))
say(**query(token, b'{{"sqlText": "select \xff"}}'))
say(**query(token, '{{"sqlText": "select 1", "SQLTEXT": "drop table customers"}}'))
say(**query(token, '{{"sqlText": "select 1", "sqlText": "drop table customers"}}'))
say(**query(token, "[" * 200000))
say(**query(token, gzip.compress(b" " * (200 << 20)), **{{"Content-Encoding": "gzip"}}))
say(**query(token, b"\x1f\x8b broken"))
say(**query(token, json.dumps(dict(sqlText="select 1")), **{{"Content-Encoding": "br"}}))
say(**query(token, json.dumps(dict(sqlText="select '" + "x" * (2 << 20) + "'"))))
say(**query("not-a-token", json.dumps(dict(sqlText="select 1"))))
say(**request("POST", "/api/files/secret", "{{}}", token))
say(**request("GET", "/queries/v1/query-request", None, token))
say(**request("POST", "/queries/v1/query-request", "{{}}", token, Host="other.snowflakecomputing.com"))
say(head=raw("nonsense\n\n"))
say(head=raw(f"POST /session/heartbeat HTTP/1.1\nHost: {{host}}\nContent-Length: 5\nTransfer-Encoding: chunked\n\n0\n\nGET /x"))
say(head=raw(f"GET /telemetry/send HTTP/1.1\nHost: {{host}}\nHost: evil.example\n\n"))
say(**query(token, json.dumps(dict(sqlText="select 2"))))
"#
        ),
    )?;
    assert_eq!(said[0]["body"]["success"], true, "{}", said[0]);
    for refused in &said[1..10] {
        assert_eq!(refused["status"], 200, "a status that drivers retry is never used: {refused}");
        assert_eq!(refused["body"]["success"], false, "{refused}");
        let code = refused["body"]["code"].as_str().unwrap_or_default();
        assert!(code.len() == 6 && code.bytes().all(|byte| byte.is_ascii_digit()), "{refused}");
        assert!(refused["body"]["message"].as_str().unwrap_or_default().contains("Snowfence"), "{refused}");
    }
    for unknown in &said[10..12] {
        assert_eq!(unknown["status"], 404, "{unknown}");
        let message = unknown["body"]["message"].as_str().unwrap_or_default();
        assert!(
            message.contains("POST /api/files/secret") || message.contains("GET /queries/v1"),
            "{message}"
        );
    }
    assert_eq!(said[12]["status"], 421, "{}", said[12]);
    for head in [&said[13], &said[15]] {
        let head = head["head"].as_str().unwrap_or_default();
        assert!(head.starts_with("HTTP/1.1 4"), "{head}");
    }
    // Two lengths: the chunked one counts, nothing after it does, and the connection ends.
    let two_lengths = said[14]["head"].as_str().unwrap_or_default();
    assert!(
        two_lengths.contains("connection: close") && two_lengths.matches("HTTP/1.1").count() == 1,
        "{two_lengths}"
    );
    assert_eq!(said[16]["body"]["success"], true, "the agent goes on: {}", said[16]);

    assert_eq!(arrived(&sandbox)?, ["select 1", "select 2"]);
    eventually("each kind is recorded", || {
        let events = events(&sandbox)?;
        let expected = [
            "host_mismatch",
            "malformed_request",
            "request_too_large",
            "session_refused",
            "unknown_operation",
        ];
        Ok(expected.iter().all(|kind| events.iter().any(|event| event == kind)))
    })?;
    let large =
        journal(&sandbox, "SELECT effect, verdict, policy, sql FROM trail WHERE length(sql) > 10000")?;
    assert_eq!((large[0]["effect"].as_str(), large[0]["verdict"].as_str()), (Some("opaque"), Some("deny")));
    assert_eq!(large[0]["policy"], "text-too-large");
    let recorded = large[0]["sql"].as_str().unwrap_or_default();
    assert!(
        recorded.len() < 70_000 && recorded.ends_with("[2097161 bytes in all]"),
        "{} bytes",
        recorded.len()
    );
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", sandbox.agent_pid().unwrap_or_default()))?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    let kilobytes: u64 =
        peak.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(u64::MAX);
    assert!(kilobytes < 512 * 1024, "a bomb of 200 MiB must not be unpacked: {peak}");
    assert!(!sandbox.agent_log()?.contains("panicked"));
    Ok(())
}

#[test]
fn a_request_comes_in_every_way_that_http_has_and_in_none_that_can_be_read_in_two() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("agent")?;
    let said = client(
        &pod,
        &format!(
            r#"{HTTP}
token = login()
def wire(*pieces):
    """What comes back to pieces that are sent one after the other, each after something has come."""
    with trust.wrap_socket(socket.create_connection((host, 443), 30), server_hostname=host) as stream:
        stream.settimeout(5)
        answers = []
        for piece in pieces:
            stream.sendall(piece.encode())
            try:
                answers.append(stream.recv(60000).decode())
            except TimeoutError:
                answers.append("")
        return answers

def head(number, *lines):
    start = f"POST /queries/v1/query-request?requestId={{uuid.uuid4()}} HTTP/1.1"
    return "\r\n".join([start, f"Host: {{host}}", f'Authorization: Snowflake Token="{{token}}"', *lines, "", ""])

def body(number):
    return json.dumps(dict(sqlText=f"select {{number}}"))

def chunked(text, *trailers):
    pieces = [text[:5], text[5:]]
    return "".join(f"{{len(piece):x}}\r\n{{piece}}\r\n" for piece in pieces) + "\r\n".join(["0", *trailers, "", ""])

say(answers=wire(head(1, "Transfer-Encoding: chunked") + chunked(body(1))))
say(answers=wire(head(2, "Transfer-Encoding: chunked", "Trailer: X-Late", "TE: trailers") + chunked(body(2), "X-Late: with the end")))
say(answers=wire(head(3, f"Content-Length: {{len(body(3))}}", "Expect: 100-continue"), body(3)))
say(answers=wire(head(4, f"Content-Length: {{len(body(4))}}", "X_Under_Score: kept out") + body(4)))
say(answers=wire(head(5, f"Content-Length: {{len(body(5))}}") + body(5) + head(6, f"Content-Length: {{len(body(6))}}") + body(6)))
for line in ("X-Folded: one\r\n two", "X-Space : before the colon", "Content-Length: +17", "Content-Length: 17, 18", "Transfer-Encoding: gzip",
             "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "X-Nul: a\0b"):
    say(line=line, answers=wire(head(99, line) + body(99)))
for text in (head(99, f"Content-Length: {{len(body(99))}}").replace("\r\n", "\n") + body(99), head(99, "Transfer-Encoding: chunked") + "5;\n" + body(99)):
    say(line="bare LF", answers=wire(text))
"#
        ),
    )?;
    let answer = |index: usize, of: usize| said[index]["answers"][of].as_str().unwrap_or_default();
    for index in [0, 1, 3, 4] {
        assert!(answer(index, 0).starts_with("HTTP/1.1 200"), "{}", said[index]);
        assert!(answer(index, 0).contains("\"success\":true"), "{}", said[index]);
    }
    assert!(answer(2, 0).starts_with("HTTP/1.1 100"), "{}", said[2]);
    assert!(answer(2, 1).contains("\"success\":true"), "{}", said[2]);
    for refused in &said[5..12] {
        let answer = refused["answers"][0].as_str().unwrap_or_default();
        assert!(answer.starts_with("HTTP/1.1 400"), "{refused}");
    }
    assert!(!answer(13, 0).contains("\"success\":true"), "{}", said[13]);
    // A line may end in a bare LF. Nobody behind reads it otherwise: what goes on is written anew.
    assert!(answer(12, 0).contains("\"success\":true"), "{}", said[12]);
    let numbers = [1, 2, 3, 4, 5, 6, 99].map(|number| format!("select {number}"));
    assert_eq!(arrived(&sandbox)?, numbers);
    let log = serde_json::to_string(&sandbox.upstream_log()?)?.to_lowercase();
    assert!(!log.contains("x-late") && !log.contains("under_score"), "what is not known does not go on");
    Ok(())
}

#[test]
fn what_was_not_decided_on_does_not_go_upstream() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("agent")?;
    client(
        &pod,
        &format!(
            r#"{HTTP}
token = login()
extra = {{"Content-Type": "application/json; charset=Shift_JIS", "X-Snowflake-Role": "ACCOUNTADMIN", "Cookie": "smuggled"}}
request("POST", "/queries/v1/query-request?requestId=1-2&roleName=smuggled", json.dumps(dict(
    sqlText="select 1", role="smuggled", dataframeAst="smuggled")), token, **extra)
request("POST", "/session/heartbeat?token=smuggled", json.dumps(dict(sqlText="smuggled")), token, **extra)
"#
        ),
    )?;
    let log = serde_json::to_string(&sandbox.upstream_log()?)?;
    assert!(log.contains("select 1") && log.contains("/session/heartbeat"));
    for trace in ["smuggled", "Shift_JIS", "ACCOUNTADMIN"] {
        assert!(!log.contains(trace), "{trace} went upstream");
    }
    Ok(())
}

#[test]
fn a_workload_with_too_many_connections_keeps_nobody_else_out() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let (greedy, modest) = (sandbox.pod("greedy")?, sandbox.pod("modest")?);
    let said = client(
        &greedy,
        &format!(
            r#"{HTTP}
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
held = [socket.create_connection((host, 443), 30) for number in range(600)]
def is_refused(connection):
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
# As long as none of them has said anything, only those that are too many are closed.
until = time.monotonic() + 8
while (refused := sum(map(is_refused, held))) < 600 - 512 and time.monotonic() < until:
    time.sleep(0.1)
say(refused=refused)
"#
        ),
    )?;
    assert!(said[0]["refused"].as_u64().unwrap_or_default() >= 600 - 512, "{}", said[0]);
    let said = client(&modest, "say(**attempt(lambda: connect().cursor().execute('select 1').fetchall()))")?;
    assert_eq!(said[0]["rows"][0][0], 1, "{}", said[0]);
    Ok(())
}

#[test]
fn a_login_whose_client_does_not_wait_is_recorded_all_the_same() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("agent")?;
    let upstream = pid_of("upstream.py", sandbox.id())?;
    signal(upstream, "STOP")?;
    let said = client(
        &pod,
        &format!(
            r#"{HTTP}
def impatient():
    connection = http.client.HTTPSConnection(host, context=trust, timeout=1)
    data = dict(data=dict(AUTHENTICATOR="OAUTH", TOKEN=os.environ["SNOWFLAKE_TOKEN"]))
    connection.request("POST", "/session/v1/login-request", json.dumps(data))
    return connection.getresponse().status
say(**attempt(impatient))
"#
        ),
    );
    signal(upstream, "CONT")?;
    assert_eq!(said?[0]["error"], "TimeoutError");
    eventually(
        "the session is recorded",
        || Ok(journal(&sandbox, "SELECT subject FROM sessions")?.len() == 1),
    )
}

/// The process of a sandbox that runs a program.
fn pid_of(program: &str, sandbox: &str) -> Result<u32> {
    for process in std::fs::read_dir("/proc")?.flatten() {
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        let pid = process.file_name().to_string_lossy().parse();
        if let (true, Ok(pid)) = (command.contains(program) && command.contains(sandbox), pid) {
            return Ok(pid);
        }
    }
    anyhow::bail!("no process of sandbox {sandbox} runs {program}")
}

fn signal(pid: u32, name: &str) -> Result<()> {
    let status = std::process::Command::new("kill").args([format!("-{name}"), pid.to_string()]).status()?;
    anyhow::ensure!(status.success(), "kill -{name} {pid}");
    Ok(())
}

#[test]
fn sessions_share_a_connection_and_a_session_has_several() -> Result<()> {
    let mut sandbox =
        Sandbox::builder().policy(concat!(env!("CARGO_MANIFEST_DIR"), "/policies/no-drop.cedar")).start()?;
    let grace = sandbox.token(&Claims::analyst("grace"))?;
    let pod = sandbox.pod("gateway")?.with("GRACE", &grace);
    let said = client(
        &pod,
        &format!(
            r#"{HTTP}
connections = [http.client.HTTPSConnection(host, context=trust, timeout=60) for _ in range(2)]
tokens = [login_with(os.environ[variable]) for variable in ("SNOWFLAKE_TOKEN", "GRACE")]
def ask(connection, token, sql):
    headers = {{"Authorization": f'Snowflake Token="{{token}}"'}}
    connection.request("POST", f"/queries/v1/query-request?requestId={{uuid.uuid4()}}", json.dumps(dict(sqlText=sql)), headers)
    return json.loads(connection.getresponse().read())
for turn in range(2):
    for number, connection in enumerate(connections):
        for who, token in zip(("ada", "grace"), tokens):
            say(who=who, **ask(connection, token, f"select '{{who}} {{turn}} {{number}}'"))
    # Neither ends with the connection on which it began.
    connections[0].close()
"#
        ),
    )?;
    assert_eq!(said.len(), 8);
    for answer in &said {
        // Which is the expression itself.
        let column = answer["data"]["rowtype"][0]["name"].as_str().unwrap_or_default();
        assert!(column.contains(answer["who"].as_str().unwrap_or("nobody")), "{answer}");
    }
    let recorded = journal(&sandbox, "SELECT subject, sql FROM trail WHERE sql LIKE 'select ''%'")?;
    assert_eq!(recorded.len(), 8);
    for row in &recorded {
        let whose = if row["subject"] == "grace" { "grace" } else { "ada" };
        assert!(row["sql"].as_str().is_some_and(|sql| sql.contains(whose)), "{row}");
    }
    Ok(())
}

#[test]
fn a_query_belongs_to_who_ran_it() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let (owner, other) = (sandbox.pod("owner")?, sandbox.pod("other")?);
    let ran = client(
        &owner,
        &format!(
            r#"{HTTP}
token = login()
query_id = query(token, json.dumps(dict(sqlText="select 42")), request_id="4242-aaaa")["body"]["data"]["queryId"]
scan = f"select * from table(result_scan('{{query_id}}'))"
say(id=query_id, mine=request("GET", f"/queries/{{query_id}}/result", None, token),
    scanned=query(token, json.dumps(dict(sqlText=scan))))
"#
        ),
    )?;
    assert_eq!(ran[0]["mine"]["body"]["success"], true, "{}", ran[0]);
    assert_eq!(ran[0]["scanned"]["body"]["success"], true, "{}", ran[0]);
    let id = ran[0]["id"].as_str().unwrap_or_default();
    let said = client(
        &other,
        &format!(
            r#"{HTTP}
token = login()
say(**request("GET", "/queries/{id}/result", None, token))
say(**request("GET", "/monitoring/queries//{id}", None, token))
say(**request("POST", "/queries/{id}/abort-request", "{{}}", token))
say(**request("POST", "/queries/v1/abort-request", json.dumps(dict(requestId="4242-aaaa")), token))
for scanned in ("'{id}'", "?", "$other", "'{id}' || ''"):
    bound = {{"1": dict(type="TEXT", value="{id}")}} if scanned == "?" else None
    say(**query(token, json.dumps(dict(sqlText=f"select * from table(result_scan({{scanned}}))", bindings=bound))))
say(**query(token, json.dumps(dict(sqlText="execute immediate 'select * from table(result_scan(''{id}''))'"))))
"#
        ),
    )?;
    assert_eq!(said.len(), 9);
    for refused in &said {
        assert_eq!(refused["body"]["success"], false, "{refused}");
    }
    assert!(arrived(&sandbox)?.iter().filter(|sql| sql.contains("result_scan")).count() == 1);
    let paths = sandbox.upstream_log()?;
    let asked = paths.iter().filter(|line| line["path"].as_str().unwrap_or_default().contains(id)).count();
    assert_eq!(asked, 1, "only the owner's request reached Snowflake");
    Ok(())
}

#[test]
fn asynchronous_statements_and_several_at_once_work() -> Result<()> {
    for driver in [Environment::Connector5, Environment::Connector4] {
        let mut sandbox = Sandbox::builder().driver(driver).start()?;
        let pod = sandbox.pod("agent")?;
        let said = client(
            &pod,
            r#"
connection = connect()
cursor = connection.cursor()
def later():
    cursor.execute_async("select 40 + 2")
    query = cursor.sfqid
    while connection.is_still_running(connection.get_query_status(query)):
        time.sleep(0.1)
    cursor.get_results_from_sfqid(query)
    return cursor.fetchall()
say(**attempt(later))
def several():
    cursor.execute("select 1; select 2", num_statements=2)
    first = cursor.fetchall()
    cursor.nextset()
    return first + cursor.fetchall()
say(**attempt(several))
say(**attempt(lambda: cursor.execute("select 1; drop table customers", num_statements=2).fetchall()))
"#,
        )?;
        assert_eq!(said[0]["rows"][0][0], 42, "{driver:?}: {}", said[0]);
        assert_eq!(said[1]["rows"], serde_json::json!([[1], [2]]), "{driver:?}: {}", said[1]);
        assert_eq!(said[2]["errno"], 3001, "{driver:?}: {}", said[2]);
        eventually("every statement has its outcome", || {
            let open =
                journal(&sandbox, "SELECT sql FROM trail WHERE status NOT IN ('succeeded', 'refused')")?;
            Ok(open.is_empty())
        })?;
    }
    Ok(())
}
