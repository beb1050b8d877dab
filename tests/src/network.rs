//! The sandbox's networks. Three kinds of namespaces, joined by veth pairs and by nothing else: none of them has a
//! device, and so a route, that leads to the machine's own network.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::signals;

/// The emulated Snowflake, as DNS names it.
pub const UPSTREAM: &str = "10.77.1.2";
pub const UPSTREAM6: &str = "fd77:1::2";
/// The emulated Snowflake again, at an address that nothing names.
pub const UPSTREAM_ALTERNATIVE: &str = "10.77.1.3";
/// The emulated Snowflake again, at the address of another name.
pub const UPSTREAM_ALIAS: &str = "10.77.1.8";
pub const CLICKHOUSE: &str = "10.77.1.4";
pub const IDENTITY_PROVIDER: &str = "10.77.1.5";
pub const DNS: &str = "10.77.1.6";
pub const FORWARD_PROXY: &str = "10.77.1.7";
/// The storage behind the emulated Snowflake.
pub const STORAGE: &str = "10.77.1.9";
/// The emulated Snowflake once more, at each address of these whose last part is 2 to 254. DNS has names for them, which
/// nobody asks for by himself.
pub const UNKNOWN: &str = "10.77.3.0/24";
pub const UNKNOWN6: &str = "fd77:3::/64";
/// The agent, as the outside sees it.
pub const NODE: &str = "10.77.1.1";
pub const NODE6: &str = "fd77:1::1";

/// All of the sandbox's IPv6 addresses. There is no default route to the node, unlike with IPv4: Linux takes a second to
/// believe an ICMPv6 refusal of a TCP connection, and a missing route no time at all.
const ALL6: &str = "fd77::/16";
const NAMESPACES: &str = "/run/netns";
/// The first pod's number; .1 is the node.
const FIRST_POD: u8 = 2;

/// The namespace of the agent.
pub fn node(id: &str) -> PathBuf {
    Path::new(NAMESPACES).join(name(id, "node"))
}

/// The namespace of what stands for the outside world.
pub fn outside(id: &str) -> PathBuf {
    Path::new(NAMESPACES).join(name(id, "up"))
}

/// The namespace of the pod called `pod`.
pub fn pod(id: &str, pod: &str) -> PathBuf {
    Path::new(NAMESPACES).join(name(id, &format!("pod-{pod}")))
}

/// The IPv4 and IPv6 address of the pod that was made as number `index`, counted from zero. Both end in the same digits.
pub fn pod_addresses(index: usize) -> Result<(String, String)> {
    let number =
        u8::try_from(index).ok().and_then(|index| index.checked_add(FIRST_POD)).filter(|n| *n < u8::MAX);
    let number = number.context("a sandbox has room for 253 pods")?;
    Ok((format!("10.77.2.{number}"), format!("fd77:2::{number}")))
}

/// Makes the node and the outside, and joins them.
pub fn create(id: &str) -> Result<()> {
    let _building = signals::building();
    for part in ["node", "up"] {
        add_namespace(&name(id, part))?;
    }
    inside(&node(id), || {
        for (setting, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            // Nobody may wait for a time-out: every refusal is answered, however many there are in a second.
            ("ipv4/icmp_ratelimit", "0"),
            ("ipv6/icmp/ratelimit", "0"),
        ] {
            set(setting, value)?;
        }
        Ok(())
    })?;
    inside(&outside(id), || {
        // Not all addresses of a network need to be given to a device one by one.
        set("ipv6/ip_nonlocal_bind", "1")?;
        // TCP Fast Open: by whoever asks for it, with no cookie.
        set("ipv4/tcp_fastopen", "1538")
    })?;
    configure(&name(id, "node"), &node_commands(&name(id, "up")))?;
    configure(&name(id, "up"), &outside_commands())
}

/// Makes the namespace of a pod, and joins it to the node.
pub fn add_pod(id: &str, pod: &str, index: usize) -> Result<()> {
    let _building = signals::building();
    let (address, address6) = pod_addresses(index)?;
    let namespace = name(id, &format!("pod-{pod}"));
    add_namespace(&namespace)?;
    // A client's first connection may carry data in its first packet.
    inside(&self::pod(id, pod), || set("ipv4/tcp_fastopen", "5"))?;
    configure(&name(id, "node"), &pod_commands_on_the_node(&namespace, index, &address, &address6))?;
    configure(&namespace, &pod_commands(&address, &address6))
}

/// Removes every namespace of this sandbox, and the devices with them.
pub fn remove(id: &str) -> Result<()> {
    let Ok(entries) = fs::read_dir(NAMESPACES) else { return Ok(()) };
    let prefix = name(id, "");
    for entry in entries.flatten() {
        let namespace = entry.file_name().to_string_lossy().into_owned();
        if namespace.starts_with(&prefix) {
            ip(&["netns", "delete", &namespace], "")?;
        }
    }
    Ok(())
}

/// Does `work` in a thread of its own that lives in `namespace`: the sockets that it makes belong there.
pub fn inside<T: Send>(namespace: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let handle = File::open(namespace).with_context(|| format!("open {}", namespace.display()))?;
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("enter {}", namespace.display()))?;
            work()
        });
        worker.join().unwrap_or_else(|_| Err(anyhow!("the work in {} panicked", namespace.display())))
    })
}

