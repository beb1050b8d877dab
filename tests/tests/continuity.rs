//! Whatever becomes of the agent, nothing goes by uninspected: while it is killed, stuck, short of descriptors, started
//! again or replaced, connections to Snowflake lead to it or nowhere, and everything else goes on.

mod common;

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use sandbox::process::Process;
use sandbox::{Pod, Sandbox, python};
use serde_json::Value;

use common::{HANDSHAKE, arrived, client, eventually, journal, source};

/// Connects again and again, as clients do that try for a second before they give up; says how it went when told to stop.
const PERSISTENT: &str = r#"
def persistent():
    began, tries = time.monotonic(), 0
    while True:
        tries += 1
        try:
            return handshake(address("SANDBOX_UPSTREAM"), host)["internal"], tries, time.monotonic() - began
        except OSError as error:
            if time.monotonic() - began > 1:
                return repr(error), tries, time.monotonic() - began
            time.sleep(0.02)

met = []
while not os.path.exists(os.environ["HOME"] + "/stop"):
    met.append(persistent())
    time.sleep(0.01)
say(connections=len(met), failures=[who for who, _, _ in met if who is not True], retries=sum(tries - 1 for _, tries, _ in met),
    longest=max(seconds for _, _, seconds in met))
"#;

/// A client at work in a pod, until it is told to stop.
struct AtWork<'a> {
    pod: &'a Pod,
    process: Process,
}

impl<'a> AtWork<'a> {
    fn start(pod: &'a Pod) -> Result<Self> {
        let python = pod.environment()["SANDBOX_PYTHON"].clone();
        let process =
            pod.start("persistent", [python, "-c".into(), source(&format!("{HANDSHAKE}{PERSISTENT}"))])?;
        sleep(Duration::from_secs(1));
        Ok(Self { pod, process })
    }

    fn stop(mut self) -> Result<Value> {
        sleep(Duration::from_secs(1));
        self.pod.run(["sh", "-c", "touch $HOME/stop"])?.into_stdout()?;
        let ended = self.process.wait(Duration::from_secs(30))?.context("the client does not stop")?;
        ensure!(ended.success(), "the client failed: {}", self.process.last_words());
        Ok(serde_json::from_str(self.process.output()?.trim())?)
    }
}

/// Goes to Snowflake's address once; says who was met or what error came, and after how many seconds.
fn dial(pod: &Pod) -> Result<Value> {
    let said = client(
        pod,
        &format!(
            r#"{HANDSHAKE}
began = time.monotonic()
say(**attempt(lambda: handshake(address("SANDBOX_UPSTREAM"), host)), seconds=time.monotonic() - began)"#
        ),
    )?;
    said.into_iter().next().context("the client says nothing")
}

fn is_led_to_the_agent(said: &Value) -> bool {
    said["rows"]["internal"] == true
}

fn nothing_went_by(sandbox: &Sandbox) -> Result<()> {
    let witnessed = sandbox.witness_log()?;
    ensure!(witnessed.is_empty(), "went by the agent: {witnessed:?}");
    Ok(())
}

#[test]
fn a_stuck_agent_means_refused_connections_and_nothing_else() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("agent")?;
    assert!(is_led_to_the_agent(&dial(&pod)?));

    sandbox.signal_agent(Signal::STOP)?;
    sleep(Duration::from_millis(2500));
    let refused = dial(&pod)?;
    assert_eq!(refused["error"], "ConnectionRefusedError", "{refused}");
    assert!(refused["seconds"].as_f64().is_some_and(|seconds| seconds < 0.5), "{refused}");
    let elsewhere = client(
        &pod,
        r#"
import urllib.request
say(**attempt(lambda: urllib.request.urlopen(os.environ["SANDBOX_CLICKHOUSE"] + "/ping", timeout=20).read().decode()))"#,
    )?;
    assert_eq!(elsewhere[0]["rows"], "Ok.\n", "other traffic goes on");

    sandbox.signal_agent(Signal::CONT)?;
    eventually("the agent is itself again", || Ok(is_led_to_the_agent(&dial(&pod)?)))?;
    eventually("the refusal is recorded", || {
        let events = journal(&sandbox, "SELECT cgroup FROM events WHERE kind = 'agent_silent'")?;
        Ok(events
            .iter()
            .any(|event| event["cgroup"].as_str().is_some_and(|path| path.ends_with("/pods/agent"))))
    })?;
    nothing_went_by(&sandbox)
}

#[test]
fn what_is_sent_again_in_other_pieces_does_not_get_by() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("agent")?;
    // An agent that is awake ends such a connection before anything of it is sent again.
    sandbox.signal_agent(Signal::STOP)?;
    let path = python::programs();
    let pod = pod.with("PYTHONPATH", path.to_str().context("a path that is UTF-8")?);
    let said = client(
        &pod,
        r"
from bypass import tls, ways
ways.UNKNOWN.number = 2
stream = ways.dial(ways.UNKNOWN.v4)
# Longer than a segment: it leaves in one piece, and is sent again in two, of which only the first is known for a hello.
stream.sendall(tls.records(tls.hello(padding=2200)))
stream.settimeout(5)
say(**attempt(lambda: len(stream.recv(1000))))",
    )?;
    assert_eq!(said[0]["error"], "TimeoutError", "{}", said[0]);
    nothing_went_by(&sandbox)
}

