//! The sets of endpoint addresses, which live in the kernel and outlast the agent.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use agent_common::{Address, Endpoint as KernelEndpoint, NAME_SIZE, Name, endpoint_class, maps};
use aya::maps::{LpmTrie, Map, MapData, MapError, lpm_trie::Key};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::CaptureError;

/// Learnt networks that are kept, of both kinds together; beyond that the oldest go.
const LEARNT: usize = 16_384;

/// Why a network is in the sets. The lower, the more it is trusted.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointClass {
    /// The configuration names it.
    Declared,
    /// One of the agent's own names resolved to it.
    Resolved,
    /// Learnt from what a workload was told or did, and the server there proved to be Snowflake's.
    Confirmed,
    /// Learnt likewise, not proved: connections there are only looked at.
    Learnt,
}

/// A network in the sets.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Endpoint {
    pub network: IpNet,
    pub class: EndpointClass,
    /// The name that it is known by; the end of it, if it is long.
    pub name: String,
    /// Seconds since the Unix epoch.
    pub learnt: u64,
    /// When it goes unless it is seen again, likewise; none: never.
    pub expires: Option<u64>,
}

/// A handle to the sets; clones share them.
#[derive(Clone)]
pub struct Endpoints {
    sets: Arc<Mutex<Sets>>,
    /// Told of each network that is trusted from now on.
    changed: Arc<Notify>,
}

/// Of something that was learnt, among its like: what is trusted least first, then what goes first.
type Place = (Reverse<EndpointClass>, u64, IpNet);

struct Sets {
    v4: LpmTrie<MapData, [u8; 4], KernelEndpoint>,
    v6: LpmTrie<MapData, [u8; 16], KernelEndpoint>,
    /// The same again: a trie does not tell a network from another that contains it.
    known: BTreeMap<IpNet, Entry>,
    /// Those that were learnt.
    learnt: BTreeSet<Place>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Entry {
    class: EndpointClass,
    name: String,
    learnt: u64,
    expires: u64,
}

impl Endpoints {
    /// With what an earlier agent left in the maps.
    pub(super) fn new(
        v4: LpmTrie<MapData, [u8; 4], KernelEndpoint>,
        v6: LpmTrie<MapData, [u8; 16], KernelEndpoint>,
    ) -> Result<Self, CaptureError> {
        let known = read(&v4, &v6)?;
        let learnt = known.iter().filter_map(|(network, entry)| entry.place(*network)).collect();
        Ok(Self { sets: Arc::new(Mutex::new(Sets { v4, v6, known, learnt })), changed: Arc::default() })
    }

    /// Adds an address that one of the agent's names resolved to.
    pub(super) fn resolve(&self, address: IpAddr, name: &str) -> Result<(), CaptureError> {
        let network = host(address)?;
        let entry =
            Entry { class: EndpointClass::Resolved, name: name.to_owned(), learnt: now(), expires: 0 };
        self.insert(network, entry)
    }

    /// Adds an address that was learnt, or keeps it for longer. Says whether it is to be asked who it is.
    pub fn learn(&self, address: IpAddr, name: &str, keep: Duration) -> Result<bool, CaptureError> {
        let network = host(address)?;
        let now = now();
        let mut sets = self.sets();
        let (class, learnt) = match sets.known.get(&network) {
            // More is known of it than that.
            Some(known) if !known.class.is_learnt() => return Ok(false),
            Some(known) => (known.class, known.learnt),
            // In a network that is known: the narrower entry would hide the better one.
            None if sets.class_of(address).is_some() => return Ok(false),
            None => (EndpointClass::Learnt, now),
        };
        let expires = now.saturating_add(keep.as_secs());
        while sets.learnt.len() >= LEARNT && !sets.known.contains_key(&network) {
            let Some((_, _, oldest)) = sets.learnt.first().copied() else { break };
            sets.remove(oldest)?;
        }
        sets.put(network, Entry { class, name: name.to_owned(), learnt, expires })?;
        Ok(class == EndpointClass::Learnt)
    }

