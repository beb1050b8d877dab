//! Capture: whichever way a covered process goes to Snowflake, it ends at the proxy; other traffic is left alone.

mod common;

use std::process::Command;

use anyhow::{Context, Result};
use sandbox::{Sandbox, network};

use common::{ECHO, FOREIGN_SERVER, HANDSHAKE, arrived, client, events, eventually, journal, serve};

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
fn a_shared_address_is_spliced_with_its_tls_intact() -> Result<()> {
    let mut sandbox = Sandbox::builder().set("capture", "networks", vec!["10.77.1.4/32"]).start()?;
    let folder = tempfile::tempdir()?;
    let _server = serve(&network::outside(sandbox.id()), FOREIGN_SERVER, Some(folder.path()))?;
    let pod = sandbox.pod("web")?;
    let said = client(&pod, ECHO)?;
    assert_eq!(said[0]["rows"], serde_json::json!([true, false, 100_000]), "{}", said[0]);
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
fn everything_is_covered_from_the_first_start_on() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let coverage = |sandbox: &Sandbox| -> Result<serde_json::Value> {
        let said = sandbox.snowfence(["doctor", "--format", "json"])?.into_stdout()?;
        Ok(serde_json::from_str::<serde_json::Value>(&said)?["agent"]["coverage"].clone())
    };
    let at_first = coverage(&sandbox)?;
    assert_eq!(at_first["devices"], serde_json::json!(["outside"]), "{at_first}");
    assert_eq!(at_first["namespaces"], 1, "{at_first}");
    sandbox.pod("agent")?;
    eventually("the pod and its device are covered too", || {
        let now = coverage(&sandbox)?;
        Ok(now["devices"] == serde_json::json!(["outside", "pod0"]) && now["namespaces"] == 2)
    })?;
    let left = std::path::Path::new("/sys/fs/bpf/SETTINGS");
    assert!(!left.exists(), "`doctor` pins what it tries out");
    Ok(())
}

#[test]
fn nobody_speaks_for_another_by_having_its_port() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let (first, second) = (sandbox.pod("first")?, sandbox.pod("second")?);
    let bound = |path: &str, hold: &str| {
        format!(
            r#"{HANDSHAKE}
plain = socket.socket()
plain.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
plain.bind(("127.0.0.1", 41999))
plain.settimeout(20)
plain.connect(address("SANDBOX_UPSTREAM"))
tls = ssl._create_unverified_context().wrap_socket(plain, server_hostname=host)
tls.sendall(f"GET /{path} HTTP/1.1\r\nHost: {{host}}\r\n\r\n".encode())
tls.recv(1000)
{hold}"#
        )
    };
    let python = first.environment()["SANDBOX_PYTHON"].clone();
    let hold = "open(os.environ['HOME'] + '/holds', 'w').close()\ntime.sleep(60)";
    let _holder = first.start("holder", [python, "-c".into(), common::source(&bound("of-first", hold))])?;
    first.run(["sh", "-c", "until [ -e $HOME/holds ]; do sleep 0.05; done"])?.into_stdout()?;
    client(&second, &bound("of-second", ""))?;
    // Nor by going to the listener from there.
    let straight = "import socket\nplain = socket.socket()\nplain.bind(('127.0.0.1', 41998))\nsay(**attempt(lambda: plain.connect(('127.0.0.1', 15443))))";
    assert_eq!(client(&second, straight)?[0]["error"], "ConnectionRefusedError");
    eventually("each request is its own pod's", || {
        let events = journal(&sandbox, "SELECT cgroup, detail FROM events WHERE kind = 'unknown_operation'")?;
        let of = |path: &str| {
            let event =
                events.iter().find(|event| event["detail"].as_str().is_some_and(|it| it.ends_with(path)));
            event.and_then(|event| Some(event["cgroup"].as_str()?.rsplit('/').next()?.to_owned()))
        };
        Ok(of("/of-first").as_deref() == Some("first") && of("/of-second").as_deref() == Some("second"))
    })
}

/// Passes a connection to a process in a pod, which says whether it can be used.
const PASSED: &str = r#"
import socket, ssl, sys
here = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
here.bind(sys.argv[1] + "/passed")
here.listen()
plain = socket.create_connection(("10.77.1.2", 443), 20)
print("ready", flush=True)
taker, _ = here.accept()
socket.send_fds(taker, [b"x"], [plain.fileno()])
taker.recv(1)
"#;