fn name(id: &str, part: &str) -> String {
    format!("sf{id}-{part}")
}

fn add_namespace(name: &str) -> Result<()> {
    ip(&["netns", "add", name], "")?;
    inside(&Path::new(NAMESPACES).join(name), || {
        // Addresses are usable at once; nobody else could have them.
        set("ipv6/conf/all/accept_dad", "0")?;
        set("ipv6/conf/default/accept_dad", "0")
    })
}

/// Sets a kernel parameter of the network namespace that the calling thread is in.
fn set(setting: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys/net").join(setting);
    fs::write(&path, value).with_context(|| format!("write {value} to {}", path.display()))
}

fn node_commands(outside: &str) -> String {
    format!(
        "\
link set lo up
link add outside type veth peer name eth0 netns {outside}
address add {NODE}/24 dev outside
address add {NODE6}/64 dev outside nodad
link set outside up
route add {UNKNOWN} via {UPSTREAM} dev outside
-6 route add {UNKNOWN6} via {UPSTREAM6} dev outside
route add unreachable default
-6 route add unreachable default metric 4096
"
    )
}

fn outside_commands() -> String {
    let mut commands = String::from("link set lo up\n");
    for address in [
        UPSTREAM,
        UPSTREAM_ALTERNATIVE,
        UPSTREAM_ALIAS,
        STORAGE,
        CLICKHOUSE,
        IDENTITY_PROVIDER,
        DNS,
        FORWARD_PROXY,
    ] {
        let _ = writeln!(commands, "address add {address}/24 dev eth0");
    }
    let _ = writeln!(commands, "address add {UPSTREAM6}/64 dev eth0 nodad");
    let _ = write!(
        commands,
        "\
link set eth0 up
route add local {UNKNOWN} dev lo
-6 route add local {UNKNOWN6} dev lo
route add default via {NODE}
-6 route add {ALL6} via {NODE6}
"
    );
    commands
}

fn pod_commands_on_the_node(namespace: &str, index: usize, address: &str, address6: &str) -> String {
    format!(
        "\
link add pod{index} type veth peer name eth0 netns {namespace}
address add 10.77.2.1/32 dev pod{index}
address add fd77:2::1/128 dev pod{index} nodad
link set pod{index} up
route add {address}/32 dev pod{index}
-6 route add {address6}/128 dev pod{index}
"
    )
}

fn pod_commands(address: &str, address6: &str) -> String {
    format!(
        "\
link set lo up
address add {address}/32 dev eth0
address add {address6}/128 dev eth0 nodad
link set eth0 up
route add default via 10.77.2.1 dev eth0 onlink
-6 route add {ALL6} via fd77:2::1 dev eth0 onlink
"
    )
}

/// Runs lines of `ip -batch` in a namespace.
fn configure(namespace: &str, commands: &str) -> Result<()> {
    let (version6, version4): (Vec<&str>, Vec<&str>) =
        commands.lines().partition(|line| line.starts_with("-6 "));
    ip(&["-n", namespace, "-batch", "-"], &(version4.join("\n") + "\n"))?;
    let version6: Vec<&str> = version6.iter().filter_map(|line| line.strip_prefix("-6 ")).collect();
    ip(&["-6", "-n", namespace, "-batch", "-"], &(version6.join("\n") + "\n"))
}

fn ip(arguments: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start `ip` (Debian's package iproute2)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).context("write to `ip`")?;
    }
    let output = child.wait_with_output().context("wait for `ip`")?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`ip {}` failed: {}", arguments.join(" "), message.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_have_addresses_of_their_own() {
        assert_eq!(pod_addresses(0).unwrap(), ("10.77.2.2".into(), "fd77:2::2".into()));
        assert_eq!(pod_addresses(8).unwrap(), ("10.77.2.10".into(), "fd77:2::10".into()));
        assert_eq!(pod_addresses(252).unwrap().0, "10.77.2.254");
        assert!(pod_addresses(253).is_err());
        assert!(pod_addresses(usize::MAX).is_err());
    }

    #[test]
    fn the_node_has_no_way_out() {
        let commands = node_commands("sfabc123-up");
        let defaults: Vec<&str> = commands.lines().filter(|line| line.contains("default")).collect();
        assert_eq!(
            defaults,
            ["route add unreachable default", "-6 route add unreachable default metric 4096"]
        );
    }

    #[test]
    fn every_service_has_its_address_outside() {
        let commands = outside_commands();
        for address in
            [UPSTREAM, UPSTREAM_ALTERNATIVE, CLICKHOUSE, IDENTITY_PROVIDER, DNS, FORWARD_PROXY, UPSTREAM6]
        {
            assert!(commands.contains(&format!("address add {address}/")), "{address}");
        }
        let routes: Vec<&str> = commands.lines().filter(|line| line.contains("route")).collect();
        assert_eq!(
            routes,
            [
                "route add local 10.77.3.0/24 dev lo",
                "-6 route add local fd77:3::/64 dev lo",
                "route add default via 10.77.1.1",
                "-6 route add fd77::/16 via fd77:1::1"
            ]
        );
    }
}
