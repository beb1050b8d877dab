//! The maps. Those that must survive the agent are pinned; their sizes are part of `agent_common::LAYOUT`.

use agent_common::{
    DNS_SIZE, DnsHeader, Endpoint, FlowRecord, Own, Peer, Rate, RateKey, Scope, Settings, SocketKey, Suffix,
    SynKey, WireKey, counter, endpoint_class,
};
use aya_ebpf::{
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, LruHashMap, LruPerCpuHashMap, PerCpuArray, RingBuf, lpm_trie::Key},
};

use crate::address;

#[map]
pub static SETTINGS: Array<Settings> = Array::pinned(1, 0);

/// When the agent last gave a sign of life: nanoseconds of the monotonic clock.
#[map]
pub static HEARTBEAT: Array<u64> = Array::pinned(1, 0);

/// Destination ports that are captured: one bit each.
#[map]
pub static PORTS: Array<u64> = Array::pinned(1024, 0);

#[map]
pub static ENDPOINTS4: LpmTrie<[u8; 4], Endpoint> = LpmTrie::pinned(65_536, 0);

#[map]
pub static ENDPOINTS6: LpmTrie<[u8; 16], Endpoint> = LpmTrie::pinned(65_536, 0);

/// Ends of names that belong to Snowflake.
#[map]
pub static SUFFIXES: HashMap<Suffix, u8> = HashMap::pinned(64, 0);

/// By the id of a cgroup.
#[map]
pub static SCOPES: HashMap<u64, Scope> = HashMap::pinned(16_384, 0);

/// The agent's own sockets. A mark here goes with its socket; only who may use this map can set one.
#[btf_map]
pub static OWN: SkStorage<Own> = SkStorage::new();

/// Sockets that asked for a Snowflake name on a way around. The mark goes with its socket.
#[btf_map]
pub static GUARDED: SkStorage<u8> = SkStorage::new();

/// From connect to the first SYN: records by the cookie of their socket.
#[map]
pub static PENDING: LruHashMap<u64, FlowRecord> = LruHashMap::pinned(65_536, 0);

/// From the first SYN to the agent's accept, which takes them: records by the client's end.
#[map]
pub static FLOWS: LruHashMap<SocketKey, FlowRecord> = LruHashMap::pinned(65_536, 0);

/// As long as the connection lasts: the peer that the client asked for, by the client's end.
#[map]
pub static PEERS: LruHashMap<SocketKey, Peer> = LruHashMap::pinned(131_072, 0);

/// Cookies of the network namespaces in which the agent listens.
#[map]
pub static NAMESPACES: HashMap<u64, u8> = HashMap::pinned(65_536, 0);

/// First packets of connections that are not covered, until the perimeter meets them.
#[map]
pub static UNCOVERED_SYNS: LruHashMap<SynKey, u8> = LruHashMap::pinned(16_384, 0);

/// Connections that are not covered, as the perimeter meets them.
#[map]
pub static UNCOVERED_FLOWS: LruHashMap<WireKey, u8> = LruHashMap::pinned(65_536, 0);

#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(counter::COUNT, 0);

/// How much of what each workload causes of late.
#[map]
pub static RATES: LruPerCpuHashMap<RateKey, Rate> = LruPerCpuHashMap::with_max_entries(4_096, 0);

/// When the agent was last told about a namespace (nanoseconds of the monotonic clock), by its cookie.
#[map]
pub static ANNOUNCED: LruHashMap<u64, u64> = LruHashMap::with_max_entries(4_096, 0);

/// The namespace with a listener that was looked up last.
#[map]
pub static KNOWN: PerCpuArray<Known> = PerCpuArray::with_max_entries(1, 0);

#[repr(C)]
pub struct Known {
    pub netns_cookie: u64,
    /// The agent's sign of life by which it was known.
    pub heartbeat: u64,
}

/// Messages to the agent that loaded these programs.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// DNS answers, for the same agent. Apart from the messages, so that a flood of answers does not drown these.
#[map]
pub static DNS: RingBuf = RingBuf::with_byte_size(512 * 1024, 0);

/// A DNS answer with its header, while it is put together.
#[repr(C)]
pub struct Answer {
    pub header: DnsHeader,
    pub bytes: [u8; DNS_SIZE],
}

#[map]
pub static ANSWER: PerCpuArray<Answer> = PerCpuArray::with_max_entries(1, 0);

#[inline(always)]
pub fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

#[inline(always)]
pub fn count(index: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: a pointer into this CPU's slot; a program is not preempted by itself on the same CPU in a way that
        // could do worse than lose one count.
        unsafe { *value = (*value).wrapping_add(1) };
    }
}

/// Whether connections to this port (host order) are captured.
#[inline(always)]
pub fn is_captured(port: u16) -> bool {
    PORTS.get(u32::from(port >> 6)).is_some_and(|bits| bits >> (port & 63) & 1 == 1)
}

/// The class of the address in the endpoint sets.
#[inline(always)]
pub fn endpoint_class(address: [u32; 4]) -> Option<u32> {
    match address::embedded4(address) {
        Some(word) => ENDPOINTS4.get(Key::new(32, word.to_ne_bytes())).map(|endpoint| endpoint.class),
        None => ENDPOINTS6.get(Key::new(128, address::bytes(address))).map(|endpoint| endpoint.class),
    }
}

/// Whether the address is Snowflake's for certain, and not only by hearsay.
#[inline(always)]
pub fn is_endpoint(address: [u32; 4]) -> bool {
    endpoint_class(address).is_some_and(|class| class < endpoint_class::LEARNT)
}
