//! Network devices and namespaces as they come and go: what leads out of the host is watched from the moment that it is
//! there, wherever it is, and nothing of what is gone is held on to.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sandbox::cgroup::Cgroup;
use sandbox::launch::Place;
use sandbox::process::{Plan, Process};
use sandbox::{Pod, Sandbox, network, python, services};
use serde_json::Value;

use common::{HANDSHAKE, client, eventually, journal};

/// `ip` in the namespace of the sandbox's node.
fn on_the_node(sandbox: &Sandbox, commands: &[String]) -> Result<()> {
    for command in commands {
        let namespace = format!("--net={}", network::node(sandbox.id()).display());
        let done =
            Command::new("nsenter").args([&namespace, "ip"]).args(command.split_whitespace()).output()?;
        ensure!(done.status.success(), "ip {command}: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(())
}

fn devices(sandbox: &Sandbox) -> Result<Vec<String>> {
    let coverage = coverage(sandbox)?;
    let devices = coverage["devices"].as_array().context("the devices")?;
    Ok(devices.iter().filter_map(|device| device.as_str().map(ToOwned::to_owned)).collect())
}

fn coverage(sandbox: &Sandbox) -> Result<Value> {
    let said = sandbox.snowfence(["doctor", "--format", "json"])?.into_stdout()?;
    Ok(serde_json::from_str::<Value>(&said)?["agent"]["coverage"].clone())
}

/// Has a pod send one packet to Snowflake by a packet socket on a device, to a neighbour there.
fn send_by(pod: &Pod, device: &str, neighbour: &str) -> Result<()> {
    let script = format!(
        r#"
import contextlib, socket, time
from bypass import packets, ways
for _ in range(50):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"{device}")
        probe.sendto(b"", ("{neighbour}", 9))
    with open("/proc/net/arp") as table:
        found = [line.split()[3] for line in table if line.startswith("{neighbour} ") and line.split()[5] == "{device}"]
    if found and found[0] != "00:00:00:00:00:00":
        break
    time.sleep(0.05)
# Where the packet is dropped in the pod itself, the sender is told so.
with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sender, contextlib.suppress(OSError):
    sender.sendto(packets.segment(ways.SNOWFLAKE), ("{device}", packets.IPV4, 0, 0, bytes.fromhex(found[0].replace(":", ""))))
"#
    );
    let path = python::programs().display().to_string();
    pod.clone().with("PYTHONPATH", &path).python(&script)?.into_stdout().map(drop)
}

fn dropped_for(sandbox: &Sandbox, pod: &str) -> Result<usize> {
    let events = journal(
        sandbox,
        "SELECT cgroup FROM events WHERE kind IN ('perimeter_dropped', 'raw_socket_refused')",
    )?;
    let cgroups = events.iter().filter_map(|event| event["cgroup"].as_str());
    Ok(cgroups.filter(|cgroup| cgroup.ends_with(&format!("/pods/{pod}"))).count())
}

/// Gives a pod a macvlan device of the node's uplink, as some networks of containers do: its packets never pass the node.
fn give_macvlan(sandbox: &Sandbox, pod: &str) -> Result<()> {
    let namespace = network::pod(sandbox.id(), pod);
    let name = namespace.file_name().and_then(|name| name.to_str()).context("the pod's namespace")?;
    on_the_node(
        sandbox,
        &[
            "link add net1 link outside type macvlan mode bridge".into(),
            format!("link set net1 netns {name}"),
        ],
    )?;
    network::inside(&namespace, || {
        for command in ["address add 10.77.1.77/24 dev net1", "link set net1 up"] {
            let done = Command::new("ip").args(command.split_whitespace()).output()?;
            ensure!(done.status.success(), "ip {command}: {}", String::from_utf8_lossy(&done.stderr));
        }
        Ok(())
    })
}

#[test]
fn a_device_inside_a_pod_that_leads_out_past_the_node_is_watched() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.root_pod("agent")?;
    give_macvlan(&sandbox, "agent")?;
    eventually("the device is watched", || Ok(devices(&sandbox)?.contains(&"net1".to_owned())))?;
    send_by(&pod, "net1", "10.77.1.2")?;
    eventually("the packet is recorded", || Ok(dropped_for(&sandbox, "agent")? > 0))?;
    assert!(sandbox.witness_log()?.is_empty());
    // Sockets are led to the agent there as anywhere.
    let dial = format!("{HANDSHAKE}say(**attempt(lambda: handshake(address('SANDBOX_UPSTREAM'), host)))");
    assert_eq!(client(&pod, &dial)?[0]["rows"]["internal"], true);
    Ok(())
}

