//! What can go wrong between the agent and the kernel. Each message says what to do.

use std::{io, net::IpAddr, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};

#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("{} is already in use by another agent (process {pid}): stop it first", .bpffs.display())]
    AgentRunning { bpffs: PathBuf, pid: u32 },
    #[error("cannot attach the kernel program {program}: {source}")]
    Attach { program: &'static str, source: io::Error },
    #[error("cannot mount a BPF file system at {}: {source}; mount it yourself: mount -t bpf bpf {0}", .path.display())]
    BpffsMount { path: PathBuf, source: io::Error },
    #[error("missing {missing}: run as root on the host, or give the container these capabilities")]
    Capabilities { missing: String },
    #[error("the covered cgroup {} does not exist: create it, or change `capture.cgroup`", .path.display())]
    CgroupMissing { path: PathBuf },
    #[error("{network} cannot be an endpoint: it is a loopback, unspecified or multicast address")]
    EndpointAddress { network: ipnet::IpNet },
    #[error("cannot {what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("kernel {release} is too old: 5.15 or newer is needed")]
    KernelTooOld { release: String },
    #[error(
        "{} holds maps of layout {found}, where layout {expected} was expected: they are damaged, run `snowfence detach` \
         first", .pins.display()
    )]
    Layout { pins: PathBuf, found: u32, expected: u32 },
    #[error("the kernel refuses the map {map}: {source}")]
    Map { map: &'static str, source: MapError },
    #[error("the name servers in /etc/resolv.conf cannot be used: {reason}; set `capture.nameservers`")]
    NameServers { reason: String },
    #[error("no cgroup v2 hierarchy is mounted with its root: mount -t cgroup2 none /sys/fs/cgroup/unified")]
    NoCgroup2,
    #[error("built without the kernel programs: run `cargo xtask build`")]
    NotBuilt,
    #[error(
        "port {port} of {address} is taken in the network namespace of process {pid}, by {owner}: stop that, or change \
         `capture.listen_port`"
    )]
    PortTaken { port: u16, address: IpAddr, pid: u32, owner: String },
    #[error("the kernel programs cannot be loaded: {source}")]
    Programs { source: EbpfError },
    #[error("the kernel {release} rejects the program {program}: {reason}")]
    Rejected { program: &'static str, release: String, reason: String },
    #[error("no address is known for {name}: {reason}")]
    Unresolved { name: String, reason: String },
}

impl CaptureError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    pub(super) fn map(map: &'static str) -> impl Fn(MapError) -> Self {
        move |source| Self::Map { map, source }
    }

    /// A program that would not load: the verifier's last words, which name the reason, on one line.
    pub(super) fn rejected(program: &'static str, release: &str, error: &ProgramError) -> Self {
        let reason = match error {
            ProgramError::LoadError { io_error, verifier_log } => {
                format!("{io_error}; {}", tail(&verifier_log.to_string()))
            }
            other => other.to_string(),
        };
        Self::Rejected { program, release: release.to_owned(), reason }
    }
}

fn tail(log: &str) -> String {
    const LINES: usize = 4;
    let lines: Vec<&str> = log
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("processed "))
        .collect();
    lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifiers_tail_is_one_short_line() {
        let log =
            "0: r1 = 1\n1: r2 = 2\n\n2: r3 = 3\n3: call 5\nR1 type=ctx expected=fp\nprocessed 4 insns\n";
        assert_eq!(tail(log), "1: r2 = 2 | 2: r3 = 3 | 3: call 5 | R1 type=ctx expected=fp");
        assert_eq!(tail(""), "");
    }
}
