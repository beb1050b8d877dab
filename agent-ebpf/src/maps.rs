//! The maps. Those that must survive the agent are pinned; their sizes are part of `agent_common::LAYOUT`.

use agent_common::{FlowRecord, Peer, Settings, SocketKey, counter};
use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
};

#[map]
pub static SETTINGS: Array<Settings> = Array::pinned(1, 0);

/// Destination ports (host order) that are redirected.
#[map]
pub static PORTS: HashMap<u16, u8> = HashMap::pinned(64, 0);

/// Endpoint networks; the value is an `endpoint_class`.
#[map]
pub static ENDPOINTS4: LpmTrie<[u8; 4], u32> = LpmTrie::pinned(65_536, 0);

#[map]
pub static ENDPOINTS6: LpmTrie<[u8; 16], u32> = LpmTrie::pinned(65_536, 0);

/// Cookies of the agent's own sockets. Only the kernel gives cookies and none is given twice, so nobody can forge one.
#[map]
pub static EXEMPT: HashMap<u64, u8> = HashMap::pinned(65_536, 0);

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

#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(counter::COUNT, 0);

/// When the agent was last told about a namespace (nanoseconds of the monotonic clock), by its cookie.
#[map]
pub static ANNOUNCED: LruHashMap<u64, u64> = LruHashMap::with_max_entries(4_096, 0);

/// Messages to the agent that loaded these programs.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

pub fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

pub fn count(index: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: a pointer into this CPU's slot; a program is not preempted by itself on the same CPU in a way that
        // could do worse than lose one count.
        unsafe { *value = (*value).wrapping_add(1) };
    }
}
