//! Capture: whichever way a covered process goes to Snowflake, it ends at the proxy; other traffic is left alone.

mod common;

use anyhow::Result;
use sandbox::Sandbox;

use common::{arrived, client, events, eventually};

/// Shakes hands with `address` by the rules of nobody but itself, and says whose certificate it met.
const HANDSHAKE: &str = r#"
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

#[test]
fn every_known_address_of_snowflake_leads_to_the_proxy() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    for pod in [sandbox.pod("user")?, sandbox.root_pod("root")?] {
        let said = client(
            &pod,
            &format!(
                r#"{HANDSHAKE}
v4, v6 = address("SANDBOX_UPSTREAM"), address("SANDBOX_UPSTREAM6")
say(**attempt(lambda: handshake((host, 443), host)))
say(**attempt(lambda: handshake(v4, host)))
say(**attempt(lambda: handshake(v6, host, socket.AF_INET6)))
say(**attempt(lambda: handshake(("::ffff:" + v4[0], v4[1]), host, socket.AF_INET6)))
say(**attempt(lambda: handshake(v4, host.upper() + ".")))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
say(**attempt(lambda: udp.connect(v4)))
"#
            ),
        )?;
        for met in &said[..4] {
            assert_eq!(met["rows"]["internal"], true, "{met}");
        }
        assert_eq!(said[1]["rows"]["peer"][0], "10.77.1.2", "the client sees the peer that it asked for");
        assert!(said[4]["rows"]["internal"] == true || said[4]["error"].is_string(), "{}", said[4]);
        assert!(said[5]["error"].is_string(), "UDP to Snowflake is refused: {}", said[5]);
    }
    Ok(())
}

#[test]
fn fronting_and_what_is_not_tls_are_refused_and_recorded() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("agent")?;
    let said = client(
        &pod,
        &format!(
            r#"{HANDSHAKE}
v4 = address("SANDBOX_UPSTREAM")
say(**attempt(lambda: handshake(v4, "www.example.com")))
say(**attempt(lambda: handshake(v4, None)))
def plain(address, bytes):
    with socket.create_connection(address, 20) as stream:
        stream.sendall(bytes)
        return stream.recv(100)
say(**attempt(lambda: plain(v4, b"GET / HTTP/1.1\r\n\r\n").decode()))
say(**attempt(lambda: plain(("127.0.0.1", 15443), b"hello").decode()))
"#
        ),
    )?;
    assert!(said[0]["error"].is_string(), "a foreign name at Snowflake's address: {}", said[0]);
    assert!(said[1]["error"].is_string(), "no name at all: {}", said[1]);
    for refused in &said[2..] {
        assert!(refused["error"].is_string() || refused["rows"] == "", "{refused}");
    }
    eventually("the attempts are recorded", || {
        let events = events(&sandbox)?;
        Ok(["foreign_name", "no_flow", "not_tls"].iter().all(|kind| events.iter().any(|event| event == kind)))
    })?;
    assert!(arrived(&sandbox)?.is_empty());
    Ok(())
}

#[test]
fn other_traffic_is_not_touched() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("web")?;
    let said = client(
        &pod,
        r#"
import urllib.request
url = os.environ["SANDBOX_CLICKHOUSE"] + "/?query=SELECT+40%2B2"
say(**attempt(lambda: urllib.request.urlopen(url, timeout=20).read().decode()))
"#,
    )?;
    assert_eq!(said[0]["rows"], "42\n");
    Ok(())
}

#[test]
fn without_the_agent_snowflake_cannot_be_reached_until_it_is_detached() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("agent")?;
    let dial = format!(r#"{HANDSHAKE}say(**attempt(lambda: handshake(address("SANDBOX_UPSTREAM"), host)))"#);
    assert_eq!(client(&pod, &dial)?[0]["rows"]["internal"], true);

    sandbox.kill_agent()?;
    assert_eq!(client(&pod, &dial)?[0]["error"], "ConnectionRefusedError");

    // A new agent takes over what the old one left pinned.
    sandbox.start_agent()?;
    assert_eq!(client(&pod, &dial)?[0]["rows"]["internal"], true);

    let stopped = sandbox.stop_agent()?;
    assert!(stopped.success());
    assert_eq!(
        client(&pod, &dial)?[0]["error"],
        "ConnectionRefusedError",
        "an orderly stop does not open the way"
    );

    sandbox.snowfence(["detach"])?.into_stdout()?;
    assert_eq!(client(&pod, &dial)?[0]["rows"]["internal"], false, "only `detach` does");
    let again = sandbox.snowfence(["detach", "--format", "json"])?.into_stdout()?;
    assert!(again.contains("[]"), "a second time there is nothing to do: {again}");
    Ok(())
}

#[test]
fn a_second_agent_refuses_to_start() -> Result<()> {
    let sandbox = Sandbox::builder().start()?;
    let second = sandbox.snowfence(["run"])?;
    assert_eq!(second.status, 1);
    let last = second.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("another agent"), "{}", second.stderr);
    let detach = sandbox.snowfence(["detach"])?;
    assert_eq!(detach.status, 1, "nor can it be detached under a running agent: {}", detach.stderr);
    Ok(())
}