    /// The server at a learnt address has proved to be Snowflake's.
    pub fn confirm(&self, address: IpAddr) -> Result<(), CaptureError> {
        let network = host(address)?;
        let mut sets = self.sets();
        let Some(entry) = sets.known.get(&network).filter(|entry| entry.class == EndpointClass::Learnt)
        else {
            return Ok(());
        };
        let entry = Entry { class: EndpointClass::Confirmed, ..entry.clone() };
        sets.put(network, entry)?;
        drop(sets);
        self.changed.notify_one();
        Ok(())
    }

    /// Takes out an address that was resolved, or learnt, if it is still of that class.
    pub(super) fn remove(&self, address: IpAddr, class: EndpointClass) -> Result<(), CaptureError> {
        let network = normal(IpNet::from(address));
        let mut sets = self.sets();
        if sets.known.get(&network).is_some_and(|entry| entry.class == class) {
            sets.remove(network)?;
        }
        Ok(())
    }

    /// Takes out what was learnt and not seen again in time.
    pub(super) fn expire(&self) -> Result<(), CaptureError> {
        let now = now();
        let mut sets = self.sets();
        for class in [EndpointClass::Learnt, EndpointClass::Confirmed].map(Reverse) {
            let from = (class, 0, IpNet::V4(Ipv4Net::default()));
            while let Some((found, expires, network)) = sets.learnt.range(from..).next().copied()
                && found == class
                && expires <= now
            {
                sets.remove(network)?;
            }
        }
        Ok(())
    }

    /// Why an address is in the sets.
    pub fn class_of(&self, address: IpAddr) -> Option<EndpointClass> {
        self.sets().class_of(address)
    }

    /// The name that an address is known by.
    pub fn name_of(&self, address: IpAddr) -> Option<String> {
        let network = normal(IpNet::from(address));
        let name = self.sets().known.get(&network).map(|entry| entry.name.clone());
        name.filter(|name| !name.is_empty())
    }

    /// Everything in the sets, in order, with what an earlier agent left there.
    pub fn list(&self) -> Vec<Endpoint> {
        self.sets().known.iter().map(|(network, entry)| entry.shown(*network)).collect()
    }

    /// Waits until a network is trusted that was not when this was called last.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Makes these the declared networks. Those that are declared no longer go, after the new ones came.
    pub(super) fn declare(&self, networks: &[IpNet]) -> Result<(), CaptureError> {
        let declared: Vec<IpNet> = networks.iter().copied().map(normal).collect();
        for network in &declared {
            if network.prefix_len() > 0 && is_nobodys(network.addr()) {
                return Err(CaptureError::EndpointAddress { network: *network });
            }
            let entry =
                Entry { class: EndpointClass::Declared, name: String::new(), learnt: now(), expires: 0 };
            self.insert(*network, entry)?;
        }
        for Endpoint { network, class, .. } in self.list() {
            let is_stale = match class {
                EndpointClass::Declared => !declared.contains(&network),
                EndpointClass::Resolved => false,
                // The narrower entry would hide the better one.
                EndpointClass::Confirmed | EndpointClass::Learnt => {
                    declared.iter().any(|wider| wider.contains(&network))
                }
            };
            if is_stale {
                self.sets().remove(network)?;
            }
        }
        Ok(())
    }

    /// Adds a network, unless it is there for a better reason.
    fn insert(&self, network: IpNet, entry: Entry) -> Result<(), CaptureError> {
        let mut sets = self.sets();
        let (class, learnt) = match sets.known.get(&network) {
            Some(known) if known.class < entry.class => return Ok(()),
            Some(known) if known.class == entry.class => {
                if known.name == entry.name {
                    return Ok(());
                }
                (entry.class, known.learnt)
            }
            _ => (entry.class, entry.learnt),
        };
        sets.put(network, Entry { class, learnt, ..entry })?;
        drop(sets);
        self.changed.notify_one();
        Ok(())
    }

