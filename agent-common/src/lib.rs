//! Types shared by the kernel programs and the agent: what lies in their common maps.
//!
//! The kernel programs outlive the agent, so a new agent may meet maps that an older one made. Whatever changes a
//! type or a map here also raises [`LAYOUT`]; maps of different layouts lie in different directories.
#![no_std]

use core::mem::{offset_of, size_of};

/// Version of everything in this file and of the maps' kinds and sizes.
pub const LAYOUT: u32 = 2;

/// Names of the maps; those that are pinned have the same name in the bpffs directory.
pub mod maps {
    pub const SETTINGS: &str = "SETTINGS";
    pub const HEARTBEAT: &str = "HEARTBEAT";
    pub const PORTS: &str = "PORTS";
    pub const ENDPOINTS4: &str = "ENDPOINTS4";
    pub const ENDPOINTS6: &str = "ENDPOINTS6";
    pub const SUFFIXES: &str = "SUFFIXES";
    pub const SCOPES: &str = "SCOPES";
    pub const OWN: &str = "OWN";
    pub const PENDING: &str = "PENDING";
    pub const FLOWS: &str = "FLOWS";
    pub const PEERS: &str = "PEERS";
    pub const NAMESPACES: &str = "NAMESPACES";
    pub const UNCOVERED_SYNS: &str = "UNCOVERED_SYNS";
    pub const UNCOVERED_FLOWS: &str = "UNCOVERED_FLOWS";
    pub const RATES: &str = "RATES";
    pub const COUNTERS: &str = "COUNTERS";
    pub const EVENTS: &str = "EVENTS";
    pub const DNS: &str = "DNS";
}

/// Names of the read-only variables of the kernel programs, which are set when they are loaded.
pub mod globals {
    /// 1 where `bpf_set_retval` can be called: a refused connect then ends in ECONNREFUSED and not in EPERM.
    pub const CAN_SET_ERROR: &str = "CAN_SET_ERROR";
    /// A [`super::TaskLayout`].
    pub const TASK_LAYOUT: &str = "TASK_LAYOUT";
}

/// Why an address is in the endpoint sets. The lower, the more it is trusted.
pub mod endpoint_class {
    /// A network of the configuration.
    pub const DECLARED: u32 = 1;
    /// An address that one of the agent's names resolved to.
    pub const RESOLVED: u32 = 2;
    /// Learnt from what a workload was told or did, and the server there proved to be Snowflake's.
    pub const CONFIRMED: u32 = 3;
    /// Learnt likewise, not proved: connections are only looked at.
    pub const LEARNT: u32 = 4;
}

/// What of a workload's connections is captured.
pub mod mode {
    /// Those to endpoints.
    pub const ENDPOINTS: u8 = 0;
    /// Every outbound TCP connection.
    pub const ALL: u8 = 1;
    /// None.
    pub const OFF: u8 = 2;
}

/// Whether a workload may have raw and packet sockets.
pub mod raw_sockets {
    /// Only outside containers, and in the host's network namespace.
    pub const HOST: u8 = 0;
    pub const ALLOW: u8 = 1;
    pub const REFUSE: u8 = 2;
}

/// What an own socket of the agent may do: the class of an [`Own`].
pub mod own_class {
    /// Everything: it speaks to Snowflake with the agent's credentials, or asks a server who it is.
    pub const AGENT: u32 = 1;
    /// It carries a workload's connection to the address in the [`Own`], and to no endpoint behind that.
    pub const SPLICE: u32 = 2;
    /// It speaks for the agent to others than Snowflake.
    pub const PLAIN: u32 = 3;
}

/// Indices of the per-CPU counters. The first ones count events by their kind, sent to the agent or not.
pub mod counter {
    use super::event_kind;

    /// Events that found the ring buffer full.
    pub const EVENTS_LOST: u32 = event_kind::COUNT;
    /// Flow records that could not be stored; their connections are refused by the proxy.
    pub const FLOWS_LOST: u32 = event_kind::COUNT + 1;
    /// Connections that were redirected.
    pub const REDIRECTED: u32 = event_kind::COUNT + 2;
    /// DNS answers that found the ring buffer full, or their receiver over its rate.
    pub const DNS_LOST: u32 = event_kind::COUNT + 3;
    pub const COUNT: u32 = event_kind::COUNT + 4;
}

