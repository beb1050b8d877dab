//! Attempts to get around the agent, as the kernel programs tell of them.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use agent_common::{Address, Event, Rate, RateKey, event_kind};
use aya::maps::{MapData, PerCpuHashMap};

use super::{origins::Origins, workload::Workload};

/// Something that a workload tried, and that came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub kind: AttemptKind,
    /// Who tried; none where that cannot be told.
    pub workload: Option<Workload>,
    pub source: Option<SocketAddr>,
    pub destination: Option<SocketAddr>,
    /// The name that was asked for, or its end; empty where there was none.
    pub name: String,
    /// Anything else that helps to understand it.
    pub detail: String,
}

/// What is told of attempts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Attempt(Attempt),
    /// So many more than were told one by one.
    Suppressed {
        kind: AttemptKind,
        cgroup: String,
        attempts: u64,
    },
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum AttemptKind {
    /// UDP, or anything else that is no stream, to an endpoint.
    Datagram,
    RawSocket,
    /// TLS with a Snowflake name, to an address that was not known.
    Name,
    /// A request to a proxy for a tunnel to a Snowflake name.
    Tunnel,
    /// A packet to an endpoint from a socket that was not redirected.
    Packet,
    /// A packet to an endpoint on its way out of the host.
    Perimeter,
    /// A connection to the agent's listener.
    ListenerProbe,
    /// A connection to an endpoint while the agent gave no sign of life.
    AgentSilent,
    /// What the agent passed on for a workload was led elsewhere.
    Diversion,
    /// A connection to an endpoint that is older than the agent's knowledge of it.
    OldSocket,
}

impl AttemptKind {
    pub const ALL: [Self; 10] = [
        Self::Datagram,
        Self::RawSocket,
        Self::Name,
        Self::Tunnel,
        Self::Packet,
        Self::Perimeter,
        Self::ListenerProbe,
        Self::AgentSilent,
        Self::Diversion,
        Self::OldSocket,
    ];

    fn of(kind: u32) -> Option<Self> {
        Some(match kind {
            event_kind::DATAGRAM_REFUSED => Self::Datagram,
            event_kind::RAW_SOCKET_REFUSED => Self::RawSocket,
            event_kind::NAME_GUARDED => Self::Name,
            event_kind::TUNNEL_GUARDED => Self::Tunnel,
            event_kind::PACKET_GUARDED => Self::Packet,
            event_kind::PERIMETER_DROPPED => Self::Perimeter,
            event_kind::LISTENER_PROBED => Self::ListenerProbe,
            event_kind::AGENT_SILENT => Self::AgentSilent,
            event_kind::SPLICE_DIVERTED => Self::Diversion,
            _ => return None,
        })
    }

    /// The kernel programs' own number for it; none where they do not tell of it.
    pub(super) fn event_kind(self) -> Option<u32> {
        (0..event_kind::COUNT).find(|kind| Self::of(*kind) == Some(self))
    }
}

impl Attempt {
    /// None for an event that is no attempt. Reads files.
    pub(super) fn of(event: &Event, origins: &Origins) -> Option<Self> {
        let kind = AttemptKind::of(event.kind)?;
        let workload = origins.of(event);
        let detail = match kind {
            AttemptKind::RawSocket => format!("family {}, protocol {}", event.family, event.protocol),
            AttemptKind::Datagram | AttemptKind::Packet | AttemptKind::Perimeter if event.protocol != 0 => {
                format!("protocol {}", event.protocol)
            }
            _ => String::new(),
        };
        Some(Self {
            kind,
            workload,
            source: end(event.source, event.source_port),
            destination: end(event.destination, event.destination_port),
            name: super::text(&event.name),
            detail,
        })
    }
}

fn end(address: Address, port: u16) -> Option<SocketAddr> {
    let address = IpAddr::from(Ipv6Addr::from(address)).to_canonical();
    (!address.is_unspecified()).then(|| SocketAddr::new(address, port))
}

/// Counts what the kernel programs did not send.
pub(super) struct Suppression {
    rates: PerCpuHashMap<MapData, RateKey, Rate>,
    known: HashMap<RateKey, u64>,
}

impl Suppression {
    pub(super) fn new(rates: PerCpuHashMap<MapData, RateKey, Rate>) -> Self {
        Self { rates, known: HashMap::new() }
    }

    /// An event was received.
    pub(super) fn received(&mut self, event: &Event) {
        let owner = RateKey::owner(event.cgroup_id, event.device);
        let key = RateKey { owner, kind: event.kind, reserved: 0 };
        *self.known.entry(key).or_default() += 1;
    }

    /// How many there have been of each kind and workload, received or not. To be asked before what was sent is read, so
    /// that nothing on its way is taken for suppressed.
    pub(super) fn totals(&self) -> HashMap<RateKey, u64> {
        let entries = self.rates.iter().filter_map(Result::ok);
        entries.map(|(key, rates)| (key, rates.iter().map(|rate| rate.total).sum())).collect()
    }

    /// What was not received of these, and not told before.
    pub(super) fn tell(&mut self, totals: &HashMap<RateKey, u64>, origins: &Origins) -> Vec<Told> {
        let suppressed = unseen(&mut self.known, totals);
        suppressed
            .into_iter()
            .filter_map(|(key, attempts)| {
                let kind = AttemptKind::of(key.kind)?;
                let cgroup = origins.cgroup_of(key.owner).unwrap_or_default();
                Some(Told::Suppressed { kind, cgroup, attempts })
            })
            .collect()
    }
}

/// What the totals have beyond what is known, which is known from now on.
fn unseen(known: &mut HashMap<RateKey, u64>, totals: &HashMap<RateKey, u64>) -> Vec<(RateKey, u64)> {
    // What the kernel has forgotten, it counts from zero when it comes again.
    known.retain(|key, _| totals.contains_key(key));
    let mut unseen = Vec::new();
    for (key, total) in totals {
        let known = known.entry(*key).or_default();
        if *known < *total {
            unseen.push((*key, *total - *known));
        }
        *known = *total;
    }
    unseen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_attempt_is_an_event_or_is_the_agents_own_finding() {
        for kind in AttemptKind::ALL {
            assert_eq!(kind.event_kind().is_none(), kind == AttemptKind::OldSocket, "{kind:?}");
        }
    }

    #[test]
    fn what_was_not_received_is_counted_once() {
        let key = |kind| RateKey { owner: 7, kind, reserved: 0 };
        let mut known = HashMap::from([(key(2), 10), (key(3), 5)]);
        let totals = HashMap::from([(key(2), 250), (key(3), 5)]);
        assert_eq!(unseen(&mut known, &totals), [(key(2), 240)]);
        assert!(unseen(&mut known, &totals).is_empty());
        // The entry was thrown out and made again.
        assert!(unseen(&mut known, &HashMap::new()).is_empty());
        assert_eq!(unseen(&mut known, &HashMap::from([(key(2), 3)])), [(key(2), 3)]);
    }

    #[test]
    fn an_address_that_is_not_known_is_none() {
        assert_eq!(end([0; 16], 443), None);
        let mapped = super::super::endpoints::bytes("10.0.0.1".parse().unwrap());
        assert_eq!(end(mapped, 443), Some("10.0.0.1:443".parse().unwrap()));
    }
}