    fn sets(&self) -> MutexGuard<'_, Sets> {
        // A panic elsewhere leaves at worst a network in the kernel that is not in `known`: captured, never let by.
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sets {
    /// What the kernel programs find.
    fn class_of(&self, address: IpAddr) -> Option<EndpointClass> {
        let value = match normal(IpNet::from(address)).addr() {
            IpAddr::V4(address) => self.v4.get(&Key::new(32, address.octets()), 0),
            IpAddr::V6(address) => self.v6.get(&Key::new(128, address.octets()), 0),
        };
        value.ok().map(|endpoint| EndpointClass::of(endpoint.class))
    }

    fn put(&mut self, network: IpNet, entry: Entry) -> Result<(), CaptureError> {
        let value = entry.value();
        match network {
            IpNet::V4(net) => {
                self.v4.insert(&key4(net), value, 0).map_err(CaptureError::map(maps::ENDPOINTS4))
            }
            IpNet::V6(net) => {
                self.v6.insert(&key6(net), value, 0).map_err(CaptureError::map(maps::ENDPOINTS6))
            }
        }?;
        let place = entry.place(network);
        let before = self.known.insert(network, entry).and_then(|before| before.place(network));
        if let Some(before) = before {
            self.learnt.remove(&before);
        }
        self.learnt.extend(place);
        Ok(())
    }

    fn remove(&mut self, network: IpNet) -> Result<(), CaptureError> {
        match network {
            IpNet::V4(net) => self.v4.remove(&key4(net)).map_err(CaptureError::map(maps::ENDPOINTS4)),
            IpNet::V6(net) => self.v6.remove(&key6(net)).map_err(CaptureError::map(maps::ENDPOINTS6)),
        }?;
        if let Some(place) = self.known.remove(&network).and_then(|entry| entry.place(network)) {
            self.learnt.remove(&place);
        }
        Ok(())
    }
}

/// What is in the sets that are pinned in `directory`, for when no agent runs.
pub(super) fn read_pinned(directory: &Path) -> Result<Vec<Endpoint>, CaptureError> {
    fn open<T: TryFrom<Map, Error = MapError>>(
        directory: &Path,
        name: &'static str,
    ) -> Result<T, CaptureError> {
        MapData::from_pin(directory.join(name))
            .and_then(Map::from_map_data)
            .and_then(T::try_from)
            .map_err(CaptureError::map(name))
    }
    let known = read(&open(directory, maps::ENDPOINTS4)?, &open(directory, maps::ENDPOINTS6)?)?;
    Ok(known.iter().map(|(network, entry)| entry.shown(*network)).collect())
}

fn read(
    v4: &LpmTrie<MapData, [u8; 4], KernelEndpoint>,
    v6: &LpmTrie<MapData, [u8; 16], KernelEndpoint>,
) -> Result<BTreeMap<IpNet, Entry>, CaptureError> {
    let mut known = BTreeMap::new();
    for entry in v4 {
        let (key, value) = entry.map_err(CaptureError::map(maps::ENDPOINTS4))?;
        let network = Ipv4Net::new(Ipv4Addr::from(key.data()), prefix(key.prefix_len()));
        known.extend(network.ok().map(|network| (network.into(), Entry::of(&value))));
    }
    for entry in v6 {
        let (key, value) = entry.map_err(CaptureError::map(maps::ENDPOINTS6))?;
        let network = Ipv6Net::new(Ipv6Addr::from(key.data()), prefix(key.prefix_len()));
        known.extend(network.ok().map(|network| (network.into(), Entry::of(&value))));
    }
    Ok(known)
}

impl Entry {
    /// Where it stands among those that were learnt, if it was.
    fn place(&self, network: IpNet) -> Option<Place> {
        self.class.is_learnt().then_some((Reverse(self.class), self.expires, network))
    }