/// What an [`Event`] tells.
pub mod event_kind {
    /// A socket was made in a network namespace that has no listener.
    pub const SOCKET_CREATED: u32 = 0;
    /// A connection to an endpoint was redirected in a network namespace that has no listener.
    pub const ENDPOINT_HIT: u32 = 1;
    /// UDP (or anything else that is no stream) to an endpoint was refused.
    pub const DATAGRAM_REFUSED: u32 = 2;
    /// A raw or packet socket was refused.
    pub const RAW_SOCKET_REFUSED: u32 = 3;
    /// A packet with the start of TLS with a Snowflake name, to an address that nobody knew, was dropped.
    pub const NAME_GUARDED: u32 = 4;
    /// A request to a proxy (HTTP CONNECT, SOCKS) for a tunnel to a Snowflake name was dropped.
    pub const TUNNEL_GUARDED: u32 = 5;
    /// A packet of a covered socket to an endpoint, which was not redirected, was dropped.
    pub const PACKET_GUARDED: u32 = 6;
    /// A packet to an endpoint that is not the agent's was dropped on its way out of the host.
    pub const PERIMETER_DROPPED: u32 = 7;
    /// A covered process connected to the agent's listener by itself.
    pub const LISTENER_PROBED: u32 = 8;
    /// A connection was refused because the agent gives no sign of life.
    pub const AGENT_SILENT: u32 = 9;
    /// A connection of the agent's for a workload was led elsewhere on its way.
    pub const SPLICE_DIVERTED: u32 = 10;
    /// Not an event: DNS answers share the rates of events.
    pub const DNS_ANSWER: u32 = 11;
    pub const COUNT: u32 = 12;
}

/// How many different lengths the suffixes may have.
pub const SUFFIX_LENGTHS: usize = 8;
/// Bytes of a [`Suffix`]; its text is shorter.
pub const SUFFIX_SIZE: usize = 64;
/// Bytes of the names in endpoints and events; longer ones are cut at their beginning.
pub const NAME_SIZE: usize = 64;
/// Bytes of a DNS answer that reach the agent.
pub const DNS_SIZE: usize = 4096;

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
    /// How many levels below the root of the hierarchy it is.
    pub cgroup_level: u32,
    /// Loopback port of the listeners, in host order.
    pub listen_port: u16,
    pub reserved: u16,
    /// For whatever no entry of the scopes map says otherwise.
    pub scope: Scope,
    /// 1 if the scopes map has entries.
    pub scoped: u8,
    pub reserved2: [u8; 3],
    /// The agent is believed to be alive for this long after a heartbeat, in nanoseconds.
    pub patience: u64,
    /// The lengths of the suffixes, with their leading dots; zeros after the last.
    pub suffix_lengths: [u8; SUFFIX_LENGTHS],
}

/// What holds for a cgroup and all below it, where no deeper one says otherwise.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Scope {
    /// One of [`mode`].
    pub mode: u8,
    /// One of [`raw_sockets`].
    pub raw_sockets: u8,
    pub reserved: [u8; 2],
}

/// The end of a name, with the dot before it, in lower case, at the end of the bytes and with zeros before it. Every
/// byte has bit 0x20 set, as the kernel program sets it in what it compares.
pub type Suffix = [u8; SUFFIX_SIZE];

/// Bytes of the kernel's structures, from their beginnings, at which the programs find what namespaces a task is in.
/// They differ by kernel; all zero where they are not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TaskLayout {
    /// `task_struct.nsproxy`
    pub task_nsproxy: u32,
    /// `nsproxy.net_ns`
    pub nsproxy_net: u32,
    /// `nsproxy.pid_ns_for_children`
    pub nsproxy_pid: u32,
    /// `net.ns.inum`
    pub net_inum: u32,
    /// `pid_namespace.ns.inum`
    pub pid_inum: u32,
    /// The numbers of the host's own namespaces.
    pub host_net: u32,
    pub host_pid: u32,
}

/// An IPv6 address in network order, or an IPv4 address in its mapped form (`::ffff:a.b.c.d`).
pub type Address = [u8; 16];

/// A name, cut at its beginning and padded with zeros at its end.
pub type Name = [u8; NAME_SIZE];

/// A network in the endpoint sets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// One of [`endpoint_class`].
    pub class: u32,
    pub reserved: u32,
    /// When it came in: seconds since the Unix epoch.
    pub learnt: u64,
    /// When it goes unless it is seen again, likewise; 0: never.
    pub expires: u64,
    /// The name that it is known by.
    pub name: Name,
}

/// A mark on one of the agent's own sockets, which only the agent can set.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Own {
    /// One of [`own_class`].
    pub class: u32,
    /// In host order.
    pub port: u16,
    pub reserved: u16,
    pub address: Address,
    /// Id of the cgroup of the workload that the connection is carried for; 0: the agent's own.
    pub cgroup_id: u64,
}

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

