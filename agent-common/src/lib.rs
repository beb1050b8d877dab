//! Types shared by the kernel programs and the agent: what lies in their common maps.
//!
//! The kernel programs outlive the agent, so a new agent may meet maps that an older one made. Whatever changes a
//! type or a map here also raises [`LAYOUT`]; the agent refuses maps of another layout.
#![no_std]

use core::mem::{offset_of, size_of};

/// Version of everything in this file and of the maps' kinds and sizes.
pub const LAYOUT: u32 = 1;

/// Names of the maps; those that are pinned have the same name in the bpffs directory.
pub mod maps {
    pub const SETTINGS: &str = "SETTINGS";
    pub const PORTS: &str = "PORTS";
    pub const ENDPOINTS4: &str = "ENDPOINTS4";
    pub const ENDPOINTS6: &str = "ENDPOINTS6";
    pub const EXEMPT: &str = "EXEMPT";
    pub const PENDING: &str = "PENDING";
    pub const FLOWS: &str = "FLOWS";
    pub const PEERS: &str = "PEERS";
    pub const NAMESPACES: &str = "NAMESPACES";
    pub const COUNTERS: &str = "COUNTERS";
    pub const EVENTS: &str = "EVENTS";
}

/// Why an address is in the endpoint sets: the value of the endpoint maps.
pub mod endpoint_class {
    /// A network of the configuration.
    pub const DECLARED: u32 = 1;
    /// An address that one of the configured names resolved to.
    pub const RESOLVED: u32 = 2;
}

/// Indices of the per-CPU counters.
pub mod counter {
    /// Events that found the ring buffer full.
    pub const EVENTS_LOST: u32 = 0;
    /// Flow records that could not be stored; their connections are refused by the proxy.
    pub const FLOWS_LOST: u32 = 1;
    /// Connections that were redirected.
    pub const REDIRECTED: u32 = 2;
    /// Connects to an endpoint that were refused because they were not TCP.
    pub const REFUSED: u32 = 3;
    pub const COUNT: u32 = 4;
}

/// What an [`Event`] tells.
pub mod event_kind {
    /// A socket was made in a network namespace that has no listener.
    pub const SOCKET_CREATED: u32 = 1;
    /// A connection to an endpoint was redirected in a network namespace that has no listener.
    pub const ENDPOINT_HIT: u32 = 2;
}

/// The only entry of the settings map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Settings {
    /// [`LAYOUT`] of whoever made the maps. Stays first for ever.
    pub layout: u32,
    /// Process id of the agent.
    pub agent: u32,
    /// Id of the covered cgroup.
    pub cgroup: u64,
    /// Loopback port of the listeners, in host order.
    pub listen_port: u16,
    pub reserved: [u16; 3],
}

/// An IPv6 address in network order, or an IPv4 address in its mapped form (`::ffff:a.b.c.d`).
pub type Address = [u8; 16];

/// One end of a TCP connection: network namespace, address, port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct SocketKey {
    pub netns_cookie: u64,
    pub address: Address,
    /// In host order.
    pub port: u16,
    pub reserved: [u16; 3],
}

/// Where a redirected connection was going and who opened it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FlowRecord {
    /// Id of the cgroup (v2) of the task that called connect.
    pub cgroup_id: u64,
    pub netns_cookie: u64,
    pub socket_cookie: u64,
    /// When connect was called: nanoseconds of the monotonic clock.
    pub time: u64,
    /// Process id (thread group) in the first pid namespace.
    pub pid: u32,
    pub uid: u32,
    pub address: Address,
    /// In host order.
    pub port: u16,
    pub reserved: [u16; 3],
    /// Name of the task, padded with zeros.
    pub comm: [u8; 16],
}

/// The peer that a redirected socket asked for and is shown.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Peer {
    pub address: Address,
    /// In host order.
    pub port: u16,
    pub reserved: u16,
}

/// A message from the kernel programs to the agent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Event {
    pub kind: u32,
    pub pid: u32,
    /// The thread, whose network namespace may be another than its process's.
    pub tid: u32,
    pub reserved: u32,
    pub netns_cookie: u64,
}

const _: () = {
    assert!(size_of::<Settings>() == 24 && offset_of!(Settings, layout) == 0);
    assert!(offset_of!(Settings, cgroup) == 8 && offset_of!(Settings, listen_port) == 16);
    assert!(
        size_of::<SocketKey>() == 32
            && offset_of!(SocketKey, address) == 8
            && offset_of!(SocketKey, port) == 24
    );
    assert!(
        size_of::<FlowRecord>() == 80
            && offset_of!(FlowRecord, time) == 24
            && offset_of!(FlowRecord, pid) == 32
    );
    assert!(offset_of!(FlowRecord, address) == 40 && offset_of!(FlowRecord, port) == 56);
    assert!(offset_of!(FlowRecord, comm) == 64);
    assert!(size_of::<Peer>() == 20 && offset_of!(Peer, port) == 16);
    assert!(size_of::<Event>() == 24 && offset_of!(Event, netns_cookie) == 16);
};

#[cfg(feature = "user")]
mod user {
    use super::{FlowRecord, Peer, Settings, SocketKey};

    // SAFETY: repr(C), made of integers and byte arrays only, every byte pattern is valid, and no padding: the
    // assertions above pin each size to the sum of its fields.
    unsafe impl aya::Pod for Settings {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SocketKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FlowRecord {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Peer {}
}