    fn of(value: &KernelEndpoint) -> Self {
        Self {
            class: EndpointClass::of(value.class),
            name: super::text(&value.name),
            learnt: value.learnt,
            expires: value.expires,
        }
    }

    fn value(&self) -> KernelEndpoint {
        KernelEndpoint {
            class: self.class.value(),
            reserved: 0,
            learnt: self.learnt,
            expires: self.expires,
            name: end_of(&self.name),
        }
    }

    fn shown(&self, network: IpNet) -> Endpoint {
        Endpoint {
            network,
            class: self.class,
            name: self.name.clone(),
            learnt: self.learnt,
            expires: (self.expires != 0).then_some(self.expires),
        }
    }
}

impl EndpointClass {
    fn value(self) -> u32 {
        match self {
            Self::Declared => endpoint_class::DECLARED,
            Self::Resolved => endpoint_class::RESOLVED,
            Self::Confirmed => endpoint_class::CONFIRMED,
            Self::Learnt => endpoint_class::LEARNT,
        }
    }

    fn of(value: u32) -> Self {
        match value {
            endpoint_class::DECLARED => Self::Declared,
            endpoint_class::RESOLVED => Self::Resolved,
            endpoint_class::CONFIRMED => Self::Confirmed,
            _ => Self::Learnt,
        }
    }

    fn is_learnt(self) -> bool {
        matches!(self, Self::Confirmed | Self::Learnt)
    }

    /// Whether the address is Snowflake's for certain, and not only by hearsay.
    pub fn is_certain(self) -> bool {
        self < Self::Learnt
    }
}

/// The network that is this address alone. An error for one that is no server's elsewhere.
fn host(address: IpAddr) -> Result<IpNet, CaptureError> {
    let network = normal(IpNet::from(address));
    if is_nobodys(network.addr()) { Err(CaptureError::EndpointAddress { network }) } else { Ok(network) }
}

/// Addresses that belong to no server elsewhere; redirecting them would only do harm.
fn is_nobodys(address: IpAddr) -> bool {
    address.is_loopback() || address.is_unspecified() || address.is_multicast()
}

/// The network without host bits; one of IPv4-mapped addresses as the IPv4 network that it is, for that is how the
/// kernel programs look for it.
fn normal(network: IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    if let IpNet::V6(v6) = network
        && let Some(prefix) = v6.prefix_len().checked_sub(MAPPED_BITS)
        && let Some(address) = v6.addr().to_ipv4_mapped().or_else(|| embedded4(v6.addr()))
        && let Ok(v4) = Ipv4Net::new(address, prefix)
    {
        return IpNet::V4(v4.trunc());
    }
    network.trunc()
}

/// The IPv4 address that a translator on the way shows as this one (RFC 6052).
fn embedded4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    const PREFIX: [u16; 6] = [0x64, 0xff9b, 0, 0, 0, 0];
    let segments = address.segments();
    let [.., high, low] = segments;
    segments.starts_with(&PREFIX).then(|| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
}

/// An address as the kernel programs see it.
pub(super) fn bytes(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
    .octets()
}

/// The last bytes of a name; one is left for the zero after it.
fn end_of(name: &str) -> Name {
    let mut bytes = [0; NAME_SIZE];
    let end = name.as_bytes();
    let end = end.get(end.len().saturating_sub(NAME_SIZE - 1)..).unwrap_or_default();
    for (to, from) in bytes.iter_mut().zip(end) {
        *to = *from;
    }
    bytes
}

fn key4(network: Ipv4Net) -> Key<[u8; 4]> {
    Key::new(u32::from(network.prefix_len()), network.network().octets())
}

fn key6(network: Ipv6Net) -> Key<[u8; 16]> {
    Key::new(u32::from(network.prefix_len()), network.network().octets())
}

fn prefix(bits: u32) -> u8 {
    u8::try_from(bits).unwrap_or(u8::MAX)
}

/// Seconds since the Unix epoch.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_brought_into_one_form() {
        let normal = |text: &str| normal(text.parse().unwrap()).to_string();
        assert_eq!(normal("10.1.2.3/8"), "10.0.0.0/8");
        assert_eq!(normal("::ffff:10.1.2.3/128"), "10.1.2.3/32");
        assert_eq!(normal("::ffff:10.1.2.3/104"), "10.0.0.0/8");
        assert_eq!(normal("64:ff9b::10.1.2.3/128"), "10.1.2.3/32");
        assert_eq!(normal("2001:db8::1/64"), "2001:db8::/64");
        // Wider than the mapped range: an IPv6 network like any other.
        assert_eq!(normal("::ffff:0:0/90"), "::ffc0:0:0/90");
    }

