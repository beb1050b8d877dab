//! Tells the agent of network namespaces in which it does not listen yet, as early as a covered process makes a socket
//! there.

use agent_common::{Event, counter, event_kind};
use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_current_pid_tgid, bpf_get_netns_cookie, bpf_ktime_get_ns},
    macros::cgroup_sock,
    programs::SockContext,
};

use crate::{
    ALLOW,
    maps::{ANNOUNCED, EVENTS, NAMESPACES, count},
};

/// The agent is told of one namespace no more often than this (nanoseconds).
const INTERVAL: u64 = 20_000_000;

#[cgroup_sock(sock_create)]
pub fn socket_created(context: SockContext) -> i32 {
    // SAFETY: the helper takes the context that the kernel passed.
    announce(unsafe { bpf_get_netns_cookie(context.as_ptr()) }, event_kind::SOCKET_CREATED);
    ALLOW
}

/// Sends an event unless the agent listens in this namespace or was told of it a moment ago.
#[inline(always)]
pub fn announce(netns_cookie: u64, kind: u32) {
    // SAFETY: nothing is read through the reference; only whether there is an entry counts.
    if unsafe { NAMESPACES.get(netns_cookie) }.is_some() {
        return;
    }
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: an integer; if the entry is reused meanwhile, the agent hears once too often or 20 ms late.
    if unsafe { ANNOUNCED.get(netns_cookie) }.is_some_and(|last| now.wrapping_sub(*last) < INTERVAL) {
        return;
    }
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        count(counter::EVENTS_LOST);
        return;
    };
    let task = bpf_get_current_pid_tgid();
    entry.write(Event { kind, pid: (task >> 32) as u32, tid: task as u32, reserved: 0, netns_cookie });
    entry.submit(0);
    let _ = ANNOUNCED.insert(netns_cookie, now, 0);
}
