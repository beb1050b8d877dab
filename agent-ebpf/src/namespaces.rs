//! Tells the agent of network namespaces in which it does not listen yet, as early as a covered process makes a socket
//! there.

use agent_common::{Event, NAME_SIZE, counter};
use aya_ebpf::helpers::{bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_ktime_get_ns};

use crate::maps::{ANNOUNCED, EVENTS, HEARTBEAT, KNOWN, Known, NAMESPACES, count};

/// The agent is told of one namespace no more often than this (nanoseconds).
const INTERVAL: u64 = 20_000_000;

/// Sends an event unless the agent listens in this namespace or was told of it a moment ago.
#[inline(always)]
pub fn announce(netns_cookie: u64, kind: u32) {
    if is_known(netns_cookie) {
        return;
    }
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: an integer; if the entry is reused meanwhile, the agent hears once too often or 20 ms late.
    if unsafe { ANNOUNCED.get(netns_cookie) }.is_some_and(|last| now.wrapping_sub(*last) < INTERVAL) {
        return;
    }
    count(kind);
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        count(counter::EVENTS_LOST);
        return;
    };
    let task = bpf_get_current_pid_tgid();
    entry.write(Event {
        kind,
        device: 0,
        // SAFETY: a helper without arguments.
        cgroup_id: unsafe { bpf_get_current_cgroup_id() },
        netns_cookie,
        socket_cookie: 0,
        pid: (task >> 32) as u32,
        tid: task as u32,
        uid: 0,
        protocol: 0,
        family: 0,
        source: [0; 16],
        destination: [0; 16],
        source_port: 0,
        destination_port: 0,
        reserved: 0,
        comm: [0; 16],
        name: [0; NAME_SIZE],
    });
    entry.submit(0);
    let _ = ANNOUNCED.insert(netns_cookie, now, 0);
}

/// Whether the agent listens there. What was looked up last is good until the agent's next sign of life: a look at a map
/// as large as this one costs more than everything else that is done for a socket.
#[inline(always)]
fn is_known(netns_cookie: u64) -> bool {
    let heartbeat = HEARTBEAT.get(0).copied().unwrap_or(0);
    let known = KNOWN.get_ptr_mut(0);
    // SAFETY: this CPU's slot. A program that comes in between has found out what it writes too, at the same time.
    if let Some(known) = known
        && unsafe { (*known).netns_cookie == netns_cookie && (*known).heartbeat == heartbeat }
    {
        return true;
    }
    // SAFETY: nothing is read through the reference; only whether there is an entry counts.
    if unsafe { NAMESPACES.get(netns_cookie) }.is_none() {
        return false;
    }
    if let Some(known) = known {
        // SAFETY: as above.
        unsafe { *known = Known { netns_cookie, heartbeat } };
    }
    true
}