#[test]
fn without_the_perimeter_such_a_packet_arrives() -> Result<()> {
    let mut sandbox = Sandbox::builder()
        .set("capture", "perimeter", false)
        .set("capture", "raw_sockets", "allow")
        .start()?;
    let pod = sandbox.root_pod("agent")?;
    give_macvlan(&sandbox, "agent")?;
    send_by(&pod, "net1", "10.77.1.2")?;
    eventually("it arrives", || Ok(sandbox.witness_log()?.len() == 1))
}

#[test]
fn a_device_that_is_plugged_in_later_is_watched() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.root_pod("agent")?;
    let outside = network::outside(sandbox.id());
    let name = outside.file_name().and_then(|name| name.to_str()).context("the outside")?;
    on_the_node(
        &sandbox,
        &[
            format!("link add second type veth peer name eth1 netns {name}"),
            "link set second up".into(),
            "address add 10.77.9.1/24 dev second".into(),
        ],
    )?;
    network::inside(&outside, || {
        for command in ["address add 10.77.9.2/24 dev eth1", "link set eth1 up"] {
            let done = Command::new("ip").args(command.split_whitespace()).output()?;
            ensure!(done.status.success(), "ip {command}: {}", String::from_utf8_lossy(&done.stderr));
        }
        Ok(())
    })?;
    let began = Instant::now();
    while !devices(&sandbox)?.contains(&"second".to_owned()) {
        ensure!(began.elapsed() < Duration::from_secs(3), "it is noticed by a slow scan only");
    }
    // All that is Snowflake's goes there now.
    on_the_node(&sandbox, &["route replace 10.77.1.2/32 via 10.77.9.2 dev second".into()])?;
    let before = dropped_for(&sandbox, "agent")?;
    send_by(&pod, "eth0", "10.77.2.1")?;
    eventually("the packet is recorded", || Ok(dropped_for(&sandbox, "agent")? > before))?;
    assert!(sandbox.witness_log()?.is_empty());
    Ok(())
}

/// Makes a thousand network namespaces, some at a time, each for a moment and with a connection to Snowflake from it.
const THOUSAND: &str = r#"
import ctypes, fcntl, os, socket, struct, time
libc = ctypes.CDLL(None, use_errno=True)
def live():
    if libc.unshare(0x40000000) != 0:
        os._exit(1)
    with socket.socket() as probe:
        # The loopback device goes up.
        fcntl.ioctl(probe, 0x8914, struct.pack("16sH14x", b"lo", 0x1 | 0x40))
    with socket.socket() as stream:
        stream.settimeout(2)
        for _ in range(100):
            try:
                stream.connect(("10.77.1.2", 443))
                break
            except OSError:
                time.sleep(0.01)
    os._exit(0)
alive = 0
for _ in range(1000):
    if alive == 20:
        os.wait()
        alive -= 1
    if os.fork() == 0:
        live()
    alive += 1
while alive:
    os.wait()
    alive -= 1
print("done", flush=True)
"#;

#[test]
fn a_thousand_pods_leave_nothing_behind() -> Result<()> {
    let sandbox = Sandbox::builder().start()?;
    let agent = sandbox.agent_pid().context("the agent's pid")?;
    let descriptors = || Ok::<_, anyhow::Error>(fs::read_dir(format!("/proc/{agent}/fd"))?.count());
    let before = descriptors()?;
    let cgroup = Cgroup::covered(sandbox.id())?.child("pods").child("swarm");
    cgroup.create()?;
    let plan = Plan {
        name: "swarm".to_owned(),
        place: Place {
            network: Some(network::node(sandbox.id())),
            cgroup: cgroup.path().to_owned(),
            container: None,
        },
        program: python::system()?.display().to_string(),
        arguments: vec!["-c".into(), THOUSAND.into()],
        environment: services::environment(),
    };
    let mut swarm = Process::start(&plan, &sandbox.state().logs())?;
    let ended = swarm.wait(Duration::from_mins(4))?.context("the thousand do not end")?;
    ensure!(ended.success(), "{}", swarm.last_words());
    assert_eq!(swarm.output()?, "done\n");
    let log = sandbox.agent_log()?;
    let opened = log.matches("listening in a network namespace").count();
    assert!(opened > 500, "the agent met only {opened} of them");
    eventually("the agent has left all of them", || Ok(coverage(&sandbox)?["namespaces"] == 1))?;
    eventually("their descriptors are closed", || Ok(descriptors()? <= before + 8))?;
    let kept =
        |entry: &fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|target| target.starts_with("net:"));
    let namespaces = fs::read_dir(format!("/proc/{agent}/fd"))?.flatten().filter(kept).count();
    assert!(namespaces <= 1, "the agent holds {namespaces} network namespaces");
    ensure!(Path::new(&format!("/proc/{agent}")).exists(), "the agent has died");
    Ok(())
}
