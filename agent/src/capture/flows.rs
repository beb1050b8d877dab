//! Who is behind an accepted connection, and where it was going.

use std::{
    net::{Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use agent_common::{FlowRecord, SocketKey};
use aya::maps::{HashMap, MapData};
use rustix::time::ClockId;

use super::{
    cgroups::Cgroups,
    endpoints::{EndpointClass, Endpoints, bytes},
    namespace::Namespace,
    workload::Workload,
};

/// A record older than this is not believed: between connect and accept lie at most some retries of the SYN.
const LIFETIME: Duration = Duration::from_mins(2);

/// A redirected connection, as the kernel attests it.
#[derive(Clone, Debug)]
pub struct Flow {
    pub workload: Workload,
    /// Where the client wanted to go; IPv4 also when it asked with an IPv4-mapped address.
    pub destination: SocketAddr,
    /// Why that is in the endpoint sets; none in mode `all`, which captures everything.
    pub class: Option<EndpointClass>,
    pub netns_cookie: u64,
    /// The client's own network namespace.
    pub namespace: Arc<Namespace>,
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
    /// Adds what the record does not say. None if the cgroup is gone: then there is no workload to name. Reads files.
    pub(super) fn from_record(
        record: &FlowRecord,
        source: SocketAddr,
        namespace: Arc<Namespace>,
        endpoints: &Endpoints,
        cgroups: &Cgroups,
    ) -> Option<Self> {
        let destination = SocketAddr::new(Ipv6Addr::from(record.address).to_canonical(), record.port);
        Some(Self {
            workload: Workload::find(record.cgroup_id, record.pid, record.uid, &record.comm, cgroups)?,
            destination,
            class: endpoints.class_of(destination.ip()),
            netns_cookie: record.netns_cookie,
            namespace,
            source: canonical(source),
        })
    }
}

fn key(netns_cookie: u64, source: SocketAddr) -> SocketKey {
    SocketKey { netns_cookie, address: bytes(source.ip()), port: source.port(), reserved: [0; 3] }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The clock of the records.
fn now() -> Duration {
    let now = rustix::time::clock_gettime(ClockId::Monotonic);
    Duration::try_from(now).unwrap_or_default()
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
}
