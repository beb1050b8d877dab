//! Endpoints: where Snowflake is, as the configuration says, as Snowflake says, and as workloads show. What workloads are
//! told may be a lie; it must do no harm.

mod common;

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use sandbox::{Sandbox, network, services};
use serde_json::Value;

use common::{ECHO, FOREIGN_SERVER, HANDSHAKE, client, eventually, journal, serve};

fn listed(sandbox: &Sandbox) -> Result<Vec<Value>> {
    let said = sandbox.snowfence(["endpoints", "list", "--format", "json"])?.into_stdout()?;
    said.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn of_network<'a>(endpoints: &'a [Value], network: &str) -> Option<&'a Value> {
    endpoints.iter().find(|endpoint| endpoint["network"] == network)
}

#[test]
fn a_name_that_a_workload_is_told_is_learnt_and_confirmed() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("agent")?;
    assert!(of_network(&listed(&sandbox)?, "10.77.1.8/32").is_none());
    // Only asked for, never connected to.
    client(&pod, "import socket\nsocket.getaddrinfo(os.environ['SANDBOX_ALIAS'], 443)")?;
    eventually("the address is confirmed", || {
        let endpoints = listed(&sandbox)?;
        Ok(of_network(&endpoints, "10.77.1.8/32").is_some_and(|endpoint| endpoint["class"] == "confirmed"))
    })?;
    let endpoints = listed(&sandbox)?;
    let learnt = of_network(&endpoints, "10.77.1.8/32").context("it is gone")?;
    assert_eq!(learnt["name"], services::ACCOUNT_ALIAS);
    let (since, until) =
        (learnt["learnt"].as_u64().context("learnt")?, learnt["expires"].as_u64().context("expires")?);
    assert!((since + 3500..since + 3700).contains(&until), "kept for an hour at least: {learnt}");
    let resolved = of_network(&endpoints, "10.77.1.2/32").context("the account's own address")?;
    assert_eq!((&resolved["class"], &resolved["name"]), (&"resolved".into(), &services::ACCOUNT_HOST.into()));
    assert!(resolved["expires"].is_null());

    // From now on it is an endpoint like any other: whatever the hello says, and without an agent.
    let nameless =
        format!("{HANDSHAKE}say(**attempt(lambda: handshake(address('SANDBOX_UPSTREAM_ALIAS'), None)))");
    assert!(client(&pod, &nameless)?[0]["error"].is_string());
    sandbox.kill_agent()?;
    let named =
        format!("{HANDSHAKE}say(**attempt(lambda: handshake(address('SANDBOX_UPSTREAM_ALIAS'), host)))");
    assert_eq!(client(&pod, &named)?[0]["error"], "ConnectionRefusedError");
    let endpoints = listed(&sandbox)?;
    assert!(of_network(&endpoints, "10.77.1.8/32").is_some(), "what is pinned is listed without an agent");
    Ok(())
}

#[test]
fn snowflake_is_asked_for_its_hosts() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let said = sandbox.snowfence(["endpoints", "sync", "--format", "json"])?.into_stdout()?;
    let account: Value = serde_json::from_str(said.lines().next().context("nothing is said")?)?;
    assert!(account.to_string().contains(services::ACCOUNT_ALIAS), "{account}");
    let alias_is_resolved = |sandbox: &Sandbox| -> Result<bool> {
        let endpoints = listed(sandbox)?;
        Ok(of_network(&endpoints, "10.77.1.8/32").is_some_and(|endpoint| endpoint["class"] == "resolved"))
    };
    eventually("the alias is resolved", || alias_is_resolved(&sandbox))?;
    let asked = journal(&sandbox, "SELECT sql FROM statements WHERE sql LIKE '%ALLOWLIST%'")?;
    assert!(!asked.is_empty(), "the agent's own statement is in the trail");
    // The next agent knows it too.
    sandbox.kill_agent()?;
    sandbox.start_agent()?;
    assert!(alias_is_resolved(&sandbox)?);
    Ok(())
}

/// DNS answers that a workload makes up, as if from a server: sent from port 53 to itself.
const LIAR: &str = r#"
import random, socket, struct
liar = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
liar.bind(("127.0.0.1", 53))
believer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
believer.bind(("127.0.0.1", 0))
def answer(name, address):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    return (struct.pack("!HHHHHH", 7, 0x8180, 1, 1, 0, 0) + labels + struct.pack("!HH", 1, 1)
            + struct.pack("!HHHIH", 0xC00C, 1, 1, 300, 4) + socket.inet_aton(address))
def tell(message):
    liar.sendto(message, believer.getsockname())
"#;

#[test]
fn a_lie_about_an_address_does_no_harm_to_whoever_is_there() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let folder = tempfile::tempdir()?;
    let _server = serve(&network::outside(sandbox.id()), FOREIGN_SERVER, Some(folder.path()))?;
    let liar = sandbox.root_pod("liar")?;
    client(&liar, &format!("{LIAR}tell(answer('evil.snowflakecomputing.com', '10.77.1.4'))"))?;
    eventually("the lie is learnt", || Ok(of_network(&listed(&sandbox)?, "10.77.1.4/32").is_some()))?;

    let victim = sandbox.pod("victim")?;
    let said = client(
        &victim,
        &format!(
            r#"{ECHO}
import urllib.request
say(**attempt(lambda: urllib.request.urlopen(os.environ["SANDBOX_CLICKHOUSE"] + "/ping", timeout=20).read().decode()))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
say(**attempt(lambda: udp.sendto(b"x", ("10.77.1.4", 443))))
"#
        ),
    )?;
    assert_eq!(said[0]["rows"], serde_json::json!([true, false, 100_000]), "{}", said[0]);
    assert_eq!(said[1]["rows"], "Ok.\n");
    assert_eq!(said[2]["rows"], 1, "UDP there is nobody's business");
    let endpoints = listed(&sandbox)?;
    assert_eq!(
        of_network(&endpoints, "10.77.1.4/32").context("it is gone")?["class"],
        "learnt",
        "never confirmed"
    );

    // While the agent is stuck, hearsay is nobody's reason to refuse.
    sandbox.signal_agent(Signal::STOP)?;
    sleep(Duration::from_millis(2500));
    let said = client(
        &victim,
        r#"
import socket
say(**attempt(lambda: socket.create_connection(("10.77.1.4", 443), 5).getpeername()[1]))"#,
    )?;
    sandbox.signal_agent(Signal::CONT)?;
    assert_eq!(said[0]["rows"], 443, "{}", said[0]);
    Ok(())
}

