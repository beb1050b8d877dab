//! The sets of endpoint addresses, which live in the kernel and outlast the agent.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use agent_common::{endpoint_class, maps};
use aya::maps::{LpmTrie, MapData, lpm_trie::Key};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::CaptureError;

/// Why a network is in the sets.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum EndpointClass {
    /// The configuration names it.
    Declared,
    /// One of the configured names resolved to it.
    Resolved,
}

/// A handle to the sets; clones share them.
#[derive(Clone)]
pub struct Endpoints {
    sets: Arc<Mutex<Sets>>,
}

struct Sets {
    v4: LpmTrie<MapData, [u8; 4], u32>,
    v6: LpmTrie<MapData, [u8; 16], u32>,
    /// The same again: a trie does not tell a network from another that contains it.
    known: BTreeMap<IpNet, EndpointClass>,
}

impl Endpoints {
    /// With what an earlier agent left in the maps.
    pub(super) fn new(
        v4: LpmTrie<MapData, [u8; 4], u32>,
        v6: LpmTrie<MapData, [u8; 16], u32>,
    ) -> Result<Self, CaptureError> {
        let mut known = BTreeMap::new();
        for entry in &v4 {
            let (key, class) = entry.map_err(CaptureError::map(maps::ENDPOINTS4))?;
            let network = Ipv4Net::new(Ipv4Addr::from(key.data()), prefix(key.prefix_len()));
            known.extend(network.ok().map(|network| (network.into(), EndpointClass::of(class))));
        }
        for entry in &v6 {
            let (key, class) = entry.map_err(CaptureError::map(maps::ENDPOINTS6))?;
            let network = Ipv6Net::new(Ipv6Addr::from(key.data()), prefix(key.prefix_len()));
            known.extend(network.ok().map(|network| (network.into(), EndpointClass::of(class))));
        }
        Ok(Self { sets: Arc::new(Mutex::new(Sets { v4, v6, known })) })
    }

    /// Adds a network. A declared one stays declared.
    pub fn insert(&self, network: IpNet, class: EndpointClass) -> Result<(), CaptureError> {
        let network = normal(network);
        if network.prefix_len() > 0 && is_nobodys(network.addr()) {
            return Err(CaptureError::EndpointAddress { network });
        }
        let mut sets = self.sets();
        match sets.known.get(&network) {
            Some(known) if *known == class || *known == EndpointClass::Declared => return Ok(()),
            _ => {}
        }
        let value = class.value();
        match network {
            IpNet::V4(net) => {
                sets.v4.insert(&key4(net), value, 0).map_err(CaptureError::map(maps::ENDPOINTS4))
            }
            IpNet::V6(net) => {
                sets.v6.insert(&key6(net), value, 0).map_err(CaptureError::map(maps::ENDPOINTS6))
            }
        }?;
        sets.known.insert(network, class);
        Ok(())
    }

    /// Removes a network if it is of this class; says whether it was.
    pub fn remove(&self, network: IpNet, class: EndpointClass) -> Result<bool, CaptureError> {
        let network = normal(network);
        let mut sets = self.sets();
        if sets.known.get(&network) != Some(&class) {
            return Ok(false);
        }
        match network {
            IpNet::V4(net) => sets.v4.remove(&key4(net)).map_err(CaptureError::map(maps::ENDPOINTS4)),
            IpNet::V6(net) => sets.v6.remove(&key6(net)).map_err(CaptureError::map(maps::ENDPOINTS6)),
        }?;
        sets.known.remove(&network);
        Ok(true)
    }

    /// Everything in the sets, in order, with what an earlier agent left there.
    pub fn list(&self) -> Vec<(IpNet, EndpointClass)> {
        self.sets().known.iter().map(|(network, class)| (*network, *class)).collect()
    }

    /// Makes these the declared networks. Those that are declared no longer go, after the new ones came.
    pub(super) fn declare(&self, networks: &[IpNet]) -> Result<(), CaptureError> {
        for network in networks {
            self.insert(*network, EndpointClass::Declared)?;
        }
        let declared: Vec<IpNet> = networks.iter().copied().map(normal).collect();
        for (network, _) in self.list() {
            if !declared.contains(&network) {
                self.remove(network, EndpointClass::Declared)?;
            }
        }
        Ok(())
    }

    fn sets(&self) -> MutexGuard<'_, Sets> {
        // A panic elsewhere leaves at worst a network in the kernel that is not in `known`: redirected, never let by.
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EndpointClass {
    fn value(self) -> u32 {
        match self {
            Self::Declared => endpoint_class::DECLARED,
            Self::Resolved => endpoint_class::RESOLVED,
        }
    }

    fn of(value: u32) -> Self {
        if value == endpoint_class::DECLARED { Self::Declared } else { Self::Resolved }
    }
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
        && let Some(address) = v6.addr().to_ipv4_mapped()
        && let Ok(v4) = Ipv4Net::new(address, prefix)
    {
        return IpNet::V4(v4.trunc());
    }
    network.trunc()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_brought_into_one_form() {
        let normal = |text: &str| normal(text.parse().unwrap()).to_string();
        assert_eq!(normal("10.1.2.3/8"), "10.0.0.0/8");
        assert_eq!(normal("::ffff:10.1.2.3/128"), "10.1.2.3/32");
        assert_eq!(normal("::ffff:10.1.2.3/104"), "10.0.0.0/8");
        assert_eq!(normal("2001:db8::1/64"), "2001:db8::/64");
        // Wider than the mapped range: an IPv6 network like any other.
        assert_eq!(normal("::ffff:0:0/90"), "::ffc0:0:0/90");
    }

    #[test]
    fn loopback_and_the_like_are_nobodys() {
        for address in ["127.8.9.1", "0.0.0.0", "224.0.0.1", "::1", "::", "ff02::1"] {
            assert!(is_nobodys(address.parse().unwrap()), "{address}");
        }
        for address in ["10.0.0.1", "169.254.1.1", "fd00::1", "3.120.1.2"] {
            assert!(!is_nobodys(address.parse().unwrap()), "{address}");
        }
    }
}