/// The first packet of a connection that is not covered, as it may be met again after a translation of its source:
/// destination and sequence number, in network order as in the packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SynKey {
    pub destination: Address,
    pub sequence: u32,
    pub port: u16,
    pub reserved: u16,
}

/// A TCP connection on the wire; ports in network order as in the packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WireKey {
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
}

/// Whose events are counted together.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct RateKey {
    /// Id of the workload's cgroup. Where that is not known but the packet came from another namespace: the device by which
    /// it came in, and [`RateKey::DEVICE`].
    pub owner: u64,
    pub kind: u32,
    pub reserved: u32,
}

impl RateKey {
    /// Marks the number of a device; ids of cgroups are smaller.
    pub const DEVICE: u64 = 1 << 63;

    /// Of an event with this cgroup and device.
    pub const fn owner(cgroup_id: u64, device: u32) -> u64 {
        if cgroup_id == 0 && device != 0 { Self::DEVICE | device as u64 } else { cgroup_id }
    }
}

/// What a workload has caused of one kind of late, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    /// When the current second began: nanoseconds of the monotonic clock.
    pub window: u64,
    /// Sent in the current second.
    pub sent: u64,
    /// Sent or not, since the entry was made.
    pub total: u64,
}

/// A message from the kernel programs to the agent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Event {
    /// One of [`event_kind`].
    pub kind: u32,
    /// The device of the host by which a packet of another namespace came in; 0: there is none.
    pub device: u32,
    /// Id of the cgroup of the socket, or of the task where there is none; 0: not known.
    pub cgroup_id: u64,
    /// 0: not known.
    pub netns_cookie: u64,
    /// 0: not known.
    pub socket_cookie: u64,
    /// The task that caused it; all zero where it is not known.
    pub pid: u32,
    /// The thread, whose network namespace may be another than its process's.
    pub tid: u32,
    pub uid: u32,
    /// Of the IP packet or of the socket.
    pub protocol: u16,
    /// Of the socket: AF_INET and so on, where a socket was refused.
    pub family: u16,
    pub source: Address,
    pub destination: Address,
    /// In host order.
    pub source_port: u16,
    pub destination_port: u16,
    pub reserved: u32,
    pub comm: [u8; 16],
    /// The name that was asked for.
    pub name: Name,
}

/// What stands before the bytes of a DNS answer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DnsHeader {
    /// Of the socket that received it.
    pub cgroup_id: u64,
    pub socket_cookie: u64,
    /// TCP's sequence number of the first byte.
    pub sequence: u32,
    /// How many bytes follow.
    pub length: u16,
    /// 1 for a segment of TCP, in which messages have their length before them.
    pub stream: u8,
    /// 1 if there were more bytes than follow.
    pub truncated: u8,
}

const _: () = {
    assert!(size_of::<Settings>() == 48 && offset_of!(Settings, layout) == 0);
    assert!(offset_of!(Settings, cgroup) == 8 && offset_of!(Settings, listen_port) == 20);
    assert!(offset_of!(Settings, scope) == 24 && offset_of!(Settings, patience) == 32);
    assert!(size_of::<Scope>() == 4 && size_of::<TaskLayout>() == 28);
    assert!(size_of::<Endpoint>() == 88 && offset_of!(Endpoint, learnt) == 8);
    assert!(size_of::<Own>() == 32 && offset_of!(Own, cgroup_id) == 24);
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
    assert!(size_of::<SynKey>() == 24 && offset_of!(SynKey, sequence) == 16);
    assert!(size_of::<WireKey>() == 36 && offset_of!(WireKey, source_port) == 32);
    assert!(size_of::<RateKey>() == 16 && size_of::<Rate>() == 24);
    assert!(size_of::<Event>() == 168 && offset_of!(Event, source) == 48);
    assert!(offset_of!(Event, source_port) == 80 && offset_of!(Event, name) == 104);
    assert!(size_of::<DnsHeader>() == 24 && offset_of!(DnsHeader, length) == 20);
};

#[cfg(feature = "user")]
mod user {
    use super::{
        DnsHeader, Endpoint, Event, FlowRecord, Own, Peer, Rate, RateKey, Scope, Settings, SocketKey,
        TaskLayout,
    };

    /// Lets aya read and write types as keys and values of maps.
    macro_rules! pods {
        ($($type:ty),+) => {$(
            // SAFETY: repr(C), made of integers and byte arrays only, every byte pattern is valid, and no padding: the
            // assertions above pin each size to the sum of its fields.
            unsafe impl aya::Pod for $type {}
        )+};
    }

    pods!(
        DnsHeader, Endpoint, Event, FlowRecord, Own, Peer, Rate, RateKey, Scope, Settings, SocketKey,
        TaskLayout
    );
}