#[test]
fn a_connection_that_an_uncovered_process_passes_on_is_of_no_use() -> Result<()> {
    let mut sandbox = Sandbox::builder().without_agent().start()?;
    let pod = sandbox.pod("agent")?;
    // A process in the pod's network, but in a cgroup that is none of the agent's business.
    let home = sandbox.state().pod("agent").join("home");
    let _passer = serve(&network::pod(sandbox.id(), "agent"), PASSED, Some(&home))?;
    Command::new("chmod").arg("777").arg(home.join("passed")).status()?;
    sandbox.start_agent()?;
    let said = client(
        &pod,
        r#"
import socket, ssl
taker = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
taker.connect(os.environ["HOME"] + "/passed")
_, descriptors, _, _ = socket.recv_fds(taker, 1, 1)
plain = socket.socket(fileno=descriptors[0])
plain.settimeout(5)
context = ssl._create_unverified_context()
say(**attempt(lambda: len(context.wrap_socket(plain, server_hostname=os.environ["SNOWFLAKE_HOST"]).getpeercert(True))))
"#,
    )?;
    assert!(said[0]["error"].is_string(), "{}", said[0]);
    let witnessed = sandbox.witness_log()?;
    assert!(witnessed.is_empty(), "{witnessed:?}");
    Ok(())
}

#[test]
fn a_flood_of_attempts_is_counted_to_the_last() -> Result<()> {
    const ATTEMPTS: u64 = 3000;
    let mut sandbox = Sandbox::builder().set("metrics", "listen", "127.0.0.1:9464").start()?;
    let pod = sandbox.pod("agent")?;
    let flood = format!(
        r#"
import contextlib, socket
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range({ATTEMPTS}):
    with contextlib.suppress(OSError):
        sender.sendto(b"x", ("10.77.1.2", 443))"#
    );
    client(&pod, &flood)?;
    eventually("all are on record", || {
        let events = journal(&sandbox, "SELECT detail, cgroup FROM events WHERE kind = 'datagram_refused'")?;
        assert!(
            events.iter().all(|event| event["cgroup"].as_str().is_some_and(|it| it.ends_with("/pods/agent")))
        );
        let counted = |event: &serde_json::Value| {
            let number =
                event["detail"].as_str().unwrap_or_default().split(" more events").next()?.parse::<u64>();
            Some(number.unwrap_or(1))
        };
        assert!(events.len() < 200, "{} single events", events.len());
        Ok(events.iter().filter_map(counted).sum::<u64>() == ATTEMPTS)
    })?;
    let metrics = network::inside(&network::node(sandbox.id()), || {
        Ok(ureq::get("http://127.0.0.1:9464/metrics").call()?.body_mut().read_to_string()?)
    })?;
    for line in [
        format!("snowfence_attempts_total{{kind=\"datagram\"}} {ATTEMPTS}"),
        format!("snowfence_events_total{{kind=\"datagram_refused\"}} {ATTEMPTS}"),
        "# EOF".to_owned(),
    ] {
        assert!(metrics.lines().any(|metric| metric == line), "{line} is not in\n{metrics}");
    }
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

#[test]
fn an_agent_that_cannot_start_says_why_in_one_line() -> Result<()> {
    let mut sandbox = Sandbox::builder().without_agent().start()?;

    // Somebody else has the port, in the agent's own network namespace.
    let squatter = "import socket, time\nheld = socket.create_server(('127.0.0.1', 15443))\nprint('ready', flush=True)\ntime.sleep(100)";
    let squatter = serve(&network::node(sandbox.id()), squatter, None)?;
    let failed = format!("{:#}", sandbox.start_agent().err().context("it started")?);
    assert!(failed.contains("15443") && failed.contains("python3"), "{failed}");
    drop(squatter);

    // It is not root.
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--"])
        .arg(sandbox.binary())
        .args(["run", "--config"])
        .arg(sandbox.configuration())
        .output()?;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(
        message.lines().count() == 1 && message.contains("CAP_BPF") && message.contains("root"),
        "{message}"
    );

    sandbox.start_agent()?;
    Ok(())
}