#[test]
fn a_client_that_tries_for_a_second_does_not_notice_that_the_agent_is_replaced() -> Result<()> {
    // Whose port the new agent has to have beside the old one.
    let mut sandbox = Sandbox::builder().set("metrics", "listen", "127.0.0.1:9464").start()?;
    let (pod, other) = (sandbox.pod("agent")?, sandbox.pod("analyst")?);
    let at_work = AtWork::start(&pod)?;
    let python = other.environment()["SANDBOX_PYTHON"].clone();
    // A statement that runs all the while, and one on the same session after it.
    let mut long = other.start(
        "long",
        [
            python,
            "-c".into(),
            source(
                r#"
cursor = connect().cursor()
cursor.execute("select 'begun'")
open(os.environ["HOME"] + "/begun", "w").close()
numbers = "(select seq4() as {} from table(generator(rowcount => 30000)))"
cursor.execute(f"select count(*) from {numbers.format('n')} a cross join {numbers.format('m')} b where (n * m) % 7 = 3")
say(rows=cursor.fetchall())
cursor.execute("select 'after'")
say(rows=cursor.fetchall())
"#,
            ),
        ],
    )?;
    other.run(["sh", "-c", "until [ -e $HOME/begun ]; do sleep 0.05; done"])?.into_stdout()?;
    let before = sandbox.agent_pid();
    sandbox.replace_agent()?;
    assert_ne!(sandbox.agent_pid(), before);
    let ended = long.wait(Duration::from_mins(2))?.context("the long statement does not end")?;
    assert!(ended.success(), "{}", long.last_words());
    assert_eq!(long.output()?.lines().count(), 2, "{}", long.output()?);
    sandbox.replace_agent()?;

    let said = at_work.stop()?;
    assert!(said["failures"].as_array().is_some_and(Vec::is_empty), "{said}");
    assert!(said["connections"].as_u64().is_some_and(|count| count > 100), "{said}");
    assert!(said["longest"].as_f64().is_some_and(|seconds| seconds < 1.0), "{said}");
    nothing_went_by(&sandbox)?;
    let open = journal(
        &sandbox,
        "SELECT sql FROM statements WHERE id NOT IN (SELECT statement FROM outcomes WHERE status != 'unknown')",
    )?;
    assert!(open.is_empty(), "statements without an outcome: {open:?}");
    let logins =
        sandbox.upstream_log()?.iter().filter(|line| line["path"] == "/session/v1/login-request").count();
    assert_eq!(logins, 1, "nobody had to log in again");
    assert!(arrived(&sandbox)?.iter().any(|sql| sql == "select 'after'"));
    Ok(())
}

#[test]
fn nothing_goes_by_while_the_agent_is_killed_and_started_again_and_again() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("agent")?;
    let at_work = AtWork::start(&pod)?;
    for pause in [10, 150, 700] {
        sandbox.kill_agent()?;
        sleep(Duration::from_millis(pause));
        sandbox.start_agent()?;
        sleep(Duration::from_millis(pause));
    }
    let said = at_work.stop()?;
    // A second may be too short for a start; but whoever was met was the agent.
    let failures = said["failures"].as_array().cloned().unwrap_or_default();
    assert!(failures.iter().all(Value::is_string), "somebody else was met: {said}");
    assert!(said["connections"].as_u64().is_some_and(|count| count > 50), "{said}");
    nothing_went_by(&sandbox)
}

#[test]
fn an_agent_without_descriptors_lets_nothing_by_and_recovers() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("agent")?;
    assert!(is_led_to_the_agent(&dial(&pod)?));
    let agent =
        sandbox.agent_pid().and_then(|pid| Pid::from_raw(pid.cast_signed())).context("the agent's pid")?;
    let limit = |descriptors| {
        let limit = Rlimit { current: Some(descriptors), maximum: Some(4096) };
        prlimit(Some(agent), Resource::Nofile, limit).context("limit the agent's descriptors")
    };
    // Fewer than it has: there is none for any connection.
    limit(8)?;
    let refused = client(
        &pod,
        &format!("{HANDSHAKE}\nsocket.setdefaulttimeout(3)\nsay(**attempt(lambda: handshake(address('SANDBOX_UPSTREAM'), host)))")
            .replace("plain.settimeout(20)", "plain.settimeout(3)"),
    )?;
    assert!(refused[0]["error"].is_string(), "{refused:?}");
    limit(4096)?;
    eventually("the agent has recovered", || Ok(is_led_to_the_agent(&dial(&pod)?)))?;
    nothing_went_by(&sandbox)
}