/// Is at an address of somebody else's, in its own network alone, with a certificate for any name.
const IMPOSTOR: &str = r#"
import ssl, subprocess, tempfile, threading
folder = tempfile.mkdtemp()
name = "evil.snowflakecomputing.com"
subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
    "-subj", "/CN=" + name, "-addext", "subjectAltName=DNS:" + name,
    "-keyout", folder + "/key.pem", "-out", folder + "/certificate.pem"], check=True, capture_output=True)
subprocess.run(["ip", "address", "add", "10.77.1.4/32", "dev", "lo"], check=True)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(folder + "/certificate.pem", folder + "/key.pem")
listener = socket.create_server(("10.77.1.4", 443))
def serve():
    while True:
        plain, _ = listener.accept()
        try:
            context.wrap_socket(plain, server_side=True).close()
        except OSError:
            plain.close()
threading.Thread(target=serve, daemon=True).start()
def ask(name):
    with socket.create_connection(("10.77.1.4", 443), 20) as plain:
        with ssl._create_unverified_context().wrap_socket(plain, server_hostname=name) as tls:
            return len(tls.getpeercert(True))
for name in ("www.example.com", None, "other.example"):
    say(**attempt(lambda: ask(name)))
"#;

#[test]
fn a_liar_with_a_certificate_of_its_own_convinces_nobody() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let liar = sandbox.root_pod("liar")?;
    client(&liar, &format!("{LIAR}tell(answer('evil.snowflakecomputing.com', '10.77.1.4'))"))?;
    eventually("the lie is learnt", || Ok(of_network(&listed(&sandbox)?, "10.77.1.4/32").is_some()))?;
    client(&liar, &format!("import socket\n{IMPOSTOR}"))?;
    let endpoints = listed(&sandbox)?;
    let learnt = of_network(&endpoints, "10.77.1.4/32").context("it is gone")?;
    assert_eq!(learnt["class"], "learnt", "{learnt}");
    // Nor has it spoilt the address for anybody else: ClickHouse is there.
    let said = client(
        &sandbox.pod("victim")?,
        r#"
import socket, urllib.request
say(**attempt(lambda: urllib.request.urlopen(os.environ["SANDBOX_CLICKHOUSE"] + "/ping", timeout=20).read().decode()))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
say(**attempt(lambda: udp.sendto(b"x", ("10.77.1.4", 443))))"#,
    )?;
    assert_eq!((&said[0]["rows"], &said[1]["rows"]), (&"Ok.\n".into(), &1.into()), "{said:?}");
    Ok(())
}

#[test]
fn a_flood_of_broken_answers_stops_nobody() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let (flooder, pod) = (sandbox.root_pod("flooder")?, sandbox.pod("agent")?);
    let flood = r#"
good = answer("pod-9.snowflakecomputing.com", "10.77.3.9")
source = random.Random(1)
def broken():
    kind = source.randrange(6)
    if kind == 0:
        return good[: source.randrange(len(good))]
    if kind == 1:
        # A name that points at itself, and two that point at each other.
        return good[:12] + b"\xc0\x0c" + good[-20:]
    if kind == 2:
        return good[:6] + b"\xff\xff" + good[8:]
    if kind == 3:
        return bytes(source.randrange(256) for _ in range(source.randrange(1400)))
    if kind == 4:
        return good[:2] + b"\x83\x80" + good[4:]
    spoilt = bytearray(good)
    for _ in range(4):
        spoilt[source.randrange(len(spoilt))] = source.randrange(256)
    return bytes(spoilt)
end = time.monotonic() + 8
sent = 0
while time.monotonic() < end:
    tell(broken())
    sent += 1
say(sent=sent)
"#;
    let python = flooder.environment()["SANDBOX_PYTHON"].clone();
    let mut process =
        flooder.start("flood", [python, "-c".into(), common::source(&format!("{LIAR}{flood}"))])?;
    let dial = format!("{HANDSHAKE}say(**attempt(lambda: handshake(address('SANDBOX_UPSTREAM'), host)))");
    let began = Instant::now();
    let mut served = 0;
    while process.runs()? {
        assert_eq!(client(&pod, &dial)?[0]["rows"]["internal"], true);
        served += 1;
        ensure!(began.elapsed() < Duration::from_mins(1), "the flood does not end");
    }
    assert!(served > 2, "{served} connections in the flood");
    let said: Value = serde_json::from_str(process.output()?.trim())?;
    assert!(said["sent"].as_u64().is_some_and(|sent| sent > 10_000), "{said}");
    let learnt = listed(&sandbox)?.into_iter().filter(|endpoint| endpoint["class"] != "resolved").count();
    assert!(learnt < 1000, "{learnt} addresses were learnt from nonsense");
    Ok(())
}
