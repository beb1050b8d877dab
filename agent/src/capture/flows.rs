//! Who is behind an accepted connection, and where it was going.

use std::{
    fs,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use agent_common::{FlowRecord, SocketKey};
use aya::maps::{HashMap, MapData};
use rustix::time::ClockId;

use super::cgroups::Cgroups;

/// A record older than this is not believed: between connect and accept lie at most some retries of the SYN.
const LIFETIME: Duration = Duration::from_mins(2);

/// A redirected connection, as the kernel attests it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Flow {
    /// Id of the cgroup (v2) of the task that called connect.
    pub cgroup_id: u64,
    /// Its path from the hierarchy's root, as in `/kubepods/…`.
    pub cgroup: String,
    pub pid: u32,
    pub uid: u32,
    /// Name of the task; the task itself may set it to anything.
    pub comm: String,
    /// What the process was running when the connection was accepted, as seen in its own mount namespace.
    pub executable: Option<PathBuf>,
    /// Where the client wanted to go; IPv4 also when it asked with an IPv4-mapped address.
    pub destination: SocketAddr,
    pub netns_cookie: u64,
    /// The client's own end.
    pub source: SocketAddr,
}

/// The records that wait for their connection to be accepted.
pub(super) struct Flows {
    records: Mutex<HashMap<MapData, SocketKey, FlowRecord>>,
}

impl Flows {
    pub(super) fn new(records: HashMap<MapData, SocketKey, FlowRecord>) -> Self {
        Self { records: Mutex::new(records) }
    }

    /// Takes the record of the connection that comes from `source` in this network namespace. No second call gets it.
    pub(super) fn take(&self, netns_cookie: u64, source: SocketAddr) -> Option<FlowRecord> {
        let key = key(netns_cookie, source);
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let record = records.get(&key, 0).ok()?;
        records.remove(&key).ok()?;
        drop(records);
        (now().saturating_sub(Duration::from_nanos(record.time)) < LIFETIME).then_some(record)
    }
}

impl Flow {
    /// Adds what only /proc and the cgroup tree know. None if the cgroup is gone: then there is no workload to name.
    /// Reads files.
    pub(super) fn from_record(record: &FlowRecord, source: SocketAddr, cgroups: &Cgroups) -> Option<Self> {
        Some(Self {
            cgroup_id: record.cgroup_id,
            cgroup: cgroups.path(record.cgroup_id, record.pid)?,
            pid: record.pid,
            uid: record.uid,
            comm: text(&record.comm),
            executable: fs::read_link(format!("/proc/{}/exe", record.pid)).ok(),
            destination: SocketAddr::new(Ipv6Addr::from(record.address).to_canonical(), record.port),
            netns_cookie: record.netns_cookie,
            source: canonical(source),
        })
    }
}

fn key(netns_cookie: u64, source: SocketAddr) -> SocketKey {
    let address = match source.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    SocketKey { netns_cookie, address: address.octets(), port: source.port(), reserved: [0; 3] }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The clock of the records.
fn now() -> Duration {
    let now = rustix::time::clock_gettime(ClockId::Monotonic);
    Duration::try_from(now).unwrap_or_default()
}

fn text(padded: &[u8]) -> String {
    let end = padded.iter().position(|byte| *byte == 0).unwrap_or(padded.len());
    String::from_utf8_lossy(padded.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_what_the_kernel_files_under() {
        let key4 = key(7, "127.0.0.1:4000".parse().unwrap());
        assert_eq!(key4.address, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1]);
        assert_eq!((key4.netns_cookie, key4.port), (7, 4000));
        assert_eq!(key(7, "[::ffff:127.0.0.1]:4000".parse().unwrap()), key4);
        assert_ne!(key(7, "[::1]:4000".parse().unwrap()), key4);
    }

    #[test]
    fn names_of_tasks_are_cut_at_the_padding() {
        assert_eq!(text(b"python3\0\0\0\0"), "python3");
        assert_eq!(text(b"0123456789abcdef"), "0123456789abcdef");
        assert_eq!(text(b"\xff\0"), "\u{fffd}");
        assert_eq!(text(b""), "");
    }
}