/// Talks to Snowflake on a connection that is older than the agent, and says how that ends.
const OLD_CONNECTION: &str = r#"
context = ssl._create_unverified_context()
plain = socket.create_connection(address("SANDBOX_UPSTREAM"), 20)
tls = context.wrap_socket(plain, server_hostname=host)
open(os.environ["HOME"] + "/connected", "w").close()
while not os.path.exists(os.environ["HOME"] + "/covered"):
    time.sleep(0.02)
def ask():
    tls.sendall(b"GET /old HTTP/1.1\r\nHost: " + host.encode() + b"\r\n\r\n")
    return len(tls.recv(100))
say(**attempt(ask))
"#;

#[test]
fn a_connection_that_is_older_than_the_agent_is_ended() -> Result<()> {
    let mut sandbox = Sandbox::builder().without_agent().start()?;
    let pod = sandbox.pod("agent")?;
    let python = pod.environment()["SANDBOX_PYTHON"].clone();
    let mut old = pod.start("old", [python, "-c".into(), source(&format!("{HANDSHAKE}{OLD_CONNECTION}"))])?;
    pod.run(["sh", "-c", "until [ -e $HOME/connected ]; do sleep 0.05; done"])?.into_stdout()?;
    sandbox.start_agent()?;
    pod.run(["sh", "-c", "touch $HOME/covered"])?.into_stdout()?;
    let ended = old.wait(Duration::from_secs(30))?.context("the old connection lives on")?;
    assert!(ended.success(), "{}", old.last_words());
    let said: Value = serde_json::from_str(old.output()?.trim())?;
    assert!(said["error"].is_string(), "{said}");
    assert!(!sandbox.upstream_log()?.iter().any(|line| line["path"] == "/old"), "the request has arrived");
    eventually("it is recorded", || {
        let events = journal(&sandbox, "SELECT cgroup FROM events WHERE kind = 'old_connection'")?;
        Ok(events
            .iter()
            .any(|event| event["cgroup"].as_str().is_some_and(|path| path.ends_with("/pods/agent"))))
    })
}

#[test]
fn a_packet_socket_that_is_older_than_the_agent_gets_nothing_out() -> Result<()> {
    let mut sandbox = Sandbox::builder().without_agent().start()?;
    let pod = sandbox.root_pod("agent")?;
    let path = sandbox::python::programs().display().to_string();
    let pod = pod.with("PYTHONPATH", &path);
    let script = r#"
import os, socket, time
from bypass import packets, ways
sender = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
gateway, packet = packets.gateways_address(), packets.segment(ways.SNOWFLAKE)
send = lambda: sender.sendto(packet, ("eth0", packets.IPV4, 0, 0, gateway))
send()
open(os.environ["HOME"] + "/connected", "w").close()
while not os.path.exists(os.environ["HOME"] + "/covered"):
    time.sleep(0.02)
for _ in range(5):
    send()
"#;
    let python = pod.environment()["SANDBOX_PYTHON"].clone();
    let mut old = pod.start("old", [python.as_str(), "-c", script])?;
    pod.run(["sh", "-c", "until [ -e $HOME/connected ]; do sleep 0.05; done"])?.into_stdout()?;
    eventually("without an agent its packet arrives", || Ok(sandbox.witness_log()?.len() == 1))?;
    sandbox.start_agent()?;
    pod.run(["sh", "-c", "touch $HOME/covered"])?.into_stdout()?;
    let ended = old.wait(Duration::from_secs(30))?.context("it goes on")?;
    assert!(ended.success(), "{}", old.last_words());
    eventually("it is recorded", || {
        let events = journal(&sandbox, "SELECT cgroup FROM events WHERE kind = 'perimeter_dropped'")?;
        Ok(events
            .iter()
            .any(|event| event["cgroup"].as_str().is_some_and(|path| path.ends_with("/pods/agent"))))
    })?;
    assert_eq!(sandbox.witness_log()?.len(), 1, "with one, none does");
    Ok(())
}

#[test]
fn pins_of_another_layout_are_replaced_without_a_gap() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("agent")?;
    sandbox.kill_agent()?;
    // What an agent with other maps would have left: its programs still refuse connections.
    let pins = sandbox.state().pins();
    let own = fs::read_dir(&pins)?.flatten().map(|entry| entry.path());
    let own: Vec<_> = own.filter(|path| path.is_dir()).collect();
    let [own] = own.as_slice() else { anyhow::bail!("one layout is pinned, not {own:?}") };
    fs::rename(own, pins.join("v1"))?;
    assert_eq!(dial(&pod)?["error"], "ConnectionRefusedError");

    let at_work = AtWork::start(&pod)?;
    sandbox.start_agent()?;
    let began = Instant::now();
    while pins.join("v1").exists() {
        ensure!(began.elapsed() < Duration::from_secs(30), "the pins of the other layout are still there");
        sleep(Duration::from_millis(50));
    }
    assert!(own.exists());
    eventually("the new agent serves", || Ok(is_led_to_the_agent(&dial(&pod)?)))?;
    at_work.stop()?;
    nothing_went_by(&sandbox)
}