    #[test]
    fn loopback_and_the_like_are_nobodys() {
        for address in ["127.8.9.1", "0.0.0.0", "224.0.0.1", "::1", "::", "ff02::1", "::ffff:127.0.0.1"] {
            assert!(host(address.parse().unwrap()).is_err(), "{address}");
        }
        for address in ["10.0.0.1", "169.254.1.1", "fd00::1", "3.120.1.2"] {
            assert!(host(address.parse().unwrap()).is_ok(), "{address}");
        }
    }

    #[test]
    fn a_name_keeps_its_end() {
        let name = format!("{}.snowflakecomputing.com", "a".repeat(100));
        let kept = super::super::text(&end_of(&name));
        assert!(kept.len() == NAME_SIZE - 1 && name.ends_with(&kept));
        assert_eq!(super::super::text(&end_of("a.b")), "a.b");
    }

    #[test]
    fn classes_survive_the_kernel() {
        for class in [
            EndpointClass::Declared,
            EndpointClass::Resolved,
            EndpointClass::Confirmed,
            EndpointClass::Learnt,
        ] {
            assert_eq!(EndpointClass::of(class.value()), class);
        }
        assert!(!EndpointClass::of(99).is_certain(), "what is not known is not believed");
    }

    /// The sets as the kernel has them, in maps of their own.
    fn sets() -> Endpoints {
        let mut object = super::super::kernel::trial().unwrap();
        let mut take = |name| object.take_map(name).unwrap();
        let (v4, v6) = (take(maps::ENDPOINTS4), take(maps::ENDPOINTS6));
        Endpoints::new(v4.try_into().unwrap(), v6.try_into().unwrap()).unwrap()
    }

    #[test]
    #[ignore = "needs root; run by `cargo xtask test`"]
    fn a_hundred_thousand_learnt_names_push_out_the_oldest_and_never_what_is_known() {
        let endpoints = sets();
        endpoints.declare(&["192.0.2.0/24".parse().unwrap()]).unwrap();
        let resolved = "198.51.100.7".parse().unwrap();
        endpoints.resolve(resolved, "acme.snowflakecomputing.com").unwrap();
        let address = |number: u32| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + number));
        let keep = |number: u32| Duration::from_secs(3600 + u64::from(number) / 100);
        for number in 0..100_000 {
            endpoints.learn(address(number), "a.snowflakecomputing.com", keep(number)).unwrap();
        }
        assert_eq!(endpoints.list().len(), LEARNT + 2);
        assert_eq!(endpoints.class_of("192.0.2.9".parse().unwrap()), Some(EndpointClass::Declared));
        assert_eq!(endpoints.class_of(resolved), Some(EndpointClass::Resolved));
        assert_eq!(endpoints.class_of(address(0)), None, "the oldest go");
        assert_eq!(endpoints.class_of(address(99_999)), Some(EndpointClass::Learnt), "the newest stay");
        // What is learnt of an address that is known says nothing new.
        assert!(!endpoints.learn(resolved, "evil.snowflakecomputing.com", keep(0)).unwrap());
        assert_eq!(endpoints.name_of(resolved).as_deref(), Some("acme.snowflakecomputing.com"));
    }
}
